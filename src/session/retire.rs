//! Workers that are given back. They get no further run. Once those that they have are committed, what only they hold
//! is brought to the home worker, or one beside it, by a run that has no cell and that nobody sees; then they end.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use cellferry_wire::protocol::WorkerId;

use super::event::{Effect, Left, Outcome, Retired};
use super::remake::{Purpose, Unseen};
use super::run::{Cell, Problem, Request, Run, RunId, State};
use super::{HOME, Session, Worker};
use crate::cell::Files;
use crate::graph::Access;
use crate::ledger::{Namespace, Needed, Plan, Version};
use crate::name::Name;

/// How often one value is tried to be brought home.
const TRIES: u32 = 3;

/// The workers that are to be given back, and what is done for that.
#[derive(Debug, Default)]
pub(super) struct Retiring {
    workers: BTreeMap<WorkerId, Leaving>,
    /// What the home worker is given looks like a request of the kernel's own.
    request: Option<Request>,
    /// The run that brings values home, if one does.
    bringing: Option<RunId>,
    /// If a run failed: how many values the next one brings at most, so that it shows which of them is the cause.
    at_once: Option<usize>,
    /// What could not be brought home.
    stuck: BTreeMap<Version, Stuck>,
    /// How often others have been tried.
    tries: BTreeMap<Version, u32>,
    /// What was told of the workers that stay.
    told: BTreeMap<WorkerId, BTreeSet<Version>>,
}

/// A worker that is to be given back.
#[derive(Debug, Default)]
struct Leaving {
    /// It goes even if it holds what can neither be carried nor made again.
    force: bool,
    brought: BTreeMap<Name, u64>,
}

/// A value that could not be brought home.
#[derive(Debug)]
struct Stuck {
    left: Left,
    /// Whether that is because of the value; else it may succeed another time, and nothing is worth losing it.
    for_good: bool,
}

impl Retiring {
    /// A run that nobody sees is over.
    pub(super) fn ended(&mut self, run: RunId) {
        self.bringing.take_if(|bringing| *bringing == run);
    }

    /// A worker is gone.
    pub(super) fn forget(&mut self, worker: WorkerId) {
        self.workers.remove(&worker);
        self.told.remove(&worker);
    }
}

impl Session {
    /// These workers are to be given back.
    pub(super) fn retire(&mut self, workers: &[WorkerId], force: bool, request: Request) {
        for id in workers {
            if self.workers.contains_key(id) && !self.is_home(*id) {
                self.retiring.workers.entry(*id).or_default().force |= force;
            }
        }
        self.retiring.request = Some(request);
    }

    /// Whether the worker gets no further run.
    pub(super) fn is_retiring(&self, id: WorkerId) -> bool {
        self.retiring.workers.contains_key(&id)
    }

    /// Whether the run only brings values home.
    pub(super) fn brings_home(&self, id: RunId) -> bool {
        self.retiring.bringing == Some(id)
    }

