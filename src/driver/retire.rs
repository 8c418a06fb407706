//! Workers that are given back, with their agents and allocations: because a cell asks for it, because nothing has used
//! them for long, or to make room. `release` keeps what cells have asked for and what they are told of it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use cellferry_wire::protocol::WorkerId;

use super::release::Answered;
use super::{Driver, magics, release};
use crate::session::{Asked, Event, HOME, Outcome, Problem, Retired, TargetName};
use crate::target::config::Place;
use crate::target::shape::Shape;

impl Driver {
    /// A cell asks to give workers back: it is done after the cells before it that run there.
    pub(super) fn release(
        &mut self,
        asked: &Arc<Asked>,
        target: Option<&str>,
    ) -> Result<(), Problem> {
        let wrong = |what: String| Problem::new("TargetError", what);
        let targets: BTreeSet<TargetName> = match target {
            Some(HOME) => {
                let what = "the worker of `home` holds the notebook's own values and stays; to end it, restart the kernel";
                return Err(wrong(what.to_owned()));
            }
            Some(name) => {
                let target = self.cells.target(name);
                target.map_err(|error| wrong(error.to_string()))?;
                BTreeSet::from([TargetName::from(name)])
            }
            None => {
                let is_far = |target: &TargetName| {
                    let target = self.cells.target(target);
                    target.is_ok_and(|target| !matches!(target.place, Place::Local))
                };
                let open = self.session.open_cells().map(|(target, _)| base(target));
                let mut targets = self.agents.far_targets();
                targets.extend(open.filter(is_far));
                targets
            }
        };
        let open = self.session.open_cells();
        let before = open.filter(|(target, _)| targets.contains(&base(target)));
        let before = before.map(|(_, cell)| cell.header.msg_id.clone()).collect();
        self.releases.add(asked.clone(), targets, before);
        Ok(())
    }

    /// Begins to give back what need not wait any more.
    pub(super) fn next_release(&mut self) -> Option<Event> {
        while self.releases.any_waits() {
            let open = self.session.open_cells();
            let open = open.map(|(_, cell)| cell.header.msg_id.as_str()).collect();
            let (asked, targets) = self.releases.next(&open)?;
            let workers = targets.iter().flat_map(|target| {
                let workers = self.agents.workers_of(target).into_iter();
                workers.map(move |worker| (worker, target.clone()))
            });
            let workers: BTreeMap<WorkerId, TargetName> = workers.collect();
            let ids: Vec<WorkerId> = workers.keys().copied().collect();
            if ids.is_empty() {
                let mut text = String::new();
                for target in targets {
                    // Its workers may have died before.
                    if self.agents.end_unused(&target) {
                        text += &format!("released {target}: no worker was left\n");
                    }
                }
                let nothing = text.is_empty().then_some("nothing to release");
                let shown = magics::printed(nothing.unwrap_or(text.trim_end()));
                self.told(&asked, Ok(Some(shown)));
                continue;
            }
            self.releases.begin(asked, workers);
            return retire(ids, true);
        }
        None
    }

    /// A worker was given back, or stays.
    pub(super) fn retired(&mut self, retired: &Retired) {
        let ended = matches!(retired.outcome, Outcome::Ended { .. });
        if let (false, Some(location)) = (ended, self.agents.location(retired.worker).cloned()) {
            self.no_gpus(
                &location,
                "hold values that can be neither carried nor made again",
            );
        }
        if let Some(allocation) = self.idle.remove(&retired.worker)
            && ended
            && self.agents.workers_at(&allocation).is_empty()
        {
            tracing::info!("{allocation} was not used for long and is given back");
            self.agents.release(&allocation);
        } else if ended {
            self.agents.end_unused(&base(&retired.target));
        } else {
            let Retired {
                worker, outcome, ..
            } = retired;
            tracing::info!(
                "worker {} of `{}` stays: {outcome:?}",
                worker.0,
                retired.target
            );
        }
        let answered = self.releases.retired(retired);
        self.released(answered);
    }

    pub(super) fn released(&mut self, answered: Vec<Answered>) {
        for Answered {
            asked,
            targets,
            text,
        } in answered
        {
            for target in &targets {
                self.agents.end_unused(target);
            }
            self.told(&asked, Ok(Some(magics::printed(&text))));
        }
    }
}

/// Workers are to be given back; `force`: even if that loses values.
pub(super) fn retire(workers: Vec<WorkerId>, force: bool) -> Option<Event> {
    Some(Event::Retire {
        workers,
        force,
        request: Box::new(release::request()?),
    })
}

/// The target of which this is a shape, or it itself.
fn base(target: &TargetName) -> TargetName {
    Shape::parse(target).target.into()
}
