//! The iopub publisher: ZMTP 3 with the NULL mechanism, bounded by bytes for each subscriber.
//!
//! Written here because the zeromq crate's PUB socket counts messages, not bytes, drops without a
//! word, and hides subscriptions, which `iopub_welcome` needs. A subscriber that does not read
//! loses messages, is told so when it reads again, and neither delays the others nor grows us.
//! Source: ZMTP 3.1 (<https://rfc.zeromq.org/spec/37/>); Jupyter messaging, "Welcome message".

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::{Bytes, BytesMut};
use serde_json::json;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::Notify;

use crate::author::Author;
use crate::signing::Signer;

/// What may wait for one subscriber, in bytes. One larger message is let through by itself.
pub const QUEUE_LIMIT: usize = 32 << 20;

/// The largest frame that a subscriber may send us, in bytes: subscriptions are short.
const INCOMING_LIMIT: u64 = 64 << 10;

const MORE: u8 = 1;
const LONG: u8 = 2;
const COMMAND: u8 = 4;

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
    queue: Mutex<Queue>,
    changed: Notify,
    drained: Notify,
}

#[derive(Debug, Default)]
struct Queue {
    topics: Vec<Bytes>,
    messages: VecDeque<Vec<Bytes>>,
    bytes: usize,
    missed: usize,
    missed_bytes: usize,
    writing: bool,
    closed: bool,
}

/// A poisoned lock only means that another task panicked; the queue itself is whole.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn size(frames: &[Bytes]) -> usize {
    frames.iter().map(Bytes::len).sum()
}

impl Publisher {
    /// Listens on a `tcp://` or `ipc://` endpoint. The signer is for the publisher's own messages.
    pub async fn bind(endpoint: &str, signer: Signer) -> io::Result<Self> {
        let publisher = Self {
            shared: Arc::new(Shared {
                subscribers: Mutex::default(),
                signer,
                author: Author::new(),
            }),
        };
        let serving = publisher.clone();
        if let Some(path) = endpoint.strip_prefix("ipc://") {
            let listener = UnixListener::bind(path)?;
            tokio::spawn(async move {
                loop {
                    match listener.accept().await {
                        Ok((stream, _)) => serving.serve(stream),
                        Err(error) => pause(&error).await,
                    }
                }
            });
        } else {
            let address = endpoint.strip_prefix("tcp://").unwrap_or(endpoint);
            let listener = TcpListener::bind(address).await?;
            tokio::spawn(async move {
                loop {
                    match listener.accept().await {
                        Ok((stream, _)) => {
                            let _ = stream.set_nodelay(true);
                            serving.serve(stream);
                        }
                        Err(error) => pause(&error).await,
                    }
                }
            });
        }
        Ok(publisher)
    }

    /// Queues a message, its first frame the topic, for every subscriber of that topic.
    pub fn publish(&self, frames: Vec<Bytes>) {
        let topic = frames.first().cloned().unwrap_or_default();
        for subscriber in lock(&self.shared.subscribers).iter() {
            let mut queue = lock(&subscriber.queue);
            if queue.topics.iter().any(|wanted| topic.starts_with(wanted)) {
                queue.push(frames.clone());
                drop(queue);
                subscriber.changed.notify_one();
            }
        }
    }

    /// Waits until everything queued so far has been written.
    pub async fn flush(&self) {
        let subscribers = lock(&self.shared.subscribers).clone();
        for subscriber in subscribers {
            loop {
                let drained = subscriber.drained.notified();
                {
                    let queue = lock(&subscriber.queue);
                    if queue.closed || queue.messages.is_empty() && !queue.writing {
                        break;
                    }
                }
                drained.await;
            }
        }
    }

