//! The physical half: which version of a name each worker has, whatever it means by now.

use std::collections::{BTreeMap, BTreeSet};

use cellferry_wire::protocol::WorkerId;

use super::{Ledger, Namespace, Version};
use crate::name::Name;

/// What stands for a copy that is of no version: nobody may read it.
pub(super) const SPOILT: Version = Version(0);

/// What one worker physically has.
#[derive(Clone, Debug, Default)]
pub struct Held {
    pub(super) names: BTreeMap<Name, Version>,
    /// The configuration magics that it has replayed or run, by their place among all.
    pub(super) settings: BTreeSet<usize>,
    /// The last results as its display hook has them, latest first.
    pub(super) shown: Vec<u32>,
}

impl Held {
    /// Whether the name is here as it is in `view`.
    pub fn has(&self, view: &Namespace, name: &Name) -> bool {
        let version = view.version(name);
        version.is_some() && self.names.get(name) == version.as_ref()
    }
}

impl Ledger {
    /// What a worker has now, to be given to [`Ledger::undo`].
    pub fn held(&self, worker: WorkerId) -> Held {
        self.held.get(&worker).cloned().unwrap_or_default()
    }

    /// The worker went back to what it had before a run, except that `spoilt` names may have changed.
    pub fn undo(&mut self, worker: WorkerId, before: Held, spoilt: &BTreeSet<Name>) {
        self.held.insert(worker, before);
        self.spoil(worker, spoilt);
    }

    /// Copies of these names on the worker are of no use to anybody.
    pub fn spoil(&mut self, worker: WorkerId, names: &BTreeSet<Name>) {
        let held = self.held.entry(worker).or_default();
        held.names
            .extend(names.iter().map(|name| (name.clone(), SPOILT)));
    }

    /// Names that the worker has in another version than the wanted one.
    pub fn stale(&self, view: &Namespace, worker: WorkerId) -> BTreeSet<Name> {
        let stale =
            |(name, version): &(&Name, &Version)| view.version(name).as_ref() != Some(*version);
        let held = self
            .held
            .get(&worker)
            .into_iter()
            .flat_map(|held| &held.names);
        held.filter(stale).map(|(name, _)| name.clone()).collect()
    }

    /// The worker drops these names now.
    pub fn dropped(&mut self, worker: WorkerId, names: &BTreeSet<Name>) {
        if let Some(held) = self.held.get_mut(&worker) {
            held.names.retain(|name, _| !names.contains(name));
        }
    }

    /// Which versions of these names the worker has.
    pub fn versions(&self, worker: WorkerId) -> BTreeMap<Name, Version> {
        self.held
            .get(&worker)
            .map(|held| held.names.clone())
            .unwrap_or_default()
    }

    /// The workers that hold the version of `name` that is current in `view`; none if it is unknown or lost.
    pub fn holders<'a>(
        &'a self,
        view: &'a Namespace,
        name: &'a str,
    ) -> impl Iterator<Item = WorkerId> + 'a {
        let version = view.get(name).map(|entry| entry.version);
        let has = move |held: &Held| version.is_some() && held.names.get(name) == version.as_ref();
        self.held
            .iter()
            .filter(move |(_, held)| has(held))
            .map(|(worker, _)| *worker)
    }

    pub(super) fn holds(&self, worker: WorkerId, name: &Name, version: Version) -> bool {
        self.held
            .get(&worker)
            .is_some_and(|held| held.names.get(name) == Some(&version))
    }
}
