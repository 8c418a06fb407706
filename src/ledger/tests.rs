use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use cellferry_wire::protocol::WorkerId;

use super::*;
use crate::analysis::{Definition, DefinitionKind};
use crate::name::Name;

const HOME: WorkerId = WorkerId(0);
const LAB: WorkerId = WorkerId(1);

fn names(list: &[&str]) -> BTreeSet<Name> {
    list.iter().map(|name| Name::from(*name)).collect()
}

fn value(kind: Kind, needs: &[&str]) -> Description {
    Description {
        kind,
        type_name: if kind == Kind::Function {
            "function".to_owned()
        } else {
            "list".to_owned()
        },
        needs: names(needs),
        size: 0,
    }
}

fn function(name: &str, needs: &[&str]) -> Definition {
    Definition {
        kind: DefinitionKind::Function,
        binds: vec![Name::from(name)],
        source: format!("def {name}(): pass"),
        line: 1,
        needs_now: BTreeSet::new(),
        needs_later: names(needs),
        changes_later: BTreeSet::new(),
        dynamic_later: None,
        decorated: false,
        outdated: false,
    }
}

/// A cell that binds the given names.
fn bind(
    ledger: &mut Ledger,
    worker: WorkerId,
    number: u32,
    bound: &[(&str, Kind)],
    definitions: &[Definition],
) {
    let bound = bound
        .iter()
        .map(|(name, kind)| (Name::from(*name), value(*kind, &[])))
        .collect();
    let changes = Changes {
        bound,
        definitions,
        ..Changes::default()
    };
    record(ledger, worker, number, &Plan::default(), changes);
}

/// A run that is committed at once.
fn record(ledger: &mut Ledger, worker: WorkerId, number: u32, plan: &Plan, changes: Changes<'_>) {
    let cell = Arc::from("cell");
    let view = ledger.committed().clone();
    let ran = Ran {
        worker,
        number,
        cell: &cell,
        plan,
    };
    let delta = ledger.finished(&view, ran, changes);
    ledger.commit(worker, &delta);
}

fn planned(ledger: &Ledger, worker: WorkerId, needed: &Needed, arrived: &[Put]) -> Plan {
    let view = ledger.committed();
    ledger.plan(view, worker, needed, arrived, &BTreeSet::new(), |holder| {
        holder
    })
}

fn holders(ledger: &Ledger, name: &str) -> Vec<WorkerId> {
    ledger.holders(ledger.committed(), name).collect()
}

fn must(list: &[&str]) -> Needed {
    Needed {
        must: names(list),
        ..Needed::default()
    }
}

/// Plans, takes what is missing and plans again, as a session does.
fn bring(ledger: &Ledger, worker: WorkerId, needed: &Needed) -> Plan {
    let mut arrived = Vec::new();
    loop {
        let plan = planned(ledger, worker, needed, &arrived);
        if plan.takes.is_empty() {
            return plan;
        }
        for taken in plan.takes.into_values() {
            let names = taken
                .into_iter()
                .map(|name| (name, value(Kind::Value, &[])))
                .collect();
            arrived.push(Put {
                names,
                versions: BTreeMap::new(),
                needs: BTreeSet::new(),
                transfer: arrived.len() as u64,
            });
        }
    }
}

#[test]
fn nothing_moves_in_a_plain_notebook() {
    let mut ledger = Ledger::default();
    bind(
        &mut ledger,
        HOME,
        1,
        &[("x", Kind::Value), ("_1", Kind::Value)],
        &[],
    );
    let plan = planned(&ledger, HOME, &must(&["x", "_", "print"]), &[]);
    assert!(plan.is_empty() && plan.takes.is_empty());
}

#[test]
fn a_value_that_can_change_moves_and_leaves_a_stale_copy() {
    let mut ledger = Ledger::default();
    bind(&mut ledger, HOME, 1, &[("x", Kind::Value)], &[]);
    let plan = bring(&ledger, LAB, &must(&["x"]));
    assert_eq!(plan.steps.len(), 1);
    record(&mut ledger, LAB, 2, &plan, Changes::default());
    assert_eq!(holders(&ledger, "x"), [LAB]);
    // A cell at home that does not read it drops it; one that does gets it back.
    assert_eq!(bring(&ledger, HOME, &must(&[])).drops, [Name::from("x")]);
    let back = bring(&ledger, HOME, &must(&["x"]));
    assert!(back.drops.is_empty());
    record(&mut ledger, HOME, 3, &back, Changes::default());
    assert_eq!(holders(&ledger, "x"), [HOME]);
}

