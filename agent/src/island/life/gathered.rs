//! Names that become lists by rank: asked of all ranks when their round is over, then given to all.

use bytes::Bytes;
use cellferry_kernel::message::Message;
use cellferry_wire::protocol::Channel;
use serde_json::Value;

use super::Island;
use crate::island::gather::{Gathering, Step};
use crate::island::round::Round;

impl Island {
    pub(super) fn gather(&mut self, mut gathering: Gathering) {
        for rank in 0..self.ranks.len() {
            let request = gathering.ask(rank, &self.author);
            self.send(rank, Channel::Shell, request, Vec::new());
        }
        self.gathering = Some(gathering);
    }

    pub(super) fn part_gathered(&mut self, rank: usize, message: &Message) {
        let count = self.ranks.len();
        let Some(gathering) = &mut self.gathering else {
            return;
        };
        let step = gathering.heard(rank, count, message);
        let id = gathering.round.clone();
        let index = self.rounds.iter().position(|round| round.id == id);
        match (step, index) {
            (Step::Wait, _) => {}
            (Step::Spread, _) => {
                for rank in 0..count {
                    let request = self
                        .gathering
                        .as_mut()
                        .map(|gathering| gathering.give(rank, &self.author));
                    if let Some(request) = request {
                        self.send(rank, Channel::Shell, request, Vec::new());
                    }
                }
            }
            (Step::Done(described), Some(index)) => {
                self.gathering = None;
                if let Some(report) = self.rounds.get_mut(index).and_then(Round::report_mut) {
                    let mut content: Value = report.parse_content().unwrap_or_default();
                    for (name, description) in described {
                        content["bound"][name] = description;
                    }
                    report.content = Bytes::from(content.to_string());
                }
                self.conclude(index);
            }
            (Step::Failed(rank, reason), Some(index)) => {
                self.gathering = None;
                if let Some(round) = self.rounds.get_mut(index) {
                    round.spoil(rank, "GatherError", &reason, &self.author);
                }
                self.conclude(index);
            }
            (_, None) => self.gathering = None,
        }
    }
}
