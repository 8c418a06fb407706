//! The messages between the kernel and an agent.

use std::fmt;
use std::mem::take;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::WireError;
use crate::envelope::Envelope;

/// One worker, unique within a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct WorkerId(pub u32);

impl WorkerId {
    /// The stream on which its messages keep their order.
    pub fn stream(self) -> u32 {
        self.0.saturating_add(1).min(LISTINGS - 1)
    }
}

/// A channel of a worker, which is a Jupyter kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Channel {
    /// Requests in order.
    Shell,
    /// Requests that must not wait.
    Control,
    /// Requests for input, and their answers.
    Stdin,
    /// Output.
    Iopub,
}

/// A Jupyter message without identities and signature: header, parent header, metadata, content, buffers.
pub type Parts = Vec<Bytes>;

/// How to start a worker.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkerSpec {
    /// Program and arguments; `{connection_file}` is replaced by the path of the connection file.
    pub argv: Vec<String>,
    /// Variables set in addition to the agent's own environment.
    pub env: Vec<(String, String)>,
    /// The working directory, made if it is missing; the agent's own if absent: the user's home directory on
    /// another machine.
    pub workdir: Option<String>,
    /// Which GPUs it may use: their places among those that the agent itself may use; `None` for all of them. The ranks of an
    /// island share them out on each machine.
    pub gpus: Option<Vec<u32>>,
    /// Where the worker is an island of MPI ranks, each a process of its own that runs the program.
    pub ranks: Option<Ranks>,
}

/// How the ranks of an island are started. To the kernel they are one worker: requests that run code go to all of them, and
/// rank 0 answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ranks {
    /// How many.
    pub count: u32,
    /// The command that starts them, to which the program of each rank is appended; `{folder}` is replaced by the island's own
    /// folder.
    pub launcher: Vec<String>,
    /// Whether ranks may be on other machines of the agent's allocation: then the island's folder is made in that of the
    /// allocation, which all of them see.
    pub spread: bool,
    /// How many of the worker's GPUs each rank has to itself; `None` if all ranks see all of them.
    pub gpus: Option<u32>,
}

/// A secret that opens a door (see [`ToAgent::OpenDoor`]); its bytes are in no log.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Secret([u8; 32]);

impl Secret {
    /// From bytes that nobody can guess.
    pub fn new(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The bytes.
    pub fn bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Secret(..)")
    }
}

/// A file on a location, as the user or a listing names it.
///
/// A `path` that begins with `/` or `~/` is taken as it is. Any other is below `base` and cannot leave it: one
/// with `..` is refused. Without a `base` it is below the home directory; in `base`, too, `~` is the home directory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FilePath {
    /// The directory of relative paths.
    pub base: Option<String>,
    /// The path.
    pub path: String,
}

