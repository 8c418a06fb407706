//! One running notebook, as a deterministic state machine: an event in, effects out.
//!
//! It holds no socket, task, lock or clock: the driver turns the world into [`Event`]s and
//! [`Effect`]s into deeds. A cell waits in the queue, gets a worker of its target, gets the values
//! it lacks, runs, and is recorded in the ledger. Here cells run one after another.

mod past;
mod run;

pub use run::{Cell, Problem, Request, RunId};

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use cellferry_kernel::message::{Header, Message};
use cellferry_wire::protocol::{Channel, WorkerId};
use serde::Deserialize;

use crate::graph::svg::{self, Picture};
use crate::ledger::{Changes, Description, Ledger, Lost, Plan, Put, Step};
use crate::name::Name;
use crate::session::past::Past;
use crate::session::run::{Run, State};

/// A place that the user names.
pub type TargetName = Arc<str>;

/// What a worker raises if it may not read another's memory.
const NO_DIRECT_COPY: &str = "NoDirectCopy";

/// The target that is always there: the notebook's own machine.
pub const HOME: &str = "home";

/// A client's request, with the channel that it came on and its answer goes to.
#[derive(Clone, Debug)]
pub struct Asked {
    /// Shell or control.
    pub channel: Channel,
    /// Its header, read once.
    pub header: Header,
    /// The message as it came.
    pub message: Message,
}

/// What happened.
#[derive(Debug)]
pub enum Event {
    /// Start the home worker before the first cell asks for it.
    Warm,
    /// A client asks to execute a cell.
    Execute(Box<(Request, Cell)>),
    /// A client sent a request that a worker answers: completion, a comm message, history.
    PassOn {
        /// The client's message.
        request: Arc<Asked>,
        /// Which worker should answer.
        to: PassTo,
    },
    /// A client asks to interrupt what runs.
    Interrupt,
    /// A worker is ready for cells.
    WorkerReady(WorkerId),
    /// A worker could not be started, or died.
    WorkerGone {
        /// Which.
        worker: WorkerId,
        /// What to tell the user.
        problem: Problem,
    },
    /// The worker started on the run: an interrupt reaches the user's code from now on.
    Busy(WorkerId, RunId),
    /// What the worker reports after a run.
    Report(WorkerId, RunId, Box<Report>),
    /// The worker's reply to the run.
    Replied(WorkerId, RunId, Box<Reply>),
    /// The worker is done with the run: nothing more comes.
    Idle(WorkerId, RunId),
    /// A transfer's first half ended.
    Taken(u64, Taken),
}

/// Which worker a request is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PassTo {
    /// The home worker, started if need be.
    Home,
    /// The worker that holds this name if there is one that is free, else the home worker.
    HolderOf(Name),
    /// This worker, after the cells that were asked for before; nobody if it is gone.
    Worker(WorkerId),
}

/// A worker's account of a run.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct Report {
    /// Names bound.
    pub bound: BTreeMap<Name, Description>,
    /// Names deleted.
    #[serde(default)]
    pub deleted: Vec<Name>,
    /// What names that the cell could change are now.
    #[serde(default)]
    pub seen: BTreeMap<Name, Description>,
    /// What of the prelude failed; the cell did not run then.
    #[serde(default)]
    pub failed: Option<PreludeFailure>,
    /// How long the cell took, in seconds.
    #[serde(default)]
    pub seconds: f64,
}

/// Why what a cell needs could not be put in its place.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
pub struct PreludeFailure {
    /// `put`, `define`, `drop`, `results` or `inputs`.
    #[serde(rename = "do")]
    pub action: String,
    /// The names concerned.
    #[serde(default)]
    pub names: Vec<String>,
    /// The definition's source.
    #[serde(default)]
    pub source: Option<String>,
    /// The definition's cell.
    #[serde(default)]
    pub number: Option<u32>,
    /// The exception's class.
    pub ename: String,
    /// The exception as one line.
    pub message: String,
    /// The Python that raised it.
    pub python: String,
}

/// A worker's `execute_reply`.
#[derive(Debug)]
pub struct Reply {
    /// The message, to pass on.
    pub message: Message,
    /// Whether its status is `error`.
    pub failed: bool,
    /// The exception's class and text, if it failed.
    pub exception: Option<(String, String)>,
}

