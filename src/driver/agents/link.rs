//! The ways to an agent: inside this process, a process of its own, or on another machine.

use std::process::Stdio;

use cellferry_agent::{Agent, OWN_PROGRAM};
use cellferry_wire::protocol::{FromAgent, ToAgent};
use cellferry_wire::{Connection, Sender};
use tokio::process::Child;

use super::super::carry::Machine;
use super::super::far::Far;
use super::{Agents, FromLocation};
use crate::session::{HOME, Problem, TargetName};

pub(super) enum Link {
    /// Inside this process.
    Here(Agent),
    /// A process of its own.
    Process {
        sender: Sender<ToAgent>,
        child: Child,
    },
    /// On another machine.
    Far(Far),
}

impl Link {
    /// Ends the agent and its workers.
    pub(super) async fn end(self) {
        match self {
            Self::Here(agent) => agent.shutdown().await,
            Self::Process { sender, mut child } => {
                sender.queue(ToAgent::Shutdown);
                sender.finish();
                let _ = child.wait().await;
            }
            Self::Far(far) => far.shutdown().await,
        }
    }
}

impl Agents {
    pub(super) fn here(&self) -> Result<Link, Problem> {
        let run_dir = self
            .run_dir
            .as_ref()
            .ok_or_else(|| Problem::new("WorkerError", "no run directory".to_owned()))?;
        let segments = self
            .segment_dir(&Machine::Home)
            .map_err(|error| Problem::new("WorkerError", error))?;
        let (agent, mut inbox) = Agent::local(run_dir.path(), &segments);
        let events = self.events.clone();
        tokio::spawn(async move {
            while let Some(message) = inbox.recv().await {
                let message = FromLocation::Message(HOME.into(), message);
                if events.send(message).is_err() {
                    break;
                }
            }
        });
        Ok(Link::Here(agent))
    }

    pub(super) async fn process(&self, target: &TargetName) -> Result<Link, Problem> {
        let failed = |reason: String| {
            Problem::new(
                "AgentError",
                format!("the agent of `{target}` does not start: {reason}"),
            )
        };
        let mut child = tokio::process::Command::new(OWN_PROGRAM)
            .arg0(std::env::args_os().next().unwrap_or_default())
            .arg("agent")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .map_err(|error| failed(error.to_string()))?;
        let (Some(writer), Some(reader)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(failed("its standard streams are missing".to_owned()));
        };
        let Connection {
            sender,
            mut receiver,
        } = Connection::<ToAgent, FromAgent>::start(reader, writer)
            .await
            .map_err(|error| failed(error.to_string()))?;
        let events = self.events.clone();
        let target = target.clone();
        tokio::spawn(async move {
            while let Some(message) = receiver.recv().await {
                match message {
                    Ok(message) => {
                        let message = FromLocation::Message(target.clone(), message);
                        if events.send(message).is_err() {
                            return;
                        }
                    }
                    Err(error) => tracing::error!("the agent of `{target}`: {error}"),
                }
            }
            let problem = Problem::new(
                "AgentDied",
                format!(
                    "the agent of `{target}` died, and its workers with it; the next cell on `{target}` starts a new one"
                ),
            );
            let _ = events.send(FromLocation::AgentGone(target, problem, None));
        });
        Ok(Link::Process { sender, child })
    }
}
