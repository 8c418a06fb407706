//! Several streams of messages over one byte stream.
//!
//! Messages are cut into chunks; streams take turns, stream 0 goes first, and each stream has its
//! own credit. So an interrupt never waits behind a transfer, and a receiver that does not consume
//! one stream stops the sender of that stream alone.

use std::collections::{BTreeMap, VecDeque};
use std::marker::PhantomData;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use futures::{SinkExt, StreamExt};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{Notify, mpsc};
use tokio_util::codec::{FramedParts, FramedRead, FramedWrite};

use crate::WireError;
use crate::frame::{CHUNK, Frame, FrameCodec, Kind};
use crate::handshake::greet;
use crate::protocol::Parts;

/// What may be on its way, or received and not consumed, on one stream, in bytes.
const WINDOW: usize = 4 << 20;

/// The largest message, in bytes; a larger one is a fault of the other side.
const MESSAGE_LIMIT: usize = 4 << 30;

/// Something that goes over the wire: a typed header and raw parts, on a stream.
pub trait Envelope: Sized {
    /// The typed header.
    type Header: Serialize + DeserializeOwned;
    /// The stream on which it keeps its order; 0 overtakes all others.
    fn stream(&self) -> u32;
    /// Splits it.
    fn split(self) -> (Self::Header, Parts);
    /// Puts it together again.
    fn join(header: Self::Header, parts: Parts) -> Result<Self, WireError>;
}

/// Both directions of a byte stream, after the handshake.
#[derive(Debug)]
pub struct Connection<Out, In> {
    /// What we send.
    pub sender: Sender<Out>,
    /// What comes.
    pub receiver: Receiver<In>,
}

impl<Out: Envelope, In: Envelope + Send + 'static> Connection<Out, In> {
    /// Greets the other side and starts reading and writing.
    pub async fn start<R, W>(mut reader: R, mut writer: W) -> Result<Self, WireError>
    where
        R: AsyncRead + Unpin + Send + 'static,
        W: AsyncWrite + Unpin + Send + 'static,
    {
        let beyond = greet(&mut reader, &mut writer).await?;
        let shared = Arc::new(Shared::default());
        let (queue, arrived) = mpsc::unbounded_channel();
        let mut framed = FramedParts::new::<Frame>(reader, FrameCodec);
        framed.read_buf = beyond;
        tokio::spawn(write(FramedWrite::new(writer, FrameCodec), shared.clone()));
        tokio::spawn(read::<In, R>(into_read(framed), shared.clone(), queue));
        Ok(Self {
            sender: Sender {
                shared: shared.clone(),
                kind: PhantomData,
            },
            receiver: Receiver { shared, arrived },
        })
    }
}

fn into_read<R: AsyncRead>(parts: FramedParts<R, FrameCodec>) -> FramedRead<R, FrameCodec> {
    let mut framed = FramedRead::with_capacity(parts.io, parts.codec, 2 * CHUNK);
    framed.read_buffer_mut().extend_from_slice(&parts.read_buf);
    framed
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    /// Something can be written.
    ready: Notify,
    /// Something has been written, or the connection has ended.
    room: Notify,
}

#[derive(Debug, Default)]
struct State {
    out: BTreeMap<u32, Outgoing>,
    grants: VecDeque<(u32, u32)>,
    incoming: BTreeMap<u32, Incoming>,
    /// The stream that was served last, for taking turns.
    last: u32,
    /// No more will be sent: end once the queues are empty.
    finishing: bool,
    closed: bool,
}

#[derive(Debug)]
struct Outgoing {
    chunks: VecDeque<(Kind, Bytes)>,
    queued: usize,
    credit: usize,
}

impl Default for Outgoing {
    fn default() -> Self {
        Self {
            chunks: VecDeque::new(),
            queued: 0,
            credit: WINDOW,
        }
    }
}

impl Outgoing {
    fn extend(&mut self, chunks: Vec<(Kind, Bytes)>) {
        self.queued += chunks.iter().map(|(_, chunk)| chunk.len()).sum::<usize>();
        self.chunks.extend(chunks);
    }
}

/// Credit that is owed to the other side's stream.
#[derive(Debug)]
struct Incoming {
    /// What the other side may still send.
    allowed: usize,
    /// Bytes of whole messages that nobody has consumed yet.
    unconsumed: usize,
    /// Bytes received and not granted back yet.
    owed: usize,
}

