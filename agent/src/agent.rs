//! An agent: commands in, messages out.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use cellferry_wire::Held;
use cellferry_wire::protocol::{FromAgent, ToAgent, WorkerId, WorkerSpec};
use nix::sys::signal::{self, SigHandler, Signal};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::exit::signal_group;
use crate::files;
use crate::island;
use crate::outlet::Outlet;
use crate::transfers::Transfers;
use crate::worker::{self, Command};

/// How long workers have to end by themselves when the agent ends.
const GRACE: Duration = Duration::from_secs(1);

/// An agent inside this process.
#[derive(Debug)]
pub struct Agent {
    run_dir: PathBuf,
    segments: PathBuf,
    /// The directory of the allocation that this machine is in, which all of its machines see.
    allocation: Option<PathBuf>,
    workers: HashMap<WorkerId, Handle>,
    tasks: Vec<JoinHandle<()>>,
    transfers: Transfers,
    outlet: Outlet,
}

#[derive(Debug)]
struct Handle {
    commands: mpsc::UnboundedSender<Command>,
    interrupts: Interrupts,
}

/// How a worker is interrupted.
#[derive(Debug)]
enum Interrupts {
    /// Its process group, 0 until there is one. Interrupts go to it directly: they must not wait
    /// behind output that nobody takes.
    Group(Arc<AtomicU32>),
    /// It passes them on to its ranks.
    Island,
}

impl Agent {
    /// An agent whose workers' own files go into `run_dir` and values into `segments`, and what it says.
    pub fn local(run_dir: &Path, segments: &Path) -> (Self, mpsc::UnboundedReceiver<FromAgent>) {
        let (outbox, inbox) = mpsc::unbounded_channel();
        (Self::new(run_dir, segments, Outlet::Here(outbox)), inbox)
    }

    /// An agent that speaks into `outlet`.
    pub(crate) fn new(run_dir: &Path, segments: &Path, outlet: Outlet) -> Self {
        // A limit on the size of files is an error of the write, not the agent's end.
        // SAFETY: ignoring a signal installs no handler.
        let _ = unsafe { signal::signal(Signal::SIGXFSZ, SigHandler::SigIgn) };
        Self {
            run_dir: run_dir.to_owned(),
            segments: segments.to_owned(),
            allocation: None,
            workers: HashMap::new(),
            tasks: Vec::new(),
            transfers: Transfers::new(segments.to_owned(), outlet.clone()),
            outlet,
        }
    }

    /// The same, on a machine of an allocation that has this directory.
    pub(crate) fn within(self, allocation: Option<PathBuf>) -> Self {
        Self { allocation, ..self }
    }

    /// Does what the kernel asks. Commands for workers that are gone are dropped: their end has been told.
    pub fn command(&mut self, command: ToAgent) {
        self.obey(command, None);
    }

    /// The same, for a command that came over a wire: what it holds is let go once it is done.
    pub(crate) fn obey(&mut self, command: ToAgent, held: Option<Held>) {
        match command {
            ToAgent::StartWorker { worker, spec } => {
                let (sender, commands) = mpsc::unbounded_channel();
                self.tasks.retain(|task| !task.is_finished());
                let (interrupts, task) = self.start(worker, spec, commands);
                self.tasks.push(task);
                let handle = Handle {
                    commands: sender,
                    interrupts,
                };
                self.workers.insert(worker, handle);
            }
            ToAgent::Send {
                worker,
                channel,
                parts,
            } => self.tell(worker, Command::Send(channel, parts)),
            ToAgent::Interrupt { worker } => {
                match self.workers.get(&worker).map(|handle| &handle.interrupts) {
                    Some(Interrupts::Group(group)) => {
                        let group = group.load(Ordering::Acquire);
                        signal_group(group, Signal::SIGINT);
                        // It may be stopped because nobody takes what it says.
                        signal_group(group, Signal::SIGCONT);
                    }
                    Some(Interrupts::Island) => self.tell(worker, Command::Interrupt),
                    None => {}
                }
            }
            ToAgent::StopWorker { worker, grace } => self.tell(worker, Command::Stop(grace)),
            ToAgent::Receive { transfer, size } => self.transfers.receive(transfer, size),
            ToAgent::Data { transfer, bytes } => self.transfers.data(transfer, (bytes, held)),
            ToAgent::Fetch { transfer } => self.transfers.fetch(transfer),
            ToAgent::Forget { transfers } => self.transfers.forget(transfers),
            ToAgent::OpenDoor { secret } => self.transfers.open_door(secret),
            ToAgent::Pull {
                transfer,
                size,
                from,
                secret,
            } => self.transfers.pull(transfer, size, from, secret),
            ToAgent::Push {
                transfer,
                to,
                secret,
            } => self.transfers.push(transfer, to, secret),
            ToAgent::Shutdown => {
                for handle in self.workers.values() {
                    let _ = handle.commands.send(Command::Stop(GRACE));
                }
            }
            ToAgent::List { request, pattern } => files::answer(&self.outlet, move || {
                let outcome = files::list(&pattern);
                FromAgent::Listing { request, outcome }
            }),
            ToAgent::ReceiveFile {
                transfer,
                path,
                mode,
                size,
            } => self.transfers.receive_file(transfer, path, mode, size),
            ToAgent::FetchFile { transfer, path } => self.transfers.fetch_file(transfer, &path),
            ToAgent::CopyFile {
                request,
                from,
                to,
                mode,
            } => files::answer(&self.outlet, move || {
                let outcome = files::copy_file(&from, &to, mode);
                FromAgent::Made { request, outcome }
            }),
            ToAgent::MakeDirectory {
                request,
                path,
                mode,
            } => files::answer(&self.outlet, move || {
                let outcome = files::make_directory(&path, mode);
                FromAgent::Made { request, outcome }
            }),
            ToAgent::MakeLink {
                request,
                path,
                target,
            } => files::answer(&self.outlet, move || {
                let outcome = files::make_link(&path, &target);
                FromAgent::Made { request, outcome }
            }),
        }
    }

    /// Begins a worker's life.
    fn start(
        &self,
        worker: WorkerId,
        mut spec: WorkerSpec,
        commands: mpsc::UnboundedReceiver<Command>,
    ) -> (Interrupts, JoinHandle<()>) {
        let (run_dir, outlet) = (self.run_dir.clone(), self.outlet.clone());
        if let Some(ranks) = spec.ranks.take() {
            let (segments, allocation) = (self.segments.clone(), self.allocation.clone());
            let life = async move {
                let own = (&*run_dir, &*segments, allocation.as_deref());
                island::live(worker, (spec, ranks), own, commands, outlet).await;
            };
            return (Interrupts::Island, tokio::spawn(life));
        }
        let group = Arc::new(AtomicU32::new(0));
        let life = worker::live(worker, spec, run_dir, group.clone(), commands, outlet);
        (Interrupts::Group(group), tokio::spawn(life))
    }

    fn tell(&mut self, worker: WorkerId, command: Command) {
        if let Some(handle) = self.workers.get(&worker)
            && handle.commands.send(command).is_err()
        {
            self.workers.remove(&worker);
        }
    }

    /// Ends all workers and transfers, and waits for them.
    pub async fn shutdown(mut self) {
        self.command(ToAgent::Shutdown);
        // A file system that does not answer must not keep the agent.
        let _ = tokio::time::timeout(GRACE, self.transfers.end()).await;
        for task in self.tasks {
            let _ = task.await;
        }
    }
}
