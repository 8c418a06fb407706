//! Frames on their way into a byte stream: what can go without being copied does.

use std::io;

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncWrite, AsyncWriteExt};
use tokio_util::codec::Encoder;

use crate::WireError;
use crate::frame::{CHUNK, Frame, FrameCodec, chunk_head};

/// A payload of at least so many bytes is written from where it is, if the stream can write several pieces at once.
const IN_PLACE: usize = 16 << 10;

/// Writes frames.
pub struct Writer<W> {
    stream: W,
    /// Frames that wait to be written.
    buffer: BytesMut,
}

impl<W: AsyncWrite + Unpin> Writer<W> {
    pub fn new(stream: W) -> Self {
        Self {
            stream,
            buffer: BytesMut::new(),
        }
    }

    /// Adds a frame, and writes if there is enough.
    pub async fn feed(&mut self, frame: Frame) -> Result<(), WireError> {
        let frame = match frame {
            Frame::Data {
                stream,
                last,
                squeezed,
                payload,
            } if payload.len() >= IN_PLACE && self.stream.is_write_vectored() => {
                chunk_head(&mut self.buffer, stream, last, squeezed, &payload)?;
                return Ok(self.write(payload).await?);
            }
            frame => frame,
        };
        FrameCodec.encode(frame, &mut self.buffer)?;
        if self.buffer.len() >= CHUNK {
            self.write(Bytes::new()).await?;
        }
        Ok(())
    }

    /// Writes all that waits.
    pub async fn flush(&mut self) -> io::Result<()> {
        self.write(Bytes::new()).await?;
        self.stream.flush().await
    }

    /// Ends the stream.
    pub async fn close(&mut self) -> io::Result<()> {
        self.stream.shutdown().await
    }

    async fn write(&mut self, payload: Bytes) -> io::Result<()> {
        let mut all = (&mut self.buffer).chain(payload);
        self.stream.write_all_buf(&mut all).await
    }
}
