//! What a rank asks, of the user or of the kernel, and the answer: clients can show one question at a time, and files and
//! modules are brought once for all ranks.

use bytes::Bytes;
use cellferry_kernel::message::{Header, Message};
use cellferry_wire::protocol::Channel;
use serde_json::{Value, json};

use super::Island;
use crate::island::round::Round;
use crate::island::stages::Way;

impl Island {
    /// A rank asks something, of the user or of the kernel.
    pub(super) fn asked(&mut self, rank: usize, kind: &str, id: &str, mut question: Message) {
        let content: Value = question.parse_content().unwrap_or_default();
        let way = match (kind, content["way"].as_str()) {
            ("cellferry_modules", _) => Way::Modules,
            ("cellferry_files", Some("in")) => Way::In,
            ("cellferry_files", _) => {
                // What the step has made is brought home once, when all have ended.
                if rank == 0 {
                    self.stages.asks_out(question);
                    self.go_out();
                } else {
                    let answer =
                        self.author
                            .message("cellferry_answer", None, &json!({"status": "ok"}));
                    let answer = Message {
                        parent_header: question.header,
                        ..answer
                    };
                    self.send(rank, Channel::Stdin, answer, Vec::new());
                }
                return;
            }
            _ => {
                let prompt = content["prompt"].as_str().unwrap_or_default();
                let mut content = content.clone();
                content["prompt"] = json!(format!("[{rank}] {prompt}"));
                question.content = Bytes::from(content.to_string());
                self.questions.push_back((rank, id.to_owned(), question));
                if self.questions.len() == 1 {
                    self.ask_user();
                }
                return;
            }
        };
        if rank == 0 {
            self.stages.asked(id, Some(way));
            self.say(Channel::Stdin, question);
        } else if let Some(answer) = self.stages.answer(way) {
            self.pass_answer(rank, way, &question.header, &answer);
        } else {
            self.stages.waits(way, rank, question.header);
        }
    }

    /// Asks the user the first question that is open; the others wait, since clients can show only one.
    pub(super) fn ask_user(&mut self) {
        if let Some((_, _, question)) = self.questions.front().cloned() {
            self.flush();
            self.say(Channel::Stdin, question);
        }
    }

    /// Rank 0 waits with what it has made until the others have ended: they may make some of it.
    pub(super) fn go_out(&mut self) {
        let over = self.rounds.front().is_none_or(Round::others_are_over);
        if over && let Some(question) = self.stages.take_out() {
            if let Ok(header) = question.parse_header() {
                self.stages.asked(&header.msg_id, None);
            }
            self.say(Channel::Stdin, question);
        }
    }

    /// An answer to a rank's question: of the user's, or about files.
    pub(super) fn answer(&mut self, header: &Header, answer: Message) {
        let parent = answer.parse_parent().unwrap_or_default();
        if header.msg_type == "cellferry_answer" {
            if let Some(way) = self.stages.answered(&parent.msg_id, &answer) {
                self.tell(0, Channel::Stdin, &answer);
                let waiting = way.map(|way| (way, self.stages.take_waiting(way)));
                for (way, (rank, question)) in waiting
                    .into_iter()
                    .flat_map(|(way, all)| all.into_iter().map(move |one| (way, one)))
                {
                    self.pass_answer(rank, way, &question, &answer);
                }
            }
            return;
        }
        if let Some((rank, _, _)) = self.questions.pop_front() {
            self.tell(rank, Channel::Stdin, &answer);
        }
        self.ask_user();
    }

    /// Another rank hears what rank 0 was answered; what it was is on its machine then, too.
    fn pass_answer(&mut self, rank: usize, way: Way, question: &Bytes, answer: &Message) {
        let needs = match way {
            Way::Modules => self.nodes.bring_files(rank, "modules"),
            Way::In => Vec::new(),
        };
        let answer = Message {
            parent_header: question.clone(),
            ..answer.clone()
        };
        self.send(rank, Channel::Stdin, answer, needs);
    }
}
