//! The start of a worker: its place, its Python, its GPUs, and its agent if there is none there yet.

use std::collections::{BTreeSet, HashMap};
use std::path::Path;

use cellferry_agent::guard::Guard;
use cellferry_agent::{OWN_PROGRAM, RunDir};
use cellferry_wire::protocol::{ToAgent, WorkerId};

use super::super::cells::Cells;
use super::super::cluster::Load;
use super::super::far::Far;
use super::super::host::Host;
use super::link::Link;
use super::seat::{seat_there, spec, spec_there};
use super::{Agents, Seat};
use crate::session::{HOME, Problem, TargetName};
use crate::target::config::{ConfigError, Place, Target};
use crate::target::home::{HomePython, home_python};
use crate::target::shape::Shape;
use crate::target::{launch, ranks};

/// What has become of the wish for a worker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Start {
    /// It is on its way.
    Begun,
    /// Others at these locations have the GPUs that it needs.
    Later(Vec<TargetName>),
}

/// The home Python.
pub fn find_python(explicit: Option<&Path>) -> Result<HomePython, String> {
    let executable = std::env::current_exe().unwrap_or_default();
    home_python(explicit, &|name| std::env::var_os(name), &executable)
}

impl Agents {
    /// Starts a worker of the target; its agent first, if there is none.
    pub async fn start(
        &mut self,
        worker: WorkerId,
        target: &TargetName,
        cells: &Cells,
    ) -> Result<Start, Problem> {
        // It may have been tried before.
        self.workers.remove(&worker);
        let shape = Shape::parse(target);
        let wrong = |error: ConfigError| match error {
            ConfigError::Unknown { .. } => {
                Problem::new("TargetError", format!("`workflow.target`: {error}"))
            }
            error => Problem::new("TargetError", error.to_string()),
        };
        let definition = cells.target(&shape.target).map_err(wrong)?;
        let mut node = None;
        let mut seat = match &definition.place {
            Place::Local => Seat {
                target: target.clone(),
                location: definition.name.as_str().into(),
                python: self.python_of(&definition)?,
                shell: String::new(),
                pid: None,
                gpus: Vec::new(),
                others: Vec::new(),
                island: false,
            },
            Place::Ssh(ssh) => Seat {
                target: target.clone(),
                ..seat_there(&definition, Some(ssh))
            },
            Place::Slurm(slurm) => {
                let login = cells.login(&definition, slurm).map_err(wrong)?;
                let plain = seat_there(&definition, login.as_ref());
                self.prepare(target)?;
                let run_dir = self.run_dir.as_ref().map(|dir| dir.path().to_owned());
                let place = (&definition, &**slurm, login);
                let mut loads: HashMap<&TargetName, Load> = HashMap::new();
                for seat in self.workers.values() {
                    loads.entry(&seat.location).or_default().workers += 1;
                    for location in seat.locations() {
                        loads.entry(location).or_default().gpus += seat.gpus.len();
                    }
                }
                let load = |location: &TargetName| loads.get(location).copied().unwrap_or_default();
                let clusters = &mut self.clusters;
                let found = clusters.node(place, &shape, run_dir, &self.events, load);
                let seat = Seat {
                    target: target.clone(),
                    location: found.location.clone(),
                    ..plain
                };
                node = Some(found);
                seat
            }
        };
        let mut spec = match &definition.place {
            Place::Local => {
                let argv = launch::here(&definition, &seat.python, &**target == HOME);
                spec(&definition, argv)
            }
            Place::Ssh(_) => spec_there(&definition),
            // The job has run the setup before the agent, which hands its environment on.
            Place::Slurm(_) => spec_there(&Target {
                setup: None,
                ..definition.clone()
            }),
        };
        let mut gpus = shape.gpus(&definition);
        if let Some(count) = shape.resources.ranks {
            let mut needs = shape.resources.clone();
            if let (Some(each), Some(node)) = (needs.gpus, &node) {
                // Which of them each node's ranks have must be known before they are started.
                let nodes = needs.nodes.unwrap_or(node.nodes()).min(count);
                needs.nodes = Some(nodes);
                seat.others = node.others_of(nodes);
                gpus = Some(each.saturating_mul(ranks::on_each(count, nodes)));
            } else {
                gpus = needs.gpus.map(|each| each.saturating_mul(count.get()));
            }
            spec.ranks = Some(match &definition.place {
                Place::Slurm(slurm) => {
                    // The job has run the setup before the agent.
                    let prepared = Target {
                        setup: None,
                        ..definition.clone()
                    };
                    ranks::in_allocation(&prepared, &slurm.mpi, count, &needs)
                }
                Place::Local | Place::Ssh(_) => ranks::on_one_machine(&definition, count, &needs),
            });
            seat.island = true;
        }
        if let Some(count) = gpus {
            let has = node.as_ref().map_or(definition.gpus, |node| node.gpus);
            match self.free_gpus(&seat, has, count) {
                Some(gpus) => seat.gpus = gpus,
                None => return Ok(Start::Later(seat.locations().cloned().collect())),
            }
            spec.gpus = Some(seat.gpus.clone());
        }
        let location = seat.location.clone();
        self.workers.insert(worker, seat);
        if let Some(waiting) = self.ending.get_mut(&location) {
            waiting.push(worker);
            return Ok(Start::Begun);
        }
        self.prepare(target)?;
        if !self.links.contains_key(&location) {
            let (arrivals, events) = (self.arrivals.clone(), self.events.clone());
            let link = match (&definition.place, node) {
                (Place::Local, _) if &*location == HOME => self.here()?,
                (Place::Ssh(ssh), _) => {
                    let host = Host {
                        target: location.clone(),
                        ssh: ssh.clone(),
                        run_dir: self.run_dir.as_ref().map(|dir| dir.path().to_owned()),
                        events: events.clone(),
                    };
                    Link::Far(Far::start(host, arrivals, events))
                }
                (_, Some(node)) => Link::Far(Far::start(node, arrivals, events)),
                _ => self.process(&location).await?,
            };
            self.links.insert(location, link);
        }
        self.send(worker, ToAgent::StartWorker { worker, spec });
        Ok(Start::Begun)
    }

