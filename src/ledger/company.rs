//! Which values may share objects, as far as can be told without looking at them: whatever one run had in its hands
//! when it bound or changed something. What is changed in place may change all of its company.

use std::collections::{BTreeMap, BTreeSet};

use super::Version;

/// Versions by the company that they are in; one that is in none is alone.
#[derive(Clone, Debug, Default)]
pub(super) struct Company {
    groups: BTreeMap<Version, Version>,
}

impl Company {
    /// A run had these in its hands.
    pub(super) fn meet(&mut self, versions: &BTreeSet<Version>) {
        if versions.len() < 2 {
            return;
        }
        let met: BTreeSet<Version> = versions
            .iter()
            .filter_map(|version| self.groups.get(version))
            .copied()
            .collect();
        let Some(group) = met.first().or(versions.first()).copied() else {
            return;
        };
        if met.len() > 1 {
            for other in self.groups.values_mut().filter(|other| met.contains(other)) {
                *other = group;
            }
        }
        self.groups
            .extend(versions.iter().map(|version| (*version, group)));
    }

    /// All that are in the company of these, and they themselves if they are in any.
    pub(super) fn of(&self, versions: impl Iterator<Item = Version>) -> BTreeSet<Version> {
        let groups: BTreeSet<Version> = versions
            .filter_map(|version| self.groups.get(&version))
            .copied()
            .collect();
        let member =
            |(version, group): (&Version, &Version)| groups.contains(group).then_some(*version);
        self.groups.iter().filter_map(member).collect()
    }

    /// Forgets all but these.
    pub(super) fn retain(&mut self, keep: impl Fn(&Version) -> bool) {
        self.groups.retain(|version, _| keep(version));
    }
}
