//! Conversations over byte streams that are cut, frozen, slow or far.

#![allow(clippy::unwrap_used)]

mod faults;
mod flow;
mod link;
mod resume;

use bytes::Bytes;
use cellferry_wire::protocol::{Channel, FromAgent, ToAgent, WorkerId};
use cellferry_wire::{Connection, Line};

/// Stops the clock: it goes on only when everybody waits for it.
fn run(test: impl Future<Output = ()>) {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .start_paused(true)
        .build()
        .unwrap()
        .block_on(test);
}

type Kernel = (Connection<ToAgent, FromAgent>, Line);
type Agent = (Connection<FromAgent, ToAgent>, Line);

fn conversation() -> (Kernel, Agent) {
    (
        Connection::resumable(*b"a conversation 1"),
        Connection::resumable(*b"a conversation 1"),
    )
}

/// A message to a worker; each worker has a stream of its own.
fn shell(worker: u32, parts: Vec<Bytes>) -> ToAgent {
    ToAgent::Send {
        worker: WorkerId(worker),
        channel: Channel::Shell,
        parts,
    }
}

/// A message from a worker.
fn output(worker: u32, parts: Vec<Bytes>) -> FromAgent {
    FromAgent::Received {
        worker: WorkerId(worker),
        channel: Channel::Iopub,
        parts,
    }
}

/// A message on stream 0.
fn interrupt(worker: u32) -> ToAgent {
    ToAgent::Interrupt {
        worker: WorkerId(worker),
    }
}

/// Bytes that do not compress.
fn noise(length: usize, seed: u64) -> Bytes {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes.into()
}

/// Bytes that do.
fn text(length: usize) -> Bytes {
    let mut text = String::with_capacity(length + 40);
    let mut line = 0_u64;
    while text.len() < length {
        text.push_str(&format!(
            "row {line}: {}, {}\n",
            line * 7919 % 1000,
            line % 10
        ));
        line += 1;
    }
    text.truncate(length);
    text.into()
}
