//! What waits to be sent: a queue of chunks a stream, and whose turn it is.
//!
//! Stream 0 goes first, then small chunks, then large ones; among equals, streams take turns. Each stream
//! has its own credit, so a receiver that does not consume one stream stops the sender of that one alone.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;

use crate::WireError;
use crate::frame::{CHUNK, Frame};
use crate::squeeze::Trial;

/// The credit of a stream to begin with, and how much may wait to be sent on it, in bytes.
pub const WINDOW: usize = 4 << 20;

/// The most credit that a stream can have, in bytes: enough for 10 Gbit/s over 50 ms.
pub const WINDOW_LIMIT: usize = 64 << 20;

/// A chunk of at most so many bytes does not wait behind larger ones: output, a reply.
pub const SMALL: usize = 8 << 10;

/// A chunk of a message, on its way to a stream.
#[derive(Clone, Debug)]
pub struct Chunk {
    /// The stream.
    pub stream: u32,
    /// Whether it is the last of its message.
    pub last: bool,
    pub payload: Bytes,
}

impl Chunk {
    /// The frame that carries it, with its payload compressed if that was worth it.
    pub fn into_frame(self, squeezed: Option<Bytes>) -> Frame {
        Frame::Data {
            stream: self.stream,
            last: self.last,
            squeezed: squeezed.is_some(),
            payload: squeezed.unwrap_or(self.payload),
        }
    }
}

/// What the link has room for now.
#[derive(Clone, Copy, Debug)]
pub struct Room {
    /// Room for a chunk of at most [`SMALL`] bytes.
    pub small: bool,
    /// Room for any chunk.
    pub bulk: bool,
}

/// What can be sent now.
#[derive(Debug)]
pub enum Pick {
    /// This chunk.
    Chunk(Chunk),
    /// There is a chunk, but the link has no room for it.
    Full,
    /// Nothing.
    Nothing,
}

/// All streams in one direction, at the sender.
#[derive(Debug, Default)]
pub struct Outgoing {
    streams: BTreeMap<u32, Queue>,
    /// Credit that we owe the other side, by stream, in bytes.
    grants: BTreeMap<u32, u32>,
    /// The stream that was served last, for taking turns.
    served: u32,
    /// Bytes of small chunks sent since a large one had its turn.
    small_run: usize,
}

#[derive(Debug)]
struct Queue {
    chunks: VecDeque<(bool, Bytes)>,
    queued: usize,
    credit: usize,
    trial: Trial,
}

impl Default for Queue {
    fn default() -> Self {
        Self {
            chunks: VecDeque::new(),
            queued: 0,
            credit: WINDOW,
            trial: Trial::default(),
        }
    }
}

impl Queue {
    /// The length of the next chunk, if its credit suffices.
    fn next(&self) -> Option<usize> {
        let (_, chunk) = self.chunks.front()?;
        (chunk.len() <= self.credit).then_some(chunk.len())
    }
}

impl Outgoing {
    /// How many bytes wait on a stream.
    pub fn waiting(&self, stream: u32) -> usize {
        self.streams.get(&stream).map_or(0, |queue| queue.queued)
    }

    /// Whether more can wait on a stream.
    pub fn accepts(&self, stream: u32) -> bool {
        self.waiting(stream) < WINDOW
    }

    /// Whether nothing waits on any stream.
    pub fn is_empty(&self) -> bool {
        self.streams.values().all(|queue| queue.chunks.is_empty())
    }

    /// Nothing will be sent any more.
    pub fn clear(&mut self) {
        for queue in self.streams.values_mut() {
            queue.chunks.clear();
            queue.queued = 0;
        }
    }

    /// Adds a message.
    pub fn push(&mut self, stream: u32, chunks: Vec<Bytes>) {
        let queue = self.streams.entry(stream).or_default();
        queue.queued += chunks.iter().map(Bytes::len).sum::<usize>();
        let count = chunks.len();
        queue.chunks.extend(
            chunks
                .into_iter()
                .enumerate()
                .map(|(index, chunk)| (index + 1 == count, chunk)),
        );
    }

    /// Takes a chunk that never arrived back, to the front of its stream.
    pub fn put_back(&mut self, chunk: Chunk) {
        let queue = self.streams.entry(chunk.stream).or_default();
        queue.queued += chunk.payload.len();
        queue.credit = queue.credit.saturating_add(chunk.payload.len());
        queue.chunks.push_front((chunk.last, chunk.payload));
    }

    /// The other side lets more be sent on a stream.
    pub fn credit(&mut self, stream: u32, bytes: u32) -> Result<(), WireError> {
        let queue = self.streams.get_mut(&stream).ok_or(WireError::Malformed(
            "credit: for a stream that was never used",
        ))?;
        queue.credit = queue
            .credit
            .saturating_add(bytes as usize)
            .min(WINDOW_LIMIT);
        Ok(())
    }

    /// We let the other side send more on a stream.
    pub fn grant(&mut self, stream: u32, bytes: u32) {
        let owed = self.grants.entry(stream).or_default();
        *owed = owed.saturating_add(bytes);
    }

    /// The next grant to tell: a stream, and bytes.
    pub fn next_grant(&mut self) -> Option<(u32, u32)> {
        self.grants.pop_first()
    }

    /// Whether compressing a chunk of this stream is worth a try.
    pub fn tries_to_squeeze(&mut self, stream: u32) -> bool {
        self.streams
            .get_mut(&stream)
            .is_some_and(|queue| queue.trial.due())
    }

    /// A chunk of this stream was compressed, or could not be.
    pub fn squeezed(&mut self, stream: u32, worth: bool) {
        if let Some(queue) = self.streams.get_mut(&stream) {
            queue.trial.result(worth);
        }
    }

    /// Takes the next chunk.
    pub fn pick(&mut self, room: Room) -> Pick {
        let stream = if self.streams.get(&0).is_some_and(|q| q.next().is_some()) {
            0
        } else {
            let (small, bulk) = self.candidates();
            // Small chunks go first, but a flood of them gets no more than half of the link.
            let small = small.filter(|_| room.small);
            match (small, bulk) {
                (Some(small), Some(_)) if self.small_run < CHUNK || !room.bulk => small,
                (_, Some(bulk)) if room.bulk => {
                    self.small_run = 0;
                    bulk
                }
                (Some(small), _) => small,
                (None, Some(_)) => return Pick::Full,
                (None, None) => return Pick::Nothing,
            }
        };
        self.take(stream).map_or(Pick::Nothing, Pick::Chunk)
    }

    /// The next streams in turn that have a small and a large chunk.
    fn candidates(&self) -> (Option<u32>, Option<u32>) {
        let (mut small, mut bulk) = (None, None);
        let after = self.streams.range(self.served.saturating_add(1)..);
        for (stream, queue) in after.chain(self.streams.range(1..=self.served.max(1))) {
            match queue.next() {
                Some(length) if length <= SMALL => small = small.or(Some(*stream)),
                Some(_) => bulk = bulk.or(Some(*stream)),
                None => {}
            }
            if small.is_some() && bulk.is_some() {
                break;
            }
        }
        (small, bulk)
    }

    fn take(&mut self, stream: u32) -> Option<Chunk> {
        let queue = self.streams.get_mut(&stream)?;
        let (last, payload) = queue.chunks.pop_front()?;
        queue.queued -= payload.len();
        queue.credit -= payload.len();
        if stream != 0 {
            self.served = stream;
            if payload.len() <= SMALL {
                self.small_run += payload.len();
            }
        }
        Some(Chunk {
            stream,
            last,
            payload,
        })
    }
}
