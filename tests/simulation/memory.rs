//! The namespace of one process, and what statements do to it: the workers have one each, the model kernel has one for
//! all.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::rc::Rc;

use cellferry::ledger::{Description, Kind};
use cellferry::name::Name;

use crate::program::{Expression, Statement};

/// How deep calls may go.
const DEPTH: usize = 4;
/// What a big list takes, in bytes: more than what is carried or compared without a thought.
const BIG: u64 = 4 << 20;

#[derive(Clone, Debug)]
pub enum Value {
    Number(i64),
    /// A list or a lock, by its place in the memory.
    Object(usize),
    Function(Rc<Function>),
}

/// `is` of Python: small numbers are one object.
impl PartialEq for Value {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Number(one), Self::Number(other)) => one == other,
            (Self::Object(one), Self::Object(other)) => one == other,
            (Self::Function(one), Self::Function(other)) => Rc::ptr_eq(one, other),
            _ => false,
        }
    }
}

#[derive(Debug)]
pub struct Function {
    /// The name that it was defined with.
    name: Name,
    body: Vec<Statement>,
    /// The body as text.
    text: Rc<str>,
}

#[derive(Clone, Debug)]
enum Object {
    List { items: Vec<Value>, big: bool },
    Lock,
}

/// What a cell shows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Said {
    /// The cell's source, with its execution count.
    Input(u32),
    Text(String),
    Result(u32, String),
    /// An exception: its class and its message.
    Error(String, String),
}

/// An exception under way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exception {
    pub ename: &'static str,
    pub evalue: String,
}

impl From<Exception> for Said {
    fn from(exception: Exception) -> Self {
        Self::Error(exception.ename.to_owned(), exception.evalue)
    }
}

impl Exception {
    fn new(ename: &'static str, evalue: impl Into<String>) -> Self {
        Self {
            ename,
            evalue: evalue.into(),
        }
    }

    pub fn interrupt() -> Self {
        Self::new("KeyboardInterrupt", "")
    }

    fn unbound(name: &Name) -> Self {
        Self::new("NameError", format!("name '{name}' is not defined"))
    }

    fn wrong(what: &str) -> Self {
        Self::new("TypeError", what)
    }
}

/// How a cell runs.
#[derive(Clone, Copy, Debug)]
pub struct Mode<'a> {
    /// The execution count; `None` for a silent cell, which has no result.
    pub count: Option<u32>,
    /// A name that cannot be read although it is bound: what the model knows to be lost.
    pub absent: Option<&'a Name>,
    /// The same for the last result.
    pub without_last: bool,
}

#[derive(Clone, Debug, Default)]
pub struct Memory {
    objects: Vec<Object>,
    names: BTreeMap<Name, Value>,
    /// What `_`, `__` and `___` are; empty text where there is no result, or none that could be had.
    last: Vec<Option<Value>>,
    /// The name of the last result.
    last_name: Option<Name>,
}

/// Values on their way between two memories, or kept for later: copies that share what the originals share.
#[derive(Clone, Debug, Default)]
pub struct Parcel {
    memory: Memory,
    /// Functions that go by the name under which the receiver finds them, too.
    by_name: BTreeMap<Name, Name>,
}

/// The names at one moment, by identity.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    names: BTreeMap<Name, Value>,
    last: Vec<Option<Value>>,
}

impl Snapshot {
    pub fn set(&mut self, name: &Name, value: Value) {
        self.names.insert(name.clone(), value);
    }

    pub fn get(&self, name: &Name) -> Option<&Value> {
        self.names.get(name)
    }
}

impl Memory {
    pub fn has(&self, name: &Name) -> bool {
        self.names.contains_key(name)
    }

    pub fn names(&self) -> impl Iterator<Item = &Name> {
        self.names.keys()
    }

    pub fn forget(&mut self, name: &Name) -> Option<Value> {
        self.names.remove(name)
    }

    pub fn bind(&mut self, name: &Name, value: Value) {
        self.names.insert(name.clone(), value);
    }

    pub fn snapshot(&self) -> Snapshot {
        Snapshot {
            names: self.names.clone(),
            last: self.last.clone(),
        }
    }

