//! Which version of each name is current at a point of program order, what it is, and which
//! workers hold it.
//!
//! A directory, as in a cache-coherence protocol, in two halves. [`Namespace`] says what each name
//! means; the [`Delta`]s of runs that are not committed yet lie over the committed one, so that each run is
//! planned with the names as they are at its own place in program order. The other half says which
//! version of a name each worker physically has: a copy whose version is not the wanted one is
//! stale. The ledger decides what must move; it moves nothing itself.

mod company;
mod namespace;
mod plan;

pub use namespace::{Delta, Namespace, Version};
pub use plan::{Needed, Plan, Put, Step};

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use cellferry_wire::protocol::WorkerId;
use serde::Deserialize;

use self::company::Company;
use self::namespace::{Content, Entry};
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
    /// About how much memory it takes, in bytes.
    #[serde(default)]
    pub size: u64,
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
    /// Anything else.
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
    pub needs: BTreeMap<Name, Version>,
}

/// A value that nobody holds any more, for messages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lost {
    /// Its Python type.
    pub type_name: String,
    /// The execution count of the run that bound it.
    pub made_by: u32,
    /// The worker that held it, as messages name it.
    pub held_by: String,
    /// What became of that worker: `died`, or how else it ended.
    pub end: String,
}

/// How many more versions than current ones are remembered before old ones are forgotten.
const FORGET: usize = 1000;

/// What stands for a copy that is of no version: nobody may read it.
const SPOILT: Version = Version(0);

/// What one worker physically has.
#[derive(Clone, Debug, Default)]
pub struct Held {
    names: BTreeMap<Name, Version>,
    /// The configuration magics that it has replayed or run, by their place among all.
    settings: BTreeSet<usize>,
    /// The last results as its display hook has them, latest first.
    shown: Vec<u32>,
}

impl Held {
    /// Whether the name is here as it is in `view`.
    pub fn has(&self, view: &Namespace, name: &Name) -> bool {
        let version = view.version(name);
        version.is_some() && self.names.get(name) == version.as_ref()
    }
}

/// Names and versions that share objects, wherever they are.
type Kin = Arc<BTreeMap<Name, Version>>;

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

/// What a run changed, as its worker reported it.
#[derive(Clone, Debug, Default)]
pub struct Changes<'a> {
    /// Names bound, with what they are now.
    pub bound: BTreeMap<Name, Description>,
    /// Names deleted.
    pub deleted: Vec<Name>,
    /// What changeable values are now.
    pub seen: BTreeMap<Name, Description>,
    /// Names that were compared with what they were before the run.
    pub compared: BTreeSet<Name>,
    /// Those of them that are not the same any more, or that something else now refers to.
    pub changed: BTreeSet<Name>,
    /// Whether the worker could restore what the run changed: then it has told all that shares objects with it.
    pub restorable: bool,
    /// Whether the cell failed: how far it came is not known.
    pub failed: bool,
    /// The cell's own definitions.
    pub definitions: &'a [Definition],
}

