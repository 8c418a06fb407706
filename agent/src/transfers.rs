//! Values and files on their way between the kernel and this machine.
//!
//! Each transfer is a task of its own, and its reads and writes happen off the agent's loop, so neither a large value nor a
//! slow disk holds up output and interrupts.

use std::collections::{BTreeSet, HashMap};
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use cellferry_wire::Held;
use cellferry_wire::protocol::{FromAgent, PIECE};
use tokio::sync::mpsc;
use tokio::task::{JoinHandle, spawn_blocking};
use tokio_util::sync::CancellationToken;

use crate::growing::{Growing, remove};
use crate::outlet::Outlet;

/// How many forgotten numbers are remembered whose transfer has not been seen: it may be on its way still.
const FORGOTTEN: usize = 10_000;

/// All transfers of one agent.
#[derive(Debug)]
pub struct Transfers {
    segments: PathBuf,
    outlet: Outlet,
    jobs: HashMap<u64, Job>,
    forgotten: BTreeSet<u64>,
}

/// A transfer under way.
#[derive(Debug)]
struct Job {
    cancel: CancellationToken,
    task: JoinHandle<()>,
    /// Takes what comes, if it is one that comes; closed, it is given up.
    pieces: Option<mpsc::UnboundedSender<Piece>>,
}

/// Bytes, and their credit, if they came over a wire: it goes back when they are written.
type Piece = (Bytes, Option<Held>);

impl Transfers {
    /// Values are kept in `segments`.
    pub fn new(segments: PathBuf, outlet: Outlet) -> Self {
        Self {
            segments,
            outlet,
            jobs: HashMap::new(),
            forgotten: BTreeSet::new(),
        }
    }

    /// A value will come.
    pub fn receive(&mut self, transfer: u64, size: u64) {
        let path = self.segment(transfer);
        self.store(transfer, move || Growing::segment(path, size));
    }

    /// The next bytes of what comes. If it has failed, the kernel knows.
    pub fn data(&mut self, transfer: u64, piece: Piece) {
        let job = self.jobs.get(&transfer);
        if let Some(pieces) = job.and_then(|job| job.pieces.as_ref()) {
            let _ = pieces.send(piece);
        }
    }

    /// Sends a value.
    pub fn fetch(&mut self, transfer: u64) {
        let path = self.segment(transfer);
        let outlet = self.outlet.clone();
        self.start(transfer, None, async move |cancel| {
            send(transfer, path, &outlet, &cancel).await;
        });
    }

    /// Gives up what is under way, and removes values.
    pub fn forget(&mut self, transfers: Vec<u64>) {
        let mut files = Vec::new();
        for transfer in transfers {
            let path = self.segment(transfer);
            match self.jobs.remove(&transfer) {
                Some(job) => job.cancel.cancel(),
                None if path.exists() => {}
                None => {
                    self.forgotten.insert(transfer);
                    if self.forgotten.len() > FORGOTTEN {
                        self.forgotten.pop_first();
                    }
                }
            }
            files.push(path);
        }
        // To free a gigabyte of memory takes a while.
        drop(spawn_blocking(move || {
            files.iter().for_each(|path| remove(path))
        }));
    }

    /// Gives up everything; returns once nothing is written any more.
    pub async fn end(self) {
        for job in self.jobs.into_values() {
            job.cancel.cancel();
            drop(job.pieces);
            let _ = job.task.await;
        }
    }

    fn segment(&self, transfer: u64) -> PathBuf {
        self.segments.join(transfer.to_string())
    }

    /// Writes what will come into a new file.
    fn store(
        &mut self,
        transfer: u64,
        create: impl FnOnce() -> Result<Growing, String> + Send + 'static,
    ) {
        if self.forgotten.remove(&transfer) {
            return;
        }
        let (pieces, arriving) = mpsc::unbounded_channel();
        let outlet = self.outlet.clone();
        self.start(transfer, Some(pieces), async move |cancel| {
            let given_up = cancel.clone();
            let stored = spawn_blocking(move || write(create, arriving, &given_up)).await;
            let answer = match stored {
                Ok(Some(Ok(()))) => FromAgent::Stored { transfer },
                Ok(Some(Err(reason))) => FromAgent::TransferFailed { transfer, reason },
                Ok(None) => return,
                Err(error) => FromAgent::TransferFailed {
                    transfer,
                    reason: error.to_string(),
                },
            };
            if !cancel.is_cancelled() {
                outlet.tell(answer);
            }
        });
    }

    fn start<F>(
        &mut self,
        transfer: u64,
        pieces: Option<mpsc::UnboundedSender<Piece>>,
        run: impl FnOnce(CancellationToken) -> F,
    ) where
        F: Future<Output = ()> + Send + 'static,
    {
        self.jobs.retain(|_, job| !job.task.is_finished());
        let cancel = CancellationToken::new();
        let job = Job {
            task: tokio::spawn(run(cancel.clone())),
            cancel,
            pieces,
        };
        if let Some(earlier) = self.jobs.insert(transfer, job) {
            tracing::error!("transfer {transfer} was begun twice; the first is given up");
            earlier.cancel.cancel();
        }
    }
}

/// Writes what arrives until it is whole. `None` if it was given up; then nothing is left of it.
fn write(
    create: impl FnOnce() -> Result<Growing, String>,
    mut arriving: mpsc::UnboundedReceiver<Piece>,
    given_up: &CancellationToken,
) -> Option<Result<(), String>> {
    let mut growing = match create() {
        Ok(growing) => growing,
        Err(reason) => return Some(Err(reason)),
    };
    while growing.left() > 0 {
        let (bytes, _held) = arriving.blocking_recv()?;
        if let Err(reason) = growing.write(&bytes) {
            return Some(Err(reason));
        }
    }
    if given_up.is_cancelled() {
        return None;
    }
    Some(growing.finish())
}

/// Sends a file in pieces, and how that ended.
async fn send(transfer: u64, path: PathBuf, outlet: &Outlet, cancel: &CancellationToken) {
    let sending = async {
        let mut size = 0;
        let last = match send_pieces(transfer, &path, outlet, &mut size).await {
            Ok(()) => FromAgent::Sent { transfer, size },
            Err(error) => FromAgent::TransferFailed {
                transfer,
                reason: format!("cannot read `{}`: {error}", path.display()),
            },
        };
        outlet.send(last).await;
    };
    cancel.run_until_cancelled(sending).await;
}

async fn send_pieces(
    transfer: u64,
    path: &Path,
    outlet: &Outlet,
    size: &mut u64,
) -> io::Result<()> {
    let path = path.to_owned();
    let mut file = off_loop(move || File::open(path)).await?;
    loop {
        let piece;
        (file, piece) = off_loop(move || read_piece(file)).await?;
        if piece.is_empty() {
            return Ok(());
        }
        *size += piece.len() as u64;
        let bytes = Bytes::from(piece);
        if !outlet.send(FromAgent::Data { transfer, bytes }).await {
            return Ok(());
        }
    }
}

fn read_piece(mut file: File) -> io::Result<(File, Vec<u8>)> {
    let mut piece = Vec::with_capacity(PIECE);
    io::Read::by_ref(&mut file)
        .take(PIECE as u64)
        .read_to_end(&mut piece)?;
    Ok((file, piece))
}

/// Does what may block on a thread for that.
async fn off_loop<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    spawn_blocking(work).await.map_err(io::Error::other)?
}
