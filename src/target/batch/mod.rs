//! Batch systems: how a job is asked for, what becomes of it, and why.
//!
//! [`slurm`] is complete; [`pbs`] speaks the commands of Torque and OpenPBS. Both run them through a [`shell`]. What they
//! say is told in the words of this module, whichever system it is. [`script`] writes what a job runs, and [`watch`] asks for
//! all jobs of a session at once.

pub mod commands;
pub mod pbs;
pub mod request;
pub mod script;
pub mod shell;
pub mod slurm;
pub mod watch;

use std::collections::BTreeMap;
use std::fmt;

use async_trait::async_trait;
use chrono::{DateTime, Local, Utc};
use thiserror::Error;

pub use request::Request;
use shell::ShellError;

/// A job's number, as its batch system gives it: `17`, or `17.server`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct JobId(String);

impl JobId {
    /// A number from a batch system's answer; `None` for what no system gives.
    pub fn new(text: &str) -> Option<Self> {
        let valid = text.starts_with(|c: char| c.is_ascii_digit())
            && text.len() <= 100
            && text
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || "._-".contains(c));
        valid.then(|| Self(text.to_owned()))
    }

    /// As the batch system writes it.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for JobId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

/// What tells a job of ours from all others: it is part of the job's name, by which it is found when the answer to its
/// submission was lost.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JobKey(String);

impl JobKey {
    /// One that nobody else has.
    pub fn new() -> Self {
        let id = uuid::Uuid::new_v4().simple().to_string();
        // Together with what stands before it, short enough for the names of old PBS.
        Self(id.chars().take(10).collect())
    }

    /// One that was noted: ten hexadecimal digits, and nothing else.
    pub fn parse(text: &str) -> Option<Self> {
        let digit = |c: char| c.is_ascii_digit() || ('a'..='f').contains(&c);
        (text.len() == 10 && text.chars().all(digit)).then(|| Self(text.to_owned()))
    }

    /// Ten hexadecimal digits.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Default for JobKey {
    fn default() -> Self {
        Self::new()
    }
}

/// A job to be submitted.
#[derive(Clone, Debug)]
pub struct Job {
    /// Its key.
    pub key: JobKey,
    /// What it asks for.
    pub request: Request,
    /// What it runs, from [`script`].
    pub script: String,
    /// The folder that login and compute nodes share, as [`script::Folder::prepare`] has answered it.
    pub folder: String,
}

/// What is known of a job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Status {
    /// It has not started.
    Waiting(Waiting),
    /// It has nodes, which are being made ready.
    Starting,
    /// It runs.
    Running(Running),
    /// The batch system has stopped it for a while, for others.
    Suspended,
    /// It has ended, and its nodes are cleaned up; how it ended may not be known yet.
    Closing,
    /// It is over; [`Batch::ending`] knows why.
    Over,
    /// The batch system does not know it, or does not know it any more.
    Unknown,
}

/// A job that waits.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Waiting {
    /// What for, if the batch system says it.
    pub reason: Option<Reason>,
    /// Its place among those that wait in its partition, from 1, if all of them can be seen.
    pub place: Option<usize>,
    /// When it is expected to start.
    pub start: Option<DateTime<Utc>>,
}

/// A job that runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Running {
    /// Its nodes, as the batch system writes them: `node[1-3]`.
    pub nodes: String,
    /// When its time is over.
    pub until: Option<DateTime<Utc>>,
}

/// Why a job waits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reason {
    /// In the batch system's own word, such as `Resources`.
    pub code: String,
    /// In plain words, where the word is known.
    pub meaning: Option<&'static str>,
    /// What must be changed, where waiting does not help.
    pub remedy: Option<&'static str>,
}

impl fmt::Display for Reason {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.code)?;
        if let Some(meaning) = self.meaning {
            write!(formatter, ": {meaning}")?;
        }
        if let Some(remedy) = self.remedy {
            write!(formatter, "; {remedy}")?;
        }
        Ok(())
    }
}

impl Status {
    /// One line for the user, under the cell that waits: `job 17 waits (Resources: …), 3rd in the queue, …`.
    pub fn line(&self, system: &str, job: &JobId) -> String {
        match self {
            Self::Waiting(waiting) => {
                let mut line = format!("{system} job {job} waits");
                if let Some(reason) = &waiting.reason {
                    line += &format!(" ({reason})");
                }
                if let Some(place) = waiting.place {
                    line += &format!(", number {place} in the queue");
                }
                if let Some(start) = waiting.start {
                    line += &format!(", expected to start {}", clock(start));
                }
                line
            }
            Self::Starting => format!("{system} job {job} starts: its nodes are made ready"),
            Self::Running(running) => {
                let mut line = format!("{system} job {job} runs on {}", running.nodes);
                if let Some(until) = running.until {
                    line += &format!(", until {}", clock(until));
                }
                line
            }
            Self::Suspended => {
                format!("{system} job {job} is suspended: others have its nodes for a while")
            }
            Self::Closing => format!("{system} job {job} has ended: its nodes are cleaned up"),
            Self::Over => format!("{system} job {job} is over"),
            Self::Unknown => format!("{system} knows no job {job}"),
        }
    }
}

