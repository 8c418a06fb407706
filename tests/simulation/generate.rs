//! Makes a random program from a seed.
//!
//! Each program uses only some of what there is, chosen first: a mixture of everything in every
//! notebook would hide what only shows when one kind of thing happens often.

use std::collections::BTreeMap;

use cellferry::name::Name;
use cellferry::session::Gone;

use crate::program::{Cell, Death, Expression, Program, Retirement, Statement, Target};
use crate::random::Random;

const VALUES: [&str; 6] = ["a", "b", "c", "d", "e", "f"];
const FUNCTIONS: [&str; 2] = ["g", "h"];

/// What one program is made of, in percent of the cells or statements where it could stand.
struct Taste {
    /// How many names are used: few make cells meet, many let them overlap.
    names: u64,
    steps: u64,
    lists: u64,
    aliases: u64,
    visible: u64,
    hidden: u64,
    deletes: u64,
    functions: u64,
    conditions: u64,
    dynamic: u64,
    locks: u64,
    big: u64,
    failures: u64,
    results: u64,
    silent: u64,
    unstored: u64,
    keeps_going: u64,
    follows: u64,
    waits: u64,
    detours: u64,
}

pub fn program(seed: u64) -> Program {
    let mut random = Random::new(seed);
    let mut some = |percent: u64, most: u64| {
        if random.chance(percent) {
            1 + random.below(most)
        } else {
            0
        }
    };
    let taste = Taste {
        names: 2 + some(80, 4),
        steps: 50 + some(80, 50),
        lists: some(90, 80),
        aliases: some(60, 40),
        visible: some(70, 40),
        hidden: some(60, 40),
        deletes: some(30, 15),
        functions: some(40, 30),
        conditions: some(30, 20),
        dynamic: some(20, 10),
        locks: some(15, 10),
        big: some(30, 60),
        failures: some(35, 15),
        results: some(40, 30),
        silent: some(20, 20),
        unstored: some(20, 20),
        keeps_going: some(30, 100),
        follows: some(15, 20),
        waits: match some(60, 3) {
            0 => 0,
            1 => 100,
            _ => 20,
        },
        detours: some(40, 15),
    };
    let taste = Taste {
        // Where a value cannot be carried to, a worker does not notice that a cell binds its name and deletes it again.
        deletes: if taste.locks > 0 { 0 } else { taste.deletes },
        ..taste
    };
    let mut targets = vec![Target {
        name: "home",
        workers: 1 + some(20, 2) as u32,
    }];
    for name in ["lab", "cluster"]
        .into_iter()
        .take(1 + some(60, 1) as usize)
    {
        targets.push(Target {
            name,
            workers: 1 + some(60, 2) as u32,
        });
    }
    let length = 2 + some(100, 14);
    let looks_ahead = match some(40, 3) {
        0 => 0,
        1 => 100,
        _ => 1 + some(100, 6) as usize,
    };
    let haste = [0, 5, 5, 40, 200][some(100, 5) as usize - 1];
    let slow = [1, 10, 30, 100][some(100, 4) as usize - 1];
    let horizon = length * (haste + 2 * slow + 20);
    let interrupts: Vec<u64> = (0..some(25, 3)).map(|_| some(100, horizon)).collect();
    let edits: Vec<u64> = (0..some(20, 3)).map(|_| some(100, horizon)).collect();
    let mortal = random.chance(25);
    let kinds = [Gone::Killed, Gone::Killed, Gone::LocationLost, Gone::Ended];
    let deaths: Vec<Death> = (0..if mortal { 1 + random.below(3) } else { 0 })
        .map(|_| Death {
            time: random.below(horizon),
            target: random.below(targets.len() as u64) as usize,
            all: random.chance(30),
            how: *random.pick(&kinds),
        })
        .collect();
    // Several targets may stand on one machine.
    let deaths = if random.chance(20) {
        let time = deaths.first().map(|death| death.time);
        let at_once = |death: Death| Death {
            time: time.unwrap_or(death.time),
            all: true,
            ..death
        };
        deaths.into_iter().map(at_once).collect()
    } else {
        deaths
    };
    let mut maker = Maker {
        random,
        taste,
        kinds: BTreeMap::new(),
    };
    let cells: Vec<Cell> = (0..length)
        .map(|id| maker.cell(id, targets.len(), haste, slow))
        .collect();
    let mut random = maker.random;
    let mut program = Program {
        seed,
        targets,
        cells,
        interrupts,
        deaths,
        retirements: Vec::new(),
        edits,
        looks_ahead,
        gives_up: random.chance(20),
        direct: random.chance(80),
        bad_starts: if mortal { random.below(30) } else { 0 },
        bad_carries: if random.chance(10) {
            random.below(20)
        } else {
            0
        },
    };
    if random.chance(40) {
        let far = program.targets.len() as u64 - 1;
        let retirements = (0..1 + random.below(4)).map(|_| Retirement {
            time: random.below(horizon),
            target: 1 + random.below(far) as usize,
            force: random.chance(50),
        });
        program.retirements = retirements.collect();
    }
    program
}

