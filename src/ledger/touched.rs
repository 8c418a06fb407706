//! What a run may have changed in place, and all that may share objects with that: it gets a new version.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use cellferry_wire::protocol::WorkerId;

use super::namespace::Entry;
use super::{Changes, Delta, Held, Ledger, Namespace, Plan, Version};
use crate::name::Name;

/// Names and versions that share objects, wherever they are.
pub(super) type Kin = Arc<BTreeMap<Name, Version>>;

impl Ledger {
    /// Values that the run may have changed in place get a new version, unless they were compared and are the same:
    /// so a version has one content, which one run made.
    pub(super) fn touched(
        &mut self,
        view: &Namespace,
        worker: WorkerId,
        plan: &Plan,
        changes: &Changes<'_>,
        delta: &mut Delta,
    ) {
        let mut renewed: BTreeMap<Version, (Name, Version)> = BTreeMap::new();
        for name in plan.touched.union(&changes.compared) {
            let known = match delta.entries.get(name) {
                Some(entry) => entry.as_ref(),
                None => view.get(name.as_str()),
            };
            let Some(entry) = known.filter(|entry| entry.can_change()).cloned() else {
                continue;
            };
            let has = |held: &Held| held.names.get(name) == Some(&entry.version);
            if !self.held.get(&worker).is_some_and(has) {
                continue;
            }
            let same = changes.compared.contains(name) && !changes.changed.contains(name);
            if same {
                continue;
            }
            let entry = self.renew(worker, name, &entry, &mut renewed);
            delta.set(name, entry);
        }
        for (name, entry) in self.may_share(view, worker, plan, changes, &renewed, delta) {
            let before = entry.version;
            let entry = self.renew(worker, &name, &entry, &mut renewed);
            delta.share(&name, before, entry);
        }
        // What shared objects before may still share them.
        let groups: Vec<Kin> = renewed
            .keys()
            .flat_map(|version| self.kin.get(version).into_iter().flatten().cloned())
            .collect();
        for group in groups {
            let now = |(name, version): (&Name, &Version)| match renewed.get(version) {
                Some((_, version)) => (name.clone(), *version),
                None => (name.clone(), *version),
            };
            self.related(group.iter().map(now).collect());
        }
    }

    fn renew(
        &mut self,
        worker: WorkerId,
        name: &Name,
        entry: &Entry,
        renewed: &mut BTreeMap<Version, (Name, Version)>,
    ) -> Entry {
        self.versions += 1;
        let version = Version(self.versions);
        renewed.insert(entry.version, (name.clone(), version));
        if let Some(held) = self.held.get_mut(&worker) {
            held.names.insert(name.clone(), version);
        }
        Entry {
            version,
            ..entry.clone()
        }
    }

    /// What the run did not use but may share objects with what it changed. Of values that have been carried it is
    /// known what they share, since that is carried with them; and of those that could be restored.
    fn may_share(
        &self,
        view: &Namespace,
        worker: WorkerId,
        plan: &Plan,
        changes: &Changes<'_>,
        renewed: &BTreeMap<Version, (Name, Version)>,
        delta: &Delta,
    ) -> Vec<(Name, Arc<Entry>)> {
        let company = self.company.of(renewed.keys().copied());
        let Some(held) = self.held.get(&worker).filter(|_| !changes.restorable) else {
            return Vec::new();
        };
        let unused = held.names.iter().filter(|(name, version)| {
            !plan.touched.contains(*name)
                && !changes.bound.contains_key(*name)
                && !delta.entries.contains_key(*name)
                && company.contains(version)
                && !self.followed.contains(version)
        });
        unused
            .filter_map(|(name, version)| {
                let entry = view.get(name.as_str())?;
                (entry.version == *version && entry.can_change())
                    .then(|| (name.clone(), entry.clone()))
            })
            .collect()
    }

    /// What the run has bound or changed may share objects with all that it had in its hands.
    pub(super) fn met(&mut self, view: &Namespace, plan: &Plan, delta: &Delta) {
        let mut together: BTreeSet<Version> = delta.changeable().collect();
        if together.is_empty() {
            return;
        }
        let used = plan
            .touched
            .iter()
            .filter_map(|name| view.get(name.as_str()));
        let changeable = |entry: &Arc<Entry>| entry.can_change().then_some(entry.version);
        together.extend(used.filter_map(changeable));
        self.company.meet(&together);
    }

    /// Whatever shares objects with these versions has been carried with them: it is [`Ledger::related`] to them.
    pub fn followed(&mut self, versions: impl Iterator<Item = Version>) {
        self.followed.extend(versions);
    }

    /// Notes that these names, in these versions, share objects.
    pub fn related(&mut self, group: BTreeMap<Name, Version>) {
        if group.len() > 1 {
            let group = Arc::new(group);
            let within = |one: &Kin, other: &Kin| {
                one.iter()
                    .all(|(name, version)| other.get(name) == Some(version))
            };
            for version in group.values() {
                let groups = self.kin.entry(*version).or_default();
                if !groups.iter().any(|known| within(&group, known)) {
                    groups.retain(|known| !within(known, &group));
                    groups.push(group.clone());
                }
            }
        }
    }
}
