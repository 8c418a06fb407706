//! Values that were lost with the only workers that held them are made again: the steps that made them run once more,
//! in program order, unseen.
//!
//! Only the run that has its turn asks for that, one step at a time, and waits in `Fetching` meanwhile. Nothing
//! that anybody else needs is at stake: a step is not run again in a worker where it would replace a current value.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use cellferry_wire::protocol::WorkerId;

use super::Session;
use super::event::{Effect, Reply, Report};
use super::lineage::{Gone, Repeat, Seq};
use super::run::{Cell, GENERATORS, Problem, Run, RunId, State, list};
use crate::ledger::{Lost, Namespace, Needed, Plan, Step, Version};
use crate::name::Name;

/// How often one run is made again for the same cell: something else may have replaced what it made.
const TIMES: u32 = 3;
/// How often a worker may die while something is made again for the same cell.
const DEATHS: u32 = 2;

/// What is, and was, made again for a run.
#[derive(Debug, Default)]
pub(super) struct Remade {
    /// The run that is under way.
    making: Option<RunId>,
    /// Names that were lost, with the worker that held them.
    lost: BTreeMap<Name, String>,
    /// The runs that were made again: execution count, and how often.
    runs: BTreeMap<Seq, (u32, u32)>,
    /// Those that came to nothing.
    tried: BTreeMap<Seq, String>,
    deaths: u32,
}

impl Remade {
    /// The run that is under way.
    pub(super) fn making(&self) -> Option<RunId> {
        self.making
    }

    /// Whether something is made again, or has been, and the run still waits.
    pub(super) fn is_under_way(&self) -> bool {
        !self.runs.is_empty()
    }
}

/// A run that nobody sees.
#[derive(Debug)]
pub(super) struct Unseen {
    /// The names as it sees them.
    pub(super) view: Arc<Namespace>,
    pub(super) purpose: Purpose,
}

/// What such a run is for.
#[derive(Debug)]
pub(super) enum Purpose {
    /// It makes again what another one made.
    Repeat(Repeated),
    /// It has no cell, and only brings these to the home worker.
    BringHome(BTreeMap<Name, Version>),
}

/// What is made again.
#[derive(Debug)]
pub(super) struct Repeated {
    /// The run that waits for it, if it still does.
    reader: Option<RunId>,
    /// Which run it repeats.
    seq: Seq,
    /// What that one made.
    made: BTreeMap<Name, Version>,
    /// Names that stand in its source.
    other: BTreeSet<Name>,
}

impl Session {
    /// Nobody has these names, which a run wants that has its turn: makes the next of them again, or says why not.
    /// `everything`: it wants them only because it may use any name.
    pub(super) fn remake(&mut self, id: RunId, absent: &BTreeSet<Name>, everything: bool) -> bool {
        let Some(run) = self.runs.get(&id) else {
            return false;
        };
        let view = self.view_of(run);
        let mut needed: BTreeSet<Seq> = BTreeSet::new();
        let mut gone: BTreeMap<Name, Gone> = BTreeMap::new();
        let mut lost: BTreeMap<Name, String> = BTreeMap::new();
        for name in absent {
            let Some(version) = view.version(name) else {
                continue;
            };
            match self
                .lineage
                .makers(&self.ledger, version, &run.remade.tried)
            {
                Ok(makers) => {
                    needed.extend(makers);
                    let held_by = self.ledger.lost(&view, name).map(|lost| lost.held_by);
                    lost.insert(
                        name.clone(),
                        held_by.unwrap_or_else(|| "a target".to_owned()),
                    );
                }
                Err(why) => {
                    gone.insert(name.clone(), why);
                }
            }
        }
        let Needed { must, may, .. } = &run.cell.needed;
        // A name that is not there is an error when it is read, but a definition would come without what was set on it.
        let is_fatal = |name: &Name| match definition_of(name) {
            Some(defined) => !everything || must.contains(&defined) || may.contains(&defined),
            None => must.contains(name),
        };
        let fatal = gone.iter().find(|(name, _)| is_fatal(name));
        if let Some((name, why)) = fatal {
            let problem = lost_value(name, self.ledger.lost(&view, name), why);
            self.refuse(id, problem);
            return true;
        }
        let Some(run) = self.runs.get_mut(&id) else {
            return false;
        };
        let is_skipping = !gone.is_empty();
        run.skipped.extend(gone.into_keys());
        match needed.first() {
            Some(first) => {
                run.remade.lost.extend(lost);
                self.repeat(id, *first);
                true
            }
            None => is_skipping,
        }
    }

