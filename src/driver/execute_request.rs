//! The content of a client's `execute_request`, with what is wrong with one that cannot be read, and the request that the
//! same client would send for another cell.

use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::session::{Asked, Problem};

#[derive(Deserialize)]
pub(super) struct ExecuteRequest {
    pub(super) code: String,
    #[serde(default)]
    pub(super) silent: bool,
    #[serde(default)]
    pub(super) store_history: Option<bool>,
    #[serde(default)]
    pub(super) user_expressions: Option<Map<String, Value>>,
    #[serde(default)]
    pub(super) stop_on_error: Option<bool>,
    /// Jupyter-workflow's client puts the metadata here.
    #[serde(default)]
    pub(super) workflow: Value,
}

impl ExecuteRequest {
    pub(super) fn read(content: &[u8]) -> Result<Self, Problem> {
        serde_json::from_slice(content).map_err(|error| {
            let wrong = |reason: String| {
                Problem::new(
                    "BadRequest",
                    format!("the execute_request cannot be read: {reason}"),
                )
            };
            let map: Map<String, Value> = serde_json::from_slice(content).unwrap_or_default();
            // serde names a missing field, but not one of a wrong type.
            let expected = [
                (
                    "code",
                    map.get("code").is_none_or(Value::is_string),
                    "a string",
                ),
                (
                    "silent",
                    map.get("silent").is_none_or(Value::is_boolean),
                    "a boolean",
                ),
                (
                    "store_history",
                    map.get("store_history").is_none_or(Value::is_boolean),
                    "a boolean",
                ),
                (
                    "user_expressions",
                    map.get("user_expressions").is_none_or(Value::is_object),
                    "an object",
                ),
                (
                    "stop_on_error",
                    map.get("stop_on_error").is_none_or(Value::is_boolean),
                    "a boolean",
                ),
            ];
            match expected.iter().find(|(_, valid, _)| !valid) {
                Some((key, _, kind)) => wrong(format!("`{key}` must be {kind}")),
                None => wrong(error.to_string()),
            }
        })
    }
}

/// Whether the client tells which cell a request is: then it need not go through the file in order.
pub(super) fn tells_cell(metadata: &[u8]) -> bool {
    let metadata: Map<String, Value> = serde_json::from_slice(metadata).unwrap_or_default();
    !metadata.is_empty()
}

/// The request that a client would send for another cell.
pub(super) fn like(asked: &Asked, code: &str) -> Option<Asked> {
    let mut header: Map<String, Value> = serde_json::from_slice(&asked.message.header).ok()?;
    header.insert("msg_id".to_owned(), json!(uuid::Uuid::new_v4().to_string()));
    let mut content: Map<String, Value> = serde_json::from_slice(&asked.message.content).ok()?;
    content.insert("code".to_owned(), json!(code));
    let mut message = asked.message.clone();
    message.header = serde_json::to_vec(&header).ok()?.into();
    message.content = serde_json::to_vec(&content).ok()?.into();
    Some(Asked {
        channel: asked.channel,
        header: message.parse_header().ok()?,
        message,
    })
}
