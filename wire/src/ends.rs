//! The two ends that the program holds: one to send, one to receive.

use std::marker::PhantomData;
use std::sync::Arc;

use tokio::sync::mpsc;

use crate::WireError;
use crate::envelope::{Envelope, decode, encode};
use crate::incoming::Claim;
use crate::shared::{Arrival, Shared};

/// The sending side. Clones share the connection.
#[derive(Debug)]
pub struct Sender<T> {
    shared: Arc<Shared>,
    kind: PhantomData<fn(T)>,
}

impl<T> Clone for Sender<T> {
    fn clone(&self) -> Self {
        Self::new(self.shared.clone())
    }
}

impl<T> Sender<T> {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        Self {
            shared,
            kind: PhantomData,
        }
    }

    /// Sends what is queued, then ends this direction: the other side's receiver gets `None`.
    ///
    /// Where lost links are resumed, the end is delivered like a message, however many links that takes, and what
    /// comes from the other side is still received until it ends its direction, too.
    pub fn finish(&self) {
        self.shared.lock().finishing = true;
        self.shared.ready.notify_one();
    }

    /// Waits until the connection has ended, or, where lost links are resumed, until all that was sent before
    /// [`Sender::finish`] has been received.
    pub async fn closed(&self) {
        loop {
            let room = self.shared.room.notified();
            if self.shared.lock().is_delivered_or_lost() {
                return;
            }
            room.await;
        }
    }
}

impl<T> Sender<T> {
    /// How many bytes wait to be sent on a stream.
    pub fn waiting(&self, stream: u32) -> usize {
        self.shared.lock().outgoing.waiting(stream)
    }

    /// Waits until at most so many bytes wait to be sent on a stream, or the connection has ended.
    pub async fn until_waiting(&self, stream: u32, most: usize) {
        loop {
            let room = self.shared.room.notified();
            {
                let state = self.shared.lock();
                if state.closed || state.outgoing.waiting(stream) <= most {
                    return;
                }
            }
            room.await;
        }
    }
}

impl<T: Envelope> Sender<T> {
    /// Queues a message; waits while its stream is full. False once the connection has ended.
    pub async fn send(&self, message: T) -> bool {
        let stream = message.stream();
        let Some(chunks) = encode(message) else {
            tracing::error!("a message could not be encoded and was dropped");
            return true;
        };
        loop {
            let room = self.shared.room.notified();
            {
                let mut state = self.shared.lock();
                if state.closed || state.finishing {
                    return false;
                }
                if state.outgoing.accepts(stream) {
                    state.outgoing.push(stream, chunks);
                    break;
                }
            }
            room.await;
        }
        self.shared.ready.notify_one();
        true
    }

    /// Queues a message without waiting; for senders whose messages are few or answered one by one. It is dropped
    /// once the connection has ended.
    pub fn queue(&self, message: T) {
        let stream = message.stream();
        let Some(chunks) = encode(message) else {
            tracing::error!("a message could not be encoded and was dropped");
            return;
        };
        let mut state = self.shared.lock();
        if state.closed || state.finishing {
            return;
        }
        state.outgoing.push(stream, chunks);
        drop(state);
        self.shared.ready.notify_one();
    }
}

/// The receiving side.
#[derive(Debug)]
pub struct Receiver<T> {
    shared: Arc<Shared>,
    arrived: mpsc::UnboundedReceiver<Arrival>,
    kind: PhantomData<fn() -> T>,
}

impl<T> Receiver<T> {
    pub(crate) fn new(shared: Arc<Shared>, arrived: mpsc::UnboundedReceiver<Arrival>) -> Self {
        Self {
            shared,
            arrived,
            kind: PhantomData,
        }
    }
}

impl<T: Envelope> Receiver<T> {
    /// The next message; an error if the stream broke; `None` after a clean end.
    pub async fn recv(&mut self) -> Option<Result<T, WireError>> {
        let received = self.recv_held().await?;
        Some(received.map(|(message, _)| message))
    }

    /// As [`Receiver::recv`], but the message counts as consumed only when the second is dropped: for what is
    /// handed on to a slow taker, whose stream, and no other, must stop then.
    pub async fn recv_held(&mut self) -> Option<Result<(T, Held), WireError>> {
        let message = match self.arrived.recv().await? {
            Ok(message) => message,
            Err(error) => return Some(Err(error)),
        };
        let held = Held {
            shared: self.shared.clone(),
            claim: message.claim,
        };
        let decoded = decode(message.chunks);
        if decoded.is_err() {
            // A message that nobody understands leaves nothing to go on with.
            self.arrived.close();
            while self.arrived.try_recv().is_ok() {}
            self.shared.close();
        }
        Some(decoded.map(|message| (message, held)))
    }
}

/// The credit of a message that was received. Dropped, it goes back to the other side.
#[derive(Debug)]
pub struct Held {
    shared: Arc<Shared>,
    claim: Claim,
}

impl Drop for Held {
    fn drop(&mut self) {
        if self.shared.lock().consumed(&self.claim) {
            self.shared.ready.notify_one();
        }
    }
}
