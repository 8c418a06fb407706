//! What a run changed, logically and physically, once it is over.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use cellferry_wire::protocol::WorkerId;

use super::namespace::{Content, Entry};
use super::{Defined, Delta, Description, Ledger, Namespace, Plan, Version};
use crate::analysis::{Definition, DefinitionKind};
use crate::name::Name;

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
pub(super) fn is_alias_of_result(name: &Name) -> bool {
    matches!(name.as_str(), "_" | "__" | "___")
}

/// The count in `_12`.
fn result_number(name: &Name) -> Option<u32> {
    name.as_str().strip_prefix('_')?.parse().ok()
}
