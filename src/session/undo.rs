//! Taking back runs that were started before their turn.

use std::collections::{BTreeMap, BTreeSet};

use cellferry_wire::protocol::WorkerId;

use super::event::Effect;
use super::run::{Run, RunId, State, Undo};
use super::{Queued, Session};
use crate::ledger::Namespace;
use crate::name::Name;

/// A run that has been taken back and that its worker has not ended yet.
#[derive(Debug)]
pub(super) struct Dying {
    run: RunId,
    /// Whether its worker would notice an interrupt.
    pub(super) busy: bool,
    /// The first of the runs taken back on the worker, and what it had before.
    first: RunId,
    undo: Undo,
}

impl Session {
    /// Takes back these runs and whatever depends on them: as if they had not been started. Whether there were any.
    pub(super) fn take_back(&mut self, runs: BTreeSet<RunId>) -> bool {
        let mut back = runs;
        back.retain(|id| {
            self.runs
                .get(id)
                .is_some_and(|run| !run.begun && !run.state.is_waiting())
        });
        if back.is_empty() {
            return false;
        }
        while let Some(more) = self.depends(&back) {
            back.insert(more);
        }
        let mut of_worker: BTreeMap<WorkerId, Vec<RunId>> = BTreeMap::new();
        for id in self.in_order().filter(|id| back.contains(id)) {
            if let Some(worker) = self.runs.get(&id).and_then(|run| run.state.worker()) {
                of_worker.entry(worker).or_default().push(id);
            }
        }
        for (worker, runs) in of_worker {
            self.undo(worker, &runs);
        }
        for id in back {
            self.renew(id);
        }
        true
    }

    /// A further run that must be taken back with these.
    fn depends(&self, back: &BTreeSet<RunId>) -> Option<RunId> {
        let depends = |run: &Run| {
            back.iter().filter_map(|id| self.runs.get(id)).any(|other| {
                let misled = match &other.state {
                    State::Finished(finished) => !finished.delta.written().is_disjoint(&run.uses),
                    _ => false,
                };
                other.seq < run.seq && (misled || other.state.worker() == run.state.worker())
            })
        };
        self.given()
            .filter(|(id, run)| !back.contains(id) && !run.begun)
            .find(|(_, run)| depends(run))
            .map(|(id, _)| id)
    }

    /// The worker goes back to what it was before the first of these runs, its last ones in program order.
    fn undo(&mut self, worker: WorkerId, runs: &[RunId]) {
        let mut spoilt: BTreeSet<Name> = BTreeSet::new();
        let mut first: Option<(RunId, Undo)> = None;
        let mut dying = None;
        for id in runs {
            let Some(run) = self.runs.get_mut(id) else {
                continue;
            };
            let Some(undo) = run.undo.take() else {
                continue;
            };
            self.effects.push(Effect::Discard(*id));
            spoilt.extend(undo.spoilt.iter().cloned());
            first.get_or_insert((*id, undo));
            if let State::Running(running) = &run.state {
                dying = Some((*id, running.busy, running.idle));
            }
        }
        if let Some(worker) = self.workers.get_mut(&worker) {
            worker.runs.retain(|id| !runs.contains(id));
        }
        let Some((first, mut undo)) = first else {
            return;
        };
        undo.spoilt = spoilt;
        let found = self.workers.get_mut(&worker);
        if let Some(later) = found.and_then(|worker| worker.dying.as_mut()) {
            // A later one is still at it: once it has ended, the worker goes back to before this one.
            undo.spoilt.append(&mut later.undo.spoilt);
            later.first = first;
            later.undo = undo;
            return;
        }
        match dying {
            // It goes on for a while; an interrupt that comes before it has begun would be lost.
            Some((run, busy, false)) if self.workers.contains_key(&worker) => {
                if busy {
                    self.effects.push(Effect::Interrupt(worker));
                }
                if let Some(worker) = self.workers.get_mut(&worker) {
                    worker.dying = Some(Dying {
                        run,
                        busy,
                        first,
                        undo,
                    });
                }
            }
            _ => self.undone(worker, first, undo),
        }
    }

    /// Whether the worker will have the name as it is in `view` whatever is taken back.
    pub(super) fn keeps(&self, id: WorkerId, view: &Namespace, name: &Name) -> bool {
        let Some(worker) = self.workers.get(&id) else {
            return false;
        };
        let runs = worker.runs.iter().filter_map(|run| self.runs.get(run));
        let undos = runs.filter_map(|run| run.undo.as_ref());
        let dying = worker.dying.as_ref().map(|dying| &dying.undo);
        undos
            .chain(dying)
            .all(|undo| undo.before.has(view, name) && !undo.spoilt.contains(name))
    }

    fn undone(&mut self, worker: WorkerId, first: RunId, undo: Undo) {
        if self.workers.contains_key(&worker) {
            self.effects.push(Effect::Undo(worker, first));
            self.ledger.undo(worker, undo.before, &undo.spoilt);
        }
    }

    /// The run waits again, under another id: what its worker still says of it concerns nobody.
    pub(super) fn renew(&mut self, id: RunId) -> RunId {
        self.abandon(id);
        self.leave_parcels(id);
        let new = self.new_id();
        let Some(mut run) = self.runs.remove(&id) else {
            return new;
        };
        self.leave_worker(&run, id);
        run.put_back();
        self.runs.insert(new, run);
        for queued in &mut self.queue {
            if matches!(queued, Queued::Run(other) if *other == id) {
                *queued = Queued::Run(new);
            }
        }
        new
    }

    /// Nothing of the run's cell has happened: it is tried again. `untouched`: nor of what comes before the cell.
    pub(super) fn put_back(&mut self, id: RunId, untouched: bool) {
        self.abandon(id);
        self.leave_parcels(id);
        let Some(mut run) = self.runs.remove(&id) else {
            return;
        };
        self.leave_worker(&run, id);
        let (worker, undo) = (run.state.worker(), run.undo.take());
        run.put_back();
        self.runs.insert(id, run);
        if let (Some(worker), Some(undo)) = (worker, undo) {
            self.effects.push(Effect::Discard(id));
            if !untouched {
                self.undone(worker, id, undo);
            }
            self.renew(id);
        }
    }

    pub(super) fn leave_worker(&mut self, run: &Run, id: RunId) {
        if let Some(worker) = run.state.worker()
            && let Some(worker) = self.workers.get_mut(&worker)
        {
            worker.runs.retain(|other| *other != id);
        }
    }

    /// A run that was taken back begins after all; whether it must be interrupted now.
    pub(super) fn dying_busy(&mut self, worker: WorkerId, id: RunId) -> bool {
        let dying = self.workers.get_mut(&worker);
        match dying.and_then(|worker| worker.dying.as_mut()) {
            Some(dying) if dying.run == id => {
                dying.busy = true;
                true
            }
            _ => false,
        }
    }

    /// A run that was taken back has ended: its worker can go back.
    pub(super) fn dying_idle(&mut self, worker: WorkerId, id: RunId) {
        let Some(found) = self.workers.get_mut(&worker) else {
            return;
        };
        if let Some(dying) = found.dying.take_if(|dying| dying.run == id) {
            self.undone(worker, dying.first, dying.undo);
        }
    }
}
