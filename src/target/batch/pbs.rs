//! The commands of PBS: `qsub`, `qstat` and `qdel`, of Torque, of OpenPBS (PBS Professional), and those that Slurm brings along.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use chrono::{DateTime, Utc};

use super::commands::{Commands, TIMED_OUT, tail};
use super::request::{Choice, Request};
use super::script::{LOG, ask_words, words};
use super::shell::{Output, Shell, input, quoted};
use super::{Batch, BatchError, End, Ending, Job, JobId, JobKey, Reason, Running, Status, Waiting};

const SYSTEM: &str = "PBS";

/// How long its commands may take.
const LIMIT: Duration = Duration::from_secs(45);

/// In which words resources are asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialect {
    /// `-l nodes=2:ppn=4`, of Torque and Slurm.
    Torque,
    /// `-l select=2:ncpus=4`, of OpenPBS.
    OpenPbs,
}

/// PBS's commands in one place.
pub struct Pbs {
    commands: Commands,
    dialect: tokio::sync::OnceCell<Dialect>,
}

impl Pbs {
    /// The PBS whose commands `shell` runs.
    pub fn new(shell: Arc<dyn Shell>) -> Self {
        Self {
            commands: Commands::new(SYSTEM, shell),
            dialect: tokio::sync::OnceCell::new(),
        }
    }

    /// Where its commands are run.
    pub fn commands(&self) -> &Commands {
        &self.commands
    }

    async fn dialect(&self) -> Result<Dialect, BatchError> {
        self.dialect
            .get_or_try_init(|| async {
                let output = self
                    .commands
                    .run("qstat", "timeout 20 qstat --version 2>&1 </dev/null", LIMIT)
                    .await?;
                // Torque says `Version: 6.1.2`, and Slurm does not know the option.
                Ok(match output.stdout.contains("pbs_version") {
                    true => Dialect::OpenPbs,
                    false => Dialect::Torque,
                })
            })
            .await
            .copied()
    }

    fn away(&self, output: &Output) -> Option<BatchError> {
        let said = format!("{}\n{}", output.stderr, output.stdout);
        let words = [
            "cannot connect to server",
            "Connection refused",
            "Connection timed out",
            "Unable to contact slurm controller",
            "Socket timed out",
            "Premature end of message",
        ];
        let away = output.code == Some(TIMED_OUT) || words.iter().any(|word| said.contains(word));
        away.then(|| BatchError::Away {
            place: self.commands.place(),
            system: SYSTEM,
            said: match tail(&said, 2) {
                said if said.is_empty() => "its command did not end in time".to_owned(),
                said => said,
            },
        })
    }

    /// What `qstat -f` says of jobs, finished ones too.
    async fn full(&self, jobs: &str) -> Result<Vec<Record>, BatchError> {
        let history = match self.dialect().await? {
            Dialect::OpenPbs => " -x",
            Dialect::Torque => "",
        };
        let line = format!("timeout -k 5 40 qstat -f{history} {jobs}");
        let output = self.commands.run("qstat", &line, LIMIT).await?;
        let records = records(&output.stdout);
        // Slurm's says nothing of a job that it does not know, and ends with the same code as PBS's, 153.
        let unknown = output.stderr.contains("Unknown Job")
            || output.stderr.contains("Job has finished")
            || output.code == Some(153) && output.stderr.trim().is_empty();
        if output.code == Some(0) || unknown || !records.is_empty() {
            return Ok(records);
        }
        Err(self
            .away(&output)
            .unwrap_or_else(|| self.commands.answer("qstat", &output)))
    }
}

/// The name of a job: old PBS takes no more than 15 letters.
fn name(key: &JobKey) -> String {
    format!("cf-{}", key.as_str())
}

