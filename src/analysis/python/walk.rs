//! Follows a cell's paths, in the order in which Python takes them.

use std::collections::{BTreeMap, BTreeSet};

use ruff_python_ast::helpers::any_over_expr;
use ruff_python_ast::visitor::{Visitor, walk_expr, walk_pattern, walk_stmt};
use ruff_python_ast::{
    Comprehension, ExceptHandler, Expr, ExprCall, ExprContext, ExprLambda, Pattern, Stmt,
    StmtAssign, StmtIf, StmtMatch, StmtTry,
};
use ruff_text_size::Ranged;

use super::bindings::{Bindings, pattern_name, targets};
use super::later::{Functions, Later};
use super::methods::only_reads;
use super::scope::{Scope, class_around};
use super::sure::Sure;
use crate::analysis::{Analysis, Dynamic};
use crate::name::Name;

/// Scopes inside each other; CPython gives up earlier.
const MOST_SCOPES: usize = 1000;

/// Names that the functions in a value may need before it counts as in need of all: a list that
/// grows from statement to statement would else be copied by each.
const MOST_HELD: usize = 200;

pub struct Walker<'s> {
    pub source: &'s str,
    pub found: Analysis,
    pub scopes: Vec<Scope>,
    /// Names that are bound on every path to here.
    pub sure: Sure,
    /// How many conditions this place depends on.
    pub conditions: u32,
    /// Gathers accesses inside a function body, which happen later.
    pub later: Option<Later>,
    /// Gathers names that a definition evaluates at once.
    pub now: Option<BTreeSet<Name>>,
    /// Gathers what the functions in an expression do.
    pub held: Option<Held>,
    /// What calling the cell's own functions does.
    pub functions: Functions,
    /// Names that have been read by now, also by functions that may have been called.
    pub reached: BTreeSet<Name>,
    /// Whether the statement is one of the cell's own, not one in a block or a magic.
    pub top: bool,
    /// Names whose last top-level binding is not a definition.
    pub rebound: BTreeSet<Name>,
    /// Definitions, by their place in the list, that evaluated the present value of a name.
    pub needed_by: BTreeMap<Name, Vec<usize>>,
    /// A place in the source and its line, from 1.
    pub lines: (usize, u32),
    /// How many classes have been met.
    pub classes: usize,
    /// How many magics stand around this place.
    pub magics: usize,
}

/// What the functions in an expression do when they are called.
pub struct Held {
    pub later: Later,
    /// Whether lambdas that are only handed to a call count, but functions by their names alone: so
    /// in a definition, which needs all that its statement reads.
    pub arguments: bool,
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
            sure: Sure::default(),
            conditions: 0,
            later: None,
            now: None,
            held: None,
            functions: Functions::default(),
            reached: BTreeSet::new(),
            top: true,
            rebound: BTreeSet::new(),
            needed_by: BTreeMap::new(),
            lines: (0, 1),
            classes: 0,
            magics: 0,
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

    /// The result; definitions that the cell itself overwrites with something else are left out, and
    /// so are those of a source that may mean something else.
    pub fn finish(mut self) -> Analysis {
        let (parsed, rebound) = (self.found.parsed, self.rebound);
        self.found.definitions.retain(|definition| {
            let stays = |name| !rebound.contains(name);
            parsed && (definition.binds.is_empty() || definition.binds.iter().any(stays))
        });
        self.found.called_later = self.functions.into_called();
        self.found
    }

    // --- paths

    /// Visits something that may not run: what it binds is not sure afterwards. Returns what it binds.
    pub fn maybe(&mut self, visit: impl FnOnce(&mut Self)) -> BTreeSet<Name> {
        let split = self.sure.split();
        self.conditions += 1;
        visit(self);
        self.conditions -= 1;
        self.sure.meet(split)
    }

    /// Visits a body of statements inside a block.
    pub fn block(&mut self, body: &[Stmt]) {
        for statement in body {
            self.top = false;
            self.visit_stmt(statement);
        }
    }

    /// Visits a body that may not run. Returns what is sure at its end, if that is ever reached.
    fn branch(&mut self, body: &[Stmt]) -> Option<BTreeSet<Name>> {
        let gained = self.maybe(|walker| walker.block(body));
        (!leaves(body)).then_some(gained)
    }

    /// Several paths meet: sure is what all of them bind.
    fn join(&mut self, ends: Vec<Option<BTreeSet<Name>>>) {
        let mut ends = ends.into_iter().flatten();
        let Some(mut sure) = ends.next() else {
            return;
        };
        for end in ends {
            sure.retain(|name| end.contains(name));
        }
        for name in sure {
            self.sure.bind(name);
        }
    }

    /// What happens inside a function, whenever it is called.
    pub fn function(&mut self, bindings: Bindings, visit: impl FnOnce(&mut Self)) -> Later {
        if self.scopes.len() == MOST_SCOPES {
            self.dynamic(Dynamic::Unparsable);
            return Later::default();
        }
        let outer = self.later.replace(Later::default());
        let now = self.now.take();
        let held = self.held.take();
        self.scopes.push(Scope::Function(bindings));
        visit(self);
        self.scopes.pop();
        self.now = now;
        self.held = held;
        let inner = std::mem::replace(&mut self.later, outer).unwrap_or_default();
        match &mut self.later {
            Some(outer) => {
                outer.add(inner);
                outer.returns_code = true;
                Later::default()
            }
            None => inner,
        }
    }