/// From the kernel to an agent.
///
/// A *transfer* is a value or a file on its way; the kernel chooses its number, which is never used again. That of a
/// value is the file `<segment_dir>/<transfer>` of its agent (see [`Hello`]), whoever wrote it: a worker, or the agent itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToAgent {
    /// Start a worker.
    StartWorker {
        /// Its id from now on.
        worker: WorkerId,
        /// How.
        spec: WorkerSpec,
    },
    /// Send a message to a worker.
    Send {
        /// To whom.
        worker: WorkerId,
        /// On which channel.
        channel: Channel,
        /// What.
        #[serde(skip)]
        parts: Parts,
    },
    /// Interrupt a worker: SIGINT to its process group, or to those of all its ranks.
    Interrupt {
        /// Whom.
        worker: WorkerId,
    },
    /// End a worker: asked first, then forced.
    StopWorker {
        /// Whom.
        worker: WorkerId,
        /// How long it has to end by itself.
        grace: Duration,
    },
    /// End all workers and the agent.
    Shutdown,
    /// Make room for a value; its [`Data`](Self::Data) follows. Answered by [`FromAgent::Stored`] once all of it is
    /// there, or by [`FromAgent::TransferFailed`], after which what still comes of it is ignored. It takes the place of
    /// what another agent has brought, or is bringing, under this number.
    Receive {
        /// Its transfer.
        transfer: u64,
        /// How many bytes will come.
        size: u64,
    },
    /// The next bytes of a transfer that [`Receive`](Self::Receive) or [`ReceiveFile`](Self::ReceiveFile) began:
    /// at most [`PIECE`], in order.
    Data {
        /// Which.
        transfer: u64,
        /// The bytes.
        #[serde(skip)]
        bytes: Bytes,
    },
    /// Send a value: answered by [`FromAgent::Data`] as often as needed, then [`FromAgent::Sent`], or by
    /// [`FromAgent::TransferFailed`] at any point.
    Fetch {
        /// Its transfer.
        transfer: u64,
    },
    /// Nobody needs these any more: what is under way is given up without an answer, values are removed. It overtakes
    /// a `Receive` that is still on its way, which then does nothing. Files of the user stay.
    Forget {
        /// Which.
        transfers: Vec<u64>,
    },
    /// Listen for other agents, on a port of its own. Answered by [`FromAgent::Door`] or [`FromAgent::DoorFailed`].
    ///
    /// A door serves and takes transfers of this agent for whoever proves to know the secret, and nothing else. It closes after
    /// [`DOOR_IDLE`] without use, and with the agent. Asked again, with the same secret, the agent names the open door or opens
    /// another; another secret replaces the first.
    OpenDoor {
        /// What the others must know.
        secret: Secret,
    },
    /// Get a value from another agent's door. Answered by [`FromAgent::Stored`] or [`FromAgent::DirectFailed`].
    Pull {
        /// Its transfer, which is the same there and here.
        transfer: u64,
        /// How many bytes it has.
        size: u64,
        /// Where the door may be; all are tried at once.
        from: Vec<SocketAddr>,
        /// That door's secret.
        secret: Secret,
    },
    /// Bring a value to another agent's door. The other agent answers by [`FromAgent::Stored`], or this one by
    /// [`FromAgent::DirectFailed`]. If both do, because the link between them broke at the very end, it is stored.
    Push {
        /// Its transfer, which is the same here and there.
        transfer: u64,
        /// Where the door may be; all are tried at once.
        to: Vec<SocketAddr>,
        /// That door's secret.
        secret: Secret,
    },
    /// What is there, and what does it contain? Answered by [`FromAgent::Listing`].
    List {
        /// Which question.
        request: u64,
        /// A path or a glob pattern (`*`, `?`, `[…]`, `**`); directories are listed with all that is in them.
        pattern: FilePath,
    },
    /// Make a file; its [`Data`](Self::Data) follows. It gets its name, replacing another file of that name, once all of
    /// it is there. Missing directories are made. Answered as [`Receive`](Self::Receive) is.
    ReceiveFile {
        /// Its transfer.
        transfer: u64,
        /// Its path.
        path: FilePath,
        /// Its permissions: of the mode, the last nine bits.
        mode: u32,
        /// How many bytes will come.
        size: u64,
    },
    /// Send a file; answered as [`Fetch`](Self::Fetch) is.
    FetchFile {
        /// The transfer's number.
        transfer: u64,
        /// Its path.
        path: FilePath,
    },
    /// Copy a file whose content is here already; the rest is as in [`ReceiveFile`](Self::ReceiveFile). Answered by
    /// [`FromAgent::Made`].
    CopyFile {
        /// Which question.
        request: u64,
        /// Its content.
        from: FilePath,
        /// Its path.
        to: FilePath,
        /// Its permissions: of the mode, the last nine bits.
        mode: u32,
    },
    /// Make a directory and those above it; if it is there, give it these permissions. Answered by [`FromAgent::Made`].
    MakeDirectory {
        /// Which question.
        request: u64,
        /// Its path.
        path: FilePath,
        /// Its permissions: of the mode, the last nine bits.
        mode: u32,
    },
    /// Make a symbolic link, replacing another link or file of that name. Answered by [`FromAgent::Made`].
    MakeLink {
        /// Which question.
        request: u64,
        /// Its path, relative to a base.
        path: FilePath,
        /// Where it leads: relative to where it is, and not out of the base.
        target: String,
    },
}

