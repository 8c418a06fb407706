//! Follows a cell's paths and notes every access to a notebook name.

use std::collections::{BTreeMap, BTreeSet};

use ruff_python_ast::visitor::{Visitor, walk_decorator, walk_expr, walk_pattern, walk_stmt};
use ruff_python_ast::{
    Comprehension, Decorator, ExceptHandler, Expr, ExprContext, IpyEscapeKind, Parameters, Pattern,
    Stmt, TypeParams,
};
use ruff_text_size::{Ranged, TextRange};

use super::bindings::{Bindings, import_root, pattern_name, targets};
use super::magics::{self, Body, CellMagic, Line};
use super::scope::{Scope, is_global, mangled};
use super::with_parsed;
use crate::analysis::{Analysis, CalledLater, Definition, DefinitionKind, Dynamic, Read};
use crate::name::Name;

/// What happens when a function of the cell is called.
#[derive(Clone, Debug, Default)]
struct Later {
    reads: BTreeSet<Name>,
    writes: BTreeSet<Name>,
    deletes: BTreeSet<Name>,
    mutates: BTreeSet<Name>,
    dynamic: Option<Dynamic>,
}

pub struct Walker<'s> {
    source: &'s str,
    found: Analysis,
    scopes: Vec<Scope>,
    /// Names that are bound on every path to here.
    surely: BTreeSet<Name>,
    /// How many conditions this place depends on.
    conditions: u32,
    /// Gathers accesses inside a function body, which happen later.
    later: Option<Later>,
    /// Gathers names that a definition evaluates at once.
    now: Option<BTreeSet<Name>>,
    /// What calling the cell's own functions does.
    functions: BTreeMap<Name, Later>,
    /// Whether the statement is one of the cell's own, not one in a block or a magic.
    top: bool,
    /// Names whose last top-level binding is not a definition.
    rebound: BTreeSet<Name>,
}

impl<'s> Walker<'s> {
    pub fn new(source: &'s str) -> Self {
        Self {
            source,
            found: Analysis {
                parsed: true,
                ..Analysis::default()
            },
            scopes: Vec::new(),
            surely: BTreeSet::new(),
            conditions: 0,
            later: None,
            now: None,
            functions: BTreeMap::new(),
            top: true,
            rebound: BTreeSet::new(),
        }
    }

    pub fn program(&mut self, body: &[Stmt]) {
        for statement in body {
            self.top = true;
            self.visit_stmt(statement);
        }
    }

    pub fn parsed(&mut self, parsed: bool) {
        if !parsed {
            self.found.parsed = false;
            self.found.dynamic = Some(Dynamic::Unparsable);
        }
    }

    /// The result; definitions that the cell itself overwrites with something else are left out.
    pub fn finish(mut self) -> Analysis {
        let rebound = self.rebound;
        self.found.definitions.retain(|definition| {
            definition.binds.is_empty()
                || definition.binds.iter().any(|name| !rebound.contains(name))
        });
        self.found.called_later = self
            .functions
            .into_iter()
            .map(|(name, later)| {
                let called = CalledLater {
                    needs: later.needs(),
                    binds: &later.writes | &later.deletes,
                    mutates: later.mutates,
                    dynamic: later.dynamic,
                };
                (name, called)
            })
            .collect();
        self.found
    }

    // --- accesses

    fn in_class(&self) -> bool {
        self.scopes
            .iter()
            .any(|scope| matches!(scope, Scope::Class { .. }))
    }

    fn global(&self, name: &Name) -> bool {
        is_global(&self.scopes, name)
    }

    fn read(&mut self, text: &str) {
        let name = Name::from(text);
        if !self.global(&name) || text == "__class__" && self.in_class() {
            return;
        }
        let name = mangled(&self.scopes, name);
        self.dynamic_name(text);
        if let Some(later) = &mut self.later {
            later.reads.insert(name);
            return;
        }
        if let Some(now) = &mut self.now {
            now.insert(name.clone());
        }
        if self.functions.contains_key(&name) {
            self.called(&name);
        }
        if !self.surely.contains(&name) {
            // What the cell binds on another path is most likely its own.
            let how = if self.conditions == 0 && !self.found.writes.contains(&name) {
                Read::Surely
            } else {
                Read::Maybe
            };
            self.note_read(name, how);
        }
    }

