//! A far host: the connection to its agent, and what happens when the link drops.
//!
//! The conversation with the agent outlives the link. While there is none, what we say is kept here and what the
//! agent says is kept there; a new link goes on where the old one ended. Only when the host stays away for longer
//! than the target's patience, or its agent has ended, is the location lost.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use cellferry_ssh::{Ask, Client, Exit, Options, Process, Question, SshError, Transport};
use cellferry_wire::protocol::{FromAgent, ToAgent};
use cellferry_wire::{Connection, Line, Receiver, Sender, WireError};
use tokio::io::AsyncReadExt;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep, sleep_until, timeout};
use zeroize::Zeroizing;

use super::agents::FromLocation;
use super::arrivals::Arrivals;
use super::files::Answers;
use crate::session::{Problem, TargetName};
use crate::target::config::Ssh;
use crate::target::ssh::agents;
use crate::target::ssh::bootstrap::{self, BootstrapError};

/// How long to wait between attempts to reconnect: the first, and the longest.
const AGAIN: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(5));

/// How long one attempt to reconnect may take.
const ATTEMPT: Duration = Duration::from_secs(15);

/// How much an agent that ends may still say, in bytes.
const LAST_WORDS: u64 = 4 << 10;

/// How long to wait for that.
const LAST_WORDS_LIMIT: Duration = Duration::from_secs(1);

/// The sending end of a conversation with a far agent.
#[derive(Debug)]
pub struct Far {
    /// What the agent is told; kept while there is no link.
    pub sender: Sender<ToAgent>,
    /// Where its answers about files go.
    pub answers: Arc<Answers>,
    /// Ends the conversation when it is dropped or sent to; the answer comes when all is over.
    end: mpsc::UnboundedSender<oneshot::Sender<()>>,
}

/// What the user sees of a link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LinkState {
    /// It is lost.
    Lost {
        /// Why.
        reason: String,
        /// Since when nothing has been heard of the host.
        since: Instant,
    },
    /// It is there again.
    Back,
}

impl Far {
    /// Starts to connect; what comes of it are events. `run_dir` is for what is open while it is connected.
    pub fn start(
        target: TargetName,
        ssh: Ssh,
        run_dir: Option<PathBuf>,
        arrivals: Arc<Arrivals>,
        events: mpsc::UnboundedSender<FromLocation>,
    ) -> Self {
        let id = *uuid::Uuid::new_v4().as_bytes();
        let (connection, line) = Connection::<ToAgent, FromAgent>::resumable(id);
        let Connection { sender, receiver } = connection;
        let (end, ending) = mpsc::unbounded_channel();
        let host = Host {
            target,
            ssh,
            run_dir,
            id,
            events,
        };
        let farewell = sender.clone();
        let answers = Arc::new(Answers::default());
        let files = answers.clone();
        tokio::spawn(async move {
            let target = host.target.clone();
            let events = host.events.clone();
            let hearing = hear(receiver, target.clone(), (arrivals, files), events.clone());
            let hearing = tokio::spawn(hearing);
            let problem = host.live(&line, farewell, ending).await;
            line.close();
            // All that had come is passed on before the end is told.
            let _ = hearing.await;
            let _ = events.send(FromLocation::AgentGone(target, problem));
        });
        Self {
            sender,
            answers,
            end,
        }
    }

    /// Ends the agent and its workers; resolves once it is done or the host is out of reach.
    pub async fn shutdown(self) {
        let (done, over) = oneshot::channel();
        if self.end.send(done).is_ok() {
            let _ = over.await;
        }
    }
}

/// Passes on what an agent says.
async fn hear(
    mut receiver: Receiver<FromAgent>,
    target: TargetName,
    (arrivals, answers): (Arc<Arrivals>, Arc<Answers>),
    events: mpsc::UnboundedSender<FromLocation>,
) {
    while let Some(message) = receiver.recv_held().await {
        let message = match message {
            Ok((message, held)) => match answers.give(message, held) {
                // Its credit goes back at once.
                Some((message, _)) => Ok(message),
                None => continue,
            },
            Err(error) => Err(error),
        };
        let message = match message {
            Ok(FromAgent::Data { transfer, bytes }) => match arrivals.write(transfer, &bytes) {
                Ok(()) => continue,
                Err(reason) => FromAgent::TransferFailed { transfer, reason },
            },
            Ok(FromAgent::Sent { transfer, size }) => match arrivals.whole(transfer, size) {
                Ok(()) => FromAgent::Sent { transfer, size },
                Err(reason) => FromAgent::TransferFailed { transfer, reason },
            },
            Ok(message) => message,
            Err(error) => {
                tracing::error!("the agent of `{target}`: {error}");
                continue;
            }
        };
        if events
            .send(FromLocation::Message(target.clone(), message))
            .is_err()
        {
            break;
        }
    }
    answers.close();
}

