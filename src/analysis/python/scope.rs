//! Scopes, and to whom a name belongs.

use std::collections::BTreeSet;

use super::bindings::Bindings;
use crate::name::Name;

/// A scope inside the cell. The cell's own top level is the notebook namespace.
#[derive(Debug)]
pub enum Scope {
    /// A function or lambda.
    Function(Bindings),
    /// A class body: what has been bound so far, and what it declares global.
    Class {
        /// Its name, with which private names inside it are mangled.
        name: Name,
        /// Names bound so far.
        bound: BTreeSet<Name>,
        /// Names declared `global`.
        globals: BTreeSet<Name>,
    },
    /// A comprehension, with its targets; or type parameters.
    Inner(BTreeSet<Name>),
}

/// Whether a name, seen from the innermost scope, is the notebook's.
pub fn is_global(scopes: &[Scope], name: &Name) -> bool {
    let mut innermost = true;
    for scope in scopes.iter().rev() {
        match scope {
            Scope::Function(bindings) => {
                if bindings.globals.contains(name) {
                    return true;
                }
                if bindings.locals.contains(name) {
                    return false;
                }
                innermost = false;
            }
            // A class's names are seen by its own statements alone.
            Scope::Class { bound, globals, .. } => {
                if innermost {
                    if globals.contains(name) {
                        return true;
                    }
                    if bound.contains(name) {
                        return false;
                    }
                }
                innermost = false;
            }
            Scope::Inner(targets) => {
                if targets.contains(name) {
                    return false;
                }
                innermost = false;
            }
        }
    }
    true
}

/// The notebook's name for a private name inside a class: `__x` in `C` is `_C__x`.
/// Source: "Private name mangling" in the Python reference.
pub fn mangled(scopes: &[Scope], name: Name) -> Name {
    let text = name.as_str();
    if !text.starts_with("__") || text.ends_with("__") {
        return name;
    }
    let class = scopes.iter().rev().find_map(|scope| match scope {
        Scope::Class { name, .. } => Some(name.as_str().trim_start_matches('_')),
        Scope::Function(_) | Scope::Inner(_) => None,
    });
    match class {
        Some(class) if !class.is_empty() => Name::from(format!("_{class}{text}").as_str()),
        _ => name,
    }
}
