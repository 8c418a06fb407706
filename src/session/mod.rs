//! One running notebook, as a deterministic state machine: an event in, effects out.
//!
//! It holds no socket, task, lock or clock: the driver turns the world into [`Event`]s and
//! [`Effect`]s into deeds.
//!
//! Program order is the order of arrival, and runs are committed in it. The first run that is not
//! committed has its turn: it runs live. Steps after it may run ahead on other workers, each
//! with the names as they are at its own place in program order; what they say is held back until their
//! turn comes. Whenever a run is done, those that ran ahead and used a name that it turned out to
//! have written are taken back and run again; so the result is that of running one after another.
//!
//! A run goes through `schedule` (may it start, and where), `fetch` (bring what it lacks, in `parcels`), its
//! worker, and `finish` (what did it change; commit). `undo` takes back what ran ahead.

mod event;
mod fetch;
mod finish;
mod lineage;
mod parcels;
mod past;
mod remake;
mod requests;
mod retire;
mod run;
mod schedule;
mod undo;

pub use event::{
    Answer, Asked, Effect, Event, Gone, Left, Orders, Outcome, PassTo, PreludeFailure, Reply,
    Report, Retired, Taken,
};
pub use run::{Cell, GENERATORS, Problem, Request, RunId, is_shown_to_users};

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use cellferry_wire::protocol::WorkerId;

use self::lineage::Lineage;
use self::parcels::Parcel;
use self::past::Past;
use self::retire::Retiring;
use self::run::{Run, State};
use self::undo::Dying;
use crate::graph::svg::{self, Picture};
use crate::ledger::{Ledger, Namespace};
use crate::name::Name;

/// A place that the user names.
pub type TargetName = Arc<str>;

/// The target that is always there: the notebook's own machine.
pub const HOME: &str = "home";

#[derive(Debug)]
struct Worker {
    target: TargetName,
    ready: bool,
    /// Requests that wait until it is ready.
    waiting: Vec<Arc<Asked>>,
    /// Requests passed on and not answered yet, by `msg_id`.
    open: BTreeMap<String, Arc<Asked>>,
    /// The runs that are not committed and have been given to it, in program order.
    runs: Vec<RunId>,
    /// The run that it still works on although it has been taken back.
    dying: Option<Dying>,
    /// Runs that have yet to copy values straight from its memory: nothing may run here before.
    lent: BTreeSet<RunId>,
    /// Whether it was started beyond what the target may have, only to make something again.
    spare: bool,
}

impl Worker {
    /// Whether all that it was given is committed.
    fn is_quiet(&self) -> bool {
        self.runs.is_empty() && self.dying.is_none()
    }
}

/// What became of most workers that are gone.
const DIED: &str = "died";

/// How often a run gets another worker because its worker died before it came to its cell.
const STUMBLES: u32 = 3;

/// What waits for what was asked for before it.
#[derive(Debug)]
enum Queued {
    Run(RunId),
    /// A comm message, which must not overtake a cell that was asked for before it.
    PassOn(WorkerId, Arc<Asked>),
}

/// How far [`Session::next_view`] has come in the queue, and the names as they are there. Good until a run changes its state.
#[derive(Default)]
struct Views {
    position: usize,
    view: Option<Arc<Namespace>>,
}

