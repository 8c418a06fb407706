//! What the locations tell the driver, all by one channel, so that it comes in the order in which it happened.

use cellferry_ssh::Question;
use cellferry_wire::protocol::{FromAgent, WorkerId};
use tokio::sync::oneshot;
use zeroize::Zeroizing;

use super::super::cluster::JobNews;
use super::super::far::LinkState;
use super::super::files::Staged;
use crate::session::{Gone, Problem, TargetName};

/// What comes from the locations.
#[derive(Debug)]
pub enum FromLocation {
    /// A message of an agent.
    Message(TargetName, FromAgent),
    /// These workers are out of reach, or could never be started.
    Failed {
        /// Which.
        workers: Vec<WorkerId>,
        /// Why.
        problem: Problem,
    },
    /// Values could not be taken.
    TransferFailed {
        /// Which transfer.
        transfer: u64,
        /// Why.
        reason: String,
    },
    /// Files have been brought for a worker, or could not be.
    Staged(WorkerId, Staged),
    /// An agent has ended, or its location is lost: with what to tell of it, and what it means for what ran there if that is
    /// known.
    AgentGone(TargetName, Problem, Option<Gone>),
    /// What becomes of an allocation.
    Job(TargetName, JobNews),
    /// The link to a far agent dropped, or is back.
    Link(TargetName, LinkState),
    /// A far host asks something that only the user knows; dropped if there is nobody to ask.
    Ask(
        TargetName,
        Question,
        oneshot::Sender<Option<Zeroizing<String>>>,
    ),
    /// A far host, or the way to it, has something to say.
    Tell(TargetName, String),
}
