//! Values and files on their way to and from this machine.
//!
//! Each transfer is a task of its own, and its reads and writes happen off the agent's loop, so neither a large value nor a
//! slow disk holds up output and interrupts.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use cellferry_wire::Held;
use cellferry_wire::protocol::{DOOR_IDLE, FilePath, FromAgent, PIECE, Secret};
use tokio::sync::mpsc;
use tokio::task::{JoinHandle, spawn_blocking};

use crate::direct::{self, Door, Shelf};
use crate::files::resolve;
use crate::growing::{Growing, remove};
use crate::mapped::Mapped;
use crate::outlet::Outlet;
use crate::pool::Pool;
use crate::tickets::{Ticket, Tickets, Way};

/// All transfers of one agent.
#[derive(Debug)]
pub struct Transfers {
    segments: PathBuf,
    outlet: Outlet,
    tickets: Tickets,
    /// What takes the pieces of each transfer that comes from the kernel; dropped, it is given up.
    arriving: HashMap<u64, mpsc::UnboundedSender<Piece>>,
    tasks: Vec<JoinHandle<()>>,
    door: Option<Door>,
}

/// Bytes, and their credit, if they came over a wire: it goes back when they are written.
type Piece = (Bytes, Option<Held>);

/// What is sent.
#[derive(Clone, Copy, Debug)]
enum What {
    /// It is in our own directory.
    Value,
    /// It is the user's, who may change it at any time.
    File,
}

impl Transfers {
    /// Values are kept in `segments`.
    pub fn new(segments: PathBuf, outlet: Outlet) -> Self {
        Self {
            segments,
            outlet,
            tickets: Tickets::default(),
            arriving: HashMap::new(),
            tasks: Vec::new(),
            door: None,
        }
    }

    /// A value will come.
    pub fn receive(&mut self, transfer: u64, size: u64) {
        let path = self.segment(transfer);
        self.store(transfer, move || {
            // Another agent may have brought it, and not known that it had.
            remove(&path);
            Growing::segment(path, size)
        });
    }

    /// The next bytes of what comes. If it has failed, the kernel knows.
    pub fn data(&mut self, transfer: u64, piece: Piece) {
        if let Some(arriving) = self.arriving.get(&transfer)
            && arriving.send(piece).is_err()
        {
            self.arriving.remove(&transfer);
        }
    }

    /// A file of the user's will come.
    pub fn receive_file(&mut self, transfer: u64, path: FilePath, mode: u32, size: u64) {
        self.store(transfer, move || {
            Growing::file(resolve(&path)?.whole(), mode, size)
        });
    }

    /// Sends a file of the user's.
    pub fn fetch_file(&mut self, transfer: u64, path: &FilePath) {
        match resolve(path) {
            Ok(resolved) => self.send(transfer, resolved.whole(), What::File),
            Err(reason) => self
                .outlet
                .tell(FromAgent::TransferFailed { transfer, reason }),
        }
    }

    /// Sends a value.
    pub fn fetch(&mut self, transfer: u64) {
        self.send(transfer, self.segment(transfer), What::Value);
    }

    fn send(&mut self, transfer: u64, path: PathBuf, what: What) {
        let outlet = self.outlet.clone();
        self.start(transfer, Way::Away, async move |ticket| {
            send(&ticket, path, what, &outlet).await;
        });
    }

    /// Gives up what is under way, and removes values.
    pub fn forget(&mut self, transfers: Vec<u64>) {
        let mut files = Vec::new();
        for transfer in transfers {
            let path = self.segment(transfer);
            self.tickets.forget(transfer, path.exists());
            self.arriving.remove(&transfer);
            files.push(path);
        }
        // To free a gigabyte of memory takes a while.
        drop(spawn_blocking(move || {
            files.iter().for_each(|path| remove(path))
        }));
    }

    /// Opens the door, unless it is open.
    pub fn open_door(&mut self, secret: Secret) {
        let open = self.door.as_ref().filter(|door| door.is_open(&secret));
        let addresses = match open {
            Some(door) => Ok(door.addresses().to_vec()),
            None => Door::open(secret, self.shelf(), DOOR_IDLE)
                .map(|door| self.door.insert(door).addresses().to_vec()),
        };
        self.outlet.tell(match addresses {
            Ok(addresses) => FromAgent::Door { addresses },
            Err(error) => FromAgent::DoorFailed {
                reason: format!("cannot listen for other agents: {error}"),
            },
        });
    }

    /// Gets a value from another agent's door.
    pub fn pull(&mut self, transfer: u64, size: u64, from: Vec<SocketAddr>, secret: Secret) {
        let shelf = self.shelf();
        self.start(transfer, Way::Here, async move |ticket| {
            direct::pull(&shelf, ticket, size, &from, &secret).await;
        });
    }

