//! The driver's part: gives the session its events, and does what it says.

use cellferry::session::{Answer, Asked, Effect, Event, Orders, RunId};
use cellferry_wire::protocol::WorkerId;

use super::output::Running;
use super::trace::{describe_effect, describe_event};
use super::{Happening, World, cell_of};
use crate::check::End;
use crate::fault::{Fault, Invariant, Violation};
use crate::memory::Said;
use crate::worker::{Take, Task};

impl World<'_> {
    /// Gives the session an event and does what it says.
    pub(super) fn tell(&mut self, event: Event) -> Result<(), Violation> {
        self.events += 1;
        if self.trace.is_some() {
            let line = describe_event(&event);
            self.note(|| line);
        }
        if self.fault == Some(Fault::InterruptsAnything)
            && self.fate.of(("any", self.events)).chance(2)
        {
            let workers: Vec<WorkerId> = self.places.keys().copied().collect();
            for worker in workers {
                self.plan(self.now, Happening::InterruptArrives(worker));
            }
        }
        for effect in self.session.handle(event) {
            if self.trace.is_some() {
                let line = describe_effect(&effect);
                self.note(|| line);
            }
            self.perform(effect)?;
        }
        Ok(())
    }

    fn perform(&mut self, effect: Effect) -> Result<(), Violation> {
        match effect {
            Effect::StartWorker { worker, target, .. } => self.start(worker, &target),
            Effect::Status(asked, status) => {
                let cell = self.asked_for(&asked)?;
                if status == "busy" {
                    self.judge.busy(cell)?;
                } else {
                    let failed = self.judge.idle(cell)?;
                    self.client.gave_up |= failed && self.program.gives_up;
                    self.client_goes_on();
                }
            }
            Effect::Input(asked, count) => {
                let cell = self.asked_for(&asked)?;
                self.judge.shows(cell, Said::Input(count))?;
            }
            Effect::Error(asked, problem) => {
                let cell = self.asked_for(&asked)?;
                let said = Said::Error(problem.ename, problem.evalue);
                self.judge.shows(cell, said)?;
            }
            Effect::Note(asked, _) => {
                self.asked_for(&asked)?;
            }
            Effect::Answer(asked, answer) => {
                let cell = self.asked_for(&asked)?;
                self.again = None;
                if let Answer::Failed(problem, _) = &answer {
                    self.statistics.lost += u64::from(problem.ename == "LostValue");
                }
                self.statistics.aborted += u64::from(answer == Answer::Aborted);
                self.judge.ends(cell, End::Answered(answer))?;
            }
            Effect::Reply(asked, message) => {
                let cell = self.asked_for(&asked)?;
                self.replies(cell, &message)?;
            }
            Effect::Run(worker, run, orders) => self.runs(worker, run, orders)?,
            Effect::Take {
                transfer,
                worker,
                names,
                stale,
                ignored,
                reader,
            } => {
                self.statistics.transfers += 1;
                let take = Take {
                    transfer,
                    names,
                    stale,
                    ignored,
                    reader,
                };
                self.send(worker, Task::Take(take))?;
            }
            Effect::Carry { transfer, to, .. } => {
                let delay = self.fate.delay(("carry", transfer, to.0));
                self.plan(self.now + delay, Happening::Carried(transfer, to));
            }
            Effect::Release(transfers) => {
                if self.fault != Some(Fault::ReleasesNothing) {
                    for transfer in transfers {
                        self.values.remove(&transfer);
                        self.released.insert(transfer);
                    }
                }
            }
            Effect::Show(run, asked) => self.show(run, &asked)?,
            Effect::Discard(run) => {
                self.statistics.discarded += 1;
                if let Some(running) = self.runs.get_mut(&run) {
                    running.discarded = true;
                    let cell = running.cell;
                    let held = running.held.take().unwrap_or_default();
                    if self.fault == Some(Fault::ShowsDiscarded) {
                        for said in held {
                            self.judge.shows(cell, said)?;
                        }
                    }
                }
            }
            Effect::Again { old, new } => {
                self.statistics.again += 1;
                self.runs.remove(&old);
                if let Some(asked) = self.session.request(new).cloned() {
                    self.again = Some((self.asked_for(&asked)?, 0));
                }
            }
            Effect::Stop(worker) => {
                if let Some(place) = self.places.get_mut(&worker) {
                    place.alive = false;
                    place.cut = true;
                    place.stopped = true;
                }
            }
            Effect::Retired(retired) => self.retired(*retired)?,
            Effect::Undo(worker, run) => self.send(worker, Task::Undo(run))?,
            Effect::Settle(worker, run) => self.send(worker, Task::Settle(run))?,
            Effect::Interrupt(worker) => {
                if let Some(time) = self.inwards(worker)? {
                    self.plan(time, Happening::InterruptArrives(worker));
                }
            }
            Effect::PassOn(..) | Effect::History(..) => {}
        }
        Ok(())
    }

    /// The cell of a request, which a client must have asked for.
    pub(super) fn asked_for(&self, asked: &Asked) -> Result<usize, Violation> {
        let cell = cell_of(asked);
        if !asked.header.msg_id.starts_with('r') {
            return Err(Violation::new(
                Invariant::NoTrace,
                format!("something is said under cell at {cell}, which nobody asked for"),
            ));
        }
        Ok(cell)
    }

    fn runs(&mut self, worker: WorkerId, run: RunId, orders: Box<Orders>) -> Result<(), Violation> {
        let cell = crate::worker::cell_of(&orders);
        let is_cell = cell < self.program.cells.len();
        self.statistics.remade += u64::from(orders.unseen && is_cell);
        let unknown = self.retiring.get(&worker);
        if is_cell && !orders.unseen && unknown.is_some_and(|(first, _)| cell >= *first) {
            return Err(Violation::new(
                Invariant::GivenBack,
                format!(
                    "cell at {cell} runs on worker {}, which is given back",
                    worker.0
                ),
            ));
        }
        self.statistics.ahead += u64::from(orders.keep.is_some());
        // A run whose prelude failed may be started again.
        let before = self.runs.remove(&run);
        if let Some(before) = before
            .as_ref()
            .filter(|before| before.cell != cell || before.discarded)
        {
            return Err(Violation::new(
                Invariant::NothingDoubled,
                format!(
                    "run {} of cell {} is started again: {before:?}",
                    run.0, cell
                ),
            ));
        }
        let held = before.and_then(|before| before.held);
        let running = Running {
            cell,
            worker,
            held: orders.keep.is_some().then(Vec::new).or(held),
            discarded: false,
            unseen: orders.unseen,
            misread: false,
            executed: 0,
            exception: None,
        };
        self.runs.insert(run, running);
        self.send(worker, Task::Run(run, orders))
    }
}
