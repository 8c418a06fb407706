//! What must never happen, and faults made on purpose so that it does.

use std::fmt;

/// What holds in every notebook.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Invariant {
    /// Whatever a cell shows is what it would show in a single kernel.
    NoStaleRead,
    /// Outputs come in program order, each between its cell's busy and idle.
    Order,
    /// Nothing that a cell showed is missing.
    NothingLost,
    /// Nothing is shown, answered or begun twice.
    NothingDoubled,
    /// Every cell that was asked for is answered.
    NothingStuck,
    /// No value, copy or log is kept for longer than somebody may need it.
    NothingLeaks,
    /// Work that is discarded leaves no trace.
    NoTrace,
    /// What is read from the memory of another worker is what stood there when it was taken.
    MemoryHolds,
    /// Cells fail, are aborted and interrupted exactly where they should be.
    Errors,
    /// A worker that is given back gets nothing more to do, and goes or is said to stay.
    GivenBack,
}

/// An invariant that did not hold.
#[derive(Clone, Debug)]
pub struct Violation {
    pub invariant: Invariant,
    pub what: String,
}

impl Violation {
    pub fn new(invariant: Invariant, what: impl Into<String>) -> Self {
        Self {
            invariant,
            what: what.into(),
        }
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{:?}: {}", self.invariant, self.what)
    }
}

/// A fault of a worker or of what stands between the workers and the session. With any one of them the simulator
/// must find a violation; else it would not find it in the session either.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Workers do not say which values were changed in place.
    ReportsNoChanges,
    /// What runs ahead of its turn is shown at once.
    ShowsEarly,
    /// What was held back is not shown when its turn comes.
    LosesHeld,
    /// What was held back is shown and goes on being held.
    ShowsTwice,
    /// What a run had shown that died is shown again by the one after it.
    ShowsAgain,
    /// What was discarded is shown all the same.
    ShowsDiscarded,
    /// Now and then the session does not hear that a worker is done.
    LosesIdle,
    /// Taken values are never released.
    ReleasesNothing,
    /// Workers keep for ever what they would need to undo a run.
    SettlesNothing,
    /// Workers do not undo.
    UndoesNothing,
    /// Workers say that they have copied all that a run reads before they have.
    BeginsEarly,
    /// Values are said to have been brought to a worker's machine and have not.
    CarriesNothing,
    /// Now and then an interrupt that nobody asked for reaches a worker.
    InterruptsAnything,
    /// What is to be brought home from workers that are given back is said to stand there and does not.
    BringsNothing,
}