    fn serve<S: AsyncRead + AsyncWrite + Send + 'static>(&self, stream: S) {
        let publisher = self.clone();
        tokio::spawn(async move {
            let (mut reader, mut writer) = tokio::io::split(stream);
            if let Err(error) = greet(&mut reader, &mut writer).await {
                tracing::warn!("ignored a connection to iopub: {error}");
                return;
            }
            let subscriber = Arc::new(Subscriber::default());
            lock(&publisher.shared.subscribers).push(subscriber.clone());
            let outcome = tokio::select! {
                outcome = publisher.listen(&mut reader, &subscriber) => outcome,
                outcome = publisher.deliver(&mut writer, &subscriber) => outcome,
            };
            if let Err(error) = outcome {
                if error.kind() != io::ErrorKind::UnexpectedEof {
                    tracing::debug!("an iopub subscriber is gone: {error}");
                }
            }
            lock(&publisher.shared.subscribers).retain(|other| !Arc::ptr_eq(other, &subscriber));
            lock(&subscriber.queue).closed = true;
            subscriber.drained.notify_waiters();
        });
    }

    /// Takes subscriptions, as messages (ZMTP 3.0) or commands (3.1).
    async fn listen(
        &self,
        reader: &mut (impl AsyncRead + Unpin),
        subscriber: &Subscriber,
    ) -> io::Result<()> {
        loop {
            let (flags, body) = read_frame(reader).await?;
            let (subscribe, topic) = if flags & COMMAND != 0 {
                match (
                    command(&body, b"SUBSCRIBE"),
                    command(&body, b"CANCEL"),
                    command(&body, b"PING"),
                ) {
                    (Some(topic), ..) => (true, topic),
                    (_, Some(topic), _) => (false, topic),
                    (.., Some(ping)) => {
                        let mut pong = BytesMut::from(&b"\x04PONG"[..]);
                        pong.extend_from_slice(ping.get(2..).unwrap_or_default());
                        let mut queue = lock(&subscriber.queue);
                        // An empty topic frame cannot occur in a message of ours: it marks a command.
                        queue.messages.push_back(vec![Bytes::new(), pong.freeze()]);
                        drop(queue);
                        subscriber.changed.notify_one();
                        continue;
                    }
                    _ => continue,
                }
            } else {
                match body.first() {
                    Some(1) => (true, body.slice(1..)),
                    Some(0) => (false, body.slice(1..)),
                    _ => continue,
                }
            };
            let mut queue = lock(&subscriber.queue);
            if subscribe {
                queue.topics.push(topic.clone());
                let content = json!({"subscription": String::from_utf8_lossy(&topic)});
                let mut welcome = self.shared.author.message("iopub_welcome", None, &content);
                // The frame must match the subscription; an empty one gets the message's type.
                if !topic.is_empty() {
                    welcome.identities = vec![topic];
                }
                queue.push(welcome.encode(&self.shared.signer));
            } else if let Some(index) = queue.topics.iter().position(|known| *known == topic) {
                queue.topics.swap_remove(index);
            }
            drop(queue);
            subscriber.changed.notify_one();
        }
    }

    async fn deliver(
        &self,
        writer: &mut (impl AsyncWrite + Unpin),
        subscriber: &Subscriber,
    ) -> io::Result<()> {
        let mut small = BytesMut::new();
        loop {
            let next = {
                let mut queue = lock(&subscriber.queue);
                let next = queue.pop().or_else(|| queue.note_missed(&self.shared));
                queue.writing = next.is_some();
                next
            };
            let Some(frames) = next else {
                subscriber.drained.notify_waiters();
                subscriber.changed.notified().await;
                continue;
            };
            write_message(writer, &frames, &mut small).await?;
            lock(&subscriber.queue).bytes -= size(&frames);
        }
    }
}

impl Queue {
    fn push(&mut self, frames: Vec<Bytes>) {
        let size = size(&frames);
        if self.bytes > 0 && self.bytes + size > QUEUE_LIMIT {
            self.missed += 1;
            self.missed_bytes += size;
            return;
        }
        self.bytes += size;
        self.messages.push_back(frames);
    }

    /// The bytes of a message count until it is written.
    fn pop(&mut self) -> Option<Vec<Bytes>> {
        let frames = self.messages.pop_front()?;
        if frames.first().is_some_and(Bytes::is_empty) {
            self.bytes += size(&frames);
        }
        Some(frames)
    }

