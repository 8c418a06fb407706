//! One allocation's life: its folder, its job, what becomes of that, and its end.

use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};
use tokio::io::AsyncReadExt;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{sleep, timeout};

use super::super::agents::FromLocation;
use super::Cluster;
use super::kept::{Kept, Record, Shelf};
use crate::session::{Gone, Problem};
use crate::target::batch::commands::tail;
use crate::target::batch::shell::{input, quoted};
use crate::target::batch::watch::News;
use crate::target::batch::{
    BatchError, End, Ending, Job, JobId, JobKey, Request, Running, Status, Waiting, script,
};
use crate::target::config::System;
use crate::target::ssh::agents;
use crate::target::ssh::bootstrap;

/// How long to wait before a batch system that did not take a job is asked again.
const AGAIN: Duration = Duration::from_secs(5);

/// How long a job may wait for what will not come by itself: somebody may be changing it.
const HOPE: Duration = Duration::from_secs(10);

/// How often the cancelling of a job is tried before it is left to its own patience.
const CANCELS: u32 = 5;

/// How long a shared file system may take.
const LIMIT: Duration = Duration::from_secs(60);

/// How much a command that failed may say, in bytes.
const WORDS: u64 = 4 << 10;

/// How far an allocation is.
#[derive(Clone, Debug)]
pub enum JobState {
    /// It has no folder yet.
    Preparing,
    /// Its nodes, should it get any, find there what they need.
    Prepared {
        /// Its folder.
        folder: String,
    },
    /// It is over: why, and what that means for what ran there.
    Ended(Problem, Gone),
}

/// What users hear of an allocation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum JobNews {
    /// It has become a job, which is called so.
    Submitted(String),
    /// It waits, with this to be shown.
    Waits(String),
    /// It runs, with this to be shown, until then.
    Runs(String, Option<DateTime<Utc>>),
    /// It has ended, and its nodes are cleaned up.
    Closing,
    /// It is over.
    Ended,
}

/// What an allocation is told.
#[derive(Debug)]
pub enum Order {
    /// Give it back; answered when that is done.
    Release(oneshot::Sender<()>),
    /// Leave it to the next kernel.
    Leave,
}

/// Keeps one allocation.
pub struct Keeper {
    /// What users call it.
    pub name: String,
    /// Where its target is defined, for messages.
    pub table: String,
    /// What it asks for.
    pub request: Request,
    /// The folder for jobs that the target names.
    pub folder: Option<String>,
    /// The target's setup lines.
    pub setup: Option<String>,
    /// How long it waits for its kernel.
    pub patience: Duration,
    /// Where.
    pub cluster: Arc<Cluster>,
    /// Where it is noted for the next kernel, if that may take it over.
    pub shelf: Option<Shelf>,
    /// Stands for all that it is made from.
    pub fingerprint: String,
    /// Where its news go.
    pub events: mpsc::UnboundedSender<FromLocation>,
    /// What becomes of it.
    pub state: watch::Sender<JobState>,
}

/// A job that has been submitted.
struct Submitted {
    job: JobId,
    folder: String,
    kept: Option<Kept>,
}

impl Submitted {
    /// The next kernel need not look for it.
    fn forget(self) {
        if let Some(kept) = self.kept {
            kept.forget();
        }
    }
}

impl Keeper {
    /// Lives the allocation's life.
    pub async fn live(self, mut orders: mpsc::UnboundedReceiver<Order>) {
        let (submitting, mut is_submitting) = watch::channel(false);
        let mut release = None;
        let begun = {
            let mut beginning = std::pin::pin!(self.begin(&submitting));
            tokio::select! {
                begun = &mut beginning => Some(begun),
                order = orders.recv() => {
                    if let Some(Order::Release(done)) = order {
                        release = Some(done);
                    }
                    // A job that may be there already must be known to be ended.
                    tokio::select! {
                        biased;
                        begun = &mut beginning => Some(begun),
                        _ = is_submitting.wait_for(|is| !is) => None,
                    }
                }
            }
        };
        let submitted = match begun {
            None => {
                let state = self.state.borrow().clone();
                if let JobState::Prepared { folder } = state {
                    let _ = script::remove(self.cluster.commands(), &folder).await;
                }
                self.ended(released(), Gone::NotStarted);
                if let Some(done) = release {
                    let _ = done.send(());
                }
                return;
            }
            Some(Err(problem)) => {
                self.ended(problem, Gone::NotStarted);
                return;
            }
            Some(Ok(submitted)) => submitted,
        };
        if release.is_none() {
            let over = tokio::select! {
                () = self.follow(&submitted) => true,
                order = orders.recv() => match order {
                    Some(Order::Release(done)) => {
                        release = Some(done);
                        false
                    }
                    // What is noted of it stays.
                    Some(Order::Leave) | None => return,
                },
            };
            if over {
                submitted.forget();
                return;
            }
        }
        self.ended(released(), Gone::LocationLost);
        self.cancel(&submitted).await;
        submitted.forget();
        if let Some(done) = release {
            let _ = done.send(());
        }
    }

