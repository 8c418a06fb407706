//! A worker's place, and what it is started with there.

use cellferry_wire::protocol::WorkerSpec;

use crate::session::TargetName;
use crate::target::config::{Ssh, Target};
use crate::target::launch;

/// A worker's place, as the user would say it.
#[derive(Debug)]
pub struct Seat {
    pub(super) target: TargetName,
    /// The location of its agent: the target itself, unless that has several.
    pub(super) location: TargetName,
    /// What the user calls its Python.
    pub(super) python: String,
    /// How the user's own shell gets to where its commands run: empty on this machine, else `ssh HOST `.
    pub(super) shell: String,
    /// Its process, once it is up; an island has several, which cannot all copy from another's memory.
    pub(super) pid: Option<u32>,
    /// The GPUs that nobody else may use at its location, nor at the others that its ranks are on.
    pub(super) gpus: Vec<u32>,
    pub(super) others: Vec<TargetName>,
    /// Whether it is an island of ranks.
    pub(super) island: bool,
}

/// The seat of a worker on a far host, or a node that is reached from there; `None` if that is this machine.
pub fn seat_there(target: &Target, ssh: Option<&Ssh>) -> Seat {
    Seat {
        target: target.name.as_str().into(),
        location: target.name.as_str().into(),
        python: launch::name_there(target),
        shell: ssh.map_or_else(String::new, |ssh| format!("ssh {} ", ssh.host)),
        pid: None,
        gpus: Vec::new(),
        others: Vec::new(),
        island: false,
    }
}

/// How a worker on a far host is started.
pub fn spec_there(target: &Target) -> WorkerSpec {
    spec(target, launch::there(target))
}

pub(super) fn spec(target: &Target, argv: Vec<String>) -> WorkerSpec {
    let env = target
        .env
        .iter()
        .map(|(name, value)| (name.clone(), value.clone()));
    let workdir = target
        .workdir
        .as_ref()
        .map(|path| path.display().to_string());
    WorkerSpec {
        argv,
        env: env.collect(),
        workdir,
        gpus: None,
        ranks: None,
    }
}

impl Seat {
    /// Where it has its GPUs to itself.
    pub(super) fn locations(&self) -> impl Iterator<Item = &TargetName> {
        std::iter::once(&self.location).chain(&self.others)
    }

    pub(super) fn is_at(&self, location: &TargetName) -> bool {
        self.locations().any(|other| other == location)
    }
}
