//! One run of one cell, and the errors that end a run before or instead of its worker.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use cellferry_wire::protocol::WorkerId;

use super::TargetName;
use super::event::{Asked, PreludeFailure, Reply, Report};
use super::lineage::Past;
use super::past::Place;
use super::remake::{Remade, Unseen};
use crate::analysis::{Definition, DefinitionKind};
use crate::cell::Files;
use crate::graph::Access;
use crate::ledger::{Delta, Held, Needed, Plan, Put};
use crate::name::Name;
use crate::target::shape::Shape;

/// What workers call the states of the generators that all code shares.
pub const GENERATORS: [&str; 2] = ["~random", "~numpy.random"];

/// One run of a cell.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RunId(pub u64);

/// What a client asked for.
#[derive(Clone, Debug)]
pub struct Request {
    /// The client's message.
    pub message: Arc<Asked>,
    /// No input, no result, no count.
    pub silent: bool,
    /// Whether the cell goes into the history.
    pub store_history: bool,
    /// Whether an error aborts the queue.
    pub stop_on_error: bool,
}

/// The cell of a run, analysed.
#[derive(Clone, Debug)]
pub struct Cell {
    /// Its source.
    pub source: Arc<str>,
    /// Where it runs.
    pub target: TargetName,
    /// How many workers the target may have.
    pub workers: u32,
    /// How many more times it runs if its worker dies under it.
    pub retry: u32,
    /// What it reads.
    pub needed: Needed,
    /// The files that it reads and makes. Such a cell runs only in its turn, so that it finds them as they are at its place.
    pub files: Arc<Files>,
    /// Names that become lists of what each MPI rank has.
    pub gather: Vec<String>,
    /// How long it may take, by its metadata.
    pub time: Option<Duration>,
    /// What it defines.
    pub definitions: Vec<Definition>,
    /// What it accesses, as far as the source shows.
    pub access: Access,
    /// What `after` of other cells can call it: its id, its tags, its name.
    pub called: Vec<String>,
    /// Cells that it must follow, as they are called.
    pub after: Vec<String>,
    /// Whether it may seed a generator that all code shares.
    pub seeds: bool,
    /// Why it must not run: its metadata is wrong.
    pub problem: Option<Problem>,
}

impl Cell {
    /// The first line with something in it, for messages.
    pub fn first_line(&self) -> &str {
        self.source
            .lines()
            .find(|line| !line.trim().is_empty())
            .unwrap_or("")
    }
}

/// An error that the user sees under the cell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Takes the place of the exception's class.
    pub ename: String,
    /// What happened, where, and what to do.
    pub evalue: String,
}

impl Problem {
    /// An error with a name of ours.
    pub fn new(ename: &str, evalue: String) -> Self {
        Self {
            ename: ename.to_owned(),
            evalue,
        }
    }

    /// The user's interrupt.
    pub fn interrupted() -> Self {
        Self::new("KeyboardInterrupt", String::new())
    }

    pub(super) fn transfer(
        names: &BTreeSet<Name>,
        holder: &str,
        target: &str,
        message: &str,
    ) -> Self {
        Self::new(
            "TransferFailed",
            format!(
                "{} could not be carried from {holder} to `{target}`: {message}",
                list(names)
            ),
        )
    }

    pub(super) fn prelude(failure: &PreludeFailure, target: &str) -> Self {
        if failure.ename == "KeyboardInterrupt" {
            return Self::interrupted();
        }
        if failure.concerns_files() {
            return Self::new(&failure.ename, failure.evalue.clone());
        }
        let names = failure
            .names
            .iter()
            .map(|name| format!("`{name}`"))
            .collect::<Vec<_>>()
            .join(", ");
        let cell = failure
            .number
            .map(|number| format!(" of cell [{number}]"))
            .unwrap_or_default();
        let what = match &failure.source {
            Some(source) => format!(
                "`{}`{cell}",
                source.lines().next().unwrap_or_default().trim_end()
            ),
            None => names,
        };
        let cure = if failure.ename == "ModuleNotFoundError" {
            format!(
                "; install it there (`{} -m pip install …`) or run the cell on another target",
                failure.python
            )
        } else {
            String::new()
        };
        Self::new(
            "CarryFailed",
            format!(
                "{what} could not be set up on `{target}`: {} (Python there: {}){cure}",
                failure.message, failure.python
            ),
        )
    }
}

