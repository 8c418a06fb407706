//! Which transfers are under way, so that each can be given up, wherever it is at work.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use thiserror::Error;
use tokio_util::sync::CancellationToken;

/// How many forgotten numbers are remembered whose transfer has not been seen: it may be on its way still.
const FORGOTTEN: usize = 10_000;

/// All transfers under way. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct Tickets(Arc<Mutex<State>>);

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
    /// To this machine.
    Here,
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

/// Why a transfer that is to come cannot begin.
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
    /// Begins a transfer. One that goes away is never refused.
    pub fn begin(&self, transfer: u64, way: Way) -> Result<Ticket, Refusal> {
        let state = &mut *self.lock();
        if way == Way::Here {
            if state.forgotten.remove(&transfer) {
                return Err(Refusal::Forgotten);
            }
            if state.is_coming(transfer) {
                return Err(Refusal::Coming);
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
        self.lock().is_coming(transfer)
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
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn is_coming(&self, transfer: u64) -> bool {
        let under_way = self.under_way.get(&transfer);
        under_way.is_some_and(|all| all.iter().any(|one| one.way == Way::Here))
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
    }
}
