//! Which run made each version, and what it takes to run it again: no value is kept, only what the run saw and made.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::run::{Cell, GENERATORS, Request};
use crate::ledger::{Ledger, Namespace, Version};
use crate::name::Name;

/// A place of program order, which names a run that is committed.
pub(super) type Seq = u64;

/// No more runs than these are made again for one cell.
const MOST: usize = 256;
/// Runs are looked through for those that nobody can need any more when there are so many more than last time.
const MORE: usize = 100;

/// A run that is committed, as far as it is needed to make again what it made.
#[derive(Clone, Debug)]
pub(super) struct Past {
    pub(super) number: u32,
    /// What it made.
    pub(super) made: BTreeMap<Name, Version>,
    pub(super) repeat: Result<Arc<Repeat>, Unrepeatable>,
}

/// What it takes to run a cell again.
#[derive(Debug)]
pub(super) struct Repeat {
    pub(super) request: Request,
    pub(super) cell: Arc<Cell>,
    /// What it used, as it was.
    pub(super) view: Arc<Namespace>,
}

/// Why a run is not made again unasked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unrepeatable {
    /// It may have done more than one can see: it is not a step.
    Plain,
    /// What it would have to see is everything.
    Everything,
    /// It ended with an error, or was interrupted: how far it had come is not known.
    Failed,
    /// It asked its user.
    Asked,
}

/// Why a version cannot be made again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Gone {
    /// This run is not made again.
    Unrepeatable(u32, Unrepeatable),
    /// It has been tried for the same cell: the run, and what happened.
    Tried(u32, String),
    /// Too many runs would be needed.
    TooMany,
    /// Nothing is known of it.
    Unknown,
}

impl Gone {
    /// As the end of a sentence that begins with the name.
    pub(super) fn why(&self) -> String {
        match self {
            Self::Unrepeatable(number, why) => match why {
                Unrepeatable::Plain => {
                    format!("cell [{number}] is no step, and is run again only by you")
                }
                Unrepeatable::Everything => {
                    format!("cell [{number}] may use any name, and is run again only by you")
                }
                Unrepeatable::Failed => format!("cell [{number}] failed when it ran"),
                Unrepeatable::Asked => format!("cell [{number}] asked for input when it ran"),
            },
            Self::Tried(number, what) => {
                format!("cell [{number}] was run again to make it: {what}")
            }
            Self::TooMany => format!("more than {MOST} cells would have to run again"),
            Self::Unknown => "how it was made is not known any more".to_owned(),
        }
    }
}

/// The runs by their place, and which made each version.
#[derive(Debug, Default)]
pub(super) struct Lineage {
    runs: BTreeMap<Seq, Past>,
    makers: BTreeMap<Version, Seq>,
    /// How many runs there were when they were looked through last.
    kept: usize,
}

impl Lineage {
    pub(super) fn get(&self, seq: Seq) -> Option<&Past> {
        self.runs.get(&seq)
    }

    pub(super) fn add(&mut self, seq: Seq, past: Past) {
        self.makers
            .extend(past.made.values().map(|version| (*version, seq)));
        self.runs.insert(seq, past);
    }

    /// Whether it is time to look for what nobody can need any more.
    pub(super) fn is_large(&self) -> bool {
        self.runs.len() > 2 * self.kept + MORE
    }

    /// Forgets all runs but those that made the `current` versions, which somebody may need, or what these were made of.
    pub(super) fn forget(&mut self, current: impl Iterator<Item = Version>) {
        let mut needed: BTreeSet<Seq> = BTreeSet::new();
        let mut open: Vec<Version> = current.collect();
        while let Some(version) = open.pop() {
            let Some(seq) = self.makers.get(&version).copied() else {
                continue;
            };
            if needed.insert(seq)
                && let Some(Past {
                    repeat: Ok(repeat), ..
                }) = self.runs.get(&seq)
            {
                open.extend(repeat.view.versions());
            }
        }
        self.runs.retain(|seq, _| needed.contains(seq));
        self.makers.retain(|_, seq| needed.contains(seq));
        self.kept = self.runs.len();
    }

    /// The runs that make this version again, with those that make what they use and nobody has any more.
    /// `tried` has come to nothing.
    pub(super) fn makers(
        &self,
        ledger: &Ledger,
        version: Version,
        tried: &BTreeMap<Seq, String>,
    ) -> Result<BTreeSet<Seq>, Gone> {
        let mut found = BTreeSet::new();
        let mut open = vec![version];
        while let Some(version) = open.pop() {
            let seq = *self.makers.get(&version).ok_or(Gone::Unknown)?;
            let past = self.runs.get(&seq).ok_or(Gone::Unknown)?;
            if let Some(what) = tried.get(&seq) {
                return Err(Gone::Tried(past.number, what.clone()));
            }
            let repeat = match &past.repeat {
                Ok(repeat) => repeat,
                Err(why) => return Err(Gone::Unrepeatable(past.number, *why)),
            };
            if !found.insert(seq) {
                continue;
            }
            if found.len() > MOST {
                return Err(Gone::TooMany);
            }
            for name in ledger.missing(&repeat.view) {
                let Some(version) = repeat.view.version(name) else {
                    continue;
                };
                if !GENERATORS.contains(&name.as_str()) {
                    open.push(version);
                } else if let Ok(seeded) = self.makers(ledger, version, tried) {
                    found.extend(seeded);
                }
            }
        }
        Ok(found)
    }
}
