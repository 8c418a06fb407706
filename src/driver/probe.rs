//! Tries a far host as a cell would: login, agent, one worker. For `cellferry doctor`.

use std::sync::Arc;

use cellferry_ssh::Question;
use cellferry_wire::protocol::{FromAgent, Hello, ToAgent, WorkerId};
use tokio::sync::mpsc;
use zeroize::Zeroizing;

use super::agents::{self, FromLocation};
use super::arrivals::Arrivals;
use super::far::Far;
use super::host::Host;
use crate::session::{Problem, TargetName};
use crate::target::config::{Ssh, Target};

/// Starts a worker of the target on its host and ends it again; what the host says of itself.
///
/// `ask` gives the user's answers, `tell` shows what the host has to say.
pub async fn probe(
    target: &Target,
    ssh: &Ssh,
    ask: impl Fn(&Question) -> Option<Zeroizing<String>>,
    tell: impl Fn(&str),
) -> Result<Hello, Problem> {
    let name: TargetName = target.name.as_str().into();
    let (events, mut inbox) = mpsc::unbounded_channel();
    let arrivals = Arc::new(Arrivals::default());
    let host = Host {
        target: name,
        ssh: ssh.clone(),
        run_dir: None,
        events: events.clone(),
    };
    let far = Far::start(host, arrivals, events);
    let seat = agents::seat_there(target, ssh);
    let worker = WorkerId(1);
    let spec = agents::spec_there(target);
    far.sender.queue(ToAgent::StartWorker { worker, spec });
    let mut hello = None;
    let outcome = loop {
        match inbox.recv().await {
            Some(FromLocation::Message(_, FromAgent::Hello(said))) => hello = Some(said),
            Some(FromLocation::Message(_, FromAgent::WorkerUp { .. })) => break Ok(()),
            Some(FromLocation::Message(_, FromAgent::WorkerFailed { failure, .. })) => {
                break Err(seat.start_problem(&failure));
            }
            Some(FromLocation::AgentGone(_, problem, _)) => return Err(problem),
            Some(FromLocation::Ask(_, question, answer)) => {
                let _ = answer.send(ask(&question));
            }
            Some(FromLocation::Tell(_, text)) => tell(&text),
            Some(_) => {}
            None => break Err(Problem::new("SshError", "the connection ended".to_owned())),
        }
    };
    far.shutdown().await;
    outcome?;
    hello.ok_or_else(|| Problem::new("AgentError", "the agent did not say who it is".to_owned()))
}
