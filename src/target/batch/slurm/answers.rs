//! What Slurm's commands answer, as data.

use chrono::{DateTime, Utc};

use super::super::commands::tail;
use super::super::script::words;
use super::super::{End, Ending, JobId, Running, Status, Waiting, Who};
use super::{Facts, reasons};

/// What squeue is asked for: number, state, reason, priority, start, end, partition, nodes.
pub const FORMAT: &str = "%i|%T|%r|%Q|%S|%e|%P|%N";

/// A job as squeue shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// Its number; for a job array something like `17_[1-9]`.
    pub id: String,
    state: String,
    reason: String,
    priority: u64,
    start: Option<DateTime<Utc>>,
    end: Option<DateTime<Utc>>,
    /// Where it waits or runs, several divided by commas.
    pub partition: String,
    nodes: String,
}

/// All rows that squeue prints.
pub fn rows(text: &str) -> Vec<Row> {
    text.lines().filter_map(row).collect()
}

fn row(line: &str) -> Option<Row> {
    // The reason is free text at times, so what comes after it is counted from the end.
    let (id, rest) = line.trim().split_once('|')?;
    let (state, rest) = rest.split_once('|')?;
    let mut last = rest.rsplitn(6, '|');
    let (nodes, partition) = (last.next()?, last.next()?);
    let (end, start, priority) = (last.next()?, last.next()?, last.next()?);
    Some(Row {
        id: id.to_owned(),
        state: state.to_owned(),
        reason: last.next()?.to_owned(),
        priority: priority.parse().unwrap_or(0),
        start: seconds(start),
        end: seconds(end),
        partition: partition.to_owned(),
        nodes: nodes.to_owned(),
    })
}

/// A time in seconds since 1970; `N/A` and the like are none.
fn seconds(text: &str) -> Option<DateTime<Utc>> {
    DateTime::from_timestamp(text.parse().ok()?, 0)
}

impl Row {
    /// Whether it waits for nodes.
    pub fn waits(&self) -> bool {
        matches!(
            self.state.as_str(),
            "PENDING"
                | "REQUEUED"
                | "REQUEUE_HOLD"
                | "REQUEUE_FED"
                | "SPECIAL_EXIT"
                | "RESV_DEL_HOLD"
        )
    }

    /// What it says of the job; its place is found in the `queue`, if that is at hand.
    pub fn status(&self, queue: Option<&Vec<Row>>) -> Status {
        if self.waits() {
            let reason = reasons::waiting(&self.reason);
            return Status::Waiting(Waiting {
                place: match &reason {
                    Some(reason) if reason.remedy.is_some() => None,
                    _ => queue.map(|queue| self.place(queue)),
                },
                reason,
                start: self.start,
            });
        }
        match self.state.as_str() {
            "CONFIGURING" => Status::Starting,
            "SUSPENDED" | "STOPPED" => Status::Suspended,
            "COMPLETING" => Status::Closing,
            "RUNNING" | "RESIZING" | "SIGNALING" | "STAGE_OUT" => Status::Running(Running {
                nodes: self.nodes.clone(),
                until: self.end,
            }),
            _ => Status::Over,
        }
    }

    /// From 1: those are before it that wait for the same nodes and have a higher priority, or the same for longer.
    fn place(&self, queue: &[Row]) -> usize {
        let mine: Vec<&str> = self.partition.split(',').collect();
        let before = queue.iter().filter(|row| {
            let number = |row: &Row| {
                let digits = row.id.find(|c: char| !c.is_ascii_digit());
                row.id[..digits.unwrap_or(row.id.len())]
                    .parse::<u64>()
                    .unwrap_or(u64::MAX)
            };
            let first = row.priority > self.priority
                || row.priority == self.priority && number(row) < number(self);
            first
                && row.waits()
                && reasons::is_in_line(&row.reason)
                && row
                    .partition
                    .split(',')
                    .any(|partition| mine.contains(&partition))
        });
        before.count() + 1
    }
}

/// The number that `sbatch --parsable` prints: `17`, or `17;cluster`. A site may print words of its own around it.
pub fn submitted(text: &str) -> Option<JobId> {
    text.lines().rev().find_map(|line| {
        let number = line.trim().split(';').next()?;
        let is_number = number.chars().all(|c| c.is_ascii_digit());
        is_number.then(|| JobId::new(number))?
    })
}

/// What matters in `scontrol show config`.
pub fn facts(text: &str) -> Facts {
    let value = |wanted: &str| {
        text.lines().find_map(|line| {
            let (name, value) = line.split_once('=')?;
            (name.trim() == wanted).then(|| value.trim().to_lowercase())
        })
    };
    let storage = value("AccountingStorageType").unwrap_or_default();
    let private = value("PrivateData").unwrap_or_default();
    Facts {
        // Before 23.11 a plugin was always named.
        accounting: !storage.ends_with("none") && !storage.is_empty() && storage != "(null)",
        private: private.split(',').any(|what| what == "jobs"),
    }
}

/// All that can be known of a job that is over.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Last {
    me: String,
    controller: String,
    accounting: String,
    by: Option<(String, String)>,
    log: String,
    /// The end of what was said on the nodes.
    nodes: String,
}

