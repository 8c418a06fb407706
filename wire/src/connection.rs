//! A connection over one byte stream that never comes back: a child's stdin and stdout.

use std::sync::Arc;

use bytes::BytesMut;
use futures::{SinkExt, StreamExt};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_util::codec::{FramedParts, FramedRead, FramedWrite};

use crate::WireError;
use crate::ends::{Receiver, Sender};
use crate::envelope::Envelope;
use crate::frame::{BUFFER, Frame, FrameCodec};
use crate::handshake::greet;
use crate::line::Line;
use crate::outgoing::{Pick, Room};
use crate::resume::Resume;
use crate::shared::{Shared, State};

/// Both directions of a byte stream, after the handshake, or of a conversation over several.
#[derive(Debug)]
pub struct Connection<Out, In> {
    /// What we send.
    pub sender: Sender<Out>,
    /// What comes.
    pub receiver: Receiver<In>,
}

impl<Out: Envelope, In: Envelope> Connection<Out, In> {
    /// Greets the other side and starts reading and writing. When the stream ends, so does the connection.
    pub async fn start<R, W>(mut reader: R, mut writer: W) -> Result<Self, WireError>
    where
        R: AsyncRead + Unpin + Send + 'static,
        W: AsyncWrite + Unpin + Send + 'static,
    {
        let greeted = greet(&mut reader, &mut writer, None).await?;
        let (connection, shared) = Self::new(None);
        tokio::spawn(write(FramedWrite::new(writer, FrameCodec), shared.clone()));
        tokio::spawn(read(framed(reader, greeted.beyond), shared));
        Ok(connection)
    }

    /// A conversation that can be carried by one byte stream after another, by [`Line::carry`]; messages can be
    /// queued at once. Both sides must be given the same id, of a conversation that was never had before.
    pub fn resumable(conversation_id: [u8; 16]) -> (Self, Line) {
        let (connection, shared) = Self::new(Some(Resume::new(conversation_id)));
        (connection, Line::new(shared))
    }

    fn new(resume: Option<Resume>) -> (Self, Arc<Shared>) {
        let (shared, arrived) = Shared::new(resume);
        let shared = Arc::new(shared);
        let connection = Self {
            sender: Sender::new(shared.clone()),
            receiver: Receiver::new(shared.clone(), arrived),
        };
        (connection, shared)
    }
}

fn framed<R: AsyncRead>(reader: R, beyond: BytesMut) -> FramedRead<R, FrameCodec> {
    let parts = FramedParts::new::<Frame>(reader, FrameCodec);
    let mut framed = FramedRead::with_capacity(parts.io, parts.codec, BUFFER);
    framed.read_buffer_mut().extend_from_slice(&beyond);
    framed
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

fn next_frame(state: &mut State) -> Option<Frame> {
    if let Some((stream, bytes)) = state.outgoing.next_grant() {
        return Some(Frame::Credit { stream, bytes });
    }
    let room = Room {
        small: true,
        bulk: true,
    };
    match state.outgoing.pick(room) {
        Pick::Chunk(chunk) => Some(chunk.into_frame(None)),
        Pick::Full | Pick::Nothing => None,
    }
}

async fn read<R: AsyncRead + Unpin>(mut framed: FramedRead<R, FrameCodec>, shared: Arc<Shared>) {
    let reason = loop {
        let frame = match framed.next().await {
            Some(Ok(frame)) => frame,
            Some(Err(error)) => break Some(error),
            None if shared.lock().incoming.is_partial() => {
                break Some(WireError::Malformed("message: it ends in the middle"));
            }
            None => break None,
        };
        match accept(&mut shared.lock(), frame) {
            Ok(true) => shared.ready.notify_one(),
            Ok(false) => break None,
            Err(error) => break Some(error),
        }
    };
    shared.lock().end_arrivals(reason);
    shared.close();
}

/// False if nobody receives any more.
fn accept(state: &mut State, frame: Frame) -> Result<bool, WireError> {
    match frame {
        Frame::Data {
            stream,
            last,
            squeezed: false,
            payload,
        } => state.accept(stream, last, payload),
        Frame::Credit { stream, bytes } => {
            state.outgoing.credit(stream, bytes)?;
            Ok(true)
        }
        _ => Err(WireError::Malformed(
            "frame: of a kind for links that are resumed",
        )),
    }
}

#[cfg(test)]
#[path = "connection_tests.rs"]
mod tests;
