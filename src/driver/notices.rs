//! What the user sees of a far host under the cells that wait for it: that it is being connected to, or that the
//! link is lost. A notice is updated in place, and goes when it is over.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::Instant;

use crate::session::{RunId, TargetName};

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
}

/// Notices of all hosts.
#[derive(Debug, Default)]
pub struct Notices {
    waits: HashMap<TargetName, (Wait, Instant)>,
    /// Under which runs something is shown.
    shown: HashMap<TargetName, HashSet<RunId>>,
}

impl Notices {
    /// Cells wait for a host from now on; if they do already, only the reason changes.
    pub fn waits(&mut self, target: &TargetName, wait: Wait) {
        match self.waits.get_mut(target) {
            Some((before, _))
                if std::mem::discriminant(before) == std::mem::discriminant(&wait) =>
            {
                *before = wait;
            }
            _ => {
                self.waits.insert(target.clone(), (wait, Instant::now()));
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
            Wait::Connecting => since.elapsed() >= QUIET,
            Wait::Lost(_) => true,
        });
        told.map(|(target, _)| target.clone()).collect()
    }

    /// The message to show under a run: its type and content.
    pub fn show(&mut self, target: &TargetName, run: RunId) -> Option<(&'static str, Value)> {
        let (wait, since) = self.waits.get(target)?;
        let seconds = since.elapsed().as_secs();
        let text = match wait {
            Wait::Connecting => format!("connecting to {target} ({seconds} s)…"),
            Wait::Lost(reason) if reason.is_empty() => {
                format!("link to {target} lost, reconnecting ({seconds} s)…")
            }
            Wait::Lost(reason) => {
                format!("link to {target} lost, reconnecting ({seconds} s)… ({reason})")
            }
        };
        let first = self.shown.entry(target.clone()).or_default().insert(run);
        let msg_type = if first {
            "display_data"
        } else {
            "update_display_data"
        };
        Some((msg_type, content(target, run, json!({"text/plain": text}))))
    }

    /// It is over: the runs under which something is shown, with the content that takes it away.
    pub fn over(&mut self, target: &TargetName) -> Vec<(RunId, Value)> {
        self.waits.remove(target);
        let runs = self.shown.remove(target).unwrap_or_default();
        runs.into_iter()
            .map(|run| (run, content(target, run, json!({"text/plain": ""}))))
            .collect()
    }
}

fn content(target: &TargetName, run: RunId, data: Value) -> Value {
    let display_id = format!("cellferry-{target}-{}", run.0);
    json!({"data": data, "metadata": {}, "transient": {"display_id": display_id}})
}