/// A run of one cell on one worker.
#[derive(Clone, Copy, Debug)]
pub struct Ran<'a> {
    /// Where.
    pub worker: WorkerId,
    /// Its execution count.
    pub number: u32,
    /// Its source.
    pub cell: &'a Arc<str>,
    /// What was done before.
    pub plan: &'a Plan,
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

    /// Records physically that a run is over, and works out what it changed. `view` are the names as they were at its
    /// place in program order.
    pub fn finished(&mut self, view: &Namespace, ran: Ran<'_>, changes: Changes<'_>) -> Delta {
        let Ran {
            worker,
            number,
            cell,
            plan,
        } = ran;
        let mut delta = Delta::default();
        self.arrived(view, worker, plan, &mut delta);
        self.touched(view, worker, plan, &changes, &mut delta);
        let held = self.held.entry(worker).or_default();
        for name in &changes.deleted {
            held.names.remove(name);
            delta.delete(name);
        }
        for (name, description) in changes.seen {
            let known = match delta.entries.get(&name) {
                Some(entry) => entry.as_ref(),
                None => view.get(name.as_str()),
            };
            if let Some(known) = known
                && let Content::Value(before) = &known.content
                && *before != description
            {
                let entry = Entry {
                    content: Content::Value(description),
                    ..Entry::clone(known)
                };
                delta.describe(&name, entry);
            }
        }
        if !plan.results.is_empty() {
            held.shown = view.last_results();
        }
        for (name, description) in changes.bound {
            if is_alias_of_result(&name) {
                continue;
            }
            if let Some(count) = result_number(&name) {
                delta.results.push(count);
                held.shown.insert(0, count);
                held.shown.truncate(3);
            }
            self.versions += 1;
            let version = Version(self.versions);
            held.names.insert(name.clone(), version);
            let definitions = if changes.failed {
                sure(changes.definitions, &name)
            } else {
                changes.definitions
            };
            let content = view.content_of(&name, description, number, cell, definitions);
            let entry = Entry {
                content,
                made_by: number,
                version,
            };
            delta.set(&name, entry);
        }
        note_needs(view, &mut delta, changes.definitions, cell);
        self.met(view, plan, &delta);
        for definition in changes.definitions {
            if matches!(
                definition.kind,
                DefinitionKind::Magic | DefinitionKind::Future
            ) {
                delta.settings.push(Arc::new(Defined {
                    definition: definition.clone(),
                    cell: cell.clone(),
                    number,
                    needs: BTreeMap::new(),
                }));
            }
        }
        delta
    }

    /// What the prelude brought.
    fn arrived(&mut self, view: &Namespace, worker: WorkerId, plan: &Plan, delta: &mut Delta) {
        let held = self.held.entry(worker).or_default();
        for name in &plan.drops {
            held.names.remove(name);
        }
        for step in &plan.steps {
            match step {
                Step::Define(defined) => {
                    for name in &defined.definition.binds {
                        if let Some(version) = view.version(name) {
                            held.names.insert(name.clone(), version);
                        }
                    }
                    let setting = |setting: &Arc<Defined>| Arc::ptr_eq(setting, defined);
                    held.settings.extend(view.settings.iter().position(setting));
                }
                Step::Put(put) => {
                    for (name, description) in &put.names {
                        let Some(entry) = view.get(name.as_str()) else {
                            continue;
                        };
                        let version = put.versions.get(name).copied().unwrap_or(entry.version);
                        let needs = &description.needs | &put.needs;
                        if let Content::Value(known) = &entry.content
                            && known.needs != needs
                        {
                            let content = Content::Value(Description {
                                needs,
                                ..known.clone()
                            });
                            let entry = Entry {
                                content,
                                ..Entry::clone(entry)
                            };
                            delta.describe(name, entry);
                        }
                        held.names.insert(name.clone(), version);
                    }
                }
            }
        }
    }

    /// Values that the run may have changed in place get a new version, unless they were compared and are the same:
    /// so a version has one content, which one run made.
    fn touched(
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
    fn met(&mut self, view: &Namespace, plan: &Plan, delta: &Delta) {
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

    /// What a prelude brought to a worker, although no cell ran there.
    pub fn brought(&mut self, view: &Namespace, worker: WorkerId, plan: &Plan) {
        let mut described = Delta::default();
        self.arrived(view, worker, plan, &mut described);
        // Of a last result that is among it the display hook has the object of before.
        self.held.entry(worker).or_default().shown.clear();
        let committed = Arc::make_mut(&mut self.committed);
        for (name, entry) in described.entries {
            if let Some(entry) = entry
                && committed.version(&name) == Some(entry.version)
            {
                committed.entries.insert(name, entry);
            }
        }
    }

    /// A worker is gone: what only it held is lost. `end` says of a version what became of the worker.
    pub fn worker_lost(
        &mut self,
        worker: WorkerId,
        held_by: &str,
        end: impl Fn(Version) -> String,
    ) {
        let Some(gone) = self.held.remove(&worker) else {
            return;
        };
        for (name, version) in gone.names {
            let has = |held: &Held| held.names.get(&name) == Some(&version);
            if version != SPOILT && !self.held.values().any(has) {
                self.lost
                    .insert(version, (held_by.to_owned(), end(version)));
            }
        }
    }

    /// What to say of a name whose value nobody holds any more; `None` if it is not because a worker is gone.
    pub fn lost(&self, view: &Namespace, name: &Name) -> Option<Lost> {
        let entry = view.get(name.as_str())?;
        let (held_by, end) = self.lost.get(&entry.version)?;
        self.holders(view, name.as_str())
            .next()
            .is_none()
            .then(|| Lost {
                type_name: entry.description().type_name.clone(),
                made_by: entry.made_by,
                held_by: held_by.clone(),
                end: end.clone(),
            })
    }

    /// The names of `view` that can neither be had from anybody nor replayed from source.
    pub fn missing<'a>(&'a self, view: &'a Namespace) -> impl Iterator<Item = &'a Name> {
        let has_holder = |name: &Name| self.holders(view, name.as_str()).next().is_some();
        self.carried(view).filter(move |name| !has_holder(name))
    }

    /// The names of `view` that cannot be replayed from source.
    pub fn carried<'a>(&'a self, view: &'a Namespace) -> impl Iterator<Item = &'a Name> {
        let replayable = |entry: &Entry| match &entry.content {
            Content::Definition(chain, _) => view.replayable(chain, &BTreeSet::new()),
            Content::Value(_) => false,
        };
        view.entries
            .iter()
            .filter(move |(_, entry)| !replayable(entry))
            .map(|(name, _)| name)
    }

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

    fn holds(&self, worker: WorkerId, name: &Name, version: Version) -> bool {
        self.held
            .get(&worker)
            .is_some_and(|held| held.names.get(name) == Some(&version))
    }

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

/// The definitions that the name can stand for after a cell that failed: an import, if it is the only one.
fn sure<'a>(definitions: &'a [Definition], name: &Name) -> &'a [Definition] {
    let mut binding = definitions
        .iter()
        .filter(|definition| definition.binds.contains(name));
    match (binding.next(), binding.next()) {
        (Some(only), None) if only.kind == DefinitionKind::Import => std::slice::from_ref(only),
        _ => &[],
    }
}

