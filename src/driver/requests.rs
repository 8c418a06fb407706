//! What clients ask: which of their requests the session must decide, which go to a worker, and which need neither.

use std::sync::Arc;

use cellferry_kernel::Incoming;
use cellferry_kernel::message::Message;
use cellferry_wire::protocol::Channel;
use serde::Deserialize;
use serde_json::json;

use super::comms::Comms;
use super::magics::Magic;
use super::questions::{self, Asker};
use super::{Driver, Ending};
use crate::analysis::python::completion_root;
use crate::session::{Asked, Event, PassTo, Problem};
use cellferry_agent::parts::parts;

impl Driver {
    pub(super) async fn incoming(&mut self, incoming: Incoming) {
        let Incoming { channel, message } = incoming;
        if channel == cellferry_kernel::Channel::Stdin {
            self.answered(message);
            return;
        }
        let header = match message.parse_header() {
            Ok(header) => header,
            Err(error) => {
                tracing::warn!("ignored a message whose header cannot be read: {error}");
                return;
            }
        };
        let asked = Arc::new(Asked {
            channel: if channel == cellferry_kernel::Channel::Control {
                Channel::Control
            } else {
                Channel::Shell
            },
            header,
            message,
        });
        match (asked.channel, asked.header.msg_type.as_str()) {
            (_, "kernel_info_request") => {
                let content = self.version.kernel_info().await;
                self.answer(&asked, "kernel_info_reply", &content);
                if !std::mem::replace(&mut self.warm, true) {
                    self.handle(Event::Warm).await;
                }
            }
            (_, "shutdown_request") => {
                let restart = serde_json::from_slice::<serde_json::Value>(&asked.message.content)
                    .ok()
                    .and_then(|content| content.get("restart")?.as_bool())
                    .unwrap_or(false);
                let message = asked.message.clone();
                self.ending = Some(Ending::Asked(
                    Box::new(Incoming { channel, message }),
                    restart,
                ));
            }
            (_, "interrupt_request") => {
                self.interrupt().await;
                self.answer(&asked, "interrupt_reply", &json!({"status": "ok"}));
            }
            (_, "comm_info_request") => {
                let content = self.comms.info(&asked.message.content);
                self.answer(&asked, "comm_info_reply", &content);
            }
            (Channel::Shell, "execute_request") => {
                if let Some(magic) = Magic::parse(&self.cells.code(&asked)) {
                    self.tell(&asked, magic).await;
                } else {
                    self.execute(&asked).await;
                }
            }
            (Channel::Shell, "comm_msg" | "comm_close") => {
                match self.comms.worker(&asked.message.content) {
                    Some(worker) => {
                        if asked.header.msg_type == "comm_close" {
                            self.comms.closed(&asked.message.content);
                        }
                        self.handle(Event::PassOn {
                            request: asked,
                            to: PassTo::Worker(worker),
                        })
                        .await;
                    }
                    None => {
                        self.status(&asked, "busy");
                        tracing::warn!("ignored a comm message for a comm that nobody has opened");
                        self.status(&asked, "idle");
                    }
                }
            }
            (Channel::Shell, "comm_open") if Comms::asks_for_widgets(&asked.message.content) => {
                let workers = self.comms.with_widgets();
                if workers.len() > 1 {
                    // One worker cannot answer for all; refused, the client asks each widget by itself.
                    let content: serde_json::Value =
                        serde_json::from_slice(&asked.message.content).unwrap_or_default();
                    let content = json!({"comm_id": content["comm_id"], "data": {}});
                    self.status(&asked, "busy");
                    self.publish(
                        self.author
                            .message("comm_close", Some(&asked.message), &content),
                    );
                    self.status(&asked, "idle");
                } else {
                    let to = workers
                        .first()
                        .copied()
                        .map_or(PassTo::Home, PassTo::Worker);
                    self.handle(Event::PassOn { request: asked, to }).await;
                }
            }
            (Channel::Shell, "complete_request" | "inspect_request") => {
                let to =
                    completed_name(&asked.message.content).map_or(PassTo::Home, PassTo::HolderOf);
                self.handle(Event::PassOn { request: asked, to }).await;
            }
            _ => {
                self.handle(Event::PassOn {
                    request: asked,
                    to: PassTo::Home,
                })
                .await
            }
        }
    }

    async fn execute(&mut self, asked: &Arc<Asked>) {
        // After an error the session expects nothing more.
        if self.cells.expects() && self.session.expects() {
            if let Some(request) = self.cells.read_expected(asked) {
                self.handle(Event::Expected(Box::new(request))).await;
                return;
            }
            self.handle(Event::Unexpected).await;
        }
        if self.cells.expects() {
            self.cells.forget_expected();
        }
        match self.cells.read(asked) {
            Ok(ask) => {
                self.handle(Event::Execute(Box::new(ask))).await;
                // An error that shows at once stops what comes after it.
                if self.session.is_done() {
                    return;
                }
                let expected = self.cells.expect(asked);
                if !expected.is_empty() {
                    self.handle(Event::Expect(expected)).await;
                }
            }
            Err(problem) => {
                let content = json!({
                    "status": "error", "ename": problem.ename, "evalue": problem.evalue, "traceback": [],
                    "execution_count": self.session.count(),
                });
                self.answer(asked, "execute_reply", &content);
            }
        }
    }

    /// A cell that the kernel answers itself, whatever runs.
    async fn tell(&mut self, asked: &Arc<Asked>, magic: Result<Magic, Problem>) {
        self.status(asked, "busy");
        let shown = match magic {
            Ok(Magic::Release(target)) => match self.release(asked, target.as_deref()) {
                Ok(()) => {
                    if let Some(event) = self.next_release() {
                        self.handle(event).await;
                    }
                    return;
                }
                Err(problem) => Err(problem),
            },
            Ok(magic) => Ok(magic.answer(&self.session, &self.cells.source())),
            Err(problem) => Err(problem),
        };
        self.told(asked, shown);
    }

    /// The user does not want to wait: neither for cells nor for a host that asks something.
    pub(super) async fn interrupt(&mut self) {
        self.questions.interrupted();
        self.handle(Event::Interrupt).await;
    }

    /// A client answers a question.
    fn answered(&mut self, message: Message) {
        let parent = message.parse_parent().unwrap_or_default();
        match self.questions.answered(&parent.msg_id) {
            Some(Asker::Worker(worker)) => {
                self.tell_worker(worker, Channel::Stdin, parts(message));
            }
            Some(Asker::Host(answer)) => {
                let _ = answer.send(questions::value(&message.content));
            }
            None => {}
        }
    }
}

/// The name whose completion or documentation a client asks for.
fn completed_name(content: &[u8]) -> Option<crate::name::Name> {
    #[derive(Deserialize)]
    struct Cursor {
        code: String,
        cursor_pos: Option<usize>,
    }
    let cursor: Cursor = serde_json::from_slice(content).ok()?;
    let end = cursor.cursor_pos.unwrap_or(usize::MAX);
    completion_root(&cursor.code, end.min(cursor.code.chars().count()))
}
