//! `cellferry check`: all that is wrong with the metadata of notebooks, without contacting a target.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::path::{Path, PathBuf};

use clap::Args;

use super::listing::{self, Listed};
use crate::graph::svg::shortened;
use crate::notebook;
use crate::session::HOME;
use crate::target::config::{ConfigError, Targets};

/// What `cellferry check` takes.
#[derive(Debug, Args)]
#[command(
    after_help = "Exit code: 0 if nothing is wrong, 1 if anything is. Warnings alone are no fault."
)]
pub struct Arguments {
    /// Notebooks to check
    #[arg(required = true, value_name = "NOTEBOOK.ipynb")]
    notebooks: Vec<PathBuf>,
}

/// How much of a cell's first line is shown, in columns.
const SHOWN: usize = 60;

/// What is found, as it is printed.
#[derive(Debug, Default)]
struct Report {
    text: String,
    errors: usize,
    warnings: usize,
    cells: usize,
    targets: BTreeSet<String>,
}

impl Report {
    fn line(&mut self, severity: &str, place: &str, problem: &str) {
        // Writing to a string cannot fail.
        let _ = writeln!(self.text, "{severity}: {place}: {problem}");
    }

    fn error(&mut self, place: &str, problem: &str) {
        self.errors += 1;
        self.line("error", place, problem);
    }

    fn warning(&mut self, place: &str, problem: &str) {
        self.warnings += 1;
        self.line("warning", place, problem);
    }
}

/// Checks the notebooks; true if nothing is wrong.
pub fn run(arguments: &Arguments) -> bool {
    let mut report = Report::default();
    for notebook in &arguments.notebooks {
        check(&mut report, notebook);
    }
    let count =
        |count: usize, what: &str| format!("{count} {what}{}", if count == 1 { "" } else { "s" });
    let mut summary = if report.errors == 0 {
        "ok".to_owned()
    } else {
        count(report.errors, "error")
    };
    if report.warnings > 0 {
        summary += &format!(", {}", count(report.warnings, "warning"));
    }
    summary += &format!(
        ": {} in {}",
        count(report.cells, "cell"),
        count(arguments.notebooks.len(), "notebook")
    );
    if report.errors == 0 && !report.targets.is_empty() {
        let names: Vec<String> = report
            .targets
            .iter()
            .map(|name| format!("`{name}`"))
            .collect();
        summary += &format!(", targets {}", names.join(", "));
    }
    super::print(&format!("{}{summary}\n", report.text));
    report.errors == 0
}

fn check(report: &mut Report, path: &Path) {
    let file = path.display().to_string();
    let cells = match listing::read(path) {
        Ok(cells) => cells,
        // The message names the file.
        Err(error) => {
            report.errors += 1;
            let _ = writeln!(report.text, "error: {error}");
            return;
        }
    };
    report.cells += cells.len();
    let targets = match targets(path) {
        Ok(targets) => Some(targets),
        Err(problem) => {
            report.error(&file, &problem);
            None
        }
    };
    if let Some(Err(error)) = targets.as_ref().map(|targets| targets.get(HOME)) {
        report.error(&file, &format!("no cell can run at home: {error}"));
    }
    if let Some(Err(error)) = targets.as_ref().map(Targets::shared) {
        report.error(&file, &format!("no cell with files can run: {error}"));
    }
    for cell in &cells {
        let place = place(&file, cell);
        for fault in &cell.faults {
            report.error(&place, &fault.to_string());
        }
        if let (Some(name), Some(targets)) = (cell.target().filter(|name| *name != HOME), &targets)
        {
            match targets.get(name) {
                Ok(_) => {
                    report.targets.insert(name.to_owned());
                }
                Err(error) => report.error(&place, &error.to_string()),
            }
        }
        if !cell.analysis.parsed {
            report.warning(&place, "the source is not valid Python, so the cell counts as reading and changing every name");
        }
    }
}

fn place(file: &str, cell: &Listed) -> String {
    let id = cell
        .id
        .as_ref()
        .map(|id| format!(" (id {id})"))
        .unwrap_or_default();
    let line = shortened(&cell.first_line, SHOWN).replace('`', "'");
    format!("{file}: cell {}{id} `{line}`", cell.number)
}

/// All targets in sight of the notebook, its own deployments among them.
fn targets(path: &Path) -> Result<Targets, String> {
    let whole = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let folder = whole.parent().unwrap_or(Path::new("/"));
    let text = |error: ConfigError| error.to_string();
    let mut targets = Targets::load(folder, Targets::user_dir().as_deref()).map_err(text)?;
    let deployments = notebook::deployments(path).map_err(|error| error.to_string())?;
    targets.add_deployments(path, &deployments);
    Ok(targets)
}
