//! Which version of each name is current, what it is, and which workers hold it.
//!
//! A directory, as in a cache-coherence protocol. A value that can change in place has one
//! current copy at a time: it moves to the worker of the cell that reads it, and copies left
//! behind are stale. Values that cannot change, and definitions, may be current in many workers.
//! The ledger decides what must move; it moves nothing itself.

mod plan;

pub use plan::{Needed, Plan, Put, Step};

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use cellferry_wire::protocol::WorkerId;
use serde::Deserialize;

use crate::analysis::{Definition, DefinitionKind};
use crate::name::Name;

/// What a worker says of a value that it bound or handed out.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Description {
    /// How it travels.
    pub kind: Kind,
    /// Its Python type, for messages.
    #[serde(rename = "type")]
    pub type_name: String,
    /// Notebook names that it refers to.
    #[serde(default)]
    pub needs: BTreeSet<Name>,
}

/// How a value behaves when it is carried.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// A module: imported again where it is needed.
    Module,
    /// A class.
    Class,
    /// A function without a state of its own.
    Function,
    /// A value that cannot change in place.
    Atom,
    /// Anything else: one current copy at a time.
    Value,
}

/// A definition together with the cell it stands in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Defined {
    /// The statement.
    pub definition: Definition,
    /// The whole source of its cell, so that tracebacks show it.
    pub cell: Arc<str>,
    /// The execution count of the run that made it.
    pub number: u32,
    /// Which versions of the names that the statement evaluates were current when it ran.
    pub needs: BTreeMap<Name, u64>,
}

/// What the current version of a name is.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Content {
    Value(Description),
    /// Replayed as source, in order: several only for imports of one package's submodules.
    Definition(Vec<Arc<Defined>>, Description),
    /// Its only holder died.
    Lost(Lost),
}

/// A value that nobody holds any more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lost {
    /// Its Python type.
    pub type_name: String,
    /// The execution count of the run that made it.
    pub made_by: u32,
    /// The worker that held it, as messages name it.
    pub held_by: String,
}

#[derive(Clone, Debug)]
struct Entry {
    content: Content,
    holders: BTreeSet<WorkerId>,
    made_by: u32,
    /// Which binding of the name it is.
    version: u64,
}

impl Entry {
    fn description(&self) -> Option<&Description> {
        match &self.content {
            Content::Value(description) | Content::Definition(_, description) => Some(description),
            Content::Lost(_) => None,
        }
    }

    /// Whether it is a class or function, whose state is carried under a name of its own.
    fn is_callable(&self) -> bool {
        self.description().is_some_and(|description| {
            matches!(description.kind, Kind::Class | Kind::Function)
                || matches!(self.content, Content::Definition(..))
        })
    }

    /// What to say when nobody holds it any more.
    fn as_lost(&self) -> Lost {
        Lost {
            type_name: self
                .description()
                .map_or_else(String::new, |description| description.type_name.clone()),
            made_by: self.made_by,
            held_by: "a target".to_owned(),
        }
    }

    /// Whether only one worker can hold it as current.
    fn moves(&self) -> bool {
        matches!(&self.content, Content::Value(description) if description.kind == Kind::Value)
    }
}

/// `_`, `__` and `___`.
const UNDERSCORES: usize = 3;

/// The directory of one session.
#[derive(Clone, Debug, Default)]
pub struct Ledger {
    entries: BTreeMap<Name, Entry>,
    /// Names that a worker still has in its namespace though they are no longer current there.
    stale: BTreeMap<WorkerId, BTreeSet<Name>>,
    /// Configuration magics, in order, and the workers that have replayed them.
    settings: Vec<(Arc<Defined>, BTreeSet<WorkerId>)>,
    /// Execution counts of the cells that had a result, in order: what `_`, `__` and `___` mean.
    results: Vec<u32>,
    /// The last results as each worker's display hook has them, latest first.
    shown: BTreeMap<WorkerId, Vec<u32>>,
    /// Versions handed out so far.
    versions: u64,
}

/// What the ledger knows of a name, for a reader.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// Its Python type.
    pub type_name: String,
    /// `made` or `defined`.
    pub how: &'static str,
    /// The execution count of the run that bound it.
    pub made_by: u32,
    /// Workers with the current version.
    pub holders: Vec<WorkerId>,
    /// Workers that still have an older one.
    pub stale: Vec<WorkerId>,
}

/// What a run changed, as its worker reported it.
#[derive(Clone, Debug, Default)]
pub struct Changes<'a> {
    /// Names bound, with what they are now.
    pub bound: BTreeMap<Name, Description>,
    /// Names deleted.
    pub deleted: Vec<Name>,
    /// What changeable values are now.
    pub seen: BTreeMap<Name, Description>,
    /// The cell's own definitions.
    pub definitions: &'a [Definition],
}

