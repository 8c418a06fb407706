//! Which cell of the file a request runs: by id, else by position and exact source. No match, no guess.

use super::FileCell;

/// The file's code cells, and where the client is in them.
#[derive(Debug, Default)]
pub struct Matcher {
    cells: Vec<FileCell>,
    /// The cell that comes next if the client goes through the notebook in order.
    cursor: usize,
}

impl Matcher {
    /// The file has changed: the client's position is kept.
    pub fn replace(&mut self, cells: Vec<FileCell>) {
        self.cells = cells;
    }

    /// The cell that a request with this id and source runs.
    pub fn find(&mut self, cell_id: Option<&str>, source: &str) -> Option<&FileCell> {
        let index = self.index(cell_id, source)?;
        self.cursor = index + 1;
        self.cells.get(index)
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
        let next = (self.cursor..self.cells.len())
            .find(|index| !self.cells[*index].source.trim().is_empty());
        if let Some(next) = next.filter(|next| matches(next)) {
            return Some(next);
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
}