    fn note_read(&mut self, name: Name, how: Read) {
        let known = self.found.reads.entry(name).or_insert(how);
        *known = how.max(*known);
    }

    fn write(&mut self, text: &str) {
        let name = Name::from(text);
        if let Some(Scope::Class { bound, globals, .. }) = self.scopes.last_mut()
            && !globals.contains(&name)
        {
            bound.insert(name);
            return;
        }
        if !self.global(&name) {
            return;
        }
        let name = mangled(&self.scopes, name);
        if let Some(later) = &mut self.later {
            later.writes.insert(name);
            return;
        }
        if self.scopes.is_empty() {
            self.functions.remove(&name);
            self.rebound.insert(name.clone());
        }
        self.outdate(&name);
        self.found.writes.insert(name.clone());
        self.surely.insert(name);
    }

    /// Definitions evaluated with the name's value until now would come out otherwise from here on.
    fn outdate(&mut self, name: &Name) {
        for definition in &mut self.found.definitions {
            definition.outdated |= definition.needs_now.contains(name);
        }
    }

    fn delete(&mut self, text: &str) {
        let name = Name::from(text);
        if let Some(Scope::Class { bound, .. }) = self.scopes.last_mut()
            && bound.remove(&name)
        {
            return;
        }
        if !self.global(&name) {
            return;
        }
        let name = mangled(&self.scopes, name);
        if let Some(later) = &mut self.later {
            later.deletes.insert(name);
            return;
        }
        self.read(text);
        self.outdate(&name);
        self.rebound.insert(name.clone());
        self.surely.remove(&name);
        self.found.deletes.insert(name);
    }

    /// The object behind the root of `a.b[c].d` changes.
    fn mutate(&mut self, expression: &Expr) {
        let Some(root) = root_name(expression) else {
            return;
        };
        let name = Name::from(root);
        if !self.global(&name) {
            return;
        }
        let name = mangled(&self.scopes, name);
        match &mut self.later {
            Some(later) => {
                later.mutates.insert(name);
            }
            None => {
                // A name that the cell has just bound is its own, but its value may be an old one.
                self.found.mutates.insert(name);
            }
        }
    }

    fn dynamic(&mut self, why: Dynamic) {
        let place = match &mut self.later {
            Some(later) => &mut later.dynamic,
            None => &mut self.found.dynamic,
        };
        place.get_or_insert(why);
    }

    fn dynamic_name(&mut self, name: &str) {
        match name {
            "get_ipython" | "__builtins__" => self.dynamic(Dynamic::Code),
            "globals" => self.dynamic(Dynamic::Namespace),
            _ => {}
        }
    }

    /// A function of this cell is called, or handed to somebody who may call it.
    fn called(&mut self, name: &Name) {
        let mut open = vec![name.clone()];
        let mut seen = BTreeSet::new();
        while let Some(name) = open.pop() {
            if !seen.insert(name.clone()) {
                continue;
            }
            let Some(later) = self.functions.get(&name).cloned() else {
                continue;
            };
            open.extend(later.reads.iter().cloned());
            self.happens(later);
        }
    }

    fn happens(&mut self, later: Later) {
        for name in later.reads {
            if !self.surely.contains(&name) {
                self.note_read(name, Read::Maybe);
            }
        }
        for name in later.deletes {
            self.surely.remove(&name);
            self.found.deletes.insert(name);
        }
        self.found.writes.extend(later.writes);
        self.found.mutates.extend(later.mutates);
        if let (Some(why), None) = (later.dynamic, self.found.dynamic) {
            self.found.dynamic = Some(why);
        }
    }

    // --- paths

    /// Visits something that may not run: what it binds is not sure afterwards.
    fn maybe(&mut self, visit: impl FnOnce(&mut Self)) -> BTreeSet<Name> {
        let before = self.surely.clone();
        self.conditions += 1;
        visit(self);
        self.conditions -= 1;
        // What it may delete is not sure either.
        let kept = &before & &self.surely;
        std::mem::replace(&mut self.surely, kept)
    }

    /// Visits a body of statements inside a block.
    fn block(&mut self, body: &[Stmt]) {
        for statement in body {
            self.top = false;
            self.visit_stmt(statement);
        }
    }

