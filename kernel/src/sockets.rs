//! The five channels of a kernel, bound to the addresses of its connection file.
//!
//! What arrives is verified and handed over in one queue; what leaves goes through an [`Outbox`],
//! which never blocks the caller.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use thiserror::Error;
use tokio::sync::{Notify, mpsc};
use zeromq::{
    RouterRecvHalf, RouterSendHalf, RouterSocket, Socket, SocketRecv, SocketSend, ZmqMessage,
};

use crate::connection::ConnectionFile;
use crate::iopub::Publisher;
use crate::message::Message;
use crate::signing::Signer;

/// How long a reply may wait for a client that does not read.
const PATIENCE: Duration = Duration::from_secs(2);

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
        formatter.write_str(match self {
            Self::Shell => "shell",
            Self::Control => "control",
            Self::Stdin => "stdin",
        })
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
    channel: String,
    endpoint: String,
    reason: String,
}

/// Signs and sends.
#[derive(Clone, Debug)]
pub struct Outbox {
    shell: mpsc::UnboundedSender<Vec<Bytes>>,
    control: mpsc::UnboundedSender<Vec<Bytes>>,
    stdin: mpsc::UnboundedSender<Vec<Bytes>>,
    publisher: Publisher,
    signer: Signer,
    pending: Arc<Pending>,
}

#[derive(Debug, Default)]
struct Pending {
    count: AtomicUsize,
    changed: Notify,
}

impl Pending {
    fn done(&self) {
        self.count.fetch_sub(1, Ordering::AcqRel);
        self.changed.notify_waiters();
    }
}

impl Outbox {
    /// Sends a message to the client that its identities name.
    pub fn send(&self, channel: Channel, message: Message) {
        let queue = match channel {
            Channel::Shell => &self.shell,
            Channel::Control => &self.control,
            Channel::Stdin => &self.stdin,
        };
        self.pending.count.fetch_add(1, Ordering::AcqRel);
        if queue.send(message.encode(&self.signer)).is_err() {
            self.pending.done();
        }
    }

    /// Publishes a message to all subscribers of iopub; its identity is the topic.
    pub fn publish(&self, message: Message) {
        self.publisher.publish(message.encode(&self.signer));
    }

    /// Waits until everything has left, or for `limit`.
    pub async fn flush(&self, limit: Duration) {
        let drained = async {
            loop {
                let changed = self.pending.changed.notified();
                if self.pending.count.load(Ordering::Acquire) == 0 {
                    break;
                }
                changed.await;
            }
            self.publisher.flush().await;
        };
        if tokio::time::timeout(limit, drained).await.is_err() {
            tracing::warn!("some messages had not left after {limit:?}");
        }
        // The crate's writer tasks have the last messages but no way to say that they are out.
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Binds all channels of a connection file, and nothing else.
pub async fn bind(file: &ConnectionFile) -> Result<Frontend, BindError> {
    let signer = Signer::new(&file.key);
    let publisher = Publisher::bind(&file.endpoint(file.iopub_port), signer.clone())
        .await
        .map_err(|error| BindError {
            channel: "iopub".to_owned(),
            endpoint: file.endpoint(file.iopub_port),
            reason: error.to_string(),
        })?;
    let (requests, receiver) = mpsc::channel(BACKLOG);
    let pending = Arc::new(Pending::default());
    let mut queues = Vec::new();
    for (channel, port) in [
        (Channel::Shell, file.shell_port),
        (Channel::Control, file.control_port),
        (Channel::Stdin, file.stdin_port),
    ] {
        let (out, input) = router(&channel.to_string(), &file.endpoint(port))
            .await?
            .split();
        tokio::spawn(receive(channel, input, signer.clone(), requests.clone()));
        let (queue, outgoing) = mpsc::unbounded_channel();
        tokio::spawn(deliver(channel, out, outgoing, pending.clone()));
        queues.push(queue);
    }
    let heartbeat = router("heartbeat", &file.endpoint(file.hb_port)).await?;
    tokio::spawn(echo(heartbeat));
    let [shell, control, stdin] = <[_; 3]>::try_from(queues).map_err(|_| BindError {
        channel: "shell".to_owned(),
        endpoint: String::new(),
        reason: "not all channels are there".to_owned(),
    })?;
    Ok(Frontend {
        requests: receiver,
        outbox: Outbox {
            shell,
            control,
            stdin,
            publisher,
            signer,
            pending,
        },
    })
}

async fn router(channel: &str, endpoint: &str) -> Result<RouterSocket, BindError> {
    let mut socket = RouterSocket::new();
    socket.bind(endpoint).await.map_err(|error| BindError {
        channel: channel.to_owned(),
        endpoint: endpoint.to_owned(),
        reason: error.to_string(),
    })?;
    Ok(socket)
}

/// Hands over what is signed with our key; the rest is logged and forgotten.
async fn receive(
    channel: Channel,
    mut socket: RouterRecvHalf,
    signer: Signer,
    requests: mpsc::Sender<Incoming>,
) {
    loop {
        match socket.recv().await {
            Ok(frames) => match Message::decode(frames.into_vec(), &signer) {
                Ok(message) => {
                    if requests.send(Incoming { channel, message }).await.is_err() {
                        return;
                    }
                }
                Err(error) => tracing::warn!("ignored on the {channel} channel: {error}"),
            },
            Err(error) => {
                tracing::warn!("the {channel} channel reports: {error}");
                tokio::task::yield_now().await;
            }
        }
    }
}

async fn deliver(
    channel: Channel,
    mut socket: RouterSendHalf,
    mut queue: mpsc::UnboundedReceiver<Vec<Bytes>>,
    pending: Arc<Pending>,
) {
    while let Some(frames) = queue.recv().await {
        if let Ok(message) = ZmqMessage::try_from(frames) {
            match tokio::time::timeout(PATIENCE, socket.send(message)).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => {
                    tracing::debug!("a reply on the {channel} channel found no client: {error}")
                }
                Err(_) => tracing::warn!(
                    "dropped a reply on the {channel} channel: its client does not read"
                ),
            }
        }
        pending.done();
    }
}

/// The heartbeat: whatever comes goes back. A ROUTER, because a REP socket stops at a bad peer.
async fn echo(socket: RouterSocket) {
    let (mut out, mut input) = socket.split();
    loop {
        match input.recv().await {
            Ok(message) => {
                let _ = tokio::time::timeout(PATIENCE, out.send(message)).await;
            }
            Err(_) => tokio::task::yield_now().await,
        }
    }
}