    /// Names bound since, and names that are gone.
    pub fn changes(&self, since: &Snapshot) -> (Vec<Name>, Vec<Name>) {
        let bound = self.names.iter();
        let bound = bound.filter(|(name, value)| since.names.get(*name) != Some(*value));
        let bound = bound.map(|(name, _)| name.clone()).collect();
        let gone = since.names.keys().filter(|name| !self.has(name));
        (bound, gone.cloned().collect())
    }

    /// Makes `_`, `__` and `___` these names' values.
    pub fn set_last(&mut self, names: &[Name]) {
        self.last = names
            .iter()
            .map(|name| self.names.get(name).cloned())
            .collect();
    }

    /// The name that the last result has for good, such as `_3`.
    pub fn last_name(&self) -> Option<&Name> {
        self.last_name.as_ref()
    }

    pub fn define(&mut self, name: &Name, body: &[Statement]) {
        let text: Vec<String> = body.iter().map(Statement::to_string).collect();
        let function = Function {
            name: name.clone(),
            body: body.to_vec(),
            text: text.join("; ").into(),
        };
        self.names
            .insert(name.clone(), Value::Function(Rc::new(function)));
    }

    // --- what shares objects -----------------------------------------------------------------------

    /// The objects that a name reaches; none if a lock is among them, since those cannot be followed by pickling.
    fn reach(&self, name: &Name) -> BTreeSet<usize> {
        self.names
            .get(name)
            .map_or_else(BTreeSet::new, |value| self.reach_of(value))
    }

    fn reach_of(&self, value: &Value) -> BTreeSet<usize> {
        let mut found = BTreeSet::new();
        let mut open: Vec<&Value> = vec![value];
        while let Some(value) = open.pop() {
            let Value::Object(at) = value else { continue };
            match &self.objects[*at] {
                Object::Lock => return BTreeSet::new(),
                Object::List { items, .. } => {
                    if found.insert(*at) {
                        open.extend(items);
                    }
                }
            }
        }
        found
    }

    /// Whether a lock stands in the way of carrying the name.
    pub fn is_locked(&self, name: &Name) -> bool {
        // The language lets no lock into a list.
        matches!(self.names.get(name), Some(Value::Object(at)) if matches!(self.objects[*at], Object::Lock))
    }

    /// Names together with all that share objects with them, through any depth.
    pub fn family(&self, names: &BTreeSet<Name>, without: &BTreeSet<Name>) -> BTreeSet<Name> {
        let mut family: BTreeSet<Name> = names
            .iter()
            .filter(|name| self.has(name))
            .cloned()
            .collect();
        if family.iter().any(|name| self.is_locked(name)) {
            return family;
        }
        let mut reached: BTreeSet<usize> =
            family.iter().flat_map(|name| self.reach(name)).collect();
        if reached.is_empty() {
            return family;
        }
        let mut others: Vec<(&Name, BTreeSet<usize>)> = self
            .names
            .keys()
            .filter(|name| !family.contains(*name) && !without.contains(*name))
            .map(|name| (name, self.reach(name)))
            .collect();
        loop {
            let before = others.len();
            others.retain(|(name, objects)| {
                let joins = !objects.is_disjoint(&reached);
                if joins {
                    family.insert((*name).clone());
                    reached.extend(objects);
                }
                !joins
            });
            if others.len() == before {
                return family;
            }
        }
    }

    /// Whether the name shares an object with a value that may have no name any more.
    pub fn shares_with(&self, name: &Name, value: &Value) -> bool {
        !self.reach(name).is_disjoint(&self.reach_of(value))
    }

    pub fn shares(&self, one: &Name, other: &Name) -> bool {
        !self.reach(one).is_disjoint(&self.reach(other))
    }

