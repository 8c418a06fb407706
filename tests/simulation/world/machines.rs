//! Where workers live: they start, work and die, and the links to and from them take their time.

use std::collections::BTreeMap;

use cellferry::ledger::Step;
use cellferry::session::{Gone, PreludeFailure};
use cellferry_wire::protocol::WorkerId;

use super::{Happening, World};
use crate::fault::{Invariant, Violation};
use crate::memory::Parcel;
use crate::worker::{Contents, Outside, Says, Task, Worker, failure};

/// A link, which keeps the order of what it carries.
#[derive(Clone, Copy, Debug, Default)]
struct Link {
    last: u64,
    carried: u64,
}

impl Link {
    fn arrival(&mut self, now: u64, delay: u64) -> u64 {
        self.carried += 1;
        self.last = self.last.max(now + delay);
        self.last
    }
}

#[derive(Debug)]
pub(super) struct Place {
    pub(super) worker: Worker,
    pub(super) alive: bool,
    /// How it died, and whether the session knows.
    pub(super) gone: Option<(Gone, bool)>,
    /// Nothing that it has said is heard any more.
    pub(super) cut: bool,
    /// The session has ended it.
    pub(super) stopped: bool,
    inwards: Link,
    published: Link,
    answers: Link,
}

impl World<'_> {
    pub(super) fn start(&mut self, id: WorkerId, target: &str) {
        let targets = &self.program.targets;
        let target = targets.iter().position(|other| other.name == target);
        let worker = Worker::new(target.unwrap_or_default());
        let mut fate = self.fate.of(("start", id.0));
        let starts = !fate.chance(self.program.bad_starts);
        let time = self.now + fate.below(50);
        self.places.insert(
            id,
            Place {
                worker,
                alive: starts,
                gone: (!starts).then_some((Gone::NotStarted, false)),
                cut: false,
                stopped: false,
                inwards: Link {
                    last: time,
                    carried: 0,
                },
                published: Link {
                    last: time,
                    carried: 0,
                },
                answers: Link {
                    last: time,
                    carried: 0,
                },
            },
        );
        let happening = if starts {
            Happening::Started(id)
        } else {
            Happening::Gone(id)
        };
        self.plan(time, happening);
    }

    pub(super) fn die(&mut self, place: usize) {
        let death = &self.program.deaths[place];
        let of_target = |place: &Place| place.alive && place.worker.target == death.target;
        let candidates: Vec<WorkerId> = self
            .places
            .iter()
            .filter(|(_, place)| of_target(place))
            .map(|(id, _)| *id)
            .collect();
        if candidates.is_empty() {
            return;
        }
        let mut fate = self.fate.of(("death", place));
        let chosen = *fate.pick(&candidates);
        for id in candidates {
            if id != chosen && !death.all {
                continue;
            }
            let cut = fate.chance(50);
            let mut time = self.now + fate.below(30);
            if let Some(place) = self.places.get_mut(&id) {
                place.alive = false;
                place.gone = Some((death.how, false));
                place.cut = cut;
                if !cut {
                    // What it has said is heard before its end.
                    time = time.max(place.published.last).max(place.answers.last);
                }
            }
            self.statistics.deaths += 1;
            self.note(|| format!("worker {} dies", id.0));
            self.plan(time, Happening::Gone(id));
        }
    }

    /// Sends something to a worker.
    pub(super) fn send(&mut self, id: WorkerId, task: Task) -> Result<(), Violation> {
        if let Some(time) = self.inwards(id)? {
            self.plan(time, Happening::Arrives(id, task));
        }
        Ok(())
    }

    pub(super) fn inwards(&mut self, id: WorkerId) -> Result<Option<u64>, Violation> {
        let Some(place) = self.places.get_mut(&id) else {
            return Ok(None);
        };
        if place.stopped {
            return Err(Violation::new(
                Invariant::GivenBack,
                format!("worker {} is told something after its end", id.0),
            ));
        }
        let delay = self.fate.delay(("inwards", id.0, place.inwards.carried));
        Ok(Some(place.inwards.arrival(self.now, delay)))
    }

    /// Lets a worker go on: its current step ends, by an interrupt or not, or it takes up the next task.
    pub(super) fn work(&mut self, id: WorkerId, ends: Option<bool>) {
        let parcels = if ends.is_some() {
            self.parcels_for(id)
        } else {
            BTreeMap::new()
        };
        let Some(place) = self.places.get_mut(&id) else {
            return;
        };
        let outside = Outside {
            program: self.program,
            fate: self.fate,
            fault: self.fault,
            definitions: &self.definitions,
            parcels,
        };
        let mut says = Vec::new();
        let mut time = match ends {
            Some(interrupted) => place.worker.proceed(&outside, interrupted, &mut says),
            None => None,
        };
        if time.is_none() {
            time = place.worker.begin(&outside, &mut says);
        }
        let turn = place.worker.turn;
        if let Some(time) = time {
            self.plan(self.now + time, Happening::Proceeds(id, turn));
        }
        for says in says {
            if let Says::Replies(run, exception, executed) = &says
                && let Some(running) = self.runs.get_mut(run)
            {
                running.executed = *executed;
                running.exception.clone_from(exception);
            }
            let Some(place) = self.places.get_mut(&id) else {
                return;
            };
            let (link, kind) = if says.is_answer() {
                (&mut place.answers, "answers")
            } else {
                (&mut place.published, "published")
            };
            let delay = self.fate.delay((kind, id.0, link.carried));
            let time = link.arrival(self.now, delay);
            self.plan(time, Happening::Heard(id, says));
        }
    }

    /// The values that the prelude of the worker's current run puts, as they are now.
    fn parcels_for(&mut self, id: WorkerId) -> BTreeMap<u64, Result<Parcel, Box<PreludeFailure>>> {
        let mut parcels = BTreeMap::new();
        let Some((run, orders)) = self
            .places
            .get(&id)
            .and_then(|place| place.worker.in_prelude())
        else {
            return parcels;
        };
        let mut misread = false;
        for step in &orders.plan.steps {
            let Step::Put(put) = step else { continue };
            let no_direct_copy = || failure("put", &[], "NoDirectCopy", "Operation not permitted");
            let value = self.values.get(&put.transfer);
            let parcel = match value.filter(|_| self.brought.contains(&(put.transfer, id))) {
                None => continue,
                Some((_, Contents::Copy(parcel))) => Ok(parcel.clone()),
                Some((
                    holder,
                    Contents::Memory {
                        names,
                        ignored,
                        era,
                    },
                )) => match self.places.get(holder).filter(|place| place.alive) {
                    Some(place) if self.program.direct => {
                        let parcel = place.worker.memory.pack(names, ignored);
                        if place.worker.era == *era {
                            Ok(parcel)
                        } else {
                            misread = true;
                            Ok(parcel.garbage())
                        }
                    }
                    _ => Err(no_direct_copy()),
                },
            };
            parcels.insert(put.transfer, parcel);
        }
        if misread && let Some(running) = self.runs.get_mut(&run) {
            running.misread = true;
        }
        parcels
    }
}
