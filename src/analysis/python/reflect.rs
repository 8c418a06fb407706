//! By what a source reaches names that it does not show: `globals()`, text that is evaluated, frames.

use ruff_python_ast::{Arguments, Expr, ExprAttribute, ExprCall, ExprSubscript};

use super::scope::Owner;
use super::walk::Walker;
use crate::analysis::Dynamic;
use crate::name::Name;

/// Functions of `builtins` by which any name can be reached.
pub fn reaches_names(name: &str) -> bool {
    matches!(
        name,
        "eval" | "exec" | "compile" | "globals" | "locals" | "vars" | "dir" | "__import__"
    )
}

impl Walker<'_> {
    /// Whether the name still means what Python itself has under it.
    fn is_builtin(&self, text: &str) -> bool {
        let name = Name::from(text);
        !self.sure.contains(&name) && self.owner(&name) != Owner::Inside
    }

    /// A notebook name is read; `called` if only to be called at once.
    pub fn reflects_by_name(&mut self, text: &str, called: bool) {
        match text {
            "get_ipython" | "__builtins__" => self.dynamic(Dynamic::Code),
            "globals" => self.dynamic(Dynamic::Namespace),
            // Handed on, and called who knows where.
            "eval" | "exec" if !called && self.is_builtin(text) => self.dynamic(Dynamic::Code),
            "locals" if !called && self.later.is_none() && self.is_builtin(text) => {
                self.dynamic(Dynamic::Namespace);
            }
            _ => {}
        }
    }

    /// `f.__globals__` and the like.
    pub fn reflects_by_attribute(&mut self, attribute: &ExprAttribute) {
        let of_builtins = matches!(&*attribute.value, Expr::Name(name) if &*name.id == "builtins");
        match attribute.attr.as_str() {
            "__globals__" | "f_globals" | "f_locals" | "f_back" | "tb_frame" | "user_ns"
            | "user_global_ns" => self.dynamic(Dynamic::Namespace),
            "get_ipython" => self.dynamic(Dynamic::Code),
            name if of_builtins && reaches_names(name) => self.dynamic(Dynamic::Code),
            _ => {}
        }
    }

    /// `sys.modules["__main__"]`, `sys.modules[__name__]`.
    pub fn reflects_by_item(&mut self, subscript: &ExprSubscript) {
        let other_module = matches!(
            &*subscript.slice,
            Expr::StringLiteral(text) if text.value.to_str() != "__main__"
        );
        if is_modules(&subscript.value) && !other_module {
            self.dynamic(Dynamic::Code);
        }
    }

    pub fn reflects_by_call(&mut self, call: &ExprCall) {
        let arguments = &call.arguments;
        let values = || {
            let keywords = arguments.keywords.iter().map(|keyword| &keyword.value);
            arguments.args.iter().chain(keywords)
        };
        // `import_module("__main__")`, `timeit(…, "from __main__ import f")`.
        let mut texts = values().filter_map(Expr::as_string_literal_expr);
        if texts.any(|text| text.value.to_str().contains("__main__")) {
            self.dynamic(Dynamic::Code);
        }
        match &*call.func {
            Expr::Attribute(attribute) => {
                let of = |module: &str| matches!(&*attribute.value, Expr::Name(name) if *name.id == *module);
                match attribute.attr.as_str() {
                    "query" | "eval" => {
                        self.interpolated_by_pandas(arguments, of("pd") || of("pandas"))
                    }
                    "evaluate" if of("ne") || of("numexpr") => {
                        self.interpolated_by_pandas(arguments, true);
                    }
                    "stack" if !of("inspect") => {}
                    "_getframe" | "_current_frames" | "currentframe" | "stack" | "run_cell"
                    | "run_cell_async" | "ex" | "ev" | "run_line_magic" | "run_cell_magic"
                    | "dump_session" | "load_session" | "dump_module" | "load_module"
                    | "get_referrers" | "get_objects" => self.dynamic(Dynamic::Code),
                    "get" if is_modules(&attribute.value) => self.dynamic(Dynamic::Code),
                    _ => {}
                }
            }
            Expr::Name(name) if self.is_builtin(&name.id) => {
                let none = arguments.args.is_empty() && arguments.keywords.is_empty();
                match name.id.as_str() {
                    "locals" | "vars" | "dir" if none && self.later.is_none() => {
                        self.dynamic(Dynamic::Namespace);
                    }
                    "__import__"
                        if arguments
                            .args
                            .first()
                            .is_some_and(Expr::is_string_literal_expr) => {}
                    "exec" | "eval" | "compile" | "__import__" => self.dynamic(Dynamic::Code),
                    _ => {}
                }
            }
            Expr::Name(name) => {
                if matches!(&*name.id, "_getframe" | "_current_frames" | "currentframe") {
                    self.dynamic(Dynamic::Code);
                }
            }
            _ => {}
        }
    }

    /// `frame.query("x > @limit")` reads `limit`; `pd.eval("a + b")` reads `a` and `b`, too. Text
    /// that stands elsewhere may read any name.
    fn interpolated_by_pandas(&mut self, arguments: &Arguments, all: bool) {
        let keyword = arguments.find_keyword("expr").map(|keyword| &keyword.value);
        let Some(text) = arguments.args.first().or(keyword) else {
            return;
        };
        let parts = match text {
            Expr::StringLiteral(text) => vec![text.value.to_str()],
            Expr::FString(text) if !all => {
                let elements = text.value.elements();
                elements
                    .filter_map(|element| element.as_literal())
                    .map(|literal| &*literal.value)
                    .chain(
                        text.value
                            .iter()
                            .filter_map(|part| part.as_literal())
                            .map(|literal| &*literal.value),
                    )
                    .collect()
            }
            _ => return self.dynamic(Dynamic::Code),
        };
        for part in parts {
            if all {
                self.expression(&part.replace('@', ""));
            }
            for name in part.split('@').skip(1) {
                self.look(name.split_whitespace().next().unwrap_or_default());
            }
        }
    }
}

/// `sys.modules` or `modules`.
fn is_modules(expression: &Expr) -> bool {
    match expression {
        Expr::Attribute(attribute) => &*attribute.attr == "modules",
        Expr::Name(name) => &*name.id == "modules",
        _ => false,
    }
}