    /// Runs what is committed once more, for the run `reader`.
    fn repeat(&mut self, reader: RunId, seq: Seq) {
        let Some(past) = self.lineage.get(seq).cloned() else {
            return;
        };
        let (Ok(repeat), Some(run)) = (&past.repeat, self.runs.get_mut(&reader)) else {
            return;
        };
        let (_, times) = run.remade.runs.entry(seq).or_insert((past.number, 0));
        *times += 1;
        if *times > TIMES {
            let what = "and something else always took its place".to_owned();
            run.remade.tried.insert(seq, what);
            return;
        }
        let needed = needed(&repeat.view);
        let other = &(&repeat.cell.needed.must | &repeat.cell.needed.may)
            | &(&repeat.cell.access.reads | &repeat.cell.access.writes);
        let repeated = Repeated {
            reader: Some(reader),
            seq,
            made: past.made.clone(),
            other,
        };
        let worker = self.worker_for(reader, &repeated, repeat);
        let cell = Cell {
            needed,
            ..Cell::clone(&repeat.cell)
        };
        let mut run = Run::new(repeat.request.clone(), cell, seq, true, None);
        run.count = Some(past.number);
        let unseen = Unseen {
            view: repeat.view.clone(),
            purpose: Purpose::Repeat(repeated),
        };
        let id = self.add_unseen(run, unseen, worker);
        if let Some(run) = self.runs.get_mut(&reader) {
            run.remade.making = Some(id);
        }
    }

    /// Gives a run that nobody sees to a worker.
    pub(super) fn add_unseen(&mut self, mut run: Run, unseen: Unseen, worker: WorkerId) -> RunId {
        run.begun = true;
        run.in_turn = true;
        run.unseen = Some(unseen);
        run.state = State::Starting { worker };
        let id = self.new_id();
        self.runs.insert(id, run);
        self.unseen.insert(id);
        if let Some(worker) = self.workers.get_mut(&worker) {
            worker.runs.push(id);
        }
        id
    }

    /// A worker of the run's target where it replaces nothing that somebody may need.
    fn worker_for(&mut self, reader: RunId, repeated: &Repeated, repeat: &Repeat) -> WorkerId {
        let target = &repeat.cell.target;
        let of_target = || {
            let workers = self.workers.iter();
            workers.filter(|(id, worker)| worker.target == *target && !self.is_retiring(**id))
        };
        let view = &repeat.view;
        let is_fit = |id: WorkerId| {
            let Repeated { made, other, .. } = repeated;
            self.ledger
                .in_the_way(id, view, made, other)
                .next()
                .is_none()
        };
        let names: BTreeSet<Name> = view.names().cloned().collect();
        let fit = of_target()
            .filter(|(id, worker)| {
                worker.runs.iter().all(|run| *run == reader)
                    && worker.dying.is_none()
                    && worker.lent.is_empty()
                    && is_fit(**id)
            })
            .max_by_key(|(id, worker)| {
                let weight = self.ledger.weight(view, **id, &names);
                (weight, !worker.runs.is_empty(), worker.ready, id.0)
            });
        if let Some((id, _)) = fit {
            return *id;
        }
        let regular = of_target().filter(|(_, worker)| !worker.spare).count();
        let spare = regular >= repeat.cell.workers.max(1) as usize;
        let id = self.start_worker(target.clone(), Some(reader));
        if let Some(worker) = self.workers.get_mut(&id) {
            worker.spare = spare;
        }
        id
    }

    /// Which names such a run must not see; `None` if it is an ordinary one, which sees only what is current.
    pub(super) fn drops_unseen(&self, worker: WorkerId, run: &Run) -> Option<BTreeSet<Name>> {
        let Unseen { view, purpose } = run.unseen.as_ref()?;
        Some(match purpose {
            Purpose::Repeat(Repeated { made, other, .. }) => {
                self.ledger.to_drop(worker, view, made, other)
            }
            Purpose::BringHome(_) => BTreeSet::new(),
        })
    }

    /// What the run to be made again used is not there, or not any more: whoever waits for it plans anew.
    pub(super) fn cannot_see(&mut self, id: RunId, absent: BTreeSet<Name>) -> bool {
        let is_generator = |name: &Name| GENERATORS.contains(&name.as_str());
        if !self.brings_home(id) && !absent.iter().all(is_generator) {
            self.not_made_again(id, None);
        } else if let Some(run) = self.runs.get_mut(&id) {
            run.skipped.extend(absent);
        }
        true
    }

