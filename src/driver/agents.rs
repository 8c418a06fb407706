//! The agents of this session: the one inside this process for `home`, a process each for local targets, and
//! one on each far host.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use cellferry_agent::guard::Guard;
use cellferry_agent::{Agent, Mapped, OWN_PROGRAM, RunDir};
use cellferry_ssh::Question;
use cellferry_wire::protocol::{
    Exit, FromAgent, Hello, PIECE, StartFailure, ToAgent, WorkerId, WorkerSpec,
};
use cellferry_wire::{Connection, Sender};
use tokio::process::Child;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::timeout;
use zeroize::Zeroizing;

use super::arrivals::Arrivals;
use super::carry::Machine;
use super::cells::Cells;
use super::cluster::{Clusters, JobNews, Load};
use super::far::{Far, LinkState};
use super::files::{End, MODULES, Remote, Staged};
use super::host::Host;
use crate::session::{Gone, HOME, Problem, TargetName};
use crate::target::config::{ConfigError, Place, Ssh, Target};
use crate::target::home::{HomePython, home_python};
use crate::target::shape::Shape;
use crate::target::{launch, ranks};

/// How long agents have to end their workers and themselves.
const END_LIMIT: Duration = Duration::from_secs(4);

/// How long the cancelling of jobs may take.
const RELEASE_LIMIT: Duration = Duration::from_secs(4);

/// How long a worker that is of no use has to end.
const GRACE: Duration = Duration::from_secs(1);

/// What comes from the locations.
#[derive(Debug)]
pub enum FromLocation {
    /// A message of an agent.
    Message(TargetName, FromAgent),
    /// These workers are out of reach, or could never be started.
    Failed {
        /// Which.
        workers: Vec<WorkerId>,
        /// Why.
        problem: Problem,
    },
    /// Values could not be taken.
    TransferFailed {
        /// Which transfer.
        transfer: u64,
        /// Why.
        reason: String,
    },
    /// Files have been brought for a worker, or could not be.
    Staged(WorkerId, Staged),
    /// An agent has ended, or its location is lost: with what to tell of it, and what it means for what ran there if that is
    /// known.
    AgentGone(TargetName, Problem, Option<Gone>),
    /// What becomes of an allocation.
    Job(TargetName, JobNews),
    /// The link to a far agent dropped, or is back.
    Link(TargetName, LinkState),
    /// A far host asks something that only the user knows; dropped if there is nobody to ask.
    Ask(
        TargetName,
        Question,
        oneshot::Sender<Option<Zeroizing<String>>>,
    ),
    /// A far host, or the way to it, has something to say.
    Tell(TargetName, String),
}

enum Link {
    /// Inside this process.
    Here(Agent),
    /// A process of its own.
    Process {
        sender: Sender<ToAgent>,
        child: Child,
    },
    /// On another machine.
    Far(Far),
}

impl Link {
    /// Ends the agent and its workers.
    async fn end(self) {
        match self {
            Self::Here(agent) => agent.shutdown().await,
            Self::Process { sender, mut child } => {
                sender.queue(ToAgent::Shutdown);
                sender.finish();
                let _ = child.wait().await;
            }
            Self::Far(far) => far.shutdown().await,
        }
    }
}

/// What has become of the wish for a worker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Start {
    /// It is on its way.
    Begun,
    /// Others at these locations have the GPUs that it needs.
    Later(Vec<TargetName>),
}

/// A worker's place, as the user would say it.
#[derive(Debug)]
pub struct Seat {
    target: TargetName,
    /// The location of its agent: the target itself, unless that has several.
    location: TargetName,
    /// What the user calls its Python.
    python: String,
    /// How the user's own shell gets to where its commands run: empty on this machine, else `ssh HOST `.
    shell: String,
    /// Its process, once it is up; an island has several, which cannot all copy from another's memory.
    pid: Option<u32>,
    /// The GPUs that nobody else may use at its location, nor at the others that its ranks are on.
    gpus: Vec<u32>,
    others: Vec<TargetName>,
    /// Whether it is an island of ranks.
    island: bool,
}

