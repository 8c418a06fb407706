//! The byte stream between the kernel and an agent: frames, handshake, flow control.
//!
//! Whatever carries the stream (a child's stdin and stdout, an ssh channel, a TCP connection),
//! the same messages go over it. This crate knows neither Jupyter nor workflows.

//!
//! Messages are cut into chunks. Several streams of them share the byte stream: they take turns, stream 0 goes first,
//! and each has its own credit. So an interrupt never waits behind a transfer, and a receiver that does not consume
//! one stream stops the sender of that stream alone. A conversation that outlives its byte streams is carried by a
//! [`Line`].

mod connection;
mod ends;
mod envelope;
mod frame;
mod handshake;
mod incoming;
mod kept;
mod line;
mod outgoing;
mod pace;
pub mod protocol;
mod resume;
mod shared;
mod squeeze;
mod writer;

pub use connection::Connection;
pub use ends::{Held, Receiver, Sender};
pub use handshake::BUILD;
pub use line::Line;

use thiserror::Error;

/// Why a byte stream can no longer be used.
#[derive(Debug, Error)]
pub enum WireError {
    /// The stream itself failed or ended in the middle of something.
    #[error("the connection broke: {0}")]
    Io(#[from] std::io::Error),
    /// The byte stream ended, without an orderly end of what it carried.
    #[error("the connection ended: the other program, or what carries the stream, has stopped")]
    Ended,
    /// Nothing has come for too long.
    #[error(
        "nothing has come from the other side for {seconds} s: the link is cut, or its machine has stopped"
    )]
    Silent {
        /// How long.
        seconds: u64,
    },
    /// Another byte stream carries the conversation now.
    #[error("another connection has taken over")]
    Replaced,
    /// Only one side was started to resume lost links.
    #[error("one side resumes lost links and the other does not: start both in the same way")]
    Unresumable,
    /// The other side carries another conversation.
    #[error("the other side is in another conversation")]
    OtherConversation,
    /// The other side was started anew, or lost what was said.
    #[error("the other side no longer knows this conversation: it has been started anew")]
    Forgotten,
    /// The other side is not a Cellferry program, or printed too much before it started.
    #[error("no greeting within the first {limit} bytes; the other side began with `{start}`")]
    NoGreeting {
        /// How many bytes were looked at.
        limit: usize,
        /// How they begin.
        start: String,
    },
    /// The two programs may misunderstand each other.
    #[error(
        "the other program is of another build, {theirs}, than this one, {ours}: both must come from the same installation"
    )]
    Build {
        /// Their program version and wire.
        theirs: String,
        /// Ours.
        ours: &'static str,
    },
    /// A frame or message that no correct program sends.
    #[error("malformed {0}")]
    Malformed(&'static str),
    /// A typed header that cannot be read.
    #[error("unreadable message header: {0}")]
    Header(String),
}

impl WireError {
    /// Whether only this byte stream is at fault, so that another one may go on.
    #[must_use]
    pub fn is_lost_link(&self) -> bool {
        matches!(self, Self::Io(_) | Self::Ended | Self::Silent { .. })
    }
}
