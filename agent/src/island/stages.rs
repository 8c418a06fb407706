//! Files and modules that the ranks of a cell wait for: rank 0 asks the kernel, and its answer is that of all.

use std::collections::HashMap;

use bytes::Bytes;
use cellferry_kernel::message::Message;

/// What is waited for before the cell runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Way {
    /// The notebook's own modules.
    Modules,
    /// Files that the step reads.
    In,
}

/// The questions of one cell.
#[derive(Debug, Default)]
pub struct Stages {
    /// What rank 0 has asked, by the question's `msg_id`; `None` for what brings files home.
    asked: HashMap<String, Option<Way>>,
    answers: HashMap<Way, Message>,
    /// The other ranks that have asked before there was an answer, with their questions' headers.
    waiting: Vec<(Way, usize, Bytes)>,
    /// Rank 0's question for files to be brought home, until the others have ended.
    out: Option<Message>,
}

impl Stages {
    /// Rank 0 has asked the kernel.
    pub fn asked(&mut self, id: &str, way: Option<Way>) {
        self.asked.insert(id.to_owned(), way);
    }

    /// The kernel answers; what the answer is about, if others may have asked for it, too.
    pub fn answered(&mut self, id: &str, answer: &Message) -> Option<Answered> {
        let way = self.asked.remove(id)?;
        if let Some(way) = way {
            self.answers.insert(way, answer.clone());
        }
        Some(way)
    }

    /// What rank 0 was answered.
    pub fn answer(&self, way: Way) -> Option<Message> {
        self.answers.get(&way).cloned()
    }

    /// Another rank waits for that.
    pub fn waits(&mut self, way: Way, rank: usize, question: Bytes) {
        self.waiting.push((way, rank, question));
    }

    /// Those who do.
    pub fn take_waiting(&mut self, way: Way) -> Vec<(usize, Bytes)> {
        let (now, later) = std::mem::take(&mut self.waiting)
            .into_iter()
            .partition(|(other, ..)| *other == way);
        self.waiting = later;
        let now: Vec<(Way, usize, Bytes)> = now;
        now.into_iter()
            .map(|(_, rank, question)| (rank, question))
            .collect()
    }

    /// Rank 0 wants to bring files home.
    pub fn asks_out(&mut self, question: Message) {
        self.out = Some(question);
    }

    /// It can.
    pub fn take_out(&mut self) -> Option<Message> {
        self.out.take()
    }
}

/// What an answer is about: `None` if only rank 0 has asked.
pub type Answered = Option<Way>;
