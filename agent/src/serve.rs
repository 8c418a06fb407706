//! An agent that is a process of its own: it serves one kernel, over one byte stream or over one after another.

use std::path::{Path, PathBuf};
use std::time::Duration;

use cellferry_wire::protocol::{FromAgent, ToAgent};
use cellferry_wire::{Connection, Line, Receiver, WireError};
use nix::unistd::geteuid;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{UnixListener, UnixStream};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::AgentError;
use crate::agent::Agent;
use crate::guard::Guard;
use crate::machine::hello;
use crate::outlet::Outlet;
use crate::run_dir::RunDir;

/// How long the agent tries to hand the last messages to the kernel.
const FAREWELL: Duration = Duration::from_secs(1);

/// Serves a kernel over a byte stream until it ends, a signal comes or the kernel asks.
///
/// `guard` is the program, with its arguments, that cleans up if this process is killed.
pub async fn serve<R, W>(reader: R, writer: W, guard: (&Path, &[&str])) -> Result<(), AgentError>
where
    R: AsyncRead + Unpin + Send + 'static,
    W: AsyncWrite + Unpin + Send + 'static,
{
    let served = Served::prepare(RunDir::make()?, guard)?;
    let mut signals = Signals::catch()?;
    let connection = Connection::start(reader, writer).await?;
    let ending = async {
        // The terminal's interrupt is for the client to pass on, not for the agent.
        tokio::select! {
            _ = signals.terminate.recv() => {}
            _ = signals.hang_up.recv() => {}
        }
    };
    served
        .until(connection, ending, std::future::ready(()))
        .await;
    Ok(())
}

/// Serves another agent over a byte stream until that ends, or asks for the end. Not until a signal comes: launchers send one to
/// all ranks when one has died, and then it is the other agent that knows what to do.
pub async fn follow<R, W>(reader: R, writer: W, guard: (&Path, &[&str])) -> Result<(), AgentError>
where
    R: AsyncRead + Unpin + Send + 'static,
    W: AsyncWrite + Unpin + Send + 'static,
{
    let served = Served::prepare(RunDir::make()?, guard)?;
    let _signals = Signals::catch()?;
    let connection = Connection::start(reader, writer).await?;
    let over = std::future::ready(());
    served.until(connection, std::future::pending(), over).await;
    Ok(())
}

/// Why an agent has stopped serving a conversation.
#[derive(Debug)]
pub enum End<T> {
    /// The kernel asked it to.
    Asked,
    /// SIGTERM came.
    Signal,
    /// No stream has carried it for too long.
    Forsaken,
    /// The future that was given said so.
    Other(T),
}

/// Serves a conversation over the byte streams that come, one after another, until the kernel ends it,
/// SIGTERM comes, no stream has carried it for `patience`, or `other` is ready. `allocation` is the directory of the one that
/// this machine is in.
pub async fn stay<S, T>(
    links: mpsc::Receiver<S>,
    (run_dir, allocation): (RunDir, Option<&Path>),
    conversation: [u8; 16],
    patience: Duration,
    signals: &mut Signals,
    guard: (&Path, &[&str]),
    other: &mut (impl Future<Output = T> + Unpin),
) -> Result<End<T>, AgentError>
where
    S: AsyncRead + AsyncWrite + Send + 'static,
{
    let mut served = Served::prepare(run_dir, guard)?;
    served.allocation = allocation.map(Path::to_owned);
    let (connection, line) = Connection::resumable(conversation);
    let up = line.up();
    let mut carrying = tokio::spawn(carry(links, line));
    let mut end = End::Asked;
    let ending = async {
        end = tokio::select! {
            // Not by a hang-up: a login that ends is what this agent is there to outlive.
            _ = signals.terminate.recv() => End::Signal,
            () = forsaken(up, patience) => {
                tracing::warn!("no link for {} s", patience.as_secs());
                End::Forsaken
            }
            other = other => End::Other(other),
        }
    };
    let over = async {
        let _ = (&mut carrying).await;
    };
    served.until(connection, ending, over).await;
    carrying.abort();
    Ok(end)
}

