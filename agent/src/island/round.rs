//! One request that all ranks were given: what each has said of it, and what the island says.

use std::collections::BTreeSet;
use std::time::Duration;

use bytes::Bytes;
use cellferry_kernel::Author;
use cellferry_kernel::message::Message;
use cellferry_wire::protocol::Channel;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::lines::{HOLD, shown};

/// How long the other ranks have to end after one has failed, or the user has interrupted them: a rank that waits for others inside
/// of MPI cannot be interrupted.
pub const GRACE: Duration = Duration::from_secs(3);

/// When the others are interrupted, after the first has failed: they may be about to fail in the same way, and an interrupt just
/// before the code begins is lost.
const INTERRUPTS: [Duration; 3] = [
    HOLD,
    Duration::from_millis(600),
    Duration::from_millis(1600),
];

/// What is done with something that a rank said.
#[derive(Debug, PartialEq, Eq)]
pub enum Heard {
    /// It is kept for the end, or of no use.
    Kept,
    /// It is shown.
    Shown,
}

/// What is to be done as time passes.
#[derive(Debug, PartialEq, Eq)]
pub enum Due {
    /// These ranks are to be interrupted.
    Interrupt(Vec<usize>),
    /// The first failure is to be shown.
    Show,
    /// The user is to be told that these ranks have not ended after an interrupt.
    Tell(BTreeSet<usize>),
    /// The ranks that still run will not end by themselves.
    GiveUp,
}

/// A request that all ranks were given.
#[derive(Debug)]
pub struct Round {
    /// The request's header.
    pub request: Bytes,
    /// Its `msg_id`.
    pub id: String,
    /// Names that become lists by rank after it.
    pub gathered: Vec<String>,
    /// Whether the user's code runs in it.
    runs: bool,
    parts: Vec<Part>,
    failed: Option<Failed>,
    interrupted: Option<Instant>,
    told: bool,
    given_up: bool,
}

/// What one rank has said.
#[derive(Debug, Default)]
struct Part {
    idle: Option<Message>,
    reply: Option<Message>,
    report: Option<Message>,
    error: Option<Message>,
    /// Its preparation failed: there is no reply.
    unprepared: bool,
}

/// The first that failed.
#[derive(Debug)]
struct Failed {
    rank: usize,
    since: Instant,
    shown: bool,
    interrupts: usize,
}

fn content_of(message: &Message) -> Value {
    message.parse_content().unwrap_or_default()
}

fn is_error(message: &Message) -> bool {
    content_of(message)["status"] != "ok"
}

impl Part {
    fn is_over(&self) -> bool {
        self.idle.is_some() && (self.reply.is_some() || self.unprepared)
    }
}

impl Round {
    /// Of so many ranks.
    pub fn new(
        request: Bytes,
        id: String,
        count: usize,
        runs: bool,
        gathered: Vec<String>,
    ) -> Self {
        Self {
            request,
            id,
            gathered,
            runs,
            parts: (0..count).map(|_| Part::default()).collect(),
            failed: None,
            interrupted: None,
            told: false,
            given_up: false,
        }
    }

    /// A rank says something of it.
    pub fn hear(
        &mut self,
        rank: usize,
        channel: Channel,
        kind: &str,
        message: &Message,
        now: Instant,
    ) -> Heard {
        let Some(part) = self.parts.get_mut(rank) else {
            return Heard::Kept;
        };
        let of_first = if rank == 0 { Heard::Shown } else { Heard::Kept };
        match (channel, kind) {
            (Channel::Shell, _) => {
                let fails = is_error(message);
                part.reply = Some(message.clone());
                if fails {
                    self.fail(rank, now);
                }
                Heard::Kept
            }
            (Channel::Iopub, "status") => match content_of(message)["execution_state"].as_str() {
                Some("busy") => of_first,
                Some("idle") => {
                    part.idle = Some(message.clone());
                    Heard::Kept
                }
                _ => Heard::Kept,
            },
            (Channel::Iopub, "cellferry_report") => {
                part.unprepared = !content_of(message)["failed"].is_null();
                part.report = Some(message.clone());
                if part.unprepared {
                    self.fail(rank, now);
                }
                Heard::Kept
            }
            (Channel::Iopub, "error") if self.runs => {
                part.error = Some(message.clone());
                self.fail(rank, now);
                Heard::Kept
            }
            (Channel::Iopub, "execute_input" | "execute_result" | "clear_output") => of_first,
            _ => Heard::Shown,
        }
    }

