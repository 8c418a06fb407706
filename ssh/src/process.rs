//! A command that runs on a far host.

use std::io;

use bytes::Bytes;
use futures::stream;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{mpsc, oneshot};
use tokio_util::io::StreamReader;

/// Where the command reads from. Shutting it down or dropping it is the end of its input.
pub type Stdin = Box<dyn AsyncWrite + Send + Unpin>;
/// What the command writes.
pub type Stdout = Box<dyn AsyncRead + Send + Unpin>;
/// What the command complains about.
pub type Stderr = Box<dyn AsyncRead + Send + Unpin>;

/// A running command. Dropping all of it closes the channel it runs over.
pub struct Process {
    /// Its input.
    pub stdin: Stdin,
    /// Its output, which should be read as it comes: what is not read within some 64 MiB holds up the connection.
    pub stdout: Stdout,
    /// Its error output, of which the same is true.
    pub stderr: Stderr,
    /// How it ends.
    pub exit: Ended,
}

impl std::fmt::Debug for Process {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Process").finish_non_exhaustive()
    }
}

/// How a command ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Exit {
    /// It exited by itself.
    Code(u32),
    /// A signal ended it.
    Signal {
        /// Its name without `SIG`, such as `KILL`.
        name: String,
        /// What the server adds, often nothing.
        message: String,
    },
    /// The connection went before the command's end was known. It may still be running.
    Lost,
}

/// Waits for the end of a command.
#[derive(Debug)]
pub struct Ended(Waiting);

#[derive(Debug)]
enum Waiting {
    Open(oneshot::Receiver<Exit>),
    Known(Exit),
}

impl Ended {
    pub(crate) fn new(receiver: oneshot::Receiver<Exit>) -> Self {
        Self(Waiting::Open(receiver))
    }

    /// The end of the command. Its output may still be arriving. May be dropped and called again.
    pub async fn wait(&mut self) -> Exit {
        let exit = match &mut self.0 {
            Waiting::Open(receiver) => receiver.await.unwrap_or(Exit::Lost),
            Waiting::Known(exit) => return exit.clone(),
        };
        self.0 = Waiting::Known(exit.clone());
        exit
    }
}

/// How many messages wait to be read: russh acknowledges data as it arrives, not as it is read, so the buffer is what
/// keeps one slow reader from holding up the other channels. Each message has at most 32 KiB.
const UNREAD: usize = 2048;

/// Chunks on their way to a reader. An error is the last of them.
pub(crate) type Chunks = mpsc::Sender<io::Result<Bytes>>;

/// A stream of bytes that is fed with chunks; it ends when the sender is dropped.
pub(crate) fn fed_reader() -> (Chunks, Box<dyn AsyncRead + Send + Unpin>) {
    let (sender, mut receiver) = mpsc::channel(UNREAD);
    (
        sender,
        Box::new(StreamReader::new(stream::poll_fn(move |context| {
            receiver.poll_recv(context)
        }))),
    )
}