#[test]
fn what_cannot_change_is_current_in_many_places() {
    let mut ledger = Ledger::default();
    bind(&mut ledger, HOME, 1, &[("n", Kind::Atom)], &[]);
    let plan = bring(&ledger, LAB, &must(&["n"]));
    record(&mut ledger, LAB, 2, &plan, Changes::default());
    assert_eq!(holders(&ledger, "n").len(), 2);
    assert!(bring(&ledger, LAB, &must(&["n"])).is_empty());
    bind(&mut ledger, HOME, 3, &[("n", Kind::Atom)], &[]);
    assert_eq!(bring(&ledger, LAB, &must(&[])).drops, [Name::from("n")]);
}

#[test]
fn a_function_brings_what_it_needs_through_any_depth() {
    let mut ledger = Ledger::default();
    let definitions = [function("f", &["g"]), function("g", &["data"])];
    let bound = [
        ("f", Kind::Function),
        ("g", Kind::Function),
        ("data", Kind::Value),
        ("other", Kind::Value),
    ];
    bind(&mut ledger, HOME, 1, &bound, &definitions);
    let plan = bring(&ledger, LAB, &must(&["f"]));
    assert_eq!(plan.steps.len(), 3, "{:?}", plan.steps);
    record(&mut ledger, LAB, 2, &plan, Changes::default());
    // Data that a function at the target reads is brought again when it changes.
    bind(&mut ledger, HOME, 3, &[("data", Kind::Value)], &[]);
    let plan = bring(&ledger, LAB, &must(&["f"]));
    assert!(
        matches!(plan.steps.as_slice(), [Step::Put(_)]),
        "{:?}",
        plan.steps
    );
}

#[test]
fn a_deleted_name_is_dropped_everywhere() {
    let mut ledger = Ledger::default();
    bind(&mut ledger, HOME, 1, &[("n", Kind::Atom)], &[]);
    let plan = bring(&ledger, LAB, &must(&["n"]));
    record(&mut ledger, LAB, 2, &plan, Changes::default());
    let changes = Changes {
        deleted: vec![Name::from("n")],
        ..Changes::default()
    };
    record(&mut ledger, HOME, 3, &Plan::default(), changes);
    let plan = bring(&ledger, LAB, &must(&["n"]));
    assert_eq!((plan.steps.len(), plan.drops), (0, vec![Name::from("n")]));
}

#[test]
fn a_dead_worker_loses_values_but_not_definitions() {
    let mut ledger = Ledger::default();
    bind(
        &mut ledger,
        LAB,
        4,
        &[("x", Kind::Value), ("f", Kind::Function)],
        &[function("f", &[])],
    );
    ledger.worker_lost(LAB, "`lab`", |_| "died".to_owned());
    let plan = planned(&ledger, HOME, &must(&["x", "f"]), &[]);
    assert_eq!(plan.absent, names(&["x"]));
    let lost = ledger.lost(ledger.committed(), &Name::from("x")).unwrap();
    assert_eq!((lost.made_by, lost.held_by.as_str()), (4, "`lab`"));
    assert!(matches!(plan.steps.as_slice(), [Step::Define(_)]));
}

#[test]
fn the_last_results_are_those_of_the_notebook() {
    let mut ledger = Ledger::default();
    bind(
        &mut ledger,
        HOME,
        1,
        &[("_1", Kind::Atom), ("_", Kind::Atom)],
        &[],
    );
    bind(
        &mut ledger,
        LAB,
        2,
        &[("_2", Kind::Atom), ("_", Kind::Atom)],
        &[],
    );
    let plan = bring(&ledger, HOME, &must(&["_"]));
    assert_eq!(plan.results, [Name::from("_2"), Name::from("_1")]);
    assert_eq!(plan.steps.len(), 1);
}

#[test]
fn a_definition_is_replayed_only_if_it_would_come_out_the_same() {
    let mut ledger = Ledger::default();
    let mut scaled = function("f", &[]);
    scaled.needs_now = names(&["k"]);
    let bound = [("k", Kind::Atom), ("f", Kind::Function)];
    bind(&mut ledger, HOME, 1, &bound, &[scaled.clone()]);
    let steps = bring(&ledger, LAB, &must(&["f"])).steps;
    assert!(
        matches!(steps.as_slice(), [Step::Put(_), Step::Define(_)]),
        "{steps:?}"
    );
    // A default argument that has been bound again since: the function itself must travel.
    bind(&mut ledger, HOME, 2, &[("k", Kind::Atom)], &[]);
    let steps = bring(&ledger, LAB, &must(&["f"])).steps;
    assert!(
        matches!(steps.as_slice(), [Step::Put(put)] if put.names.contains_key("f")),
        "{steps:?}"
    );
    // One that can change in place is shared with whoever else has it.
    let bound = [("k", Kind::Value), ("f", Kind::Function)];
    bind(&mut ledger, HOME, 3, &bound, &[scaled]);
    let steps = bring(&ledger, LAB, &must(&["f"])).steps;
    assert!(
        steps.iter().all(|step| matches!(step, Step::Put(_))),
        "{steps:?}"
    );
}
