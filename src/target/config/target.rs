//! A target as its definition says it: where it is, and how its workers start there.
//!
//! It is checked already: what is made of a table of the file is in `table`.

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};

use super::{FILE, Slurm, Ssh};

/// A target, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// Its name.
    pub name: String,
    /// The file that defines it; `None` for what is always there.
    pub defined_in: Option<PathBuf>,
    /// Where it is.
    pub place: Place,
    /// The Python of its workers, as written: a path (`~` for the home directory) or a name on `PATH`.
    pub python: Option<String>,
    /// The conda environment of its workers: a name or a path.
    pub conda: Option<String>,
    /// Shell lines that run before the Python of its workers starts.
    pub setup: Option<String>,
    /// The working directory of its workers, there.
    pub workdir: Option<PathBuf>,
    /// How many workers it may have.
    pub workers: NonZeroU32,
    /// How many GPUs each of its locations has for steps that ask for some; those of the job for the nodes of a batch system.
    pub gpus: u32,
    /// Variables of its workers' environment.
    pub env: BTreeMap<String, String>,
}

/// Where the locations of a target are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// This machine.
    Local,
    /// A host that is reached by ssh.
    Ssh(Ssh),
    /// The nodes that a Slurm cluster grants.
    Slurm(Box<Slurm>),
}

impl Target {
    /// A target about which nothing more is said.
    pub(super) fn plain(name: &str, defined_in: Option<&Path>, place: Place) -> Self {
        Self {
            name: name.to_owned(),
            defined_in: defined_in.map(Path::to_owned),
            place,
            python: None,
            conda: None,
            setup: None,
            workdir: None,
            workers: NonZeroU32::MIN,
            gpus: 0,
            env: BTreeMap::new(),
        }
    }

    /// Where its definition is mended: the table in the file, as a user would look for it.
    pub fn table(&self) -> String {
        format!("[targets.{}] in {FILE}", self.name)
    }
}
