//! Which names are bound on every path to a place.
//!
//! Paths split and meet often, and a long cell binds many names: so a split notes only what changes
//! after it, instead of copying the set.

use std::collections::{BTreeMap, BTreeSet};

use crate::name::Name;

/// Names that are bound on every path to here.
#[derive(Debug, Default)]
pub struct Sure {
    /// Each with whether it was bound outside of all splits, so that only `del` can take it away.
    names: BTreeMap<Name, bool>,
    /// Since the outermost open split: what was bound (true) and unbound (false).
    trail: Vec<(Name, bool)>,
    open: usize,
    losses: u64,
}

/// A place where paths split.
pub struct Split(usize);

impl Sure {
    pub fn contains(&self, name: &Name) -> bool {
        self.names.contains_key(name)
    }

    /// Whether no meeting of paths can make it unsure again.
    pub fn is_lasting(&self, name: &Name) -> bool {
        self.names.get(name).is_some_and(|lasting| *lasting)
    }

    /// How often something became unsure.
    pub fn losses(&self) -> u64 {
        self.losses
    }

    pub fn bind(&mut self, name: Name) {
        if self.open == 0 {
            self.names.insert(name, true);
        } else if !self.names.contains_key(&name) {
            self.trail.push((name.clone(), true));
            self.names.insert(name, false);
        }
    }

    pub fn unbind(&mut self, name: &Name) {
        if self.names.remove(name).is_some() {
            self.losses += 1;
            if self.open > 0 {
                self.trail.push((name.clone(), false));
            }
        }
    }

    pub fn split(&mut self) -> Split {
        self.open += 1;
        Split(self.trail.len())
    }

    /// Goes back to before the split, but for what was unbound since. Returns what had become sure.
    pub fn meet(&mut self, split: Split) -> BTreeSet<Name> {
        let mut before = BTreeMap::new();
        for (name, bound) in self.trail.split_off(split.0) {
            before.entry(name).or_insert(!bound);
        }
        self.open -= 1;
        let mut gained = BTreeSet::new();
        for (name, was_sure) in before {
            match (was_sure, self.names.contains_key(&name)) {
                (false, true) => {
                    self.names.remove(&name);
                    self.losses += 1;
                    gained.insert(name);
                }
                (true, false) if self.open > 0 => self.trail.push((name, false)),
                _ => {}
            }
        }
        gained
    }
}
