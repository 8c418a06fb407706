//! Names that become lists by rank after a cell: each rank gives its own values, and gets those of all.

use std::collections::BTreeMap;

use bytes::Bytes;
use cellferry_kernel::Author;
use cellferry_kernel::message::Message;
use serde::Deserialize;
use serde_json::{Map, Value, json};

/// The gathering of the names of one cell.
#[derive(Debug)]
pub struct Gathering {
    /// The cell's request.
    pub round: String,
    names: Vec<String>,
    /// What each rank has given.
    given: BTreeMap<usize, Vec<Bytes>>,
    /// How rank 0 describes the lists.
    described: Map<String, Value>,
    /// How many ranks have the lists.
    have: usize,
}

/// What comes next.
#[derive(Debug)]
pub enum Step {
    /// Others have not answered.
    Wait,
    /// All have given: each gets all.
    Spread,
    /// All have the lists; how rank 0 describes them.
    Done(Map<String, Value>),
    /// A rank cannot give, and why.
    Failed(usize, String),
}

#[derive(Deserialize)]
struct Reply {
    status: String,
    verb: String,
    #[serde(default)]
    message: String,
    #[serde(default)]
    names: Map<String, Value>,
}

impl Gathering {
    /// Of these names, after that cell.
    pub fn new(round: String, names: Vec<String>) -> Self {
        Self {
            round,
            names,
            given: BTreeMap::new(),
            described: Map::new(),
            have: 0,
        }
    }

    /// What a rank is asked first.
    pub fn ask(&mut self, _rank: usize, author: &Author) -> Message {
        let content = json!({"verb": "part", "names": self.names});
        author.message("cellferry_request", None, &content)
    }

    /// What a rank is told then: all parts, and which is its own.
    pub fn give(&mut self, rank: usize, author: &Author) -> Message {
        let counts: Vec<usize> = self.given.values().map(Vec::len).collect();
        let content = json!({"verb": "whole", "names": self.names, "counts": counts, "rank": rank});
        let mut message = author.message("cellferry_request", None, &content);
        message.buffers = self.given.values().flatten().cloned().collect();
        message
    }

    /// A rank answers.
    pub fn heard(&mut self, rank: usize, count: usize, message: &Message) -> Step {
        let reply: Reply = match message.parse_content() {
            Ok(reply) => reply,
            Err(error) => return Step::Failed(rank, format!("unreadable answer: {error}")),
        };
        if reply.status != "ok" {
            return Step::Failed(rank, reply.message);
        }
        if reply.verb == "part" {
            self.given.insert(rank, message.buffers.clone());
            return if self.given.len() == count {
                Step::Spread
            } else {
                Step::Wait
            };
        }
        if rank == 0 {
            self.described = reply.names;
        }
        self.have += 1;
        if self.have == count {
            Step::Done(std::mem::take(&mut self.described))
        } else {
            Step::Wait
        }
    }
}
