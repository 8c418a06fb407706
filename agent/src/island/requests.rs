//! Which ranks a message of the kernel goes to.

use cellferry_kernel::message::{Header, Message};
use cellferry_wire::protocol::Channel;
use serde::Deserialize;
use serde_json::Value;

/// Whom a message is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum For {
    /// All ranks run it, and answer as one. `gathered` names become lists by rank after it.
    All { gathered: Vec<String> },
    /// Rank 0 puts names into a file, or into its answer.
    Taking { transfer: Option<u64> },
    /// Rank 0.
    First,
    /// The rank that has opened this comm.
    Comm(String),
    /// The rank that has asked a question.
    Asker,
}

/// Decides it.
pub fn whom(channel: Channel, header: &Header, message: &Message) -> For {
    #[derive(Deserialize)]
    struct Verb {
        verb: String,
        segment: Option<std::path::PathBuf>,
    }
    #[derive(Deserialize)]
    struct Comm {
        comm_id: String,
    }
    match (channel, &*header.msg_type) {
        (Channel::Stdin, _) => For::Asker,
        (Channel::Shell, "execute_request") => For::All {
            gathered: gathered(&message.metadata),
        },
        (Channel::Shell, "cellferry_request") => match message.parse_content::<Verb>() {
            // What only one rank goes back from would leave the ranks in different states.
            Ok(Verb { verb, .. }) if verb == "undo" || verb == "settle" => For::All {
                gathered: Vec::new(),
            },
            Ok(Verb {
                verb,
                segment: Some(segment),
            }) if verb == "take" => For::Taking {
                transfer: segment
                    .file_name()
                    .and_then(|name| name.to_str()?.parse().ok()),
            },
            _ => For::First,
        },
        (_, "comm_msg" | "comm_close") => match message.parse_content::<Comm>() {
            Ok(Comm { comm_id }) => For::Comm(comm_id),
            Err(_) => For::First,
        },
        _ => For::First,
    }
}

fn gathered(metadata: &[u8]) -> Vec<String> {
    let metadata: Value = serde_json::from_slice(metadata).unwrap_or_default();
    let names = metadata["cellferry"]["gather"].as_array();
    let names = names.into_iter().flatten().filter_map(Value::as_str);
    names.map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use cellferry_kernel::Author;
    use serde_json::json;

    fn of(channel: Channel, kind: &str, content: Value) -> For {
        let message = Author::new().message(kind, None, &content);
        whom(channel, &message.parse_header().unwrap(), &message)
    }

    #[test]
    fn what_runs_code_goes_to_all_and_questions_to_rank_0() {
        let all = For::All {
            gathered: Vec::new(),
        };
        let shell = Channel::Shell;
        assert_eq!(of(shell, "execute_request", json!({"code": "1"})), all);
        assert_eq!(
            of(
                shell,
                "cellferry_request",
                json!({"verb": "undo", "run": 1})
            ),
            all
        );
        assert_eq!(
            of(
                shell,
                "cellferry_request",
                json!({"verb": "take", "segment": "/dev/shm/x/12"})
            ),
            For::Taking { transfer: Some(12) }
        );
        assert_eq!(of(shell, "complete_request", json!({})), For::First);
        assert_eq!(
            of(shell, "comm_msg", json!({"comm_id": "c"})),
            For::Comm("c".to_owned())
        );
        assert_eq!(of(Channel::Stdin, "input_reply", json!({})), For::Asker);
    }
}
