//! Allocations of batch systems, and their nodes as locations.
//!
//! A worker of a cluster's target is seated on a node of an allocation that fits, at once: what it is told waits until
//! the node's agent comes. Nothing is submitted before that.

mod allocation;
mod kept;
mod login;
mod node;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;

pub use self::allocation::JobNews;
use self::allocation::{JobState, Keeper, Order};
use self::kept::Shelf;
use self::login::Login;
pub use self::node::Node;
use super::agents::FromLocation;
use super::host::Host;
use crate::session::TargetName;
use crate::target::batch::commands::Commands;
use crate::target::batch::watch::Watch;
use crate::target::batch::{self, Batch, Request};
use crate::target::config::{Slurm, Ssh, System, Target};
use crate::target::shape::Shape;

/// A cluster that this session has jobs on.
pub struct Cluster {
    login: Arc<Login>,
    system: System,
    batch: Arc<dyn Batch>,
    commands: Commands,
    watch: Watch,
}

impl Cluster {
    /// That is reached so.
    pub fn new(login: Login, system: System) -> Self {
        let login = Arc::new(login);
        let batch: Arc<dyn Batch> = match system {
            System::Slurm => Arc::new(batch::slurm::Slurm::new(login.clone())),
            System::Pbs => Arc::new(batch::pbs::Pbs::new(login.clone())),
        };
        Self {
            watch: Watch::start(batch.clone()),
            commands: Commands::new(batch.system(), login.clone()),
            system,
            login,
            batch,
        }
    }

    /// What gives out its nodes.
    pub fn system(&self) -> System {
        self.system
    }

    /// The way to it.
    pub fn login(&self) -> &Login {
        &self.login
    }

    /// Its batch system.
    pub fn batch(&self) -> &dyn Batch {
        &*self.batch
    }

    /// Runs commands there.
    pub fn commands(&self) -> &Commands {
        &self.commands
    }

    /// What becomes of jobs.
    pub fn watch(&self) -> &Watch {
        &self.watch
    }
}

/// How long it may take to look into a folder on a shared file system.
const LISTING: Duration = Duration::from_secs(30);

/// How long a job waits for nodes before allocations that are not used make room, and how long those must not have been used.
const PRESSED: Duration = Duration::from_secs(3);

/// What a location has to bear.
#[derive(Clone, Copy, Debug, Default)]
pub struct Load {
    /// How many workers it has.
    pub workers: usize,
    /// How many GPUs they have.
    pub gpus: usize,
}

/// How a cluster is reached, and what gives out its nodes.
type Reached = (Option<Ssh>, System);

/// All allocations of this session.
pub struct Clusters {
    /// For the allocations that the next kernel may take over.
    shelf: Option<Shelf>,
    /// By how they are reached.
    clusters: Vec<(Reached, Arc<Cluster>)>,
    allocations: Vec<Allocation>,
    /// How many allocations each target has had.
    had: HashMap<String, u32>,
}

/// An allocation, as it is known where workers are seated.
struct Allocation {
    /// What users call it.
    name: TargetName,
    target: String,
    /// What its job runs depends on these.
    slurm: Slurm,
    setup: Option<String>,
    cluster: Arc<Cluster>,
    request: Request,
    /// Its nodes' names, and whether they are lost.
    nodes: Vec<(TargetName, bool)>,
    state: watch::Receiver<JobState>,
    orders: mpsc::UnboundedSender<Order>,
    /// When a step was last seen in it.
    used: Instant,
    /// Since when its job waits for nodes.
    waits: Option<Instant>,
    /// Its job has ended, and its nodes are cleaned up.
    closing: bool,
    /// What its job is called.
    job: Option<String>,
    /// When the time of its job is over.
    until: Option<DateTime<Utc>>,
}

impl Clusters {
    /// None yet. `notebook` is the one whose kernels hand allocations on.
    pub fn new(notebook: &str) -> Self {
        Self {
            shelf: Shelf::of(notebook),
            clusters: Vec::new(),
            allocations: Vec::new(),
            had: HashMap::new(),
        }
    }

