//! A run that is made again on a worker: what it must not see there, what would be lost by it, and what it has made.

use std::collections::{BTreeMap, BTreeSet};

use cellferry_wire::protocol::WorkerId;

use super::finished::is_alias_of_result;
use super::held::SPOILT;
use super::{Delta, Ledger, Namespace, Plan, Version};
use crate::name::Name;

impl Ledger {
    /// Names that the worker would lose, current versions of them, if a run were made again there that saw the names
    /// as in `view` and made the versions `made` of these; `other` names stand in its source.
    pub fn in_the_way<'a>(
        &'a self,
        worker: WorkerId,
        view: &'a Namespace,
        made: &'a BTreeMap<Name, Version>,
        other: &'a BTreeSet<Name>,
    ) -> impl Iterator<Item = &'a Name> {
        let held = self.held.get(&worker);
        let held = held.into_iter().flat_map(|held| &held.names);
        held.filter(move |(name, version)| {
            let concerned = view.get(name.as_str()).is_some()
                || made.contains_key(*name)
                || other.contains(*name);
            let stays = view.version(name) == Some(**version) && !made.contains_key(*name);
            concerned && !stays && self.committed.version(name) == Some(**version)
        })
        .map(|(name, _)| name)
    }

    /// Names that a run must not see that is made again on the worker.
    pub fn to_drop(
        &self,
        worker: WorkerId,
        view: &Namespace,
        made: &BTreeMap<Name, Version>,
        other: &BTreeSet<Name>,
    ) -> BTreeSet<Name> {
        let held = self.held.get(&worker);
        let held = held.into_iter().flat_map(|held| &held.names);
        held.filter(|(name, version)| {
            let concerned = made.contains_key(*name)
                || other.contains(*name)
                || view.get(name.as_str()).is_some();
            concerned && view.version(name) != Some(**version)
        })
        .map(|(name, _)| name.clone())
        .collect()
    }

    /// A run has been made again on the worker: what it has made there is what the run made the first time, unless
    /// somebody has that still.
    pub fn made_again(
        &mut self,
        view: &Namespace,
        worker: WorkerId,
        plan: &Plan,
        made: &BTreeMap<Name, Version>,
        report: (&BTreeSet<Name>, &[Name]),
    ) {
        let (bound, deleted) = report;
        self.arrived(view, worker, plan, &mut Delta::default());
        let before = self.versions(worker);
        for name in deleted {
            self.dropped(worker, &BTreeSet::from([name.clone()]));
        }
        let in_place = made.iter().filter(|(name, _)| {
            let had = before.get(*name);
            had.is_some() && had == view.version(name).as_ref() && !deleted.contains(name)
        });
        let in_place = in_place.map(|(name, _)| name);
        let names: BTreeSet<Name> = bound.iter().chain(in_place).cloned().collect();
        for name in names {
            if is_alias_of_result(&name) {
                continue;
            }
            let version = made.get(&name).copied();
            let elsewhere = |version: &Version| {
                let mut others = self.held.iter().filter(|(other, _)| **other != worker);
                others.any(|(_, held)| held.names.get(&name) == Some(version))
            };
            let version = version.filter(|version| !elsewhere(version));
            let held = self.held.entry(worker).or_default();
            held.names.insert(name, version.unwrap_or(SPOILT));
        }
        // What it has shown is not the notebook's last result.
        self.held.entry(worker).or_default().shown.clear();
    }
}
