//! Compression of chunks, for links that are slower than it: zstd at level 1, each chunk by itself.

use bytes::Bytes;
use zstd::bulk::{Compressor, Decompressor};

use crate::WireError;
use crate::frame::CHUNK;

/// The fastest of the levels that zstd recommends.
const LEVEL: i32 = 1;

/// A chunk smaller than this is never compressed.
pub const SQUEEZE_MIN: usize = 16 << 10;

/// What a compressed chunk may have of its size, in eighths; otherwise it goes as it is.
const WORTH_EIGHTHS: usize = 7;

/// The most chunks that are let go without another try: 4 MB.
const LONGEST_SKIP: u32 = 64;

/// Whether the chunks of a stream are worth compressing: after each failure, twice as many go untried.
#[derive(Debug, Default)]
pub struct Trial {
    skip: u32,
    next_skip: u32,
}

impl Trial {
    /// Whether the next chunk is to be tried.
    pub fn due(&mut self) -> bool {
        if self.skip == 0 {
            return true;
        }
        self.skip -= 1;
        false
    }

    /// How the try went.
    pub fn result(&mut self, worth: bool) {
        if worth {
            *self = Self::default();
        } else {
            self.next_skip = (2 * self.next_skip).clamp(1, LONGEST_SKIP);
            self.skip = self.next_skip;
        }
    }
}

/// Compresses chunks; made when first used.
#[derive(Default)]
pub struct Squeezer(Option<Compressor<'static>>);

impl Squeezer {
    /// The chunk compressed, if that is worth it.
    pub fn squeeze(&mut self, chunk: &Bytes) -> Option<Bytes> {
        let compressor = match &mut self.0 {
            Some(compressor) => compressor,
            none => none.insert(Compressor::new(LEVEL).ok()?),
        };
        // Where the result does not fit, zstd gives up: it was not worth it.
        let mut squeezed = Vec::with_capacity(chunk.len() * WORTH_EIGHTHS / 8);
        compressor.compress_to_buffer(chunk, &mut squeezed).ok()?;
        Some(squeezed.into())
    }
}

/// Takes compressed chunks apart; made when first used.
#[derive(Default)]
pub struct Unsqueezer(Option<Decompressor<'static>>);

impl Unsqueezer {
    /// The chunk as it was; an error if it is no such thing, did not get
    /// smaller, or is more than [`CHUNK`] bytes.
    pub fn unsqueeze(&mut self, squeezed: &Bytes) -> Result<Bytes, WireError> {
        let decompressor = match &mut self.0 {
            Some(decompressor) => decompressor,
            none => none.insert(Decompressor::new()?),
        };
        let mut chunk = Vec::with_capacity(CHUNK);
        decompressor
            .decompress_to_buffer(squeezed, &mut chunk)
            .map_err(|_| {
                WireError::Malformed("frame: not compressed data of at most a chunk's size")
            })?;
        // Else small frames could stand for buffers of a chunk's size each.
        if chunk.len() <= squeezed.len() || chunk.len() > CHUNK {
            return Err(WireError::Malformed("frame: compressed in vain"));
        }
        chunk.shrink_to_fit();
        Ok(chunk.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bytes that do not compress.
    fn noise(length: usize) -> Bytes {
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let mut bytes = Vec::with_capacity(length + 8);
        while bytes.len() < length {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            bytes.extend_from_slice(&state.to_le_bytes());
        }
        bytes.truncate(length);
        bytes.into()
    }

    #[test]
    fn a_chunk_comes_back_as_it_was() {
        let (mut squeezer, mut unsqueezer) = (Squeezer::default(), Unsqueezer::default());
        for length in [1, SQUEEZE_MIN, CHUNK - 1, CHUNK] {
            let text: Bytes = b"epoch 3, loss 0.125\n".repeat(CHUNK / 20 + 1)[..length]
                .to_vec()
                .into();
            let Some(squeezed) = squeezer.squeeze(&text) else {
                assert_eq!(length, 1);
                continue;
            };
            assert!(squeezed.len() < length / 8);
            assert_eq!(unsqueezer.unsqueeze(&squeezed).unwrap(), text);
        }
    }

    #[test]
    fn noise_is_left_as_it_is_and_tried_ever_more_rarely() {
        let mut squeezer = Squeezer::default();
        assert!(squeezer.squeeze(&noise(CHUNK)).is_none());
        let mut trial = Trial::default();
        let tries = (0..1000)
            .filter(|_| {
                let due = trial.due();
                if due {
                    trial.result(false);
                }
                due
            })
            .count();
        assert!((10..30).contains(&tries), "{tries} tries");
        while !trial.due() {}
        trial.result(true);
        assert!(trial.due() && trial.due());
    }

    #[test]
    fn a_bomb_is_refused() {
        let bomb: Bytes = zstd::bulk::compress(&vec![0; 256 << 20], 19)
            .unwrap()
            .into();
        assert!(bomb.len() <= CHUNK, "{} bytes", bomb.len());
        let mut unsqueezer = Unsqueezer::default();
        assert!(unsqueezer.unsqueeze(&bomb).is_err());
        let one_more: Bytes = zstd::bulk::compress(&[0; CHUNK + 1], 1).unwrap().into();
        assert!(unsqueezer.unsqueeze(&one_more).is_err());
        assert!(unsqueezer.unsqueeze(&noise(1000)).is_err());
        assert!(
            unsqueezer
                .unsqueeze(&zstd::bulk::compress(&[], 1).unwrap().into())
                .is_err()
        );
        // And it still works.
        let whole: Bytes = zstd::bulk::compress(&[0; CHUNK], 1).unwrap().into();
        assert_eq!(unsqueezer.unsqueeze(&whole).unwrap().len(), CHUNK);
    }
}
