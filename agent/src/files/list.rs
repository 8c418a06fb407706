//! What files there are, and what they contain.

use std::collections::BTreeMap;
use std::fs::{File, Metadata};
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use cellferry_wire::protocol::{Entry, EntryKind, FilePath, Listing};
use glob::{MatchOptions, Pattern};

use super::path::{resolve, stays_within};

/// As in a shell: `*` stops at `/` and leaves hidden files out.
const SHELL: MatchOptions = MatchOptions {
    case_sensitive: true,
    require_literal_separator: true,
    require_literal_leading_dot: true,
};

/// Lists what a pattern matches. This may block for as long as it takes to read all of it.
pub fn list(pattern: &FilePath) -> Result<Listing, String> {
    let resolved = resolve(pattern)?;
    let whole = resolved.whole();
    // A name with brackets may just be a name.
    let is_plain = !has_wildcard(&resolved.path) || whole.symlink_metadata().is_ok();
    let root = if !resolved.base.as_os_str().is_empty() {
        resolved.base.clone()
    } else if is_plain {
        whole.parent().unwrap_or(&whole).to_owned()
    } else {
        before_wildcards(&whole)
    };
    let mut found = Found {
        root: &root,
        entries: BTreeMap::new(),
    };
    if is_plain {
        if !found.visit(&whole, &mut Inside::default())? {
            return Err(format!(
                "`{}` is neither a file nor a directory",
                whole.display()
            ));
        }
    } else {
        for path in matches(&resolved.base, &resolved.path)? {
            // `**` matches directories and all that is in them.
            if found.has(&path) {
                continue;
            }
            found.visit(&path, &mut Inside::default())?;
        }
    }
    let entries = found.entries.into_iter();
    Ok(Listing {
        entries: entries
            .map(|(path, kind)| {
                Ok(Entry {
                    path: text(&path)?,
                    kind,
                })
            })
            .collect::<Result<_, String>>()?,
        root: text(&root)?,
    })
}

/// Whether there is anything that a pattern matches; nothing is read for it.
pub fn exists(pattern: &FilePath) -> Result<bool, String> {
    let resolved = resolve(pattern)?;
    let is_there = resolved.whole().symlink_metadata().is_ok();
    Ok(is_there
        || has_wildcard(&resolved.path) && !matches(&resolved.base, &resolved.path)?.is_empty())
}

/// Of a path below a base: what the pattern names, the path itself or a directory that it is in. `None` if the pattern does
/// not name it.
pub fn named_part<'p>(pattern: &str, path: &'p Path) -> Option<&'p Path> {
    let mut pattern = PathBuf::from(pattern);
    // The last is empty: the base itself.
    let above = || path.ancestors().filter(|path| !path.as_os_str().is_empty());
    if let Some(plain) = above().find(|path| *path == pattern) {
        return Some(plain);
    }
    for_all(&mut pattern);
    let glob = Pattern::new(pattern.to_str()?).ok()?;
    above()
        .filter(|path| glob.matches_path_with(path, SHELL))
        .last()
}

/// A pattern that ends with `**` means files, too.
fn for_all(pattern: &mut PathBuf) {
    if pattern.ends_with("**") {
        // The crate takes this for directories only.
        pattern.push("*");
    }
}

fn has_wildcard(path: &Path) -> bool {
    let bytes = path.as_os_str().as_encoded_bytes();
    bytes.iter().any(|byte| b"*?[".contains(byte))
}

fn before_wildcards(path: &Path) -> PathBuf {
    let parts = path.components();
    parts
        .take_while(|part| !has_wildcard(part.as_ref()))
        .collect()
}

fn matches(base: &Path, pattern: &Path) -> Result<Vec<PathBuf>, String> {
    let name = pattern.display();
    let base = Pattern::escape(&text(base)?);
    let mut whole = Path::new(&base).join(pattern);
    for_all(&mut whole);
    glob::glob_with(&text(&whole)?, SHELL)
        .map_err(|error| format!("`{name}` is not a pattern: {error}"))?
        .collect::<Result<_, _>>()
        .map_err(|error| cannot_read(error.path(), error.error()))
}

