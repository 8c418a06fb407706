//! What workers say, and what the client sees of it: a run ahead of its turn is held back, one taken back leaves no trace,
//! one that runs again does not repeat itself.

use bytes::Bytes;
use cellferry::session::{Asked, Event, Gone, Reply, RunId};
use cellferry_kernel::message::Message;
use cellferry_wire::protocol::WorkerId;

use super::{Happening, World};
use crate::check::{End, Outcome};
use crate::fault::{Fault, Invariant, Violation};
use crate::memory::{Exception, Said};
use crate::worker::Says;

/// What the driver knows of a run, and the judge.
#[derive(Debug)]
pub(super) struct Running {
    pub(super) cell: usize,
    pub(super) worker: WorkerId,
    /// What it has said, while its turn has not come.
    pub(super) held: Option<Vec<Said>>,
    pub(super) discarded: bool,
    /// It only makes something again.
    pub(super) unseen: bool,
    /// It read memory that was not what it had been any more.
    pub(super) misread: bool,
    pub(super) executed: usize,
    pub(super) exception: Option<Exception>,
}

impl World<'_> {
    pub(super) fn hear(&mut self, worker: WorkerId, says: Says) -> Result<(), Violation> {
        match says {
            Says::Busy(run) => self.tell(Event::Busy(worker, run)),
            Says::Began(run) => self.tell(Event::Began(worker, run)),
            Says::Shows(run, said) => self.shows(run, said),
            Says::Reports(run, report) => self.tell(Event::Report(worker, run, report)),
            Says::Replies(run, exception, _) => {
                let message = Message {
                    content: Bytes::from(run.0.to_string()),
                    ..Message::default()
                };
                let reply = Reply {
                    message,
                    failed: exception.is_some(),
                    exception: exception
                        .map(|exception| (exception.ename.to_owned(), exception.evalue)),
                };
                self.tell(Event::Replied(worker, run, Box::new(reply)))
            }
            Says::Idle(run) => {
                if self.fault == Some(Fault::LosesIdle) && self.fate.of(("idle", run.0)).chance(10)
                {
                    return Ok(());
                }
                self.tell(Event::Idle(worker, run))
            }
            Says::Taken(transfer, taken, contents) => {
                if let Some(contents) = contents.filter(|_| !self.released.contains(&transfer)) {
                    self.values.insert(transfer, (worker, contents));
                }
                self.tell(Event::Taken(transfer, taken))
            }
        }
    }

    /// A value has come to a worker's machine, or got lost on its way.
    pub(super) fn brought(&mut self, transfer: u64, to: WorkerId) -> Result<(), Violation> {
        let mut fate = self.fate.of(("way", transfer, to.0));
        let from = self.values.get(&transfer).map(|(from, _)| *from);
        let lost = from.and_then(|from| self.places.get(&from)?.gone);
        let outcome = if let Some((Gone::LocationLost, known)) = lost {
            if !known {
                // That its location is lost is known before anything else that comes of it.
                self.plan(self.now + 1, Happening::Carried(transfer, to));
                return Ok(());
            }
            Err("its location is lost".to_owned())
        } else if fate.chance(self.program.bad_carries) {
            let reason = format!("transfer {transfer} is cut");
            self.judge.cut(&reason);
            Err(reason)
        } else {
            if self.fault != Some(Fault::CarriesNothing) {
                self.brought.insert((transfer, to));
            }
            Ok(())
        };
        self.tell(Event::Carried {
            transfer,
            to,
            outcome,
        })
    }

    fn shows(&mut self, run: RunId, said: Said) -> Result<(), Violation> {
        let fault = self.fault;
        let Some(running) = self.runs.get_mut(&run) else {
            return Ok(());
        };
        if running.discarded {
            let cell = running.cell;
            return match fault {
                Some(Fault::ShowsDiscarded) => self.judge.shows(cell, said),
                _ => Ok(()),
            };
        }
        match &mut running.held {
            Some(held) if fault != Some(Fault::ShowsEarly) => {
                held.push(said);
                Ok(())
            }
            _ => {
                let Some(asked) = self.session.request(run).cloned() else {
                    return Ok(());
                };
                let cell = self.asked_for(&asked)?;
                self.note(|| format!("    cell at {cell} shows {said:?}"));
                self.say(cell, said)
            }
        }
    }

    /// Shows what a run has said, unless the cell shows it from the run before that died.
    fn say(&mut self, cell: usize, said: Said) -> Result<(), Violation> {
        if let Some((_, done)) = self.again.filter(|(again, _)| *again == cell) {
            let shown = self.judge.shown();
            if shown.get(done) == Some(&said) && self.fault != Some(Fault::ShowsAgain) {
                self.again = Some((cell, done + 1));
                return Ok(());
            }
            // It goes on where the one before stopped, or says something else.
            if self.fault != Some(Fault::ShowsAgain) {
                self.judge.shows_only(done);
            }
            self.again = None;
        }
        self.judge.shows(cell, said)
    }

    pub(super) fn show(&mut self, run: RunId, asked: &Asked) -> Result<(), Violation> {
        let fault = self.fault;
        let cell = self.asked_for(asked)?;
        let Some(running) = self.runs.get_mut(&run) else {
            return Ok(());
        };
        let mut held = running.held.take().unwrap_or_default();
        if fault == Some(Fault::ShowsTwice) {
            held.extend(held.clone());
        }
        for said in held {
            if fault != Some(Fault::LosesHeld) {
                self.note(|| format!("    cell at {cell} shows {said:?}, held back before"));
                self.say(cell, said)?;
            }
        }
        Ok(())
    }

    pub(super) fn replies(&mut self, cell: usize, message: &Message) -> Result<(), Violation> {
        let run = std::str::from_utf8(&message.content).ok();
        let run = run.and_then(|run| run.parse().ok()).map(RunId);
        let running = run.and_then(|run| self.runs.get(&run));
        let Some(running) = running.filter(|running| running.cell == cell) else {
            return Err(Violation::new(
                Invariant::Order,
                format!(
                    "cell {} gets another one's reply",
                    self.program.cells[cell].id
                ),
            ));
        };
        if running.discarded {
            return Err(Violation::new(
                Invariant::NoTrace,
                format!(
                    "cell {} gets the reply of a discarded run",
                    self.program.cells[cell].id
                ),
            ));
        }
        if running.misread {
            return Err(Violation::new(
                Invariant::MemoryHolds,
                format!(
                    "cell {} read memory of a worker that had gone on",
                    self.program.cells[cell].id
                ),
            ));
        }
        let outcome = Outcome {
            executed: running.executed,
            exception: running.exception.clone(),
            worker_lives: self
                .places
                .get(&running.worker)
                .is_some_and(|place| place.alive),
        };
        if let Some((_, done)) = self.again.take() {
            self.judge.shows_only(done);
        }
        self.judge.ends(cell, End::Replied(outcome))
    }
}
