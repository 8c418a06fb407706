//! A simulated worker: a process with a namespace that does one thing after another, as the real helper
//! (`workers/python/helper.py`) does them.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use cellferry::ledger::{Description, Step};
use cellferry::name::Name;
use cellferry::session::{Orders, PreludeFailure, Report, RunId, Taken};
use cellferry_wire::protocol::WorkerId;

use crate::fault::Fault;
use crate::memory::{Exception, Memory, Mode, Parcel, Said, Snapshot, Value};
use crate::program::{Cell, Program, Statement};
use crate::random::Fate;

/// Values up to this size, in bytes, are copied at once; larger ones may be read from the holder's memory later.
const INLINE: u64 = 1 << 18;

/// What a worker is told to do.
#[derive(Debug)]
pub enum Task {
    Run(RunId, Box<Orders>),
    Take(Take),
    Undo(RunId),
    Settle(RunId),
}

#[derive(Debug)]
pub struct Take {
    pub transfer: u64,
    pub names: BTreeSet<Name>,
    pub stale: BTreeSet<Name>,
    pub ignored: BTreeSet<Name>,
    pub reader: Option<WorkerId>,
}

/// What a worker says.
#[derive(Debug)]
pub enum Says {
    Busy(RunId),
    Began(RunId),
    Shows(RunId, Said),
    Reports(RunId, Box<Report>),
    /// Not for the session, but for the judge: how many statements were executed to their end stands with it.
    Replies(RunId, Option<Exception>, usize),
    Idle(RunId),
    Taken(u64, Taken, Option<Contents>),
}

impl Says {
    /// Replies and what else answers a request comes on another channel than what is published; each keeps its own order.
    pub fn is_answer(&self) -> bool {
        matches!(self, Self::Replies(..) | Self::Taken(..))
    }
}

/// What was taken.
#[derive(Debug)]
pub enum Contents {
    Copy(Parcel),
    /// It stands in the holder's memory, where it is read when it is put.
    Memory {
        names: BTreeSet<Name>,
        ignored: BTreeSet<Name>,
        /// What the holder had done by then.
        era: u64,
    },
}

/// What the worker looks up outside of itself.
pub struct Outside<'a> {
    pub program: &'a Program,
    pub fate: Fate,
    pub fault: Option<Fault>,
    /// What definitions do, by their source.
    pub definitions: &'a BTreeMap<String, (Name, Vec<Statement>)>,
    /// The values that the current run's prelude puts.
    pub parcels: BTreeMap<u64, Result<Parcel, Box<PreludeFailure>>>,
}

/// What is needed to undo a run.
#[derive(Debug)]
struct Kept {
    run: RunId,
    before: Snapshot,
    copies: Parcel,
    watched: Vec<Watched>,
    /// How many runs stood in the memory.
    standing: usize,
}

#[derive(Debug)]
enum Doing {
    Prelude(RunId, Box<Orders>),
    Cell(Box<Running>),
    Other(Task),
}

#[derive(Debug)]
struct Running {
    run: RunId,
    orders: Box<Orders>,
    next: usize,
    /// The names after the prelude.
    before: Snapshot,
    watched: Vec<Watched>,
    kept: BTreeSet<Name>,
    /// What is hidden from the cell so that binding it to the same again is noticed.
    unbound: BTreeMap<Name, Value>,
}

/// Names that share objects, and what they were.
#[derive(Clone, Debug)]
struct Watched {
    names: BTreeSet<Name>,
    before: Snapshot,
    content: String,
}

#[derive(Debug)]
pub struct Worker {
    /// By its place in the program's targets.
    pub target: usize,
    pub memory: Memory,
    inbox: VecDeque<Task>,
    doing: Option<Doing>,
    kept: Vec<Kept>,
    /// The runs whose effects stand in the memory.
    pub standing: Vec<RunId>,
    /// Counted up whenever something happens in the memory.
    pub era: u64,
    /// Which step of its work it is at: an interrupt makes the planned end of a step void.
    pub turn: u64,
}

impl Worker {
    pub fn new(target: usize) -> Self {
        Self {
            target,
            memory: Memory::default(),
            inbox: VecDeque::new(),
            doing: None,
            kept: Vec::new(),
            standing: Vec::new(),
            era: 0,
            turn: 0,
        }
    }

    pub fn is_idle(&self) -> bool {
        self.doing.is_none()
    }

    /// Runs that could still be undone.
    pub fn unsettled(&self) -> Vec<RunId> {
        self.kept.iter().map(|kept| kept.run).collect()
    }

    pub fn receive(&mut self, task: Task) {
        self.inbox.push_back(task);
    }

