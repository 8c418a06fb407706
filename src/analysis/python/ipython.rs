//! Follows what IPython adds: cell magics, line magics, shell lines, help, automatic calls.

use ruff_python_ast::{IpyEscapeKind, Stmt};
use ruff_text_size::TextRange;

use super::bindings::{Bindings, import_root};
use super::depth::depth;
use super::magics::{self, Body, CellMagic, Line, split_word};
use super::scope::Scope;
use super::walk::Walker;
use super::{SHALLOW, with_parsed};
use crate::analysis::Dynamic;

/// Magics inside magics deeper than this are not followed.
const DEEPEST: usize = 8;

impl Walker<'_> {
    /// A cell that is no cell magic.
    pub fn cell(&mut self, source: &str) {
        // IPython takes a single line for a magic if no name shadows it.
        let line = Some(source.trim()).filter(|line| !line.contains('\n'));
        let line = line.and_then(magics::automagic);
        let valid = with_parsed(source, |body, valid| {
            if valid || line.is_none() {
                self.program(body);
            }
            valid
        });
        match line {
            Some(line) if valid => {
                self.top = false;
                self.maybe(|walker| walker.magic(line, TextRange::default()));
            }
            Some(line) => self.magic(line, TextRange::default()),
            None => self.parsed(valid),
        }
    }

    pub fn cell_magic(&mut self, cell: &CellMagic<'_>) {
        if self.magics == DEEPEST {
            return self.dynamic(Dynamic::Magic);
        }
        self.magics += 1;
        if !magics::is_never_interpolated(cell.name) {
            self.interpolate(cell.line);
        }
        match cell.body_kind() {
            Body::Text => magics::script_outputs(cell.line).for_each(|name| self.write(name)),
            Body::Shell => {
                self.interpolate(cell.body);
                magics::script_outputs(cell.line).for_each(|name| self.write(name));
            }
            Body::Unknown => {
                self.dynamic(Dynamic::Magic);
                self.maybe(|walker| {
                    walker.python(cell.body);
                });
            }
            Body::Python if cell.name == "capture" => {
                self.body(cell.body);
                let mut words = cell.line.split_whitespace();
                if let Some(name) = words.find(|word| !word.starts_with('-')) {
                    self.write(name);
                    if cell.body.trim_end().ends_with(';') {
                        self.delete(name);
                    }
                }
            }
            Body::Python => {
                let (options, line) = magics::options(cell.name, cell.line);
                self.options(&options);
                let valid = self.python(line);
                self.parsed(valid);
                self.body(cell.body);
            }
            Body::PythonInside => {
                let (options, line) = magics::options(cell.name, cell.line);
                // The line is set-up code: the body sees what it binds.
                let text = format!("{line}\n{}", cell.body);
                match magics::cell_magic(cell.body) {
                    Some(inner) => self.cell_magic(&inner),
                    None => {
                        let valid = self.python_inside(&text);
                        self.parsed(valid);
                    }
                }
                self.options(&options);
            }
        }
        self.magics -= 1;
    }

    /// Python, or a further cell magic.
    fn body(&mut self, text: &str) {
        match magics::cell_magic(text) {
            Some(cell) => self.cell_magic(&cell),
            None => {
                let valid = self.python(text);
                self.parsed(valid);
            }
        }
    }

    /// Python in a magic: accesses count, definitions do not.
    fn python(&mut self, text: &str) -> bool {
        self.block_of(text, |walker, body| walker.block(body))
    }

    /// Python that a magic runs in a function: what it binds stays there.
    fn python_inside(&mut self, text: &str) -> bool {
        self.block_of(text, |walker, body| {
            let bindings = Bindings::of(None, None, body);
            walker.scopes.push(Scope::Function(bindings));
            walker.block(body);
            walker.scopes.pop();
        })
    }

    fn block_of(&mut self, text: &str, visit: impl FnOnce(&mut Self, &[Stmt])) -> bool {
        let top = std::mem::replace(&mut self.top, false);
        let valid = with_parsed(text, |body, valid| {
            visit(self, body);
            valid
        });
        self.top = top;
        valid
    }

    /// Python on a magic's own line; the stack was made for the rest of the cell.
    fn statement(&mut self, text: &str, inside: bool) {
        let valid = self.magics < DEEPEST && depth(text) <= SHALLOW && {
            self.magics += 1;
            let valid = if inside {
                self.python_inside(text)
            } else {
                self.python(text)
            };
            self.magics -= 1;
            valid
        };
        if !valid {
            self.dynamic(Dynamic::Code);
        }
    }

    /// An expression that may be evaluated, if the text is one.
    pub fn expression(&mut self, text: &str) {
        if depth(text) > SHALLOW {
            return self.dynamic(Dynamic::Code);
        }
        with_parsed(text.trim(), |body, valid| {
            if let ([Stmt::Expr(expression)], true) = (body, valid) {
                self.maybe_expr(&expression.value);
            }
        });
    }

    fn interpolate(&mut self, line: &str) {
        for expression in magics::interpolated(line) {
            self.expression(expression);
        }
    }

    /// Notes the roots of dotted names.
    pub fn look(&mut self, words: &str) {
        for word in words.split_whitespace() {
            let end = word.find(|letter: char| !(letter.is_alphanumeric() || letter == '_'));
            let root = &word[..end.unwrap_or(word.len())];
            if !root.is_empty() {
                self.maybe(|walker| walker.read(root));
            }
        }
    }

    /// What the options of a magic that runs Python do.
    fn options(&mut self, options: &[(char, &str)]) {
        for (letter, value) in options {
            match letter {
                'v' => self.write(value),
                'f' => self.expression(value),
                _ => {}
            }
        }
    }

    /// A line, or the right side of an assignment, that IPython alone understands.
    pub fn escape(&mut self, kind: IpyEscapeKind, value: &str, range: TextRange) {
        match kind {
            IpyEscapeKind::Shell | IpyEscapeKind::ShCap => self.interpolate(value),
            IpyEscapeKind::Help | IpyEscapeKind::Help2 => {
                // A pattern is looked for among all names.
                if value.contains('*') {
                    self.dynamic(Dynamic::Magic);
                }
                self.look(value.trim_start_matches(['%', '!', '?', ' ']));
            }
            // `,f a b` is `f("a", "b")`; `/f a b` is `f(a, b)`.
            IpyEscapeKind::Quote | IpyEscapeKind::Quote2 => {
                let (function, _) = split_word(value);
                self.statement(&format!("{function}('')"), false);
            }
            IpyEscapeKind::Paren => {
                let (function, arguments) = split_word(value);
                let arguments: Vec<&str> = arguments.split_whitespace().collect();
                self.statement(&format!("{function}({})", arguments.join(", ")), false);
            }
            IpyEscapeKind::Magic2 => self.dynamic(Dynamic::Magic),
            IpyEscapeKind::Magic => self.magic(value.trim(), range),
        }
    }

    /// A line magic, without its `%`. One without a range has no place of its own in the source.
    fn magic(&mut self, value: &str, range: TextRange) {
        let (name, line) = split_word(value);
        match magics::line_of(name) {
            Line::Python | Line::PythonInside => {
                if !magics::is_never_interpolated(name) {
                    self.interpolate(line);
                }
                let (options, statement) = magics::options(name, line);
                let inside = magics::line_of(name) == Line::PythonInside;
                self.statement(statement, inside);
                self.options(&options);
            }
            Line::Setting => self.setting(value, range, |walker| walker.interpolate(line)),
            Line::Config => self.setting(value, range, |walker| {
                walker.interpolate(line);
                if let Some((_, value)) = line.split_once('=') {
                    walker.expression(value);
                }
            }),
            Line::Extension => {
                self.setting(value, range, |walker| walker.interpolate(line));
                if !magics::is_harmless_extension(line) {
                    self.dynamic(Dynamic::Magic);
                }
            }
            Line::Imports => {
                for module in line.split(',').map(str::trim) {
                    let bound = match module.split_once(" as ") {
                        Some((_, alias)) => alias.trim(),
                        None => import_root(module),
                    };
                    if !bound.is_empty() && !bound.starts_with('-') {
                        self.write(bound);
                    }
                }
                self.setting(value, range, |_| {});
            }
            Line::Looks => {
                self.interpolate(line);
                self.look(line);
            }
            Line::Deletes => {
                self.interpolate(line);
                if let Some(name) = line.split_whitespace().find(|word| !word.starts_with('-')) {
                    self.delete(name);
                }
                // Without `-n` it deletes every name of the object.
                if !line.split_whitespace().any(|word| word == "-n") {
                    self.dynamic(Dynamic::Magic);
                }
            }
            Line::Captures => {
                self.interpolate(line);
                let mut words = line.split_whitespace();
                let word = words.find(|word| !word.starts_with('-'));
                if let Some((name, _)) = word.and_then(|word| word.split_once('=')) {
                    self.write(name);
                }
            }
            Line::Nothing => self.interpolate(line),
            Line::Anything(why) => {
                self.interpolate(line);
                self.dynamic(why);
            }
        }
    }

    /// A magic that is replayed elsewhere, with the names that its line takes.
    fn setting(&mut self, value: &str, range: TextRange, visit: impl FnOnce(&mut Self)) {
        let ((), gathered) = self.gather(visit);
        if self.is_top() {
            self.define_magic(value, range, gathered.now);
        }
    }
}
