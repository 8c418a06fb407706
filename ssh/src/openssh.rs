//! Ssh spoken by the system's `ssh` program: one master connection, and a client of it for each command.

use std::convert::Infallible;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::pin::Pin;
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, BufReader, ReadBuf};
use tokio::net::UnixListener;
use tokio::process::{Child, ChildStdin, Command};
use tokio::sync::{mpsc, oneshot, watch};

use crate::Options;
use crate::ask::Ask;
use crate::askpass;
use crate::config::Destination;
use crate::config::openssh::{arguments, words};
use crate::dial::dies_with_thread;
use crate::error::SshError;
use crate::process::{Ended, Exit, Process};

/// A master connection. Dropping it ends `ssh`.
pub(crate) struct Link {
    host: String,
    program: PathBuf,
    arguments: Vec<String>,
    control: PathBuf,
    end: watch::Receiver<Option<String>>,
    stop: Mutex<Option<oneshot::Sender<()>>>,
    /// Removed with all in it.
    _folder: TempDir,
}

/// What the master says when it is connected and takes clients.
const READY: &str = "cellferry-ssh-is-ready";

/// How much of what `ssh` says is kept for messages. Bytes.
const SAID: usize = 8192;

/// Connects and logs in.
pub(crate) async fn open(
    options: &Options,
    destination: &Destination,
    ask: Arc<dyn Ask>,
) -> Result<Link, SshError> {
    let environment = &options.environment;
    let host = destination.host.clone();
    let Some(program) = environment.ssh_program.clone() else {
        return Err(SshError::NoProgram { host });
    };
    let local = |what: &'static str| {
        let host = destination.host.clone();
        move |source| SshError::Local { host, what, source }
    };

    let parent = options
        .runtime_dir
        .clone()
        .unwrap_or_else(std::env::temp_dir);
    let folder = tempfile::Builder::new()
        .prefix("cfssh-")
        .permissions(std::fs::Permissions::from_mode(0o700))
        .tempdir_in(&parent)
        .map_err(local("make a private directory"))?;
    let control = folder.path().join("m");
    let prompts = folder.path().join("a");
    let listener = UnixListener::bind(&prompts).map_err(local("make a socket for prompts"))?;
    let told = Arc::clone(&ask);
    let prompting = tokio::spawn(askpass::answer(listener, ask));

    let arguments = arguments(environment, destination, options.config.as_ref());
    let mut command = Command::from(dies_with_thread(std::process::Command::new(&program)));
    command
        .args(["-M", "-N", "-T", "-x", "-a", "-S"])
        .arg(&control);
    for option in [
        "ControlPersist=no",
        "ClearAllForwardings=yes",
        "ForkAfterAuthentication=no",
        "StdinNull=no",
        "RemoteCommand=none",
        // Run once the connection is made and the master listens: nothing else tells.
        "PermitLocalCommand=yes",
    ] {
        command.args(["-o", option]);
    }
    command.arg("-o").arg(format!("LocalCommand=echo {READY}"));
    command.args(&arguments);
    command
        .env(askpass::SOCKET, &prompts)
        .env("SSH_ASKPASS_REQUIRE", "force");
    if let Some(helper) = &environment.askpass_program {
        command.env("SSH_ASKPASS", helper);
    }
    if std::env::var_os("DISPLAY").is_none() {
        // Before OpenSSH 8.4 prompts went to a helper only if there was a display.
        command.env("DISPLAY", "none:0");
    }
    match &environment.agent_socket {
        Some(socket) => command.env("SSH_AUTH_SOCK", socket),
        None => command.env_remove("SSH_AUTH_SOCK"),
    };
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    let mut master = command.spawn().map_err(local("start `ssh`"))?;

    let said = Arc::new(Mutex::new(Vec::new()));
    let listening = master
        .stderr
        .take()
        .map(|stderr| tokio::spawn(listen(stderr, Arc::clone(&said))));
    let mut ready = false;
    if let Some(stdout) = master.stdout.take() {
        let mut lines = BufReader::new(stdout).lines();
        while let Ok(Some(line)) = lines.next_line().await {
            if line.trim() == READY {
                ready = true;
                break;
            }
        }
    }
    prompting.abort();
    let _ = std::fs::remove_file(&prompts);
    if !ready {
        let status = master.wait().await;
        if let Some(listening) = listening {
            let _ = listening.await;
        }
        let printed = words(&said.lock().unwrap_or_else(PoisonError::into_inner));
        let output = match (printed.is_empty(), status) {
            (false, _) => printed,
            (true, Ok(status)) => format!("it ended without a word ({status})"),
            (true, Err(error)) => error.to_string(),
        };
        return Err(SshError::OpenSsh { host, output });
    }
    // Banners, and warnings about host keys that were added.
    let banner =
        String::from_utf8_lossy(&said.lock().unwrap_or_else(PoisonError::into_inner)).into_owned();
    if !banner.trim().is_empty() {
        told.tell(crate::auth::printable(&banner).trim_end());
    }
    said.lock().unwrap_or_else(PoisonError::into_inner).clear();

    let (ended, end) = watch::channel(None);
    let (stop, stopped) = oneshot::channel();
    tokio::spawn(watch_over(master, said, stopped, ended));
    Ok(Link {
        host,
        program,
        arguments,
        control,
        end,
        stop: Mutex::new(Some(stop)),
        _folder: folder,
    })
}

async fn listen(mut stderr: impl AsyncReadExt + Unpin, said: Arc<Mutex<Vec<u8>>>) {
    let mut buffer = [0; 1024];
    while let Ok(count @ 1..) = stderr.read(&mut buffer).await {
        let mut said = said.lock().unwrap_or_else(PoisonError::into_inner);
        let room = SAID.saturating_sub(said.len());
        said.extend_from_slice(&buffer[..count.min(room)]);
    }
}

