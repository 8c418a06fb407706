//! The program that runs on a location: starts workers and relays their messages.
//!
//! A worker is an ordinary Jupyter kernel. Its messages pass through as they are; the agent only
//! checks and makes signatures. For `home` it runs inside the kernel's process ([`Agent::local`]), for other targets on
//! the same machine as a program that speaks over stdin and stdout ([`serve`]). On another machine it is a program
//! that outlives its links ([`attach`]), and on the nodes of a batch job one that is reached through the login node
//! ([`allocation`]). For each rank of an MPI program it is one that serves another agent ([`rank`]).

mod agent;
pub mod allocation;
pub mod attach;
mod brake;
mod direct;
mod exit;
pub mod files;
mod group;
mod growing;
pub mod guard;
mod island;
mod machine;
mod mapped;
mod memory;
mod outlet;
pub mod parts;
mod place;
mod pool;
mod run_dir;
mod serve;
mod tickets;
mod transfers;
mod worker;

pub use agent::Agent;
pub use growing::Growing;
pub use island::rank;
pub use mapped::Mapped;
pub use pool::Pool;
pub use run_dir::RunDir;
pub use serve::serve;

use thiserror::Error;

/// This very program, for starting it once more: its file may have been replaced by another version's since.
pub const OWN_PROGRAM: &str = "/proc/self/exe";

/// Why an agent cannot go on.
#[derive(Debug, Error)]
pub enum AgentError {
    /// Its own directory cannot be made.
    #[error("cannot make a private directory for the workers' sockets in `{path}`: {source}")]
    RunDir {
        /// Where.
        path: String,
        /// Why.
        source: std::io::Error,
    },
    /// The connection to the kernel.
    #[error(transparent)]
    Wire(#[from] cellferry_wire::WireError),
    /// A rank cannot come to its island.
    #[error("cannot join the island in `{path}`: {error}")]
    Island {
        /// The island's folder.
        path: String,
        /// Why.
        error: String,
    },
    /// Signals or standard streams.
    #[error("cannot set up the agent: {0}")]
    Io(#[from] std::io::Error),
}
