//! Hosts that are reached by ssh: the agent's program travels there and is attached to.

pub mod agents;
pub mod bootstrap;
