//! An island's life: its ranks' start, what passes between them and the kernel, and their end.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use cellferry_kernel::Author;
use cellferry_kernel::message::{Header, Message};
use cellferry_wire::Sender;
use cellferry_wire::protocol::{
    Channel, Exit, FromAgent, Parts, Ranks, StartFailure, ToAgent, WorkerId, WorkerSpec,
};
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};

use super::gather::{Gathering, Step};
use super::lines::{Lines, Name, shown, without_boilerplate};
use super::meeting::{Came, Link, Met, end, meet};
use super::nodes::{Brought, Nodes};
use super::requests::{For, whom};
use super::round::{Due, GRACE, Heard, Round};
use super::stages::{Stages, Way};
use crate::group::Group;
use crate::growing::Growing;
use crate::outlet::Outlet;
use crate::worker::{Command, message, parts};

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

/// How a rank ended; unknown if its connection broke before it could be told.
struct Death {
    rank: usize,
    exit: Option<Exit>,
    last_words: String,
}

/// Why an island ends.
enum Ending {
    /// It was asked to.
    Asked,
    /// A rank has died, or several have.
    Deaths,
    /// Ranks that would not end after another had failed, or after the user had interrupted them.
    GivenUp(BTreeSet<usize>),
    /// What had started the ranks ended.
    Launcher(Exit),
}

/// A value that rank 0 has written where this agent does not see it.
struct Fetched {
    growing: Option<Growing>,
    answer: Message,
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

    /// Ends what is left of it; the last that the kernel hears.
    async fn end(mut self, ending: Ending, folder: &Path) -> FromAgent {
        let shown = self.lines.flush();
        self.print(shown);
        self.stop(Duration::ZERO);
        for rank in &self.ranks {
            rank.sender.queue(ToAgent::Shutdown);
        }
        let gone = async {
            let mut left: BTreeSet<usize> = (0..self.ranks.len()).collect();
            while let Some((rank, said)) = self.inbox.recv().await {
                if said.is_none() {
                    left.remove(&rank);
                }
                if left.is_empty() {
                    return;
                }
            }
        };
        let _ = tokio::time::timeout(GRACE, gone).await;
        // Without their connections the ranks end at once.
        self.ranks.clear();
        // Once it is told to end, `mpirun` complains of that.
        let words = self.launcher.words();
        end(&mut self.launcher).await;
        // On a shared file system it may take a while.
        let _ = std::fs::remove_dir_all(folder);
        let worst = |deaths: &[Death]| -> Option<(usize, Option<Exit>, String)> {
            let chosen = deaths.iter().min_by_key(|death| severity(death.exit))?;
            Some((chosen.rank, chosen.exit, chosen.last_words.clone()))
        };
        let unknown = Exit {
            code: None,
            signal: None,
            out_of_memory: None,
        };
        let asked = matches!(ending, Ending::Asked);
        let given_up = matches!(ending, Ending::GivenUp(_));
        let (rank, exit, stderr_tail) = match ending {
            Ending::Asked => match self.deaths.iter().find(|death| death.rank == 0) {
                Some(death) => (
                    None,
                    death.exit.unwrap_or(unknown),
                    death.last_words.clone(),
                ),
                None => (None, unknown, String::new()),
            },
            Ending::Deaths => match worst(&self.deaths) {
                Some((rank, exit, last_words)) => {
                    let last_words = match last_words.trim() {
                        "" if exit.is_some() => without_boilerplate(&words),
                        "" => self.launcher.last_words().await,
                        _ => last_words,
                    };
                    (Some(rank), exit.unwrap_or(unknown), last_words)
                }
                None => (None, unknown, self.launcher.last_words().await),
            },
            Ending::GivenUp(ranks) => {
                let exit = Exit {
                    signal: Some(Signal::SIGKILL as i32),
                    out_of_memory: Some(false),
                    ..unknown
                };
                (ranks.first().copied(), exit, String::new())
            }
            Ending::Launcher(exit) => (None, exit, self.launcher.last_words().await),
        };
        // Ranks that had nothing to do with it are told as well as if they had ended. That comes last: the kernel would give
        // the next cell to ranks that are about to end.
        for round in std::mem::take(&mut self.rounds) {
            if round.has_failed() && !asked {
                for (channel, message) in round.outcome() {
                    self.say(channel, message);
                }
            }
        }
        FromAgent::WorkerDown {
            worker: self.worker,
            exit,
            stderr_tail,
            rank: rank.and_then(|rank| u32::try_from(rank).ok()),
            given_up,
        }
    }

