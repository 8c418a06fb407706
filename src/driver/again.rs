//! The output of a cell whose worker died and that runs again: what has been shown is not shown again, and the cell
//! ends with the output of one run.
//!
//! What a step shows is kept. When it runs again, what is equal to that is swallowed; at the first difference the
//! output is cleared and all that the new run has said is shown. Standard output and standard error are compared each
//! by itself, since which of the two comes first depends on chance; all else must come at the same place.

use std::collections::{BTreeMap, HashMap, VecDeque};

use bytes::Bytes;
use cellferry_kernel::Author;
use cellferry_kernel::message::Message;
use serde::Deserialize;
use serde_json::json;

/// No more than this is kept of a cell, in bytes; beyond that its output is cleared when it runs again.
const MOST: usize = 1 << 20;

/// The outputs of cells that may run again, by the `msg_id` of their request.
#[derive(Debug, Default)]
pub struct Again {
    cells: HashMap<String, Shown>,
}

/// What a cell shows now.
#[derive(Debug, Default)]
struct Shown {
    messages: Vec<Message>,
    bytes: usize,
    /// There was too much of it to be kept.
    too_much: bool,
    /// Notes of ours, which stay.
    notes: Vec<Message>,
    /// Set while what is shown may not yet be what the run that is under way has said.
    check: Option<Check>,
}

/// What is shown and has yet to be said by the run that is under way.
#[derive(Debug, Default)]
struct Check {
    left: VecDeque<Section>,
    /// All that it has said.
    said: Vec<Message>,
}

/// The text of each stream, in any order, and then something else.
#[derive(Debug, Default)]
struct Section {
    texts: BTreeMap<String, String>,
    other: Option<Message>,
}

#[derive(Deserialize)]
struct Stream {
    name: String,
    text: String,
}

/// How an output stands to what is shown.
enum Known {
    /// All of it is shown.
    All,
    /// All but this text at its end.
    Begins(String),
    /// It is something new, and all that is shown has been said.
    Follows,
    /// It is something else.
    Differs,
}

impl Again {
    /// From now on what the cell shows is kept.
    pub fn keep(&mut self, cell: &str) {
        if !self.cells.contains_key(cell) {
            self.cells.insert(cell.to_owned(), Shown::default());
        }
    }

    /// A note of ours stands under the cell.
    pub fn keep_note(&mut self, cell: &str, note: &Message) {
        if let Some(shown) = self.cells.get_mut(cell) {
            shown.notes.push(note.clone());
        }
    }

    /// The cell runs again; what to publish now.
    pub fn again(&mut self, cell: &str, request: &Message, author: &Author) -> Vec<Message> {
        let Some(shown) = self.cells.get_mut(cell) else {
            return Vec::new();
        };
        if std::mem::take(&mut shown.too_much) {
            return shown.afresh(Vec::new(), author, request.header.clone());
        }
        shown.check = Some(Check::new(&shown.messages));
        Vec::new()
    }

    /// What to publish when the cell says something: nothing, that, or more.
    pub fn show(&mut self, cell: &str, message: Message, author: &Author) -> Vec<Message> {
        match self.cells.get_mut(cell) {
            Some(shown) => shown.show(message, author),
            None => vec![message],
        }
    }

    /// The cell's run has come to its end; what to publish before it is answered.
    pub fn done(&mut self, cell: &str, request: &Message, author: &Author) -> Vec<Message> {
        let Some(mut shown) = self.cells.remove(cell) else {
            return Vec::new();
        };
        match shown.check.take() {
            Some(check) if !check.is_over() => {
                shown.afresh(check.said, author, request.header.clone())
            }
            _ => Vec::new(),
        }
    }

    /// The cell shows nothing more.
    pub fn forget(&mut self, cell: &str) {
        self.cells.remove(cell);
    }
}

