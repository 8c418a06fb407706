//! What this machine knows of allocations that outlive their kernel, so that the next kernel of the same notebook can take
//! them over: one file each. A kernel holds the lock of those that it uses; it has gone when nobody does.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// An allocation, as it is found again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Stands for all that the allocation was made from.
    pub fingerprint: String,
    /// The job's number.
    pub job: String,
    /// Its folder, on the cluster.
    pub folder: String,
}

/// A file that says where an allocation is. It stays when this is dropped, for the next kernel.
#[derive(Debug)]
pub struct Kept {
    path: PathBuf,
    _lock: File,
}

/// The allocations of one notebook.
#[derive(Clone, Debug)]
pub struct Shelf {
    folder: PathBuf,
}

impl Shelf {
    /// Of this notebook, in the user's directory for state.
    pub fn of(notebook: &str) -> Option<Self> {
        use etcetera::BaseStrategy;
        let strategy = etcetera::choose_base_strategy().ok()?;
        let state = strategy.state_dir().unwrap_or_else(|| strategy.cache_dir());
        let name = blake3::hash(notebook.as_bytes()).to_hex();
        Some(Self {
            folder: state.join("cellferry/allocations").join(&name[..32]),
        })
    }

    /// Notes an allocation.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn put(&self, record: &Record) -> io::Result<Kept> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&self.folder)?;
        let path = self
            .folder
            .join(format!("{}.json", uuid::Uuid::new_v4().simple()));
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path)?;
        file.lock()?;
        file.write_all(&serde_json::to_vec(record)?)?;
        Ok(Kept { path, _lock: file })
    }

    /// Takes an allocation that nobody uses.
    pub fn take(&self, fingerprint: &str) -> Option<(Kept, Record)> {
        let entries = std::fs::read_dir(&self.folder).ok()?;
        entries.flatten().find_map(|entry| {
            let path = entry.path();
            let file = File::open(&path).ok()?;
            file.try_lock().ok()?;
            // Whoever had the lock may have removed it.
            let record: Record = serde_json::from_slice(&std::fs::read(&path).ok()?).ok()?;
            (record.fingerprint == fingerprint).then_some((Kept { path, _lock: file }, record))
        })
    }
}

impl Kept {
    /// The allocation is over.
    pub fn forget(self) {
        if let Err(error) = std::fs::remove_file(&self.path) {
            tracing::info!("{}: {error}", self.path.display());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_allocation_is_taken_over_once_its_kernel_has_gone() {
        let folder = tempfile::tempdir().unwrap();
        let shelf = Shelf {
            folder: folder.path().join("a"),
        };
        let record = Record {
            fingerprint: "f".to_owned(),
            job: "17".to_owned(),
            folder: "/jobs/x".to_owned(),
        };
        assert!(shelf.take("f").is_none());
        let kept = shelf.put(&record).unwrap();
        assert!(shelf.take("f").is_none());
        drop(kept);
        assert!(shelf.take("g").is_none());
        let (kept, found) = shelf.take("f").unwrap();
        assert_eq!(found, record);
        assert!(shelf.take("f").is_none());
        kept.forget();
        assert!(shelf.take("f").is_none());
    }
}
