//! What workers ask on the channel of `input()`, and wait for: the user's input, files of their cell, modules.

use std::collections::BTreeSet;

use cellferry_kernel::message::Message;
use cellferry_wire::protocol::{Channel, WorkerId};

use super::{Driver, files};
use crate::session::Event;

impl Driver {
    pub(super) async fn input_request(&mut self, worker: WorkerId, message: Message) {
        let parent = message.parse_parent().unwrap_or_default();
        let header = message.parse_header();
        match header.as_ref().map(|header| &*header.msg_type) {
            Ok("cellferry_files") => return self.stage(worker, message, parent.msg_id),
            Ok("cellferry_modules") => return self.send_modules(worker, message),
            _ => {}
        }
        match self.run_of(worker, &parent.msg_id) {
            Some(run) => {
                self.handle(Event::Asks(worker, run)).await;
                self.say(run, worker, Channel::Stdin, message);
            }
            None => tracing::warn!("worker {} asks for input outside a cell", worker.0),
        }
    }

    /// A worker waits for files of its cell, or for them to be brought home.
    fn stage(&mut self, worker: WorkerId, message: Message, cell: String) {
        let asked: files::Asked = match message.parse_content() {
            Ok(asked) => asked,
            Err(error) => {
                tracing::error!(
                    "worker {} asks for files in a way that cannot be read: {error}",
                    worker.0
                );
                return;
            }
        };
        let shared = self.cells.targets().and_then(|targets| targets.shared());
        let shared = shared.map_err(|error| error.to_string());
        let ends = self
            .agents
            .ends(worker, asked.folder.clone(), asked.home.clone());
        if let Some(ends) = ends {
            let events = self.agents.events();
            self.staging
                .bring((worker, message, cell), asked, ends, shared, events);
        }
    }

    /// A worker on a far host waits for modules.
    fn send_modules(&mut self, worker: WorkerId, message: Message) {
        if let (Some(remote), Some(folder)) =
            (self.agents.remote(worker), self.agents.modules(worker))
        {
            let files = self.modules.lacking(remote.target(), BTreeSet::new());
            let events = self.agents.events();
            self.staging
                .send_modules((worker, message), (remote, folder), files, events);
        }
    }
}
