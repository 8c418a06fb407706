//! Connections to real sshd processes on this machine, each with keys, settings and homes of its own.

#![allow(clippy::unwrap_used)]

mod exec;
mod factors;
mod login;
mod reach;
mod trust;
mod world;
