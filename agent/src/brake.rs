//! Stops a worker whose output nobody takes, before it fills the machine's memory.
//!
//! A Jupyter kernel drops output that is not read, so what it says is always read, and kept until the kernel has it. While a
//! link is slow or lost that can be any amount. A process that writes to a full pipe waits; so does a worker here.

use cellferry_wire::protocol::WorkerId;
use nix::sys::signal::Signal;

use crate::exit::signal_group;
use crate::outlet::Outlet;

/// How much of a worker's output may wait, in bytes, before it is stopped.
const MOST: usize = 128 << 20;

/// How much still waits when it goes on.
const LESS: usize = MOST / 4;

/// A worker that is interrupted goes on, and may say so much more.
const MORE: usize = 16 << 20;

/// The brake of one worker.
#[derive(Debug)]
pub struct Brake {
    worker: WorkerId,
    group: u32,
    outlet: Outlet,
    limit: usize,
    held: bool,
}

impl Brake {
    /// The brake of a worker that is a process group.
    pub fn new(worker: WorkerId, group: u32, outlet: Outlet) -> Self {
        Self {
            worker,
            group,
            outlet,
            limit: MOST,
            held: false,
        }
    }

    /// Stops the worker if too much waits.
    pub fn check(&mut self) {
        let waiting = self.outlet.waiting(self.worker);
        if waiting > self.limit {
            tracing::info!("worker {} is stopped: {waiting} bytes wait", self.worker.0);
            signal_group(self.group, Signal::SIGSTOP);
            self.held = true;
            self.limit = waiting + MORE;
        }
    }

    /// Waits until the worker can go on, if it is stopped.
    pub async fn eased(&self) {
        if self.held {
            self.outlet.until_waiting(self.worker, LESS).await;
        } else {
            std::future::pending().await
        }
    }

    /// Lets the worker go on.
    pub fn release(&mut self) {
        signal_group(self.group, Signal::SIGCONT);
        self.held = false;
        self.limit = MOST;
    }

    /// Lets the worker go on, and never stops it again: it is to end.
    pub fn give_up(&mut self) {
        self.release();
        self.limit = usize::MAX;
    }
}
