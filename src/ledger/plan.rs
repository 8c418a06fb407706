//! What must be brought to a worker before a cell runs there.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use cellferry_wire::protocol::WorkerId;

use super::{Content, Defined, Description, Entry, Ledger, Lost};
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
    /// Names that the cell must have and that nobody holds any more.
    pub lost: Vec<(Name, Lost)>,
    /// Last results, if the cell reads `_`, `__`, `___` or `Out`: names like `_3`, latest first.
    pub results: Vec<Name>,
}

impl Plan {
    /// Whether nothing has to be done in the worker first.
    pub fn is_empty(&self) -> bool {
        self.steps.is_empty() && self.drops.is_empty() && self.results.is_empty()
    }
}

impl Ledger {
    /// Plans a cell on `worker`. `arrived` are the values taken for it so far; `skipped` are
    /// names that turned out not to be carriable and that it can do without.
    pub fn plan(
        &self,
        worker: WorkerId,
        needed: &Needed,
        arrived: &[Put],
        skipped: &BTreeSet<Name>,
    ) -> Plan {
        let mut plan = Plan::default();
        let mut wanted = Wanted {
            ledger: self,
            names: BTreeSet::new(),
            everything: false,
        };
        for name in needed.must.iter().chain(&needed.may) {
            wanted.add(name);
        }
        if needed.everything || wanted.everything {
            for name in self.entries.keys() {
                wanted.add(name);
            }
        }
        if ["_", "__", "___", "Out", "_oh"]
            .iter()
            .any(|name| wanted.names.contains(*name))
        {
            let all = wanted.names.contains("Out") || wanted.names.contains("_oh");
            let last = self.last_results();
            let counts = if all { &self.results } else { &last };
            for count in counts {
                wanted.add(&result_name(*count));
            }
            if self.shown.get(&worker).is_none_or(|shown| *shown != last) {
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
        for name in &plan.touched {
            let Some(entry) = self.entries.get(name) else {
                continue;
            };
            if entry.holders.contains(&worker)
                || carried.contains_key(name)
                || skipped.contains(name)
            {
                continue;
            }
            match &entry.content {
                Content::Value(_) => {
                    if let Some(holder) = entry.holders.first() {
                        plan.takes.entry(*holder).or_default().insert(name.clone());
                    }
                }
                Content::Lost(lost) => {
                    if needed.must.contains(name) {
                        plan.lost.push((name.clone(), lost.clone()));
                    }
                }
                Content::Definition(chain, _) => {
                    if self.replayable(chain) {
                        continue;
                    }
                    if let Some(holder) = entry.holders.first() {
                        plan.takes.entry(*holder).or_default().insert(name.clone());
                    } else if needed.must.contains(name) {
                        plan.lost.push((name.clone(), entry.as_lost()));
                    }
                }
            }
        }
        self.definitions_first(worker, &mut plan);
        self.together(arrived, &mut plan);
        if plan.takes.is_empty() {
            let mut order = Order {
                ledger: self,
                worker,
                carried,
                done: BTreeSet::new(),
                puts: BTreeSet::new(),
                steps: Vec::new(),
            };
            for (setting, holders) in &self.settings {
                if !holders.contains(&worker) {
                    order.steps.push(Step::Define(setting.clone()));
                }
            }
            for name in &plan.touched {
                order.visit(name);
            }
            plan.steps = order.steps;
        }
        if let Some(stale) = self.stale.get(&worker) {
            let coming = |name: &&Name| !carried_or_defined(&plan.steps, name);
            plan.drops = stale.iter().filter(coming).cloned().collect();
        }
        plan
    }

    /// Values that refer to each other by name, such as a class and those derived from it, must be in one pickle.
    fn together(&self, arrived: &[Put], plan: &mut Plan) {
        for put in arrived {
            for names in plan.takes.values_mut() {
                let classes = |name: &Name| {
                    self.entries.get(name).is_some_and(Entry::is_callable) && names.contains(name)
                };
                if put.needs.iter().any(classes) {
                    names.extend(put.names.keys().cloned());
                    plan.again.insert(put.transfer);
                }
            }
        }
    }

    /// What replayed definitions evaluate is taken by itself: a pickle with instances of a class in
    /// it needs the class, which may need another name of the same pickle.
    fn definitions_first(&self, worker: WorkerId, plan: &mut Plan) {
        let replayed = plan
            .touched
            .iter()
            .filter_map(|name| match self.entries.get(name) {
                Some(Entry {
                    content: Content::Definition(chain, _),
                    holders,
                    ..
                }) if !holders.contains(&worker) && self.replayable(chain) => Some(chain),
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
            let Some(entry) = self.ledger.entries.get(&name) else {
                continue;
            };
            if entry.is_callable() {
                // What was set on it since it was defined.
                let state = Name::from(format!("{name}.").as_str());
                if self.ledger.entries.contains_key(&state) {
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
                Content::Lost(_) => {}
            }
        }
    }
}

/// Puts definitions and values in an order in which each finds what it needs.
struct Order<'a> {
    ledger: &'a Ledger,
    worker: WorkerId,
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
            holders,
            ..
        }) = self.ledger.entries.get(name)
        else {
            return;
        };
        if holders.contains(&self.worker) || !self.ledger.replayable(chain) {
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