    /// The node for a new worker of that shape: one of an allocation that fits, or of a new one. `load` says how many workers
    /// a location has.
    pub fn node(
        &mut self,
        (target, slurm, login): (&Target, &Slurm, Option<Ssh>),
        shape: &Shape,
        run_dir: Option<PathBuf>,
        events: &mpsc::UnboundedSender<FromLocation>,
        load: impl Fn(&TargetName) -> Load,
    ) -> Node {
        let wanted = shape.gpus(target).unwrap_or(0) as usize;
        let has_room = |allocation: &Allocation, location: &TargetName| {
            load(location).gpus + wanted <= allocation.gpus() as usize
        };
        let fits = |allocation: &Allocation| {
            allocation.target == target.name
                && allocation.slurm == *slurm
                && allocation.setup == target.setup
                && allocation.request.fits(&shape.resources)
                && !allocation.is_over()
        };
        let index = match self.allocations.iter().position(fits) {
            Some(index) => index,
            None => {
                self.allocate(target, slurm, login, shape, run_dir, events);
                self.allocations.len() - 1
            }
        };
        self.allocations[index].used = Instant::now();
        let allocation = &self.allocations[index];
        // Ranks are started from the first node.
        let first_only = shape.resources.ranks.is_some();
        let nodes = allocation.nodes.iter().enumerate();
        let (number, (location, _)) = nodes
            .filter(|(number, (_, lost))| !lost && (!first_only || *number == 0))
            .min_by_key(|(number, (location, _))| {
                (
                    !has_room(allocation, location),
                    load(location).workers,
                    *number,
                )
            })
            .unwrap_or((0, &allocation.nodes[0]));
        let others = allocation
            .nodes
            .iter()
            .filter(|(other, lost)| !lost && other != location);
        Node {
            location: location.clone(),
            others: others.map(|(other, _)| other.clone()).collect(),
            number: u32::try_from(number).unwrap_or_default(),
            target: target.name.clone(),
            patience: slurm.patience,
            cluster: allocation.cluster.clone(),
            job: allocation.state.clone(),
            gpus: allocation.gpus(),
            at_gate: watch::Sender::new(None),
        }
    }

    fn allocate(
        &mut self,
        target: &Target,
        slurm: &Slurm,
        login: Option<Ssh>,
        shape: &Shape,
        run_dir: Option<PathBuf>,
        events: &mpsc::UnboundedSender<FromLocation>,
    ) {
        self.allocations.retain(|allocation| !allocation.is_over());
        let had = self.had.entry(target.name.clone()).or_default();
        *had += 1;
        let name: TargetName = match *had {
            1 => target.name.as_str().into(),
            number => format!("{} {number}", target.name).into(),
        };
        let made_from = format!("{login:?} {slurm:?} {:?} {}", target.setup, shape.name());
        let fingerprint = blake3::hash(made_from.as_bytes()).to_hex().to_string();
        let cluster = self.cluster(&name, (login, slurm.system), run_dir, events);
        let request = slurm.request.raised(&shape.resources);
        let nodes = (1..=request.nodes.get())
            .map(|number| (format!("{name}, node {number}").into(), false))
            .collect();
        let (state, states) = watch::channel(JobState::Preparing);
        let (orders, inbox) = mpsc::unbounded_channel();
        let keeper = Keeper {
            name: name.to_string(),
            table: target.table(),
            request: request.clone(),
            folder: slurm.folder.clone(),
            setup: target.setup.clone(),
            patience: slurm.patience,
            cluster: cluster.clone(),
            shelf: self.shelf.clone().filter(|_| slurm.keep),
            fingerprint,
            events: events.clone(),
            state,
        };
        tokio::spawn(keeper.live(inbox));
        self.allocations.push(Allocation {
            name,
            target: target.name.clone(),
            slurm: slurm.clone(),
            setup: target.setup.clone(),
            cluster,
            request,
            nodes,
            state: states,
            orders,
            used: Instant::now(),
            waits: None,
            closing: false,
            job: None,
            until: None,
        });
    }