/// What a name probably stands for by now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Number,
    List,
    Function,
    Lock,
}

struct Maker {
    random: Random,
    taste: Taste,
    /// So that not every other cell fails: after an error a client's other cells are aborted, and nothing is learnt from them.
    kinds: BTreeMap<Name, Kind>,
}

impl Maker {
    fn cell(&mut self, id: u64, targets: usize, haste: u64, slow: u64) -> Cell {
        let is_step = self.random.chance(self.taste.steps);
        let silent = self.random.chance(self.taste.silent);
        let mut statements: Vec<Statement> = if id == 0 && self.random.chance(85) {
            self.first()
        } else {
            let count = 1 + self.random.below(3);
            (0..count).map(|_| self.statement()).collect()
        };
        // Most cells show what they see: what nobody sees cannot be seen to be wrong.
        if self.random.chance(60) {
            statements.push(self.print());
        }
        if self.random.chance(self.taste.results) {
            let name = self.bound();
            statements.push(Statement::Result(name));
        }
        let mut after = Vec::new();
        if is_step && id > 0 && self.random.chance(self.taste.follows) {
            after.push(self.random.below(id));
        }
        Cell {
            id,
            statements,
            target: if is_step {
                self.random.below(targets as u64) as usize
            } else {
                0
            },
            is_step,
            retry: if self.random.chance(80) {
                1
            } else {
                self.random.below(3) as u32
            },
            after,
            silent,
            store_history: !self.random.chance(self.taste.unstored),
            stop_on_error: !self.random.chance(self.taste.keeps_going),
            waits: self.random.chance(self.taste.waits),
            pause: self.random.below(haste + 1),
            detour: silent || self.random.chance(self.taste.detours),
            slow: 1 + self.random.below(slow),
        }
    }

    /// Binds most of the names.
    fn first(&mut self) -> Vec<Statement> {
        let names = &VALUES[..self.taste.names as usize];
        let mut statements: Vec<Statement> = names
            .iter()
            .map(|name| self.bind(Name::from(*name)))
            .collect();
        if self.taste.functions > 0 {
            statements.push(self.define());
        }
        statements
    }

    fn bind(&mut self, name: Name) -> Statement {
        let expression = self.expression();
        let kind = match &expression {
            Expression::Number(_) | Expression::Length(_) => Some(Kind::Number),
            Expression::List(_)
            | Expression::Big(_)
            | Expression::Wrap(_)
            | Expression::Copy(_) => Some(Kind::List),
            Expression::Name(other) => self.kinds.get(other).copied(),
            Expression::Lock => Some(Kind::Lock),
        };
        if let Some(kind) = kind {
            self.kinds.insert(name.clone(), kind);
        }
        Statement::Bind(name, expression)
    }

    fn define(&mut self) -> Statement {
        let count = 1 + self.random.below(2);
        let body = (0..count).map(|_| self.simple()).collect();
        let name = self.function();
        self.kinds.insert(name.clone(), Kind::Function);
        Statement::Define(name, body)
    }

    /// A name that is probably what is wanted.
    fn likely(&mut self, wanted: impl Fn(Kind) -> bool) -> Name {
        let mut name = self.value();
        for _ in 0..8 {
            if self.kinds.get(&name).is_some_and(|kind| wanted(*kind)) {
                break;
            }
            name = self.value();
        }
        name
    }

