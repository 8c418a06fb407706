//! Files of values that come from far hosts: written to this machine's shared memory while they arrive.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// What is on its way. Shared by the links of all hosts.
#[derive(Debug, Default)]
pub struct Arrivals {
    files: Mutex<HashMap<u64, Arriving>>,
}

#[derive(Debug)]
struct Arriving {
    path: PathBuf,
    file: File,
    written: u64,
}

impl Arrivals {
    /// Makes the file of a transfer that will arrive.
    pub fn expect(&self, transfer: u64, path: PathBuf) -> Result<(), String> {
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path);
        let file = file.map_err(|error| format!("cannot write {}: {error}", path.display()))?;
        let arriving = Arriving {
            path,
            file,
            written: 0,
        };
        self.lock().insert(transfer, arriving);
        Ok(())
    }

    /// Writes the next piece. What nobody expects any more is dropped.
    pub fn write(&self, transfer: u64, bytes: &[u8]) -> Result<(), String> {
        let mut files = self.lock();
        let Some(arriving) = files.get_mut(&transfer) else {
            return Ok(());
        };
        if let Err(error) = arriving.file.write_all(bytes) {
            let reason = format!("cannot write {}: {error}", arriving.path.display());
            drop(files);
            self.forget(transfer);
            return Err(reason);
        }
        arriving.written += bytes.len() as u64;
        Ok(())
    }

    /// All has come: checks that it is all.
    pub fn whole(&self, transfer: u64, size: u64) -> Result<(), String> {
        match self.lock().remove(&transfer) {
            Some(arriving) if arriving.written != size => {
                let _ = std::fs::remove_file(&arriving.path);
                Err(format!("{} of {size} bytes arrived", arriving.written))
            }
            _ => Ok(()),
        }
    }

    /// Removes what has come of a transfer that is not wanted any more.
    pub fn forget(&self, transfer: u64) {
        if let Some(arriving) = self.lock().remove(&transfer) {
            let _ = std::fs::remove_file(&arriving.path);
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u64, Arriving>> {
        self.files.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
