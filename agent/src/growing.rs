//! A file that is not whole yet, and is gone if it never will be.

use std::fs::{File, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};
use nix::sys::statvfs::fstatvfs;

/// A file that is being written. Dropped before it is whole, it is removed. All of this may block.
#[derive(Debug)]
pub struct Growing {
    file: File,
    /// Where it is now.
    now: PathBuf,
    /// Its name once it is whole.
    path: PathBuf,
    left: u64,
    whole: bool,
}

impl Growing {
    /// A value of `size` bytes in the agent's own directory.
    pub fn segment(path: PathBuf, size: u64) -> Result<Self, String> {
        let growing = Self::create(path.clone(), path)?;
        growing.with_room(size, set_size)
    }

    /// A file of the user's, with the directories that it needs. It replaces one of its name only when it is whole.
    pub fn file(path: PathBuf, mode: u32, size: u64) -> Result<Self, String> {
        let now = beside(&path)?;
        if let Some(parent) = path.parent() {
            make_directories(parent)?;
        }
        let growing = Self::create(now, path)?.with_room(size, reserve)?;
        growing
            .file
            .set_permissions(Permissions::from_mode(mode & 0o777))
            .map_err(|error| growing.cannot("set the permissions of", &error))?;
        Ok(growing)
    }

    fn create(now: PathBuf, path: PathBuf) -> Result<Self, String> {
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&now)
            .map_err(|error| format!("cannot make `{}`: {error}", path.display()))?;
        Ok(Self {
            file,
            now,
            path,
            left: 0,
            whole: false,
        })
    }

    fn with_room(
        mut self,
        size: u64,
        make: impl FnOnce(&File, u64) -> io::Result<()>,
    ) -> Result<Self, String> {
        make(&self.file, size)
            .map_err(|error| self.cannot(&format!("make room for the {size} bytes of"), &error))?;
        self.left = size;
        Ok(self)
    }

    /// How many bytes are missing.
    pub fn left(&self) -> u64 {
        self.left
    }

    /// Adds bytes.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), String> {
        let left = self.left.checked_sub(bytes.len() as u64);
        self.left = left
            .ok_or_else(|| format!("more came of `{}` than was announced", self.path.display()))?;
        self.file
            .write_all(bytes)
            .map_err(|error| self.cannot("write", &error))
    }

    /// Adds all that is missing from another file; where the file system can share the blocks, nothing is copied.
    pub fn copy(&mut self, from: &mut File) -> Result<(), String> {
        let copied = io::copy(&mut from.take(self.left), &mut self.file)
            .map_err(|error| self.cannot("write", &error))?;
        self.left -= copied;
        Ok(())
    }

    /// It is whole, and gets its name.
    pub fn finish(mut self) -> Result<(), String> {
        if self.left > 0 {
            return Err(format!(
                "`{}` came without its last {} bytes",
                self.path.display(),
                self.left
            ));
        }
        if self.now != self.path {
            std::fs::rename(&self.now, &self.path).map_err(|error| self.cannot("make", &error))?;
        }
        self.whole = true;
        Ok(())
    }

    fn cannot(&self, what: &str, error: &io::Error) -> String {
        format!("cannot {what} `{}`: {error}", self.path.display())
    }
}

impl Drop for Growing {
    fn drop(&mut self) {
        if !self.whole {
            remove(&self.now);
        }
    }
}

/// Removes a file; one that is gone already is no error.
pub fn remove(path: &Path) {
    if let Err(error) = std::fs::remove_file(path)
        && error.kind() != io::ErrorKind::NotFound
    {
        tracing::warn!("cannot remove {}: {error}", path.display());
    }
}

/// A name that nobody else uses, in the same directory.
pub fn beside(path: &Path) -> Result<PathBuf, String> {
    let name = path
        .file_name()
        .ok_or_else(|| format!("`{}` names no file", path.display()))?;
    let number = uuid::Uuid::new_v4().simple().to_string();
    // A name may be as long as the file system allows, so ours does not grow with it.
    let start: String = name.to_string_lossy().chars().take(32).collect();
    Ok(path.with_file_name(format!(".{start}.{}", &number[..12])))
}

/// Makes a directory and those above it, as the user's own `mkdir -p` would.
pub fn make_directories(path: &Path) -> Result<(), String> {
    std::fs::create_dir_all(path)
        .map_err(|error| format!("cannot make the directory `{}`: {error}", path.display()))
}

/// Gives the file of a value its size if there is room. That takes none of the room; but a limit on the size of files shows. To
/// reserve the room would take a quarter of a second for each gigabyte of shared memory, in which nothing could be written yet.
fn set_size(file: &File, size: u64) -> io::Result<()> {
    let system = fstatvfs(file)?;
    let free = system
        .blocks_available()
        .saturating_mul(system.fragment_size());
    if size > free {
        return Err(Errno::ENOSPC.into());
    }
    file.set_len(size)
}

/// Reserves the room that a file needs, so that a full disk shows before gigabytes have been sent.
fn reserve(file: &File, size: u64) -> io::Result<()> {
    let size = i64::try_from(size).map_err(|_| io::Error::from(io::ErrorKind::FileTooLarge))?;
    if size == 0 {
        return Ok(());
    }
    match fallocate(file, FallocateFlags::empty(), 0, size) {
        // Not every file system can; there a write will tell.
        Ok(()) | Err(Errno::EOPNOTSUPP | Errno::ENOSYS | Errno::EINTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}
