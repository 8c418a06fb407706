//! One worker's life: start, relay, end.

use std::collections::VecDeque;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use cellferry_kernel::Author;
use cellferry_kernel::message::Message;
use cellferry_kernel::signing::Signer;
use cellferry_wire::protocol::{
    Channel, Exit, FromAgent, Parts, StartFailure, WorkerId, WorkerSpec,
};
use nix::sys::signal::Signal;
use serde_json::json;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::Child;
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout};
use zeromq::util::PeerIdentity;
use zeromq::{
    DealerRecvHalf, DealerSendHalf, DealerSocket, Socket, SocketOptions, SocketRecv, SocketSend,
    SubSocket, ZmqMessage,
};

use crate::exit::{exit_of, signal_group};
use crate::guard;

/// How long a worker may take to answer for the first time.
const START_LIMIT: Duration = Duration::from_secs(120);

/// How often a starting worker's sockets are looked for.
const LOOK: Duration = Duration::from_millis(5);

/// How long the last output of a dead worker is waited for.
const LAST_OUTPUT: Duration = Duration::from_millis(200);

/// How much of stderr is kept for last words, in bytes.
const TAIL: usize = 4 << 10;

/// What a worker can be told.
#[derive(Debug)]
pub enum Command {
    /// A message on a channel.
    Send(Channel, Parts),
    /// End: asked first, forced after the grace.
    Stop(Duration),
}

type Tail = Arc<Mutex<VecDeque<u8>>>;

/// Lives a worker's life and tells of it; its last message is `WorkerFailed` or `WorkerDown`.
pub async fn live(
    worker: WorkerId,
    spec: WorkerSpec,
    run_dir: PathBuf,
    group: Arc<AtomicU32>,
    mut commands: mpsc::UnboundedReceiver<Command>,
    outbox: mpsc::Sender<FromAgent>,
) {
    let place = run_dir.join(worker.0.to_string());
    let last = match Process::start(worker, &spec, &run_dir, &place).await {
        Ok(mut process) => match process.connect(&mut commands).await {
            Ok(channels) => {
                group.store(process.group, Ordering::Release);
                let _ = outbox
                    .send(FromAgent::WorkerUp {
                        worker,
                        pid: process.group,
                    })
                    .await;
                let exit = process
                    .relay(worker, channels, &mut commands, &outbox)
                    .await;
                group.store(0, Ordering::Release);
                FromAgent::WorkerDown {
                    worker,
                    exit,
                    stderr_tail: process.tail(),
                }
            }
            Err(failure) => {
                process.kill().await;
                FromAgent::WorkerFailed { worker, failure }
            }
        },
        Err(failure) => FromAgent::WorkerFailed { worker, failure },
    };
    let _ = std::fs::remove_dir_all(&place);
    let _ = std::fs::remove_file(run_dir.join(format!("{}.pgid", worker.0)));
    let _ = outbox.send(last).await;
}

struct Process {
    child: Child,
    /// Its process id, which is also that of its group.
    group: u32,
    place: PathBuf,
    signer: Signer,
    author: Author,
    tail: Tail,
}

struct Channels {
    shell: DealerSendHalf,
    control: DealerSendHalf,
    stdin: DealerSendHalf,
    from_shell: DealerRecvHalf,
    from_control: DealerRecvHalf,
    from_stdin: DealerRecvHalf,
    iopub: SubSocket,
}

impl Process {
    async fn start(
        worker: WorkerId,
        spec: &WorkerSpec,
        run_dir: &Path,
        place: &Path,
    ) -> Result<Self, StartFailure> {
        let workdir = spec.workdir.as_deref().map(expand_home);
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
        let program = expand_home(name);
        let mut command = tokio::process::Command::new(&program);
        command
            .args(rest)
            .envs(spec.env.iter().map(|(name, value)| (name, value)))
            .env("JPY_PARENT_PID", std::process::id().to_string())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .kill_on_drop(true);
        if let Some(workdir) = &workdir {
            command.current_dir(workdir);
        }
        #[cfg(target_os = "linux")]
        // The worker dies with the thread that started it. The agent's runtime has one thread, so
        // that is the agent.
        // SAFETY: prctl is async-signal-safe, and nothing else happens between fork and exec.
        unsafe {
            command.pre_exec(|| {
                nix::sys::prctl::set_pdeathsig(Signal::SIGKILL).map_err(std::io::Error::from)
            });
        }
        let mut child = command.spawn().map_err(|error| StartFailure::NoProgram {
            program: program.display().to_string(),
            error: error.to_string(),
        })?;
        let group = child.id().unwrap_or_default();
        if let Err(error) = guard::note_group(run_dir, worker.0, group) {
            tracing::warn!("cannot note the process group of a worker: {error}");
        }
        let tail = Tail::default();
        if let Some(stderr) = child.stderr.take() {
            tokio::spawn(keep_tail(stderr, tail.clone()));
        }
        if let Some(stdout) = child.stdout.take() {
            tokio::spawn(keep_tail(stdout, tail.clone()));
        }
        Ok(Self {
            child,
            group,
            place: place.to_owned(),
            signer: Signer::new(key.as_bytes()),
            author: Author::new(),
            tail,
        })
    }

