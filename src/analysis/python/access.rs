//! What meeting a name means: a read, a write, a deletion, a change in place, a call.

use ruff_python_ast::Expr;

use super::later::{Later, Noted};
use super::scope::{self, Owner, Scope, class_around, mangled};
use super::walk::{Held, Walker};
use crate::analysis::{Dynamic, Read};
use crate::name::Name;

impl Walker<'_> {
    pub fn name(&self, text: &str) -> Name {
        if scope::is_private(text) {
            return mangled(class_around(&self.scopes), text);
        }
        Name::from(text)
    }

    pub fn owner(&self, name: &Name) -> Owner {
        scope::owner(&self.scopes, &self.sure, name)
    }

    pub fn read(&mut self, text: &str) {
        self.read_to(text, false);
    }

    /// Reads a name, `called` if only to call it at once.
    pub fn read_to(&mut self, text: &str, called: bool) {
        if text.is_empty() {
            // Recovered from an error.
            return;
        }
        let name = self.name(text);
        let owner = self.owner(&name);
        if owner != Owner::Notebook {
            self.called_in_class(&name);
        }
        if owner == Owner::Inside || text == "__class__" && class_around(&self.scopes).is_some() {
            return;
        }
        self.reflects_by_name(text, called);
        if let Some(later) = &mut self.later {
            later.reads.insert(name);
            return;
        }
        if let Some(now) = &mut self.now {
            now.insert(name.clone());
        }
        self.called(&name);
        if let (Some(held), Some(later)) = (&mut self.held, self.functions.get(name.as_str()))
            && !held.arguments
            && (!called || later.returns_code)
        {
            held.later.add(Later::clone(later));
        }
        if !self.sure.contains(&name) {
            // What the cell binds on another path is most likely its own.
            let own = owner == Owner::Either || self.found.writes.contains(&name);
            let how = if self.conditions == 0 && !own {
                Read::Surely
            } else {
                Read::Maybe
            };
            self.note_read(name.clone(), how);
        }
        self.reached.insert(name);
    }

    pub fn note_read(&mut self, name: Name, how: Read) {
        let known = self.found.reads.entry(name).or_insert(how);
        *known = how.max(*known);
    }

    pub fn write(&mut self, text: &str) {
        let name = self.name(text);
        if let Some(Scope::Class(class)) = self.scopes.last_mut()
            && !class.bindings.is_foreign(&name)
        {
            self.sure.bind(class.own(&name));
            class.bound.insert(name);
            return;
        }
        if self.owner(&name) == Owner::Inside {
            return;
        }
        if let Some(later) = &mut self.later {
            later.writes.insert(name);
            return;
        }
        if self.top && self.conditions == 0 && self.scopes.is_empty() {
            self.functions.remove(&name);
        }
        self.rebind(&name);
        self.found.writes.insert(name.clone());
        self.sure.bind(name);
    }

    /// The name has, or may have, another value from here on.
    fn rebind(&mut self, name: &Name) {
        // Definitions evaluated with the value until now would come out otherwise.
        for index in self.needed_by.remove(name).unwrap_or_default() {
            self.found.definitions[index].outdated = true;
        }
        if !self.rebound.contains(name) {
            self.rebound.insert(name.clone());
        }
    }

    pub fn delete(&mut self, text: &str) {
        let name = self.name(text);
        if let Some(Scope::Class(class)) = self.scopes.last_mut()
            && !class.bindings.is_foreign(&name)
        {
            self.sure.unbind(&class.own(&name));
            return;
        }
        if self.owner(&name) == Owner::Inside {
            return;
        }
        if let Some(later) = &mut self.later {
            later.deletes.insert(name);
            return;
        }
        self.read(text);
        self.rebind(&name);
        self.sure.unbind(&name);
        self.found.deletes.insert(name);
    }

    /// The object behind the root of `a.b[c].d` changes.
    pub fn mutate(&mut self, expression: &Expr) {
        let mut roots = Vec::new();
        roots_of(expression, &mut roots);
        for root in roots {
            let name = self.name(root);
            if self.owner(&name) == Owner::Inside {
                continue;
            }
            // A name that the cell has just bound is its own, but its value may be an old one.
            match &mut self.later {
                Some(later) => later.mutates.insert(name),
                None => self.found.mutates.insert(name),
            };
        }
    }

    pub fn dynamic(&mut self, why: Dynamic) {
        let place = match &mut self.later {
            Some(later) => &mut later.dynamic,
            None => &mut self.found.dynamic,
        };
        place.get_or_insert(why);
    }

    /// A function of this cell is called, or handed to somebody who may call it. Whatever it calls
    /// counts, through any depth; what has been noted already is not gone through again.
    pub fn called(&mut self, name: &Name) {
        let mut open = vec![name.clone()];
        let mut visited = Vec::new();
        let mut settled = true;
        while let Some(name) = open.pop() {
            match self.functions.noted(&name) {
                Noted::Always => continue,
                Noted::At(losses) if losses == self.sure.losses() => {
                    settled = false;
                    continue;
                }
                Noted::No | Noted::At(_) => {}
            }
            let Some(later) = self.functions.get(name.as_str()).cloned() else {
                continue;
            };
            let forever = self.functions.note(&name, Noted::At(self.sure.losses()));
            visited.push(name);
            open.extend(later.reads.iter().cloned());
            self.reached.extend(later.reads.iter().cloned());
            settled &= self.happens(&later, forever);
        }
        if settled {
            for name in visited {
                self.functions.note(&name, Noted::Always);
            }
        }
    }

    /// What a call does: here, or, if `forever`, anywhere from here on. Returns whether it would do
    /// nothing else at any later place of the cell.
    fn happens(&mut self, later: &Later, forever: bool) -> bool {
        let mut settled = true;
        for name in &later.reads {
            if self.sure.is_lasting(name) {
                continue;
            }
            if forever || !self.sure.contains(name) {
                self.note_read(name.clone(), Read::Maybe);
            } else {
                settled = false;
            }
        }
        for name in &later.deletes {
            self.rebind(name);
            self.sure.unbind(name);
            self.found.deletes.insert(name.clone());
        }
        for name in &later.writes {
            self.rebind(name);
            self.found.writes.insert(name.clone());
        }
        self.found.mutates.extend(later.mutates.iter().cloned());
        if self.found.dynamic.is_none() {
            self.found.dynamic = later.dynamic;
        }
        settled
    }

    /// The name may be one of the methods of the class whose body runs: then it may be called here.
    fn called_in_class(&mut self, name: &Name) {
        let Some(Scope::Class(class)) = self.scopes.last_mut() else {
            return;
        };
        if self.later.is_some() || !class.methods.contains_key(name) {
            return;
        }
        for later in std::mem::take(&mut class.methods).into_values() {
            self.called_at_once(&later);
            if let Some(Scope::Class(class)) = self.scopes.last_mut() {
                class.called.add(later);
            }
        }
    }

    /// A function that has no name of its own is called here.
    pub fn called_at_once(&mut self, later: &Later) {
        for name in &later.reads {
            self.called(name);
            self.reached.insert(name.clone());
        }
        self.happens(later, false);
    }

    /// Visits an expression, and gathers what the functions in it do: calling what it gives may do
    /// it, too. For `arguments` see [`Held`].
    pub fn held<T>(&mut self, arguments: bool, visit: impl FnOnce(&mut Self) -> T) -> (T, Later) {
        let outer = self.held.replace(Held {
            later: Later::default(),
            arguments,
        });
        let result = visit(self);
        let held = std::mem::replace(&mut self.held, outer);
        let held = held.map(|held| held.later).unwrap_or_default();
        if let Some(outer) = &mut self.held
            && !held.is_empty()
        {
            outer.later.add(held.clone());
        }
        (result, held)
    }

    /// Notes that a target holds functions that do this.
    pub fn holds(&mut self, target: &Expr, held: &Later) {
        match target {
            Expr::Name(name) => {
                let name = self.name(&name.id);
                if self.owner(&name) == Owner::Notebook {
                    self.functions.add(name, held.clone());
                }
            }
            Expr::Tuple(tuple) => tuple.elts.iter().for_each(|one| self.holds(one, held)),
            Expr::List(list) => list.elts.iter().for_each(|one| self.holds(one, held)),
            Expr::Starred(starred) => self.holds(&starred.value, held),
            // `handlers["x"] = f`
            Expr::Attribute(attribute) => self.holds(&attribute.value, held),
            Expr::Subscript(subscript) => self.holds(&subscript.value, held),
            _ => {}
        }
    }
}

/// The names at the roots of attributes, subscripts, calls and choices.
fn roots_of<'e>(mut expression: &'e Expr, roots: &mut Vec<&'e str>) {
    loop {
        expression = match expression {
            Expr::Name(name) => return roots.push(&name.id),
            Expr::Attribute(attribute) => &attribute.value,
            Expr::Subscript(subscript) => &subscript.value,
            Expr::Await(awaited) => &awaited.value,
            Expr::Starred(starred) => &starred.value,
            Expr::Named(named) => {
                roots_of(&named.target, roots);
                &named.value
            }
            Expr::If(choice) => {
                roots_of(&choice.body, roots);
                &choice.orelse
            }
            Expr::BoolOp(choice) => {
                return choice
                    .values
                    .iter()
                    .for_each(|value| roots_of(value, roots));
            }
            Expr::Call(call) => match &*call.func {
                Expr::Attribute(attribute) => &attribute.value,
                _ => return,
            },
            _ => return,
        };
    }
}