    /// Takes over what an earlier kernel has left, or prepares a job and submits it.
    async fn begin(&self, submitting: &watch::Sender<bool>) -> Result<Submitted, Problem> {
        let submitted = match self.take_over().await {
            Some(submitted) => submitted,
            None => self.make(submitting).await?,
        };
        self.state.send_replace(JobState::Prepared {
            folder: submitted.folder.clone(),
        });
        Ok(submitted)
    }

    /// A job of an earlier kernel that still waits or runs.
    async fn take_over(&self) -> Option<Submitted> {
        while let Some((kept, record)) = self.shelf.as_ref()?.take(&self.fingerprint) {
            let Some(job) = JobId::new(&record.job) else {
                kept.forget();
                continue;
            };
            let jobs = [job.clone()];
            let status = match self.cluster.batch().status(&jobs, false).await {
                Ok(mut found) => found.remove(&job),
                Err(error) => {
                    tracing::info!("{}: nothing is known of job {job}: {error}", self.name);
                    return None;
                }
            };
            if let Some(Status::Waiting(_) | Status::Starting | Status::Running(_)) = status {
                tracing::info!(
                    "{}: job {job} of an earlier kernel is taken over",
                    self.name
                );
                return Some(Submitted {
                    job,
                    folder: record.folder,
                    kept: Some(kept),
                });
            }
            kept.forget();
        }
        None
    }

    /// Prepares a job and submits it.
    async fn make(&self, submitting: &watch::Sender<bool>) -> Result<Submitted, Problem> {
        self.say(JobNews::Waits(format!("{}: preparing a job", self.name)));
        let key = JobKey::new();
        let commands = self.cluster.commands();
        let secret = [uuid::Uuid::new_v4(), uuid::Uuid::new_v4()]
            .map(|half| half.simple().to_string())
            .concat();
        let folder = script::prepare(commands, self.folder.as_deref(), &key, &secret)
            .await
            .map_err(|error| self.problem(&error))?;
        if let Err(reason) = self.install(&folder).await {
            let _ = script::remove(commands, &folder).await;
            return Err(Problem::new(
                "BatchError",
                format!("{} cannot be used: {reason}", self.name),
            ));
        }
        let program = format!("{folder}/agent");
        let patience = self.patience.as_secs().max(1).to_string();
        let agent = [
            &program,
            "node",
            "--allocation",
            &folder,
            "--patience",
            &patience,
        ];
        let agent = agent.map(str::to_owned);
        let job = Job {
            request: self.request.clone(),
            script: match self.cluster.system() {
                System::Slurm => script::slurm(&folder, &agent, self.setup.as_deref()),
                System::Pbs => script::pbs(&folder, &agent, self.setup.as_deref()),
            },
            folder: folder.clone(),
            key,
        };
        // The way to the nodes is made while they are waited for.
        self.state.send_replace(JobState::Prepared {
            folder: folder.clone(),
        });
        let id = match self.submit(&job, submitting).await {
            Ok(id) => id,
            Err(error) => {
                let _ = script::remove(commands, &folder).await;
                return Err(self.problem(&error));
            }
        };
        let record = Record {
            fingerprint: self.fingerprint.clone(),
            job: id.to_string(),
            folder: folder.clone(),
        };
        let kept = self.shelf.as_ref().map(|shelf| shelf.put(&record));
        let kept = kept.transpose().unwrap_or_else(|error| {
            tracing::warn!(
                "{}: the next kernel will not find job {id}: {error}",
                self.name
            );
            None
        });
        let submitted = Submitted {
            job: id,
            folder,
            kept,
        };
        self.note_cancel(&submitted).await;
        let _ = submitting.send(false);
        Ok(submitted)
    }

