//! The five channels of a kernel, bound to the addresses of its connection file.
//!
//! What arrives is verified and handed over in one queue; what leaves goes through an [`Outbox`],
//! which never blocks the caller.

use std::fmt;
use std::io;
use std::time::Duration;

use bytes::Bytes;
use thiserror::Error;
use tokio::sync::mpsc;

use crate::connection::ConnectionFile;
use crate::iopub::Publisher;
use crate::message::Message;
use crate::router::Router;
use crate::signing::Signer;

/// How many verified requests may wait for the kernel before its sockets stop reading.
const BACKLOG: usize = 4096;

/// A channel on which clients send.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Channel {
    /// Requests, in order.
    Shell,
    /// Requests that must not wait: interrupt, shutdown, debug.
    Control,
    /// Answers to the kernel's requests for input.
    Stdin,
}

impl fmt::Display for Channel {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}

impl Channel {
    fn name(self) -> &'static str {
        match self {
            Self::Shell => "shell",
            Self::Control => "control",
            Self::Stdin => "stdin",
        }
    }
}

/// A message from a client, its signature verified.
#[derive(Clone, Debug)]
pub struct Incoming {
    /// Where it came in.
    pub channel: Channel,
    /// The message; its identities lead back to the client.
    pub message: Message,
}

/// A bound kernel.
#[derive(Debug)]
pub struct Frontend {
    /// What clients send.
    pub requests: mpsc::Receiver<Incoming>,
    /// Where answers go.
    pub outbox: Outbox,
}

/// A channel that cannot be bound.
#[derive(Debug, Error)]
#[error("cannot bind the {channel} channel to {endpoint}: {reason}")]
pub struct BindError {
    channel: &'static str,
    endpoint: String,
    reason: io::Error,
}

/// Signs and sends.
#[derive(Clone, Debug)]
pub struct Outbox {
    shell: Router,
    control: Router,
    stdin: Router,
    publisher: Publisher,
    signer: Signer,
}

impl Outbox {
    /// Sends a message to the client that its identities name.
    pub fn send(&self, channel: Channel, message: Message) {
        self.router(channel).send(message.encode(&self.signer));
    }

    /// Publishes a message to all subscribers of iopub; its identity is the topic.
    pub fn publish(&self, message: Message) {
        self.publisher.publish(message.encode(&self.signer));
    }

    /// Waits until everything has left, or for `limit`.
    pub async fn flush(&self, limit: Duration) {
        let drained = async {
            for router in [&self.shell, &self.control, &self.stdin] {
                router.flush().await;
            }
            self.publisher.flush().await;
        };
        if tokio::time::timeout(limit, drained).await.is_err() {
            tracing::warn!("some messages had not left after {limit:?}");
        }
    }

    /// The bytes that wait for the clients of a channel: at most [`crate::iopub::QUEUE_LIMIT`],
    /// or one message, for each.
    pub fn queued(&self, channel: Channel) -> usize {
        self.router(channel).queued()
    }

    /// The publisher behind [`Outbox::publish`].
    pub fn publisher(&self) -> &Publisher {
        &self.publisher
    }

    fn router(&self, channel: Channel) -> &Router {
        match channel {
            Channel::Shell => &self.shell,
            Channel::Control => &self.control,
            Channel::Stdin => &self.stdin,
        }
    }
}

/// Binds all channels of a connection file, and nothing else.
pub async fn bind(file: &ConnectionFile) -> Result<Frontend, BindError> {
    let signer = Signer::new(&file.key);
    let (requests, receiver) = mpsc::channel(BACKLOG);
    let failed = |channel, port| {
        let endpoint = file.endpoint(port);
        move |reason| BindError {
            channel,
            endpoint,
            reason,
        }
    };
    let router = async |channel: Channel, port| {
        let (signer, requests) = (signer.clone(), requests.clone());
        let receive = move |_, frames| receive(channel, frames, signer.clone(), requests.clone());
        Router::bind(channel.name(), &file.endpoint(port), receive)
            .await
            .map_err(failed(channel.name(), port))
    };
    let shell = router(Channel::Shell, file.shell_port).await?;
    let control = router(Channel::Control, file.control_port).await?;
    let stdin = router(Channel::Stdin, file.stdin_port).await?;
    let publisher = Publisher::bind(&file.endpoint(file.iopub_port), signer.clone())
        .await
        .map_err(failed("iopub", file.iopub_port))?;
    // The heartbeat: whatever comes goes back.
    let echo = |router: Router, frames| async move { router.send(frames) };
    Router::bind("heartbeat", &file.endpoint(file.hb_port), echo)
        .await
        .map_err(failed("heartbeat", file.hb_port))?;
    Ok(Frontend {
        requests: receiver,
        outbox: Outbox {
            shell,
            control,
            stdin,
            publisher,
            signer,
        },
    })
}

/// Hands over what is signed with our key; the rest is logged and forgotten.
async fn receive(
    channel: Channel,
    frames: Vec<Bytes>,
    signer: Signer,
    requests: mpsc::Sender<Incoming>,
) {
    match Message::decode(frames, &signer) {
        Ok(message) => {
            // Fails only once the kernel no longer takes requests.
            let _ = requests.send(Incoming { channel, message }).await;
        }
        Err(error) => tracing::warn!("ignored on the {channel} channel: {error}"),
    }
}