    // --- from the kernel

    fn ask(&mut self, channel: Channel, parts: Parts) {
        let Some(request) = message(parts) else {
            tracing::warn!("a message to an island lacks parts and was dropped");
            return;
        };
        let Ok(header) = request.parse_header() else {
            tracing::warn!("a message to an island has no header and was dropped");
            return;
        };
        match whom(channel, &header, &request) {
            For::All { gathered } => {
                let runs = header.msg_type == "execute_request";
                if runs {
                    self.stages = Stages::default();
                }
                let count = self.ranks.len();
                self.rounds.push_back(Round::new(
                    request.header.clone(),
                    header.msg_id,
                    count,
                    runs,
                    gathered,
                ));
                for rank in 0..count {
                    self.tell(rank, channel, &request);
                }
            }
            For::Taking { transfer } => {
                if let Some(transfer) = transfer.filter(|_| !self.nodes.sees(0)) {
                    self.taking.insert(header.msg_id, transfer);
                }
                self.tell(0, channel, &request);
            }
            For::First => self.tell(0, channel, &request),
            For::Comm(comm) => {
                let rank = self.comms.get(&comm).copied().unwrap_or_default();
                self.tell(rank, channel, &request);
            }
            For::Asker => self.answer(&header, request),
        }
    }

    /// An answer to a rank's question: of the user's, or about files.
    fn answer(&mut self, header: &Header, answer: Message) {
        let parent = answer.parse_parent().unwrap_or_default();
        if header.msg_type == "cellferry_answer" {
            if let Some(way) = self.stages.answered(&parent.msg_id, &answer) {
                self.tell(0, Channel::Stdin, &answer);
                let waiting = way.map(|way| (way, self.stages.take_waiting(way)));
                for (way, (rank, question)) in waiting
                    .into_iter()
                    .flat_map(|(way, all)| all.into_iter().map(move |one| (way, one)))
                {
                    self.pass_answer(rank, way, &question, &answer);
                }
            }
            return;
        }
        if let Some((rank, _, _)) = self.questions.pop_front() {
            self.tell(rank, Channel::Stdin, &answer);
        }
        self.ask_user();
    }

    /// Another rank hears what rank 0 was answered; what it was is on its machine then, too.
    fn pass_answer(&mut self, rank: usize, way: Way, question: &Bytes, answer: &Message) {
        let needs = match way {
            Way::Modules => self.nodes.bring_files(rank, "modules"),
            Way::In => Vec::new(),
        };
        let answer = Message {
            parent_header: question.clone(),
            ..answer.clone()
        };
        self.send(rank, Channel::Stdin, answer, needs);
    }

    fn tell(&mut self, rank: usize, channel: Channel, request: &Message) {
        let needs = self.nodes.bring_values(rank, &request.metadata);
        let request = self.nodes.spell(rank, request);
        self.send(rank, channel, request, needs);
    }

    fn send(&mut self, rank: usize, channel: Channel, message: Message, needs: Vec<Brought>) {
        let command = ToAgent::Send {
            worker: self.worker,
            channel,
            parts: parts(message),
        };
        if let Some(rank) = self.ranks.get(rank) {
            let _ = rank.queue.send(Outgoing { needs, command });
        }
    }

