//! The end of a run: what it changed, its commit in program order, and errors that stop the queue.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::event::{Answer, Effect};
use super::lineage::{Past, Repeat, Unrepeatable};
use super::run::{Finished, GENERATORS, Problem, Run, RunId, State};
use super::{Queued, Session, amount};
use crate::graph::svg;
use crate::ledger::{Changes, Plan, Ran, Step, Version};
use crate::name::Name;

/// What a worker raises if it may not read another's memory.
const NO_DIRECT_COPY: &str = "NoDirectCopy";
/// The part of the prelude that fails if a run cannot be taken back.
const KEEP: &str = "keep";

impl Session {
    /// Ends a run with an error of ours.
    pub(super) fn refuse(&mut self, id: RunId, problem: Problem) {
        let Some(run) = self.runs.get(&id) else {
            return;
        };
        if run.unseen.is_some() {
            self.not_made_again(id, Some(problem.evalue));
            return;
        }
        let message = run.request.message.clone();
        let count = run.count.unwrap_or(self.count);
        let started = run.has_shown || matches!(run.state, State::Running(_));
        if !run.request.silent {
            if !started {
                self.effects.push(Effect::Input(message.clone(), count));
            }
            self.effects
                .push(Effect::Error(message.clone(), problem.clone()));
        }
        self.effects
            .push(Effect::Answer(message, Answer::Failed(problem, count)));
        self.close(id, true);
    }

    /// The worker is done with the cell; whether anything changed.
    pub(super) fn finish(&mut self, id: RunId) -> bool {
        let Some(run) = self.runs.get_mut(&id) else {
            return false;
        };
        let State::Running(running) = &mut run.state else {
            return false;
        };
        let worker = running.worker;
        let report = running.report.take().unwrap_or_default();
        let reply = running.reply.take();
        let (seq, asks) = (run.seq, running.asks);
        if let Some(failure) = report.failed {
            return self.prelude_failed(id, &failure);
        }
        let plan = std::mem::take(&mut running.plan);
        let compared = std::mem::take(&mut running.compared);
        if run.unseen.is_some() {
            self.made_again(id, report, reply, &plan);
            return true;
        }
        let took = took(report.seconds, run.carried);
        let number = run.count.unwrap_or(self.count);
        let (source, definitions) = (run.cell.source.clone(), run.cell.definitions.clone());
        let ahead = run.undo.is_some();
        self.has_copied(id);
        let view = self.view(seq);
        let changed = report.changed;
        let failed = reply.as_ref().is_none_or(|reply| reply.failed);
        let bound: BTreeSet<Name> = report.bound.keys().cloned().collect();
        let delta = self.ledger.finished(
            &view,
            Ran {
                worker,
                number,
                cell: &source,
                plan: &plan,
            },
            Changes {
                bound: report.bound,
                deleted: report.deleted,
                seen: report.seen,
                compared: &compared | &report.kept,
                changed: changed.clone(),
                restorable: ahead,
                failed,
                definitions: &definitions,
            },
        );
        let mut misled: BTreeSet<RunId> = BTreeSet::new();
        let mut unseen: BTreeSet<Name> = BTreeSet::new();
        for (other, run) in self.started().filter(|(_, run)| run.seq > seq) {
            let names = || run.uses.intersection(delta.written());
            if names().next().is_some() {
                misled.insert(other);
                unseen.extend(names().filter(|name| changed.contains(*name)).cloned());
            }
        }
        unseen.retain(|name| !self.told.contains(name));
        self.told.extend(unseen.iter().cloned());
        let Some(run) = self.runs.get_mut(&id) else {
            return false;
        };
        let made = delta.made();
        let repeat = match unrepeatable(run, &plan, failed, asks) {
            Some(why) => Err(why),
            None => {
                let used = |name: &&Name| {
                    let drawn = !GENERATORS.contains(&name.as_str()) || made.contains_key(*name);
                    drawn && !run.skipped.contains(*name)
                };
                let in_place = made.keys().filter(|name| !bound.contains(*name));
                let names = plan.touched.iter().filter(used).chain(in_place);
                Ok(Arc::new(Repeat {
                    request: run.request.clone(),
                    cell: run.cell.clone(),
                    view: Arc::new(view.part(names)),
                }))
            }
        };
        let past = Past {
            number,
            made,
            repeat,
        };
        run.uses.extend(changed);
        // The state of a generator is carried for all cells; who has not drawn from it has not used it.
        let drawn =
            |name: &Name| !GENERATORS.contains(&name.as_str()) || delta.written().contains(name);
        run.uses.retain(drawn);
        run.state = State::Finished(Box::new(Finished {
            worker,
            delta,
            failed,
            reply,
            took,
            note: (!unseen.is_empty()).then(|| changed_unseen(&unseen)),
            past,
        }));
        if !misled.is_empty() {
            self.take_back(misled);
        }
        true
    }

