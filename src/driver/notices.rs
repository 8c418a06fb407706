//! What the user sees of a far host under the cells that wait for it: that it is being connected to, or that the
//! link is lost. A notice is updated in place, and goes when it is over.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use cellferry_kernel::Author;
use cellferry_kernel::message::Message;
use serde_json::json;
use tokio::time::Instant;

use crate::session::{Asked, TargetName};

/// How long a connection may take before anything is said of it.
const QUIET: Duration = Duration::from_secs(2);

/// How often notices are updated.
pub const TICK: Duration = Duration::from_secs(1);

/// Why cells wait for a host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wait {
    /// It has not been reached yet.
    Connecting,
    /// The link is lost, for this reason.
    Lost(String),
    /// It is a batch job that has not started, of which this is known.
    Job(String),
}

/// Notices of all hosts.
#[derive(Debug, Default)]
pub struct Notices {
    waits: HashMap<TargetName, (Wait, Instant)>,
    /// The cells under which something is shown, by the `msg_id` of their requests.
    shown: HashMap<TargetName, HashMap<String, Arc<Asked>>>,
    /// Those under which what has come of a wait stays.
    settled: HashMap<TargetName, HashMap<String, Arc<Asked>>>,
}

impl Notices {
    /// Cells wait for a host since then; if they did already, only the reason changes.
    pub fn waits(&mut self, target: &TargetName, wait: Wait, since: Instant) {
        match self.waits.get_mut(target) {
            Some((before, _))
                if std::mem::discriminant(before) == std::mem::discriminant(&wait) =>
            {
                *before = wait;
            }
            _ => {
                self.waits.insert(target.clone(), (wait, since));
            }
        }
    }

    /// Whether any cell may have to be told something.
    pub fn any(&self) -> bool {
        !self.waits.is_empty()
    }

    /// Hosts with a wait that is worth telling.
    pub fn targets(&self) -> Vec<TargetName> {
        let told = self.waits.iter().filter(|(_, (wait, since))| match wait {
            Wait::Connecting | Wait::Job(_) => since.elapsed() >= QUIET,
            Wait::Lost(_) => true,
        });
        told.map(|(target, _)| target.clone()).collect()
    }

    /// What to show now, when these cells wait for a host.
    pub fn show(
        &mut self,
        target: &TargetName,
        cells: &[Arc<Asked>],
        author: &Author,
    ) -> Vec<Message> {
        let Some((wait, since)) = self.waits.get(target) else {
            return Vec::new();
        };
        let seconds = since.elapsed().as_secs();
        let text = match wait {
            Wait::Connecting => format!("connecting to {target} ({seconds} s)…"),
            Wait::Job(text) => format!("{text} ({seconds} s)"),
            Wait::Lost(reason) if reason.is_empty() => {
                format!("link to {target} lost, reconnecting ({seconds} s)…")
            }
            Wait::Lost(reason) => {
                format!("link to {target} lost, reconnecting ({seconds} s)… ({reason})")
            }
        };
        let waiting = cells
            .iter()
            .map(|asked| (asked.header.msg_id.clone(), asked.clone()));
        let before = self.shown.insert(target.clone(), waiting.collect());
        let mut before = before.unwrap_or_default();
        let mut messages = Vec::new();
        for asked in cells {
            let msg_type = match before.remove(&asked.header.msg_id) {
                Some(_) => "update_display_data",
                None => "display_data",
            };
            messages.push(message(author, msg_type, target, asked, &text));
        }
        // These wait for something else by now.
        messages.extend(before.values().map(|asked| cleared(author, target, asked)));
        messages
    }

    /// The wait is over: what takes the notices away.
    pub fn over(&mut self, target: &TargetName, author: &Author) -> Vec<Message> {
        self.waits.remove(target);
        let shown = self.shown.remove(target).unwrap_or_default();
        let cells = shown.values();
        cells.map(|asked| cleared(author, target, asked)).collect()
    }

    /// The wait is over, and the notices stay with this text.
    pub fn settled(&mut self, target: &TargetName, text: &str, author: &Author) -> Vec<Message> {
        self.waits.remove(target);
        let shown = self.shown.remove(target).unwrap_or_default();
        let settled = self.settled.entry(target.clone()).or_default();
        settled.extend(shown);
        let cells = settled.values();
        cells
            .map(|asked| message(author, "update_display_data", target, asked, text))
            .collect()
    }

    /// The cell ends, and some clients heed nothing that comes after that: what takes the notices under it away.
    pub fn ends(&mut self, asked: &Asked, author: &Author) -> Vec<Message> {
        self.settled.retain(|_, cells| {
            cells.remove(&asked.header.msg_id);
            !cells.is_empty()
        });
        let shown = self.shown.iter_mut();
        shown
            .filter_map(|(target, cells)| {
                let asked = cells.remove(&asked.header.msg_id)?;
                Some(cleared(author, target, &asked))
            })
            .collect()
    }
}

fn cleared(author: &Author, target: &TargetName, asked: &Asked) -> Message {
    message(author, "update_display_data", target, asked, "")
}

fn message(
    author: &Author,
    msg_type: &str,
    target: &TargetName,
    asked: &Asked,
    text: &str,
) -> Message {
    let display_id = format!("cellferry-{target}-{}", asked.header.msg_id);
    let content = json!({
        "data": {"text/plain": text},
        "metadata": {},
        "transient": {"display_id": display_id},
    });
    author.message(msg_type, Some(&asked.message), &content)
}