    fn interrupt(&mut self) {
        let now = Instant::now();
        for round in &mut self.rounds {
            round.interrupted(now);
        }
        let all: Vec<usize> = (0..self.ranks.len()).collect();
        self.interrupt_ranks(&all);
    }

    fn interrupt_ranks(&self, ranks: &[usize]) {
        for rank in ranks.iter().filter_map(|rank| self.ranks.get(*rank)) {
            rank.sender.queue(ToAgent::Interrupt {
                worker: self.worker,
            });
        }
    }

    fn stop(&self, grace: Duration) {
        for rank in &self.ranks {
            rank.sender.queue(ToAgent::StopWorker {
                worker: self.worker,
                grace,
            });
        }
    }

    // --- from the ranks

    fn hear(&mut self, rank: usize, said: Option<(FromAgent, cellferry_wire::Held)>) {
        let (said, _held) = match said {
            Some(said) => said,
            None => {
                if self.deaths.iter().all(|death| death.rank != rank) {
                    self.deaths.push(Death {
                        rank,
                        exit: None,
                        last_words: String::new(),
                    });
                }
                return;
            }
        };
        match said {
            FromAgent::Received { channel, parts, .. } => {
                if let Some(message) = message(parts)
                    && let Ok(header) = message.parse_header()
                {
                    self.heard(rank, channel, &header, message);
                }
            }
            FromAgent::WorkerDown {
                exit, stderr_tail, ..
            } => self.deaths.push(Death {
                rank,
                exit: Some(exit),
                last_words: stderr_tail,
            }),
            FromAgent::Stored { transfer } => self.nodes.brought(rank, transfer, Ok(())),
            FromAgent::TransferFailed { transfer, reason } => {
                tracing::warn!("rank {rank}: {reason}");
                match self.fetched.remove(&transfer) {
                    Some(fetched) => self.not_fetched(fetched, &reason),
                    None => self.nodes.brought(rank, transfer, Err(reason)),
                }
            }
            FromAgent::Data { transfer, bytes } => self.fetched_more(transfer, &bytes),
            FromAgent::Sent { transfer, .. } => self.fetched_all(transfer),
            _ => {}
        }
    }

    fn heard(&mut self, rank: usize, channel: Channel, header: &Header, message: Message) {
        let parent = message.parse_parent().unwrap_or_default();
        if parent.session == self.author.session() {
            if channel == Channel::Shell {
                self.part_gathered(rank, &message);
            }
            return;
        }
        let now = Instant::now();
        let round = self
            .rounds
            .iter()
            .position(|round| round.id == parent.msg_id);
        let kind = header.msg_type.as_str();
        if channel == Channel::Stdin {
            self.asked(rank, kind, &header.msg_id, message);
            return;
        }
        let heard = match round.and_then(|index| self.rounds.get_mut(index)) {
            Some(round) => round.hear(rank, channel, kind, &message, now),
            None => Heard::Shown,
        };
        if heard == Heard::Shown {
            self.shows(rank, channel, kind, message, round.is_some(), now);
        }
        if let Some(index) = round {
            self.go_on(index, rank);
        }
    }

    /// Shows what one rank says, as the island's.
    fn shows(
        &mut self,
        rank: usize,
        channel: Channel,
        kind: &str,
        message: Message,
        in_round: bool,
        now: Instant,
    ) {
        match (channel, kind) {
            (Channel::Iopub, "stream") => self.printed(rank, message, now),
            (Channel::Iopub, "display_data") => {
                self.flush();
                if rank > 0 {
                    let text = format!("[{rank}]\n");
                    self.stream(Name::Stdout, &text, message.parent_header.clone());
                }
                self.say(channel, message);
            }
            (Channel::Iopub, "comm_open" | "comm_msg" | "comm_close" | "update_display_data") => {
                let content: Value = message.parse_content().unwrap_or_default();
                if let Some(comm) = content["comm_id"].as_str() {
                    if kind == "comm_close" {
                        self.comms.remove(comm);
                    } else {
                        self.comms.insert(comm.to_owned(), rank);
                    }
                }
                self.say(channel, message);
            }
            // What else the others say is told of by the first.
            _ if rank > 0 => {}
            (Channel::Shell, _) if !in_round => self.replied(message),
            _ => {
                if in_round && !matches!(kind, "status" | "execute_input") {
                    self.flush();
                }
                self.say(channel, message);
            }
        }
    }

