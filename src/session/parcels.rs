//! Values on their way: asked for once for all the runs that want the same, and what becomes of them.

use std::collections::{BTreeMap, BTreeSet};

use cellferry_wire::protocol::WorkerId;

use super::Session;
use super::event::{Effect, Taken};
use super::run::{Problem, Run, RunId, State};
use crate::ledger::{Namespace, Plan, Put, Version};
use crate::name::Name;

/// Values on their way from one worker, for one run or several.
#[derive(Debug)]
pub(super) struct Parcel {
    pub(super) holder: WorkerId,
    names: BTreeSet<Name>,
    /// What the holder had when it was asked.
    versions: BTreeMap<Name, Version>,
    /// Set when the holder has answered.
    taken: Option<Content>,
    /// Workers to whose machines it has been brought, or is on its way.
    carried: BTreeMap<WorkerId, Way>,
    pub(super) users: BTreeSet<RunId>,
    /// Whether its reader copies it straight from the holder's memory: then nobody else can.
    direct: bool,
    /// What the holder drops before it answers.
    stale: BTreeSet<Name>,
    /// What it leaves out, although it may share objects with the rest.
    ignored: BTreeSet<Name>,
    /// Runs for which it came too late: the names have other versions there.
    unfit: BTreeSet<RunId>,
}

#[derive(Debug)]
struct Content {
    put: Put,
    /// What it refers to by name, as the holder had it.
    refers: BTreeMap<Name, Version>,
    /// Names that the holder does not have after all.
    missing: BTreeSet<Name>,
    /// What it adds to the amount carried, in bytes; counted once.
    size: u64,
}

impl Content {
    /// Whether all that came, and what it refers to, is as it is in `view`.
    fn fits(&self, view: &Namespace) -> bool {
        let mut all = self.put.versions.iter().chain(&self.refers);
        all.all(|(name, version)| view.version(name).as_ref() == Some(version))
    }
}

#[derive(Clone, Copy, Debug)]
enum Way {
    UnderWay,
    There,
}

impl Parcel {
    /// Whether the holder has answered.
    pub(super) fn is_taken(&self) -> bool {
        self.taken.is_some()
    }

    /// Whether it is being brought to some machine.
    pub(super) fn is_under_way(&self) -> bool {
        let mut ways = self.carried.values();
        ways.any(|way| matches!(way, Way::UnderWay))
    }
}

