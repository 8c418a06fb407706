//! A private directory for connection files and sockets, gone when its owner is.
//!
//! Where a whole job is killed at once, nobody is left to remove it. So each owner holds its directory locked, and whoever
//! makes or removes one removes those of this user that nobody holds any more.

use std::fs::File;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::AgentError;

/// Paths of Unix sockets are limited to 107 bytes; this leaves room for the file's name.
const LONGEST: usize = 60;

/// Shared memory on Linux.
const SHARED_MEMORY: &str = "/dev/shm";

/// Shared memory with so much room, in bytes, is used for values whatever the disk has.
const ENOUGH: u64 = 1 << 30;

/// The room in a file system, in bytes.
fn free(path: &Path) -> u64 {
    // Its numbers are as wide as the machine's words.
    #[allow(clippy::useless_conversion)]
    nix::sys::statvfs::statvfs(path).map_or(0, |status| {
        u64::from(status.blocks_available()).saturating_mul(u64::from(status.fragment_size()))
    })
}

/// The names of directories that their owners hold locked begin so.
const LOCKED: &str = "cellferry-l";

/// The names of directories that are not locked yet.
const NEW: &str = "cellferry-n";

/// How long a directory may be one of those.
const BEING_MADE: Duration = Duration::from_secs(60);

/// A directory of mode 0700 that is removed on drop.
#[derive(Debug)]
pub struct RunDir {
    path: PathBuf,
    /// Held for as long as the directory is used.
    _lock: Option<File>,
}

impl RunDir {
    /// Makes one: in `$XDG_RUNTIME_DIR` if that is usable and short, else in the temporary directory.
    pub fn make() -> Result<Self, AgentError> {
        let runtime = std::env::var_os("XDG_RUNTIME_DIR")
            .map(PathBuf::from)
            .filter(|path| path.is_absolute());
        let candidates = [
            runtime,
            Some(std::env::temp_dir()),
            Some(PathBuf::from("/tmp")),
        ];
        let mut failure = None;
        for base in candidates
            .into_iter()
            .flatten()
            .filter(|base| base.as_os_str().len() <= LONGEST)
        {
            match Self::make_in(&base) {
                Ok(made) => return Ok(made),
                Err(error) => failure = Some(error),
            }
        }
        Err(failure.unwrap_or_else(|| AgentError::RunDir {
            path: "/tmp".to_owned(),
            source: std::io::Error::from(std::io::ErrorKind::NotFound),
        }))
    }

    /// Makes one for values: in shared memory if there is some, else in the temporary directory.
    pub fn for_values() -> Result<Self, AgentError> {
        let memory = Path::new(SHARED_MEMORY);
        let temporary = std::env::temp_dir();
        // Containers often have a few megabytes only.
        let little = free(memory) < ENOUGH && free(memory) < free(&temporary);
        let (first, second) = if little {
            (&*temporary, memory)
        } else {
            (memory, &*temporary)
        };
        Self::make_in(first).or_else(|_| Self::make_in(second))
    }

    /// Makes one inside `base`.
    pub fn make_in(base: &Path) -> Result<Self, AgentError> {
        let name = uuid::Uuid::new_v4().simple().to_string();
        let new = base.join(format!("{NEW}{}", &name[..11]));
        let path = base.join(format!("{LOCKED}{}", &name[..11]));
        let made = std::fs::DirBuilder::new()
            .mode(0o700)
            .create(&new)
            .and_then(|()| {
                // The umask may have taken bits away, but never ours.
                std::fs::set_permissions(&new, std::fs::Permissions::from_mode(0o700))
            })
            .and_then(|()| {
                let lock = File::open(&new)?;
                lock.lock()?;
                std::fs::rename(&new, &path)?;
                Ok(lock)
            });
        match made {
            Ok(lock) => {
                remove_forsaken(base);
                Ok(Self {
                    path,
                    _lock: Some(lock),
                })
            }
            Err(source) => Err(AgentError::RunDir {
                path: base.display().to_string(),
                source,
            }),
        }
    }

    /// One that has been made, of mode 0700, in a directory that all agents of this user share.
    pub fn given(path: PathBuf) -> Self {
        Self { path, _lock: None }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for RunDir {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.path)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            tracing::warn!("cannot remove {}: {error}", self.path.display());
        }
        remove_common(&self.path);
        if let Some(base) = self.path.parent().filter(|_| self._lock.is_some()) {
            remove_forsaken(base);
        }
    }
}

/// Removes the directories of this user's in `base` whose owners are gone.
fn remove_forsaken(base: &Path) {
    for entry in std::fs::read_dir(base).into_iter().flatten().flatten() {
        let (path, name) = (entry.path(), entry.file_name());
        let begins = |prefix: &str| name.as_encoded_bytes().starts_with(prefix.as_bytes());
        let is_forsaken = || -> std::io::Result<bool> {
            let metadata = std::fs::symlink_metadata(&path)?;
            let ours = metadata.is_dir() && metadata.uid() == nix::unistd::geteuid().as_raw();
            let age = metadata.modified()?.elapsed().unwrap_or_default();
            if !ours || begins(NEW) && age < BEING_MADE {
                return Ok(false);
            }
            Ok(File::open(&path)?.try_lock().is_ok())
        };
        if (begins(LOCKED) || begins(NEW)) && is_forsaken().unwrap_or(false) {
            let _ = std::fs::remove_dir_all(&path);
        }
    }
}

/// Removes the directory that all agents of a user share, if `path` was the last in it.
pub fn remove_common(path: &Path) {
    let ours = |parent: &&Path| {
        let name = parent.file_name().unwrap_or_default();
        name.as_encoded_bytes().starts_with(b"cellferry-")
    };
    if let Some(parent) = path.parent().filter(ours) {
        // Others may be in it.
        let _ = std::fs::remove_dir(parent);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directories_whose_owners_are_gone_are_removed_and_no_others() {
        let base = tempfile::tempdir().unwrap();
        let old = std::time::SystemTime::now() - 2 * BEING_MADE;
        let aged = |path: &Path| File::open(path).unwrap().set_modified(old).unwrap();
        let used = RunDir::make_in(base.path()).unwrap();
        let forsaken = base.path().join(format!("{LOCKED}0123456789a"));
        let another = base.path().join("cellferry-0123456789ab");
        for path in [&forsaken, &another] {
            std::fs::create_dir(path).unwrap();
            std::fs::write(path.join("value"), "x").unwrap();
            aged(path);
        }
        let new = base.path().join(format!("{NEW}123456789ab"));
        std::fs::create_dir(&new).unwrap();
        aged(used.path());
        let other = RunDir::make_in(base.path()).unwrap();
        assert!(!forsaken.exists());
        assert!(used.path().exists() && another.exists() && new.exists());
        // What is left since then goes with the next one.
        std::fs::create_dir(&forsaken).unwrap();
        drop(other);
        assert!(!forsaken.exists() && used.path().exists());
    }
}