    fn printed(&mut self, rank: usize, message: Message, now: Instant) {
        // The ranks write one and the same header each in its own way.
        let parent = message.parse_parent().unwrap_or_default().msg_id;
        if parent != self.printing.0 {
            self.flush();
            self.printing = (parent, message.parent_header.clone());
        }
        let content: Value = message.parse_content().unwrap_or_default();
        let name = match content["name"].as_str() {
            Some("stderr") => Name::Stderr,
            _ => Name::Stdout,
        };
        let text = content["text"].as_str().unwrap_or_default();
        self.lines.print(rank, name, text, now);
    }

    /// A rank asks something, of the user or of the kernel.
    fn asked(&mut self, rank: usize, kind: &str, id: &str, mut question: Message) {
        let content: Value = question.parse_content().unwrap_or_default();
        let way = match (kind, content["way"].as_str()) {
            ("cellferry_modules", _) => Way::Modules,
            ("cellferry_files", Some("in")) => Way::In,
            ("cellferry_files", _) => {
                // What the step has made is brought home once, when all have ended.
                if rank == 0 {
                    self.stages.asks_out(question);
                    self.go_out();
                } else {
                    let answer =
                        self.author
                            .message("cellferry_answer", None, &json!({"status": "ok"}));
                    let answer = Message {
                        parent_header: question.header,
                        ..answer
                    };
                    self.send(rank, Channel::Stdin, answer, Vec::new());
                }
                return;
            }
            _ => {
                let prompt = content["prompt"].as_str().unwrap_or_default();
                let mut content = content.clone();
                content["prompt"] = json!(format!("[{rank}] {prompt}"));
                question.content = Bytes::from(content.to_string());
                self.questions.push_back((rank, id.to_owned(), question));
                if self.questions.len() == 1 {
                    self.ask_user();
                }
                return;
            }
        };
        if rank == 0 {
            self.stages.asked(id, Some(way));
            self.say(Channel::Stdin, question);
        } else if let Some(answer) = self.stages.answer(way) {
            self.pass_answer(rank, way, &question.header, &answer);
        } else {
            self.stages.waits(way, rank, question.header);
        }
    }

    /// Asks the user the first question that is open; the others wait, since clients can show only one.
    fn ask_user(&mut self) {
        if let Some((_, _, question)) = self.questions.front().cloned() {
            self.flush();
            self.say(Channel::Stdin, question);
        }
    }

    /// Rank 0 waits with what it has made until the others have ended: they may make some of it.
    fn go_out(&mut self) {
        let over = self.rounds.front().is_none_or(Round::others_are_over);
        if over && let Some(question) = self.stages.take_out() {
            if let Ok(header) = question.parse_header() {
                self.stages.asked(&header.msg_id, None);
            }
            self.say(Channel::Stdin, question);
        }
    }

    /// A rank has said something of a request that all were given.
    fn go_on(&mut self, index: usize, rank: usize) {
        let Some(round) = self.rounds.get(index) else {
            return;
        };
        if !round.is_open_on(rank) {
            // Nobody waits for an answer there any more.
            let asked = self.questions.front().map(|(_, id, _)| id.clone());
            self.questions.retain(|(asker, _, _)| *asker != rank);
            if self.questions.front().map(|(_, id, _)| id) != asked.as_ref() {
                self.ask_user();
            }
        }
        self.go_out();
        let Some(round) = self.rounds.get(index) else {
            return;
        };
        if !round.is_over() || self.gathering.is_some() {
            return;
        }
        if !round.has_failed() && !round.gathered.is_empty() {
            let gathering = Gathering::new(round.id.clone(), round.gathered.clone());
            self.gather(gathering);
            return;
        }
        self.conclude(index);
    }

