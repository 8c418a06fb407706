//! The agent as the kernel meets it.
//!
//! `CELLFERRY_TEST_PYTHON` names a Python with ipykernel; else that of the checkout's `.venv`.

#![allow(clippy::unwrap_used)] // In a test a panic is the report.

mod allocation;
mod attach;
mod common;
mod doors;
mod files;
mod ranks;
mod transfers;
mod workers;
