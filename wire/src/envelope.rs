//! A message and its chunks: a typed header, then raw parts, cut into pieces of a frame's size.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::WireError;
use crate::frame::CHUNK;
use crate::protocol::Parts;

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

#[derive(Serialize, Deserialize)]
struct Head<H> {
    header: H,
    lengths: Vec<u64>,
}

/// The chunks of a message, at least one; none but the last is empty. `None` if its header cannot be written.
pub fn encode<T: Envelope>(message: T) -> Option<Vec<Bytes>> {
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
    Some(chunks)
}

fn cut(chunks: &mut Vec<Bytes>, mut bytes: Bytes) {
    while bytes.len() > CHUNK {
        chunks.push(bytes.split_to(CHUNK));
    }
    if !bytes.is_empty() {
        chunks.push(bytes);
    }
}

/// Puts the chunks of a message, `size` bytes in all, together again.
pub fn decode<T: Envelope>(chunks: Vec<Bytes>, size: usize) -> Result<T, WireError> {
    let mut whole = match <[Bytes; 1]>::try_from(chunks) {
        Ok([only]) => only,
        Err(chunks) => {
            let mut joined = BytesMut::with_capacity(size);
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
