//! How a process ended, and ending a whole process group.

use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;

use cellferry_wire::protocol::Exit;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

/// An exit status as the wire says it.
pub fn exit_of(status: std::io::Result<ExitStatus>) -> Exit {
    match status {
        Ok(status) => Exit {
            code: status.code(),
            signal: status.signal(),
            out_of_memory: None,
        },
        Err(_) => Exit {
            code: None,
            signal: None,
            out_of_memory: None,
        },
    }
}

/// Signals a worker's process group; one that is gone already is no error.
pub fn signal_group(group: u32, signal: Signal) {
    if let Ok(group) = i32::try_from(group)
        && group > 1
    {
        let _ = killpg(Pid::from_raw(group), signal);
    }
}