    /// Connects to a starting worker; returns once it answers and its output arrives.
    async fn connect(
        &mut self,
        commands: &mut mpsc::UnboundedReceiver<Command>,
    ) -> Result<Channels, StartFailure> {
        let deadline = Instant::now() + START_LIMIT;
        let sockets: Vec<PathBuf> = (1..=5)
            .map(|port| self.place.join(format!("s-{port}")))
            .collect();
        while !sockets.iter().all(|socket| socket.exists()) {
            self.still_starting(deadline, commands).await?;
            tokio::time::sleep(LOOK).await;
        }
        let identity = uuid::Uuid::new_v4().simple().to_string();
        let mut channels = loop {
            match self.open(&identity).await {
                Ok(channels) => break channels,
                Err(error) => {
                    tracing::debug!("a starting worker does not accept yet: {error}");
                    self.still_starting(deadline, commands).await?;
                    tokio::time::sleep(LOOK).await;
                }
            }
        };
        let (mut answered, mut heard) = (false, false);
        let mut asked = None;
        while !(answered && heard) {
            self.still_starting(deadline, commands).await?;
            // Asked again now and then: output before the subscription took hold is lost.
            if asked.is_none_or(|at: Instant| {
                at.elapsed() > Duration::from_millis(if answered { 20 } else { 1000 })
            }) {
                let request = self.author.message("kernel_info_request", None, &json!({}));
                let _ = send(&mut channels.shell, request, &self.signer).await;
                asked = Some(Instant::now());
            }
            tokio::select! {
                reply = channels.from_shell.recv() => answered |= reply.is_ok(),
                output = channels.iopub.recv() => {
                    // The welcome message of newer kernels says as much as a status does.
                    heard |= output.is_ok();
                }
                () = tokio::time::sleep(LOOK) => {}
            }
        }
        Ok(channels)
    }

    async fn open(&self, identity: &str) -> Result<Channels, zeromq::ZmqError> {
        let endpoint =
            |port: u8| format!("ipc://{}", self.place.join(format!("s-{port}")).display());
        let dealer = async |port: u8| -> Result<DealerSocket, zeromq::ZmqError> {
            let mut options = SocketOptions::default();
            // The same on all three, so that the worker can ask for input whoever asked for the cell.
            options.peer_identity(PeerIdentity::try_from(Bytes::from(identity.to_owned()))?);
            let mut socket = DealerSocket::with_options(options);
            socket.connect(&endpoint(port)).await?;
            Ok(socket)
        };
        let (shell, from_shell) = dealer(1).await?.split();
        let (control, from_control) = dealer(2).await?.split();
        let (stdin, from_stdin) = dealer(3).await?.split();
        let mut iopub = SubSocket::new();
        iopub.connect(&endpoint(4)).await?;
        iopub.subscribe("").await?;
        Ok(Channels {
            shell,
            control,
            stdin,
            from_shell,
            from_control,
            from_stdin,
            iopub,
        })
    }

    /// An error if the worker has ended, was told to stop, or takes too long.
    async fn still_starting(
        &mut self,
        deadline: Instant,
        commands: &mut mpsc::UnboundedReceiver<Command>,
    ) -> Result<(), StartFailure> {
        if let Ok(Some(status)) = self.child.try_wait() {
            // What it wrote last may not have been read yet.
            tokio::time::sleep(Duration::from_millis(50)).await;
            return Err(StartFailure::Exited {
                exit: exit_of(Ok(status)),
                stderr_tail: self.tail(),
            });
        }
        if Instant::now() > deadline {
            return Err(StartFailure::Timeout {
                seconds: START_LIMIT.as_secs(),
                stderr_tail: self.tail(),
            });
        }
        let stopped = loop {
            match commands.try_recv() {
                Ok(Command::Stop(_)) | Err(mpsc::error::TryRecvError::Disconnected) => break true,
                Ok(_) => {}
                Err(mpsc::error::TryRecvError::Empty) => break false,
            }
        };
        if stopped {
            return Err(StartFailure::Exited {
                exit: Exit {
                    code: None,
                    signal: None,
                },
                stderr_tail: self.tail(),
            });
        }
        Ok(())
    }

