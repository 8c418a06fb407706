//! One of the two machines between which files go: this one, or a far host.

use std::path::{Path, PathBuf};

use cellferry_agent::files;
use cellferry_wire::protocol::{FilePath, Listing};
use tokio::task::spawn_blocking;

use super::remote::Remote;
use crate::paths::{Place, normal};
use crate::session::TargetName;

/// A target, with what paths are relative to there.
#[derive(Clone, Debug)]
pub struct End {
    /// The target.
    pub target: TargetName,
    /// The working directory.
    pub base: String,
    /// The user's home directory.
    pub home: String,
    /// Its agent, if it is on another machine.
    pub remote: Option<Remote>,
}

impl End {
    /// Where a place is, without links and dots being looked at.
    pub fn absolute(&self, place: &Place) -> PathBuf {
        let directory = place.directory(&self.base);
        normal(&match directory.strip_prefix('~') {
            Some(below) => Path::new(&self.home).join(below.trim_start_matches('/')),
            None => PathBuf::from(directory),
        })
    }

    /// Whether a place is in the very same directory on both.
    pub async fn shares(&self, other: &Self, place: &Place) -> bool {
        if self.remote.is_some() || other.remote.is_some() {
            return false;
        }
        let (here, there) = (self.absolute(place), other.absolute(place));
        let real = |path: PathBuf| path.canonicalize().ok();
        blocking(move || here == there || real(here).is_some_and(|here| Some(here) == real(there)))
            .await
            .unwrap_or(false)
    }

    /// What there is, with its content.
    pub async fn list(&self, place: &Place) -> Result<Listing, String> {
        let pattern = self.file(place, &place.within);
        match &self.remote {
            Some(remote) => remote.list(pattern).await,
            None => blocking(move || files::list(&pattern)).await?,
        }
    }

    /// Whether there is anything, on this machine.
    pub async fn exists(&self, place: &Place) -> Result<bool, String> {
        let pattern = self.file(place, &place.within);
        blocking(move || files::exists(&pattern)).await?
    }

    /// Makes a directory, or changes its permissions.
    pub async fn make_directory(&self, path: FilePath, mode: u32) -> Result<(), String> {
        match &self.remote {
            Some(remote) => remote.make_directory(path, mode).await,
            None => blocking(move || files::make_directory(&path, mode)).await?,
        }
    }

    /// Makes a symbolic link.
    pub async fn make_link(&self, path: FilePath, target: String) -> Result<(), String> {
        match &self.remote {
            Some(remote) => remote.make_link(path, target).await,
            None => blocking(move || files::make_link(&path, &target)).await?,
        }
    }

    /// Copies a file within this machine or that.
    pub async fn copy(&self, from: FilePath, to: FilePath, mode: u32) -> Result<(), String> {
        match &self.remote {
            Some(remote) => remote.copy(from, to, mode).await,
            None => blocking(move || files::copy_file(&from, &to, mode)).await?,
        }
    }

    /// Sends a file to the other one.
    pub async fn send(
        &self,
        from: FilePath,
        other: &Self,
        to: FilePath,
        mode: u32,
        size: u64,
    ) -> Result<(), String> {
        match (&self.remote, &other.remote) {
            (None, None) => self.copy(from, to, mode).await,
            (None, Some(remote)) => {
                let from = files::resolve(&from)?.whole();
                remote.put(&from, to, mode, size).await
            }
            (Some(remote), None) => {
                let to = files::resolve(&to)?.whole();
                remote.get(from, to, mode, size).await
            }
            (Some(_), Some(_)) => Err("there is no way between the two machines".to_owned()),
        }
    }

    /// A file of a place, by its path in there.
    pub fn file(&self, place: &Place, within: &str) -> FilePath {
        FilePath {
            base: Some(place.directory(&self.base)),
            // `~` at its start is the name of a directory.
            path: format!("./{within}"),
        }
    }
}

/// Does what may wait for a disk on a thread for that.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, String> {
    spawn_blocking(work)
        .await
        .map_err(|error| error.to_string())
}
