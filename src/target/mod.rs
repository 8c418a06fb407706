//! Targets: the places that `cellferry.toml` names, and how to get locations from them.

pub mod batch;
pub mod config;
pub mod home;
pub mod launch;
pub mod ranks;
pub mod shape;
pub mod shared;
pub mod ssh;
