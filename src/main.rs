//! The `cellferry` program.

use std::process::ExitCode;

fn main() -> ExitCode {
    cellferry::cli::main()
}