/// The seat of a worker on a far host, or a node that is reached from there; `None` if that is this machine.
pub fn seat_there(target: &Target, ssh: Option<&Ssh>) -> Seat {
    Seat {
        target: target.name.as_str().into(),
        location: target.name.as_str().into(),
        python: launch::name_there(target),
        shell: ssh.map_or_else(String::new, |ssh| format!("ssh {} ", ssh.host)),
        pid: None,
        gpus: Vec::new(),
        others: Vec::new(),
        island: false,
    }
}

/// How a worker on a far host is started.
pub fn spec_there(target: &Target) -> WorkerSpec {
    spec(target, launch::there(target))
}

fn spec(target: &Target, argv: Vec<String>) -> WorkerSpec {
    let env = target
        .env
        .iter()
        .map(|(name, value)| (name.clone(), value.clone()));
    let workdir = target
        .workdir
        .as_ref()
        .map(|path| path.display().to_string());
    WorkerSpec {
        argv,
        env: env.collect(),
        workdir,
        gpus: None,
        ranks: None,
    }
}

impl Seat {
    /// Where it has its GPUs to itself.
    fn locations(&self) -> impl Iterator<Item = &TargetName> {
        std::iter::once(&self.location).chain(&self.others)
    }

    fn is_at(&self, location: &TargetName) -> bool {
        self.locations().any(|other| other == location)
    }

    /// The error for a worker that did not start.
    pub fn start_problem(&self, failure: &StartFailure) -> Problem {
        let Seat {
            target,
            python,
            shell,
            ..
        } = self;
        let table = Shape::parse(target).target;
        if let StartFailure::Exited { stderr_tail, .. } = failure
            && self.island
            && let Some(name) = ranks::missing_launcher(stderr_tail)
        {
            return Problem::new(
                "NoMpi",
                format!(
                    "the ranks of `{target}` cannot be started: there is no `{name}` on PATH; \
                     load or add it in `setup` under [targets.{table}] in cellferry.toml"
                ),
            );
        }
        if let StartFailure::Exited { stderr_tail, .. } = failure
            && let Some(reason) = launch::missing_python(stderr_tail)
        {
            return Problem::new(
                "NoPython",
                format!(
                    "a worker of `{target}` cannot be started: {reason}; \
                     set `python`, `conda` or `setup` under [targets.{table}] in cellferry.toml"
                ),
            );
        }
        match failure {
            StartFailure::Exited { stderr_tail, .. }
                if stderr_tail.contains("No module named ipykernel")
                    || stderr_tail.contains("No module named 'ipykernel") =>
            {
                Problem::new(
                    "MissingIpykernel",
                    format!(
                        "the Python of `{target}`, `{python}`, has no ipykernel, which its workers need; \
                         install it with\n    {shell}{python} -m pip install ipykernel"
                    ),
                )
            }
            StartFailure::NoProgram { error, .. } => Problem::new(
                "NoPython",
                format!(
                    "the Python of `{target}`, `{python}`, cannot be run: {error}; set `python` under [targets.{table}] in cellferry.toml"
                ),
            ),
            StartFailure::Workdir { path, error } => Problem::new(
                "WorkdirError",
                format!(
                    "the working directory of `{target}`, `{path}`, cannot be used: {error}; set `workdir` under [targets.{table}] in cellferry.toml"
                ),
            ),
            failure => Problem::new(
                "WorkerError",
                format!("a worker of `{target}` ({python}) did not start: {failure}"),
            ),
        }
    }
}

