//! Jupyter messaging for kernels: sockets, signing, messages and heartbeat.
//!
//! Implements the kernel's side of the Jupyter messaging protocol, version 5.4
//! (<https://jupyter-client.readthedocs.io/en/stable/messaging.html>). It knows no workflow.

pub mod author;
pub mod connection;
pub mod iopub;
pub mod message;
mod outgoing;
mod router;
pub mod signing;
mod sockets;
mod zmtp;

pub use author::Author;
pub use sockets::{BindError, Channel, Frontend, Incoming, Outbox, bind};