/// Passes on each of our own user's connections.
pub async fn accept(listener: UnixListener, streams: mpsc::Sender<UnixStream>) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                let is_own = stream
                    .peer_cred()
                    .is_ok_and(|peer| peer.uid() == geteuid().as_raw());
                if is_own && streams.send(stream).await.is_err() {
                    return;
                }
            }
            Err(error) => {
                tracing::warn!("cannot accept a link: {error}");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

/// Carries the conversation over each byte stream that comes, until it is over; a newer one replaces the one in use.
async fn carry<S>(mut links: mpsc::Receiver<S>, line: Line)
where
    S: AsyncRead + AsyncWrite + Send + 'static,
{
    let mut streams = JoinSet::new();
    loop {
        let stream = tokio::select! {
            Some(stream) = links.recv() => stream,
            Some(ended) = streams.join_next() => match ended {
                Ok(Ok(())) => return,
                // Whoever started us is of another build, so nobody will ever carry this conversation.
                Ok(Err(error @ WireError::Build { .. })) if line.heard().is_none() => {
                    tracing::error!("{error}");
                    return;
                }
                Ok(Err(error)) => {
                    tracing::info!("a link ended: {error}");
                    continue;
                }
                Err(error) => {
                    tracing::error!("a link failed: {error}");
                    continue;
                }
            },
            else => return,
        };
        let line = line.clone();
        streams.spawn(async move {
            let (reader, writer) = tokio::io::split(stream);
            line.carry(reader, writer).await
        });
    }
}

/// Returns once no byte stream has carried the conversation for so long.
async fn forsaken(mut up: watch::Receiver<bool>, patience: Duration) {
    loop {
        let link = timeout(patience, up.wait_for(|up| *up)).await;
        if !link.is_ok_and(|up| up.is_ok()) || up.wait_for(|up| !up).await.is_err() {
            return;
        }
    }
}

/// What an agent's process has.
struct Served {
    run_dir: RunDir,
    segments: RunDir,
    guard: Guard,
    /// The directory of the allocation that it is in.
    allocation: Option<PathBuf>,
}

impl Served {
    fn prepare(run_dir: RunDir, guard: (&Path, &[&str])) -> Result<Self, AgentError> {
        let segments = RunDir::for_values()?;
        let guard = Guard::start(guard.0, guard.1, &[run_dir.path(), segments.path()])?;
        Ok(Self {
            run_dir,
            segments,
            guard,
            allocation: None,
        })
    }

    /// Serves until the kernel or `ending` ends it, and leaves nothing. When all has been said and heard, the connection is
    /// `over`.
    async fn until(
        self,
        connection: Connection<FromAgent, ToAgent>,
        ending: impl Future<Output = ()>,
        over: impl Future<Output = ()>,
    ) {
        let Connection {
            sender,
            mut receiver,
        } = connection;
        let (run_dir, segments) = (self.run_dir.path(), self.segments.path());
        sender.queue(FromAgent::Hello(hello(run_dir, segments)));
        let agent = Agent::new(run_dir, segments, Outlet::Wire(sender.clone()));
        let mut agent = agent.within(self.allocation);
        tokio::select! {
            () = obey(&mut agent, &mut receiver) => {}
            () = ending => {}
        }
        agent.shutdown().await;
        // A kernel that does not read any more must not keep the agent.
        let farewell = async {
            sender.finish();
            sender.closed().await;
            over.await;
        };
        let _ = timeout(FAREWELL, farewell).await;
        // The guard ends what is left of the workers, so the notes about them go after it.
        drop(self.guard);
        drop(self.run_dir);
        drop(self.segments);
    }
}

/// Does what the kernel asks until it asks for the end, or says nothing any more.
async fn obey(agent: &mut Agent, receiver: &mut Receiver<ToAgent>) {
    while let Some(command) = receiver.recv_held().await {
        match command {
            Ok((ToAgent::Shutdown, _)) => return,
            Ok((command, held)) => agent.obey(command, Some(held)),
            Err(error) => {
                tracing::error!("the kernel's stream broke: {error}");
                return;
            }
        }
    }
}

/// Signals that must not end the process as they come.
pub struct Signals {
    terminate: Signal,
    hang_up: Signal,
    _interrupt: Signal,
}

impl Signals {
    /// From now on they do not.
    pub fn catch() -> std::io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            hang_up: signal(SignalKind::hangup())?,
            _interrupt: signal(SignalKind::interrupt())?,
        })
    }

    /// SIGTERM has come.
    pub async fn end(&mut self) {
        self.terminate.recv().await;
    }
}