    fn cluster(
        &mut self,
        asker: &TargetName,
        way: Reached,
        run_dir: Option<PathBuf>,
        events: &mpsc::UnboundedSender<FromLocation>,
    ) -> Arc<Cluster> {
        if let Some((_, cluster)) = self.clusters.iter().find(|(known, _)| *known == way) {
            return cluster.clone();
        }
        let host = way.0.clone().map(|ssh| Host {
            target: asker.clone(),
            ssh,
            run_dir,
            events: events.clone(),
        });
        let cluster = Arc::new(Cluster::new(Login::new(host), way.1));
        self.clusters.push((way, cluster.clone()));
        cluster
    }

    /// The allocation that a location is a node of.
    pub fn allocation_of(&self, location: &TargetName) -> Option<&TargetName> {
        let has = |allocation: &&Allocation| {
            let mut nodes = allocation.nodes.iter();
            nodes.any(|(node, _)| node == location)
        };
        self.allocations
            .iter()
            .rev()
            .find(has)
            .map(|allocation| &allocation.name)
    }

    /// A node is lost: no worker is seated there any more. An allocation without nodes is given back.
    pub fn lost(&mut self, location: &TargetName) {
        for allocation in &mut self.allocations {
            for (_, lost) in allocation
                .nodes
                .iter_mut()
                .filter(|(node, _)| node == location)
            {
                *lost = true;
            }
            if allocation.nodes.iter().all(|(_, lost)| *lost) {
                let (done, _) = oneshot::channel();
                let _ = allocation.orders.send(Order::Release(done));
            }
        }
        self.allocations
            .retain(|allocation| !allocation.nodes.iter().all(|(_, lost)| *lost));
    }

    /// Whether there are any.
    pub fn any(&self) -> bool {
        !self.allocations.is_empty()
    }

    /// The targets that have some.
    pub fn targets(&self) -> impl Iterator<Item = TargetName> {
        let allocations = self.allocations.iter();
        allocations.map(|allocation| allocation.target.as_str().into())
    }

    /// Those of a target.
    pub fn of_target(&self, target: &TargetName) -> Vec<TargetName> {
        let allocations = self.allocations.iter();
        let of_target = allocations.filter(|allocation| allocation.target == **target);
        of_target
            .map(|allocation| allocation.name.clone())
            .collect()
    }

    /// What is heard of the job of an allocation.
    pub fn heard(&mut self, name: &TargetName, news: &JobNews) {
        let named = |allocation: &&mut Allocation| allocation.name == *name;
        let Some(allocation) = self.allocations.iter_mut().find(named) else {
            return;
        };
        match news {
            JobNews::Submitted(job) => allocation.job = Some(job.clone()),
            JobNews::Waits(_) => {
                allocation.waits.get_or_insert_with(Instant::now);
            }
            JobNews::Runs(_, until) => {
                allocation.waits = None;
                allocation.until = *until;
            }
            JobNews::Closing => allocation.closing = true,
            JobNews::Ended => allocation.waits = None,
        }
    }

    /// Something has happened to an allocation: its job is asked for as soon as may be.
    pub fn hurry(&self, name: &TargetName) {
        let mut named = self
            .allocations
            .iter()
            .filter(|allocation| allocation.name == *name);
        if let Some(allocation) = named.next() {
            allocation.cluster.watch().hurry();
        }
    }

    /// Whether the job of an allocation is known to end, or to have ended.
    pub fn is_ending(&self, name: &TargetName) -> bool {
        let mut named = self
            .allocations
            .iter()
            .filter(|allocation| allocation.name == *name);
        named
            .next()
            .is_none_or(|allocation| allocation.closing || allocation.is_over())
    }

    /// What the job of an allocation is called.
    pub fn job(&self, name: &TargetName) -> Option<&str> {
        let mut named = self
            .allocations
            .iter()
            .filter(|allocation| allocation.name == *name);
        named.next()?.job.as_deref()
    }