/// The outcome of taking values.
#[derive(Clone, Debug)]
pub enum Taken {
    /// They are ready to be put elsewhere.
    Ok {
        /// The names in the pickle, which may be more than were asked for.
        names: BTreeMap<Name, Description>,
        /// Names that must stand before it can be unpickled.
        needs: BTreeSet<Name>,
        /// Names that the worker does not have after all.
        missing: BTreeSet<Name>,
        /// How large the pickle is, in bytes.
        size: u64,
    },
    /// Some names cannot be carried: type and reason of each.
    Uncarriable(BTreeMap<Name, (String, String)>),
    /// The transfer itself failed.
    Failed(String),
    /// The user interrupted it.
    Interrupted,
}

/// What must be done.
#[derive(Debug)]
pub enum Effect {
    /// Start a worker of the target.
    StartWorker(WorkerId, TargetName),
    /// Tell the clients that a request is being worked on, or done.
    Status(Arc<Asked>, &'static str),
    /// Show the source of a cell that never reaches a worker.
    Input(Arc<Asked>, u32),
    /// Show an error under the cell.
    Error(Arc<Asked>, Problem),
    /// Show a note under the cell.
    Note(Arc<Asked>, String),
    /// Answer a request in our own name.
    Answer(Arc<Asked>, Answer),
    /// Pass a worker's reply on to the client that asked.
    Reply(Arc<Asked>, Box<Message>),
    /// Run the cell.
    Run(WorkerId, RunId, Box<Orders>),
    /// Take values from a worker.
    Take {
        /// Which transfer.
        transfer: u64,
        /// Who holds them.
        worker: WorkerId,
        /// Which.
        names: BTreeSet<Name>,
        /// What is in its namespace and no longer current: dropped first, so that it cannot come along.
        stale: BTreeSet<Name>,
        /// Who may copy large ones straight from its memory, if workers can do so here.
        reader: Option<WorkerId>,
    },
    /// The values of these transfers are not needed any more.
    Release(Vec<u64>),
    /// Interrupt the worker.
    Interrupt(WorkerId),
    /// Send a client's request to the worker.
    PassOn(WorkerId, Arc<Asked>),
    /// Add cells that ran elsewhere to the home worker's history.
    History(WorkerId, Vec<(u32, Arc<str>)>),
}

/// An `execute_reply` in our own name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The cell failed before it ran, or with its worker.
    Failed(Problem, u32),
    /// An earlier cell of the queue failed.
    Aborted,
    /// A request that was passed on cannot be answered: its worker is gone.
    Unanswered(String),
}

/// What goes to the worker with a cell.
#[derive(Debug)]
pub struct Orders {
    /// The client's request.
    pub request: Arc<Asked>,
    /// The execution count to use; `None` for a silent request.
    pub count: Option<u32>,
    /// What must be done first.
    pub plan: Plan,
    /// Names of values that the cell can change; the worker says after the run what they are.
    /// `None` while there is no other worker that could ask for them.
    pub touched: Option<Vec<Name>>,
    /// Cells that ran elsewhere since the last one here: for `In` and the history.
    pub inputs: Vec<(u32, Arc<str>)>,
}

impl Orders {
    /// The values carried to the worker for this cell, for the log: `, with `a`, `b``, or nothing.
    pub fn carried(&self) -> String {
        let names = self.plan.steps.iter().filter_map(|step| match step {
            Step::Put(put) => Some(put.names.keys()),
            Step::Define(_) => None,
        });
        let names: Vec<String> = names.flatten().map(|name| format!("`{name}`")).collect();
        if names.is_empty() {
            return String::new();
        }
        format!(", with {}", names.join(", "))
    }
}

#[derive(Debug)]
struct Worker {
    target: TargetName,
    ready: bool,
    /// Requests that wait until it is ready.
    waiting: Vec<Arc<Asked>>,
    /// Requests passed on and not answered yet, by `msg_id`.
    open: BTreeMap<String, Arc<Asked>>,
}

/// What waits for the cells before it.
#[derive(Debug)]
enum Queued {
    Run(RunId),
    /// A comm message, which must not overtake a cell that was asked for before it.
    PassOn(WorkerId, Arc<Asked>),
}