#[async_trait]
impl Batch for Pbs {
    fn system(&self) -> &'static str {
        SYSTEM
    }

    async fn submit(&self, job: &Job) -> Result<JobId, BatchError> {
        let words: Vec<String> = arguments(job, self.dialect().await?)
            .iter()
            .map(|word| quoted(word))
            .collect();
        let file = quoted(&format!("{}/job.sh", job.folder));
        let (redirection, script) = input(&job.script);
        let lines = format!(
            "umask 077; cat > {file} {redirection} || exit{script}timeout -k 5 40 qsub {} {file}",
            words.join(" ")
        );
        let output = self.commands.run("qsub", &lines, LIMIT).await?;
        if output.code == Some(0)
            && let Some(last) = output.stdout.lines().rfind(|line| !line.trim().is_empty())
            && let Some(job) = JobId::new(last.trim())
        {
            return Ok(job);
        }
        if let Some(error) = self.away(&output) {
            return Err(error);
        }
        if output.code == Some(0) {
            return Err(self.commands.answer("qsub", &output));
        }
        let said = format!("{}\n{}", output.stderr, output.stdout);
        Err(BatchError::Refused {
            system: SYSTEM,
            said: tail(&said, 3).replace('\n', "; "),
            remedy: remedy(&said).map(str::to_owned),
        })
    }

    async fn find(&self, key: &JobKey) -> Result<Option<JobId>, BatchError> {
        let name = name(key);
        let records = self.full("").await?;
        let found = records.iter().find(|record| {
            record.get("Job_Name") == Some(name.as_str()) && record.status() != Status::Over
        });
        Ok(found.and_then(|record| JobId::new(&record.id)))
    }

    async fn status(
        &self,
        jobs: &[JobId],
        _places: bool,
    ) -> Result<BTreeMap<JobId, Status>, BatchError> {
        if jobs.is_empty() {
            return Ok(BTreeMap::new());
        }
        let ids: Vec<&str> = jobs.iter().map(JobId::as_str).collect();
        let records = self.full(&ids.join(" ")).await?;
        let status = |job: &JobId| {
            records
                .iter()
                .find(|record| record.is(job))
                .map_or(Status::Unknown, Record::status)
        };
        Ok(jobs.iter().map(|job| (job.clone(), status(job))).collect())
    }

    async fn ending(&self, job: &JobId, folder: &str) -> Result<Ending, BatchError> {
        let records = self.full(job.as_str()).await?;
        let said = self.commands.run("tail", &ask_words(folder), LIMIT).await?;
        let (log, nodes) = words(&said.stdout);
        let mut ending = ending(records.iter().find(|record| record.is(job)), log);
        let last_words = format!("{}\n{}", tail(nodes, 5), ending.last_words);
        ending.last_words = last_words.trim().to_owned();
        Ok(ending)
    }

    async fn cancel(&self, job: &JobId) -> Result<(), BatchError> {
        let output = self
            .commands
            .run("qdel", &format!("timeout -k 5 40 qdel {job}"), LIMIT)
            .await?;
        let gone = [
            "Unknown Job",
            "has finished",
            "invalid state",
            "Invalid job id",
            "already completing",
        ]
        .iter()
        .any(|word| output.stderr.contains(word));
        if output.code == Some(0) || gone {
            return Ok(());
        }
        Err(self
            .away(&output)
            .unwrap_or_else(|| self.commands.answer("qdel", &output)))
    }
}

/// The arguments of `qsub`, without the script.
fn arguments(job: &Job, dialect: Dialect) -> Vec<String> {
    let request = &job.request;
    let mut words = vec!["-N".to_owned(), name(&job.key)];
    let mut option = |name: &str, value: Option<String>| {
        if let Some(value) = value {
            words.extend([format!("-{name}"), value]);
        }
    };
    option("j", Some("oe".to_owned()));
    option("o", Some(format!("{}/{LOG}", job.folder)));
    option("r", Some("n".to_owned()));
    option("q", request.partition.clone());
    option("A", request.account.clone());
    for list in resources(request, dialect) {
        option("l", Some(list));
    }
    for (name, choice) in &request.options {
        match choice {
            Choice::Given => words.push(format!("-{name}")),
            Choice::Value(value) => words.extend([format!("-{name}"), value.clone()]),
            Choice::Left => {}
        }
    }
    words
}