    /// What a cell needs could not be put in its place; nothing of the cell has run.
    fn prelude_failed(&mut self, id: RunId, failure: &super::PreludeFailure) -> bool {
        let Some(run) = self.runs.get_mut(&id) else {
            return false;
        };
        if run.unseen.is_some() {
            let other_way = failure.ename == NO_DIRECT_COPY && !self.indirect;
            self.indirect |= other_way;
            // An interrupt is not meant for what is brought home.
            let again = other_way || self.brings_home(id) && failure.ename == "KeyboardInterrupt";
            self.not_made_again(id, (!again).then(|| failure.reason().to_owned()));
            return true;
        }
        if failure.ename == NO_DIRECT_COPY && !self.indirect {
            // Its values are taken again, another way.
            self.indirect = true;
        } else if run.undo.is_some() {
            // Started before its turn: the error is shown if it is still there in its turn.
            run.in_turn = true;
        } else {
            let problem = Problem::prelude(failure, &run.cell.target);
            if let State::Running(running) = &run.state {
                let worker = running.worker;
                let puts = running.plan.steps.iter().filter_map(|step| match step {
                    Step::Put(put) => Some(put.names.keys().cloned()),
                    Step::Define(_) => None,
                });
                let puts: BTreeSet<Name> = puts.flatten().collect();
                self.ledger.spoil(worker, &puts);
            }
            self.refuse(id, problem);
            return true;
        }
        self.put_back(id, failure.action == KEEP);
        true
    }

    /// The next run in program order is done: its outputs, its reply, its changes count.
    pub(super) fn commit(&mut self, id: RunId) {
        let Some(run) = self.runs.get_mut(&id) else {
            return;
        };
        let State::Finished(finished) = &mut run.state else {
            return;
        };
        let reply = finished.reply.take();
        let (worker, failed) = (finished.worker, finished.failed);
        let took = std::mem::take(&mut finished.took);
        let note = finished.note.take();
        let delta = std::mem::take(&mut finished.delta);
        let (seq, past) = (run.seq, finished.past.clone());
        let message = run.request.message.clone();
        let number = run.count.unwrap_or(self.count);
        let stored = run.request.store_history && run.count.is_some();
        let source = run.cell.source.clone();
        if run.undo.take().is_some() {
            self.effects.push(Effect::Settle(worker, id));
        }
        if let Some(note) = note {
            self.effects.push(Effect::Note(message.clone(), note));
        }
        match reply {
            Some(reply) => {
                if let Some(note) = run.hint(&reply) {
                    self.effects.push(Effect::Note(message.clone(), note));
                }
                self.effects
                    .push(Effect::Reply(message, Box::new(reply.message)));
            }
            None => {
                let problem = Problem::interrupted();
                self.effects
                    .push(Effect::Answer(message, Answer::Failed(problem, number)));
            }
        }
        if let Some(place) = run.place.take() {
            let state = if failed {
                svg::State::Failed
            } else {
                svg::State::Done
            };
            self.past.state(place, state, Some(took));
        }
        self.ledger.commit(worker, &delta);
        self.lineage.add(seq, past);
        if self.lineage.is_large() {
            let current: Vec<Version> = self.needed_versions().collect();
            self.lineage.forget(current.into_iter());
        }
        if stored && !self.is_home(worker) {
            self.inputs.push((number, source));
        }
        self.close(id, failed);
    }

