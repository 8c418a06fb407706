//! From a login to an agent that runs: finds the agent's program on the host or puts it there, and attaches to it.
//!
//! The login shell may be any, and its start-up files may print; so all that is said to it is `exec sh -c '…'` with
//! words that every shell takes alike, and answers are found by their mark.

use std::time::Duration;

use cellferry_ssh::{Client, Ended, Exit, Process, SshError};
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

use super::agents::{self, Program};

/// Stands before our own words in what a host prints.
const MARK: &str = "cellferry: ";

/// How much a login shell may print before our own words, in bytes.
const NOISE: u64 = 256 << 10;

/// A program that has not been used for so many days goes when another one comes. One that runs does not mind.
const UNUSED_DAYS: u32 = 30;

/// How long a command may take to end that says nothing more.
const END: Duration = Duration::from_secs(2);

/// The exit code of an agent's program that finds no agent to attach to.
const NO_AGENT: u32 = 69;

/// Where the program is put: the first place that takes and runs it. The user's cache directory is for good; the
/// others are for a home directory that is full, read-only or mounted without the right to run programs.
const PLACES: [&str; 4] = [
    "${XDG_CACHE_HOME:-$HOME/.cache}/cellferry",
    "/var/tmp/cellferry-$(id -u)",
    "${TMPDIR:-/tmp}/cellferry-$(id -u)",
    "/dev/shm/cellferry-$(id -u)",
];

/// Why there is no agent on a host.
#[derive(Debug, Error)]
pub enum BootstrapError {
    /// The connection itself.
    #[error(transparent)]
    Ssh(#[from] SshError),
    /// The link ended in the middle.
    #[error("the connection broke while the agent was started: {0}")]
    Broken(#[from] std::io::Error),
    /// The agent's program cannot be read here.
    #[error("`{path}` cannot be read: {source}")]
    Program {
        /// The file.
        path: String,
        /// Why.
        source: std::io::Error,
    },
    /// The shell did not do as it was told.
    #[error("the host's shell did not run the command; it said:\n{said}")]
    Shell {
        /// The end of what it printed.
        said: String,
    },
    /// There is no agent for such a machine.
    #[error("there is no agent for `{system}`: it runs on Linux, x86_64 and aarch64")]
    System {
        /// What `uname -sm` says.
        system: String,
    },
    /// This installation lacks the program.
    #[error(
        "this installation of Cellferry has no agent for {architecture}: `{architecture}/cellferry-agent` is not in {looked}; \
         install the cellferry package, or build the agents with tools/agents"
    )]
    NotBuilt {
        /// The host's architecture.
        architecture: String,
        /// Where it was looked for.
        looked: String,
    },
    /// No place takes it.
    #[error(
        "no place on the host takes the agent's program ({megabytes:.1} MB); free some space or mend one of these:\n{tried}"
    )]
    NoPlace {
        /// The program's size.
        megabytes: f64,
        /// Each place with what it said.
        tried: String,
    },
    /// The agent of this conversation has ended.
    #[error("the agent has ended: the host was started anew, or the agent was killed")]
    Gone,
}

/// Attaches to the agent of a conversation; starts it if there is none, unless it must be there already.
pub async fn attach(
    client: &Client,
    conversation: &str,
    patience_seconds: u64,
    existing: bool,
) -> Result<Process, BootstrapError> {
    let existing = if existing { " --existing" } else { "" };
    let command = format!(
        "exec \"$a\" attach --conversation {conversation} --patience {patience_seconds}{existing}"
    );
    run(client, &command).await
}

/// Runs a line of shell on the host in which `$a` is the agent's program; puts that there first if need be. The line has no
/// newline, quote, backslash or exclamation mark in it.
pub async fn run(client: &Client, line: &str) -> Result<Process, BootstrapError> {
    let programs = agents::programs();
    let mut tried = Vec::new();
    // Twice: what is put there is looked for again, by its content.
    for _ in 0..2 {
        let mut process = client.exec(&look(&programs, line)).await?;
        let (word, rest) = match answer(&mut process.stdout).await? {
            Some(line) => {
                let (word, rest) = line.split_once(' ').unwrap_or((&line, ""));
                (word.to_owned(), rest.to_owned())
            }
            None => {
                let mut said = Vec::new();
                let stderr = &mut process.stderr;
                let _ = stderr.take(NOISE).read_to_end(&mut said).await;
                return Err(silent(&mut process.exit, &said).await);
            }
        };
        match word.as_str() {
            "found" => return Ok(process),
            "gone" => return Err(BootstrapError::Gone),
            "unknown" => return Err(BootstrapError::System { system: rest }),
            "missing" => {}
            _ => {
                return Err(BootstrapError::Shell {
                    said: format!("{word} {rest}"),
                });
            }
        }
        let Some(program) = programs.iter().find(|program| program.architecture == rest) else {
            let looked: Vec<_> = agents::directories()
                .iter()
                .map(|path| path.display().to_string())
                .collect();
            return Err(BootstrapError::NotBuilt {
                architecture: rest,
                looked: looked.join(", "),
            });
        };
        let read = tokio::fs::read(&program.path).await;
        let bytes = read.map_err(|source| BootstrapError::Program {
            path: program.path.display().to_string(),
            source,
        })?;
        let mut stored = false;
        for place in PLACES {
            match store(client, place, program, &bytes).await? {
                Ok(()) => {
                    stored = true;
                    break;
                }
                Err(reason) => tried.push(reason),
            }
        }
        if !stored {
            let megabytes = bytes.len() as f64 / 1e6;
            return Err(BootstrapError::NoPlace {
                megabytes,
                tried: tried.join("\n"),
            });
        }
    }
    Err(BootstrapError::Shell {
        said: "the agent's program was stored and is not found".to_owned(),
    })
}

