//! What workers reply: to a client's request, or to one of our own.

use std::collections::hash_map::Entry;

use cellferry_kernel::message::{Header, Message};
use cellferry_wire::protocol::WorkerId;
use serde::Deserialize;

use super::{Driver, history, values};
use crate::session::{Event, Gone, Reply};

#[derive(Deserialize)]
struct ReplyContent {
    status: String,
    #[serde(default)]
    ename: String,
    #[serde(default)]
    evalue: String,
}

impl Driver {
    pub(super) async fn reply(&mut self, worker: WorkerId, message: Message) {
        let Ok(header) = message.parse_header() else {
            return;
        };
        let parent = message.parse_parent().unwrap_or_default();
        if parent.session == self.author.session() {
            self.own_reply(worker, &header, &parent, message).await;
            return;
        }
        if let (Some(run), "execute_reply") = (
            self.run_of(worker, &parent.msg_id),
            header.msg_type.as_str(),
        ) {
            // Idle comes on another channel and may have come before it; then the cell may have been given to the worker
            // again, by the same request.
            if self.going_back.contains_key(&worker) {
                return;
            }
            let content = message.parse_content::<ReplyContent>();
            let (failed, exception) = match content {
                Ok(content) if content.status == "ok" => (false, None),
                Ok(content) => (true, Some((content.ename, content.evalue))),
                Err(_) => (true, None),
            };
            self.handle(Event::Replied(
                worker,
                run,
                Box::new(Reply {
                    message,
                    failed,
                    exception,
                }),
            ))
            .await;
            return;
        }
        if let Some(asked) = self.session.answered(worker, &parent.msg_id) {
            let message = match header.msg_type.as_str() {
                "history_reply" => history::with_session(&asked.message.content, message),
                _ => message,
            };
            self.send(&asked, message);
        }
    }

    /// A worker's reply to a request of our own.
    async fn own_reply(
        &mut self,
        worker: WorkerId,
        header: &Header,
        parent: &Header,
        message: Message,
    ) {
        match header.msg_type.as_str() {
            "cellferry_reply" => match values::undone(&message) {
                Some(Ok(())) => {
                    if let Entry::Occupied(mut left) = self.going_back.entry(worker) {
                        *left.get_mut() -= 1;
                        if *left.get() == 0 {
                            left.remove();
                        }
                    }
                }
                Some(Err(failure)) => {
                    // What it has now is nobody's.
                    let problem = self.agents.undo_problem(worker, &failure);
                    self.agents.stop(worker);
                    self.gone(worker, problem, Gone::Killed).await;
                }
                None => {
                    if let Some(machine) = self.agents.machine(worker)
                        && let Some((transfer, taken)) =
                            self.values.taken(&parent.msg_id, message, machine)
                    {
                        self.handle(Event::Taken(transfer, taken)).await;
                    }
                }
            },
            "execute_reply" => match message.parse_content::<ReplyContent>() {
                Ok(content) if content.status == "ok" => {
                    self.handle(Event::WorkerReady(worker)).await
                }
                Ok(ReplyContent { ename, evalue, .. }) => {
                    let problem = self
                        .agents
                        .helper_problem(worker, &format!("{ename}: {evalue}"));
                    self.agents.stop(worker);
                    self.gone(worker, problem, Gone::NotStarted).await;
                }
                Err(error) => tracing::error!(
                    "worker {} sent a reply that cannot be read: {error}",
                    worker.0
                ),
            },
            _ => {}
        }
    }
}
