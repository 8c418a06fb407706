//! The agent as a program of its own: speaks to the kernel over stdin and stdout.

use std::path::PathBuf;
use std::process::ExitCode;

use cellferry_agent::{OWN_PROGRAM, guard, serve};
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1);
    if arguments.next().is_some_and(|first| first == "guard") {
        guard::watch(&arguments.map(PathBuf::from).collect::<Vec<_>>());
        return ExitCode::SUCCESS;
    }
    tracing_subscriber::fmt()
        .with_env_filter(
            EnvFilter::try_from_env("CELLFERRY_LOG")
                .unwrap_or_else(|_| EnvFilter::new("warn,zeromq=error")),
        )
        .with_writer(std::io::stderr)
        .init();
    let outcome = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(cellferry_agent::AgentError::from)
        .and_then(|runtime| {
            let served = runtime.block_on(serve(
                tokio::io::stdin(),
                tokio::io::stdout(),
                (OWN_PROGRAM.as_ref(), &["guard"]),
            ));
            // Reading stdin cannot be cancelled; nothing waits for it.
            runtime.shutdown_background();
            served
        });
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}
