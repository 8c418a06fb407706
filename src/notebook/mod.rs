//! Knowing the notebook: which file a session belongs to, and which of its cells a request is.

mod locate;
mod matcher;
mod runner;

pub use locate::{Located, Parent, locate};
pub use matcher::Matcher;

use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde::Deserialize;
use serde_json::{Map, Value};
use thiserror::Error;

/// The largest notebook that is read, in bytes.
const LIMIT: u64 = 512 << 20;

/// A code cell of the file.
#[derive(Clone, Debug, PartialEq)]
pub struct FileCell {
    /// Its id, since nbformat 4.5.
    pub id: Option<String>,
    /// Its source.
    pub source: String,
    /// All of its metadata.
    pub metadata: Value,
}

/// Why a notebook file cannot be used.
#[derive(Debug, Error)]
pub enum NotebookError {
    /// It cannot be read.
    #[error("cannot read the notebook `{}`: {source}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// It is not a notebook of format 4.
    #[error("`{}` is not a notebook of format 4: {reason}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
}

/// The notebook's file, read again when it changes.
#[derive(Debug)]
pub struct Notebook {
    path: PathBuf,
    stamp: Option<Stamp>,
    matcher: Matcher,
    in_order: bool,
    /// Whether the file has changed since the cells after the last one were told.
    changed: bool,
}

type Stamp = (SystemTime, u64, u64);

#[derive(Deserialize)]
struct RawNotebook {
    #[serde(default)]
    nbformat: u32,
    #[serde(default)]
    cells: Vec<RawCell>,
    #[serde(default)]
    metadata: Value,
}

#[derive(Deserialize)]
struct RawCell {
    #[serde(default)]
    cell_type: String,
    #[serde(default)]
    id: Option<String>,
    #[serde(default)]
    source: Value,
    #[serde(default)]
    metadata: Value,
}

impl Notebook {
    /// A notebook that has not been read yet; `in_order` if its client goes through it in order.
    pub fn new(path: PathBuf, in_order: bool) -> Self {
        Self {
            path,
            in_order,
            changed: false,
            stamp: None,
            matcher: Matcher::default(),
        }
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The cell that a request runs, if it is clear which one that is.
    pub fn cell_of(
        &mut self,
        cell_id: Option<&str>,
        source: &str,
    ) -> Result<Option<FileCell>, NotebookError> {
        self.refresh()?;
        Ok(self.matcher.find(cell_id, source).cloned())
    }

    /// What `after` can call the cells of the file.
    pub fn called(&mut self) -> Result<impl Iterator<Item = &str>, NotebookError> {
        self.refresh()?;
        Ok(self.matcher.called())
    }

    /// The place of the cell that was found last, if the one asked for last was found.
    pub fn last(&self) -> Option<usize> {
        self.matcher.last()
    }

    /// The last request is looked for again.
    pub fn rewind(&mut self) {
        self.matcher.rewind();
    }

    /// Whether the file was found changed by the last request.
    pub fn has_changed(&self) -> bool {
        self.changed
    }

    /// The cells that a client which goes on in order will ask for after the one found last, with
    /// their places; none if it is not clear which.
    pub fn rest(&self) -> Vec<(usize, FileCell)> {
        if self.in_order {
            self.matcher.rest()
        } else {
            Vec::new()
        }
    }

    fn refresh(&mut self) -> Result<(), NotebookError> {
        self.changed = false;
        let Some((raw, stamp)) = read(&self.path, self.stamp)? else {
            return Ok(());
        };
        let cells = raw.code_cells();
        self.changed = !self.matcher.has(&cells);
        self.matcher.replace(cells);
        self.stamp = Some(stamp);
        Ok(())
    }
}

/// The code cells of a notebook, in order.
pub fn code_cells(path: &Path) -> Result<Vec<FileCell>, NotebookError> {
    Ok(read(path, None)?.map_or_else(Vec::new, |(raw, _)| raw.code_cells()))
}

/// The deployments under `workflow` in a notebook's own metadata, as Jupyter-workflow puts them there.
pub fn deployments(path: &Path) -> Result<Map<String, Value>, NotebookError> {
    let Some((mut raw, _)) = read(path, None)? else {
        return Ok(Map::new());
    };
    let given = raw.metadata.pointer_mut("/workflow/deployments");
    match given.map(Value::take) {
        Some(Value::Object(deployments)) => Ok(deployments),
        None | Some(Value::Null) => Ok(Map::new()),
        Some(_) => Err(NotebookError::Malformed {
            path: path.to_owned(),
            reason: "its `metadata.workflow.deployments` is not an object".to_owned(),
        }),
    }
}

/// Reads a notebook, unless its stamp is still `known`.
fn read(path: &Path, known: Option<Stamp>) -> Result<Option<(RawNotebook, Stamp)>, NotebookError> {
    use std::os::unix::fs::MetadataExt;
    let unreadable = |source| NotebookError::Unreadable {
        path: path.to_owned(),
        source,
    };
    let malformed = |reason: String| NotebookError::Malformed {
        path: path.to_owned(),
        reason,
    };
    let metadata = std::fs::metadata(path).map_err(unreadable)?;
    let stamp = (
        metadata.modified().map_err(unreadable)?,
        metadata.len(),
        metadata.ino(),
    );
    if known == Some(stamp) {
        return Ok(None);
    }
    if !metadata.is_file() {
        return Err(malformed("it is not a file".to_owned()));
    }
    if metadata.len() > LIMIT {
        return Err(malformed(format!("it is larger than {} MB", LIMIT >> 20)));
    }
    let text = std::fs::read(path).map_err(unreadable)?;
    let raw: RawNotebook =
        serde_json::from_slice(&text).map_err(|error| malformed(error.to_string()))?;
    if raw.nbformat != 4 {
        return Err(malformed(format!("its nbformat is {}", raw.nbformat)));
    }
    Ok(Some((raw, stamp)))
}

impl RawNotebook {
    fn code_cells(self) -> Vec<FileCell> {
        let code = |cell: &RawCell| cell.cell_type == "code";
        let cells = self.cells.into_iter().filter(code);
        cells.map(FileCell::from).collect()
    }
}

impl FileCell {
    /// What `after` can call it: its id, its tags, its name.
    pub fn called(&self) -> impl Iterator<Item = &str> {
        let tags = self.metadata.get("tags").and_then(Value::as_array);
        let tags = tags.into_iter().flatten().filter_map(Value::as_str);
        let name = self.metadata.get("name").and_then(Value::as_str);
        self.id.as_deref().into_iter().chain(tags).chain(name)
    }
}

impl From<RawCell> for FileCell {
    fn from(raw: RawCell) -> Self {
        let source = match raw.source {
            Value::String(text) => text,
            Value::Array(lines) => lines.iter().filter_map(Value::as_str).collect(),
            _ => String::new(),
        };
        Self {
            id: raw.id,
            source,
            metadata: raw.metadata,
        }
    }
}

#[cfg(test)]
mod tests;
