//! A conversation with an agent elsewhere, and what happens when its link drops.
//!
//! The conversation with the agent outlives the link. While there is none, what we say is kept here and what the
//! agent says is kept there; a new link goes on where the old one ended. Only when the agent stays away for longer
//! than the target's patience, or has ended, is the location lost.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use cellferry_ssh::{Client, Exit, Process, Stderr, Stdin, Stdout};
use cellferry_wire::protocol::{FromAgent, ToAgent};
use cellferry_wire::{Connection, Line, Receiver, Sender, WireError};
use futures::FutureExt;
use futures::future::BoxFuture;
use tokio::io::AsyncReadExt;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::agents::FromLocation;
use super::arrivals::Arrivals;
use super::files::Answers;
use crate::session::{Gone, Problem, TargetName};
use crate::target::ssh::agents;
use crate::target::ssh::bootstrap;

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
    /// Starts to connect; what comes of it are events.
    pub fn start(
        way: impl Way + 'static,
        arrivals: Arc<Arrivals>,
        events: mpsc::UnboundedSender<FromLocation>,
    ) -> Self {
        let id = *uuid::Uuid::new_v4().as_bytes();
        let (connection, line) = Connection::<ToAgent, FromAgent>::resumable(id);
        let Connection { sender, receiver } = connection;
        let (end, ending) = mpsc::unbounded_channel();
        let keeper = Keeper {
            way,
            conversation: uuid::Uuid::from_bytes(id).simple().to_string(),
            events,
        };
        let farewell = sender.clone();
        let answers = Arc::new(Answers::default());
        let files = answers.clone();
        tokio::spawn(async move {
            let target = keeper.way.location().clone();
            let events = keeper.events.clone();
            let hearing = hear(receiver, target.clone(), (arrivals, files), events.clone());
            let hearing = tokio::spawn(hearing);
            let (problem, gone) = keeper.live(&line, farewell, ending).await;
            line.close();
            // All that had come is passed on before the end is told.
            let _ = hearing.await;
            let _ = events.send(FromLocation::AgentGone(target, problem, gone));
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

/// Why one link came to its end, or never was.
pub enum Broken {
    /// The conversation has ended as it should.
    Over,
    /// It can be tried again.
    Again(String),
    /// It cannot.
    Lost(Problem),
    /// It cannot, and it is known what this means for what ran there.
    Ended(Problem, Gone),
}

/// How links to one agent are made, and what is told of it.
#[async_trait]
pub trait Way: Send + Sync {
    /// Where the agent is.
    fn location(&self) -> &TargetName;

    /// How long it may be out of reach.
    fn patience(&self) -> Duration;

    /// Until when it may be out of reach that has been so since then; `None` as long as it is not missed: what has not answered
    /// in this conversation yet (is not `known`) may only be waited for.
    fn deadline(&self, since: Instant, _known: bool) -> Option<Instant> {
        Some(since + self.patience())
    }

    /// Resolves when the deadline may have changed.
    async fn deadline_moved(&self) {
        std::future::pending().await
    }

    /// Opens a byte stream to the agent in a conversation; `known` if it has answered in it before.
    async fn open(&self, conversation: &str, known: bool) -> Result<Opened, Broken>;

    /// Whether the first link is tried for as long as one that was lost.
    fn is_patient(&self) -> bool {
        false
    }

    /// It cannot be used, for this reason.
    fn problem(&self, reason: &str) -> Problem;

    /// It has stayed away for too long.
    fn lost(&self) -> Problem;

    /// Its agent has ended.
    fn gone(&self) -> Problem;

    /// Something that is lost by this account: what to tell of it, and what it means for what ran there if that is known.
    async fn why_gone(&self, problem: Problem) -> (Problem, Option<Gone>) {
        (problem, None)
    }
}

/// A byte stream to an agent: the streams of the command that carries it.
pub struct Opened {
    /// The command's input.
    pub stdin: Stdin,
    /// Its output.
    pub stdout: Stdout,
    /// What it complains about.
    pub stderr: Stderr,
    /// How it ends.
    pub exit: BoxFuture<'static, Exit>,
    /// The connection that it runs over, if it runs elsewhere.
    pub client: Option<Arc<Client>>,
    /// Whether nothing else runs over that.
    pub alone: bool,
}

impl Opened {
    /// Over a command on a host.
    pub fn over(process: Process, client: Arc<Client>, alone: bool) -> Self {
        let Process {
            stdin,
            stdout,
            stderr,
            mut exit,
        } = process;
        Self {
            stdin,
            stdout,
            stderr,
            exit: async move { exit.wait().await }.boxed(),
            client: Some(client),
            alone,
        }
    }
}

struct Keeper<W> {
    way: W,
    conversation: String,
    events: mpsc::UnboundedSender<FromLocation>,
}

impl<W: Way> Keeper<W> {
    /// Keeps the link up until the location is lost or not wanted any more; what to tell of a loss.
    async fn live(
        self,
        line: &Line,
        sender: Sender<ToAgent>,
        mut ending: mpsc::UnboundedReceiver<oneshot::Sender<()>>,
    ) -> (Problem, Option<Gone>) {
        let mut keeping = std::pin::pin!(self.keep(line));
        tokio::select! {
            (problem, gone) = &mut keeping => match gone {
                Some(_) => (problem, gone),
                None => self.way.why_gone(problem).await,
            },
            done = ending.recv() => {
                sender.queue(ToAgent::Shutdown);
                sender.finish();
                // The link goes on until the agent has ended; without a link it ends by its own patience.
                let ended = keeping.await;
                if let Some(done) = done {
                    let _ = done.send(());
                }
                ended
            }
        }
    }

    async fn keep(&self, line: &Line) -> (Problem, Option<Gone>) {
        let mut known = false;
        let mut lost: Option<Instant> = None;
        let mut pause = AGAIN.0;
        loop {
            let since = lost;
            // Whether it is lost; or it is not missed any more.
            let over = async {
                let Some(since) = since else {
                    return std::future::pending().await;
                };
                while let Some(deadline) = self.way.deadline(since, known) {
                    tokio::select! {
                        () = sleep_until(deadline) => return true,
                        () = self.way.deadline_moved() => {}
                    }
                }
                false
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
                        is_lost = &mut over, if !carried && lost.is_some() => {
                            if is_lost {
                                break (false, Broken::Lost(self.way.lost()));
                            }
                            lost = None;
                            self.say(LinkState::Back);
                        }
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
                Broken::Over => return (self.way.gone(), None),
                Broken::Lost(problem) => return (problem, None),
                Broken::Ended(problem, gone) => return (problem, Some(gone)),
                Broken::Again(reason) if !known && !self.way.is_patient() => {
                    return (self.way.problem(&reason), None);
                }
                Broken::Again(reason) => reason,
            };
            let since = *lost.get_or_insert_with(Instant::now);
            if self
                .way
                .deadline(since, known)
                .is_some_and(|deadline| Instant::now() >= deadline)
            {
                return (self.way.lost(), None);
            }
            self.say(LinkState::Lost {
                reason,
                since: line.heard().unwrap_or(since),
            });
            sleep(pause.min(self.way.patience())).await;
            pause = (pause * 2).min(AGAIN.1);
        }
    }

    /// One link, from login to its end.
    async fn link(&self, line: &Line, known: bool) -> Broken {
        let connecting = self.way.open(&self.conversation, known);
        let connected = if known {
            let late = |_| Err(Broken::Again("the host does not answer".to_owned()));
            timeout(ATTEMPT, connecting).await.unwrap_or_else(late)
        } else {
            connecting.await
        };
        let Opened {
            stdin,
            stdout,
            stderr,
            exit,
            client,
            alone,
        } = match connected {
            Ok(opened) => opened,
            Err(broken) => return broken,
        };
        let closed = async {
            match &client {
                Some(client) => client.closed().await,
                None => std::future::pending().await,
            }
        };
        let outcome = tokio::select! {
            outcome = line.carry(stdout, stdin) => outcome,
            reason = closed => Err(WireError::Io(std::io::Error::other(reason))),
        };
        let broken = match outcome {
            Ok(()) => Broken::Over,
            Err(WireError::Forgotten | WireError::OtherConversation) => {
                Broken::Lost(self.way.gone())
            }
            Err(error) if error.is_lost_link() => {
                let mut words = Vec::new();
                let ended = timeout(LAST_WORDS_LIMIT, async {
                    let _ = stderr.take(LAST_WORDS).read_to_end(&mut words).await;
                    exit.await
                });
                if bootstrap::says_gone(&ended.await.unwrap_or(Exit::Lost)) {
                    Broken::Lost(self.way.gone())
                } else {
                    let words = String::from_utf8_lossy(&words);
                    Broken::Again(format!("{error}\n{}", words.trim()).trim().to_owned())
                }
            }
            Err(WireError::Build { theirs, ours }) => {
                Broken::Lost(other_build(self.way.location(), &theirs, ours))
            }
            Err(error) => Broken::Lost(self.way.problem(&error.to_string())),
        };
        if let Some(client) = client.filter(|_| alone) {
            let _ = timeout(LAST_WORDS_LIMIT, client.disconnect()).await;
        }
        broken
    }

    fn say(&self, state: LinkState) {
        let _ = self
            .events
            .send(FromLocation::Link(self.way.location().clone(), state));
    }
}

/// Its agent does not understand this kernel.
fn other_build(location: &str, theirs: &str, ours: &str) -> Problem {
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
            location,
            from.join(", ")
        ),
    )
}

#[cfg(test)]
mod tests;
