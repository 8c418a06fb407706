//! What is known of the allocations that workers are on: their jobs, what uses them, whether they end.

use std::collections::HashSet;
use std::time::Duration;

use cellferry_wire::protocol::{Exit, WorkerId};

use super::super::cluster::JobNews;
use super::Agents;
use crate::session::TargetName;

impl Agents {
    /// The allocation that a location is a node of.
    pub fn allocation_of(&self, location: &TargetName) -> Option<TargetName> {
        self.clusters.allocation_of(location).cloned()
    }

    /// Whether the agent of a node of an allocation has come.
    pub fn has_come(&self, allocation: &TargetName) -> bool {
        let mut come = self.hellos.keys();
        come.any(|location| self.clusters.allocation_of(location) == Some(allocation))
    }

    /// The allocations that steps have not used for as long as their targets allow. `is_used` says whether a worker is.
    pub fn idle_allocations(&mut self, is_used: impl Fn(WorkerId) -> bool) -> Vec<TargetName> {
        let used: HashSet<&TargetName> = self
            .workers
            .iter()
            .filter(|(worker, _)| is_used(**worker))
            .map(|(_, seat)| &seat.location)
            .collect();
        self.clusters.idle(|location| used.contains(location))
    }

    /// What is heard of the job of an allocation.
    pub fn heard_of_job(&mut self, allocation: &TargetName, news: &JobNews) {
        self.clusters.heard(allocation, news);
    }

    /// What the job of an allocation is called.
    pub fn job(&self, allocation: &TargetName) -> Option<&str> {
        self.clusters.job(allocation)
    }

    /// If the worker is on a node of a job that has less time left than that: the job, and how much it has.
    pub fn ends_before(&self, worker: WorkerId, time: Duration) -> Option<(String, Duration)> {
        let allocation = self.allocation_of(self.location(worker)?)?;
        self.clusters.ends_before(&allocation, time)
    }

    /// Whether there are allocations.
    pub fn has_allocations(&self) -> bool {
        self.clusters.any()
    }

    /// Whether a worker on a node of a job died as the end of the job would have it; what becomes of the job is asked then.
    pub fn may_end_with_job(&mut self, worker: WorkerId, exit: &Exit) -> bool {
        /// What batch systems end processes with.
        const SIGNALS: [i32; 2] = [9, 15];
        let Some(seat) = self.workers.get(&worker) else {
            return false;
        };
        let Some(allocation) = self.clusters.allocation_of(&seat.location).cloned() else {
            return false;
        };
        let by_signal = exit.signal.is_some_and(|signal| SIGNALS.contains(&signal));
        // What starts ranks has exit codes of its own.
        let may = (by_signal || seat.island) && exit.out_of_memory != Some(true);
        if may {
            self.clusters.hurry(&allocation);
        }
        may
    }

    /// Whether the job of a worker's node is known to end, or the node is out of reach, as it would be then.
    pub fn is_job_ending(&self, worker: WorkerId) -> bool {
        let Some(location) = self.location(worker) else {
            return true;
        };
        let allocation = self.clusters.allocation_of(location);
        self.down.contains(location)
            || allocation.is_none_or(|allocation| self.clusters.is_ending(allocation))
    }
}