struct Host {
    target: TargetName,
    ssh: Ssh,
    run_dir: Option<PathBuf>,
    id: [u8; 16],
    events: mpsc::UnboundedSender<FromLocation>,
}

/// Why one link came to its end, or never was.
enum Broken {
    /// The conversation has ended as it should.
    Over,
    /// It can be tried again.
    Again(String),
    /// It cannot.
    Lost(Problem),
}

impl Host {
    /// Keeps the link up until the location is lost or not wanted any more; what to tell of a loss.
    async fn live(
        self,
        line: &Line,
        sender: Sender<ToAgent>,
        mut ending: mpsc::UnboundedReceiver<oneshot::Sender<()>>,
    ) -> Problem {
        let mut keeping = std::pin::pin!(self.keep(line));
        tokio::select! {
            problem = &mut keeping => problem,
            done = ending.recv() => {
                sender.queue(ToAgent::Shutdown);
                sender.finish();
                // The link goes on until the agent has ended; without a link it ends by its own patience.
                let problem = keeping.await;
                if let Some(done) = done {
                    let _ = done.send(());
                }
                problem
            }
        }
    }

    async fn keep(&self, line: &Line) -> Problem {
        let mut known = false;
        let mut lost: Option<Instant> = None;
        let mut pause = AGAIN.0;
        loop {
            let over = async {
                match lost {
                    Some(since) => sleep_until(since + self.ssh.patience).await,
                    None => std::future::pending().await,
                }
            };
            let mut up = line.up();
            let link = self.link(line, known);
            let (carried, broken) = {
                let mut link = std::pin::pin!(link);
                let mut over = std::pin::pin!(over);
                let mut carried = false;
                loop {
                    tokio::select! {
                        broken = &mut link => break (carried, broken),
                        () = &mut over, if !carried => break (false, Broken::Lost(self.lost())),
                        changed = up.changed(), if !carried => {
                            carried = changed.is_ok() && *up.borrow_and_update();
                            if carried && lost.is_some() {
                                self.say(LinkState::Back);
                            }
                        }
                    }
                }
            };
            known |= carried;
            if carried {
                lost = None;
                pause = AGAIN.0;
            }
            let reason = match broken {
                Broken::Over => return Problem::new("AgentEnded", String::new()),
                Broken::Lost(problem) => return problem,
                Broken::Again(reason) if !known => return self.problem(&reason),
                Broken::Again(reason) => reason,
            };
            let since = *lost.get_or_insert_with(Instant::now);
            if since.elapsed() >= self.ssh.patience {
                return self.lost();
            }
            self.say(LinkState::Lost {
                reason,
                since: line.heard().unwrap_or(since),
            });
            sleep(pause.min(self.ssh.patience)).await;
            pause = (pause * 2).min(AGAIN.1);
        }
    }

    /// One link, from login to its end.
    async fn link(&self, line: &Line, known: bool) -> Broken {
        let connecting = self.connect(known);
        let connected = if known {
            let late = |_| Err(Broken::Again("the host does not answer".to_owned()));
            timeout(ATTEMPT, connecting).await.unwrap_or_else(late)
        } else {
            connecting.await
        };
        let (client, process) = match connected {
            Ok(both) => both,
            Err(broken) => return broken,
        };
        let Process {
            stdin,
            stdout,
            stderr,
            mut exit,
        } = process;
        let outcome = tokio::select! {
            outcome = line.carry(stdout, stdin) => outcome,
            reason = client.closed() => Err(WireError::Io(std::io::Error::other(reason))),
        };
        let broken = match outcome {
            Ok(()) => Broken::Over,
            Err(WireError::Forgotten | WireError::OtherConversation) => Broken::Lost(self.gone()),
            Err(error) if error.is_lost_link() => {
                let mut words = Vec::new();
                let ended = timeout(LAST_WORDS_LIMIT, async {
                    let _ = stderr.take(LAST_WORDS).read_to_end(&mut words).await;
                    exit.wait().await
                });
                if bootstrap::says_gone(&ended.await.unwrap_or(Exit::Lost)) {
                    Broken::Lost(self.gone())
                } else {
                    let words = String::from_utf8_lossy(&words);
                    Broken::Again(format!("{error}\n{}", words.trim()).trim().to_owned())
                }
            }
            Err(WireError::Build { theirs, ours }) => Broken::Lost(self.other_build(&theirs, ours)),
            Err(error) => Broken::Lost(self.problem(&error.to_string())),
        };
        let _ = timeout(LAST_WORDS_LIMIT, client.disconnect()).await;
        broken
    }

