//! What must be brought to a worker before a cell runs there.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use cellferry_wire::protocol::WorkerId;

use super::namespace::{Content, Entry, Namespace, Version};
use super::{Defined, Description, Ledger};
use crate::analysis::DefinitionKind;
use crate::name::Name;

/// The names that a cell wants, and how badly.
#[derive(Clone, Debug, Default)]
pub struct Needed {
    /// The cell cannot run without them.
    pub must: BTreeSet<Name>,
    /// It may read them: where one cannot be carried, the cell runs without it.
    pub may: BTreeSet<Name>,
    /// It may reach any name: exec, `globals()`.
    pub everything: bool,
}

/// A value on its way: taken from its holder, to be put where it is read.
#[derive(Clone, Debug, PartialEq)]
pub struct Put {
    /// The names in it; they share objects.
    pub names: BTreeMap<Name, Description>,
    /// Which versions they are.
    pub versions: BTreeMap<Name, Version>,
    /// Names that must stand before it can be unpickled.
    pub needs: BTreeSet<Name>,
    /// Which transfer brings it.
    pub transfer: u64,
}

/// One thing to do in the worker before the cell runs, in this order.
#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    /// Replay a definition.
    Define(Arc<Defined>),
    /// Put a value.
    Put(Put),
}

/// The outcome of planning.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    /// Values still to be taken, by holder. If any, take them and plan again.
    pub takes: BTreeMap<WorkerId, BTreeSet<Name>>,
    /// Transfers that have arrived and are among `takes` again, together with what they need.
    pub again: BTreeSet<u64>,
    /// What to do, in order.
    pub steps: Vec<Step>,
    /// Stale names to drop first.
    pub drops: Vec<Name>,
    /// All names that the cell may read or change, through any depth.
    pub touched: BTreeSet<Name>,
    /// Whether it may reach any name, even ones that are not bound yet.
    pub everything: bool,
    /// Names that exist but that no worker has at the moment.
    pub absent: BTreeSet<Name>,
    /// Names that may share objects and that no worker has together at the moment.
    pub apart: BTreeSet<Name>,
    /// Last results, if the cell reads `_`, `__`, `___` or `Out`: names like `_3`, latest first.
    pub results: Vec<Name>,
}

impl Plan {
    /// Drops these names and no others.
    pub fn drop_only(&mut self, names: BTreeSet<Name>) {
        let steps = &self.steps;
        let drops = names.into_iter();
        self.drops = drops
            .filter(|name| !carried_or_defined(steps, name))
            .collect();
    }

    /// Whether nothing has to be done in the worker first.
    pub fn is_empty(&self) -> bool {
        self.steps.is_empty() && self.drops.is_empty() && self.results.is_empty()
    }
}

