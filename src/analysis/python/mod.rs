//! Python and IPython source, on ruff's parser.

use super::Analysis;

/// Analyses the source of one Python cell.
pub fn analyse(_source: &str) -> Analysis {
    Analysis::default()
}

/// The root name of the dotted expression that ends at the cursor.
pub fn completion_root(_code: &str, _cursor: usize) -> Option<crate::name::Name> {
    None
}
