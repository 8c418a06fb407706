//! The judge: what the client sees, against a model kernel that executes the same cells one after another in one
//! namespace.
//!
//! The model follows the play cell by cell, as the cells are answered. What an ordinary kernel cannot know either
//! is taken from the play: how far a cell came before an interrupt reached it, and which worker died. Where
//! values are lost with a worker, a cell that wants one may fail and say so; nothing may ever be wrong.

use std::collections::BTreeSet;

use cellferry::name::Name;
use cellferry::session::{Answer, Gone, Problem};

use crate::fault::{Invariant, Violation};
use crate::memory::{Exception, Memory, Mode, Said};
use crate::program::{Cell, Program, Statement};

/// How a cell ended.
#[derive(Clone, Debug)]
pub enum End {
    /// A worker answered.
    Replied(Outcome),
    /// The session answered.
    Answered(Answer),
}

/// What really happened in the worker.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// How many statements were executed to their end.
    pub executed: usize,
    pub exception: Option<Exception>,
    /// Whether its worker is still alive.
    pub worker_lives: bool,
}

/// A cell between its busy and its idle.
#[derive(Debug)]
struct Open {
    cell: usize,
    shown: Vec<Said>,
    end: Option<End>,
    /// The user interrupted meanwhile.
    interrupted: bool,
}

#[derive(Debug)]
pub struct Judge<'a> {
    program: &'a Program,
    pub model: Memory,
    count: u32,
    /// The cells in the order in which the client asked for them: places in the program.
    asked: Vec<usize>,
    /// How many of them are done.
    pub done: usize,
    open: Option<Open>,
    /// Cells that an earlier error aborts.
    to_abort: BTreeSet<usize>,
    /// Names whose value may have died with a worker.
    perhaps_lost: BTreeSet<Name>,
    /// What was said of workers that died.
    deaths: Vec<(Problem, Gone)>,
    /// Why values did not arrive.
    cuts: Vec<String>,
    /// Whether a cell has failed.
    has_failed: bool,
}

impl<'a> Judge<'a> {
    pub fn new(program: &'a Program) -> Self {
        Self {
            program,
            model: Memory::default(),
            count: 0,
            asked: Vec::new(),
            done: 0,
            open: None,
            to_abort: BTreeSet::new(),
            perhaps_lost: BTreeSet::new(),
            deaths: Vec::new(),
            cuts: Vec::new(),
            has_failed: false,
        }
    }

    pub fn asked(&mut self, cell: usize) {
        self.asked.push(cell);
    }

    pub fn all_done(&self) -> bool {
        self.done == self.asked.len()
    }

    /// The cells that were asked for and are not done.
    pub fn waiting(&self) -> &[usize] {
        &self.asked[self.done..]
    }

    pub fn interrupted(&mut self) {
        if let Some(open) = &mut self.open {
            open.interrupted = true;
        }
    }

    pub fn died(&mut self, problem: Problem, how: Gone) {
        self.perhaps_lost.extend(self.model.names().cloned());
        self.deaths.push((problem, how));
    }

    /// A worker was given back with values that only it held: they are made again if they can be.
    pub fn left(&mut self, names: impl Iterator<Item = Name>) {
        self.perhaps_lost.extend(names);
    }

    /// What the open cell shows.
    pub fn shown(&self) -> &[Said] {
        self.open.as_ref().map_or(&[], |open| &open.shown)
    }

    /// All but the first of what the open cell shows is cleared.
    pub fn shows_only(&mut self, first: usize) {
        if let Some(open) = &mut self.open {
            open.shown.truncate(first);
        }
    }

    pub fn cut(&mut self, reason: &str) {
        self.cuts.push(reason.to_owned());
    }

    pub fn busy(&mut self, cell: usize) -> Result<(), Violation> {
        if let Some(open) = &self.open {
            return Err(Violation::new(
                Invariant::Order,
                format!(
                    "cell {} is busy before cell {} is idle",
                    self.id(cell),
                    self.id(open.cell)
                ),
            ));
        }
        if self.asked.get(self.done) != Some(&cell) {
            return Err(Violation::new(
                Invariant::Order,
                format!("cell {} is busy out of its turn", self.id(cell)),
            ));
        }
        self.open = Some(Open {
            cell,
            shown: Vec::new(),
            end: None,
            interrupted: false,
        });
        Ok(())
    }

    pub fn shows(&mut self, cell: usize, said: Said) -> Result<(), Violation> {
        let id = self.id(cell);
        match &mut self.open {
            Some(open) if open.cell == cell => {
                open.shown.push(said);
                Ok(())
            }
            _ => Err(Violation::new(
                Invariant::Order,
                format!("cell {id} shows {said:?} while it is not busy"),
            )),
        }
    }

    pub fn ends(&mut self, cell: usize, end: End) -> Result<(), Violation> {
        let id = self.id(cell);
        match &mut self.open {
            Some(open) if open.cell == cell && open.end.is_none() => {
                open.end = Some(end);
                Ok(())
            }
            Some(open) if open.cell == cell => Err(Violation::new(
                Invariant::NothingDoubled,
                format!("cell {id} is answered twice: {:?}, then {end:?}", open.end),
            )),
            _ => Err(Violation::new(
                Invariant::Order,
                format!("cell {id} is answered while it is not busy: {end:?}"),
            )),
        }
    }