/// What stands after each `-l`.
fn resources(request: &Request, dialect: Dialect) -> Vec<String> {
    let cpus = request.cpus.map_or(1, |cpus| cpus.get());
    let gpus = request.gpus.as_ref().map(|gpus| gpus.count);
    let memory = request.memory.map(|memory| memory.megabytes());
    let mut lists = match dialect {
        Dialect::Torque => {
            let mut nodes = format!("nodes={}:ppn={cpus}", request.nodes);
            if let Some(gpus) = gpus {
                nodes += &format!(":gpus={gpus}");
            }
            if let Some(feature) = &request.constraint {
                nodes += &format!(":{feature}");
            }
            // That of the whole job.
            let all = memory.map(|memory| memory * u64::from(request.nodes.get()));
            let mut lists = vec![nodes];
            lists.extend(all.map(|all| format!("mem={all}mb")));
            lists
        }
        Dialect::OpenPbs => {
            let mut chunk = format!("select={}:ncpus={cpus}:mpiprocs=1", request.nodes);
            if let Some(gpus) = gpus {
                chunk += &format!(":ngpus={gpus}");
            }
            if let Some(memory) = memory {
                chunk += &format!(":mem={memory}mb");
            }
            if let Some(feature) = &request.constraint {
                chunk += &format!(":{feature}");
            }
            // Each of them on a host of its own.
            vec![chunk, "place=scatter".to_owned()]
        }
    };
    if let Some(time) = request.time {
        let seconds = time.as_secs();
        let (minutes, hours) = (seconds / 60 % 60, seconds / 3600);
        lists.push(format!(
            "walltime={hours:02}:{minutes:02}:{:02}",
            seconds % 60
        ));
    }
    if dialect == Dialect::Torque {
        // Slurm's `qsub` takes the last list only.
        return vec![lists.join(",")];
    }
    lists
}

/// What qsub says when it refuses a job, in lower case, and what to change.
fn remedy(said: &str) -> Option<&'static str> {
    let said = said.to_lowercase();
    [
        (
            "unknown queue",
            "change `partition`: `qstat -Q` lists the queues",
        ),
        (
            "invalid partition",
            "change `partition`: `qstat -Q` lists the queues",
        ),
        ("invalid account", "change `account`"),
        (
            "exceeds queue",
            "lower `nodes`, `cpus`, `memory` or `time`, or take another `partition`",
        ),
        (
            "resource limits",
            "lower `nodes`, `cpus`, `memory` or `time`, or take another `partition`",
        ),
        (
            "illegal attribute or resource",
            "change what is asked for: this PBS does not know it",
        ),
        (
            "unknown resource",
            "change what is asked for: this PBS does not know it",
        ),
        ("not available", "lower `nodes`, `cpus`, `memory` or `gpus`"),
        (
            "unauthorized",
            "you may not submit there; change `partition` or `account`",
        ),
        ("maximum number of jobs", "end some of your other jobs"),
        (
            "would exceed",
            "end some of your other jobs, or ask for less",
        ),
    ]
    .into_iter()
    .find(|(words, _)| said.contains(words))
    .map(|(_, remedy)| remedy)
}

/// A job as `qstat -f` shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Record {
    id: String,
    attributes: BTreeMap<String, String>,
}

/// Reads what `qstat -f` prints: `Job Id: 17.server`, then `name = value` indented; a long value goes on in lines that begin
/// with a tab. Slurm's indents by a tab itself.
fn records(text: &str) -> Vec<Record> {
    let mut records: Vec<Record> = Vec::new();
    let mut last: Option<String> = None;
    for line in text.lines() {
        if let Some(id) = line.strip_prefix("Job Id:") {
            last = None;
            records.push(Record {
                id: id.trim().to_owned(),
                attributes: BTreeMap::new(),
            });
            continue;
        }
        let Some(record) = records.last_mut() else {
            continue;
        };
        let named = line.trim_start().split_once(" = ").filter(|(name, _)| {
            !name.is_empty() && !name.contains(|c: char| c.is_whitespace() || ",=".contains(c))
        });
        match (named, &last) {
            (Some((name, value)), _) => {
                record
                    .attributes
                    .insert(name.to_owned(), value.trim_end().to_owned());
                last = Some(name.to_owned());
            }
            (None, Some(name)) if line.starts_with('\t') => {
                if let Some(value) = record.attributes.get_mut(name) {
                    value.push_str(line.trim_start_matches('\t').trim_end());
                }
            }
            _ => last = None,
        }
    }
    records
}

impl Record {
    fn get(&self, name: &str) -> Option<&str> {
        self.attributes.get(name).map(String::as_str)
    }

    /// `qsub` and `qstat` write the server's name differently at times: with and without its domain.
    fn is(&self, job: &JobId) -> bool {
        let number = |id: &str| id.split('.').next().unwrap_or_default().to_owned();
        number(&self.id) == number(job.as_str())
    }

