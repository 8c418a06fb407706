//! Paths as users write them.

use std::path::{Component, Path, PathBuf};

use cellferry_wire::protocol::FilePath;

/// The user's home directory, or the root where there is none.
pub fn home() -> PathBuf {
    std::env::home_dir()
        .filter(|home| home.is_dir())
        .unwrap_or_else(|| PathBuf::from("/"))
}

/// A path with `~` at its start replaced.
pub fn expand(path: &str) -> PathBuf {
    match path.strip_prefix('~') {
        Some("") => home(),
        Some(rest) if rest.starts_with('/') => home().join(rest.trim_start_matches('/')),
        _ => PathBuf::from(path),
    }
}

/// A path on this machine, in two parts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resolved {
    /// Where what is relative begins; empty for a path that is not.
    pub base: PathBuf,
    /// The rest.
    pub path: PathBuf,
}

impl Resolved {
    /// Both parts.
    pub fn whole(&self) -> PathBuf {
        self.base.join(&self.path)
    }
}

/// Where a path leads, by the rules of [`FilePath`].
pub fn resolve(file: &FilePath) -> Result<Resolved, String> {
    let path = expand(&file.path);
    if path.is_absolute() {
        return Ok(Resolved {
            base: PathBuf::new(),
            path,
        });
    }
    let base = home().join(file.base.as_deref().map(expand).unwrap_or_default());
    let mut kept = PathBuf::new();
    for component in path.components() {
        match component {
            Component::Normal(name) => kept.push(name),
            Component::CurDir => {}
            _ => {
                return Err(format!(
                    "`{}` may lead out of `{}`: a relative path must not contain `..`",
                    file.path,
                    base.display()
                ));
            }
        }
    }
    Ok(Resolved { base, path: kept })
}

/// Whether a link so many directories below a place stays in that place, whatever links there are on the way: `..` counts only
/// at its start.
pub fn stays_within(target: &Path, depth: usize) -> bool {
    let mut components = target.components().peekable();
    let mut up = 0;
    while components.next_if_eq(&Component::ParentDir).is_some() {
        up += 1;
    }
    up <= depth && components.all(|one| matches!(one, Component::Normal(_) | Component::CurDir))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolved(base: Option<&str>, path: &str) -> Result<PathBuf, String> {
        let file = FilePath {
            base: base.map(str::to_owned),
            path: path.to_owned(),
        };
        resolve(&file).map(|resolved| resolved.whole())
    }

    #[test]
    fn relative_paths_stay_below_their_base() {
        let ok = |path: &str| Ok(PathBuf::from(path));
        assert_eq!(resolved(Some("/w"), "a/b"), ok("/w/a/b"));
        assert_eq!(resolved(Some("/w"), "./a//b/."), ok("/w/a/b"));
        assert_eq!(resolved(Some("/w"), "/a/../b"), ok("/a/../b"));
        assert_eq!(resolved(None, "a"), Ok(home().join("a")));
        assert_eq!(resolved(Some("~/w"), "a"), Ok(home().join("w/a")));
        assert_eq!(resolved(Some("w"), "~/a"), Ok(home().join("a")));
        assert_eq!(resolved(Some("/w"), "~user"), ok("/w/~user"));
        for path in ["..", "a/../../b", "a/..", "../w/a"] {
            let error = resolved(Some("/w"), path).unwrap_err();
            assert!(error.contains(path) && error.contains("`/w`"), "{error}");
        }
    }

    #[test]
    fn links_stay_within_by_their_form_alone() {
        let stays = |target: &str, depth| stays_within(Path::new(target), depth);
        assert!(
            stays("a", 0)
                && stays("../a", 1)
                && stays("../../a/b", 2)
                && stays("..", 1)
                && stays(".", 0)
        );
        assert!(!stays("..", 0) && !stays("../../a", 1) && !stays("/a", 9));
        assert!(!stays("a/../b", 9));
    }
}
