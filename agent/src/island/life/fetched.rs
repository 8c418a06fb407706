//! Values that rank 0 has written where this agent does not see them: brought here before its answer goes on.

use bytes::Bytes;
use cellferry_kernel::message::Message;
use cellferry_wire::protocol::{Channel, ToAgent};
use serde_json::{Value, json};

use super::Island;
use crate::growing::Growing;

/// A value that rank 0 has written where this agent does not see it.
pub(super) struct Fetched {
    growing: Option<Growing>,
    answer: Message,
}

impl Island {
    /// Rank 0 answers a request of its own.
    pub(super) fn replied(&mut self, answer: Message) {
        let id = answer.parse_parent().unwrap_or_default().msg_id;
        let content: Value = answer.parse_content().unwrap_or_default();
        match self.taking.remove(&id) {
            Some(transfer) if content["place"] == "segment" => {
                let layout: Vec<(u64, u64)> =
                    serde_json::from_value(content["layout"].clone()).unwrap_or_default();
                let size = layout.iter().map(|(start, length)| start + length).max();
                match Growing::segment(self.nodes.value(transfer), size.unwrap_or_default()) {
                    Ok(growing) => {
                        let growing = Some(growing);
                        self.fetched.insert(transfer, Fetched { growing, answer });
                        if let Some(first) = self.ranks.first() {
                            first.sender.queue(ToAgent::Fetch { transfer });
                        }
                    }
                    Err(reason) => {
                        let growing = None;
                        self.not_fetched(Fetched { growing, answer }, &reason);
                    }
                }
            }
            _ => self.say(Channel::Shell, answer),
        }
    }

    pub(super) fn fetched_more(&mut self, transfer: u64, bytes: &Bytes) {
        if let Some(fetched) = self.fetched.get_mut(&transfer)
            && let Some(growing) = &mut fetched.growing
            && let Err(reason) = growing.write(bytes)
            && let Some(fetched) = self.fetched.remove(&transfer)
        {
            self.not_fetched(fetched, &reason);
        }
    }

    pub(super) fn fetched_all(&mut self, transfer: u64) {
        let Some(mut fetched) = self.fetched.remove(&transfer) else {
            return;
        };
        match fetched.growing.take().map(Growing::finish) {
            Some(Err(reason)) => self.not_fetched(fetched, &reason),
            _ => self.say(Channel::Shell, fetched.answer),
        }
        if let Some(first) = self.ranks.first() {
            let transfers = vec![transfer];
            first.sender.queue(ToAgent::Forget { transfers });
        }
    }

    pub(super) fn not_fetched(&mut self, fetched: Fetched, reason: &str) {
        let content = json!({"status": "error", "verb": "take", "message": reason});
        let answer = Message {
            content: Bytes::from(content.to_string()),
            ..fetched.answer
        };
        self.say(Channel::Shell, answer);
    }
}
