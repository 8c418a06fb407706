//! Whether the system kills processes because memory has run out: its own counters say so.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::machine::control_groups;

/// How often the counter is looked at while a worker talks.
const EVERY: Duration = Duration::from_secs(1);

/// The counter that is nearest to this process: of its control group, else of the machine.
#[derive(Debug)]
pub struct Kills {
    counter: PathBuf,
    count: Option<u64>,
    looked: Instant,
}

impl Kills {
    /// Looks for the first time.
    pub fn new() -> Self {
        let counter = control_groups()
            .iter()
            .flat_map(|group| {
                ["memory.events", "memory.oom_control"].map(|name| Path::new(group).join(name))
            })
            .find(|counter| read(counter).is_some())
            .unwrap_or_else(|| PathBuf::from("/proc/vmstat"));
        Self {
            count: read(&counter),
            counter,
            looked: Instant::now(),
        }
    }

    /// The worker is alive: what has been counted so far did not concern it.
    pub fn look(&mut self) {
        if self.looked.elapsed() >= EVERY {
            self.count = read(&self.counter);
            self.looked = Instant::now();
        }
    }

    /// Whether there was one since; `None` if the system does not say.
    pub fn since(&self) -> Option<bool> {
        Some(read(&self.counter)? > self.count?)
    }
}

fn read(counter: &Path) -> Option<u64> {
    let text = std::fs::read_to_string(counter).ok()?;
    text.lines()
        .find_map(|line| line.strip_prefix("oom_kill "))?
        .trim()
        .parse()
        .ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kills(counter: &Path) -> Kills {
        Kills {
            counter: counter.to_owned(),
            count: read(counter),
            looked: Instant::now().checked_sub(EVERY).unwrap(),
        }
    }

    #[test]
    fn a_kill_counts_only_after_the_worker_was_last_seen_alive() {
        let folder = tempfile::tempdir().unwrap();
        let events = folder.path().join("memory.events");
        std::fs::write(
            &events,
            "low 0\nhigh 0\nmax 7\noom 1\noom_kill 1\noom_group_kill 0\n",
        )
        .unwrap();
        let mut kills = kills(&events);
        assert_eq!(kills.since(), Some(false));
        std::fs::write(&events, "oom 2\noom_kill 2\n").unwrap();
        assert_eq!(kills.since(), Some(true));
        kills.look();
        assert_eq!(kills.since(), Some(false));
    }

    #[test]
    fn a_system_without_the_counter_is_not_known() {
        let folder = tempfile::tempdir().unwrap();
        let other = folder.path().join("memory.oom_control");
        std::fs::write(&other, "oom_kill_disable 0\nunder_oom 0\n").unwrap();
        assert_eq!(kills(&other).since(), None);
    }
}