    /// Whether the cell failed.
    pub fn idle(&mut self, cell: usize) -> Result<bool, Violation> {
        let id = self.id(cell);
        let Some(mut open) = self.open.take().filter(|open| open.cell == cell) else {
            return Err(Violation::new(
                Invariant::Order,
                format!("cell {id} is idle without having been busy"),
            ));
        };
        let Some(end) = open.end.take() else {
            return Err(Violation::new(
                Invariant::NothingLost,
                format!("cell {id} is idle without an answer"),
            ));
        };
        self.done += 1;
        let program = self.program;
        let cell_asked = &program.cells[cell];
        let aborted = matches!(end, End::Answered(Answer::Aborted));
        if aborted != self.to_abort.contains(&cell) {
            let what = if aborted {
                "aborted although nothing failed"
            } else {
                "run although an earlier one failed"
            };
            return Err(Violation::new(
                Invariant::Errors,
                format!("cell {id} is {what}"),
            ));
        }
        if aborted {
            return compare(id, &[], &open.shown).map(|()| true);
        }
        // As in IPython, a cell that is not stored does not use its number up.
        let count = (!cell_asked.silent).then_some(self.count + 1);
        if count.is_some() && cell_asked.store_history {
            self.count += 1;
        }
        let failed = match &end {
            End::Replied(outcome) => self.replied(cell_asked, &open, outcome, count)?,
            End::Answered(answer) => {
                self.refused(cell_asked, &open, answer, count)?;
                true
            }
        };
        self.has_failed |= failed;
        if failed && cell_asked.stop_on_error && !cell_asked.silent {
            self.to_abort.extend(&self.asked[self.done..]);
        }
        Ok(failed)
    }

    /// The cell ran: whether it failed.
    fn replied(
        &mut self,
        cell: &Cell,
        open: &Open,
        outcome: &Outcome,
        count: Option<u32>,
    ) -> Result<bool, Violation> {
        let before = self.model.snapshot();
        let mut said: Vec<Said> = count.map(Said::Input).into_iter().collect();
        let mut mode = Mode {
            count,
            absent: None,
            without_last: self.misses_last(&open.shown),
        };
        let mut raised = None;
        for statement in &cell.statements[..outcome.executed] {
            if let Err(exception) = self.model.execute(statement, mode, &mut said) {
                raised = Some(exception);
                break;
            }
        }
        let lost = outcome
            .exception
            .as_ref()
            .and_then(|exception| self.misses(exception.ename, &exception.evalue));
        match &outcome.exception {
            Some(exception) if exception.ename == "KeyboardInterrupt" => {
                if !open.interrupted {
                    return Err(Violation::new(
                        Invariant::Errors,
                        format!("cell {} is interrupted, and nobody asked for it", cell.id),
                    ));
                }
                raised = raised.or(Some(exception.clone()));
            }
            _ => {
                mode.absent = lost.as_ref();
                let rest = cell.statements[outcome.executed..].iter();
                // Beyond the statement that failed in the worker, the model goes on: then it shows too much.
                for statement in rest {
                    if raised.is_some() {
                        break;
                    }
                    raised = self.model.execute(statement, mode, &mut said).err();
                    mode.absent = None;
                }
            }
        }
        if let Some(exception) = &raised {
            said.push(exception.clone().into());
        }
        let (bound, _) = self.model.changes(&before);
        for name in &bound {
            self.perhaps_lost.remove(name);
        }
        if !outcome.worker_lives {
            self.perhaps_lost.extend(self.model.names().cloned());
        }
        compare(cell.id, &said, &open.shown)?;
        Ok(raised.is_some())
    }

    /// The name that a `NameError` is about, if the notebook has it and its value may be out of reach.
    fn misses(&self, ename: &str, evalue: &str) -> Option<Name> {
        if ename != "NameError" {
            return None;
        }
        let name = Name::from(evalue.split('\'').nth(1)?);
        (self.model.has(&name) && self.is_out_of_reach(&name)).then_some(name)
    }

    /// Whether the cell shows no last result, and there may have been none that could be had.
    fn misses_last(&self, shown: &[Said]) -> bool {
        let last = self.model.last_name();
        shown.contains(&Said::Text(String::new()))
            && last.is_some_and(|name| self.is_out_of_reach(name))
    }

    fn is_out_of_reach(&self, name: &Name) -> bool {
        self.perhaps_lost.contains(name) && !self.can_be_made_again() || self.model.is_locked(name)
    }

    /// Whether whatever is lost must be made again: all cells so far were steps that went well and show which
    /// names they use, and nothing but one worker was ever lost.
    fn can_be_made_again(&self) -> bool {
        let asked = self.asked[..self.done].iter();
        self.deaths.len() <= 1
            && self.cuts.is_empty()
            && !self.has_failed
            && asked.map(|cell| &self.program.cells[*cell]).all(|cell| {
                cell.is_step && !cell.silent && !cell.statements.iter().any(Statement::is_dynamic)
            })
    }