    fn fail(&mut self, rank: usize, now: Instant) {
        if self.runs && self.failed.is_none() {
            self.failed = Some(Failed {
                rank,
                since: now,
                shown: false,
                interrupts: 0,
            });
        }
    }

    /// Something went wrong that a rank itself does not know of.
    pub fn spoil(&mut self, rank: usize, ename: &str, evalue: &str, author: &Author) {
        let traceback = [format!("\u{1b}[31m{ename}\u{1b}[39m: {evalue}")];
        let mut content = json!({"ename": ename, "evalue": evalue, "traceback": traceback});
        let Some(part) = self.parts.get_mut(rank) else {
            return;
        };
        let Some(reply) = &mut part.reply else {
            return;
        };
        let mut error = author.message("error", None, &content);
        error.parent_header = reply.parent_header.clone();
        part.error = Some(error);
        content["status"] = json!("error");
        content["execution_count"] = content_of(reply)["execution_count"].clone();
        reply.content = Bytes::from(content.to_string());
        self.fail(rank, Instant::now());
    }

    /// Whether all ranks are done with it.
    pub fn is_over(&self) -> bool {
        self.parts.iter().all(Part::is_over)
    }

    /// Whether all ranks but the first are.
    pub fn others_are_over(&self) -> bool {
        self.parts.iter().skip(1).all(Part::is_over)
    }

    /// Whether it ends with an error.
    pub fn has_failed(&self) -> bool {
        self.failed.is_some()
    }

    /// Whether a rank has yet to end it.
    pub fn is_open_on(&self, rank: usize) -> bool {
        self.parts.get(rank).is_some_and(|part| !part.is_over())
    }

    /// The ranks that have yet to end it.
    pub fn open(&self) -> BTreeSet<usize> {
        (0..self.parts.len())
            .filter(|rank| self.is_open_on(*rank))
            .collect()
    }

    /// The user interrupts it. An interrupt that came long enough after another one, in vain, is the last.
    pub fn interrupted(&mut self, now: Instant) {
        match self.interrupted {
            Some(first) if first + GRACE <= now => self.given_up = true,
            Some(_) => {}
            None => self.interrupted = Some(now),
        }
    }

    /// What is to be done now; asked again after it is done, until there is nothing.
    pub fn due(&mut self, now: Instant) -> Option<Due> {
        let over = self.is_over();
        if self.given_up && !over {
            return Some(Due::GiveUp);
        }
        // Who has failed, too, is about to end.
        let running = |rank: &usize| self.parts[*rank].error.is_none();
        let open: Vec<usize> = self.open().into_iter().filter(running).collect();
        let Some(failed) = self.failed.as_mut() else {
            let late = !over && self.tell_at().is_some_and(|at| at <= now);
            self.told |= late;
            return late.then(|| Due::Tell(self.open()));
        };
        if !failed.shown && (over || failed.since + HOLD <= now) {
            failed.shown = true;
            return Some(Due::Show);
        }
        if over {
            return None;
        }
        let next = INTERRUPTS.get(failed.interrupts);
        if next.is_some_and(|after| failed.since + *after <= now) {
            failed.interrupts += 1;
            return Some(Due::Interrupt(open));
        }
        (failed.since + GRACE <= now).then_some(Due::GiveUp)
    }

    /// When something is due next.
    pub fn next_due(&self) -> Option<Instant> {
        let Some(failed) = self.failed.as_ref() else {
            return self.tell_at().filter(|_| !self.is_over());
        };
        let show = (!failed.shown).then_some(HOLD);
        let interrupt = INTERRUPTS.get(failed.interrupts).copied();
        let first = [show, interrupt, Some(GRACE)].into_iter().flatten().min()?;
        Some(failed.since + first)
    }

    fn tell_at(&self) -> Option<Instant> {
        let interrupted = self.interrupted.filter(|_| self.runs && !self.told);
        interrupted.map(|first| first + GRACE)
    }

    /// The ranks that are open will not end it: unless another one has failed, that is for the user's interrupt, and
    /// true is returned, since that has not been shown.
    pub fn give_up(&mut self, author: &Author) -> bool {
        let Some(rank) = self.open().first().copied().filter(|_| !self.has_failed()) else {
            return false;
        };
        let name = "KeyboardInterrupt";
        let traceback = [format!("\u{1b}[31m{name}\u{1b}[39m")];
        let mut content = json!({"ename": name, "evalue": "", "traceback": traceback});
        let says = |kind: &str, content: &Value| Message {
            parent_header: self.request.clone(),
            ..author.message(kind, None, content)
        };
        let error = says("error", &content);
        content["status"] = json!("error");
        let part = Part {
            idle: Some(says("status", &json!({"execution_state": "idle"}))),
            reply: Some(says("execute_reply", &content)),
            report: Some(says("cellferry_report", &json!({"bound": {}}))),
            error: Some(error),
            unprepared: false,
        };
        self.parts[rank] = part;
        self.fail(rank, Instant::now());
        true
    }