impl Ledger {
    /// Plans a cell on `worker` with the names as in `view`. `arrived` are the values taken for it so
    /// far; `skipped` are names that turned out not to be carriable and that it can do without;
    /// of several holders the one with the lowest `cost` gives a value.
    pub fn plan<C: Ord>(
        &self,
        view: &Namespace,
        worker: WorkerId,
        needed: &Needed,
        arrived: &[Put],
        skipped: &BTreeSet<Name>,
        cost: impl Fn(WorkerId) -> C,
    ) -> Plan {
        let mut plan = Plan::default();
        let mut wanted = Wanted {
            ledger: self,
            view,
            names: BTreeSet::new(),
            everything: false,
        };
        for name in needed.must.iter().chain(&needed.may) {
            wanted.add(name);
        }
        if needed.everything || wanted.everything {
            plan.everything = true;
            for name in view.entries.keys() {
                wanted.add(name);
            }
        }
        if ["_", "__", "___", "Out", "_oh"]
            .iter()
            .any(|name| wanted.names.contains(*name))
        {
            let all = wanted.names.contains("Out") || wanted.names.contains("_oh");
            let last = view.last_results();
            let counts = if all { &view.results } else { &last };
            for count in counts {
                wanted.add(&result_name(*count));
            }
            let shown = self.held.get(&worker).map(|held| &held.shown);
            // Where values travel, the object of the same count may be another one now.
            if self.held.len() > 1 || shown != Some(&last) {
                plan.results = last.iter().copied().map(result_name).collect();
            }
        }
        for put in arrived {
            for name in put.needs.iter().chain(put.names.keys()) {
                wanted.add(name);
            }
        }
        plan.touched = wanted.names;
        let carried: BTreeMap<&Name, &Put> = arrived
            .iter()
            .flat_map(|put| put.names.keys().map(move |name| (name, put)))
            .collect();
        // Of several holders rather one that has what may share objects with it, too.
        let holder = |name: &Name| {
            let kin = self.kin_of(view, name);
            let has_all = |holder: WorkerId| {
                let mut kin = kin.iter().filter(|kin| !skipped.contains(**kin));
                kin.all(|kin| {
                    let version = view.version(kin);
                    version.is_some_and(|version| self.holds(holder, kin, version))
                })
            };
            let holders = self.holders(view, name.as_str());
            let best = holders.min_by_key(|holder| (!has_all(*holder), cost(*holder)));
            best.map(|holder| (holder, has_all(holder)))
        };
        for name in &plan.touched {
            let Some(entry) = view.get(name.as_str()) else {
                continue;
            };
            if self.holds(worker, name, entry.version)
                || carried.contains_key(name)
                || skipped.contains(name)
            {
                continue;
            }
            match &entry.content {
                Content::Value(_) => {
                    if let Some((holder, has_all)) = holder(name) {
                        plan.takes.entry(holder).or_default().insert(name.clone());
                        if !has_all {
                            plan.apart
                                .extend(self.kin_of(view, name).into_iter().cloned());
                        }
                    } else {
                        plan.absent.insert(name.clone());
                    }
                }
                Content::Definition(chain, _) => {
                    if view.replayable(chain, skipped) {
                        continue;
                    }
                    if let Some((holder, _)) = holder(name) {
                        plan.takes.entry(holder).or_default().insert(name.clone());
                    } else {
                        plan.absent.insert(name.clone());
                    }
                }
            }
        }
        self.definitions_first(view, worker, skipped, &mut plan);
        self.together(view, arrived, &mut plan);
        if plan.takes.is_empty() {
            let mut order = Order {
                ledger: self,
                view,
                worker,
                skipped,
                carried,
                done: BTreeSet::new(),
                puts: BTreeSet::new(),
                steps: Vec::new(),
            };
            let replayed = self.held.get(&worker).map(|held| &held.settings);
            for (place, setting) in view.settings.iter().enumerate() {
                if !replayed.is_some_and(|replayed| replayed.contains(&place)) {
                    order.steps.push(Step::Define(setting.clone()));
                }
            }
            for name in &plan.touched {
                order.visit(name);
            }
            plan.steps = order.steps;
        }
        plan.drops = self.stale(view, worker).into_iter().collect();
        plan.drops
            .retain(|name| !carried_or_defined(&plan.steps, name));
        plan
    }

    /// The name and all that may share objects with it, as it is in `view`.
    fn kin_of<'a>(&'a self, view: &'a Namespace, name: &'a Name) -> BTreeSet<&'a Name> {
        let mut found = BTreeSet::new();
        let mut open = vec![name];
        while let Some(name) = open.pop() {
            if found.insert(name)
                && let Some(version) = view.version(name)
                && let Some(groups) = self.kin.get(&version)
            {
                let same = groups
                    .iter()
                    .flat_map(|group| group.iter())
                    .filter(|(name, version)| view.version(name).as_ref() == Some(*version));
                open.extend(same.map(|(name, _)| name));
            }
        }
        found
    }

    /// What replayed definitions evaluate is taken by itself: a pickle with instances of a class in
    /// it needs the class, which may need another name of the same pickle.
    fn definitions_first(
        &self,
        view: &Namespace,
        worker: WorkerId,
        skipped: &BTreeSet<Name>,
        plan: &mut Plan,
    ) {
        let replayed =
            plan.touched
                .iter()
                .filter_map(|name| match view.get(name.as_str()).map(Arc::as_ref) {
                    Some(Entry {
                        content: Content::Definition(chain, _),
                        version,
                        ..
                    }) if !self.holds(worker, name, *version)
                        && view.replayable(chain, skipped) =>
                    {
                        Some(chain)
                    }
                    _ => None,
                });
        let first: BTreeSet<&Name> = replayed
            .flatten()
            .flat_map(|defined| &defined.definition.needs_now)
            .collect();
        let is_first = |name: &Name| first.contains(name);
        if plan.takes.values().flatten().any(is_first) {
            for names in plan.takes.values_mut() {
                names.retain(is_first);
            }
            plan.takes.retain(|_, names| !names.is_empty());
        }
    }

    /// Values that refer to each other by name, such as a class and those derived from it, must be in one pickle, if
    /// somebody has them all.
    fn together(&self, view: &Namespace, arrived: &[Put], plan: &mut Plan) {
        for put in arrived {
            for (holder, names) in &mut plan.takes {
                let classes = |name: &Name| {
                    view.get(name.as_str())
                        .is_some_and(|entry| entry.is_callable())
                        && names.contains(name)
                };
                let has = |name: &Name| {
                    view.version(name)
                        .is_some_and(|version| self.holds(*holder, name, version))
                };
                if put.needs.iter().any(classes) && put.names.keys().all(has) {
                    names.extend(put.names.keys().cloned());
                    plan.again.insert(put.transfer);
                }
            }
        }
    }
}

