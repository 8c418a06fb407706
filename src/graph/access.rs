//! What each cell accesses: its own source and metadata, and what the definitions that it reads do
//! when they are called.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::Access;
use crate::analysis::{Analysis, CalledLater, Definition, DefinitionKind, Read};
use crate::cell::{Element, FileElement, Workflow};
use crate::name::Name;
use crate::paths::Place;

/// What the cells so far have defined. Whatever a cell reads counts as called by it.
#[derive(Clone, Debug, Default)]
pub struct Accesses {
    defined: BTreeMap<Name, Arc<CalledLater>>,
    bound: BTreeSet<Name>,
    /// Names that stand for what an `import` bound.
    imported: BTreeSet<Name>,
}

impl Accesses {
    /// What the cell that comes next in program order accesses; `after` is left to the caller.
    pub fn next(&mut self, analysis: &Analysis, workflow: Option<&Workflow>) -> Access {
        let step = workflow.and_then(|workflow| workflow.step.clone());
        let step = step.unwrap_or_default();
        let mut access = Access {
            is_step: workflow.is_some(),
            dynamic: analysis.dynamic.is_some(),
            ..Access::default()
        };
        access.writes.extend(named(&step.outputs));
        access.reads.extend(files(&step.inputs));
        access.writes.extend(files(&step.outputs));
        access.writes.extend(analysis.writes.iter().cloned());
        access.writes.extend(analysis.deletes.iter().cloned());
        let mut mutates = analysis.mutates.clone();
        let mut open: Vec<Name> = named(&step.inputs).collect();
        open.extend(holders_of_paths(&step.inputs));
        open.extend(holders_of_paths(&step.outputs));
        if step.autoin {
            let now = analysis.reads.iter();
            let now = now.filter(|(_, read)| **read != Read::Deferred);
            open.extend(now.map(|(name, _)| name.clone()));
        }
        let own = definitions(analysis);
        while let Some(name) = open.pop() {
            // What is called may meet what stood before, or what the cell itself defines.
            for called in [&self.defined, &own]
                .into_iter()
                .filter_map(|defined| defined.get(&name))
                .filter(|_| !access.reads.contains(&name))
            {
                open.extend(called.needs.iter().cloned());
                access.writes.extend(called.binds.iter().cloned());
                mutates.extend(called.mutates.iter().cloned());
                access.dynamic |= called.dynamic.is_some();
            }
            access.reads.insert(name);
        }
        let imports = imports(analysis);
        for name in access.writes.iter().filter(|name| !imports.contains(*name)) {
            self.imported.remove(name);
        }
        // `numpy.sum(x)` changes nothing that is carried: each worker has its own modules.
        access.writes.extend(
            mutates
                .into_iter()
                .filter(|name| !self.imported.contains(name)),
        );
        self.imported.extend(imports);
        // Any earlier cell may have made the last result.
        let result = |name: &Name| is_result(name.as_str()) && !self.bound.contains(name);
        access.dynamic |= access.reads.iter().any(result);
        // What is bound in any other way may still be, or hold, what it was defined as.
        for (name, mut called) in own {
            let replaces = |definition: &Definition| definition.binds.contains(&name);
            if !analysis.definitions.iter().any(replaces)
                && let Some(before) = self.defined.get(&name)
            {
                called = Arc::new(either(&called, before));
            }
            self.defined.insert(name, called);
        }
        self.bound.extend(access.writes.iter().cloned());
        access
    }
}

fn named(elements: &[Element]) -> impl Iterator<Item = Name> {
    elements
        .iter()
        .filter_map(Element::variable)
        .map(Name::from)
}

/// The variables that say where files are.
fn holders_of_paths(elements: &[Element]) -> impl Iterator<Item = Name> {
    let files = elements.iter().filter_map(Element::files);
    files.filter_map(FileElement::variable).map(Name::from)
}

/// Files, under names that no variable can have.
fn files(elements: &[Element]) -> impl Iterator<Item = Name> {
    let files = elements.iter().filter_map(Element::files);
    let places = files.flat_map(|files| {
        files
            .paths()
            .iter()
            .filter_map(|path| Place::parse(path).ok())
    });
    places.map(|place| Name::from(&*place.shown()))
}

/// What the names that the cell defines do when they are called, or replayed elsewhere.
fn definitions(analysis: &Analysis) -> BTreeMap<Name, Arc<CalledLater>> {
    let mut found = analysis.called_later.clone();
    for definition in &analysis.definitions {
        for name in &definition.binds {
            let called = found.entry(name.clone()).or_default();
            called.needs.extend(definition.needs_now.iter().cloned());
        }
    }
    found
        .into_iter()
        .map(|(name, called)| (name, Arc::new(called)))
        .collect()
}

fn imports(analysis: &Analysis) -> BTreeSet<Name> {
    let definitions = analysis.definitions.iter();
    definitions
        .filter(|definition| definition.kind == DefinitionKind::Import)
        .flat_map(|definition| definition.binds.iter().cloned())
        .collect()
}

fn either(one: &CalledLater, other: &CalledLater) -> CalledLater {
    CalledLater {
        needs: &one.needs | &other.needs,
        binds: &one.binds | &other.binds,
        mutates: &one.mutates | &other.mutates,
        dynamic: one.dynamic.or(other.dynamic),
    }
}

/// Whether IPython gives the name the result of a cell.
fn is_result(name: &str) -> bool {
    let number =
        |digits: &str| !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    matches!(name, "_" | "__" | "___" | "Out" | "_oh") || name.strip_prefix('_').is_some_and(number)
}
