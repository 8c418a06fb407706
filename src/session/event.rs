//! What happens to a session, and what it wants done.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use cellferry_kernel::message::{Header, Message};
use cellferry_wire::protocol::{Channel, WorkerId};
use serde::Deserialize;

use super::TargetName;
use super::run::{Cell, Problem, Request, RunId};
use crate::cell::Files;
use crate::ledger::{Description, Plan, Step};
use crate::name::Name;

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
    /// The cells that the client will ask for next, if it goes on in the order of its notebook: steps among them
    /// may run already. They come after all that has been asked for and expected before.
    Expect(Vec<(Request, Cell)>),
    /// The client asks for the first of the expected cells.
    Expected(Box<Request>),
    /// The client does something else: what was expected is discarded.
    Unexpected,
    /// A client sent a request that a worker answers: completion, a comm message, history.
    PassOn {
        /// The client's message.
        request: Arc<Asked>,
        /// Which worker should answer.
        to: PassTo,
    },
    /// A client asks to interrupt what runs.
    Interrupt,
    /// These workers are to be given back: they get no further run, and end once what only they hold is at home.
    /// What becomes of each is an [`Effect::Retired`]. Home workers and those that are gone are not concerned.
    Retire {
        /// Which.
        workers: Vec<WorkerId>,
        /// Whether they go even if they hold something that can neither be carried nor made again.
        force: bool,
        /// A request of our own, silent and without code: by it the home worker is given what is brought there.
        request: Box<Request>,
    },
    /// A worker is ready for cells.
    WorkerReady(WorkerId),
    /// A worker could not be started, or died.
    WorkerGone {
        /// Which.
        worker: WorkerId,
        /// What to tell the user: what happened, in a sentence without its full stop.
        problem: Problem,
        /// In which way.
        how: Gone,
    },
    /// The worker started on the run: an interrupt reaches the user's code from now on.
    Busy(WorkerId, RunId),
    /// All that was carried for the run stands in its worker.
    Began(WorkerId, RunId),
    /// What the worker reports after a run.
    Report(WorkerId, RunId, Box<Report>),
    /// The run asks its user for input.
    Asks(WorkerId, RunId),
    /// The worker's reply to the run.
    Replied(WorkerId, RunId, Box<Reply>),
    /// The worker is done with the run: nothing more comes.
    Idle(WorkerId, RunId),
    /// A transfer's first half ended.
    Taken(u64, Taken),
    /// What was taken has been brought to the machine of a worker, or could not be: why. If that is because a worker
    /// is gone, [`Event::WorkerGone`] comes first.
    Carried {
        /// Which transfer.
        transfer: u64,
        /// Whom it was brought to.
        to: WorkerId,
        /// Whether it is there.
        outcome: Result<(), String>,
    },
}

/// In which way a worker came to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gone {
    /// It was never up: another one would not be either.
    NotStarted,
    /// It ended by itself, with an exit code.
    Ended,
    /// Something killed it.
    Killed,
    /// Its location, or the agent there, is out of reach or dead.
    LocationLost,
}

impl Gone {
    /// Whether the cell that ran there may do better in another worker.
    pub(super) fn is_worth_another_try(self) -> bool {
        matches!(self, Self::Killed | Self::LocationLost)
    }
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
    /// Names that could be restored, with all that share objects with them.
    #[serde(default)]
    pub kept: BTreeSet<Name>,
    /// Names that were watched or kept and are not what they were, or that something else refers to now.
    #[serde(default)]
    pub changed: BTreeSet<Name>,
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
    /// `keep`, `put`, `define`, `drop`, `results`, `inputs` or `files`.
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
    /// The exception's text.
    #[serde(default)]
    pub evalue: String,
    /// The exception as one line.
    pub message: String,
    /// The Python that raised it.
    pub python: String,
}

impl PreludeFailure {
    /// What was to be done for the cell's files and modules: then the exception is ours, and its text says it all.
    pub(super) fn concerns_files(&self) -> bool {
        self.action == "files"
    }

