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
            Scope::Class { bound, globals } => {
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
            }
        }
    }
    true
}
