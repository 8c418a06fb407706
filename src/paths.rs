//! Paths of files as a step's metadata spells them, and where each of them is on a machine.
//!
//! A path is the same text on every machine, so that the cell's own code finds the file wherever it runs: what is relative
//! is below the working directory there, `~` is the home directory there, and what is absolute is just there.

use std::path::{Component, Path, PathBuf};

/// A path or glob pattern, in two parts: the directory where it begins, and what is meant in there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// Empty for the working directory; relative to it if it begins with neither `/` nor `~`.
    directory: String,
    /// Without `..` and without `.`; only here there may be wildcards.
    pub within: String,
}

impl Place {
    /// Reads a path; else what is wrong with it.
    pub fn parse(text: &str) -> Result<Self, String> {
        let wrong = |what: &str| Err(format!("`{}` {what}", text.escape_debug()));
        if text.trim().is_empty() {
            return Err("must be a path; it is empty".to_owned());
        }
        if text.contains('\0') {
            return wrong("is no path: there is a NUL in it");
        }
        if text.starts_with('~') && text != "~" && !text.starts_with("~/") {
            return wrong(
                "is not understood: only `~/`, your own home directory, can be written so",
            );
        }
        let path = Path::new(text);
        let parts: Vec<Component<'_>> = path
            .components()
            .filter(|part| *part != Component::CurDir)
            .collect();
        let up = |part: &Component<'_>| *part == Component::ParentDir;
        let wild = parts
            .iter()
            .position(|part| has_wildcard(part.as_os_str().as_encoded_bytes()));
        let is_below = !path.is_absolute() && !text.starts_with('~') && !parts.iter().any(up);
        let split = match wild {
            _ if is_below => 0,
            Some(wild) => wild,
            None => parts.len().saturating_sub(1),
        };
        let (directory, within) = parts.split_at(split);
        let named = |part: &Component<'_>| matches!(part, Component::Normal(_));
        if within.is_empty() || !within.iter().all(named) || (split == 0 && !is_below) {
            return wrong(
                "must name files or directories: give their names after the last `..`, `~` or `/`",
            );
        }
        let text = |parts: &[Component<'_>]| -> String {
            let path: PathBuf = parts.iter().collect();
            path.display().to_string()
        };
        Ok(Self {
            directory: text(directory),
            within: text(within),
        })
    }

    /// The directory where it begins, on a machine whose working directory is `base`.
    pub fn directory(&self, base: &str) -> String {
        if self.directory.starts_with(['/', '~']) {
            self.directory.clone()
        } else if self.directory.is_empty() {
            base.to_owned()
        } else {
            format!("{}/{}", base.trim_end_matches('/'), self.directory)
        }
    }

    /// Whether it is below the working directory on every machine.
    pub fn is_below(&self) -> bool {
        self.directory.is_empty()
    }

    /// Whether it is a pattern, unless there is a file of that very name.
    pub fn is_pattern(&self) -> bool {
        has_wildcard(self.within.as_bytes())
    }

    /// The path as one text, which the same place always has and no variable can be called.
    pub fn shown(&self) -> String {
        match &*self.directory {
            "" => format!("./{}", self.within),
            "/" => format!("/{}", self.within),
            directory => format!("{directory}/{}", self.within),
        }
    }
}

fn has_wildcard(bytes: &[u8]) -> bool {
    bytes.iter().any(|byte| b"*?[".contains(byte))
}

/// An absolute path without `.` and `..`, as far as its text shows: links on the way are not looked at.
pub fn normal(path: &Path) -> PathBuf {
    let mut kept = PathBuf::new();
    for part in path.components() {
        match part {
            Component::ParentDir => {
                kept.pop();
            }
            Component::CurDir => {}
            part => kept.push(part),
        }
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_split_where_it_begins() {
        for (text, directory, within, shown) in [
            ("a.csv", "/w", "a.csv", "./a.csv"),
            ("./a//b/", "/w", "a/b", "./a/b"),
            ("a/*.csv", "/w", "a/*.csv", "./a/*.csv"),
            ("**", "/w", "**", "./**"),
            ("../x/a.csv", "/w/../x", "a.csv", "../x/a.csv"),
            ("a/../b*", "/w/a/..", "b*", "a/../b*"),
            ("/data/a.csv", "/data", "a.csv", "/data/a.csv"),
            ("/data/*/x", "/data", "*/x", "/data/*/x"),
            ("/a", "/", "a", "/a"),
            ("~/x/*.png", "~/x", "*.png", "~/x/*.png"),
            ("~/x", "~", "x", "~/x"),
        ] {
            let place = Place::parse(text).unwrap();
            assert_eq!(
                (place.directory("/w"), &*place.within, place.shown()),
                (directory.to_owned(), within, shown.to_owned()),
                "{text}"
            );
        }
    }

    #[test]
    fn what_names_no_file_is_refused() {
        for text in [
            "", " ", ".", "..", "../..", "/", "~", "~/..", "~bob/x", "a/..", "*/../x", "a\0b",
        ] {
            assert!(Place::parse(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn dots_go_by_the_text_alone() {
        assert_eq!(normal(Path::new("/a/./b/../c")), Path::new("/a/c"));
        assert_eq!(normal(Path::new("/../a")), Path::new("/a"));
    }
}
