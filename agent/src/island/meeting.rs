//! The ranks of an island come together.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use cellferry_wire::protocol::{
    Channel, Exit, FromAgent, Hello, Parts, Ranks, Secret, StartFailure, ToAgent, WorkerId,
    WorkerSpec,
};
use cellferry_wire::{Connection, Receiver, Sender};
use nix::sys::signal::Signal;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{sleep, timeout};

use super::{Directory, Meeting, Visit, secret};
use crate::OWN_PROGRAM;
use crate::direct::{listen, respond};
use crate::files::expand;
use crate::group::Group;
use crate::worker::{Command, START_LIMIT, stopped};

/// Tells a rank's worker that it is one: it hands on what is printed sooner, so that what all print comes together.
const RANK: &str = "CELLFERRY_RANK";

/// Open MPI is not to trap the signals of crashes: where in the cell it was, which Python tells, is worth more than where in
/// which library.
const TRAPPED: (&str, &str) = ("OMPI_MCA_opal_signal", "");

/// How many may be at the port who have not proved that they know the secret. Others wait in the system's queue.
const STRANGERS: usize = 64;

/// How long a stranger has for that.
const GREETING: Duration = Duration::from_secs(5);

/// How long the launcher has to end by itself once its ranks have, and once it was asked to.
const LAST: Duration = Duration::from_secs(2);

/// A rank whose worker is up.
pub struct Came {
    pub visit: Visit,
    pub hello: Hello,
    pub pid: u32,
    pub sender: Sender<ToAgent>,
    pub receiver: Receiver<FromAgent>,
    pub link: Link,
}

/// The connection to a rank: it ends with its owner, and then so does the rank.
pub struct Link(AbortHandle);

impl Drop for Link {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// All ranks, in their order, and what started them.
pub struct Met {
    pub launcher: Group,
    pub ranks: Vec<Came>,
    /// The agent's own directories.
    pub own: [Directory; 2],
}

/// Why somebody who came is not a rank whose worker is up.
enum Failure {
    Stranger(io::Error),
    Rank(StartFailure),
}

/// Starts the ranks of a worker in `folder`, which is made, and waits until all of their workers are up. What is to be sent
/// to them meanwhile is kept in `early`.
pub async fn meet(
    (worker, spec, ranks): (WorkerId, &WorkerSpec, &Ranks),
    folder: &Path,
    own: [&Path; 2],
    commands: &mut mpsc::UnboundedReceiver<Command>,
    early: &mut Vec<(Channel, Parts)>,
) -> Result<Met, StartFailure> {
    let unusable = |error: io::Error| StartFailure::RunDir {
        path: folder.display().to_string(),
        error: error.to_string(),
    };
    let [run_dir, segments] = own;
    let own = [
        Directory::of(run_dir).map_err(unusable)?,
        Directory::of(segments).map_err(unusable)?,
    ];
    let (listener, addresses) = match ranks.spread {
        true => listen(),
        false => here().await,
    }
    .map_err(|error| StartFailure::Ranks {
        reason: format!("cannot listen for its ranks: {error}"),
        stderr_tail: String::new(),
    })?;
    let meeting = Meeting {
        secret: secret().map_err(unusable)?,
        addresses,
        own,
    };
    meeting.write(folder).map_err(unusable)?;
    let mut launcher = launch(spec, ranks, folder, (run_dir, worker))?;
    let gathering = gather(
        (worker, spec, ranks),
        (&listener, meeting.secret),
        &mut launcher,
        commands,
        early,
    );
    match gathering.await {
        Ok(ranks) => Ok(Met {
            launcher,
            ranks,
            own: meeting.own,
        }),
        Err(failure) => {
            end(&mut launcher).await;
            let last_words = launcher.last_words().await;
            Err(match failure {
                StartFailure::Ranks { reason, .. } => StartFailure::Ranks {
                    reason,
                    stderr_tail: last_words,
                },
                StartFailure::Exited { exit, stderr_tail } if stderr_tail.is_empty() => {
                    StartFailure::Exited {
                        exit,
                        stderr_tail: last_words,
                    }
                }
                failure => failure,
            })
        }
    }
}

/// A port that only this machine reaches.
async fn here() -> io::Result<(TcpListener, Vec<std::net::SocketAddr>)> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    Ok((listener, vec![address]))
}

