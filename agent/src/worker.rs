//! One worker's life: start, relay, end.

use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use bytes::Bytes;
use cellferry_kernel::Author;
use cellferry_kernel::message::Message;
use cellferry_kernel::signing::Signer;
use cellferry_wire::protocol::{
    Channel, Exit, FromAgent, Parts, StartFailure, WorkerId, WorkerSpec,
};
use futures::StreamExt;
use nix::sys::signal::Signal;
use serde_json::json;
use tokio::sync::mpsc;
use tokio::time::Instant;
use zeromq::util::PeerIdentity;
use zeromq::{
    DealerRecvHalf, DealerSendHalf, DealerSocket, Socket, SocketEvent, SocketOptions, SocketRecv,
    SocketSend, SubSocket, ZmqMessage,
};

use crate::brake::Brake;
use crate::files::expand;
use crate::group::Group;
use crate::memory::Kills;
use crate::outlet::Outlet;
use crate::parts::{message, parts};

/// How long a worker may take to answer for the first time.
pub const START_LIMIT: Duration = Duration::from_secs(120);

/// How often a starting worker's sockets are looked for.
const LOOK: Duration = Duration::from_millis(5);

/// How long a dead worker must have been silent, where the ends of its sockets do not show.
const LAST_OUTPUT: Duration = Duration::from_millis(200);

/// How long a dead worker's output is read at most.
const LAST_LIMIT: Duration = Duration::from_secs(5);

/// What a worker can be told.
#[derive(Debug)]
pub enum Command {
    /// A message on a channel.
    Send(Channel, Parts),
    /// SIGINT to all ranks. Where there are none it needs no command.
    Interrupt,
    /// End: asked first, forced after the grace.
    Stop(Duration),
}

type SocketEvents = futures::channel::mpsc::Receiver<SocketEvent>;

/// Lives a worker's life and tells of it; its last message is `WorkerFailed` or `WorkerDown`.
pub async fn live(
    worker: WorkerId,
    spec: WorkerSpec,
    run_dir: PathBuf,
    group: Arc<AtomicU32>,
    mut commands: mpsc::UnboundedReceiver<Command>,
    outlet: Outlet,
) {
    let place = run_dir.join(worker.0.to_string());
    let mut early = Vec::new();
    let last = match Process::start(worker, &spec, &run_dir, &place).await {
        Ok(mut process) => match process.connect(&mut commands, &mut early).await {
            Ok(channels) => {
                group.store(process.group.id(), Ordering::Release);
                outlet.tell(FromAgent::WorkerUp {
                    worker,
                    pid: process.group.id(),
                });
                let exit = process
                    .relay(worker, channels, early, &mut commands, &outlet)
                    .await;
                group.store(0, Ordering::Release);
                FromAgent::WorkerDown {
                    worker,
                    exit,
                    stderr_tail: process.group.last_words().await,
                    rank: None,
                    given_up: false,
                }
            }
            Err(failure) => {
                process.group.kill().await;
                FromAgent::WorkerFailed { worker, failure }
            }
        },
        Err(failure) => FromAgent::WorkerFailed { worker, failure },
    };
    let _ = std::fs::remove_dir_all(&place);
    let _ = std::fs::remove_file(run_dir.join(format!("{}.pgid", worker.0)));
    outlet.tell(last);
}

struct Process {
    group: Group,
    place: PathBuf,
    signer: Signer,
    author: Author,
}

struct Senders {
    shell: DealerSendHalf,
    control: DealerSendHalf,
    stdin: DealerSendHalf,
}

struct Channels {
    senders: Senders,
    from_shell: DealerRecvHalf,
    from_control: DealerRecvHalf,
    from_stdin: DealerRecvHalf,
    iopub: SubSocket,
    shell_events: SocketEvents,
    iopub_events: SocketEvents,
}