    /// Takes up the next task; how long its first step takes, if there is one.
    pub fn begin(&mut self, outside: &Outside<'_>, says: &mut Vec<Says>) -> Option<u64> {
        let task = self.inbox.pop_front()?;
        self.turn += 1;
        let fate = outside.fate;
        let time = match &task {
            Task::Run(run, _) => fate.delay(("prelude", run.0)),
            Task::Take(take) => fate.delay(("take", take.transfer)),
            Task::Undo(run) => fate.delay(("undo", run.0)),
            Task::Settle(_) => 0,
        };
        self.doing = Some(match task {
            Task::Run(run, orders) => {
                says.push(Says::Busy(run));
                if outside.fault == Some(Fault::BeginsEarly) {
                    says.push(Says::Began(run));
                }
                Doing::Prelude(run, orders)
            }
            other => Doing::Other(other),
        });
        Some(time)
    }

    /// The run whose prelude comes to its end now.
    pub fn in_prelude(&self) -> Option<(RunId, &Orders)> {
        match &self.doing {
            Some(Doing::Prelude(run, orders)) => Some((*run, orders)),
            _ => None,
        }
    }

    /// Whether an interrupt would reach what it does.
    pub fn notices_interrupts(&self) -> bool {
        match &self.doing {
            Some(Doing::Prelude(..) | Doing::Cell(_)) => true,
            Some(Doing::Other(task)) => matches!(task, Task::Take(_)),
            None => false,
        }
    }

    /// One step ends; how long the next one takes, if the task goes on.
    pub fn proceed(
        &mut self,
        outside: &Outside<'_>,
        interrupted: bool,
        says: &mut Vec<Says>,
    ) -> Option<u64> {
        self.turn += 1;
        match self.doing.take()? {
            Doing::Prelude(run, orders) => self.prelude(run, orders, outside, interrupted, says),
            Doing::Cell(running) => self.cell(running, outside, interrupted, says),
            Doing::Other(task) => {
                match task {
                    Task::Take(take) if interrupted => {
                        says.push(Says::Taken(take.transfer, Taken::Interrupted, None));
                    }
                    Task::Take(take) => self.take(take, says),
                    Task::Undo(run) => {
                        if outside.fault != Some(Fault::UndoesNothing) {
                            self.undo(run);
                        }
                    }
                    Task::Settle(run) => {
                        if outside.fault != Some(Fault::SettlesNothing) {
                            self.kept.retain(|kept| kept.run != run);
                        }
                    }
                    Task::Run(..) => {}
                }
                None
            }
        }
    }

    // --- a run --------------------------------------------------------------------------------------

    fn prelude(
        &mut self,
        run: RunId,
        orders: Box<Orders>,
        outside: &Outside<'_>,
        interrupted: bool,
        says: &mut Vec<Says>,
    ) -> Option<u64> {
        self.era += 1;
        // An interrupt comes before one of the steps, perhaps before the first.
        let mut steps_left = if interrupted {
            outside.fate.of(("steps", run.0)).below(4)
        } else {
            u64::MAX
        };
        let kept = match self.set_up(run, &orders, outside, &mut steps_left) {
            Ok(kept) => kept,
            Err(failure) => {
                let report = Report {
                    failed: Some(*failure),
                    ..Report::default()
                };
                says.push(Says::Reports(run, Box::new(report)));
                says.push(Says::Idle(run));
                return None;
            }
        };
        if let Some(count) = orders.count {
            says.push(Says::Began(run));
            says.push(Says::Shows(run, Said::Input(count)));
        }
        let mut watched = self.watch(&(&orders.watched | &orders.steady));
        if let Some(last) = self.kept.last().filter(|kept| kept.run == run) {
            watched.extend(last.watched.iter().cloned());
        }
        let unbound = orders.unbound.iter();
        let unbound = unbound
            .filter_map(|name| Some((name.clone(), self.memory.forget(name)?)))
            .collect();
        self.standing.push(run);
        let running = Running {
            run,
            next: 0,
            before: self.memory.snapshot(),
            watched,
            kept,
            unbound,
            orders,
        };
        let time = self.time_of_statement(&running, outside);
        self.doing = Some(Doing::Cell(Box::new(running)));
        Some(time)
    }

