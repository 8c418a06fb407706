//! Paths that targets share, as `[[shared]]` in `cellferry.toml` declares them: what is there is copied to none of them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::paths::normal;

/// All that is declared.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Shared {
    /// Each with the path at which each target sees it.
    pub trees: Vec<BTreeMap<String, PathBuf>>,
}

impl Shared {
    /// Whether a path on one target is the same file as a path on the other. Both are absolute, without `..`.
    pub fn same(&self, (one, here): (&str, &Path), (other, there): (&str, &Path)) -> bool {
        self.trees.iter().any(|tree| {
            let below = |target: &str, path| Path::strip_prefix(path, tree.get(target)?).ok();
            let here = below(one, here);
            here.is_some() && here == below(other, there)
        })
    }

    /// Adds a tree. Its paths are absolute.
    pub fn add(&mut self, paths: impl IntoIterator<Item = (String, PathBuf)>) {
        let paths = paths.into_iter();
        self.trees.push(
            paths
                .map(|(target, path)| (target, normal(&path)))
                .collect(),
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_file_is_at_the_same_place_of_one_tree() {
        let mut shared = Shared::default();
        let tree = |paths: &[(&str, &str)]| -> Vec<(String, PathBuf)> {
            let owned = paths
                .iter()
                .map(|(target, path)| ((*target).to_owned(), PathBuf::from(path)));
            owned.collect()
        };
        shared.add(tree(&[("home", "/mnt/data/"), ("lab", "/data")]));
        shared.add(tree(&[("home", "/s"), ("node", "/s")]));
        let same = |one, here, other, there| {
            shared.same((one, Path::new(here)), (other, Path::new(there)))
        };
        assert!(same("home", "/mnt/data/a/b", "lab", "/data/a/b"));
        assert!(same("lab", "/data", "home", "/mnt/data"));
        assert!(same("home", "/s/x", "node", "/s/x"));
        assert!(!same("home", "/mnt/data/a", "lab", "/data/b"));
        assert!(!same("home", "/mnt/database", "lab", "/database"));
        assert!(!same("home", "/s/x", "lab", "/s/x"));
        assert!(!same("home", "/s/x", "lab", "/data/x"));
    }
}