impl Process {
    async fn start(
        worker: WorkerId,
        spec: &WorkerSpec,
        run_dir: &Path,
        place: &Path,
    ) -> Result<Self, StartFailure> {
        let workdir = spec.workdir.as_deref().map(expand);
        if let Some(workdir) = &workdir {
            usable(workdir).map_err(|error| StartFailure::Workdir {
                path: workdir.display().to_string(),
                error: error.to_string(),
            })?;
        }
        let key = uuid::Uuid::new_v4().to_string();
        let connection_file = place.join("connection.json");
        write_connection_file(place, &connection_file, &key).map_err(|error| {
            StartFailure::RunDir {
                path: place.display().to_string(),
                error: error.to_string(),
            }
        })?;
        let arguments: Vec<String> = spec
            .argv
            .iter()
            .map(|argument| {
                argument.replace("{connection_file}", &connection_file.to_string_lossy())
            })
            .collect();
        let (name, rest) = arguments
            .split_first()
            .ok_or_else(|| StartFailure::NoProgram {
                program: String::new(),
                error: "no program is named".to_owned(),
            })?;
        let program = expand(name);
        let mut command = tokio::process::Command::new(&program);
        command
            .args(rest)
            .envs(spec.env.iter().map(|(name, value)| (name, value)))
            .envs(visible_gpus(spec.gpus.as_deref()))
            .env("JPY_PARENT_PID", std::process::id().to_string());
        if let Some(workdir) = &workdir {
            command.current_dir(workdir);
        }
        let group =
            Group::start(command, run_dir, worker.0).map_err(|error| StartFailure::NoProgram {
                program: program.display().to_string(),
                error: error.to_string(),
            })?;
        Ok(Self {
            group,
            place: place.to_owned(),
            signer: Signer::new(key.as_bytes()),
            author: Author::new(),
        })
    }

    /// Connects to a starting worker; returns once it answers and its output arrives. Messages
    /// that come meanwhile are kept in `early`.
    async fn connect(
        &mut self,
        commands: &mut mpsc::UnboundedReceiver<Command>,
        early: &mut Vec<(Channel, Parts)>,
    ) -> Result<Channels, StartFailure> {
        let exit = tokio::select! {
            channels = ready(&self.place, &self.signer, &self.author) => return Ok(channels),
            exit = self.group.ended() => Some(exit),
            () = tokio::time::sleep(START_LIMIT) => None,
            () = stopped(commands, early) => {
                let exit = Exit { code: None, signal: None, out_of_memory: None };
                return Err(StartFailure::Exited { exit, stderr_tail: self.group.last_words().await });
            }
        };
        self.group.signal(Signal::SIGKILL);
        let stderr_tail = self.group.last_words().await;
        Err(match exit {
            Some(exit) => StartFailure::Exited { exit, stderr_tail },
            None => StartFailure::Timeout {
                seconds: START_LIMIT.as_secs(),
                stderr_tail,
            },
        })
    }

