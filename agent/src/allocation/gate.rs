//! The gate of an allocation, on the login node: connects those who want a node with the node that waits for them.

use std::collections::HashMap;
use std::io;
use std::os::fd::AsRawFd;
use std::time::Duration;

use nix::sys::socket::{MsgFlags, recv};
use nix::unistd::geteuid;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, Interest};
use tokio::net::{TcpListener, UnixListener, UnixStream};
use tokio::sync::{mpsc, oneshot};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, sleep_until, timeout};

use super::mailbox::{Mailbox, Mailboxes};
use super::{Allocation, FOUND, Visit, Word};
use crate::direct::{Greeted, listen, respond};

/// How long a stranger has to prove that it knows the secret, or a process of ours to say what it wants.
const GREETING: Duration = Duration::from_secs(5);

/// How often a node that waits hears that the gate is still there.
pub(super) const WORD: Duration = Duration::from_secs(10);

/// How often the gate looks whether its allocation is still there, and those who want a node that has not come.
pub(super) const LOOK_AROUND: Duration = Duration::from_secs(2);

/// How often the gate looks for new mailboxes.
const LOOK: Duration = Duration::from_millis(500);

/// The longest first line of one who wants a node, in bytes.
const LINE: u64 = 100;

/// One who wants a node.
struct Call {
    conversation: String,
    stream: BufReader<UnixStream>,
}

impl Call {
    /// Whether the other end is closed, and all that it said has been read.
    fn has_gone(&self) -> bool {
        let mut byte = [0];
        let stream = self.stream.get_ref();
        let seen = stream.try_io(Interest::READABLE, || {
            let flags = MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT;
            Ok(recv(stream.as_raw_fd(), &mut byte, flags)?)
        });
        seen.is_ok_and(|bytes| bytes == 0)
    }

    /// Tells the caller that what follows comes from the node.
    async fn answer(&mut self) -> io::Result<()> {
        self.stream.write_all(FOUND.as_bytes()).await
    }
}

/// A node that has come.
enum Visitor {
    Connected(Greeted),
    ByMail(Mailbox),
}

enum Event {
    Call(u32, Call),
    Visit(u32, Visitor),
}

/// What there is of a node.
#[derive(Default)]
struct Node {
    /// Nobody has wanted it since it came.
    free: Option<oneshot::Sender<Call>>,
    /// What waits with it, or copies for it.
    task: Option<AbortHandle>,
    /// It has not come, and is wanted.
    call: Option<Call>,
}

/// Serves until nobody has come for `patience`; then the job is of no use any more, and is ended.
///
/// # Errors
/// If it cannot listen, or tell where.
pub async fn gate(
    allocation: &Allocation,
    callers: UnixListener,
    patience: Duration,
) -> io::Result<()> {
    let (visitors, addresses) = listen()?;
    allocation.make_mail()?;
    allocation.tell_addresses(&addresses)?;
    let (events, mut inbox) = mpsc::channel(64);
    let mut doors = JoinSet::new();
    doors.spawn(hear_callers(callers, events.clone()));
    doors.spawn(meet_visitors(visitors, allocation.clone(), events.clone()));
    doors.spawn(look_for_mail(allocation.clone(), events));
    let mut nodes: HashMap<u32, Node> = HashMap::new();
    let mut tasks = JoinSet::new();
    let mut used = Instant::now();
    let mut looks = interval(LOOK_AROUND);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        if nodes.values().any(Node::is_used) {
            used = Instant::now();
        }
        tokio::select! {
            Some(event) = inbox.recv() => match event {
                Event::Call(number, call) => nodes.entry(number).or_default().wanted(call),
                Event::Visit(number, visitor) => {
                    nodes.entry(number).or_default().came(visitor, &mut tasks);
                }
            },
            Some(_) = tasks.join_next() => {}
            _ = looks.tick() => {
                for (number, node) in &mut nodes {
                    node.look(allocation.is_over(*number));
                }
                if !allocation.is_there() {
                    // It was given back.
                    return Ok(());
                }
            }
            () = sleep_until(used + patience) => break,
        }
    }
    allocation.cancel().await;
    Ok(())
}

impl Node {
    /// Whether somebody wants it, or is connected with it.
    fn is_used(&self) -> bool {
        let connected =
            self.free.is_none() && self.task.as_ref().is_some_and(|task| !task.is_finished());
        self.call.is_some() || connected
    }

    /// Who wanted it and has gone does not want it any more, and nobody need wait for one that is over.
    fn look(&mut self, is_over: bool) {
        if is_over || self.call.as_ref().is_some_and(Call::has_gone) {
            self.call = None;
        }
    }

