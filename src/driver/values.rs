//! Values on their way between workers: small ones in memory, large ones as shared-memory segments.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::PathBuf;

use bytes::Bytes;
use cellferry_kernel::Author;
use cellferry_kernel::message::Message;
use serde::Deserialize;
use serde_json::{Value, json};

use super::agents::Agents;
use crate::ledger::{Description, Put};
use crate::name::Name;
use crate::session::Taken;

/// What has been taken and may still be put.
#[derive(Debug, Default)]
pub struct Values {
    asked: HashMap<String, u64>,
    segments: HashMap<u64, PathBuf>,
    taken: HashMap<u64, Payload>,
}

#[derive(Debug)]
enum Payload {
    Inline(Vec<Bytes>),
    Segment {
        path: PathBuf,
        layout: Value,
    },
    /// Still in the memory of the process that holds them.
    Memory {
        layout: Value,
    },
}

#[derive(Deserialize)]
#[serde(tag = "status", rename_all = "lowercase")]
enum Reply {
    Ok {
        names: BTreeMap<Name, Description>,
        needs: BTreeSet<Name>,
        missing: BTreeSet<Name>,
        size: u64,
        #[serde(default)]
        kin: Vec<BTreeSet<Name>>,
        place: Place,
        #[serde(default)]
        segment: Option<PathBuf>,
        #[serde(default)]
        layout: Value,
    },
    Uncarriable {
        failed: BTreeMap<Name, (String, String)>,
    },
    Interrupted,
    Error {
        message: String,
    },
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum Place {
    Inline,
    Segment,
    Memory,
}

/// Whether a worker has gone back to what it was, or why not, if this is its answer to that.
pub fn undone(message: &Message) -> Option<Result<(), String>> {
    #[derive(Deserialize)]
    struct Reply {
        #[serde(default)]
        verb: String,
        #[serde(default)]
        message: String,
        status: String,
    }
    let reply: Reply = message.parse_content().ok()?;
    let done = (reply.status == "ok").then_some(());
    (reply.verb == "undo").then(|| done.ok_or(reply.message))
}

impl Values {
    /// The message that takes `names` from a worker, which drops what is stale there and leaves out what is
    /// ignored. `reader` is the
    /// process that may copy them straight from the worker's memory.
    pub fn take(
        &mut self,
        author: &Author,
        transfer: u64,
        names: &BTreeSet<Name>,
        (stale, ignored): (&BTreeSet<Name>, &BTreeSet<Name>),
        reader: Option<u32>,
        agents: &mut Agents,
    ) -> Result<Message, String> {
        let path = agents.segment_dir()?.join(transfer.to_string());
        let content = json!({"verb": "take", "names": names, "stale": stale, "ignored": ignored, "segment": path, "reader": reader});
        let message = author.message("cellferry_request", None, &content);
        let header = message.parse_header().map_err(|error| error.to_string())?;
        self.asked.insert(header.msg_id, transfer);
        self.segments.insert(transfer, path);
        Ok(message)
    }

    /// A worker's answer to a `take`.
    pub fn taken(&mut self, msg_id: &str, message: Message) -> Option<(u64, Taken)> {
        let transfer = self.asked.remove(msg_id)?;
        let reply = match message.parse_content::<Reply>() {
            Ok(reply) => reply,
            Err(error) => {
                return Some((
                    transfer,
                    Taken::Failed(format!("unreadable answer: {error}")),
                ));
            }
        };
        let taken = match reply {
            Reply::Ok {
                names,
                needs,
                missing,
                size,
                kin,
                place,
                segment,
                layout,
            } => {
                // It may have been released in the meantime.
                self.segments.extend(segment.map(|path| (transfer, path)));
                let payload = match place {
                    Place::Inline => Payload::Inline(message.buffers),
                    Place::Memory => Payload::Memory { layout },
                    Place::Segment => Payload::Segment {
                        path: self.segments.get(&transfer).cloned().unwrap_or_default(),
                        layout,
                    },
                };
                self.taken.insert(transfer, payload);
                Taken::Ok {
                    names,
                    needs,
                    missing,
                    size,
                    kin,
                }
            }
            Reply::Uncarriable { failed } => Taken::Uncarriable(failed),
            Reply::Interrupted => Taken::Interrupted,
            Reply::Error { message } => Taken::Failed(message),
        };
        Some((transfer, taken))
    }

    /// The action that puts a value, with its buffers appended to the message's.
    pub fn put_action(&mut self, put: &Put, buffers: &mut Vec<Bytes>) -> Value {
        let names: Vec<&Name> = put.names.keys().collect();
        match self.taken.get(&put.transfer) {
            Some(Payload::Segment { path, layout }) => {
                json!({"do": "put", "names": names, "place": "segment", "segment": path, "layout": layout})
            }
            Some(Payload::Memory { layout }) => {
                json!({"do": "put", "names": names, "place": "memory", "layout": layout})
            }
            Some(Payload::Inline(parts)) => {
                let action = json!({"do": "put", "names": names, "place": "inline", "first": buffers.len(), "count": parts.len()});
                buffers.extend(parts.iter().cloned());
                action
            }
            None => json!({"do": "put", "names": names, "place": "nowhere"}),
        }
    }

    /// Forgets transfers and frees their segments: whoever mapped one keeps its memory.
    pub fn release(&mut self, transfers: &[u64]) {
        for transfer in transfers {
            self.taken.remove(transfer);
            if let Some(path) = self.segments.remove(transfer)
                && let Err(error) = std::fs::remove_file(&path)
                && error.kind() != std::io::ErrorKind::NotFound
            {
                tracing::warn!("cannot remove {}: {error}", path.display());
            }
        }
    }
}