/// The state machine.
#[derive(Debug, Default)]
pub struct Session {
    ledger: Ledger,
    queue: VecDeque<Queued>,
    runs: BTreeMap<RunId, Run>,
    current: Option<RunId>,
    workers: BTreeMap<WorkerId, Worker>,
    next_worker: u32,
    next_run: u64,
    next_transfer: u64,
    count: u32,
    /// Cells that the home worker's history lacks.
    inputs: Vec<(u32, Arc<str>)>,
    past: Past,
    /// Whether values must go through shared memory: one worker may not read another's memory.
    indirect: bool,
    effects: Vec<Effect>,
}

impl Session {
    /// A session in which nothing has run.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes one event; returns what must be done, in order.
    pub fn handle(&mut self, event: Event) -> Vec<Effect> {
        match event {
            Event::Warm => {
                self.home_worker();
            }
            Event::Execute(ask) => self.enqueue(ask.0, ask.1),
            Event::PassOn { request, to } => self.pass_on(request, &to),
            Event::Interrupt => self.interrupt(),
            Event::WorkerReady(worker) => self.worker_ready(worker),
            Event::WorkerGone { worker, problem } => self.worker_gone(worker, &problem),
            Event::Busy(worker, run) => self.busy(worker, run),
            Event::Report(worker, run, report) => {
                self.at(worker, run, |running| running.report = Some(*report))
            }
            Event::Replied(worker, run, reply) => {
                self.at(worker, run, |running| running.reply = Some(*reply))
            }
            Event::Idle(worker, run) => self.at(worker, run, |running| running.idle = true),
            Event::Taken(transfer, taken) => self.taken(transfer, taken),
        }
        self.advance();
        std::mem::take(&mut self.effects)
    }

    /// The execution count of the last cell.
    pub fn count(&self) -> u32 {
        self.count
    }

    /// The cells running and waiting, with their targets, for `%cellferry status`.
    pub fn overview(&self) -> Vec<String> {
        self.current
            .iter()
            .chain(self.queue.iter().filter_map(|queued| match queued {
                Queued::Run(id) => Some(id),
                Queued::PassOn(..) => None,
            }))
            .filter_map(|id| self.runs.get(id))
            .map(|run| {
                format!(
                    "{} on {}: {}",
                    run.state.word(),
                    run.cell.target,
                    run.cell.first_line()
                )
            })
            .collect()
    }

    /// The cells so far, for `%cellferry graph`.
    pub fn picture(&self) -> Picture {
        self.past.picture()
    }

    /// Who holds a name, in words.
    pub fn where_is(&self, name: &Name) -> String {
        let Some(seen) = self.ledger.look(name) else {
            return format!("no cell has bound `{name}`");
        };
        let places = |workers: &[WorkerId]| {
            let names: BTreeSet<String> = workers.iter().map(|id| self.place_name(*id)).collect();
            names.into_iter().collect::<Vec<_>>().join(", ")
        };
        let mut text = format!(
            "`{name}` ({}): {} by cell [{}]",
            seen.type_name, seen.how, seen.made_by
        );
        if seen.holders.is_empty() {
            text += ", held by nobody";
        } else {
            text += &format!(", current on {}", places(&seen.holders));
        }
        if !seen.stale.is_empty() {
            text += &format!(", an older version left on {}", places(&seen.stale));
        }
        text
    }

    /// A request that was passed on has been answered; returns it.
    pub fn answered(&mut self, worker: WorkerId, msg_id: &str) -> Option<Arc<Asked>> {
        self.workers.get_mut(&worker)?.open.remove(msg_id)
    }

    /// The client's request of a run that is under way.
    pub fn request(&self, run: RunId) -> Option<&Arc<Asked>> {
        self.runs.get(&run).map(|run| &run.request.message)
    }

    fn enqueue(&mut self, request: Request, cell: Cell) {
        self.next_run += 1;
        let id = RunId(self.next_run);
        let place = (!request.silent).then(|| {
            self.past
                .asked(cell.access.clone(), cell.first_line(), &cell.target)
        });
        self.runs.insert(id, Run::new(request, cell, place));
        self.queue.push_back(Queued::Run(id));
    }

