//! A program in a process group of its own, which dies with the agent, and the last of what it writes.

use std::collections::VecDeque;
use std::io;
use std::path::Path;
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use cellferry_wire::protocol::Exit;
use futures::future::join_all;
use nix::sys::signal::Signal;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::{Child, Command};
use tokio::time::timeout;

use crate::exit::{exit_of, signal_group};
use crate::guard;

/// How long what is left of the last words is read, since others may hold the pipe open.
const LAST_OUTPUT: Duration = Duration::from_millis(200);

/// How much of what it writes is kept for last words, in bytes.
const TAIL: usize = 4 << 10;

type Tail = Arc<Mutex<VecDeque<u8>>>;

/// A process group, with its leader.
#[derive(Debug)]
pub struct Group {
    child: Child,
    id: u32,
    tail: Tail,
    /// Read stdout and stderr to their ends.
    readers: Vec<tokio::task::JoinHandle<()>>,
}

impl Group {
    /// Starts a program; `note` in `run_dir` tells the guard of it.
    ///
    /// # Errors
    /// If the program cannot be run.
    pub fn start(mut command: Command, run_dir: &Path, note: u32) -> io::Result<Self> {
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .kill_on_drop(true);
        #[cfg(target_os = "linux")]
        let agent = nix::unistd::Pid::this();
        #[cfg(target_os = "linux")]
        // It dies with the thread that started it. The agent's runtime has one thread, so that is the agent.
        // SAFETY: prctl and getppid are async-signal-safe, and nothing else happens between fork and exec.
        unsafe {
            command.pre_exec(move || {
                nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?;
                if nix::unistd::Pid::parent() == agent {
                    Ok(())
                } else {
                    // The agent died before it could matter to us.
                    Err(io::Error::from_raw_os_error(nix::libc::ESRCH))
                }
            });
        }
        let mut child = command.spawn()?;
        let id = child.id().unwrap_or_default();
        if let Err(error) = guard::note_group(run_dir, note, id) {
            tracing::warn!("cannot note the process group of a worker: {error}");
        }
        let tail = Tail::default();
        let mut readers = Vec::new();
        if let Some(stderr) = child.stderr.take() {
            readers.push(tokio::spawn(keep_tail(stderr, tail.clone())));
        }
        if let Some(stdout) = child.stdout.take() {
            readers.push(tokio::spawn(keep_tail(stdout, tail.clone())));
        }
        Ok(Self {
            child,
            id,
            tail,
            readers,
        })
    }

    /// The process id of its leader, which is also its own.
    pub fn id(&self) -> u32 {
        self.id
    }

    /// Waits for the leader's end.
    pub async fn ended(&mut self) -> Exit {
        exit_of(self.child.wait().await)
    }

    /// Signals all of it.
    pub fn signal(&self, signal: Signal) {
        signal_group(self.id, signal);
    }

    /// Ends all of it at once.
    pub async fn kill(&mut self) {
        self.signal(Signal::SIGKILL);
        let _ = timeout(Duration::from_secs(5), self.child.wait()).await;
    }

    /// The tail of what it wrote, once all of it has been read.
    pub async fn last_words(&mut self) -> String {
        let _ = timeout(LAST_OUTPUT, join_all(self.readers.drain(..))).await;
        self.words()
    }

    /// The tail of what it has written so far.
    pub fn words(&self) -> String {
        let tail = self.tail.lock().unwrap_or_else(PoisonError::into_inner);
        let bytes: Vec<u8> = tail.iter().copied().collect();
        let mut text = String::from_utf8_lossy(&bytes).into_owned();
        if bytes.len() >= TAIL {
            // Its first line is cut.
            text = text
                .split_once('\n')
                .map_or(text.clone(), |(_, rest)| rest.to_owned());
        }
        text
    }
}

/// Keeps the last of what is written past ipykernel.
async fn keep_tail(mut stream: impl AsyncRead + Unpin, tail: Tail) {
    let mut buffer = [0; 4096];
    while let Ok(read) = stream.read(&mut buffer).await {
        if read == 0 {
            break;
        }
        let mut tail = tail.lock().unwrap_or_else(PoisonError::into_inner);
        tail.extend(&buffer[..read]);
        let excess = tail.len().saturating_sub(TAIL);
        tail.drain(..excess);
    }
}
