//! The files that steps read and make: brought to a step's machine before its cell runs, and home after it.
//!
//! The worker asks for it, since only there the variables stand that may hold the paths, and waits for the answer as it
//! waits for input: so an interrupt reaches it, and the session sees nothing but a cell that runs. The user's own modules go
//! the same way.

mod answers;
mod end;
mod modules;
mod remote;
mod stage;

pub use answers::Answers;
pub use end::End;
pub use modules::{MODULES, Modules};
pub use remote::Remote;

use std::collections::HashMap;

use cellferry_kernel::message::Message;
use cellferry_wire::protocol::{FilePath, WorkerId};
use futures::{StreamExt, TryStreamExt, stream};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::task::AbortHandle;

use self::modules::ModuleFiles;
use self::stage::{AT_ONCE, Item, Order, Way};
use super::agents::FromLocation;
use crate::session::TargetName;
use crate::target::shared::Shared;

/// Modules are for their owner alone, as all that is in an agent's own directory.
const MODULE_MODE: u32 = 0o600;

/// What a worker asks for.
#[derive(Debug, Deserialize)]
pub struct Asked {
    way: Way,
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
pub struct Staged(Result<Done, String>);

#[derive(Debug)]
enum Done {
    /// The cell with this `msg_id` can read its files.
    Read {
        cell: String,
        content: blake3::Hash,
        /// Whether it must be what it was.
        again: bool,
    },
    /// What a cell has made is at home.
    Made,
    /// The modules that a cell imports are there.
    Modules(TargetName, ModuleFiles),
}

impl Staging {
    /// Starts to bring what a worker asks for between home and where it is.
    pub fn bring(
        &mut self,
        (worker, message, cell): (WorkerId, Message, String),
        asked: Asked,
        ends: (End, End),
        shared: Result<Shared, String>,
        events: mpsc::UnboundedSender<FromLocation>,
    ) {
        let (way, again) = (asked.way, asked.again);
        let bringing = async move {
            let content = bring(asked, ends, shared).await?;
            Ok(match way {
                Way::In => Done::Read {
                    cell,
                    content,
                    again,
                },
                Way::Out => Done::Made,
            })
        };
        self.start(worker, message, bringing, events);
    }

    /// Starts to send modules to the directory `folder` of a far host.
    pub fn send_modules(
        &mut self,
        (worker, message): (WorkerId, Message),
        (remote, folder): (Remote, String),
        files: ModuleFiles,
        events: mpsc::UnboundedSender<FromLocation>,
    ) {
        let sending = async move {
            send_modules(&remote, &folder, &files).await?;
            Ok(Done::Modules(remote.target().clone(), files))
        };
        self.start(worker, message, sending, events);
    }

    fn start(
        &mut self,
        worker: WorkerId,
        message: Message,
        doing: impl Future<Output = Result<Done, String>> + Send + 'static,
        events: mpsc::UnboundedSender<FromLocation>,
    ) {
        let task = tokio::spawn(async move {
            let staged = Staged(doing.await);
            let _ = events.send(FromLocation::Staged(worker, staged));
        });
        if let Some((_, before)) = self.jobs.insert(worker, (message, task.abort_handle())) {
            before.abort();
        }
    }

    /// It is done, or cannot be: the worker's message, and the content of the answer to it.
    pub fn done(
        &mut self,
        worker: WorkerId,
        staged: Staged,
        modules: &mut Modules,
    ) -> Option<(Message, Value)> {
        let (message, _) = self.jobs.remove(&worker)?;
        let outcome = match staged.0 {
            Ok(Done::Read {
                cell,
                content,
                again: true,
            }) if self.read.get(&cell).is_some_and(|read| *read != content) => {
                Err("the files that it read have changed since".to_owned())
            }
            Ok(Done::Read {
                cell,
                content,
                again: false,
            }) => {
                self.read.insert(cell, content);
                Ok(())
            }
            Ok(Done::Modules(target, files)) => {
                modules.sent(&target, files);
                Ok(())
            }
            Ok(Done::Read { .. } | Done::Made) => Ok(()),
            Err(reason) => Err(reason),
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
    (home, there): (End, End),
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
    let brought = order.bring(&from, &to).await?;
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

async fn send_modules(remote: &Remote, folder: &str, files: &ModuleFiles) -> Result<(), String> {
    let sending = files.iter().map(|(path, file)| async move {
        let to = FilePath {
            base: Some(folder.to_owned()),
            path: path.display().to_string(),
        };
        remote.put(&file.path, to, MODULE_MODE, file.size).await
    });
    // Collected: an iterator in a task of its own must outlive what it borrows.
    let sending: Vec<_> = sending.collect();
    let sent: Result<(), String> = stream::iter(sending)
        .buffer_unordered(AT_ONCE)
        .try_collect()
        .await;
    sent.map_err(|reason| {
        let target = remote.target();
        format!("the notebook's own modules cannot be sent to `{target}`: {reason}")
    })
}
