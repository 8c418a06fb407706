//! Tries a target elsewhere as a cell would: login, agent, one worker; on a cluster in a job of its own. For `cellferry doctor`.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use cellferry_ssh::Question;
use cellferry_wire::protocol::{FromAgent, Hello, ToAgent, WorkerId};
use tokio::sync::mpsc;
use zeroize::Zeroizing;

use super::agents::{self, FromLocation, Seat};
use super::arrivals::Arrivals;
use super::cluster::{Clusters, JobNews, Load};
use super::far::Far;
use super::host::Host;
use crate::session::{Problem, TargetName};
use crate::target::config::{Slurm, Ssh, Target};
use crate::target::shape::Shape;

/// How long a job that was submitted for a try waits for us.
const PATIENCE: Duration = Duration::from_secs(60);

/// The user's side.
pub struct User<A, T> {
    /// Gives the user's answers.
    pub ask: A,
    /// Shows what there is to say.
    pub tell: T,
}

/// Starts a worker of the target on its host and ends it again; what the host says of itself.
///
/// # Errors
/// What keeps cells from running there.
pub async fn probe(
    target: &Target,
    ssh: &Ssh,
    user: User<impl Fn(&Question) -> Option<Zeroizing<String>>, impl Fn(&str)>,
) -> Result<Hello, Problem> {
    let name: TargetName = target.name.as_str().into();
    let (events, inbox) = mpsc::unbounded_channel();
    let host = Host {
        target: name,
        ssh: ssh.clone(),
        run_dir: None,
        events: events.clone(),
    };
    let far = Far::start(host, Arc::new(Arrivals::default()), events);
    let outcome = start(
        &far,
        target,
        &agents::seat_there(target, Some(ssh)),
        inbox,
        user,
    )
    .await;
    far.shutdown().await;
    outcome
}

/// Submits a job of one node, starts a worker of the target there and ends all again; what the node says of itself, and whether
/// it is reached by mail because it cannot connect to the login node.
///
/// # Errors
/// What keeps cells from running there.
pub async fn probe_cluster(
    target: &Target,
    slurm: &Slurm,
    login: Option<Ssh>,
    user: User<impl Fn(&Question) -> Option<Zeroizing<String>>, impl Fn(&str)>,
) -> Result<(Hello, bool), Problem> {
    let (events, inbox) = mpsc::unbounded_channel();
    let mut tried = slurm.clone();
    tried.request.nodes = NonZeroU32::MIN;
    tried.patience = PATIENCE;
    tried.keep = false;
    let mut clusters = Clusters::new("");
    let place = (target, &tried, login.clone());
    let node = clusters.node(place, &Shape::parse(&target.name), None, &events, |_| {
        Load::default()
    });
    let seat = agents::seat_there(target, login.as_ref());
    let prepared = Target {
        setup: None,
        ..target.clone()
    };
    let far = Far::start(node, Arc::new(Arrivals::default()), events);
    let outcome = start(&far, &prepared, &seat, inbox, user).await;
    let by_mail = match outcome {
        Ok(_) => clusters.uses_mail().await,
        Err(_) => false,
    };
    if outcome.is_ok() {
        far.shutdown().await;
    }
    clusters.end(false).await;
    Ok((outcome?, by_mail))
}

async fn start(
    far: &Far,
    target: &Target,
    seat: &Seat,
    mut inbox: mpsc::UnboundedReceiver<FromLocation>,
    user: User<impl Fn(&Question) -> Option<Zeroizing<String>>, impl Fn(&str)>,
) -> Result<Hello, Problem> {
    let User { ask, tell } = user;
    let worker = WorkerId(1);
    let spec = agents::spec_there(target);
    far.sender.queue(ToAgent::StartWorker { worker, spec });
    let mut hello = None;
    let mut told = String::new();
    loop {
        match inbox.recv().await {
            Some(FromLocation::Message(_, FromAgent::Hello(said))) => hello = Some(said),
            Some(FromLocation::Message(_, FromAgent::WorkerUp { .. })) => break,
            Some(FromLocation::Message(_, FromAgent::WorkerFailed { failure, .. })) => {
                return Err(seat.start_problem(&failure));
            }
            Some(FromLocation::AgentGone(_, problem, _)) => return Err(problem),
            Some(FromLocation::Ask(_, question, answer)) => {
                let _ = answer.send(ask(&question));
            }
            Some(FromLocation::Tell(_, text)) => tell(&text),
            Some(FromLocation::Job(_, JobNews::Waits(text) | JobNews::Runs(text, _)))
                if text != told =>
            {
                tell(&text);
                told = text;
            }
            Some(_) => {}
            None => {
                let problem = "the connection ended".to_owned();
                return Err(Problem::new("SshError", problem));
            }
        }
    }
    hello.ok_or_else(|| Problem::new("AgentError", "the agent did not say who it is".to_owned()))
}
