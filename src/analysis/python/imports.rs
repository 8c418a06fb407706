//! Which modules a source imports, anywhere in it.

use std::collections::BTreeSet;

use ruff_python_ast::visitor::{Visitor, walk_stmt};
use ruff_python_ast::{Expr, Stmt};

use super::bindings::import_root;
use super::{deep_enough, input, magics, with_parsed};

/// The modules that a source imports by name, without what comes after their first dot: at its top, in functions, on some
/// path only. What it imports relative to its own package is not among them.
pub fn imported_modules(source: &str) -> BTreeSet<String> {
    let source = &*input::cleaned(source);
    if magics::cell_magic(source).is_some_and(|cell| cell.body_kind().is_text()) {
        return BTreeSet::new();
    }
    let find = || {
        with_parsed(source, |statements, _| {
            let mut found = Imports::default();
            found.visit_body(statements);
            found.0
        })
    };
    deep_enough(source, find).unwrap_or_default()
}

#[derive(Default)]
struct Imports(BTreeSet<String>);

impl Visitor<'_> for Imports {
    fn visit_stmt(&mut self, statement: &Stmt) {
        match statement {
            Stmt::Import(import) => {
                let roots = import.names.iter().map(|alias| import_root(&alias.name));
                self.0.extend(roots.map(str::to_owned));
            }
            Stmt::ImportFrom(import) if import.level == 0 => {
                let root = import.module.as_deref().map(import_root);
                self.0.extend(root.map(str::to_owned));
            }
            statement => walk_stmt(self, statement),
        }
    }

    fn visit_expr(&mut self, _: &Expr) {
        // No statement stands in an expression.
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn imports_are_found_wherever_they_stand() {
        let source = "%%time\nimport a.b as c, d\nfrom e.f import g\nfrom . import no\nfrom .h import no\n\
            def f():\n    import i\n    class C:\n        try:\n            import j\n        except ImportError:\n            from k import *\n\
            with x:\n    if y:\n        import l\nx = 'import no'\n# import no\nlambda: 1\n";
        let found: Vec<String> = imported_modules(source).into_iter().collect();
        assert_eq!(found, ["a", "d", "e", "i", "j", "k", "l"]);
        assert!(imported_modules("%%bash\nimport a").is_empty());
        let deep = format!("import a\nx = {}1{}\n", "(".repeat(9000), ")".repeat(9000));
        assert_eq!(imported_modules(&deep).len(), 1);
        assert!(imported_modules("import a\ndef (").contains("a"));
    }
}
