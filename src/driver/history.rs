//! History replies, made to say which session they are of.

use bytes::Bytes;
use cellferry_kernel::message::Message;
use serde_json::Value;

/// A client that asks for a range of session `n` gets entries of session `n`: IPython numbers its
/// running session 0 even where it was asked for by its number.
pub fn with_session(request: &[u8], mut reply: Message) -> Message {
    let request: Value = serde_json::from_slice(request).unwrap_or_default();
    let Some(session) = request
        .get("session")
        .and_then(Value::as_u64)
        .filter(|session| *session > 0)
    else {
        return reply;
    };
    if request.get("hist_access_type").and_then(Value::as_str) != Some("range") {
        return reply;
    }
    let Ok(mut content) = serde_json::from_slice::<Value>(&reply.content) else {
        return reply;
    };
    for entry in content
        .get_mut("history")
        .and_then(Value::as_array_mut)
        .into_iter()
        .flatten()
    {
        if let Some(number) = entry.get_mut(0).filter(|number| number.as_u64() == Some(0)) {
            *number = Value::from(session);
        }
    }
    reply.content = Bytes::from(content.to_string());
    reply
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rewritten(request: &str) -> String {
        let content = Bytes::from_static(b"{\"history\":[[0,1,\"a\"],[2,1,\"b\"]]}");
        let reply = with_session(
            request.as_bytes(),
            Message {
                content,
                ..Message::default()
            },
        );
        String::from_utf8(reply.content.to_vec()).unwrap()
    }

    #[test]
    fn only_a_range_of_a_numbered_session_is_renumbered() {
        assert_eq!(
            rewritten(r#"{"hist_access_type":"range","session":7}"#),
            r#"{"history":[[7,1,"a"],[2,1,"b"]]}"#
        );
        for other in [
            r#"{"hist_access_type":"range","session":0}"#,
            r#"{"hist_access_type":"tail","session":7}"#,
            "{}",
        ] {
            assert!(rewritten(other).contains("[0,1"));
        }
    }
}
