//! Frames that were sent and are kept until the other side has said that it has them.
//!
//! Frames are numbered by their order, from 0; no number is on the wire. What the other side did not receive
//! when a byte stream broke goes back to where it came from, and is numbered anew when it is sent again.

use std::collections::VecDeque;

use tokio::time::Instant;

use crate::WireError;
use crate::outgoing::Chunk;

/// What counts: everything but acknowledgements, pings and pongs.
#[derive(Clone, Debug)]
pub enum Numbered {
    /// A chunk, uncompressed.
    Chunk(Chunk),
    /// Credit.
    Credit { stream: u32, bytes: u32 },
    /// The end.
    Finish,
}

#[derive(Debug)]
struct Sent {
    what: Numbered,
    /// Its bytes on the wire.
    wire: usize,
    at: Instant,
}

/// All that is not acknowledged.
#[derive(Debug, Default)]
pub struct Kept {
    /// The number of the first.
    first: u64,
    frames: VecDeque<Sent>,
    /// Bytes of the chunks among them, uncompressed.
    bytes: usize,
}

/// What an acknowledgement tells.
#[derive(Clone, Copy, Debug, Default)]
pub struct Acked {
    /// Bytes on the wire that have arrived.
    pub wire: usize,
    /// When the last of them was sent; absent if the acknowledgement is no news.
    pub sent: Option<Instant>,
}

impl Kept {
    /// The number of the first frame that is kept.
    pub fn first(&self) -> u64 {
        self.first
    }

    /// The number of the next frame to be sent.
    pub fn next(&self) -> u64 {
        self.first + self.frames.len() as u64
    }

    /// How many frames are kept.
    pub fn len(&self) -> usize {
        self.frames.len()
    }

    /// Bytes of the chunks that are kept.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Keeps a frame of `wire` bytes; returns its number.
    pub fn push(&mut self, what: Numbered, wire: usize, at: Instant) -> u64 {
        if let Numbered::Chunk(chunk) = &what {
            self.bytes += chunk.payload.len();
        }
        self.frames.push_back(Sent { what, wire, at });
        self.next() - 1
    }

    /// A frame takes fewer bytes on the wire than was thought; returns how many fewer.
    pub fn shrink(&mut self, number: u64, wire: usize) -> usize {
        let index = number
            .checked_sub(self.first)
            .and_then(|index| usize::try_from(index).ok());
        let Some(sent) = index.and_then(|index| self.frames.get_mut(index)) else {
            return 0;
        };
        let less = sent.wire.saturating_sub(wire);
        sent.wire -= less;
        less
    }

    /// The other side has received `count` frames in all.
    pub fn ack(&mut self, count: u64) -> Result<Acked, WireError> {
        if !self.fits(count) {
            return Err(WireError::Malformed(
                "acknowledgement: of other frames than were sent",
            ));
        }
        let mut acked = Acked::default();
        while self.first < count {
            let Some(sent) = self.frames.pop_front() else {
                break;
            };
            self.first += 1;
            self.forget(&sent.what);
            acked.wire += sent.wire;
            acked.sent = Some(sent.at);
        }
        Ok(acked)
    }

    /// Whether the other side can have received `count` frames, and not have acknowledged more.
    pub fn fits(&self, count: u64) -> bool {
        (self.first..=self.next()).contains(&count)
    }

    /// Takes the last frame back, as if it had never been sent.
    pub fn pop(&mut self) -> Option<Numbered> {
        let sent = self.frames.pop_back()?;
        self.forget(&sent.what);
        Some(sent.what)
    }

    fn forget(&mut self, what: &Numbered) {
        if let Numbered::Chunk(chunk) = what {
            self.bytes -= chunk.payload.len();
        }
    }
}