/// The state machine.
#[derive(Debug, Default)]
pub struct Session {
    ledger: Ledger,
    /// What is not committed, in program order; what is only expected comes last.
    queue: VecDeque<Queued>,
    runs: BTreeMap<RunId, Run>,
    workers: BTreeMap<WorkerId, Worker>,
    parcels: BTreeMap<u64, Parcel>,
    lineage: Lineage,
    /// The runs that nobody sees.
    unseen: BTreeSet<RunId>,
    retiring: Retiring,
    next_worker: u32,
    /// How many workers there have been at once.
    most_workers: usize,
    next_run: u64,
    next_seq: u64,
    next_transfer: u64,
    count: u32,
    /// Cells that the home worker's history lacks.
    inputs: Vec<(u32, Arc<str>)>,
    past: Past,
    /// Names of values that cells changed unseen, as the user has been told.
    told: BTreeSet<Name>,
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
        let spoken_of = match &event {
            Event::Busy(worker, run)
            | Event::Report(worker, run, _)
            | Event::Replied(worker, run, _)
            | Event::Idle(worker, run) => Some((*worker, *run)),
            _ => None,
        };
        match event {
            Event::Warm => {
                self.home_worker();
            }
            Event::Execute(ask) => self.enqueue(ask.0, ask.1, true),
            Event::Expect(cells) => {
                for (request, cell) in cells {
                    self.enqueue(request, cell, false);
                }
            }
            Event::Expected(request) => self.expected(*request),
            Event::Unexpected => self.unexpected(),
            Event::PassOn { request, to } => self.pass_on(request, &to),
            Event::Interrupt => self.interrupt(),
            Event::Retire {
                workers,
                force,
                request,
            } => self.retire(&workers, force, *request),
            Event::WorkerReady(worker) => self.worker_ready(worker),
            Event::WorkerGone {
                worker,
                problem,
                how,
            } => self.worker_gone(worker, &problem, how),
            Event::Busy(worker, run) => self.busy(worker, run),
            Event::Began(worker, run) => self.began(worker, run),
            Event::Report(worker, run, report) => {
                self.at(worker, run, |running| running.report = Some(*report))
            }
            Event::Asks(worker, run) => self.at(worker, run, |running| running.asks = true),
            Event::Replied(worker, run, reply) => {
                self.at(worker, run, |running| running.reply = Some(*reply))
            }
            Event::Idle(worker, run) => self.idle(worker, run),
            Event::Taken(transfer, taken) => self.taken(transfer, taken),
            Event::Carried {
                transfer,
                to,
                outcome,
            } => self.carried(transfer, to, outcome),
        }
        // With a thousand workers there is too much to look at to do it whenever one of them says something.
        if !spoken_of.is_some_and(|(worker, run)| self.goes_on(worker, run)) {
            self.advance();
        }
        std::mem::take(&mut self.effects)
    }

    /// Whether the run is not done yet in this worker: then nothing that has been said of it moves anything.
    fn goes_on(&self, worker: WorkerId, run: RunId) -> bool {
        match self.runs.get(&run).map(|run| &run.state) {
            Some(State::Running(running)) => running.worker == worker && !running.done(),
            _ => false,
        }
    }

    /// Which versions there are, and who holds them.
    pub fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    /// The execution count of the last cell.
    pub fn count(&self) -> u32 {
        self.count
    }

    /// The cells running and waiting, with their targets and what they wait for, for `%cellferry status`.
    pub fn overview(&self) -> Vec<String> {
        self.in_order()
            .filter_map(|id| self.runs.get(&id))
            .filter(|run| run.asked || !run.state.is_waiting())
            .map(|run| {
                format!(
                    "{} on {}: {}",
                    self.how_far(run),
                    run.cell.target,
                    run.cell.first_line()
                )
            })
            .chain(self.leaving())
            .collect()
    }

    fn how_far(&self, run: &Run) -> String {
        let early = if run.begun { "" } else { " ahead of its turn" };
        match &run.state {
            State::Starting { .. } => "waiting for its worker to start".to_owned(),
            State::Fetching { .. } if run.remade.making().is_some() => {
                "waiting for what was lost to be made again".to_owned()
            }
            State::Fetching { .. } => format!("fetching what it reads{early}"),
            State::Running(_) => format!("running{early}"),
            State::Finished(_) => "done, waiting for its turn".to_owned(),
            State::Waiting if run.begun => "waiting".to_owned(),
            State::Waiting => {
                let mut names: BTreeSet<&str> = BTreeSet::new();
                for edge in run
                    .place
                    .map(|place| self.past.before(place))
                    .unwrap_or_default()
                {
                    let open =
                        |other: &Run| other.place == Some(edge.from) && !other.state.is_finished();
                    if self.runs.values().any(open) {
                        names.extend(edge.names().0);
                    }
                }
                if names.is_empty() || run.in_turn {
                    return "waiting for its turn".to_owned();
                }
                let names: Vec<String> = names.iter().map(|name| format!("`{name}`")).collect();
                format!("waiting for {}", names.join(", "))
            }
        }
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
        let size = match seen.size {
            0 => String::new(),
            size => format!(", about {}", amount(size)),
        };
        let mut text = format!(
            "`{name}` ({}{size}): version {}, {} by cell [{}]",
            seen.type_name, seen.version.0, seen.how, seen.made_by
        );
        if seen.holders.is_empty() {
            text += ", held by nobody";
        } else {
            text += &format!(", current on {}", places(&seen.holders));
        }
        if !seen.stale.is_empty() {
            text += &format!(", another version on {}", places(&seen.stale));
        }
        text
    }

    /// A request that was passed on has been answered; returns it.
    pub fn answered(&mut self, worker: WorkerId, msg_id: &str) -> Option<Arc<Asked>> {
        self.workers.get_mut(&worker)?.open.remove(msg_id)
    }

    /// Whether nothing waits and nothing runs.
    pub fn is_done(&self) -> bool {
        self.queue.is_empty()
    }

    /// Whether cells are expected that the client has not asked for.
    pub fn expects(&self) -> bool {
        let last = self.queue.back();
        matches!(last, Some(Queued::Run(id)) if self.runs.get(id).is_some_and(|run| !run.asked))
    }

    /// The client's request of a run that is under way.
    pub fn request(&self, run: RunId) -> Option<&Arc<Asked>> {
        self.runs.get(&run).map(|run| &run.request.message)
    }

    /// Whether the run's cell runs again if its worker dies.
    pub fn may_run_again(&self, run: RunId) -> bool {
        let again = |run: &Run| run.cell.access.is_step && run.died < run.cell.retry;
        self.runs.get(&run).is_some_and(again)
    }

    /// Whether runs have been given to a worker that are not committed.
    pub fn is_in_use(&self, worker: WorkerId) -> bool {
        let worker = self.workers.get(&worker);
        worker.is_some_and(|worker| !worker.runs.is_empty() || worker.dying.is_some())
    }

    /// The cells that a client has asked for and that are not done, each with its target.
    pub fn open_cells(&self) -> impl Iterator<Item = (&TargetName, &Arc<Asked>)> {
        let runs = self.in_order().filter_map(|id| self.runs.get(&id));
        let asked = runs.filter(|run| run.asked);
        asked.map(|run| (&run.cell.target, &run.request.message))
    }

    /// The cells that a client has asked for and that wait for a place: for a worker that is there, for a value that one
    /// holds, or for what is made again there.
    pub fn asked_at(&self, is_there: impl Fn(WorkerId) -> bool) -> Vec<Arc<Asked>> {
        let waits = |run: &Run| {
            let pending = match &run.state {
                State::Waiting | State::Finished(_) => return false,
                State::Fetching { pending, .. } => Some(pending),
                State::Starting { .. } | State::Running(_) => None,
            };
            let parcels = pending.into_iter().flatten();
            let holders = parcels.filter_map(|id| Some(self.parcels.get(id)?.holder));
            let making = run.remade.making();
            let made_by = making.and_then(|id| self.runs.get(&id)?.state.worker());
            let own = run.state.worker();
            own.into_iter().chain(made_by).chain(holders).any(&is_there)
        };
        self.in_order()
            .filter_map(|id| self.runs.get(&id))
            .filter(|run| run.asked && waits(run))
            .map(|run| run.request.message.clone())
            .collect()
    }

    fn enqueue(&mut self, request: Request, cell: Cell, asked: bool) {
        let id = self.new_id();
        self.next_seq += 1;
        let place = (!request.silent).then(|| self.past.add(&cell));
        let run = Run::new(request, cell, self.next_seq, asked, place);
        self.runs.insert(id, run);
        self.queue.push_back(Queued::Run(id));
    }

    fn new_id(&mut self) -> RunId {
        self.next_run += 1;
        RunId(self.next_run)
    }

    /// The client asks for the first cell that was expected.
    fn expected(&mut self, request: Request) {
        let first = self
            .in_order()
            .find(|id| self.runs.get(id).is_some_and(|run| !run.asked));
        if let Some(run) = first.and_then(|id| self.runs.get_mut(&id)) {
            run.asked = true;
            run.request = request;
        }
    }

    /// What was expected will not be asked for.
    fn unexpected(&mut self) {
        let expected: Vec<RunId> = self
            .in_order()
            .filter(|id| self.runs.get(id).is_some_and(|run| !run.asked))
            .collect();
        self.take_back(expected.iter().copied().collect());
        // Taken back, they have other ids.
        let gone: Vec<RunId> = self
            .runs
            .iter()
            .filter(|(_, run)| !run.asked)
            .map(|(id, _)| *id)
            .collect();
        let places = gone.iter().filter_map(|id| self.runs.remove(id)?.place);
        if let Some(first) = places.min() {
            self.past.truncate(first);
        }
        self.forget_closed();
    }

    fn forget_closed(&mut self) {
        let runs = &self.runs;
        self.queue.retain(|queued| match queued {
            Queued::Run(id) => runs.contains_key(id),
            Queued::PassOn(..) => true,
        });
    }

    /// The runs that are not committed, in program order.
    fn in_order(&self) -> impl Iterator<Item = RunId> + '_ {
        self.queue.iter().filter_map(|queued| match queued {
            Queued::Run(id) => Some(*id),
            Queued::PassOn(..) => None,
        })
    }

    /// The names as a run sees them.
    fn view_of(&self, run: &Run) -> Arc<Namespace> {
        match &run.unseen {
            Some(unseen) => unseen.view.clone(),
            None => self.view(run.seq),
        }
    }

    /// The names as they are at a place of program order, as far as what comes before is done.
    fn view(&self, seq: u64) -> Arc<Namespace> {
        let mut views = Views::default();
        self.next_view(&mut views, seq)
    }

    /// The same for one place after the other: each costs only what comes between it and the one before.
    fn next_view(&self, views: &mut Views, seq: u64) -> Arc<Namespace> {
        let Views { position, view } = views;
        let view = view.get_or_insert_with(|| self.ledger.after([]));
        while let Some(queued) = self.queue.get(*position) {
            let run = match queued {
                Queued::Run(id) => self.runs.get(id),
                Queued::PassOn(..) => None,
            };
            if run.is_some_and(|run| run.seq >= seq) {
                break;
            }
            if let Some(State::Finished(finished)) = run.map(|run| &run.state) {
                Arc::make_mut(view).apply(&finished.delta);
            }
            *position += 1;
        }
        view.clone()
    }

    /// Moves on whatever can.
    fn advance(&mut self) {
        let mut moves = 0;
        while self.leave() || self.front() || self.unseen() || self.ahead() {
            moves += 1;
            debug_assert!(moves < 20_000, "the session moves on for ever");
        }
    }

    /// Moves on the run that has its turn; whether anything changed.
    fn front(&mut self) -> bool {
        match self.queue.front() {
            None => false,
            Some(Queued::PassOn(..)) => {
                if let Some(Queued::PassOn(worker, request)) = self.queue.pop_front() {
                    self.send_or_refuse(worker, request);
                }
                true
            }
            Some(Queued::Run(id)) => {
                let id = *id;
                match self.runs.get(&id) {
                    None => {
                        self.queue.pop_front();
                        true
                    }
                    Some(run) if !run.asked => false,
                    Some(run) if !run.begun => {
                        self.begin(id);
                        true
                    }
                    Some(run) if run.state.is_finished() => {
                        self.commit(id);
                        true
                    }
                    Some(_) => self.progress(id),
                }
            }
        }
    }

    /// A cell's turn has come: it is busy from now on, even while its worker starts.
    fn begin(&mut self, id: RunId) {
        let Some(run) = self.runs.get_mut(&id) else {
            return;
        };
        run.begun = true;
        let message = run.request.message.clone();
        self.effects.push(Effect::Status(message.clone(), "busy"));
        if !run.request.silent {
            run.count = Some(self.count + 1);
            self.count += u32::from(run.counts());
        }
        if matches!(run.state, State::Running(_) | State::Finished(_)) {
            self.effects.push(Effect::Show(id, message));
        }
        if let Some(place) = run.place {
            self.past.state(place, svg::State::Running, None);
        }
        let message = run.request.message.clone();
        let notes = std::mem::take(&mut run.notes).into_iter();
        self.effects
            .extend(notes.map(|note| Effect::Note(message.clone(), note)));
        if let Some(problem) = run.problem.take() {
            self.refuse(id, problem);
        }
    }

    /// One move of a run; whether anything changed.
    fn progress(&mut self, id: RunId) -> bool {
        match self.runs.get(&id).map(|run| &run.state) {
            None | Some(State::Finished(_)) => false,
            Some(State::Waiting) => self.place(id),
            Some(State::Starting { worker }) => {
                let worker = *worker;
                let ready = self.workers.get(&worker).is_some_and(|worker| worker.ready);
                if let Some(run) = self.runs.get_mut(&id).filter(|_| ready) {
                    run.state = State::Fetching {
                        worker,
                        pending: BTreeSet::new(),
                        arrived: Vec::new(),
                    };
                }
                ready
            }
            Some(State::Fetching { pending, .. }) => {
                let is_making = |run: &Run| run.remade.making().is_some();
                pending.is_empty() && !self.runs.get(&id).is_some_and(is_making) && self.fetch(id)
            }
            Some(State::Running(running)) => running.done() && self.finish(id),
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
        let mut interrupted = self.dying_busy(worker, id);
        self.at(worker, id, |running| {
            running.busy = true;
            interrupted = std::mem::take(&mut running.interrupt);
        });
        if interrupted {
            self.effects.push(Effect::Interrupt(worker));
        }
    }

    /// What the run reads stands in its worker.
    fn began(&mut self, worker: WorkerId, id: RunId) {
        let runs_there = |run: &Run| run.state.worker() == Some(worker);
        if self.runs.get(&id).is_some_and(runs_there) {
            self.has_copied(id);
        }
    }

    fn has_copied(&mut self, id: RunId) {
        for worker in self.workers.values_mut() {
            worker.lent.remove(&id);
        }
    }

    fn idle(&mut self, worker: WorkerId, id: RunId) {
        self.at(worker, id, |running| running.idle = true);
        self.dying_idle(worker, id);
    }

    fn interrupt(&mut self) {
        // What has been taken back may not have noticed.
        let dying: Vec<WorkerId> = self
            .workers
            .iter()
            .filter(|(_, worker)| worker.dying.as_ref().is_some_and(|dying| dying.busy))
            .map(|(id, _)| *id)
            .collect();
        self.effects
            .extend(dying.into_iter().map(Effect::Interrupt));
        let Some(Queued::Run(id)) = self.queue.front() else {
            return;
        };
        let id = *id;
        let Some(run) = self.runs.get_mut(&id).filter(|run| run.begun) else {
            return;
        };
        match &mut run.state {
            State::Running(running) => {
                running.interrupted = true;
                if running.busy {
                    self.effects.push(Effect::Interrupt(running.worker));
                } else {
                    // The worker would not notice yet: it is told as soon as it has begun.
                    running.interrupt = true;
                }
            }
            State::Fetching { .. } => {
                let takes_alone = |transfer: &u64| {
                    let parcel = self.parcels.get(transfer)?;
                    (!parcel.is_taken() && parcel.users.len() == 1).then_some(parcel.holder)
                };
                let holders: BTreeSet<WorkerId> =
                    run.transfers.iter().filter_map(takes_alone).collect();
                let idle = |holder: &WorkerId| !self.is_occupied(*holder);
                let idle: Vec<WorkerId> = holders.into_iter().filter(idle).collect();
                self.effects.extend(idle.into_iter().map(Effect::Interrupt));
                self.refuse(id, Problem::interrupted());
            }
            State::Waiting | State::Starting { .. } => self.refuse(id, Problem::interrupted()),
            State::Finished(_) => {}
        }
    }

    fn worker_gone(&mut self, id: WorkerId, problem: &Problem, how: Gone) {
        let name = self.place_name(id);
        let Some(worker) = self.workers.remove(&id) else {
            return;
        };
        self.retiring.forget(id);
        self.ledger.worker_lost(id, &name, |_| DIED.to_owned());
        for request in worker.waiting.into_iter().chain(worker.open.into_values()) {
            self.unanswered(request, &problem.evalue);
        }
        self.cut(id);
        self.died_again(id, problem, !how.is_worth_another_try());
        let there = |run: &RunId| {
            let state = self.runs.get(run).map(|run| &run.state);
            state.is_some_and(|state| state.worker() == Some(id) && !state.is_finished())
        };
        let concerned: Vec<RunId> = self.in_order().filter(there).collect();
        for run in concerned {
            self.lost_its_worker(run, problem, how);
        }
    }

    /// The worker of a run died before it was done.
    fn lost_its_worker(&mut self, id: RunId, problem: &Problem, how: Gone) {
        let Some(run) = self.runs.get_mut(&id) else {
            return;
        };
        let (ran, interrupted) = match &run.state {
            State::Running(running) => (true, running.interrupted),
            _ => (false, false),
        };
        let count = if ran {
            &mut run.died
        } else {
            &mut run.stumbled
        };
        *count += 1;
        let goes_on = run.cell.access.is_step && how.is_worth_another_try() && !interrupted;
        let problem = match run.died {
            times if times > 1 && ran && goes_on => Problem {
                evalue: format!("the cell was tried {times} times: {}", problem.evalue),
                ..problem.clone()
            },
            _ => problem.clone(),
        };
        let goes_on = goes_on
            && if ran {
                run.died <= run.cell.retry
            } else {
                run.stumbled <= STUMBLES
            };
        let note = format!("Cellferry: this cell runs again: {}\n", problem.evalue);
        if !run.begun {
            // It will be seen under its own cell, in its turn.
            run.in_turn = true;
            if ran && goes_on {
                run.notes.push(note);
            } else if ran && run.cell.access.is_step {
                run.problem = Some(problem);
            }
            self.take_back(BTreeSet::from([id]));
        } else if goes_on {
            let message = run.request.message.clone();
            run.has_shown |= ran;
            let new = self.renew(id);
            if ran {
                self.effects.push(Effect::Again { old: id, new });
                self.effects.push(Effect::Note(message, note));
            }
        } else {
            self.refuse(id, problem);
        }
    }

    /// How messages name a worker: by its target.
    fn place_name(&self, id: WorkerId) -> String {
        self.workers.get(&id).map_or_else(
            || "a worker that is gone".to_owned(),
            |worker| format!("`{}`", worker.target),
        )
    }
}

/// A number of bytes, in words.
pub fn amount(bytes: u64) -> String {
    match bytes {
        0..1000 => format!("{bytes} B"),
        1000..1_000_000 => format!("{} kB", bytes / 1000),
        1_000_000..1_000_000_000 => format!("{} MB", bytes / 1_000_000),
        _ => format!("{:.1} GB", bytes as f64 / 1e9),
    }
}