    /// Moves on whatever can: the running cell, then the queue.
    fn advance(&mut self) {
        loop {
            let Some(id) = self.current else {
                match self.queue.pop_front() {
                    None => return,
                    Some(Queued::PassOn(worker, request)) => self.send_or_refuse(worker, request),
                    Some(Queued::Run(next)) => {
                        self.current = Some(next);
                        self.begin(next);
                    }
                }
                continue;
            };
            let Some(run) = self.runs.get(&id) else {
                self.current = None;
                continue;
            };
            let before = self.current;
            match &run.state {
                State::Waiting | State::Starting { .. } => {
                    if !self.place(id) {
                        return;
                    }
                }
                State::Fetching { pending, .. } => {
                    if !pending.is_empty() {
                        return;
                    }
                    self.fetch(id);
                    if matches!(self.runs.get(&id).map(|run| &run.state), Some(State::Fetching { pending, .. }) if !pending.is_empty())
                    {
                        return;
                    }
                }
                State::Running(running) => {
                    if !running.done() {
                        return;
                    }
                    self.finish(id);
                }
            }
            if before.is_some() && self.current == before {
                continue;
            }
        }
    }

    /// A cell's turn has come: it is busy from now on, even while its worker starts.
    fn begin(&mut self, id: RunId) {
        let Some(run) = self.runs.get_mut(&id) else {
            return;
        };
        let message = run.request.message.clone();
        self.effects.push(Effect::Status(message, "busy"));
        if !run.request.silent {
            run.count = Some(self.count + 1);
            // As in IPython, a cell that is not stored does not use its number up.
            self.count += u32::from(run.request.store_history);
        }
        if let Some(place) = run.place {
            self.past.state(place, svg::State::Running, None);
        }
        if let Some(problem) = run.cell.problem.take() {
            self.refuse(id, problem);
        }
    }

    /// Finds a worker for the cell; false while there is none that is ready.
    fn place(&mut self, id: RunId) -> bool {
        let Some(run) = self.runs.get(&id) else {
            return true;
        };
        let target = run.cell.target.clone();
        let wanted = &run.cell.needed.must | &run.cell.needed.may;
        let best = self
            .workers
            .iter()
            .filter(|(_, worker)| worker.target == target)
            .max_by_key(|(id, worker)| {
                (
                    self.ledger.held(**id, &wanted),
                    worker.ready,
                    std::cmp::Reverse(id.0),
                )
            });
        let (worker, ready) = match best {
            Some((id, worker)) => (*id, worker.ready),
            None => (self.start_worker(target), false),
        };
        let Some(run) = self.runs.get_mut(&id) else {
            return true;
        };
        if ready {
            run.state = State::Fetching {
                worker,
                pending: BTreeSet::new(),
                arrived: Vec::new(),
            };
        } else {
            run.state = State::Starting { worker };
        }
        ready
    }

    fn start_worker(&mut self, target: TargetName) -> WorkerId {
        let id = WorkerId(self.next_worker);
        self.next_worker += 1;
        let worker = Worker {
            target: target.clone(),
            ready: false,
            waiting: Vec::new(),
            open: BTreeMap::new(),
        };
        self.workers.insert(id, worker);
        self.effects.push(Effect::StartWorker(id, target));
        id
    }

    /// Plans what the cell needs, and either takes what is missing or runs it.
    fn fetch(&mut self, id: RunId) {
        let Some(run) = self.runs.get_mut(&id) else {
            return;
        };
        let State::Fetching {
            worker,
            pending,
            arrived,
        } = &mut run.state
        else {
            return;
        };
        let worker = *worker;
        let plan = self
            .ledger
            .plan(worker, &run.cell.needed, arrived, &run.skipped);
        if let Some((name, lost)) = plan.lost.first() {
            let problem = lost_value(name, lost);
            self.refuse(id, problem);
            return;
        }
        if plan.takes.is_empty() {
            let inputs = if self
                .workers
                .get(&worker)
                .is_some_and(|worker| &*worker.target == HOME)
            {
                std::mem::take(&mut self.inputs)
            } else {
                Vec::new()
            };
            let orders = Orders {
                request: run.request.message.clone(),
                count: run.count,
                touched: (self.workers.len() > 1).then(|| self.ledger.changeable(&plan.touched)),
                plan: plan.clone(),
                inputs,
            };
            run.state = State::Running(Box::new(run::Running::new(worker, plan)));
            self.effects.push(Effect::Run(worker, id, Box::new(orders)));
            return;
        }
        arrived.retain(|put| !plan.again.contains(&put.transfer));
        for (holder, names) in plan.takes {
            self.next_transfer += 1;
            pending.insert(self.next_transfer);
            run.transfers.push(self.next_transfer);
            run.taking
                .insert(self.next_transfer, (holder, names.clone()));
            self.effects.push(Effect::Take {
                transfer: self.next_transfer,
                worker: holder,
                names,
                stale: self.ledger.forget_stale(holder),
                reader: (!self.indirect).then_some(worker),
            });
        }
    }

