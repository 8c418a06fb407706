//! The agent of one node of an allocation: it goes to the gate, and serves whoever wants it there, one conversation after
//! another.

use std::io;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};

use super::gate::{LOOK_AROUND, WORD};
use super::mailbox::Mailbox;
use super::{Allocation, Stream, Visit, Word};
use crate::attach::Attachment;
use crate::direct::{Greeted, reach};
use crate::run_dir::RunDir;
use crate::serve::{End, Signals, stay};
use crate::{AgentError, OWN_PROGRAM};

/// How long to wait before the gate is looked for again.
const AGAIN: Duration = Duration::from_millis(500);

/// The same when it has not been there yet: it starts about when the node does, and a cell waits for both. Doubled each time.
const SOON: Duration = Duration::from_millis(10);

/// How often the gate must have been out of reach, though it is there, before the mailbox is used.
const TRIES: u32 = 2;

/// A stream that the gate has connected to one who wants this node.
struct Wanted {
    conversation: String,
    stream: Box<dyn Stream>,
}

/// Serves until nobody has wanted the node for `patience`, or SIGTERM comes: whether the former. What a conversation has
/// begun ends with it.
///
/// # Errors
/// If an agent cannot be set up on this machine.
pub async fn node(
    allocation: Allocation,
    number: u32,
    patience: Duration,
) -> Result<bool, AgentError> {
    let directory = allocation.directory.clone();
    let (wanting, mut wanted) = mpsc::channel(1);
    let going = Going(tokio::spawn(go(allocation.clone(), number, wanting)));
    let mut signals = Signals::catch()?;
    let mut next: Option<Wanted> = None;
    let forsaken = loop {
        let first = match next.take() {
            Some(first) => first,
            None => tokio::select! {
                first = timeout(patience, wanted.recv()) => match first {
                    Ok(Some(first)) => first,
                    _ => break true,
                },
                () = signals.end() => break false,
                // It was given back, and its job is still to be ended.
                () = given_back(&allocation) => break true,
            },
        };
        let Some(conversation) = Attachment::conversation(&first.conversation) else {
            continue;
        };
        let name = first.conversation.clone();
        let (streams, of_this_one) = mpsc::channel(1);
        let _ = streams.send(first.stream).await;
        let replaced = async {
            while let Some(other) = wanted.recv().await {
                if other.conversation != name {
                    return Some(other);
                }
                let _ = streams.send(other.stream).await;
            }
            None
        };
        let mut replaced = std::pin::pin!(replaced);
        let end = stay(
            of_this_one,
            (RunDir::make()?, Some(&*directory)),
            conversation,
            patience,
            &mut signals,
            (OWN_PROGRAM.as_ref(), &["guard"]),
            &mut replaced,
        )
        .await?;
        match end {
            End::Asked => {}
            End::Other(other) => next = other,
            End::Signal => break false,
            End::Forsaken => break true,
        }
    };
    drop(going);
    Ok(forsaken)
}

/// Waits until nobody needs the allocation any more.
async fn given_back(allocation: &Allocation) {
    while allocation.is_there() {
        sleep(LOOK_AROUND).await;
    }
}

/// Ends with its owner.
struct Going(JoinHandle<()>);

impl Drop for Going {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Goes to the gate again and again, and passes on each stream that comes of it.
async fn go(allocation: Allocation, number: u32, wanting: mpsc::Sender<Wanted>) {
    let mut unreached = 0;
    let mut pause = SOON;
    loop {
        let begun = Instant::now();
        let visited = match (allocation.addresses(), allocation.secret()) {
            (Ok(addresses), Ok(secret)) => match reach(&addresses, &secret).await {
                Ok(greeted) => {
                    unreached = 0;
                    pause = AGAIN;
                    wait(greeted, number).await
                }
                Err(reason) if unreached + 1 < TRIES => {
                    unreached += 1;
                    pause = AGAIN;
                    Err(io::Error::other(reason))
                }
                Err(reason) => {
                    tracing::info!("the gate cannot be reached, so the mailbox is used: {reason}");
                    wait_by_mail(&allocation, number).await
                }
            },
            (Err(error), _) | (_, Err(error)) => Err(error),
        };
        match visited {
            Ok((wanted, over)) => {
                if wanting.send(wanted).await.is_err() {
                    return;
                }
                // Another comes only when this one has ended here, too.
                let _ = over.await;
            }
            Err(error) => tracing::info!("not at the gate: {error}"),
        }
        sleep(pause.saturating_sub(begun.elapsed())).await;
        pause = (pause * 2).min(AGAIN);
    }
}

type Visited = io::Result<(Wanted, JoinHandle<()>)>;

/// Waits at the gate until somebody wants this node; the stream, and what ends when it does.
async fn wait(mut greeted: Greeted, node: u32) -> Visited {
    greeted.tell(&Visit { node }).await?;
    loop {
        match timeout(3 * WORD, greeted.hear()).await?? {
            Word::Wait => {}
            Word::Go { conversation } => {
                let (ours, theirs) = tokio::io::duplex(1 << 18);
                let over = tokio::spawn(async move {
                    if let Err(error) = greeted.pipe(theirs).await {
                        tracing::info!("the stream through the gate ended: {error}");
                    }
                });
                let stream: Box<dyn Stream> = Box::new(ours);
                return Ok((
                    Wanted {
                        conversation,
                        stream,
                    },
                    over,
                ));
            }
        }
    }
}

async fn wait_by_mail(allocation: &Allocation, node: u32) -> Visited {
    let mut mailbox = Mailbox::open(&allocation.mail(), node).await?;
    loop {
        match timeout(3 * WORD, mailbox.hear()).await {
            Ok(Ok(Word::Wait)) => {}
            Ok(Ok(Word::Go { conversation })) => {
                let (ours, over) = mailbox.into_stream();
                let stream: Box<dyn Stream> = Box::new(ours);
                return Ok((
                    Wanted {
                        conversation,
                        stream,
                    },
                    over,
                ));
            }
            Ok(Err(error)) => return Err(error),
            Err(late) => return Err(late.into()),
        }
    }
}
