//! The agent as a program of its own.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use cellferry_agent::allocation::{Allocation, gate, node, reach};
use cellferry_agent::attach::{AttachError, Attachment, inherited};
use cellferry_agent::{AgentError, OWN_PROGRAM, RunDir, guard, rank, serve};
use cellferry_wire::BUILD;
use tracing_subscriber::EnvFilter;

const USAGE: &str = "Runs workers for a Cellferry kernel, which starts it.

cellferry-agent                 serve the kernel over stdin and stdout, and end with it
cellferry-agent attach --conversation HEX32 --patience SECONDS [--existing]
                                reach the agent of a conversation over stdin and stdout; unless it is to
                                exist, start it. It stays for so long without a link
cellferry-agent reach --allocation DIRECTORY --node NUMBER --conversation HEX32 --patience SECONDS
                                reach the agent of one of its nodes over stdin and stdout
cellferry-agent node --allocation DIRECTORY --patience SECONDS
                                be that agent, on the node of which $SLURM_NODEID is the number; the exit code is 75 if
                                nobody has wanted it for so long
cellferry-agent rank --island DIRECTORY
                                be one rank of an MPI step, as its launcher has started it
cellferry-agent check HASH      succeed if this program has this BLAKE3 hash
cellferry-agent --version       print the version
";

/// Exit code for an agent that is not there any more: `EX_UNAVAILABLE` of sysexits.h.
const GONE: u8 = 69;

/// Exit code of a node's agent that nobody has wanted for its patience: `EX_TEMPFAIL`. The job's script knows it.
const PATIENCE_OVER: u8 = 75;

/// Exit code for a wrong command line: `EX_USAGE`.
const WRONG: u8 = 64;

fn main() -> ExitCode {
    let arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
    if let Some((first, directories)) = arguments.split_first()
        && first == "guard"
    {
        guard::watch(&directories.iter().map(PathBuf::from).collect::<Vec<_>>());
        return ExitCode::SUCCESS;
    }
    let arguments: Vec<&str> = arguments
        .iter()
        .map(|word| word.to_str().unwrap_or("\u{fffd}"))
        .collect();
    tracing_subscriber::fmt()
        .with_env_filter(
            EnvFilter::try_from_env("CELLFERRY_LOG")
                .unwrap_or_else(|_| EnvFilter::new("warn,zeromq=error")),
        )
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .init();
    match *arguments {
        [] => run(serve(
            tokio::io::stdin(),
            tokio::io::stdout(),
            (OWN_PROGRAM.as_ref(), &["guard"]),
        )),
        [
            "attach",
            "--conversation",
            conversation,
            "--patience",
            patience,
            ref rest @ ..,
        ] if matches!(rest, [] | ["--existing"]) => match Attachment::new(conversation, patience) {
            Some(attachment) => attached(attachment.attach(!rest.is_empty())),
            None => usage(),
        },
        [
            "stay",
            "--conversation",
            conversation,
            "--patience",
            patience,
            directory,
        ] => match Attachment::new(conversation, patience) {
            Some(attachment) => run(attachment.stay(PathBuf::from(directory))),
            None => usage(),
        },
        [
            "reach",
            "--allocation",
            directory,
            "--node",
            node,
            "--conversation",
            conversation,
            "--patience",
            patience,
        ] => match (node.parse(), Attachment::new(conversation, patience)) {
            (Ok(node), Some(Attachment { patience, .. })) => attached(reach(
                &Allocation::at(directory),
                node,
                conversation,
                patience,
            )),
            _ => usage(),
        },
        [
            "gate",
            "--allocation",
            directory,
            "--patience",
            patience,
            place,
        ] => match patience.parse() {
            Ok(seconds) => run(serve_gate(
                Allocation::at(directory),
                Duration::from_secs(seconds),
                RunDir::given(place.into()),
            )),
            Err(_) => usage(),
        },
        ["node", "--allocation", directory, "--patience", patience] => {
            let number = std::env::var("SLURM_NODEID").unwrap_or_else(|_| "0".to_owned());
            match (number.parse(), patience.parse()) {
                (Ok(number), Ok(seconds)) => run_to(
                    node(
                        Allocation::at(directory),
                        number,
                        Duration::from_secs(seconds),
                    ),
                    |forsaken| {
                        if forsaken {
                            ExitCode::from(PATIENCE_OVER)
                        } else {
                            ExitCode::SUCCESS
                        }
                    },
                ),
                _ => usage(),
            }
        }
        ["rank", "--island", directory] => run(rank(directory.as_ref())),
        ["check", hash] => match own_hash() {
            Ok(own) if own.eq_ignore_ascii_case(hash) => ExitCode::SUCCESS,
            Ok(own) => fail(&format!("this program has the hash {own}")),
            Err(error) => fail(&format!("cannot read this program: {error}")),
        },
        ["--version"] => {
            println!("cellferry-agent {BUILD}");
            ExitCode::SUCCESS
        }
        _ => usage(),
    }
}

/// One thread: messages take fewer hops, and workers die with the thread that started them.
fn run(serving: impl Future<Output = Result<(), AgentError>>) -> ExitCode {
    run_to(serving, |()| ExitCode::SUCCESS)
}

fn run_to<T>(
    serving: impl Future<Output = Result<T, AgentError>>,
    code: impl FnOnce(T) -> ExitCode,
) -> ExitCode {
    let outcome = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(AgentError::from)
        .and_then(|runtime| {
            let served = runtime.block_on(serving);
            // Reading stdin cannot be cancelled; nothing waits for it.
            runtime.shutdown_background();
            served
        });
    match outcome {
        Ok(served) => code(served),
        Err(error) => fail(&error.to_string()),
    }
}

/// `gate`, as `reach` has prepared it in `place`.
async fn serve_gate(
    allocation: Allocation,
    patience: Duration,
    place: RunDir,
) -> Result<(), AgentError> {
    let (callers, lock) = inherited()?;
    let served = gate(&allocation, callers, patience).await;
    drop(place);
    drop(lock);
    Ok(served?)
}

fn attached(result: Result<(), AttachError>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error @ AttachError::Gone(_)) => {
            eprintln!("error: {error}");
            ExitCode::from(GONE)
        }
        Err(error) => fail(&error.to_string()),
    }
}

fn own_hash() -> std::io::Result<String> {
    let mut hasher = blake3::Hasher::new();
    hasher.update_reader(std::fs::File::open(OWN_PROGRAM)?)?;
    Ok(hasher.finalize().to_hex().to_string())
}

fn fail(error: &str) -> ExitCode {
    eprintln!("error: {error}");
    ExitCode::FAILURE
}

fn usage() -> ExitCode {
    eprint!("{USAGE}");
    ExitCode::from(WRONG)
}