impl Default for Incoming {
    fn default() -> Self {
        Self {
            allowed: WINDOW,
            unconsumed: 0,
            owed: 0,
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn close(&self) {
        self.lock().closed = true;
        self.ready.notify_waiters();
        self.ready.notify_one();
        self.room.notify_waiters();
    }
}

/// The sending side. Clones share the connection.
#[derive(Debug)]
pub struct Sender<T> {
    shared: Arc<Shared>,
    kind: PhantomData<fn(T)>,
}

impl<T> Clone for Sender<T> {
    fn clone(&self) -> Self {
        Self {
            shared: self.shared.clone(),
            kind: PhantomData,
        }
    }
}

#[derive(Serialize, Deserialize)]
struct Head<H> {
    header: H,
    lengths: Vec<u64>,
}

impl<T: Envelope> Sender<T> {
    /// Queues a message; waits while its stream is full. False once the connection has ended.
    pub async fn send(&self, message: T) -> bool {
        let stream = message.stream();
        let Some(chunks) = encode(message) else {
            tracing::error!("a message could not be encoded and was dropped");
            return true;
        };
        loop {
            let room = self.shared.room.notified();
            {
                let mut state = self.shared.lock();
                if state.closed || state.finishing {
                    return false;
                }
                let out = state.out.entry(stream).or_default();
                if out.queued < WINDOW {
                    out.extend(chunks);
                    break;
                }
            }
            room.await;
        }
        self.shared.ready.notify_one();
        true
    }

    /// Queues a message without waiting; for senders whose messages are few or answered one by one.
    pub fn queue(&self, message: T) {
        let stream = message.stream();
        let Some(chunks) = encode(message) else {
            tracing::error!("a message could not be encoded and was dropped");
            return;
        };
        self.shared
            .lock()
            .out
            .entry(stream)
            .or_default()
            .extend(chunks);
        self.shared.ready.notify_one();
    }

    /// Sends what is queued, then closes the writing half.
    pub fn finish(&self) {
        self.shared.lock().finishing = true;
        self.shared.ready.notify_one();
    }

    /// Waits until the connection has ended.
    pub async fn closed(&self) {
        loop {
            let room = self.shared.room.notified();
            if self.shared.lock().closed {
                return;
            }
            room.await;
        }
    }
}

fn encode<T: Envelope>(message: T) -> Option<Vec<(Kind, Bytes)>> {
    let (header, parts) = message.split();
    let head = Head {
        header,
        lengths: parts.iter().map(|part| part.len() as u64).collect(),
    };
    let mut encoded = Vec::new();
    ciborium::into_writer(&head, &mut encoded).ok()?;
    let mut first = BytesMut::with_capacity(4 + encoded.len());
    first.put_u32(u32::try_from(encoded.len()).ok()?);
    first.extend_from_slice(&encoded);
    // Small parts travel together with the header, large ones as slices of their own.
    let mut chunks = Vec::new();
    for mut part in parts {
        if first.len() + part.len() <= CHUNK {
            first.extend_from_slice(&part);
            continue;
        }
        cut(&mut chunks, first.split().freeze());
        if part.len() > CHUNK {
            let whole = part.len() - part.len() % CHUNK;
            cut(&mut chunks, part.split_to(whole));
        }
        first.extend_from_slice(&part);
    }
    cut(&mut chunks, first.freeze());
    if let Some((kind, _)) = chunks.last_mut() {
        *kind = Kind::End;
    }
    Some(chunks)
}

fn cut(chunks: &mut Vec<(Kind, Bytes)>, mut bytes: Bytes) {
    while bytes.len() > CHUNK {
        chunks.push((Kind::Part, bytes.split_to(CHUNK)));
    }
    chunks.push((Kind::Part, bytes));
}

/// The receiving side.
#[derive(Debug)]
pub struct Receiver<T> {
    shared: Arc<Shared>,
    arrived: mpsc::UnboundedReceiver<(u32, usize, Result<T, WireError>)>,
}

impl<T> Receiver<T> {
    /// The next message; an error if the stream broke; `None` after a clean end.
    pub async fn recv(&mut self) -> Option<Result<T, WireError>> {
        let (stream, size, message) = self.arrived.recv().await?;
        let mut state = self.shared.lock();
        let incoming = state.incoming.entry(stream).or_default();
        incoming.unconsumed = incoming.unconsumed.saturating_sub(size);
        let owed = std::mem::take(&mut incoming.owed);
        grant(&mut state, stream, owed);
        drop(state);
        self.shared.ready.notify_one();
        Some(message)
    }
}

fn grant(state: &mut State, stream: u32, bytes: usize) {
    if let (Ok(bytes), true) = (u32::try_from(bytes), bytes > 0) {
        state.incoming.entry(stream).or_default().allowed += bytes as usize;
        state.grants.push_back((stream, bytes));
    }
}

async fn write<W: AsyncWrite + Unpin>(mut framed: FramedWrite<W, FrameCodec>, shared: Arc<Shared>) {
    loop {
        let next = {
            let mut state = shared.lock();
            if state.closed {
                break;
            }
            next_frame(&mut state).ok_or(state.finishing)
        };
        let outcome = match next {
            Ok(frame) => {
                shared.room.notify_waiters();
                framed.feed(frame).await
            }
            Err(finishing) => {
                let flushed = framed.flush().await;
                if finishing {
                    let _ = framed.close().await;
                    break;
                }
                if flushed.is_ok() {
                    shared.ready.notified().await;
                }
                flushed
            }
        };
        if let Err(error) = outcome {
            tracing::debug!("cannot write: {error}");
            break;
        }
    }
    shared.close();
}

/// Grants first, then stream 0, then the others in turn.
fn next_frame(state: &mut State) -> Option<Frame> {
    if let Some((stream, bytes)) = state.grants.pop_front() {
        return Some(Frame {
            stream,
            kind: Kind::Credit,
            payload: Bytes::copy_from_slice(&bytes.to_be_bytes()),
        });
    }
    let can = |out: &Outgoing| {
        out.chunks
            .front()
            .is_some_and(|(_, chunk)| chunk.len() <= out.credit)
    };
    let stream = if state.out.get(&0).is_some_and(can) {
        0
    } else {
        let after = state
            .out
            .range(state.last.saturating_add(1)..)
            .find(|(_, out)| can(out));
        let found = after.or_else(|| state.out.iter().find(|(_, out)| can(out)));
        *found?.0
    };
    if stream != 0 {
        state.last = stream;
    }
    let out = state.out.get_mut(&stream)?;
    let (kind, payload) = out.chunks.pop_front()?;
    out.queued -= payload.len();
    out.credit -= payload.len();
    Some(Frame {
        stream,
        kind,
        payload,
    })
}

type Arrivals<T> = mpsc::UnboundedSender<(u32, usize, Result<T, WireError>)>;

async fn read<T: Envelope, R: AsyncRead + Unpin>(
    mut framed: FramedRead<R, FrameCodec>,
    shared: Arc<Shared>,
    queue: Arrivals<T>,
) {
    let mut partial: BTreeMap<u32, (Vec<Bytes>, usize)> = BTreeMap::new();
    loop {
        let frame = match framed.next().await {
            Some(Ok(frame)) => frame,
            Some(Err(error)) => {
                let _ = queue.send((0, 0, Err(error)));
                break;
            }
            None => {
                if !partial.is_empty() {
                    let _ = queue.send((
                        0,
                        0,
                        Err(WireError::Malformed("message: it ends in the middle")),
                    ));
                }
                break;
            }
        };
        if frame.kind == Kind::Credit {
            let granted = frame
                .payload
                .get(..4)
                .map_or(0, |mut bytes| bytes.get_u32() as usize);
            let mut state = shared.lock();
            let out = state.out.entry(frame.stream).or_default();
            out.credit = out.credit.saturating_add(granted).min(WINDOW);
            drop(state);
            shared.ready.notify_one();
            continue;
        }
        let size = frame.payload.len();
        let allowed = shared
            .lock()
            .incoming
            .entry(frame.stream)
            .or_default()
            .allowed
            .checked_sub(size);
        let Some(allowed) = allowed else {
            let _ = queue.send((
                0,
                0,
                Err(WireError::Malformed("frame: more than was granted")),
            ));
            break;
        };
        let (chunks, total) = partial.entry(frame.stream).or_default();
        chunks.push(frame.payload);
        *total += size;
        let total = *total;
        if total > MESSAGE_LIMIT {
            let _ = queue.send((0, 0, Err(WireError::Malformed("message: too long"))));
            break;
        }
        let mut state = shared.lock();
        let incoming = state.incoming.entry(frame.stream).or_default();
        incoming.allowed = allowed;
        incoming.owed += size;
        if frame.kind == Kind::End {
            incoming.unconsumed += total;
        } else if incoming.unconsumed == 0 {
            // The message must come whole before anybody can consume it.
            let owed = std::mem::take(&mut incoming.owed);
            grant(&mut state, frame.stream, owed);
        }
        drop(state);
        shared.ready.notify_one();
        if frame.kind == Kind::End {
            let (chunks, _) = partial.remove(&frame.stream).unwrap_or_default();
            let message = decode(chunks, total);
            let broken = message.is_err();
            if queue.send((frame.stream, total, message)).is_err() || broken {
                break;
            }
        }
    }
    shared.close();
}

fn decode<T: Envelope>(chunks: Vec<Bytes>, total: usize) -> Result<T, WireError> {
    let mut whole = match <[Bytes; 1]>::try_from(chunks) {
        Ok([only]) => only,
        Err(chunks) => {
            let mut joined = BytesMut::with_capacity(total);
            for chunk in chunks {
                joined.extend_from_slice(&chunk);
            }
            joined.freeze()
        }
    };
    if whole.len() < 4 {
        return Err(WireError::Malformed("message: no header"));
    }
    let length = whole.get_u32() as usize;
    if whole.len() < length {
        return Err(WireError::Malformed("message: its header is cut"));
    }
    let head: Head<T::Header> = ciborium::from_reader(&whole[..length])
        .map_err(|error| WireError::Header(error.to_string()))?;
    whole.advance(length);
    let mut parts = Vec::with_capacity(head.lengths.len().min(1024));
    for length in head.lengths {
        let length = usize::try_from(length)
            .map_err(|_| WireError::Malformed("message: a part is too long"))?;
        if whole.len() < length {
            return Err(WireError::Malformed("message: a part is cut"));
        }
        parts.push(whole.split_to(length));
    }
    T::join(head.header, parts)
}

#[cfg(test)]
mod tests;
