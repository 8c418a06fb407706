//! The iopub publisher: an XPUB socket whose queues are bounded by bytes for each subscriber.
//!
//! Written here because the zeromq crate's PUB socket counts messages, not bytes, drops without a
//! word, and hides subscriptions, which `iopub_welcome` needs. A subscriber that does not read
//! loses messages, is told so when it reads again, and neither delays the others nor grows us.
//! Source: ZMTP 3.1 (<https://rfc.zeromq.org/spec/37/>); Jupyter messaging, "Welcome message".

use std::io;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use serde_json::json;

use crate::author::Author;
use crate::message::DELIMITER;
pub use crate::outgoing::QUEUE_LIMIT;
use crate::outgoing::{Outgoing, lock};
use crate::signing::Signer;
use crate::zmtp::{Connection, Listener, Packet, Reader, command};

/// What may wait beyond [`QUEUE_LIMIT`], in bytes, of messages without which a client would wait
/// for ever: the kernel's status, and the note of what was dropped.
const STATUS_RESERVE: usize = 1 << 20;

/// The largest message that a subscriber may send us, in bytes: subscriptions are short.
const INCOMING_LIMIT: usize = 64 << 10;

/// How many topics a subscriber may ask for.
const TOPIC_LIMIT: usize = 256;

/// Publishes to whoever has subscribed.
#[derive(Clone, Debug)]
pub struct Publisher {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    subscribers: Mutex<Vec<Arc<Subscriber>>>,
    signer: Signer,
    author: Author,
}

#[derive(Debug, Default)]
struct Subscriber {
    topics: Mutex<Vec<Bytes>>,
    queue: Outgoing,
    missed: Mutex<Missed>,
}

/// What a subscriber did not get since the last note to it.
#[derive(Debug, Default)]
struct Missed {
    messages: usize,
    bytes: usize,
    /// The parent header of the last of them, so that a client shows the note where they belong.
    parent: Bytes,
}

impl Publisher {
    /// Listens on a `tcp://` or `ipc://` endpoint. The signer is for the publisher's own messages.
    pub async fn bind(endpoint: &str, signer: Signer) -> io::Result<Self> {
        let listener = Listener::bind(endpoint).await?;
        let publisher = Self {
            shared: Arc::new(Shared {
                subscribers: Mutex::default(),
                signer,
                author: Author::new(),
            }),
        };
        let serving = publisher.clone();
        tokio::spawn(async move {
            loop {
                let connection = listener.accept("iopub").await;
                let publisher = serving.clone();
                tokio::spawn(async move { publisher.serve(connection).await });
            }
        });
        Ok(publisher)
    }

    /// Queues a message, its first frame the topic, for every subscriber of that topic.
    pub fn publish(&self, frames: Vec<Bytes>) {
        let topic = frames.first().cloned().unwrap_or_default();
        for subscriber in lock(&self.shared.subscribers).iter() {
            if subscriber.wants(&topic) {
                self.offer(subscriber, &topic, frames.clone());
            }
        }
    }

    /// Waits until everything queued so far has been written.
    pub async fn flush(&self) {
        let subscribers = lock(&self.shared.subscribers).clone();
        for subscriber in subscribers {
            subscriber.queue.flush().await;
        }
    }

    /// How many subscribers there are.
    pub fn subscribers(&self) -> usize {
        lock(&self.shared.subscribers).len()
    }

    /// The bytes that wait for subscribers.
    pub fn queued(&self) -> usize {
        lock(&self.shared.subscribers)
            .iter()
            .map(|subscriber| subscriber.queue.bytes())
            .sum()
    }

    fn offer(&self, subscriber: &Subscriber, topic: &[u8], frames: Vec<Bytes>) {
        let reserve = if topic.ends_with(b"status") {
            // The note comes before the status, because a client stops reading at its cell's idle.
            if let Some(note) = self.note(subscriber) {
                subscriber.queue.push(note, STATUS_RESERVE);
            }
            STATUS_RESERVE
        } else {
            0
        };
        let packet = Packet::Message(frames);
        let size = packet.size();
        let parent = parent_header(&packet);
        if !subscriber.queue.push(packet, reserve) {
            let mut missed = lock(&subscriber.missed);
            if missed.messages == 0 {
                tracing::warn!("an iopub subscriber does not read: messages for it are dropped");
            }
            missed.messages += 1;
            missed.bytes += size;
            missed.parent = parent;
        }
    }

