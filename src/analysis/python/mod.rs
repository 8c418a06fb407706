//! Python and IPython source, on ruff's parser.

use super::Analysis;

/// Analyses the source of one Python cell.
pub fn analyse(_source: &str) -> Analysis {
    Analysis::default()
}
