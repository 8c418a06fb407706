//! The files of a far host, by way of its agent. What is given up half-way leaves nothing behind.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use cellferry_agent::{Growing, Pool};
use cellferry_wire::protocol::{FilePath, FromAgent, Listing, ToAgent};
use cellferry_wire::{Held, Sender};
use tokio::task::spawn_blocking;

use super::answers::{Answers, Question};
use crate::session::TargetName;

/// A far agent, asked about files.
#[derive(Clone, Debug)]
pub struct Remote {
    target: TargetName,
    sender: Sender<ToAgent>,
    answers: Arc<Answers>,
}

impl Remote {
    /// The agent that `sender` leads to, and whose answers come through `answers`.
    pub fn new(target: TargetName, sender: Sender<ToAgent>, answers: Arc<Answers>) -> Self {
        Self {
            target,
            sender,
            answers,
        }
    }

    /// Whose agent it is.
    pub fn target(&self) -> &TargetName {
        &self.target
    }

    /// What there is.
    pub async fn list(&self, pattern: FilePath) -> Result<Listing, String> {
        let mut question = self.answers.open();
        let request = question.number;
        self.sender.queue(ToAgent::List { request, pattern });
        match question.next().await {
            Some((FromAgent::Listing { outcome, .. }, _)) => outcome,
            _ => Err(self.lost()),
        }
    }

    /// Makes a directory, or changes its permissions.
    pub async fn make_directory(&self, path: FilePath, mode: u32) -> Result<(), String> {
        let make = |request| ToAgent::MakeDirectory {
            request,
            path,
            mode,
        };
        self.make(make).await
    }

    /// Makes a symbolic link.
    pub async fn make_link(&self, path: FilePath, target: String) -> Result<(), String> {
        let make = |request| ToAgent::MakeLink {
            request,
            path,
            target,
        };
        self.make(make).await
    }

    /// Copies a file there.
    pub async fn copy(&self, from: FilePath, to: FilePath, mode: u32) -> Result<(), String> {
        let make = |request| ToAgent::CopyFile {
            request,
            from,
            to,
            mode,
        };
        self.make(make).await
    }

    async fn make(&self, command: impl FnOnce(u64) -> ToAgent) -> Result<(), String> {
        let mut question = self.answers.open();
        self.sender.queue(command(question.number));
        match question.next().await {
            Some((FromAgent::Made { outcome, .. }, _)) => outcome,
            _ => Err(self.lost()),
        }
    }

    /// Sends a file of this machine there.
    pub async fn put(&self, from: &Path, to: FilePath, mode: u32, size: u64) -> Result<(), String> {
        let mut transfer = self.transfer();
        self.sender.queue(ToAgent::ReceiveFile {
            transfer: transfer.question.number,
            path: to,
            mode,
            size,
        });
        let sending = self.send_pieces(transfer.question.number, from, size);
        let mut sending = std::pin::pin!(sending);
        let answer = tokio::select! {
            // A full disk shows before all has been sent.
            answer = transfer.question.next() => answer,
            sent = &mut sending => {
                sent?;
                transfer.question.next().await
            }
        };
        match answer {
            Some((FromAgent::Stored { .. }, _)) => {
                transfer.is_over = true;
                Ok(())
            }
            Some((FromAgent::TransferFailed { reason, .. }, _)) => {
                transfer.is_over = true;
                Err(reason)
            }
            _ => Err(self.lost()),
        }
    }

    async fn send_pieces(&self, transfer: u64, from: &Path, size: u64) -> Result<(), String> {
        let cannot = |error: std::io::Error| format!("cannot read `{}`: {error}", from.display());
        let path = from.to_owned();
        let opening = spawn_blocking(move || File::open(path)).await;
        let mut file = opening
            .map_err(|error| error.to_string())?
            .map_err(cannot)?;
        let pool = Pool::default();
        let mut left = size;
        while left > 0 {
            let lender = pool.clone();
            let reading = spawn_blocking(move || {
                let bytes = lender.read(&mut file);
                (file, bytes)
            });
            let (back, bytes) = reading.await.map_err(|error| error.to_string())?;
            file = back;
            let bytes = bytes.map_err(cannot)?;
            left = match left.checked_sub(bytes.len() as u64) {
                Some(left) if !bytes.is_empty() => left,
                _ => {
                    return Err(format!(
                        "`{}` was changed while it was sent",
                        from.display()
                    ));
                }
            };
            if !self.sender.send(ToAgent::Data { transfer, bytes }).await {
                return Err(self.lost());
            }
        }
        Ok(())
    }

    /// Gets a file from there. It has its name on this machine only once it is whole.
    pub async fn get(
        &self,
        from: FilePath,
        to: PathBuf,
        mode: u32,
        size: u64,
    ) -> Result<(), String> {
        let mut transfer = self.transfer();
        self.sender.queue(ToAgent::FetchFile {
            transfer: transfer.question.number,
            path: from,
        });
        // The link's credit bounds what waits in here.
        let (pieces, arriving) = std::sync::mpsc::channel::<(bytes::Bytes, Held)>();
        let writing = spawn_blocking(move || -> Result<(), String> {
            let mut growing = Growing::file(to, mode, size)?;
            while let Ok((bytes, _held)) = arriving.recv() {
                growing.write(&bytes)?;
            }
            growing.finish()
        });
        loop {
            match transfer.question.next().await {
                Some((FromAgent::Data { bytes, .. }, held)) => {
                    if pieces.send((bytes, held)).is_err() {
                        break;
                    }
                }
                Some((FromAgent::Sent { .. }, _)) => {
                    transfer.is_over = true;
                    break;
                }
                Some((FromAgent::TransferFailed { reason, .. }, _)) => {
                    transfer.is_over = true;
                    return Err(reason);
                }
                _ => return Err(self.lost()),
            }
        }
        drop(pieces);
        writing.await.map_err(|error| error.to_string())?
    }

    fn transfer(&self) -> Transfer<'_> {
        Transfer {
            question: self.answers.open(),
            is_over: false,
            remote: self,
        }
    }

    fn lost(&self) -> String {
        format!("`{}` is lost", self.target)
    }
}

/// A file on its way. Dropped before it is over, it is given up on the other side, too.
struct Transfer<'a> {
    question: Question,
    is_over: bool,
    remote: &'a Remote,
}

impl Drop for Transfer<'_> {
    fn drop(&mut self) {
        if !self.is_over {
            let transfers = vec![self.question.number];
            self.remote.sender.queue(ToAgent::Forget { transfers });
        }
    }
}
