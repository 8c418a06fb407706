//! Which worker each comm lives in: widgets go on talking to the worker that made them.

use std::collections::{BTreeMap, BTreeSet};

use cellferry_wire::protocol::WorkerId;
use serde::Deserialize;
use serde_json::{Value, json};

/// The open comms of all workers.
#[derive(Debug, Default)]
pub struct Comms {
    open: BTreeMap<String, (WorkerId, String)>,
}

#[derive(Deserialize)]
struct Content {
    comm_id: String,
    #[serde(default)]
    target_name: String,
}

impl Comms {
    /// A `comm_open` went by, in either direction.
    pub fn opened(&mut self, content: &[u8], worker: WorkerId) {
        if let Ok(Content {
            comm_id,
            target_name,
        }) = serde_json::from_slice(content)
        {
            self.open.insert(comm_id, (worker, target_name));
        }
    }

    /// A `comm_close` went by.
    pub fn closed(&mut self, content: &[u8]) {
        if let Ok(Content { comm_id, .. }) = serde_json::from_slice(content) {
            self.open.remove(&comm_id);
        }
    }

    /// The worker that a comm message is for.
    pub fn worker(&self, content: &[u8]) -> Option<WorkerId> {
        let Content { comm_id, .. } = serde_json::from_slice(content).ok()?;
        self.open.get(&comm_id).map(|(worker, _)| *worker)
    }

    /// Whether `content` opens the comm by which a client that has just connected asks for all widgets.
    pub fn asks_for_widgets(content: &[u8]) -> bool {
        serde_json::from_slice(content)
            .is_ok_and(|Content { target_name, .. }| target_name == "jupyter.widget.control")
    }

    /// The workers that hold widgets.
    pub fn with_widgets(&self) -> BTreeSet<WorkerId> {
        let widgets = |(_, target): &&(WorkerId, String)| target == "jupyter.widget";
        self.open
            .values()
            .filter(widgets)
            .map(|(worker, _)| *worker)
            .collect()
    }

    /// Forgets the comms of a worker that is gone; returns their ids.
    pub fn worker_gone(&mut self, gone: WorkerId) -> Vec<String> {
        let ids: Vec<String> = self
            .open
            .iter()
            .filter(|(_, (worker, _))| *worker == gone)
            .map(|(id, _)| id.clone())
            .collect();
        self.open.retain(|_, (worker, _)| *worker != gone);
        ids
    }

    /// The content of a `comm_info_reply`.
    pub fn info(&self, request: &[u8]) -> Value {
        let request: Value = serde_json::from_slice(request).unwrap_or_default();
        let wanted = request
            .get("target_name")
            .and_then(Value::as_str)
            .filter(|name| !name.is_empty());
        let comms: serde_json::Map<String, Value> = self
            .open
            .iter()
            .filter(|(_, (_, target))| wanted.is_none_or(|wanted| wanted == target))
            .map(|(id, (_, target))| (id.clone(), json!({"target_name": target})))
            .collect();
        json!({"status": "ok", "comms": comms})
    }
}
