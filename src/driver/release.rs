//! `%cellferry release`: workers that the user gives back, and what is told of it under the cell.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use cellferry_kernel::Author;
use cellferry_wire::protocol::WorkerId;
use serde_json::json;

use crate::name::Name;
use crate::session::{
    Asked, Left, Outcome, Request, Retired, TargetName, amount, is_shown_to_users,
};

/// What cells ask to give back, until they are answered.
#[derive(Debug, Default)]
pub struct Releases {
    waiting: Vec<Waiting>,
    begun: Vec<Begun>,
}

/// A cell that waits for others before it.
#[derive(Debug)]
struct Waiting {
    asked: Arc<Asked>,
    targets: BTreeSet<TargetName>,
    /// Cells that were asked for before, for these targets: the `msg_id` of each.
    after: BTreeSet<String>,
}

/// A cell whose workers are being given back.
#[derive(Debug)]
struct Begun {
    asked: Arc<Asked>,
    workers: BTreeMap<WorkerId, TargetName>,
    targets: BTreeMap<TargetName, Told>,
}

/// What became of the workers of one target.
#[derive(Debug, Default)]
struct Told {
    ended: usize,
    died: usize,
    kept: usize,
    brought: BTreeMap<Name, u64>,
    /// What could not be brought home, with what that means.
    left: BTreeMap<Name, (Left, &'static str)>,
}

/// What a cell is told in the end.
#[derive(Debug)]
pub struct Answered {
    /// Which.
    pub asked: Arc<Asked>,
    /// Whose workers were to be given back.
    pub targets: Vec<TargetName>,
    /// What it shows.
    pub text: String,
}

impl Releases {
    /// A cell asks for the workers of these targets to be given back, after the cells `after`.
    pub fn add(
        &mut self,
        asked: Arc<Asked>,
        targets: BTreeSet<TargetName>,
        after: BTreeSet<String>,
    ) {
        self.waiting.push(Waiting {
            asked,
            targets,
            after,
        });
    }

