//! What is known of a value, from the worker that has it or from the statement that defines it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde::Deserialize;

use super::Version;
use crate::analysis::Definition;
use crate::name::Name;

/// What a worker says of a value that it bound or handed out.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Description {
    /// How it travels.
    pub kind: Kind,
    /// Its Python type, for messages.
    #[serde(rename = "type")]
    pub type_name: String,
    /// Notebook names that it refers to.
    #[serde(default)]
    pub needs: BTreeSet<Name>,
    /// About how much memory it takes, in bytes.
    #[serde(default)]
    pub size: u64,
}

/// How a value behaves when it is carried.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// A module: imported again where it is needed.
    Module,
    /// A class.
    Class,
    /// A function without a state of its own.
    Function,
    /// A value that cannot change in place.
    Atom,
    /// Anything else.
    Value,
}

/// A definition together with the cell it stands in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Defined {
    /// The statement.
    pub definition: Definition,
    /// The whole source of its cell, so that tracebacks show it.
    pub cell: Arc<str>,
    /// The execution count of the run that made it.
    pub number: u32,
    /// Which versions of the names that the statement evaluates were current when it ran.
    pub needs: BTreeMap<Name, Version>,
}
