//! The messages between the kernel and an agent.

use std::fmt;
use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::WireError;
use crate::envelope::Envelope;

/// One worker, unique within a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct WorkerId(pub u32);

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
    /// The working directory, made if it is missing; the agent's own if absent.
    pub workdir: Option<String>,
}

/// From the kernel to an agent.
#[derive(Clone, Debug, PartialEq, Eq)]
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
        parts: Parts,
    },
    /// Interrupt a worker: SIGINT to its process group.
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
}

/// From an agent to the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FromAgent {
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
    },
    /// A message from a worker.
    Received {
        /// From whom.
        worker: WorkerId,
        /// On which channel.
        channel: Channel,
        /// What.
        parts: Parts,
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
                if stderr_tail.trim().is_empty() {
                    Ok(())
                } else {
                    write!(formatter, "; its last words:\n{}", stderr_tail.trim_end())
                }
            }
            Self::Timeout {
                seconds,
                stderr_tail,
            } => {
                write!(formatter, "it did not answer within {seconds} s")?;
                if stderr_tail.trim().is_empty() {
                    Ok(())
                } else {
                    write!(formatter, "; its last words:\n{}", stderr_tail.trim_end())
                }
            }
        }
    }
}

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    /// Its exit code, if it ended by itself.
    pub code: Option<i32>,
    /// The signal that ended it.
    pub signal: Option<i32>,
}

impl fmt::Display for Exit {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.code, self.signal) {
            (_, Some(9)) => {
                formatter.write_str("signal 9, SIGKILL: killed, perhaps for using too much memory")
            }
            (_, Some(11)) => formatter.write_str("signal 11, SIGSEGV: a crash in compiled code"),
            (_, Some(6)) => formatter.write_str("signal 6, SIGABRT: aborted by compiled code"),
            (_, Some(signal)) => write!(formatter, "signal {signal}"),
            (Some(code), None) => write!(formatter, "exit code {code}"),
            (None, None) => formatter.write_str("ended"),
        }
    }
}

/// The typed part of [`ToAgent`] on the wire.
#[derive(Serialize, Deserialize)]
pub enum ToAgentHeader {
    #[allow(missing_docs)]
    StartWorker(WorkerId, WorkerSpec),
    #[allow(missing_docs)]
    Send(WorkerId, Channel),
    #[allow(missing_docs)]
    Interrupt(WorkerId),
    #[allow(missing_docs)]
    StopWorker(WorkerId, Duration),
    #[allow(missing_docs)]
    Shutdown,
}

/// The typed part of [`FromAgent`] on the wire.
#[derive(Serialize, Deserialize)]
pub enum FromAgentHeader {
    #[allow(missing_docs)]
    WorkerUp(WorkerId, u32),
    #[allow(missing_docs)]
    WorkerFailed(WorkerId, StartFailure),
    #[allow(missing_docs)]
    WorkerDown(WorkerId, Exit, String),
    #[allow(missing_docs)]
    Received(WorkerId, Channel),
}

/// A worker's messages keep their order on a stream of their own.
fn stream_of(worker: WorkerId) -> u32 {
    worker.0.saturating_add(1)
}

impl Envelope for ToAgent {
    type Header = ToAgentHeader;

    fn stream(&self) -> u32 {
        match self {
            Self::Send {
                worker,
                channel: Channel::Shell,
                ..
            } => stream_of(*worker),
            _ => 0,
        }
    }

    fn split(self) -> (ToAgentHeader, Parts) {
        match self {
            Self::StartWorker { worker, spec } => {
                (ToAgentHeader::StartWorker(worker, spec), Vec::new())
            }
            Self::Send {
                worker,
                channel,
                parts,
            } => (ToAgentHeader::Send(worker, channel), parts),
            Self::Interrupt { worker } => (ToAgentHeader::Interrupt(worker), Vec::new()),
            Self::StopWorker { worker, grace } => {
                (ToAgentHeader::StopWorker(worker, grace), Vec::new())
            }
            Self::Shutdown => (ToAgentHeader::Shutdown, Vec::new()),
        }
    }

    fn join(header: ToAgentHeader, parts: Parts) -> Result<Self, WireError> {
        Ok(match header {
            ToAgentHeader::StartWorker(worker, spec) => Self::StartWorker { worker, spec },
            ToAgentHeader::Send(worker, channel) => Self::Send {
                worker,
                channel,
                parts,
            },
            ToAgentHeader::Interrupt(worker) => Self::Interrupt { worker },
            ToAgentHeader::StopWorker(worker, grace) => Self::StopWorker { worker, grace },
            ToAgentHeader::Shutdown => Self::Shutdown,
        })
    }
}

impl Envelope for FromAgent {
    type Header = FromAgentHeader;

    // What a worker says, its end included, is one stream: the end must not overtake its output.
    fn stream(&self) -> u32 {
        match self {
            Self::WorkerUp { worker, .. }
            | Self::WorkerFailed { worker, .. }
            | Self::WorkerDown { worker, .. }
            | Self::Received { worker, .. } => stream_of(*worker),
        }
    }

    fn split(self) -> (FromAgentHeader, Parts) {
        match self {
            Self::WorkerUp { worker, pid } => (FromAgentHeader::WorkerUp(worker, pid), Vec::new()),
            Self::WorkerFailed { worker, failure } => {
                (FromAgentHeader::WorkerFailed(worker, failure), Vec::new())
            }
            Self::WorkerDown {
                worker,
                exit,
                stderr_tail,
            } => (
                FromAgentHeader::WorkerDown(worker, exit, stderr_tail),
                Vec::new(),
            ),
            Self::Received {
                worker,
                channel,
                parts,
            } => (FromAgentHeader::Received(worker, channel), parts),
        }
    }

    fn join(header: FromAgentHeader, parts: Parts) -> Result<Self, WireError> {
        Ok(match header {
            FromAgentHeader::WorkerUp(worker, pid) => Self::WorkerUp { worker, pid },
            FromAgentHeader::WorkerFailed(worker, failure) => {
                Self::WorkerFailed { worker, failure }
            }
            FromAgentHeader::WorkerDown(worker, exit, stderr_tail) => Self::WorkerDown {
                worker,
                exit,
                stderr_tail,
            },
            FromAgentHeader::Received(worker, channel) => Self::Received {
                worker,
                channel,
                parts,
            },
        })
    }
}