    /// The session ended the cell with an error of its own.
    fn refused(
        &mut self,
        cell: &Cell,
        open: &Open,
        answer: &Answer,
        count: Option<u32>,
    ) -> Result<(), Violation> {
        let wrong =
            |what: String| Violation::new(Invariant::Errors, format!("cell {}: {what}", cell.id));
        let Answer::Failed(problem, number) = answer else {
            return Err(wrong(format!("an answer that no cell gets: {answer:?}")));
        };
        if count.is_some_and(|count| count != *number) {
            return Err(wrong(format!(
                "has the count {number} instead of {count:?}"
            )));
        }
        let named = problem.evalue.split('`').nth(1).map(Name::from);
        let out_of_reach = || {
            named
                .as_ref()
                .is_some_and(|name| self.is_out_of_reach(name))
        };
        let justified = match problem.ename.as_str() {
            "KeyboardInterrupt" => open.interrupted,
            "LostValue" | "UncarriableValue" => out_of_reach(),
            "TransferFailed" => self.cuts.iter().any(|cut| problem.evalue.ends_with(cut)),
            _ => self.died_of(cell, problem, open.interrupted),
        };
        if !justified {
            return Err(wrong(format!("fails for no reason: {problem:?}")));
        }
        let error = Said::Error(problem.ename.clone(), problem.evalue.clone());
        let mut shown = open.shown.clone();
        if !cell.silent && shown.pop().as_ref() != Some(&error) {
            return Err(wrong(format!("does not show its error: {:?}", open.shown)));
        }
        // What it had shown by then must be right, too, and what it did is lost with its worker.
        if open.interrupted && shown.last() == Some(&Exception::interrupt().into()) {
            shown.pop();
        }
        let absent = match shown.last() {
            Some(Said::Error(ename, evalue)) => self.misses(ename, evalue),
            _ => None,
        };
        let with = |absent: Option<&Name>| {
            let mut said: Vec<Said> = count.map(Said::Input).into_iter().collect();
            let mode = Mode {
                count,
                absent,
                without_last: self.misses_last(&shown),
            };
            let mut model = self.model.clone();
            for statement in &cell.statements {
                if let Err(exception) = model.execute(statement, mode, &mut said) {
                    said.push(exception.into());
                    break;
                }
            }
            said.truncate(shown.len());
            compare(cell.id, &said, &shown)
        };
        // The name may have been deleted by the cell itself.
        with(None).or_else(|_| with(absent.as_ref()))
    }

    /// Whether a worker's death is a reason for the cell to fail.
    fn died_of(&self, cell: &Cell, problem: &Problem, interrupted: bool) -> bool {
        let tries = cell.retry as usize + 1;
        let (times, words) = match problem.evalue.strip_prefix("the cell was tried ") {
            Some(rest) => match rest.split_once(" times: ") {
                Some((times, words)) => (times.parse().unwrap_or(0), words),
                None => return false,
            },
            None => (1, problem.evalue.as_str()),
        };
        let Some((_, how)) = self.deaths.iter().find(|(death, _)| death.evalue == words) else {
            return false;
        };
        let tried_enough = times == tries && self.deaths.len() >= tries;
        !cell.is_step
            || cell.silent
            || interrupted
            || matches!(how, Gone::NotStarted | Gone::Ended)
            || tried_enough
    }

    fn id(&self, cell: usize) -> u64 {
        self.program.cells[cell].id
    }
}

/// Whether the cell shows what it should, and if not, in which way it does not.
fn compare(cell: u64, expected: &[Said], shown: &[Said]) -> Result<(), Violation> {
    if expected == shown {
        return Ok(());
    }
    let same = |one: &[Said], other: &[Said]| {
        let mut others: Vec<&Said> = other.iter().collect();
        one.iter().all(|said| {
            let found = others.iter().position(|other| *other == said);
            found.map(|place| others.remove(place)).is_some()
        })
    };
    let invariant = match shown.len().cmp(&expected.len()) {
        std::cmp::Ordering::Less if same(shown, expected) => Invariant::NothingLost,
        std::cmp::Ordering::Greater if same(expected, shown) => Invariant::NothingDoubled,
        std::cmp::Ordering::Equal if same(shown, expected) => Invariant::Order,
        _ => Invariant::NoStaleRead,
    };
    Err(Violation::new(
        invariant,
        format!("cell {cell} shows {shown:?}; in one kernel it shows {expected:?}"),
    ))
}

/// What definitions do, by the source under which they are replayed.
pub fn definitions(
    program: &Program,
) -> std::collections::BTreeMap<String, (Name, Vec<Statement>)> {
    let statements = program.cells.iter().flat_map(|cell| &cell.statements);
    statements
        .filter_map(|statement| match statement {
            Statement::Define(name, body) => {
                Some((statement.to_string(), (name.clone(), body.clone())))
            }
            _ => None,
        })
        .collect()
}