    fn taken(&mut self, transfer: u64, taken: Taken) {
        let Some(id) = self.current else { return };
        let holder_of = |run: &Run| {
            run.taking
                .get(&transfer)
                .map(|(holder, _)| self.place_name(*holder))
        };
        let Some(holder_name) = self.runs.get(&id).and_then(holder_of) else {
            return;
        };
        let Some(run) = self.runs.get_mut(&id) else {
            return;
        };
        let Some((_, asked)) = run.taking.remove(&transfer) else {
            return;
        };
        let State::Fetching {
            pending, arrived, ..
        } = &mut run.state
        else {
            return;
        };
        pending.remove(&transfer);
        match taken {
            Taken::Ok {
                names,
                needs,
                missing,
                size,
            } => {
                run.carried += size;
                run.skipped.extend(missing);
                arrived.push(Put {
                    names,
                    needs,
                    transfer,
                });
            }
            Taken::Uncarriable(failed) => {
                let fatal = failed
                    .iter()
                    .find(|(name, _)| run.cell.needed.must.contains(*name));
                if let Some((name, (type_name, reason))) = fatal {
                    let problem =
                        uncarriable(name, type_name, reason, &holder_name, &run.cell.target);
                    self.refuse(id, problem);
                    return;
                }
                let before = run.skipped.len();
                for (name, (type_name, reason)) in &failed {
                    run.skipped.insert(name.clone());
                    let left = (type_name.clone(), reason.clone(), holder_name.clone());
                    run.left_behind.insert(name.clone(), left);
                }
                if run.skipped.len() == before {
                    // Nothing more can be left out: the asked names themselves are the trouble.
                    run.skipped.extend(asked);
                }
            }
            Taken::Failed(message) => {
                let problem = Problem::transfer(&asked, &holder_name, &run.cell.target, &message);
                self.refuse(id, problem);
            }
            Taken::Interrupted => {
                self.refuse(id, Problem::interrupted());
            }
        }
    }

    /// Changes the state of a cell that runs on `worker`.
    fn at(&mut self, worker: WorkerId, id: RunId, change: impl FnOnce(&mut run::Running)) {
        if let Some(Run {
            state: State::Running(running),
            ..
        }) = self.runs.get_mut(&id)
            && running.worker == worker
        {
            change(running);
        }
    }

    fn busy(&mut self, worker: WorkerId, id: RunId) {
        let mut interrupted = false;
        self.at(worker, id, |running| {
            running.busy = true;
            interrupted = std::mem::take(&mut running.interrupt);
        });
        if interrupted {
            self.effects.push(Effect::Interrupt(worker));
        }
    }

    fn interrupt(&mut self) {
        let Some(id) = self.current else { return };
        let Some(run) = self.runs.get_mut(&id) else {
            return;
        };
        match &mut run.state {
            State::Running(running) if running.busy => {
                self.effects.push(Effect::Interrupt(running.worker))
            }
            // The worker would not notice yet: it is told as soon as it has begun.
            State::Running(running) => running.interrupt = true,
            State::Fetching { .. } => {
                let holders: BTreeSet<WorkerId> =
                    run.taking.values().map(|(holder, _)| *holder).collect();
                self.effects
                    .extend(holders.into_iter().map(Effect::Interrupt));
                self.refuse(id, Problem::interrupted());
            }
            State::Waiting | State::Starting { .. } => self.refuse(id, Problem::interrupted()),
        }
    }

    /// Ends a run with an error of ours.
    fn refuse(&mut self, id: RunId, problem: Problem) {
        let Some(run) = self.runs.get(&id) else {
            return;
        };
        let message = run.request.message.clone();
        let count = run.count.unwrap_or(self.count);
        let started = matches!(run.state, State::Running(_));
        if !run.request.silent {
            if !started {
                self.effects.push(Effect::Input(message.clone(), count));
            }
            self.effects
                .push(Effect::Error(message.clone(), problem.clone()));
        }
        self.effects
            .push(Effect::Answer(message, Answer::Failed(problem, count)));
        self.close(id, true);
    }

