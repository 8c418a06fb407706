//! `reach`: this process's stdin and stdout become the byte stream to the agent of one node, by way of the gate, which is
//! started if there is none.

use std::io::{self, Write};
use std::time::Duration;

use super::Allocation;
use crate::attach::{AttachError, Server};

/// Connects to a node's agent in a conversation, and copies bytes both ways until either side ends. The gate stays for
/// `patience` without anybody to serve.
///
/// # Errors
/// If there is no gate and none can be started, if the node's agent has ended, or if there is no room for mail.
pub fn reach(
    allocation: &Allocation,
    node: u32,
    conversation: &str,
    patience: Duration,
) -> Result<(), AttachError> {
    if allocation.is_over(node) {
        return Err(AttachError::Gone(conversation.to_owned()));
    }
    allocation.try_mail().map_err(|source| AttachError::Mail {
        directory: allocation.mail().display().to_string(),
        source,
    })?;
    let id = allocation.id().map_err(AttachError::Start)?;
    let patience = patience.as_secs().to_string();
    let gate = Server {
        name: &id,
        arguments: &[
            "gate".as_ref(),
            "--allocation".as_ref(),
            allocation.as_ref().as_os_str(),
            "--patience".as_ref(),
            patience.as_ref(),
        ],
    };
    gate.attach(false, |mut stream| -> io::Result<()> {
        writeln!(stream, "{node} {conversation}")
    })
}
