//! `attach`: this process's stdin and stdout become the byte stream to the agent that serves a conversation.
//!
//! The agent is started if there is none. It is in a session of its own, and stays when this process and the login that
//! started it go: the next `attach` finds it again.

use std::ffi::OsStr;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::net::Shutdown;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use thiserror::Error;
use tokio::sync::mpsc;

use crate::files::home;
use crate::place::{Claim, Claimed, claim, find};
use crate::run_dir::RunDir;
use crate::{AgentError, OWN_PROGRAM, serve};

/// How long another process may take that is about to serve the conversation, or to end.
const BUSY: Duration = Duration::from_secs(10);

/// How long what the agent said last may take on its way out.
const LAST_WORDS: Duration = Duration::from_secs(5);

/// How much is copied at once, in bytes.
const BUFFER: usize = 1 << 18;

/// How much a pipe should hold, in bytes: what Linux allows everybody.
const PIPE: i32 = 1 << 20;

/// What to attach to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attachment {
    /// The conversation.
    pub conversation: [u8; 16],
    /// How long its agent stays without a link.
    pub patience: Duration,
}

/// Why there is nothing to attach to.
#[derive(Debug, Error)]
pub enum AttachError {
    /// The agent that was to be there is not.
    #[error("no agent serves conversation {0} here any more")]
    Gone(String),
    /// There is no place for the agent's socket.
    #[error("cannot make a private directory for the agent's socket: {0}")]
    Place(String),
    /// Another process holds the conversation and does not answer.
    #[error("another agent for conversation {0} neither answers nor ends")]
    Busy(String),
    /// What goes by mail cannot be written.
    #[error("mail cannot be written to `{directory}`: {source}; make room there")]
    Mail {
        /// Where the mailboxes are.
        directory: String,
        /// Why.
        source: io::Error,
    },
    /// The agent does not start.
    #[error("cannot start the agent: {0}")]
    Start(io::Error),
}

/// A process of ours on this machine that is found by a name, and serves those who connect to its socket.
#[derive(Clone, Copy, Debug)]
pub struct Server<'a> {
    /// Its name.
    pub name: &'a str,
    /// What starts it, but for its directory, which comes last.
    pub arguments: &'a [&'a OsStr],
}

impl Attachment {
    /// Of a conversation given as 32 hexadecimal digits, and seconds.
    pub fn new(conversation: &str, patience: &str) -> Option<Self> {
        Some(Self {
            conversation: Self::conversation(conversation)?,
            patience: Duration::from_secs(patience.parse().ok()?),
        })
    }

    /// A conversation's id, given as 32 hexadecimal digits.
    pub fn conversation(digits: &str) -> Option<[u8; 16]> {
        let well_formed = digits.len() == 32 && digits.bytes().all(|byte| byte.is_ascii_hexdigit());
        let number = u128::from_str_radix(digits, 16).ok()?;
        well_formed.then_some(number.to_be_bytes())
    }

    fn name(&self) -> String {
        self.conversation
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect()
    }

    /// Finds the agent, or starts it unless it is to be there, and copies bytes both ways until either side ends.
    pub fn attach(&self, existing: bool) -> Result<(), AttachError> {
        let name = self.name();
        let patience = self.patience.as_secs().to_string();
        let words = ["stay", "--conversation", &name, "--patience", &patience];
        let server = Server {
            name: &name,
            arguments: &words.map(OsStr::new),
        };
        server.attach(existing, |_| Ok(()))
    }

    /// `stay`: serves the conversation, as [`attach`](Self::attach) has prepared it in `directory`.
    pub async fn stay(&self, directory: PathBuf) -> Result<(), AgentError> {
        let (listener, lock) = inherited()?;
        let (streams, links) = mpsc::channel(1);
        let accepting = tokio::spawn(serve::accept(listener, streams));
        let end = serve::stay(
            links,
            (RunDir::given(directory), None),
            self.conversation,
            self.patience,
            &mut serve::Signals::catch()?,
            (OWN_PROGRAM.as_ref(), &["guard"]),
            &mut std::future::pending::<()>(),
        )
        .await;
        accepting.abort();
        drop(lock);
        end.map(drop)
    }
}

/// What [`Server::attach`] gave to this process: the listening socket, and the lock on its directory.
pub fn inherited() -> io::Result<(tokio::net::UnixListener, OwnedFd)> {
    let listener = UnixListener::from(io::stdin().as_fd().try_clone_to_owned()?);
    let lock = io::stdout().as_fd().try_clone_to_owned()?;
    let nothing = OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/null")?;
    nix::unistd::dup2_stdin(&nothing).map_err(io::Error::from)?;
    nix::unistd::dup2_stdout(&nothing).map_err(io::Error::from)?;
    listener.set_nonblocking(true)?;
    Ok((tokio::net::UnixListener::from_std(listener)?, lock))
}