impl Last {
    /// Reads lines that begin with what they are, up to `log|`, after which comes the log.
    pub fn read(text: &str) -> Self {
        let mut last = Self::default();
        let (head, log) = text.split_once("log|\n").unwrap_or((text, ""));
        let (log, nodes) = words(log);
        (last.log, last.nodes) = (log.to_owned(), nodes.to_owned());
        for line in head.lines() {
            match line.split_once('|') {
                Some(("me", number)) => last.me = number.to_owned(),
                Some(("scontrol", said)) => last.controller = said.to_owned(),
                Some(("sacct", said)) => last.accounting = said.to_owned(),
                Some(("by", who)) => {
                    let (number, name) = who.split_once('|').unwrap_or((who, ""));
                    last.by = Some((number.to_owned(), name.to_owned()));
                }
                // What a command says in several lines.
                _ => {}
            }
        }
        last
    }

    /// The controller's words, if it said nothing of the job. They may be that there is no such job.
    pub fn away(&self) -> Option<&str> {
        (self.field("JobState").is_none() && !self.controller.contains("Invalid job id"))
            .then_some(self.controller.as_str())
    }

    /// Whether its end is so near that nobody says yet what it is.
    pub fn is_open(&self) -> bool {
        let open = ["RUNNING", "COMPLETING", "PENDING", "CONFIGURING"];
        self.field("JobState")
            .is_some_and(|state| open.contains(&state))
            && matches!(self.ending().end, End::Unknown)
    }

    fn field(&self, name: &str) -> Option<&str> {
        let mut words = self.controller.split(' ');
        words.find_map(|word| word.strip_prefix(name)?.strip_prefix('='))
    }

    /// How the job ended.
    pub fn ending(&self) -> Ending {
        let (account, account_code) = self.accounting.split_once('|').unwrap_or_default();
        let controller = self.field("JobState").filter(|state| {
            // It has not noticed yet that the job ends.
            !["RUNNING", "COMPLETING", "PENDING", "CONFIGURING"].contains(state)
        });
        let state = controller
            .or_else(|| account.split(' ').next())
            .filter(|state| !state.is_empty());
        let code = match controller {
            Some(_) => self.field("ExitCode"),
            None => Some(account_code),
        };
        let number = |text: Option<&str>| text.and_then(|text| text.trim().parse::<u32>().ok());
        let mut parts = code.unwrap_or_default().split(':');
        let (code, signal) = (
            number(parts.next()).unwrap_or(0),
            number(parts.next()).unwrap_or(0),
        );
        let end = match state {
            Some("COMPLETED") => End::Completed,
            Some("FAILED") if signal > 0 => End::Signalled { signal },
            // As a shell says it of a program in it.
            Some("FAILED") if (129..=192).contains(&code) => End::Signalled { signal: code - 128 },
            Some("FAILED") => End::Failed { code },
            Some("TIMEOUT") => End::TimeOut,
            Some("OUT_OF_MEMORY") => End::OutOfMemory,
            Some("NODE_FAIL") => End::NodeFailed,
            Some("PREEMPTED") => End::Preempted,
            Some("CANCELLED") => End::Cancelled { by: self.who() },
            Some("BOOT_FAIL") => End::NotBooted,
            Some("DEADLINE") => End::Deadline,
            _ => End::Unknown,
        };
        Ending {
            code: state.unwrap_or("UNKNOWN").to_owned(),
            end: self.corrected(end),
            last_words: self.last_words(),
        }
    }

    fn who(&self) -> Option<Who> {
        let (number, name) = self.by.as_ref()?;
        Some(match (number.as_str(), name.as_str()) {
            (number, _) if number == self.me => Who::Same,
            ("0", _) => Who::Other("the administrator (root)".to_owned()),
            (number, "") => Who::Other(format!("user {number}")),
            (_, name) => Who::Other(name.to_owned()),
        })
    }

    /// What the job itself says tells more than some states do.
    fn corrected(&self, end: End) -> End {
        let said = |words: &[&str]| words.iter().any(|word| self.log.contains(word));
        match end {
            End::Completed | End::Failed { .. } | End::Signalled { .. } | End::Unknown
                if said(&["oom-kill", "oom_kill", "memory limit", "OUT_OF_MEMORY"]) =>
            {
                End::OutOfMemory
            }
            End::Unknown if said(&["DUE TO TIME LIMIT"]) => End::TimeOut,
            End::Unknown | End::Cancelled { by: None } if said(&["DUE TO PREEMPTION"]) => {
                End::Preempted
            }
            End::Unknown if said(&["DUE TO NODE FAILURE"]) => End::NodeFailed,
            End::Unknown if said(&[" CANCELLED AT "]) => End::Cancelled { by: None },
            end => end,
        }
    }

    fn last_words(&self) -> String {
        let noise = [
            "lacks support for cpu binding",
            "Job step aborted",
            "Force Terminated",
            "cellferry: begun",
            "Granted job allocation",
            "Relinquishing job allocation",
        ];
        let told = |text: &str| {
            let lines = text
                .lines()
                .filter(|line| !noise.iter().any(|noise| line.contains(noise)));
            tail(&lines.collect::<Vec<_>>().join("\n"), 5)
        };
        format!("{}\n{}", told(&self.nodes), told(&self.log))
            .trim()
            .to_owned()
    }
}
