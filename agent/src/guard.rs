//! A process that outlives a killed kernel or agent just long enough to clean up after it.
//!
//! `kill -9` leaves no chance to end workers and remove sockets. So a tiny process of our own
//! program, in a session of its own, waits on a pipe: when the pipe closes, for whatever reason,
//! it kills the process groups noted in the directories it was given and removes them.

use std::fs::OpenOptions;
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use nix::sys::signal::{SigHandler, Signal, signal};

use crate::exit::signal_group;
use crate::run_dir::remove_common;

/// The running guard; it does its work when this is dropped, or when its owner dies.
#[derive(Debug)]
pub struct Guard {
    child: Child,
}

impl Guard {
    /// Starts `program` with `arguments` and the directories; that program calls [`watch`].
    pub fn start(program: &Path, arguments: &[&str], directories: &[&Path]) -> io::Result<Self> {
        let mut command = Command::new(program);
        if let Some(name) = std::env::args_os().next() {
            command.arg0(name);
        }
        command
            .args(arguments)
            .args(directories)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        command.current_dir("/");
        // SAFETY: setsid is async-signal-safe, and nothing else happens between fork and exec.
        unsafe {
            command.pre_exec(|| nix::unistd::setsid().map(drop).map_err(io::Error::from));
        }
        Ok(Self {
            child: command.spawn()?,
        })
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        // It has nothing left to do after an orderly end, so this is short.
        let _ = self.child.wait();
    }
}

/// Waits until stdin closes, then cleans up.
pub fn watch(directories: &[PathBuf]) {
    for ignored in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        // SAFETY: ignoring a signal installs no handler.
        let _ = unsafe { signal(ignored, SigHandler::SigIgn) };
    }
    let mut sink = [0; 64];
    while matches!(io::stdin().read(&mut sink), Ok(read) if read > 0) {}
    for directory in directories {
        kill_noted_groups(directory);
    }
    for directory in directories {
        let _ = std::fs::remove_dir_all(directory);
        remove_common(directory);
    }
}

/// Where a worker's process group is noted: `<worker>.pgid`, with the start time of its leader.
pub fn note_group(directory: &Path, worker: u32, group: u32) -> io::Result<()> {
    let started = start_time(group).unwrap_or_default();
    let mut note = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(directory.join(format!("{worker}.pgid")))?;
    note.write_all(format!("{group} {started}").as_bytes())
}

fn kill_noted_groups(directory: &Path) {
    let Ok(entries) = std::fs::read_dir(directory) else {
        return;
    };
    for entry in entries.flatten() {
        let path = entry.path();
        if path.is_dir() {
            kill_noted_groups(&path);
        } else if path
            .extension()
            .is_some_and(|extension| extension == "pgid")
        {
            let text = std::fs::read_to_string(&path).unwrap_or_default();
            let mut words = text.split_whitespace();
            let (Some(group), started) = (
                words.next().and_then(|word| word.parse().ok()),
                words.next(),
            ) else {
                continue;
            };
            // A leader with another start time is another process under a number used again. A
            // leader that is gone may have left others of its group, whose number stays taken.
            let now = start_time(group);
            if now.is_none() || now.as_deref() == started {
                signal_group(group, Signal::SIGKILL);
            }
        }
    }
}

/// The start time of a process in clock ticks since boot: field 22 of `/proc/PID/stat`.
fn start_time(pid: u32) -> Option<String> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(')')?
        .1
        .split_whitespace()
        .nth(19)
        .map(str::to_owned)
}