impl Session {
    /// Asks the holders for what is missing, as far as they can answer now.
    pub(super) fn take(&mut self, id: RunId, plan: Plan) -> bool {
        let mut changed = false;
        let Some(run) = self.runs.get(&id) else {
            return false;
        };
        let view = self.view_of(run);
        for (holder, names) in plan.takes {
            let same = |parcel: &Parcel| {
                !parcel.direct
                    && parcel.holder == holder
                    && names.iter().all(|name| {
                        parcel.names.contains(name)
                            && parcel.versions.get(name).copied() == view.version(name)
                    })
                    && !parcel.ignored.iter().any(|name| {
                        let version = parcel.versions.get(name);
                        version.is_some() && version == view.version(name).as_ref()
                    })
                    && !parcel.unfit.contains(&id)
                    && parcel.taken.as_ref().is_none_or(|taken| taken.fits(&view))
            };
            let under_way = self
                .parcels
                .iter()
                .find(|(_, parcel)| same(parcel))
                .map(|(transfer, _)| *transfer);
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
        let Some(run) = self.runs.get_mut(&id) else {
            return false;
        };
        run.transfers.insert(transfer);
        if let State::Fetching {
            pending, arrived, ..
        } = &mut run.state
        {
            arrived.retain(|put| !again.contains(&put.transfer));
            pending.insert(transfer);
        }
        self.bring(id, transfer);
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
        let view = self.view_of(run);
        let mut stale = self.ledger.stale(&view, holder);
        let quiet = self
            .workers
            .get(&holder)
            .is_some_and(|worker| worker.runs.is_empty());
        let mut ignored = BTreeSet::new();
        if !(quiet && run.begun && run.unseen.is_none()) {
            // Cells at another place of program order may need them.
            std::mem::swap(&mut stale, &mut ignored);
        }
        let others = names.iter().any(|name| self.is_wanted_too(name, id));
        // Only the run that has its turn may keep its holder from running something else until it has copied.
        let reader = run
            .state
            .worker()
            .filter(|_| run.begun && !self.indirect && !others && !self.brings_home(id));
        self.next_transfer += 1;
        let transfer = self.next_transfer;
        self.ledger.dropped(holder, &stale);
        self.parcels.insert(
            transfer,
            Parcel {
                holder,
                names: names.clone(),
                versions: self.ledger.versions(holder),
                taken: None,
                carried: BTreeMap::new(),
                users: BTreeSet::from([id]),
                direct: reader.is_some(),
                stale: stale.clone(),
                ignored: ignored.clone(),
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
                // What is ignored is not referred to by name.
                let refers = needs.iter().filter(|name| !parcel.ignored.contains(*name));
                let refers = refers
                    .filter_map(|name| Some((name.clone(), *parcel.versions.get(name)?)))
                    .collect();
                let now = self.ledger.versions(holder);
                for group in kin {
                    // What has been done to one of them since was done without knowing of the others.
                    for of in [&versions, &now] {
                        let version = |name: &Name| Some((name.clone(), *of.get(name)?));
                        self.ledger
                            .related(group.iter().filter_map(version).collect());
                    }
                }
                if parcel.ignored.is_empty() {
                    self.ledger.followed(versions.values().copied());
                }
                let put = Put {
                    names,
                    versions,
                    needs,
                    transfer,
                };
                let target_of = |id: &WorkerId| self.workers.get(id).map(|worker| &worker.target);
                let from = target_of(&holder);
                let reader = users.iter().find_map(|user| self.runs.get(user));
                // From one worker of a target to another nothing crosses.
                let crosses = reader.is_none_or(|run| Some(&run.cell.target) != from);
                if let Some(parcel) = self.parcels.get_mut(&transfer) {
                    parcel.taken = Some(Content {
                        put,
                        refers,
                        missing,
                        size: if crosses { size } else { 0 },
                    });
                }
                for user in users {
                    self.bring(user, transfer);
                }
            }
            Taken::Uncarriable(failed) => {
                let versions = std::mem::take(&mut parcel.versions);
                self.parcels.remove(&transfer);
                self.effects.push(Effect::Release(vec![transfer]));
                let holder = self.place_name(holder);
                for user in users {
                    let Some(run) = self.runs.get(&user) else {
                        continue;
                    };
                    let view = self.view_of(run);
                    let meant = |name: &Name| view.version(name).as_ref() == versions.get(name);
                    if failed.keys().all(meant) {
                        self.left_behind(user, transfer, &holder, &asked, &failed);
                    } else {
                        // By now it wants another version.
                        self.forget_transfer(user, transfer);
                    }
                }
            }
            Taken::Failed(message) => {
                let holder = self.place_name(holder);
                for user in users {
                    self.transfer_failed(user, &asked, &holder, &message);
                }
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

    /// What has come for a run and is not any more what it wants: the names have other versions by now.
    pub(super) fn unfit(&self, run: &Run) -> BTreeSet<u64> {
        let State::Fetching { arrived, .. } = &run.state else {
            return BTreeSet::new();
        };
        let view = self.view_of(run);
        let transfers = arrived.iter().map(|put| put.transfer);
        transfers
            .filter(|transfer| {
                let parcel = self.parcels.get(transfer);
                let content = parcel.and_then(|parcel| parcel.taken.as_ref());
                content.is_some_and(|content| !content.fits(&view))
            })
            .collect()
    }

    /// A run does without what was taken, and plans anew.
    fn leave_parcel(&mut self, id: RunId, transfer: u64) {
        self.forget_transfer(id, transfer);
        if let Some(parcel) = self.parcels.get_mut(&transfer) {
            parcel.users.remove(&id);
            if parcel.users.is_empty() {
                self.parcels.remove(&transfer);
                self.effects.push(Effect::Release(vec![transfer]));
            }
        }
    }

    /// A worker is gone: what was to come from it does not, and whoever wanted it plans anew.
    pub(super) fn cut(&mut self, worker: WorkerId) {
        let mut cut = Vec::new();
        for (transfer, parcel) in &mut self.parcels {
            parcel.carried.remove(&worker);
            if parcel.holder == worker && parcel.taken.is_none() {
                cut.push((*transfer, parcel.users.clone()));
            }
        }
        for (transfer, users) in cut {
            self.parcels.remove(&transfer);
            for user in users {
                self.forget_transfer(user, transfer);
            }
            self.effects.push(Effect::Release(vec![transfer]));
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

    /// What has been taken is brought to the machine of the run's worker; the run gets it if it is there.
    fn bring(&mut self, id: RunId, transfer: u64) {
        let Some(run) = self.runs.get(&id) else {
            return;
        };
        let view = self.view_of(run);
        let Some(run) = self.runs.get_mut(&id) else {
            return;
        };
        let State::Fetching {
            worker,
            pending,
            arrived,
        } = &mut run.state
        else {
            return;
        };
        let Some(parcel) = self.parcels.get_mut(&transfer) else {
            return;
        };
        let Some(content) = parcel
            .taken
            .as_mut()
            .filter(|_| pending.contains(&transfer))
        else {
            return;
        };
        if !content.fits(&view) {
            pending.remove(&transfer);
            run.skipped.extend(content.missing.iter().cloned());
            parcel.unfit.insert(id);
            return;
        }
        match parcel.carried.get(worker) {
            Some(Way::There) => {
                pending.remove(&transfer);
                run.carried += std::mem::take(&mut content.size);
                run.skipped.extend(content.missing.iter().cloned());
                arrived.push(content.put.clone());
            }
            Some(Way::UnderWay) => {}
            None => {
                parcel.carried.insert(*worker, Way::UnderWay);
                self.effects.push(Effect::Carry {
                    transfer,
                    from: parcel.holder,
                    to: *worker,
                });
            }
        }
    }

    /// What was taken has been brought to a worker's machine, or could not be.
    pub(super) fn carried(&mut self, transfer: u64, to: WorkerId, outcome: Result<(), String>) {
        let Some(parcel) = self.parcels.get_mut(&transfer) else {
            // Nobody wants it any more.
            self.effects.push(Effect::Release(vec![transfer]));
            return;
        };
        if !parcel.carried.contains_key(&to) {
            return;
        }
        let goes_there = |id: &RunId| {
            let state = self.runs.get(id).map(|run| &run.state);
            state.is_some_and(|state| state.worker() == Some(to))
        };
        let users: Vec<RunId> = parcel.users.iter().copied().filter(goes_there).collect();
        match outcome {
            Ok(()) => {
                parcel.carried.insert(to, Way::There);
                for user in users {
                    self.bring(user, transfer);
                }
            }
            Err(message) => {
                parcel.carried.remove(&to);
                if !self.workers.contains_key(&parcel.holder) {
                    // It was lost with its holder.
                    for user in users {
                        self.leave_parcel(user, transfer);
                    }
                    return;
                }
                let (holder, asked) = (parcel.holder, parcel.names.clone());
                let holder = self.place_name(holder);
                for user in users {
                    self.transfer_failed(user, &asked, &holder, &message);
                }
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
        let own = |name: &Name| run.uses.contains(name) && !run.skipped.contains(name);
        if run.skipped.len() == before && asked.iter().all(own) {
            // Nothing more can be left out: the asked names themselves are the trouble.
            run.skipped.extend(asked.iter().cloned());
        }
    }

    /// What a run wants could not be brought.
    fn transfer_failed(&mut self, id: RunId, names: &BTreeSet<Name>, holder: &str, message: &str) {
        if self.brings_home(id) {
            self.cannot_bring(id, message);
        } else if let Some(run) = self.runs.get(&id) {
            let problem = Problem::transfer(names, holder, &run.cell.target, message);
            self.refuse_in_turn(id, problem);
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
                    if !parcel.is_taken() {
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
