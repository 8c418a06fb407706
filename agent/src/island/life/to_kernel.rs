//! What an island says as one worker: the lines of its ranks, a round's error, and what it does about ranks that do not end.

use std::collections::BTreeSet;

use bytes::Bytes;
use cellferry_kernel::message::Message;
use cellferry_wire::protocol::{Channel, FromAgent};
use serde_json::json;

use super::Island;
use crate::island::lines::{Name, shown};
use crate::island::round::{GRACE, Round};
use crate::parts::parts;

impl Island {
    pub(super) fn flush(&mut self) {
        let shown = self.lines.flush();
        self.print(shown);
    }

    pub(super) fn print(&mut self, shown: Vec<(Name, String)>) {
        for (name, text) in shown {
            self.stream(name, &text, self.printing.1.clone());
        }
    }

    pub(super) fn stream(&mut self, name: Name, text: &str, parent_header: Bytes) {
        let name = match name {
            Name::Stdout => "stdout",
            Name::Stderr => "stderr",
        };
        let message = Message {
            parent_header,
            ..self
                .author
                .message("stream", None, &json!({"name": name, "text": text}))
        };
        self.say(Channel::Iopub, message);
    }

    pub(super) fn say(&self, channel: Channel, message: Message) {
        self.outlet.tell(FromAgent::Received {
            worker: self.worker,
            channel,
            parts: parts(message),
        });
    }

    pub(super) fn show_error(&mut self, index: usize) {
        self.flush();
        if let Some(error) = self.rounds.get(index).and_then(Round::error) {
            self.say(Channel::Iopub, error);
        }
    }

    pub(super) fn say_stuck(&mut self, ranks: &BTreeSet<usize>, request: Bytes) {
        let (shown, seconds) = (shown(ranks), GRACE.as_secs());
        let verb = if ranks.len() == 1 {
            "one rank has"
        } else {
            "some ranks have"
        };
        let text = format!(
            "Cellferry: {verb} not ended within {seconds} s after the interrupt: {shown}; what waits for other ranks inside of MPI \
             cannot be interrupted: interrupt again to end all ranks, and with them their state\n"
        );
        self.flush();
        self.stream(Name::Stderr, &text, request);
    }

    pub(super) fn say_given_up(&mut self, ranks: &BTreeSet<usize>, request: Bytes) {
        let (shown, seconds) = (shown(ranks), GRACE.as_secs());
        let noun = if ranks.len() == 1 { "rank" } else { "ranks" };
        let text = format!(
            "Cellferry: {noun} {shown} did not end within {seconds} s and could not be interrupted, so all ranks were ended; \
             the next cell starts new ones, without their state\n"
        );
        self.flush();
        self.stream(Name::Stderr, &text, request);
    }
}
