//! A message and its chunks: a typed header, then raw parts, cut into pieces of a frame's size.

use std::collections::VecDeque;

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
        if part.len() >= CHUNK {
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

/// Puts the chunks of a message together again. A part that came in one chunk is not copied.
pub fn decode<T: Envelope>(chunks: Vec<Bytes>) -> Result<T, WireError> {
    let mut rope = Rope::new(chunks);
    let length = rope
        .take(4)
        .ok_or(WireError::Malformed("message: no header"))?
        .get_u32();
    let head = rope
        .take(length as usize)
        .ok_or(WireError::Malformed("message: its header is cut"))?;
    let head: Head<T::Header> =
        ciborium::from_reader(&head[..]).map_err(|error| WireError::Header(error.to_string()))?;
    let mut parts = Vec::with_capacity(head.lengths.len().min(1024));
    for length in head.lengths {
        let length = usize::try_from(length)
            .map_err(|_| WireError::Malformed("message: a part is too long"))?;
        let part = rope
            .take(length)
            .ok_or(WireError::Malformed("message: a part is cut"))?;
        parts.push(part);
    }
    T::join(head.header, parts)
}

/// Bytes in several pieces.
struct Rope {
    pieces: VecDeque<Bytes>,
    left: usize,
}

impl Rope {
    fn new(pieces: Vec<Bytes>) -> Self {
        let left = pieces.iter().map(Bytes::len).sum();
        Self {
            pieces: pieces.into(),
            left,
        }
    }

    /// The next `length` bytes, if there are as many: a slice of a piece, or else a copy.
    fn take(&mut self, length: usize) -> Option<Bytes> {
        self.left = self.left.checked_sub(length)?;
        while self.pieces.pop_front_if(|piece| piece.is_empty()).is_some() {}
        if let Some(first) = self.pieces.front_mut()
            && first.len() >= length
        {
            return Some(first.split_to(length));
        }
        let mut joined = BytesMut::with_capacity(length);
        while joined.len() < length {
            let mut piece = self.pieces.pop_front()?;
            let wanted = piece.len().min(length - joined.len());
            joined.extend_from_slice(&piece.split_to(wanted));
            if !piece.is_empty() {
                self.pieces.push_front(piece);
            }
        }
        Some(joined.freeze())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::{FromAgent, PIECE, SLICE};

    fn data(length: usize) -> FromAgent {
        let bytes = (0..length).map(|i| (i % 251) as u8).collect::<Vec<u8>>();
        FromAgent::Data {
            transfer: 7,
            bytes: bytes.into(),
        }
    }

    #[test]
    fn a_message_is_what_it_was_however_long() {
        for length in [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, PIECE, PIECE + 1] {
            let chunks = encode(data(length)).unwrap();
            assert!(
                chunks
                    .iter()
                    .all(|chunk| (1..=CHUNK).contains(&chunk.len()))
            );
            assert_eq!(decode::<FromAgent>(chunks).unwrap(), data(length));
        }
    }

    #[test]
    fn a_slice_is_copied_on_neither_side() {
        let FromAgent::Data { bytes, .. } = data(SLICE) else {
            unreachable!()
        };
        let place = bytes.as_ptr();
        let sent = FromAgent::Data { transfer: 7, bytes };
        let Ok(FromAgent::Data { bytes, .. }) = decode(encode(sent).unwrap()) else {
            panic!("not what was sent");
        };
        assert_eq!(bytes.as_ptr(), place);
    }

    #[test]
    fn what_is_cut_is_refused() {
        let whole = encode(data(CHUNK + 5)).unwrap().concat();
        for length in [0, 3, 4, 10, CHUNK, whole.len() - 1] {
            let cut = vec![Bytes::new(), Bytes::copy_from_slice(&whole[..length])];
            assert!(decode::<FromAgent>(cut).is_err(), "{length}");
        }
    }
}