/// The largest [`Data`](ToAgent::Data), in bytes: large enough to cost little, small enough to share the link.
pub const PIECE: usize = 1 << 20;

/// A [`Data`](ToAgent::Data) of so many bytes is not copied to be put together again where it arrives.
pub const SLICE: usize = crate::frame::CHUNK;

/// How long an unused door stays open.
pub const DOOR_IDLE: Duration = Duration::from_secs(60);

/// Where an agent runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// The machine's own name.
    pub hostname: String,
    /// Its processor, as Rust calls it: `x86_64`, `aarch64`.
    pub arch: String,
    /// How many processors workers may use.
    pub cpus: u32,
    /// How much memory workers may use, in bytes; 0 if that is not known.
    pub memory_bytes: u64,
    /// The agent's process.
    pub pid: u32,
    /// Where its sockets and notes are.
    pub run_dir: String,
    /// Where values are on their way: each is the file named by its transfer's number.
    pub segment_dir: String,
}

/// From an agent to the kernel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum FromAgent {
    /// The first message of an agent that is a process of its own, once in a conversation.
    Hello(Hello),
    /// A worker answers on all channels.
    WorkerUp {
        /// Which.
        worker: WorkerId,
        /// Its process id.
        pid: u32,
    },
    /// A worker could not be started.
    WorkerFailed {
        /// Which.
        worker: WorkerId,
        /// Why.
        failure: StartFailure,
    },
    /// A worker that was up has ended; all its output came before.
    WorkerDown {
        /// Which.
        worker: WorkerId,
        /// How.
        exit: Exit,
        /// The last it wrote to stderr.
        stderr_tail: String,
        /// Of an island: the rank that ended it.
        rank: Option<u32>,
        /// Of an island: whether its agent has ended it, since ranks hung, and has told so.
        given_up: bool,
    },
    /// A message from a worker.
    Received {
        /// From whom.
        worker: WorkerId,
        /// On which channel.
        channel: Channel,
        /// What.
        #[serde(skip)]
        parts: Parts,
    },
    /// The next bytes of a transfer that was asked for: at most [`PIECE`], in order.
    Data {
        /// Which.
        transfer: u64,
        /// The bytes.
        #[serde(skip)]
        bytes: Bytes,
    },
    /// All [`Data`](Self::Data) of a transfer has been sent.
    Sent {
        /// Which.
        transfer: u64,
        /// How many bytes it had.
        size: u64,
    },
    /// All of a transfer has come, and can be used.
    Stored {
        /// Which.
        transfer: u64,
    },
    /// A transfer cannot be stored or sent; what there was of it is removed, unless it is a file of the user to be sent.
    TransferFailed {
        /// Which.
        transfer: u64,
        /// Why, with the path.
        reason: String,
    },
    /// A transfer between this agent and another failed; the receiving side has nothing of it.
    DirectFailed {
        /// Which.
        transfer: u64,
        /// Why.
        reason: String,
        /// Whether the door was reached and the secret proved. If not, the other direction may work.
        reached: bool,
    },
    /// A door is open.
    Door {
        /// Where: all addresses of this machine but loopback and link-local ones.
        addresses: Vec<SocketAddr>,
    },
    /// No door can be opened.
    DoorFailed {
        /// Why.
        reason: String,
    },
    /// What there is.
    Listing {
        /// The question.
        request: u64,
        /// What there is, or why that cannot be said. A pattern that matches nothing gives no entries, a missing path is an error.
        outcome: Result<Listing, String>,
    },
    /// A file, directory or link has been made, or not.
    Made {
        /// The question.
        request: u64,
        /// Why not, with the path.
        outcome: Result<(), String>,
    },
}