    /// Brings a value to another agent's door.
    pub fn push(&mut self, transfer: u64, to: Vec<SocketAddr>, secret: Secret) {
        let shelf = self.shelf();
        self.start(transfer, Way::Away, async move |ticket| {
            direct::push(&shelf, ticket, &to, &secret).await;
        });
    }

    /// Gives up everything; returns once nothing is written any more.
    pub async fn end(mut self) {
        self.door = None;
        self.arriving.clear();
        self.tickets.forget_all();
        for task in self.tasks {
            let _ = task.await;
        }
    }

    fn segment(&self, transfer: u64) -> PathBuf {
        self.segments.join(transfer.to_string())
    }

    fn shelf(&self) -> Shelf {
        Shelf {
            segments: self.segments.clone(),
            outlet: self.outlet.clone(),
            tickets: self.tickets.clone(),
        }
    }

    /// Writes what will come into a new file.
    fn store(
        &mut self,
        transfer: u64,
        create: impl FnOnce() -> Result<Growing, String> + Send + 'static,
    ) {
        let (pieces, arriving) = mpsc::unbounded_channel();
        let outlet = self.outlet.clone();
        self.arriving.retain(|_, pieces| !pieces.is_closed());
        let started = self.start(transfer, Way::Here, async move |ticket| {
            ticket.alone().await;
            let stored = spawn_blocking(move || write(create, arriving, &ticket)).await;
            let answer = match stored {
                Ok(Some(Ok(()))) => FromAgent::Stored { transfer },
                Ok(Some(Err(reason))) => FromAgent::TransferFailed { transfer, reason },
                Ok(None) => return,
                Err(error) => FromAgent::TransferFailed {
                    transfer,
                    reason: error.to_string(),
                },
            };
            outlet.tell(answer);
        });
        if started {
            self.arriving.insert(transfer, pieces);
        }
    }

    /// False if the transfer has been forgotten already.
    fn start<F>(&mut self, transfer: u64, way: Way, run: impl FnOnce(Ticket) -> F) -> bool
    where
        F: Future<Output = ()> + Send + 'static,
    {
        self.tasks.retain(|task| !task.is_finished());
        let Ok(ticket) = self.tickets.begin(transfer, way) else {
            return false;
        };
        self.tasks.push(tokio::spawn(run(ticket)));
        true
    }
}

/// Writes what arrives until it is whole. `None` if it was given up; then nothing is left of it.
fn write(
    create: impl FnOnce() -> Result<Growing, String>,
    mut arriving: mpsc::UnboundedReceiver<Piece>,
    ticket: &Ticket,
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
    if ticket.is_cancelled() {
        return None;
    }
    Some(growing.finish())
}

/// Sends a file in pieces, and how that ended.
async fn send(ticket: &Ticket, path: PathBuf, what: What, outlet: &Outlet) {
    let transfer = ticket.transfer();
    let sending = async {
        let sent = match what {
            What::Value => send_value(transfer, &path, outlet).await,
            What::File => send_file(transfer, &path, outlet).await,
        };
        let last = match sent {
            Ok(size) => FromAgent::Sent { transfer, size },
            Err(error) => FromAgent::TransferFailed {
                transfer,
                reason: format!("cannot read `{}`: {error}", path.display()),
            },
        };
        outlet.send(last).await;
    };
    tokio::select! {
        () = ticket.cancelled() => {}
        () = sending => {}
    }
}

/// Sends a value; returns its size.
async fn send_value(transfer: u64, path: &Path, outlet: &Outlet) -> io::Result<u64> {
    let path = path.to_owned();
    let value = off_loop(move || Mapped::new(open(&path)?)).await?;
    for offset in (0..value.size()).step_by(PIECE) {
        for bytes in value.piece(offset)? {
            if !outlet.send(FromAgent::Data { transfer, bytes }).await {
                return Ok(value.size());
            }
        }
    }
    Ok(value.size())
}

/// Sends a file of the user's; returns its size. It is read, not mapped: if it became shorter meanwhile, that would kill us.
async fn send_file(transfer: u64, path: &Path, outlet: &Outlet) -> io::Result<u64> {
    let path = path.to_owned();
    let mut file = off_loop(move || open(&path)).await?;
    let (pool, mut size) = (Pool::default(), 0);
    loop {
        let (bytes, lender);
        lender = pool.clone();
        (file, bytes) = off_loop(move || lender.read(&mut file).map(|bytes| (file, bytes))).await?;
        if bytes.is_empty() {
            return Ok(size);
        }
        size += bytes.len() as u64;
        if !outlet.send(FromAgent::Data { transfer, bytes }).await {
            return Ok(size);
        }
    }
}

fn open(path: &Path) -> io::Result<File> {
    // To open a pipe would wait for a writer.
    if !path.metadata()?.is_file() {
        return Err(io::Error::other("it is not a file"));
    }
    File::open(path)
}

/// Does what may block on a thread for that.
async fn off_loop<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    spawn_blocking(work).await.map_err(io::Error::other)?
}
