//! Programs: notebooks in a small part of Python, with a client that asks for their cells and with what goes wrong
//! meanwhile.
//!
//! Each cell has two faces. Its source, real Python, is all that the session gets to see, through the
//! real analysis; its statements are what the simulated workers and the model execute. What the source hides,
//! such as what `push(a, 1)` does to `a`, stays hidden from the session.

use std::fmt::{self, Write};

use cellferry::name::Name;
use cellferry::session::Gone;

/// Everything that decides how one simulated notebook goes.
#[derive(Clone, Debug)]
pub struct Program {
    /// Decides all delays and the order of arrival.
    pub seed: u64,
    /// The first one is `home`.
    pub targets: Vec<Target>,
    /// In the order in which the client asks for them.
    pub cells: Vec<Cell>,
    /// When the user interrupts.
    pub interrupts: Vec<u64>,
    /// When workers die.
    pub deaths: Vec<Death>,
    /// When workers are given back.
    pub retirements: Vec<Retirement>,
    /// When the notebook's file changes, so that what was expected is not to be expected any more.
    pub edits: Vec<u64>,
    /// How many cells ahead the kernel knows what the client will ask for; 0 if it does not know the file.
    pub looks_ahead: usize,
    /// Whether the client stops at the first error.
    pub gives_up: bool,
    /// Whether workers may read each other's memory.
    pub direct: bool,
    /// How many of a hundred workers do not start.
    pub bad_starts: u64,
    /// How many of a hundred values get lost on their way.
    pub bad_carries: u64,
}

#[derive(Clone, Debug)]
pub struct Target {
    pub name: &'static str,
    /// How many workers it may have.
    pub workers: u32,
}

#[derive(Clone, Debug)]
pub struct Death {
    pub time: u64,
    /// Of which target, by its place in `targets`.
    pub target: usize,
    /// All workers of the target die, not just one.
    pub all: bool,
    pub how: Gone,
}

#[derive(Clone, Debug)]
pub struct Retirement {
    pub time: u64,
    /// Of which target, by its place in `targets`.
    pub target: usize,
    /// They go whatever they hold.
    pub force: bool,
}

#[derive(Clone, Debug)]
pub struct Cell {
    /// Stays the same when other cells are removed.
    pub id: u64,
    pub statements: Vec<Statement>,
    /// By its place in `targets`.
    pub target: usize,
    /// Whether it has workflow metadata.
    pub is_step: bool,
    /// How many more times it runs if its worker dies.
    pub retry: u32,
    /// Ids of earlier cells that it must follow.
    pub after: Vec<u64>,
    pub silent: bool,
    pub store_history: bool,
    pub stop_on_error: bool,
    /// Whether the client waits for all answers before it asks for this one.
    pub waits: bool,
    /// How long the client takes before it asks for it.
    pub pause: u64,
    /// It does not stand in the notebook's file.
    pub detour: bool,
    /// How long each statement takes at most.
    pub slow: u64,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Statement {
    /// `a = …`
    Bind(Name, Expression),
    /// `a += [1]`, which changes a list in place and binds the name again.
    Extend(Name, i64),
    /// `a.append(…)`, which shows that `a` is changed.
    Append(Name, Expression),
    /// `push(a, …)`, the same hidden from the analysis: `push` is nowhere defined in the notebook.
    Push(Name, Expression),
    /// `del a`
    Delete(Name),
    /// `print(a, b)`
    Print(Vec<Name>),
    /// `a` at the end of a cell: its result.
    Result(Name),
    /// `1 / 0`
    Fail,
    /// `if a:`
    If(Name, Box<Statement>),
    /// `def f():`
    Define(Name, Vec<Statement>),
    /// `f()`
    Call(Name),
    /// `exec("…")`, which may reach any name.
    Exec(Box<Statement>),
    /// `print(_)`
    Last,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Expression {
    /// `3`
    Number(i64),
    /// `[1, 2]`
    List(Vec<i64>),
    /// `big(1)`: a list that takes much memory.
    Big(i64),
    /// `a`
    Name(Name),
    /// `[a]`
    Wrap(Name),
    /// `list(a)`: a new list with the same items.
    Copy(Name),
    /// `len(a)`
    Length(Name),
    /// `lock()`: something that cannot be carried.
    Lock,
}

impl Expression {
    fn name(&self) -> Option<&Name> {
        match self {
            Self::Name(name) | Self::Wrap(name) | Self::Copy(name) | Self::Length(name) => {
                Some(name)
            }
            Self::Number(_) | Self::List(_) | Self::Big(_) | Self::Lock => None,
        }
    }
}

impl fmt::Display for Expression {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number(number) => write!(formatter, "{number}"),
            Self::List(items) => write!(formatter, "{items:?}"),
            Self::Big(number) => write!(formatter, "big({number})"),
            Self::Name(name) => write!(formatter, "{name}"),
            Self::Wrap(name) => write!(formatter, "[{name}]"),
            Self::Copy(name) => write!(formatter, "list({name})"),
            Self::Length(name) => write!(formatter, "len({name})"),
            Self::Lock => formatter.write_str("lock()"),
        }
    }
}

