//! The world around the session: a clock of its own, workers, links that delay and keep or change the order of
//! what they carry, a client, and the driver's part in it: what is held back, and values on their way.

mod client;
mod effects;
mod end;
mod machines;
mod output;
mod retire;
mod statistics;
mod trace;

pub use statistics::Statistics;

use std::collections::{BTreeMap, BTreeSet};
use std::panic::{AssertUnwindSafe, catch_unwind};

use cellferry::name::Name;
use cellferry::session::{Asked, Event, Gone, Problem, RunId, Session};
use cellferry_wire::protocol::WorkerId;

use self::client::Client;
use self::machines::Place;
use self::output::Running;
use crate::check::{Judge, definitions};
use crate::fault::{Fault, Invariant, Violation};
use crate::program::{Program, Statement};
use crate::random::Fate;
use crate::worker::{Contents, Says, Task};

/// No notebook of ours needs more events than this.
const MANY: u64 = 20_000;

/// How a play went.
#[derive(Debug)]
pub struct Played {
    /// Events that the session handled.
    pub events: u64,
    pub violation: Option<Violation>,
    /// What happened, a line each, if it was asked for.
    pub trace: Vec<String>,
    pub statistics: Statistics,
}

/// Plays a program to its end.
pub fn play(program: &Program, fault: Option<Fault>, traced: bool) -> Played {
    let mut world = World::new(program, fault, traced);
    // A panic of the session is a fault like others: it has a seed, and can be shrunk.
    let played = catch_unwind(AssertUnwindSafe(|| world.play()));
    let violation = match played {
        Ok(played) => played.err(),
        Err(_) => Some(Violation::new(
            Invariant::NothingStuck,
            "the session panics",
        )),
    };
    Played {
        events: world.events,
        violation,
        trace: world.trace.unwrap_or_default(),
        statistics: world.statistics,
    }
}

/// The cell that a request asks for, by its place in the program.
pub fn cell_of(asked: &Asked) -> usize {
    asked.header.msg_id[1..]
        .parse()
        .expect("our own message id")
}

/// What happens at a point of time.
#[derive(Debug)]
enum Happening {
    /// The client asks for the next cell.
    Ask,
    Interrupt,
    Edit,
    /// By its place in the program.
    Death(usize),
    /// By its place in the program.
    Retire(usize),
    Started(WorkerId),
    Arrives(WorkerId, Task),
    InterruptArrives(WorkerId),
    /// A step of a worker's task ends, if nothing came between.
    Proceeds(WorkerId, u64),
    Heard(WorkerId, Says),
    Carried(u64, WorkerId),
    Gone(WorkerId),
}

struct World<'a> {
    program: &'a Program,
    fate: Fate,
    fault: Option<Fault>,
    session: Session,
    now: u64,
    agenda: BTreeMap<(u64, u64), Happening>,
    planned: u64,
    places: BTreeMap<WorkerId, Place>,
    /// Workers to be given back, with the first cell that the session did not know of by then, and whether they go
    /// whatever they hold.
    retiring: BTreeMap<WorkerId, (usize, bool)>,
    /// What was told of the workers that stay.
    told: BTreeMap<WorkerId, BTreeSet<Name>>,
    runs: BTreeMap<RunId, Running>,
    /// Values that have been taken and not released.
    values: BTreeMap<u64, (WorkerId, Contents)>,
    released: BTreeSet<u64>,
    /// Which of them have been brought to whom.
    brought: BTreeSet<(u64, WorkerId)>,
    /// The cell that runs again, and how much of what it shows that run has said, too.
    again: Option<(usize, usize)>,
    definitions: BTreeMap<String, (Name, Vec<Statement>)>,
    client: Client,
    judge: Judge<'a>,
    events: u64,
    statistics: Statistics,
    trace: Option<Vec<String>>,
}

