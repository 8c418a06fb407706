//! Which cell of the file a request runs: by id, else by position and exact source. No match, no guess.

use serde_json::Value;

use super::FileCell;

/// The tag of the cell that papermill puts in.
const INJECTED: &str = "injected-parameters";

/// The file's code cells, and where the client is in them.
#[derive(Debug, Default)]
pub struct Matcher {
    cells: Vec<FileCell>,
    /// The cell that comes next if the client goes through the notebook in order.
    cursor: usize,
    /// The same before the last request.
    before: usize,
    /// The cell that the last request runs.
    last: Option<usize>,
}

impl Matcher {
    /// Whether these are the cells as they were, in all that counts for running them.
    pub fn has(&self, cells: &[FileCell]) -> bool {
        fn counts(cell: &FileCell) -> (&str, [Option<&Value>; 2]) {
            let metadata = ["workflow", "tags"].map(|key| cell.metadata.get(key));
            (&cell.source, metadata)
        }
        self.cells.iter().map(counts).eq(cells.iter().map(counts))
    }

    /// The file has changed: the client's position is kept.
    pub fn replace(&mut self, cells: Vec<FileCell>) {
        self.cells = cells;
    }

    /// The cell that a request with this id and source runs.
    pub fn find(&mut self, cell_id: Option<&str>, source: &str) -> Option<&FileCell> {
        self.last = self.index(cell_id, source);
        self.before = self.cursor;
        let index = self.last?;
        self.cursor = index + 1;
        self.cells.get(index)
    }

    /// The last request is looked for again.
    pub fn rewind(&mut self) {
        self.cursor = self.before;
    }

    /// What `after` can call the cells.
    pub fn called(&self) -> impl Iterator<Item = &str> {
        self.cells.iter().flat_map(FileCell::called)
    }

    /// The place of the cell that the last request runs.
    pub fn last(&self) -> Option<usize> {
        self.last
    }

    /// The cells that come after it, up to where papermill may put one of its own.
    pub fn rest(&self) -> Vec<(usize, FileCell)> {
        let Some(last) = self.last else {
            return Vec::new();
        };
        let injects = |cell: &FileCell| is_tagged(cell, "parameters");
        if self.cells.get(last).is_some_and(injects) {
            return Vec::new();
        }
        let mut rest = Vec::new();
        for (index, cell) in self.cells.iter().enumerate().skip(last + 1) {
            if is_tagged(cell, INJECTED) {
                break;
            }
            if !may_be_left_out(cell) {
                rest.push((index, cell.clone()));
            }
            if injects(cell) {
                break;
            }
        }
        rest
    }

    fn index(&self, cell_id: Option<&str>, source: &str) -> Option<usize> {
        if let Some(id) = cell_id {
            let by_id = self
                .cells
                .iter()
                .position(|cell| cell.id.as_deref() == Some(id));
            // The file may be older than what the client runs: then the source does not match.
            if let Some(index) = by_id {
                return (self.cells[index].source == source).then_some(index);
            }
        }
        if source.trim().is_empty() {
            return None;
        }
        let matches = |index: &usize| {
            self.cells
                .get(*index)
                .is_some_and(|cell| cell.source == source)
        };
        if let Some(next) = self.next(source) {
            return next;
        }
        // Skipped cells, re-runs: only if just one cell has this source.
        let all: Vec<usize> = (0..self.cells.len())
            .filter(|index| matches(index))
            .collect();
        match all.as_slice() {
            [only] => Some(*only),
            [first, rest @ ..]
                if rest
                    .iter()
                    .all(|other| self.cells[*other].metadata == self.cells[*first].metadata) =>
            {
                // Whichever it is, its metadata is the same; the nearest ahead keeps the position.
                all.iter()
                    .copied()
                    .find(|index| *index >= self.cursor)
                    .or(Some(*first))
            }
            _ => None,
        }
    }

    /// The cell with this source that comes next in order, past cells that a client may leave out.
    /// `Some(None)` if that is one of several that say different things.
    fn next(&self, source: &str) -> Option<Option<usize>> {
        let mut found: Option<usize> = None;
        for (index, cell) in self.cells.iter().enumerate().skip(self.cursor) {
            if cell.source == source {
                let same = found.is_none_or(|first| {
                    self.cells[first].metadata.get("workflow") == cell.metadata.get("workflow")
                });
                if !same {
                    return Some(None);
                }
                found = found.or(Some(index));
            }
            if !may_be_left_out(cell) {
                break;
            }
        }
        found.map(Some)
    }
}

/// Whether a client that goes through the notebook in order may not send this cell: it is empty,
/// nbclient skips it, or papermill puts another in its place.
fn may_be_left_out(cell: &FileCell) -> bool {
    cell.source.trim().is_empty() || is_tagged(cell, "skip-execution") || is_tagged(cell, INJECTED)
}

fn is_tagged(cell: &FileCell, wanted: &str) -> bool {
    cell.metadata
        .get("tags")
        .and_then(Value::as_array)
        .is_some_and(|tags| tags.iter().any(|tag| tag == wanted))
}
