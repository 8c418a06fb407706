//! An island's life: its ranks' start, then one loop through which all goes until it ends.
//!
//! What one turn of the loop does stands by itself: `from_kernel` and `from_ranks` take what comes, `questions`, `gathered`
//! and `fetched` are what ranks and kernel do in several messages, `to_kernel` is the island's voice, `ending` its end.

mod ending;
mod fetched;
mod from_kernel;
mod from_ranks;
mod gathered;
mod questions;
mod to_kernel;

use std::collections::{HashMap, VecDeque};
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use cellferry_kernel::Author;
use cellferry_kernel::message::Message;
use cellferry_wire::Sender;
use cellferry_wire::protocol::{
    Exit, FromAgent, Ranks, StartFailure, ToAgent, WorkerId, WorkerSpec,
};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};

use self::ending::{Death, Ending};
use self::fetched::Fetched;
use super::gather::Gathering;
use super::lines::Lines;
use super::meeting::{Came, Link, Met, meet};
use super::nodes::{Brought, Nodes};
use super::round::{Due, Round};
use super::stages::Stages;
use crate::group::Group;
use crate::outlet::Outlet;
use crate::worker::Command;

/// How long the other ranks' ends are waited for when one has ended unasked: they may tell better what happened.
const JUDGE: Duration = Duration::from_millis(500);

/// How much longer than its ranks an island has to end.
const MORE: Duration = Duration::from_millis(500);

/// How much of an island's output may wait, in bytes, before no more is taken from its ranks, and how much still does when it
/// goes on. The ranks' own agents then stop them.
const MOST: usize = 64 << 20;
const LESS: usize = MOST / 4;

/// How much of the ranks' output waits here.
const INBOX: usize = 256;

/// Lives an island's life and tells of it; its last message is `WorkerFailed` or `WorkerDown`.
pub async fn live(
    worker: WorkerId,
    (spec, ranks): (WorkerSpec, Ranks),
    (run_dir, segments, allocation): (&Path, &Path, Option<&Path>),
    mut commands: mpsc::UnboundedReceiver<Command>,
    outlet: Outlet,
) {
    let name = format!("island-{}", uuid::Uuid::new_v4().simple());
    let shared = match ranks.spread {
        true => allocation,
        false => Some(run_dir),
    };
    let Some(folder) = shared.map(|shared| shared.join(name)) else {
        let reason = "its ranks may be on other machines, and this agent is in no allocation";
        let failure = StartFailure::Ranks {
            reason: reason.to_owned(),
            stderr_tail: String::new(),
        };
        outlet.tell(FromAgent::WorkerFailed { worker, failure });
        return;
    };
    let mut early = Vec::new();
    let met = meet(
        (worker, &spec, &ranks),
        &folder,
        [run_dir, segments],
        &mut commands,
        &mut early,
    );
    let last = match met.await {
        Ok(met) => {
            outlet.tell(FromAgent::WorkerUp {
                worker,
                pid: met.ranks.first().map_or(0, |rank| rank.pid),
            });
            let mut island = Island::new(worker, met, outlet.clone());
            for (channel, parts) in early {
                island.ask(channel, parts);
            }
            let ending = island.relay(&mut commands).await;
            island.end(ending, &folder).await
        }
        Err(failure) => FromAgent::WorkerFailed { worker, failure },
    };
    let _ = std::fs::remove_dir_all(&folder);
    let _ = std::fs::remove_file(run_dir.join(format!("{}.pgid", worker.0)));
    outlet.tell(last);
}

/// Something for a rank, once all is there that it names.
struct Outgoing {
    needs: Vec<Brought>,
    command: ToAgent,
}

struct Rank {
    /// Sends in order, and waits for what is needed.
    queue: mpsc::UnboundedSender<Outgoing>,
    sender: Sender<ToAgent>,
    _link: Link,
}

struct Island {
    worker: WorkerId,
    outlet: Outlet,
    author: Author,
    launcher: Group,
    ranks: Vec<Rank>,
    nodes: Nodes,
    inbox: mpsc::Receiver<(usize, Option<(FromAgent, cellferry_wire::Held)>)>,
    lines: Lines,
    /// What the waiting lines belong to: its `msg_id`, and its header.
    printing: (String, Bytes),
    rounds: VecDeque<Round>,
    gathering: Option<Gathering>,
    stages: Stages,
    /// Questions of ranks to the user, by `msg_id`: the first has been asked.
    questions: VecDeque<(usize, String, Message)>,
    comms: HashMap<String, usize>,
    /// Which transfer each open request to rank 0 writes, and those that are fetched from it.
    taking: HashMap<String, u64>,
    fetched: HashMap<u64, Fetched>,
    deaths: Vec<Death>,
    stopping: bool,
}

/// The next thing that happens.
enum Next {
    Command(Option<Command>),
    Time,
    Eased,
    Said(usize, Option<(FromAgent, cellferry_wire::Held)>),
    LauncherEnded(Exit),
}

