//! The command line.

mod check;
mod doctor;
mod graph;
mod install;
mod listing;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use cellferry_agent::OWN_PROGRAM;
use clap::{Parser, Subcommand};
use tracing_subscriber::EnvFilter;

use crate::driver::{self, Options};

/// A Jupyter kernel whose cells run on many machines.
#[derive(Debug, Parser)]
#[command(name = "cellferry", version, about, long_about = LONG, after_help = EXAMPLES)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

const LONG: &str = "A Jupyter kernel whose cells run on many machines.\n\n\
    A cell's metadata says where it runs. Cellferry carries the values that it reads there, runs it, \
    and shows its output in the notebook while it runs.";

const EXAMPLES: &str = "Examples:\n  \
    cellferry install --user       make the kernel known to Jupyter\n  \
    cellferry doctor               check the set-up and all targets of this folder\n  \
    cellferry doctor lab           check the target `lab`\n  \
    cellferry check a.ipynb        check the metadata of all cells\n  \
    cellferry graph a.ipynb        show which cell reads what from which\n\n\
    Set CELLFERRY_LOG=debug to see on stderr what the kernel does.";

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the kernel; Jupyter clients do this
    Kernel {
        /// The connection file that the client wrote
        #[arg(short = 'f', long, value_name = "FILE")]
        connection_file: PathBuf,
        /// The Python of cells that run at home [default: the environment cellferry is installed in, else the active one]
        #[arg(long, value_name = "PROGRAM")]
        python: Option<PathBuf>,
    },
    /// Make the kernel known to Jupyter
    Install(install::Arguments),
    /// Check the set-up and the targets, and say what to mend
    Doctor(doctor::Arguments),
    /// Check the metadata of every cell of notebooks; contacts no target
    Check(check::Arguments),
    /// Show which cell reads what from which, and which steps can overlap; runs nothing
    Graph(graph::Arguments),
    /// Run workers for a kernel, over stdin and stdout
    #[command(hide = true)]
    Agent,
    /// Be one rank of an MPI step
    #[command(hide = true)]
    Rank {
        /// The folder of the ranks' island
        #[arg(long)]
        island: PathBuf,
    },
    /// Clean up after a kernel that was killed
    #[command(hide = true)]
    Guard {
        /// What it leaves behind
        directories: Vec<PathBuf>,
    },
}

/// Exit code of a command that could not do what it should.
const FAILED: u8 = 1;

/// Runs the program. A wrong command line ends it with exit code 2.
pub fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if let Command::Guard { directories } = &arguments.command {
        cellferry_agent::guard::watch(directories);
        return ExitCode::SUCCESS;
    }
    let filter = EnvFilter::try_from_env("CELLFERRY_LOG")
        .unwrap_or_else(|_| EnvFilter::new("warn,zeromq=error"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_target(false)
        .init();
    let outcome = match arguments.command {
        Command::Kernel {
            connection_file,
            python,
        } => kernel(connection_file, python),
        Command::Install(arguments) => install::run(&arguments).map_err(|error| error.to_string()),
        Command::Doctor(arguments) => run(doctor::run(&arguments)).map(code),
        Command::Check(arguments) => Ok(code(check::run(&arguments))),
        Command::Graph(arguments) => graph::run(&arguments).map_err(|error| error.to_string()),
        Command::Agent => agent(),
        Command::Rank { island } => rank(&island),
        Command::Guard { .. } => Ok(ExitCode::SUCCESS),
    };
    outcome.unwrap_or_else(|error| {
        eprintln!("error: {error}");
        ExitCode::from(FAILED)
    })
}

fn code(good: bool) -> ExitCode {
    if good {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(FAILED)
    }
}

/// Prints to stdout. A reader that has seen enough (`| head`) is no fault.
fn print(text: &str) {
    use std::io::Write;
    let mut stdout = std::io::stdout().lock();
    let written = stdout
        .write_all(text.as_bytes())
        .and_then(|()| stdout.flush());
    if let Err(error) = written
        && error.kind() != std::io::ErrorKind::BrokenPipe
    {
        eprintln!("error: cannot print: {error}");
    }
}

fn kernel(connection_file: PathBuf, python: Option<PathBuf>) -> Result<ExitCode, String> {
    run(driver::run(Options {
        connection_file,
        python,
    }))?
    .map_err(|error| error.to_string())
}

fn agent() -> Result<ExitCode, String> {
    let serving = cellferry_agent::serve(
        tokio::io::stdin(),
        tokio::io::stdout(),
        (OWN_PROGRAM.as_ref(), &["guard"]),
    );
    run(async { serving.await.map(|()| ExitCode::SUCCESS) })?.map_err(|error| error.to_string())
}

fn rank(island: &Path) -> Result<ExitCode, String> {
    let serving = cellferry_agent::rank(island);
    run(async { serving.await.map(|()| ExitCode::SUCCESS) })?.map_err(|error| error.to_string())
}

/// One thread: messages take fewer hops, and workers die with the thread that started them.
fn run<T>(future: impl Future<Output = T>) -> Result<T, String> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let runtime = runtime.map_err(|error| format!("cannot start: {error}"))?;
    let outcome = runtime.block_on(future);
    // Reading stdin cannot be cancelled; nothing waits for it.
    runtime.shutdown_background();
    Ok(outcome)
}
