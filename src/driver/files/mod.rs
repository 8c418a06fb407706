//! The files that steps read and make: brought to a step's machine before its cell runs, and home after it.
//!
//! The worker asks for it, since only there the variables stand that may hold the paths, and waits for the answer as it
//! waits for input: so an interrupt reaches it, and the session sees nothing but a cell that runs.

mod answers;
mod end;
mod remote;
mod stage;

pub use answers::Answers;
pub use end::End;
pub use remote::Remote;
pub use stage::Way;

use std::collections::HashMap;

use cellferry_kernel::message::Message;
use cellferry_wire::protocol::WorkerId;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::task::AbortHandle;

use self::stage::{Item, Order};
use super::agents::FromLocation;
use crate::target::shared::Shared;

/// What a worker asks for.
#[derive(Debug, Deserialize)]
pub struct Asked {
    /// Which way.
    pub way: Way,
    /// The cell's execution count.
    number: Option<u32>,
    /// Where the worker's working directory is.
    pub folder: String,
    /// The user's home directory there.
    pub home: String,
    items: Vec<Item>,
    /// Whether the cell failed.
    failed: bool,
    /// Whether the cell runs only to make again what it made.
    again: bool,
}

/// All files that are being brought.
#[derive(Debug, Default)]
pub struct Staging {
    /// By the worker that waits for them: the worker's message, and what ends the task.
    jobs: HashMap<WorkerId, (Message, AbortHandle)>,
    /// What the files were that cells have read, by the `msg_id` of their request.
    read: HashMap<String, blake3::Hash>,
}

/// What came of it.
#[derive(Debug)]
pub struct Staged {
    /// The `msg_id` of the cell's request.
    cell: String,
    /// Set if the cell has read these files; they must be the same if it is run again to make something.
    inputs: Option<(blake3::Hash, bool)>,
    outcome: Result<(), String>,
}

impl Staging {
    /// Starts to bring what a worker asks for between `home` and where it is.
    pub fn start(
        &mut self,
        (worker, message, cell): (WorkerId, Message, String),
        asked: Asked,
        (home, there): (End, End),
        shared: Result<Shared, String>,
        events: mpsc::UnboundedSender<FromLocation>,
    ) {
        let task = tokio::spawn(async move {
            let (way, again) = (asked.way, asked.again);
            let brought = bring(asked, &home, &there, shared).await;
            let staged = match brought {
                Ok(content) => Staged {
                    cell,
                    inputs: (way == Way::In).then_some((content, again)),
                    outcome: Ok(()),
                },
                Err(reason) => Staged {
                    cell,
                    inputs: None,
                    outcome: Err(reason),
                },
            };
            let _ = events.send(FromLocation::Staged(worker, staged));
        });
        if let Some((_, before)) = self.jobs.insert(worker, (message, task.abort_handle())) {
            before.abort();
        }
    }

    /// Files have been brought, or could not be: the worker's message, and the content of the answer to it.
    pub fn done(&mut self, worker: WorkerId, staged: Staged) -> Option<(Message, Value)> {
        let (message, _) = self.jobs.remove(&worker)?;
        let outcome = match (staged.outcome, staged.inputs) {
            (Ok(()), Some((content, true)))
                if self
                    .read
                    .get(&staged.cell)
                    .is_some_and(|read| *read != content) =>
            {
                Err("the files that it read have changed since".to_owned())
            }
            (Ok(()), Some((content, false))) => {
                self.read.insert(staged.cell, content);
                Ok(())
            }
            (outcome, _) => outcome,
        };
        let content = match outcome {
            Ok(()) => json!({"status": "ok"}),
            Err(reason) => json!({"status": "error", "message": reason}),
        };
        Some((message, content))
    }

    /// The worker does not wait any more.
    pub fn end(&mut self, worker: WorkerId) {
        if let Some((_, task)) = self.jobs.remove(&worker) {
            task.abort();
        }
    }
}

async fn bring(
    asked: Asked,
    home: &End,
    there: &End,
    shared: Result<Shared, String>,
) -> Result<blake3::Hash, String> {
    let order = Order {
        way: asked.way,
        number: asked.number,
        items: asked.items,
        lenient: asked.failed,
        shared: shared?,
    };
    let (from, to) = match order.way {
        Way::In => (home, there),
        Way::Out => (there, home),
    };
    let brought = order.bring(from, to).await?;
    if brought.files > 0 {
        tracing::info!(
            "{} files, {} bytes brought from `{}` to `{}`",
            brought.files,
            brought.bytes,
            from.target,
            to.target
        );
    }
    Ok(brought.content.finalize())
}
