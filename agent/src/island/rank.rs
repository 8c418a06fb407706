//! The process of one rank: an agent with one worker, for the island's own agent.

use std::io;
use std::path::{Path, PathBuf};

use super::{Directory, Meeting, Visit};
use crate::direct::reach;
use crate::serve::follow;
use crate::{AgentError, OWN_PROGRAM};

/// The variables in which launchers say which rank a process is, the most reliable first: `mpirun` inside of a Slurm job leaves
/// that of Slurm, too.
const NUMBERS: [&str; 4] = [
    "OMPI_COMM_WORLD_RANK",
    "PMIX_RANK",
    "PMI_RANK",
    "SLURM_PROCID",
];

/// The variables in which they say which of its machine's ranks a process is, in the same order.
const LOCAL_NUMBERS: [&str; 3] = [
    "OMPI_COMM_WORLD_LOCAL_RANK",
    "MPI_LOCALRANKID",
    "SLURM_LOCALID",
];

/// Serves the island in `folder` until it ends.
///
/// # Errors
/// If the island cannot be found or reached, or an agent cannot be set up on this machine.
pub async fn rank(folder: &Path) -> Result<(), AgentError> {
    let failed = |error: String| AgentError::Island {
        path: folder.display().to_string(),
        error,
    };
    let number = number(|name| std::env::var(name).ok()).map_err(failed)?;
    let meeting = Meeting::read(folder).map_err(|error| failed(error.to_string()))?;
    let mut greeted = reach(&meeting.addresses, &meeting.secret)
        .await
        .map_err(failed)?;
    let visit = Visit {
        rank: number,
        sees: meeting.own.iter().all(Directory::is_seen),
        node: node(),
        local: local_number(|name| std::env::var(name).ok()),
    };
    greeted
        .tell(&visit)
        .await
        .map_err(|error| failed(error.to_string()))?;
    let (ours, theirs) = tokio::io::duplex(1 << 18);
    tokio::spawn(async move {
        if let Err(error) = greeted.pipe(theirs).await {
            tracing::info!("the connection to the island ended: {error}");
        }
    });
    let (reader, writer) = tokio::io::split(ours);
    follow(reader, writer, (OWN_PROGRAM.as_ref(), &["guard"])).await
}

/// Which rank this process is.
fn number(variable: impl Fn(&str) -> Option<String>) -> Result<u32, String> {
    let told = NUMBERS.iter().find_map(|name| variable(name));
    told.and_then(|text| text.trim().parse().ok())
        .ok_or_else(|| {
            format!(
                "the launcher does not say which rank this is: none of {} is set",
                NUMBERS.join(", ")
            )
        })
}

/// Which of its machine's ranks it is.
fn local_number(variable: impl Fn(&str) -> Option<String>) -> Option<u32> {
    let told = LOCAL_NUMBERS.iter().find_map(|name| variable(name));
    told.and_then(|text| text.trim().parse().ok())
}

/// What ranks have in common that see each other's directories: those in which all of them are made.
fn node() -> String {
    let places = [
        std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from),
        Some(std::env::temp_dir()),
        Some(PathBuf::from("/dev/shm")),
    ];
    let identity = |path: PathBuf| -> io::Result<String> { Ok(Directory::of(&path)?.identity) };
    let found = places.into_iter().flatten().flat_map(identity);
    found.collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_launcher_says_which_rank_it_is() {
        let set = |pairs: &'static [(&str, &str)]| {
            number(move |name| {
                let found = pairs.iter().find(|(other, _)| *other == name);
                found.map(|(_, value)| (*value).to_owned())
            })
        };
        assert_eq!(set(&[("PMI_RANK", "3")]), Ok(3));
        assert_eq!(
            set(&[("SLURM_PROCID", "0"), ("OMPI_COMM_WORLD_RANK", "2")]),
            Ok(2)
        );
        assert!(set(&[]).unwrap_err().contains("PMIX_RANK"));
        assert!(set(&[("PMIX_RANK", "x")]).is_err());
        let local = |pairs: &'static [(&str, &str)]| {
            local_number(move |name| {
                let found = pairs.iter().find(|(other, _)| *other == name);
                found.map(|(_, value)| (*value).to_owned())
            })
        };
        assert_eq!(
            local(&[("SLURM_LOCALID", "0"), ("OMPI_COMM_WORLD_LOCAL_RANK", "1")]),
            Some(1)
        );
        assert_eq!(local(&[]), None);
    }
}
