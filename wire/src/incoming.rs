//! What has been received: messages that are not whole yet, and the credit that their streams have.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use crate::WireError;
use crate::frame::CHUNK;
use crate::outgoing::{WINDOW, WINDOW_LIMIT};

/// The largest message, in bytes; a larger one is a fault of the other side.
const MESSAGE_LIMIT: usize = 4 << 30;

/// The most streams in a conversation; more are a fault of the other side.
const STREAM_LIMIT: usize = 1 << 20;

/// The shortest round trip that windows are sized for: a busy machine answers no faster.
const SHORTEST_ROUND_TRIP: Duration = Duration::from_millis(5);

/// A whole message, not decoded yet.
#[derive(Debug)]
pub struct Message {
    /// Its chunks.
    pub chunks: Vec<Bytes>,
    /// What it takes of its stream's credit.
    pub claim: Claim,
}

/// What a message takes of its stream's credit until it is consumed.
#[derive(Debug)]
pub struct Claim {
    /// Its stream.
    pub stream: u32,
    /// Its bytes in all.
    pub size: usize,
    /// Of these, what has not been granted back.
    owed: usize,
}

/// When credit is granted: now, and how long a round trip is, where that is measured.
#[derive(Clone, Copy, Debug)]
pub struct Moment {
    pub now: Instant,
    pub round_trip: Duration,
}

/// All streams in one direction, at the receiver.
#[derive(Debug, Default)]
pub struct Incoming {
    streams: BTreeMap<u32, Stream>,
}

#[derive(Debug)]
struct Stream {
    /// What may be on its way, or received and not consumed, in bytes.
    window: usize,
    /// What the other side may still send.
    allowed: usize,
    /// Bytes of whole messages that nobody has consumed yet.
    unconsumed: usize,
    /// The message that is not whole yet.
    partial: Partial,
    /// Bytes to be granted back, once they are worth a frame.
    due: usize,
    /// How much was granted since when, to see whether the window is what limits the stream.
    measured: Option<(Instant, usize)>,
}

#[derive(Debug, Default)]
struct Partial {
    chunks: Vec<Bytes>,
    size: usize,
    owed: usize,
}

impl Default for Stream {
    fn default() -> Self {
        Self {
            window: WINDOW,
            allowed: WINDOW,
            unconsumed: 0,
            partial: Partial::default(),
            due: 0,
            measured: None,
        }
    }
}

/// What became of a chunk.
#[derive(Debug)]
pub struct Accepted {
    /// The message that it completed.
    pub message: Option<Message>,
    /// Bytes to grant to its stream, or 0.
    pub grant: u32,
}

impl Incoming {
    /// A chunk has come. `moment` is given where windows may grow.
    pub fn accept(
        &mut self,
        stream: u32,
        last: bool,
        payload: Bytes,
        moment: Option<Moment>,
    ) -> Result<Accepted, WireError> {
        if self.streams.len() >= STREAM_LIMIT && !self.streams.contains_key(&stream) {
            return Err(WireError::Malformed("frame: too many streams"));
        }
        let incoming = self.streams.entry(stream).or_default();
        incoming.allowed = incoming
            .allowed
            .checked_sub(payload.len())
            .ok_or(WireError::Malformed("frame: more than was granted"))?;
        let partial = &mut incoming.partial;
        partial.size += payload.len();
        partial.owed += payload.len();
        partial.chunks.push(payload);
        if partial.size > MESSAGE_LIMIT {
            return Err(WireError::Malformed("message: too long"));
        }
        if !last {
            let grant = incoming.release_partial(moment);
            return Ok(Accepted {
                message: None,
                grant,
            });
        }
        let Partial { chunks, size, owed } = std::mem::take(partial);
        incoming.unconsumed += size;
        Ok(Accepted {
            message: Some(Message {
                chunks,
                claim: Claim { stream, size, owed },
            }),
            grant: 0,
        })
    }

    /// A message has been consumed; returns the bytes to grant to its stream, or 0.
    pub fn consumed(&mut self, claim: &Claim, moment: Option<Moment>) -> u32 {
        let Some(stream) = self.streams.get_mut(&claim.stream) else {
            return 0;
        };
        stream.unconsumed = stream.unconsumed.saturating_sub(claim.size);
        stream.due += claim.owed;
        stream.release_partial(moment)
    }

    /// Whether a message has begun and not ended.
    pub fn is_partial(&self) -> bool {
        self.streams
            .values()
            .any(|stream| !stream.partial.chunks.is_empty())
    }
}

impl Stream {
    /// A message must come whole before anybody can consume it, so when it is all there is, it is granted back
    /// as it comes.
    fn release_partial(&mut self, moment: Option<Moment>) -> u32 {
        if self.unconsumed == 0 {
            self.due += std::mem::take(&mut self.partial.owed);
        }
        // Not worth a frame; the sender has more than that left, or others of its messages are unconsumed.
        if self.due < self.window / 16 {
            return 0;
        }
        let mut grant = std::mem::take(&mut self.due);
        if let Some(moment) = moment {
            grant += self.grow(grant, moment);
        }
        self.allowed += grant;
        u32::try_from(grant).unwrap_or(u32::MAX)
    }

    /// A whole window consumed within two round trips means that the window is what limits the stream: it is
    /// doubled. So does Chromium's QUIC (`QuicFlowController::MaybeIncreaseMaxWindowSize`).
    fn grow(&mut self, granted: usize, moment: Moment) -> usize {
        let (since, before) = self.measured.unwrap_or((moment.now, 0));
        let measured = before + granted;
        if measured < self.window {
            self.measured = Some((since, measured));
            return 0;
        }
        self.measured = Some((moment.now, 0));
        let round_trip = moment.round_trip.max(SHORTEST_ROUND_TRIP);
        if self.window >= WINDOW_LIMIT || moment.now - since >= 2 * round_trip {
            return 0;
        }
        let more = self.window.min(WINDOW_LIMIT - self.window);
        self.window += more;
        more
    }
}

// The smallest share that is granted must leave the sender room for a chunk.
const _: () = assert!(WINDOW / 16 + CHUNK < WINDOW);
