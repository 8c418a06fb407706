//! What the ledger can tell of a name: to readers, and for weighing what to move.

use std::collections::BTreeSet;

use cellferry_wire::protocol::WorkerId;

use super::namespace::Content;
use super::{Ledger, Namespace, Version};
use crate::name::Name;

/// What the ledger knows of a name, for a reader.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// Its Python type.
    pub type_name: String,
    /// `made` or `defined`.
    pub how: &'static str,
    /// The execution count of the run that bound it.
    pub made_by: u32,
    /// Which version it is, counted over all names.
    pub version: Version,
    /// About how much memory it takes, in bytes.
    pub size: u64,
    /// Workers with the current version.
    pub holders: Vec<WorkerId>,
    /// Workers that have another one.
    pub stale: Vec<WorkerId>,
}

impl Ledger {
    /// What is known of a name; `None` if nobody has bound it, or it was deleted.
    pub fn look(&self, name: &Name) -> Option<Seen> {
        let entry = self.committed.get(name.as_str())?;
        let (how, type_name, size) = match &entry.content {
            Content::Value(description) => ("made", &description.type_name, description.size),
            Content::Definition(_, description) => {
                ("defined", &description.type_name, description.size)
            }
        };
        let (mut holders, mut stale) = (Vec::new(), Vec::new());
        for (worker, held) in &self.held {
            match held.names.get(name) {
                Some(version) if *version == entry.version => holders.push(*worker),
                Some(_) => stale.push(*worker),
                None => {}
            }
        }
        Some(Seen {
            type_name: type_name.clone(),
            how,
            made_by: entry.made_by,
            version: entry.version,
            size,
            holders,
            stale,
        })
    }

    /// About how many bytes of `names` the worker holds as current values, at least one each.
    pub fn weight(&self, view: &Namespace, worker: WorkerId, names: &BTreeSet<Name>) -> u64 {
        names
            .iter()
            .filter_map(|name| Some((name, view.get(name.as_str())?)))
            .filter(|(name, entry)| self.holds(worker, name, entry.version))
            .map(|(_, entry)| match &entry.content {
                Content::Value(description) => description.size.max(1),
                _ => 0,
            })
            .sum()
    }

    /// How large the value of a name is, in bytes, as far as its worker could tell.
    pub fn size(&self, view: &Namespace, name: &Name) -> u64 {
        view.get(name.as_str())
            .map_or(0, |entry| entry.description().size)
    }
}
