//! What a function binds: its locals, and what it declares to be somebody else's.

use std::collections::BTreeSet;

use ruff_python_ast::visitor::{Visitor, walk_expr, walk_pattern, walk_stmt};
use ruff_python_ast::{ExceptHandler, Expr, ExprContext, ExprLambda, Parameters, Pattern, Stmt};

use super::scope::mangled;
use crate::name::Name;

/// The names of one function's scope, or of a class body's.
#[derive(Debug, Default)]
pub struct Bindings {
    /// Bound in it, parameters included.
    pub locals: BTreeSet<Name>,
    /// Declared `global`.
    pub globals: BTreeSet<Name>,
    nonlocals: BTreeSet<Name>,
    /// The class in which it stands: private names are mangled with it.
    class: Option<Name>,
}

impl Bindings {
    /// Of a function, a lambda or a class body.
    pub fn of(class: Option<&Name>, parameters: Option<&Parameters>, body: &[Stmt]) -> Self {
        let mut bindings = Self {
            class: class.cloned(),
            ..Self::default()
        };
        if let Some(parameters) = parameters {
            for parameter in parameters {
                bindings.bind(parameter.name().as_str());
            }
        }
        bindings.visit_body(body);
        let foreign = &bindings.globals | &bindings.nonlocals;
        bindings.locals = &bindings.locals - &foreign;
        bindings
    }

    /// Adds what an expression binds by `:=`, for a lambda's body.
    pub fn add_walrus(&mut self, expression: &Expr) {
        self.visit_expr(expression);
    }

    /// Whether a class body leaves the name to another scope.
    pub fn is_foreign(&self, name: &Name) -> bool {
        self.globals.contains(name) || self.nonlocals.contains(name)
    }

    fn bind(&mut self, name: &str) {
        self.locals.insert(self.name(name));
    }

    fn name(&self, text: &str) -> Name {
        mangled(self.class.as_ref(), text)
    }
}

/// The names that a pattern of targets binds.
pub fn targets(class: Option<&Name>, target: &Expr) -> BTreeSet<Name> {
    let mut bindings = Bindings {
        class: class.cloned(),
        ..Bindings::default()
    };
    bindings.visit_expr(target);
    bindings.locals
}

/// The name that `import a.b` binds.
pub fn import_root(dotted: &str) -> &str {
    dotted.split('.').next().unwrap_or(dotted)
}

impl<'a> Visitor<'a> for Bindings {
    fn visit_stmt(&mut self, statement: &'a Stmt) {
        match statement {
            Stmt::FunctionDef(function) => {
                self.bind(&function.name);
                function
                    .decorator_list
                    .iter()
                    .for_each(|decorator| self.visit_decorator(decorator));
                for parameter in &*function.parameters {
                    parameter
                        .default()
                        .into_iter()
                        .for_each(|default| self.visit_expr(default));
                }
            }
            Stmt::ClassDef(class) => {
                self.bind(&class.name);
                class
                    .decorator_list
                    .iter()
                    .for_each(|decorator| self.visit_decorator(decorator));
                class
                    .arguments
                    .iter()
                    .for_each(|arguments| self.visit_arguments(arguments));
            }
            Stmt::Global(global) => {
                let names = global.names.iter().map(|name| self.name(name));
                let names: Vec<Name> = names.collect();
                self.globals.extend(names);
            }
            Stmt::Nonlocal(nonlocal) => {
                let names = nonlocal.names.iter().map(|name| self.name(name));
                let names: Vec<Name> = names.collect();
                self.nonlocals.extend(names);
            }
            Stmt::Import(import) => {
                for alias in &import.names {
                    match &alias.asname {
                        Some(name) => self.bind(name),
                        None => self.bind(import_root(&alias.name)),
                    }
                }
            }
            Stmt::ImportFrom(import) => {
                for alias in import.names.iter().filter(|alias| &*alias.name != "*") {
                    self.bind(alias.asname.as_ref().unwrap_or(&alias.name));
                }
            }
            // A bare annotation makes the name local, too.
            _ => walk_stmt(self, statement),
        }
    }

    fn visit_expr(&mut self, expression: &'a Expr) {
        match expression {
            Expr::Name(name) if !matches!(name.ctx, ExprContext::Load) => self.bind(&name.id),
            // Scopes of their own, but a lambda's defaults, and `:=` inside a comprehension, bind
            // outside of it.
            Expr::Lambda(lambda) => defaults(lambda).for_each(|default| self.visit_expr(default)),
            Expr::ListComp(_) | Expr::SetComp(_) | Expr::DictComp(_) | Expr::Generator(_) => {
                let mut walrus = Walrus(Vec::new());
                walk_expr(&mut walrus, expression);
                walrus.0.iter().for_each(|name| self.bind(name));
            }
            _ => walk_expr(self, expression),
        }
    }

    fn visit_except_handler(&mut self, handler: &'a ExceptHandler) {
        let ExceptHandler::ExceptHandler(inner) = handler;
        if let Some(name) = &inner.name {
            self.bind(name);
        }
        ruff_python_ast::visitor::walk_except_handler(self, handler);
    }

    fn visit_pattern(&mut self, pattern: &'a Pattern) {
        if let Some(name) = pattern_name(pattern) {
            self.bind(name);
        }
        walk_pattern(self, pattern);
    }
}

/// The name that a pattern itself binds, its parts aside.
pub fn pattern_name(pattern: &Pattern) -> Option<&str> {
    match pattern {
        Pattern::MatchAs(pattern) => pattern.name.as_ref().map(|name| name.as_str()),
        Pattern::MatchStar(pattern) => pattern.name.as_ref().map(|name| name.as_str()),
        Pattern::MatchMapping(pattern) => pattern.rest.as_ref().map(|name| name.as_str()),
        _ => None,
    }
}

/// Names bound by `:=`.
struct Walrus(Vec<String>);

impl<'a> Visitor<'a> for Walrus {
    fn visit_expr(&mut self, expression: &'a Expr) {
        match expression {
            Expr::Named(named) => {
                if let Expr::Name(name) = &*named.target {
                    self.0.push(name.id.to_string());
                }
                self.visit_expr(&named.value);
            }
            Expr::Lambda(lambda) => defaults(lambda).for_each(|default| self.visit_expr(default)),
            _ => walk_expr(self, expression),
        }
    }
}

fn defaults(lambda: &ExprLambda) -> impl Iterator<Item = &Expr> {
    let parameters = lambda
        .parameters
        .iter()
        .flat_map(|parameters| parameters.iter());
    parameters.filter_map(|parameter| parameter.default())
}