    /// The worker is done with the cell.
    fn finish(&mut self, id: RunId) {
        let Some(run) = self.runs.get_mut(&id) else {
            return;
        };
        let State::Running(running) = &mut run.state else {
            return;
        };
        let worker = running.worker;
        let report = running.report.take().unwrap_or_default();
        let reply = running.reply.take();
        if let Some(failure) = &report.failed {
            if failure.ename == NO_DIRECT_COPY && !self.indirect {
                // Nothing of the cell has run: its values are taken again, another way.
                self.indirect = true;
                run.state = State::Waiting;
                return;
            }
            let problem = Problem::prelude(failure, &run.cell.target);
            self.refuse(id, problem);
            return;
        }
        let number = run.count.unwrap_or(self.count);
        let took = took(report.seconds, run.carried);
        let plan = std::mem::take(&mut running.plan);
        let changes = Changes {
            bound: report.bound,
            deleted: report.deleted,
            seen: report.seen,
            definitions: &run.cell.definitions,
        };
        self.ledger
            .record(worker, number, &run.cell.source, &plan, changes);
        let message = run.request.message.clone();
        let at_home = self
            .workers
            .get(&worker)
            .is_some_and(|worker| &*worker.target == HOME);
        if let (Some(count), false, true) = (run.count, at_home, run.request.store_history) {
            self.inputs.push((count, run.cell.source.clone()));
        }
        let failed = match reply {
            Some(reply) => {
                if let Some(note) = run.hint(&reply) {
                    self.effects.push(Effect::Note(message.clone(), note));
                }
                self.effects
                    .push(Effect::Reply(message, Box::new(reply.message)));
                reply.failed
            }
            None => {
                let problem = Problem::interrupted();
                self.effects
                    .push(Effect::Answer(message, Answer::Failed(problem, number)));
                true
            }
        };
        if let Some(place) = run.place.take() {
            let state = if failed {
                svg::State::Failed
            } else {
                svg::State::Done
            };
            self.past.state(place, state, Some(took));
        }
        self.close(id, failed);
    }

    /// Takes a run out of the session; after an error the queue is aborted, as any kernel does.
    fn close(&mut self, id: RunId, failed: bool) {
        let Some(run) = self.runs.remove(&id) else {
            return;
        };
        if !run.transfers.is_empty() {
            self.effects.push(Effect::Release(run.transfers));
        }
        if let Some(place) = run.place {
            self.past.state(place, svg::State::Refused, None);
        }
        self.effects
            .push(Effect::Status(run.request.message, "idle"));
        if self.current == Some(id) {
            self.current = None;
        }
        if failed && run.request.stop_on_error && !run.request.silent {
            for waiting in std::mem::take(&mut self.queue) {
                let Queued::Run(waiting) = waiting else {
                    self.queue.push_back(waiting);
                    continue;
                };
                let Some(run) = self.runs.remove(&waiting) else {
                    continue;
                };
                if let Some(place) = run.place {
                    self.past.state(place, svg::State::Refused, None);
                }
                let message = run.request.message;
                self.effects.push(Effect::Status(message.clone(), "busy"));
                self.effects
                    .push(Effect::Answer(message.clone(), Answer::Aborted));
                self.effects.push(Effect::Status(message, "idle"));
            }
        }
    }

    fn worker_ready(&mut self, id: WorkerId) {
        let Some(worker) = self.workers.get_mut(&id) else {
            return;
        };
        worker.ready = true;
        for request in std::mem::take(&mut worker.waiting) {
            self.send(id, request);
        }
    }

    fn worker_gone(&mut self, id: WorkerId, problem: &Problem) {
        let name = self.place_name(id);
        let Some(worker) = self.workers.remove(&id) else {
            return;
        };
        self.ledger.worker_lost(id, &name);
        for request in worker.waiting.into_iter().chain(worker.open.into_values()) {
            self.unanswered(request, &problem.evalue);
        }
        let Some(current) = self.current else { return };
        let Some(run) = self.runs.get(&current) else {
            return;
        };
        let concerned = match &run.state {
            State::Waiting => false,
            State::Starting { worker } => *worker == id,
            State::Fetching { worker, .. } => {
                *worker == id || run.taking.values().any(|(holder, _)| *holder == id)
            }
            State::Running(running) => running.worker == id,
        };
        if concerned {
            self.refuse(current, problem.clone());
        }
    }

