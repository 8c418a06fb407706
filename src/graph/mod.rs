//! The dataflow between cells: who reads what whom wrote, and what else must keep its order.
//!
//! Cells come in program order, and every edge leads from an earlier to a later one. Without I/O,
//! deterministic, and linear in what the cells read and write. What a cell accesses is worked out
//! in `access`, pictures are drawn by `svg`.

mod access;
mod layout;
pub mod svg;

pub use access::Accesses;

use std::collections::{BTreeMap, BTreeSet};

use petgraph::Direction;
use petgraph::graph::{DiGraph, NodeIndex};
use petgraph::visit::EdgeRef;

use crate::name::Name;

/// What a cell does to the notebook namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Access {
    /// Names that it reads, itself or by what it calls, through any depth.
    pub reads: BTreeSet<Name>,
    /// Names that it binds, deletes or changes in place, itself or by what it calls, through any depth.
    pub writes: BTreeSet<Name>,
    /// Whether it has workflow metadata. Cells without any keep their order among themselves.
    pub is_step: bool,
    /// Whether it may reach any name: it runs alone.
    pub dynamic: bool,
    /// Earlier cells that it must follow whatever it reads.
    pub after: Vec<usize>,
}

/// Why a cell follows an earlier one.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reason {
    /// It reads the name, which the earlier one wrote last.
    Read(Name),
    /// It writes the name, which the earlier one reads or writes.
    Order(Name),
    /// Its metadata says so.
    After,
    /// Both are cells without workflow metadata, or one of them may reach any name.
    Control,
}

/// One cell follows another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Edge<'a> {
    /// The earlier cell.
    pub from: usize,
    /// The later cell.
    pub to: usize,
    /// Why, each reason once; at least one.
    pub reasons: &'a [Reason],
}

impl<'a> Edge<'a> {
    /// The names that it stands for: those read, and those whose order it keeps.
    pub fn names(&self) -> (Vec<&'a str>, Vec<&'a str>) {
        let (mut reads, mut orders) = (Vec::new(), Vec::new());
        for reason in self.reasons {
            match reason {
                Reason::Read(name) => reads.push(name.as_str()),
                Reason::Order(name) => orders.push(name.as_str()),
                Reason::After | Reason::Control => {}
            }
        }
        (reads, orders)
    }
}

/// The graph of a notebook's cells, numbered from 0 in program order.
///
/// Two cells are joined by a path exactly if they must not overlap or change places. Edges that add
/// no such path are left out, except reads: each read has an edge from the cell that wrote the name last.
#[derive(Clone, Debug, Default)]
pub struct Graph {
    cells: DiGraph<Access, Vec<Reason>, usize>,
    names: BTreeMap<Name, Uses>,
    /// The last cell that may reach any name: it stands between all before it and all after it.
    barrier: Option<usize>,
    /// The last cell without workflow metadata.
    plain: Option<usize>,
    /// Cells that no later one follows yet.
    ends: BTreeSet<usize>,
}

/// The uses of a name that a later cell may have to follow.
#[derive(Clone, Debug, Default)]
struct Uses {
    writer: Option<usize>,
    /// Those who have read it since.
    readers: Vec<usize>,
}

