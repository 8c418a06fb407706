//! The way to the agent of one node of an allocation: a command on the login node, where the allocation's gate connects it
//! with the node.

use std::num::NonZeroU32;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use cellferry_ssh::{Client, Exit, SshError};
use futures::FutureExt;
use tokio::io::AsyncReadExt;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};

use super::super::far::{Broken, Opened, Way};
use super::Cluster;
use super::allocation::JobState;
use crate::session::{Gone, Problem, TargetName};
use crate::target::ssh::bootstrap::{self, BootstrapError};

/// How long a node may be out of reach once it is waited for at the gate.
const NODE_PATIENCE: Duration = Duration::from_secs(30);

/// How long to wait for the batch system's word on why a node's agent has gone.
const WHY: Duration = Duration::from_secs(25);

/// How long it takes at most to come to the gate, unless the login node is out of reach.
const AT_HAND: Duration = Duration::from_secs(1);

/// How long a connection may take to start a command before it counts as lost.
const SLOW: Duration = Duration::from_secs(10);

/// How much a command that failed may say, in bytes.
const WORDS: u64 = 4 << 10;

/// A node of an allocation.
pub struct Node {
    /// Its name in this session.
    pub location: TargetName,
    /// The other nodes of the allocation that are not lost, in their order.
    pub others: Vec<TargetName>,
    /// Its number in the allocation, from 0.
    pub number: u32,
    /// The target's name.
    pub target: String,
    /// How many GPUs the allocation has on it.
    pub gpus: u32,
    /// How long it may be out of reach.
    pub patience: Duration,
    /// The cluster.
    pub cluster: Arc<Cluster>,
    /// What becomes of the job.
    pub job: watch::Receiver<JobState>,
    /// Since when the node is waited for at its allocation's gate.
    pub at_gate: watch::Sender<Option<Instant>>,
}

impl Node {
    /// How many nodes the allocation has.
    pub fn nodes(&self) -> NonZeroU32 {
        let others = u32::try_from(self.others.len()).unwrap_or_default();
        NonZeroU32::MIN.saturating_add(others)
    }

    /// The other nodes that ranks are on who are on so many nodes, this one first.
    pub fn others_of(&self, nodes: NonZeroU32) -> Vec<TargetName> {
        let others = nodes.get() as usize - 1;
        self.others.iter().take(others).cloned().collect()
    }

    /// The folder of the job, once it is prepared.
    async fn folder(&self) -> Result<String, Broken> {
        let mut job = self.job.clone();
        let settled = job.wait_for(|state| !matches!(state, JobState::Preparing));
        match settled.await.as_deref() {
            Ok(JobState::Prepared { folder, .. }) => Ok(folder.clone()),
            Ok(JobState::Ended(problem, gone)) => Err(Broken::Ended(problem.clone(), *gone)),
            Ok(JobState::Preparing) | Err(_) => Err(Broken::Lost(self.gone())),
        }
    }

    /// Waits until the job is over.
    async fn over(&self) -> Broken {
        let mut job = self.job.clone();
        let ended = job.wait_for(|state| matches!(state, JobState::Ended(..)));
        match ended.await.as_deref() {
            Ok(JobState::Ended(problem, gone)) => Broken::Ended(problem.clone(), *gone),
            _ => Broken::Lost(self.gone()),
        }
    }

    async fn reach(&self, folder: &str, conversation: &str) -> Result<Opened, Broken> {
        let words = format!(
            "reach --allocation {folder} --node {} --conversation {conversation} --patience {}",
            self.number,
            self.patience.as_secs().max(1)
        );
        let login = self.cluster.login();
        let Some(host) = login.host() else {
            return self.found(here(folder, &words)?, None).await;
        };
        let again = |reason: String| Broken::Again(reason);
        let mut connecting =
            std::pin::pin!(login.client(host, super::login::Login::group(self.number)));
        let client = match timeout(AT_HAND, &mut connecting).await {
            Ok(client) => client,
            Err(_) => {
                self.at_gate.send_replace(None);
                connecting.await
            }
        };
        let client = client.map_err(|error| again(error.to_string()))?;
        let line = format!("exec \"$a\" {words}");
        let started = timeout(SLOW, bootstrap::run(&client, &line));
        let process = match started.await {
            Ok(Ok(process)) => process,
            Ok(
                Err(BootstrapError::Ssh(SshError::Closed { .. })) | Err(BootstrapError::Broken(_)),
            ) => {
                login.forget(&client).await;
                return Err(again(
                    "the connection to the login node was lost".to_owned(),
                ));
            }
            Ok(Err(error)) => return Err(again(error.to_string())),
            Err(_) => {
                login.forget(&client).await;
                return Err(again("the login node does not answer".to_owned()));
            }
        };
        let opened = Opened::over(process, client.clone(), false);
        self.found(opened, Some(client)).await
    }