/// Files, directories and links.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listing {
    /// The directory that the entries' paths are relative to: the base, or of an absolute pattern its directories
    /// before the last or the first wildcard.
    pub root: String,
    /// In the order of their paths, a directory before what is in it.
    pub entries: Vec<Entry>,
}

/// One file, directory or link.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Its path, relative to the listing's root.
    pub path: String,
    /// What it is.
    pub kind: EntryKind,
}

/// What an entry is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum EntryKind {
    /// A file.
    File {
        /// Its permissions: nine bits.
        mode: u32,
        /// Its size, in bytes.
        size: u64,
        /// Its content's hash.
        blake3: [u8; 32],
    },
    /// A directory.
    Directory {
        /// Its permissions: nine bits.
        mode: u32,
    },
    /// A link within what is listed. Links that lead elsewhere are listed as what they lead to.
    Link {
        /// Where it leads, relative to where it is.
        target: String,
    },
}

/// Why a worker could not be started.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum StartFailure {
    /// The program cannot be run.
    NoProgram {
        /// Its path or name.
        program: String,
        /// Why.
        error: String,
    },
    /// The working directory cannot be used.
    Workdir {
        /// Its path.
        path: String,
        /// Why.
        error: String,
    },
    /// The agent's own files cannot be written.
    RunDir {
        /// Their directory.
        path: String,
        /// Why.
        error: String,
    },
    /// The program ended before it answered.
    Exited {
        /// How.
        exit: Exit,
        /// The last it wrote to stderr.
        stderr_tail: String,
    },
    /// The ranks did not come together.
    Ranks {
        /// Why.
        reason: String,
        /// The last that their launcher wrote.
        stderr_tail: String,
    },
    /// The program did not answer in time.
    Timeout {
        /// How long it had.
        seconds: u64,
        /// The last it wrote to stderr.
        stderr_tail: String,
    },
}

impl fmt::Display for StartFailure {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoProgram { program, error } => {
                write!(formatter, "cannot run `{program}`: {error}")
            }
            Self::Workdir { path, error } => write!(
                formatter,
                "cannot use the working directory `{path}`: {error}"
            ),
            Self::RunDir { path, error } => write!(
                formatter,
                "cannot write the worker's own files in `{path}`: {error}"
            ),
            Self::Exited { exit, stderr_tail } => {
                write!(formatter, "it ended before it was ready ({exit})")?;
                last_words(formatter, stderr_tail)
            }
            Self::Ranks {
                reason,
                stderr_tail,
            } => {
                formatter.write_str(reason)?;
                last_words(formatter, stderr_tail)
            }
            Self::Timeout {
                seconds,
                stderr_tail,
            } => {
                write!(formatter, "it did not answer within {seconds} s")?;
                last_words(formatter, stderr_tail)
            }
        }
    }
}

fn last_words(formatter: &mut fmt::Formatter<'_>, stderr_tail: &str) -> fmt::Result {
    match stderr_tail.trim_end() {
        "" => Ok(()),
        tail => write!(formatter, "; its last words:\n{tail}"),
    }
}

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    /// Its exit code, if it ended by itself.
    pub code: Option<i32>,
    /// The signal that ended it.
    pub signal: Option<i32>,
    /// Of signal 9: whether the system sent it because memory had run out; `None` where it does not tell.
    pub out_of_memory: Option<bool>,
}