impl Graph {
    /// A graph without cells.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds the cell that comes next in program order, and returns its index.
    pub fn add(&mut self, cell: Access) -> usize {
        let index = self.cells.node_count();
        let mut before: BTreeMap<usize, Vec<Reason>> = BTreeMap::new();
        let mut follow = |earlier: usize, reason: Reason| {
            before.entry(earlier).or_default().push(reason);
        };
        for name in &cell.reads {
            let uses = self.names.entry(name.clone()).or_default();
            if let Some(writer) = uses.writer {
                follow(writer, Reason::Read(name.clone()));
            }
            uses.readers.push(index);
        }
        for name in &cell.writes {
            let uses = self.names.entry(name.clone()).or_default();
            let readers = std::mem::take(&mut uses.readers);
            // Whoever has read it follows its writer already.
            let earlier = if readers.is_empty() {
                uses.writer.into_iter().collect()
            } else {
                readers
            };
            uses.writer = Some(index);
            for earlier in earlier {
                let ordered = earlier == index
                    || self.barrier.is_some_and(|barrier| earlier < barrier)
                    || !cell.is_step && !self.cells[NodeIndex::new(earlier)].is_step;
                if !ordered {
                    follow(earlier, Reason::Order(name.clone()));
                }
            }
        }
        let after: BTreeSet<usize> = cell.after.iter().copied().collect();
        for earlier in after.into_iter().filter(|earlier| *earlier < index) {
            follow(earlier, Reason::After);
        }
        if !cell.is_step
            && let Some(plain) = self.plain.replace(index)
            && !cell.dynamic
            && self.barrier.is_none_or(|barrier| plain >= barrier)
        {
            follow(plain, Reason::Control);
        }
        if cell.dynamic {
            self.barrier = Some(index);
            for end in &self.ends {
                let reasons = before.entry(*end).or_default();
                if reasons.is_empty() {
                    reasons.push(Reason::Control);
                }
            }
        } else if let Some(barrier) = self.barrier
            && before.range(barrier..).next().is_none()
        {
            before.insert(barrier, vec![Reason::Control]);
        }
        let node = self.cells.add_node(cell);
        for (earlier, reasons) in before {
            self.ends.remove(&earlier);
            self.cells.add_edge(NodeIndex::new(earlier), node, reasons);
        }
        self.ends.insert(index);
        index
    }

    /// How many cells there are.
    pub fn len(&self) -> usize {
        self.cells.node_count()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What a cell accesses, if there is such a cell.
    pub fn access(&self, cell: usize) -> Option<&Access> {
        self.cells.node_weight(NodeIndex::new(cell))
    }

    /// All edges, by the later cell, then by the earlier one.
    pub fn edges(&self) -> impl Iterator<Item = Edge<'_>> {
        self.cells.edge_references().map(edge)
    }

    /// The edges that lead to a cell, from the earliest to the latest.
    pub fn before(&self, cell: usize) -> Vec<Edge<'_>> {
        let edges = self
            .cells
            .edges_directed(NodeIndex::new(cell), Direction::Incoming);
        let mut found: Vec<Edge<'_>> = edges.map(edge).collect();
        found.sort_unstable_by_key(|edge| edge.from);
        found
    }

    /// In which round each cell can run, if every cell takes as long as any other and there is a worker for each.
    ///
    /// The order of writes holds nobody up, since each run sees the names as they are at its own place in program
    /// order. Cells without metadata wait for all before them, and so does one that may reach any name.
    fn rounds(&self) -> Vec<usize> {
        let mut rounds: Vec<usize> = Vec::with_capacity(self.len());
        let (mut next, mut barrier) = (0, 0);
        for node in self.cells.node_indices() {
            let cell = &self.cells[node];
            let binds = |reason: &Reason| matches!(reason, Reason::Read(_) | Reason::After);
            let earlier = self.cells.edges_directed(node, Direction::Incoming);
            let earlier = earlier
                .filter(|edge| edge.weight().iter().any(binds))
                .map(|edge| rounds[edge.source().index()] + 1);
            let round = if cell.is_step && !cell.dynamic {
                earlier.max().unwrap_or(0).max(barrier)
            } else {
                next
            };
            next = next.max(round + 1);
            if cell.dynamic {
                barrier = round + 1;
            }
            rounds.push(round);
        }
        rounds
    }

    /// Steps that can run at the same time: those of one round, where there are several.
    pub fn overlaps(&self) -> Vec<Vec<usize>> {
        let mut groups: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
        for (cell, level) in self.rounds().into_iter().enumerate() {
            if self.cells[NodeIndex::new(cell)].is_step {
                groups.entry(level).or_default().push(cell);
            }
        }
        groups
            .into_values()
            .filter(|group| group.len() > 1)
            .collect()
    }
}

fn edge(edge: petgraph::graph::EdgeReference<'_, Vec<Reason>, usize>) -> Edge<'_> {
    Edge {
        from: edge.source().index(),
        to: edge.target().index(),
        reasons: edge.weight(),
    }
}

#[cfg(test)]
mod tests;