    /// A message that says what this subscriber did not get, once it reads again.
    fn note_missed(&mut self, shared: &Shared) -> Option<Vec<Bytes>> {
        if self.missed == 0 {
            return None;
        }
        let text = format!(
            "[cellferry] {} messages ({:.1} MB) of output were dropped, because this client did not read them in time\n",
            std::mem::take(&mut self.missed),
            std::mem::take(&mut self.missed_bytes) as f64 / 1e6,
        );
        let message =
            shared
                .author
                .message("stream", None, &json!({"name": "stderr", "text": text}));
        let frames = message.encode(&shared.signer);
        self.bytes += size(&frames);
        Some(frames)
    }
}

/// Running out of file descriptors passes; a busy loop would not help.
async fn pause(error: &io::Error) {
    tracing::warn!("cannot accept a connection to iopub: {error}");
    tokio::time::sleep(std::time::Duration::from_millis(100)).await;
}

fn bad(reason: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, reason.to_owned())
}

/// Exchanges greetings and READY commands.
async fn greet(
    reader: &mut (impl AsyncRead + Unpin),
    writer: &mut (impl AsyncWrite + Unpin),
) -> io::Result<()> {
    let mut ours = [0u8; 64];
    ours[0] = 0xff;
    ours[9] = 0x7f;
    ours[10] = 3;
    ours[12..16].copy_from_slice(b"NULL");
    writer.write_all(&ours).await?;
    writer.flush().await?;
    let mut theirs = [0u8; 64];
    reader.read_exact(&mut theirs[..11]).await?;
    if theirs[0] != 0xff || theirs[9] & 1 == 0 || theirs[10] < 3 {
        return Err(bad("not ZMTP 3"));
    }
    reader.read_exact(&mut theirs[11..]).await?;
    if &theirs[12..32] != b"NULL\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0" {
        return Err(bad("a security mechanism other than NULL"));
    }
    let ready = b"\x05READY\x0bSocket-Type\x00\x00\x00\x04XPUB";
    let mut frame = vec![COMMAND, u8::try_from(ready.len()).unwrap_or_default()];
    frame.extend_from_slice(ready);
    writer.write_all(&frame).await?;
    writer.flush().await?;
    let (flags, body) = read_frame(reader).await?;
    if flags & COMMAND == 0 || command(&body, b"READY").is_none() {
        return Err(bad("no READY"));
    }
    Ok(())
}

/// The data of a command frame, if it is the named command.
fn command(body: &Bytes, name: &[u8]) -> Option<Bytes> {
    let length = usize::from(*body.first()?);
    let found = body.get(1..=length)?;
    (found == name).then(|| body.slice(1 + length..))
}

async fn read_frame(reader: &mut (impl AsyncRead + Unpin)) -> io::Result<(u8, Bytes)> {
    let flags = reader.read_u8().await?;
    let length = if flags & LONG != 0 {
        reader.read_u64().await?
    } else {
        u64::from(reader.read_u8().await?)
    };
    if flags > (MORE | LONG | COMMAND) || length > INCOMING_LIMIT {
        return Err(bad("a frame that no subscriber sends"));
    }
    let mut body = vec![0; usize::try_from(length).unwrap_or_default()];
    reader.read_exact(&mut body).await?;
    Ok((flags, Bytes::from(body)))
}

/// Writes a multipart message: small frames together, large ones straight from their buffers.
async fn write_message(
    writer: &mut (impl AsyncWrite + Unpin),
    frames: &[Bytes],
    small: &mut BytesMut,
) -> io::Result<()> {
    const COPY: usize = 16 << 10;
    small.clear();
    let is_command = frames.first().is_some_and(Bytes::is_empty);
    let frames = if is_command { &frames[1..] } else { frames };
    for (index, frame) in frames.iter().enumerate() {
        let more = if index + 1 < frames.len() { MORE } else { 0 };
        let kind = if is_command { COMMAND } else { more };
        match u8::try_from(frame.len()) {
            Ok(length) => small.extend_from_slice(&[kind, length]),
            Err(_) => {
                small.extend_from_slice(&[kind | LONG]);
                small.extend_from_slice(&(frame.len() as u64).to_be_bytes());
            }
        }
        if frame.len() <= COPY {
            small.extend_from_slice(frame);
        } else {
            writer.write_all(small).await?;
            small.clear();
            writer.write_all(frame).await?;
        }
    }
    writer.write_all(small).await?;
    writer.flush().await
}
