//! What has been asked for so far: the cells of the session as a graph, for `%cellferry graph`.

use std::collections::BTreeMap;

use crate::graph::svg::{Node, Picture, State, arrows};
use crate::graph::{Edge, Graph};
use crate::session::run::Cell;

/// One cell of the session, by its place in the order of arrival.
pub(super) type Place = usize;

#[derive(Debug, Default)]
pub(super) struct Past {
    graph: Graph,
    cells: Vec<Node>,
    /// What `after` can call the cells.
    called: BTreeMap<String, Vec<Place>>,
}

impl Past {
    pub(super) fn add(&mut self, cell: &Cell) -> Place {
        self.cells.push(Node {
            number: self.cells.len() + 1,
            text: cell.first_line().to_owned(),
            target: cell.target.to_string(),
            state: Some(State::Waiting),
            time: None,
        });
        let mut access = cell.access.clone();
        let named = cell.after.iter().filter_map(|name| self.called.get(name));
        access.after.extend(named.flatten());
        let place = self.graph.add(access);
        for name in &cell.called {
            self.called.entry(name.clone()).or_default().push(place);
        }
        place
    }

    /// Forgets this cell and all that were added after it.
    pub(super) fn truncate(&mut self, place: Place) {
        let mut graph = Graph::new();
        for earlier in 0..place.min(self.graph.len()) {
            graph.add(self.graph.access(earlier).cloned().unwrap_or_default());
        }
        self.graph = graph;
        self.cells.truncate(place);
        for places in self.called.values_mut() {
            places.retain(|other| *other < place);
        }
    }

    /// What the cell follows, and why.
    pub(super) fn before(&self, place: Place) -> Vec<Edge<'_>> {
        self.graph.before(place)
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