    /// What happens inside a function, whenever it is called.
    fn function(&mut self, bindings: Bindings, visit: impl FnOnce(&mut Self)) -> Later {
        let outermost = self.later.is_none();
        let now = self.now.take();
        if outermost {
            self.later = Some(Later::default());
        }
        self.scopes.push(Scope::Function(bindings));
        visit(self);
        self.scopes.pop();
        self.now = now;
        if outermost {
            self.later.take().unwrap_or_default()
        } else {
            Later::default()
        }
    }

    fn parameters_now(&mut self, parameters: &Parameters) {
        for parameter in parameters {
            if let Some(default) = parameter.default() {
                self.visit_expr(default);
            }
        }
        for parameter in parameters {
            if let Some(annotation) = parameter.annotation() {
                self.annotation(annotation);
            }
        }
    }

    /// Evaluated or not, by version and by `from __future__ import annotations`.
    fn annotation(&mut self, annotation: &Expr) {
        self.maybe(|walker| walker.visit_expr(annotation));
    }

    fn with_type_params(
        &mut self,
        type_params: Option<&TypeParams>,
        visit: impl FnOnce(&mut Self),
    ) {
        let Some(type_params) = type_params else {
            return visit(self);
        };
        let names = type_params
            .type_params
            .iter()
            .map(|parameter| Name::from(parameter.name().as_str()))
            .collect();
        self.scopes.push(Scope::Inner(names));
        for parameter in &type_params.type_params {
            self.maybe(|walker| ruff_python_ast::visitor::walk_type_param(walker, parameter));
        }
        visit(self);
        self.scopes.pop();
    }

    fn comprehension(&mut self, generators: &[Comprehension], elements: &[&Expr]) {
        if let Some(first) = generators.first() {
            self.visit_expr(&first.iter);
        }
        let names = generators
            .iter()
            .flat_map(|generator| targets(&generator.target))
            .collect();
        self.scopes.push(Scope::Inner(names));
        self.maybe(|walker| {
            for (index, generator) in generators.iter().enumerate() {
                if index > 0 {
                    walker.visit_expr(&generator.iter);
                }
                walker.visit_expr(&generator.target);
                generator
                    .ifs
                    .iter()
                    .for_each(|condition| walker.visit_expr(condition));
            }
            elements
                .iter()
                .for_each(|element| walker.visit_expr(element));
        });
        self.scopes.pop();
    }

    // --- definitions

    fn text(&self, range: TextRange) -> String {
        self.source
            .get(range.start().to_usize()..range.end().to_usize())
            .unwrap_or_default()
            .to_owned()
    }

    fn line(&self, range: TextRange) -> u32 {
        let before = self
            .source
            .get(..range.start().to_usize())
            .unwrap_or_default();
        u32::try_from(before.matches('\n').count() + 1).unwrap_or(u32::MAX)
    }

    fn define(
        &mut self,
        kind: DefinitionKind,
        binds: Vec<Name>,
        range: TextRange,
        now: BTreeSet<Name>,
        later: &Later,
        decorated: bool,
    ) {
        for name in &binds {
            self.rebound.remove(name);
        }
        self.found.definitions.push(Definition {
            kind,
            outdated: binds.iter().any(|name| now.contains(name)),
            binds,
            source: self.text(range),
            line: self.line(range),
            needs_now: now,
            needs_later: later.needs(),
            changes_later: later.changes(),
            dynamic_later: later.dynamic,
            decorated,
        });
    }

    /// A definition's own statement: gathers what it needs at once.
    fn gather<T>(&mut self, visit: impl FnOnce(&mut Self) -> T) -> (T, BTreeSet<Name>) {
        let outer = self.now.replace(BTreeSet::new());
        let result = visit(self);
        let now = std::mem::replace(&mut self.now, outer).unwrap_or_default();
        if let Some(outer) = &mut self.now {
            outer.extend(now.iter().cloned());
        }
        (result, now)
    }

    /// Whether this statement is at the top level of the cell, outside of blocks and functions.
    fn is_top(&self) -> bool {
        self.top && self.scopes.is_empty() && self.later.is_none()
    }

