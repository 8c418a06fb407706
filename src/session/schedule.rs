//! Which runs may start before their turn, and on which worker a run goes.

use std::cell::LazyCell;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use cellferry_wire::protocol::WorkerId;

use super::event::Effect;
use super::past::Place;
use super::run::{Run, RunId, State};
use super::{HOME, Queued, Session, TargetName, Worker};
use crate::graph::Reason;

/// How many runs after the front are looked at, at least.
const WINDOW: usize = 256;

/// The workers of a target that have something to do.
#[derive(Default)]
struct Busy {
    /// For every run.
    always: usize,
    /// For runs up to this place of program order, which one of theirs that is finished has.
    until: Vec<u64>,
}

impl Busy {
    /// How many are, for a run at this place of program order.
    fn at(&self, seq: u64) -> usize {
        self.always + self.until.iter().filter(|until| **until >= seq).count()
    }
}

impl Session {
    /// How many runs after the front are looked at: twice as many as there have been workers at once, so that there is always
    /// work for more of them. It never shrinks, since what has been given to a worker must stay in sight.
    fn window(&self) -> usize {
        WINDOW.max(2 * self.most_workers)
    }

    /// Moves on what may run ahead of its turn; whether anything changed.
    pub(super) fn ahead(&mut self) -> bool {
        let mut changed = false;
        for id in self.may_move() {
            // An earlier one may have taken this one back.
            if self.runs.contains_key(&id) {
                changed |= self.progress(id);
            }
        }
        changed
    }

    /// The runs that have not their turn and may move: started ones, and those that may start.
    pub(super) fn may_move(&self) -> Vec<RunId> {
        let mut found = Vec::new();
        // Where each run that is not done stands, by its place in the graph.
        let mut open: BTreeSet<Place> = BTreeSet::new();
        // How many earlier runs still wait for a worker of each target.
        let mut claims: BTreeMap<&str, usize> = BTreeMap::new();
        let busy = LazyCell::new(|| self.busy_workers());
        for queued in self.queue.iter().take(self.window()) {
            // What a comm message does is known only to its worker.
            let Queued::Run(id) = queued else { break };
            let Some(run) = self.runs.get(id) else {
                continue;
            };
            if !run.begun {
                let may_start = || {
                    let before = claims.get(&*run.cell.target).copied().unwrap_or(0);
                    !run.in_turn && before < free_places(run, &busy) && !self.reads(run, &open)
                };
                if !run.state.is_waiting() || may_start() {
                    found.push(*id);
                }
            }
            match &run.state {
                State::Finished(finished) if finished.failed && run.request.stop_on_error => break,
                State::Finished(_) => continue,
                State::Waiting if !found.ends_with(&[*id]) => {
                    *claims.entry(&run.cell.target).or_default() += 1;
                }
                _ => {}
            }
            // It may do anything to any name.
            if run.cell.access.dynamic || run.cell.needed.everything {
                break;
            }
            open.extend(run.place);
        }
        found
    }

    /// The workers that have something to do, by target.
    fn busy_workers(&self) -> BTreeMap<&str, Busy> {
        let mut found: BTreeMap<&str, Busy> = BTreeMap::new();
        for (id, worker) in &self.workers {
            if worker.spare || self.is_retiring(*id) {
                continue;
            }
            let busy = found.entry(&*worker.target).or_default();
            match self.busy_until(worker) {
                Some(u64::MAX) => busy.always += 1,
                Some(until) => busy.until.push(until),
                None => {}
            }
        }
        found
    }

    /// Whether the run reads what one of the open runs may write, or must follow it.
    fn reads(&self, run: &Run, open: &BTreeSet<Place>) -> bool {
        let Some(place) = run.place else { return true };
        let edges = self.past.before(place);
        edges.iter().any(|edge| {
            let binds = |reason: &Reason| matches!(reason, Reason::Read(_) | Reason::After);
            open.contains(&edge.from) && edge.reasons.iter().any(binds)
        })
    }

