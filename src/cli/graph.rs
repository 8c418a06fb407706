//! `cellferry graph`: what a notebook's file shows of its dataflow, as text and as a picture.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;
use thiserror::Error;

use super::listing::{self, Listed};
use crate::graph::svg::{Node, Picture, State, arrows, shortened};
use crate::graph::{Accesses, Edge, Graph, Reason};
use crate::notebook::NotebookError;

/// What `cellferry graph` takes.
#[derive(Debug, Args)]
pub struct Arguments {
    /// The notebook
    #[arg(value_name = "NOTEBOOK.ipynb")]
    notebook: PathBuf,
    /// Draw the graph into this file, too
    #[arg(short, long, value_name = "FILE.svg")]
    output: Option<PathBuf>,
}

/// Why there is no graph.
#[derive(Debug, Error)]
pub enum GraphError {
    /// The notebook cannot be read.
    #[error(transparent)]
    Notebook(#[from] NotebookError),
    /// The picture would overwrite the notebook.
    #[error("`{}` is the notebook itself; give the picture a file of its own", path.display())]
    Same {
        /// The file.
        path: PathBuf,
    },
    /// The picture cannot be written.
    #[error("cannot write `{}`: {source}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
}

/// How much of a cell's first line is shown, in columns.
const SHOWN: usize = 72;
/// What a target is called where the metadata is wrong.
const UNKNOWN: &str = "?";

/// Prints the graph of a notebook and draws it.
pub fn run(arguments: &Arguments) -> Result<ExitCode, GraphError> {
    let cells = listing::read(&arguments.notebook)?;
    let mut graph = Graph::new();
    let mut accesses = Accesses::default();
    for cell in &cells {
        let mut access = accesses.next(&cell.analysis, cell.workflow.as_ref());
        access.is_step |= !cell.faults.is_empty();
        access.after.clone_from(&cell.after);
        graph.add(access);
    }
    if let Some(output) = &arguments.output {
        let file = |path: &Path| path.canonicalize().ok();
        if file(output).is_some_and(|output| Some(output) == file(&arguments.notebook)) {
            return Err(GraphError::Same {
                path: output.clone(),
            });
        }
        write(output, &picture(&cells, &graph).svg()).map_err(|source| GraphError::Write {
            path: output.clone(),
            source,
        })?;
    }
    super::print(&listing(&cells, &graph));
    Ok(ExitCode::SUCCESS)
}

/// Whole or not at all, with the permissions of any new file.
fn write(path: &Path, text: &str) -> std::io::Result<()> {
    let folder = path
        .parent()
        .filter(|folder| !folder.as_os_str().is_empty());
    let everyone = std::os::unix::fs::PermissionsExt::from_mode(0o666);
    let mut file = tempfile::Builder::new()
        .permissions(everyone)
        .tempfile_in(folder.unwrap_or(Path::new(".")))?;
    std::io::Write::write_all(&mut file, text.as_bytes())?;
    file.persist(path)?;
    Ok(())
}

/// The cells, one a line, each with what it waits for below it.
fn listing(cells: &[Listed], graph: &Graph) -> String {
    let mut text = String::new();
    let digits = cells.len().to_string().len().max(2);
    let targets = cells.iter().map(|cell| target(cell).chars().count());
    let width = targets.max().unwrap_or(0).min(20);
    for (index, cell) in cells.iter().enumerate() {
        let line = shortened(&cell.first_line, SHOWN);
        let line = if line.is_empty() { "(empty)" } else { &line };
        // Writing to a string cannot fail.
        let _ = writeln!(
            text,
            "{:>digits$}  {:width$}  {line}",
            cell.number,
            target(cell)
        );
        let margin = " ".repeat(digits + 4);
        for fault in &cell.faults {
            let _ = writeln!(text, "{margin}wrong: {fault}");
        }
        if !cell.analysis.parsed {
            let _ = writeln!(text, "{margin}not valid Python");
        }
        for (what, whom) in waits(cells, index, &graph.before(index)) {
            let _ = writeln!(text, "{margin}{what} {whom}");
        }
        if graph.access(index).is_some_and(|access| access.dynamic) {
            let _ = writeln!(text, "{margin}may reach any name: runs alone");
        }
    }
    let overlaps = graph.overlaps();
    if cells.is_empty() {
        text.push_str("no code cells\n");
    } else if overlaps.is_empty() {
        text.push_str("\nNo steps can overlap.\n");
    } else {
        text.push_str("\nSteps that can overlap:\n");
        for group in overlaps {
            let numbers: Vec<String> = group
                .iter()
                .map(|index| cells[*index].number.to_string())
                .collect();
            let _ = writeln!(text, "  {}", numbers.join(", "));
        }
    }
    text
}

fn target(cell: &Listed) -> &str {
    cell.target().unwrap_or(UNKNOWN)
}

/// What a cell reads from whom, and whom else it follows; the plain order of cells goes without saying.
fn waits(cells: &[Listed], index: usize, edges: &[Edge<'_>]) -> Vec<(&'static str, String)> {
    let mut waits: BTreeMap<&'static str, Vec<String>> = BTreeMap::new();
    for edge in edges {
        let number = cells[edge.from].number;
        let (reads, orders) = edge.names();
        if !reads.is_empty() {
            let text = format!("{} from {number}", reads.join(", "));
            waits.entry("reads").or_default().push(text);
        } else if !orders.is_empty() {
            let text = format!("{number} (order of {})", orders.join(", "));
            waits.entry("follows").or_default().push(text);
        }
        if edge.reasons.contains(&Reason::After) {
            waits.entry("after").or_default().push(number.to_string());
        }
    }
    debug_assert!(edges.iter().all(|edge| edge.to == index));
    ["reads", "follows", "after"]
        .into_iter()
        .filter_map(|what| Some((what, waits.remove(what)?.join("; "))))
        .collect()
}

fn picture(cells: &[Listed], graph: &Graph) -> Picture {
    let node = |cell: &Listed| Node {
        number: cell.number,
        text: cell.first_line.clone(),
        target: target(cell).to_owned(),
        state: (!cell.faults.is_empty()).then_some(State::Refused),
        time: None,
    };
    Picture {
        nodes: cells.iter().map(node).collect(),
        edges: arrows(graph),
    }
}