    fn function_def(&mut self, function: &ruff_python_ast::StmtFunctionDef) {
        let top = self.is_top();
        let (later, now) = self.gather(|walker| {
            function
                .decorator_list
                .iter()
                .for_each(|decorator| walker.visit_decorator(decorator));
            let mut later = Later::default();
            walker.with_type_params(function.type_params.as_deref(), |walker| {
                walker.parameters_now(&function.parameters);
                function
                    .returns
                    .iter()
                    .for_each(|returns| walker.annotation(returns));
                let bindings = Bindings::of(Some(&function.parameters), &function.body);
                later = walker.function(bindings, |walker| walker.block(&function.body));
            });
            later
        });
        self.defined(
            &function.name,
            later,
            top.then_some((DefinitionKind::Function, now)),
            &function.decorator_list,
            function.range(),
        );
    }

    fn class_def(&mut self, class: &ruff_python_ast::StmtClassDef) {
        let top = self.is_top();
        let before = self.functions.clone();
        let mut methods = Later::default();
        let ((), now) = self.gather(|walker| {
            class
                .decorator_list
                .iter()
                .for_each(|decorator| walker.visit_decorator(decorator));
            walker.with_type_params(class.type_params.as_deref(), |walker| {
                if let Some(arguments) = &class.arguments {
                    walker.visit_arguments(arguments);
                }
                walker.scopes.push(Scope::Class {
                    name: Name::from(class.name.as_str()),
                    bound: BTreeSet::new(),
                    globals: BTreeSet::new(),
                });
                walker
                    .functions
                    .insert(Name::from(METHODS), Later::default());
                walker.block(&class.body);
                methods = walker.functions.remove(METHODS).unwrap_or_default();
                walker.scopes.pop();
            });
        });
        if let Some(outer) = before.get(METHODS) {
            // A class inside a class: its methods are the outer's.
            let mut both = outer.clone();
            both.add(methods.clone());
            self.functions.insert(Name::from(METHODS), both);
        }
        self.defined(
            &class.name,
            methods,
            top.then_some((DefinitionKind::Class, now)),
            &class.decorator_list,
            class.range(),
        );
    }

    /// Binds a function or class, and keeps what calling it does.
    fn defined(
        &mut self,
        name: &str,
        later: Later,
        definition: Option<(DefinitionKind, BTreeSet<Name>)>,
        decorators: &[Decorator],
        range: TextRange,
    ) {
        self.write(name);
        if self.later.is_some() {
            return;
        }
        if !decorators.is_empty() {
            self.happens(later.clone());
        }
        if self.scopes.is_empty() {
            for read in later.reads.iter().chain(&later.mutates) {
                if !self.surely.contains(read) {
                    self.note_read(read.clone(), Read::Deferred);
                }
            }
            self.functions.insert(Name::from(name), later.clone());
        } else if let Some(methods) = self.functions.get_mut(METHODS) {
            methods.add(later.clone());
        }
        if let Some((kind, now)) = definition {
            let start = decorators.first().map_or(range.start(), |first| {
                first.range().start().min(range.start())
            });
            let range = TextRange::new(start, range.end());
            self.define(
                kind,
                vec![Name::from(name)],
                range,
                now,
                &later,
                !decorators.is_empty(),
            );
        }
    }

    fn import(&mut self, statement: &Stmt) {
        let (names, kind) = match statement {
            Stmt::Import(import) => {
                for alias in import
                    .names
                    .iter()
                    .filter(|alias| &*alias.name == "__main__")
                {
                    let _ = alias;
                    self.dynamic(Dynamic::Code);
                }
                let bound = |alias: &ruff_python_ast::Alias| match &alias.asname {
                    Some(name) => Name::from(name.as_str()),
                    None => Name::from(import_root(&alias.name)),
                };
                (
                    import.names.iter().map(bound).collect::<Vec<_>>(),
                    DefinitionKind::Import,
                )
            }
            Stmt::ImportFrom(import) => {
                if import.module.as_deref() == Some("__main__") {
                    self.dynamic(Dynamic::Code);
                }
                if import.names.iter().any(|alias| &*alias.name == "*") {
                    self.dynamic(Dynamic::StarImport);
                    return;
                }
                let future = import.module.as_deref() == Some("__future__");
                let kind = if future {
                    DefinitionKind::Future
                } else {
                    DefinitionKind::Import
                };
                let bound = |alias: &ruff_python_ast::Alias| {
                    Name::from(alias.asname.as_ref().unwrap_or(&alias.name).as_str())
                };
                (import.names.iter().map(bound).collect(), kind)
            }
            _ => return,
        };
        for name in &names {
            self.write(name.as_str());
        }
        if self.is_top() {
            self.define(
                kind,
                names,
                statement.range(),
                BTreeSet::new(),
                &Later::default(),
                false,
            );
        }
    }

