//! Where a conversation's agent is found on its machine: a socket in a directory that is the user's alone.
//!
//! Who may open that directory may speak to the agent, and the system lets nobody but the user do so. The conversation's id,
//! which is in the directory's name and in arguments, is no secret and opens nothing.

use std::fs::{DirBuilder, File, TryLockError};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use nix::unistd::geteuid;

/// The socket in a conversation's directory.
const SOCKET: &str = "link";

/// The longest base: with our names, a worker's number and its socket below it, 107 bytes are the system's limit.
const LONGEST: usize = 36;

/// A conversation's directory that is ours to use, until the lock is dropped.
///
/// The lock also keeps systemd-tmpfiles, which removes what is old, away from all that is in the directory.
#[derive(Debug)]
pub struct Claim {
    /// The directory.
    pub path: PathBuf,
    /// Holds it, and so does every process that inherits it.
    pub lock: File,
}

/// What came of asking for a conversation's directory.
#[derive(Debug)]
pub enum Claimed {
    /// It is ours.
    Ours(Claim),
    /// Another process is about to serve the conversation, or to end.
    Busy,
}

/// Directories of this machine, not of a session on it, that users may share. Not `$XDG_RUNTIME_DIR`: it goes
/// with the user's last login.
fn bases() -> Vec<PathBuf> {
    let temporary = std::env::var_os("TMPDIR").map(PathBuf::from);
    let temporary = temporary.filter(|path| path.is_absolute());
    let fixed = ["/tmp", "/var/tmp", "/dev/shm"].map(PathBuf::from);
    // Another login may have another $TMPDIR, so it comes last.
    let mut bases: Vec<PathBuf> = fixed.into_iter().chain(temporary).collect();
    bases.retain(|base| base.as_os_str().len() <= LONGEST);
    bases
}

/// Connects to the agent that serves a conversation, if there is one.
pub fn find(conversation: &str) -> Option<UnixStream> {
    bases()
        .iter()
        .filter(|base| is_safe_base(base))
        .map(|base| own_directory(base))
        .filter(|own| is_private(own))
        .find_map(|own| UnixStream::connect(own.join(conversation).join(SOCKET)).ok())
        .filter(is_own)
}

/// Claims the directory of a conversation that no agent serves. What another agent has left in it is removed.
///
/// The error names each place that was tried, and why it does not serve.
pub fn claim(conversation: &str) -> Result<Claimed, String> {
    let mut failures = Vec::new();
    for base in bases() {
        match claim_in(&base, conversation) {
            Ok(claimed) => return Ok(claimed),
            Err(error) => failures.push(format!("`{}`: {error}", base.display())),
        }
    }
    Err(failures.join("; "))
}

fn claim_in(base: &Path, conversation: &str) -> io::Result<Claimed> {
    if !is_safe_base(base) {
        return Err(io::Error::other(
            "others could replace what is in it, or it is no directory",
        ));
    }
    let own = own_directory(base);
    let path = own.join(conversation);
    make(&own)?;
    if !is_private(&own) {
        return Err(io::Error::other(format!(
            "`{}` is not a directory of yours that only you can use",
            own.display()
        )));
    }
    match make(&path) {
        Ok(()) => {}
        // The last agent but ours has just gone, and the directory of all with it.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Claimed::Busy),
        Err(error) => return Err(error),
    }
    let lock = File::open(&path)?;
    match lock.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Ok(Claimed::Busy),
        Err(TryLockError::Error(error)) => return Err(error),
    }
    // Another may have held the lock and removed the directory before we got it.
    let (ours, there) = (lock.metadata()?, std::fs::symlink_metadata(&path));
    if !there.is_ok_and(|there| (there.dev(), there.ino()) == (ours.dev(), ours.ino())) {
        return Ok(Claimed::Busy);
    }
    for entry in std::fs::read_dir(&path)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            std::fs::remove_dir_all(entry.path())?;
        } else {
            std::fs::remove_file(entry.path())?;
        }
    }
    Ok(Claimed::Ours(Claim { path, lock }))
}

impl Claim {
    /// Listens on the conversation's socket.
    pub fn listen(&self) -> io::Result<UnixListener> {
        UnixListener::bind(self.path.join(SOCKET))
    }
}

fn own_directory(base: &Path) -> PathBuf {
    base.join(format!("cellferry-{}", geteuid()))
}

fn make(path: &Path) -> io::Result<()> {
    match DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        made => made,
    }
}

/// Whether nobody but us can use it, and it is no link to somewhere else.
fn is_private(path: &Path) -> bool {
    std::fs::symlink_metadata(path).is_ok_and(|found| {
        found.is_dir() && found.uid() == geteuid().as_raw() && found.mode() & 0o077 == 0
    })
}

/// How the system shows owners that have no number in our user namespace: in a container, root outside of it.
const UNKNOWN_USER: u32 = 65534;

/// Whether nobody but us and the system can replace what we make there.
fn is_safe_base(base: &Path) -> bool {
    std::fs::metadata(base).is_ok_and(|found| {
        let (own, others) = (geteuid().as_raw(), found.mode() & 0o022 != 0);
        let sticky = found.mode() & 0o1000 != 0;
        found.is_dir() && [0, own, UNKNOWN_USER].contains(&found.uid()) && (!others || sticky)
    })
}

/// Whether the other side of a socket is a process of ours.
fn is_own(stream: &UnixStream) -> bool {
    getsockopt(stream, PeerCredentials).is_ok_and(|peer| peer.uid() == geteuid().as_raw())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn set_mode(path: &Path, mode: u32) {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    }

    fn base() -> tempfile::TempDir {
        let base = tempfile::tempdir().unwrap();
        set_mode(base.path(), 0o1777);
        base
    }

    fn refused(base: &Path) -> bool {
        claim_in(base, "c").is_err()
    }

    #[test]
    fn a_directory_is_claimed_once_and_what_was_in_it_goes() {
        let base = base();
        let left = own_directory(base.path()).join("c/1/s-1");
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&left)
            .unwrap();
        let Claimed::Ours(claim) = claim_in(base.path(), "c").unwrap() else {
            panic!("busy")
        };
        assert!(!left.exists());
        assert!(matches!(claim_in(base.path(), "c"), Ok(Claimed::Busy)));
        drop(claim);
        assert!(matches!(claim_in(base.path(), "c"), Ok(Claimed::Ours(_))));
    }

    #[test]
    fn a_directory_that_others_can_open_is_refused() {
        let base = base();
        make(&own_directory(base.path())).unwrap();
        set_mode(&own_directory(base.path()), 0o755);
        assert!(refused(base.path()));
    }

    #[test]
    fn a_directory_of_another_user_is_refused() {
        if !geteuid().is_root() {
            // Only root can make one.
            return;
        }
        let base = base();
        make(&own_directory(base.path())).unwrap();
        std::os::unix::fs::chown(own_directory(base.path()), Some(65534), None).unwrap();
        assert!(refused(base.path()));
    }

    #[test]
    fn a_link_is_refused_even_to_a_directory_of_ours() {
        let base = base();
        let elsewhere = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink(elsewhere.path(), own_directory(base.path())).unwrap();
        assert!(refused(base.path()));
        assert_eq!(std::fs::read_dir(elsewhere.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_base_where_others_can_rename_is_refused() {
        let base = base();
        set_mode(base.path(), 0o777);
        assert!(refused(base.path()));
    }
}
