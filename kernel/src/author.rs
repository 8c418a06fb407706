//! Messages in the kernel's own name.

use bytes::Bytes;
use chrono::{SecondsFormat, Utc};
use serde_json::{Map, Value, json};
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

    /// The message once more, as one of its own: clients take two of one signature for an attack.
    pub fn again(&self, message: &Message) -> Result<Message, serde_json::Error> {
        let mut header: Map<String, Value> = serde_json::from_slice(&message.header)?;
        header.insert("msg_id".to_owned(), Uuid::new_v4().to_string().into());
        header.insert("session".to_owned(), self.session.as_str().into());
        Ok(Message {
            header: Bytes::from(serde_json::to_vec(&header)?),
            ..message.clone()
        })
    }

    /// Puts the author's session into the header of somebody else's message, to pass it on. A kernel has
    /// one session: JupyterLab takes another one for a restart and drops what it has not shown yet.
    pub fn adopt(&self, message: &mut Message) -> Result<(), serde_json::Error> {
        let mut header: Map<String, Value> = serde_json::from_slice(&message.header)?;
        header.insert("session".to_owned(), Value::from(self.session.as_str()));
        message.header = Bytes::from(serde_json::to_vec(&header)?);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_passed_on_carries_one_session_and_is_else_as_it_was() {
        let author = Author::new();
        let mut message = Author::new().message("stream", None, &json!({"text": "x"}));
        message.header = Bytes::from_static(br#"{"session":"a","msg_id":"b","subshell_id":null}"#);
        let before = message.clone();
        author.adopt(&mut message).unwrap();
        let header: Value = serde_json::from_slice(&message.header).unwrap();
        assert_eq!(
            header,
            json!({"session": author.session(), "msg_id": "b", "subshell_id": null})
        );
        message.header = before.header.clone();
        assert_eq!(message, before);
    }
}
