//! A command that runs on a far host.

use std::io;
use std::sync::Arc;

use bytes::Bytes;
use futures::stream;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{Semaphore, mpsc, oneshot};
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

/// How much waits to be read of each stream: russh acknowledges data as it arrives, not as it is read, so this is what
/// keeps one slow reader from holding up the other channels. Bytes.
const UNREAD: usize = 64 << 20;

/// What keeping a chunk costs besides its bytes, for commands that write letter by letter. Bytes.
const CHUNK: usize = 64;

/// The far end of a stream of bytes that somebody reads.
pub(crate) struct Feed {
    chunks: mpsc::UnboundedSender<io::Result<Bytes>>,
    room: Arc<Semaphore>,
}

impl Feed {
    /// A stream, which ends when the feed is dropped.
    pub(crate) fn new() -> (Self, Box<dyn AsyncRead + Send + Unpin>) {
        let room = Arc::new(Semaphore::new(UNREAD));
        let (chunks, mut read) = mpsc::unbounded_channel();
        let freed = Arc::clone(&room);
        let stream = stream::poll_fn(move |context| {
            read.poll_recv(context).map(|chunk| {
                if let Some(Ok(chunk)) = &chunk {
                    freed.add_permits(cost(chunk) as usize);
                }
                chunk
            })
        });
        (Self { chunks, room }, Box::new(StreamReader::new(stream)))
    }

    /// Passes a chunk on, when there is room for it. If nobody reads any more, it is no matter.
    pub(crate) async fn deliver(&self, chunk: Bytes) {
        tokio::select! {
            room = self.room.acquire_many(cost(&chunk)) => if let Ok(room) = room {
                room.forget();
                let _ = self.chunks.send(Ok(chunk));
            },
            () = self.chunks.closed() => {}
        }
    }

    /// Ends the stream with an error.
    pub(crate) fn fail(self, error: io::Error) {
        let _ = self.chunks.send(Err(error));
    }

    /// Waits until nobody reads any more.
    pub(crate) async fn unread(&self) {
        self.chunks.closed().await;
    }
}

/// The room that a chunk takes. No packet of ssh is near the limit.
fn cost(chunk: &Bytes) -> u32 {
    u32::try_from((chunk.len() + CHUNK).min(UNREAD)).unwrap_or(u32::MAX)
}