    /// Waits until the gate has connected the command with the node.
    async fn found(
        &self,
        mut opened: Opened,
        client: Option<Arc<Client>>,
    ) -> Result<Opened, Broken> {
        let closed = async {
            match &client {
                Some(client) => client.closed().await,
                None => std::future::pending().await,
            }
        };
        let waits = async {
            // A command that finds no gate and can start none ends sooner.
            sleep(AT_HAND).await;
            self.at_gate.send_if_modified(|since| {
                let is_new = since.is_none();
                since.get_or_insert_with(Instant::now);
                is_new
            });
            std::future::pending().await
        };
        let found = tokio::select! {
            found = bootstrap::answer(&mut opened.stdout) => found,
            reason = closed => return Err(Broken::Again(reason)),
            never = waits => never,
        };
        if matches!(found, Ok(Some(_))) {
            return Ok(opened);
        }
        let mut said = Vec::new();
        let mut stderr = (&mut opened.stderr).take(WORDS);
        let _ = timeout(Duration::from_secs(1), stderr.read_to_end(&mut said)).await;
        let exit = timeout(Duration::from_secs(1), &mut opened.exit).await;
        if exit.is_ok_and(|exit| bootstrap::says_gone(&exit)) {
            // Another node may do, unless it is the job that has ended.
            let (problem, gone) = self.why_gone(self.gone()).await;
            return Err(Broken::Ended(problem, gone.unwrap_or(Gone::LocationLost)));
        }
        let said = String::from_utf8_lossy(&said);
        Err(Broken::Again(match said.trim() {
            "" => "the allocation's gate was closed".to_owned(),
            said => said.to_owned(),
        }))
    }
}

/// Runs the agent's program from a job's folder on this machine.
fn here(folder: &str, words: &str) -> Result<Opened, Broken> {
    let failed = |error: String| Broken::Again(format!("`{folder}/agent` does not run: {error}"));
    let mut child = tokio::process::Command::new(format!("{folder}/agent"))
        .args(words.split(' '))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| failed(error.to_string()))?;
    let streams = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let (Some(stdin), Some(stdout), Some(stderr)) = streams else {
        return Err(failed("it has no pipes".to_owned()));
    };
    let exit = async move {
        let status = child.wait().await;
        let code = status.ok().and_then(|status| status.code());
        let code = code.and_then(|code| u32::try_from(code).ok());
        code.map_or(Exit::Lost, Exit::Code)
    };
    Ok(Opened {
        stdin: Box::new(stdin),
        stdout: Box::new(stdout),
        stderr: Box::new(stderr),
        exit: exit.boxed(),
        client: None,
        alone: false,
    })
}

#[async_trait]
impl Way for Node {
    fn location(&self) -> &TargetName {
        &self.location
    }

    fn patience(&self) -> Duration {
        if self.at_gate.borrow().is_some() {
            self.patience.min(NODE_PATIENCE)
        } else {
            self.patience
        }
    }

    fn deadline(&self, since: Instant, known: bool) -> Option<Instant> {
        let last = since + self.patience;
        match *self.at_gate.borrow() {
            None => Some(last),
            // Its job may still wait for nodes.
            Some(_) if !known => None,
            Some(reached) => Some(last.min(reached.max(since) + NODE_PATIENCE)),
        }
    }

    async fn deadline_moved(&self) {
        let mut reached = self.at_gate.subscribe();
        if reached.changed().await.is_err() {
            std::future::pending().await
        }
    }

    async fn open(&self, conversation: &str, known: bool) -> Result<Opened, Broken> {
        if known {
            self.cluster.watch().hurry();
        }
        let folder = self.folder().await?;
        tokio::select! {
            opened = self.reach(&folder, conversation) => {
                if opened.is_err() {
                    self.at_gate.send_replace(None);
                }
                opened
            }
            over = self.over() => Err(over),
        }
    }

    fn is_patient(&self) -> bool {
        true
    }

    fn problem(&self, reason: &str) -> Problem {
        Problem::new(
            "BatchError",
            format!("{} cannot be used: {reason}", self.location),
        )
    }

    fn lost(&self) -> Problem {
        Problem::new(
            "LocationLost",
            format!(
                "{} was lost and did not come back within {}; the next cell on `{}` uses another node, or another job",
                self.location,
                humantime::format_duration(self.patience()),
                self.target
            ),
        )
    }

    fn gone(&self) -> Problem {
        Problem::new(
            "LocationLost",
            format!(
                "the agent on {} has ended, and its workers with it; the next cell on `{}` uses another node, or another job",
                self.location, self.target
            ),
        )
    }

    async fn why_gone(&self, problem: Problem) -> (Problem, Option<Gone>) {
        self.cluster.watch().hurry();
        match timeout(WHY, self.over()).await {
            Ok(Broken::Ended(problem, gone)) => (problem, Some(gone)),
            _ => (problem, None),
        }
    }
}
