//! How the session's own work grows with its workers: the state machine with simulated workers, without sockets and processes.
//!
//! `session COUNT…`: for each count so many steps, once while their workers start and then on workers that are there. A line
//! of JSON each: how many workers were started, and seconds for the second round.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use cellferry::analysis::python::analyse;
use cellferry::cell::{Target, Workflow};
use cellferry::driver::needed;
use cellferry::graph::Accesses;
use cellferry::session::{Asked, Cell, Effect, Event, Reply, Request, Session};
use cellferry_kernel::message::{Header, Message};
use cellferry_wire::protocol::Channel;
use serde_json::json;

const TARGET: &str = "many";
const SOURCE: &str = "pass";

fn step(workers: u32) -> Event {
    let workflow = Workflow {
        target: Some(Target::Name(TARGET.to_owned())),
        ..Workflow::default()
    };
    let analysis = analyse(SOURCE);
    let cell = Cell {
        source: SOURCE.into(),
        target: TARGET.into(),
        workers,
        retry: 0,
        needed: needed(&analysis, Some(&workflow)),
        files: Arc::default(),
        gather: Vec::new(),
        time: None,
        access: Accesses::default().next(&analysis, Some(&workflow)),
        definitions: analysis.definitions,
        called: Vec::new(),
        after: Vec::new(),
        seeds: false,
        problem: None,
    };
    let request = Request {
        message: Arc::new(Asked {
            channel: Channel::Shell,
            header: Header {
                msg_id: "m".to_owned(),
                msg_type: "execute_request".to_owned(),
                session: String::new(),
            },
            message: Message::default(),
        }),
        silent: false,
        store_history: true,
        stop_on_error: true,
    };
    Event::Execute(Box::new((request, cell)))
}

/// What workers say of what they are told, one thing after the other.
fn answers(effect: Effect) -> VecDeque<Event> {
    match effect {
        Effect::StartWorker { worker, .. } => VecDeque::from([Event::WorkerReady(worker)]),
        Effect::Run(worker, run, _) => {
            let reply = Reply {
                message: Message::default(),
                failed: false,
                exception: None,
            };
            VecDeque::from([
                Event::Busy(worker, run),
                Event::Began(worker, run),
                Event::Report(worker, run, Box::default()),
                Event::Replied(worker, run, Box::new(reply)),
                Event::Idle(worker, run),
            ])
        }
        _ => VecDeque::new(),
    }
}

/// So many steps at once, to their end. The workers speak in turn, as many machines do. Returns how many were started.
pub fn round(session: &mut Session, steps: u32) -> usize {
    let effects: Vec<Effect> = (0..steps)
        .flat_map(|_| session.handle(step(steps)))
        .collect();
    let is_start = |effect: &Effect| matches!(effect, Effect::StartWorker { .. });
    let mut started = effects.iter().filter(|effect| is_start(effect)).count();
    let mut workers: Vec<VecDeque<Event>> = effects.into_iter().map(answers).collect();
    while !workers.is_empty() {
        let mut next = Vec::new();
        for mut worker in workers {
            let Some(event) = worker.pop_front() else {
                continue;
            };
            let effects = session.handle(event);
            started += effects.iter().filter(|effect| is_start(effect)).count();
            next.push(worker);
            next.extend(effects.into_iter().map(answers));
        }
        workers = next;
    }
    assert_eq!(session.open_cells().count(), 0, "steps are left");
    started
}

fn main() {
    for count in std::env::args().skip(1) {
        let Ok(workers) = count.parse() else {
            eprintln!("usage: session COUNT…");
            std::process::exit(2);
        };
        let mut session = Session::new();
        let started = round(&mut session, workers);
        let began = Instant::now();
        round(&mut session, workers);
        let seconds = began.elapsed().as_secs_f64();
        println!(
            "{}",
            json!({"workers": workers, "started": started, "seconds": seconds})
        );
    }
}
