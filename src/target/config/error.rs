//! What is wrong with a configuration file or one of its targets, and on which line.

use thiserror::Error;
use toml::de::DeTable;

/// What is wrong with a configuration file or a target.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read `{file}`: {reason}")]
    Unreadable {
        /// The file.
        file: String,
        /// Why.
        reason: String,
    },
    /// The file is not TOML.
    #[error("`{file}` is not valid TOML: {reason}")]
    Syntax {
        /// The file.
        file: String,
        /// What and where, with line and column.
        reason: String,
    },
    /// A key or value is wrong.
    #[error("`{path}` in `{file}`{}: {problem}", line.map(|line| format!(", line {line}")).unwrap_or_default())]
    Invalid {
        /// The key's path.
        path: String,
        /// The file.
        file: String,
        /// The line, from 1, if the file has lines of its own.
        line: Option<usize>,
        /// What is wrong, and the nearest valid word.
        problem: String,
    },
    /// Nobody defines the target.
    #[error("no target `{name}`{hint}; {looked}")]
    Unknown {
        /// The name asked for.
        name: String,
        /// The nearest name, as a question.
        hint: String,
        /// Where it was looked for.
        looked: String,
    },
}

impl ConfigError {
    /// Adds the line of `text` where the key stands, or its nearest parent.
    pub(super) fn at_line(mut self, text: &str) -> Self {
        if let Self::Invalid { path, line, .. } = &mut self
            && let Ok(document) = DeTable::parse(text)
        {
            let line_of = |at: usize| Some(1 + text[..at].matches('\n').count());
            let mut table = Some(document.get_ref());
            let mut rest = path.as_str();
            // A key may itself hold a dot, so the path is followed by what the file holds.
            while let Some((key, value)) = table.and_then(|table| {
                let leads = |key: &str| {
                    let after = rest.strip_prefix(key);
                    after.is_some_and(|after| after.is_empty() || after.starts_with(['.', '[']))
                };
                let candidates = table.iter().filter(|(key, _)| leads(key.get_ref()));
                candidates.max_by_key(|(key, _)| key.get_ref().len())
            }) {
                *line = line_of(key.span().start);
                rest = &rest[key.get_ref().len()..];
                let mut value = value;
                if let Some((index, after)) =
                    rest.strip_prefix('[').and_then(|rest| rest.split_once(']'))
                    && let Some(element) = value
                        .get_ref()
                        .as_array()
                        .zip(index.parse::<usize>().ok())
                        .and_then(|(array, index)| array.get(index))
                {
                    *line = line_of(element.span().start);
                    (rest, value) = (after, element);
                }
                rest = rest.trim_start_matches('.');
                table = value.get_ref().as_table();
            }
        }
        self
    }
}
