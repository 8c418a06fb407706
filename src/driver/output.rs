//! What workers publish: shown under the cell that it belongs to, held back until the cell has its turn, or dropped.

use bytes::Bytes;
use cellferry_kernel::message::Message;
use cellferry_wire::protocol::{Channel, WorkerId};
use serde::Deserialize;

use super::Driver;
use super::questions::Asker;
use crate::session::{Asked, Event, RunId};

impl Driver {
    /// Output of a worker: shown as it is, except what concerns only us.
    pub(super) async fn output(&mut self, worker: WorkerId, mut message: Message) {
        let Ok(header) = message.parse_header() else {
            return;
        };
        let parent = message.parse_parent().unwrap_or_default();
        let ours = parent.session == self.author.session();
        let run = self.run_of(worker, &parent.msg_id);
        match (header.msg_type.as_str(), run) {
            ("status", Some(run)) => {
                #[derive(Deserialize)]
                struct Status<'a> {
                    #[serde(borrow)]
                    execution_state: &'a str,
                }
                match message
                    .parse_content::<Status<'_>>()
                    .map(|status| status.execution_state)
                {
                    Ok("busy") => self.handle(Event::Busy(worker, run)).await,
                    Ok("idle") => {
                        // It may have been interrupted while it waited for files.
                        self.staging.end(worker);
                        self.handle(Event::Idle(worker, run)).await
                    }
                    _ => {}
                }
                return;
            }
            ("cellferry_report", run) => {
                match (message.parse_content(), run) {
                    (Ok(report), Some(run)) => {
                        self.handle(Event::Report(worker, run, Box::new(report)))
                            .await
                    }
                    (Err(error), _) => tracing::error!(
                        "worker {} sent a report that cannot be read: {error}",
                        worker.0
                    ),
                    (_, None) => {}
                }
                return;
            }
            ("iopub_welcome" | "shutdown_reply", _) => return,
            ("status" | "execute_input", None) if ours || parent.msg_id.is_empty() => return,
            ("execute_input", Some(run)) => self.handle(Event::Began(worker, run)).await,
            _ => {}
        }
        if ours {
            // Output of a thread that a cell left behind, attributed to our own request.
            if let Some(shown) = self.shown.get(&worker) {
                message.parent_header = shown.clone();
            }
        }
        message.identities = vec![Bytes::from(header.msg_type)];
        match run {
            Some(run) => self.say(run, worker, Channel::Iopub, message),
            None => self.show(worker, message),
        }
    }

    /// The run, not yet closed or discarded, that the worker speaks of.
    pub(super) fn run_of(&self, worker: WorkerId, msg_id: &str) -> Option<RunId> {
        let run = *self.running.get(&(worker, msg_id.to_owned()))?;
        let known = self.discarded.contains(&run) || self.session.request(run).is_some();
        known.then_some(run)
    }

    /// Something that a run says: shown now, later, or never.
    pub(super) fn say(&mut self, run: RunId, worker: WorkerId, channel: Channel, message: Message) {
        if self.discarded.contains(&run) {
            return;
        }
        if let Some(held) = self.held.get_mut(&run) {
            held.push((worker, channel, message));
        } else if let Some(asked) = self.session.request(run).cloned() {
            if self.session.may_run_again(run) {
                self.again.keep(&asked.header.msg_id);
            }
            self.tell_client(&asked, worker, channel, message);
        }
    }

    pub(super) fn tell_client(
        &mut self,
        asked: &Asked,
        worker: WorkerId,
        channel: Channel,
        mut message: Message,
    ) {
        // The worker may know the cell by a request of our own.
        message.parent_header = asked.message.header.clone();
        if channel == Channel::Stdin {
            message.identities = asked.message.identities.clone();
            if let Ok(header) = message.parse_header() {
                self.questions.asked(header.msg_id, Asker::Worker(worker));
            }
            self.outbox.send(cellferry_kernel::Channel::Stdin, message);
        } else {
            for message in self.again.show(&asked.header.msg_id, message, &self.author) {
                self.show(worker, message);
            }
        }
    }

    /// Passes a worker's output on.
    fn show(&mut self, worker: WorkerId, message: Message) {
        match message.identities.first().map(Bytes::as_ref) {
            Some(b"comm_open") => self.comms.opened(&message.content, worker),
            Some(b"comm_close") => self.comms.closed(&message.content),
            _ => {}
        }
        self.publish(message);
    }
}
