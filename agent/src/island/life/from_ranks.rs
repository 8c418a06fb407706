//! What the ranks say: taken down in the round that it belongs to, or shown; when a round is over, the island answers.

use cellferry_kernel::message::{Header, Message};
use cellferry_wire::protocol::{Channel, FromAgent};
use serde_json::Value;
use tokio::time::Instant;

use super::Island;
use super::ending::Death;
use crate::island::gather::Gathering;
use crate::island::lines::Name;
use crate::island::round::{Due, Heard};
use crate::parts::message;

impl Island {
    pub(super) fn hear(&mut self, rank: usize, said: Option<(FromAgent, cellferry_wire::Held)>) {
        let (said, _held) = match said {
            Some(said) => said,
            None => {
                if self.deaths.iter().all(|death| death.rank != rank) {
                    self.deaths.push(Death {
                        rank,
                        exit: None,
                        last_words: String::new(),
                    });
                }
                return;
            }
        };
        match said {
            FromAgent::Received { channel, parts, .. } => {
                if let Some(message) = message(parts)
                    && let Ok(header) = message.parse_header()
                {
                    self.heard(rank, channel, &header, message);
                }
            }
            FromAgent::WorkerDown {
                exit, stderr_tail, ..
            } => self.deaths.push(Death {
                rank,
                exit: Some(exit),
                last_words: stderr_tail,
            }),
            FromAgent::Stored { transfer } => self.nodes.brought(rank, transfer, Ok(())),
            FromAgent::TransferFailed { transfer, reason } => {
                tracing::warn!("rank {rank}: {reason}");
                match self.fetched.remove(&transfer) {
                    Some(fetched) => self.not_fetched(fetched, &reason),
                    None => self.nodes.brought(rank, transfer, Err(reason)),
                }
            }
            FromAgent::Data { transfer, bytes } => self.fetched_more(transfer, &bytes),
            FromAgent::Sent { transfer, .. } => self.fetched_all(transfer),
            _ => {}
        }
    }

    fn heard(&mut self, rank: usize, channel: Channel, header: &Header, message: Message) {
        let parent = message.parse_parent().unwrap_or_default();
        if parent.session == self.author.session() {
            if channel == Channel::Shell {
                self.part_gathered(rank, &message);
            }
            return;
        }
        let now = Instant::now();
        let round = self
            .rounds
            .iter()
            .position(|round| round.id == parent.msg_id);
        let kind = header.msg_type.as_str();
        if channel == Channel::Stdin {
            self.asked(rank, kind, &header.msg_id, message);
            return;
        }
        let heard = match round.and_then(|index| self.rounds.get_mut(index)) {
            Some(round) => round.hear(rank, channel, kind, &message, now),
            None => Heard::Shown,
        };
        if heard == Heard::Shown {
            self.shows(rank, channel, kind, message, round.is_some(), now);
        }
        if let Some(index) = round {
            self.go_on(index, rank);
        }
    }

    /// Shows what one rank says, as the island's.
    fn shows(
        &mut self,
        rank: usize,
        channel: Channel,
        kind: &str,
        message: Message,
        in_round: bool,
        now: Instant,
    ) {
        match (channel, kind) {
            (Channel::Iopub, "stream") => self.printed(rank, message, now),
            (Channel::Iopub, "display_data") => {
                self.flush();
                if rank > 0 {
                    let text = format!("[{rank}]\n");
                    self.stream(Name::Stdout, &text, message.parent_header.clone());
                }
                self.say(channel, message);
            }
            (Channel::Iopub, "comm_open" | "comm_msg" | "comm_close" | "update_display_data") => {
                let content: Value = message.parse_content().unwrap_or_default();
                if let Some(comm) = content["comm_id"].as_str() {
                    if kind == "comm_close" {
                        self.comms.remove(comm);
                    } else {
                        self.comms.insert(comm.to_owned(), rank);
                    }
                }
                self.say(channel, message);
            }
            // What else the others say is told of by the first.
            _ if rank > 0 => {}
            (Channel::Shell, _) if !in_round => self.replied(message),
            _ => {
                if in_round && !matches!(kind, "status" | "execute_input") {
                    self.flush();
                }
                self.say(channel, message);
            }
        }
    }

    fn printed(&mut self, rank: usize, message: Message, now: Instant) {
        // The ranks write one and the same header each in its own way.
        let parent = message.parse_parent().unwrap_or_default().msg_id;
        if parent != self.printing.0 {
            self.flush();
            self.printing = (parent, message.parent_header.clone());
        }
        let content: Value = message.parse_content().unwrap_or_default();
        let name = match content["name"].as_str() {
            Some("stderr") => Name::Stderr,
            _ => Name::Stdout,
        };
        let text = content["text"].as_str().unwrap_or_default();
        self.lines.print(rank, name, text, now);
    }

    /// A rank has said something of a request that all were given.
    fn go_on(&mut self, index: usize, rank: usize) {
        let Some(round) = self.rounds.get(index) else {
            return;
        };
        if !round.is_open_on(rank) {
            // Nobody waits for an answer there any more.
            let asked = self.questions.front().map(|(_, id, _)| id.clone());
            self.questions.retain(|(asker, _, _)| *asker != rank);
            if self.questions.front().map(|(_, id, _)| id) != asked.as_ref() {
                self.ask_user();
            }
        }
        self.go_out();
        let Some(round) = self.rounds.get(index) else {
            return;
        };
        if !round.is_over() || self.gathering.is_some() {
            return;
        }
        if !round.has_failed() && !round.gathered.is_empty() {
            let gathering = Gathering::new(round.id.clone(), round.gathered.clone());
            self.gather(gathering);
            return;
        }
        self.conclude(index);
    }

    /// All ranks are done with a request: the island answers.
    pub(super) fn conclude(&mut self, index: usize) {
        self.flush();
        if self
            .rounds
            .get_mut(index)
            .is_some_and(|round| round.due(Instant::now()) == Some(Due::Show))
        {
            self.show_error(index);
        }
        if let Some(round) = self.rounds.remove(index) {
            for (channel, message) in round.outcome() {
                self.say(channel, message);
            }
        }
        self.nodes.forget();
    }
}
