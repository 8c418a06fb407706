//! What went with a worker that only it had, and what must be asked of a worker at all.

use std::collections::BTreeSet;

use cellferry_wire::protocol::WorkerId;

use super::held::SPOILT;
use super::namespace::{Content, Entry};
use super::{Held, Ledger, Namespace, Version};
use crate::name::Name;

/// A value that nobody holds any more, for messages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lost {
    /// Its Python type.
    pub type_name: String,
    /// The execution count of the run that bound it.
    pub made_by: u32,
    /// The worker that held it, as messages name it.
    pub held_by: String,
    /// What became of that worker: `died`, or how else it ended.
    pub end: String,
}

impl Ledger {
    /// A worker is gone: what only it held is lost. `end` says of a version what became of the worker.
    pub fn worker_lost(
        &mut self,
        worker: WorkerId,
        held_by: &str,
        end: impl Fn(Version) -> String,
    ) {
        let Some(gone) = self.held.remove(&worker) else {
            return;
        };
        for (name, version) in gone.names {
            let has = |held: &Held| held.names.get(&name) == Some(&version);
            if version != SPOILT && !self.held.values().any(has) {
                self.lost
                    .insert(version, (held_by.to_owned(), end(version)));
            }
        }
    }

    /// What to say of a name whose value nobody holds any more; `None` if it is not because a worker is gone.
    pub fn lost(&self, view: &Namespace, name: &Name) -> Option<Lost> {
        let entry = view.get(name.as_str())?;
        let (held_by, end) = self.lost.get(&entry.version)?;
        self.holders(view, name.as_str())
            .next()
            .is_none()
            .then(|| Lost {
                type_name: entry.description().type_name.clone(),
                made_by: entry.made_by,
                held_by: held_by.clone(),
                end: end.clone(),
            })
    }

    /// The names of `view` that can neither be had from anybody nor replayed from source.
    pub fn missing<'a>(&'a self, view: &'a Namespace) -> impl Iterator<Item = &'a Name> {
        let has_holder = |name: &Name| self.holders(view, name.as_str()).next().is_some();
        self.carried(view).filter(move |name| !has_holder(name))
    }

    /// The names of `view` that cannot be replayed from source.
    pub fn carried<'a>(&'a self, view: &'a Namespace) -> impl Iterator<Item = &'a Name> {
        let replayable = |entry: &Entry| match &entry.content {
            Content::Definition(chain, _) => view.replayable(chain, &BTreeSet::new()),
            Content::Value(_) => false,
        };
        view.entries
            .iter()
            .filter(move |(_, entry)| !replayable(entry))
            .map(|(name, _)| name)
    }
}
