//! The client: which cell it asks for next, and what the kernel expects of it.

use std::collections::VecDeque;
use std::sync::Arc;

use cellferry::analysis::python::analyse;
use cellferry::cell::{self, Workflow};
use cellferry::driver::needed;
use cellferry::graph::{Access, Accesses};
use cellferry::session::{Asked, Cell, Event, Request};
use cellferry_kernel::message::{Header, Message};
use cellferry_wire::protocol::Channel;

use super::{Happening, World};
use crate::fault::Violation;

/// The client, and what the kernel knows of what it will do.
#[derive(Debug, Default)]
pub(super) struct Client {
    /// The next cell that it asks for.
    pub(super) next: usize,
    /// Whether it is about to.
    pub(super) asking: bool,
    pub(super) gave_up: bool,
    /// The cells that the session expects, by their place in the program.
    pub(super) expected: VecDeque<usize>,
    /// What the cells asked for so far define.
    pub(super) accesses: Accesses,
    /// The same with those expected.
    pub(super) accesses_expected: Accesses,
}

impl World<'_> {
    pub(super) fn client_goes_on(&mut self) {
        let Some(cell) = self.program.cells.get(self.client.next) else {
            return;
        };
        let waits = cell.waits && !self.judge.all_done();
        if !self.client.asking && !self.client.gave_up && !waits {
            self.client.asking = true;
            self.plan(self.now + cell.pause, Happening::Ask);
        }
    }

    pub(super) fn ask(&mut self) -> Result<(), Violation> {
        self.client.asking = false;
        if self.client.gave_up {
            return Ok(());
        }
        let cell = self.client.next;
        self.client.next += 1;
        self.statistics.cells += 1;
        self.judge.asked(cell);
        let request = self.request(cell, true);
        if !self.session.expects() {
            // After an error the session expects nothing more.
            self.client.expected.clear();
        }
        // What the file cannot know of a request makes it another one.
        let as_expected = self.program.cells[cell].store_history;
        if self.client.expected.front() == Some(&cell) && as_expected {
            self.client.expected.pop_front();
            // The same cell in the same order accesses the same names.
            let analysis = analyse(&self.program.cells[cell].source());
            let workflow = self.workflow(cell);
            self.client.accesses.next(&analysis, workflow.as_ref());
            self.tell(Event::Expected(Box::new(request)))?;
        } else {
            self.unexpect()?;
            let accesses = std::mem::take(&mut self.client.accesses);
            let (accesses, analysed) = self.analysed(cell, accesses);
            self.client.accesses = accesses;
            self.tell(Event::Execute(Box::new((request, analysed))))?;
        }
        self.expect()?;
        self.client_goes_on();
        Ok(())
    }

    /// Lets the session expect what stands next in the notebook's file.
    fn expect(&mut self) -> Result<(), Violation> {
        self.forget_expected();
        if self.client.expected.is_empty() {
            self.client.accesses_expected = self.client.accesses.clone();
        }
        let first = self
            .client
            .expected
            .back()
            .map_or(self.client.next, |last| last + 1);
        let missing = self
            .program
            .looks_ahead
            .saturating_sub(self.client.expected.len());
        let next: Vec<usize> = (first..self.program.cells.len())
            .filter(|cell| !self.program.cells[*cell].detour)
            .take(missing)
            .collect();
        if next.is_empty() {
            return Ok(());
        }
        let mut cells = Vec::new();
        for cell in next {
            let accesses = std::mem::take(&mut self.client.accesses_expected);
            let (accesses, analysed) = self.analysed(cell, accesses);
            self.client.accesses_expected = accesses;
            cells.push((self.request(cell, false), analysed));
            self.client.expected.push_back(cell);
        }
        self.tell(Event::Expect(cells))
    }

    /// After an error the session expects nothing more.
    pub(super) fn forget_expected(&mut self) {
        if !self.session.expects() {
            self.client.expected.clear();
        }
    }

    pub(super) fn unexpect(&mut self) -> Result<(), Violation> {
        self.forget_expected();
        if self.client.expected.is_empty() {
            return Ok(());
        }
        self.client.expected.clear();
        self.tell(Event::Unexpected)
    }

    /// A request whose `msg_id` tells which cell it is for and whether a client has asked for it.
    pub(super) fn request(&self, cell: usize, asked: bool) -> Request {
        let flags = &self.program.cells[cell];
        let header = Header {
            msg_id: format!("{}{cell}", if asked { 'r' } else { 'e' }),
            msg_type: "execute_request".to_owned(),
            session: String::new(),
        };
        Request {
            message: Arc::new(Asked {
                channel: Channel::Shell,
                header,
                message: Message::default(),
            }),
            silent: flags.silent,
            store_history: !asked || flags.store_history && !flags.silent,
            stop_on_error: !asked || flags.stop_on_error,
        }
    }

    fn workflow(&self, cell: usize) -> Option<Workflow> {
        let cell = &self.program.cells[cell];
        let target = self.program.targets[cell.target].name;
        cell.is_step.then(|| Workflow {
            target: Some(cell::Target::Name(target.to_owned())),
            ..Workflow::default()
        })
    }

    /// Reads a cell as the driver does.
    fn analysed(&self, at: usize, mut accesses: Accesses) -> (Accesses, Cell) {
        let cell = &self.program.cells[at];
        let target = &self.program.targets[cell.target];
        let source = cell.source();
        let analysis = analyse(&source);
        let workflow = self.workflow(at);
        let access = if cell.silent {
            Access::default()
        } else {
            accesses.next(&analysis, workflow.as_ref())
        };
        let named = |id: &u64| format!("cell-{id}");
        let analysed = Cell {
            target: Arc::from(target.name),
            workers: target.workers,
            retry: cell.retry,
            needed: needed(&analysis, workflow.as_ref()),
            files: Arc::default(),
            gather: Vec::new(),
            time: None,
            definitions: analysis.definitions,
            access,
            source: Arc::from(source),
            called: vec![named(&cell.id)],
            after: cell.after.iter().map(named).collect(),
            seeds: false,
            problem: None,
        };
        (accesses, analysed)
    }
}
