//! Bringing to a run's worker what the run lacks there, then giving it the cell.

use std::collections::{BTreeMap, BTreeSet};

use cellferry_wire::protocol::WorkerId;

use super::Session;
use super::event::{Effect, Orders, Taken};
use super::run::{Problem, Run, RunId, Running, State, Undo};
use crate::ledger::{Lost, Namespace, Plan, Put, Version};
use crate::name::Name;

/// Values up to this size, in bytes, are compared before and after a run whenever others have them, too: it costs
/// less than carrying them again. Larger ones only if somebody waits for them.
const SMALL: u64 = 16 << 20;

/// Values on their way from one worker, for one run or several.
#[derive(Debug)]
pub(super) struct Parcel {
    pub(super) holder: WorkerId,
    names: BTreeSet<Name>,
    /// What the holder had when it was asked.
    versions: BTreeMap<Name, Version>,
    /// Set when it has arrived.
    pub(super) put: Option<Put>,
    pub(super) users: BTreeSet<RunId>,
    /// Whether its reader copies it straight from the holder's memory: then nobody else can.
    direct: bool,
    /// What the holder drops before it answers.
    stale: BTreeSet<Name>,
    /// Runs for which it came too late: the names have other versions there.
    unfit: BTreeSet<RunId>,
}

/// What is worked out before a run is moved on.
struct Prepared {
    plan: Plan,
    /// Of the planned takes: which versions are wanted.
    wanted: BTreeMap<WorkerId, BTreeMap<Name, Version>>,
    /// Names of values that the run can change in place.
    changeable: BTreeSet<Name>,
    /// Of those: what nobody but its worker has.
    only_here: BTreeSet<Name>,
    /// Of those: what its worker has now and others, too.
    also_elsewhere: BTreeSet<Name>,
    /// Of those: to be compared with what they were.
    watched: BTreeSet<Name>,
}

impl Session {
    /// Plans what the run needs, and either takes what is missing or starts it; whether anything changed.
    pub(super) fn fetch(&mut self, id: RunId) -> bool {
        let Some(prepared) = self.prepare(id) else {
            return false;
        };
        let plan = &prepared.plan;
        let Some(run) = self.runs.get_mut(&id) else {
            return false;
        };
        let (begun, seq) = (run.begun, run.seq);
        run.uses.clone_from(&plan.touched);
        if !begun && (plan.everything || !plan.lost.is_empty()) {
            run.in_turn = true;
            return self.take_back(BTreeSet::from([id]));
        }
        if let Some((name, lost)) = plan.lost.first() {
            let problem = lost_value(name, lost);
            self.refuse(id, problem);
            return true;
        }
        if !plan.absent.is_empty() {
            return begun && self.recover(id, seq, &plan.absent.clone());
        }
        if plan.takes.is_empty() {
            // What others want must be taken first: a worker that runs a cell answers nothing else.
            return self.serve_others(id) || self.start(id, prepared);
        }
        let Prepared { plan, wanted, .. } = prepared;
        self.take(id, plan, &wanted)
    }

    /// Before a run starts: the next ones, on other workers, take what they want of its worker. Whether there were any.
    fn serve_others(&mut self, id: RunId) -> bool {
        let Some(worker) = self.runs.get(&id).and_then(|run| run.state.worker()) else {
            return false;
        };
        let mut changed = false;
        for other in self.may_move() {
            if other == id {
                continue;
            }
            if self
                .runs
                .get(&other)
                .is_some_and(|run| run.state.is_waiting())
            {
                changed |= self.place(other);
            }
            let Some(Prepared {
                mut plan, wanted, ..
            }) = self.prepare(other)
            else {
                continue;
            };
            plan.takes.retain(|holder, _| *holder == worker);
            if plan.everything || !plan.lost.is_empty() || plan.takes.is_empty() {
                continue;
            }
            if let Some(run) = self.runs.get_mut(&other) {
                run.uses.clone_from(&plan.touched);
            }
            changed |= self.take(other, plan, &wanted);
        }
        changed
    }