/// A time on the user's clock: the hour, and the day unless it is today.
fn clock(time: DateTime<Utc>) -> String {
    let local = time.with_timezone(&Local);
    if local.date_naive() == Local::now().date_naive() {
        local.format("at %H:%M").to_string()
    } else {
        local.format("on %-d %B at %H:%M").to_string()
    }
}

/// How a job ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ending {
    /// In the batch system's own word, such as `TIMEOUT`.
    pub code: String,
    /// What it was.
    pub end: End,
    /// What the job said last, a few lines at most.
    pub last_words: String,
}

/// The ways in which a job ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// Its script ended well.
    Completed,
    /// Its script failed.
    Failed {
        /// What it exited with.
        code: u32,
    },
    /// A signal ended it.
    Signalled {
        /// The signal's number.
        signal: u32,
    },
    /// Its time was over.
    TimeOut,
    /// It used more memory than it had.
    OutOfMemory,
    /// A node broke.
    NodeFailed,
    /// Another job was given its nodes.
    Preempted,
    /// Somebody ended it.
    Cancelled {
        /// Who, if that is on record.
        by: Option<Who>,
    },
    /// Its nodes could not be made ready.
    NotBooted,
    /// It could not have ended by its deadline.
    Deadline,
    /// Nobody knows any more.
    Unknown,
}

/// Who ended a job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Who {
    /// The user who submitted it.
    Same,
    /// Another, by name or number.
    Other(String),
}

impl Ending {
    /// What happened and what to change, for the user; `table` is where the target is defined.
    pub fn told(&self, system: &str, job: &JobId, table: &str) -> String {
        let (what, remedy) = match &self.end {
            End::Completed => (
                "it ended by itself".to_owned(),
                "run the cell again".to_owned(),
            ),
            End::Failed { code } => (
                format!("its script failed with exit code {code}"),
                format!("mend what it complains about, in `setup` of {table} or on the node"),
            ),
            // What a memory limit that is kept by polling looks like.
            End::Signalled { signal: 9 } => (
                "it was killed (signal 9), as by a limit of memory".to_owned(),
                format!(
                    "if it needs more memory, say so: `memory` in {table}, or `resources` of the cell"
                ),
            ),
            End::Signalled { signal } => (
                format!("signal {signal} ended it"),
                "run the cell again".to_owned(),
            ),
            End::TimeOut => (
                "its time limit was reached".to_owned(),
                format!("ask for more: `time` in {table}, or `resources: {{time: …}}` of the cell"),
            ),
            End::OutOfMemory => (
                "it used more memory than it had asked for".to_owned(),
                format!(
                    "ask for more: `memory` in {table}, or `resources: {{memory: …}}` of the cell"
                ),
            ),
            End::NodeFailed => (
                "a node of it failed".to_owned(),
                "run the cell again: it gets other nodes".to_owned(),
            ),
            End::Preempted => (
                "a job of higher priority took its nodes".to_owned(),
                format!("run the cell again, or choose another `partition` or `qos` in {table}"),
            ),
            End::Cancelled { by } => (
                match by {
                    Some(Who::Same) => "you cancelled it, from elsewhere".to_owned(),
                    Some(Who::Other(who)) => format!("{who} cancelled it"),
                    None => "it was cancelled; this cluster does not record by whom".to_owned(),
                },
                match by {
                    Some(Who::Other(who)) => {
                        format!("ask {who} why; running the cell again submits another job")
                    }
                    _ => "running the cell again submits another job".to_owned(),
                },
            ),
            End::NotBooted => (
                "its nodes could not be started".to_owned(),
                "run the cell again; if it happens again, tell the cluster's administrators"
                    .to_owned(),
            ),
            End::Deadline => (
                "it could not have ended by its deadline".to_owned(),
                format!("change `deadline` among the `options` in {table}"),
            ),
            End::Unknown => (
                "nobody knows how: the batch system has forgotten it".to_owned(),
                "running the cell again submits another job".to_owned(),
            ),
        };
        // The step is what ran out of it, and the job itself has failed, in the batch system's words.
        let code = match self.end {
            End::OutOfMemory if self.code == "FAILED" => "OUT_OF_MEMORY",
            _ => &self.code,
        };
        let mut told = format!("{system} job {job} ended ({code}): {what}; {remedy}");
        if !self.last_words.is_empty() {
            told += &format!("\nIt said last:\n{}", self.last_words);
        }
        told
    }
}