    /// Finds a worker for a run; false while there is none.
    pub(super) fn place(&mut self, id: RunId) -> bool {
        let Some(run) = self.runs.get(&id) else {
            return false;
        };
        let (target, begun, seq) = (run.cell.target.clone(), run.begun, run.seq);
        let limit = if run.cell.access.is_step {
            run.cell.workers.max(1) as usize
        } else {
            // Plain cells share one home worker.
            1
        };
        let wanted = &run.cell.needed.must | &run.cell.needed.may;
        let of_target: Vec<(WorkerId, &Worker)> = self
            .workers
            .iter()
            .filter(|(id, worker)| {
                worker.target == target && !worker.spare && !self.is_retiring(**id)
            })
            .map(|(id, worker)| (*id, worker))
            .take(if run.cell.access.is_step {
                usize::MAX
            } else {
                1
            })
            .collect();
        let any_free = of_target
            .iter()
            .any(|(_, worker)| self.is_free(worker, seq));
        if !any_free && !begun && of_target.len() >= limit {
            return false;
        }
        let view = self.view(seq);
        let weight = |id: WorkerId| self.ledger.weight(&view, id, &wanted);
        let free = of_target
            .iter()
            .filter(|(_, worker)| self.is_free(worker, seq))
            .max_by_key(|(id, worker)| (weight(*id), worker.ready, Reverse(id.0)))
            .map(|(id, worker)| (*id, worker.ready));
        let mut heaviest_busy = of_target
            .iter()
            .filter(|(_, worker)| !self.is_free(worker, seq))
            .map(|(id, _)| weight(*id));
        let chosen = match free {
            // What it reads stands where something else runs: rather there, later.
            Some((free, _)) if !begun && heaviest_busy.any(|other| other > weight(free)) => None,
            Some(free) => Some(free),
            None if of_target.len() < limit => None,
            None if begun && of_target.iter().all(|(_, worker)| worker.dying.is_none()) => {
                // Whatever runs there is later in program order.
                let later: BTreeSet<RunId> = of_target
                    .iter()
                    .take(1)
                    .flat_map(|(_, worker)| worker.runs.iter().copied())
                    .collect();
                return self.take_back(later);
            }
            None => return false,
        };
        let full = of_target.len() >= limit;
        let (worker, ready) = match chosen {
            Some(chosen) => chosen,
            None if free.is_some() || full => return false,
            None => (self.start_worker(target, Some(id)), false),
        };
        if let Some(worker) = self.workers.get_mut(&worker) {
            worker.runs.push(id);
        }
        if let Some(run) = self.runs.get_mut(&id) {
            run.state = if ready {
                State::Fetching {
                    worker,
                    pending: BTreeSet::new(),
                    arrived: Vec::new(),
                }
            } else {
                State::Starting { worker }
            };
        }
        true
    }

    /// The runs that have been given to a worker and are not committed.
    pub(super) fn given(&self) -> impl Iterator<Item = (RunId, &Run)> {
        self.near().filter(|(_, run)| !run.state.is_waiting())
    }

    /// Those of them that may have read something.
    pub(super) fn started(&self) -> impl Iterator<Item = (RunId, &Run)> {
        self.given().filter(|(_, run)| run.is_started())
    }

    /// The runs whose turn comes soonest.
    pub(super) fn near(&self) -> impl Iterator<Item = (RunId, &Run)> {
        let near = self.in_order().take(self.window());
        near.filter_map(|id| Some((id, self.runs.get(&id)?)))
    }

    /// Whether a run at this place of program order can be given to the worker.
    fn is_free(&self, worker: &Worker, seq: u64) -> bool {
        self.busy_until(worker).is_none_or(|until| until < seq)
    }

    /// The last place of program order at which the worker can take no run; [`u64::MAX`] while it works.
    fn busy_until(&self, worker: &Worker) -> Option<u64> {
        if worker.dying.is_some() {
            return Some(u64::MAX);
        }
        let runs = worker.runs.iter().filter_map(|id| self.runs.get(id));
        runs.map(|run| match run.state.is_finished() {
            true => run.seq,
            false => u64::MAX,
        })
        .max()
    }

    /// Whether a cell runs in the worker: then it answers nothing else.
    pub fn is_occupied(&self, id: WorkerId) -> bool {
        let runs = |id: &RunId| {
            matches!(
                self.runs.get(id).map(|run| &run.state),
                Some(State::Running(_))
            )
        };
        self.workers
            .get(&id)
            .is_some_and(|worker| worker.dying.is_some() || worker.runs.iter().any(runs))
    }

    pub(super) fn is_home(&self, id: WorkerId) -> bool {
        self.workers
            .get(&id)
            .is_some_and(|worker| &*worker.target == HOME)
    }

    pub(super) fn start_worker(&mut self, target: TargetName, run: Option<RunId>) -> WorkerId {
        let id = WorkerId(self.next_worker);
        self.next_worker += 1;
        let worker = Worker {
            target: target.clone(),
            ready: false,
            waiting: Vec::new(),
            open: BTreeMap::new(),
            runs: Vec::new(),
            dying: None,
            lent: BTreeSet::new(),
            spare: false,
        };
        self.workers.insert(id, worker);
        self.most_workers = self.most_workers.max(self.workers.len());
        self.effects.push(Effect::StartWorker {
            worker: id,
            target,
            run,
        });
        id
    }

    /// The execution count that a run has, or will have when its turn comes.
    pub(super) fn count_of(&self, id: RunId) -> Option<u32> {
        let run = self.runs.get(&id)?;
        if run.request.silent {
            return None;
        }
        if run.begun {
            return run.count;
        }
        let before = self
            .in_order()
            .take_while(|other| *other != id)
            .filter_map(|other| self.runs.get(&other))
            .filter(|other| !other.begun && other.counts())
            .count();
        Some(self.count + u32::try_from(before).unwrap_or(u32::MAX) + 1)
    }
}

/// How many more runs the target of this one could take now.
fn free_places(run: &Run, busy: &BTreeMap<&str, Busy>) -> usize {
    let busy = busy.get(&*run.cell.target);
    let busy = busy.map_or(0, |busy| busy.at(run.seq));
    (run.cell.workers.max(1) as usize).saturating_sub(busy)
}