    fn list(&mut self) -> Name {
        self.likely(|kind| kind == Kind::List)
    }

    fn is_list(&self, name: &Name) -> bool {
        self.kinds.get(name) == Some(&Kind::List)
    }

    /// Something that may stand in a list.
    fn item(&mut self) -> Name {
        self.likely(|kind| matches!(kind, Kind::Number | Kind::List))
    }

    fn bound(&mut self) -> Name {
        self.likely(|_| true)
    }

    fn value(&mut self) -> Name {
        // Now and then a function's name, so that names change what they are.
        if self.random.chance(self.taste.functions / 4) {
            return self.function();
        }
        let count = self.taste.names as usize;
        Name::from(*self.random.pick(&VALUES[..count]))
    }

    fn function(&mut self) -> Name {
        Name::from(*self.random.pick(&FUNCTIONS))
    }

    fn print(&mut self) -> Statement {
        let count = 1 + self.random.below(3);
        Statement::Print((0..count).map(|_| self.bound()).collect())
    }

    fn number(&mut self) -> i64 {
        self.random.below(10) as i64
    }

    fn statement(&mut self) -> Statement {
        if self.random.chance(self.taste.dynamic) {
            return if self.random.chance(70) {
                Statement::Exec(Box::new(self.simple()))
            } else {
                Statement::Last
            };
        }
        if self.random.chance(self.taste.functions) {
            return if self.random.chance(50) {
                self.define()
            } else {
                Statement::Call(self.likely(|kind| kind == Kind::Function))
            };
        }
        if self.random.chance(self.taste.conditions) {
            let inner = Box::new(self.simple());
            return Statement::If(self.bound(), inner);
        }
        if self.random.chance(self.taste.failures) {
            return Statement::Fail;
        }
        self.simple()
    }

    /// What may stand in a function, too.
    fn simple(&mut self) -> Statement {
        let statement = self.any_simple();
        match &statement {
            Statement::Append(name, _) | Statement::Push(name, _) | Statement::Extend(name, _)
                if !self.is_list(name) && self.random.chance(90) =>
            {
                self.kinds.insert(name.clone(), Kind::List);
                Statement::Bind(name.clone(), Expression::List(vec![self.number()]))
            }
            _ => statement,
        }
    }

    fn any_simple(&mut self) -> Statement {
        if self.random.chance(self.taste.visible) {
            let expression = self.item_expression();
            return if self.random.chance(20) {
                let number = self.number();
                Statement::Extend(self.list(), number)
            } else {
                Statement::Append(self.list(), expression)
            };
        }
        if self.random.chance(self.taste.hidden) {
            let expression = self.item_expression();
            return Statement::Push(self.list(), expression);
        }
        if self.random.chance(self.taste.deletes) {
            let name = self.bound();
            self.kinds.remove(&name);
            return Statement::Delete(name);
        }
        if self.random.chance(30) {
            return self.print();
        }
        let name = self.value();
        self.bind(name)
    }

    /// A value that may mostly stand in a list.
    fn item_expression(&mut self) -> Expression {
        match self.expression() {
            Expression::Name(_) => Expression::Name(self.item()),
            Expression::Lock if self.random.chance(90) => Expression::Number(1),
            other => other,
        }
    }

    fn expression(&mut self) -> Expression {
        if self.random.chance(self.taste.locks) {
            return Expression::Lock;
        }
        if self.random.chance(self.taste.aliases) {
            return if self.random.chance(60) {
                Expression::Name(self.bound())
            } else {
                Expression::Wrap(self.item())
            };
        }
        if self.random.chance(25) {
            let name = self.list();
            if !self.is_list(&name) && self.random.chance(90) {
                return Expression::List(vec![self.number()]);
            }
            return if self.random.chance(50) {
                Expression::Copy(name)
            } else {
                Expression::Length(name)
            };
        }
        if self.random.chance(self.taste.lists) {
            if self.random.chance(self.taste.big) {
                return Expression::Big(self.number());
            }
            let count = self.random.below(3);
            return Expression::List((0..count).map(|_| self.number()).collect());
        }
        Expression::Number(self.number())
    }
}