impl<'a> World<'a> {
    fn new(program: &'a Program, fault: Option<Fault>, traced: bool) -> Self {
        Self {
            program,
            fate: Fate(program.seed),
            fault,
            session: Session::new(),
            now: 0,
            agenda: BTreeMap::new(),
            planned: 0,
            places: BTreeMap::new(),
            retiring: BTreeMap::new(),
            told: BTreeMap::new(),
            runs: BTreeMap::new(),
            values: BTreeMap::new(),
            released: BTreeSet::new(),
            brought: BTreeSet::new(),
            again: None,
            definitions: definitions(program),
            client: Client::default(),
            judge: Judge::new(program),
            events: 0,
            statistics: Statistics::default(),
            trace: traced.then(Vec::new),
        }
    }

    fn note(&mut self, line: impl FnOnce() -> String) {
        if let Some(trace) = &mut self.trace {
            trace.push(format!("{:>6} {}", self.now, line()));
        }
    }

    fn plan(&mut self, time: u64, happening: Happening) {
        self.planned += 1;
        self.agenda.insert((time, self.planned), happening);
    }

    fn play(&mut self) -> Result<(), Violation> {
        for time in &self.program.interrupts {
            self.plan(*time, Happening::Interrupt);
        }
        for time in &self.program.edits {
            self.plan(*time, Happening::Edit);
        }
        for (place, death) in self.program.deaths.iter().enumerate() {
            self.plan(death.time, Happening::Death(place));
        }
        for (place, retirement) in self.program.retirements.iter().enumerate() {
            self.plan(retirement.time, Happening::Retire(place));
        }
        if self.fate.of("warm").chance(50) {
            self.tell(Event::Warm)?;
        }
        self.client_goes_on();
        self.exhaust()?;
        // A client that stops leaves expectations behind.
        self.unexpect()?;
        self.exhaust()?;
        self.check_end()
    }

    fn exhaust(&mut self) -> Result<(), Violation> {
        while let Some(((time, _), happening)) = self.agenda.pop_first() {
            self.now = time;
            self.happen(happening)?;
            if self.events > MANY {
                return Err(Violation::new(
                    Invariant::NothingStuck,
                    "the notebook does not come to an end",
                ));
            }
        }
        Ok(())
    }

    fn happen(&mut self, happening: Happening) -> Result<(), Violation> {
        match happening {
            Happening::Ask => self.ask(),
            Happening::Interrupt => {
                self.statistics.interrupts += 1;
                self.judge.interrupted();
                self.tell(Event::Interrupt)
            }
            Happening::Edit => self.unexpect(),
            Happening::Death(place) => {
                self.die(place);
                Ok(())
            }
            Happening::Retire(place) => self.retire(place),
            Happening::Started(worker) => self.tell(Event::WorkerReady(worker)),
            Happening::Arrives(worker, task) => {
                if let Some(place) = self.places.get_mut(&worker).filter(|place| place.alive) {
                    place.worker.receive(task);
                    if place.worker.is_idle() {
                        self.work(worker, None);
                    }
                }
                Ok(())
            }
            Happening::InterruptArrives(worker) => {
                let notices = |place: &&Place| place.alive && place.worker.notices_interrupts();
                if self.places.get(&worker).filter(notices).is_some() {
                    self.work(worker, Some(true));
                }
                Ok(())
            }
            Happening::Proceeds(worker, turn) => {
                let current = |place: &&Place| place.alive && place.worker.turn == turn;
                if self.places.get(&worker).filter(current).is_some() {
                    self.work(worker, Some(false));
                }
                Ok(())
            }
            Happening::Heard(worker, says) => {
                if self.places.get(&worker).is_none_or(|place| place.cut) {
                    return Ok(());
                }
                self.hear(worker, says)
            }
            Happening::Carried(transfer, to) => self.brought(transfer, to),
            Happening::Gone(worker) => {
                let problem = death_of(worker);
                let Some(place) = self.places.get_mut(&worker) else {
                    return Ok(());
                };
                let (how, _) = place.gone.unwrap_or((Gone::NotStarted, false));
                place.gone = Some((how, true));
                self.judge.died(problem.clone(), how);
                self.tell(Event::WorkerGone {
                    worker,
                    problem,
                    how,
                })
            }
        }
    }
}

fn death_of(worker: WorkerId) -> Problem {
    Problem::new("WorkerDied", format!("worker {} died", worker.0))
}
