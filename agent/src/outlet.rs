//! Where an agent's messages go: to the kernel that it is a part of, or over a wire.

use cellferry_wire::Sender;
use cellferry_wire::protocol::{FromAgent, WorkerId};
use tokio::sync::mpsc;

/// The way to the kernel. Clones share it.
#[derive(Clone, Debug)]
pub enum Outlet {
    /// In this process.
    Here(mpsc::UnboundedSender<FromAgent>),
    /// Elsewhere.
    Wire(Sender<FromAgent>),
}

impl Outlet {
    /// Never waits: for what is bounded otherwise, and for output, which is lost where it is not taken.
    pub fn tell(&self, message: FromAgent) {
        match self {
            // After the kernel is gone, workers must still be able to end.
            Self::Here(inbox) => drop(inbox.send(message)),
            Self::Wire(sender) => sender.queue(message),
        }
    }

    /// Waits while the message's stream is full; false once nobody listens. Dropped while it waits, it has sent nothing.
    pub async fn send(&self, message: FromAgent) -> bool {
        match self {
            Self::Here(inbox) => inbox.send(message).is_ok(),
            Self::Wire(sender) => sender.send(message).await,
        }
    }

    /// How many bytes of a worker's output wait for a link.
    pub fn waiting(&self, worker: WorkerId) -> usize {
        match self {
            Self::Here(_) => 0,
            Self::Wire(sender) => sender.waiting(worker.stream()),
        }
    }

    /// Waits until at most so many do, or nobody listens any more.
    pub async fn until_waiting(&self, worker: WorkerId, most: usize) {
        match self {
            Self::Here(_) => {}
            Self::Wire(sender) => sender.until_waiting(worker.stream(), most).await,
        }
    }
}
