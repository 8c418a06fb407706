//! One run of one cell, and the errors that end a run before or instead of its worker.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use cellferry_wire::protocol::WorkerId;

use super::past::Place;
use super::{Asked, PreludeFailure, Reply, Report, TargetName};
use crate::analysis::Definition;
use crate::graph::Access;
use crate::ledger::{Needed, Plan, Put};
use crate::name::Name;

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
    /// What it reads.
    pub needed: Needed,
    /// What it defines.
    pub definitions: Vec<Definition>,
    /// What it accesses, as far as the source shows.
    pub access: Access,
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

fn list(names: &BTreeSet<Name>) -> String {
    names
        .iter()
        .map(|name| format!("`{name}`"))
        .collect::<Vec<_>>()
        .join(", ")
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
}

impl State {
    pub(super) fn word(&self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Starting { .. } => "waiting for its worker to start",
            Self::Fetching { .. } => "fetching what it reads",
            Self::Running(_) => "running",
        }
    }

    pub(super) fn worker(&self) -> Option<WorkerId> {
        match self {
            Self::Waiting => None,
            Self::Starting { worker } | Self::Fetching { worker, .. } => Some(*worker),
            Self::Running(running) => Some(running.worker),
        }
    }
}

/// A run in its worker.
#[derive(Debug)]
pub(super) struct Running {
    pub(super) worker: WorkerId,
    pub(super) plan: Plan,
    pub(super) busy: bool,
    /// An interrupt came before the worker had begun.
    pub(super) interrupt: bool,
    pub(super) report: Option<Report>,
    pub(super) reply: Option<Reply>,
    pub(super) idle: bool,
}

impl Running {
    pub(super) fn new(worker: WorkerId, plan: Plan) -> Self {
        Self {
            worker,
            plan,
            busy: false,
            interrupt: false,
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

#[derive(Debug)]
pub(super) struct Run {
    pub(super) request: Request,
    pub(super) cell: Cell,
    pub(super) count: Option<u32>,
    pub(super) state: State,
    /// Names it does without.
    pub(super) skipped: BTreeSet<Name>,
    /// Names that could not be carried: type, reason and holder.
    pub(super) left_behind: BTreeMap<Name, (String, String, String)>,
    /// Transfers under way: from whom, and which names.
    pub(super) taking: BTreeMap<u64, (WorkerId, BTreeSet<Name>)>,
    /// All its transfers.
    pub(super) transfers: Vec<u64>,
    /// Its place in the past; `None` for a silent one.
    pub(super) place: Option<Place>,
    /// How much was carried for it, in bytes.
    pub(super) carried: u64,
}

impl Run {
    pub(super) fn new(request: Request, cell: Cell, place: Option<Place>) -> Self {
        Self {
            request,
            cell,
            count: None,
            state: State::Waiting,
            skipped: BTreeSet::new(),
            left_behind: BTreeMap::new(),
            taking: BTreeMap::new(),
            transfers: Vec::new(),
            place,
            carried: 0,
        }
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