    /// Puts the agent's program into the job's folder.
    async fn install(&self, folder: &str) -> Result<(), String> {
        let login = self.cluster.login();
        if let Some(host) = login.host() {
            let client = login.client(host, 0).await;
            let client = client.map_err(|error| error.to_string())?;
            let line = format!(
                "cp \"$a\" {folder}/.agent && chmod 700 {folder}/.agent && mv {folder}/.agent {folder}/agent \
                 && echo && echo \"cellferry: found\""
            );
            let process = bootstrap::run(&client, &line).await;
            let mut process = process.map_err(|error| error.to_string())?;
            if let Ok(Some(_)) = bootstrap::answer(&mut process.stdout).await {
                return Ok(());
            }
            let mut said = Vec::new();
            let stderr = (&mut process.stderr).take(WORDS);
            let _ = timeout(LIMIT, { stderr }.read_to_end(&mut said)).await;
            return Err(format!(
                "the agent's program cannot be put into `{folder}`: {}; make room there, or name another place as `folder` in {}",
                tail(&String::from_utf8_lossy(&said), 2),
                self.table
            ));
        }
        let programs = agents::programs();
        let program = programs
            .iter()
            .find(|program| program.architecture == std::env::consts::ARCH)
            .ok_or_else(|| {
                "this installation of Cellferry has no agent for this machine; install the cellferry package, or build the \
                 agents with tools/agents"
                    .to_owned()
            })?;
        let to = format!("{folder}/agent");
        let copied = tokio::fs::copy(&program.path, &to).await;
        copied
            .map(drop)
            .map_err(|error| format!("the agent's program cannot be copied to `{to}`: {error}"))
    }

    /// Submits the job, however long the batch system takes no more. `submitting` is true while there may be one.
    async fn submit(
        &self,
        job: &Job,
        submitting: &watch::Sender<bool>,
    ) -> Result<JobId, BatchError> {
        let batch = self.cluster.batch();
        loop {
            let _ = submitting.send(true);
            let error = match batch.submit(job).await {
                Ok(id) => return Ok(id),
                Err(error) if error.is_passing() => error,
                Err(error) => return Err(error),
            };
            self.say_again(&error);
            if let BatchError::Full { .. } = error {
                let _ = submitting.send(false);
                sleep(AGAIN).await;
                continue;
            }
            // It may have been submitted, and must not be twice.
            loop {
                sleep(AGAIN).await;
                match batch.find(&job.key).await {
                    Ok(Some(id)) => return Ok(id),
                    Ok(None) => break,
                    Err(error) => self.say_again(&error),
                }
            }
            let _ = submitting.send(false);
            // Whoever does not want it any more says so now.
            tokio::task::yield_now().await;
        }
    }

    fn say_again(&self, error: &BatchError) {
        let text = format!("{}: no job yet, trying again: {error}", self.name);
        self.say(JobNews::Waits(text));
    }

    /// Leaves word how the job is ended, for the gate.
    async fn note_cancel(&self, submitted: &Submitted) {
        let Submitted { job, folder, .. } = submitted;
        let command = match self.cluster.system() {
            System::Slurm => "scancel --quiet",
            System::Pbs => "qdel",
        };
        let text = format!("exec bash -l -c 'exec {command} {job}'\n");
        let (redirection, lines) = input(&text);
        let path = quoted(&format!("{folder}/cancel"));
        let lines = format!("umask 077; cat > {path}.new {redirection}{lines}mv {path}.new {path}");
        if let Err(error) = self.cluster.commands().run("cat", &lines, LIMIT).await {
            tracing::warn!("{}: {error}", self.name);
        }
    }