/// Paths go into messages and notebooks, which are text.
fn text(path: &Path) -> Result<String, String> {
    let text = path.to_str().map(str::to_owned);
    text.ok_or_else(|| format!("the name of `{}` is not text in UTF-8", path.display()))
}

fn cannot_read(path: &Path, error: &io::Error) -> String {
    format!("cannot read `{}`: {error}", path.display())
}

struct Found<'a> {
    root: &'a Path,
    entries: BTreeMap<PathBuf, EntryKind>,
}

/// The directories between a file and what the pattern matched, by device and number.
#[derive(Default)]
struct Inside(Vec<(u64, u64)>);

impl Found<'_> {
    /// Adds what is at a path, with all that is in it. False if that is nothing that could be copied.
    fn visit(&mut self, path: &Path, inside: &mut Inside) -> Result<bool, String> {
        let cannot = |error| cannot_read(path, &error);
        let mut status = path.symlink_metadata().map_err(cannot)?;
        if status.is_symlink() {
            let target = path.read_link().map_err(cannot)?;
            if let Some(depth) = inside.0.len().checked_sub(1)
                && stays_within(&target, depth)
            {
                let target = text(&target)?;
                self.add(path, EntryKind::Link { target });
                return Ok(true);
            }
            status = path.metadata().map_err(cannot)?;
        }
        let mode = status.permissions().mode() & 0o777;
        if status.is_file() {
            let blake3 = hash(path).map_err(cannot)?;
            let size = status.len();
            self.add(path, EntryKind::File { mode, size, blake3 });
        } else if status.is_dir() {
            self.add(path, EntryKind::Directory { mode });
            self.visit_all_in(path, &status, inside)?;
        } else {
            return Ok(false);
        }
        Ok(true)
    }

    fn visit_all_in(
        &mut self,
        path: &Path,
        status: &Metadata,
        inside: &mut Inside,
    ) -> Result<(), String> {
        let cannot = |error| cannot_read(path, &error);
        let identity = (status.dev(), status.ino());
        if inside.0.contains(&identity) {
            return Err(format!(
                "the link `{}` leads back to a directory that it is in",
                path.display()
            ));
        }
        inside.0.push(identity);
        for entry in path.read_dir().map_err(cannot)? {
            // Sockets and the like in a directory are of no use elsewhere.
            self.visit(&entry.map_err(cannot)?.path(), inside)?;
        }
        inside.0.pop();
        Ok(())
    }

    fn has(&self, path: &Path) -> bool {
        self.entries.contains_key(self.below_root(path))
    }

    fn add(&mut self, path: &Path, kind: EntryKind) {
        let below = self.below_root(path).to_owned();
        self.entries.insert(below, kind);
    }

    fn below_root<'b>(&self, path: &'b Path) -> &'b Path {
        path.strip_prefix(self.root).unwrap_or(path)
    }
}

fn hash(path: &Path) -> io::Result<[u8; 32]> {
    let mut hasher = blake3::Hasher::new();
    hasher.update_reader(File::open(path)?)?;
    Ok(*hasher.finalize().as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_names_what_it_matches_and_what_is_in_it() {
        let named = |pattern: &str, path: &str| named_part(pattern, Path::new(path)).is_some();
        assert!(named("a", "a") && named("a", "a/b/c") && named("*.png", "x.png"));
        assert!(named("a/*", "a/b/.c") && named("a/**", "a/b/c") && named("**/*.png", "a/b/x.png"));
        assert!(named("[1].csv", "[1].csv") && named("[1].csv", "1.csv"));
        assert!(!named("a", "b") && !named("a", "ab") && !named("*.png", "a/x.png"));
        let part = named_part("a*", Path::new("ab/ac/d"));
        assert_eq!(part, Some(Path::new("ab")));
        assert!(!named("*", ".ssh/config") && !named("a/*", "a") && !named("[", "x"));
    }
}
