//! Values as they are sent: pieces of their files, mapped into memory. Nothing is copied, and what must be kept until the other
//! side has it takes no memory of its own.

use std::fs::File;
use std::io;
use std::num::NonZeroUsize;
use std::os::fd::AsFd;
use std::ptr::NonNull;
use std::sync::Arc;

use bytes::Bytes;
use cellferry_wire::protocol::{PIECE, SLICE};
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};

/// The file of a value in the agent's own directory, which was written once and never gets shorter.
#[derive(Clone, Debug)]
pub struct Mapped {
    file: Arc<File>,
    size: u64,
}

impl Mapped {
    /// All of a file.
    ///
    /// # Errors
    /// If it cannot be looked at.
    pub fn new(file: File) -> io::Result<Self> {
        let size = file.metadata()?.len();
        Ok(Self {
            file: Arc::new(file),
            size,
        })
    }

    /// Its size in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The [`PIECE`] that begins at `offset`, a multiple of that, in [`SLICE`]s. It is mapped as long as any of them is held.
    ///
    /// # Errors
    /// If the system cannot map it.
    pub fn piece(&self, offset: u64) -> io::Result<Vec<Bytes>> {
        let left = usize::try_from(self.size.saturating_sub(offset)).unwrap_or(PIECE);
        let Some(length) = NonZeroUsize::new(left.min(PIECE)) else {
            return Ok(Vec::new());
        };
        let mut piece = Bytes::from_owner(Mapping::new(&self.file, offset, length)?);
        let mut slices = Vec::with_capacity(PIECE / SLICE);
        while piece.len() > SLICE {
            slices.push(piece.split_to(SLICE));
        }
        slices.push(piece);
        Ok(slices)
    }
}

/// A part of a file in memory.
struct Mapping {
    start: NonNull<std::ffi::c_void>,
    length: NonZeroUsize,
}

impl Mapping {
    fn new(file: &File, offset: u64, length: NonZeroUsize) -> io::Result<Self> {
        let offset = offset.try_into().map_err(io::Error::other)?;
        // SAFETY: the system chooses the place, so nothing else is mapped over.
        let start = unsafe {
            mmap(
                None,
                length,
                ProtFlags::PROT_READ,
                MapFlags::MAP_SHARED,
                file.as_fd(),
                offset,
            )
        }?;
        Ok(Self { start, length })
    }
}

impl AsRef<[u8]> for Mapping {
    fn as_ref(&self) -> &[u8] {
        // SAFETY: it is mapped, readable, until this is dropped. Nobody writes to a value's file once it is sent, and it is
        // removed, not made shorter.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr().cast(), self.length.get()) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: it was mapped with this length, and nobody has a reference to it any more.
        if let Err(error) = unsafe { munmap(self.start, self.length.get()) } {
            tracing::warn!("cannot unmap a value: {error}");
        }
    }
}

// SAFETY: memory that is only read may be read, and unmapped, by any thread.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn a_file_comes_in_slices_even_when_it_is_removed() {
        for size in [
            0,
            1,
            SLICE,
            SLICE + 1,
            PIECE,
            PIECE + 1,
            2 * PIECE + 3 * SLICE + 5,
        ] {
            let content: Vec<u8> = (0..size).map(|i| (i % 251) as u8).collect();
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("1");
            File::create(&path).unwrap().write_all(&content).unwrap();
            let mapped = Mapped::new(File::open(&path).unwrap()).unwrap();
            std::fs::remove_file(path).unwrap();
            assert_eq!(mapped.size(), size as u64);
            let mut slices = Vec::new();
            for offset in (0..size).step_by(PIECE) {
                slices.extend(mapped.piece(offset as u64).unwrap());
            }
            drop(mapped);
            assert!(
                slices
                    .iter()
                    .all(|slice| (1..=SLICE).contains(&slice.len()))
            );
            assert!(slices.concat() == content);
        }
    }
}