/// Why a batch system did not do what it was asked.
#[derive(Debug, Error)]
pub enum BatchError {
    /// The place where its commands are is not reached, or did not answer.
    #[error("no answer from {place} to `{command}`: {source}")]
    Shell {
        /// The place.
        place: String,
        /// The command.
        command: &'static str,
        /// Why.
        source: ShellError,
    },
    /// There are no such commands.
    #[error(
        "there is no `{command}` on {place}: is {system} installed there? If its commands are on another host, name it as \
         `login`; if a module brings them, load it in ~/.bash_profile there"
    )]
    Missing {
        /// The place.
        place: String,
        /// The command.
        command: &'static str,
        /// The batch system.
        system: &'static str,
    },
    /// The batch system's server does not answer. It may, later.
    #[error("{system} does not answer on {place}: {said}")]
    Away {
        /// The place.
        place: String,
        /// The batch system.
        system: &'static str,
        /// Its words.
        said: String,
    },
    /// It takes no more jobs for now.
    #[error("{system} takes no more jobs for now: {said}")]
    Full {
        /// The batch system.
        system: &'static str,
        /// Its words.
        said: String,
    },
    /// It refuses the job.
    #[error("{system} refuses the job: {said}{}", remedy.as_ref().map(|remedy| format!("; {remedy}")).unwrap_or_default())]
    Refused {
        /// The batch system.
        system: &'static str,
        /// Its words.
        said: String,
        /// What to change.
        remedy: Option<String>,
    },
    /// What a job needs could not be put where its nodes see it.
    #[error(
        "the folder for the job cannot be made on {place}: {said}; make room there, or name another one as `folder`"
    )]
    Folder {
        /// The place.
        place: String,
        /// What the host says.
        said: String,
    },
    /// A command failed, or said what nobody understands.
    #[error("`{command}` on {place}: {said}")]
    Answer {
        /// The place.
        place: String,
        /// The command.
        command: &'static str,
        /// What it said.
        said: String,
    },
}

impl BatchError {
    /// Whether asking again later may help, with nothing changed.
    pub fn is_passing(&self) -> bool {
        matches!(
            self,
            Self::Away { .. } | Self::Full { .. } | Self::Shell { .. }
        )
    }
}

/// A batch system.
#[async_trait]
pub trait Batch: Send + Sync {
    /// Its name, for messages.
    fn system(&self) -> &'static str;

    /// Submits a job. After an error that is passing it may have been submitted: [`Batch::find`] knows.
    ///
    /// # Errors
    /// If it was refused, or nobody knows.
    async fn submit(&self, job: &Job) -> Result<JobId, BatchError>;

    /// The job with that key, if there is one that has not ended.
    ///
    /// # Errors
    /// If there is no answer.
    async fn find(&self, key: &JobKey) -> Result<Option<JobId>, BatchError>;

    /// What is known of these jobs, all by one question to the batch system. Asked for places, it may take a dearer question.
    ///
    /// # Errors
    /// If there is no answer.
    async fn status(
        &self,
        jobs: &[JobId],
        places: bool,
    ) -> Result<BTreeMap<JobId, Status>, BatchError>;

    /// How a job ended that is over, or unknown. `folder` is where it wrote its last words.
    ///
    /// # Errors
    /// If there is no answer.
    async fn ending(&self, job: &JobId, folder: &str) -> Result<Ending, BatchError>;

    /// Ends a job. One that has ended already is no error.
    ///
    /// # Errors
    /// If it may still run.
    async fn cancel(&self, job: &JobId) -> Result<(), BatchError>;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_number_of_a_job_is_not_taken_for_one() {
        for good in ["17", "17.server-1", "17_3"] {
            assert_eq!(JobId::new(good).unwrap().as_str(), good);
        }
        for bad in ["", "a", "17; rm -rf ~", "-17", "17\n18"] {
            assert_eq!(JobId::new(bad), None, "{bad}");
        }
        let key = JobKey::new();
        assert_eq!(JobKey::parse(key.as_str()), Some(key));
        assert_eq!(JobKey::parse("0123456 9;"), None);
    }

    #[test]
    fn every_ending_says_what_to_change() {
        let job = JobId::new("17").unwrap();
        let told = |end: End| {
            Ending {
                code: "X".to_owned(),
                end,
                last_words: String::new(),
            }
            .told("Slurm", &job, "[targets.big]")
        };
        assert_eq!(
            told(End::TimeOut),
            "Slurm job 17 ended (X): its time limit was reached; ask for more: `time` in [targets.big], or `resources: {time: …}` of the cell"
        );
        let bob = End::Cancelled {
            by: Some(Who::Other("bob".to_owned())),
        };
        assert!(told(bob).contains("bob cancelled it; ask bob why"));
        assert!(told(End::Cancelled { by: None }).contains("does not record by whom"));
    }
}
