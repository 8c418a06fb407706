//! The thin shell around the session: turns messages, processes and signals into events, and
//! effects into deeds. One task, one loop; it decides nothing about cells.

mod again;
mod agents;
mod arrivals;
mod carry;
mod cells;
mod cluster;
mod comms;
mod far;
mod files;
mod history;
mod host;
mod information;
mod magics;
mod notices;
mod orders;
mod parent;
mod probe;
mod questions;
mod release;
mod values;

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use cellferry_kernel::connection::ConnectionFile;
use cellferry_kernel::message::{Header, Message};
use cellferry_kernel::{Author, Frontend, Incoming, Outbox};
use cellferry_wire::protocol::{Channel, FromAgent, Parts, ToAgent, WorkerId};
use serde::Deserialize;
use serde_json::json;
use thiserror::Error;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{Instant, MissedTickBehavior};

pub use self::cells::needed;
pub use self::probe::{User, probe, probe_cluster};

use self::again::Again;
use self::agents::{Agents, FromLocation, Start};
use self::carry::{Carried, Machine};
use self::cells::Cells;
use self::cluster::JobNews;
use self::comms::Comms;
use self::far::LinkState;
use self::files::{Modules, Staging};
use self::magics::Magic;
use self::notices::{Notices, Wait};
use self::questions::{Asker, Questions, Waiting};
use self::release::{Answered, Releases};
use self::values::Values;
use crate::analysis::python::completion_root;
use crate::session::{
    Answer, Asked, Effect, Event, Gone, HOME, Orders, Outcome, PassTo, Problem, Reply, Retired,
    RunId, Session, Taken, TargetName,
};
use crate::target::config::Place;
use crate::target::shape::Shape;

/// How long answers may take to leave before the process ends: ZeroMQ has no linger here.
const FLUSH: Duration = Duration::from_millis(500);

/// How long after a worker's death its batch system would have told that its job ends: it is asked every five seconds.
const JOB_NEWS: Duration = Duration::from_secs(12);

/// How long a job that ends may take for it.
const JOB_END: Duration = Duration::from_secs(60);

/// What a kernel is started with.
#[derive(Debug)]
pub struct Options {
    /// The connection file that the client wrote.
    pub connection_file: PathBuf,
    /// The Python of the home worker that was asked for by name.
    pub python: Option<PathBuf>,
}