    /// Notes that what a function returns may run code of it later.
    pub fn returns_code(&mut self, whether: bool) {
        if let Some(later) = &mut self.later {
            later.returns_code |= whether;
        }
    }

    #[inline(never)]
    fn if_statement(&mut self, statement: &StmtIf) {
        self.visit_expr(&statement.test);
        let mut ends = vec![self.branch(&statement.body)];
        let mut complete = false;
        // What a later test binds is not sure where an earlier one held.
        let split = self.sure.split();
        self.conditions += 1;
        for clause in &statement.elif_else_clauses {
            match &clause.test {
                Some(test) => self.visit_expr(test),
                None => complete = true,
            }
            ends.push(self.branch(&clause.body));
        }
        self.conditions -= 1;
        self.sure.meet(split);
        if !complete {
            return;
        }
        self.join(ends);
    }

    #[inline(never)]
    fn match_statement(&mut self, statement: &StmtMatch) {
        self.visit_expr(&statement.subject);
        let mut ends = Vec::new();
        let mut complete = false;
        for case in &statement.cases {
            let gained = self.maybe(|walker| {
                walker.visit_pattern(&case.pattern);
                if let Some(guard) = &case.guard {
                    walker.visit_expr(guard);
                }
                walker.block(&case.body);
            });
            ends.push((!leaves(&case.body)).then_some(gained));
            complete |= case.guard.is_none() && case.pattern.is_irrefutable();
        }
        if complete {
            self.join(ends);
        }
    }

    #[inline(never)]
    fn try_statement(&mut self, statement: &StmtTry) {
        let split = self.sure.split();
        self.block(&statement.body);
        let gained = self.sure.meet(split);
        // The handlers, and `finally`, see the body half done.
        let through = self.maybe(|walker| {
            for name in gained {
                walker.sure.bind(name);
            }
            walker.block(&statement.orelse);
        });
        let left = leaves(&statement.body) || leaves(&statement.orelse);
        let mut ends = vec![(!left).then_some(through)];
        for handler in &statement.handlers {
            let gained = self.maybe(|walker| walker.visit_except_handler(handler));
            let ExceptHandler::ExceptHandler(handler) = handler;
            ends.push((!leaves(&handler.body)).then_some(gained));
        }
        self.block(&statement.finalbody);
        // Whatever comes after runs only if one of them came to its end; `finally` may have deleted.
        for end in ends.iter_mut().flatten() {
            end.retain(|name| !self.found.deletes.contains(name));
        }
        self.join(ends);
    }

    #[inline(never)]
    fn assign(&mut self, statement: &StmtAssign) {
        // At the top level a name may come to hold a function: `g = f`, `f = cache(f)`.
        let notebook = self.scopes.is_empty() && self.later.is_none();
        if !notebook {
            self.visit_expr(&statement.value);
            for target in &statement.targets {
                self.visit_expr(target);
            }
            if let (Expr::Lambda(_), Some(later)) = (&*statement.value, &mut self.later) {
                // What a function binds beyond itself is known by then.
                let bound = statement.targets.iter().filter_map(Expr::as_name_expr);
                let bound = bound.map(|name| Name::from(name.id.as_str()));
                let defines = bound.filter(|name| later.writes.contains(name));
                let defines: Vec<Name> = defines.collect();
                later.defines.extend(defines);
            }
            return;
        }
        let ((), mut held) = self.held(false, |walker| walker.visit_expr(&statement.value));
        if held.reads.len() > MOST_HELD {
            held = Later {
                dynamic: Some(Dynamic::Code),
                returns_code: true,
                ..Later::default()
            };
        }
        for target in &statement.targets {
            if let Expr::Name(name) = target
                && let Some(before) = self.functions.get(name.id.as_str()).cloned()
                && any_over_expr(
                    &statement.value,
                    |part: &Expr| matches!(part, Expr::Name(part) if part.id == name.id),
                )
            {
                held.add(Later::clone(&before));
            }
        }
        for target in &statement.targets {
            self.visit_expr(target);
            if !held.is_empty() {
                self.holds(target, &held);
            }
        }
    }

    #[inline(never)]
    fn call(&mut self, call: &ExprCall) {
        self.reflects_by_call(call);
        match &*call.func {
            Expr::Name(name) => self.read_to(&name.id, true),
            function => {
                if let Expr::Attribute(attribute) = function
                    && !only_reads(&attribute.attr, call)
                {
                    self.mutate(&attribute.value);
                }
                self.visit_expr(function);
            }
        }
        let partial = matches!(&*call.func, Expr::Name(name) if &*name.id == "partial")
            || matches!(&*call.func, Expr::Attribute(attribute) if &*attribute.attr == "partial");
        if partial || self.held.as_ref().is_some_and(|held| held.arguments) {
            return self.visit_arguments(&call.arguments);
        }
        let held = self.held.take();
        self.visit_arguments(&call.arguments);
        self.held = held;
    }

