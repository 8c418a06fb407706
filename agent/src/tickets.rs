//! Which transfers are under way, so that each can be given up, wherever it is at work.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use thiserror::Error;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

/// How many forgotten numbers are remembered whose transfer has not been seen: it may be on its way still.
const FORGOTTEN: usize = 10_000;

/// All transfers under way. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct Tickets(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    /// A ticket has been dropped.
    dropped: Notify,
}

#[derive(Debug, Default)]
struct State {
    under_way: HashMap<u64, Vec<UnderWay>>,
    forgotten: BTreeSet<u64>,
    /// Counts tickets.
    last: u64,
}

#[derive(Debug)]
struct UnderWay {
    number: u64,
    way: Way,
    cancel: CancellationToken,
}

/// Which way a transfer goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// To this machine, because the kernel says so: what was coming under the same number is given up for it.
    Here,
    /// To this machine, because another agent brings it.
    Brought,
    /// Away from it; several times at once, if that is asked for.
    Away,
}

/// A transfer under way, until it is dropped.
#[derive(Debug)]
pub struct Ticket {
    transfer: u64,
    number: u64,
    cancel: CancellationToken,
    tickets: Tickets,
}

/// Why a transfer that is to come does not begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Refusal {
    /// Nobody wants it any more.
    #[error("it is not wanted any more")]
    Forgotten,
    /// It is coming already.
    #[error("it is coming already")]
    Coming,
}

impl Tickets {
    /// Begins a transfer. One that goes away is never refused, and only one that is brought while it is coming already.
    pub fn begin(&self, transfer: u64, way: Way) -> Result<Ticket, Refusal> {
        let state = &mut *self.lock();
        if way != Way::Away && state.forgotten.remove(&transfer) {
            return Err(Refusal::Forgotten);
        }
        for earlier in state.coming(transfer) {
            match way {
                Way::Here => earlier.cancel.cancel(),
                Way::Brought => return Err(Refusal::Coming),
                Way::Away => {}
            }
        }
        state.last += 1;
        let (number, cancel) = (state.last, CancellationToken::new());
        state.under_way.entry(transfer).or_default().push(UnderWay {
            number,
            way,
            cancel: cancel.clone(),
        });
        Ok(Ticket {
            transfer,
            number,
            cancel,
            tickets: self.clone(),
        })
    }

    /// Whether a transfer is coming, and not whole yet.
    pub fn is_coming(&self, transfer: u64) -> bool {
        self.lock().coming(transfer).next().is_some()
    }

    /// Gives a transfer up. One that is neither under way nor `known` otherwise will not begin to come.
    pub fn forget(&self, transfer: u64, known: bool) {
        let mut state = self.lock();
        if let Some(under_way) = state.under_way.get(&transfer) {
            under_way.iter().for_each(|one| one.cancel.cancel());
        } else if !known {
            state.forgotten.insert(transfer);
            if state.forgotten.len() > FORGOTTEN {
                state.forgotten.pop_first();
            }
        }
    }

    /// Gives all up.
    pub fn forget_all(&self) {
        let state = self.lock();
        let all = state.under_way.values().flatten();
        all.for_each(|one| one.cancel.cancel());
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn coming(&self, transfer: u64) -> impl Iterator<Item = &UnderWay> {
        let under_way = self.under_way.get(&transfer).into_iter().flatten();
        under_way.filter(|one| one.way != Way::Away)
    }
}

impl Ticket {
    /// The transfer's number.
    pub fn transfer(&self) -> u64 {
        self.transfer
    }

    /// Whether it has been given up.
    pub fn is_cancelled(&self) -> bool {
        self.cancel.is_cancelled()
    }

    /// Waits until what was coming before under the same number, and is given up, has left nothing.
    pub async fn alone(&self) {
        loop {
            let dropped = self.tickets.0.dropped.notified();
            let before = |one: &UnderWay| one.number < self.number;
            if !self.tickets.lock().coming(self.transfer).any(before) {
                return;
            }
            dropped.await;
        }
    }

    /// Waits until it has been given up.
    pub async fn cancelled(&self) {
        self.cancel.cancelled().await;
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let mut state = self.tickets.lock();
        if let Some(under_way) = state.under_way.get_mut(&self.transfer) {
            under_way.retain(|one| one.number != self.number);
            if under_way.is_empty() {
                state.under_way.remove(&self.transfer);
            }
        }
        drop(state);
        self.tickets.0.dropped.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_the_kernel_sends_takes_the_place_of_what_is_brought() {
        let tickets = Tickets::default();
        let brought = tickets.begin(1, Way::Brought).unwrap();
        let sent = tickets.begin(1, Way::Here).unwrap();
        assert!(brought.is_cancelled() && !sent.is_cancelled());
        let refused = tickets.begin(1, Way::Brought).unwrap_err();
        assert_eq!(refused, Refusal::Coming);
        {
            let mut alone = std::pin::pin!(sent.alone());
            assert!(futures::poll!(&mut alone).is_pending());
            drop(brought);
            alone.await;
        }
        drop(sent);
        assert!(!tickets.is_coming(1));
    }

    #[tokio::test]
    async fn what_is_forgotten_before_it_comes_does_not_begin() {
        let tickets = Tickets::default();
        tickets.forget(1, false);
        assert_eq!(tickets.begin(1, Way::Here).unwrap_err(), Refusal::Forgotten);
        tickets.forget(2, true);
        let ticket = tickets.begin(2, Way::Here).unwrap();
        tickets.forget(2, false);
        assert!(ticket.is_cancelled());
    }
}
