//! Slurm, from 20.11 on, by its own commands.
//!
//! The formats asked for are those that all these releases understand; times are asked for as seconds since 1970, so that no
//! time zone matters. Accounting (`sacct`) is used where there is some: it knows jobs that the controller has forgotten, and
//! who cancelled one.

mod answers;
mod at_once;
mod reasons;

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::OnceCell;

use super::commands::{Commands, TIMED_OUT, tail};
use super::request::{Choice, Request};
use super::script::{LOG, ask_words};
use super::shell::{Output, Shell, quoted};
use super::{Batch, BatchError, Ending, Job, JobId, JobKey, Status};
use answers::Row;

const SYSTEM: &str = "Slurm";

/// How long Slurm's commands may take. Its controller is busy at times; they give it up by themselves after some ten seconds.
const LIMIT: Duration = Duration::from_secs(45);

/// Options of `sbatch` that are ours to give, with what to do instead.
pub const OURS: [(&str, &str); 22] = [
    ("account", "write the key `account`"),
    ("array", "a target's job is one job"),
    ("chdir", "write the key `workdir`"),
    ("clusters", "log in to that cluster with the key `login`"),
    ("constraint", "write the key `constraint`"),
    ("error", "a job's output is kept by Cellferry"),
    ("gres", "write the keys `gpus` and `gres`"),
    ("help", "it is no option of a job"),
    ("input", "a job has no input"),
    ("job-name", "the job's name is how Cellferry finds it again"),
    ("mem", "write the key `memory`"),
    ("nodes", "write the key `nodes`"),
    ("output", "a job's output is kept by Cellferry"),
    ("parsable", "it is given always"),
    ("partition", "write the key `partition`"),
    ("qos", "write the key `qos`"),
    ("quiet", "Slurm's words are needed"),
    ("test-only", "it submits nothing"),
    ("time", "write the key `time`"),
    ("usage", "it is no option of a job"),
    ("wait", "it would wait for the end of the job"),
    ("wrap", "what the job runs is not yours to say"),
];

/// Slurm's commands in one place.
pub struct Slurm {
    commands: Commands,
    facts: OnceCell<Facts>,
    /// In which partitions each job waits, as last heard.
    partitions: Mutex<HashMap<JobId, String>>,
}

/// What a cluster is like.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Facts {
    /// Whether `sacct` knows anything.
    accounting: bool,
    /// Whether users see only their own jobs.
    private: bool,
}

impl Slurm {
    /// The Slurm whose commands `shell` runs.
    pub fn new(shell: Arc<dyn Shell>) -> Self {
        Self {
            commands: Commands::new(SYSTEM, shell),
            facts: OnceCell::new(),
            partitions: Mutex::default(),
        }
    }

    /// Where its commands are run.
    pub fn commands(&self) -> &Commands {
        &self.commands
    }

    /// Asked for once.
    async fn facts(&self) -> Result<&Facts, BatchError> {
        self.facts
            .get_or_try_init(|| async {
                let output = self.ask("scontrol", "scontrol show config").await?;
                Ok(answers::facts(&output.stdout))
            })
            .await
    }

    /// Runs a command of Slurm's that only asks.
    async fn ask(&self, command: &'static str, line: &str) -> Result<Output, BatchError> {
        let output = self.run(command, line).await?;
        if output.code == Some(0) {
            return Ok(output);
        }
        Err(self
            .away(&output)
            .unwrap_or_else(|| self.commands.answer(command, &output)))
    }

    /// Runs lines in which `command` matters, which is given up in time.
    async fn run(&self, command: &'static str, lines: &str) -> Result<Output, BatchError> {
        self.run_within(command, lines, LIMIT).await
    }

    async fn run_within(
        &self,
        command: &'static str,
        lines: &str,
        limit: Duration,
    ) -> Result<Output, BatchError> {
        // A user's own settings for these commands (which states to show, say) would change what they answer.
        let lines = format!(
            "for name in $(env | sed -n -e 's/^\\(SQUEUE_[A-Z_]*\\)=.*/\\1/p' -e 's/^\\(SACCT_[A-Z_]*\\)=.*/\\1/p'); \
             do unset \"$name\"; done\n\
             SLURM_TIME_FORMAT=%s; export SLURM_TIME_FORMAT\n{lines}"
        );
        self.commands.run(command, &lines, limit).await
    }