impl fmt::Display for Statement {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bind(name, expression) => write!(formatter, "{name} = {expression}"),
            Self::Extend(name, number) => write!(formatter, "{name} += [{number}]"),
            Self::Append(name, expression) => write!(formatter, "{name}.append({expression})"),
            Self::Push(name, expression) => write!(formatter, "push({name}, {expression})"),
            Self::Delete(name) => write!(formatter, "del {name}"),
            Self::Print(names) => {
                let names: Vec<&str> = names.iter().map(Name::as_str).collect();
                write!(formatter, "print({})", names.join(", "))
            }
            Self::Result(name) => write!(formatter, "{name}"),
            Self::Fail => formatter.write_str("1 / 0"),
            Self::If(name, statement) => write!(formatter, "if {name}:\n    {statement}"),
            Self::Define(name, body) => {
                write!(formatter, "def {name}():")?;
                let bound: Vec<&str> = body.iter().filter_map(Self::binds).collect();
                if !bound.is_empty() {
                    write!(formatter, "\n    global {}", bound.join(", "))?;
                }
                body.iter()
                    .try_for_each(|statement| write!(formatter, "\n    {statement}"))
            }
            Self::Call(name) => write!(formatter, "{name}()"),
            Self::Exec(statement) => write!(formatter, "exec({:?})", statement.to_string()),
            Self::Last => formatter.write_str("print(_)"),
        }
    }
}

impl Statement {
    /// The name that it binds or deletes by itself, which a function must declare as global.
    fn binds(&self) -> Option<&str> {
        match self {
            Self::Bind(name, _) | Self::Extend(name, _) | Self::Delete(name) => Some(name.as_str()),
            _ => None,
        }
    }

    /// Whether it may use any name.
    pub fn is_dynamic(&self) -> bool {
        match self {
            Self::Exec(_) | Self::Last => true,
            Self::If(_, statement) => statement.is_dynamic(),
            _ => false,
        }
    }

    /// The names that the code of a function mentions.
    pub fn mentions(&self) -> Vec<&Name> {
        match self {
            Self::Bind(name, expression)
            | Self::Append(name, expression)
            | Self::Push(name, expression) => [Some(name), expression.name()]
                .into_iter()
                .flatten()
                .collect(),
            Self::Extend(name, _) | Self::Delete(name) | Self::Result(name) | Self::Call(name) => {
                vec![name]
            }
            Self::Print(names) => names.iter().collect(),
            Self::If(name, statement) => {
                let mut names = statement.mentions();
                names.push(name);
                names
            }
            Self::Fail | Self::Define(..) | Self::Exec(_) | Self::Last => Vec::new(),
        }
    }
}

impl Cell {
    pub fn source(&self) -> String {
        let mut source = String::new();
        for statement in &self.statements {
            if !source.is_empty() {
                source.push('\n');
            }
            let _ = write!(source, "{statement}");
        }
        source
    }
}

impl fmt::Display for Program {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let targets: Vec<String> = self
            .targets
            .iter()
            .map(|target| format!("{} ({} workers)", target.name, target.workers))
            .collect();
        writeln!(
            formatter,
            "seed {}; targets: {}",
            self.seed,
            targets.join(", ")
        )?;
        if self.looks_ahead > 0 {
            writeln!(
                formatter,
                "the kernel expects {} cells ahead",
                self.looks_ahead
            )?;
        }
        if self.gives_up {
            writeln!(formatter, "the client stops at an error")?;
        }
        if !self.direct {
            writeln!(formatter, "workers may not read each other's memory")?;
        }
        if self.bad_starts > 0 {
            writeln!(formatter, "of 100 workers {} do not start", self.bad_starts)?;
        }
        if self.bad_carries > 0 {
            writeln!(
                formatter,
                "of 100 values {} get lost on their way",
                self.bad_carries
            )?;
        }
        for cell in &self.cells {
            let mut words = vec![format!("cell {}", cell.id)];
            if cell.is_step {
                words.push(format!("step on {}", self.targets[cell.target].name));
            }
            if cell.retry != 1 {
                words.push(format!("retry {}", cell.retry));
            }
            if !cell.after.is_empty() {
                words.push(format!("after {:?}", cell.after));
            }
            for (flag, word) in [
                (cell.silent, "silent"),
                (!cell.store_history, "not stored"),
                (!cell.stop_on_error, "errors stop nothing"),
                (cell.waits, "asked for after all answers"),
                (cell.detour, "not in the file"),
            ] {
                if flag {
                    words.push(word.to_owned());
                }
            }
            writeln!(
                formatter,
                "# {}; pause {}, slow {}",
                words.join(", "),
                cell.pause,
                cell.slow
            )?;
            writeln!(formatter, "{}", cell.source())?;
        }
        for time in &self.interrupts {
            writeln!(formatter, "at {time}: interrupt")?;
        }
        for time in &self.edits {
            writeln!(formatter, "at {time}: the file changes")?;
        }
        for death in &self.deaths {
            let who = if death.all { "all workers" } else { "a worker" };
            let target = self.targets[death.target].name;
            writeln!(
                formatter,
                "at {}: {who} of {target} die: {:?}",
                death.time, death.how
            )?;
        }
        for retirement in &self.retirements {
            let how = if retirement.force {
                ", whatever they hold"
            } else {
                ""
            };
            let target = self.targets[retirement.target].name;
            let time = retirement.time;
            writeln!(
                formatter,
                "at {time}: the workers of {target} are given back{how}"
            )?;
        }
        Ok(())
    }
}
