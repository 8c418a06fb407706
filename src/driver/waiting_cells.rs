//! What is shown under cells that wait for a host or a job: how it stands there, and what only the user can answer.

use std::sync::Arc;

use serde::Deserialize;
use serde_json::json;
use tokio::time::Instant;

use super::Driver;
use super::cluster::JobNews;
use super::notices::Wait;
use super::questions::Asker;
use crate::session::{Asked, TargetName};

impl Driver {
    /// Asks the user what hosts want to know, each under a cell that waits for that host.
    pub(super) fn ask(&mut self) {
        let mut later = Vec::new();
        for waiting in std::mem::take(&mut self.questions.waiting) {
            let Some(asked) = self.waiting_at(&waiting.target).into_iter().next() else {
                later.push(waiting);
                continue;
            };
            if !allows_stdin(&asked.message.content) {
                tracing::info!(
                    "`{}` asks a question, and this client cannot answer",
                    waiting.target
                );
                continue;
            }
            let content =
                json!({"prompt": waiting.question.text, "password": !waiting.question.echo});
            let mut message = self
                .author
                .message("input_request", Some(&asked.message), &content);
            message.identities = asked.message.identities.clone();
            if let Ok(header) = message.parse_header() {
                self.questions
                    .asked(header.msg_id, Asker::Host(waiting.answer));
            }
            self.outbox.send(cellferry_kernel::Channel::Stdin, message);
        }
        self.questions.waiting.extend(later);
    }

    /// The cells that wait for something at a location, or on a node of an allocation.
    pub(super) fn waiting_at(&self, place: &TargetName) -> Vec<Arc<Asked>> {
        self.session
            .asked_at(|worker| self.agents.is_at(worker, place))
    }

    /// What becomes of an allocation.
    pub(super) fn job(&mut self, allocation: &TargetName, news: JobNews) {
        self.agents.heard_of_job(allocation, &news);
        match news {
            JobNews::Submitted(_) | JobNews::Closing => {}
            JobNews::Waits(text) => {
                self.notices
                    .waits(allocation, Wait::Job(text), Instant::now());
                self.notice();
            }
            JobNews::Runs(text, _) if self.agents.has_come(allocation) => {
                self.settled(allocation, &text);
            }
            // What the target's `setup` does there may take its time.
            JobNews::Runs(text, _) => {
                let text = format!("{text}; no word from there yet");
                self.notices
                    .waits(allocation, Wait::Job(text), Instant::now());
                self.notice();
            }
            JobNews::Ended => self.over(allocation),
        }
    }

    /// Cells need not wait for an allocation any more: the notices stay, with what has come of it.
    pub(super) fn settled(&mut self, allocation: &TargetName, text: &str) {
        let notices = self.notices.settled(allocation, text, &self.author);
        notices.into_iter().for_each(|notice| self.publish(notice));
    }

    /// Shows how long cells have been waiting for hosts.
    pub(super) fn notice(&mut self) {
        for target in self.notices.targets() {
            let cells = self.waiting_at(&target);
            let notices = self.notices.show(&target, &cells, &self.author);
            notices.into_iter().for_each(|notice| self.publish(notice));
        }
    }

    /// Cells need not wait for a host any more: the notices go.
    pub(super) fn over(&mut self, target: &TargetName) {
        let notices = self.notices.over(target, &self.author);
        notices.into_iter().for_each(|notice| self.publish(notice));
    }

    /// A cell ends: the notices under it go.
    pub(super) fn ends(&mut self, asked: &Asked) {
        let notices = self.notices.ends(asked, &self.author);
        notices.into_iter().for_each(|notice| self.publish(notice));
    }
}

/// Whether the client that sent the request can be asked something.
fn allows_stdin(content: &[u8]) -> bool {
    #[derive(Deserialize)]
    struct Content {
        #[serde(default)]
        allow_stdin: bool,
    }
    serde_json::from_slice::<Content>(content).is_ok_and(|content| content.allow_stdin)
}