/// Whether an attached process ended because there is no such agent any more.
pub fn says_gone(exit: &Exit) -> bool {
    *exit == Exit::Code(NO_AGENT)
}

/// A command that every login shell runs alike: no newline, quote, backslash or exclamation mark inside.
fn command(script: &str) -> String {
    debug_assert!(!script.contains(['\'', '\n', '\\', '!']));
    format!("exec sh -c '{script}'")
}

/// Says what the machine is, and runs the line if the agent's program is there.
fn look(programs: &[Program], line: &str) -> String {
    let mut cases = String::new();
    for program in programs {
        let (architecture, hash) = (program.architecture, &program.hash);
        cases += &format!("\"Linux {architecture}\") h={hash};; ");
    }
    for architecture in agents::ARCHITECTURES {
        cases += &format!("\"Linux {architecture}\") h=none;; ");
    }
    let places = PLACES.map(|place| format!("\"{place}\"")).join(" ");
    command(&format!(
        "case \"$(uname -s) $(uname -m)\" in {cases}*) echo; echo \"{MARK}unknown $(uname -s) $(uname -m)\"; exit 3;; esac; \
         for d in {places}; do a=\"$d/agent-$h\"; \
         if [ -O \"$d\" ] && [ -x \"$a\" ] && \"$a\" check $h 2>/dev/null; then \
         touch \"$a\" 2>/dev/null; echo; echo \"{MARK}found\"; {line}; exit; fi; done; \
         echo; echo \"{MARK}missing $(uname -m)\""
    ))
}

/// Puts the program in a place and tries it; what the host says if that fails.
async fn store(
    client: &Client,
    place: &str,
    program: &Program,
    bytes: &[u8],
) -> Result<Result<(), String>, BootstrapError> {
    let hash = &program.hash;
    let script = command(&format!(
        "umask 077; d=\"{place}\"; n=\"$d/.agent-$$\"; echo; \
         if {{ mkdir -p \"$d\" && chmod 700 \"$d\" && [ -O \"$d\" ] && cat > \"$n\" && chmod 700 \"$n\" \
         && \"$n\" check {hash} && mv -f \"$n\" \"$d/agent-{hash}\"; }} 2>&1; \
         then find \"$d\" -maxdepth 1 -type f \"(\" -name \"agent-*\" -mtime +{UNUSED_DAYS} -o -name \".agent-*\" -mtime +1 \")\" \
         -exec rm -f {{}} + 2>/dev/null; echo \"{MARK}stored\"; else rm -f \"$n\"; echo; echo \"{MARK}failed $d\"; fi"
    ));
    let Process {
        mut stdin,
        stdout,
        mut exit,
        ..
    } = client.exec(&script).await?;
    let mut said = Vec::new();
    let mut stdout = stdout.take(NOISE);
    let heard = {
        let sent = async {
            // A full disk ends the other side's reading; what it says of it tells more than a broken pipe.
            let _ = stdin.write_all(bytes).await;
            let _ = stdin.shutdown().await;
            std::future::pending::<()>().await;
        };
        tokio::select! {
            heard = stdout.read_to_end(&mut said) => heard,
            () = sent => Ok(0),
        }
    };
    heard?;
    let text = String::from_utf8_lossy(&said);
    let Some((before, word)) = text.rsplit_once(MARK) else {
        return Err(silent(&mut exit, &said).await);
    };
    Ok(match word.trim().strip_prefix("failed ") {
        Some(directory) => Err(format!(
            "{directory}: {}",
            tail(before).lines().last().unwrap_or("it cannot be used")
        )),
        None => Ok(()),
    })
}

/// The rest of the first line with our mark; what a login shell prints before it is passed over.
pub async fn answer(
    stdout: &mut (impl AsyncRead + Unpin),
) -> Result<Option<String>, BootstrapError> {
    // Byte by byte up to the mark's line: what follows is the agent's.
    let mut line = Vec::new();
    let mut seen = 0;
    while seen < NOISE {
        let byte = match stdout.read_u8().await {
            Ok(byte) => byte,
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        seen += 1;
        if byte != b'\n' {
            line.push(byte);
            continue;
        }
        let text = String::from_utf8_lossy(&line);
        if let Some((_, rest)) = text.split_once(MARK) {
            return Ok(Some(rest.trim().to_owned()));
        }
        line.clear();
    }
    Ok(None)
}

/// A shell that said nothing of ours, but this: it did something else, or the link has ended.
async fn silent(exit: &mut Ended, said: &[u8]) -> BootstrapError {
    match timeout(END, exit.wait()).await {
        Ok(Exit::Lost) => BootstrapError::Broken(std::io::ErrorKind::UnexpectedEof.into()),
        _ => BootstrapError::Shell {
            said: tail(&String::from_utf8_lossy(said)),
        },
    }
}

fn tail(text: &str) -> String {
    let lines: Vec<&str> = text.trim().lines().collect();
    lines[lines.len().saturating_sub(5)..].join("\n")
}
