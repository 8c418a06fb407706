//! What the user is told of workers that did not start, died or went wrong, and what that means for what ran in them.

use cellferry_wire::protocol::{Exit, StartFailure, WorkerId};

use super::{Agents, Seat};
use crate::session::{Gone, Problem};
use crate::target::shape::Shape;
use crate::target::{launch, ranks};

impl Seat {
    /// The error for a worker that did not start.
    pub fn start_problem(&self, failure: &StartFailure) -> Problem {
        let Seat {
            target,
            python,
            shell,
            ..
        } = self;
        let table = Shape::parse(target).target;
        if let StartFailure::Exited { stderr_tail, .. } = failure
            && self.island
            && let Some(name) = ranks::missing_launcher(stderr_tail)
        {
            return Problem::new(
                "NoMpi",
                format!(
                    "the ranks of `{target}` cannot be started: there is no `{name}` on PATH; \
                     load or add it in `setup` under [targets.{table}] in cellferry.toml"
                ),
            );
        }
        if let StartFailure::Exited { stderr_tail, .. } = failure
            && let Some(reason) = launch::missing_python(stderr_tail)
        {
            return Problem::new(
                "NoPython",
                format!(
                    "a worker of `{target}` cannot be started: {reason}; \
                     set `python`, `conda` or `setup` under [targets.{table}] in cellferry.toml"
                ),
            );
        }
        match failure {
            StartFailure::Exited { stderr_tail, .. }
                if stderr_tail.contains("No module named ipykernel")
                    || stderr_tail.contains("No module named 'ipykernel") =>
            {
                Problem::new(
                    "MissingIpykernel",
                    format!(
                        "the Python of `{target}`, `{python}`, has no ipykernel, which its workers need; \
                         install it with\n    {shell}{python} -m pip install ipykernel"
                    ),
                )
            }
            StartFailure::NoProgram { error, .. } => Problem::new(
                "NoPython",
                format!(
                    "the Python of `{target}`, `{python}`, cannot be run: {error}; set `python` under [targets.{table}] in cellferry.toml"
                ),
            ),
            StartFailure::Workdir { path, error } => Problem::new(
                "WorkdirError",
                format!(
                    "the working directory of `{target}`, `{path}`, cannot be used: {error}; set `workdir` under [targets.{table}] in cellferry.toml"
                ),
            ),
            failure => Problem::new(
                "WorkerError",
                format!("a worker of `{target}` ({python}) did not start: {failure}"),
            ),
        }
    }
}

impl Agents {
    /// The error for a worker that did not start.
    pub fn start_problem(&self, worker: WorkerId, failure: &StartFailure) -> Problem {
        match self.workers.get(&worker) {
            Some(seat) => seat.start_problem(failure),
            None => Problem::new("WorkerError", failure.to_string()),
        }
    }

    /// The error for a worker that died.
    pub fn death_problem(
        &self,
        worker: WorkerId,
        rank: Option<u32>,
        exit: &Exit,
        stderr_tail: &str,
    ) -> Problem {
        let seat = self.workers.get(&worker);
        let target = seat.map_or("?", |seat| &*seat.target);
        let who = match (rank, seat.is_some_and(|seat| seat.island)) {
            (Some(rank), _) => format!("rank {rank} of `{target}` died"),
            (None, true) => format!("what had started the ranks of `{target}` ended"),
            (None, false) => format!("the worker of `{target}` died"),
        };
        let next = match seat.is_some_and(|seat| seat.island) {
            true => "all ranks were ended, and new ones are started when they are needed",
            false => "another one is started when it is needed",
        };
        let words = stderr_tail.trim();
        let last = if words.is_empty() {
            String::new()
        } else {
            format!("; its last words:\n{words}")
        };
        Problem::new("WorkerDied", format!("{who} ({exit}); {next}{last}"))
    }

    /// The error for a worker in which the helper cannot be installed.
    pub fn helper_problem(&self, worker: WorkerId, exception: &str) -> Problem {
        let (target, python, shell) = self.workers.get(&worker).map_or(("?", "?", ""), |seat| {
            (&*seat.target, seat.python.as_str(), seat.shell.as_str())
        });
        Problem::new(
            "WorkerError",
            format!(
                "the worker of `{target}` ({python}) could not be set up: {exception}; \
                 ipykernel 6 or newer on Python 3.8 or newer is needed: {shell}{python} -m pip install --upgrade ipykernel"
            ),
        )
    }

    /// A worker could not take back what a cell did that ran before its turn.
    pub fn undo_problem(&self, worker: WorkerId, exception: &str) -> Problem {
        let target = self.workers.get(&worker).map_or("?", |seat| &*seat.target);
        Problem::new(
            "WorkerError",
            format!(
                "the worker of `{target}` could not take back a cell that had run before its turn, and was stopped: {exception}"
            ),
        )
    }
}

/// In which way a worker ended: whether it was the doing of what ran in it.
pub fn how(exit: &Exit) -> Gone {
    /// SIGILL, SIGABRT, SIGFPE and SIGSEGV: a crash of the code itself, which would crash again.
    const CRASHES: [i32; 4] = [4, 6, 8, 11];
    match exit.signal {
        Some(signal) if !CRASHES.contains(&signal) => Gone::Killed,
        _ => Gone::Ended,
    }
}

/// In which way a worker did not start: whether something killed it, or another one would not start either.
pub fn how_failed(failure: &StartFailure) -> Gone {
    match failure {
        StartFailure::Exited { exit, .. } if how(exit) == Gone::Killed => Gone::Killed,
        _ => Gone::NotStarted,
    }
}