fn result_name(count: u32) -> Name {
    Name::from(format!("_{count}").as_str())
}

fn carried_or_defined(steps: &[Step], name: &Name) -> bool {
    steps.iter().any(|step| match step {
        Step::Put(put) => put.names.contains_key(name),
        Step::Define(defined) => defined.definition.binds.contains(name),
    })
}

/// The closure of names over what definitions and values refer to.
struct Wanted<'a> {
    ledger: &'a Ledger,
    view: &'a Namespace,
    names: BTreeSet<Name>,
    /// Whether a function may reach any name.
    everything: bool,
}

impl Wanted<'_> {
    fn add(&mut self, name: &Name) {
        let mut open = vec![name.clone()];
        while let Some(name) = open.pop() {
            if !self.names.insert(name.clone()) {
                continue;
            }
            let Some(entry) = self.view.get(name.as_str()) else {
                continue;
            };
            if let Some(groups) = self.ledger.kin.get(&entry.version) {
                let same = |(name, version): &(&Name, &Version)| {
                    self.view.version(name).as_ref() == Some(*version)
                };
                let members = groups.iter().flat_map(|group| group.iter());
                open.extend(members.filter(same).map(|(name, _)| name.clone()));
            }
            if entry.is_callable() {
                // What was set on it since it was defined.
                let state = Name::from(format!("{name}.").as_str());
                if self.view.get(state.as_str()).is_some() {
                    open.push(state);
                }
            }
            match &entry.content {
                Content::Definition(chain, _) => {
                    for defined in chain {
                        self.everything |= defined.definition.dynamic_later.is_some();
                        // Also of one that travels: what is set on a base class counts.
                        open.extend(defined.definition.needs_now.iter().cloned());
                        open.extend(defined.definition.needs_later.iter().cloned());
                    }
                }
                Content::Value(description) => {
                    open.extend(description.needs.iter().cloned());
                }
            }
        }
    }
}

/// Puts definitions and values in an order in which each finds what it needs.
struct Order<'a> {
    ledger: &'a Ledger,
    view: &'a Namespace,
    worker: WorkerId,
    skipped: &'a BTreeSet<Name>,
    carried: BTreeMap<&'a Name, &'a Put>,
    done: BTreeSet<Name>,
    puts: BTreeSet<u64>,
    steps: Vec<Step>,
}

impl Order<'_> {
    fn visit(&mut self, name: &Name) {
        if !self.done.insert(name.clone()) {
            return;
        }
        if let Some(put) = self.carried.get(name).copied() {
            for need in &put.needs {
                self.visit(need);
            }
            if self.puts.insert(put.transfer) {
                self.steps.push(Step::Put(put.clone()));
            }
            return;
        }
        let Some(Entry {
            content: Content::Definition(chain, _),
            version,
            ..
        }) = self.view.get(name.as_str()).map(Arc::as_ref)
        else {
            return;
        };
        if self.ledger.holds(self.worker, name, *version)
            || !self.view.replayable(chain, self.skipped)
        {
            return;
        }
        for defined in chain.clone() {
            for need in &defined.definition.needs_now {
                self.visit(need);
            }
            let again =
                |step: &Step| matches!(step, Step::Define(other) if Arc::ptr_eq(other, &defined));
            let is_setting = matches!(
                defined.definition.kind,
                DefinitionKind::Magic | DefinitionKind::Future
            );
            if !is_setting && !self.steps.iter().any(again) {
                self.steps.push(Step::Define(defined));
            }
        }
    }
}
