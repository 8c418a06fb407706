//! Requests that a worker answers as they are: completion, comm messages, history.

use std::sync::Arc;

use cellferry_wire::protocol::WorkerId;

use super::event::{Answer, Asked, Effect, PassTo};
use super::run::RunId;
use super::{HOME, Queued, Session};

impl Session {
    pub(super) fn worker_ready(&mut self, id: WorkerId) {
        let Some(worker) = self.workers.get_mut(&id) else {
            return;
        };
        worker.ready = true;
        for request in std::mem::take(&mut worker.waiting) {
            self.send(id, request);
        }
    }

    pub(super) fn home_worker(&mut self) -> WorkerId {
        let found = self
            .workers
            .iter()
            .find(|(_, worker)| &*worker.target == HOME)
            .map(|(id, _)| *id);
        found.unwrap_or_else(|| self.start_worker(Arc::from(HOME), None))
    }

    pub(super) fn pass_on(&mut self, request: Arc<Asked>, to: &PassTo) {
        let worker = match to {
            PassTo::Home => self.home_worker(),
            PassTo::HolderOf(name) => {
                let view = self.ledger.committed();
                let holders: Vec<WorkerId> = self.ledger.holders(view, name.as_str()).collect();
                let at_home = |id: &WorkerId| {
                    self.workers
                        .get(id)
                        .is_some_and(|worker| &*worker.target == HOME)
                };
                let elsewhere = holders
                    .iter()
                    .find(|id| self.workers.contains_key(id) && !self.is_occupied(**id))
                    .copied();
                if holders.iter().any(at_home) {
                    self.home_worker()
                } else {
                    elsewhere.unwrap_or_else(|| self.home_worker())
                }
            }
            PassTo::Worker(id) => {
                let asked = |run: &RunId| self.runs.get(run).is_some_and(|run| run.asked);
                let after = self.queue.iter().rposition(|queued| match queued {
                    Queued::Run(run) => asked(run),
                    Queued::PassOn(..) => true,
                });
                // What runs does not hold it up: its worker sees it next, as a kernel would.
                if let Some(last) = after.filter(|last| *last > 0) {
                    self.queue.insert(last + 1, Queued::PassOn(*id, request));
                    return;
                }
                *id
            }
        };
        self.send_or_refuse(worker, request);
    }

    pub(super) fn send_or_refuse(&mut self, worker: WorkerId, request: Arc<Asked>) {
        if self.workers.contains_key(&worker) {
            self.send(worker, request);
        } else {
            self.unanswered(request, "its worker is gone");
        }
    }

    pub(super) fn unanswered(&mut self, request: Arc<Asked>, why: &str) {
        self.effects.push(Effect::Status(request.clone(), "busy"));
        self.effects.push(Effect::Answer(
            request.clone(),
            Answer::Unanswered(why.to_owned()),
        ));
        self.effects.push(Effect::Status(request, "idle"));
    }

    pub(super) fn send(&mut self, id: WorkerId, request: Arc<Asked>) {
        let Some(worker) = self.workers.get_mut(&id) else {
            return;
        };
        if !worker.ready {
            worker.waiting.push(request);
            return;
        }
        let header = request.header.clone();
        if header.msg_type == "history_request"
            && &*worker.target == HOME
            && !self.inputs.is_empty()
        {
            self.effects
                .push(Effect::History(id, std::mem::take(&mut self.inputs)));
        }
        if header.msg_type.ends_with("_request") {
            worker.open.insert(header.msg_id, request.clone());
        }
        self.effects.push(Effect::PassOn(id, request));
    }
}
