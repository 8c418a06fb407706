//! A ROUTER socket for one channel: many clients, each with an identity and a bounded queue.
//!
//! Written here because the zeromq crate's ROUTER holds 100,000 messages of any size for a client
//! that does not read, allocates whatever length a frame announces (which ends the process), and
//! when a client connects again under its identity, drops the new connection with the old one.
//! A client that comes again takes over its identity, as with `ZMQ_ROUTER_HANDOVER`.

use std::collections::HashMap;
use std::io;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;

use crate::outgoing::{Outgoing, lock};
use crate::zmtp::{Connection, Listener, Packet};

/// The largest message that a client may send, in bytes.
const MESSAGE_LIMIT: usize = 512 << 20;

/// A bound socket.
#[derive(Clone, Debug)]
pub(crate) struct Router {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    channel: &'static str,
    peers: Mutex<HashMap<Bytes, Arc<Outgoing>>>,
    next: AtomicU32,
}

impl Router {
    /// Listens. What comes in goes to `receive`, with the client's identity in front; the client's
    /// connection waits for it.
    pub(crate) async fn bind<F, R>(
        channel: &'static str,
        endpoint: &str,
        receive: F,
    ) -> io::Result<Self>
    where
        F: Fn(Router, Vec<Bytes>) -> R + Clone + Send + Sync + 'static,
        R: Future<Output = ()> + Send,
    {
        let listener = Listener::bind(endpoint).await?;
        let router = Self {
            shared: Arc::new(Shared {
                channel,
                peers: Mutex::default(),
                next: AtomicU32::new(1),
            }),
        };
        let serving = router.clone();
        tokio::spawn(async move {
            loop {
                let connection = listener.accept(channel).await;
                let (router, receive) = (serving.clone(), receive.clone());
                tokio::spawn(async move { router.serve(connection, receive).await });
            }
        });
        Ok(router)
    }

    /// Queues a message for the client that its first frame names.
    pub(crate) fn send(&self, mut frames: Vec<Bytes>) {
        let channel = self.shared.channel;
        if frames.is_empty() {
            return;
        }
        let identity = frames.remove(0);
        let Some(peer) = lock(&self.shared.peers).get(&identity).cloned() else {
            tracing::debug!("a message on the {channel} channel found no client");
            return;
        };
        if !peer.push(Packet::Message(frames), 0) {
            tracing::warn!(
                "dropped a message on the {channel} channel: its client does not read, and {} bytes wait for it",
                peer.bytes()
            );
        }
    }

    /// Waits until everything queued so far has been written.
    pub(crate) async fn flush(&self) {
        let peers: Vec<_> = lock(&self.shared.peers).values().cloned().collect();
        for peer in peers {
            peer.flush().await;
        }
    }

    /// The bytes that wait for clients.
    pub(crate) fn queued(&self) -> usize {
        lock(&self.shared.peers)
            .values()
            .map(|peer| peer.bytes())
            .sum()
    }

    async fn serve<F, R>(self, mut connection: Connection, receive: F)
    where
        F: Fn(Router, Vec<Bytes>) -> R,
        R: Future<Output = ()>,
    {
        let channel = self.shared.channel;
        let identity = match connection
            .greet("ROUTER", &["DEALER", "REQ", "ROUTER"])
            .await
        {
            Ok(identity) if identity.is_empty() => self.fresh_identity(),
            Ok(identity) => identity,
            Err(error) => {
                tracing::warn!("ignored a connection to the {channel} channel: {error}");
                return;
            }
        };
        let peer = Arc::new(Outgoing::default());
        let former = lock(&self.shared.peers).insert(identity.clone(), peer.clone());
        if let Some(former) = former {
            former.close();
        }
        let Connection {
            mut reader,
            mut writer,
        } = connection;
        let listen = async {
            loop {
                let packet = reader.read(MESSAGE_LIMIT).await?;
                if let Some(pong) = packet.pong() {
                    peer.push(pong, 0);
                } else if let Packet::Message(mut frames) = packet {
                    frames.insert(0, identity.clone());
                    receive(self.clone(), frames).await;
                }
            }
        };
        let outcome: io::Result<()> = tokio::select! {
            outcome = listen => outcome,
            outcome = peer.write_to(&mut writer, || None) => outcome,
            () = peer.closed() => Ok(()),
        };
        match outcome {
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                tracing::warn!("closed a connection to the {channel} channel: {error}");
            }
            Err(error) => tracing::debug!("a client left the {channel} channel: {error}"),
            Ok(()) => tracing::debug!("a client came again to the {channel} channel"),
        }
        peer.close();
        let mut peers = lock(&self.shared.peers);
        if peers
            .get(&identity)
            .is_some_and(|current| Arc::ptr_eq(current, &peer))
        {
            peers.remove(&identity);
        }
    }

    /// An identity for a client that has none: a zero byte, which no client may choose, and a number.
    fn fresh_identity(&self) -> Bytes {
        let number = self.shared.next.fetch_add(1, Ordering::Relaxed);
        let mut identity = vec![0];
        identity.extend_from_slice(&number.to_be_bytes());
        Bytes::from(identity)
    }
}