impl Ledger {
    /// Records that `worker` ran a cell: `plan` was in force, `changes` is what it reports.
    pub fn record(
        &mut self,
        worker: WorkerId,
        number: u32,
        cell: &Arc<str>,
        plan: &Plan,
        changes: Changes<'_>,
    ) {
        self.arrived(worker, plan);
        for name in &plan.touched {
            let Some(entry) = self.entries.get_mut(name) else {
                continue;
            };
            if entry.moves() && entry.holders.contains(&worker) {
                let others: Vec<WorkerId> = entry
                    .holders
                    .iter()
                    .copied()
                    .filter(|holder| *holder != worker)
                    .collect();
                entry.holders = BTreeSet::from([worker]);
                for other in others {
                    self.stale.entry(other).or_default().insert(name.clone());
                }
            }
        }
        for name in changes.deleted {
            self.forget(&name, worker);
        }
        for (name, description) in changes.seen {
            if let Some(Entry {
                content: Content::Value(known),
                ..
            }) = self.entries.get_mut(&name)
            {
                *known = description;
            }
        }
        if !plan.results.is_empty() {
            self.shown.insert(worker, self.last_results());
        }
        for (name, description) in changes.bound {
            if is_alias_of_result(&name) {
                continue;
            }
            if let Some(count) = result_number(&name) {
                self.results.push(count);
                let shown = self.shown.entry(worker).or_default();
                shown.insert(0, count);
                shown.truncate(UNDERSCORES);
            }
            let content = self.content_of(&name, description, number, cell, changes.definitions);
            self.bind(name, content, worker, number);
        }
        self.note_needs(changes.definitions, cell);
        for definition in changes.definitions {
            if matches!(
                definition.kind,
                DefinitionKind::Magic | DefinitionKind::Future
            ) {
                let defined = Arc::new(Defined {
                    definition: definition.clone(),
                    cell: cell.clone(),
                    number,
                    needs: BTreeMap::new(),
                });
                self.settings.push((defined, BTreeSet::from([worker])));
            }
        }
    }

    /// Records what a prelude brought to `worker`, whether or not its cell then succeeded.
    fn arrived(&mut self, worker: WorkerId, plan: &Plan) {
        for step in &plan.steps {
            match step {
                Step::Define(defined) => {
                    for name in &defined.definition.binds {
                        self.hold(name, worker);
                    }
                    for (setting, holders) in &mut self.settings {
                        if Arc::ptr_eq(setting, defined) {
                            holders.insert(worker);
                        }
                    }
                }
                Step::Put(put) => {
                    for (name, description) in &put.names {
                        if let Some(entry) = self.entries.get_mut(name)
                            && let Content::Value(known) = &mut entry.content
                        {
                            known.needs = &description.needs | &put.needs;
                        }
                        self.hold(name, worker);
                    }
                }
            }
        }
        if let Some(stale) = self.stale.get_mut(&worker) {
            for name in &plan.drops {
                stale.remove(name);
            }
        }
    }

    fn hold(&mut self, name: &Name, worker: WorkerId) {
        if let Some(entry) = self.entries.get_mut(name) {
            entry.holders.insert(worker);
        }
        if let Some(stale) = self.stale.get_mut(&worker) {
            stale.remove(name);
        }
    }