    fn status(&self) -> Status {
        match self.get("job_state").unwrap_or_default() {
            "Q" | "H" | "W" | "T" | "M" => Status::Waiting(Waiting {
                reason: self.reason(),
                place: None,
                start: self.get("estimated.start_time").and_then(date),
            }),
            // OpenPBS says of one that it is about to run.
            "B" => Status::Starting,
            "R" => Status::Running(Running {
                nodes: self.nodes(),
                until: self.until(),
            }),
            "S" | "U" => Status::Suspended,
            // Exiting is as good as over: its processes are gone.
            "E" | "C" | "F" | "X" => Status::Over,
            _ => Status::Unknown,
        }
    }

    fn reason(&self) -> Option<Reason> {
        let held = self.get("job_state") == Some("H");
        let reason = |code: &str, meaning, remedy| {
            Some(Reason {
                code: code.to_owned(),
                meaning,
                remedy,
            })
        };
        match self.get("comment") {
            // The administrator's or scheduler's own words, which say it all.
            Some(comment) => reason(
                comment.trim_start_matches("Not Running: "),
                None,
                held.then_some("release it with `qrls`"),
            ),
            None if held => reason("held", Some("it is held"), Some("release it with `qrls`")),
            None => None,
        }
    }

    /// `node1/0*4+node2/0*4` and `node1/0+node1/1+node2/0` are both `node1 node2`.
    fn nodes(&self) -> String {
        let mut nodes: Vec<&str> = Vec::new();
        for place in self.get("exec_host").unwrap_or_default().split('+') {
            let node = place.split('/').next().unwrap_or_default();
            if !node.is_empty() && !nodes.contains(&node) {
                nodes.push(node);
            }
        }
        nodes.join(" ")
    }

    fn until(&self) -> Option<DateTime<Utc>> {
        let started = self
            .get("start_time")
            .or(self.get("stime"))
            .and_then(date)?;
        let limit = hours(self.get("Resource_List.walltime")?)?;
        started.checked_add_signed(chrono::Duration::seconds(limit))
    }
}

/// `01:30:00`, in seconds.
fn hours(text: &str) -> Option<i64> {
    text.split(':').try_fold(0_i64, |sum, part| {
        sum.checked_mul(60)?.checked_add(part.parse().ok()?)
    })
}

/// `Sat Nov 21 23:28:45 2026`, on the clock of the host; ours may be another, and so may the hour.
fn date(text: &str) -> Option<DateTime<Utc>> {
    if let Ok(seconds) = text.parse() {
        return DateTime::from_timestamp(seconds, 0);
    }
    let date = chrono::NaiveDateTime::parse_from_str(text, "%a %b %e %H:%M:%S %Y").ok()?;
    let local = date.and_local_timezone(chrono::Local).earliest()?;
    Some(local.with_timezone(&Utc))
}

