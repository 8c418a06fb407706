//! How agents end: when they have no worker any more, when their allocation is given back, and with this process.

use std::time::Duration;

use cellferry_wire::protocol::WorkerId;
use tokio::time::timeout;

use super::Agents;
use crate::session::{HOME, TargetName};

/// How long agents have to end their workers and themselves.
const END_LIMIT: Duration = Duration::from_secs(4);

/// How long the cancelling of jobs may take.
const RELEASE_LIMIT: Duration = Duration::from_secs(4);

impl Agents {
    /// An agent has ended: its workers with it.
    pub fn agent_gone(&mut self, target: &TargetName) -> Vec<WorkerId> {
        self.links.remove(target);
        self.hellos.remove(target);
        self.down.remove(target);
        self.clusters.lost(target);
        let workers = self.workers.iter();
        let there = workers.filter(|(_, seat)| seat.location == *target);
        there.map(|(worker, _)| *worker).collect()
    }

    /// Ends the agent of a target that has no worker any more, or its allocations, and says whether there were any; the end
    /// of an agent is told as an event.
    pub fn end_unused(&mut self, target: &TargetName) -> bool {
        if !self.workers_of(target).is_empty() || **target == *HOME {
            return false;
        }
        let allocations = self.clusters.of_target(target);
        for allocation in &allocations {
            self.release(allocation);
        }
        if let Some(link) = self.links.remove(target) {
            self.ending.insert(target.clone(), Vec::new());
            self.endings.spawn(link.end());
            return true;
        }
        !allocations.is_empty()
    }

    /// Gives an allocation back that has no worker any more.
    pub fn release(&mut self, allocation: &TargetName) {
        for location in self.clusters.release(allocation) {
            // A link that is dropped ends its agent, and is told as gone.
            self.links.remove(&location);
        }
    }

    /// The workers that wait for an agent to end as it should, with their targets; `None` if it was not to end.
    pub fn ended(&mut self, location: &TargetName) -> Option<Vec<(WorkerId, TargetName)>> {
        let waiting = self.ending.remove(location)?;
        self.hellos.remove(location);
        let wanted = waiting.into_iter().filter_map(|worker| {
            let seat = self.workers.get(&worker)?;
            Some((worker, seat.target.clone()))
        });
        Some(wanted.collect())
    }

    /// Ends all agents and their workers, and removes all files. Allocations are given back, or left to the next kernel if it
    /// `restarts` and they may be kept.
    pub async fn shutdown(mut self, restarts: bool) {
        for (location, link) in self.links {
            // One that has not come yet cannot be told to end; its job is ended.
            let is_waiting = !self.hellos.contains_key(&location);
            if !is_waiting || self.clusters.allocation_of(&location).is_none() {
                self.endings.spawn(link.end());
            }
        }
        if timeout(END_LIMIT, self.endings.join_all()).await.is_err() {
            tracing::warn!("not all workers ended in time; they are killed");
        }
        if timeout(RELEASE_LIMIT, self.clusters.end(restarts))
            .await
            .is_err()
        {
            tracing::warn!("not all jobs could be cancelled; they end by their patience");
        }
        // The guard kills what is left; then the directories go.
        drop(self.guard);
        drop(self.run_dir);
        drop(self.segments);
    }
}
