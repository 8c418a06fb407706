//! The `cellferry` program.

fn main() {}