    #[inline(never)]
    fn lambda(&mut self, lambda: &ExprLambda) {
        if let Some(parameters) = &lambda.parameters {
            self.defaults(parameters);
        }
        let class = class_around(&self.scopes);
        let mut bindings = Bindings::of(class, lambda.parameters.as_deref(), &[]);
        bindings.add_walrus(&lambda.body);
        let later = self.function(bindings, |walker| walker.visit_expr(&lambda.body));
        if self.later.is_some() {
            return;
        }
        if let Some(now) = &mut self.now {
            now.extend(later.reads.iter().cloned());
        }
        self.called_at_once(&later);
        if let Some(held) = &mut self.held {
            held.later.add(later);
        }
    }

    #[inline(never)]
    fn comprehension(&mut self, generators: &[Comprehension], elements: &[&Expr]) {
        if let Some(first) = generators.first() {
            self.visit_expr(&first.iter);
        }
        let class = class_around(&self.scopes);
        let names = generators
            .iter()
            .flat_map(|generator| targets(class, &generator.target))
            .collect();
        self.scopes.push(Scope::Inner(names));
        self.maybe(|walker| {
            for (index, generator) in generators.iter().enumerate() {
                if index > 0 {
                    walker.visit_expr(&generator.iter);
                }
                walker.visit_expr(&generator.target);
                for condition in &generator.ifs {
                    walker.visit_expr(condition);
                }
            }
            for element in elements {
                walker.visit_expr(element);
            }
        });
        self.scopes.pop();
    }

    /// Visits an expression that may not be evaluated.
    #[inline(never)]
    pub fn maybe_expr(&mut self, expression: &Expr) {
        self.maybe(|walker| walker.visit_expr(expression));
    }
}

/// Whether the end of a body is never reached.
fn leaves(body: &[Stmt]) -> bool {
    matches!(
        body.last(),
        Some(Stmt::Return(_) | Stmt::Raise(_) | Stmt::Break(_) | Stmt::Continue(_))
    )
}

impl<'a> Visitor<'a> for Walker<'_> {
    fn visit_stmt(&mut self, statement: &'a Stmt) {
        match statement {
            Stmt::FunctionDef(function) => self.function_def(function),
            Stmt::ClassDef(class) => self.class_def(class),
            Stmt::Import(import) => self.import(import),
            Stmt::ImportFrom(import) => self.import_from(import),
            // Known to the scope's bindings already.
            Stmt::Global(_) | Stmt::Nonlocal(_) => {}
            Stmt::AugAssign(assign) => {
                self.mutate(&assign.target);
                if let Expr::Name(name) = &*assign.target {
                    self.read(&name.id);
                    self.visit_expr(&assign.value);
                    self.write(&name.id);
                } else {
                    self.visit_expr(&assign.target);
                    self.visit_expr(&assign.value);
                }
            }
            Stmt::Assign(assign) => self.assign(assign),
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
            Stmt::TypeAlias(alias) => self.type_alias(alias),
            Stmt::If(statement) => self.if_statement(statement),
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
                let split = self.sure.split();
                self.block(&with.body);
                self.sure.meet(split);
            }
            Stmt::Match(statement) => self.match_statement(statement),
            Stmt::Try(statement) => self.try_statement(statement),
            Stmt::Assert(assertion) => {
                self.visit_expr(&assertion.test);
                if let Some(message) = &assertion.msg {
                    self.maybe_expr(message);
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

    fn visit_expr(&mut self, expression: &'a Expr) {
        match expression {
            Expr::Name(name) => match name.ctx {
                ExprContext::Store => self.write(&name.id),
                ExprContext::Del => self.delete(&name.id),
                ExprContext::Load | ExprContext::Invalid => self.read(&name.id),
            },
            Expr::Attribute(attribute) => {
                self.reflects_by_attribute(attribute);
                if !matches!(attribute.ctx, ExprContext::Load) {
                    self.mutate(&attribute.value);
                }
                self.visit_expr(&attribute.value);
            }
            Expr::Subscript(subscript) => {
                self.reflects_by_item(subscript);
                if !matches!(subscript.ctx, ExprContext::Load) {
                    self.mutate(&subscript.value);
                }
                self.visit_expr(&subscript.value);
                self.visit_expr(&subscript.slice);
            }
            Expr::Call(call) => self.call(call),
            Expr::Yield(_) | Expr::YieldFrom(_) | Expr::Await(_) => {
                self.returns_code(true);
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
                self.maybe_expr(&choice.body);
                self.maybe_expr(&choice.orelse);
            }
            Expr::Lambda(lambda) => self.lambda(lambda),
            Expr::ListComp(comprehension) => {
                self.comprehension(&comprehension.generators, &[&comprehension.elt])
            }
            Expr::SetComp(comprehension) => {
                self.comprehension(&comprehension.generators, &[&comprehension.elt])
            }
            Expr::Generator(comprehension) => {
                self.returns_code(true);
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
