//! The notebook's names at one point of program order: which version each has, whoever holds it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::{Defined, Description, Kind};
use crate::analysis::DefinitionKind;
use crate::name::Name;

/// One binding of a name, or one state of a value that has been changed in place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Version(pub u64);

/// What a version of a name is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Content {
    Value(Description),
    /// Replayed as source, in order: several only for imports of one package's submodules.
    Definition(Vec<Arc<Defined>>, Description),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) content: Content,
    /// The execution count of the run that bound it.
    pub(super) made_by: u32,
    pub(super) version: Version,
}

impl Entry {
    pub(super) fn description(&self) -> &Description {
        match &self.content {
            Content::Value(description) | Content::Definition(_, description) => description,
        }
    }

    /// Whether it is a class or function, whose state is carried under a name of its own.
    pub(super) fn is_callable(&self) -> bool {
        matches!(self.description().kind, Kind::Class | Kind::Function)
            || matches!(self.content, Content::Definition(..))
    }

    /// Whether it can change in place.
    pub(super) fn can_change(&self) -> bool {
        matches!(&self.content, Content::Value(description) if description.kind == Kind::Value)
    }
}

/// `_`, `__` and `___`.
const UNDERSCORES: usize = 3;

/// All names and their versions.
#[derive(Clone, Debug, Default)]
pub struct Namespace {
    pub(super) entries: BTreeMap<Name, Arc<Entry>>,
    /// Configuration magics, in order.
    pub(super) settings: Vec<Arc<Defined>>,
    /// Execution counts of the cells that had a result, in order: what `_`, `__` and `___` mean.
    pub(super) results: Vec<u32>,
}

/// What one run changed.
#[derive(Clone, Debug, Default)]
pub struct Delta {
    /// Names with a new entry; `None` for those deleted.
    pub(super) entries: BTreeMap<Name, Option<Arc<Entry>>>,
    /// Names that it did not use and may have changed all the same: only if they are still what they were.
    shared: BTreeMap<Name, (Version, Arc<Entry>)>,
    pub(super) settings: Vec<Arc<Defined>>,
    pub(super) results: Vec<u32>,
    /// Names that mean something else than before: bound, deleted or perhaps changed in place.
    written: BTreeSet<Name>,
}

impl Delta {
    /// Names that mean something else than before: bound, deleted or perhaps changed in place.
    pub fn written(&self) -> &BTreeSet<Name> {
        &self.written
    }

    /// The versions that the run made.
    pub fn made(&self) -> BTreeMap<Name, Version> {
        let version = |name: &Name| {
            let entry = match self.shared.get(name) {
                Some((_, entry)) => entry,
                None => self.entries.get(name)?.as_ref()?,
            };
            Some((name.clone(), entry.version))
        };
        self.written.iter().filter_map(version).collect()
    }

    /// Versions of values that can change in place, as the run has made them.
    pub(super) fn changeable(&self) -> impl Iterator<Item = Version> + '_ {
        let shared = self.shared.values().map(|(_, entry)| entry);
        let entries = self.entries.values().flatten().chain(shared);
        entries.filter_map(|entry| entry.can_change().then_some(entry.version))
    }

    pub(super) fn share(&mut self, name: &Name, before: Version, entry: Entry) {
        self.written.insert(name.clone());
        self.shared.insert(name.clone(), (before, Arc::new(entry)));
    }

    pub(super) fn set(&mut self, name: &Name, entry: Entry) {
        self.written.insert(name.clone());
        self.entries.insert(name.clone(), Some(Arc::new(entry)));
    }

    pub(super) fn delete(&mut self, name: &Name) {
        self.written.insert(name.clone());
        self.entries.insert(name.clone(), None);
    }

    /// The same version, better described.
    pub(super) fn describe(&mut self, name: &Name, entry: Entry) {
        self.entries.insert(name.clone(), Some(Arc::new(entry)));
    }
}

impl Namespace {
    pub(super) fn get(&self, name: &str) -> Option<&Arc<Entry>> {
        self.entries.get(name)
    }

    pub(crate) fn apply(&mut self, delta: &Delta) {
        for (name, entry) in &delta.entries {
            match entry {
                Some(entry) => self.entries.insert(name.clone(), entry.clone()),
                None => self.entries.remove(name),
            };
        }
        for (name, (before, entry)) in &delta.shared {
            if self.version(name) == Some(*before) {
                self.entries.insert(name.clone(), entry.clone());
            }
        }
        self.settings.extend(delta.settings.iter().cloned());
        self.results.extend(&delta.results);
    }