    /// The error, if the output says that the controller does not answer.
    fn away(&self, output: &Output) -> Option<BatchError> {
        let said = &output.stderr;
        let words = [
            "Unable to contact slurm controller",
            "Socket timed out",
            "Connection refused",
            "Connection timed out",
            "Zero Bytes were transmitted",
            "Transport endpoint is not connected",
            "Slurm backup controller in standby mode",
            "Unexpected message received",
            "Munge encode failed",
            "Failed to contact",
        ];
        let away = words.iter().any(|word| said.contains(word));
        let slow = output.code == Some(TIMED_OUT);
        (away || slow).then(|| BatchError::Away {
            place: self.commands.place(),
            system: SYSTEM,
            said: match tail(said, 2) {
                said if said.is_empty() => "its command did not end in time".to_owned(),
                said => said,
            },
        })
    }

    /// Why sbatch did not submit a job.
    async fn refusal(&self, output: &Output, request: &Request) -> BatchError {
        if let Some(limit) = reasons::crowded(&output.stderr) {
            return BatchError::Full {
                system: SYSTEM,
                said: format!(
                    "as many jobs of yours wait and run as may ({limit}); end one with `scancel`, or take another `account` or \
                     `qos`"
                ),
            };
        }
        // Such a one would go on trying for two minutes.
        if ["temporarily unable to accept job", "job queue full"]
            .iter()
            .any(|word| output.stderr.contains(word))
        {
            return BatchError::Full {
                system: SYSTEM,
                said: reasons::said(&output.stderr),
            };
        }
        if let Some(error) = self.away(output) {
            return error;
        }
        let mut remedy = reasons::remedy(&output.stderr).map(str::to_owned);
        if output.stderr.to_lowercase().contains("invalid partition")
            && let Some(wanted) = &request.partition
            && let Ok(list) = self
                .ask("sinfo", "timeout 20 sinfo --noheader --format=%R")
                .await
        {
            let mut known: Vec<&str> = list.stdout.lines().map(str::trim).collect();
            known.sort_unstable();
            known.dedup();
            let hint = crate::spelling::nearest(wanted, known);
            remedy = Some(format!(
                "there is no partition `{wanted}`{}",
                hint.trim_end_matches('?')
            ));
        }
        BatchError::Refused {
            system: SYSTEM,
            said: reasons::said(&output.stderr),
            remedy,
        }
    }

    /// What is said of jobs, row by row.
    async fn rows(&self, filter: &str) -> Result<Vec<Row>, BatchError> {
        let line = format!(
            "timeout -k 5 40 squeue --noheader --format='{}' {filter}",
            answers::FORMAT
        );
        let output = self.run("squeue", &line).await?;
        // So it answers for a single job that it has forgotten.
        if output.stderr.contains("Invalid job id") {
            return Ok(Vec::new());
        }
        if output.code != Some(0) {
            return Err(self
                .away(&output)
                .unwrap_or_else(|| self.commands.answer("squeue", &output)));
        }
        Ok(answers::rows(&output.stdout))
    }

    /// The partitions in which these jobs wait, for `--partition`; `None` unless all of them are known.
    fn partitions_of(&self, jobs: &[JobId]) -> Option<String> {
        let known = self
            .partitions
            .lock()
            .unwrap_or_else(|lock| lock.into_inner());
        let mut all = Vec::new();
        for job in jobs {
            all.extend(known.get(job)?.split(',').map(str::to_owned));
        }
        all.sort_unstable();
        all.dedup();
        (!all.is_empty()).then(|| all.join(","))
    }

    fn note_partitions(&self, rows: &[Row], jobs: &[JobId]) {
        let mut known = self
            .partitions
            .lock()
            .unwrap_or_else(|lock| lock.into_inner());
        known.retain(|job, _| jobs.contains(job));
        for row in rows.iter().filter(|row| row.waits()) {
            if let Some(job) = jobs.iter().find(|job| job.as_str() == row.id) {
                known.insert(job.clone(), row.partition.clone());
            }
        }
    }
}