    /// Does what must be done before the cell; the names that can be restored.
    fn set_up(
        &mut self,
        run: RunId,
        orders: &Orders,
        outside: &Outside<'_>,
        steps_left: &mut u64,
    ) -> Result<BTreeSet<Name>, Box<PreludeFailure>> {
        let mut step = |action: &str| {
            if *steps_left == 0 {
                return Err(failure(action, &[], "KeyboardInterrupt", ""));
            }
            *steps_left -= 1;
            Ok(())
        };
        let mut kept = BTreeSet::new();
        let has_cell = cell_of(orders) < outside.program.cells.len();
        if outside.fault == Some(Fault::BringsNothing) && !has_cell {
            return Ok(kept);
        }
        if let Some(keep) = &orders.keep {
            step("keep")?;
            kept = self.memory.family(keep, &BTreeSet::new());
            if let Some(locked) = kept.iter().find(|name| self.memory.is_locked(name)) {
                let names = [locked.clone()];
                return Err(failure("keep", &names, "TypeError", "cannot pickle a lock"));
            }
            self.kept.push(Kept {
                run,
                before: self.memory.snapshot(),
                copies: self.memory.copy(&kept),
                watched: self.watch(&kept),
                standing: self.standing.len(),
            });
        }
        if !orders.plan.drops.is_empty() {
            step("drop")?;
            for name in &orders.plan.drops {
                self.memory.forget(name);
            }
        }
        for action in &orders.plan.steps {
            match action {
                Step::Put(put) => {
                    step("put")?;
                    let names: Vec<Name> = put.names.keys().cloned().collect();
                    match outside.parcels.get(&put.transfer) {
                        Some(Ok(parcel)) => {
                            if let Err(missing) = self.memory.unpack(parcel) {
                                let message = format!("cannot find `{missing}`");
                                return Err(failure("put", &names, "AttributeError", &message));
                            }
                        }
                        Some(Err(failed)) => return Err(failed.clone()),
                        None => return Err(failure("put", &names, "KeyError", "no such transfer")),
                    }
                }
                Step::Define(defined) => {
                    step("define")?;
                    match outside.definitions.get(&defined.definition.source) {
                        Some((name, body)) => self.memory.define(name, body),
                        None => {
                            let names = &defined.definition.binds;
                            return Err(failure("define", names, "SyntaxError", "unknown"));
                        }
                    }
                }
            }
        }
        if !orders.plan.results.is_empty() {
            step("results")?;
            self.memory.set_last(&orders.plan.results);
        }
        Ok(kept)
    }

    fn time_of_statement(&self, running: &Running, outside: &Outside<'_>) -> u64 {
        let Some(Cell { id, slow, .. }) = outside.program.cells.get(cell_of(&running.orders))
        else {
            return 0;
        };
        outside
            .fate
            .of(("statement", id, running.next))
            .below(slow + 1)
    }

    fn cell(
        &mut self,
        mut running: Box<Running>,
        outside: &Outside<'_>,
        interrupted: bool,
        says: &mut Vec<Says>,
    ) -> Option<u64> {
        self.era += 1;
        let run = running.run;
        // What only brings values has no cell.
        let cell = outside.program.cells.get(cell_of(&running.orders));
        let statements = cell.map_or(&[][..], |cell| &cell.statements);
        let mut exception = interrupted.then(Exception::interrupt);
        if exception.is_none()
            && let Some(statement) = statements.get(running.next)
        {
            let mode = Mode {
                count: running.orders.count,
                absent: None,
                without_last: false,
            };
            let mut said = Vec::new();
            let result = self.memory.execute(statement, mode, &mut said);
            says.extend(said.into_iter().map(|said| Says::Shows(run, said)));
            match result {
                Ok(()) => running.next += 1,
                Err(raised) => exception = Some(raised),
            }
        }
        if exception.is_none() && running.next < statements.len() {
            let time = self.time_of_statement(&running, outside);
            self.doing = Some(Doing::Cell(running));
            return Some(time);
        }
        if let Some(exception) = &exception {
            says.push(Says::Shows(run, exception.clone().into()));
        }
        for (name, value) in std::mem::take(&mut running.unbound) {
            if !self.memory.has(&name) {
                self.memory.bind(&name, value.clone());
                running.before.set(&name, value);
            }
        }
        let report = self.report(&running, outside.fault);
        says.push(Says::Reports(run, Box::new(report)));
        says.push(Says::Replies(run, exception, running.next));
        says.push(Says::Idle(run));
        None
    }

    fn report(&self, running: &Running, fault: Option<Fault>) -> Report {
        let (bound, deleted) = self.memory.changes(&running.before);
        let touched = running.orders.touched.as_deref().unwrap_or_default();
        let seen: BTreeMap<Name, Description> = touched
            .iter()
            .filter(|name| !bound.contains(name))
            .filter_map(|name| Some((name.clone(), self.memory.describe(name)?)))
            .collect();
        let mut changed = self.changed(&running.watched, &bound, touched, &running.before);
        if fault == Some(Fault::ReportsNoChanges) {
            changed.clear();
        }
        let describe = |name: Name| Some((name.clone(), self.memory.describe(&name)?));
        Report {
            bound: bound.into_iter().filter_map(describe).collect(),
            deleted,
            seen,
            kept: running.kept.clone(),
            changed,
            ..Report::default()
        }
    }