/// Notes which versions the definitions just recorded were evaluated with.
fn note_needs(view: &Namespace, delta: &mut Delta, definitions: &[Definition], cell: &Arc<str>) {
    for name in definitions.iter().flat_map(|definition| &definition.binds) {
        let Some(Some(entry)) = delta.entries.get(name) else {
            continue;
        };
        let Content::Definition(chain, _) = &entry.content else {
            continue;
        };
        let Some(last) = chain.last().filter(|last| Arc::ptr_eq(&last.cell, cell)) else {
            continue;
        };
        let version = |need: &Name| {
            let entry = match delta.entries.get(need) {
                Some(entry) => entry.as_ref(),
                None => view.get(need.as_str()),
            };
            Some((need.clone(), entry?.version))
        };
        let needs: BTreeMap<Name, Version> = last
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
        let mut entry = Entry::clone(entry);
        if let Content::Definition(chain, _) = &mut entry.content
            && let Some(last) = chain.last_mut()
        {
            *last = noted;
        }
        delta.describe(name, entry);
    }
}

/// `_`, `__` and `___` stand for the last results and are worked out from them.
fn is_alias_of_result(name: &Name) -> bool {
    matches!(name.as_str(), "_" | "__" | "___")
}

/// The count in `_12`.
fn result_number(name: &Name) -> Option<u32> {
    name.as_str().strip_prefix('_')?.parse().ok()
}

#[cfg(test)]
mod tests;
