//! An ssh host: the login, and what may go wrong with it.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use cellferry_ssh::{Ask, Client, Options, Question, SshError, Transport};
use tokio::sync::{mpsc, oneshot};
use zeroize::Zeroizing;

use super::agents::FromLocation;
use super::far::{Broken, Opened, Way};
use crate::session::{Problem, TargetName};
use crate::target::config::Ssh;
use crate::target::ssh::bootstrap::{self, BootstrapError};

/// A host that the user can log in to.
pub struct Host {
    /// Its target.
    pub target: TargetName,
    /// How to log in.
    pub ssh: Ssh,
    /// For what is open while it is connected.
    pub run_dir: Option<PathBuf>,
    /// Where questions to the user go.
    pub events: mpsc::UnboundedSender<FromLocation>,
}

impl Host {
    /// Logs in.
    pub async fn connect(&self) -> Result<Client, SshError> {
        let options = Options {
            user: self.ssh.user.clone(),
            port: self.ssh.port,
            config: self.ssh.config.clone(),
            transport: if self.ssh.openssh {
                Transport::OpenSsh
            } else {
                Transport::Russh
            },
            runtime_dir: self.run_dir.clone(),
            ..Options::new(&self.ssh.host)
        };
        let ask = Arc::new(Asker {
            target: self.target.clone(),
            events: self.events.clone(),
        });
        cellferry_ssh::connect(&options, ask).await
    }

    /// A login that failed: while a link is lost, only what time cannot mend ends the waiting.
    fn refused(&self, error: SshError, known: bool) -> Broken {
        if known && may_pass(&error) {
            Broken::Again(error.to_string())
        } else {
            Broken::Lost(self.problem(&error.to_string()))
        }
    }
}

#[async_trait]
impl Way for Host {
    fn location(&self) -> &TargetName {
        &self.target
    }

    fn patience(&self) -> Duration {
        self.ssh.patience
    }

    async fn open(&self, conversation: &str, known: bool) -> Result<Opened, Broken> {
        let client = self.connect().await;
        let client = client.map_err(|error| self.refused(error, known))?;
        let patience = self.ssh.patience.as_secs().max(1);
        match bootstrap::attach(&client, conversation, patience, known).await {
            Ok(process) => Ok(Opened::over(process, Arc::new(client), true)),
            Err(BootstrapError::Gone) => Err(Broken::Lost(self.gone())),
            Err(BootstrapError::Ssh(error)) => Err(self.refused(error, known)),
            // What was there once: a host that is just starting may not have its disks yet, for example.
            Err(error) if known => Err(Broken::Again(error.to_string())),
            Err(error) => Err(Broken::Lost(self.problem(&error.to_string()))),
        }
    }

    fn problem(&self, reason: &str) -> Problem {
        Problem::new(
            "SshError",
            format!("`{}` cannot be used: {reason}", self.target),
        )
    }

    fn lost(&self) -> Problem {
        Problem::new(
            "LocationLost",
            format!(
                "the link to `{0}` was lost and did not come back within {1} (`patience` under [targets.{0}] in cellferry.toml), \
                 so its workers count as lost; the next cell on `{0}` connects anew",
                self.target,
                humantime::format_duration(self.ssh.patience)
            ),
        )
    }

    fn gone(&self) -> Problem {
        Problem::new(
            "LocationLost",
            format!(
                "the agent of `{0}` has ended, and its workers with it: the host was started anew, or the agent was killed; \
                 the next cell on `{0}` starts a new one",
                self.target
            ),
        )
    }
}

/// Whether time alone may mend what kept us from logging in.
fn may_pass(error: &SshError) -> bool {
    match error {
        SshError::Jump { source, .. } => may_pass(source),
        SshError::Resolve { .. }
        | SshError::Connect { .. }
        | SshError::Timeout { .. }
        | SshError::ProxyCommand { .. }
        | SshError::Handshake { .. }
        | SshError::Closed { .. }
        | SshError::Refused { .. }
        | SshError::OpenSsh { .. }
        | SshError::Local { .. } => true,
        // It did not say no.
        SshError::Auth(failure) => failure.disconnect.is_some(),
        _ => false,
    }
}

/// Asks the user in the notebook, under the cell that waits for the target.
struct Asker {
    target: TargetName,
    events: mpsc::UnboundedSender<FromLocation>,
}

#[async_trait]
impl Ask for Asker {
    async fn ask(&self, question: Question) -> Option<Zeroizing<String>> {
        let (answer, answered) = oneshot::channel();
        let asked = FromLocation::Ask(self.target.clone(), question, answer);
        self.events.send(asked).ok()?;
        answered.await.ok()?
    }

    fn tell(&self, text: &str) {
        let told = FromLocation::Tell(self.target.clone(), text.to_owned());
        let _ = self.events.send(told);
    }
}
