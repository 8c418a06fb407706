//! An island: the ranks of an MPI program, each a Python worker of its own, that are one worker to the kernel.
//!
//! A launcher (`srun`, `mpirun`) starts one process of this program for each rank. That process is an agent whose kernel's side
//! is this agent: it comes to it over an encrypted connection and starts its worker as a child of its own, which so has the
//! environment by which MPI finds the others. What the kernel asks of the island goes to all ranks or to rank 0; what the ranks
//! say is made into what one worker would say.

mod gather;
mod life;
mod lines;
mod meeting;
mod nodes;
mod rank;
mod requests;
mod round;
mod stages;

pub use life::live;
pub use rank::rank;

use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use cellferry_wire::protocol::Secret;
use serde::{Deserialize, Serialize};

/// The file in an island's folder that tells its ranks where to go.
const MEETING: &str = "meeting";

/// What a rank must know; only its own user can read it.
#[derive(Debug, Serialize, Deserialize)]
struct Meeting {
    secret: Secret,
    addresses: Vec<SocketAddr>,
    /// The agent's own directories.
    own: [Directory; 2],
}

/// A directory as one machine sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Directory {
    path: PathBuf,
    /// The same directory, and no other, has the same.
    identity: String,
}

/// What a rank says first.
#[derive(Debug, Serialize, Deserialize)]
struct Visit {
    rank: u32,
    /// Whether it sees the agent's own directories.
    sees: bool,
    /// Ranks of which this is the same see each other's directories.
    node: String,
    /// Which of its machine's ranks it is, if the launcher says so.
    local: Option<u32>,
}

impl Directory {
    fn of(path: &Path) -> io::Result<Self> {
        let metadata = path.metadata()?;
        // Numbers of devices mean something while one system runs.
        let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
        Ok(Self {
            path: path.to_owned(),
            identity: format!("{}:{}:{}", boot.trim(), metadata.dev(), metadata.ino()),
        })
    }

    fn is_seen(&self) -> bool {
        Self::of(&self.path).is_ok_and(|seen| seen == *self)
    }
}

impl Meeting {
    fn write(&self, folder: &Path) -> io::Result<()> {
        std::fs::DirBuilder::new().mode(0o700).create(folder)?;
        let mut file = std::fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(folder.join(MEETING))?;
        file.write_all(&serde_json::to_vec(self)?)?;
        file.sync_all()
    }

    fn read(folder: &Path) -> io::Result<Self> {
        let mut text = Vec::new();
        std::fs::File::open(folder.join(MEETING))?.read_to_end(&mut text)?;
        Ok(serde_json::from_slice(&text)?)
    }
}

/// A secret that nobody can guess.
fn secret() -> io::Result<Secret> {
    let mut bytes = [0; 32];
    std::fs::File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(Secret::new(bytes))
}