    /// Moves on what is made again; whether anything changed.
    pub(super) fn unseen(&mut self) -> bool {
        let mut changed = false;
        for id in self.unseen.clone() {
            changed |= self.progress(id);
        }
        changed
    }

    /// The worker is done with a run that was made again.
    pub(super) fn made_again(
        &mut self,
        id: RunId,
        report: Report,
        reply: Option<Reply>,
        plan: &Plan,
    ) {
        let Some((run, unseen)) = self.end_unseen(id) else {
            return;
        };
        let Some(worker) = run.state.worker() else {
            return;
        };
        let Unseen { view, purpose } = unseen;
        let repeated = match purpose {
            Purpose::Repeat(repeated) => repeated,
            Purpose::BringHome(wanted) => return self.brought_home(&run, &view, plan, wanted),
        };
        let failure = match reply {
            Some(reply) if !reply.failed => None,
            Some(Reply {
                exception: Some((ename, evalue)),
                ..
            }) => Some(format!("it failed with {ename}: {evalue}")),
            _ => Some("it failed".to_owned()),
        };
        let bound: BTreeSet<Name> = report.bound.into_keys().collect();
        let nothing = BTreeMap::new();
        let made = if failure.is_none() {
            &repeated.made
        } else {
            &nothing
        };
        self.ledger
            .made_again(&view, worker, plan, made, (&bound, &report.deleted));
        if let Some(failure) = failure {
            // How far it came is not known.
            let mut names = &plan.touched | &bound;
            names.extend(repeated.made.into_keys());
            self.ledger.spoil(worker, &names);
            self.tried(repeated.reader, repeated.seq, failure);
        }
    }

    /// A run that nobody sees did not come to its cell.
    pub(super) fn not_made_again(&mut self, id: RunId, what: Option<String>) {
        let Some((run, unseen)) = self.end_unseen(id) else {
            return;
        };
        if let State::Running(running) = &run.state {
            let mut names: BTreeSet<Name> = running.plan.drops.iter().cloned().collect();
            for step in &running.plan.steps {
                match step {
                    Step::Put(put) => names.extend(put.names.keys().cloned()),
                    Step::Define(defined) => names.extend(defined.definition.binds.iter().cloned()),
                }
            }
            self.ledger.spoil(running.worker, &names);
        }
        match (unseen.purpose, what) {
            (Purpose::Repeat(repeated), Some(what)) => {
                self.tried(repeated.reader, repeated.seq, what);
            }
            (Purpose::BringHome(wanted), Some(what)) => self.cannot_put_at_home(wanted, &what),
            (_, None) => {}
        }
    }

    fn tried(&mut self, reader: Option<RunId>, seq: Seq, what: String) {
        if let Some(reader) = reader.and_then(|reader| self.runs.get_mut(&reader)) {
            reader.remade.tried.insert(seq, what);
        }
    }

    /// Takes it out of the session; whoever waits for it plans anew.
    pub(super) fn end_unseen(&mut self, id: RunId) -> Option<(Run, Unseen)> {
        self.runs.get(&id)?.unseen.as_ref()?;
        self.leave_parcels(id);
        self.unseen.remove(&id);
        self.retiring.ended(id);
        let mut run = self.runs.remove(&id)?;
        self.leave_worker(&run, id);
        let unseen = run.unseen.take()?;
        if let Purpose::Repeat(Repeated {
            reader: Some(reader),
            ..
        }) = unseen.purpose
            && let Some(reader) = self.runs.get_mut(&reader)
        {
            reader.remade.making = None;
        }
        Some((run, unseen))
    }

    /// A run waits no more for what is made again for it.
    pub(super) fn abandon(&mut self, reader: RunId) {
        let reader = self.runs.get_mut(&reader);
        let Some(id) = reader.and_then(|reader| reader.remade.making.take()) else {
            return;
        };
        let Some(run) = self.runs.get_mut(&id) else {
            return;
        };
        if let Some(Unseen {
            purpose: Purpose::Repeat(repeated),
            ..
        }) = &mut run.unseen
        {
            repeated.reader = None;
        }
        match &mut run.state {
            // Its worker has to come to an end with it.
            State::Running(running) if running.busy => {
                self.effects.push(Effect::Interrupt(running.worker));
            }
            State::Running(running) => running.interrupt = true,
            _ => self.not_made_again(id, None),
        }
    }

