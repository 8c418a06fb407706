//! Which version of each name is current at a point of program order, what it is, and which
//! workers hold it.
//!
//! A directory, as in a cache-coherence protocol, in two halves. [`Namespace`] says what each name
//! means; the [`Delta`]s of runs that are not committed yet lie over the committed one, so that each run is
//! planned with the names as they are at its own place in program order. The other half says which
//! version of a name each worker physically has: a copy whose version is not the wanted one is
//! stale. The ledger decides what must move; it moves nothing itself.

mod again;
mod arrived;
mod company;
mod finished;
mod held;
mod look;
mod lost;
mod namespace;
mod plan;
mod touched;
mod value;

pub use finished::{Changes, Ran};
pub use held::Held;
pub use look::Seen;
pub use lost::Lost;
pub use namespace::{Delta, Namespace, Version};
pub use plan::{Needed, Plan, Put, Step};
pub use value::{Defined, Description, Kind};

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use cellferry_wire::protocol::WorkerId;

use self::company::Company;
use self::touched::Kin;

/// How many more versions than current ones are remembered before old ones are forgotten.
const FORGET: usize = 1000;

/// The directory of one session.
#[derive(Clone, Debug, Default)]
pub struct Ledger {
    committed: Arc<Namespace>,
    held: BTreeMap<WorkerId, Held>,
    /// Groups that a version is in. There may be several: a run that is ahead has other versions of the same objects than
    /// those before it.
    kin: BTreeMap<Version, Vec<Kin>>,
    company: Company,
    /// Versions of which it is known what they share objects with.
    followed: BTreeSet<Version>,
    /// Versions whose only holder is gone, what messages call it, and how it ended.
    lost: BTreeMap<Version, (String, String)>,
    /// Versions handed out when old ones were forgotten last.
    forgotten: u64,
    /// Versions handed out so far.
    versions: u64,
}

impl Ledger {
    /// The names after all committed runs.
    pub fn committed(&self) -> &Namespace {
        &self.committed
    }

    /// The names after all committed runs and these further ones, in program order.
    pub fn after<'a>(&self, deltas: impl IntoIterator<Item = &'a Delta>) -> Arc<Namespace> {
        let mut after = self.committed.clone();
        for delta in deltas {
            Arc::make_mut(&mut after).apply(delta);
        }
        after
    }

    /// Commits a run, the next one in program order.
    pub fn commit(&mut self, worker: WorkerId, delta: &Delta) {
        let before = self.committed.settings.len();
        Arc::make_mut(&mut self.committed).apply(delta);
        self.held
            .entry(worker)
            .or_default()
            .settings
            .extend(before..self.committed.settings.len());
        let old = self.versions - self.forgotten;
        if old as usize > self.committed.entries.len() + FORGET {
            self.forget_old();
        }
    }

    /// Forgets what is known of versions that nobody holds and that are not current.
    fn forget_old(&mut self) {
        self.forgotten = self.versions;
        let current = self.committed.entries.values().map(|entry| entry.version);
        let held = self.held.values().flat_map(|held| held.names.values());
        let known: BTreeSet<Version> = current.chain(held.copied()).collect();
        self.kin.retain(|version, groups| {
            groups.retain(|group| group.values().filter(|other| known.contains(other)).count() > 1);
            known.contains(version) && !groups.is_empty()
        });
        self.followed.retain(|version| known.contains(version));
        self.company.retain(|version| known.contains(version));
        self.lost.retain(|version, _| known.contains(version));
    }
}

#[cfg(test)]
mod tests;
