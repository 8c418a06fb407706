//! Definitions: functions, classes, imports, settings; what each needs, and its text.

use std::collections::{BTreeMap, BTreeSet};

use ruff_python_ast::visitor::{Visitor, walk_type_param};
use ruff_python_ast::{
    Decorator, Expr, Parameters, StmtClassDef, StmtFunctionDef, StmtImport, StmtImportFrom,
    StmtTypeAlias, TypeParams,
};
use ruff_text_size::{Ranged, TextRange};

use super::bindings::{Bindings, import_root};
use super::later::Later;
use super::reflect::reaches_names;
use super::scope::{ClassBody, Owner, Scope, class_around};
use super::walk::Walker;
use crate::analysis::{Definition, DefinitionKind, Dynamic, Read};
use crate::name::Name;

/// What a definition's own statement evaluates.
pub struct Gathered {
    /// Names that it reads at once.
    pub now: BTreeSet<Name>,
    /// What lambdas and functions in it do when they are called.
    held: Later,
}

impl Walker<'_> {
    fn text(&self, range: TextRange) -> String {
        self.source
            .get(range.start().to_usize()..range.end().to_usize())
            .unwrap_or_default()
            .to_owned()
    }

    /// The line of a place. Definitions come in order: only what is new is counted.
    fn line(&mut self, range: TextRange) -> u32 {
        let start = range.start().to_usize();
        let (from, before) = self.lines;
        if let Some(new) = self.source.get(from..start) {
            let count = u32::try_from(new.matches('\n').count()).unwrap_or(u32::MAX);
            self.lines = (start, before.saturating_add(count));
        }
        self.lines.1
    }

    fn define(
        &mut self,
        kind: DefinitionKind,
        binds: Vec<Name>,
        (range, source): (TextRange, String),
        now: BTreeSet<Name>,
        later: &Later,
        decorated: bool,
    ) {
        for name in &binds {
            self.rebound.remove(name);
        }
        for name in &now {
            let index = self.found.definitions.len();
            self.needed_by.entry(name.clone()).or_default().push(index);
        }
        let line = self.line(range);
        self.found.definitions.push(Definition {
            kind,
            outdated: binds.iter().any(|name| now.contains(name)),
            binds,
            source,
            line,
            needs_now: now,
            needs_later: later.needs(),
            changes_later: later.changes(),
            dynamic_later: later.dynamic,
            decorated,
        });
    }

    /// A magic that is replayed. One that stands without its `%` has an empty range.
    pub fn define_magic(&mut self, value: &str, range: TextRange, now: BTreeSet<Name>) {
        let source = if range.is_empty() {
            format!("%{value}")
        } else {
            self.text(range)
        };
        let kind = DefinitionKind::Magic;
        self.define(
            kind,
            Vec::new(),
            (range, source),
            now,
            &Later::default(),
            false,
        );
    }

    /// A definition's own statement: gathers what it needs at once.
    pub fn gather<T>(&mut self, visit: impl FnOnce(&mut Self) -> T) -> (T, Gathered) {
        let outer = self.now.replace(BTreeSet::new());
        let (result, held) = self.held(true, visit);
        let now = std::mem::replace(&mut self.now, outer).unwrap_or_default();
        if let Some(outer) = &mut self.now {
            outer.extend(now.iter().cloned());
        }
        (result, Gathered { now, held })
    }

    /// Whether this statement is at the top level of the cell, outside of blocks and functions.
    pub fn is_top(&self) -> bool {
        self.top && self.scopes.is_empty() && self.later.is_none()
    }

    pub fn function_def(&mut self, function: &StmtFunctionDef) {
        let top = self.is_top();
        let (later, gathered) = self.gather(|walker| {
            for decorator in &function.decorator_list {
                walker.visit_decorator(decorator);
            }
            walker.defaults(&function.parameters);
            let mut later = Later::default();
            walker.with_type_params(function.type_params.as_deref(), |walker| {
                walker.annotations(&function.parameters);
                if let Some(returns) = &function.returns {
                    walker.annotation(returns);
                }
                let class = class_around(&walker.scopes);
                let bindings = Bindings::of(class, Some(&function.parameters), &function.body);
                later = walker.function(bindings, |walker| {
                    walker.returns_code(function.is_async);
                    walker.block(&function.body);
                });
            });
            later
        });
        let at_once = !function.decorator_list.is_empty();
        self.defined(
            &function.name,
            later,
            gathered,
            top.then_some(DefinitionKind::Function),
            at_once,
            (&function.decorator_list, function.range()),
        );
    }

    pub fn class_def(&mut self, class: &StmtClassDef) {
        let top = self.is_top();
        self.returns_code(true);
        self.classes += 1;
        let id = self.classes;
        let (methods, gathered) = self.gather(|walker| {
            for decorator in &class.decorator_list {
                walker.visit_decorator(decorator);
            }
            let mut methods = Later::default();
            walker.with_type_params(class.type_params.as_deref(), |walker| {
                if let Some(arguments) = &class.arguments {
                    walker.visit_arguments(arguments);
                }
                let name = Name::from(class.name.as_str());
                walker.scopes.push(Scope::Class(ClassBody {
                    bindings: Bindings::of(Some(&name), None, &class.body),
                    name,
                    id,
                    bound: BTreeSet::new(),
                    methods: BTreeMap::new(),
                    called: Later::default(),
                }));
                walker.block(&class.body);
                if let Some(Scope::Class(body)) = walker.scopes.pop() {
                    methods = body.called;
                    body.methods
                        .into_values()
                        .for_each(|later| methods.add(later));
                }
            });
            methods
        });
        let mut methods = methods;
        methods.returns_code = true;
        // A metaclass may call methods; that of an enumeration makes its members.
        let at_once = !class.decorator_list.is_empty()
            || class.arguments.iter().any(|arguments| {
                !arguments.keywords.is_empty() || arguments.args.iter().any(is_enumeration)
            });
        self.defined(
            &class.name,
            methods,
            gathered,
            top.then_some(DefinitionKind::Class),
            at_once,
            (&class.decorator_list, class.range()),
        );
    }

    /// Binds a function or class, and keeps what calling it does. If `at_once`, it may be called by
    /// its own statement.
    fn defined(
        &mut self,
        text: &str,
        mut later: Later,
        gathered: Gathered,
        definition: Option<DefinitionKind>,
        at_once: bool,
        (decorators, range): (&[Decorator], TextRange),
    ) {
        let name = self.name(text);
        let owner = match self.scopes.last() {
            Some(Scope::Class(class)) if !class.bindings.is_foreign(&name) => Owner::Inside,
            _ => self.owner(&name),
        };
        let definite = self.top && self.conditions == 0 && self.scopes.is_empty();
        if at_once && self.later.is_none() {
            // A decorator calls it before its name is bound.
            self.called_at_once(&later);
        }
        self.write(text);
        if let Some(outer) = &mut self.later {
            if owner == Owner::Notebook {
                outer.defines.insert(name);
            }
            return;
        }
        later.add(gathered.held);
        if owner == Owner::Inside {
            match self.scopes.last_mut() {
                Some(Scope::Class(class)) => {
                    class.methods.entry(name).or_default().add(later);
                }
                // In a function that a magic runs here and now.
                _ => self.called_at_once(&later),
            }
            return;
        }
        for read in later.reads.iter().chain(&later.mutates) {
            if !self.sure.contains(read) {
                self.note_read(read.clone(), Read::Deferred);
            }
        }
        for inner in &later.defines {
            self.functions.add(inner.clone(), later.clone());
        }
        let mut whole = later.clone();
        whole.reads.extend(gathered.now.iter().cloned());
        if definite {
            self.functions.set(name.clone(), whole);
        } else {
            self.functions.add(name.clone(), whole);
        }
        // A loop may come back to an earlier call, and another function may have called it already.
        if self.reached.contains(&name) {
            self.called(&name);
        }
        if let Some(kind) = definition {
            let start = decorators.first().map_or(range.start(), |first| {
                first.range().start().min(range.start())
            });
            let range = TextRange::new(start, range.end());
            let place = (range, self.text(range));
            let decorated = !decorators.is_empty();
            self.define(kind, vec![name], place, gathered.now, &later, decorated);
        }
    }

    pub fn import(&mut self, import: &StmtImport) {
        let mut binds = Vec::new();
        for alias in &import.names {
            let renamed = alias.asname.is_some();
            if &*alias.name == "__main__" || &*alias.name == "builtins" && renamed {
                self.dynamic(Dynamic::Code);
            }
            let bound = match &alias.asname {
                Some(name) => name.as_str(),
                None => import_root(&alias.name),
            };
            self.write(bound);
            binds.push(Name::from(bound));
        }
        self.imported(DefinitionKind::Import, binds, import.range());
    }

    pub fn import_from(&mut self, import: &StmtImportFrom) {
        let module = import.module.as_deref();
        let reflects = module == Some("__main__")
            || module == Some("builtins")
                && import.names.iter().any(|alias| reaches_names(&alias.name));
        if reflects {
            self.dynamic(Dynamic::Code);
        }
        if import.names.iter().any(|alias| &*alias.name == "*") {
            return self.dynamic(Dynamic::StarImport);
        }
        let kind = if module == Some("__future__") {
            DefinitionKind::Future
        } else {
            DefinitionKind::Import
        };
        let mut binds = Vec::new();
        for alias in &import.names {
            let bound = alias.asname.as_ref().unwrap_or(&alias.name);
            self.write(bound);
            binds.push(Name::from(bound.as_str()));
        }
        self.imported(kind, binds, import.range());
    }

    fn imported(&mut self, kind: DefinitionKind, binds: Vec<Name>, range: TextRange) {
        if self.is_top() {
            let place = (range, self.text(range));
            self.define(
                kind,
                binds,
                place,
                BTreeSet::new(),
                &Later::default(),
                false,
            );
        }
    }

    // --- signatures

    pub fn defaults(&mut self, parameters: &Parameters) {
        for parameter in parameters {
            if let Some(default) = parameter.default() {
                self.visit_expr(default);
            }
        }
    }

    fn annotations(&mut self, parameters: &Parameters) {
        for parameter in parameters {
            if let Some(annotation) = parameter.annotation() {
                self.annotation(annotation);
            }
        }
    }

    /// Evaluated or not, by version and by `from __future__ import annotations`; text in it when
    /// somebody asks for its meaning, as data classes do.
    pub fn annotation(&mut self, annotation: &Expr) {
        self.maybe(|walker| walker.visit_expr(annotation));
        let mut texts = Texts::default();
        texts.visit_expr(annotation);
        for text in texts.0 {
            self.evaluated_later(|walker| walker.expression(&text));
        }
    }

    /// Something that is evaluated when it is asked for: perhaps at once, perhaps by another cell.
    fn evaluated_later(&mut self, visit: impl FnOnce(&mut Self)) {
        let later = self.function(Bindings::default(), visit);
        if self.later.is_none() {
            self.called_at_once(&later);
            if let Some(held) = &mut self.held {
                held.later.add(later);
            }
        }
    }

    /// The value of an alias is evaluated when it is first used.
    pub fn type_alias(&mut self, alias: &StmtTypeAlias) {
        let ((), held) = self.held(true, |walker| {
            walker.with_type_params(alias.type_params.as_deref(), |walker| {
                walker.evaluated_later(|walker| walker.visit_expr(&alias.value));
            });
        });
        self.visit_expr(&alias.name);
        if self.later.is_none() {
            self.holds(&alias.name, &held);
        }
    }

    pub fn with_type_params(
        &mut self,
        type_params: Option<&TypeParams>,
        visit: impl FnOnce(&mut Self),
    ) {
        let Some(type_params) = type_params else {
            return visit(self);
        };
        let mut names: BTreeSet<Name> = type_params
            .type_params
            .iter()
            .map(|parameter| self.name(parameter.name().as_str()))
            .collect();
        if let Some(Scope::Class(class)) = self.scopes.last() {
            // CPython looks in the class and in the notebook first for what the class binds.
            names.retain(|name| !class.bindings.locals.contains(name));
        }
        self.scopes.push(Scope::Inner(names));
        for parameter in &type_params.type_params {
            self.maybe(|walker| walk_type_param(walker, parameter));
        }
        visit(self);
        self.scopes.pop();
    }
}

/// Texts in an annotation that may be names or expressions.
#[derive(Default)]
struct Texts(Vec<String>);

impl<'a> Visitor<'a> for Texts {
    fn visit_expr(&mut self, expression: &'a Expr) {
        match expression {
            Expr::StringLiteral(text) => self.0.push(text.value.to_str().to_owned()),
            Expr::Subscript(subscript) if last_part(&subscript.value) == Some("Literal") => {}
            _ => ruff_python_ast::visitor::walk_expr(self, expression),
        }
    }
}

/// `c` of `a.b.c`.
fn last_part(expression: &Expr) -> Option<&str> {
    match expression {
        Expr::Name(name) => Some(&name.id),
        Expr::Attribute(attribute) => Some(&attribute.attr),
        _ => None,
    }
}

fn is_enumeration(base: &Expr) -> bool {
    last_part(base).is_some_and(|name| name.ends_with("Enum") || name.ends_with("Flag"))
}