    async fn connect(&self, known: bool) -> Result<(Client, Process), Broken> {
        let options = Options {
            user: self.ssh.user.clone(),
            port: self.ssh.port,
            config: self.ssh.config.clone(),
            transport: if self.ssh.openssh {
                Transport::OpenSsh
            } else {
                Transport::Russh
            },
            runtime_dir: self.run_dir.clone(),
            ..Options::new(&self.ssh.host)
        };
        let ask = Arc::new(Asker {
            target: self.target.clone(),
            events: self.events.clone(),
        });
        let client = cellferry_ssh::connect(&options, ask)
            .await
            .map_err(|error| self.refused(error, known))?;
        let conversation = uuid::Uuid::from_bytes(self.id).simple().to_string();
        let patience = self.ssh.patience.as_secs().max(1);
        match bootstrap::attach(&client, &conversation, patience, known).await {
            Ok(process) => Ok((client, process)),
            Err(BootstrapError::Gone) => Err(Broken::Lost(self.gone())),
            Err(BootstrapError::Ssh(error)) => Err(self.refused(error, known)),
            // What was there once: a host that is just starting may not have its disks yet, for example.
            Err(error) if known => Err(Broken::Again(error.to_string())),
            Err(error) => Err(Broken::Lost(self.problem(&error.to_string()))),
        }
    }

    /// A login that failed: while a link is lost, only what time cannot mend ends the waiting.
    fn refused(&self, error: SshError, known: bool) -> Broken {
        if known && may_pass(&error) {
            Broken::Again(error.to_string())
        } else {
            Broken::Lost(self.problem(&error.to_string()))
        }
    }

    fn say(&self, state: LinkState) {
        let _ = self
            .events
            .send(FromLocation::Link(self.target.clone(), state));
    }

    fn problem(&self, reason: &str) -> Problem {
        Problem::new(
            "SshError",
            format!("`{}` cannot be used: {reason}", self.target),
        )
    }

    fn other_build(&self, theirs: &str, ours: &str) -> Problem {
        let from: Vec<String> = agents::directories()
            .iter()
            .map(|path| format!("`{}`", path.display()))
            .collect();
        Problem::new(
            "AgentError",
            format!(
                "the agent for `{}`, from {}, is of build {theirs}, and this kernel of build {ours}: they would not \
                 understand each other; restart the kernel, which is older than the agent if Cellferry was upgraded \
                 meanwhile, or install both anew",
                self.target,
                from.join(", ")
            ),
        )
    }

    fn lost(&self) -> Problem {
        Problem::new(
            "LocationLost",
            format!(
                "the link to `{0}` was lost and did not come back within {1} (`patience` under [targets.{0}] in cellferry.toml), \
                 so its workers count as lost; the next cell on `{0}` connects anew",
                self.target,
                humantime::format_duration(self.ssh.patience)
            ),
        )
    }

    fn gone(&self) -> Problem {
        Problem::new(
            "LocationLost",
            format!(
                "the agent of `{0}` has ended, and its workers with it: the host was started anew, or the agent was killed; \
                 the next cell on `{0}` starts a new one",
                self.target
            ),
        )
    }
}

/// Whether time alone may mend what kept us from logging in.
fn may_pass(error: &SshError) -> bool {
    match error {
        SshError::Jump { source, .. } => may_pass(source),
        SshError::Resolve { .. }
        | SshError::Connect { .. }
        | SshError::Timeout { .. }
        | SshError::ProxyCommand { .. }
        | SshError::Handshake { .. }
        | SshError::Closed { .. }
        | SshError::Refused { .. }
        | SshError::OpenSsh { .. }
        | SshError::Local { .. } => true,
        // It did not say no.
        SshError::Auth(failure) => failure.disconnect.is_some(),
        _ => false,
    }
}

/// Asks the user in the notebook, under the cell that waits for the target.
struct Asker {
    target: TargetName,
    events: mpsc::UnboundedSender<FromLocation>,
}

#[async_trait]
impl Ask for Asker {
    async fn ask(&self, question: Question) -> Option<Zeroizing<String>> {
        let (answer, answered) = oneshot::channel();
        let asked = FromLocation::Ask(self.target.clone(), question, answer);
        self.events.send(asked).ok()?;
        answered.await.ok()?
    }

    fn tell(&self, text: &str) {
        let told = FromLocation::Tell(self.target.clone(), text.to_owned());
        let _ = self.events.send(told);
    }
}