    /// Whether any cell waits for others before it.
    pub fn any_waits(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// The next cell that need not wait any more, since of those before it none is `open`, and its targets.
    pub fn next(&mut self, open: &BTreeSet<&str>) -> Option<(Arc<Asked>, BTreeSet<TargetName>)> {
        let is_free = |waiting: &Waiting| {
            let mut after = waiting.after.iter();
            !after.any(|msg_id| open.contains(msg_id.as_str()))
        };
        let place = self.waiting.iter().position(is_free)?;
        let waiting = self.waiting.remove(place);
        Some((waiting.asked, waiting.targets))
    }

    /// These workers are being given back for a cell.
    pub fn begin(&mut self, asked: Arc<Asked>, workers: BTreeMap<WorkerId, TargetName>) {
        let targets = workers
            .values()
            .map(|target| (target.clone(), Told::default()));
        self.begun.push(Begun {
            asked,
            targets: targets.collect(),
            workers,
        });
    }

    /// A worker was given back, or stays; the cells that need not wait for more.
    pub fn retired(&mut self, retired: &Retired) -> Vec<Answered> {
        self.over(retired.worker, |told| {
            let mut left = |values: &BTreeMap<Name, Left>, means| {
                let values = values.iter().filter(|(name, _)| is_shown_to_users(name));
                let values = values.map(|(name, left)| (name.clone(), (left.clone(), means)));
                told.left.extend(values);
            };
            match &retired.outcome {
                Outcome::Ended { again, lost } => {
                    left(again, ", and is made again when a cell needs it");
                    left(lost, ", and is lost");
                    told.ended += 1;
                }
                Outcome::Kept { values, .. } => {
                    left(values, ", and its worker stays");
                    told.kept += 1;
                }
            }
            let brought = retired.brought.iter();
            let brought = brought.filter(|(name, _)| is_shown_to_users(name));
            let brought = brought.map(|(name, size)| (name.clone(), *size));
            told.brought.extend(brought);
        })
    }

    /// A worker died; the cells that need not wait for more.
    pub fn died(&mut self, worker: WorkerId) -> Vec<Answered> {
        self.over(worker, |told| told.died += 1)
    }

    fn over(&mut self, worker: WorkerId, note: impl Fn(&mut Told)) -> Vec<Answered> {
        for begun in &mut self.begun {
            if let Some(target) = begun.workers.remove(&worker) {
                note(begun.targets.entry(target).or_default());
            }
        }
        let done = self.begun.extract_if(.., |begun| begun.workers.is_empty());
        let answered = done.map(|begun| {
            let lines = begun.targets.iter();
            let lines: Vec<String> = lines.map(|(target, told)| told.text(target)).collect();
            Answered {
                asked: begun.asked,
                text: lines.join("\n"),
                targets: begun.targets.into_keys().collect(),
            }
        });
        answered.collect()
    }
}

impl Told {
    fn text(&self, target: &str) -> String {
        let workers = |count: usize| match count {
            0 => "no worker".to_owned(),
            1 => "1 worker".to_owned(),
            count => format!("{count} workers"),
        };
        let mut parts = vec![workers(self.ended)];
        if self.died > 0 {
            parts.push(format!("{} died meanwhile", workers(self.died)));
        }
        if self.kept > 0 {
            let stays = if self.kept == 1 { "stays" } else { "stay" };
            parts.push(format!("{} {stays}", workers(self.kept)));
        }
        let size = amount(self.brought.values().sum());
        match self.brought.len() {
            0 => {}
            1 => parts.push(format!("1 value ({size}) was brought home")),
            count => parts.push(format!("{count} values ({size}) were brought home")),
        }
        let mut text = format!("released {target}: {}", parts.join("; "));
        for (name, (left, means)) in &self.left {
            let name = name.as_str().trim_end_matches('.');
            let Left { type_name, reason } = left;
            text += &format!("\n`{name}` ({type_name}) could not be brought home{means}: {reason}");
        }
        text
    }
}

/// The request by which the home worker is given what is brought there. It is not of the kernel's session: what a
/// worker answers to that concerns no run.
pub fn request() -> Option<Request> {
    let content = json!({
        "code": "", "silent": true, "store_history": false, "allow_stdin": false, "stop_on_error": false,
        "user_expressions": {},
    });
    let message = Author::new().message("execute_request", None, &content);
    Some(Request {
        message: Arc::new(Asked {
            channel: cellferry_wire::protocol::Channel::Shell,
            header: message.parse_header().ok()?,
            message,
        }),
        silent: true,
        store_history: false,
        stop_on_error: false,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked() -> Arc<Asked> {
        request().unwrap().message
    }

    fn retired(worker: u32, outcome: Outcome) -> Retired {
        let brought = [("a", 5_000_000), ("b.", 7), ("_3", 9), ("~random", 2500)];
        Retired {
            worker: WorkerId(worker),
            target: "lab".into(),
            brought: brought.map(|(name, size)| (Name::from(name), size)).into(),
            outcome,
        }
    }

    #[test]
    fn a_cell_is_answered_once_all_its_workers_are_heard_of() {
        let mut releases = Releases::default();
        let workers = [1, 2, 3].map(|id| (WorkerId(id), TargetName::from("lab")));
        releases.begin(asked(), workers.into());
        let left = Left {
            type_name: "list".to_owned(),
            reason: "no space left on device".to_owned(),
        };
        let ended = Outcome::Ended {
            again: BTreeMap::new(),
            lost: BTreeMap::new(),
        };
        let kept = Outcome::Kept {
            values: [(Name::from("c"), left)].into(),
            is_new: true,
        };
        assert!(releases.retired(&retired(1, ended)).is_empty());
        assert!(releases.retired(&retired(2, kept)).is_empty());
        let answered = releases.died(WorkerId(3));
        assert_eq!(
            answered[0].text,
            "released lab: 1 worker; 1 worker died meanwhile; 1 worker stays; 2 values (5 MB) were brought home\n\
             `c` (list) could not be brought home, and its worker stays: no space left on device"
        );
        assert_eq!(answered.len(), 1);
        assert!(releases.died(WorkerId(3)).is_empty());
    }

    #[test]
    fn it_waits_for_the_cells_before_it() {
        let mut releases = Releases::default();
        let targets = BTreeSet::from([TargetName::from("lab")]);
        let after = BTreeSet::from(["one".to_owned(), "two".to_owned()]);
        releases.add(asked(), targets, after);
        assert!(releases.next(&BTreeSet::from(["two", "three"])).is_none());
        assert!(releases.next(&BTreeSet::from(["three"])).is_some());
        assert!(!releases.any_waits());
    }
}
