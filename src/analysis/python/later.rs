//! What happens when something that the cell defines is called.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use crate::analysis::{CalledLater, Dynamic};
use crate::name::Name;

/// What happens when a function of the cell is called.
#[derive(Clone, Debug, Default)]
pub struct Later {
    pub reads: BTreeSet<Name>,
    pub writes: BTreeSet<Name>,
    pub deletes: BTreeSet<Name>,
    pub mutates: BTreeSet<Name>,
    pub dynamic: Option<Dynamic>,
    /// Whether what it returns may do, later still, what stands in it: a closure, a generator, an object.
    pub returns_code: bool,
    /// Notebook names to which it binds functions or classes.
    pub defines: BTreeSet<Name>,
}

impl Later {
    /// Whether it touches no name.
    pub fn is_empty(&self) -> bool {
        let names = [&self.reads, &self.writes, &self.deletes, &self.mutates];
        names.iter().all(|names| names.is_empty()) && self.dynamic.is_none()
    }

    pub fn needs(&self) -> BTreeSet<Name> {
        &self.reads | &self.changes()
    }

    pub fn changes(&self) -> BTreeSet<Name> {
        &(&self.writes | &self.deletes) | &self.mutates
    }

    pub fn add(&mut self, other: Self) {
        extend(&mut self.reads, other.reads);
        extend(&mut self.writes, other.writes);
        extend(&mut self.deletes, other.deletes);
        extend(&mut self.mutates, other.mutates);
        extend(&mut self.defines, other.defines);
        self.dynamic = self.dynamic.or(other.dynamic);
        self.returns_code |= other.returns_code;
    }

    fn called(&self) -> CalledLater {
        CalledLater {
            needs: self.needs(),
            binds: &self.writes | &self.deletes,
            mutates: self.mutates.clone(),
            dynamic: self.dynamic,
        }
    }
}

/// The smaller goes into the larger: what many nested functions read is not copied at each level.
fn extend(set: &mut BTreeSet<Name>, mut other: BTreeSet<Name>) {
    if set.len() < other.len() {
        std::mem::swap(set, &mut other);
    }
    set.extend(other);
}

/// What the names that the cell binds do when they are called.
#[derive(Debug, Default)]
pub struct Functions(BTreeMap<Name, Function>);

#[derive(Debug, Default)]
struct Function {
    later: Rc<Later>,
    noted: Noted,
    /// How often.
    times: u32,
}

/// Calls of a function are gone through anew, where less is sure, this often; then once for all.
const TIMES: u32 = 8;

/// Whether a call of a function, and of all that it calls, has been noted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Noted {
    #[default]
    No,
    /// As long as nothing becomes unsure: at this count of losses.
    At(u64),
    Always,
}

impl Functions {
    pub fn get(&self, name: &str) -> Option<&Rc<Later>> {
        self.0.get(name).map(|function| &function.later)
    }

    pub fn noted(&self, name: &Name) -> Noted {
        self.0
            .get(name)
            .map_or(Noted::Always, |function| function.noted)
    }

    /// Returns whether it should hold for all of the cell.
    pub fn note(&mut self, name: &Name, noted: Noted) -> bool {
        self.0.get_mut(name).is_some_and(|function| {
            function.noted = noted;
            function.times += 1;
            function.times > TIMES
        })
    }

    /// The name does this from now on.
    pub fn set(&mut self, name: Name, later: Later) {
        let function = self.0.entry(name).or_default();
        function.later = Rc::new(later);
        function.noted = Noted::No;
    }

    /// The name may do this, too.
    pub fn add(&mut self, name: Name, later: Later) {
        let function = self.0.entry(name).or_default();
        Rc::make_mut(&mut function.later).add(later);
        function.noted = Noted::No;
    }

    pub fn remove(&mut self, name: &Name) {
        self.0.remove(name);
    }

    pub fn into_called(self) -> BTreeMap<Name, CalledLater> {
        let functions = self.0.into_iter();
        functions
            .map(|(name, function)| (name, function.later.called()))
            .collect()
    }
}