    /// Only these names, with what else a run there could see.
    pub fn part<'a>(&self, names: impl IntoIterator<Item = &'a Name>) -> Self {
        let entry = |name: &Name| Some((name.clone(), self.get(name.as_str())?.clone()));
        let last = self.results.len().saturating_sub(UNDERSCORES);
        Self {
            entries: names.into_iter().filter_map(entry).collect(),
            settings: self.settings.clone(),
            results: self.results[last..].to_vec(),
        }
    }

    /// All names.
    pub fn names(&self) -> impl Iterator<Item = &Name> {
        self.entries.keys()
    }

    /// All versions.
    pub fn versions(&self) -> impl Iterator<Item = Version> + '_ {
        self.entries.values().map(|entry| entry.version)
    }

    /// The names of values among `names` that can change in place.
    pub fn changeable(&self, names: &BTreeSet<Name>) -> BTreeSet<Name> {
        let changeable = |name: &&Name| {
            self.get(name.as_str())
                .is_some_and(|entry| entry.can_change())
        };
        names.iter().filter(changeable).cloned().collect()
    }

    /// The version of a name, if it is bound.
    pub fn version(&self, name: &Name) -> Option<Version> {
        Some(self.get(name.as_str())?.version)
    }

    /// The counts that `_`, `__` and `___` stand for, latest first.
    pub(super) fn last_results(&self) -> Vec<u32> {
        self.results
            .iter()
            .rev()
            .take(UNDERSCORES)
            .copied()
            .collect()
    }

    /// Whether running the definition's source again would make the same: what it evaluates is
    /// still as it was, cannot have changed in place, and can be had: all but `without`.
    pub(super) fn replayable(&self, chain: &[Arc<Defined>], without: &BTreeSet<Name>) -> bool {
        let mut seen = BTreeSet::new();
        let mut open: Vec<&[Arc<Defined>]> = vec![chain];
        while let Some(chain) = open.pop() {
            for defined in chain {
                for name in &defined.definition.needs_now {
                    if without.contains(name) {
                        return false;
                    }
                    match (defined.needs.get(name), self.get(name.as_str())) {
                        (None, None) => {}
                        (Some(version), Some(entry)) if entry.version == *version => {
                            match &entry.content {
                                Content::Definition(chain, _) => {
                                    if seen.insert(name) {
                                        open.push(chain);
                                    }
                                }
                                // A class that travels may refer to those derived from it.
                                Content::Value(description)
                                    if !matches!(description.kind, Kind::Value | Kind::Class) => {}
                                Content::Value(_) => return false,
                            }
                        }
                        _ => return false,
                    }
                }
            }
        }
        true
    }

    /// What `name` becomes when a cell binds it.
    pub(super) fn content_of(
        &self,
        name: &Name,
        description: Description,
        number: u32,
        cell: &Arc<str>,
        definitions: &[crate::analysis::Definition],
    ) -> Content {
        let Some(definition) = definitions
            .iter()
            .rev()
            .find(|definition| definition.binds.contains(name))
        else {
            return Content::Value(description);
        };
        let replayable = match definition.kind {
            DefinitionKind::Import => {
                description.kind == Kind::Module || is_from_import(definition)
            }
            DefinitionKind::Class => description.kind == Kind::Class,
            // What a decorator makes may carry a state of its own; a cache can be filled again.
            DefinitionKind::Function => match description.type_name.as_str() {
                "function" => !definition.decorated,
                name => name == "functools._lru_cache_wrapper",
            },
            DefinitionKind::Magic | DefinitionKind::Future => false,
        };
        if !replayable || definition.outdated {
            return Content::Value(description);
        }
        let defined = Arc::new(Defined {
            definition: definition.clone(),
            cell: cell.clone(),
            number,
            needs: BTreeMap::new(),
        });
        let mut chain = vec![defined];
        if definition.kind == DefinitionKind::Import
            && description.kind == Kind::Module
            && let Some(Content::Definition(earlier, _)) =
                self.get(name.as_str()).map(|entry| &entry.content)
        {
            let same = |other: &Arc<Defined>| {
                other.definition.kind == DefinitionKind::Import
                    && other.definition.binds == definition.binds
                    && other.definition.source != definition.source
            };
            chain.splice(0..0, earlier.iter().filter(|other| same(other)).cloned());
        }
        Content::Definition(chain, description)
    }
}

fn is_from_import(definition: &crate::analysis::Definition) -> bool {
    definition.source.trim_start().starts_with("from")
}