    /// Why it failed.
    pub(super) fn reason(&self) -> &str {
        if self.concerns_files() {
            &self.evalue
        } else {
            &self.message
        }
    }
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
        /// Those of the names that share objects, by group.
        kin: Vec<BTreeSet<Name>>,
    },
    /// Some names cannot be carried: type and reason of each.
    Uncarriable(BTreeMap<Name, (String, String)>),
    /// The transfer itself failed.
    Failed(String),
    /// The user interrupted it.
    Interrupted,
}

/// Why a value could not be brought home.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Left {
    /// Its Python type.
    pub type_name: String,
    /// Why, as the end of a sentence.
    pub reason: String,
}

/// What became of a worker that was to be given back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Retired {
    /// Which.
    pub worker: WorkerId,
    /// Of which target.
    pub target: TargetName,
    /// Values that have been brought home because only it, or others that go, held them: about how large each is, in bytes.
    pub brought: BTreeMap<Name, u64>,
    /// Whether it is ended, or stays.
    pub outcome: Outcome,
}

/// Whether a worker that was to be given back is ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It is.
    Ended {
        /// Values that could not be brought home, and will be made again by the steps that made them.
        again: BTreeMap<Name, Left>,
        /// Those that cannot be made again either, and are lost.
        lost: BTreeMap<Name, Left>,
    },
    /// It stays, and gets runs as before: it holds values that would be lost.
    Kept {
        /// Which.
        values: BTreeMap<Name, Left>,
        /// Whether this has not been told before.
        is_new: bool,
    },
}

/// What must be done.
#[derive(Debug)]
pub enum Effect {
    /// Start a worker.
    StartWorker {
        /// Which it will be.
        worker: WorkerId,
        /// Of which target.
        target: TargetName,
        /// The run that waits for it, if one does: questions and progress belong under its cell.
        run: Option<RunId>,
    },
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
        /// What must not come along either, but is current for other cells.
        ignored: BTreeSet<Name>,
        /// Who may copy large ones straight from its memory, if workers can do so here.
        reader: Option<WorkerId>,
    },
    /// Bring what was taken to the machine of a worker that will put it, unless it is there.
    Carry {
        /// Which transfer.
        transfer: u64,
        /// Who was asked for it.
        from: WorkerId,
        /// Who will put it.
        to: WorkerId,
    },
    /// The values of these transfers are not needed any more, wherever they are or go.
    Release(Vec<u64>),
    /// From now on what the run says is shown as it comes, under this request; what it has said before is shown first.
    Show(RunId, Arc<Asked>),
    /// Whatever the run has said or will say is dropped.
    Discard(RunId),
    /// The worker of a run that is shown died under it, and the cell runs again as another run: of what that one says,
    /// what has been shown already is not shown again.
    Again {
        /// The run that died.
        old: RunId,
        /// The run that takes its place.
        new: RunId,
    },
    /// End a worker that is of no use any more.
    Stop(WorkerId),
    /// A worker that was to be given back has been stopped, so that its location may end, or stays after all.
    Retired(Box<Retired>),
    /// The worker goes back to what it was before the run.
    Undo(WorkerId, RunId),
    /// The run will not be undone: what was kept for that can go.
    Settle(WorkerId, RunId),
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
    /// If it may have to be undone: names of values that it could change and that nobody else has.
    pub keep: Option<BTreeSet<Name>>,
    /// Names that the cell may bind and does not read: not there while it runs, so that binding one to the very
    /// object that it had is noticed. Those that it does not bind are put back.
    pub unbound: BTreeSet<Name>,
    /// Whether the cell may seed a generator that all code shares.
    pub seeds: bool,
    /// Names of values to be compared with what they are after the run.
    pub watched: BTreeSet<Name>,
    /// More of them; whoever cannot be compared without running code of the user's counts as changed.
    pub steady: BTreeSet<Name>,
    /// Cells that ran elsewhere since the last one here: for `In` and the history.
    pub inputs: Vec<(u32, Arc<str>)>,
    /// The files that the cell reads and makes.
    pub files: Arc<Files>,
    /// Names that become lists of what each MPI rank has.
    pub gather: Vec<String>,
    /// How long the cell may take, by its metadata.
    pub time: Option<Duration>,
    /// Whether the cell runs only to make again what it made: nobody can answer it, and it is no part of the history.
    pub unseen: bool,
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