    // --- IPython

    pub fn cell_magic(&mut self, cell: &CellMagic<'_>) {
        self.interpolate(cell.line);
        let body = magics::body_of(cell.name);
        match body {
            Body::Text => magics::script_outputs(cell.line).for_each(|name| self.write(name)),
            Body::Python | Body::PythonInside | Body::Unknown => {
                let line = match body {
                    Body::Unknown => "",
                    _ if cell.name == "capture" => {
                        let mut words = cell.line.split_whitespace();
                        if let Some(name) = words.find(|word| !word.starts_with('-')) {
                            self.write(name);
                        }
                        ""
                    }
                    _ => magics::without_options(cell.line),
                };
                // The line of `%%timeit` is set-up code: the body sees what it binds.
                let inside = body == Body::PythonInside;
                let valid = self.python(&format!("{line}\n{}", cell.body), inside);
                if body == Body::Unknown {
                    self.dynamic(Dynamic::Magic);
                } else if !valid {
                    self.parsed(false);
                }
            }
        }
    }

    /// Python in a magic: accesses count, definitions do not. If `inside`, what it binds stays there.
    fn python(&mut self, text: &str, inside: bool) -> bool {
        let outer = (
            self.found.writes.clone(),
            self.surely.clone(),
            self.found.definitions.len(),
        );
        let valid = with_parsed(text, |body| self.block(body));
        if inside {
            (self.found.writes, self.surely) = (outer.0, outer.1);
        }
        self.found.definitions.truncate(outer.2);
        valid
    }

    fn interpolate(&mut self, line: &str) {
        for expression in magics::interpolated(line) {
            self.maybe(|walker| {
                with_parsed(expression.trim(), |body| walker.block(body));
            });
        }
    }

    fn look(&mut self, words: &str) {
        for word in words.split_whitespace() {
            let root: String = word
                .chars()
                .take_while(|letter| letter.is_alphanumeric() || *letter == '_')
                .collect();
            if !root.is_empty() {
                self.maybe(|walker| walker.read(&root));
            }
        }
    }

    fn escape(&mut self, kind: IpyEscapeKind, value: &str, range: TextRange) {
        match kind {
            IpyEscapeKind::Shell | IpyEscapeKind::ShCap => self.interpolate(value),
            IpyEscapeKind::Help | IpyEscapeKind::Help2 => self.look(value.trim_start_matches('%')),
            IpyEscapeKind::Quote | IpyEscapeKind::Quote2 => {
                self.look(value.split_whitespace().next().unwrap_or_default())
            }
            IpyEscapeKind::Paren => self.look(value),
            IpyEscapeKind::Magic2 => self.dynamic(Dynamic::Magic),
            IpyEscapeKind::Magic => {
                let value = value.trim();
                let (name, line) = value.split_once(char::is_whitespace).unwrap_or((value, ""));
                self.interpolate(line);
                match magics::line_of(name) {
                    Line::Python => {
                        let inside = name == "timeit";
                        if !self.python(magics::without_options(line), inside) {
                            self.dynamic(Dynamic::Code);
                        }
                    }
                    Line::Setting => {
                        if self.is_top() {
                            self.define(
                                DefinitionKind::Magic,
                                Vec::new(),
                                range,
                                BTreeSet::new(),
                                &Later::default(),
                                false,
                            );
                        }
                    }
                    Line::Looks => self.look(line),
                    Line::Deletes => {
                        if let Some(name) =
                            line.split_whitespace().find(|word| !word.starts_with('-'))
                        {
                            self.delete(name);
                        }
                    }
                    Line::Nothing => {}
                    Line::Anything(why) => self.dynamic(why),
                }
            }
        }
    }

