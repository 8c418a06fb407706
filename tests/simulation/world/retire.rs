//! Workers that are to be given back, and whether nothing was lost by it that need not be.

use std::collections::BTreeSet;
use std::sync::Arc;

use cellferry::name::Name;
use cellferry::session::{Asked, Event, Outcome as Retirement, Retired};
use cellferry_kernel::message::{Header, Message};
use cellferry_wire::protocol::{Channel, WorkerId};

use super::World;
use super::machines::Place;
use crate::fault::{Invariant, Violation};
use crate::program::Program;

impl World<'_> {
    /// The workers of a target are to be given back.
    pub(super) fn retire(&mut self, place: usize) -> Result<(), Violation> {
        let retirement = &self.program.retirements[place];
        let force = retirement.force;
        let of_target = |place: &Place| place.worker.target == retirement.target;
        let there = self.places.iter();
        let there = there.filter(|(_, place)| of_target(place) && !place.stopped);
        let known = there.filter(|(_, place)| place.gone.is_none_or(|(_, known)| !known));
        let workers: Vec<WorkerId> = known.map(|(id, _)| *id).collect();
        self.forget_expected();
        let expected = self.client.expected.back().map_or(0, |last| last + 1);
        let unknown = self.client.next.max(expected);
        for worker in &workers {
            let (_, forced) = self.retiring.entry(*worker).or_insert((unknown, force));
            *forced |= force;
        }
        let mut request = self.request(0, false);
        request.message = Arc::new(Asked {
            channel: Channel::Shell,
            header: Header {
                msg_id: format!("h{}", self.program.cells.len()),
                msg_type: "execute_request".to_owned(),
                session: String::new(),
            },
            message: Message::default(),
        });
        request.silent = true;
        request.store_history = false;
        self.tell(Event::Retire {
            workers,
            force,
            request: Box::new(request),
        })
    }

    /// What became of a worker that was to be given back.
    pub(super) fn retired(&mut self, retired: Retired) -> Result<(), Violation> {
        let Retired {
            worker,
            brought,
            outcome,
            ..
        } = retired;
        let wrong = |what: String| Err(Violation::new(Invariant::GivenBack, what));
        let Some((_, force)) = self.retiring.remove(&worker) else {
            return wrong(format!("worker {} was not to be given back", worker.0));
        };
        let Program {
            deaths,
            bad_starts,
            bad_carries,
            ..
        } = self.program;
        let all_goes_well = deaths.is_empty() && *bad_starts == 0 && *bad_carries == 0;
        self.statistics.brought += brought.len() as u64;
        let left: Vec<Name> = match outcome {
            Retirement::Ended { lost, .. } if !force && !lost.is_empty() => {
                return wrong(format!("worker {} goes, and with it {lost:?}", worker.0));
            }
            Retirement::Kept { .. } if force && all_goes_well => {
                return wrong(format!("worker {} stays although it must go", worker.0));
            }
            Retirement::Ended { again, lost } => {
                self.statistics.given_back += 1;
                let left: Vec<Name> = again.into_keys().chain(lost.into_keys()).collect();
                self.judge.left(left.iter().cloned());
                self.statistics.left += left.len() as u64;
                left
            }
            Retirement::Kept { values, is_new } => {
                self.statistics.kept += 1;
                let names: BTreeSet<Name> = values.into_keys().collect();
                let told = self.told.insert(worker, names.clone());
                if !is_new && told.as_ref() != Some(&names) {
                    return wrong(format!("why worker {} stays is not told", worker.0));
                }
                names.into_iter().collect()
            }
        };
        let is_locked = |name: &&Name| self.judge.model.is_locked(name);
        if all_goes_well && let Some(name) = left.iter().find(|name| !is_locked(name)) {
            return wrong(format!(
                "`{name}` is not brought home from worker {}",
                worker.0
            ));
        }
        Ok(())
    }
}
