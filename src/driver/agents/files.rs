//! Where the files are that go between machines: values on their way, the user's files, modules.

use std::path::{Path, PathBuf};

use cellferry_agent::Mapped;
use cellferry_wire::Sender;
use cellferry_wire::protocol::{FromAgent, PIECE, ToAgent, WorkerId};

use super::super::carry::Machine;
use super::super::files::{End, MODULES, Remote};
use super::link::Link;
use super::{Agents, FromLocation};
use crate::session::{HOME, TargetName};
use crate::target::shape::Shape;

impl Agents {
    /// Sends the file of a value to a far host, which answers once it has it.
    pub fn upload(&mut self, target: &TargetName, transfer: u64, size: u64) -> Result<(), String> {
        let path = self.segment_dir(&Machine::Home)?.join(transfer.to_string());
        let Some(Link::Far(far)) = self.links.get(target) else {
            return Err(format!("`{target}` is lost"));
        };
        let sender = far.sender.clone();
        let events = self.events.clone();
        tokio::spawn(async move {
            if let Err(error) = upload(&sender, transfer, size, &path).await {
                let reason = format!("cannot read {}: {error}", path.display());
                let failed = FromAgent::TransferFailed { transfer, reason };
                let _ = events.send(FromLocation::Message(HOME.into(), failed));
            }
        });
        Ok(())
    }

    /// The files of the far host that a worker is on.
    pub fn remote(&self, worker: WorkerId) -> Option<Remote> {
        let location = &self.workers.get(&worker)?.location;
        match self.links.get(location)? {
            Link::Far(far) => Some(Remote::new(
                location.clone(),
                far.sender.clone(),
                far.answers.clone(),
            )),
            Link::Here(_) | Link::Process { .. } => None,
        }
    }

    /// Between what files go for a worker whose working directory is `folder`: home, and where it is.
    pub fn ends(&self, worker: WorkerId, folder: String, home: String) -> Option<(End, End)> {
        // Of the target, not its shape: that is what `[[shared]]` names.
        let target = Shape::parse(&self.workers.get(&worker)?.target).target;
        let remote = self.remote(worker);
        let here = End {
            target: HOME.into(),
            base: self.home_dir.display().to_string(),
            home: cellferry_agent::files::home().display().to_string(),
            remote: None,
        };
        let there = End {
            target: target.into(),
            base: folder,
            home,
            remote,
        };
        Some((here, there))
    }

    /// Where large values are kept on a machine, on their way.
    pub fn segment_dir(&self, machine: &Machine) -> Result<PathBuf, String> {
        match machine {
            Machine::Home => {
                let dir = self.segments.as_ref().map(|dir| dir.path().to_owned());
                dir.ok_or_else(|| "there is no shared memory".to_owned())
            }
            Machine::Far(target) => {
                let hello = self.hellos.get(target);
                hello
                    .map(|hello| PathBuf::from(&hello.segment_dir))
                    .ok_or_else(|| format!("`{target}` is lost"))
            }
        }
    }

    /// The notebook's folder.
    pub fn folder(&self) -> &Path {
        &self.home_dir
    }

    /// Where the user's own modules are that a worker elsewhere would not look at.
    pub fn modules(&self, worker: WorkerId) -> Option<String> {
        let folder = match self.machine(worker)? {
            Machine::Home if &*self.workers.get(&worker)?.target == HOME => return None,
            Machine::Home => self.home_dir.clone(),
            Machine::Far(target) => Path::new(&self.hellos.get(&target)?.run_dir).join(MODULES),
        };
        Some(folder.display().to_string())
    }
}

/// Sends a value; gives up without a word when its file is gone, since then nobody needs it.
async fn upload(
    sender: &Sender<ToAgent>,
    transfer: u64,
    size: u64,
    path: &Path,
) -> std::io::Result<()> {
    let value = Mapped::new(std::fs::File::open(path)?)?;
    if value.size() < size {
        return Err(std::io::ErrorKind::UnexpectedEof.into());
    }
    sender.queue(ToAgent::Receive { transfer, size });
    for offset in (0..size).step_by(PIECE) {
        if !path.try_exists().unwrap_or(true) {
            break;
        }
        for bytes in value.piece(offset)? {
            if !sender.send(ToAgent::Data { transfer, bytes }).await {
                return Ok(());
            }
        }
    }
    Ok(())
}