fn launch(
    spec: &WorkerSpec,
    ranks: &Ranks,
    folder: &Path,
    (run_dir, worker): (&Path, WorkerId),
) -> Result<Group, StartFailure> {
    let place = folder.to_string_lossy();
    let words: Vec<String> = ranks
        .launcher
        .iter()
        .map(|word| word.replace("{folder}", &place))
        .collect();
    let (name, rest) = words.split_first().ok_or_else(|| StartFailure::Ranks {
        reason: "no launcher of its ranks is named".to_owned(),
        stderr_tail: String::new(),
    })?;
    let failed = |error: io::Error| StartFailure::Ranks {
        reason: format!("`{name}`, which is to start its ranks, cannot be run: {error}"),
        stderr_tail: String::new(),
    };
    // Its file may have been replaced since, which the system then says in its name; this process still has it.
    let program = std::env::current_exe().map_err(failed)?;
    let program = match program.exists() {
        true => program,
        false => PathBuf::from(OWN_PROGRAM.replace("self", &std::process::id().to_string())),
    };
    let mut command = tokio::process::Command::new(expand(name));
    command
        .args(rest)
        .arg(program)
        .arg("rank")
        .arg("--island")
        .arg(folder)
        .envs(spec.env.iter().map(|(name, value)| (name, value)));
    Group::start(command, run_dir, worker.0).map_err(failed)
}

/// Waits until all ranks have come and their workers are up.
async fn gather(
    (worker, spec, ranks): (WorkerId, &WorkerSpec, &Ranks),
    (listener, secret): (&TcpListener, Secret),
    launcher: &mut Group,
    commands: &mut mpsc::UnboundedReceiver<Command>,
    early: &mut Vec<(Channel, Parts)>,
) -> Result<Vec<Came>, StartFailure> {
    let wrong = |reason: String| StartFailure::Ranks {
        reason,
        stderr_tail: String::new(),
    };
    let spec = Arc::new(WorkerSpec {
        ranks: None,
        ..spec.clone()
    });
    let each = ranks.gpus;
    let room = Arc::new(Semaphore::new(STRANGERS));
    let mut coming = JoinSet::new();
    let mut came = BTreeMap::new();
    let mut limit = std::pin::pin!(sleep(START_LIMIT));
    let mut stop = std::pin::pin!(stopped(commands, early));
    while came.len() < ranks.count as usize {
        let arrived = tokio::select! {
            Some(arrived) = coming.join_next() => arrived,
            accepted = accept(listener, &room) => {
                if let Ok((stream, permit)) = accepted {
                    let (secret, spec) = (secret.clone(), spec.clone());
                    coming.spawn(async move {
                        let met = timeout(GREETING, greet(stream, &secret)).await;
                        drop(permit);
                        let met = met.map_err(io::Error::from).flatten();
                        let (visit, stream) = met.map_err(Failure::Stranger)?;
                        up(visit, stream, worker, &spec, each).await
                    });
                }
                continue;
            }
            exit = launcher.ended() => {
                return Err(StartFailure::Exited { exit, stderr_tail: String::new() });
            }
            () = &mut limit => {
                let (count, seconds) = (ranks.count, START_LIMIT.as_secs());
                let reason = format!("only {} of its {count} ranks were up after {seconds} s", came.len());
                return Err(wrong(reason));
            }
            () = &mut stop => {
                let exit = Exit { code: None, signal: None, out_of_memory: None };
                return Err(StartFailure::Exited { exit, stderr_tail: String::new() });
            }
        };
        match arrived {
            Ok(Ok(rank)) => {
                let number = rank.visit.rank;
                if number >= ranks.count || came.insert(number, rank).is_some() {
                    let count = ranks.count;
                    let launcher = ranks.launcher.join(" ");
                    return Err(wrong(format!(
                        "a second process came as rank {number} of {count}: `{launcher}` does not start ranks of one program; \
                         is it of another MPI, or of a launcher that knows none?"
                    )));
                }
            }
            Ok(Err(Failure::Rank(failure))) => return Err(failure),
            Ok(Err(Failure::Stranger(error))) => {
                tracing::warn!("somebody came to an island who is not one of its ranks: {error}");
            }
            Err(error) => return Err(wrong(error.to_string())),
        }
    }
    Ok(came.into_values().collect())
}

