//! The cells of a notebook's file with all that can be known of them without running anything.

use std::collections::BTreeMap;
use std::path::Path;

use crate::analysis::{Analysis, python};
use crate::cell::{self, MetadataError, Workflow};
use crate::notebook::{self, FileCell, NotebookError};
use crate::session::HOME;
use crate::spelling::near;

/// Starts a comment in the notebook's language.
const COMMENT: &str = "#";

/// A code cell of the file.
#[derive(Debug)]
pub struct Listed {
    /// Its place among the code cells, from 1: its execution count where all are run once, in order.
    pub number: usize,
    /// Its id, since nbformat 4.5.
    pub id: Option<String>,
    /// The first line that says what it does, fit for a terminal.
    pub first_line: String,
    /// Its metadata, if they are right and there are any.
    pub workflow: Option<Workflow>,
    /// All that is wrong with them.
    pub faults: Vec<MetadataError>,
    /// What its source does.
    pub analysis: Analysis,
    /// The indices of the earlier cells that its `after` names.
    pub after: Vec<usize>,
}

impl Listed {
    /// The name of the target it runs on; `None` if its metadata is wrong.
    pub fn target(&self) -> Option<&str> {
        let target = self
            .workflow
            .as_ref()
            .and_then(|workflow| workflow.target.as_ref());
        match target {
            Some(target) => Some(target.name()),
            None => self.faults.is_empty().then_some(HOME),
        }
    }
}

/// Reads the code cells of a notebook.
pub fn read(path: &Path) -> Result<Vec<Listed>, NotebookError> {
    let cells = notebook::code_cells(path)?;
    let mut listed: Vec<Listed> = (1..)
        .zip(&cells)
        .map(|(number, cell)| list(number, cell))
        .collect();
    resolve_after(&cells, &mut listed);
    Ok(listed)
}

fn list(number: usize, cell: &FileCell) -> Listed {
    let (workflow, faults) = match cell::resolve(&cell.metadata, &cell.source, COMMENT) {
        Ok(workflow) => (workflow, Vec::new()),
        Err(faults) => (None, faults),
    };
    Listed {
        number,
        id: cell.id.as_deref().map(printable),
        first_line: first_line(&cell.source),
        workflow,
        faults,
        analysis: python::analyse(&cell.source),
        after: Vec::new(),
    }
}

/// Finds the cells that `after` names; those that it cannot follow are faults.
fn resolve_after(cells: &[FileCell], listed: &mut [Listed]) {
    let mut called: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
    if listed.iter().all(|cell| {
        cell.workflow
            .as_ref()
            .is_none_or(|workflow| workflow.after.is_empty())
    }) {
        return;
    }
    for (index, cell) in cells.iter().enumerate() {
        for word in cell.called() {
            called.entry(word).or_default().push(index);
        }
    }
    for (index, cell) in listed.iter_mut().enumerate() {
        let words = cell.workflow.iter().flat_map(|workflow| &workflow.after);
        for word in words {
            let found = called.get(word.as_str());
            let before: Vec<usize> = found
                .into_iter()
                .flatten()
                .copied()
                .filter(|other| *other < index)
                .collect();
            if before.is_empty() {
                let shown = printable(word).replace('`', "'");
                let problem = if found.is_some() {
                    format!("`{shown}` names no cell before this one")
                } else {
                    let known = called.keys().copied().filter(|known| !known.is_empty());
                    // The list of all cells would be no help.
                    let hint = near(word, known).unwrap_or_default();
                    format!("no cell has the id, tag or name `{shown}`{hint}")
                };
                cell.faults.push(MetadataError {
                    path: "workflow.after".to_owned(),
                    problem,
                });
            }
            cell.after.extend(before);
        }
    }
}

/// The first line that is neither blank nor an option; else the first that is not blank.
fn first_line(source: &str) -> String {
    let lines = || {
        source
            .lines()
            .map(str::trim_end)
            .filter(|line| !line.trim().is_empty())
    };
    let option = format!("{COMMENT}|");
    let line = lines().find(|line| !line.trim_start().starts_with(&option));
    printable(line.or_else(|| lines().next()).unwrap_or_default())
}

/// Text without anything that would move a terminal's cursor or change its colours, cut where it gets long.
fn printable(text: &str) -> String {
    text.chars()
        .take(200)
        .map(|letter| match letter {
            '\t' => ' ',
            // Marks that turn the direction of writing.
            '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => '\u{fffd}',
            letter if letter.is_control() => '\u{fffd}',
            letter => letter,
        })
        .collect()
}
