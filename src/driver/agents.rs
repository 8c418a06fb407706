//! The agents of this session: the one inside this process for `home`, and a process each for
//! targets elsewhere.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use cellferry_agent::guard::Guard;
use cellferry_agent::{Agent, OWN_PROGRAM, RunDir};
use cellferry_wire::protocol::{Exit, FromAgent, StartFailure, ToAgent, WorkerId, WorkerSpec};
use cellferry_wire::{Connection, Sender};
use tokio::process::Child;
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::cells::Cells;
use crate::session::{HOME, Problem, TargetName};
use crate::target::config::{ConfigError, Target};
use crate::target::home::{HomePython, home_python};

/// How long agents have to end their workers and themselves.
const END_LIMIT: Duration = Duration::from_secs(4);

/// How long a worker that is of no use has to end.
const GRACE: Duration = Duration::from_secs(1);

/// What comes from the locations.
#[derive(Debug)]
pub enum FromLocation {
    /// A message of an agent.
    Message(FromAgent),
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
    /// An agent's process has ended.
    AgentGone(TargetName),
}

enum Link {
    /// Inside this process.
    Here(Agent),
    /// A process of its own.
    Process {
        sender: Sender<ToAgent>,
        child: Child,
    },
}

struct Place {
    target: TargetName,
    /// What the user calls its Python.
    python: String,
    /// Its process, once it is up.
    pid: Option<u32>,
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
    workers: HashMap<WorkerId, Place>,
    run_dir: Option<RunDir>,
    segments: Option<RunDir>,
    guard: Option<Guard>,
    events: mpsc::UnboundedSender<FromLocation>,
}

impl Agents {
    /// No agent is started yet.
    pub fn new(python: Option<PathBuf>) -> (Self, mpsc::UnboundedReceiver<FromLocation>) {
        let (events, inbox) = mpsc::unbounded_channel();
        let agents = Self {
            python,
            home_dir: std::env::current_dir().unwrap_or_default(),
            links: HashMap::new(),
            workers: HashMap::new(),
            run_dir: None,
            segments: None,
            guard: None,
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
    ) -> Result<(), Problem> {
        let definition = cells.target(target).map_err(|error| match error {
            ConfigError::Unknown { .. } => {
                Problem::new("TargetError", format!("`workflow.target`: {error}"))
            }
            error => Problem::new("TargetError", error.to_string()),
        })?;
        let python = self.python_of(&definition)?;
        self.workers.insert(
            worker,
            Place {
                target: target.clone(),
                python: python.clone(),
                pid: None,
            },
        );
        self.prepare(target)?;
        if !self.links.contains_key(target) {
            let link = if &**target == HOME {
                self.here()?
            } else {
                self.process(target).await?
            };
            self.links.insert(target.clone(), link);
        }
        self.send(
            worker,
            ToAgent::StartWorker {
                worker,
                spec: spec(&definition, python, &**target == HOME),
            },
        );
        Ok(())
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
            .segment_dir()
            .map_err(|error| Problem::new("WorkerError", error))?;
        let (agent, mut inbox) = Agent::local(run_dir.path(), &segments);
        let events = self.events.clone();
        tokio::spawn(async move {
            while let Some(message) = inbox.recv().await {
                if events.send(FromLocation::Message(message)).is_err() {
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
                        if events.send(FromLocation::Message(message)).is_err() {
                            return;
                        }
                    }
                    Err(error) => tracing::error!("the agent of `{target}`: {error}"),
                }
            }
            let _ = events.send(FromLocation::AgentGone(target));
        });
        Ok(Link::Process { sender, child })
    }

    /// Sends a command to the agent of a worker.
    pub fn send(&mut self, worker: WorkerId, command: ToAgent) {
        let Some(place) = self.workers.get(&worker) else {
            return;
        };
        match self.links.get_mut(&place.target) {
            Some(Link::Here(agent)) => agent.command(command),
            Some(Link::Process { sender, .. }) => sender.queue(command),
            None => {}
        }
    }

    /// A worker answers.
    pub fn is_up(&mut self, worker: WorkerId, pid: u32) {
        if let Some(place) = self.workers.get_mut(&worker) {
            place.pid = Some(pid);
        }
    }

    /// The process of a worker on this machine.
    pub fn pid(&self, worker: WorkerId) -> Option<u32> {
        self.workers.get(&worker)?.pid
    }

    /// Where a worker is.
    pub fn target(&self, worker: WorkerId) -> Option<&TargetName> {
        self.workers.get(&worker).map(|place| &place.target)
    }

