//! The world around the session: a clock of its own, workers, links that delay and keep or change the order of
//! what they carry, a client, and the driver's part in it: what is held back, and values on their way.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use bytes::Bytes;
use cellferry::analysis::python::analyse;
use cellferry::cell::{self, Workflow};
use cellferry::driver::needed;
use cellferry::graph::{Access, Accesses};
use cellferry::ledger::Step;
use cellferry::name::Name;
use cellferry::session::{
    Answer, Asked, Cell, Effect, Event, Gone, Orders, Outcome as Retirement, PreludeFailure,
    Problem, Reply, Request, Retired, RunId, Session, Taken,
};
use cellferry_kernel::message::{Header, Message};
use cellferry_wire::protocol::{Channel, WorkerId};

use crate::check::{End, Judge, Outcome, definitions};
use crate::fault::{Fault, Invariant, Violation};
use crate::memory::{Exception, Memory, Parcel, Said};
use crate::program::{Program, Statement};
use crate::random::Fate;
use crate::worker::{Contents, Outside, Says, Take, Task, Worker, failure};

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

/// How often things happened that are worth simulating.
#[derive(Clone, Copy, Debug, Default)]
pub struct Statistics {
    pub cells: u64,
    pub ahead: u64,
    pub discarded: u64,
    pub transfers: u64,
    pub interrupts: u64,
    pub deaths: u64,
    /// Cells that ran again because their worker died.
    pub again: u64,
    /// Runs that made something again.
    pub remade: u64,
    /// Cells that failed because a value was lost for good.
    pub lost: u64,
    pub aborted: u64,
    /// Workers that were given back, and those that stayed.
    pub given_back: u64,
    pub kept: u64,
    /// Values that were brought home for that, and those that were lost.
    pub brought: u64,
    pub left: u64,
}

impl Statistics {
    pub fn add(&mut self, other: &Self) {
        self.cells += other.cells;
        self.ahead += other.ahead;
        self.discarded += other.discarded;
        self.transfers += other.transfers;
        self.interrupts += other.interrupts;
        self.deaths += other.deaths;
        self.again += other.again;
        self.remade += other.remade;
        self.lost += other.lost;
        self.aborted += other.aborted;
        self.given_back += other.given_back;
        self.kept += other.kept;
        self.brought += other.brought;
        self.left += other.left;
    }
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

/// A link, which keeps the order of what it carries.
#[derive(Clone, Copy, Debug, Default)]
struct Link {
    last: u64,
    carried: u64,
}

impl Link {
    fn arrival(&mut self, now: u64, delay: u64) -> u64 {
        self.carried += 1;
        self.last = self.last.max(now + delay);
        self.last
    }
}

#[derive(Debug)]
struct Place {
    worker: Worker,
    alive: bool,
    /// How it died, and whether the session knows.
    gone: Option<(Gone, bool)>,
    /// Nothing that it has said is heard any more.
    cut: bool,
    /// The session has ended it.
    stopped: bool,
    inwards: Link,
    published: Link,
    answers: Link,
}

/// What the driver knows of a run, and the judge.
#[derive(Debug)]
struct Running {
    cell: usize,
    worker: WorkerId,
    /// What it has said, while its turn has not come.
    held: Option<Vec<Said>>,
    discarded: bool,
    /// It only makes something again.
    unseen: bool,
    /// It read memory that was not what it had been any more.
    misread: bool,
    executed: usize,
    exception: Option<Exception>,
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

/// The client, and what the kernel knows of what it will do.
#[derive(Debug, Default)]
struct Client {
    /// The next cell that it asks for.
    next: usize,
    /// Whether it is about to.
    asking: bool,
    gave_up: bool,
    /// The cells that the session expects, by their place in the program.
    expected: VecDeque<usize>,
    /// What the cells asked for so far define.
    accesses: Accesses,
    /// The same with those expected.
    accesses_expected: Accesses,
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

    // --- the client -----------------------------------------------------------------------------------

