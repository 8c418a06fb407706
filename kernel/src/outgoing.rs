//! What waits for one peer, bounded by bytes.
//!
//! A peer that does not read loses messages beyond the bound; it neither delays other peers nor
//! grows us. What to do about the lost ones is the socket's business.

use std::collections::VecDeque;
use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use crate::zmtp::{Packet, Writer};

/// What may wait for one peer, in bytes, messages larger than this aside.
pub const QUEUE_LIMIT: usize = 32 << 20;

/// What messages larger than [`QUEUE_LIMIT`] may add to it, in bytes: a big figure must not get lost
/// because of the small messages around it, nor they because of the figure.
const LARGE_LIMIT: usize = 512 << 20;

/// A peer's queue.
#[derive(Debug, Default)]
pub(crate) struct Outgoing {
    state: Mutex<State>,
    changed: Notify,
    drained: Notify,
    closing: Notify,
}

#[derive(Debug, Default)]
struct State {
    packets: VecDeque<Packet>,
    /// Of the packets that wait and of the one that is being written.
    bytes: usize,
    /// The same of packets that are larger than the limit for the others.
    large: usize,
    writing: bool,
    closed: bool,
}

/// A poisoned lock only means that another task panicked; what it guards is whole.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Outgoing {
    /// Queues a packet, unless more than [`QUEUE_LIMIT`] and `reserve` bytes would wait then. A
    /// single larger one is let through, whatever its size.
    pub(crate) fn push(&self, packet: Packet, reserve: usize) -> bool {
        let size = packet.size();
        let mut guard = lock(&self.state);
        let state = &mut *guard;
        let (waiting, limit) = if size > QUEUE_LIMIT {
            (&mut state.large, LARGE_LIMIT)
        } else {
            (&mut state.bytes, QUEUE_LIMIT + reserve)
        };
        if state.closed || *waiting > 0 && *waiting + size > limit {
            return false;
        }
        *waiting += size;
        state.packets.push_back(packet);
        drop(guard);
        self.changed.notify_one();
        true
    }

    /// The bytes that wait, for the peer to take or the system to accept.
    pub(crate) fn bytes(&self) -> usize {
        let state = lock(&self.state);
        state.bytes + state.large
    }

    /// Ends [`Outgoing::closed`] and [`Outgoing::flush`]; what still waits is lost.
    pub(crate) fn close(&self) {
        lock(&self.state).closed = true;
        self.closing.notify_one();
        self.drained.notify_waiters();
    }

    /// Waits until somebody closes it.
    pub(crate) async fn closed(&self) {
        self.closing.notified().await;
    }

    /// Writes what is queued, for ever; `when_empty` may add to it each time it has run dry.
    pub(crate) async fn write_to(
        &self,
        writer: &mut Writer,
        when_empty: impl Fn() -> Option<Packet>,
    ) -> io::Result<()> {
        loop {
            let next = {
                let mut state = lock(&self.state);
                let next = state.packets.pop_front();
                state.writing = next.is_some();
                next
            };
            if let Some(packet) = next {
                writer.write(&packet).await?;
                let mut state = lock(&self.state);
                if packet.size() > QUEUE_LIMIT {
                    state.large -= packet.size();
                } else {
                    state.bytes -= packet.size();
                }
            } else if let Some(packet) = when_empty() {
                self.push(packet, 0);
            } else {
                self.drained.notify_waiters();
                self.changed.notified().await;
            }
        }
    }

    /// Waits until everything queued so far has been written, or the peer is gone.
    pub(crate) async fn flush(&self) {
        loop {
            let drained = self.drained.notified();
            {
                let state = lock(&self.state);
                if state.closed || state.packets.is_empty() && !state.writing {
                    return;
                }
            }
            drained.await;
        }
    }
}