/// The name of a job, which users see in `squeue`.
fn name(key: &JobKey) -> String {
    format!("cellferry-{}", key.as_str())
}

#[async_trait]
impl Batch for Slurm {
    fn system(&self) -> &'static str {
        SYSTEM
    }

    async fn submit(&self, job: &Job) -> Result<JobId, BatchError> {
        let clean = if job.request.options.contains_key("export") {
            ""
        } else {
            CLEAN
        };
        let lines = format!("{clean}{}", at_once::lines(job, &arguments(job)));
        // What the cluster is like is of use later; that it is not known is no obstacle.
        let (output, _) = tokio::join!(self.run_within("sbatch", &lines, 2 * LIMIT), self.facts());
        let output = output?;
        if output.code != Some(0) {
            return Err(self.refusal(&output, &job.request).await);
        }
        if let Some(id) = answers::submitted(&output.stdout) {
            return Ok(id);
        }
        let found = self.find(&job.key).await.ok().flatten();
        found.ok_or_else(|| self.commands.answer("sbatch", &output))
    }

    async fn find(&self, key: &JobKey) -> Result<Option<JobId>, BatchError> {
        let rows = self
            .rows(&format!("--user=\"$(id -u)\" --name={}", name(key)))
            .await?;
        Ok(rows.first().and_then(|row| JobId::new(&row.id)))
    }

    async fn status(
        &self,
        jobs: &[JobId],
        places: bool,
    ) -> Result<BTreeMap<JobId, Status>, BatchError> {
        if jobs.is_empty() {
            return Ok(BTreeMap::new());
        }
        let facts = self.facts.get().cloned().unwrap_or_default();
        let queue = match places && !facts.private {
            true => self.partitions_of(jobs),
            false => None,
        };
        let rows = match &queue {
            Some(partitions) => {
                let filter = format!("--states=PENDING --partition={}", quoted(partitions));
                self.rows(&filter).await?
            }
            None => {
                let ids: Vec<&str> = jobs.iter().map(JobId::as_str).collect();
                // The user's number keeps the controller from sending all jobs of the cluster.
                let filter = format!("--states=all --user=\"$(id -u)\" --jobs={}", ids.join(","));
                self.rows(&filter).await?
            }
        };
        self.note_partitions(&rows, jobs);
        let mut found = BTreeMap::new();
        for job in jobs {
            let status = match rows.iter().find(|row| row.id == job.as_str()) {
                Some(row) => row.status(queue.is_some().then_some(&rows)),
                // It has just ceased to wait: the next question, which is not about the queue, tells what it does.
                None if queue.is_some() => continue,
                None => Status::Unknown,
            };
            found.insert(job.clone(), status);
        }
        Ok(found)
    }

    async fn ending(&self, job: &JobId, folder: &str) -> Result<Ending, BatchError> {
        let accounting = self.facts().await.is_ok_and(|facts| facts.accounting);
        let account = if accounting {
            format!(
                "state=$(timeout 20 sacct --allocations --noheader --parsable2 --format=State,ExitCode --jobs={job} 2>/dev/null)\n\
                 printf 'sacct|%s\\n' \"$state\"\n\
                 case $state in *'CANCELLED by '*) by=${{state#*CANCELLED by }}; by=${{by%%|*}}\n\
                 printf 'by|%s|%s\\n' \"$by\" \"$(id -nu \"$by\" 2>/dev/null)\";; esac\n"
            )
        } else {
            String::new()
        };
        let lines = format!(
            "printf 'me|%s\\n' \"$(id -u)\"\n\
             said=$(timeout 30 scontrol --oneliner show job {job} 2>&1); printf 'scontrol|%s\\n' \"$said\"\n\
             {account}printf 'log|\\n'; {words}",
            words = ask_words(folder)
        );
        let mut ending = Ending {
            code: "UNKNOWN".to_owned(),
            end: super::End::Unknown,
            last_words: String::new(),
        };
        // The controller says how only once all nodes are cleaned up, and accounting is a little behind it at times.
        for _ in 0..8 {
            let output = self.ask("scontrol", &lines).await?;
            let answer = answers::Last::read(&output.stdout);
            if let Some(said) = answer.away() {
                let output = Output {
                    stderr: said.to_owned(),
                    ..Output::default()
                };
                if let Some(error) = self.away(&output) {
                    return Err(error);
                }
            }
            ending = answer.ending();
            let unsaid = accounting && matches!(ending.end, super::End::Cancelled { by: None });
            if !unsaid && !answer.is_open() {
                break;
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        Ok(ending)
    }

    async fn cancel(&self, job: &JobId) -> Result<(), BatchError> {
        let output = self
            .run("scancel", &format!("timeout -k 5 40 scancel {job}"))
            .await?;
        let gone = ["Invalid job id", "already completed", "already completing"]
            .iter()
            .any(|word| output.stderr.contains(word));
        if gone || output.code == Some(0) && !output.stderr.contains("error") {
            return Ok(());
        }
        Err(self
            .away(&output)
            .unwrap_or_else(|| self.commands.answer("scancel", &output)))
    }
}

/// Leaves of the environment what any login would have, and what leads to Slurm: sbatch hands it to the job, and neither
/// the secrets of whoever started the kernel nor the settings of a job in which the kernel itself runs belong there.
const CLEAN: &str = "for name in $(env | sed -n 's/^\\([A-Za-z_][A-Za-z0-9_]*\\)=.*/\\1/p'); do case $name in\n\
     HOME|USER|LOGNAME|SHELL|PATH|LANG|LC_ALL|TZ|LD_LIBRARY_PATH|MODULEPATH|SBATCH_*|SLURM_CONF|SLURM_JWT) ;;\n\
     *) unset \"$name\" ;; esac; done\n";

/// The arguments of `sbatch`.
fn arguments(job: &Job) -> Vec<String> {
    let request = &job.request;
    let mut gres: Vec<String> = Vec::new();
    gres.extend(request.gpus.as_ref().map(|gpus| format!("gpu:{gpus}")));
    gres.extend(request.gres.clone());
    let own = |name: &'static str, value: Option<String>| value.map(|value| (name, Some(value)));
    let mut options: BTreeMap<&str, Option<String>> = [
        own("account", request.account.clone()),
        own("constraint", request.constraint.clone()),
        own("cpus-per-task", request.cpus.map(|cpus| cpus.to_string())),
        own("gres", (!gres.is_empty()).then(|| gres.join(","))),
        own("job-name", Some(name(&job.key))),
        own(
            "mem",
            request
                .memory
                .map(|memory| format!("{}M", memory.megabytes())),
        ),
        // A node that fails takes neither the others along, nor all of it to the queue again.
        Some(("no-kill", None)),
        Some(("no-requeue", None)),
        own("nodes", Some(request.nodes.to_string())),
        own("ntasks-per-node", Some("1".to_owned())),
        own("output", Some(format!("{}/{LOG}", job.folder))),
        Some(("parsable", None)),
        own("partition", request.partition.clone()),
        own("qos", request.qos.clone()),
        own("time", request.time.map(time)),
    ]
    .into_iter()
    .flatten()
    .collect();
    for (name, choice) in &request.options {
        match choice {
            Choice::Given => options.insert(name, None),
            Choice::Value(value) => options.insert(name, Some(value.clone())),
            Choice::Left => options.remove(name.as_str()),
        };
    }
    if options.contains_key("requeue") {
        options.remove("no-requeue");
    }
    options
        .into_iter()
        .map(|(name, value)| match value {
            Some(value) => format!("--{name}={value}"),
            None => format!("--{name}"),
        })
        .collect()
}

/// As Slurm writes it: days-hours:minutes:seconds.
fn time(time: Duration) -> String {
    let seconds = time.as_secs();
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    format!(
        "{days}-{:02}:{:02}:{:02}",
        hours % 24,
        minutes % 60,
        seconds % 60
    )
}

#[cfg(test)]
mod tests;
