//! What clients are told by the kernel itself. What workers say to them goes by `output` and `replies`.

use cellferry_kernel::message::Message;
use cellferry_wire::protocol::Channel;
use serde_json::json;

use super::Driver;
use crate::session::{Answer, Asked, Problem};

impl Driver {
    pub(super) fn publish(&self, message: Message) {
        self.outbox.publish(message);
    }

    pub(super) fn status(&self, asked: &Asked, state: &str) {
        self.publish(self.author.message(
            "status",
            Some(&asked.message),
            &json!({"execution_state": state}),
        ));
    }

    /// Sends a message as the answer to `asked`, on its channel.
    pub(super) fn send(&self, asked: &Asked, mut message: Message) {
        message.identities = asked.message.identities.clone();
        let channel = match asked.channel {
            Channel::Control => cellferry_kernel::Channel::Control,
            _ => cellferry_kernel::Channel::Shell,
        };
        self.outbox.send(channel, message);
    }

    /// Answers a request that needs no worker, with busy and idle around it.
    pub(super) fn answer(&self, asked: &Asked, msg_type: &str, content: &serde_json::Value) {
        self.status(asked, "busy");
        self.send(
            asked,
            self.author.message(msg_type, Some(&asked.message), content),
        );
        self.status(asked, "idle");
    }

    pub(super) fn answer_ourselves(&mut self, asked: &Asked, answer: &Answer) {
        let reply = asked.header.msg_type.replace("_request", "_reply");
        match answer {
            Answer::Failed(problem, count) => {
                let mut content = error_content(problem);
                content["status"] = json!("error");
                content["execution_count"] = json!(count);
                content["user_expressions"] = json!({});
                content["payload"] = json!([]);
                self.send(
                    asked,
                    self.author.message(&reply, Some(&asked.message), &content),
                );
            }
            Answer::Aborted => {
                self.send(
                    asked,
                    self.author.message(
                        &reply,
                        Some(&asked.message),
                        &json!({"status": "aborted"}),
                    ),
                );
            }
            Answer::Unanswered(why) if asked.header.msg_type.ends_with("_request") => {
                let content = json!({"status": "error", "ename": "WorkerGone", "evalue": why, "traceback": []});
                self.send(
                    asked,
                    self.author.message(&reply, Some(&asked.message), &content),
                );
            }
            Answer::Unanswered(_) => {}
        }
    }

    /// What such a cell shows, and its end.
    pub(super) fn told(
        &self,
        asked: &Asked,
        shown: Result<Option<(&str, serde_json::Value)>, Problem>,
    ) {
        let count = self.session.count();
        let content = match shown {
            Ok(shown) => {
                if let Some((msg_type, shown)) = shown {
                    self.publish(self.author.message(msg_type, Some(&asked.message), &shown));
                }
                json!({"status": "ok", "execution_count": count, "user_expressions": {}, "payload": []})
            }
            Err(problem) => {
                let mut content = error_content(&problem);
                self.publish(self.author.message("error", Some(&asked.message), &content));
                content["status"] = json!("error");
                content["execution_count"] = json!(count);
                content
            }
        };
        self.send(
            asked,
            self.author
                .message("execute_reply", Some(&asked.message), &content),
        );
        self.status(asked, "idle");
    }
}

pub(super) fn error_content(problem: &Problem) -> serde_json::Value {
    let line = if problem.evalue.is_empty() {
        format!("\u{1b}[31m{}\u{1b}[39m", problem.ename)
    } else {
        format!("\u{1b}[31m{}\u{1b}[39m: {}", problem.ename, problem.evalue)
    };
    json!({"ename": problem.ename, "evalue": problem.evalue, "traceback": [line]})
}