    /// All ranks are done with a request: the island answers.
    fn conclude(&mut self, index: usize) {
        self.flush();
        if self
            .rounds
            .get_mut(index)
            .is_some_and(|round| round.due(Instant::now()) == Some(Due::Show))
        {
            self.show_error(index);
        }
        if let Some(round) = self.rounds.remove(index) {
            for (channel, message) in round.outcome() {
                self.say(channel, message);
            }
        }
        self.nodes.forget();
    }

    fn show_error(&mut self, index: usize) {
        self.flush();
        if let Some(error) = self.rounds.get(index).and_then(Round::error) {
            self.say(Channel::Iopub, error);
        }
    }

    fn say_stuck(&mut self, ranks: &BTreeSet<usize>, request: Bytes) {
        let (shown, seconds) = (shown(ranks), GRACE.as_secs());
        let verb = if ranks.len() == 1 {
            "one rank has"
        } else {
            "some ranks have"
        };
        let text = format!(
            "Cellferry: {verb} not ended within {seconds} s after the interrupt: {shown}; what waits for other ranks inside of MPI \
             cannot be interrupted: interrupt again to end all ranks, and with them their state\n"
        );
        self.flush();
        self.stream(Name::Stderr, &text, request);
    }

    fn say_given_up(&mut self, ranks: &BTreeSet<usize>, request: Bytes) {
        let (shown, seconds) = (shown(ranks), GRACE.as_secs());
        let noun = if ranks.len() == 1 { "rank" } else { "ranks" };
        let text = format!(
            "Cellferry: {noun} {shown} did not end within {seconds} s and could not be interrupted, so all ranks were ended; \
             the next cell starts new ones, without their state\n"
        );
        self.flush();
        self.stream(Name::Stderr, &text, request);
    }

    // --- names as lists by rank

    fn gather(&mut self, mut gathering: Gathering) {
        for rank in 0..self.ranks.len() {
            let request = gathering.ask(rank, &self.author);
            self.send(rank, Channel::Shell, request, Vec::new());
        }
        self.gathering = Some(gathering);
    }

    fn part_gathered(&mut self, rank: usize, message: &Message) {
        let count = self.ranks.len();
        let Some(gathering) = &mut self.gathering else {
            return;
        };
        let step = gathering.heard(rank, count, message);
        let id = gathering.round.clone();
        let index = self.rounds.iter().position(|round| round.id == id);
        match (step, index) {
            (Step::Wait, _) => {}
            (Step::Spread, _) => {
                for rank in 0..count {
                    let request = self
                        .gathering
                        .as_mut()
                        .map(|gathering| gathering.give(rank, &self.author));
                    if let Some(request) = request {
                        self.send(rank, Channel::Shell, request, Vec::new());
                    }
                }
            }
            (Step::Done(described), Some(index)) => {
                self.gathering = None;
                if let Some(report) = self.rounds.get_mut(index).and_then(Round::report_mut) {
                    let mut content: Value = report.parse_content().unwrap_or_default();
                    for (name, description) in described {
                        content["bound"][name] = description;
                    }
                    report.content = Bytes::from(content.to_string());
                }
                self.conclude(index);
            }
            (Step::Failed(rank, reason), Some(index)) => {
                self.gathering = None;
                if let Some(round) = self.rounds.get_mut(index) {
                    round.spoil(rank, "GatherError", &reason, &self.author);
                }
                self.conclude(index);
            }
            (_, None) => self.gathering = None,
        }
    }