impl Server<'_> {
    /// Finds the process, or starts it unless it is to be there; lets `greet` say what we want, and copies bytes both
    /// ways between it and the standard streams until either side ends.
    pub fn attach(
        &self,
        existing: bool,
        greet: impl FnOnce(&UnixStream) -> io::Result<()>,
    ) -> Result<(), AttachError> {
        let name = self.name.to_owned();
        let begun = Instant::now();
        let mut started: Option<Log> = None;
        loop {
            if let Some(stream) = find(&name) {
                greet(&stream).map_err(AttachError::Start)?;
                let received = relay(&stream).map_err(AttachError::Start)?;
                return match started {
                    Some(log) if received == 0 => Err(log.into_error()),
                    _ => Ok(()),
                };
            }
            if existing {
                return Err(AttachError::Gone(name));
            }
            if let Some(log) = started {
                return Err(log.into_error());
            }
            match claim(&name).map_err(AttachError::Place)? {
                Claimed::Ours(claim) => {
                    started = Some(self.start(claim).map_err(AttachError::Start)?);
                }
                Claimed::Busy if begun.elapsed() > BUSY => return Err(AttachError::Busy(name)),
                Claimed::Busy => std::thread::sleep(Duration::from_millis(10)),
            }
        }
    }

    /// Starts the process. It can be connected to at once.
    fn start(&self, claim: Claim) -> io::Result<Log> {
        let listener = claim.listen()?;
        let log = OpenOptions::new()
            .read(true)
            .append(true)
            .create_new(true)
            .mode(0o600)
            .open(claim.path.join("log"))?;
        let mut command = Command::new(OWN_PROGRAM);
        command
            .arg0("cellferry-agent")
            .args(self.arguments)
            .arg(&claim.path)
            // What the agent needs open goes by the standard streams, as with inetd.
            .stdin(OwnedFd::from(listener))
            .stdout(claim.lock)
            .stderr(log.try_clone()?)
            .current_dir(home());
        // SAFETY: setsid is async-signal-safe, and nothing else happens between fork and exec.
        unsafe {
            command.pre_exec(|| nix::unistd::setsid().map(drop).map_err(io::Error::from));
        }
        command.spawn()?;
        Ok(Log(log))
    }
}

/// What an agent that was just started has to complain about.
struct Log(File);

impl Log {
    fn into_error(mut self) -> AttachError {
        let mut text = String::new();
        let read = self
            .0
            .rewind()
            .and_then(|()| self.0.read_to_string(&mut text));
        if let Err(error) = read {
            tracing::debug!("cannot read the agent's log: {error}");
        }
        let text = text.trim();
        AttachError::Start(io::Error::other(if text.is_empty() {
            "it ended before it said anything"
        } else {
            text
        }))
    }
}

/// Copies both ways between the standard streams and the agent until either ends. Returns how many bytes the agent sent.
fn relay(stream: &UnixStream) -> io::Result<u64> {
    let kernel_says = File::from(io::stdin().as_fd().try_clone_to_owned()?);
    let kernel_hears = File::from(io::stdout().as_fd().try_clone_to_owned()?);
    for pipe in [&kernel_says, &kernel_hears] {
        // Only pipes have a size, and that only as a favour.
        let _ = fcntl(pipe, FcntlArg::F_SETPIPE_SZ(PIPE));
    }
    let (agent_hears, watched) = (stream.try_clone()?, stream.try_clone()?);
    std::thread::spawn(move || {
        copy(&kernel_says, &agent_hears);
        // The agent closes its side once it has seen that, which ends this process.
        let _ = agent_hears.shutdown(Shutdown::Write);
    });
    std::thread::spawn(move || {
        let mut hung_up = [PollFd::new(watched.as_fd(), PollFlags::empty())];
        while poll(&mut hung_up, PollTimeout::NONE).is_err() {}
        // The agent is gone or has a newer link. A login that takes nothing any more must not keep this process.
        std::thread::sleep(LAST_WORDS);
        std::process::exit(0);
    });
    Ok(copy(stream, &kernel_hears))
}

/// Copies until one end has nothing more to give or to take.
///
/// Not by `io::copy`, which splices: that holds the pipe for as long as the socket is full, and sshd at the pipe's other end,
/// which must never wait there, would hang.
fn copy(mut from: impl Read, mut to: impl Write) -> u64 {
    let (mut buffer, mut copied) = (vec![0; BUFFER], 0);
    loop {
        match from.read(&mut buffer) {
            Ok(0) => return copied,
            Ok(read) => {
                if to.write_all(&buffer[..read]).is_err() {
                    return copied;
                }
                copied += read as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return copied,
        }
    }
}