    /// The ranks that failed as the first did, and its own error with them in the traceback.
    fn labelled(&self, content: &Bytes) -> Option<Bytes> {
        let failed = self.failed.as_ref()?;
        let mut content: Value = serde_json::from_slice(content).ok()?;
        let alike = |part: &Part| {
            let of_part = part.error.as_ref().or(part.reply.as_ref()).map(content_of);
            of_part.is_some_and(|other| {
                other["ename"] == content["ename"] && other["evalue"] == content["evalue"]
            })
        };
        let mut ranks: BTreeSet<usize> = (0..self.parts.len())
            .filter(|rank| alike(&self.parts[*rank]))
            .collect();
        ranks.insert(failed.rank);
        let noun = if ranks.len() == 1 { "rank" } else { "ranks" };
        let label = format!("\u{1b}[31m{noun} {}:\u{1b}[39m", shown(&ranks));
        content["traceback"]
            .as_array_mut()?
            .insert(0, Value::from(label));
        Some(Bytes::from(content.to_string()))
    }

    /// The first failure, to be shown; nothing if it was in the preparation, which the kernel tells of.
    pub fn error(&self) -> Option<Message> {
        let part = self.parts.get(self.failed.as_ref()?.rank)?;
        let mut message = part.error.clone()?;
        message.content = self.labelled(&message.content)?;
        Some(message)
    }

    /// What the island says of it at the end, in this order; also when it has to end without some of the ranks.
    pub fn outcome(&self) -> Vec<(Channel, Message)> {
        let first = self.parts.first();
        let blamed = match (&self.failed, self.runs) {
            (Some(failed), _) => self.parts.get(failed.rank),
            (None, false) => self
                .parts
                .iter()
                .find(|part| part.reply.as_ref().is_some_and(is_error)),
            (None, true) => None,
        };
        let reports = [
            blamed.filter(|part| part.unprepared),
            first,
            blamed.filter(|_| !self.is_over()),
        ];
        let report = reports
            .into_iter()
            .flatten()
            .find_map(|part| part.report.clone());
        let reply = blamed.or(first).and_then(|part| part.reply.clone());
        let reply = reply.map(|mut reply| {
            if let Some(content) = self.labelled(&reply.content) {
                reply.content = content;
            }
            reply
        });
        let idle = [first, blamed]
            .into_iter()
            .flatten()
            .find_map(|part| part.idle.clone());
        let said = [
            (Channel::Iopub, report),
            (Channel::Shell, reply),
            (Channel::Iopub, idle),
        ];
        said.into_iter()
            .filter_map(|(channel, message)| Some((channel, message?)))
            .collect()
    }