/// Names as a user knows them: what was set on a definition goes by the name of that.
pub(super) fn list(names: &BTreeSet<Name>) -> String {
    let known = names.iter().map(|name| name.as_str().trim_end_matches('.'));
    let known: BTreeSet<&str> = known.collect();
    let known: Vec<String> = known.iter().map(|name| format!("`{name}`")).collect();
    known.join(", ")
}

/// Whether a name is one of the user's own: neither an earlier result nor what workers call states of their own.
pub fn is_shown_to_users(name: &Name) -> bool {
    let name = name.as_str();
    let is_result = |rest: &str| rest.bytes().all(|byte| byte.is_ascii_digit());
    !name.starts_with('~') && !name.strip_prefix('_').is_some_and(is_result)
}

/// Where a run stands.
#[derive(Debug)]
pub(super) enum State {
    Waiting,
    Starting {
        worker: WorkerId,
    },
    Fetching {
        worker: WorkerId,
        pending: BTreeSet<u64>,
        arrived: Vec<Put>,
    },
    Running(Box<Running>),
    /// Its worker is done with it, its turn has not come.
    Finished(Box<Finished>),
}

impl State {
    pub(super) fn worker(&self) -> Option<WorkerId> {
        match self {
            Self::Waiting => None,
            Self::Starting { worker } | Self::Fetching { worker, .. } => Some(*worker),
            Self::Running(running) => Some(running.worker),
            Self::Finished(finished) => Some(finished.worker),
        }
    }

    pub(super) fn is_waiting(&self) -> bool {
        matches!(self, Self::Waiting)
    }

    pub(super) fn is_finished(&self) -> bool {
        matches!(self, Self::Finished(_))
    }
}

/// A run in its worker.
#[derive(Debug)]
pub(super) struct Running {
    pub(super) worker: WorkerId,
    pub(super) plan: Plan,
    /// Names of values that are compared with what they were.
    pub(super) compared: BTreeSet<Name>,
    /// Names of values that the run may change unseen.
    pub(super) uncertain: BTreeSet<Name>,
    pub(super) busy: bool,
    /// An interrupt came before the worker had begun.
    pub(super) interrupt: bool,
    /// The user has interrupted it.
    pub(super) interrupted: bool,
    /// It has asked for input.
    pub(super) asks: bool,
    pub(super) report: Option<Report>,
    pub(super) reply: Option<Reply>,
    pub(super) idle: bool,
}

impl Running {
    pub(super) fn new(worker: WorkerId, plan: Plan) -> Self {
        Self {
            worker,
            plan,
            compared: BTreeSet::new(),
            uncertain: BTreeSet::new(),
            busy: false,
            interrupt: false,
            interrupted: false,
            asks: false,
            report: None,
            reply: None,
            idle: false,
        }
    }

    /// Idle comes on another channel than the reply, so either may be last. A cell whose prelude
    /// failed gets no reply.
    pub(super) fn done(&self) -> bool {
        let failed = self
            .report
            .as_ref()
            .is_some_and(|report| report.failed.is_some());
        self.idle && (self.reply.is_some() || failed)
    }
}

/// What is to be committed when the run's turn comes.
#[derive(Debug)]
pub(super) struct Finished {
    pub(super) worker: WorkerId,
    pub(super) delta: Delta,
    pub(super) reply: Option<Reply>,
    pub(super) failed: bool,
    /// How long it took and what was carried, in words.
    pub(super) took: String,
    /// What the user should know of it.
    pub(super) note: Option<String>,
    /// What it takes to make again what it made.
    pub(super) past: Past,
}

/// What is needed to take back a run that has been started before its turn.
#[derive(Debug)]
pub(super) struct Undo {
    /// What the worker had before.
    pub(super) before: Held,
    /// Of that, what it may change and does not restore, because others have it, too.
    pub(super) spoilt: BTreeSet<Name>,
}

