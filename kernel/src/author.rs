//! Messages in the kernel's own name.

use bytes::Bytes;
use chrono::{SecondsFormat, Utc};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::message::Message;

/// The version of the messaging protocol that this crate speaks.
pub const PROTOCOL_VERSION: &str = "5.4";

/// Writes headers: one session, a fresh id for each message.
#[derive(Clone, Debug)]
pub struct Author {
    session: String,
}

impl Default for Author {
    fn default() -> Self {
        Self::new()
    }
}

impl Author {
    /// An author with a session of its own.
    pub fn new() -> Self {
        Self {
            session: Uuid::new_v4().to_string(),
        }
    }

    /// The session that stands in its headers.
    pub fn session(&self) -> &str {
        &self.session
    }

    /// A message of the given type, as an answer to `parent` if there is one.
    pub fn message(&self, msg_type: &str, parent: Option<&Message>, content: &Value) -> Message {
        let header = json!({
            "msg_id": Uuid::new_v4().to_string(),
            "msg_type": msg_type,
            "session": self.session,
            "username": "kernel",
            "date": Utc::now().to_rfc3339_opts(SecondsFormat::Micros, true),
            "version": PROTOCOL_VERSION,
        });
        Message {
            identities: vec![Bytes::from(msg_type.to_owned())],
            header: Bytes::from(header.to_string()),
            parent_header: parent
                .map_or_else(|| Bytes::from_static(b"{}"), |parent| parent.header.clone()),
            metadata: Bytes::from_static(b"{}"),
            content: Bytes::from(content.to_string()),
            buffers: Vec::new(),
        }
    }
}