/// How a job ended: its exit status, and what PBS wrote into its output.
fn ending(record: Option<&Record>, log: &str) -> Ending {
    let status = record
        .and_then(|record| record.get("Exit_status").or(record.get("exit_status")))
        .and_then(|status| status.trim().parse::<i64>().ok());
    let comment = record
        .and_then(|record| record.get("comment"))
        .unwrap_or_default();
    let said = |words: &[&str]| {
        words
            .iter()
            .any(|word| log.contains(word) || comment.contains(word))
    };
    let signal = |status: i64| u32::try_from(status % 128).unwrap_or(0);
    let end = if said(&[
        "job killed: walltime",
        "exceeded limit walltime",
        "DUE TO TIME LIMIT",
    ]) {
        End::TimeOut
    } else if said(&[
        "job killed: mem",
        "job killed: vmem",
        "memory limit",
        "oom-kill",
        "oom_kill",
    ]) {
        End::OutOfMemory
    } else if said(&["DUE TO NODE FAILURE", "node failed"]) {
        End::NodeFailed
    } else {
        match status {
            Some(0) => End::Completed,
            // Torque: it could not be started at all (-1 to -3), its time or memory was over (-11, -10).
            Some(-11 | -29) => End::TimeOut,
            Some(-10 | -27 | -28) => End::OutOfMemory,
            Some(-3..=-1) => End::NotBooted,
            // By SIGTERM, as qdel does.
            Some(143 | 271) => End::Cancelled { by: None },
            // 128 and the signal of a shell, 256 and the signal of PBS.
            Some(status @ (129..=192 | 257..=320)) => End::Signalled {
                signal: signal(status),
            },
            Some(status) => match u32::try_from(status) {
                Ok(code) => End::Failed { code },
                Err(_) => End::Unknown,
            },
            None if said(&[" CANCELLED AT "]) => End::Cancelled { by: None },
            None => End::Unknown,
        }
    };
    Ending {
        code: match status {
            Some(status) => format!("exit status {status}"),
            None => "no exit status".to_owned(),
        },
        end,
        last_words: tail(log, 5),
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;

    use super::*;
    use crate::cell::resources::Memory;
    use crate::target::batch::commands::fake::Fake;
    use crate::target::batch::request::Gpus;

    /// As OpenPBS 20 prints it.
    const OPENPBS: &str = "Job Id: 1234.pbs01\n    Job_Name = cf-0123456789\n    Job_Owner = me@login1.site.org\n    \
        job_state = R\n    queue = workq\n    server = pbs01\n    exec_host = node01/0*4+node02/0*4\n    \
        exec_vnode = (node01:ncpus=4:mem=8388608kb)+(node02:ncpus=4:mem=8388608kb)\n    \
        Resource_List.mem = 16gb\n    Resource_List.walltime = 01:00:00\n    stime = Thu Nov 19 10:00:00 2026\n    \
        Variable_List = PBS_O_HOME=/home/me,PBS_O_LANG=en_US.UTF-8,PBS_O_LOGNAME=me,\n\t\
        PBS_O_PATH=/opt/pbs/bin:/usr/bin,PBS_O_SHELL=/bin/bash,A = B\n    comment = Job run at Thu Nov 19 at 10:00 on (node01:ncpus=4)\n    \
        project = _pbs_project_default\n\n\
        Job Id: 1235.pbs01\n    Job_Name = other\n    job_state = Q\n    comment = Not Running: Insufficient amount of resource: nc\n\tpus (R: 64 A: 8 T: 128)\n    \
        estimated.start_time = Thu Nov 19 12:00:00 2026\n\n";

    /// As Torque 6 prints it.
    const TORQUE: &str = "Job Id: 77.head.site.org\n    Job_Name = cf-0123456789\n    job_state = C\n    \
        exec_host = n1/0-3+n2/0-3\n    Resource_List.walltime = 00:01:00\n    exit_status = -11\n    \
        start_time = 1795100000\n\n";

    /// As Slurm's qstat prints it.
    const SLURM: &str = "Job Id:\t15\n\tJob_Name = cf-1a2b3c\n\tJob_Owner = alice@login\n\tjob_state = R\n\tqueue = batch\n\t\
        qtime = Sat Nov 21 23:28:45 2026\n\texec_host = node1/3+node2/1\n\tResource_List.walltime = 00:05:00\n\n\
        Job Id:\t16\n\tJob_Name = j.sh\n\tjob_state = Q\n\tqueue = batch\n\tPriority = 4294901746\n\n";

    fn id(text: &str) -> JobId {
        JobId::new(text).unwrap()
    }

    #[test]
    fn what_openpbs_says_is_understood() {
        let all = records(OPENPBS);
        assert_eq!(all.len(), 2);
        assert!(all[0].is(&id("1234.pbs01.site.org")));
        assert_eq!(
            all[0].get("Variable_List").unwrap(),
            "PBS_O_HOME=/home/me,PBS_O_LANG=en_US.UTF-8,PBS_O_LOGNAME=me,PBS_O_PATH=/opt/pbs/bin:/usr/bin,PBS_O_SHELL=/bin/bash,A = B"
        );
        let Status::Running(running) = all[0].status() else {
            panic!("{:?}", all[0].status())
        };
        assert_eq!(running.nodes, "node01 node02");
        let started = date("Thu Nov 19 10:00:00 2026").unwrap();
        assert_eq!((running.until.unwrap() - started).num_minutes(), 60);
        let Status::Waiting(waiting) = all[1].status() else {
            panic!("{:?}", all[1].status())
        };
        assert_eq!(
            waiting.reason.unwrap().to_string(),
            "Insufficient amount of resource: ncpus (R: 64 A: 8 T: 128)"
        );
        assert!(waiting.start.is_some());
    }

    #[test]
    fn what_torque_says_is_understood() {
        let all = records(TORQUE);
        assert_eq!(all[0].status(), Status::Over);
        assert_eq!(ending(Some(&all[0]), "").end, End::TimeOut);
        assert_eq!(all[0].nodes(), "n1 n2");
    }

    #[test]
    fn what_slurm_says_in_the_words_of_pbs_is_understood() {
        let all = records(SLURM);
        let states: Vec<Status> = all.iter().map(Record::status).collect();
        assert!(matches!(&states[0], Status::Running(running) if running.nodes == "node1 node2"));
        assert_eq!(states[1], Status::Waiting(Waiting::default()));
    }

    #[test]
    fn endings_are_told_by_status_and_log() {
        let with = |status: &str, log: &str| {
            let text = format!("Job Id: 1\n    job_state = F\n    Exit_status = {status}\n");
            ending(records(&text).first(), log).end
        };
        assert_eq!(with("0", ""), End::Completed);
        assert_eq!(with("3", ""), End::Failed { code: 3 });
        assert_eq!(
            with("271", "=>> PBS: job killed: walltime 75 exceeded limit 60"),
            End::TimeOut
        );
        assert_eq!(with("271", ""), End::Cancelled { by: None });
        assert_eq!(with("265", ""), End::Signalled { signal: 9 });
        assert_eq!(
            with("137", "=>> PBS: job killed: mem 2gb exceeded limit 1gb"),
            End::OutOfMemory
        );
        assert_eq!(ending(None, "").end, End::Unknown);
    }

    #[test]
    fn each_dialect_asks_in_its_own_words() {
        let count = |count| NonZeroU32::new(count).unwrap();
        let job = Job {
            key: JobKey::new(),
            request: Request {
                partition: Some("workq".to_owned()),
                nodes: count(2),
                cpus: Some(count(4)),
                memory: Memory::parse("8G"),
                gpus: Some(Gpus {
                    kind: None,
                    count: count(1),
                }),
                time: Some(Duration::from_secs(90_061)),
                ..Request::default()
            },
            script: String::new(),
            folder: "/home/me/job".to_owned(),
        };
        let line = |dialect| arguments(&job, dialect)[2..].join(" ");
        assert_eq!(
            line(Dialect::Torque),
            "-j oe -o /home/me/job/job.log -r n -q workq -l nodes=2:ppn=4:gpus=1,mem=16384mb,walltime=25:01:01"
        );
        assert_eq!(
            line(Dialect::OpenPbs),
            "-j oe -o /home/me/job/job.log -r n -q workq -l select=2:ncpus=4:mpiprocs=1:ngpus=1:mem=8192mb -l place=scatter \
             -l walltime=25:01:01"
        );
    }

    #[tokio::test]
    async fn a_refusal_says_what_to_change() {
        let fake = Fake::answering(&[
            (1, "pbs_version = 20.0.1", ""),
            (170, "", "qsub: Unknown queue\n"),
        ]);
        let pbs = Pbs::new(fake);
        let job = Job {
            key: JobKey::new(),
            request: Request::default(),
            script: "true".to_owned(),
            folder: "/f".to_owned(),
        };
        assert_eq!(
            pbs.submit(&job).await.unwrap_err().to_string(),
            "PBS refuses the job: qsub: Unknown queue; change `partition`: `qstat -Q` lists the queues"
        );
    }

    #[tokio::test]
    async fn jobs_that_are_not_known_are_no_error() {
        let version = (0, "Version: 6.1.2\n", "");
        let fake = Fake::answering(&[
            version,
            (153, TORQUE, "qstat: Unknown Job Id Error 9.head\n"),
        ]);
        let found = Pbs::new(fake)
            .status(&[id("77.head"), id("9.head")], false)
            .await
            .unwrap();
        assert_eq!(found[&id("77.head")], Status::Over);
        assert_eq!(found[&id("9.head")], Status::Unknown);
        let fake = Fake::answering(&[
            version,
            (
                1,
                "",
                "qstat: cannot connect to server head (errno=111) Connection refused\n",
            ),
        ]);
        let error = Pbs::new(fake).status(&[id("77")], false).await.unwrap_err();
        assert!(error.is_passing(), "{error}");
    }
}