impl Island {
    fn new(worker: WorkerId, met: Met, outlet: Outlet) -> Self {
        let nodes = Nodes::new(&met.own, &met.ranks);
        let count = met.ranks.len();
        let (said, inbox) = mpsc::channel(INBOX);
        let ranks = met.ranks.into_iter().enumerate().map(|(rank, came)| {
            let Came {
                sender,
                mut receiver,
                link,
                ..
            } = came;
            let said = said.clone();
            tokio::spawn(async move {
                while let Some(Ok(message)) = receiver.recv_held().await {
                    if said.send((rank, Some(message))).await.is_err() {
                        return;
                    }
                }
                let _ = said.send((rank, None)).await;
            });
            let (queue, outgoing) = mpsc::unbounded_channel();
            tokio::spawn(deliver(outgoing, sender.clone()));
            Rank {
                queue,
                sender,
                _link: link,
            }
        });
        Self {
            worker,
            outlet,
            author: Author::new(),
            launcher: met.launcher,
            ranks: ranks.collect(),
            nodes,
            inbox,
            lines: Lines::new(count),
            printing: (String::new(), Bytes::new()),
            rounds: VecDeque::new(),
            gathering: None,
            stages: Stages::default(),
            questions: VecDeque::new(),
            comms: HashMap::new(),
            taking: HashMap::new(),
            fetched: HashMap::new(),
            deaths: Vec::new(),
            stopping: false,
        }
    }

    /// Passes messages both ways until the island ends.
    async fn relay(&mut self, commands: &mut mpsc::UnboundedReceiver<Command>) -> Ending {
        let mut kill_at: Option<Instant> = None;
        let mut judge_at: Option<Instant> = None;
        let mut commanded = true;
        let mut held = false;
        let mut launcher_ended: Option<Exit> = None;
        loop {
            held |= self.outlet.waiting(self.worker) > MOST;
            let rounds = self.rounds.iter().filter_map(Round::next_due);
            let times = [kill_at, judge_at, self.lines.due()];
            let wake = rounds.chain(times.into_iter().flatten()).min();
            let outlet = self.outlet.clone();
            let next = tokio::select! {
                // What ends it comes first.
                biased;
                () = until(wake) => Next::Time,
                command = commands.recv(), if commanded => Next::Command(command),
                () = outlet.until_waiting(self.worker, LESS), if held => Next::Eased,
                Some((rank, said)) = self.inbox.recv(), if !held => Next::Said(rank, said),
                exit = self.launcher.ended(), if launcher_ended.is_none() => Next::LauncherEnded(exit),
            };
            match next {
                Next::Command(Some(Command::Send(channel, parts))) => self.ask(channel, parts),
                Next::Command(Some(Command::Interrupt)) => self.interrupt(),
                Next::Command(Some(Command::Stop(grace))) => {
                    self.stopping = true;
                    held = false;
                    self.stop(grace);
                    let at = Instant::now() + grace + MORE;
                    kill_at = Some(kill_at.map_or(at, |earlier| earlier.min(at)));
                }
                Next::Command(None) => {
                    commanded = false;
                    self.stopping = true;
                    self.stop(Duration::ZERO);
                    kill_at = Some(Instant::now() + MORE);
                }
                Next::Eased => held = false,
                Next::Said(rank, said) => self.hear(rank, said),
                Next::LauncherEnded(exit) => {
                    launcher_ended = Some(exit);
                    judge_at = judge_at.or(Some(Instant::now() + JUDGE));
                }
                Next::Time => {}
            }
            let now = Instant::now();
            let shown = self.lines.take(now);
            self.print(shown);
            let mut index = 0;
            while let Some(round) = self.rounds.get_mut(index) {
                match round.due(now) {
                    Some(Due::Show) => self.show_error(index),
                    Some(Due::Interrupt(ranks)) => self.interrupt_ranks(&ranks),
                    Some(Due::Tell(open)) => {
                        let request = round.request.clone();
                        self.say_stuck(&open, request);
                    }
                    Some(Due::GiveUp) => {
                        let (open, request) = (round.open(), round.request.clone());
                        let unshown = round.give_up(&self.author);
                        self.say_given_up(&open, request);
                        if unshown {
                            self.show_error(index);
                        }
                        return Ending::GivenUp(open);
                    }
                    None => index += 1,
                }
            }
            let all = self.deaths.len() == self.ranks.len();
            if !self.deaths.is_empty() && !self.stopping {
                judge_at = judge_at.or(Some(now + JUDGE));
            }
            if self.stopping && (all || kill_at.is_some_and(|at| at <= now)) {
                return Ending::Asked;
            }
            if judge_at.is_some_and(|at| at <= now) || (all && !self.stopping) {
                return match launcher_ended {
                    Some(exit) if self.deaths.iter().all(|death| death.exit.is_none()) => {
                        Ending::Launcher(exit)
                    }
                    _ => Ending::Deaths,
                };
            }
        }
    }
}

/// Sends in order what is to be sent to a rank.
async fn deliver(mut outgoing: mpsc::UnboundedReceiver<Outgoing>, sender: Sender<ToAgent>) {
    while let Some(Outgoing { needs, command }) = outgoing.recv().await {
        for mut need in needs {
            // What could not be brought, the worker itself will miss.
            let _ = need.wait_for(Option::is_some).await;
        }
        sender.queue(command);
    }
}

async fn until(time: Option<Instant>) {
    match time {
        Some(time) => sleep_until(time).await,
        None => std::future::pending().await,
    }
}