    fn home_worker(&mut self) -> WorkerId {
        let found = self
            .workers
            .iter()
            .find(|(_, worker)| &*worker.target == HOME)
            .map(|(id, _)| *id);
        found.unwrap_or_else(|| self.start_worker(Arc::from(HOME)))
    }

    fn pass_on(&mut self, request: Arc<Asked>, to: &PassTo) {
        let worker = match to {
            PassTo::Home => self.home_worker(),
            PassTo::HolderOf(name) => {
                let busy = self
                    .current
                    .and_then(|id| self.runs.get(&id))
                    .and_then(|run| run.state.worker());
                let holders: Vec<WorkerId> = self.ledger.holders(name.as_str()).collect();
                let at_home = |id: &WorkerId| {
                    self.workers
                        .get(id)
                        .is_some_and(|worker| &*worker.target == HOME)
                };
                let elsewhere = holders
                    .iter()
                    .find(|id| Some(**id) != busy && self.workers.contains_key(id))
                    .copied();
                if holders.iter().any(at_home) {
                    self.home_worker()
                } else {
                    elsewhere.unwrap_or_else(|| self.home_worker())
                }
            }
            PassTo::Worker(id) => {
                if !self.queue.is_empty() {
                    self.queue.push_back(Queued::PassOn(*id, request));
                    return;
                }
                *id
            }
        };
        self.send_or_refuse(worker, request);
    }

    fn send_or_refuse(&mut self, worker: WorkerId, request: Arc<Asked>) {
        if self.workers.contains_key(&worker) {
            self.send(worker, request);
        } else {
            self.unanswered(request, "its worker is gone");
        }
    }

    fn unanswered(&mut self, request: Arc<Asked>, why: &str) {
        self.effects.push(Effect::Status(request.clone(), "busy"));
        self.effects.push(Effect::Answer(
            request.clone(),
            Answer::Unanswered(why.to_owned()),
        ));
        self.effects.push(Effect::Status(request, "idle"));
    }

    fn send(&mut self, id: WorkerId, request: Arc<Asked>) {
        let Some(worker) = self.workers.get_mut(&id) else {
            return;
        };
        if !worker.ready {
            worker.waiting.push(request);
            return;
        }
        let header = request.header.clone();
        if header.msg_type == "history_request"
            && &*worker.target == HOME
            && !self.inputs.is_empty()
        {
            self.effects
                .push(Effect::History(id, std::mem::take(&mut self.inputs)));
        }
        if header.msg_type.ends_with("_request") {
            worker.open.insert(header.msg_id, request.clone());
        }
        self.effects.push(Effect::PassOn(id, request));
    }

    /// How messages name a worker: by its target.
    fn place_name(&self, id: WorkerId) -> String {
        self.workers.get(&id).map_or_else(
            || "a worker that is gone".to_owned(),
            |worker| format!("`{}`", worker.target),
        )
    }
}

/// How long a cell took and how much was carried for it, in a few words.
fn took(seconds: f64, carried: u64) -> String {
    let time = match seconds {
        ..0.9995 => format!("{:.0} ms", seconds * 1e3),
        ..99.95 => format!("{seconds:.1} s"),
        _ => format!("{:.0} min", seconds / 60.0),
    };
    match carried {
        0 => time,
        1..1000 => format!("{time}, {carried} B"),
        1000..1_000_000 => format!("{time}, {} kB", carried / 1000),
        _ => format!("{time}, {} MB", carried / 1_000_000),
    }
}

fn lost_value(name: &Name, lost: &Lost) -> Problem {
    Problem::new(
        "LostValue",
        format!(
            "`{name}` ({}) is lost: only the worker of {} held it, and that worker died; run cell [{}] again, which made it",
            lost.type_name, lost.held_by, lost.made_by
        ),
    )
}

fn uncarriable(name: &Name, type_name: &str, reason: &str, holder: &str, target: &str) -> Problem {
    Problem::new(
        "UncarriableValue",
        format!(
            "`{name}` ({type_name}) lives on {holder} and cannot be carried to `{target}`: {reason}; \
             make it in a cell that runs on `{target}`, or run this cell on {holder}"
        ),
    )
}
