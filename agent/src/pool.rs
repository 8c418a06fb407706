//! Buffers used again: fresh memory costs a page fault for each 4 kB, several times what copying into it does.

use std::io::{self, Read};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use cellferry_wire::protocol::PIECE;

/// How many buffers wait to be used again.
const KEPT: usize = 8;

/// Buffers of one piece each. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct Pool(Arc<Mutex<Vec<Box<[u8]>>>>);

/// A buffer in use; dropped, it goes back.
struct Lent {
    buffer: Box<[u8]>,
    filled: usize,
    pool: Pool,
}

impl Pool {
    /// The next piece of what `from` gives, shorter only at its end.
    pub fn read(&self, from: &mut impl Read) -> io::Result<Bytes> {
        let mut lent = self.lend();
        while lent.filled < lent.buffer.len() {
            match from.read(&mut lent.buffer[lent.filled..]) {
                Ok(0) => break,
                Ok(read) => lent.filled += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(Bytes::from_owner(lent))
    }

    fn lend(&self) -> Lent {
        let kept = self.0.lock().unwrap_or_else(PoisonError::into_inner).pop();
        Lent {
            buffer: kept.unwrap_or_else(|| vec![0; PIECE].into_boxed_slice()),
            filled: 0,
            pool: self.clone(),
        }
    }
}

impl AsRef<[u8]> for Lent {
    fn as_ref(&self) -> &[u8] {
        &self.buffer[..self.filled]
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        let mut kept = self.pool.0.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() < KEPT {
            kept.push(std::mem::take(&mut self.buffer));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_is_used_again_once_nobody_reads_it() {
        let pool = Pool::default();
        let first = pool.read(&mut &[1; 10][..]).unwrap();
        let second = pool.read(&mut &[2; 3][..]).unwrap();
        assert_eq!((&first[..], &second[..]), (&[1; 10][..], &[2; 3][..]));
        let place = first.as_ptr();
        drop(first);
        let third = pool.read(&mut &[3; 5][..]).unwrap();
        assert_eq!((third.as_ptr(), &third[..]), (place, &[3; 5][..]));
    }
}
