//! The `cellferry` program.

use std::process::ExitCode;

fn main() -> ExitCode {
    // The system's `ssh` starts this program again for each prompt, where it carries the bytes.
    if let Some(status) = cellferry_ssh::askpass_main() {
        return u8::try_from(status).map_or(ExitCode::FAILURE, ExitCode::from);
    }
    cellferry::cli::main()
}
