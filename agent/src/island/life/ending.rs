//! Why an island ends, and what the kernel is told of that: of several ranks that died, the one that explains most.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use cellferry_wire::protocol::{Exit, FromAgent, ToAgent};
use nix::sys::signal::Signal;

use super::Island;
use crate::island::lines::without_boilerplate;
use crate::island::meeting::end;
use crate::island::round::GRACE;

/// How a rank ended; unknown if its connection broke before it could be told.
pub(super) struct Death {
    pub(super) rank: usize,
    pub(super) exit: Option<Exit>,
    pub(super) last_words: String,
}

/// Why an island ends.
pub(super) enum Ending {
    /// It was asked to.
    Asked,
    /// A rank has died, or several have.
    Deaths,
    /// Ranks that would not end after another had failed, or after the user had interrupted them.
    GivenUp(BTreeSet<usize>),
    /// What had started the ranks ended.
    Launcher(Exit),
}

impl Island {
    /// Ends what is left of it; the last that the kernel hears.
    pub(super) async fn end(mut self, ending: Ending, folder: &Path) -> FromAgent {
        let shown = self.lines.flush();
        self.print(shown);
        self.stop(Duration::ZERO);
        for rank in &self.ranks {
            rank.sender.queue(ToAgent::Shutdown);
        }
        let gone = async {
            let mut left: BTreeSet<usize> = (0..self.ranks.len()).collect();
            while let Some((rank, said)) = self.inbox.recv().await {
                if said.is_none() {
                    left.remove(&rank);
                }
                if left.is_empty() {
                    return;
                }
            }
        };
        let _ = tokio::time::timeout(GRACE, gone).await;
        // Without their connections the ranks end at once.
        self.ranks.clear();
        // Once it is told to end, `mpirun` complains of that.
        let words = self.launcher.words();
        end(&mut self.launcher).await;
        // On a shared file system it may take a while.
        let _ = std::fs::remove_dir_all(folder);
        let worst = |deaths: &[Death]| -> Option<(usize, Option<Exit>, String)> {
            let chosen = deaths.iter().min_by_key(|death| severity(death.exit))?;
            Some((chosen.rank, chosen.exit, chosen.last_words.clone()))
        };
        let unknown = Exit {
            code: None,
            signal: None,
            out_of_memory: None,
        };
        let asked = matches!(ending, Ending::Asked);
        let given_up = matches!(ending, Ending::GivenUp(_));
        let (rank, exit, stderr_tail) = match ending {
            Ending::Asked => match self.deaths.iter().find(|death| death.rank == 0) {
                Some(death) => (
                    None,
                    death.exit.unwrap_or(unknown),
                    death.last_words.clone(),
                ),
                None => (None, unknown, String::new()),
            },
            Ending::Deaths => match worst(&self.deaths) {
                Some((rank, exit, last_words)) => {
                    let last_words = match last_words.trim() {
                        "" if exit.is_some() => without_boilerplate(&words),
                        "" => self.launcher.last_words().await,
                        _ => last_words,
                    };
                    (Some(rank), exit.unwrap_or(unknown), last_words)
                }
                None => (None, unknown, self.launcher.last_words().await),
            },
            Ending::GivenUp(ranks) => {
                let exit = Exit {
                    signal: Some(Signal::SIGKILL as i32),
                    out_of_memory: Some(false),
                    ..unknown
                };
                (ranks.first().copied(), exit, String::new())
            }
            Ending::Launcher(exit) => (None, exit, self.launcher.last_words().await),
        };
        // Ranks that had nothing to do with it are told as well as if they had ended. That comes last: the kernel would give
        // the next cell to ranks that are about to end.
        for round in std::mem::take(&mut self.rounds) {
            if round.has_failed() && !asked {
                for (channel, message) in round.outcome() {
                    self.say(channel, message);
                }
            }
        }
        FromAgent::WorkerDown {
            worker: self.worker,
            exit,
            stderr_tail,
            rank: rank.and_then(|rank| u32::try_from(rank).ok()),
            given_up,
        }
    }
}

/// How much an end tells of what went wrong: less is more. Ranks that lose one of theirs end, too, in ways of their own.
fn severity(exit: Option<Exit>) -> u8 {
    /// SIGKILL and SIGTERM: from outside.
    const FROM_OUTSIDE: [i32; 2] = [9, 15];
    match exit {
        Some(Exit {
            signal: Some(signal),
            ..
        }) if !FROM_OUTSIDE.contains(&signal) => 0,
        Some(Exit {
            signal: Some(9), ..
        }) => 1,
        Some(Exit {
            code: Some(code), ..
        }) if code != 0 => 2,
        Some(Exit {
            signal: Some(_), ..
        }) => 3,
        Some(_) => 4,
        None => 5,
    }
}
