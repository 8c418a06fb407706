//! Makes a program that shows a violation as small as it gets: takes away whatever it can do without.

use crate::fault::{Fault, Invariant, Violation};
use crate::program::{Program, Statement};
use crate::world::play;

/// The smallest program found that violates the same invariant, and what happens in it.
pub fn report(program: &Program, fault: Option<Fault>) -> String {
    let Some(first) = play(program, fault, false).violation else {
        return "nothing is violated".to_owned();
    };
    let (small, violation) = shrink(program, fault, first);
    let played = play(&small, fault, true);
    format!(
        "seed {} violates {violation}\n\nShrunk:\n{small}\nWhat happens:\n{}\n\n{violation}",
        program.seed,
        played.trace.join("\n"),
    )
}

fn shrink(program: &Program, fault: Option<Fault>, violation: Violation) -> (Program, Violation) {
    let (mut small, mut violation) = (program.clone(), violation);
    loop {
        let found = candidates(&small).into_iter().find_map(|candidate| {
            Some((still(&candidate, fault, violation.invariant)?, candidate))
        });
        match found {
            Some((smaller, candidate)) => (small, violation) = (candidate, smaller),
            None => return (small, violation),
        }
    }
}

fn still(program: &Program, fault: Option<Fault>, invariant: Invariant) -> Option<Violation> {
    play(program, fault, false)
        .violation
        .filter(|violation| violation.invariant == invariant)
}

/// Programs that are a little smaller, those that lose most first.
fn candidates(program: &Program) -> Vec<Program> {
    let mut found = Vec::new();
    let mut changed = |change: &dyn Fn(&mut Program)| {
        let mut candidate = program.clone();
        change(&mut candidate);
        found.push(candidate);
    };
    let length = program.cells.len();
    let mut run = length / 2;
    while run > 0 {
        for start in (0..=length - run).rev().step_by(run) {
            changed(&|program| {
                program.cells.drain(start..start + run);
            });
        }
        run /= 2;
    }
    for place in 0..program.interrupts.len() {
        changed(&|program| {
            program.interrupts.remove(place);
        });
    }
    for place in 0..program.deaths.len() {
        changed(&|program| {
            program.deaths.remove(place);
        });
        if program.deaths[place].all {
            changed(&|program| program.deaths[place].all = false);
        }
    }
    for place in 0..program.retirements.len() {
        changed(&|program| {
            program.retirements.remove(place);
        });
        if program.retirements[place].force {
            changed(&|program| program.retirements[place].force = false);
        }
    }
    for place in 0..program.edits.len() {
        changed(&|program| {
            program.edits.remove(place);
        });
    }
    if program.looks_ahead > 0 {
        changed(&|program| program.looks_ahead = 0);
        changed(&|program| program.looks_ahead -= 1);
    }
    if program.gives_up {
        changed(&|program| program.gives_up = false);
    }
    if !program.direct {
        changed(&|program| program.direct = true);
    }
    if program.bad_starts > 0 {
        changed(&|program| program.bad_starts = 0);
    }
    if program.bad_carries > 0 {
        changed(&|program| program.bad_carries = 0);
    }
    for place in 0..program.targets.len() {
        if program.targets[place].workers > 1 {
            changed(&|program| program.targets[place].workers -= 1);
        }
    }
    for place in 0..length {
        let cell = &program.cells[place];
        for statement in 0..cell.statements.len() {
            if cell.statements.len() > 1 {
                changed(&|program| {
                    program.cells[place].statements.remove(statement);
                });
            }
            for simpler in simpler(&cell.statements[statement]) {
                changed(&|program| program.cells[place].statements[statement] = simpler.clone());
            }
        }
        if !cell.after.is_empty() {
            changed(&|program| program.cells[place].after.clear());
        }
        if cell.silent {
            changed(&|program| program.cells[place].silent = false);
        }
        if cell.detour {
            changed(&|program| program.cells[place].detour = false);
        }
        if !cell.store_history {
            changed(&|program| program.cells[place].store_history = true);
        }
        if !cell.stop_on_error {
            changed(&|program| program.cells[place].stop_on_error = true);
        }
        if cell.waits {
            changed(&|program| program.cells[place].waits = false);
        }
        if cell.is_step {
            changed(&|program| {
                program.cells[place].is_step = false;
                program.cells[place].target = 0;
            });
        }
        if cell.retry != 1 {
            changed(&|program| program.cells[place].retry = 1);
        }
        if cell.pause > 0 {
            changed(&|program| program.cells[place].pause = 0);
        }
        if cell.slow > 1 {
            changed(&|program| program.cells[place].slow = 1);
        }
    }
    found
}

fn simpler(statement: &Statement) -> Vec<Statement> {
    match statement {
        Statement::If(_, inner) | Statement::Exec(inner) => vec![Statement::clone(inner)],
        Statement::Define(name, body) if body.len() > 1 => (0..body.len())
            .map(|place| {
                let mut body = body.clone();
                body.remove(place);
                Statement::Define(name.clone(), body)
            })
            .collect(),
        Statement::Print(names) if names.len() > 1 => (0..names.len())
            .map(|place| {
                let mut names = names.clone();
                names.remove(place);
                Statement::Print(names)
            })
            .collect(),
        _ => Vec::new(),
    }
}
