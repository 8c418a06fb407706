//! A target together with what a step needs of it beyond the ordinary: workers of one shape serve the steps that need that.
//!
//! A shape has a name of its own, the target's with the needs in brackets: `big[ranks=4]`. Wherever a target's name stands in a
//! session, so can a shape's.

use std::num::NonZeroU32;
use std::time::Duration;

use crate::cell::resources::{Memory, Resources};
use crate::target::config::{Place, Target};

/// A target, and what workers of it must have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shape {
    /// The target's name.
    pub target: String,
    /// What is needed; nothing for ordinary workers.
    pub resources: Resources,
}

impl Shape {
    /// The shape that a step needs on its target: what is there anyway makes no difference.
    ///
    /// # Errors
    /// If the target can never have it: the key of `resources`, and why.
    pub fn of(target: &Target, step: &Resources) -> Result<Self, (&'static str, String)> {
        let mut resources = Resources::default();
        let name = &target.name;
        match &target.place {
            Place::Slurm(slurm) => {
                let request = &slurm.request;
                resources.ranks = step.ranks;
                if step.ranks.is_some() {
                    resources.nodes = step.nodes;
                    resources.cpus = step.cpus;
                }
                resources.gpus = step.gpus;
                if !request.fits(step) {
                    resources.nodes = step.nodes;
                    resources.cpus = step.cpus;
                    resources.memory = step.memory.filter(|memory| Some(*memory) > request.memory);
                    resources.time = step.time.filter(|time| Some(*time) > request.time);
                }
            }
            Place::Local | Place::Ssh(_) => {
                resources.ranks = step.ranks;
                if step.nodes.is_some_and(|nodes| nodes > NonZeroU32::MIN) {
                    let problem = format!("`{name}` is one machine");
                    return Err(("nodes", problem));
                }
                let has = target.gpus;
                let ranks = step.ranks.map_or(1, NonZeroU32::get);
                if step
                    .gpus
                    .is_some_and(|gpus| gpus.saturating_mul(ranks) > has)
                {
                    let has = match has {
                        0 => "has no GPUs".to_owned(),
                        1 => "has 1 GPU".to_owned(),
                        _ => format!("has {has} GPUs"),
                    };
                    let each = match ranks {
                        1 => String::new(),
                        _ => format!(", and each of {ranks} ranks is to have as many"),
                    };
                    let problem = format!("`{name}` {has}, by `gpus` in {}{each}", target.table());
                    return Err(("gpus", problem));
                }
                resources.gpus = step.gpus;
            }
        }
        Ok(Self {
            target: name.clone(),
            resources,
        })
    }

    /// How many GPUs each of its workers has to itself; `None` if it sees all that there are, and shares them.
    pub fn gpus(&self, target: &Target) -> Option<u32> {
        let several = target.workers.get() > 1 && target.gpus > 0;
        let share = several.then(|| target.gpus / target.workers);
        self.resources.gpus.or(share)
    }

    /// How many workers of it there may be.
    pub fn workers(&self, target: &Target) -> u32 {
        // Ranks share state from cell to cell, so all cells of one shape have the same ones.
        if self.resources.ranks.is_some() {
            return 1;
        }
        let locations = match &target.place {
            Place::Slurm(slurm) => self.resources.nodes.unwrap_or(slurm.request.nodes).get(),
            Place::Local | Place::Ssh(_) => 1,
        };
        // As many as there are GPUs for.
        let each = match self.resources.gpus {
            Some(gpus) if gpus > 0 => (target.gpus / gpus).max(1),
            _ => target.workers.get(),
        };
        locations.saturating_mul(each)
    }

    /// The shape with that name.
    pub fn parse(name: &str) -> Self {
        let needs = name.strip_suffix(']').and_then(|name| {
            let (target, needs) = name.rsplit_once('[')?;
            Some((target, read(needs)?))
        });
        let (target, resources) = needs.unwrap_or((name, Resources::default()));
        Self {
            target: target.to_owned(),
            resources,
        }
    }

    /// Its name.
    pub fn name(&self) -> String {
        let Resources {
            cpus,
            gpus,
            memory,
            time,
            nodes,
            ranks,
        } = &self.resources;
        let needs: Vec<String> = [
            ranks.map(|count| format!("ranks={count}")),
            nodes.map(|count| format!("nodes={count}")),
            cpus.map(|count| format!("cpus={count}")),
            gpus.map(|count| format!("gpus={count}")),
            memory.map(|memory| format!("memory={memory}")),
            time.map(|time| format!("time={}s", time.as_secs())),
        ]
        .into_iter()
        .flatten()
        .collect();
        if needs.is_empty() {
            return self.target.clone();
        }
        format!("{}[{}]", self.target, needs.join(","))
    }
}

fn read(needs: &str) -> Option<Resources> {
    let mut resources = Resources::default();
    for need in needs.split(',') {
        let (key, value) = need.split_once('=')?;
        match key {
            "ranks" => resources.ranks = Some(value.parse().ok()?),
            "nodes" => resources.nodes = Some(value.parse().ok()?),
            "cpus" => resources.cpus = Some(value.parse().ok()?),
            "gpus" => resources.gpus = Some(value.parse().ok()?),
            "memory" => resources.memory = Some(Memory::parse(value)?),
            "time" => {
                let seconds = value.strip_suffix('s')?.parse().ok()?;
                resources.time = Some(Duration::from_secs(seconds));
            }
            _ => return None,
        }
    }
    Some(resources)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_says_all() {
        for name in [
            "big",
            "ssh:me@[::1]",
            "big[ranks=4]",
            "big[ranks=8,nodes=2,cpus=2,gpus=1,memory=16G,time=3600s]",
        ] {
            assert_eq!(Shape::parse(name).name(), name);
        }
        assert_eq!(Shape::parse("big[ranks=4]").target, "big");
        assert_eq!(Shape::parse("ssh:me@[::1]").target, "ssh:me@[::1]");
    }
}