    /// What somebody may read, or would need if it had to be made again.
    fn needed_versions(&self) -> impl Iterator<Item = Version> + '_ {
        let finished = self.runs.values().filter_map(|run| match &run.state {
            State::Finished(finished) => Some(&finished.past),
            _ => None,
        });
        let of_past = finished.flat_map(|past| {
            let used = past.repeat.iter().flat_map(|repeat| repeat.view.versions());
            past.made.values().copied().chain(used)
        });
        self.ledger.committed().versions().chain(of_past)
    }

    /// Takes a run out of the session; after an error the queue is aborted, as any kernel does.
    fn close(&mut self, id: RunId, failed: bool) {
        self.abandon(id);
        self.leave_parcels(id);
        let Some(run) = self.runs.remove(&id) else {
            return;
        };
        self.leave_worker(&run, id);
        self.dismiss();
        if let Some(place) = run.place {
            self.past.state(place, svg::State::Refused, None);
        }
        self.effects
            .push(Effect::Status(run.request.message, "idle"));
        if failed && run.request.stop_on_error && !run.request.silent {
            self.abort();
        }
        match self.queue.front() {
            Some(Queued::Run(front)) if *front == id => {
                self.queue.pop_front();
            }
            _ => self.forget_closed(),
        }
    }

    /// Nothing of what has been asked for, or was expected, is run.
    fn abort(&mut self) {
        self.unexpected();
        let waiting: BTreeSet<RunId> = self.in_order().collect();
        self.take_back(waiting);
        let waiting: Vec<RunId> = self.in_order().collect();
        for id in waiting {
            self.leave_parcels(id);
            let Some(run) = self.runs.remove(&id) else {
                continue;
            };
            self.leave_worker(&run, id);
            if let Some(place) = run.place {
                self.past.state(place, svg::State::Refused, None);
            }
            let message = run.request.message;
            self.effects.push(Effect::Status(message.clone(), "busy"));
            self.effects
                .push(Effect::Answer(message.clone(), Answer::Aborted));
            self.effects.push(Effect::Status(message, "idle"));
        }
        self.queue
            .retain(|queued| matches!(queued, Queued::PassOn(..)));
    }
}

/// Why what the run made cannot be made again by running it again.
fn unrepeatable(run: &Run, plan: &Plan, failed: bool, asks: bool) -> Option<Unrepeatable> {
    if !run.cell.access.is_step {
        Some(Unrepeatable::Plain)
    } else if failed {
        Some(Unrepeatable::Failed)
    } else if plan.everything || run.cell.access.dynamic || run.cell.needed.everything {
        Some(Unrepeatable::Everything)
    } else if asks {
        Some(Unrepeatable::Asked)
    } else {
        None
    }
}

/// Tells of names that a cell changed although its source does not show it, and that steps had read ahead.
fn changed_unseen(names: &BTreeSet<Name>) -> String {
    let list = |quote: &str| {
        let names: Vec<String> = names
            .iter()
            .map(|name| format!("{quote}{}{quote}", name.as_str().trim_end_matches('.')))
            .collect();
        names.join(", ")
    };
    format!(
        "Cellferry: this cell changed {} in place, which its source does not show; steps that had read the old value \
         ahead of their turn run again. To save that time, say it at the top of this cell: #| out: [{}]\n",
        list("`"),
        list("")
    )
}

/// How long a cell took and how much was carried for it, in a few words.
fn took(seconds: f64, carried: u64) -> String {
    let time = match seconds {
        ..0.9995 => format!("{:.0} ms", seconds * 1e3),
        ..99.95 => format!("{seconds:.1} s"),
        _ => format!("{:.0} min", seconds / 60.0),
    };
    match carried {
        0 => time,
        carried => format!("{time}, {}", amount(carried)),
    }
}