impl fmt::Display for Exit {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.code, self.signal, self.out_of_memory) {
            (_, Some(9), Some(true)) => formatter.write_str(
                "signal 9, SIGKILL: it used more memory than there was, and the system killed it",
            ),
            (_, Some(9), Some(false)) => formatter.write_str(
                "signal 9, SIGKILL: killed by a person or program, not for lack of memory",
            ),
            (_, Some(9), None) => {
                formatter.write_str("signal 9, SIGKILL: killed, perhaps for using too much memory")
            }
            (_, Some(11), _) => formatter.write_str("signal 11, SIGSEGV: a crash in compiled code"),
            (_, Some(6), _) => formatter.write_str("signal 6, SIGABRT: aborted by compiled code"),
            (_, Some(signal), _) => write!(formatter, "signal {signal}"),
            (Some(code), None, _) => write!(formatter, "exit code {code}"),
            (None, None, _) => formatter.write_str("ended"),
        }
    }
}

/// The stream of listings.
const LISTINGS: u32 = TRANSFERS - 1;

/// The streams of transfers begin here.
const TRANSFERS: u32 = 1 << 31;

/// How many streams transfers share: enough that one which is not taken hardly ever holds up another. A stream each
/// would leave something behind for each transfer that there ever was.
const TRANSFER_STREAMS: u64 = 256;

fn stream_of_transfer(transfer: u64) -> u32 {
    TRANSFERS | u32::try_from(transfer % TRANSFER_STREAMS).unwrap_or_default()
}

fn only(parts: Parts) -> Result<Bytes, WireError> {
    match <[Bytes; 1]>::try_from(parts) {
        Ok([bytes]) => Ok(bytes),
        Err(_) => Err(WireError::Malformed("message: data is one part")),
    }
}

impl Envelope for ToAgent {
    type Header = Self;

    fn stream(&self) -> u32 {
        match self {
            Self::Send {
                worker,
                channel: Channel::Shell,
                ..
            } => worker.stream(),
            Self::Receive { transfer, .. }
            | Self::ReceiveFile { transfer, .. }
            | Self::Data { transfer, .. } => stream_of_transfer(*transfer),
            _ => 0,
        }
    }

    fn split(mut self) -> (Self, Parts) {
        let parts = match &mut self {
            Self::Send { parts, .. } => take(parts),
            Self::Data { bytes, .. } => vec![take(bytes)],
            _ => Vec::new(),
        };
        (self, parts)
    }

    fn join(mut header: Self, received: Parts) -> Result<Self, WireError> {
        match &mut header {
            Self::Send { parts, .. } => *parts = received,
            Self::Data { bytes, .. } => *bytes = only(received)?,
            _ => {}
        }
        Ok(header)
    }
}

impl Envelope for FromAgent {
    type Header = Self;

    fn stream(&self) -> u32 {
        match self {
            // What a worker says, its end included, is one stream: the end must not overtake its output.
            Self::WorkerUp { worker, .. }
            | Self::WorkerFailed { worker, .. }
            | Self::WorkerDown { worker, .. }
            | Self::Received { worker, .. } => worker.stream(),
            Self::Data { transfer, .. }
            | Self::Sent { transfer, .. }
            | Self::TransferFailed { transfer, .. } => stream_of_transfer(*transfer),
            // It may be long.
            Self::Listing { .. } => LISTINGS,
            Self::Hello(_)
            | Self::Stored { .. }
            | Self::DirectFailed { .. }
            | Self::Door { .. }
            | Self::DoorFailed { .. }
            | Self::Made { .. } => 0,
        }
    }

    fn split(mut self) -> (Self, Parts) {
        let parts = match &mut self {
            Self::Received { parts, .. } => take(parts),
            Self::Data { bytes, .. } => vec![take(bytes)],
            _ => Vec::new(),
        };
        (self, parts)
    }

    fn join(mut header: Self, received: Parts) -> Result<Self, WireError> {
        match &mut header {
            Self::Received { parts, .. } => *parts = received,
            Self::Data { bytes, .. } => *bytes = only(received)?,
            _ => {}
        }
        Ok(header)
    }
}
