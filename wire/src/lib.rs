//! The byte stream between the kernel and an agent: frames, handshake, flow control.
//!
//! Whatever carries the stream (a child's stdin and stdout, an ssh channel, a TCP connection),
//! the same messages go over it. This crate knows neither Jupyter nor workflows.

mod frame;
mod handshake;
mod mux;
pub mod protocol;

pub use handshake::{PROGRAM_VERSION, WIRE_VERSION};
pub use mux::{Connection, Receiver, Sender};

use thiserror::Error;

/// Why a byte stream can no longer be used.
#[derive(Debug, Error)]
pub enum WireError {
    /// The stream itself failed or ended in the middle of something.
    #[error("the connection broke: {0}")]
    Io(#[from] std::io::Error),
    /// The other side is not a Cellferry program, or printed too much before it started.
    #[error("no greeting within the first {limit} bytes; the other side began with `{start}`")]
    NoGreeting {
        /// How many bytes were looked at.
        limit: usize,
        /// How they begin.
        start: String,
    },
    /// The two programs do not speak the same version.
    #[error(
        "the other side speaks wire version {theirs} (program {program}), this program {ours}: use the same version on both"
    )]
    Version {
        /// Their wire version.
        theirs: u32,
        /// Our wire version.
        ours: u32,
        /// Their program version.
        program: String,
    },
    /// A frame or message that no correct program sends.
    #[error("malformed {0}")]
    Malformed(&'static str),
    /// A typed header that cannot be read.
    #[error("unreadable message header: {0}")]
    Header(String),
}
