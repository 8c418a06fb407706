//! What the passing of time brings: notices that count, jobs that end or do not, allocations that nothing uses.

use std::time::Duration;

use cellferry_wire::protocol::WorkerId;

use super::Driver;
use super::retire::retire;

/// How long after a worker's death its batch system would have told that its job ends: it is asked every five seconds.
const JOB_NEWS: Duration = Duration::from_secs(12);

/// How long a job that ends may take for it.
const JOB_END: Duration = Duration::from_secs(60);

impl Driver {
    /// Whether the passing of time matters.
    pub(super) fn has_time_limits(&self) -> bool {
        self.notices.any() || self.agents.has_allocations() || !self.short_of_gpus.is_empty()
    }

    /// A second has passed.
    pub(super) async fn tick(&mut self) {
        self.notice();
        if !self.short_of_gpus.is_empty() {
            self.make_room().await;
        }
        let by_itself = self.dying_jobs.iter().filter(|(worker, (since, ..))| {
            let limit = if self.agents.is_job_ending(**worker) {
                JOB_END
            } else {
                JOB_NEWS
            };
            since.elapsed() >= limit
        });
        let by_itself: Vec<WorkerId> = by_itself.map(|(worker, _)| *worker).collect();
        for worker in by_itself {
            if let Some((_, problem, how)) = self.dying_jobs.remove(&worker) {
                self.gone(worker, problem, how).await;
            }
        }
        let session = &self.session;
        for allocation in self
            .agents
            .idle_allocations(|worker| session.is_in_use(worker))
        {
            let workers = self.agents.workers_at(&allocation);
            if workers.is_empty() {
                self.agents.release(&allocation);
                continue;
            }
            let named = workers.iter().map(|worker| (*worker, allocation.clone()));
            self.idle.extend(named);
            if let Some(event) = retire(workers, false) {
                self.handle(event).await;
            }
        }
    }
}