/// The home Python.
pub fn find_python(explicit: Option<&Path>) -> Result<HomePython, String> {
    let executable = std::env::current_exe().unwrap_or_default();
    home_python(explicit, &|name| std::env::var_os(name), &executable)
}

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

    /// Starts a worker of the target; its agent first, if there is none.
    pub async fn start(
        &mut self,
        worker: WorkerId,
        target: &TargetName,
        cells: &Cells,
    ) -> Result<Start, Problem> {
        // It may have been tried before.
        self.workers.remove(&worker);
        let shape = Shape::parse(target);
        let wrong = |error: ConfigError| match error {
            ConfigError::Unknown { .. } => {
                Problem::new("TargetError", format!("`workflow.target`: {error}"))
            }
            error => Problem::new("TargetError", error.to_string()),
        };
        let definition = cells.target(&shape.target).map_err(wrong)?;
        let mut node = None;
        let mut seat = match &definition.place {
            Place::Local => Seat {
                target: target.clone(),
                location: definition.name.as_str().into(),
                python: self.python_of(&definition)?,
                shell: String::new(),
                pid: None,
                gpus: Vec::new(),
                others: Vec::new(),
                island: false,
            },
            Place::Ssh(ssh) => Seat {
                target: target.clone(),
                ..seat_there(&definition, Some(ssh))
            },
            Place::Slurm(slurm) => {
                let login = cells.login(&definition, slurm).map_err(wrong)?;
                let plain = seat_there(&definition, login.as_ref());
                self.prepare(target)?;
                let run_dir = self.run_dir.as_ref().map(|dir| dir.path().to_owned());
                let place = (&definition, &**slurm, login);
                let mut loads: HashMap<&TargetName, Load> = HashMap::new();
                for seat in self.workers.values() {
                    loads.entry(&seat.location).or_default().workers += 1;
                    for location in seat.locations() {
                        loads.entry(location).or_default().gpus += seat.gpus.len();
                    }
                }
                let load = |location: &TargetName| loads.get(location).copied().unwrap_or_default();
                let clusters = &mut self.clusters;
                let found = clusters.node(place, &shape, run_dir, &self.events, load);
                let seat = Seat {
                    target: target.clone(),
                    location: found.location.clone(),
                    ..plain
                };
                node = Some(found);
                seat
            }
        };
        let mut spec = match &definition.place {
            Place::Local => {
                let argv = launch::here(&definition, &seat.python, &**target == HOME);
                spec(&definition, argv)
            }
            Place::Ssh(_) => spec_there(&definition),
            // The job has run the setup before the agent, which hands its environment on.
            Place::Slurm(_) => spec_there(&Target {
                setup: None,
                ..definition.clone()
            }),
        };
        let mut gpus = shape.gpus(&definition);
        if let Some(count) = shape.resources.ranks {
            let mut needs = shape.resources.clone();
            if let (Some(each), Some(node)) = (needs.gpus, &node) {
                // Which of them each node's ranks have must be known before they are started.
                let nodes = needs.nodes.unwrap_or(node.nodes()).min(count);
                needs.nodes = Some(nodes);
                seat.others = node.others_of(nodes);
                gpus = Some(each.saturating_mul(ranks::on_each(count, nodes)));
            } else {
                gpus = needs.gpus.map(|each| each.saturating_mul(count.get()));
            }
            spec.ranks = Some(match &definition.place {
                Place::Slurm(slurm) => {
                    // The job has run the setup before the agent.
                    let prepared = Target {
                        setup: None,
                        ..definition.clone()
                    };
                    ranks::in_allocation(&prepared, &slurm.mpi, count, &needs)
                }
                Place::Local | Place::Ssh(_) => ranks::on_one_machine(&definition, count, &needs),
            });
            seat.island = true;
        }
        if let Some(count) = gpus {
            let has = node.as_ref().map_or(definition.gpus, |node| node.gpus);
            match self.free_gpus(&seat, has, count) {
                Some(gpus) => seat.gpus = gpus,
                None => return Ok(Start::Later(seat.locations().cloned().collect())),
            }
            spec.gpus = Some(seat.gpus.clone());
        }
        let location = seat.location.clone();
        self.workers.insert(worker, seat);
        if let Some(waiting) = self.ending.get_mut(&location) {
            waiting.push(worker);
            return Ok(Start::Begun);
        }
        self.prepare(target)?;
        if !self.links.contains_key(&location) {
            let (arrivals, events) = (self.arrivals.clone(), self.events.clone());
            let link = match (&definition.place, node) {
                (Place::Local, _) if &*location == HOME => self.here()?,
                (Place::Ssh(ssh), _) => {
                    let host = Host {
                        target: location.clone(),
                        ssh: ssh.clone(),
                        run_dir: self.run_dir.as_ref().map(|dir| dir.path().to_owned()),
                        events: events.clone(),
                    };
                    Link::Far(Far::start(host, arrivals, events))
                }
                (_, Some(node)) => Link::Far(Far::start(node, arrivals, events)),
                _ => self.process(&location).await?,
            };
            self.links.insert(location, link);
        }
        self.send(worker, ToAgent::StartWorker { worker, spec });
        Ok(Start::Begun)
    }

    /// So many GPUs at the locations of a seat, each of which has `has` of them, and of which no other worker there has any.
    fn free_gpus(&self, place: &Seat, has: u32, count: u32) -> Option<Vec<u32>> {
        let there = self
            .workers
            .values()
            .filter(|seat| place.locations().any(|location| seat.is_at(location)));
        let taken: BTreeSet<u32> = there.flat_map(|seat| seat.gpus.iter().copied()).collect();
        let free = (0..has).filter(|gpu| !taken.contains(gpu));
        let gpus: Vec<u32> = free.take(count as usize).collect();
        (gpus.len() == count as usize).then_some(gpus)
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

    fn python_of(&self, target: &Target) -> Result<String, Problem> {
        match &target.python {
            Some(python) => Ok(python.clone()),
            // Looked for anew each time: the user may just have installed it.
            None => find_python(self.python.as_deref())
                .map(|python| python.path.display().to_string())
                .map_err(|reason| Problem::new("NoPython", reason)),
        }
    }

    /// Makes the private directories, and the guard that removes them if this process is killed.
    fn prepare(&mut self, target: &str) -> Result<(), Problem> {
        if self.guard.is_some() {
            return Ok(());
        }
        let failed = |error: String| {
            Problem::new(
                "WorkerError",
                format!("no worker can be started for `{target}`: {error}"),
            )
        };
        let run_dir = RunDir::make().map_err(|error| failed(error.to_string()))?;
        let segments = RunDir::for_values().map_err(|error| failed(error.to_string()))?;
        let guard = Guard::start(
            OWN_PROGRAM.as_ref(),
            &["guard"],
            &[run_dir.path(), segments.path()],
        );
        self.guard =
            Some(guard.map_err(|error| failed(format!("its guard does not start: {error}")))?);
        self.run_dir = Some(run_dir);
        self.segments = Some(segments);
        Ok(())
    }

    fn here(&self) -> Result<Link, Problem> {
        let run_dir = self
            .run_dir
            .as_ref()
            .ok_or_else(|| Problem::new("WorkerError", "no run directory".to_owned()))?;
        let segments = self
            .segment_dir(&Machine::Home)
            .map_err(|error| Problem::new("WorkerError", error))?;
        let (agent, mut inbox) = Agent::local(run_dir.path(), &segments);
        let events = self.events.clone();
        tokio::spawn(async move {
            while let Some(message) = inbox.recv().await {
                let message = FromLocation::Message(HOME.into(), message);
                if events.send(message).is_err() {
                    break;
                }
            }
        });
        Ok(Link::Here(agent))
    }

    async fn process(&self, target: &TargetName) -> Result<Link, Problem> {
        let failed = |reason: String| {
            Problem::new(
                "AgentError",
                format!("the agent of `{target}` does not start: {reason}"),
            )
        };
        let mut child = tokio::process::Command::new(OWN_PROGRAM)
            .arg0(std::env::args_os().next().unwrap_or_default())
            .arg("agent")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .map_err(|error| failed(error.to_string()))?;
        let (Some(writer), Some(reader)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(failed("its standard streams are missing".to_owned()));
        };
        let Connection {
            sender,
            mut receiver,
        } = Connection::<ToAgent, FromAgent>::start(reader, writer)
            .await
            .map_err(|error| failed(error.to_string()))?;
        let events = self.events.clone();
        let target = target.clone();
        tokio::spawn(async move {
            while let Some(message) = receiver.recv().await {
                match message {
                    Ok(message) => {
                        let message = FromLocation::Message(target.clone(), message);
                        if events.send(message).is_err() {
                            return;
                        }
                    }
                    Err(error) => tracing::error!("the agent of `{target}`: {error}"),
                }
            }
            let problem = Problem::new(
                "AgentDied",
                format!(
                    "the agent of `{target}` died, and its workers with it; the next cell on `{target}` starts a new one"
                ),
            );
            let _ = events.send(FromLocation::AgentGone(target, problem, None));
        });
        Ok(Link::Process { sender, child })
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

    /// Sends the file of a value to a far host, which answers once it has it.
    pub fn upload(&mut self, target: &TargetName, transfer: u64, size: u64) -> Result<(), String> {
        let path = self.segment_dir(&Machine::Home)?.join(transfer.to_string());
        let Some(Link::Far(far)) = self.links.get(target) else {
            return Err(format!("`{target}` is lost"));
        };
        let sender = far.sender.clone();
        let events = self.events.clone();
        tokio::spawn(async move {
            if let Err(error) = upload(&sender, transfer, size, &path).await {
                let reason = format!("cannot read {}: {error}", path.display());
                let failed = FromAgent::TransferFailed { transfer, reason };
                let _ = events.send(FromLocation::Message(HOME.into(), failed));
            }
        });
        Ok(())
    }

    /// The files of the far host that a worker is on.
    pub fn remote(&self, worker: WorkerId) -> Option<Remote> {
        let location = &self.workers.get(&worker)?.location;
        match self.links.get(location)? {
            Link::Far(far) => Some(Remote::new(
                location.clone(),
                far.sender.clone(),
                far.answers.clone(),
            )),
            Link::Here(_) | Link::Process { .. } => None,
        }
    }

    /// Between what files go for a worker whose working directory is `folder`: home, and where it is.
    pub fn ends(&self, worker: WorkerId, folder: String, home: String) -> Option<(End, End)> {
        // Of the target, not its shape: that is what `[[shared]]` names.
        let target = Shape::parse(&self.workers.get(&worker)?.target).target;
        let remote = self.remote(worker);
        let here = End {
            target: HOME.into(),
            base: self.home_dir.display().to_string(),
            home: cellferry_agent::files::home().display().to_string(),
            remote: None,
        };
        let there = End {
            target: target.into(),
            base: folder,
            home,
            remote,
        };
        Some((here, there))
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

    /// The allocation that a location is a node of.
    pub fn allocation_of(&self, location: &TargetName) -> Option<TargetName> {
        self.clusters.allocation_of(location).cloned()
    }

    /// Whether the agent of a node of an allocation has come.
    pub fn has_come(&self, allocation: &TargetName) -> bool {
        let mut come = self.hellos.keys();
        come.any(|location| self.clusters.allocation_of(location) == Some(allocation))
    }

    /// Where a worker is.
    pub fn target(&self, worker: WorkerId) -> Option<&TargetName> {
        self.workers.get(&worker).map(|seat| &seat.target)
    }

    /// An agent has ended: its workers with it.
    pub fn agent_gone(&mut self, target: &TargetName) -> Vec<WorkerId> {
        self.links.remove(target);
        self.hellos.remove(target);
        self.down.remove(target);
        self.clusters.lost(target);
        let workers = self.workers.iter();
        let there = workers.filter(|(_, seat)| seat.location == *target);
        there.map(|(worker, _)| *worker).collect()
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

    /// Ends the agent of a target that has no worker any more, or its allocations, and says whether there were any; the end
    /// of an agent is told as an event.
    pub fn end_unused(&mut self, target: &TargetName) -> bool {
        if !self.workers_of(target).is_empty() || **target == *HOME {
            return false;
        }
        let allocations = self.clusters.of_target(target);
        for allocation in &allocations {
            self.release(allocation);
        }
        if let Some(link) = self.links.remove(target) {
            self.ending.insert(target.clone(), Vec::new());
            self.endings.spawn(link.end());
            return true;
        }
        !allocations.is_empty()
    }

    /// Gives an allocation back that has no worker any more.
    pub fn release(&mut self, allocation: &TargetName) {
        for location in self.clusters.release(allocation) {
            // A link that is dropped ends its agent, and is told as gone.
            self.links.remove(&location);
        }
    }

    /// The workers at a location, or on the nodes of an allocation.
    pub fn workers_at(&self, place: &TargetName) -> Vec<WorkerId> {
        let workers = self.workers.keys();
        workers
            .copied()
            .filter(|worker| self.is_at(*worker, place))
            .collect()
    }

    /// The allocations that steps have not used for as long as their targets allow. `is_used` says whether a worker is.
    pub fn idle_allocations(&mut self, is_used: impl Fn(WorkerId) -> bool) -> Vec<TargetName> {
        let used: HashSet<&TargetName> = self
            .workers
            .iter()
            .filter(|(worker, _)| is_used(**worker))
            .map(|(_, seat)| &seat.location)
            .collect();
        self.clusters.idle(|location| used.contains(location))
    }

    /// What is heard of the job of an allocation.
    pub fn heard_of_job(&mut self, allocation: &TargetName, news: &JobNews) {
        self.clusters.heard(allocation, news);
    }

    /// What the job of an allocation is called.
    pub fn job(&self, allocation: &TargetName) -> Option<&str> {
        self.clusters.job(allocation)
    }

    /// If the worker is on a node of a job that has less time left than that: the job, and how much it has.
    pub fn ends_before(&self, worker: WorkerId, time: Duration) -> Option<(String, Duration)> {
        let allocation = self.allocation_of(self.location(worker)?)?;
        self.clusters.ends_before(&allocation, time)
    }

    /// Whether there are allocations.
    pub fn has_allocations(&self) -> bool {
        self.clusters.any()
    }

    /// The workers that wait for an agent to end as it should, with their targets; `None` if it was not to end.
    pub fn ended(&mut self, location: &TargetName) -> Option<Vec<(WorkerId, TargetName)>> {
        let waiting = self.ending.remove(location)?;
        self.hellos.remove(location);
        let wanted = waiting.into_iter().filter_map(|worker| {
            let seat = self.workers.get(&worker)?;
            Some((worker, seat.target.clone()))
        });
        Some(wanted.collect())
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

    /// Where large values are kept on a machine, on their way.
    pub fn segment_dir(&self, machine: &Machine) -> Result<PathBuf, String> {
        match machine {
            Machine::Home => {
                let dir = self.segments.as_ref().map(|dir| dir.path().to_owned());
                dir.ok_or_else(|| "there is no shared memory".to_owned())
            }
            Machine::Far(target) => {
                let hello = self.hellos.get(target);
                hello
                    .map(|hello| PathBuf::from(&hello.segment_dir))
                    .ok_or_else(|| format!("`{target}` is lost"))
            }
        }
    }

    /// The notebook's folder.
    pub fn folder(&self) -> &Path {
        &self.home_dir
    }

    /// Where the user's own modules are that a worker elsewhere would not look at.
    pub fn modules(&self, worker: WorkerId) -> Option<String> {
        let folder = match self.machine(worker)? {
            Machine::Home if &*self.workers.get(&worker)?.target == HOME => return None,
            Machine::Home => self.home_dir.clone(),
            Machine::Far(target) => Path::new(&self.hellos.get(&target)?.run_dir).join(MODULES),
        };
        Some(folder.display().to_string())
    }

    /// The error for a worker that did not start.
    pub fn start_problem(&self, worker: WorkerId, failure: &StartFailure) -> Problem {
        match self.workers.get(&worker) {
            Some(seat) => seat.start_problem(failure),
            None => Problem::new("WorkerError", failure.to_string()),
        }
    }

    /// Whether a worker on a node of a job died as the end of the job would have it; what becomes of the job is asked then.
    pub fn may_end_with_job(&mut self, worker: WorkerId, exit: &Exit) -> bool {
        /// What batch systems end processes with.
        const SIGNALS: [i32; 2] = [9, 15];
        let Some(seat) = self.workers.get(&worker) else {
            return false;
        };
        let Some(allocation) = self.clusters.allocation_of(&seat.location).cloned() else {
            return false;
        };
        let by_signal = exit.signal.is_some_and(|signal| SIGNALS.contains(&signal));
        // What starts ranks has exit codes of its own.
        let may = (by_signal || seat.island) && exit.out_of_memory != Some(true);
        if may {
            self.clusters.hurry(&allocation);
        }
        may
    }

    /// Whether the job of a worker's node is known to end, or the node is out of reach, as it would be then.
    pub fn is_job_ending(&self, worker: WorkerId) -> bool {
        let Some(location) = self.location(worker) else {
            return true;
        };
        let allocation = self.clusters.allocation_of(location);
        self.down.contains(location)
            || allocation.is_none_or(|allocation| self.clusters.is_ending(allocation))
    }

    /// There is no link to a far agent for now.
    pub fn link_lost(&mut self, location: &TargetName) {
        self.down.insert(location.clone());
    }

    /// The link to a far agent is there again.
    pub fn link_back(&mut self, location: &TargetName) {
        self.down.remove(location);
    }

    /// The error for a worker that died.
    pub fn death_problem(
        &self,
        worker: WorkerId,
        rank: Option<u32>,
        exit: &Exit,
        stderr_tail: &str,
    ) -> Problem {
        let seat = self.workers.get(&worker);
        let target = seat.map_or("?", |seat| &*seat.target);
        let who = match (rank, seat.is_some_and(|seat| seat.island)) {
            (Some(rank), _) => format!("rank {rank} of `{target}` died"),
            (None, true) => format!("what had started the ranks of `{target}` ended"),
            (None, false) => format!("the worker of `{target}` died"),
        };
        let next = match seat.is_some_and(|seat| seat.island) {
            true => "all ranks were ended, and new ones are started when they are needed",
            false => "another one is started when it is needed",
        };
        let words = stderr_tail.trim();
        let last = if words.is_empty() {
            String::new()
        } else {
            format!("; its last words:\n{words}")
        };
        Problem::new("WorkerDied", format!("{who} ({exit}); {next}{last}"))
    }

    /// The error for a worker in which the helper cannot be installed.
    pub fn helper_problem(&self, worker: WorkerId, exception: &str) -> Problem {
        let (target, python, shell) = self.workers.get(&worker).map_or(("?", "?", ""), |seat| {
            (&*seat.target, seat.python.as_str(), seat.shell.as_str())
        });
        Problem::new(
            "WorkerError",
            format!(
                "the worker of `{target}` ({python}) could not be set up: {exception}; \
                 ipykernel 6 or newer on Python 3.8 or newer is needed: {shell}{python} -m pip install --upgrade ipykernel"
            ),
        )
    }

    /// A worker could not take back what a cell did that ran before its turn.
    pub fn undo_problem(&self, worker: WorkerId, exception: &str) -> Problem {
        let target = self.workers.get(&worker).map_or("?", |seat| &*seat.target);
        Problem::new(
            "WorkerError",
            format!(
                "the worker of `{target}` could not take back a cell that had run before its turn, and was stopped: {exception}"
            ),
        )
    }

    /// Ends all agents and their workers, and removes all files. Allocations are given back, or left to the next kernel if it
    /// `restarts` and they may be kept.
    pub async fn shutdown(mut self, restarts: bool) {
        for (location, link) in self.links {
            // One that has not come yet cannot be told to end; its job is ended.
            let is_waiting = !self.hellos.contains_key(&location);
            if !is_waiting || self.clusters.allocation_of(&location).is_none() {
                self.endings.spawn(link.end());
            }
        }
        if timeout(END_LIMIT, self.endings.join_all()).await.is_err() {
            tracing::warn!("not all workers ended in time; they are killed");
        }
        if timeout(RELEASE_LIMIT, self.clusters.end(restarts))
            .await
            .is_err()
        {
            tracing::warn!("not all jobs could be cancelled; they end by their patience");
        }
        // The guard kills what is left; then the directories go.
        drop(self.guard);
        drop(self.run_dir);
        drop(self.segments);
    }
}

/// In which way a worker ended: whether it was the doing of what ran in it.
pub fn how(exit: &Exit) -> Gone {
    /// SIGILL, SIGABRT, SIGFPE and SIGSEGV: a crash of the code itself, which would crash again.
    const CRASHES: [i32; 4] = [4, 6, 8, 11];
    match exit.signal {
        Some(signal) if !CRASHES.contains(&signal) => Gone::Killed,
        _ => Gone::Ended,
    }
}

/// In which way a worker did not start: whether something killed it, or another one would not start either.
pub fn how_failed(failure: &StartFailure) -> Gone {
    match failure {
        StartFailure::Exited { exit, .. } if how(exit) == Gone::Killed => Gone::Killed,
        _ => Gone::NotStarted,
    }
}

/// Sends a value; gives up without a word when its file is gone, since then nobody needs it.
async fn upload(
    sender: &Sender<ToAgent>,
    transfer: u64,
    size: u64,
    path: &Path,
) -> std::io::Result<()> {
    let value = Mapped::new(std::fs::File::open(path)?)?;
    if value.size() < size {
        return Err(std::io::ErrorKind::UnexpectedEof.into());
    }
    sender.queue(ToAgent::Receive { transfer, size });
    for offset in (0..size).step_by(PIECE) {
        if !path.try_exists().unwrap_or(true) {
            break;
        }
        for bytes in value.piece(offset)? {
            if !sender.send(ToAgent::Data { transfer, bytes }).await {
                return Ok(());
            }
        }
    }
    Ok(())
}
