//! Bringing to a run's worker what the run lacks there, then giving it the cell.

use std::collections::BTreeSet;
use std::sync::Arc;

use cellferry_wire::protocol::WorkerId;

use super::event::{Effect, Orders};
use super::run::{Run, RunId, Running, State, Undo};
use super::{Session, Views};
use crate::ledger::{Namespace, Plan, Put};
use crate::name::Name;

/// Values up to this size, in bytes, are compared before and after a run whenever others have them, too: it costs
/// less than carrying them again. Larger ones only if somebody waits for them.
const SMALL: u64 = 16 << 20;
/// Values up to this size, in bytes, are compared before and after every step, if nobody can notice.
const CHEAP: u64 = 1 << 20;

/// What is worked out before a run is moved on.
struct Prepared {
    plan: Plan,
    /// Names of values that the run can change in place.
    changeable: BTreeSet<Name>,
    /// Of those: what nobody but its worker has.
    only_here: BTreeSet<Name>,
    /// Of those: what its worker has now and others, too.
    also_elsewhere: BTreeSet<Name>,
    /// Of those: to be compared with what they were.
    watched: BTreeSet<Name>,
    /// Of those: to be compared, too, if it takes no code of the user's.
    steady: BTreeSet<Name>,
}

impl Session {
    /// Plans what the run needs, and either takes what is missing or starts it; whether anything changed.
    pub(super) fn fetch(&mut self, id: RunId) -> bool {
        let unfit = self.runs.get(&id).map(|run| self.unfit(run));
        if let Some(Run {
            state: State::Fetching { arrived, .. },
            ..
        }) = self.runs.get_mut(&id)
        {
            let unfit = unfit.unwrap_or_default();
            arrived.retain(|put| !unfit.contains(&put.transfer));
        }
        let Some(prepared) = self.prepare(id) else {
            return false;
        };
        let plan = &prepared.plan;
        let Some(run) = self.runs.get_mut(&id) else {
            return false;
        };
        let (begun, seq) = (run.begun, run.seq);
        run.uses.clone_from(&plan.touched);
        let unseen = run.unseen.is_some();
        if !begun && plan.everything {
            run.in_turn = true;
            return self.take_back(BTreeSet::from([id]));
        }
        if !plan.absent.is_empty() {
            let absent = plan.absent.clone();
            if unseen {
                return self.cannot_see(id, absent);
            }
            if begun {
                return self.recover(id, seq, &absent, plan.everything);
            }
            let view = self.view(seq);
            if !absent
                .iter()
                .any(|name| self.ledger.lost(&view, name).is_some())
            {
                return false;
            }
            // It is made again when it is needed for sure.
            if let Some(run) = self.runs.get_mut(&id) {
                run.in_turn = true;
            }
            return self.take_back(BTreeSet::from([id]));
        }
        if !plan.apart.is_empty() && (!unseen || self.brings_home(id)) {
            let later = self.replaced_by(seq, &plan.apart);
            if !later.is_empty() {
                return begun && self.take_back_for_good(later);
            }
        }
        if plan.takes.is_empty() {
            // What others want must be taken first: a worker that runs a cell answers nothing else.
            return !unseen && self.serve_others(id) || self.start(id, prepared);
        }
        self.take(id, prepared.plan)
    }

    /// Before a run starts: the next ones, on other workers, take what they want of its worker. Whether there were any.
    fn serve_others(&mut self, id: RunId) -> bool {
        let Some(worker) = self.runs.get(&id).and_then(|run| run.state.worker()) else {
            return false;
        };
        let mut changed = false;
        let mut views = Views::default();
        for other in self.may_move() {
            if other == id {
                continue;
            }
            if self
                .runs
                .get(&other)
                .is_some_and(|run| run.state.is_waiting())
                && self.place(other)
            {
                changed = true;
                views = Views::default();
            }
            let Some(run) = self.runs.get(&other).filter(|run| wanting(run).is_some()) else {
                continue;
            };
            let view = match &run.unseen {
                Some(unseen) => unseen.view.clone(),
                None => self.next_view(&mut views, run.seq),
            };
            let Some(Prepared { mut plan, .. }) = self.prepare_in(other, view) else {
                continue;
            };
            plan.takes.retain(|holder, _| *holder == worker);
            if plan.everything || !plan.absent.is_empty() || plan.takes.is_empty() {
                continue;
            }
            if let Some(run) = self.runs.get_mut(&other) {
                run.uses.clone_from(&plan.touched);
            }
            if self.take(other, plan) {
                changed = true;
                views = Views::default();
            }
        }
        changed
    }

