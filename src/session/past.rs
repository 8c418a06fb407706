//! What has been asked for so far: the cells of the session as a graph, for `%cellferry graph`.

use crate::graph::svg::{Node, Picture, State, arrows};
use crate::graph::{Access, Graph};

/// One cell of the session, by its place in the order of arrival.
pub(super) type Place = usize;

#[derive(Debug, Default)]
pub(super) struct Past {
    graph: Graph,
    cells: Vec<Node>,
}

impl Past {
    pub(super) fn asked(&mut self, access: Access, text: &str, target: &str) -> Place {
        self.cells.push(Node {
            number: self.cells.len() + 1,
            text: text.to_owned(),
            target: target.to_owned(),
            state: Some(State::Waiting),
            time: None,
        });
        self.graph.add(access)
    }

    /// How far the cell is now, and in a few words what it took.
    pub(super) fn state(&mut self, place: Place, state: State, took: Option<String>) {
        if let Some(cell) = self.cells.get_mut(place) {
            cell.state = Some(state);
            cell.time = took.or(cell.time.take());
        }
    }

    pub(super) fn picture(&self) -> Picture {
        Picture {
            nodes: self.cells.clone(),
            edges: arrows(&self.graph),
        }
    }
}