/// Why the kernel cannot run at all.
#[derive(Debug, Error)]
pub enum KernelError {
    /// The connection file cannot be used.
    #[error(transparent)]
    Connection(#[from] cellferry_kernel::connection::ConnectionError),
    /// A socket cannot be bound.
    #[error(transparent)]
    Bind(#[from] cellferry_kernel::BindError),
    /// Signals cannot be received.
    #[error("cannot listen for signals: {0}")]
    Signals(std::io::Error),
}

/// Serves one connection file until a client asks for shutdown or the client's process is gone.
pub async fn run(options: Options) -> Result<ExitCode, KernelError> {
    let version =
        information::python_version_of(agents::find_python(options.python.as_deref()).ok());
    let file = ConnectionFile::read(&options.connection_file)?;
    let Frontend {
        mut requests,
        outbox,
    } = cellferry_kernel::bind(&file).await?;
    let values = Values::default();
    let cells = Cells::new(file.jupyter_session.as_deref());
    let notebook = cells
        .notebook()
        // A client that does not tell the notebook starts its kernel again with the same file.
        .map_or_else(|| options.connection_file.clone(), Path::to_owned);
    let notebook = std::path::absolute(&notebook).unwrap_or(notebook);
    let (agents, mut events) = Agents::new(
        options.python,
        values.files.arrivals(),
        &notebook.display().to_string(),
    );
    let modules = Modules::new(agents.folder().to_owned());
    let mut driver = Driver {
        outbox,
        author: Author::new(),
        version,
        session: Session::new(),
        cells,
        agents,
        values,
        staging: Staging::default(),
        modules,
        comms: Comms::default(),
        running: HashMap::new(),
        held: HashMap::new(),
        discarded: HashSet::new(),
        again: Again::default(),
        going_back: HashMap::new(),
        shown: HashMap::new(),
        questions: Questions::default(),
        notices: Notices::default(),
        dying_jobs: HashMap::new(),
        short_of_gpus: HashMap::new(),
        idle: HashMap::new(),
        releases: Releases::default(),
        warm: false,
        ending: None,
    };
    driver.publish(
        driver
            .author
            .message("status", None, &json!({"execution_state": "starting"})),
    );
    let mut interrupts = signal(SignalKind::interrupt()).map_err(KernelError::Signals)?;
    let mut terminations = signal(SignalKind::terminate()).map_err(KernelError::Signals)?;
    let mut orphaned = std::pin::pin!(parent::gone());
    let mut ticks = tokio::time::interval(notices::TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    while driver.ending.is_none() {
        // Signals first: an interrupt concerns what was asked for before it, not after it.
        tokio::select! {
            biased;
            _ = interrupts.recv() => driver.interrupt().await,
            _ = terminations.recv() => driver.ending = Some(Ending::Silent),
            () = &mut orphaned => driver.ending = Some(Ending::Silent),
            _ = ticks.tick(), if driver.has_time_limits() => driver.tick().await,
            Some(arrival) = async { tokio::select! {
                incoming = requests.recv() => incoming.map(Arrival::Request),
                event = events.recv() => event.map(Arrival::Location),
            } } => match arrival {
                Arrival::Request(incoming) => driver.incoming(incoming).await,
                Arrival::Location(event) => driver.arrived(event).await,
            },
        }
    }
    driver.end().await;
    Ok(ExitCode::SUCCESS)
}

/// What the kernel waits for, both with the same right.
enum Arrival {
    Request(Incoming),
    Location(FromLocation),
}

enum Ending {
    /// A client asked for it and gets a reply.
    Asked(Box<Incoming>, bool),
    Silent,
}

struct Driver {
    outbox: Outbox,
    author: Author,
    version: information::Version,
    session: Session,
    cells: Cells,
    agents: Agents,
    values: Values,
    staging: Staging,
    modules: Modules,
    comms: Comms,
    /// Runs in a worker, by the `msg_id` of the request that the worker got and sees as parent.
    running: HashMap<(WorkerId, String), RunId>,
    /// What runs say that have not their turn: it is held back.
    held: HashMap<RunId, Vec<(WorkerId, Channel, Message)>>,
    /// Runs that have been taken back: nothing that they still say is shown.
    discarded: HashSet<RunId>,
    /// What cells show that may have to run again.
    again: Again,
    /// How often each worker has yet to go back. It answers in order, so a reply that comes before is of a run that
    /// has been taken back.
    going_back: HashMap<WorkerId, usize>,
    /// The client's request that each worker saw last: output without a request of its own is shown there.
    shown: HashMap<WorkerId, Bytes>,
    questions: Questions,
    notices: Notices,
    /// Workers that died as they do when their job ends: told when that is known, or once it is known not to be so.
    dying_jobs: HashMap<WorkerId, (Instant, Problem, Gone)>,
    /// Workers that are not started for want of GPUs, with their targets, and where.
    short_of_gpus: HashMap<WorkerId, (TargetName, Vec<TargetName>)>,
    /// Workers that end because their allocation has not been used for long.
    idle: HashMap<WorkerId, TargetName>,
    releases: Releases,
    warm: bool,
    ending: Option<Ending>,
}

#[derive(Deserialize)]
struct ReplyContent {
    status: String,
    #[serde(default)]
    ename: String,
    #[serde(default)]
    evalue: String,
}

impl Driver {
    async fn handle(&mut self, event: Event) {
        let mut events = VecDeque::from([event]);
        while let Some(event) = events.pop_front().or_else(|| self.next_release()) {
            for effect in self.session.handle(event) {
                events.extend(self.perform(effect).await);
            }
        }
    }

    // --- from clients

    async fn incoming(&mut self, incoming: Incoming) {
        let Incoming { channel, message } = incoming;
        if channel == cellferry_kernel::Channel::Stdin {
            self.answered(message);
            return;
        }
        let header = match message.parse_header() {
            Ok(header) => header,
            Err(error) => {
                tracing::warn!("ignored a message whose header cannot be read: {error}");
                return;
            }
        };
        let asked = Arc::new(Asked {
            channel: if channel == cellferry_kernel::Channel::Control {
                Channel::Control
            } else {
                Channel::Shell
            },
            header,
            message,
        });
        match (asked.channel, asked.header.msg_type.as_str()) {
            (_, "kernel_info_request") => {
                let content = self.version.kernel_info().await;
                self.answer(&asked, "kernel_info_reply", &content);
                if !std::mem::replace(&mut self.warm, true) {
                    self.handle(Event::Warm).await;
                }
            }
            (_, "shutdown_request") => {
                let restart = serde_json::from_slice::<serde_json::Value>(&asked.message.content)
                    .ok()
                    .and_then(|content| content.get("restart")?.as_bool())
                    .unwrap_or(false);
                let message = asked.message.clone();
                self.ending = Some(Ending::Asked(
                    Box::new(Incoming { channel, message }),
                    restart,
                ));
            }
            (_, "interrupt_request") => {
                self.interrupt().await;
                self.answer(&asked, "interrupt_reply", &json!({"status": "ok"}));
            }
            (_, "comm_info_request") => {
                let content = self.comms.info(&asked.message.content);
                self.answer(&asked, "comm_info_reply", &content);
            }
            (Channel::Shell, "execute_request") => {
                if let Some(magic) = Magic::parse(&self.cells.code(&asked)) {
                    self.tell(&asked, magic).await;
                } else {
                    self.execute(&asked).await;
                }
            }
            (Channel::Shell, "comm_msg" | "comm_close") => {
                match self.comms.worker(&asked.message.content) {
                    Some(worker) => {
                        if asked.header.msg_type == "comm_close" {
                            self.comms.closed(&asked.message.content);
                        }
                        self.handle(Event::PassOn {
                            request: asked,
                            to: PassTo::Worker(worker),
                        })
                        .await;
                    }
                    None => {
                        self.status(&asked, "busy");
                        tracing::warn!("ignored a comm message for a comm that nobody has opened");
                        self.status(&asked, "idle");
                    }
                }
            }
            (Channel::Shell, "comm_open") if Comms::asks_for_widgets(&asked.message.content) => {
                let workers = self.comms.with_widgets();
                if workers.len() > 1 {
                    // One worker cannot answer for all; refused, the client asks each widget by itself.
                    let content: serde_json::Value =
                        serde_json::from_slice(&asked.message.content).unwrap_or_default();
                    let content = json!({"comm_id": content["comm_id"], "data": {}});
                    self.status(&asked, "busy");
                    self.publish(
                        self.author
                            .message("comm_close", Some(&asked.message), &content),
                    );
                    self.status(&asked, "idle");
                } else {
                    let to = workers
                        .first()
                        .copied()
                        .map_or(PassTo::Home, PassTo::Worker);
                    self.handle(Event::PassOn { request: asked, to }).await;
                }
            }
            (Channel::Shell, "complete_request" | "inspect_request") => {
                let to =
                    completed_name(&asked.message.content).map_or(PassTo::Home, PassTo::HolderOf);
                self.handle(Event::PassOn { request: asked, to }).await;
            }
            _ => {
                self.handle(Event::PassOn {
                    request: asked,
                    to: PassTo::Home,
                })
                .await
            }
        }
    }

    async fn execute(&mut self, asked: &Arc<Asked>) {
        // After an error the session expects nothing more.
        if self.cells.expects() && self.session.expects() {
            if let Some(request) = self.cells.read_expected(asked) {
                self.handle(Event::Expected(Box::new(request))).await;
                return;
            }
            self.handle(Event::Unexpected).await;
        }
        if self.cells.expects() {
            self.cells.forget_expected();
        }
        match self.cells.read(asked) {
            Ok(ask) => {
                self.handle(Event::Execute(Box::new(ask))).await;
                // An error that shows at once stops what comes after it.
                if self.session.is_done() {
                    return;
                }
                let expected = self.cells.expect(asked);
                if !expected.is_empty() {
                    self.handle(Event::Expect(expected)).await;
                }
            }
            Err(problem) => {
                let content = json!({
                    "status": "error", "ename": problem.ename, "evalue": problem.evalue, "traceback": [],
                    "execution_count": self.session.count(),
                });
                self.answer(asked, "execute_reply", &content);
            }
        }
    }

    /// A cell that the kernel answers itself, whatever runs.
    async fn tell(&mut self, asked: &Arc<Asked>, magic: Result<Magic, Problem>) {
        self.status(asked, "busy");
        let shown = match magic {
            Ok(Magic::Release(target)) => match self.release(asked, target.as_deref()) {
                Ok(()) => {
                    if let Some(event) = self.next_release() {
                        self.handle(event).await;
                    }
                    return;
                }
                Err(problem) => Err(problem),
            },
            Ok(magic) => Ok(magic.answer(&self.session, &self.cells.source())),
            Err(problem) => Err(problem),
        };
        self.told(asked, shown);
    }

    /// What such a cell shows, and its end.
    fn told(&self, asked: &Asked, shown: Result<Option<(&str, serde_json::Value)>, Problem>) {
        let count = self.session.count();
        let content = match shown {
            Ok(shown) => {
                if let Some((msg_type, shown)) = shown {
                    self.publish(self.author.message(msg_type, Some(&asked.message), &shown));
                }
                json!({"status": "ok", "execution_count": count, "user_expressions": {}, "payload": []})
            }
            Err(problem) => {
                let mut content = error_content(&problem);
                self.publish(self.author.message("error", Some(&asked.message), &content));
                content["status"] = json!("error");
                content["execution_count"] = json!(count);
                content
            }
        };
        self.send(
            asked,
            self.author
                .message("execute_reply", Some(&asked.message), &content),
        );
        self.status(asked, "idle");
    }

    /// A cell asks to give workers back: it is done after the cells before it that run there.
    fn release(&mut self, asked: &Arc<Asked>, target: Option<&str>) -> Result<(), Problem> {
        let wrong = |what: String| Problem::new("TargetError", what);
        let targets: BTreeSet<TargetName> = match target {
            Some(HOME) => {
                let what = "the worker of `home` holds the notebook's own values and stays; to end it, restart the kernel";
                return Err(wrong(what.to_owned()));
            }
            Some(name) => {
                let target = self.cells.target(name);
                target.map_err(|error| wrong(error.to_string()))?;
                BTreeSet::from([TargetName::from(name)])
            }
            None => {
                let is_far = |target: &TargetName| {
                    let target = self.cells.target(target);
                    target.is_ok_and(|target| !matches!(target.place, Place::Local))
                };
                let open = self.session.open_cells().map(|(target, _)| base(target));
                let mut targets = self.agents.far_targets();
                targets.extend(open.filter(is_far));
                targets
            }
        };
        let open = self.session.open_cells();
        let before = open.filter(|(target, _)| targets.contains(&base(target)));
        let before = before.map(|(_, cell)| cell.header.msg_id.clone()).collect();
        self.releases.add(asked.clone(), targets, before);
        Ok(())
    }

    /// Begins to give back what need not wait any more.
    fn next_release(&mut self) -> Option<Event> {
        while self.releases.any_waits() {
            let open = self.session.open_cells();
            let open = open.map(|(_, cell)| cell.header.msg_id.as_str()).collect();
            let (asked, targets) = self.releases.next(&open)?;
            let workers = targets.iter().flat_map(|target| {
                let workers = self.agents.workers_of(target).into_iter();
                workers.map(move |worker| (worker, target.clone()))
            });
            let workers: BTreeMap<WorkerId, TargetName> = workers.collect();
            let ids: Vec<WorkerId> = workers.keys().copied().collect();
            if ids.is_empty() {
                let mut text = String::new();
                for target in targets {
                    // Its workers may have died before.
                    if self.agents.end_unused(&target) {
                        text += &format!("released {target}: no worker was left\n");
                    }
                }
                let nothing = text.is_empty().then_some("nothing to release");
                let shown = magics::printed(nothing.unwrap_or(text.trim_end()));
                self.told(&asked, Ok(Some(shown)));
                continue;
            }
            self.releases.begin(asked, workers);
            return retire(ids, true);
        }
        None
    }

    /// A worker was given back, or stays.
    fn retired(&mut self, retired: &Retired) {
        let ended = matches!(retired.outcome, Outcome::Ended { .. });
        if let (false, Some(location)) = (ended, self.agents.location(retired.worker).cloned()) {
            self.no_gpus(
                &location,
                "hold values that can be neither carried nor made again",
            );
        }
        if let Some(allocation) = self.idle.remove(&retired.worker)
            && ended
            && self.agents.workers_at(&allocation).is_empty()
        {
            tracing::info!("{allocation} was not used for long and is given back");
            self.agents.release(&allocation);
        } else if ended {
            self.agents.end_unused(&base(&retired.target));
        } else {
            let Retired {
                worker, outcome, ..
            } = retired;
            tracing::info!(
                "worker {} of `{}` stays: {outcome:?}",
                worker.0,
                retired.target
            );
        }
        let answered = self.releases.retired(retired);
        self.released(answered);
    }

    fn released(&mut self, answered: Vec<Answered>) {
        for Answered {
            asked,
            targets,
            text,
        } in answered
        {
            for target in &targets {
                self.agents.end_unused(target);
            }
            self.told(&asked, Ok(Some(magics::printed(&text))));
        }
    }

    /// The user does not want to wait: neither for cells nor for a host that asks something.
    async fn interrupt(&mut self) {
        self.questions.interrupted();
        self.handle(Event::Interrupt).await;
    }

    /// A client answers a question.
    fn answered(&mut self, message: Message) {
        let parent = message.parse_parent().unwrap_or_default();
        match self.questions.answered(&parent.msg_id) {
            Some(Asker::Worker(worker)) => {
                self.tell_worker(worker, Channel::Stdin, parts(message));
            }
            Some(Asker::Host(answer)) => {
                let _ = answer.send(questions::value(&message.content));
            }
            None => {}
        }
    }

    // --- about far hosts, under the cells that wait for them

    /// Asks the user what hosts want to know, each under a cell that waits for that host.
    fn ask(&mut self) {
        let mut later = Vec::new();
        for waiting in std::mem::take(&mut self.questions.waiting) {
            let Some(asked) = self.waiting_at(&waiting.target).into_iter().next() else {
                later.push(waiting);
                continue;
            };
            if !allows_stdin(&asked.message.content) {
                tracing::info!(
                    "`{}` asks a question, and this client cannot answer",
                    waiting.target
                );
                continue;
            }
            let content =
                json!({"prompt": waiting.question.text, "password": !waiting.question.echo});
            let mut message = self
                .author
                .message("input_request", Some(&asked.message), &content);
            message.identities = asked.message.identities.clone();
            if let Ok(header) = message.parse_header() {
                self.questions
                    .asked(header.msg_id, Asker::Host(waiting.answer));
            }
            self.outbox.send(cellferry_kernel::Channel::Stdin, message);
        }
        self.questions.waiting.extend(later);
    }

    /// Whether the passing of time matters.
    fn has_time_limits(&self) -> bool {
        self.notices.any() || self.agents.has_allocations() || !self.short_of_gpus.is_empty()
    }

    /// A second has passed.
    async fn tick(&mut self) {
        self.notice();
        if !self.short_of_gpus.is_empty() {
            self.make_room().await;
        }
        let by_itself = self.dying_jobs.iter().filter(|(worker, (since, ..))| {
            let limit = if self.agents.is_job_ending(**worker) {
                JOB_END
            } else {
                JOB_NEWS
            };
            since.elapsed() >= limit
        });
        let by_itself: Vec<WorkerId> = by_itself.map(|(worker, _)| *worker).collect();
        for worker in by_itself {
            if let Some((_, problem, how)) = self.dying_jobs.remove(&worker) {
                self.gone(worker, problem, how).await;
            }
        }
        let session = &self.session;
        for allocation in self
            .agents
            .idle_allocations(|worker| session.is_in_use(worker))
        {
            let workers = self.agents.workers_at(&allocation);
            if workers.is_empty() {
                self.agents.release(&allocation);
                continue;
            }
            let named = workers.iter().map(|worker| (*worker, allocation.clone()));
            self.idle.extend(named);
            if let Some(event) = retire(workers, false) {
                self.handle(event).await;
            }
        }
    }

    /// The cells that wait for something at a location, or on a node of an allocation.
    fn waiting_at(&self, place: &TargetName) -> Vec<Arc<Asked>> {
        self.session
            .asked_at(|worker| self.agents.is_at(worker, place))
    }

    /// What becomes of an allocation.
    fn job(&mut self, allocation: &TargetName, news: JobNews) {
        self.agents.heard_of_job(allocation, &news);
        match news {
            JobNews::Submitted(_) | JobNews::Closing => {}
            JobNews::Waits(text) => {
                self.notices
                    .waits(allocation, Wait::Job(text), Instant::now());
                self.notice();
            }
            JobNews::Runs(text, _) if self.agents.has_come(allocation) => {
                self.settled(allocation, &text);
            }
            // What the target's `setup` does there may take its time.
            JobNews::Runs(text, _) => {
                let text = format!("{text}; no word from there yet");
                self.notices
                    .waits(allocation, Wait::Job(text), Instant::now());
                self.notice();
            }
            JobNews::Ended => self.over(allocation),
        }
    }

    /// Cells need not wait for an allocation any more: the notices stay, with what has come of it.
    fn settled(&mut self, allocation: &TargetName, text: &str) {
        let notices = self.notices.settled(allocation, text, &self.author);
        notices.into_iter().for_each(|notice| self.publish(notice));
    }

    /// Shows how long cells have been waiting for hosts.
    fn notice(&mut self) {
        for target in self.notices.targets() {
            let cells = self.waiting_at(&target);
            let notices = self.notices.show(&target, &cells, &self.author);
            notices.into_iter().for_each(|notice| self.publish(notice));
        }
    }

    /// Cells need not wait for a host any more: the notices go.
    fn over(&mut self, target: &TargetName) {
        let notices = self.notices.over(target, &self.author);
        notices.into_iter().for_each(|notice| self.publish(notice));
    }

    /// A cell ends: the notices under it go.
    fn ends(&mut self, asked: &Asked) {
        let notices = self.notices.ends(asked, &self.author);
        notices.into_iter().for_each(|notice| self.publish(notice));
    }

    // --- from agents

    async fn arrived(&mut self, event: FromLocation) {
        match event {
            FromLocation::Message(
                _,
                FromAgent::Received {
                    worker,
                    channel,
                    parts,
                },
            ) => {
                let Some(mut message) = message(parts) else {
                    tracing::warn!(
                        "ignored a message with too few parts from worker {}",
                        worker.0
                    );
                    return;
                };
                if let Err(error) = self.author.adopt(&mut message) {
                    tracing::warn!("ignored a message of worker {}: {error}", worker.0);
                    return;
                }
                match channel {
                    Channel::Iopub => self.output(worker, message).await,
                    Channel::Stdin => self.input_request(worker, message).await,
                    Channel::Shell | Channel::Control => self.reply(worker, message).await,
                }
            }
            FromLocation::Message(_, FromAgent::WorkerUp { worker, pid }) => {
                self.agents.is_up(worker, pid);
                self.install_helper(worker);
            }
            FromLocation::Message(_, FromAgent::WorkerFailed { worker, failure }) => {
                let problem = self.agents.start_problem(worker, &failure);
                self.gone(worker, problem, agents::how_failed(&failure))
                    .await;
            }
            FromLocation::Message(
                _,
                FromAgent::WorkerDown {
                    worker,
                    exit,
                    stderr_tail,
                    rank,
                    given_up,
                },
            ) => {
                let problem = self.agents.death_problem(worker, rank, &exit, &stderr_tail);
                let how = agents::how(&exit);
                if !given_up && self.agents.may_end_with_job(worker, &exit) {
                    self.dying_jobs
                        .insert(worker, (Instant::now(), problem, how));
                } else {
                    self.gone(worker, problem, how).await;
                }
            }
            FromLocation::Failed { workers, problem } => {
                for worker in workers {
                    self.gone(worker, problem.clone(), Gone::NotStarted).await;
                }
            }
            FromLocation::Job(allocation, news) => self.job(&allocation, news),
            FromLocation::AgentGone(target, problem, how) => {
                tracing::info!("the agent of `{target}` is gone: {}", problem.evalue);
                // What was never there is not lost.
                let how = how.unwrap_or(if self.agents.is_connecting(&target) {
                    Gone::NotStarted
                } else {
                    Gone::LocationLost
                });
                self.over(&target);
                self.modules.lost(&target);
                let carried = self.values.files.lost(&target);
                if let Some(waiting) = self.agents.ended(&target) {
                    for (worker, target) in waiting {
                        self.start_worker(worker, &target).await;
                    }
                } else {
                    for worker in self.agents.agent_gone(&target) {
                        self.gone(worker, problem.clone(), how).await;
                    }
                }
                self.carried(carried).await;
            }
            FromLocation::Message(target, FromAgent::Hello(hello)) => {
                if let Some(allocation) = self.agents.allocation_of(&target) {
                    let job = self.agents.job(&allocation).unwrap_or("the job");
                    let text = format!("{job} runs: {target} is {}", hello.hostname);
                    self.settled(&allocation, &text);
                }
                self.agents.hello(&target, hello);
                self.over(&target);
            }
            FromLocation::Message(target, message) => {
                let carried = self.values.files.heard(&target, message, &mut self.agents);
                self.carried(carried).await;
            }
            FromLocation::Link(target, LinkState::Lost { reason, since }) => {
                tracing::info!("the link to `{target}` is lost: {reason}");
                self.agents.link_lost(&target);
                self.notices.waits(&target, Wait::Lost(reason), since);
                self.notice();
            }
            FromLocation::Link(target, LinkState::Back) => {
                tracing::info!("the link to `{target}` is back");
                self.agents.link_back(&target);
                self.values.files.back(&target);
                self.over(&target);
            }
            FromLocation::Ask(target, question, answer) => {
                self.questions.waiting.push(Waiting {
                    target,
                    question,
                    answer,
                });
                self.ask();
            }
            FromLocation::Tell(target, text) => {
                tracing::info!("`{target}`: {text}");
                if let Some(asked) = self.waiting_at(&target).first() {
                    let content =
                        json!({"name": "stderr", "text": format!("{}\n", text.trim_end())});
                    self.publish(
                        self.author
                            .message("stream", Some(&asked.message), &content),
                    );
                }
            }
            FromLocation::Staged(worker, staged) => {
                if let Some((asked, content)) = self.staging.done(worker, staged, &mut self.modules)
                {
                    let answer = self
                        .author
                        .message("cellferry_answer", Some(&asked), &content);
                    self.tell_worker(worker, Channel::Stdin, parts(answer));
                }
            }
            FromLocation::TransferFailed { transfer, reason } => {
                self.handle(Event::Taken(transfer, Taken::Failed(reason)))
                    .await;
            }
        }
    }

    /// Tells the session what has been brought where.
    async fn carried(&mut self, carried: Vec<Carried>) {
        for (transfer, to, outcome) in carried {
            self.handle(Event::Carried {
                transfer,
                to,
                outcome,
            })
            .await;
        }
    }

    async fn gone(&mut self, worker: WorkerId, problem: Problem, how: Gone) {
        self.forget(worker);
        self.idle.remove(&worker);
        let answered = self.releases.died(worker);
        self.released(answered);
        self.handle(Event::WorkerGone {
            worker,
            problem,
            how,
        })
        .await;
    }

    /// Nothing more comes from a worker.
    fn forget(&mut self, worker: WorkerId) {
        self.dying_jobs.remove(&worker);
        self.short_of_gpus.remove(&worker);
        self.agents.forget(worker);
        self.staging.end(worker);
        self.shown.remove(&worker);
        self.going_back.remove(&worker);
        self.running.retain(|(other, _), _| *other != worker);
        self.questions.gone(worker);
        for comm in self.comms.worker_gone(worker) {
            let content = json!({"comm_id": comm, "data": {}});
            self.publish(self.author.message("comm_close", None, &content));
        }
    }

    /// Output of a worker: shown as it is, except what concerns only us.
    async fn output(&mut self, worker: WorkerId, mut message: Message) {
        let Ok(header) = message.parse_header() else {
            return;
        };
        let parent = message.parse_parent().unwrap_or_default();
        let ours = parent.session == self.author.session();
        let run = self.run_of(worker, &parent.msg_id);
        match (header.msg_type.as_str(), run) {
            ("status", Some(run)) => {
                #[derive(Deserialize)]
                struct Status<'a> {
                    #[serde(borrow)]
                    execution_state: &'a str,
                }
                match message
                    .parse_content::<Status<'_>>()
                    .map(|status| status.execution_state)
                {
                    Ok("busy") => self.handle(Event::Busy(worker, run)).await,
                    Ok("idle") => {
                        // It may have been interrupted while it waited for files.
                        self.staging.end(worker);
                        self.handle(Event::Idle(worker, run)).await
                    }
                    _ => {}
                }
                return;
            }
            ("cellferry_report", run) => {
                match (message.parse_content(), run) {
                    (Ok(report), Some(run)) => {
                        self.handle(Event::Report(worker, run, Box::new(report)))
                            .await
                    }
                    (Err(error), _) => tracing::error!(
                        "worker {} sent a report that cannot be read: {error}",
                        worker.0
                    ),
                    (_, None) => {}
                }
                return;
            }
            ("iopub_welcome" | "shutdown_reply", _) => return,
            ("status" | "execute_input", None) if ours || parent.msg_id.is_empty() => return,
            ("execute_input", Some(run)) => self.handle(Event::Began(worker, run)).await,
            _ => {}
        }
        if ours {
            // Output of a thread that a cell left behind, attributed to our own request.
            if let Some(shown) = self.shown.get(&worker) {
                message.parent_header = shown.clone();
            }
        }
        message.identities = vec![Bytes::from(header.msg_type)];
        match run {
            Some(run) => self.say(run, worker, Channel::Iopub, message),
            None => self.show(worker, message),
        }
    }

    /// The run, not yet closed or discarded, that the worker speaks of.
    fn run_of(&self, worker: WorkerId, msg_id: &str) -> Option<RunId> {
        let run = *self.running.get(&(worker, msg_id.to_owned()))?;
        let known = self.discarded.contains(&run) || self.session.request(run).is_some();
        known.then_some(run)
    }

    /// Something that a run says: shown now, later, or never.
    fn say(&mut self, run: RunId, worker: WorkerId, channel: Channel, message: Message) {
        if self.discarded.contains(&run) {
            return;
        }
        if let Some(held) = self.held.get_mut(&run) {
            held.push((worker, channel, message));
        } else if let Some(asked) = self.session.request(run).cloned() {
            if self.session.may_run_again(run) {
                self.again.keep(&asked.header.msg_id);
            }
            self.tell_client(&asked, worker, channel, message);
        }
    }

    fn tell_client(
        &mut self,
        asked: &Asked,
        worker: WorkerId,
        channel: Channel,
        mut message: Message,
    ) {
        // The worker may know the cell by a request of our own.
        message.parent_header = asked.message.header.clone();
        if channel == Channel::Stdin {
            message.identities = asked.message.identities.clone();
            if let Ok(header) = message.parse_header() {
                self.questions.asked(header.msg_id, Asker::Worker(worker));
            }
            self.outbox.send(cellferry_kernel::Channel::Stdin, message);
        } else {
            for message in self.again.show(&asked.header.msg_id, message, &self.author) {
                self.show(worker, message);
            }
        }
    }

    /// Passes a worker's output on.
    fn show(&mut self, worker: WorkerId, message: Message) {
        match message.identities.first().map(Bytes::as_ref) {
            Some(b"comm_open") => self.comms.opened(&message.content, worker),
            Some(b"comm_close") => self.comms.closed(&message.content),
            _ => {}
        }
        self.publish(message);
    }

    async fn reply(&mut self, worker: WorkerId, message: Message) {
        let Ok(header) = message.parse_header() else {
            return;
        };
        let parent = message.parse_parent().unwrap_or_default();
        if parent.session == self.author.session() {
            self.own_reply(worker, &header, &parent, message).await;
            return;
        }
        if let (Some(run), "execute_reply") = (
            self.run_of(worker, &parent.msg_id),
            header.msg_type.as_str(),
        ) {
            // Idle comes on another channel and may have come before it; then the cell may have been given to the worker
            // again, by the same request.
            if self.going_back.contains_key(&worker) {
                return;
            }
            let content = message.parse_content::<ReplyContent>();
            let (failed, exception) = match content {
                Ok(content) if content.status == "ok" => (false, None),
                Ok(content) => (true, Some((content.ename, content.evalue))),
                Err(_) => (true, None),
            };
            self.handle(Event::Replied(
                worker,
                run,
                Box::new(Reply {
                    message,
                    failed,
                    exception,
                }),
            ))
            .await;
            return;
        }
        if let Some(asked) = self.session.answered(worker, &parent.msg_id) {
            let message = match header.msg_type.as_str() {
                "history_reply" => history::with_session(&asked.message.content, message),
                _ => message,
            };
            self.send(&asked, message);
        }
    }

    /// A worker's reply to a request of our own.
    async fn own_reply(
        &mut self,
        worker: WorkerId,
        header: &Header,
        parent: &Header,
        message: Message,
    ) {
        match header.msg_type.as_str() {
            "cellferry_reply" => match values::undone(&message) {
                Some(Ok(())) => {
                    if let Entry::Occupied(mut left) = self.going_back.entry(worker) {
                        *left.get_mut() -= 1;
                        if *left.get() == 0 {
                            left.remove();
                        }
                    }
                }
                Some(Err(failure)) => {
                    // What it has now is nobody's.
                    let problem = self.agents.undo_problem(worker, &failure);
                    self.agents.stop(worker);
                    self.gone(worker, problem, Gone::Killed).await;
                }
                None => {
                    if let Some(machine) = self.agents.machine(worker)
                        && let Some((transfer, taken)) =
                            self.values.taken(&parent.msg_id, message, machine)
                    {
                        self.handle(Event::Taken(transfer, taken)).await;
                    }
                }
            },
            "execute_reply" => match message.parse_content::<ReplyContent>() {
                Ok(content) if content.status == "ok" => {
                    self.handle(Event::WorkerReady(worker)).await
                }
                Ok(ReplyContent { ename, evalue, .. }) => {
                    let problem = self
                        .agents
                        .helper_problem(worker, &format!("{ename}: {evalue}"));
                    self.agents.stop(worker);
                    self.gone(worker, problem, Gone::NotStarted).await;
                }
                Err(error) => tracing::error!(
                    "worker {} sent a reply that cannot be read: {error}",
                    worker.0
                ),
            },
            _ => {}
        }
    }

    async fn input_request(&mut self, worker: WorkerId, message: Message) {
        let parent = message.parse_parent().unwrap_or_default();
        let header = message.parse_header();
        match header.as_ref().map(|header| &*header.msg_type) {
            Ok("cellferry_files") => return self.stage(worker, message, parent.msg_id),
            Ok("cellferry_modules") => return self.send_modules(worker, message),
            _ => {}
        }
        match self.run_of(worker, &parent.msg_id) {
            Some(run) => {
                self.handle(Event::Asks(worker, run)).await;
                self.say(run, worker, Channel::Stdin, message);
            }
            None => tracing::warn!("worker {} asks for input outside a cell", worker.0),
        }
    }

    /// A worker waits for files of its cell, or for them to be brought home.
    fn stage(&mut self, worker: WorkerId, message: Message, cell: String) {
        let asked: files::Asked = match message.parse_content() {
            Ok(asked) => asked,
            Err(error) => {
                tracing::error!(
                    "worker {} asks for files in a way that cannot be read: {error}",
                    worker.0
                );
                return;
            }
        };
        let shared = self.cells.targets().and_then(|targets| targets.shared());
        let shared = shared.map_err(|error| error.to_string());
        let ends = self
            .agents
            .ends(worker, asked.folder.clone(), asked.home.clone());
        if let Some(ends) = ends {
            let events = self.agents.events();
            self.staging
                .bring((worker, message, cell), asked, ends, shared, events);
        }
    }

    /// Whether modules must be sent to a far host before a cell runs there.
    fn lacks_modules(&mut self, target: &TargetName, orders: &Orders) -> bool {
        let source = self.cells.code(&orders.request);
        let imported = orders::imported(&source, orders, &self.values);
        !self.modules.lacking(target, imported).is_empty()
    }

    /// A worker on a far host waits for modules.
    fn send_modules(&mut self, worker: WorkerId, message: Message) {
        if let (Some(remote), Some(folder)) =
            (self.agents.remote(worker), self.agents.modules(worker))
        {
            let files = self.modules.lacking(remote.target(), BTreeSet::new());
            let events = self.agents.events();
            self.staging
                .send_modules((worker, message), (remote, folder), files, events);
        }
    }

    // --- effects

    async fn start_worker(&mut self, worker: WorkerId, target: &TargetName) {
        match self.agents.start(worker, target, &self.cells).await {
            // Not from within the session's own turn: as an event of its own.
            Err(problem) => self.agents.report(worker, problem),
            Ok(Start::Later(locations)) => {
                self.short_of_gpus
                    .insert(worker, (target.clone(), locations));
            }
            Ok(Start::Begun) => {
                if let Some(host) = self.agents.connecting_to(worker) {
                    self.notices.waits(&host, Wait::Connecting, Instant::now());
                }
            }
        }
    }

    /// Workers that wait for GPUs are started if there are enough by now; else those that have some and do nothing end.
    async fn make_room(&mut self) {
        for (worker, (target, _)) in std::mem::take(&mut self.short_of_gpus) {
            self.start_worker(worker, &target).await;
        }
        let wanted: BTreeSet<Vec<TargetName>> = self
            .short_of_gpus
            .values()
            .map(|(_, locations)| locations.clone())
            .collect();
        for locations in wanted {
            let holders = locations
                .iter()
                .flat_map(|location| self.agents.with_gpus(location));
            let holders: BTreeSet<WorkerId> = holders.collect();
            let (idle, used): (Vec<WorkerId>, Vec<WorkerId>) = holders
                .into_iter()
                .partition(|worker| !self.session.is_in_use(*worker));
            if idle.is_empty() && !used.iter().any(|worker| self.session.is_occupied(*worker)) {
                // What they have done is not committed, since it comes after that for which there are no GPUs.
                for location in &locations {
                    self.no_gpus(location, "have run cells that come later");
                }
            } else if let Some(event) = retire(idle, false) {
                self.handle(event).await;
            }
        }
    }

    /// There will be no GPUs for workers that wait for some at a location.
    fn no_gpus(&mut self, location: &TargetName, why: &str) {
        let problem = Problem::new(
            "NoGpu",
            format!(
                "there are not enough free GPUs on `{location}`: other workers there have them and {why}; \
                 give them back with `%cellferry release`, and run the cell again"
            ),
        );
        let concerned = self
            .short_of_gpus
            .extract_if(|_, (_, others)| others.contains(location));
        let workers: Vec<WorkerId> = concerned.map(|(worker, _)| worker).collect();
        for worker in workers {
            self.agents.report(worker, problem.clone());
        }
    }

    /// Does what must be done; what has happened by that at once.
    async fn perform(&mut self, effect: Effect) -> Option<Event> {
        match effect {
            Effect::StartWorker { worker, target, .. } => {
                self.start_worker(worker, &target).await;
            }
            Effect::Status(asked, state) => self.status(&asked, state),
            Effect::Input(asked, count) => {
                let code = self.cells.code(&asked);
                self.publish(self.author.message(
                    "execute_input",
                    Some(&asked.message),
                    &json!({"code": code, "execution_count": count}),
                ));
            }
            Effect::Error(asked, problem) => {
                self.publish(self.author.message(
                    "error",
                    Some(&asked.message),
                    &error_content(&problem),
                ));
            }
            Effect::Note(asked, text) => {
                let note = self.author.message(
                    "stream",
                    Some(&asked.message),
                    &json!({"name": "stderr", "text": text}),
                );
                self.again.keep_note(&asked.header.msg_id, &note);
                self.publish(note);
            }
            Effect::Answer(asked, answer) => {
                self.again.forget(&asked.header.msg_id);
                self.ends(&asked);
                self.answer_ourselves(&asked, &answer);
            }
            Effect::Reply(asked, mut message) => {
                let last = self
                    .again
                    .done(&asked.header.msg_id, &asked.message, &self.author);
                last.into_iter().for_each(|message| self.publish(message));
                self.ends(&asked);
                message.parent_header = asked.message.header.clone();
                self.send(&asked, *message);
            }
            Effect::Run(worker, run, orders) => {
                let (session, discarded) = (&self.session, &self.discarded);
                self.running
                    .retain(|_, run| discarded.contains(run) || session.request(*run).is_some());
                let msg_id = orders.request.header.msg_id.clone();
                if let Some(before) = self.running.insert((worker, msg_id), run) {
                    self.discarded.remove(&before);
                }
                if orders.keep.is_some() {
                    self.held.insert(run, Vec::new());
                } else if !orders.unseen {
                    self.shown
                        .insert(worker, orders.request.message.header.clone());
                }
                let is_seen = !orders.unseen && orders.keep.is_none();
                let time = orders.time.filter(|_| is_seen);
                let ends = time.and_then(|time| self.agents.ends_before(worker, time));
                if let (Some(time), Some((job, left))) = (time, ends) {
                    let whole = |time: Duration| {
                        humantime::format_duration(Duration::from_secs(time.as_secs()))
                    };
                    let text = format!(
                        "Cellferry: this cell may take {}, and {job} has {} left: it may not come to its end there; \
                         `%cellferry release` gives that job back, so that the cell gets another one\n",
                        whole(time),
                        whole(left)
                    );
                    let name_and_text = json!({"name": "stderr", "text": text});
                    let request = Some(&orders.request.message);
                    self.publish(self.author.message("stream", request, &name_and_text));
                }
                if let (Some(count), Some(target)) = (orders.count, self.agents.target(worker)) {
                    let carried = orders.carried();
                    tracing::info!("cell [{count}] runs on `{target}`{carried}");
                }
                let at_home = self
                    .agents
                    .target(worker)
                    .is_some_and(|target| &**target == HOME);
                let machine = self.agents.machine(worker).unwrap_or(Machine::Home);
                let segments = self.agents.segment_dir(&machine).unwrap_or_default();
                let lacks_modules = match &machine {
                    Machine::Home => false,
                    Machine::Far(target) => self.lacks_modules(target, &orders),
                };
                let values = &self.values;
                let parts =
                    orders::execute_parts(run, *orders, at_home, lacks_modules, values, &segments);
                self.tell_worker(worker, Channel::Shell, parts);
            }
            Effect::Take {
                transfer,
                worker,
                names,
                stale,
                ignored,
                reader,
            } => {
                let taking = self.values.take(
                    &self.author,
                    (transfer, worker),
                    &names,
                    (&stale, &ignored),
                    reader,
                    &self.agents,
                );
                match taking {
                    Ok(message) => self.tell_worker(worker, Channel::Shell, parts(message)),
                    Err(problem) => self.agents.transfer_failed(transfer, problem),
                }
            }
            Effect::Carry { transfer, to, .. } => {
                let carried = self.values.files.bring(transfer, to, &mut self.agents);
                return carried.map(|(transfer, to, outcome)| Event::Carried {
                    transfer,
                    to,
                    outcome,
                });
            }
            Effect::Release(transfers) => self.values.release(&transfers, &mut self.agents),
            Effect::Show(run, asked) => {
                if self.session.may_run_again(run) {
                    self.again.keep(&asked.header.msg_id);
                }
                for (worker, channel, message) in self.held.remove(&run).unwrap_or_default() {
                    self.shown.insert(worker, asked.message.header.clone());
                    self.tell_client(&asked, worker, channel, message);
                }
                self.ask();
            }
            Effect::Discard(run) => {
                self.held.remove(&run);
                self.discarded.insert(run);
            }
            Effect::Again { new, .. } => {
                if let Some(asked) = self.session.request(new).cloned() {
                    let msg_id = &asked.header.msg_id;
                    let clear = self.again.again(msg_id, &asked.message, &self.author);
                    clear.into_iter().for_each(|message| self.publish(message));
                }
            }
            Effect::Stop(worker) => {
                self.agents.stop(worker);
                self.forget(worker);
            }
            Effect::Retired(retired) => self.retired(&retired),
            Effect::Undo(worker, run) => {
                *self.going_back.entry(worker).or_default() += 1;
                self.request(worker, &json!({"verb": "undo", "run": run.0}))
            }
            Effect::Settle(worker, run) => {
                self.request(worker, &json!({"verb": "settle", "run": run.0}))
            }
            Effect::Interrupt(worker) => self.agents.send(worker, ToAgent::Interrupt { worker }),
            Effect::PassOn(worker, asked) => {
                if asked.header.msg_type == "comm_open" {
                    self.comms.opened(&asked.message.content, worker);
                }
                self.shown.insert(worker, asked.message.header.clone());
                self.tell_worker(worker, asked.channel, parts(asked.message.clone()));
            }
            Effect::History(worker, cells) => {
                self.request(worker, &json!({"verb": "inputs", "cells": cells}))
            }
        }
        None
    }

    fn tell_worker(&mut self, worker: WorkerId, channel: Channel, parts: Parts) {
        let message = ToAgent::Send {
            worker,
            channel,
            parts,
        };
        self.agents.send(worker, message);
    }

    /// Asks the helper in a worker for something that has no result.
    fn request(&mut self, worker: WorkerId, content: &serde_json::Value) {
        let message = self.author.message("cellferry_request", None, content);
        self.tell_worker(worker, Channel::Shell, parts(message));
    }

    fn answer_ourselves(&mut self, asked: &Asked, answer: &Answer) {
        let reply = asked.header.msg_type.replace("_request", "_reply");
        match answer {
            Answer::Failed(problem, count) => {
                let mut content = error_content(problem);
                content["status"] = json!("error");
                content["execution_count"] = json!(count);
                content["user_expressions"] = json!({});
                content["payload"] = json!([]);
                self.send(
                    asked,
                    self.author.message(&reply, Some(&asked.message), &content),
                );
            }
            Answer::Aborted => {
                self.send(
                    asked,
                    self.author.message(
                        &reply,
                        Some(&asked.message),
                        &json!({"status": "aborted"}),
                    ),
                );
            }
            Answer::Unanswered(why) if asked.header.msg_type.ends_with("_request") => {
                let content = json!({"status": "error", "ename": "WorkerGone", "evalue": why, "traceback": []});
                self.send(
                    asked,
                    self.author.message(&reply, Some(&asked.message), &content),
                );
            }
            Answer::Unanswered(_) => {}
        }
    }

    fn install_helper(&mut self, worker: WorkerId) {
        let message = orders::helper_message(&self.author, self.agents.modules(worker));
        self.tell_worker(worker, Channel::Shell, parts(message));
    }

    // --- to clients

    fn publish(&self, message: Message) {
        self.outbox.publish(message);
    }

    fn status(&self, asked: &Asked, state: &str) {
        self.publish(self.author.message(
            "status",
            Some(&asked.message),
            &json!({"execution_state": state}),
        ));
    }

    /// Sends a message as the answer to `asked`, on its channel.
    fn send(&self, asked: &Asked, mut message: Message) {
        message.identities = asked.message.identities.clone();
        let channel = match asked.channel {
            Channel::Control => cellferry_kernel::Channel::Control,
            _ => cellferry_kernel::Channel::Shell,
        };
        self.outbox.send(channel, message);
    }

    /// Answers a request that needs no worker, with busy and idle around it.
    fn answer(&self, asked: &Asked, msg_type: &str, content: &serde_json::Value) {
        self.status(asked, "busy");
        self.send(
            asked,
            self.author.message(msg_type, Some(&asked.message), content),
        );
        self.status(asked, "idle");
    }

    async fn end(mut self) {
        let mut restarts = false;
        if let Some(Ending::Asked(incoming, restart)) = self.ending.take() {
            restarts = restart;
            let content = json!({"status": "ok", "restart": restart});
            let mut reply =
                self.author
                    .message("shutdown_reply", Some(&incoming.message), &content);
            self.publish(reply.clone());
            reply.identities = incoming.message.identities.clone();
            self.outbox.send(incoming.channel, reply);
        }
        self.agents.shutdown(restarts).await;
        self.outbox.flush(FLUSH).await;
    }
}

/// Workers are to be given back; `force`: even if that loses values.
fn retire(workers: Vec<WorkerId>, force: bool) -> Option<Event> {
    Some(Event::Retire {
        workers,
        force,
        request: Box::new(release::request()?),
    })
}

/// The target of which this is a shape, or it itself.
fn base(target: &TargetName) -> TargetName {
    Shape::parse(target).target.into()
}

/// The name whose completion or documentation a client asks for.
fn completed_name(content: &[u8]) -> Option<crate::name::Name> {
    #[derive(Deserialize)]
    struct Cursor {
        code: String,
        cursor_pos: Option<usize>,
    }
    let cursor: Cursor = serde_json::from_slice(content).ok()?;
    let end = cursor.cursor_pos.unwrap_or(usize::MAX);
    completion_root(&cursor.code, end.min(cursor.code.chars().count()))
}

fn error_content(problem: &Problem) -> serde_json::Value {
    let line = if problem.evalue.is_empty() {
        format!("\u{1b}[31m{}\u{1b}[39m", problem.ename)
    } else {
        format!("\u{1b}[31m{}\u{1b}[39m: {}", problem.ename, problem.evalue)
    };
    json!({"ename": problem.ename, "evalue": problem.evalue, "traceback": [line]})
}

/// Whether the client that sent the request can be asked something.
fn allows_stdin(content: &[u8]) -> bool {
    #[derive(Deserialize)]
    struct Content {
        #[serde(default)]
        allow_stdin: bool,
    }
    serde_json::from_slice::<Content>(content).is_ok_and(|content| content.allow_stdin)
}

/// A message as the wire carries it: without identities.
fn parts(message: Message) -> Parts {
    let mut parts = vec![
        message.header,
        message.parent_header,
        message.metadata,
        message.content,
    ];
    parts.extend(message.buffers);
    parts
}

fn message(parts: Parts) -> Option<Message> {
    let mut parts = parts.into_iter();
    Some(Message {
        identities: Vec::new(),
        header: parts.next()?,
        parent_header: parts.next()?,
        metadata: parts.next()?,
        content: parts.next()?,
        buffers: parts.collect(),
    })
}