    fn prepare(&self, id: RunId) -> Option<Prepared> {
        let run = self.runs.get(&id)?;
        wanting(run)?;
        self.prepare_in(id, self.view_of(run))
    }

    /// The same with the names as the run sees them.
    fn prepare_in(&self, id: RunId, view: Arc<Namespace>) -> Option<Prepared> {
        let run = self.runs.get(&id)?;
        let (worker, arrived) = wanting(run)?;
        let target = &run.cell.target;
        let cost = |holder: WorkerId| {
            let elsewhere = self
                .workers
                .get(&holder)
                .is_none_or(|worker| worker.target != *target);
            // Ahead of its turn a run rather waits than lets the same value cross to its target again.
            let occupied = self.is_occupied(holder);
            let order = if run.begun {
                (occupied, elsewhere)
            } else {
                (elsewhere, occupied)
            };
            (order, holder)
        };
        let mut plan =
            self.ledger
                .plan(&view, worker, &run.cell.needed, arrived, &run.skipped, cost);
        if let Some(drops) = self.drops_unseen(worker, run) {
            plan.drop_only(drops);
        }
        let changeable = if self.brings_home(id) {
            // It has no cell that could change anything.
            BTreeSet::new()
        } else {
            view.changeable(&plan.touched)
        };
        let (mut only_here, mut also_elsewhere) = (BTreeSet::new(), BTreeSet::new());
        let (mut watched, mut steady) = (BTreeSet::new(), BTreeSet::new());
        for name in &changeable {
            let (here, elsewhere) = self.places(&view, worker, name);
            match (here, elsewhere) {
                (true, false) => only_here.insert(name.clone()),
                (true, true) => also_elsewhere.insert(name.clone()),
                (false, _) => false,
            };
            let shared = || {
                elsewhere
                    && (self.ledger.size(&view, name) <= SMALL
                        || self.is_wanted(name, run.seq, target))
            };
            // What is known not to have changed need not be made again by this run if it gets lost.
            let cheap = || run.cell.access.is_step && self.ledger.size(&view, name) <= CHEAP;
            if run.unseen.is_some() || run.cell.access.writes.contains(name) {
                continue;
            }
            if self.is_used(name, run.seq) || shared() {
                watched.insert(name.clone());
            } else if cheap() {
                steady.insert(name.clone());
            }
        }
        Some(Prepared {
            plan,
            changeable,
            only_here,
            also_elsewhere,
            watched,
            steady,
        })
    }

    /// Whether the worker has the name as it is in `view`, and whether another one will whatever is taken back.
    fn places(&self, view: &Namespace, worker: WorkerId, name: &Name) -> (bool, bool) {
        let (mut here, mut elsewhere) = (false, false);
        for holder in self.ledger.holders(view, name.as_str()) {
            here |= holder == worker;
            elsewhere |= holder != worker && self.keeps(holder, view, name);
        }
        (here, elsewhere)
    }

    /// Whether an earlier run that has nothing yet will read what only this run's worker has, and the run may replace.
    fn is_needed_before(&self, run: &Run, only_here: &BTreeSet<Name>) -> bool {
        let Some(worker) = run.state.worker() else {
            return false;
        };
        let view = self.view(run.seq);
        let only_holder = |name: &&Name| self.places(&view, worker, name) == (true, false);
        let replaced: BTreeSet<&Name> = run.cell.access.writes.iter().filter(only_holder).collect();
        let has_all = |other: &Run| matches!(other.state, State::Running(_) | State::Finished(_));
        self.near()
            .take_while(|(_, other)| other.seq < run.seq)
            .filter(|(_, other)| !has_all(other))
            .flat_map(|(_, other)| &other.cell.access.reads)
            .any(|name| only_here.contains(name) || replaced.contains(name))
    }

    /// Whether the run could change what its worker had before another run there that may have to be taken back, and of
    /// which that one keeps no copy: going back to before that one would bring it back changed.
    fn is_kept_by_nobody(&self, run: &Run, only_here: &BTreeSet<Name>) -> bool {
        let view = self.view(run.seq);
        let worker = run.state.worker();
        self.given()
            .filter(|(_, other)| other.seq < run.seq && other.state.worker() == worker)
            .filter_map(|(_, other)| other.undo.as_ref())
            .any(|undo| only_here.iter().any(|name| undo.before.has(&view, name)))
    }

    /// Whether a later run has been started that uses the name.
    fn is_used(&self, name: &Name, seq: u64) -> bool {
        self.started()
            .any(|(_, run)| run.seq > seq && run.uses.contains(name))
    }