    /// An agent's process has ended: its workers with it.
    pub fn agent_gone(&mut self, target: &TargetName) -> (Vec<WorkerId>, Problem) {
        self.links.remove(target);
        let workers = self
            .workers
            .iter()
            .filter(|(_, place)| place.target == *target)
            .map(|(worker, _)| *worker)
            .collect();
        let problem = Problem::new(
            "AgentDied",
            format!(
                "the agent of `{target}` died, and its workers with it; the next cell on `{target}` starts a new one"
            ),
        );
        (workers, problem)
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

    /// Where large values of this machine are kept on their way.
    pub fn segment_dir(&self) -> Result<PathBuf, String> {
        self.segments
            .as_ref()
            .map(|dir| dir.path().to_owned())
            .ok_or_else(|| "there is no shared memory".to_owned())
    }

    /// Places of the user's own modules that a worker elsewhere would not look at.
    pub fn module_paths(&self, worker: WorkerId) -> Vec<String> {
        match self.workers.get(&worker) {
            Some(place) if &*place.target != HOME => vec![self.home_dir.display().to_string()],
            _ => Vec::new(),
        }
    }

    /// The error for a worker that did not start.
    pub fn start_problem(&self, worker: WorkerId, failure: &StartFailure) -> Problem {
        let Some(place) = self.workers.get(&worker) else {
            return Problem::new("WorkerError", failure.to_string());
        };
        let Place { target, python, .. } = place;
        match failure {
            StartFailure::Exited { stderr_tail, .. }
                if stderr_tail.contains("No module named ipykernel")
                    || stderr_tail.contains("No module named 'ipykernel") =>
            {
                Problem::new(
                    "MissingIpykernel",
                    format!(
                        "the Python of `{target}`, `{python}`, has no ipykernel, which its workers need; \
                         install it with\n    {python} -m pip install ipykernel"
                    ),
                )
            }
            StartFailure::NoProgram { error, .. } => Problem::new(
                "NoPython",
                format!(
                    "the Python of `{target}`, `{python}`, cannot be run: {error}; set `python` under [targets.{target}] in cellferry.toml"
                ),
            ),
            StartFailure::Workdir { path, error } => Problem::new(
                "WorkdirError",
                format!(
                    "the working directory of `{target}`, `{path}`, cannot be used: {error}; set `workdir` under [targets.{target}] in cellferry.toml"
                ),
            ),
            failure => Problem::new(
                "WorkerError",
                format!("a worker of `{target}` ({python}) did not start: {failure}"),
            ),
        }
    }

    /// The error for a worker that died.
    pub fn death_problem(&self, worker: WorkerId, exit: &Exit, stderr_tail: &str) -> Problem {
        let target = self
            .workers
            .get(&worker)
            .map_or("?", |place| &*place.target);
        let words = stderr_tail.trim();
        let last = if words.is_empty() {
            String::new()
        } else {
            format!("; its last words:\n{words}")
        };
        Problem::new(
            "WorkerDied",
            format!(
                "the worker of `{target}` died ({exit}); what only it held is lost, and the next cell gets a new worker{last}"
            ),
        )
    }

    /// The error for a worker in which the helper cannot be installed.
    pub fn helper_problem(&self, worker: WorkerId, exception: &str) -> Problem {
        let (target, python) = self
            .workers
            .get(&worker)
            .map_or(("?", "?"), |place| (&*place.target, place.python.as_str()));
        Problem::new(
            "WorkerError",
            format!(
                "the worker of `{target}` ({python}) could not be set up: {exception}; \
                 ipykernel 6 or newer on Python 3.8 or newer is needed: {python} -m pip install --upgrade ipykernel"
            ),
        )
    }

    /// A worker could not take back what a cell did that ran before its turn.
    pub fn undo_problem(&self, worker: WorkerId, exception: &str) -> Problem {
        let target = self
            .workers
            .get(&worker)
            .map_or("?", |place| &*place.target);
        Problem::new(
            "WorkerError",
            format!(
                "the worker of `{target}` could not take back a cell that had run before its turn, and was stopped: {exception}"
            ),
        )
    }

    /// Ends all agents and their workers, and removes all files.
    pub async fn shutdown(self) {
        let mut endings = Vec::new();
        for link in self.links.into_values() {
            endings.push(async move {
                match link {
                    Link::Here(agent) => agent.shutdown().await,
                    Link::Process { sender, mut child } => {
                        sender.queue(ToAgent::Shutdown);
                        sender.finish();
                        let _ = child.wait().await;
                    }
                }
            });
        }
        if timeout(END_LIMIT, futures::future::join_all(endings))
            .await
            .is_err()
        {
            tracing::warn!("not all workers ended in time; they are killed");
        }
        // The guard kills what is left; then the directories go.
        drop(self.guard);
        drop(self.run_dir);
        drop(self.segments);
    }
}

fn spec(target: &Target, python: String, home: bool) -> WorkerSpec {
    let mut argv: Vec<String> = [
        &python,
        "-m",
        "ipykernel_launcher",
        "-f",
        "{connection_file}",
    ]
    .map(str::to_owned)
    .to_vec();
    if !home {
        // The notebook's history is kept at home.
        argv.push("--HistoryManager.enabled=False".to_owned());
    }
    WorkerSpec {
        argv,
        env: target
            .env
            .iter()
            .map(|(name, value)| (name.clone(), value.clone()))
            .collect(),
        workdir: target
            .workdir
            .as_ref()
            .map(|path| path.display().to_string()),
    }
}