    /// A message that says what this subscriber did not get.
    fn note(&self, subscriber: &Subscriber) -> Option<Packet> {
        let missed = std::mem::take(&mut *lock(&subscriber.missed));
        if missed.messages == 0 {
            return None;
        }
        let text = format!(
            "[cellferry] {} messages ({:.1} MB) of output were dropped, because this client did not read them in time\n",
            missed.messages,
            missed.bytes as f64 / 1e6,
        );
        let content = json!({"name": "stderr", "text": text});
        let mut message = self.shared.author.message("stream", None, &content);
        if !missed.parent.is_empty() {
            message.parent_header = missed.parent;
        }
        Some(Packet::Message(message.encode(&self.shared.signer)))
    }

    async fn serve(self, mut connection: Connection) {
        if let Err(error) = connection.greet("XPUB", &["SUB", "XSUB"]).await {
            tracing::warn!("ignored a connection to iopub: {error}");
            return;
        }
        let subscriber = Arc::new(Subscriber::default());
        lock(&self.shared.subscribers).push(subscriber.clone());
        let Connection {
            mut reader,
            mut writer,
        } = connection;
        let outcome = tokio::select! {
            outcome = self.listen(&mut reader, &subscriber) => outcome,
            outcome = subscriber.queue.write_to(&mut writer, || self.note(&subscriber)) => outcome,
        };
        if let Err(error) = outcome {
            tracing::debug!("an iopub subscriber is gone: {error}");
        }
        lock(&self.shared.subscribers).retain(|other| !Arc::ptr_eq(other, &subscriber));
        subscriber.queue.close();
    }

    /// Takes subscriptions, as messages (ZMTP 3.0) or commands (3.1).
    async fn listen(&self, reader: &mut Reader, subscriber: &Subscriber) -> io::Result<()> {
        loop {
            let packet = reader.read(INCOMING_LIMIT).await?;
            if let Some(pong) = packet.pong() {
                subscriber.queue.push(pong, 0);
                continue;
            }
            match subscription(&packet) {
                Some((true, topic)) => {
                    {
                        let mut topics = lock(&subscriber.topics);
                        if topics.len() >= TOPIC_LIMIT {
                            tracing::warn!("an iopub subscriber asks for too many topics");
                            continue;
                        }
                        topics.push(topic.clone());
                    }
                    self.welcome(subscriber, topic);
                }
                Some((false, topic)) => {
                    let mut topics = lock(&subscriber.topics);
                    if let Some(index) = topics.iter().position(|known| *known == topic) {
                        topics.swap_remove(index);
                    }
                }
                None => {}
            }
        }
    }

    fn welcome(&self, subscriber: &Subscriber, topic: Bytes) {
        let content = json!({"subscription": String::from_utf8_lossy(&topic)});
        let mut welcome = self.shared.author.message("iopub_welcome", None, &content);
        // The frame must match the subscription; an empty one gets the message's type.
        if !topic.is_empty() {
            welcome.identities = vec![topic.clone()];
        }
        self.offer(subscriber, &topic, welcome.encode(&self.shared.signer));
    }
}

impl Subscriber {
    fn wants(&self, topic: &[u8]) -> bool {
        lock(&self.topics)
            .iter()
            .any(|wanted| topic.starts_with(wanted))
    }
}

/// Whether a packet subscribes or cancels, and to what.
fn subscription(packet: &Packet) -> Option<(bool, Bytes)> {
    match packet {
        Packet::Command(body) => command(body, b"SUBSCRIBE")
            .map(|topic| (true, topic))
            .or_else(|| command(body, b"CANCEL").map(|topic| (false, topic))),
        Packet::Message(frames) => {
            let body = frames.first()?;
            match body.first()? {
                1 => Some((true, body.slice(1..))),
                0 => Some((false, body.slice(1..))),
                _ => None,
            }
        }
    }
}

/// The parent header among a message's frames: the third after the delimiter.
fn parent_header(packet: &Packet) -> Bytes {
    let Packet::Message(frames) = packet else {
        return Bytes::new();
    };
    let delimiter = frames.iter().position(|frame| frame.as_ref() == DELIMITER);
    delimiter
        .and_then(|delimiter| frames.get(delimiter + 3).cloned())
        .unwrap_or_default()
}