#[derive(Debug)]
pub(super) struct Run {
    pub(super) request: Request,
    pub(super) cell: Arc<Cell>,
    /// Why it must not run.
    pub(super) problem: Option<Problem>,
    /// Its place in program order; runs that are taken back keep it.
    pub(super) seq: u64,
    /// Whether a client has asked for it, or is only expected to.
    pub(super) asked: bool,
    /// Whether its turn has come: all before it are committed.
    pub(super) begun: bool,
    /// Whether it must not start before its turn.
    pub(super) in_turn: bool,
    pub(super) count: Option<u32>,
    pub(super) state: State,
    /// Names that it may read or change, as last planned.
    pub(super) uses: BTreeSet<Name>,
    /// Set while it can be taken back.
    pub(super) undo: Option<Undo>,
    /// Names it does without.
    pub(super) skipped: BTreeSet<Name>,
    /// Names that could not be carried: type, reason and holder.
    pub(super) left_behind: BTreeMap<Name, (String, String, String)>,
    /// The transfers it uses.
    pub(super) transfers: BTreeSet<u64>,
    /// Its place in the past; `None` for a silent one.
    pub(super) place: Option<Place>,
    /// How much was carried for it, in bytes.
    pub(super) carried: u64,
    /// How often a worker has died under it.
    pub(super) died: u32,
    /// How often its worker has died before it came to its cell.
    pub(super) stumbled: u32,
    /// Whether a run of its cell has been shown that died.
    pub(super) has_shown: bool,
    /// What is to be noted under its cell when its turn comes.
    pub(super) notes: Vec<String>,
    /// What was made again for it.
    pub(super) remade: Remade,
    /// Set if it runs only to make something again.
    pub(super) unseen: Option<Unseen>,
}

impl Run {
    pub(super) fn new(
        request: Request,
        mut cell: Cell,
        seq: u64,
        asked: bool,
        place: Option<Place>,
    ) -> Self {
        let may_reach_any = cell.access.dynamic || cell.needed.everything;
        let sets = |definition: &Definition| {
            matches!(
                definition.kind,
                DefinitionKind::Magic | DefinitionKind::Future
            )
        };
        let mut reads = cell.access.reads.iter();
        let reads_history = reads.any(|name| is_input(name.as_str()));
        let problem = cell.problem.take();
        Self {
            // Settings of a worker cannot be taken back; the history is complete only then.
            in_turn: reads_history
                || !cell.access.is_step
                || may_reach_any
                || request.silent
                || problem.is_some()
                || !cell.files.is_empty()
                // Ranks that wait for each other inside of MPI cannot be made to go back.
                || Shape::parse(&cell.target).resources.ranks.is_some()
                || cell.definitions.iter().any(sets),
            request,
            cell: Arc::new(cell),
            problem,
            seq,
            asked,
            begun: false,
            count: None,
            state: State::Waiting,
            uses: BTreeSet::new(),
            undo: None,
            skipped: BTreeSet::new(),
            left_behind: BTreeMap::new(),
            transfers: BTreeSet::new(),
            place,
            carried: 0,
            died: 0,
            stumbled: 0,
            has_shown: false,
            notes: Vec::new(),
            remade: Remade::default(),
            unseen: None,
        }
    }

    /// Whether it may have read something.
    pub(super) fn is_started(&self) -> bool {
        !self.state.is_waiting() && !self.uses.is_empty()
    }

    /// Back to where it has not begun. Its transfers are the caller's to leave.
    pub(super) fn put_back(&mut self) {
        self.state = State::Waiting;
        self.uses.clear();
        self.undo = None;
        self.skipped.clear();
        self.left_behind.clear();
        self.carried = 0;
        self.remade = Remade::default();
    }

    /// Whether it counts: cells that are not stored do not use a number up, as in IPython.
    pub(super) fn counts(&self) -> bool {
        !self.request.silent && self.request.store_history
    }

    /// Explains a `NameError` for a name that exists but could not be carried.
    pub(super) fn hint(&self, reply: &Reply) -> Option<String> {
        let (ename, evalue) = reply.exception.as_ref()?;
        if ename != "NameError" && ename != "UnboundLocalError" {
            return None;
        }
        let (name, (type_name, reason, holder)) = self
            .left_behind
            .iter()
            .find(|(name, _)| evalue.contains(&format!("'{name}'")))?;
        Some(format!(
            "`{name}` ({type_name}) lives on {holder} and cannot be carried to `{target}`: {reason}; \
             make it in a cell that runs on `{target}`\n",
            target = self.cell.target
        ))
    }
}

/// Whether IPython keeps the sources of cells under the name.
fn is_input(name: &str) -> bool {
    matches!(name, "In" | "_ih" | "_i" | "_ii" | "_iii")
        || name
            .strip_prefix("_i")
            .is_some_and(|number| number.parse::<u32>().is_ok())
}