async fn accept(
    listener: &TcpListener,
    room: &Arc<Semaphore>,
) -> io::Result<(TcpStream, tokio::sync::OwnedSemaphorePermit)> {
    let permit = room.clone().acquire_owned().await;
    let permit = permit.map_err(io::Error::other)?;
    match listener.accept().await {
        Ok((stream, _)) => Ok((stream, permit)),
        Err(error) => {
            tracing::warn!("cannot accept a rank: {error}");
            sleep(Duration::from_millis(100)).await;
            Err(error)
        }
    }
}

/// Who comes knows the secret once this returns.
async fn greet(
    stream: TcpStream,
    secret: &Secret,
) -> io::Result<(Visit, (tokio::io::DuplexStream, Link))> {
    let mut greeted = respond(stream, secret).await?;
    let visit = greeted.hear().await?;
    let (ours, theirs) = tokio::io::duplex(1 << 18);
    let piping = tokio::spawn(async move {
        if let Err(error) = greeted.pipe(theirs).await {
            tracing::debug!("the connection of a rank ended: {error}");
        }
    });
    Ok((visit, (ours, Link(piping.abort_handle()))))
}

/// The GPUs of one rank, of those that the island has on its machine.
fn share(gpus: &[u32], each: u32, visit: &Visit) -> Result<Vec<u32>, String> {
    let Some(local) = visit.local else {
        return Err(format!(
            "the launcher does not say which of its machine's ranks rank {} is, so it cannot be given GPUs of its own",
            visit.rank
        ));
    };
    let each = each as usize;
    let start = (local as usize).saturating_mul(each);
    let own = gpus.iter().skip(start).take(each).copied();
    let own: Vec<u32> = own.collect();
    if own.len() < each {
        return Err(format!(
            "there are {} GPUs for the ranks of each machine, and rank {} is number {local} of its own, from 0: ask for \
             `nodes` in `resources`, so that as many ranks come to each as there are GPUs for",
            gpus.len(),
            visit.rank
        ));
    }
    Ok(own)
}

/// Starts a rank's worker, with `each` of the GPUs to itself.
async fn up(
    visit: Visit,
    (stream, link): (tokio::io::DuplexStream, Link),
    worker: WorkerId,
    spec: &WorkerSpec,
    each: Option<u32>,
) -> Result<Came, Failure> {
    let lost = |reason: String| {
        Failure::Rank(StartFailure::Ranks {
            reason: format!("the connection to rank {} broke: {reason}", visit.rank),
            stderr_tail: String::new(),
        })
    };
    let (reader, writer) = tokio::io::split(stream);
    let Connection {
        sender,
        mut receiver,
    } = Connection::<ToAgent, FromAgent>::start(reader, writer)
        .await
        .map_err(|error| lost(error.to_string()))?;
    let mut spec = spec.clone();
    spec.env.push((RANK.to_owned(), visit.rank.to_string()));
    if spec.env.iter().all(|(name, _)| name != TRAPPED.0) {
        spec.env.push((TRAPPED.0.to_owned(), TRAPPED.1.to_owned()));
    }
    if let (Some(each), Some(gpus)) = (each, &spec.gpus) {
        let own = share(gpus, each, &visit).map_err(|reason| {
            let stderr_tail = String::new();
            Failure::Rank(StartFailure::Ranks {
                reason,
                stderr_tail,
            })
        })?;
        spec.gpus = Some(own);
    }
    sender.queue(ToAgent::StartWorker { worker, spec });
    let mut hello = None;
    loop {
        match receiver.recv().await {
            Some(Ok(FromAgent::Hello(told))) => hello = Some(told),
            Some(Ok(FromAgent::WorkerUp { pid, .. })) => {
                let hello = hello.ok_or_else(|| lost("it did not say who it is".to_owned()))?;
                return Ok(Came {
                    visit,
                    hello,
                    pid,
                    sender,
                    receiver,
                    link,
                });
            }
            Some(Ok(FromAgent::WorkerFailed { failure, .. })) => {
                return Err(Failure::Rank(failure));
            }
            Some(Ok(_)) => {}
            Some(Err(error)) => return Err(lost(error.to_string())),
            None => return Err(lost("it ended".to_owned())),
        }
    }
}

/// Waits for the end of a launcher whose ranks have ended or are about to, and forces it.
pub async fn end(launcher: &mut Group) {
    for asked in [None, Some(Signal::SIGTERM)] {
        if let Some(signal) = asked {
            launcher.signal(signal);
        }
        if timeout(LAST, launcher.ended()).await.is_ok() {
            break;
        }
    }
    launcher.kill().await;
}