    /// Whether a later run on another target will read the name.
    fn is_wanted(&self, name: &Name, seq: u64, target: &str) -> bool {
        self.near().any(|(_, run)| {
            run.seq > seq && *run.cell.target != *target && run.cell.access.reads.contains(name)
        })
    }

    /// Nobody has these names: whoever has replaced them ahead of its turn is taken back.
    fn recover(&mut self, id: RunId, seq: u64, absent: &BTreeSet<Name>, everything: bool) -> bool {
        let later = self.replaced_by(seq, absent);
        if self.take_back_for_good(later) {
            return true;
        }
        if self.workers.values().any(|worker| worker.dying.is_some()) {
            return false;
        }
        self.remake(id, absent, everything)
    }

    /// The runs after this place of program order that may have replaced one of the names where they run.
    fn replaced_by(&self, seq: u64, names: &BTreeSet<Name>) -> BTreeSet<RunId> {
        let view = self.view(seq);
        let replaced = |run: &Run| {
            let undo = run.undo.as_ref();
            undo.is_some_and(|undo| names.iter().any(|name| undo.before.has(&view, name)))
        };
        self.given()
            .filter(|(_, run)| run.seq > seq && replaced(run))
            .map(|(id, _)| id)
            .collect()
    }

    /// These wait for their turn, so that the same does not happen once more.
    pub(super) fn take_back_for_good(&mut self, runs: BTreeSet<RunId>) -> bool {
        for id in &runs {
            if let Some(run) = self.runs.get_mut(id) {
                run.in_turn = true;
            }
        }
        self.take_back(runs)
    }

    /// Everything is there: the worker gets the cell.
    fn start(&mut self, id: RunId, prepared: Prepared) -> bool {
        let Some(run) = self.runs.get(&id) else {
            return false;
        };
        let Some(worker) = run.state.worker() else {
            return false;
        };
        if self
            .workers
            .get(&worker)
            .is_some_and(|worker| !worker.lent.is_empty())
        {
            return false;
        }
        let Prepared {
            plan,
            changeable,
            only_here,
            also_elsewhere,
            watched,
            steady,
            ..
        } = prepared;
        let seq = run.seq;
        let may_change = |(_, other): (RunId, &Run)| match &other.state {
            State::Running(running) => {
                other.seq < seq && !running.uncertain.is_disjoint(&plan.touched)
            }
            _ => false,
        };
        if !run.begun
            && (self.started().any(may_change)
                || self.is_needed_before(run, &only_here)
                || self.is_kept_by_nobody(run, &only_here))
        {
            return false;
        }
        let count = self.count_of(id);
        let at_home = self.is_home(worker);
        let unseen = run.unseen.is_some();
        let inputs = if at_home && run.begun && !unseen {
            std::mem::take(&mut self.inputs)
        } else {
            Vec::new()
        };
        let touched = (self.workers.len() > 1).then(|| changeable.iter().cloned().collect());
        let before = self.ledger.held(worker);
        let Some(run) = self.runs.get_mut(&id) else {
            return false;
        };
        let keep = (!run.begun).then_some(only_here);
        run.count = count;
        run.undo = keep.is_some().then_some(Undo {
            before,
            spoilt: also_elsewhere,
        });
        let mut running = Running::new(worker, plan.clone());
        running.uncertain = changeable
            .into_iter()
            .filter(|name| {
                !watched.contains(name) && !keep.as_ref().is_some_and(|keep| keep.contains(name))
            })
            .collect();
        running.compared = &watched | &steady;
        let orders = Orders {
            request: run.request.message.clone(),
            count,
            touched,
            seeds: run.cell.seeds,
            unbound: if keep.is_some() {
                &run.cell.access.writes - &plan.touched
            } else {
                BTreeSet::new()
            },
            plan,
            keep,
            watched,
            steady,
            inputs,
            files: run.cell.files.clone(),
            gather: run.cell.gather.clone(),
            time: run.cell.time,
            unseen,
        };
        run.state = State::Running(Box::new(running));
        self.tell_remade(id);
        self.effects.push(Effect::Run(worker, id, Box::new(orders)));
        if unseen {
            self.effects.push(Effect::Discard(id));
        }
        true
    }
}

/// The worker of a run for which nothing is on its way, and what has been brought there for it.
fn wanting(run: &Run) -> Option<(WorkerId, &[Put])> {
    match &run.state {
        State::Fetching {
            worker,
            arrived,
            pending,
        } if pending.is_empty() => Some((*worker, arrived)),
        State::Starting { worker } if run.transfers.is_empty() => Some((*worker, &[])),
        _ => None,
    }
}
