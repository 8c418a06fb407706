//! What a job asks of a batch system, and whether what a cell needs fits into it.

use std::collections::BTreeMap;
use std::fmt;
use std::num::NonZeroU32;
use std::time::Duration;

use crate::cell::resources::{Memory, Resources};

/// What one job asks for. What is not said is the batch system's default.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// The partition, or queue.
    pub partition: Option<String>,
    /// The account that pays.
    pub account: Option<String>,
    /// The quality of service.
    pub qos: Option<String>,
    /// How long it may run.
    pub time: Option<Duration>,
    /// How many nodes.
    pub nodes: NonZeroU32,
    /// CPUs on each node.
    pub cpus: Option<NonZeroU32>,
    /// Memory on each node.
    pub memory: Option<Memory>,
    /// GPUs on each node.
    pub gpus: Option<Gpus>,
    /// Other generic resources on each node, in Slurm's words: `nvme:1`.
    pub gres: Option<String>,
    /// Features that nodes must have.
    pub constraint: Option<String>,
    /// Further options of the submitting command, by their long names.
    pub options: BTreeMap<String, Choice>,
}

impl Default for Request {
    fn default() -> Self {
        Self {
            partition: None,
            account: None,
            qos: None,
            time: None,
            nodes: NonZeroU32::MIN,
            cpus: None,
            memory: None,
            gpus: None,
            gres: None,
            constraint: None,
            options: BTreeMap::new(),
        }
    }
}

/// GPUs of a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gpus {
    /// Their kind, as the cluster calls it: `a100`.
    pub kind: Option<String>,
    /// How many.
    pub count: NonZeroU32,
}

impl fmt::Display for Gpus {
    /// As Slurm writes them, without `gpu:`.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.kind {
            Some(kind) => write!(formatter, "{kind}:{}", self.count),
            None => write!(formatter, "{}", self.count),
        }
    }
}

/// What is said of an option.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Choice {
    /// It is given.
    Given,
    /// It is not given, even if we would give it.
    Left,
    /// It has a value.
    Value(String),
}

impl Request {
    /// What a job must at least ask for so that a step with these resources fits into it, besides what this one asks for.
    pub fn raised(&self, step: &Resources) -> Self {
        let mut raised = self.clone();
        if let Some(nodes) = step.nodes {
            raised.nodes = raised.nodes.max(nodes);
        }
        let each = NodeShare::of(step, raised.nodes);
        raised.cpus = raised.cpus.max(each.cpus);
        raised.memory = raised.memory.max(each.memory);
        if let Some(count) = each.gpus {
            match &mut raised.gpus {
                Some(gpus) => gpus.count = gpus.count.max(count),
                None => raised.gpus = Some(Gpus { kind: None, count }),
            }
        }
        raised.time = raised.time.max(step.time);
        raised
    }

    /// Whether a step with these resources fits into what this asks for. What is left to the batch system's default counts as
    /// one CPU, and as nothing of all else, since nobody knows how much it is.
    pub fn fits(&self, step: &Resources) -> bool {
        let each = NodeShare::of(step, self.nodes);
        step.nodes.is_none_or(|nodes| nodes <= self.nodes)
            && each
                .cpus
                .is_none_or(|cpus| cpus <= self.cpus.unwrap_or(NonZeroU32::MIN))
            && each.memory <= self.memory
            && each.gpus <= self.gpus.as_ref().map(|gpus| gpus.count)
            && step.time <= self.time
    }
}

/// What a step needs on each of its nodes.
#[derive(Debug, PartialEq, Eq)]
struct NodeShare {
    cpus: Option<NonZeroU32>,
    memory: Option<Memory>,
    gpus: Option<NonZeroU32>,
}

impl NodeShare {
    /// Of a step that is spread over so many nodes, unless it says itself over how many.
    fn of(step: &Resources, nodes: NonZeroU32) -> Self {
        let ranks = step.ranks.unwrap_or(NonZeroU32::MIN);
        let nodes = step.nodes.unwrap_or(nodes);
        let ranks_a_node = ranks.get().div_ceil(nodes.get());
        let times = |one: NonZeroU32| {
            one.saturating_mul(NonZeroU32::new(ranks_a_node).unwrap_or(NonZeroU32::MIN))
        };
        let cpus = match (step.cpus, step.ranks) {
            (None, None) => None,
            (cpus, _) => Some(times(cpus.unwrap_or(NonZeroU32::MIN))),
        };
        Self {
            cpus,
            memory: step.memory.map(|memory| memory.times(ranks_a_node)),
            gpus: step.gpus.and_then(NonZeroU32::new).map(times),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(count: u32) -> NonZeroU32 {
        NonZeroU32::new(count).unwrap()
    }

    fn step(text: &str) -> Resources {
        let value = serde_json::from_str(text).unwrap();
        Resources::read(&value).unwrap()
    }

    #[test]
    fn a_step_that_asks_for_nothing_fits_anywhere() {
        assert!(Request::default().fits(&step("{}")));
        assert!(Request::default().fits(&step(r#"{"cpus": 1, "gpus": 0}"#)));
        assert_eq!(Request::default().raised(&step("{}")), Request::default());
    }

    #[test]
    fn what_is_raised_for_a_step_fits_it_and_no_less_does() {
        let steps = [
            r#"{"cpus": 4}"#,
            r#"{"gpus": 1}"#,
            r#"{"memory": "16G"}"#,
            r#"{"time": "00:30:00"}"#,
            r#"{"nodes": 2}"#,
            r#"{"ranks": 8}"#,
            r#"{"ranks": 8, "nodes": 2, "cpus": 2, "gpus": 1, "memory": "1G", "time": "1h"}"#,
        ];
        for text in steps {
            let step = step(text);
            assert!(!Request::default().fits(&step), "{text}");
            let raised = Request::default().raised(&step);
            assert!(raised.fits(&step), "{text}");
            assert_eq!(raised.raised(&step), raised, "{text}");
        }
    }

    #[test]
    fn resources_are_of_each_rank() {
        let raised = Request::default().raised(&step(
            r#"{"ranks": 5, "nodes": 2, "cpus": 2, "gpus": 1, "memory": "1G"}"#,
        ));
        assert_eq!(raised.nodes, count(2));
        assert_eq!(raised.cpus, Some(count(6)));
        assert_eq!(raised.memory, Memory::parse("3G"));
        assert_eq!(raised.gpus.unwrap().to_string(), "3");
    }

    #[test]
    fn ranks_are_spread_over_the_nodes_that_there_are() {
        let request = Request {
            nodes: count(2),
            cpus: Some(count(4)),
            ..Request::default()
        };
        assert!(request.fits(&step(r#"{"ranks": 8}"#)));
        assert!(!request.fits(&step(r#"{"ranks": 9}"#)));
        assert!(!request.fits(&step(r#"{"ranks": 8, "nodes": 1}"#)));
    }

    #[test]
    fn the_kind_of_gpus_stays() {
        let request = Request {
            gpus: Some(Gpus {
                kind: Some("a100".to_owned()),
                count: count(1),
            }),
            ..Request::default()
        };
        let raised = request.raised(&step(r#"{"gpus": 4}"#));
        assert_eq!(raised.gpus.unwrap().to_string(), "a100:4");
    }
}