    // --- values that rank 0 has written where this agent does not see them

    /// Rank 0 answers a request of its own.
    fn replied(&mut self, answer: Message) {
        let id = answer.parse_parent().unwrap_or_default().msg_id;
        let content: Value = answer.parse_content().unwrap_or_default();
        match self.taking.remove(&id) {
            Some(transfer) if content["place"] == "segment" => {
                let layout: Vec<(u64, u64)> =
                    serde_json::from_value(content["layout"].clone()).unwrap_or_default();
                let size = layout.iter().map(|(start, length)| start + length).max();
                match Growing::segment(self.nodes.value(transfer), size.unwrap_or_default()) {
                    Ok(growing) => {
                        let growing = Some(growing);
                        self.fetched.insert(transfer, Fetched { growing, answer });
                        if let Some(first) = self.ranks.first() {
                            first.sender.queue(ToAgent::Fetch { transfer });
                        }
                    }
                    Err(reason) => {
                        let growing = None;
                        self.not_fetched(Fetched { growing, answer }, &reason);
                    }
                }
            }
            _ => self.say(Channel::Shell, answer),
        }
    }

    fn fetched_more(&mut self, transfer: u64, bytes: &Bytes) {
        if let Some(fetched) = self.fetched.get_mut(&transfer)
            && let Some(growing) = &mut fetched.growing
            && let Err(reason) = growing.write(bytes)
            && let Some(fetched) = self.fetched.remove(&transfer)
        {
            self.not_fetched(fetched, &reason);
        }
    }

    fn fetched_all(&mut self, transfer: u64) {
        let Some(mut fetched) = self.fetched.remove(&transfer) else {
            return;
        };
        match fetched.growing.take().map(Growing::finish) {
            Some(Err(reason)) => self.not_fetched(fetched, &reason),
            _ => self.say(Channel::Shell, fetched.answer),
        }
        if let Some(first) = self.ranks.first() {
            let transfers = vec![transfer];
            first.sender.queue(ToAgent::Forget { transfers });
        }
    }

    fn not_fetched(&mut self, fetched: Fetched, reason: &str) {
        let content = json!({"status": "error", "verb": "take", "message": reason});
        let answer = Message {
            content: Bytes::from(content.to_string()),
            ..fetched.answer
        };
        self.say(Channel::Shell, answer);
    }

    // --- to the kernel

    fn flush(&mut self) {
        let shown = self.lines.flush();
        self.print(shown);
    }

    fn print(&mut self, shown: Vec<(Name, String)>) {
        for (name, text) in shown {
            self.stream(name, &text, self.printing.1.clone());
        }
    }

    fn stream(&mut self, name: Name, text: &str, parent_header: Bytes) {
        let name = match name {
            Name::Stdout => "stdout",
            Name::Stderr => "stderr",
        };
        let message = Message {
            parent_header,
            ..self
                .author
                .message("stream", None, &json!({"name": name, "text": text}))
        };
        self.say(Channel::Iopub, message);
    }

    fn say(&self, channel: Channel, message: Message) {
        self.outlet.tell(FromAgent::Received {
            worker: self.worker,
            channel,
            parts: parts(message),
        });
    }
}

/// How much an end tells of what went wrong: less is more. Ranks that lose one of theirs end, too, in ways of their own.
fn severity(exit: Option<Exit>) -> u8 {
    /// SIGKILL and SIGTERM: from outside.
    const FROM_OUTSIDE: [i32; 2] = [9, 15];
    match exit {
        Some(Exit {
            signal: Some(signal),
            ..
        }) if !FROM_OUTSIDE.contains(&signal) => 0,
        Some(Exit {
            signal: Some(9), ..
        }) => 1,
        Some(Exit {
            code: Some(code), ..
        }) if code != 0 => 2,
        Some(Exit {
            signal: Some(_), ..
        }) => 3,
        Some(_) => 4,
        None => 5,
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