/// Waits for the master's end, or ends it.
async fn watch_over(
    mut master: Child,
    said: Arc<Mutex<Vec<u8>>>,
    stopped: oneshot::Receiver<()>,
    ended: watch::Sender<Option<String>>,
) {
    let why = tokio::select! {
        status = master.wait() => {
            let printed = words(&said.lock().unwrap_or_else(PoisonError::into_inner));
            match (printed.is_empty(), status) {
                (false, _) => printed,
                (true, Ok(status)) => format!("`ssh` ended ({status})"),
                (true, Err(error)) => error.to_string(),
            }
        }
        _ = stopped => {
            // It says goodbye and removes its socket on this signal.
            if let Some(process) = master.id().and_then(|id| i32::try_from(id).ok()) {
                let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(process), nix::sys::signal::Signal::SIGTERM);
            }
            if tokio::time::timeout(Duration::from_secs(1), master.wait()).await.is_err() {
                let _ = master.kill().await;
            }
            "it was closed here".to_owned()
        }
    };
    ended.send_replace(Some(why));
}

impl Link {
    /// Runs a command.
    pub(crate) async fn exec(&self, command: &str) -> Result<Process, SshError> {
        if let Some(reason) = self.end.borrow().clone() {
            return Err(SshError::Closed {
                host: self.host.clone(),
                reason,
            });
        }
        let mut client = Command::from(dies_with_thread(std::process::Command::new(&self.program)));
        client.args(["-T", "-x", "-a", "-S"]).arg(&self.control);
        for option in [
            "ControlMaster=no",
            // If the master is gone, this must fail and not make a connection of its own.
            "ProxyCommand=false",
            "BatchMode=yes",
            "ForkAfterAuthentication=no",
            "StdinNull=no",
            "SessionType=default",
            "RemoteCommand=none",
            "PermitLocalCommand=no",
            "ClearAllForwardings=yes",
        ] {
            client.args(["-o", option]);
        }
        client.args(&self.arguments).arg(command);
        client
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        let local = |source| SshError::Local {
            host: self.host.clone(),
            what: "start `ssh`",
            source,
        };
        let mut child = client.spawn().map_err(local)?;
        let (Some(stdin), Some(stdout), Some(stderr)) =
            (child.stdin.take(), child.stdout.take(), child.stderr.take())
        else {
            return Err(local(io::ErrorKind::BrokenPipe.into()));
        };
        let (exit, ended) = oneshot::channel();
        let (holding, held) = mpsc::channel(1);
        tokio::spawn(wait(child, exit, held, self.end.clone()));
        Ok(Process {
            stdin: Box::new(Input {
                pipe: Some(stdin),
                _holding: holding.clone(),
            }),
            stdout: Box::new(Output {
                pipe: stdout,
                _holding: holding.clone(),
            }),
            stderr: Box::new(Output {
                pipe: stderr,
                _holding: holding,
            }),
            exit: Ended::new(ended),
        })
    }

    /// Waits for the end of the connection.
    pub(crate) async fn closed(&self) -> String {
        match self.end.clone().wait_for(Option::is_some).await {
            Ok(why) => why.clone().unwrap_or_default(),
            Err(_) => "it ended".to_owned(),
        }
    }

    /// Ends the connection, and waits until it has ended.
    pub(crate) async fn disconnect(&self) {
        drop(
            self.stop
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .take(),
        );
        self.closed().await;
    }
}

/// Tells how a command ended, as far as `ssh` does: 255 also stands for its own failure and for a signal.
///
/// When nobody holds anything of the command any more, its `ssh` is ended, which closes its channel.
async fn wait(
    mut child: Child,
    mut exit: oneshot::Sender<Exit>,
    mut held: mpsc::Receiver<Infallible>,
    end: watch::Receiver<Option<String>>,
) {
    let dropped = async {
        held.recv().await;
        exit.closed().await;
    };
    let status = tokio::select! {
        status = child.wait() => status,
        () = dropped => {
            let _ = child.kill().await;
            return;
        }
    };
    let code = status
        .ok()
        .and_then(|status| status.code())
        .and_then(|code| u32::try_from(code).ok());
    let outcome = match code {
        Some(255) if is_over(end).await => Exit::Lost,
        Some(code) => Exit::Code(code),
        None => Exit::Lost,
    };
    let _ = exit.send(outcome);
}

/// Whether the master has ended. It may be about to: it lets go of its clients first.
async fn is_over(mut end: watch::Receiver<Option<String>>) -> bool {
    const PATIENCE: Duration = Duration::from_millis(500);
    tokio::time::timeout(PATIENCE, end.wait_for(Option::is_some))
        .await
        .is_ok()
}

/// The output of a command, which shows that somebody still has it.
struct Output<T> {
    pipe: T,
    _holding: mpsc::Sender<Infallible>,
}

impl<T: AsyncRead + Unpin> AsyncRead for Output<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.pipe).poll_read(cx, buf)
    }
}

/// The input of a command, likewise. Closed by shutting it down, which tokio's pipe leaves to dropping.
struct Input {
    pipe: Option<ChildStdin>,
    _holding: mpsc::Sender<Infallible>,
}

impl AsyncWrite for Input {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        match &mut self.pipe {
            Some(pipe) => Pin::new(pipe).poll_write(cx, buf),
            None => Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.pipe {
            Some(pipe) => Pin::new(pipe).poll_flush(cx),
            None => Poll::Ready(Ok(())),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.pipe = None;
        Poll::Ready(Ok(()))
    }
}