    /// What the names are now, by group.
    fn watch(&self, names: &BTreeSet<Name>) -> Vec<Watched> {
        let present: Vec<&Name> = names.iter().filter(|name| self.memory.has(name)).collect();
        let mut groups = self.memory.groups(present.iter().copied());
        let together: BTreeSet<Name> = groups.iter().flatten().cloned().collect();
        let alone = present.into_iter().filter(|name| !together.contains(*name));
        groups.extend(alone.map(|name| BTreeSet::from([name.clone()])));
        groups
            .into_iter()
            .map(|names| Watched {
                content: self.memory.show(&names),
                before: self.memory.snapshot(),
                names,
            })
            .collect()
    }

    /// Those of the watched names that are not what they were, or that now share an object with another name
    /// that the cell bound or could change, or with what such a name stood for before.
    fn changed(
        &self,
        watched: &[Watched],
        bound: &[Name],
        touched: &[Name],
        before: &Snapshot,
    ) -> BTreeSet<Name> {
        let now = self.memory.snapshot();
        let watched_names = watched.iter().flat_map(|group| &group.names);
        let others: BTreeSet<&Name> = watched_names
            .chain(bound)
            .chain(touched)
            .filter(|name| self.memory.has(name))
            .collect();
        let was = touched
            .iter()
            .filter(|name| before.get(name) != now.get(name));
        let was: Vec<(&Name, &Value)> = was
            .filter_map(|name| Some((name, before.get(name)?)))
            .collect();
        let mut changed = BTreeSet::new();
        for group in watched {
            let is_other = |name: &Name| now.get(name) != group.before.get(name);
            if self.memory.show(&group.names) != group.content
                || group.names.iter().any(|name| self.memory.is_locked(name))
            {
                changed.extend(group.names.iter().cloned());
                continue;
            }
            for name in &group.names {
                if is_other(name) {
                    changed.insert(name.clone());
                    continue;
                }
                // What cannot be followed may refer to anything.
                let joins = |other: &&Name| {
                    !group.names.contains(*other)
                        && (self.memory.is_locked(other) || self.memory.shares(name, other))
                };
                let joined = |(other, value): &(&Name, &Value)| {
                    !group.names.contains(*other) && self.memory.shares_with(name, value)
                };
                if others.iter().any(joins) || was.iter().any(joined) {
                    changed.insert(name.clone());
                }
            }
        }
        changed
    }

    // --- everything else ------------------------------------------------------------------------------

    fn take(&mut self, take: Take, says: &mut Vec<Says>) {
        for name in &take.stale {
            self.memory.forget(name);
        }
        let wanted = take.names.iter();
        let missing: BTreeSet<Name> = wanted
            .filter(|name| !self.memory.has(name))
            .cloned()
            .collect();
        let names = self.memory.family(&take.names, &take.ignored);
        let locked: BTreeMap<Name, (String, String)> = names
            .iter()
            .filter(|name| self.memory.is_locked(name))
            .map(|name| {
                (
                    name.clone(),
                    ("lock".to_owned(), "cannot pickle a lock".to_owned()),
                )
            })
            .collect();
        if !locked.is_empty() {
            says.push(Says::Taken(take.transfer, Taken::Uncarriable(locked), None));
            return;
        }
        let parcel = self.memory.pack(&names, &take.ignored);
        let described = names
            .iter()
            .filter_map(|name| Some((name.clone(), self.memory.describe(name)?)));
        let taken = Taken::Ok {
            names: described.collect(),
            needs: parcel.needs(&self.memory),
            missing,
            size: parcel.size(),
            kin: self.memory.groups(&names),
        };
        let contents = if take.reader.is_some() && parcel.size() > INLINE {
            Contents::Memory {
                names,
                ignored: take.ignored,
                era: self.era,
            }
        } else {
            Contents::Copy(parcel)
        };
        says.push(Says::Taken(take.transfer, taken, Some(contents)));
    }

    /// Goes back to what it was before the run, whatever has run since.
    fn undo(&mut self, run: RunId) {
        let Some(place) = self.kept.iter().position(|kept| kept.run == run) else {
            return;
        };
        self.era += 1;
        if let Some(first) = self.kept.drain(place..).next() {
            self.memory.restore(first.before, &first.copies);
            self.standing.truncate(first.standing);
        }
    }
}

/// The cell of a client's request, by its place in the program: it stands in the `msg_id`.
pub fn cell_of(orders: &Orders) -> usize {
    crate::world::cell_of(&orders.request)
}

pub fn failure(action: &str, names: &[Name], ename: &str, message: &str) -> Box<PreludeFailure> {
    Box::new(PreludeFailure {
        action: action.to_owned(),
        names: names.iter().map(ToString::to_string).collect(),
        ename: ename.to_owned(),
        message: message.to_owned(),
        ..PreludeFailure::default()
    })
}
