//! What must hold when nothing more can happen: all is answered, nothing leaks, every copy is what it is said to be.

use cellferry::session::RunId;
use cellferry_wire::protocol::WorkerId;

use super::World;
use super::output::Running;
use crate::fault::{Invariant, Violation};
use crate::memory::Memory;

impl World<'_> {
    /// What must hold when nothing more can happen.
    pub(super) fn check_end(&mut self) -> Result<(), Violation> {
        if !self.judge.all_done() {
            let waiting = self.judge.waiting().iter();
            let waiting: Vec<u64> = waiting.map(|cell| self.program.cells[*cell].id).collect();
            return Err(Violation::new(
                Invariant::NothingStuck,
                format!(
                    "cells {waiting:?} are never answered: {:?}",
                    self.session.overview()
                ),
            ));
        }
        let under_way = self.session.overview();
        if !under_way.is_empty() {
            return Err(Violation::new(
                Invariant::NothingLeaks,
                format!("the session still has {under_way:?}"),
            ));
        }
        if let Some(transfer) = self.values.keys().next() {
            return Err(Violation::new(
                Invariant::NothingLeaks,
                format!("transfer {transfer} is never released"),
            ));
        }
        let is_alive = |id: &&WorkerId| self.places.get(id).is_some_and(|place| place.alive);
        if let Some(id) = self.retiring.keys().find(is_alive) {
            return Err(Violation::new(
                Invariant::GivenBack,
                format!("worker {} is never given back", id.0),
            ));
        }
        for (id, place) in self.places.iter().filter(|(_, place)| place.alive) {
            let discarded = |run: &&RunId| {
                let run = self.runs.get(run);
                run.is_some_and(|run| run.discarded && !run.unseen)
            };
            if let Some(run) = place.worker.standing.iter().find(discarded) {
                return Err(Violation::new(
                    Invariant::NoTrace,
                    format!(
                        "discarded run {} stands in the memory of worker {}",
                        run.0, id.0
                    ),
                ));
            }
            if let Some(run) = place.worker.unsettled().first() {
                return Err(Violation::new(
                    Invariant::NothingLeaks,
                    format!("worker {} could still undo run {}", id.0, run.0),
                ));
            }
        }
        let held = |running: &&Running| running.held.is_some();
        let gone = |running: &Running| {
            self.places
                .get(&running.worker)
                .is_none_or(|place| !place.alive)
        };
        if let Some(running) = self
            .runs
            .values()
            .filter(held)
            .find(|running| !gone(running))
        {
            return Err(Violation::new(
                Invariant::NothingLeaks,
                format!(
                    "output of cell {} is held for ever",
                    self.program.cells[running.cell].id
                ),
            ));
        }
        self.check_copies()
    }

    /// Whatever the ledger takes for a current value is one, even if nobody reads it any more.
    fn check_copies(&self) -> Result<(), Violation> {
        let model: &Memory = &self.judge.model;
        let ledger = self.session.ledger();
        for name in model.names() {
            for holder in ledger.holders(ledger.committed(), name.as_str()) {
                let Some(place) = self.places.get(&holder).filter(|place| place.alive) else {
                    continue;
                };
                let (here, there) = (place.worker.memory.show([name]), model.show([name]));
                if here != there {
                    return Err(Violation::new(
                        Invariant::NoStaleRead,
                        format!(
                            "worker {} is said to have `{name}`, and has {here} instead of {there}",
                            holder.0
                        ),
                    ));
                }
            }
            if ledger.committed().version(name).is_none() {
                return Err(Violation::new(
                    Invariant::NothingLost,
                    format!("the ledger does not know `{name}`"),
                ));
            }
        }
        Ok(())
    }
}
