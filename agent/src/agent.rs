//! The agent's loop: commands in, messages out.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use cellferry_wire::Connection;
use cellferry_wire::protocol::{FromAgent, ToAgent, WorkerId};
use nix::sys::signal::Signal;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

use crate::exit::signal_group;
use crate::run_dir::RunDir;
use crate::worker::{self, Command};
use crate::{AgentError, guard};

/// How long workers have to end by themselves when the agent ends.
const GRACE: Duration = Duration::from_secs(1);

/// How long the agent tries to hand the last messages to the kernel.
const FAREWELL: Duration = Duration::from_secs(1);

/// An agent inside this process.
#[derive(Debug)]
pub struct Agent {
    run_dir: PathBuf,
    workers: HashMap<WorkerId, Handle>,
    tasks: Vec<tokio::task::JoinHandle<()>>,
    outbox: mpsc::UnboundedSender<FromAgent>,
}

#[derive(Debug)]
struct Handle {
    commands: mpsc::UnboundedSender<Command>,
    /// Its process group, 0 until there is one. Interrupts go to it directly: they must not wait
    /// behind output that nobody takes.
    group: Arc<AtomicU32>,
}

impl Agent {
    /// An agent whose workers' files go into `run_dir`, and what its workers say.
    pub fn local(run_dir: &Path) -> (Self, mpsc::UnboundedReceiver<FromAgent>) {
        let (outbox, inbox) = mpsc::unbounded_channel();
        let agent = Self {
            run_dir: run_dir.to_owned(),
            workers: HashMap::new(),
            tasks: Vec::new(),
            outbox,
        };
        (agent, inbox)
    }

    /// Does what the kernel asks. Commands for workers that are gone are dropped: their end has been told.
    pub fn command(&mut self, command: ToAgent) {
        match command {
            ToAgent::StartWorker { worker, spec } => {
                let (sender, commands) = mpsc::unbounded_channel();
                let group = Arc::new(AtomicU32::new(0));
                self.workers.insert(
                    worker,
                    Handle {
                        commands: sender,
                        group: group.clone(),
                    },
                );
                self.tasks.retain(|task| !task.is_finished());
                let life = worker::live(
                    worker,
                    spec,
                    self.run_dir.clone(),
                    group,
                    commands,
                    self.outbox.clone(),
                );
                self.tasks.push(tokio::spawn(life));
            }
            ToAgent::Send {
                worker,
                channel,
                parts,
            } => self.tell(worker, Command::Send(channel, parts)),
            ToAgent::Interrupt { worker } => {
                if let Some(handle) = self.workers.get(&worker) {
                    signal_group(handle.group.load(Ordering::Acquire), Signal::SIGINT);
                }
            }
            ToAgent::StopWorker { worker, grace } => self.tell(worker, Command::Stop(grace)),
            ToAgent::Shutdown => {
                for handle in self.workers.values() {
                    let _ = handle.commands.send(Command::Stop(GRACE));
                }
            }
        }
    }

    fn tell(&mut self, worker: WorkerId, command: Command) {
        if let Some(handle) = self.workers.get(&worker)
            && handle.commands.send(command).is_err()
        {
            self.workers.remove(&worker);
        }
    }

    /// Ends all workers and waits for them.
    pub async fn shutdown(mut self) {
        self.command(ToAgent::Shutdown);
        for task in self.tasks {
            let _ = task.await;
        }
    }
}

/// Serves a kernel over a byte stream until it ends, a signal comes or the kernel asks.
///
/// `guard` is the program, with its arguments, that cleans up if this process is killed.
pub async fn serve<R, W>(reader: R, writer: W, guard: (&Path, &[&str])) -> Result<(), AgentError>
where
    R: AsyncRead + Unpin + Send + 'static,
    W: AsyncWrite + Unpin + Send + 'static,
{
    let run_dir = RunDir::make()?;
    let guard = guard::Guard::start(guard.0, guard.1, &[run_dir.path()])?;
    let Connection {
        sender,
        mut receiver,
    } = Connection::<FromAgent, ToAgent>::start(reader, writer).await?;
    let (mut agent, mut inbox) = Agent::local(run_dir.path());
    let forward = sender.clone();
    let forwarding = tokio::spawn(async move {
        while let Some(message) = inbox.recv().await {
            // After the kernel is gone, messages are drained so that workers can end.
            forward.send(message).await;
        }
    });
    let mut terminated = signal(SignalKind::terminate())?;
    let mut hung_up = signal(SignalKind::hangup())?;
    // The terminal's interrupt is for the client to pass on, not for the agent.
    let mut interrupted = signal(SignalKind::interrupt())?;
    loop {
        tokio::select! {
            command = receiver.recv() => match command {
                Some(Ok(ToAgent::Shutdown)) | None => break,
                Some(Ok(command)) => agent.command(command),
                Some(Err(error)) => {
                    tracing::error!("the kernel's stream broke: {error}");
                    break;
                }
            },
            _ = terminated.recv() => break,
            _ = hung_up.recv() => break,
            _ = interrupted.recv() => {}
        }
    }
    agent.shutdown().await;
    let farewell = async {
        let _ = forwarding.await;
        sender.finish();
        sender.closed().await;
    };
    // A kernel that does not read any more must not keep the agent.
    let _ = tokio::time::timeout(FAREWELL, farewell).await;
    // The guard ends what is left of the workers, so the notes about them go after it.
    drop(guard);
    drop(run_dir);
    Ok(())
}