    fn prepare(&self, id: RunId) -> Option<Prepared> {
        let run = self.runs.get(&id)?;
        let (worker, arrived): (_, &[Put]) = match &run.state {
            State::Fetching {
                worker,
                arrived,
                pending,
            } if pending.is_empty() => (*worker, arrived),
            State::Starting { worker } if run.transfers.is_empty() => (*worker, &[]),
            _ => return None,
        };
        let target = &run.cell.target;
        let view = self.view(run.seq);
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
        let plan = self
            .ledger
            .plan(&view, worker, &run.cell.needed, arrived, &run.skipped, cost);
        let versions = |names: &BTreeSet<Name>| {
            let version = |name: &Name| Some((name.clone(), view.version(name)?));
            names.iter().filter_map(version).collect()
        };
        let wanted = plan
            .takes
            .iter()
            .map(|(holder, names)| (*holder, versions(names)))
            .collect();
        let changeable = view.changeable(&plan.touched);
        let (mut only_here, mut also_elsewhere) = (BTreeSet::new(), BTreeSet::new());
        let mut watched = BTreeSet::new();
        for name in &changeable {
            let mut here = false;
            let mut elsewhere = false;
            for holder in self.ledger.holders(&view, name.as_str()) {
                here |= holder == worker;
                elsewhere |= holder != worker && self.keeps(holder, &view, name);
            }
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
            if !run.cell.access.writes.contains(name) && (self.is_used(name, run.seq) || shared()) {
                watched.insert(name.clone());
            }
        }
        Some(Prepared {
            plan,
            wanted,
            changeable,
            only_here,
            also_elsewhere,
            watched,
        })
    }