    fn wanted(&mut self, call: Call) {
        let refused = match self.free.take() {
            Some(free) => free.send(call).err(),
            None => Some(call),
        };
        if refused.is_some() {
            self.call = refused;
            // The newest has it, in case that an older one does not know yet that it has gone; the node comes again.
            if let Some(task) = self.task.take() {
                task.abort();
            }
        }
    }

    fn came(&mut self, visitor: Visitor, tasks: &mut JoinSet<()>) {
        // It comes once its last stream has ended, whether or not that is known here.
        if let Some(task) = self.task.take() {
            task.abort();
        }
        let (free, wanted) = oneshot::channel();
        match self.call.take() {
            Some(call) => drop(free.send(call)),
            None => self.free = Some(free),
        }
        self.task = Some(tasks.spawn(async move {
            if let Err(error) = visitor.serve(wanted).await {
                tracing::info!("a node's stream ended: {error}");
            }
        }));
    }
}

impl Visitor {
    async fn serve(self, mut wanted: oneshot::Receiver<Call>) -> io::Result<()> {
        match self {
            Self::Connected(mut greeted) => {
                let mut words = interval(WORD);
                let call = loop {
                    tokio::select! {
                        call = &mut wanted => break call,
                        () = greeted.left() => return Ok(()),
                        _ = words.tick() => greeted.tell(&Word::Wait).await?,
                    }
                };
                let Ok(mut call) = call else {
                    return Ok(());
                };
                call.answer().await?;
                let Call {
                    conversation,
                    stream,
                } = call;
                greeted.tell(&Word::Go { conversation }).await?;
                greeted.pipe(stream).await
            }
            Self::ByMail(mut mailbox) => {
                let mut words = interval(WORD);
                let call = loop {
                    tokio::select! {
                        call = &mut wanted => break call,
                        // Where there is no room for it there may be some the next time.
                        _ = words.tick() => if let Err(error) = mailbox.tell(&Word::Wait).await {
                            tracing::info!("a node hears nothing: {error}");
                        },
                    }
                };
                let Ok(mut call) = call else {
                    return Ok(());
                };
                call.answer().await?;
                let Call {
                    conversation,
                    mut stream,
                } = call;
                mailbox.tell(&Word::Go { conversation }).await?;
                let (mut mail, _) = mailbox.into_stream();
                tokio::io::copy_bidirectional(&mut stream, &mut mail)
                    .await
                    .map(drop)
            }
        }
    }
}

/// Those of our own user who want a node: the first line says which, and for which conversation.
async fn hear_callers(listener: UnixListener, events: mpsc::Sender<Event>) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                let events = events.clone();
                tokio::spawn(async move {
                    if let Ok(Ok((node, call))) = timeout(GREETING, hear_caller(stream)).await {
                        let _ = events.send(Event::Call(node, call)).await;
                    }
                });
            }
            Err(error) => {
                tracing::warn!("cannot accept a link: {error}");
                sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn hear_caller(stream: UnixStream) -> io::Result<(u32, Call)> {
    if stream.peer_cred()?.uid() != geteuid().as_raw() {
        return Err(io::ErrorKind::PermissionDenied.into());
    }
    let mut stream = BufReader::new(stream);
    let mut line = String::new();
    (&mut stream).take(LINE).read_line(&mut line).await?;
    let wrong = || io::Error::other("a caller did not say what it wants");
    let (node, conversation) = line.trim_end().split_once(' ').ok_or_else(wrong)?;
    let call = Call {
        conversation: conversation.to_owned(),
        stream,
    };
    Ok((node.parse().map_err(|_| wrong())?, call))
}

async fn meet_visitors(listener: TcpListener, allocation: Allocation, events: mpsc::Sender<Event>) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                let (events, allocation) = (events.clone(), allocation.clone());
                tokio::spawn(async move {
                    let met = timeout(GREETING, async {
                        let mut greeted = respond(stream, &allocation.secret()?).await?;
                        let visit: Visit = greeted.hear().await?;
                        Ok::<_, io::Error>((visit.node, greeted))
                    });
                    match met.await {
                        Ok(Ok((node, greeted))) => {
                            let visit = Event::Visit(node, Visitor::Connected(greeted));
                            let _ = events.send(visit).await;
                        }
                        Ok(Err(error)) => {
                            tracing::info!("a stranger at the gate was sent away: {error}");
                        }
                        Err(_) => tracing::info!("a stranger at the gate said nothing"),
                    }
                });
            }
            Err(error) => {
                tracing::warn!("cannot accept a node: {error}");
                sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn look_for_mail(allocation: Allocation, events: mpsc::Sender<Event>) {
    let mut mailboxes = Mailboxes::new(allocation.mail());
    loop {
        for (node, mailbox) in mailboxes.opened().await {
            let visit = Event::Visit(node, Visitor::ByMail(mailbox));
            if events.send(visit).await.is_err() {
                return;
            }
        }
        sleep(LOOK).await;
    }
}