    /// Tells what becomes of the job, until it is over.
    async fn follow(&self, submitted: &Submitted) {
        let Submitted { job, folder, .. } = submitted;
        let batch = self.cluster.batch();
        let system = batch.system();
        self.say(JobNews::Submitted(format!("{system} job {job}")));
        self.say(JobNews::Waits(format!("{system} job {job} is submitted")));
        let mut news = self.cluster.watch().follow(job.clone());
        let mut hopeless: Option<String> = None;
        loop {
            let given_up = async {
                match &hopeless {
                    Some(_) => sleep(HOPE).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                changed = news.changed() => if changed.is_err() {
                    break;
                },
                () = given_up => {
                    let line = hopeless.unwrap_or_default();
                    let problem = format!("{} cannot be used: {line}; it would wait for ever, and was cancelled", self.name);
                    self.ended(Problem::new("BatchError", problem), Gone::Ended);
                    self.cancel(submitted).await;
                    return;
                }
            }
            let News { status, trouble } = news.borrow_and_update().clone();
            let Some(status) = status else {
                if let Some(trouble) = trouble {
                    self.say(JobNews::Waits(format!("{system} job {job}: {trouble}")));
                }
                continue;
            };
            let line = status.line(system, job);
            hopeless = is_hopeless(&status).then(|| line.clone());
            match (&status, trouble) {
                (Status::Running(Running { until, .. }), _) => {
                    self.say(JobNews::Runs(line, *until));
                }
                (Status::Closing, _) => self.say(JobNews::Closing),
                (Status::Over | Status::Unknown, _) => break,
                (_, Some(trouble)) => self.say(JobNews::Waits(format!("{line} ({trouble})"))),
                (_, None) => self.say(JobNews::Waits(line)),
            }
        }
        let ending = loop {
            match batch.ending(job, folder).await {
                Err(error) if error.is_passing() => sleep(AGAIN).await,
                ending => break ending,
            }
        };
        let (told, gone) = match ending {
            Ok(ending) => (ending.told(system, job, &self.table), meaning(&ending)),
            Err(error) => (
                format!("{system} job {job} ended: {error}"),
                Gone::LocationLost,
            ),
        };
        self.ended(Problem::new("JobEnded", told), gone);
        if let Err(error) = script::remove(self.cluster.commands(), folder).await {
            tracing::info!("{}: {error}", self.name);
        }
    }

    async fn cancel(&self, submitted: &Submitted) {
        let Submitted { job, folder, .. } = submitted;
        for _ in 0..CANCELS {
            match self.cluster.batch().cancel(job).await {
                Ok(()) => break,
                Err(error) => {
                    tracing::warn!("{}: job {job} is not cancelled yet: {error}", self.name);
                    sleep(Duration::from_secs(1)).await;
                }
            }
        }
        if let Err(error) = script::remove(self.cluster.commands(), folder).await {
            tracing::info!("{}: {error}", self.name);
        }
    }

    fn problem(&self, error: &BatchError) -> Problem {
        Problem::new(
            "BatchError",
            format!("{} cannot be used: {error}", self.name),
        )
    }

    fn ended(&self, problem: Problem, gone: Gone) {
        self.state.send_replace(JobState::Ended(problem, gone));
        self.say(JobNews::Ended);
    }

    fn say(&self, news: JobNews) {
        let _ = self
            .events
            .send(FromLocation::Job(self.name.as_str().into(), news));
    }
}

fn released() -> Problem {
    Problem::new("LocationLost", "the allocation was given back".to_owned())
}

/// Whether a job waits for what will not come by itself.
fn is_hopeless(status: &Status) -> bool {
    match status {
        Status::Waiting(Waiting { reason, .. }) => {
            // One that is held can be released.
            let is_held = |code: &str| code.to_lowercase().contains("held");
            let reason = reason.as_ref();
            reason.is_some_and(|reason| reason.remedy.is_some() && !is_held(&reason.code))
        }
        _ => false,
    }
}

/// What the end of a job means for the cells that ran in it: whether they may do better in another one.
fn meaning(ending: &Ending) -> Gone {
    match ending.end {
        End::NodeFailed | End::Preempted | End::NotBooted | End::Unknown => Gone::LocationLost,
        End::Completed
        | End::Failed { .. }
        | End::Signalled { .. }
        | End::TimeOut
        | End::OutOfMemory
        | End::Cancelled { .. }
        | End::Deadline => Gone::Ended,
    }
}