    // --- calls

    /// `frame.query("x > @limit")` reads `limit`.
    fn interpolated_by_pandas(&mut self, arguments: &ruff_python_ast::Arguments) {
        for text in arguments
            .args
            .iter()
            .filter_map(Expr::as_string_literal_expr)
        {
            for part in text.value.to_str().split('@').skip(1) {
                self.look(part.split_whitespace().next().unwrap_or_default());
            }
        }
    }

    fn call(&mut self, call: &ruff_python_ast::ExprCall) {
        match &*call.func {
            Expr::Attribute(attribute) => {
                self.mutate(&attribute.value);
                if matches!(attribute.attr.as_str(), "query" | "eval") {
                    self.interpolated_by_pandas(&call.arguments);
                }
                if matches!(
                    attribute.attr.as_str(),
                    "_getframe" | "currentframe" | "stack" | "run_cell" | "ex" | "run_line_magic"
                ) {
                    self.dynamic(Dynamic::Code);
                }
            }
            Expr::Name(name) => {
                let none = call.arguments.args.is_empty() && call.arguments.keywords.is_empty();
                let ours =
                    !self.surely.contains(&*name.id) && self.global(&Name::from(name.id.as_str()));
                match name.id.as_str() {
                    "locals" | "vars" | "dir" if none && ours && self.later.is_none() => {
                        self.dynamic(Dynamic::Namespace)
                    }
                    "exec" | "eval" | "compile" if ours => self.dynamic(Dynamic::Code),
                    "__import__" if ours => self.dynamic(Dynamic::Code),
                    _ => {}
                }
            }
            _ => {}
        }
    }
}

/// Gathers, in `functions`, what the methods of the class being visited do. No Python name.
const METHODS: &str = "<methods>";

impl Later {
    fn needs(&self) -> BTreeSet<Name> {
        &self.reads | &self.changes()
    }

    fn changes(&self) -> BTreeSet<Name> {
        &(&self.writes | &self.deletes) | &self.mutates
    }

    fn add(&mut self, other: Later) {
        self.reads.extend(other.reads);
        self.writes.extend(other.writes);
        self.deletes.extend(other.deletes);
        self.mutates.extend(other.mutates);
        self.dynamic = self.dynamic.or(other.dynamic);
    }
}

/// The name at the root of attributes, subscripts and calls.
fn root_name(mut expression: &Expr) -> Option<&str> {
    loop {
        expression = match expression {
            Expr::Name(name) => return Some(&name.id),
            Expr::Attribute(attribute) => &attribute.value,
            Expr::Subscript(subscript) => &subscript.value,
            Expr::Await(awaited) => &awaited.value,
            Expr::Starred(starred) => &starred.value,
            Expr::Call(call) => match &*call.func {
                Expr::Attribute(attribute) => &attribute.value,
                _ => return None,
            },
            _ => return None,
        };
    }
}