    /// Whether an earlier run that has nothing yet will read what only this run's worker has, and the run may replace.
    fn is_needed_before(&self, run: &Run, only_here: &BTreeSet<Name>) -> bool {
        let Some(worker) = run.state.worker() else {
            return false;
        };
        let view = self.view(run.seq);
        let only_holder = |name: &&Name| {
            let mut holders = self.ledger.holders(&view, name.as_str());
            holders.all(|holder| holder == worker || !self.keeps(holder, &view, name))
        };
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
    fn recover(&mut self, id: RunId, seq: u64, absent: &BTreeSet<Name>) -> bool {
        let view = self.view(seq);
        let replaced = |run: &Run| {
            let undo = run.undo.as_ref();
            undo.is_some_and(|undo| absent.iter().any(|name| undo.before.has(&view, name)))
        };
        let later: BTreeSet<RunId> = self
            .given()
            .filter(|(_, run)| run.seq > seq && replaced(run))
            .map(|(id, _)| id)
            .collect();
        drop(view);
        for id in &later {
            if let Some(run) = self.runs.get_mut(id) {
                // Not the same once more.
                run.in_turn = true;
            }
        }
        if self.take_back(later) {
            return true;
        }
        if self.workers.values().any(|worker| worker.dying.is_some()) {
            return false;
        }
        if let Some(run) = self.runs.get_mut(&id) {
            run.skipped.extend(absent.iter().cloned());
        }
        true
    }

    /// Asks the holders for what is missing, as far as they can answer now.
    fn take(
        &mut self,
        id: RunId,
        plan: Plan,
        wanted: &BTreeMap<WorkerId, BTreeMap<Name, Version>>,
    ) -> bool {
        let mut changed = false;
        let Some(seq) = self.runs.get(&id).map(|run| run.seq) else {
            return false;
        };
        for (holder, names) in plan.takes {
            let versions = wanted.get(&holder).cloned().unwrap_or_default();
            let same = |view: &Namespace, parcel: &Parcel| {
                !parcel.direct
                    && parcel.holder == holder
                    && versions.iter().all(|(name, version)| {
                        parcel.names.contains(name) && parcel.versions.get(name) == Some(version)
                    })
                    && !parcel.unfit.contains(&id)
                    && parcel.put.as_ref().is_none_or(|put| fits(view, put))
            };
            let view = self.view(seq);
            let under_way = self
                .parcels
                .iter()
                .find(|(_, parcel)| same(&view, parcel))
                .map(|(transfer, _)| *transfer);
            drop(view);
            if let Some(transfer) = under_way {
                changed |= self.join(id, transfer, &plan.again);
            } else if self.is_occupied(holder) {
                changed |= self.free(id, holder);
            } else {
                self.ask(id, holder, names, &plan.again);
                changed = true;
            }
        }
        changed
    }

    /// What another run has asked for serves this one, too.
    fn join(&mut self, id: RunId, transfer: u64, again: &BTreeSet<u64>) -> bool {
        let Some(parcel) = self.parcels.get_mut(&transfer) else {
            return false;
        };
        parcel.users.insert(id);
        let put = parcel.put.clone();
        let Some(run) = self.runs.get_mut(&id) else {
            return false;
        };
        run.transfers.insert(transfer);
        if let State::Fetching {
            pending, arrived, ..
        } = &mut run.state
        {
            arrived.retain(|put| !again.contains(&put.transfer));
            match put {
                Some(put) => arrived.push(put),
                None => {
                    pending.insert(transfer);
                }
            }
        }
        true
    }

    /// The run that has its turn waits for nobody who comes after it.
    fn free(&mut self, id: RunId, holder: WorkerId) -> bool {
        let Some(run) = self.runs.get(&id).filter(|run| run.begun) else {
            return false;
        };
        let seq = run.seq;
        let later: BTreeSet<RunId> = self
            .workers
            .get(&holder)
            .into_iter()
            .flat_map(|worker| &worker.runs)
            .filter(|id| self.runs.get(id).is_some_and(|run| run.seq > seq))
            .copied()
            .collect();
        self.take_back(later)
    }

    fn ask(&mut self, id: RunId, holder: WorkerId, names: BTreeSet<Name>, again: &BTreeSet<u64>) {
        let Some(run) = self.runs.get(&id) else {
            return;
        };
        let view = self.view(run.seq);
        let mut stale = self.ledger.stale(&view, holder);
        let quiet = self
            .workers
            .get(&holder)
            .is_some_and(|worker| worker.runs.is_empty());
        let mut ignored = BTreeSet::new();
        if !(quiet && run.begun) {
            // Cells at another place of program order may need them.
            std::mem::swap(&mut stale, &mut ignored);
        }
        let others = names.iter().any(|name| self.is_wanted_too(name, id));
        // Only the run that has its turn may keep its holder from running something else until it has copied.
        let reader = run
            .state
            .worker()
            .filter(|_| run.begun && !self.indirect && !others);
        drop(view);
        self.next_transfer += 1;
        let transfer = self.next_transfer;
        self.ledger.dropped(holder, &stale);
        self.parcels.insert(
            transfer,
            Parcel {
                holder,
                names: names.clone(),
                versions: self.ledger.versions(holder),
                put: None,
                users: BTreeSet::from([id]),
                direct: reader.is_some(),
                stale: stale.clone(),
                unfit: BTreeSet::new(),
            },
        );
        if reader.is_some()
            && let Some(worker) = self.workers.get_mut(&holder)
        {
            worker.lent.insert(id);
        }
        if let Some(run) = self.runs.get_mut(&id) {
            run.transfers.insert(transfer);
            if let State::Fetching {
                pending, arrived, ..
            } = &mut run.state
            {
                arrived.retain(|put| !again.contains(&put.transfer));
                pending.insert(transfer);
            }
        }
        self.effects.push(Effect::Take {
            transfer,
            worker: holder,
            names,
            stale,
            ignored,
            reader,
        });
    }

    /// Whether another step that can run at the same time wants the name.
    fn is_wanted_too(&self, name: &Name, id: RunId) -> bool {
        self.near().any(|(other, run)| {
            other != id
                && !run.in_turn
                && !run.state.is_finished()
                && run.cell.access.reads.contains(name)
        })
    }

    /// A worker has answered.
    pub(super) fn taken(&mut self, transfer: u64, taken: Taken) {
        let Some(parcel) = self.parcels.get_mut(&transfer) else {
            // Nobody wants it any more.
            self.effects.push(Effect::Release(vec![transfer]));
            return;
        };
        if matches!(taken, Taken::Interrupted | Taken::Failed(_)) {
            // It may not have come to dropping what was stale.
            self.ledger.spoil(parcel.holder, &parcel.stale);
        }
        let users = parcel.users.clone();
        let (holder, asked) = (parcel.holder, parcel.names.clone());
        match taken {
            Taken::Ok {
                names,
                needs,
                missing,
                size,
                kin,
            } => {
                let versions: BTreeMap<Name, Version> = names
                    .keys()
                    .filter_map(|name| Some((name.clone(), *parcel.versions.get(name)?)))
                    .collect();
                for group in kin {
                    let version = |name: Name| {
                        let version = *versions.get(&name)?;
                        Some((name, version))
                    };
                    self.ledger
                        .related(group.into_iter().filter_map(version).collect());
                }
                let put = Put {
                    names,
                    versions,
                    needs,
                    transfer,
                };
                parcel.put = Some(put.clone());
                let target_of = |id: &WorkerId| self.workers.get(id).map(|worker| &worker.target);
                let from = target_of(&holder);
                let reader = users.iter().find_map(|user| self.runs.get(user));
                // From one worker of a target to another nothing crosses.
                let crosses = reader.is_none_or(|run| Some(&run.cell.target) != from);
                let mut size = if crosses { size } else { 0 };
                for user in users {
                    self.arrived(user, &put, &missing, std::mem::take(&mut size));
                }
            }
            Taken::Uncarriable(failed) => {
                self.parcels.remove(&transfer);
                self.effects.push(Effect::Release(vec![transfer]));
                let holder = self.place_name(holder);
                for user in users {
                    self.left_behind(user, transfer, &holder, &asked, &failed);
                }
            }
            Taken::Failed(message) => {
                let holder = self.place_name(holder);
                self.failed(transfer, |target| {
                    Problem::transfer(&asked, &holder, target, &message)
                });
            }
            // Whom the user meant has been refused already; others try again.
            Taken::Interrupted => {
                self.parcels.remove(&transfer);
                self.effects.push(Effect::Release(vec![transfer]));
                for user in users {
                    self.forget_transfer(user, transfer);
                }
            }
        }
    }

    fn forget_transfer(&mut self, id: RunId, transfer: u64) {
        self.has_copied(id);
        if let Some(run) = self.runs.get_mut(&id) {
            run.transfers.remove(&transfer);
            if let State::Fetching { pending, .. } = &mut run.state {
                pending.remove(&transfer);
            }
        }
    }

    fn arrived(&mut self, id: RunId, put: &Put, missing: &BTreeSet<Name>, size: u64) {
        let Some(run) = self.runs.get(&id) else {
            return;
        };
        let view = self.view(run.seq);
        let fits = fits(&view, put);
        drop(view);
        let Some(run) = self.runs.get_mut(&id) else {
            return;
        };
        if let State::Fetching {
            pending, arrived, ..
        } = &mut run.state
            && pending.remove(&put.transfer)
        {
            run.carried += size;
            run.skipped.extend(missing.iter().cloned());
            if fits {
                arrived.push(put.clone());
            } else if let Some(parcel) = self.parcels.get_mut(&put.transfer) {
                parcel.unfit.insert(id);
            }
        }
    }

    fn left_behind(
        &mut self,
        id: RunId,
        transfer: u64,
        holder: &str,
        asked: &BTreeSet<Name>,
        failed: &BTreeMap<Name, (String, String)>,
    ) {
        self.forget_transfer(id, transfer);
        let Some(run) = self.runs.get_mut(&id) else {
            return;
        };
        let fatal = failed
            .iter()
            .find(|(name, _)| run.cell.needed.must.contains(*name));
        if let Some((name, (type_name, reason))) = fatal {
            let problem = uncarriable(name, type_name, reason, holder, &run.cell.target);
            self.refuse_in_turn(id, problem);
            return;
        }
        let before = run.skipped.len();
        for (name, (type_name, reason)) in failed {
            run.skipped.insert(name.clone());
            let left = (type_name.clone(), reason.clone(), holder.to_owned());
            run.left_behind.insert(name.clone(), left);
        }
        if run.skipped.len() == before {
            // Nothing more can be left out: the asked names themselves are the trouble.
            run.skipped.extend(asked.iter().cloned());
        }
    }

    /// A transfer has come to nothing.
    fn failed(&mut self, transfer: u64, problem: impl Fn(&str) -> Problem) {
        let users = match self.parcels.get(&transfer) {
            Some(parcel) => parcel.users.clone(),
            None => return,
        };
        for user in users {
            let target = self.runs.get(&user).map(|run| run.cell.target.clone());
            if let Some(target) = target {
                self.refuse_in_turn(user, problem(&target));
            }
        }
    }

    /// Ends a run that has its turn with an error; another one is tried again when its turn comes.
    fn refuse_in_turn(&mut self, id: RunId, problem: Problem) {
        match self.runs.get_mut(&id) {
            Some(run) if !run.begun => {
                run.in_turn = true;
                self.take_back(BTreeSet::from([id]));
            }
            _ => self.refuse(id, problem),
        }
    }

    /// Leaves all transfers of a run; those without another user are over.
    pub(super) fn leave_parcels(&mut self, id: RunId) {
        self.has_copied(id);
        let Some(run) = self.runs.get_mut(&id) else {
            return;
        };
        let mut over = Vec::new();
        for transfer in std::mem::take(&mut run.transfers) {
            if let Some(parcel) = self.parcels.get_mut(&transfer) {
                parcel.users.remove(&id);
                if parcel.users.is_empty() {
                    if parcel.put.is_none() {
                        self.ledger.spoil(parcel.holder, &parcel.stale);
                    }
                    self.parcels.remove(&transfer);
                    over.push(transfer);
                }
            } else {
                over.push(transfer);
            }
        }
        if !over.is_empty() {
            self.effects.push(Effect::Release(over));
        }
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
        let inputs = if at_home && run.begun {
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
        running.watched.clone_from(&watched);
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
            inputs,
        };
        run.state = State::Running(Box::new(running));
        self.effects.push(Effect::Run(worker, id, Box::new(orders)));
        true
    }
}

/// Whether all that came is as it is in `view`.
fn fits(view: &Namespace, put: &Put) -> bool {
    let current = |(name, version): (&Name, &Version)| view.version(name).as_ref() == Some(version);
    put.versions.iter().all(current)
}

fn lost_value(name: &Name, lost: &Lost) -> Problem {
    Problem::new(
        "LostValue",
        format!(
            "`{name}` ({}) is lost: only the worker of {} held it, and that worker died; run cell [{}] again, which made it",
            lost.type_name, lost.held_by, lost.made_by
        ),
    )
}

fn uncarriable(name: &Name, type_name: &str, reason: &str, holder: &str, target: &str) -> Problem {
    Problem::new(
        "UncarriableValue",
        format!(
            "`{name}` ({type_name}) lives on {holder} and cannot be carried to `{target}`: {reason}; \
             make it in a cell that runs on `{target}`, or run this cell on {holder}"
        ),
    )
}