    /// Those of the names that share objects, by group; names that share none are left out.
    pub fn groups<'a>(&self, names: impl IntoIterator<Item = &'a Name>) -> Vec<BTreeSet<Name>> {
        let mut found: Vec<(BTreeSet<Name>, BTreeSet<usize>)> = Vec::new();
        for name in names {
            let mut members = BTreeSet::from([name.clone()]);
            let mut objects = self.reach(name);
            found.retain(|(others, theirs)| {
                let joins = !theirs.is_disjoint(&objects);
                if joins {
                    members.extend(others.iter().cloned());
                    objects.extend(theirs);
                }
                !joins
            });
            found.push((members, objects));
        }
        found.retain(|(members, _)| members.len() > 1);
        found.into_iter().map(|(members, _)| members).collect()
    }

    // --- what values are -----------------------------------------------------------------------------

    /// What the names hold, as text: the same text if and only if the same content, with the same sharing inside.
    pub fn show<'a>(&self, names: impl IntoIterator<Item = &'a Name>) -> String {
        let (mut text, mut seen) = (String::new(), Vec::new());
        for name in names {
            if !text.is_empty() {
                text.push(' ');
            }
            match self.names.get(name) {
                Some(value) => self.write(value, &mut text, &mut seen),
                None => text.push('-'),
            }
        }
        text
    }

    fn write(&self, value: &Value, text: &mut String, seen: &mut Vec<usize>) {
        match value {
            Value::Number(number) => {
                let _ = write!(text, "{number}");
            }
            Value::Function(function) => {
                let _ = write!(text, "<{}: {}>", function.name, function.text);
            }
            Value::Object(at) => match &self.objects[*at] {
                Object::Lock => text.push_str("<lock>"),
                Object::List { items, big } => {
                    if let Some(place) = seen.iter().position(|other| other == at) {
                        let _ = write!(text, "#{place}");
                        return;
                    }
                    seen.push(*at);
                    text.push_str(if *big { "[big" } else { "[" });
                    for (place, item) in items.iter().enumerate() {
                        if place > 0 || *big {
                            text.push(' ');
                        }
                        self.write(item, text, seen);
                    }
                    text.push(']');
                }
            },
        }
    }

    /// What the kernel is told of a value.
    pub fn describe(&self, name: &Name) -> Option<Description> {
        let mut needs = BTreeSet::new();
        let mut size = 0;
        let (kind, type_name) = match self.names.get(name)? {
            Value::Number(_) => (Kind::Atom, "int"),
            Value::Function(function) => {
                needs.extend(function.mentions());
                (Kind::Function, "function")
            }
            Value::Object(at) => match &self.objects[*at] {
                Object::Lock => (Kind::Value, "lock"),
                Object::List { .. } => {
                    size = self.size(self.reach(name));
                    (Kind::Value, "list")
                }
            },
        };
        Some(Description {
            kind,
            type_name: type_name.to_owned(),
            needs,
            size,
        })
    }

    fn size(&self, objects: BTreeSet<usize>) -> u64 {
        objects
            .into_iter()
            .map(|at| match &self.objects[at] {
                Object::List { big: true, .. } => BIG,
                Object::List { items, .. } => 56 + 8 * items.len() as u64,
                Object::Lock => 0,
            })
            .sum()
    }

    // --- carrying --------------------------------------------------------------------------------------

    /// Copies of these names' values, to be bound elsewhere, where `ignored` names are something else.
    pub fn pack(&self, names: &BTreeSet<Name>, ignored: &BTreeSet<Name>) -> Parcel {
        let mut parcel = self.copy(names);
        // What stands in the notebook under its own name is found there by that name.
        for name in names {
            if let Some(value @ Value::Function(function)) = self.names.get(name)
                && !names.contains(&function.name)
                && !ignored.contains(&function.name)
                && self.names.get(&function.name) == Some(value)
            {
                parcel.memory.forget(name);
                parcel.by_name.insert(name.clone(), function.name.clone());
            }
        }
        parcel
    }

    /// Copies of these names' values, to be bound here again.
    pub fn copy(&self, names: &BTreeSet<Name>) -> Parcel {
        let mut memory = Self::default();
        let mut moved = BTreeMap::new();
        for name in names {
            if let Some(value) = self.names.get(name) {
                let value = memory.adopt(self, value, &mut moved, false);
                memory.names.insert(name.clone(), value);
            }
        }
        Parcel {
            memory,
            by_name: BTreeMap::new(),
        }
    }

    fn adopt(
        &mut self,
        from: &Self,
        value: &Value,
        moved: &mut BTreeMap<usize, usize>,
        anew: bool,
    ) -> Value {
        match value {
            Value::Number(number) => Value::Number(*number),
            Value::Function(function) if anew => Value::Function(Rc::new(Function {
                name: function.name.clone(),
                body: function.body.clone(),
                text: function.text.clone(),
            })),
            Value::Function(function) => Value::Function(function.clone()),
            Value::Object(at) => {
                if let Some(at) = moved.get(at) {
                    return Value::Object(*at);
                }
                let new = self.objects.len();
                moved.insert(*at, new);
                self.objects.push(from.objects[*at].clone());
                if let Object::List { items, .. } = &from.objects[*at] {
                    let copies = items
                        .iter()
                        .map(|item| self.adopt(from, item, moved, anew))
                        .collect();
                    if let Object::List { items, .. } = &mut self.objects[new] {
                        *items = copies;
                    }
                }
                Value::Object(new)
            }
        }
    }

    /// Binds what was packed; the name that is missing, if a function cannot be found by its name.
    pub fn unpack(&mut self, parcel: &Parcel) -> Result<(), Name> {
        let mut found = Vec::new();
        for (name, known_as) in &parcel.by_name {
            match self.names.get(known_as) {
                Some(value) => found.push((name.clone(), value.clone())),
                None => return Err(known_as.clone()),
            }
        }
        self.names.extend(found);
        self.bind_copies(parcel, true);
        Ok(())
    }

    /// Binds the names as they were; those that were copied then are bound to their copies.
    pub fn restore(&mut self, before: Snapshot, copies: &Parcel) {
        self.names = before.names;
        self.last = before.last;
        self.bind_copies(copies, false);
    }

    fn bind_copies(&mut self, parcel: &Parcel, anew: bool) {
        let mut moved = BTreeMap::new();
        for (name, value) in &parcel.memory.names {
            let value = self.adopt(&parcel.memory, value, &mut moved, anew);
            self.names.insert(name.clone(), value);
        }
    }

    // --- running -----------------------------------------------------------------------------------------

    /// Executes one statement.
    pub fn execute(
        &mut self,
        statement: &Statement,
        mode: Mode<'_>,
        said: &mut Vec<Said>,
    ) -> Result<(), Exception> {
        self.run(statement, mode, said, 0)
    }

    fn run(
        &mut self,
        statement: &Statement,
        mode: Mode<'_>,
        said: &mut Vec<Said>,
        depth: usize,
    ) -> Result<(), Exception> {
        match statement {
            Statement::Bind(name, expression) => {
                let value = self.evaluate(expression, mode)?;
                self.names.insert(name.clone(), value);
            }
            Statement::Extend(name, number) => {
                let value = self.read(name, mode)?;
                self.push(&value, Value::Number(*number))?;
                self.names.insert(name.clone(), value);
            }
            Statement::Append(name, expression) => {
                let list = self.read(name, mode)?;
                if !self.is_list(&list) {
                    return Err(Exception::new("AttributeError", "no attribute 'append'"));
                }
                let item = self.evaluate(expression, mode)?;
                self.push(&list, item)?;
            }
            Statement::Push(name, expression) => {
                let list = self.read(name, mode)?;
                let item = self.evaluate(expression, mode)?;
                self.push(&list, item)?;
            }
            Statement::Delete(name) => {
                self.read(name, mode)?;
                self.names.remove(name);
            }
            Statement::Print(names) => {
                for name in names {
                    self.read(name, mode)?;
                }
                said.push(Said::Text(self.show(names)));
            }
            Statement::Last => {
                let mut text = String::new();
                if let Some(Some(value)) = self.last.first().filter(|_| !mode.without_last) {
                    self.write(value, &mut text, &mut Vec::new());
                }
                said.push(Said::Text(text));
            }
            Statement::Result(name) => {
                let value = self.read(name, mode)?;
                if let Some(count) = mode.count {
                    said.push(Said::Result(count, self.show([name])));
                    let name = Name::from(format!("_{count}").as_str());
                    self.names.insert(name.clone(), value.clone());
                    self.last_name = Some(name);
                    self.last.insert(0, Some(value));
                    self.last.truncate(3);
                }
            }
            Statement::Fail => {
                return Err(Exception::new("ZeroDivisionError", "division by zero"));
            }
            Statement::If(name, inner) => {
                let value = self.read(name, mode)?;
                if self.is_true(&value) {
                    self.run(inner, mode, said, depth)?;
                }
            }
            Statement::Define(name, body) => self.define(name, body),
            Statement::Call(name) => {
                let Value::Function(function) = self.read(name, mode)? else {
                    return Err(Exception::wrong("not callable"));
                };
                if depth == DEPTH {
                    return Err(Exception::new("RecursionError", "too deep"));
                }
                for statement in &function.body {
                    self.run(statement, mode, said, depth + 1)?;
                }
            }
            Statement::Exec(inner) => self.run(inner, mode, said, depth)?,
        }
        Ok(())
    }

    fn read(&self, name: &Name, mode: Mode<'_>) -> Result<Value, Exception> {
        self.names
            .get(name)
            .filter(|_| mode.absent != Some(name))
            .cloned()
            .ok_or_else(|| Exception::unbound(name))
    }

    fn evaluate(&mut self, expression: &Expression, mode: Mode<'_>) -> Result<Value, Exception> {
        Ok(match expression {
            Expression::Number(number) => Value::Number(*number),
            Expression::List(numbers) => {
                self.list(numbers.iter().copied().map(Value::Number).collect(), false)
            }
            Expression::Big(number) => self.list(vec![Value::Number(*number)], true),
            Expression::Name(name) => self.read(name, mode)?,
            Expression::Wrap(name) => {
                let value = self.read(name, mode)?;
                self.may_be_item(&value)?;
                self.list(vec![value], false)
            }
            Expression::Copy(name) => match self.read(name, mode)? {
                Value::Object(at) => match self.objects[at].clone() {
                    Object::List { items, big } => self.list(items, big),
                    Object::Lock => return Err(Exception::wrong("not iterable")),
                },
                _ => return Err(Exception::wrong("not iterable")),
            },
            Expression::Length(name) => match self.read(name, mode)? {
                Value::Object(at) => match &self.objects[at] {
                    Object::List { items, .. } => Value::Number(items.len() as i64),
                    Object::Lock => return Err(Exception::wrong("has no len()")),
                },
                _ => return Err(Exception::wrong("has no len()")),
            },
            Expression::Lock => {
                self.objects.push(Object::Lock);
                Value::Object(self.objects.len() - 1)
            }
        })
    }

    fn list(&mut self, items: Vec<Value>, big: bool) -> Value {
        self.objects.push(Object::List { items, big });
        Value::Object(self.objects.len() - 1)
    }

    fn is_list(&self, value: &Value) -> bool {
        matches!(value, Value::Object(at) if matches!(self.objects[*at], Object::List { .. }))
    }

    fn is_true(&self, value: &Value) -> bool {
        match value {
            Value::Number(number) => *number != 0,
            Value::Function(_) => true,
            Value::Object(at) => match &self.objects[*at] {
                Object::List { items, .. } => !items.is_empty(),
                Object::Lock => true,
            },
        }
    }

    /// Lists hold numbers and lists: what else shares an object with them could not be carried, and one kernel and
    /// many would differ, as the documentation says they do.
    fn may_be_item(&self, value: &Value) -> Result<(), Exception> {
        match value {
            Value::Number(_) => Ok(()),
            value if self.is_list(value) => Ok(()),
            _ => Err(Exception::wrong("lists hold numbers and lists")),
        }
    }

    fn push(&mut self, list: &Value, item: Value) -> Result<(), Exception> {
        self.may_be_item(&item)?;
        if let Value::Object(at) = list
            && let Object::List { items, .. } = &mut self.objects[*at]
        {
            items.push(item);
            return Ok(());
        }
        Err(Exception::wrong("not a list"))
    }
}

impl Function {
    fn mentions(&self) -> impl Iterator<Item = Name> + '_ {
        self.body.iter().flat_map(Statement::mentions).cloned()
    }
}

impl Parcel {
    /// Names that must stand where it is unpacked.
    pub fn needs(&self, holder: &Memory) -> BTreeSet<Name> {
        let mut needs: BTreeSet<Name> = self.by_name.values().cloned().collect();
        for value in self.memory.names.values() {
            if let Value::Function(function) = value {
                needs.extend(function.mentions().filter(|name| holder.has(name)));
            }
        }
        needs.retain(|name| !self.memory.has(name) && !self.by_name.contains_key(name));
        needs
    }

    /// How much it is, in bytes.
    pub fn size(&self) -> u64 {
        self.memory.size((0..self.memory.objects.len()).collect())
    }

    /// The same with every value replaced by one that no program makes: what a copy of memory holds that has been
    /// reused since.
    pub fn garbage(&self) -> Self {
        let names = self.memory.names.keys();
        let names = names.map(|name| (name.clone(), Value::Number(-666)));
        Self {
            memory: Memory {
                names: names.collect(),
                ..Memory::default()
            },
            by_name: self.by_name.clone(),
        }
    }
}
