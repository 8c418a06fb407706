//! Python and IPython source, on ruff's parser.
//!
//! `walk` follows the program's paths, `scope` says to whom a name belongs, `magics` knows what
//! IPython adds, `bindings` what a function binds.

mod bindings;
mod completion;
mod magics;
mod scope;
mod walk;

pub use completion::completion_root;

use ruff_python_ast::{Mod, Stmt};
use ruff_python_parser::{Mode, ParseOptions, parse_unchecked};

use super::{Analysis, Dynamic};
use walk::Walker;

/// Brackets nested deeper than this are not analysed: CPython refuses them, too (MAXLEVEL of its tokenizer).
const DEEPEST: usize = 200;

/// Source up to this length (bytes) cannot nest deeply enough to need a stack of its own.
const SHORT: usize = 4 << 10;

/// The stack for longer sources, in bytes; only what is used is ever touched.
const STACK: usize = 256 << 20;

/// Analyses the source of one Python cell.
pub fn analyse(source: &str) -> Analysis {
    let unknown = || Analysis {
        dynamic: Some(Dynamic::Unparsable),
        ..Analysis::default()
    };
    if nesting(source) > DEEPEST {
        return unknown();
    }
    if source.len() <= SHORT {
        return analyse_here(source);
    }
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new()
            .stack_size(STACK)
            .spawn_scoped(scope, || analyse_here(source));
        thread
            .ok()
            .and_then(|thread| thread.join().ok())
            .unwrap_or_else(unknown)
    })
}

fn analyse_here(source: &str) -> Analysis {
    let mut walker = Walker::new(source);
    match magics::cell_magic(source) {
        Some(cell) => walker.cell_magic(&cell),
        None => {
            let parsed = with_parsed(source, |body| walker.program(body));
            walker.parsed(parsed);
        }
    }
    walker.finish()
}

/// Parses `source`, hands the statements over, and says whether it was valid.
fn with_parsed(source: &str, take: impl FnOnce(&[Stmt])) -> bool {
    let parsed = parse_unchecked(source, ParseOptions::from(Mode::Ipython));
    if let Mod::Module(module) = parsed.syntax() {
        take(&module.body);
    }
    parsed.errors().is_empty()
}

/// How deeply brackets nest, strings and comments counted as if they were code: an upper bound.
fn nesting(source: &str) -> usize {
    let (mut depth, mut deepest) = (0usize, 0);
    for byte in source.bytes() {
        match byte {
            b'(' | b'[' | b'{' => {
                depth += 1;
                deepest = deepest.max(depth);
            }
            b')' | b']' | b'}' => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    deepest
}

#[cfg(test)]
mod tests;
