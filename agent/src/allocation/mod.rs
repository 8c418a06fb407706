//! A batch job that runs one agent a node, and how the kernel reaches them from the login node.
//!
//! Compute nodes can seldom be logged in to, but most can open connections to the login node. There a *gate*, a process of
//! its own, waits for them; each kernel's link to a node is a command on the login node (`reach`) that the gate connects
//! with that node's agent. What both sides must share lies in one directory that all of these machines see: the secret that
//! opens the gate (the file `secret`), where the gate is (`gate`), how the job is ended (`cancel`, a shell script), and this program.
//!
//! Where a node cannot open a connection to the gate, both use a mailbox in that directory instead.

mod gate;
mod mailbox;
mod node;
mod reach;

use std::fs::{DirBuilder, OpenOptions};
use std::io::{self, Write};
use std::net::SocketAddr;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use cellferry_wire::protocol::Secret;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::process::Command;
use tokio::time::{Instant, sleep};

pub use gate::gate;
pub use node::node;
pub use reach::reach;

/// What an allocation's directory contains.
const SECRET: &str = "secret";
const GATE: &str = "gate";
const MAIL: &str = "mail";
const CANCEL: &str = "cancel";

/// Whatever ran on a node has ended once there is a file of this name and the node's number: its agent, or the lines that
/// were to prepare for it.
const OVER: &str = "over-";

/// How long to wait before a job is ended again that could not be: at first, and at most.
const CANCEL_AGAIN: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(60));

/// How long that is tried. The nodes' agents end by themselves, too.
const CANCEL_FOR: Duration = Duration::from_secs(3600);

/// The least number of letters of a secret.
const SECRET_LENGTH: usize = 32;

/// What a file system gives out at once, in bytes.
const PAGE: usize = 4096;

/// What one who wants a node is told before the node's own words.
const FOUND: &str = "\ncellferry: found\n";

/// A stream of bytes, both ways.
trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

/// The directory of an allocation, the same on all its machines.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Allocation {
    directory: PathBuf,
}

/// What a node says when it comes to the gate.
#[derive(Debug, Serialize, Deserialize)]
struct Visit {
    node: u32,
}

/// What the gate says to a node.
#[derive(Debug, Serialize, Deserialize)]
enum Word {
    /// Nobody wants you yet.
    Wait,
    /// What follows belongs to this conversation, in hexadecimal digits.
    Go { conversation: String },
}

impl Allocation {
    /// The one with this directory, whose name must be its id.
    pub fn at(directory: impl Into<PathBuf>) -> Self {
        Self {
            directory: directory.into(),
        }
    }

    /// Makes the place for mail, unless it is there.
    fn make_mail(&self) -> io::Result<()> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(self.mail())
    }

    /// Whether anybody still needs it: its directory goes with it.
    fn is_there(&self) -> bool {
        !matches!(self.directory.join(SECRET).try_exists(), Ok(false))
    }

    /// Ends the job, if it is known how, as soon as its batch system lets it; then nothing of it is left.
    async fn cancel(&self) {
        let script = self.directory.join(CANCEL);
        let mut pause = CANCEL_AGAIN.0;
        let begun = Instant::now();
        while script.exists() && begun.elapsed() < CANCEL_FOR {
            let ended = Command::new("sh")
                .arg(&script)
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .status()
                .await;
            tracing::info!("nobody wants the nodes any more; their job is ended: {ended:?}");
            if ended.is_ok_and(|status| status.success()) {
                break;
            }
            sleep(pause).await;
            pause = (pause * 2).min(CANCEL_AGAIN.1);
        }
        // A job that starts all the same ends at once without it.
        if let Err(error) = std::fs::remove_dir_all(&self.directory) {
            tracing::info!("{}: {error}", self.directory.display());
        }
    }

    /// Whether nothing of ours runs on a node any more.
    fn is_over(&self, node: u32) -> bool {
        self.directory.join(format!("{OVER}{node}")).exists()
    }

    /// Tries whether nodes that use mailboxes can be written to.
    fn try_mail(&self) -> io::Result<()> {
        let boxes = std::fs::read_dir(self.mail()).map(|mut boxes| boxes.next().is_some());
        if !boxes.unwrap_or(false) {
            return Ok(());
        }
        let trial = self.directory.join(format!(".room-{}", std::process::id()));
        let written = std::fs::write(&trial, [0; PAGE]);
        let _ = std::fs::remove_file(trial);
        written
    }

    /// Its name on a machine.
    fn id(&self) -> io::Result<String> {
        let name = self.directory.file_name().and_then(|name| name.to_str());
        name.map(str::to_owned)
            .ok_or_else(|| io::Error::other("the directory of an allocation must have a name"))
    }

    fn mail(&self) -> PathBuf {
        self.directory.join(MAIL)
    }

    fn secret(&self) -> io::Result<Secret> {
        let text = std::fs::read_to_string(self.directory.join(SECRET))?;
        let text = text.trim();
        if text.len() < SECRET_LENGTH {
            return Err(io::Error::other("the allocation's secret is not whole"));
        }
        Ok(Secret::new(*blake3::hash(text.as_bytes()).as_bytes()))
    }

    /// Where the gate is, as far as it has been told.
    fn addresses(&self) -> io::Result<Vec<SocketAddr>> {
        let text = std::fs::read(self.directory.join(GATE))?;
        Ok(serde_json::from_slice(&text)?)
    }

    fn tell_addresses(&self, addresses: &[SocketAddr]) -> io::Result<()> {
        self.write(GATE, &serde_json::to_vec(addresses)?, 0o600)
    }

    /// Writes a file so that it is there whole or not at all.
    fn write(&self, name: &str, content: &[u8], mode: u32) -> io::Result<()> {
        let begun = self
            .directory
            .join(format!(".{name}-{}", std::process::id()));
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(mode)
            .open(&begun)?;
        file.write_all(content)?;
        file.sync_all()?;
        drop(file);
        std::fs::rename(begun, self.directory.join(name))
    }
}

impl AsRef<Path> for Allocation {
    fn as_ref(&self) -> &Path {
        &self.directory
    }
}