    /// The report of rank 0, if it is to be changed.
    pub fn report_mut(&mut self) -> Option<&mut Message> {
        self.parts.first_mut()?.report.as_mut()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Play {
        round: Round,
        author: Author,
        now: Instant,
    }

    impl Play {
        fn new(count: usize) -> Self {
            Self {
                round: Round::new(Bytes::new(), "r".to_owned(), count, true, Vec::new()),
                author: Author::new(),
                now: Instant::now(),
            }
        }

        fn says(&mut self, rank: usize, channel: Channel, kind: &str, content: Value) -> Heard {
            let message = self.author.message(kind, None, &content);
            self.round.hear(rank, channel, kind, &message, self.now)
        }

        fn ends(&mut self, rank: usize, status: &str, ename: &str) {
            let content = json!({"status": status, "ename": ename, "evalue": "", "traceback": []});
            if status == "error" {
                self.says(rank, Channel::Iopub, "error", content.clone());
            }
            self.says(rank, Channel::Shell, "execute_reply", content);
            let report = json!({"failed": null, "bound": {}, "of": rank});
            self.says(rank, Channel::Iopub, "cellferry_report", report);
            let idle = json!({"execution_state": "idle"});
            self.says(rank, Channel::Iopub, "status", idle);
        }

        fn outcome(&self) -> Vec<Value> {
            let said = self.round.outcome();
            said.iter()
                .map(|(_, message)| content_of(message))
                .collect()
        }
    }

    #[test]
    fn rank_0_answers_once_all_have_ended() {
        let mut play = Play::new(3);
        let busy = json!({"execution_state": "busy"});
        assert_eq!(
            play.says(1, Channel::Iopub, "status", busy.clone()),
            Heard::Kept
        );
        assert_eq!(play.says(0, Channel::Iopub, "status", busy), Heard::Shown);
        for rank in [0, 2] {
            play.ends(rank, "ok", "");
            assert!(!play.round.is_over());
        }
        play.ends(1, "ok", "");
        assert!(play.round.is_over() && !play.round.has_failed());
        assert_eq!(play.round.due(play.now), None);
        let outcome = play.outcome();
        assert_eq!(outcome[0]["of"], 0);
        assert_eq!(outcome[1]["status"], "ok");
        assert_eq!(outcome[2]["execution_state"], "idle");
    }

    #[test]
    fn the_first_that_fails_ends_it_for_all() {
        let mut play = Play::new(3);
        play.ends(2, "error", "ValueError");
        assert_eq!(play.round.due(play.now), None);
        play.now += HOLD;
        assert_eq!(play.round.due(play.now), Some(Due::Show));
        assert_eq!(play.round.due(play.now), Some(Due::Interrupt(vec![0, 1])));
        assert_eq!(play.round.due(play.now), None);
        play.ends(0, "error", "KeyboardInterrupt");
        play.ends(1, "error", "ValueError");
        assert_eq!(play.round.due(play.now), None);
        let error = content_of(&play.round.error().unwrap());
        assert_eq!(error["ename"], "ValueError");
        assert!(
            error["traceback"][0]
                .as_str()
                .unwrap()
                .contains("ranks 1-2:")
        );
        let outcome = play.outcome();
        assert_eq!(
            (&outcome[0]["of"], &outcome[1]["ename"]),
            (&json!(0), &json!("ValueError"))
        );
    }

    #[test]
    fn who_does_not_end_is_given_up() {
        let mut play = Play::new(2);
        play.ends(1, "error", "ValueError");
        let mut asked = Vec::new();
        while let Some(at) = play.round.next_due() {
            assert!(at >= play.now);
            play.now = at;
            match play.round.due(at) {
                Some(Due::GiveUp) => break,
                Some(due) => asked.push(due),
                None => panic!("nothing was due"),
            }
        }
        assert_eq!(asked.iter().filter(|due| **due == Due::Show).count(), 1);
        assert_eq!(asked.len(), 1 + INTERRUPTS.len());
        let outcome = play.outcome();
        assert_eq!(
            (&outcome[0]["of"], &outcome[1]["ename"]),
            (&json!(1), &json!("ValueError"))
        );
    }

    #[test]
    fn only_a_late_second_interrupt_of_the_user_gives_up() {
        let mut play = Play::new(2);
        for milliseconds in [0, 100, 2900] {
            play.round
                .interrupted(play.now + Duration::from_millis(milliseconds));
        }
        assert_eq!(play.round.due(play.now), None);
        play.round.interrupted(play.now + GRACE);
        assert_eq!(play.round.due(play.now), Some(Due::GiveUp));
        assert!(play.round.give_up(&Author::new()));
        let outcome = play.outcome();
        assert_eq!(
            (&outcome[0]["bound"], &outcome[1]["ename"]),
            (&json!({}), &json!("KeyboardInterrupt"))
        );
        assert_eq!(outcome[2]["execution_state"], "idle");
    }

    #[test]
    fn the_user_is_told_once_who_does_not_end() {
        let mut play = Play::new(2);
        play.round.interrupted(play.now);
        play.ends(1, "ok", "");
        assert_eq!(play.round.due(play.now), None);
        play.now = play.round.next_due().unwrap();
        let open = BTreeSet::from([0]);
        assert_eq!(play.round.due(play.now), Some(Due::Tell(open)));
        assert_eq!(
            (play.round.due(play.now), play.round.next_due()),
            (None, None)
        );
    }

    #[test]
    fn a_preparation_that_failed_on_one_rank_is_the_islands() {
        let mut play = Play::new(2);
        let failed = json!({"failed": {"do": "put"}});
        play.says(1, Channel::Iopub, "cellferry_report", failed.clone());
        let idle = json!({"execution_state": "idle"});
        play.says(1, Channel::Iopub, "status", idle);
        play.ends(0, "error", "KeyboardInterrupt");
        assert!(play.round.is_over());
        assert_eq!(play.outcome()[0], failed);
    }
}
