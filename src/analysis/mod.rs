//! What the source of a cell reads, binds, deletes, changes and defines.
//!
//! Static, without I/O, and conservative: where the source cannot tell, it says so
//! ([`Analysis::dynamic`]) rather than guess. What a worker reports after a run corrects it.

pub mod python;

use std::collections::{BTreeMap, BTreeSet};

use crate::name::Name;

/// The result of analysing one cell.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Analysis {
    /// Names that the cell may take from the notebook namespace, and how surely.
    /// Builtins count when nothing in the cell binds them first: the caller knows what exists.
    pub reads: BTreeMap<Name, Read>,
    /// Names that the cell binds, surely or on some path.
    pub writes: BTreeSet<Name>,
    /// Names that the cell deletes, surely or on some path.
    pub deletes: BTreeSet<Name>,
    /// Names whose object the cell changes in place: a store to an item or attribute, an
    /// augmented assignment, `del x[...]`, a method call. Each is also in `reads`.
    pub mutates: BTreeSet<Name>,
    /// Top-level definitions, in the order of the source.
    pub definitions: Vec<Definition>,
    /// What the cell's functions and classes do when they are called, those in blocks and under
    /// magics, which cannot be replayed, too.
    pub called_later: BTreeMap<Name, CalledLater>,
    /// Why names may be reached that the source does not show; `None` if it shows all.
    pub dynamic: Option<Dynamic>,
    /// Whether the source parsed. If not, the other fields hold what could be recovered.
    pub parsed: bool,
}

/// How surely a name is read when the cell runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Read {
    /// Only when something defined in the cell is called: a function's body, a lambda.
    Deferred,
    /// On some path of the cell itself.
    Maybe,
    /// On every path that runs to the end.
    Surely,
}

/// A top-level statement that can be replayed elsewhere as source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Definition {
    /// What it is.
    pub kind: DefinitionKind,
    /// The names that it binds; empty for a magic.
    pub binds: Vec<Name>,
    /// The statement's text, decorators included, as in the cell.
    pub source: String,
    /// Line of the cell where `source` starts, from 1.
    pub line: u32,
    /// Names evaluated when the statement itself runs: decorators, defaults, bases, class bodies,
    /// annotations that are evaluated.
    pub needs_now: BTreeSet<Name>,
    /// Names read when what it binds is called or used later.
    pub needs_later: BTreeSet<Name>,
    /// Names bound, deleted or changed in place when what it binds is called or used later.
    pub changes_later: BTreeSet<Name>,
    /// Whether calling it may reach any name.
    pub dynamic_later: Option<Dynamic>,
    /// Whether a decorator wraps it.
    pub decorated: bool,
    /// Whether the cell binds a name of `needs_now` again after it.
    pub outdated: bool,
}

/// What calling a function or using a class does.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CalledLater {
    /// Names that it reads or changes.
    pub needs: BTreeSet<Name>,
    /// Names that it binds or deletes.
    pub binds: BTreeSet<Name>,
    /// Names whose object it changes in place.
    pub mutates: BTreeSet<Name>,
    /// Whether it may reach any name.
    pub dynamic: Option<Dynamic>,
}

/// Kinds of definition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DefinitionKind {
    /// `import a`, `from a import b`; never `from a import *` of something defined in the notebook.
    Import,
    /// `from __future__ import …`: changes how later cells compile.
    Future,
    /// `def` or `async def`.
    Function,
    /// `class`.
    Class,
    /// A configuration magic such as `%matplotlib inline`, `%load_ext`, `%config`.
    Magic,
}

/// Why a cell may reach names that its source does not show.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dynamic {
    /// `globals()`, `locals()`, `vars()`, `dir()` without argument at the top level.
    Namespace,
    /// `exec`, `eval`, `compile` of text; `get_ipython().…`.
    Code,
    /// `%run`, `%load_ext`, `%store`, an unknown magic: code that is not in the cell.
    Magic,
    /// `from m import *`.
    StarImport,
    /// The source did not parse.
    Unparsable,
}