impl Shown {
    fn show(&mut self, message: Message, author: &Author) -> Vec<Message> {
        let Some(mut check) = self.check.take() else {
            self.add(&message);
            return vec![message];
        };
        let known = check.compare(&message);
        check.said.push(message.clone());
        let new = match known {
            Known::All => None,
            Known::Begins(text) => Some(with_text(&message, &text)),
            Known::Follows => Some(message),
            Known::Differs => {
                let parent = message.parent_header.clone();
                return self.afresh(check.said, author, parent);
            }
        };
        if let Some(new) = &new {
            self.add(new);
        }
        if check.is_over() {
            self.messages = check.said;
        } else if self.too_much {
            self.too_much = false;
            let parent = check
                .said
                .last()
                .map(|message| message.parent_header.clone());
            return self.afresh(check.said, author, parent.unwrap_or_default());
        } else {
            self.check = Some(check);
        }
        new.into_iter().collect()
    }

    fn add(&mut self, message: &Message) {
        self.bytes += message.content.len() + message.buffers.iter().map(Bytes::len).sum::<usize>();
        if self.bytes > MOST {
            self.too_much = true;
            self.messages = Vec::new();
        } else {
            self.messages.push(message.clone());
        }
    }

    /// Clears the output and shows only our notes and these.
    fn afresh(&mut self, said: Vec<Message>, author: &Author, parent: Bytes) -> Vec<Message> {
        self.messages.clear();
        self.bytes = 0;
        self.check = None;
        for message in &said {
            self.add(message);
        }
        // The source of the cell is still there.
        let said = said.into_iter();
        let said = said.filter(|message| topic(message) != b"execute_input");
        let shown: Vec<Message> = self
            .notes
            .iter()
            .cloned()
            .chain(said)
            .map(|message| author.again(&message).unwrap_or(message))
            .collect();
        // Cleared as soon as something else comes, so that the cell does not flicker.
        let content = json!({"wait": !shown.is_empty()});
        let mut clear = author.message("clear_output", None, &content);
        clear.parent_header = parent;
        std::iter::once(clear).chain(shown).collect()
    }
}

impl Check {
    fn new(messages: &[Message]) -> Self {
        let mut check = Self::default();
        let mut section = Section::default();
        for message in messages {
            match stream(message) {
                Some(Stream { name, text }) => {
                    section.texts.entry(name).or_default().push_str(&text);
                }
                None => {
                    section.other = Some(message.clone());
                    check.left.push_back(std::mem::take(&mut section));
                }
            }
        }
        check.left.push_back(section);
        check
    }

    fn compare(&mut self, message: &Message) -> Known {
        if self.is_over() {
            return Known::Follows;
        }
        let Some(section) = self.left.front_mut() else {
            return Known::Follows;
        };
        let is_last = section.other.is_none();
        match stream(message) {
            Some(Stream { name, text }) => {
                let left = section.texts.entry(name).or_default();
                if left.starts_with(&text) {
                    left.drain(..text.len());
                    Known::All
                } else if let Some(rest) = text.strip_prefix(left.as_str()).filter(|_| is_last) {
                    let rest = rest.to_owned();
                    left.clear();
                    Known::Begins(rest)
                } else {
                    Known::Differs
                }
            }
            None => {
                let same = |other: &Message| is_same(other, message);
                if section.is_said() && section.other.as_ref().is_some_and(same) {
                    self.left.pop_front();
                    Known::All
                } else {
                    Known::Differs
                }
            }
        }
    }

    /// Whether all that is shown has been said.
    fn is_over(&self) -> bool {
        self.left
            .iter()
            .all(|section| section.other.is_none() && section.is_said())
    }
}

impl Section {
    fn is_said(&self) -> bool {
        self.texts.values().all(String::is_empty)
    }
}

/// A worker's message carries its type as topic.
fn topic(message: &Message) -> &[u8] {
    message.identities.first().map_or(&[], |topic| topic)
}

fn stream(message: &Message) -> Option<Stream> {
    (topic(message) == b"stream")
        .then(|| message.parse_content().ok())
        .flatten()
}

fn with_text(message: &Message, text: &str) -> Message {
    let name = stream(message).map(|stream| stream.name);
    let content = json!({"name": name, "text": text}).to_string();
    Message {
        content: content.into(),
        ..message.clone()
    }
}

fn is_same(one: &Message, other: &Message) -> bool {
    topic(one) == topic(other)
        && one.content == other.content
        && one.metadata == other.metadata
        && one.buffers == other.buffers
}

#[cfg(test)]
mod tests;
