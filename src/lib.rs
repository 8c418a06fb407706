//! Cellferry: a Jupyter kernel whose cells run on many machines.
//!
//! The modules follow a cell from the client to its result: see `docs/architecture.md`.

pub mod analysis;
pub mod cell;
pub mod name;
pub mod notebook;
pub mod target;
