//! Python and IPython source, on ruff's parser.
//!
//! `input` cleans the text as IPython does, `walk` follows the program's paths, `access` notes what
//! each name met there means, `define` cuts definitions out, `ipython` follows magics and shell lines,
//! `reflect` knows by what a source reaches names that it does not show, `imports` which modules it names. Beneath them, `scope` says to
//! whom a name belongs, `sure` what is bound on every path, `later` what a call does, `bindings` what
//! a function binds, `magics` what IPython adds, and `depth` how much stack all of it needs.

mod access;
mod bindings;
mod completion;
mod define;
mod depth;
mod imports;
mod input;
mod ipython;
mod later;
mod magics;
mod methods;
mod reflect;
mod scope;
mod sure;
mod walk;

pub use completion::completion_root;
pub use imports::imported_modules;

use ruff_python_ast::{Mod, Stmt};
use ruff_python_parser::{Mode, ParseOptions, parse_unchecked};

use super::{Analysis, Dynamic};
use walk::Walker;

/// Source that nests deeper than this is not analysed. CPython gives up at a tenth of it.
const DEEPEST: usize = 50_000;

/// Source up to this depth needs no stack of its own.
const SHALLOW: usize = 60;

/// Stack for one level, in bytes, more than any takes without optimisation; only what is used is ever touched.
const LEVEL: usize = 8 << 10;

/// Analyses the source of one Python cell.
pub fn analyse(source: &str) -> Analysis {
    let unknown = || Analysis {
        dynamic: Some(Dynamic::Unparsable),
        ..Analysis::default()
    };
    let source = &*input::cleaned(source);
    deep_enough(source, || analyse_here(source)).unwrap_or_else(unknown)
}

/// Looks at a source with the stack that it takes; `None` if no stack would do.
fn deep_enough<T: Send>(source: &str, look: impl FnOnce() -> T + Send) -> Option<T> {
    let depth = match magics::cell_magic(source) {
        Some(cell) if cell.body_kind().is_text() => 0,
        Some(_) | None => depth::depth(source),
    };
    if depth <= SHALLOW {
        return Some(look());
    }
    if depth > DEEPEST {
        return None;
    }
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new()
            .stack_size((SHALLOW + depth) * LEVEL)
            .spawn_scoped(scope, look);
        thread.ok()?.join().ok()
    })
}

fn analyse_here(source: &str) -> Analysis {
    let mut walker = Walker::new(source);
    match magics::cell_magic(source) {
        Some(cell) => walker.cell_magic(&cell),
        None => walker.cell(source),
    }
    walker.finish()
}

/// Parses `source`, and hands the statements over with whether they are all valid. If not, they are
/// what could be recovered.
fn with_parsed<T>(source: &str, take: impl FnOnce(&[Stmt], bool) -> T) -> T {
    let parsed = parse_unchecked(source, ParseOptions::from(Mode::Ipython));
    match parsed.syntax() {
        Mod::Module(module) => take(&module.body, parsed.errors().is_empty()),
        Mod::Expression(_) => take(&[], false),
    }
}

#[cfg(test)]
mod tests;