impl<'a> Visitor<'a> for Walker<'_> {
    fn visit_stmt(&mut self, statement: &'a Stmt) {
        match statement {
            Stmt::FunctionDef(function) => self.function_def(function),
            Stmt::ClassDef(class) => self.class_def(class),
            Stmt::Import(_) | Stmt::ImportFrom(_) => self.import(statement),
            Stmt::Global(global) => {
                if let Some(Scope::Class { globals, .. }) = self.scopes.last_mut() {
                    globals.extend(global.names.iter().map(|name| Name::from(name.as_str())));
                }
            }
            Stmt::AugAssign(assign) => {
                self.visit_expr(&assign.value);
                self.mutate(&assign.target);
                if let Expr::Name(name) = &*assign.target {
                    self.read(&name.id);
                    self.write(&name.id);
                } else {
                    self.visit_expr(&assign.target);
                }
            }
            Stmt::Assign(assign) => {
                self.visit_expr(&assign.value);
                assign
                    .targets
                    .iter()
                    .for_each(|target| self.visit_expr(target));
            }
            Stmt::AnnAssign(assign) => {
                if let Some(value) = &assign.value {
                    self.visit_expr(value);
                    self.visit_expr(&assign.target);
                } else if !matches!(&*assign.target, Expr::Name(_)) {
                    self.visit_expr(&assign.target);
                }
                // Annotations of a function's locals are never evaluated.
                if !matches!(self.scopes.last(), Some(Scope::Function(_))) {
                    self.annotation(&assign.annotation);
                }
            }
            Stmt::TypeAlias(alias) => {
                // The value is evaluated when it is first used.
                self.with_type_params(alias.type_params.as_deref(), |walker| {
                    walker.maybe(|walker| walker.visit_expr(&alias.value));
                });
                self.visit_expr(&alias.name);
            }
            Stmt::If(branch) => {
                self.visit_expr(&branch.test);
                let mut ends = vec![self.maybe(|walker| walker.block(&branch.body))];
                let mut complete = false;
                for clause in &branch.elif_else_clauses {
                    if let Some(test) = &clause.test {
                        self.conditions += 1;
                        self.visit_expr(test);
                        self.conditions -= 1;
                    } else {
                        complete = true;
                    }
                    ends.push(self.maybe(|walker| walker.block(&clause.body)));
                }
                if complete {
                    self.join(ends);
                }
            }
            Stmt::For(each) => {
                self.visit_expr(&each.iter);
                self.maybe(|walker| {
                    walker.visit_expr(&each.target);
                    walker.block(&each.body);
                });
                self.maybe(|walker| walker.block(&each.orelse));
            }
            Stmt::While(each) => {
                self.visit_expr(&each.test);
                self.maybe(|walker| walker.block(&each.body));
                self.maybe(|walker| walker.block(&each.orelse));
            }
            Stmt::With(with) => {
                for item in &with.items {
                    self.visit_expr(&item.context_expr);
                    if let Some(target) = &item.optional_vars {
                        self.visit_expr(target);
                    }
                }
                // A context manager may swallow an exception: what comes after runs all the same.
                let before = self.surely.clone();
                self.block(&with.body);
                self.surely = &before & &self.surely;
            }
            Stmt::Match(matching) => {
                self.visit_expr(&matching.subject);
                let mut ends = Vec::new();
                let mut complete = false;
                for case in &matching.cases {
                    ends.push(self.maybe(|walker| {
                        walker.visit_pattern(&case.pattern);
                        case.guard.iter().for_each(|guard| walker.visit_expr(guard));
                        walker.block(&case.body);
                    }));
                    complete |= case.guard.is_none() && case.pattern.is_irrefutable();
                }
                if complete {
                    self.join(ends);
                }
            }
            Stmt::Try(attempt) => {
                let before = self.surely.clone();
                self.block(&attempt.body);
                let after_body = self.surely.clone();
                let mut ends = vec![self.maybe(|walker| walker.block(&attempt.orelse))];
                let before = &before & &after_body;
                self.surely = before.clone();
                for handler in &attempt.handlers {
                    ends.push(self.maybe(|walker| walker.visit_except_handler(handler)));
                }
                self.surely = before;
                if attempt.handlers.is_empty() {
                    // Whatever comes after runs only if the body did.
                    self.block(&attempt.finalbody);
                    self.surely.extend(after_body);
                } else {
                    self.join(ends);
                    self.block(&attempt.finalbody);
                }
            }
            Stmt::Assert(assertion) => {
                self.visit_expr(&assertion.test);
                if let Some(message) = &assertion.msg {
                    self.maybe(|walker| walker.visit_expr(message));
                }
            }
            Stmt::IpyEscapeCommand(command) => {
                self.escape(command.kind, &command.value, command.range())
            }
            _ => {
                self.top = false;
                walk_stmt(self, statement);
            }
        }
    }

    fn visit_annotation(&mut self, annotation: &'a Expr) {
        self.annotation(annotation);
    }

    fn visit_decorator(&mut self, decorator: &'a Decorator) {
        walk_decorator(self, decorator);
    }

    fn visit_expr(&mut self, expression: &'a Expr) {
        match expression {
            Expr::Name(name) => match name.ctx {
                ExprContext::Store => self.write(&name.id),
                ExprContext::Del => self.delete(&name.id),
                ExprContext::Load | ExprContext::Invalid => self.read(&name.id),
            },
            Expr::Attribute(attribute) => {
                if !matches!(attribute.ctx, ExprContext::Load) {
                    self.mutate(&attribute.value);
                }
                self.visit_expr(&attribute.value);
            }
            Expr::Subscript(subscript) => {
                let modules = matches!(&*subscript.value, Expr::Attribute(attribute) if &*attribute.attr == "modules");
                let main = matches!(&*subscript.slice, Expr::StringLiteral(text) if text.value.to_str() == "__main__");
                if modules && main {
                    self.dynamic(Dynamic::Code);
                }
                if !matches!(subscript.ctx, ExprContext::Load) {
                    self.mutate(&subscript.value);
                }
                self.visit_expr(&subscript.value);
                self.visit_expr(&subscript.slice);
            }
            Expr::Call(call) => {
                self.call(call);
                walk_expr(self, expression);
            }
            Expr::Named(named) => {
                self.visit_expr(&named.value);
                // It binds outside of any comprehension.
                let mut inner = Vec::new();
                while matches!(self.scopes.last(), Some(Scope::Inner(_))) {
                    inner.extend(self.scopes.pop());
                }
                self.visit_expr(&named.target);
                self.scopes.extend(inner.into_iter().rev());
            }
            Expr::BoolOp(operation) => {
                let mut values = operation.values.iter();
                if let Some(first) = values.next() {
                    self.visit_expr(first);
                }
                self.maybe(|walker| values.for_each(|value| walker.visit_expr(value)));
            }
            Expr::Compare(comparison) => {
                self.visit_expr(&comparison.left);
                let mut others = comparison.comparators.iter();
                if let Some(first) = others.next() {
                    self.visit_expr(first);
                }
                self.maybe(|walker| others.for_each(|other| walker.visit_expr(other)));
            }
            Expr::If(choice) => {
                self.visit_expr(&choice.test);
                self.maybe(|walker| walker.visit_expr(&choice.body));
                self.maybe(|walker| walker.visit_expr(&choice.orelse));
            }
            Expr::Lambda(lambda) => {
                if let Some(parameters) = &lambda.parameters {
                    self.parameters_now(parameters);
                }
                let mut bindings = Bindings::of(lambda.parameters.as_deref(), &[]);
                bindings.add_walrus(&lambda.body);
                let later = self.function(bindings, |walker| walker.visit_expr(&lambda.body));
                if self.later.is_none() {
                    if let Some(now) = &mut self.now {
                        now.extend(later.reads.iter().cloned());
                    }
                    for name in &later.reads {
                        self.called(name);
                    }
                    self.happens(later);
                }
            }
            Expr::ListComp(comprehension) => {
                self.comprehension(&comprehension.generators, &[&comprehension.elt])
            }
            Expr::SetComp(comprehension) => {
                self.comprehension(&comprehension.generators, &[&comprehension.elt])
            }
            Expr::Generator(comprehension) => {
                self.comprehension(&comprehension.generators, &[&comprehension.elt])
            }
            Expr::DictComp(comprehension) => {
                let key: Option<&Expr> = comprehension.key.as_deref();
                let elements: Vec<&Expr> = key.into_iter().chain([&*comprehension.value]).collect();
                self.comprehension(&comprehension.generators, &elements);
            }
            Expr::IpyEscapeCommand(command) => {
                self.top = false;
                self.escape(command.kind, &command.value, command.range());
            }
            _ => walk_expr(self, expression),
        }
    }

    fn visit_except_handler(&mut self, handler: &'a ExceptHandler) {
        let ExceptHandler::ExceptHandler(handler) = handler;
        if let Some(kind) = &handler.type_ {
            self.visit_expr(kind);
        }
        if let Some(name) = &handler.name {
            self.write(name);
        }
        self.block(&handler.body);
        if let Some(name) = &handler.name {
            self.delete(name);
        }
    }

    fn visit_pattern(&mut self, pattern: &'a Pattern) {
        walk_pattern(self, pattern);
        if let Some(name) = pattern_name(pattern) {
            self.write(name);
        }
    }
}

impl Walker<'_> {
    /// Several paths meet: sure is what all of them bind.
    fn join(&mut self, ends: Vec<BTreeSet<Name>>) {
        let mut ends = ends.into_iter();
        if let Some(first) = ends.next() {
            self.surely = ends.fold(first, |sure, end| &sure & &end);
        }
    }
}
