//! The agents of this session: the one inside this process for `home`, a process each for local targets, and
//! one on each far host.

mod allocations;
mod end;
mod event;
mod files;
mod link;
mod problems;
mod seat;
mod start;

use std::collections::{BTreeSet, HashMap, HashSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use cellferry_agent::RunDir;
use cellferry_agent::guard::Guard;
use cellferry_wire::protocol::{Hello, ToAgent, WorkerId};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

pub use self::event::FromLocation;
pub use self::problems::{how, how_failed};
pub use self::seat::{Seat, seat_there, spec_there};
pub use self::start::{Start, find_python};

use self::link::Link;
use super::arrivals::Arrivals;
use super::carry::Machine;
use super::cluster::Clusters;
use crate::session::{Problem, TargetName};
use crate::target::shape::Shape;

/// How long a worker that is of no use has to end.
const GRACE: Duration = Duration::from_secs(1);

/// All agents.
pub struct Agents {
    python: Option<PathBuf>,
    home_dir: PathBuf,
    links: HashMap<TargetName, Link>,
    workers: HashMap<WorkerId, Seat>,
    /// Targets whose agent is being ended, with the workers to be started by the next one.
    ending: HashMap<TargetName, Vec<WorkerId>>,
    endings: JoinSet<()>,
    /// Locations to whose agents there is no link for now.
    down: HashSet<TargetName>,
    /// What far agents said of themselves.
    hellos: HashMap<TargetName, Hello>,
    arrivals: Arc<Arrivals>,
    run_dir: Option<RunDir>,
    segments: Option<RunDir>,
    guard: Option<Guard>,
    clusters: Clusters,
    events: mpsc::UnboundedSender<FromLocation>,
}

impl Agents {
    /// No agent is started yet. `notebook` is what the kernels of one notebook have in common.
    pub fn new(
        python: Option<PathBuf>,
        arrivals: Arc<Arrivals>,
        notebook: &str,
    ) -> (Self, mpsc::UnboundedReceiver<FromLocation>) {
        let (events, inbox) = mpsc::unbounded_channel();
        let agents = Self {
            python,
            home_dir: std::env::current_dir().unwrap_or_default(),
            links: HashMap::new(),
            workers: HashMap::new(),
            ending: HashMap::new(),
            endings: JoinSet::new(),
            down: HashSet::new(),
            hellos: HashMap::new(),
            arrivals,
            run_dir: None,
            segments: None,
            guard: None,
            clusters: Clusters::new(notebook),
            events,
        };
        (agents, inbox)
    }

    /// The workers at a location that have GPUs to themselves.
    pub fn with_gpus(&self, location: &TargetName) -> Vec<WorkerId> {
        let there = self
            .workers
            .iter()
            .filter(|(_, seat)| seat.is_at(location) && !seat.gpus.is_empty());
        there.map(|(worker, _)| *worker).collect()
    }

    /// Where a worker is: the target itself, unless that has several locations.
    pub fn location(&self, worker: WorkerId) -> Option<&TargetName> {
        self.workers.get(&worker).map(|seat| &seat.location)
    }

    /// Sends a command to the agent of a worker.
    pub fn send(&mut self, worker: WorkerId, command: ToAgent) {
        if let Some(seat) = self.workers.get(&worker) {
            let location = seat.location.clone();
            // A worker whose agent is gone is told as gone by an event of its own.
            let _ = self.tell(&location, command);
        }
    }

    /// Sends a command to an agent.
    pub fn tell(&mut self, target: &TargetName, command: ToAgent) -> Result<(), String> {
        match self.links.get_mut(target) {
            Some(Link::Here(agent)) => agent.command(command),
            Some(Link::Process { sender, .. }) => sender.queue(command),
            Some(Link::Far(far)) => far.sender.queue(command),
            None => return Err(format!("`{target}` is lost")),
        }
        Ok(())
    }

    /// A far agent says who it is.
    pub fn hello(&mut self, target: &TargetName, hello: Hello) {
        tracing::info!(
            "the agent of `{target}` runs on {} ({}, {} processors)",
            hello.hostname,
            hello.arch,
            hello.cpus
        );
        self.hellos.insert(target.clone(), hello);
    }

    /// Whether a far agent has not said anything yet.
    pub fn is_connecting(&self, target: &TargetName) -> bool {
        matches!(self.links.get(target), Some(Link::Far(_))) && !self.hellos.contains_key(target)
    }

    /// The far host of a worker, if it has not said anything yet, unless the host is a node of an allocation: for that its
    /// job is waited for.
    pub fn connecting_to(&self, worker: WorkerId) -> Option<TargetName> {
        let location = &self.workers.get(&worker)?.location;
        let connecting = self.is_connecting(location) && self.allocation_of(location).is_none();
        connecting.then(|| location.clone())
    }

    /// The machine that a worker is on.
    pub fn machine(&self, worker: WorkerId) -> Option<Machine> {
        let location = &self.workers.get(&worker)?.location;
        Some(match self.links.get(location)? {
            Link::Far(_) => Machine::Far(location.clone()),
            Link::Here(_) | Link::Process { .. } => Machine::Home,
        })
    }

    /// Where events go.
    pub fn events(&self) -> mpsc::UnboundedSender<FromLocation> {
        self.events.clone()
    }

    /// A worker answers.
    pub fn is_up(&mut self, worker: WorkerId, pid: u32) {
        if let Some(seat) = self.workers.get_mut(&worker) {
            seat.pid = Some(pid);
        }
    }

    /// The process of a worker on this machine, if it is one.
    pub fn pid(&self, worker: WorkerId) -> Option<u32> {
        let seat = self.workers.get(&worker)?;
        seat.pid.filter(|_| !seat.island)
    }

    /// Whether a worker is at a location, or on a node of an allocation.
    pub fn is_at(&self, worker: WorkerId, place: &TargetName) -> bool {
        let seat = self.workers.get(&worker);
        seat.is_some_and(|seat| {
            seat.location == *place || self.clusters.allocation_of(&seat.location) == Some(place)
        })
    }

    /// Where a worker is.
    pub fn target(&self, worker: WorkerId) -> Option<&TargetName> {
        self.workers.get(&worker).map(|seat| &seat.target)
    }

    /// The workers of a target, in any shape.
    pub fn workers_of(&self, target: &TargetName) -> Vec<WorkerId> {
        let workers = self.workers.iter();
        let of_target = workers.filter(|(_, seat)| Shape::parse(&seat.target).target == **target);
        of_target.map(|(worker, _)| *worker).collect()
    }

    /// The targets that are not on this machine and have an agent, or an allocation.
    pub fn far_targets(&self) -> BTreeSet<TargetName> {
        let links = self.links.iter();
        let far = links.filter(|(_, link)| matches!(link, Link::Far(_)));
        let hosts = far.map(|(location, _)| location.clone());
        let hosts = hosts.filter(|location| self.clusters.allocation_of(location).is_none());
        hosts.chain(self.clusters.targets()).collect()
    }

    /// The workers at a location, or on the nodes of an allocation.
    pub fn workers_at(&self, place: &TargetName) -> Vec<WorkerId> {
        let workers = self.workers.keys();
        workers
            .copied()
            .filter(|worker| self.is_at(*worker, place))
            .collect()
    }

    /// Tells, as an event, that a worker could not be started.
    pub fn report(&self, worker: WorkerId, problem: Problem) {
        let _ = self.events.send(FromLocation::Failed {
            workers: vec![worker],
            problem,
        });
    }

    /// Tells, as an event, that values could not be taken.
    pub fn transfer_failed(&self, transfer: u64, reason: String) {
        let _ = self
            .events
            .send(FromLocation::TransferFailed { transfer, reason });
    }

    /// Forgets a worker that is gone.
    pub fn forget(&mut self, worker: WorkerId) {
        self.workers.remove(&worker);
    }

    /// Ends a worker.
    pub fn stop(&mut self, worker: WorkerId) {
        self.send(
            worker,
            ToAgent::StopWorker {
                worker,
                grace: GRACE,
            },
        );
    }

    /// There is no link to a far agent for now.
    pub fn link_lost(&mut self, location: &TargetName) {
        self.down.insert(location.clone());
    }

    /// The link to a far agent is there again.
    pub fn link_back(&mut self, location: &TargetName) {
        self.down.remove(location);
    }
}
