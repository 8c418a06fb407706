//! One chunk on the wire: stream, flags, length, bytes.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use tokio_util::codec::{Decoder, Encoder};

use crate::WireError;

/// The largest payload of a frame, in bytes: small enough that an interrupt never waits long.
pub const CHUNK: usize = 64 << 10;

const HEAD: usize = 9;

/// What a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Part of a message; more follows.
    Part,
    /// The last part of a message.
    End,
    /// The payload is a number of bytes that may be sent on this stream in addition.
    Credit,
}

/// One frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    pub stream: u32,
    pub kind: Kind,
    pub payload: Bytes,
}

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
        let stream = (&source[0..4]).get_u32();
        let kind = match source[4] {
            0 => Kind::Part,
            1 => Kind::End,
            2 => Kind::Credit,
            _ => return Err(WireError::Malformed("frame: unknown kind")),
        };
        let length = (&source[5..9]).get_u32() as usize;
        if length > CHUNK {
            return Err(WireError::Malformed("frame: too long"));
        }
        if source.len() < HEAD + length {
            source.reserve(HEAD + length - source.len());
            return Ok(None);
        }
        source.advance(HEAD);
        Ok(Some(Frame {
            stream,
            kind,
            payload: source.split_to(length).freeze(),
        }))
    }
}

impl Encoder<Frame> for FrameCodec {
    type Error = WireError;

    fn encode(&mut self, frame: Frame, out: &mut BytesMut) -> Result<(), WireError> {
        let length = u32::try_from(frame.payload.len())
            .map_err(|_| WireError::Malformed("frame: too long"))?;
        out.reserve(HEAD + frame.payload.len());
        out.put_u32(frame.stream);
        out.put_u8(match frame.kind {
            Kind::Part => 0,
            Kind::End => 1,
            Kind::Credit => 2,
        });
        out.put_u32(length);
        out.put_slice(&frame.payload);
        Ok(())
    }
}
