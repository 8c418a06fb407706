//! What the kernel says to an island: each message goes to all its ranks or to one of them.

use std::time::Duration;

use cellferry_kernel::message::Message;
use cellferry_wire::protocol::{Channel, Parts, ToAgent};
use tokio::time::Instant;

use super::{Island, Outgoing};
use crate::island::nodes::Brought;
use crate::island::requests::{For, whom};
use crate::island::round::Round;
use crate::island::stages::Stages;
use crate::parts::{message, parts};

impl Island {
    pub(super) fn ask(&mut self, channel: Channel, parts: Parts) {
        let Some(request) = message(parts) else {
            tracing::warn!("a message to an island lacks parts and was dropped");
            return;
        };
        let Ok(header) = request.parse_header() else {
            tracing::warn!("a message to an island has no header and was dropped");
            return;
        };
        match whom(channel, &header, &request) {
            For::All { gathered } => {
                let runs = header.msg_type == "execute_request";
                if runs {
                    self.stages = Stages::default();
                }
                let count = self.ranks.len();
                self.rounds.push_back(Round::new(
                    request.header.clone(),
                    header.msg_id,
                    count,
                    runs,
                    gathered,
                ));
                for rank in 0..count {
                    self.tell(rank, channel, &request);
                }
            }
            For::Taking { transfer } => {
                if let Some(transfer) = transfer.filter(|_| !self.nodes.sees(0)) {
                    self.taking.insert(header.msg_id, transfer);
                }
                self.tell(0, channel, &request);
            }
            For::First => self.tell(0, channel, &request),
            For::Comm(comm) => {
                let rank = self.comms.get(&comm).copied().unwrap_or_default();
                self.tell(rank, channel, &request);
            }
            For::Asker => self.answer(&header, request),
        }
    }

    pub(super) fn tell(&mut self, rank: usize, channel: Channel, request: &Message) {
        let needs = self.nodes.bring_values(rank, &request.metadata);
        let request = self.nodes.spell(rank, request);
        self.send(rank, channel, request, needs);
    }

    pub(super) fn send(
        &mut self,
        rank: usize,
        channel: Channel,
        message: Message,
        needs: Vec<Brought>,
    ) {
        let command = ToAgent::Send {
            worker: self.worker,
            channel,
            parts: parts(message),
        };
        if let Some(rank) = self.ranks.get(rank) {
            let _ = rank.queue.send(Outgoing { needs, command });
        }
    }

    pub(super) fn interrupt(&mut self) {
        let now = Instant::now();
        for round in &mut self.rounds {
            round.interrupted(now);
        }
        let all: Vec<usize> = (0..self.ranks.len()).collect();
        self.interrupt_ranks(&all);
    }

    pub(super) fn interrupt_ranks(&self, ranks: &[usize]) {
        for rank in ranks.iter().filter_map(|rank| self.ranks.get(*rank)) {
            rank.sender.queue(ToAgent::Interrupt {
                worker: self.worker,
            });
        }
    }

    pub(super) fn stop(&self, grace: Duration) {
        for rank in &self.ranks {
            rank.sender.queue(ToAgent::StopWorker {
                worker: self.worker,
                grace,
            });
        }
    }
}