    /// Which targets' workers are being given back, for `%cellferry status`.
    pub(super) fn leaving(&self) -> impl Iterator<Item = String> + '_ {
        let mut targets: BTreeMap<String, bool> = BTreeMap::new();
        for id in self.retiring.workers.keys() {
            *targets.entry(self.place_name(*id)).or_default() |= !self.has_ended_runs(*id);
        }
        targets.into_iter().map(|(target, runs)| {
            let what = if runs {
                "once the cells there are done"
            } else {
                "what only its workers hold is brought home"
            };
            format!("{target} is given back: {what}")
        })
    }

    /// Moves on what is given back; whether anything changed.
    pub(super) fn leave(&mut self) -> bool {
        if let Some(id) = self.retiring.bringing
            && self.progress(id)
        {
            return true;
        }
        if self.retiring.workers.is_empty() {
            if self.retiring.bringing.is_none() {
                self.retiring.stuck.clear();
                self.retiring.tries.clear();
                self.retiring.at_once = None;
            }
            return false;
        }
        self.take_back_expected() || self.end_retired() || self.bring_home()
    }

    /// What nobody has asked for yet does not hold up a worker that must go.
    fn take_back_expected(&mut self) -> bool {
        let workers = self.retiring.workers.iter();
        let forced = workers.filter(|(_, leaving)| leaving.force);
        let runs = forced.filter_map(|(id, _)| Some(&self.workers.get(id)?.runs));
        let expected = runs.flatten().filter(|id| self.is_expected(**id));
        let expected: BTreeSet<RunId> = expected.copied().collect();
        self.take_back_for_good(expected)
    }

    fn is_expected(&self, id: RunId) -> bool {
        self.runs.get(&id).is_some_and(|run| !run.asked)
    }

    /// Whether all that the worker was given is committed.
    fn has_ended_runs(&self, id: WorkerId) -> bool {
        self.workers.get(&id).is_some_and(Worker::is_quiet)
    }

    /// Whether nothing is on its way from the worker either, and nobody may yet come back to it.
    fn may_end(&self, id: WorkerId) -> bool {
        let awaits = |user: &RunId, transfer: u64| match self.runs.get(user).map(|run| &run.state) {
            Some(State::Fetching { pending, .. }) => pending.contains(&transfer),
            _ => false,
        };
        let asked = |worker: &Worker| {
            !worker.lent.is_empty() || !worker.waiting.is_empty() || !worker.open.is_empty()
        };
        !self.workers.get(&id).is_some_and(asked)
            && self.parcels.iter().all(|(transfer, parcel)| {
                parcel.holder != id
                    || parcel.is_taken()
                        && !parcel.is_under_way()
                        && !parcel.users.iter().any(|user| awaits(user, *transfer))
            })
            // It may hold what something else is made again from.
            && !self.runs.values().any(|run| run.remade.is_under_way())
    }

    /// The workers to be given back that have nothing more to do.
    fn done(&self) -> BTreeSet<WorkerId> {
        let workers = self.retiring.workers.keys().copied();
        workers.filter(|id| self.has_ended_runs(*id)).collect()
    }

    /// The current values that nobody but these workers has, or will have whatever is taken back.
    pub(super) fn only_there(&self, there: &BTreeSet<WorkerId>) -> BTreeMap<Name, Version> {
        let view = self.ledger.committed();
        let is_only_there = |name: &&Name| {
            let mut is_there = false;
            let only = self.ledger.holders(view, name.as_str()).all(|holder| {
                let found = there.contains(&holder);
                is_there |= found;
                found || !self.keeps(holder, view, name)
            });
            only && is_there
        };
        let names = self.ledger.carried(view).filter(is_only_there);
        let version = |name: &Name| Some((name.clone(), view.version(name)?));
        names.filter_map(version).collect()
    }

    /// Starts to bring values home.
    fn bring_home(&mut self) -> bool {
        if self.retiring.bringing.is_some() {
            return false;
        }
        let mut wanted = self.only_there(&self.done());
        wanted.retain(|_, version| !self.retiring.stuck.contains_key(version));
        let Some(request) = self.retiring.request.clone() else {
            return false;
        };
        if wanted.is_empty() {
            return false;
        }
        if let Some(at_once) = self.retiring.at_once {
            wanted = wanted.into_iter().take(at_once).collect();
        }
        let cell = Cell {
            source: Arc::from(""),
            target: Arc::from(HOME),
            workers: 1,
            retry: 0,
            needed: Needed {
                may: wanted.keys().cloned().collect(),
                ..Needed::default()
            },
            files: Arc::new(Files::default()),
            gather: Vec::new(),
            time: None,
            definitions: Vec::new(),
            access: Access::default(),
            called: Vec::new(),
            after: Vec::new(),
            seeds: false,
            problem: None,
        };
        let home = self.free_home_worker();
        // It stands before all that is not committed.
        let run = Run::new(request, cell, 0, true, None);
        let unseen = Unseen {
            view: self.view(0),
            purpose: Purpose::BringHome(wanted),
        };
        self.retiring.bringing = Some(self.add_unseen(run, unseen, home));
        true
    }

    /// The home worker; one beside it while that has cells, which may take for ever: nobody should wait for them with an
    /// allocation that is of no use any more.
    fn free_home_worker(&mut self) -> WorkerId {
        let home = self.home_worker();
        if self.workers.get(&home).is_some_and(Worker::is_quiet) {
            return home;
        }
        let mut others = self.workers.iter();
        let spare =
            others.find(|(id, worker)| worker.spare && worker.is_quiet() && self.is_home(**id));
        if let Some((id, _)) = spare {
            return *id;
        }
        let id = self.start_worker(Arc::from(HOME), None);
        if let Some(worker) = self.workers.get_mut(&id) {
            worker.spare = true;
        }
        id
    }

    /// What was wanted stands in the home worker, except what was left out.
    pub(super) fn brought_home(
        &mut self,
        run: &Run,
        view: &Namespace,
        plan: &Plan,
        wanted: BTreeMap<Name, Version>,
    ) {
        let Some(home) = run.state.worker() else {
            return;
        };
        self.ledger.brought(view, home, plan);
        let here = self.ledger.versions(home);
        let left = run.left_behind.values().next();
        for (name, version) in wanted {
            if here.get(&name) == Some(&version) {
                let size = self.ledger.size(view, &name);
                let mut holders = self.ledger.holders(view, name.as_str());
                let holder = holders.find(|holder| self.is_retiring(*holder));
                drop(holders);
                if let Some(leaving) = holder.and_then(|id| self.retiring.workers.get_mut(&id)) {
                    leaving.brought.insert(name, size);
                }
            } else if let Some((_, reason, _)) = run.left_behind.get(&name).or(left) {
                self.stuck(&name, version, reason, true);
            } else {
                self.try_again(&name, version, "its worker does not hand it out");
            }
        }
        // What was the cause of a failure may have been found.
        self.retiring.at_once = self
            .retiring
            .at_once
            .map(|at_once| at_once.saturating_mul(2));
    }

    /// What was taken for the home worker could not be put there.
    pub(super) fn cannot_put_at_home(&mut self, wanted: BTreeMap<Name, Version>, reason: &str) {
        self.failed(wanted, reason, true);
    }

    /// What is to be brought home does not come there.
    pub(super) fn cannot_bring(&mut self, id: RunId, reason: &str) {
        if let Some((_, unseen)) = self.end_unseen(id)
            && let Purpose::BringHome(wanted) = unseen.purpose
        {
            self.failed(wanted, reason, false);
        }
    }

    /// The home worker died, or did not even start, when something was to be brought to it.
    pub(super) fn home_died(
        &mut self,
        run: &Run,
        wanted: BTreeMap<Name, Version>,
        problem: &Problem,
        hopeless: bool,
    ) {
        // Perhaps it died of that: once is enough.
        let is_cause = matches!(run.state, State::Running(_));
        for (name, version) in wanted {
            if is_cause || hopeless {
                self.stuck(&name, version, &problem.evalue, false);
            } else {
                self.try_again(&name, version, &problem.evalue);
            }
        }
    }

    /// One of these could not be brought home; if there are several, it is found by trying fewer.
    fn failed(&mut self, wanted: BTreeMap<Name, Version>, reason: &str, for_good: bool) {
        self.retiring.at_once = Some((wanted.len() / 2).max(1));
        if wanted.len() > 1 {
            return;
        }
        for (name, version) in wanted {
            if for_good {
                self.stuck(&name, version, reason, true);
            } else {
                self.try_again(&name, version, reason);
            }
        }
    }

    fn try_again(&mut self, name: &Name, version: Version, reason: &str) {
        let tries = self.retiring.tries.entry(version).or_default();
        *tries += 1;
        if *tries >= TRIES {
            self.stuck(name, version, reason, false);
        }
    }

    fn stuck(&mut self, name: &Name, version: Version, reason: &str, for_good: bool) {
        let type_name = self.ledger.look(name).map(|seen| seen.type_name);
        let left = Left {
            type_name: type_name.unwrap_or_default(),
            reason: reason.to_owned(),
        };
        let stuck = Stuck { left, for_good };
        self.retiring.stuck.insert(version, stuck);
    }

    /// Ends the workers that hold nothing any more that must be brought home; whether there were any.
    fn end_retired(&mut self) -> bool {
        let done = self.done();
        let only = self.only_there(&done);
        let mut waits: BTreeSet<WorkerId> = BTreeSet::new();
        let mut again: BTreeMap<Name, (Version, Left)> = BTreeMap::new();
        let mut lost: BTreeMap<Name, (Version, Left)> = BTreeMap::new();
        let mut kept: BTreeMap<WorkerId, BTreeMap<Name, (Version, Left)>> = BTreeMap::new();
        let mut after = None;
        for (name, version) in only {
            let view = self.ledger.committed();
            let holders = self.ledger.holders(view, name.as_str());
            let holders: BTreeSet<WorkerId> =
                holders.filter(|holder| done.contains(holder)).collect();
            let Some(stuck) = self.retiring.stuck.get(&version) else {
                waits.extend(holders);
                continue;
            };
            let after = after.get_or_insert_with(|| {
                let mut after = self.ledger.clone();
                for id in &done {
                    after.worker_lost(*id, "", |_| String::new());
                }
                after
            });
            let may_go = |id: &&WorkerId| self.retiring.workers.get(id).is_some_and(|it| it.force);
            let tried = BTreeMap::new();
            let stays = holders.iter().find(|id| !may_go(id) || !stuck.for_good);
            if stuck.for_good && self.lineage.makers(after, version, &tried).is_ok() {
                again.insert(name, (version, stuck.left.clone()));
            } else if let Some(id) = stays {
                let values = kept.entry(*id).or_default();
                values.insert(name, (version, stuck.left.clone()));
            } else {
                lost.insert(name, (version, stuck.left.clone()));
            }
        }
        let ready = done
            .into_iter()
            .filter(|id| !waits.contains(id) && self.may_end(*id));
        let ready: Vec<WorkerId> = ready.collect();
        for id in &ready {
            match kept.remove(id) {
                Some(values) => self.keep(*id, values),
                None => self.give_back(*id, &again, &lost),
            }
        }
        !ready.is_empty()
    }

    /// A worker stays after all.
    fn keep(&mut self, id: WorkerId, values: BTreeMap<Name, (Version, Left)>) {
        let Some(leaving) = self.retiring.workers.remove(&id) else {
            return;
        };
        let Some(worker) = self.workers.get(&id) else {
            return;
        };
        let versions: BTreeSet<Version> = values.values().map(|(version, _)| *version).collect();
        let told = self.retiring.told.insert(id, versions.clone());
        let values = values.into_iter().map(|(name, (_, left))| (name, left));
        self.effects.push(Effect::Retired(Box::new(Retired {
            worker: id,
            target: worker.target.clone(),
            brought: leaving.brought,
            outcome: Outcome::Kept {
                values: values.collect(),
                is_new: told != Some(versions),
            },
        })));
    }

    /// A worker ends; what is left with it is lost, or made again when it is needed.
    fn give_back(
        &mut self,
        id: WorkerId,
        again: &BTreeMap<Name, (Version, Left)>,
        lost: &BTreeMap<Name, (Version, Left)>,
    ) {
        let name = self.place_name(id);
        let Some(leaving) = self.retiring.workers.remove(&id) else {
            return;
        };
        self.retiring.forget(id);
        self.cut(id);
        let Some(worker) = self.workers.remove(&id) else {
            return;
        };
        let here = self.ledger.versions(id);
        let of_it = |values: &BTreeMap<Name, (Version, Left)>| -> BTreeMap<Name, Left> {
            let mut of_it = values.clone();
            of_it.retain(|name, (version, _)| here.get(name) == Some(version));
            let of_it = of_it.into_iter();
            of_it.map(|(name, (_, left))| (name, left)).collect()
        };
        let outcome = Outcome::Ended {
            again: of_it(again),
            lost: of_it(lost),
        };
        let stuck = &self.retiring.stuck;
        self.ledger.worker_lost(id, &name, |version| {
            let reason = stuck.get(&version).map(|stuck| {
                let reason = &stuck.left.reason;
                format!(", for which the value could not be carried to `{HOME}`: {reason}")
            });
            format!("was given back{}", reason.unwrap_or_default())
        });
        self.effects.push(Effect::Stop(id));
        self.effects.push(Effect::Retired(Box::new(Retired {
            worker: id,
            target: worker.target,
            brought: leaving.brought,
            outcome,
        })));
    }
}