    /// If the job of an allocation has less time left than that: the job, and how much it has.
    pub fn ends_before(&self, name: &TargetName, time: Duration) -> Option<(String, Duration)> {
        let mut named = self
            .allocations
            .iter()
            .filter(|allocation| allocation.name == *name);
        let allocation = named.next()?;
        let left = (allocation.until? - Utc::now())
            .to_std()
            .unwrap_or_default();
        (left < time).then(|| (allocation.job.clone().unwrap_or_default(), left))
    }

    /// Those that have not been used for as long as their targets allow, or for a moment while the job of another one waits,
    /// maybe for the very nodes that they have; they count as used now, so that they are named again after as long. `is_used` says whether a step is on its way to a location, or runs there.
    pub fn idle(&mut self, is_used: impl Fn(&TargetName) -> bool) -> Vec<TargetName> {
        let mut idle = Vec::new();
        let press = self.allocations.iter().filter(|allocation| {
            let long = |since: &Instant| since.elapsed() >= PRESSED;
            allocation.waits.as_ref().is_some_and(long)
        });
        let pressed: Vec<Arc<Cluster>> = press.map(|waits| waits.cluster.clone()).collect();
        for allocation in &mut self.allocations {
            let used = allocation.nodes.iter().any(|(node, _)| is_used(node));
            let is_pressed = pressed
                .iter()
                .any(|cluster| Arc::ptr_eq(cluster, &allocation.cluster));
            let limit = match allocation.slurm.idle {
                idle if is_pressed => idle.min(PRESSED),
                idle => idle,
            };
            if !used && allocation.used.elapsed() < limit {
                continue;
            }
            allocation.used = Instant::now();
            if !used {
                idle.push(allocation.name.clone());
            }
        }
        idle
    }

    /// Gives an allocation back. Its workers must have ended; its nodes are told.
    pub fn release(&mut self, name: &TargetName) -> Vec<TargetName> {
        let is_it = |allocation: &mut Allocation| allocation.name == *name;
        let released = self.allocations.extract_if(.., is_it);
        let nodes = released.flat_map(|allocation| {
            let (done, _) = oneshot::channel();
            let _ = allocation.orders.send(Order::Release(done));
            allocation.nodes.into_iter().map(|(node, _)| node)
        });
        nodes.collect()
    }

    /// Whether nodes use the mailboxes of their allocations, since they cannot connect to the login node.
    pub async fn uses_mail(&self) -> bool {
        for allocation in &self.allocations {
            let JobState::Prepared { folder } = allocation.state.borrow().clone() else {
                continue;
            };
            let lines = format!("ls -A {folder}/mail 2>/dev/null");
            let listed = allocation.cluster.commands().run("ls", &lines, LISTING);
            if listed
                .await
                .is_ok_and(|output| !output.stdout.trim().is_empty())
            {
                return true;
            }
        }
        false
    }

    /// Gives all back, or leaves those to the next kernel that may be kept; resolves when that is done.
    pub fn end(self, keep: bool) -> impl Future<Output = ()> {
        let mut endings = Vec::new();
        for allocation in self.allocations {
            if keep && allocation.slurm.keep {
                let _ = allocation.orders.send(Order::Leave);
                continue;
            }
            let (done, over) = oneshot::channel();
            if allocation.orders.send(Order::Release(done)).is_ok() {
                endings.push(over);
            }
        }
        let clusters = self.clusters;
        async move {
            futures::future::join_all(endings).await;
            for (_, cluster) in clusters {
                let _ =
                    tokio::time::timeout(Duration::from_millis(500), cluster.login().leave()).await;
            }
        }
    }
}

impl Allocation {
    /// How many GPUs each of its nodes has.
    fn gpus(&self) -> u32 {
        self.request
            .gpus
            .as_ref()
            .map_or(0, |gpus| gpus.count.get())
    }

    fn is_over(&self) -> bool {
        matches!(*self.state.borrow(), JobState::Ended(..))
            || self.nodes.iter().all(|(_, lost)| *lost)
    }
}
