//! Values on their way between workers: small ones in memory, large ones as shared-memory segments.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;

use bytes::Bytes;
use cellferry_kernel::Author;
use cellferry_kernel::message::Message;
use cellferry_wire::protocol::WorkerId;
use serde::Deserialize;
use serde_json::{Value, json};

use super::agents::Agents;
use super::carry::{Carry, Machine};
use crate::ledger::{Description, Put};
use crate::name::Name;
use crate::session::Taken;

/// What has been taken and may still be put.
#[derive(Debug, Default)]
pub struct Values {
    asked: HashMap<String, u64>,
    taken: HashMap<u64, Payload>,
    /// The modules that those need which are to be unpickled.
    modules: HashMap<u64, BTreeSet<String>>,
    /// Where those are that are files.
    pub files: Carry,
}

#[derive(Debug)]
enum Payload {
    Inline(Vec<Bytes>),
    /// A file on each machine that it has been carried to.
    Segment {
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
        #[serde(default)]
        modules: BTreeSet<String>,
        place: Place,
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
    /// ignored. `reader` may copy them straight from the worker's memory, if both are on this machine.
    pub fn take(
        &mut self,
        author: &Author,
        (transfer, holder): (u64, WorkerId),
        names: &BTreeSet<Name>,
        (stale, ignored): (&BTreeSet<Name>, &BTreeSet<Name>),
        reader: Option<WorkerId>,
        agents: &Agents,
    ) -> Result<Message, String> {
        let machine = agents.machine(holder).ok_or("its holder is gone")?;
        let path = agents.segment_dir(&machine)?.join(transfer.to_string());
        let near = reader.filter(|reader| {
            machine == Machine::Home && agents.machine(*reader) == Some(Machine::Home)
        });
        let reader = near.and_then(|reader| agents.pid(reader));
        let content = json!({"verb": "take", "names": names, "stale": stale, "ignored": ignored, "segment": path, "reader": reader});
        let message = author.message("cellferry_request", None, &content);
        let header = message.parse_header().map_err(|error| error.to_string())?;
        self.asked.insert(header.msg_id, transfer);
        self.files.begun(transfer, machine);
        Ok(message)
    }

    /// A worker's answer to a `take`.
    pub fn taken(
        &mut self,
        msg_id: &str,
        message: Message,
        machine: Machine,
    ) -> Option<(u64, Taken)> {
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
                modules,
                place,
                layout,
            } => {
                self.modules.insert(transfer, modules);
                let end = layout_end(&layout);
                let payload = match place {
                    Place::Inline => Payload::Inline(message.buffers),
                    Place::Memory => Payload::Memory { layout },
                    Place::Segment => Payload::Segment { layout },
                };
                if matches!(payload, Payload::Segment { .. }) {
                    // It may have been released in the meantime.
                    self.files.written(transfer, machine, end);
                } else {
                    self.files.not_written(transfer);
                }
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

    /// The modules that are needed to put a value.
    pub fn modules(&self, transfer: u64) -> impl Iterator<Item = &String> {
        self.modules.get(&transfer).into_iter().flatten()
    }

    /// The action that puts a value, with files in `segments` and buffers appended to the message's.
    pub fn put_action(&self, put: &Put, segments: &Path, buffers: &mut Vec<Bytes>) -> Value {
        let names: Vec<&Name> = put.names.keys().collect();
        match self.taken.get(&put.transfer) {
            Some(Payload::Segment { layout }) => {
                let path = segments.join(put.transfer.to_string());
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

    /// Forgets transfers and frees their files: whoever mapped one keeps its memory.
    pub fn release(&mut self, transfers: &[u64], agents: &mut Agents) {
        for transfer in transfers {
            self.taken.remove(transfer);
            self.modules.remove(transfer);
        }
        self.files.release(transfers, agents);
    }
}

/// How long the file of a value is: its parts are aligned, so this is more than they have together.
fn layout_end(layout: &Value) -> u64 {
    let parts: Vec<(u64, u64)> = serde_json::from_value(layout.clone()).unwrap_or_default();
    parts
        .iter()
        .map(|(offset, length)| offset + length)
        .max()
        .unwrap_or_default()
}