    fn client_goes_on(&mut self) {
        let Some(cell) = self.program.cells.get(self.client.next) else {
            return;
        };
        let waits = cell.waits && !self.judge.all_done();
        if !self.client.asking && !self.client.gave_up && !waits {
            self.client.asking = true;
            self.plan(self.now + cell.pause, Happening::Ask);
        }
    }

    fn ask(&mut self) -> Result<(), Violation> {
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
    fn forget_expected(&mut self) {
        if !self.session.expects() {
            self.client.expected.clear();
        }
    }

    fn unexpect(&mut self) -> Result<(), Violation> {
        self.forget_expected();
        if self.client.expected.is_empty() {
            return Ok(());
        }
        self.client.expected.clear();
        self.tell(Event::Unexpected)
    }

    /// A request whose `msg_id` tells which cell it is for and whether a client has asked for it.
    fn request(&self, cell: usize, asked: bool) -> Request {
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

    // --- workers -------------------------------------------------------------------------------------

    fn start(&mut self, id: WorkerId, target: &str) {
        let targets = &self.program.targets;
        let target = targets.iter().position(|other| other.name == target);
        let worker = Worker::new(target.unwrap_or_default());
        let mut fate = self.fate.of(("start", id.0));
        let starts = !fate.chance(self.program.bad_starts);
        let time = self.now + fate.below(50);
        self.places.insert(
            id,
            Place {
                worker,
                alive: starts,
                gone: (!starts).then_some((Gone::NotStarted, false)),
                cut: false,
                stopped: false,
                inwards: Link {
                    last: time,
                    carried: 0,
                },
                published: Link {
                    last: time,
                    carried: 0,
                },
                answers: Link {
                    last: time,
                    carried: 0,
                },
            },
        );
        let happening = if starts {
            Happening::Started(id)
        } else {
            Happening::Gone(id)
        };
        self.plan(time, happening);
    }

    fn die(&mut self, place: usize) {
        let death = &self.program.deaths[place];
        let of_target = |place: &Place| place.alive && place.worker.target == death.target;
        let candidates: Vec<WorkerId> = self
            .places
            .iter()
            .filter(|(_, place)| of_target(place))
            .map(|(id, _)| *id)
            .collect();
        if candidates.is_empty() {
            return;
        }
        let mut fate = self.fate.of(("death", place));
        let chosen = *fate.pick(&candidates);
        for id in candidates {
            if id != chosen && !death.all {
                continue;
            }
            let cut = fate.chance(50);
            let mut time = self.now + fate.below(30);
            if let Some(place) = self.places.get_mut(&id) {
                place.alive = false;
                place.gone = Some((death.how, false));
                place.cut = cut;
                if !cut {
                    // What it has said is heard before its end.
                    time = time.max(place.published.last).max(place.answers.last);
                }
            }
            self.statistics.deaths += 1;
            self.note(|| format!("worker {} dies", id.0));
            self.plan(time, Happening::Gone(id));
        }
    }

    /// The workers of a target are to be given back.
    fn retire(&mut self, place: usize) -> Result<(), Violation> {
        let retirement = &self.program.retirements[place];
        let force = retirement.force;
        let of_target = |place: &Place| place.worker.target == retirement.target;
        let there = self.places.iter();
        let there = there.filter(|(_, place)| of_target(place) && !place.stopped);
        let known = there.filter(|(_, place)| place.gone.is_none_or(|(_, known)| !known));
        let workers: Vec<WorkerId> = known.map(|(id, _)| *id).collect();
        self.forget_expected();
        let expected = self.client.expected.back().map_or(0, |last| last + 1);
        let unknown = self.client.next.max(expected);
        for worker in &workers {
            let (_, forced) = self.retiring.entry(*worker).or_insert((unknown, force));
            *forced |= force;
        }
        let mut request = self.request(0, false);
        request.message = Arc::new(Asked {
            channel: Channel::Shell,
            header: Header {
                msg_id: format!("h{}", self.program.cells.len()),
                msg_type: "execute_request".to_owned(),
                session: String::new(),
            },
            message: Message::default(),
        });
        request.silent = true;
        request.store_history = false;
        self.tell(Event::Retire {
            workers,
            force,
            request: Box::new(request),
        })
    }

    /// What became of a worker that was to be given back.
    fn retired(&mut self, retired: Retired) -> Result<(), Violation> {
        let Retired {
            worker,
            brought,
            outcome,
            ..
        } = retired;
        let wrong = |what: String| Err(Violation::new(Invariant::GivenBack, what));
        let Some((_, force)) = self.retiring.remove(&worker) else {
            return wrong(format!("worker {} was not to be given back", worker.0));
        };
        let Program {
            deaths,
            bad_starts,
            bad_carries,
            ..
        } = self.program;
        let all_goes_well = deaths.is_empty() && *bad_starts == 0 && *bad_carries == 0;
        self.statistics.brought += brought.len() as u64;
        let left: Vec<Name> = match outcome {
            Retirement::Ended { lost, .. } if !force && !lost.is_empty() => {
                return wrong(format!("worker {} goes, and with it {lost:?}", worker.0));
            }
            Retirement::Kept { .. } if force && all_goes_well => {
                return wrong(format!("worker {} stays although it must go", worker.0));
            }
            Retirement::Ended { again, lost } => {
                self.statistics.given_back += 1;
                let left: Vec<Name> = again.into_keys().chain(lost.into_keys()).collect();
                self.judge.left(left.iter().cloned());
                self.statistics.left += left.len() as u64;
                left
            }
            Retirement::Kept { values, is_new } => {
                self.statistics.kept += 1;
                let names: BTreeSet<Name> = values.into_keys().collect();
                let told = self.told.insert(worker, names.clone());
                if !is_new && told.as_ref() != Some(&names) {
                    return wrong(format!("why worker {} stays is not told", worker.0));
                }
                names.into_iter().collect()
            }
        };
        let is_locked = |name: &&Name| self.judge.model.is_locked(name);
        if all_goes_well && let Some(name) = left.iter().find(|name| !is_locked(name)) {
            return wrong(format!(
                "`{name}` is not brought home from worker {}",
                worker.0
            ));
        }
        Ok(())
    }

    /// Sends something to a worker.
    fn send(&mut self, id: WorkerId, task: Task) -> Result<(), Violation> {
        if let Some(time) = self.inwards(id)? {
            self.plan(time, Happening::Arrives(id, task));
        }
        Ok(())
    }

    fn inwards(&mut self, id: WorkerId) -> Result<Option<u64>, Violation> {
        let Some(place) = self.places.get_mut(&id) else {
            return Ok(None);
        };
        if place.stopped {
            return Err(Violation::new(
                Invariant::GivenBack,
                format!("worker {} is told something after its end", id.0),
            ));
        }
        let delay = self.fate.delay(("inwards", id.0, place.inwards.carried));
        Ok(Some(place.inwards.arrival(self.now, delay)))
    }

    /// Lets a worker go on: its current step ends, by an interrupt or not, or it takes up the next task.
    fn work(&mut self, id: WorkerId, ends: Option<bool>) {
        let parcels = if ends.is_some() {
            self.parcels_for(id)
        } else {
            BTreeMap::new()
        };
        let Some(place) = self.places.get_mut(&id) else {
            return;
        };
        let outside = Outside {
            program: self.program,
            fate: self.fate,
            fault: self.fault,
            definitions: &self.definitions,
            parcels,
        };
        let mut says = Vec::new();
        let mut time = match ends {
            Some(interrupted) => place.worker.proceed(&outside, interrupted, &mut says),
            None => None,
        };
        if time.is_none() {
            time = place.worker.begin(&outside, &mut says);
        }
        let turn = place.worker.turn;
        if let Some(time) = time {
            self.plan(self.now + time, Happening::Proceeds(id, turn));
        }
        for says in says {
            if let Says::Replies(run, exception, executed) = &says
                && let Some(running) = self.runs.get_mut(run)
            {
                running.executed = *executed;
                running.exception.clone_from(exception);
            }
            let Some(place) = self.places.get_mut(&id) else {
                return;
            };
            let (link, kind) = if says.is_answer() {
                (&mut place.answers, "answers")
            } else {
                (&mut place.published, "published")
            };
            let delay = self.fate.delay((kind, id.0, link.carried));
            let time = link.arrival(self.now, delay);
            self.plan(time, Happening::Heard(id, says));
        }
    }

    /// The values that the prelude of the worker's current run puts, as they are now.
    fn parcels_for(&mut self, id: WorkerId) -> BTreeMap<u64, Result<Parcel, Box<PreludeFailure>>> {
        let mut parcels = BTreeMap::new();
        let Some((run, orders)) = self
            .places
            .get(&id)
            .and_then(|place| place.worker.in_prelude())
        else {
            return parcels;
        };
        let mut misread = false;
        for step in &orders.plan.steps {
            let Step::Put(put) = step else { continue };
            let no_direct_copy = || failure("put", &[], "NoDirectCopy", "Operation not permitted");
            let value = self.values.get(&put.transfer);
            let parcel = match value.filter(|_| self.brought.contains(&(put.transfer, id))) {
                None => continue,
                Some((_, Contents::Copy(parcel))) => Ok(parcel.clone()),
                Some((
                    holder,
                    Contents::Memory {
                        names,
                        ignored,
                        era,
                    },
                )) => match self.places.get(holder).filter(|place| place.alive) {
                    Some(place) if self.program.direct => {
                        let parcel = place.worker.memory.pack(names, ignored);
                        if place.worker.era == *era {
                            Ok(parcel)
                        } else {
                            misread = true;
                            Ok(parcel.garbage())
                        }
                    }
                    _ => Err(no_direct_copy()),
                },
            };
            parcels.insert(put.transfer, parcel);
        }
        if misread && let Some(running) = self.runs.get_mut(&run) {
            running.misread = true;
        }
        parcels
    }

    // --- the driver ------------------------------------------------------------------------------------

    fn hear(&mut self, worker: WorkerId, says: Says) -> Result<(), Violation> {
        match says {
            Says::Busy(run) => self.tell(Event::Busy(worker, run)),
            Says::Began(run) => self.tell(Event::Began(worker, run)),
            Says::Shows(run, said) => self.shows(run, said),
            Says::Reports(run, report) => self.tell(Event::Report(worker, run, report)),
            Says::Replies(run, exception, _) => {
                let message = Message {
                    content: Bytes::from(run.0.to_string()),
                    ..Message::default()
                };
                let reply = Reply {
                    message,
                    failed: exception.is_some(),
                    exception: exception
                        .map(|exception| (exception.ename.to_owned(), exception.evalue)),
                };
                self.tell(Event::Replied(worker, run, Box::new(reply)))
            }
            Says::Idle(run) => {
                if self.fault == Some(Fault::LosesIdle) && self.fate.of(("idle", run.0)).chance(10)
                {
                    return Ok(());
                }
                self.tell(Event::Idle(worker, run))
            }
            Says::Taken(transfer, taken, contents) => {
                if let Some(contents) = contents.filter(|_| !self.released.contains(&transfer)) {
                    self.values.insert(transfer, (worker, contents));
                }
                self.tell(Event::Taken(transfer, taken))
            }
        }
    }

    /// A value has come to a worker's machine, or got lost on its way.
    fn brought(&mut self, transfer: u64, to: WorkerId) -> Result<(), Violation> {
        let mut fate = self.fate.of(("way", transfer, to.0));
        let from = self.values.get(&transfer).map(|(from, _)| *from);
        let lost = from.and_then(|from| self.places.get(&from)?.gone);
        let outcome = if let Some((Gone::LocationLost, known)) = lost {
            if !known {
                // That its location is lost is known before anything else that comes of it.
                self.plan(self.now + 1, Happening::Carried(transfer, to));
                return Ok(());
            }
            Err("its location is lost".to_owned())
        } else if fate.chance(self.program.bad_carries) {
            let reason = format!("transfer {transfer} is cut");
            self.judge.cut(&reason);
            Err(reason)
        } else {
            if self.fault != Some(Fault::CarriesNothing) {
                self.brought.insert((transfer, to));
            }
            Ok(())
        };
        self.tell(Event::Carried {
            transfer,
            to,
            outcome,
        })
    }

    fn shows(&mut self, run: RunId, said: Said) -> Result<(), Violation> {
        let fault = self.fault;
        let Some(running) = self.runs.get_mut(&run) else {
            return Ok(());
        };
        if running.discarded {
            let cell = running.cell;
            return match fault {
                Some(Fault::ShowsDiscarded) => self.judge.shows(cell, said),
                _ => Ok(()),
            };
        }
        match &mut running.held {
            Some(held) if fault != Some(Fault::ShowsEarly) => {
                held.push(said);
                Ok(())
            }
            _ => {
                let Some(asked) = self.session.request(run).cloned() else {
                    return Ok(());
                };
                let cell = self.asked_for(&asked)?;
                self.note(|| format!("    cell at {cell} shows {said:?}"));
                self.say(cell, said)
            }
        }
    }

    /// Shows what a run has said, unless the cell shows it from the run before that died.
    fn say(&mut self, cell: usize, said: Said) -> Result<(), Violation> {
        if let Some((_, done)) = self.again.filter(|(again, _)| *again == cell) {
            let shown = self.judge.shown();
            if shown.get(done) == Some(&said) && self.fault != Some(Fault::ShowsAgain) {
                self.again = Some((cell, done + 1));
                return Ok(());
            }
            // It goes on where the one before stopped, or says something else.
            if self.fault != Some(Fault::ShowsAgain) {
                self.judge.shows_only(done);
            }
            self.again = None;
        }
        self.judge.shows(cell, said)
    }

    /// Gives the session an event and does what it says.
    fn tell(&mut self, event: Event) -> Result<(), Violation> {
        self.events += 1;
        if self.trace.is_some() {
            let line = describe_event(&event);
            self.note(|| line);
        }
        if self.fault == Some(Fault::InterruptsAnything)
            && self.fate.of(("any", self.events)).chance(2)
        {
            let workers: Vec<WorkerId> = self.places.keys().copied().collect();
            for worker in workers {
                self.plan(self.now, Happening::InterruptArrives(worker));
            }
        }
        for effect in self.session.handle(event) {
            if self.trace.is_some() {
                let line = describe_effect(&effect);
                self.note(|| line);
            }
            self.perform(effect)?;
        }
        Ok(())
    }

    fn perform(&mut self, effect: Effect) -> Result<(), Violation> {
        match effect {
            Effect::StartWorker { worker, target, .. } => self.start(worker, &target),
            Effect::Status(asked, status) => {
                let cell = self.asked_for(&asked)?;
                if status == "busy" {
                    self.judge.busy(cell)?;
                } else {
                    let failed = self.judge.idle(cell)?;
                    self.client.gave_up |= failed && self.program.gives_up;
                    self.client_goes_on();
                }
            }
            Effect::Input(asked, count) => {
                let cell = self.asked_for(&asked)?;
                self.judge.shows(cell, Said::Input(count))?;
            }
            Effect::Error(asked, problem) => {
                let cell = self.asked_for(&asked)?;
                let said = Said::Error(problem.ename, problem.evalue);
                self.judge.shows(cell, said)?;
            }
            Effect::Note(asked, _) => {
                self.asked_for(&asked)?;
            }
            Effect::Answer(asked, answer) => {
                let cell = self.asked_for(&asked)?;
                self.again = None;
                if let Answer::Failed(problem, _) = &answer {
                    self.statistics.lost += u64::from(problem.ename == "LostValue");
                }
                self.statistics.aborted += u64::from(answer == Answer::Aborted);
                self.judge.ends(cell, End::Answered(answer))?;
            }
            Effect::Reply(asked, message) => {
                let cell = self.asked_for(&asked)?;
                self.replies(cell, &message)?;
            }
            Effect::Run(worker, run, orders) => self.runs(worker, run, orders)?,
            Effect::Take {
                transfer,
                worker,
                names,
                stale,
                ignored,
                reader,
            } => {
                self.statistics.transfers += 1;
                let take = Take {
                    transfer,
                    names,
                    stale,
                    ignored,
                    reader,
                };
                self.send(worker, Task::Take(take))?;
            }
            Effect::Carry { transfer, to, .. } => {
                let delay = self.fate.delay(("carry", transfer, to.0));
                self.plan(self.now + delay, Happening::Carried(transfer, to));
            }
            Effect::Release(transfers) => {
                if self.fault != Some(Fault::ReleasesNothing) {
                    for transfer in transfers {
                        self.values.remove(&transfer);
                        self.released.insert(transfer);
                    }
                }
            }
            Effect::Show(run, asked) => self.show(run, &asked)?,
            Effect::Discard(run) => {
                self.statistics.discarded += 1;
                if let Some(running) = self.runs.get_mut(&run) {
                    running.discarded = true;
                    let cell = running.cell;
                    let held = running.held.take().unwrap_or_default();
                    if self.fault == Some(Fault::ShowsDiscarded) {
                        for said in held {
                            self.judge.shows(cell, said)?;
                        }
                    }
                }
            }
            Effect::Again { old, new } => {
                self.statistics.again += 1;
                self.runs.remove(&old);
                if let Some(asked) = self.session.request(new).cloned() {
                    self.again = Some((self.asked_for(&asked)?, 0));
                }
            }
            Effect::Stop(worker) => {
                if let Some(place) = self.places.get_mut(&worker) {
                    place.alive = false;
                    place.cut = true;
                    place.stopped = true;
                }
            }
            Effect::Retired(retired) => self.retired(*retired)?,
            Effect::Undo(worker, run) => self.send(worker, Task::Undo(run))?,
            Effect::Settle(worker, run) => self.send(worker, Task::Settle(run))?,
            Effect::Interrupt(worker) => {
                if let Some(time) = self.inwards(worker)? {
                    self.plan(time, Happening::InterruptArrives(worker));
                }
            }
            Effect::PassOn(..) | Effect::History(..) => {}
        }
        Ok(())
    }

    /// The cell of a request, which a client must have asked for.
    fn asked_for(&self, asked: &Asked) -> Result<usize, Violation> {
        let cell = cell_of(asked);
        if !asked.header.msg_id.starts_with('r') {
            return Err(Violation::new(
                Invariant::NoTrace,
                format!("something is said under cell at {cell}, which nobody asked for"),
            ));
        }
        Ok(cell)
    }

    fn runs(&mut self, worker: WorkerId, run: RunId, orders: Box<Orders>) -> Result<(), Violation> {
        let cell = crate::worker::cell_of(&orders);
        let is_cell = cell < self.program.cells.len();
        self.statistics.remade += u64::from(orders.unseen && is_cell);
        let unknown = self.retiring.get(&worker);
        if is_cell && !orders.unseen && unknown.is_some_and(|(first, _)| cell >= *first) {
            return Err(Violation::new(
                Invariant::GivenBack,
                format!(
                    "cell at {cell} runs on worker {}, which is given back",
                    worker.0
                ),
            ));
        }
        self.statistics.ahead += u64::from(orders.keep.is_some());
        // A run whose prelude failed may be started again.
        let before = self.runs.remove(&run);
        if let Some(before) = before
            .as_ref()
            .filter(|before| before.cell != cell || before.discarded)
        {
            return Err(Violation::new(
                Invariant::NothingDoubled,
                format!(
                    "run {} of cell {} is started again: {before:?}",
                    run.0, cell
                ),
            ));
        }
        let held = before.and_then(|before| before.held);
        let running = Running {
            cell,
            worker,
            held: orders.keep.is_some().then(Vec::new).or(held),
            discarded: false,
            unseen: orders.unseen,
            misread: false,
            executed: 0,
            exception: None,
        };
        self.runs.insert(run, running);
        self.send(worker, Task::Run(run, orders))
    }

    fn show(&mut self, run: RunId, asked: &Asked) -> Result<(), Violation> {
        let fault = self.fault;
        let cell = self.asked_for(asked)?;
        let Some(running) = self.runs.get_mut(&run) else {
            return Ok(());
        };
        let mut held = running.held.take().unwrap_or_default();
        if fault == Some(Fault::ShowsTwice) {
            held.extend(held.clone());
        }
        for said in held {
            if fault != Some(Fault::LosesHeld) {
                self.note(|| format!("    cell at {cell} shows {said:?}, held back before"));
                self.say(cell, said)?;
            }
        }
        Ok(())
    }

    fn replies(&mut self, cell: usize, message: &Message) -> Result<(), Violation> {
        let run = std::str::from_utf8(&message.content).ok();
        let run = run.and_then(|run| run.parse().ok()).map(RunId);
        let running = run.and_then(|run| self.runs.get(&run));
        let Some(running) = running.filter(|running| running.cell == cell) else {
            return Err(Violation::new(
                Invariant::Order,
                format!(
                    "cell {} gets another one's reply",
                    self.program.cells[cell].id
                ),
            ));
        };
        if running.discarded {
            return Err(Violation::new(
                Invariant::NoTrace,
                format!(
                    "cell {} gets the reply of a discarded run",
                    self.program.cells[cell].id
                ),
            ));
        }
        if running.misread {
            return Err(Violation::new(
                Invariant::MemoryHolds,
                format!(
                    "cell {} read memory of a worker that had gone on",
                    self.program.cells[cell].id
                ),
            ));
        }
        let outcome = Outcome {
            executed: running.executed,
            exception: running.exception.clone(),
            worker_lives: self
                .places
                .get(&running.worker)
                .is_some_and(|place| place.alive),
        };
        if let Some((_, done)) = self.again.take() {
            self.judge.shows_only(done);
        }
        self.judge.ends(cell, End::Replied(outcome))
    }

    // --- the end -------------------------------------------------------------------------------------

    /// What must hold when nothing more can happen.
    fn check_end(&mut self) -> Result<(), Violation> {
        if !self.judge.all_done() {
            let waiting = self.judge.waiting().iter();
            let waiting: Vec<u64> = waiting.map(|cell| self.program.cells[*cell].id).collect();
            return Err(Violation::new(
                Invariant::NothingStuck,
                format!(
                    "cells {waiting:?} are never answered: {:?}",
                    self.session.overview()
                ),
            ));
        }
        let under_way = self.session.overview();
        if !under_way.is_empty() {
            return Err(Violation::new(
                Invariant::NothingLeaks,
                format!("the session still has {under_way:?}"),
            ));
        }
        if let Some(transfer) = self.values.keys().next() {
            return Err(Violation::new(
                Invariant::NothingLeaks,
                format!("transfer {transfer} is never released"),
            ));
        }
        let is_alive = |id: &&WorkerId| self.places.get(id).is_some_and(|place| place.alive);
        if let Some(id) = self.retiring.keys().find(is_alive) {
            return Err(Violation::new(
                Invariant::GivenBack,
                format!("worker {} is never given back", id.0),
            ));
        }
        for (id, place) in self.places.iter().filter(|(_, place)| place.alive) {
            let discarded = |run: &&RunId| {
                let run = self.runs.get(run);
                run.is_some_and(|run| run.discarded && !run.unseen)
            };
            if let Some(run) = place.worker.standing.iter().find(discarded) {
                return Err(Violation::new(
                    Invariant::NoTrace,
                    format!(
                        "discarded run {} stands in the memory of worker {}",
                        run.0, id.0
                    ),
                ));
            }
            if let Some(run) = place.worker.unsettled().first() {
                return Err(Violation::new(
                    Invariant::NothingLeaks,
                    format!("worker {} could still undo run {}", id.0, run.0),
                ));
            }
        }
        let held = |running: &&Running| running.held.is_some();
        let gone = |running: &Running| {
            self.places
                .get(&running.worker)
                .is_none_or(|place| !place.alive)
        };
        if let Some(running) = self
            .runs
            .values()
            .filter(held)
            .find(|running| !gone(running))
        {
            return Err(Violation::new(
                Invariant::NothingLeaks,
                format!(
                    "output of cell {} is held for ever",
                    self.program.cells[running.cell].id
                ),
            ));
        }
        self.check_copies()
    }

    /// Whatever the ledger takes for a current value is one, even if nobody reads it any more.
    fn check_copies(&self) -> Result<(), Violation> {
        let model: &Memory = &self.judge.model;
        let ledger = self.session.ledger();
        for name in model.names() {
            for holder in ledger.holders(ledger.committed(), name.as_str()) {
                let Some(place) = self.places.get(&holder).filter(|place| place.alive) else {
                    continue;
                };
                let (here, there) = (place.worker.memory.show([name]), model.show([name]));
                if here != there {
                    return Err(Violation::new(
                        Invariant::NoStaleRead,
                        format!(
                            "worker {} is said to have `{name}`, and has {here} instead of {there}",
                            holder.0
                        ),
                    ));
                }
            }
            if ledger.committed().version(name).is_none() {
                return Err(Violation::new(
                    Invariant::NothingLost,
                    format!("the ledger does not know `{name}`"),
                ));
            }
        }
        Ok(())
    }
}

fn death_of(worker: WorkerId) -> Problem {
    Problem::new("WorkerDied", format!("worker {} died", worker.0))
}

/// An event in a line.
fn describe_event(event: &Event) -> String {
    match event {
        Event::Execute(ask) => format!(
            "-> Execute {}: {:?}",
            ask.0.message.header.msg_id, ask.1.source
        ),
        Event::Expect(cells) => {
            let ids = cells
                .iter()
                .map(|(request, _)| request.message.header.msg_id.as_str());
            format!("-> Expect {:?}", ids.collect::<Vec<_>>())
        }
        Event::Expected(request) => format!("-> Expected {}", request.message.header.msg_id),
        Event::Report(worker, run, report) => format!(
            "-> Report worker {} run {}: bound {:?} deleted {:?} kept {:?} changed {:?} failed {:?}",
            worker.0,
            run.0,
            report.bound.keys().collect::<Vec<_>>(),
            report.deleted,
            report.kept,
            report.changed,
            report
                .failed
                .as_ref()
                .map(|failed| (&failed.action, &failed.ename, &failed.message)),
        ),
        Event::Replied(worker, run, reply) => format!(
            "-> Replied worker {} run {}: {:?}",
            worker.0, run.0, reply.exception
        ),
        Event::Taken(
            transfer,
            Taken::Ok {
                names,
                needs,
                missing,
                ..
            },
        ) => format!(
            "-> Taken {transfer}: {:?} needs {needs:?} missing {missing:?}",
            names.keys().collect::<Vec<_>>()
        ),
        other => format!("-> {other:?}"),
    }
}

fn describe_effect(effect: &Effect) -> String {
    match effect {
        Effect::Status(asked, status) => format!("   <- Status {} {status}", asked.header.msg_id),
        Effect::Input(asked, count) => format!("   <- Input {} [{count}]", asked.header.msg_id),
        Effect::Error(asked, problem) => format!("   <- Error {} {problem:?}", asked.header.msg_id),
        Effect::Note(asked, text) => format!("   <- Note {} {text:?}", asked.header.msg_id),
        Effect::Answer(asked, answer) => format!("   <- Answer {} {answer:?}", asked.header.msg_id),
        Effect::Reply(asked, message) => {
            format!(
                "   <- Reply {} of run {:?}",
                asked.header.msg_id, message.content
            )
        }
        Effect::Run(worker, run, orders) => {
            let steps = orders.plan.steps.iter().map(|step| match step {
                Step::Put(put) => format!(
                    "put {:?} of {}",
                    put.names.keys().collect::<Vec<_>>(),
                    put.transfer
                ),
                Step::Define(defined) => format!("define {:?}", defined.definition.binds),
            });
            format!(
                "   <- Run worker {} run {} for {} [{:?}]: keep {:?} drop {:?} steps {:?} watched {:?} touched {:?}",
                worker.0,
                run.0,
                orders.request.header.msg_id,
                orders.count,
                orders.keep,
                orders.plan.drops,
                steps.collect::<Vec<_>>(),
                orders.watched,
                orders.touched,
            )
        }
        Effect::Show(run, asked) => format!("   <- Show run {} as {}", run.0, asked.header.msg_id),
        other => format!("   <- {other:?}"),
    }
}