    /// Passes messages both ways until the worker has ended.
    async fn relay(
        &mut self,
        worker: WorkerId,
        channels: Channels,
        commands: &mut mpsc::UnboundedReceiver<Command>,
        outbox: &mpsc::Sender<FromAgent>,
    ) -> Exit {
        let Channels {
            mut shell,
            mut control,
            mut stdin,
            mut from_shell,
            mut from_control,
            mut from_stdin,
            mut iopub,
        } = channels;
        let mut kill_at: Option<Instant> = None;
        let exit = loop {
            let forced = async {
                match kill_at {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            let (channel, received) = tokio::select! {
                biased;
                command = commands.recv() => {
                    match command {
                        Some(Command::Send(channel, parts)) => {
                            if let Some(message) = message(parts) {
                                let socket = match channel {
                                    Channel::Control => &mut control,
                                    Channel::Stdin => &mut stdin,
                                    Channel::Shell | Channel::Iopub => &mut shell,
                                };
                                if let Err(error) = send(socket, message, &self.signer).await {
                                    tracing::warn!("a message to a worker was lost: {error}");
                                }
                            }
                        }
                        Some(Command::Stop(_)) | None if kill_at.is_some() => {}
                        Some(Command::Stop(grace)) => {
                            let request = self.author.message("shutdown_request", None, &json!({"restart": false}));
                            let _ = send(&mut control, request, &self.signer).await;
                            kill_at = Some(Instant::now() + grace);
                        }
                        None => kill_at = Some(Instant::now()),
                    }
                    if commands.is_closed() && kill_at.is_none() {
                        kill_at = Some(Instant::now());
                    }
                    continue;
                }
                output = iopub.recv() => (Channel::Iopub, output),
                reply = from_shell.recv() => (Channel::Shell, reply),
                reply = from_control.recv() => (Channel::Control, reply),
                request = from_stdin.recv() => (Channel::Stdin, request),
                status = self.child.wait() => break exit_of(status),
                () = forced => {
                    signal_group(self.group, Signal::SIGKILL);
                    kill_at = None;
                    continue;
                }
            };
            self.pass(worker, channel, received, outbox).await;
        };
        // What it said last may still be in the sockets.
        let last = Instant::now() + LAST_OUTPUT;
        loop {
            let (channel, received) = tokio::select! {
                output = iopub.recv() => (Channel::Iopub, output),
                reply = from_shell.recv() => (Channel::Shell, reply),
                () = tokio::time::sleep_until(last) => break,
            };
            if received.is_err() {
                break;
            }
            self.pass(worker, channel, received, outbox).await;
        }
        // Children of the user's code do not outlive their worker.
        signal_group(self.group, Signal::SIGKILL);
        exit
    }

    async fn pass(
        &self,
        worker: WorkerId,
        channel: Channel,
        received: Result<ZmqMessage, zeromq::ZmqError>,
        outbox: &mpsc::Sender<FromAgent>,
    ) {
        match received.map(|frames| Message::decode(frames.into_vec(), &self.signer)) {
            // What answers the agent's own requests concerns nobody else.
            Ok(Ok(message)) if message.parse_parent().is_some_and(|parent| parent.session == self.author.session()) => {}
            Ok(Ok(message)) => {
                let _ = outbox
                    .send(FromAgent::Received {
                        worker,
                        channel,
                        parts: parts(message),
                    })
                    .await;
            }
            Ok(Err(error)) => tracing::warn!("ignored from worker {}: {error}", worker.0),
            Err(error) => {
                // A socket of a worker that is about to end; its end comes next.
                tracing::debug!("worker {}: {error}", worker.0);
                tokio::time::sleep(LOOK).await;
            }
        }
    }

    async fn kill(&mut self) {
        signal_group(self.group, Signal::SIGKILL);
        let _ = timeout(Duration::from_secs(5), self.child.wait()).await;
    }

    fn tail(&self) -> String {
        let tail = self.tail.lock().unwrap_or_else(PoisonError::into_inner);
        let bytes: Vec<u8> = tail.iter().copied().collect();
        String::from_utf8_lossy(&bytes).into_owned()
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

fn parts(message: Message) -> Parts {
    let mut parts = vec![
        message.header,
        message.parent_header,
        message.metadata,
        message.content,
    ];
    parts.extend(message.buffers);
    parts
}

fn message(parts: Parts) -> Option<Message> {
    let mut parts = parts.into_iter();
    Some(Message {
        identities: Vec::new(),
        header: parts.next()?,
        parent_header: parts.next()?,
        metadata: parts.next()?,
        content: parts.next()?,
        buffers: parts.collect(),
    })
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

/// Makes the directory if it is missing and tries whether files can be written there.
fn usable(path: &Path) -> std::io::Result<()> {
    std::fs::create_dir_all(path)?;
    tempfile::Builder::new()
        .prefix(".cellferry-")
        .tempfile_in(path)?;
    Ok(())
}

fn expand_home(path: &str) -> PathBuf {
    match (path.strip_prefix("~/"), std::env::var_os("HOME")) {
        (Some(rest), Some(home)) => Path::new(&home).join(rest),
        _ => PathBuf::from(path),
    }
}

/// Keeps the last of what a worker writes past ipykernel.
async fn keep_tail(mut stream: impl AsyncRead + Unpin, tail: Tail) {
    let mut buffer = [0; 4096];
    while let Ok(read) = stream.read(&mut buffer).await {
        if read == 0 {
            break;
        }
        let mut tail = tail.lock().unwrap_or_else(PoisonError::into_inner);
        tail.extend(&buffer[..read]);
        let excess = tail.len().saturating_sub(TAIL);
        tail.drain(..excess);
    }
}