    /// The worker in which something was made again died; whoever waits for that tries again, but not for ever.
    pub(super) fn died_again(&mut self, worker: WorkerId, problem: &Problem, hopeless: bool) {
        let there = |id: &RunId| {
            let state = self.runs.get(id).map(|run| &run.state);
            state.is_some_and(|state| state.worker() == Some(worker))
        };
        let dead: Vec<RunId> = self.unseen.iter().copied().filter(there).collect();
        for id in dead {
            let Some((run, unseen)) = self.end_unseen(id) else {
                continue;
            };
            let Repeated { reader, seq, .. } = match unseen.purpose {
                Purpose::Repeat(repeated) => repeated,
                Purpose::BringHome(wanted) => {
                    self.home_died(&run, wanted, problem, hopeless);
                    continue;
                }
            };
            let Some(reader) = reader.and_then(|reader| self.runs.get_mut(&reader)) else {
                continue;
            };
            reader.remade.deaths += 1;
            if hopeless || reader.remade.deaths > DEATHS {
                reader.remade.tried.insert(seq, problem.evalue.clone());
            }
        }
    }

    /// Says under the cell what was made again for it.
    pub(super) fn tell_remade(&mut self, id: RunId) {
        let Some(run) = self.runs.get_mut(&id) else {
            return;
        };
        let runs = std::mem::take(&mut run.remade.runs);
        let lost = std::mem::take(&mut run.remade.lost);
        if runs.is_empty() {
            return;
        }
        let places: BTreeSet<String> = lost.values().cloned().collect();
        let places: Vec<String> = places.into_iter().collect();
        let numbers: Vec<String> = runs
            .values()
            .map(|(number, _)| format!("[{number}]"))
            .collect();
        let names: BTreeSet<Name> = lost.into_keys().collect();
        let (was, it) = if names.len() == 1 {
            ("was", "it")
        } else {
            ("were", "them")
        };
        let cells = if numbers.len() == 1 { "cell" } else { "cells" };
        let ran = if numbers.len() == 1 { "was" } else { "were" };
        let note = format!(
            "Cellferry: {} {was} lost with the worker of {}; {cells} {} {ran} run again to make {it}\n",
            list(&names),
            places.join(" and "),
            numbers.join(", "),
        );
        self.effects
            .push(Effect::Note(run.request.message.clone(), note));
    }

    /// Ends workers that were started only to make something again and hold nothing that nobody else has.
    pub(super) fn dismiss(&mut self) {
        let useless = |(id, worker): (&WorkerId, &super::Worker)| {
            (worker.spare
                && !self.is_retiring(*id)
                && worker.runs.is_empty()
                && worker.lent.is_empty()
                && worker.open.is_empty()
                && self.only_there(&BTreeSet::from([*id])).is_empty()
                && self.parcels.values().all(|parcel| parcel.holder != *id))
            .then_some(*id)
        };
        let useless: Vec<WorkerId> = self.workers.iter().filter_map(useless).collect();
        for id in useless {
            let name = self.place_name(id);
            self.workers.remove(&id);
            self.ledger
                .worker_lost(id, &name, |_| super::DIED.to_owned());
            self.effects.push(Effect::Stop(id));
        }
    }
}

/// All that a run used, which it must have again; a generator's state as far as it is there.
fn needed(view: &Namespace) -> Needed {
    let is_generator = |name: &&Name| GENERATORS.contains(&name.as_str());
    let (may, must) = view.names().partition(is_generator);
    let cloned = |names: Vec<&Name>| names.into_iter().cloned().collect();
    Needed {
        must: cloned(must),
        may: cloned(may),
        everything: false,
    }
}

/// Of a name that stands for what was set on a definition since: that definition.
fn definition_of(name: &Name) -> Option<Name> {
    name.as_str().strip_suffix('.').map(Name::from)
}

fn lost_value(name: &Name, lost: Option<Lost>, why: &Gone) -> Problem {
    let what = match (definition_of(name), lost) {
        (Some(name), lost) => {
            let (held_by, end) = match lost {
                Some(lost) => (lost.held_by, lost.end),
                None => ("a target".to_owned(), super::DIED.to_owned()),
            };
            format!(
                "what cells have set on `{name}`, or changed in its default arguments, is lost: only the worker of {held_by} \
                 held it, and that worker {end}; define `{name}` again"
            )
        }
        (None, Some(lost)) => format!(
            "`{name}` ({}) is lost: only the worker of {} held it, and that worker {}; run cell [{}] again, which made it",
            lost.type_name, lost.held_by, lost.end, lost.made_by
        ),
        (None, None) => {
            format!("`{name}` is lost: no worker has it any more; run the cell again that made it")
        }
    };
    Problem::new("LostValue", format!("{what} ({})", why.why()))
}
