//! Workers that are to be started: at once, or when there are GPUs for them.

use std::collections::BTreeSet;

use cellferry_wire::protocol::WorkerId;
use tokio::time::Instant;

use super::Driver;
use super::agents::Start;
use super::notices::Wait;
use super::retire::retire;
use crate::session::{Problem, TargetName};

impl Driver {
    pub(super) async fn start_worker(&mut self, worker: WorkerId, target: &TargetName) {
        match self.agents.start(worker, target, &self.cells).await {
            // Not from within the session's own turn: as an event of its own.
            Err(problem) => self.agents.report(worker, problem),
            Ok(Start::Later(locations)) => {
                self.short_of_gpus
                    .insert(worker, (target.clone(), locations));
            }
            Ok(Start::Begun) => {
                if let Some(host) = self.agents.connecting_to(worker) {
                    self.notices.waits(&host, Wait::Connecting, Instant::now());
                }
            }
        }
    }

    /// Workers that wait for GPUs are started if there are enough by now; else those that have some and do nothing end.
    pub(super) async fn make_room(&mut self) {
        for (worker, (target, _)) in std::mem::take(&mut self.short_of_gpus) {
            self.start_worker(worker, &target).await;
        }
        let wanted: BTreeSet<Vec<TargetName>> = self
            .short_of_gpus
            .values()
            .map(|(_, locations)| locations.clone())
            .collect();
        for locations in wanted {
            let holders = locations
                .iter()
                .flat_map(|location| self.agents.with_gpus(location));
            let holders: BTreeSet<WorkerId> = holders.collect();
            let (idle, used): (Vec<WorkerId>, Vec<WorkerId>) = holders
                .into_iter()
                .partition(|worker| !self.session.is_in_use(*worker));
            if idle.is_empty() && !used.iter().any(|worker| self.session.is_occupied(*worker)) {
                // What they have done is not committed, since it comes after that for which there are no GPUs.
                for location in &locations {
                    self.no_gpus(location, "have run cells that come later");
                }
            } else if let Some(event) = retire(idle, false) {
                self.handle(event).await;
            }
        }
    }

    /// There will be no GPUs for workers that wait for some at a location.
    pub(super) fn no_gpus(&mut self, location: &TargetName, why: &str) {
        let problem = Problem::new(
            "NoGpu",
            format!(
                "there are not enough free GPUs on `{location}`: other workers there have them and {why}; \
                 give them back with `%cellferry release`, and run the cell again"
            ),
        );
        let concerned = self
            .short_of_gpus
            .extract_if(|_, (_, others)| others.contains(location));
        let workers: Vec<WorkerId> = concerned.map(|(worker, _)| worker).collect();
        for worker in workers {
            self.agents.report(worker, problem.clone());
        }
    }
}