    /// Passes messages both ways until the worker has ended.
    async fn relay(
        &mut self,
        worker: WorkerId,
        channels: Channels,
        early: Vec<(Channel, Parts)>,
        commands: &mut mpsc::UnboundedReceiver<Command>,
        outlet: &Outlet,
    ) -> Exit {
        let Channels {
            mut senders,
            mut from_shell,
            mut from_control,
            mut from_stdin,
            mut iopub,
            mut shell_events,
            mut iopub_events,
        } = channels;
        for (channel, parts) in early {
            senders.send(channel, parts, &self.signer).await;
        }
        let mut kill_at: Option<Instant> = None;
        let mut commanded = true;
        let mut kills = Kills::new();
        let mut brake = Brake::new(worker, self.group.id(), outlet.clone());
        let mut exit = loop {
            kills.look();
            brake.check();
            let forced = async {
                match kill_at {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            let (channel, received) = tokio::select! {
                // What ends a worker comes first: it must not wait for a pause in its output.
                biased;
                () = forced => {
                    self.group.signal(Signal::SIGKILL);
                    kill_at = None;
                    continue;
                }
                command = commands.recv(), if commanded => {
                    match command {
                        Some(Command::Send(channel, parts)) => {
                            senders.send(channel, parts, &self.signer).await;
                        }
                        Some(Command::Stop(grace)) => {
                            brake.give_up();
                            let request = self.author.message("shutdown_request", None, &json!({"restart": false}));
                            let _ = send(&mut senders.control, request, &self.signer).await;
                            let at = Instant::now() + grace;
                            kill_at = Some(kill_at.map_or(at, |earlier| earlier.min(at)));
                        }
                        // Interrupts of a single process go to it directly.
                        Some(Command::Interrupt) => {}
                        None => {
                            commanded = false;
                            kill_at = Some(Instant::now());
                        }
                    }
                    continue;
                }
                () = brake.eased() => {
                    brake.release();
                    continue;
                }
                output = iopub.recv() => (Channel::Iopub, output),
                reply = from_shell.recv() => (Channel::Shell, reply),
                reply = from_control.recv() => (Channel::Control, reply),
                request = from_stdin.recv() => (Channel::Stdin, request),
                exit = self.group.ended() => break exit,
            };
            match received {
                Ok(frames) => self.pass(worker, channel, frames, outlet),
                Err(error) => {
                    // A socket of a worker that is about to end; its end comes next.
                    tracing::debug!("worker {}: {error}", worker.0);
                    tokio::time::sleep(LOOK).await;
                }
            }
        };
        if exit.signal == Some(Signal::SIGKILL as i32) {
            exit.out_of_memory = kills.since();
        }
        // Children of the user's code do not outlive their worker.
        self.group.signal(Signal::SIGKILL);
        // What it said last is still in the sockets, up to their ends. A process that left the
        // group may hold them open, so silence is an end as well.
        let last = Instant::now() + LAST_LIMIT;
        let (mut shell_open, mut iopub_open) = (true, true);
        while (shell_open || iopub_open) && Instant::now() < last {
            tokio::select! {
                biased;
                output = iopub.recv(), if iopub_open => match output {
                    Ok(frames) => self.pass(worker, Channel::Iopub, frames, outlet),
                    Err(_) => iopub_open = false,
                },
                reply = from_shell.recv(), if shell_open => match reply {
                    Ok(frames) => self.pass(worker, Channel::Shell, frames, outlet),
                    Err(_) => shell_open = false,
                },
                event = iopub_events.next(), if iopub_open => iopub_open = !is_end(event.as_ref()),
                event = shell_events.next(), if shell_open => shell_open = !is_end(event.as_ref()),
                () = tokio::time::sleep(LAST_OUTPUT) => break,
            }
        }
        exit
    }

    /// Never waits: what is not taken from a worker's iopub socket is dropped there, beyond a
    /// thousand messages, and a lost `idle` would leave its cell running for ever.
    fn pass(&self, worker: WorkerId, channel: Channel, frames: ZmqMessage, outlet: &Outlet) {
        match Message::decode(frames.into_vec(), &self.signer) {
            // What answers the agent's own requests concerns nobody else.
            Ok(message)
                if message
                    .parse_parent()
                    .is_some_and(|parent| parent.session == self.author.session()) => {}
            Ok(message) => {
                outlet.tell(FromAgent::Received {
                    worker,
                    channel,
                    parts: parts(message),
                });
            }
            Err(error) => tracing::warn!("ignored from worker {}: {error}", worker.0),
        }
    }
}

/// Waits until a starting worker has made its sockets, answers, and is heard.
async fn ready(place: &Path, signer: &Signer, author: &Author) -> Channels {
    let sockets: Vec<PathBuf> = (1..=5).map(|port| socket_path(place, port)).collect();
    while !sockets.iter().all(|socket| socket.exists()) {
        tokio::time::sleep(LOOK).await;
    }
    let mut channels = loop {
        match open(place).await {
            Ok(channels) => break channels,
            Err(error) => {
                tracing::debug!("a starting worker does not accept yet: {error}");
                tokio::time::sleep(LOOK).await;
            }
        }
    };
    let (mut answered, mut heard) = (false, false);
    let mut asked: Option<Instant> = None;
    while !(answered && heard) {
        // Asked again now and then: output before the subscription took hold is lost.
        let patience = Duration::from_millis(if answered { 20 } else { 1000 });
        if asked.is_none_or(|at| at.elapsed() > patience) {
            let request = author.message("kernel_info_request", None, &json!({}));
            let _ = send(&mut channels.senders.shell, request, signer).await;
            asked = Some(Instant::now());
        }
        tokio::select! {
            Ok(_) = channels.from_shell.recv() => answered = true,
            // The welcome message of newer kernels says as much as a status does.
            Ok(_) = channels.iopub.recv() => heard = true,
            () = tokio::time::sleep(LOOK) => {}
        }
    }
    channels
}

/// Keeps what is to be sent to a starting worker, and returns when it is told to stop.
pub async fn stopped(
    commands: &mut mpsc::UnboundedReceiver<Command>,
    early: &mut Vec<(Channel, Parts)>,
) {
    loop {
        match commands.recv().await {
            Some(Command::Send(channel, parts)) => early.push((channel, parts)),
            Some(Command::Interrupt) => {}
            Some(Command::Stop(_)) | None => return,
        }
    }
}

fn socket_path(place: &Path, port: u8) -> PathBuf {
    place.join(format!("s-{port}"))
}

async fn open(place: &Path) -> Result<Channels, zeromq::ZmqError> {
    let endpoint = |port: u8| format!("ipc://{}", socket_path(place, port).display());
    // The same on all three, so that the worker can ask for input whoever asked for the cell.
    let identity = Bytes::from(uuid::Uuid::new_v4().simple().to_string());
    let dealer = async |port: u8| -> Result<_, zeromq::ZmqError> {
        let mut options = SocketOptions::default();
        options.peer_identity(PeerIdentity::try_from(identity.clone())?);
        let mut socket = DealerSocket::with_options(options);
        let events = socket.monitor();
        socket.connect(&endpoint(port)).await?;
        Ok((socket.split(), events))
    };
    let ((shell, from_shell), shell_events) = dealer(1).await?;
    let ((control, from_control), _) = dealer(2).await?;
    let ((stdin, from_stdin), _) = dealer(3).await?;
    let mut iopub = SubSocket::new();
    let iopub_events = iopub.monitor();
    iopub.connect(&endpoint(4)).await?;
    iopub.subscribe("").await?;
    Ok(Channels {
        senders: Senders {
            shell,
            control,
            stdin,
        },
        from_shell,
        from_control,
        from_stdin,
        iopub,
        shell_events,
        iopub_events,
    })
}

/// Whether the other end of a socket is gone, and everything it sent has been read.
fn is_end(event: Option<&SocketEvent>) -> bool {
    matches!(event, None | Some(SocketEvent::Disconnected(_)))
}

impl Senders {
    async fn send(&mut self, channel: Channel, parts: Parts, signer: &Signer) {
        let Some(message) = message(parts) else {
            tracing::warn!("a message to a worker lacks parts and was dropped");
            return;
        };
        let socket = match channel {
            Channel::Control => &mut self.control,
            Channel::Stdin => &mut self.stdin,
            Channel::Shell | Channel::Iopub => &mut self.shell,
        };
        if let Err(error) = send(socket, message, signer).await {
            tracing::warn!("a message to a worker was lost: {error}");
        }
    }
}

async fn send(
    socket: &mut DealerSendHalf,
    message: Message,
    signer: &Signer,
) -> Result<(), zeromq::ZmqError> {
    match ZmqMessage::try_from(message.encode(signer)) {
        Ok(message) => socket.send(message).await,
        Err(_) => Ok(()),
    }
}

fn write_connection_file(place: &Path, path: &Path, key: &str) -> std::io::Result<()> {
    std::fs::DirBuilder::new().mode(0o700).create(place)?;
    let content = json!({
        "transport": "ipc", "ip": place.join("s"), "key": key, "signature_scheme": "hmac-sha256",
        "shell_port": 1, "control_port": 2, "stdin_port": 3, "iopub_port": 4, "hb_port": 5, "kernel_name": "cellferry",
    });
    let mut file = std::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)?;
    std::io::Write::write_all(&mut file, content.to_string().as_bytes())
}

/// The variable by which CUDA is told which GPUs a process may use.
const VISIBLE_GPUS: &str = "CUDA_VISIBLE_DEVICES";

/// What tells a worker which GPUs it may use, of those that this process may.
fn visible_gpus(places: Option<&[u32]>) -> Option<(&'static str, String)> {
    let ours = std::env::var(VISIBLE_GPUS).ok();
    let ours: Option<Vec<&str>> = ours.as_deref().map(|ours| ours.split(',').collect());
    let names = places?.iter().map(|place| match &ours {
        Some(ours) => ours
            .get(*place as usize)
            .map_or_else(String::new, |name| (*name).to_owned()),
        None => place.to_string(),
    });
    Some((VISIBLE_GPUS, names.collect::<Vec<_>>().join(",")))
}

/// Makes the directory if it is missing and tries whether files can be written there.
fn usable(path: &Path) -> std::io::Result<()> {
    std::fs::create_dir_all(path)?;
    tempfile::Builder::new()
        .prefix(".cellferry-")
        .tempfile_in(path)?;
    Ok(())
}
