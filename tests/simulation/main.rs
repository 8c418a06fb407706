//! Plays the session against a model kernel: random notebooks, clients, delays, interrupts and deaths, with a clock
//! of its own, all from a seed.
//!
//! `program` is what is played, `generate` makes one from a seed, `world` plays it, `worker` and `memory` are the
//! processes in it, `check` compares with the model, `fault` names what must hold, `shrink` makes a failure small.
//!
//! `CELLFERRY_SIMULATE=100000` plays more notebooks than usual, `CELLFERRY_SIMULATE_SEED=7` only one,
//! with all that happens in it.

#![allow(clippy::unwrap_used)] // In a test a panic is the report.

mod check;
mod fault;
mod generate;
#[allow(dead_code)] // It is a program, too.
#[path = "../../benches/session.rs"]
mod many;
mod memory;
mod program;
mod random;
mod shrink;
mod worker;
mod world;

use std::time::Instant;

use fault::{Fault, Invariant};
use shrink::report;
use world::{Statistics, play};

/// Notebooks in every run of the tests.
const NOTEBOOKS: u64 = 3000;

fn setting(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

#[test]
fn many_machines_are_as_one_kernel() {
    if let Some(seed) = setting("CELLFERRY_SIMULATE_SEED") {
        let program = generate::program(seed);
        let played = play(&program, None, true);
        println!("{program}\n{}", played.trace.join("\n"));
        assert!(played.violation.is_none(), "{}", report(&program, None));
        return;
    }
    let notebooks = setting("CELLFERRY_SIMULATE").unwrap_or(NOTEBOOKS);
    let started = Instant::now();
    let (mut events, mut statistics) = (0, Statistics::default());
    for seed in 0..notebooks {
        let program = generate::program(seed);
        let played = play(&program, None, false);
        assert!(played.violation.is_none(), "{}", report(&program, None));
        events += played.events;
        statistics.add(&played.statistics);
    }
    let seconds = started.elapsed().as_secs_f64();
    println!(
        "{notebooks} notebooks, {events} events in {seconds:.1} s: {:.1} million a minute\n{statistics:?}",
        events as f64 / seconds * 60.0 / 1e6
    );
}

#[test]
fn a_thousand_workers_are_used_at_once() {
    let mut session = cellferry::session::Session::new();
    assert_eq!(many::round(&mut session, 1000), 1000);
}

/// A fault that so many notebooks do not show would not be found in the session either.
const ENOUGH: u64 = 30_000;

/// With the fault, some notebook must violate one of the invariants.
fn is_found(fault: Fault, invariants: &[Invariant]) {
    for seed in 0..ENOUGH {
        let program = generate::program(seed);
        if let Some(violation) = play(&program, Some(fault), false).violation
            && invariants.contains(&violation.invariant)
        {
            println!("after {seed} others:\n{}", report(&program, Some(fault)));
            return;
        }
    }
    panic!("{fault:?} is not found in {ENOUGH} notebooks");
}

#[test]
fn a_stale_read_is_found() {
    is_found(Fault::ReportsNoChanges, &[Invariant::NoStaleRead]);
}

#[test]
fn a_wrong_order_is_found() {
    is_found(Fault::ShowsEarly, &[Invariant::Order]);
}

#[test]
fn a_lost_output_is_found() {
    is_found(Fault::LosesHeld, &[Invariant::NothingLost]);
}

#[test]
fn a_doubled_output_is_found() {
    is_found(Fault::ShowsTwice, &[Invariant::NothingDoubled]);
}

#[test]
fn an_output_of_a_run_that_died_is_found() {
    is_found(Fault::ShowsAgain, &[Invariant::NothingDoubled]);
}

#[test]
fn a_discarded_output_is_found() {
    is_found(
        Fault::ShowsDiscarded,
        &[Invariant::Order, Invariant::NothingDoubled],
    );
}

#[test]
fn a_stuck_cell_is_found() {
    is_found(Fault::LosesIdle, &[Invariant::NothingStuck]);
}

#[test]
fn a_leaked_value_is_found() {
    is_found(Fault::ReleasesNothing, &[Invariant::NothingLeaks]);
}

#[test]
fn a_leaked_log_is_found() {
    is_found(Fault::SettlesNothing, &[Invariant::NothingLeaks]);
}

#[test]
fn a_trace_of_discarded_work_is_found() {
    is_found(
        Fault::UndoesNothing,
        &[Invariant::NoTrace, Invariant::NoStaleRead],
    );
}

#[test]
fn memory_read_too_late_is_found() {
    is_found(Fault::BeginsEarly, &[Invariant::MemoryHolds]);
}

#[test]
fn a_value_that_was_not_brought_is_found() {
    is_found(Fault::CarriesNothing, &[Invariant::Errors]);
}

#[test]
fn a_value_that_is_not_brought_home_is_found() {
    is_found(
        Fault::BringsNothing,
        &[Invariant::NoStaleRead, Invariant::Errors],
    );
}

#[test]
fn an_interrupt_of_the_wrong_cell_is_found() {
    is_found(Fault::InterruptsAnything, &[Invariant::Errors]);
}
