//! Scopes, and to whom a name belongs.

use std::collections::{BTreeMap, BTreeSet};

use super::bindings::Bindings;
use super::later::Later;
use super::sure::Sure;
use crate::name::Name;

/// A scope inside the cell. The cell's own top level is the notebook namespace.
#[derive(Debug)]
pub enum Scope {
    /// A function or lambda.
    Function(Bindings),
    /// A class body.
    Class(ClassBody),
    /// A comprehension, with its targets; or type parameters.
    Inner(BTreeSet<Name>),
}

/// The scope of a class body, which runs when the class is defined.
#[derive(Debug)]
pub struct ClassBody {
    /// Its name, with which private names inside it are mangled.
    pub name: Name,
    /// Tells its names from those of other classes.
    pub id: usize,
    /// All that it binds anywhere.
    pub bindings: Bindings,
    /// Bound so far, on some path.
    pub bound: BTreeSet<Name>,
    /// Its methods so far that nothing in its own body has called.
    pub methods: BTreeMap<Name, Later>,
    /// What its other methods do.
    pub called: Later,
}

impl ClassBody {
    /// What stands in [`Sure`] for a name of the class itself.
    pub fn own(&self, name: &Name) -> Name {
        Name::from(format!("{}.{name}", self.id).as_str())
    }
}

/// To whom a name belongs, seen from the innermost scope.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    /// The notebook.
    Notebook,
    /// The class being defined, if it has bound it by then; else the notebook.
    Either,
    /// A scope inside the cell.
    Inside,
}

/// To whom a name belongs, seen from the innermost scope. A class's names are seen by its own
/// statements alone, and one that it binds anywhere is never an enclosing function's.
pub fn owner(scopes: &[Scope], sure: &Sure, name: &Name) -> Owner {
    if let Some(Scope::Class(class)) = scopes.last() {
        if class.bindings.globals.contains(name) {
            return Owner::Notebook;
        }
        if class.bindings.locals.contains(name) {
            return match class.bound.contains(name) {
                true if sure.contains(&class.own(name)) => Owner::Inside,
                true => Owner::Either,
                false => Owner::Notebook,
            };
        }
    }
    for scope in scopes.iter().rev() {
        match scope {
            Scope::Function(bindings) if bindings.globals.contains(name) => return Owner::Notebook,
            Scope::Function(bindings) if bindings.locals.contains(name) => return Owner::Inside,
            Scope::Inner(targets) if targets.contains(name) => return Owner::Inside,
            Scope::Function(_) | Scope::Inner(_) | Scope::Class(_) => {}
        }
    }
    Owner::Notebook
}

/// The class whose private names are mangled here.
pub fn class_around(scopes: &[Scope]) -> Option<&Name> {
    scopes.iter().rev().find_map(|scope| match scope {
        Scope::Class(class) => Some(&class.name),
        Scope::Function(_) | Scope::Inner(_) => None,
    })
}

/// Whether a class changes the name.
pub fn is_private(text: &str) -> bool {
    text.starts_with("__") && !text.ends_with("__")
}

/// What a name is called inside a class: `__x` in `C` is `_C__x`.
/// Source: "Private name mangling" in the Python reference.
pub fn mangled(class: Option<&Name>, text: &str) -> Name {
    if is_private(text)
        && let Some(class) = class.map(|name| name.as_str().trim_start_matches('_'))
        && !class.is_empty()
    {
        return Name::from(format!("_{class}{text}").as_str());
    }
    Name::from(text)
}
