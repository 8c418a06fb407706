//! Cellferry: a Jupyter kernel whose cells run on many machines.
//!
//! The modules follow a cell from the client to its result: see `docs/architecture.md`.

pub mod analysis;
pub mod cell;
pub mod cli;
pub mod driver;
pub mod graph;
pub mod ledger;
pub mod name;
pub mod notebook;
pub mod paths;
pub mod session;
pub mod spelling;
pub mod target;
