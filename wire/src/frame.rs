//! Frames: nine bytes of head (stream, kind, length), then the payload.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use tokio_util::codec::{Decoder, Encoder};

use crate::WireError;

/// The largest payload of a frame, in bytes: small enough that an interrupt never waits long.
pub const CHUNK: usize = 64 << 10;

/// What a frame costs beyond its payload, in bytes.
pub const HEAD: usize = 9;

/// One frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame {
    /// A chunk of a message.
    Data {
        /// The stream of the message.
        stream: u32,
        /// Whether it is the last of its message.
        last: bool,
        /// Whether the payload is compressed, with at most [`CHUNK`] bytes in it.
        squeezed: bool,
        payload: Bytes,
    },
    /// So many bytes may be sent on this stream in addition.
    Credit { stream: u32, bytes: u32 },
    /// No message comes after this.
    Finish,
    /// So many frames that count have been received since the conversation began.
    Ack(u64),
    /// Asks for a [`Frame::Pong`] with the same number.
    Ping(u64),
    /// Answers a [`Frame::Ping`].
    Pong(u64),
}

/// How much is read at once, in bytes.
pub const BUFFER: usize = 4 * CHUNK;

/// A received payload of at most so many bytes has memory of its own.
const COPIED: usize = 4 << 10;

const PART: u8 = 0;
const END: u8 = 1;
const CREDIT: u8 = 2;
const FINISH: u8 = 3;
const ACK: u8 = 4;
const PING: u8 = 5;
const PONG: u8 = 6;
/// Set on the kind of a chunk that is compressed.
const SQUEEZED: u8 = 0x80;
const SQUEEZED_END: u8 = SQUEEZED | END;

/// Reads and writes frames.
#[derive(Debug, Default)]
pub struct FrameCodec;

impl Decoder for FrameCodec {
    type Item = Frame;
    type Error = WireError;

    fn decode(&mut self, source: &mut BytesMut) -> Result<Option<Frame>, WireError> {
        if source.len() < HEAD {
            source.reserve(HEAD);
            return Ok(None);
        }
        let mut head = &source[..HEAD];
        let (stream, kind, length) = (head.get_u32(), head.get_u8(), head.get_u32() as usize);
        let fits = match kind {
            PART | SQUEEZED | SQUEEZED_END => (1..=CHUNK).contains(&length),
            END => length <= CHUNK,
            CREDIT => length == 4,
            FINISH => length == 0 && stream == 0,
            ACK | PING | PONG => length == 8 && stream == 0,
            _ => return Err(WireError::Malformed("frame: unknown kind")),
        };
        if !fits {
            return Err(WireError::Malformed(
                "frame: its length does not fit its kind",
            ));
        }
        if source.len() < HEAD + length {
            if source.capacity() < HEAD + length {
                // Several frames' worth, so that few are moved to complete them.
                source.reserve(BUFFER);
            }
            return Ok(None);
        }
        source.advance(HEAD);
        let mut payload = source.split_to(length);
        Ok(Some(match kind {
            CREDIT => Frame::Credit {
                stream,
                bytes: payload.get_u32(),
            },
            FINISH => Frame::Finish,
            ACK => Frame::Ack(payload.get_u64()),
            PING => Frame::Ping(payload.get_u64()),
            PONG => Frame::Pong(payload.get_u64()),
            _ => Frame::Data {
                stream,
                last: kind & !SQUEEZED == END,
                squeezed: kind & SQUEEZED != 0,
                // A small one may be kept for long; it must not keep the whole buffer.
                payload: if length <= COPIED {
                    Bytes::copy_from_slice(&payload)
                } else {
                    payload.freeze()
                },
            },
        }))
    }
}

impl Encoder<Frame> for FrameCodec {
    type Error = WireError;

    fn encode(&mut self, frame: Frame, out: &mut BytesMut) -> Result<(), WireError> {
        match frame {
            Frame::Data {
                stream,
                last,
                squeezed,
                payload,
            } => {
                out.reserve(HEAD + payload.len());
                chunk_head(out, stream, last, squeezed, &payload)?;
                out.put_slice(&payload);
            }
            Frame::Credit { stream, bytes } => {
                head(out, stream, CREDIT, 4);
                out.put_u32(bytes);
            }
            Frame::Finish => head(out, 0, FINISH, 0),
            Frame::Ack(number) => control(out, ACK, number),
            Frame::Ping(number) => control(out, PING, number),
            Frame::Pong(number) => control(out, PONG, number),
        }
        Ok(())
    }
}

/// All of a chunk's frame but its payload.
pub fn chunk_head(
    out: &mut BytesMut,
    stream: u32,
    last: bool,
    squeezed: bool,
    payload: &Bytes,
) -> Result<(), WireError> {
    let length =
        u32::try_from(payload.len()).map_err(|_| WireError::Malformed("frame: too long"))?;
    let kind = if last { END } else { PART };
    let flag = if squeezed { SQUEEZED } else { 0 };
    head(out, stream, kind | flag, length);
    Ok(())
}

fn head(out: &mut BytesMut, stream: u32, kind: u8, length: u32) {
    out.put_u32(stream);
    out.put_u8(kind);
    out.put_u32(length);
}

fn control(out: &mut BytesMut, kind: u8, number: u64) {
    head(out, 0, kind, 8);
    out.put_u64(number);
}
