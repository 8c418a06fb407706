//! What the ends of a connection and the tasks that carry it share.

use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use tokio::sync::{Notify, mpsc};
use tokio::time::Instant;

use crate::WireError;
use crate::incoming::{Claim, Incoming, Message, Moment};
use crate::outgoing::Outgoing;
use crate::resume::Resume;

/// A message for the receiver, or why there are no more.
pub type Arrival = Result<Message, WireError>;

/// One connection.
#[derive(Debug)]
pub struct Shared {
    state: Mutex<State>,
    /// Something can be written.
    pub ready: Notify,
    /// Something has been written, or the connection has ended.
    pub room: Notify,
}

#[derive(Debug)]
pub struct State {
    pub outgoing: Outgoing,
    pub incoming: Incoming,
    /// To the receiver; absent once nothing more will come.
    arrivals: Option<mpsc::UnboundedSender<Arrival>>,
    /// Only where a conversation outlives its byte streams.
    pub resume: Option<Resume>,
    /// No more will be sent: end once the queues are empty.
    pub finishing: bool,
    pub closed: bool,
}

impl Shared {
    /// A connection, and what its receiver gets.
    pub fn new(resume: Option<Resume>) -> (Self, mpsc::UnboundedReceiver<Arrival>) {
        let (arrivals, arrived) = mpsc::unbounded_channel();
        let state = State {
            outgoing: Outgoing::default(),
            incoming: Incoming::default(),
            arrivals: Some(arrivals),
            resume,
            finishing: false,
            closed: false,
        };
        let shared = Self {
            state: Mutex::new(state),
            ready: Notify::new(),
            room: Notify::new(),
        };
        (shared, arrived)
    }

    pub fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Nothing more can be sent. What comes is still received, unless this was a conversation that is now given up.
    pub fn close(&self) {
        let mut state = self.lock();
        state.closed = true;
        state.outgoing.clear();
        if let Some(resume) = &mut state.resume {
            resume.give_up();
            state.arrivals = None;
        }
        drop(state);
        self.ready.notify_waiters();
        self.ready.notify_one();
        self.room.notify_waiters();
    }
}

impl State {
    /// Whether the sender has nothing to hope or to wait for any more.
    pub fn is_delivered_or_lost(&self) -> bool {
        self.closed || self.resume.as_ref().is_some_and(Resume::is_delivered)
    }

    /// A chunk has come, uncompressed. False if nobody wants its message.
    pub fn accept(&mut self, stream: u32, last: bool, payload: Bytes) -> Result<bool, WireError> {
        let moment = self.moment();
        let accepted = self.incoming.accept(stream, last, payload, moment)?;
        if accepted.grant > 0 {
            self.outgoing.grant(stream, accepted.grant);
        }
        Ok(match (accepted.message, &self.arrivals) {
            (Some(message), Some(arrivals)) => arrivals.send(Ok(message)).is_ok(),
            (Some(_), None) => false,
            (None, _) => true,
        })
    }

    /// A message has been consumed. True if there is something to write about it.
    pub fn consumed(&mut self, claim: &Claim) -> bool {
        let moment = self.moment();
        let grant = self.incoming.consumed(claim, moment);
        if grant > 0 {
            self.outgoing.grant(claim.stream, grant);
        }
        grant > 0
    }

    /// Nothing more will come, for a reason or in good order.
    pub fn end_arrivals(&mut self, reason: Option<WireError>) {
        if let (Some(arrivals), Some(reason)) = (self.arrivals.take(), reason) {
            let _ = arrivals.send(Err(reason));
        }
    }

    fn moment(&self) -> Option<Moment> {
        let round_trip = self.resume.as_ref()?.round_trip()?;
        Some(Moment {
            now: Instant::now(),
            round_trip,
        })
    }
}