    /// So many GPUs at the locations of a seat, each of which has `has` of them, and of which no other worker there has any.
    fn free_gpus(&self, place: &Seat, has: u32, count: u32) -> Option<Vec<u32>> {
        let there = self
            .workers
            .values()
            .filter(|seat| place.locations().any(|location| seat.is_at(location)));
        let taken: BTreeSet<u32> = there.flat_map(|seat| seat.gpus.iter().copied()).collect();
        let free = (0..has).filter(|gpu| !taken.contains(gpu));
        let gpus: Vec<u32> = free.take(count as usize).collect();
        (gpus.len() == count as usize).then_some(gpus)
    }

    fn python_of(&self, target: &Target) -> Result<String, Problem> {
        match &target.python {
            Some(python) => Ok(python.clone()),
            // Looked for anew each time: the user may just have installed it.
            None => find_python(self.python.as_deref())
                .map(|python| python.path.display().to_string())
                .map_err(|reason| Problem::new("NoPython", reason)),
        }
    }

    /// Makes the private directories, and the guard that removes them if this process is killed.
    fn prepare(&mut self, target: &str) -> Result<(), Problem> {
        if self.guard.is_some() {
            return Ok(());
        }
        let failed = |error: String| {
            Problem::new(
                "WorkerError",
                format!("no worker can be started for `{target}`: {error}"),
            )
        };
        let run_dir = RunDir::make().map_err(|error| failed(error.to_string()))?;
        let segments = RunDir::for_values().map_err(|error| failed(error.to_string()))?;
        let guard = Guard::start(
            OWN_PROGRAM.as_ref(),
            &["guard"],
            &[run_dir.path(), segments.path()],
        );
        self.guard =
            Some(guard.map_err(|error| failed(format!("its guard does not start: {error}")))?);
        self.run_dir = Some(run_dir);
        self.segments = Some(segments);
        Ok(())
    }
}
