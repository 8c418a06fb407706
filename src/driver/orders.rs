//! The messages that go to a worker: a cell with its prelude, and the helper at start-up.

use std::collections::BTreeSet;
use std::path::Path;

use bytes::Bytes;
use cellferry_kernel::Author;
use cellferry_kernel::message::Message;
use cellferry_wire::protocol::Parts;
use serde_json::{Map, Value, json};

use super::values::Values;
use crate::analysis::DefinitionKind;
use crate::analysis::python::imported_modules;
use crate::ledger::Step;
use crate::session::{Orders, RunId};

/// The helper that every Python worker gets, as source: one module.
const HELPER: [&str; 3] = [
    include_str!("../../workers/python/pickling.py"),
    include_str!("../../workers/python/before.py"),
    include_str!("../../workers/python/helper.py"),
];

/// The message that installs the helper; `modules` is where the user's own modules are, if the worker would not look there.
pub fn helper_message(author: &Author, modules: Option<String>) -> Message {
    // A module of its own, so that pickles find its functions by name on both sides. JSON strings and
    // lists of text are Python literals, too.
    let modules: Vec<String> = modules.into_iter().collect();
    let source = format!("PATHS = {}\n{}", json!(modules), HELPER.concat());
    let module = "__import__('sys').modules.setdefault('_cellferry', __import__('types').ModuleType('_cellferry'))";
    let code = format!(
        "exec(compile({}, '<cellferry>', 'exec'), vars({module}))",
        json!(source)
    );
    let content = json!({
        "code": code, "silent": true, "store_history": false, "allow_stdin": false, "stop_on_error": false,
        "user_expressions": {},
    });
    author.message("execute_request", None, &content)
}

/// The modules that the source of the cell imports, and the definitions and values that come with it.
pub fn imported(source: &str, orders: &Orders, values: &Values) -> BTreeSet<String> {
    let mut found = imported_modules(source);
    for step in &orders.plan.steps {
        match step {
            Step::Define(defined) => found.extend(imported_modules(&defined.definition.source)),
            Step::Put(put) => found.extend(values.modules(put.transfer).cloned()),
        }
    }
    found
}

/// The content of a request whose cell runs only to make something again: nobody answers it, and where the notebook's
/// history is kept it stands there already.
fn unseen_content(content: &Bytes, at_home: bool) -> Bytes {
    let mut map: Map<String, Value> = serde_json::from_slice(content).unwrap_or_default();
    map.insert("allow_stdin".to_owned(), json!(false));
    map.insert("user_expressions".to_owned(), json!({}));
    if at_home {
        map.insert("store_history".to_owned(), json!(false));
    }
    Bytes::from(serde_json::to_vec(&map).unwrap_or_default())
}

/// The client's request as the worker gets it: its own header, so that everything the worker
/// says of it has the right parent, with our orders in the metadata.
pub fn execute_parts(
    run: RunId,
    orders: Orders,
    at_home: bool,
    lacks_modules: bool,
    values: &Values,
    segments: &Path,
) -> Parts {
    let request = &orders.request.message;
    let mut buffers = Vec::new();
    let mut actions = Vec::new();
    if !orders.inputs.is_empty() {
        actions.push(json!({"do": "inputs", "cells": orders.inputs}));
    }
    if !orders.plan.drops.is_empty() {
        actions.push(json!({"do": "drop", "names": orders.plan.drops}));
    }
    for step in &orders.plan.steps {
        actions.push(match step {
            Step::Define(defined) => json!({
                "do": "define",
                "binds": defined.definition.binds,
                "source": defined.definition.source,
                "line": defined.definition.line,
                "cell": &*defined.cell,
                "number": defined.number,
                "magic": defined.definition.kind == DefinitionKind::Magic,
            }),
            Step::Put(put) => values.put_action(put, segments, &mut buffers),
        });
    }
    if !orders.plan.results.is_empty() {
        actions.push(json!({"do": "results", "names": orders.plan.results}));
    }
    let mut metadata: Map<String, Value> =
        serde_json::from_slice(&request.metadata).unwrap_or_default();
    let files = if orders.files.is_empty() {
        Value::Null
    } else {
        // What has been brought home may have been replaced there by a later cell.
        let outputs = if orders.unseen {
            &[][..]
        } else {
            &orders.files.outputs
        };
        json!({"in": orders.files.inputs, "out": outputs, "again": orders.unseen})
    };
    metadata.insert(
        "cellferry".to_owned(),
        json!({
            "count": orders.count, "actions": actions, "touched": orders.touched, "watched": orders.watched,
            "steady": orders.steady,
            "keep": orders.keep, "unbound": orders.unbound, "run": run.0,
            "seeds": orders.seeds, "files": files, "gather": orders.gather, "modules": lacks_modules,
        }),
    );
    let metadata = serde_json::to_vec(&metadata).unwrap_or_default();
    let mut parts = vec![
        request.header.clone(),
        request.parent_header.clone(),
        Bytes::from(metadata),
        if orders.unseen {
            unseen_content(&request.content, at_home)
        } else {
            request.content.clone()
        },
    ];
    parts.extend(buffers);
    parts
}