    fn content_of(
        &self,
        name: &Name,
        description: Description,
        number: u32,
        cell: &Arc<str>,
        definitions: &[Definition],
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
            DefinitionKind::Function => {
                !definition.decorated || description.type_name == "functools._lru_cache_wrapper"
            }
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
            && let Some(Entry {
                content: Content::Definition(earlier, _),
                ..
            }) = self.entries.get(name)
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

    fn bind(&mut self, name: Name, content: Content, worker: WorkerId, number: u32) {
        let holders = BTreeSet::from([worker]);
        self.versions += 1;
        if let Some(before) = self.entries.insert(
            name.clone(),
            Entry {
                content,
                holders,
                made_by: number,
                version: self.versions,
            },
        ) {
            for other in before
                .holders
                .into_iter()
                .filter(|holder| *holder != worker)
            {
                self.stale.entry(other).or_default().insert(name.clone());
            }
        }
        if let Some(stale) = self.stale.get_mut(&worker) {
            stale.remove(&name);
        }
    }

    fn forget(&mut self, name: &Name, worker: WorkerId) {
        if let Some(before) = self.entries.remove(name) {
            for other in before
                .holders
                .into_iter()
                .filter(|holder| *holder != worker)
            {
                self.stale.entry(other).or_default().insert(name.clone());
            }
        }
    }

    /// Notes which versions the definitions just recorded were evaluated with.
    fn note_needs(&mut self, definitions: &[Definition], cell: &Arc<str>) {
        for name in definitions.iter().flat_map(|definition| &definition.binds) {
            let Some(Entry {
                content: Content::Definition(chain, _),
                ..
            }) = self.entries.get(name)
            else {
                continue;
            };
            let Some(last) = chain.last().filter(|last| Arc::ptr_eq(&last.cell, cell)) else {
                continue;
            };
            let version = |need: &Name| Some((need.clone(), self.entries.get(need)?.version));
            let needs: BTreeMap<Name, u64> = last
                .definition
                .needs_now
                .iter()
                .filter_map(version)
                .collect();
            if needs.is_empty() {
                continue;
            }
            let noted = Arc::new(Defined {
                needs,
                ..Defined::clone(last)
            });
            if let Some(Entry {
                content: Content::Definition(chain, _),
                ..
            }) = self.entries.get_mut(name)
                && let Some(last) = chain.last_mut()
            {
                *last = noted;
            }
        }
    }

    /// Whether running the definition's source again would make the same: what it evaluates is
    /// still as it was, and cannot have changed in place.
    fn replayable(&self, chain: &[Arc<Defined>]) -> bool {
        let mut seen = BTreeSet::new();
        let mut open: Vec<&[Arc<Defined>]> = vec![chain];
        while let Some(chain) = open.pop() {
            for defined in chain {
                for name in &defined.definition.needs_now {
                    match (defined.needs.get(name), self.entries.get(name)) {
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
                                Content::Value(_) | Content::Lost(_) => return false,
                            }
                        }
                        _ => return false,
                    }
                }
            }
        }
        true
    }

    /// The names of changeable values among `names`.
    pub fn changeable(&self, names: &BTreeSet<Name>) -> Vec<Name> {
        let changeable = |name: &&Name| self.entries.get(*name).is_some_and(Entry::moves);
        names.iter().filter(changeable).cloned().collect()
    }

    /// The stale names of a worker, which drops them now.
    pub fn forget_stale(&mut self, worker: WorkerId) -> BTreeSet<Name> {
        self.stale.remove(&worker).unwrap_or_default()
    }

    /// The counts that `_`, `__` and `___` stand for.
    fn last_results(&self) -> Vec<u32> {
        self.results
            .iter()
            .rev()
            .take(UNDERSCORES)
            .copied()
            .collect()
    }

    /// A worker is gone: what only it held is lost, except definitions, which can be replayed.
    pub fn worker_lost(&mut self, worker: WorkerId, held_by: &str) {
        self.stale.remove(&worker);
        self.shown.remove(&worker);
        for (_, holders) in &mut self.settings {
            holders.remove(&worker);
        }
        for entry in self.entries.values_mut() {
            if !entry.holders.remove(&worker) || !entry.holders.is_empty() {
                continue;
            }
            if let Content::Value(_) = &entry.content {
                entry.content = Content::Lost(Lost {
                    held_by: held_by.to_owned(),
                    ..entry.as_lost()
                });
            }
        }
    }

    /// The workers that hold the current version of `name`; empty if it is unknown or lost.
    pub fn holders(&self, name: &str) -> impl Iterator<Item = WorkerId> + '_ {
        self.entries
            .get(name)
            .into_iter()
            .flat_map(|entry| entry.holders.iter().copied())
    }

    /// What is known of a name; `None` if nobody has bound it, or it was deleted.
    pub fn look(&self, name: &Name) -> Option<Seen> {
        let entry = self.entries.get(name)?;
        let (how, type_name) = match &entry.content {
            Content::Value(description) => ("made", &description.type_name),
            Content::Definition(_, description) => ("defined", &description.type_name),
            Content::Lost(lost) => ("made", &lost.type_name),
        };
        let stale = self.stale.iter().filter(|(_, names)| names.contains(name));
        Some(Seen {
            type_name: type_name.clone(),
            how,
            made_by: entry.made_by,
            holders: entry.holders.iter().copied().collect(),
            stale: stale.map(|(worker, _)| *worker).collect(),
        })
    }

    /// How many of `names` the worker holds as current values.
    pub fn held(&self, worker: WorkerId, names: &BTreeSet<Name>) -> usize {
        names
            .iter()
            .filter_map(|name| self.entries.get(name))
            .filter(|entry| {
                matches!(entry.content, Content::Value(_)) && entry.holders.contains(&worker)
            })
            .count()
    }
}

/// `_`, `__` and `___` stand for the last results and are worked out from them.
fn is_alias_of_result(name: &Name) -> bool {
    matches!(name.as_str(), "_" | "__" | "___")
}

fn is_from_import(definition: &Definition) -> bool {
    definition.source.trim_start().starts_with("from")
}

/// The count in `_12`.
fn result_number(name: &Name) -> Option<u32> {
    name.as_str().strip_prefix('_')?.parse().ok()
}

#[cfg(test)]
mod tests;
