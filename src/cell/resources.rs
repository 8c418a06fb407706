//! What a step needs of a machine: `resources` in its metadata.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::num::NonZeroU32;
use std::time::Duration;

use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::Value;

use super::read::{kind, shown};
use crate::spelling::nearest;

/// The keys of `resources`.
const KEYS: [&str; 6] = ["cpus", "gpus", "memory", "time", "nodes", "ranks"];

/// What a step needs. CPUs, GPUs and memory are of each rank where it has ranks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resources {
    /// How many CPUs.
    pub cpus: Option<NonZeroU32>,
    /// How many GPUs; 0 says that it needs none.
    pub gpus: Option<u32>,
    /// How much memory.
    pub memory: Option<Memory>,
    /// For how long it runs, at most.
    pub time: Option<Duration>,
    /// Over how many nodes.
    pub nodes: Option<NonZeroU32>,
    /// How many MPI ranks, each a process that runs the cell.
    pub ranks: Option<NonZeroU32>,
}

/// An amount of memory, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Memory(u64);

impl Memory {
    /// Reads `16G`, `512 MB`, `1.5T`: a number with a unit, each 1024 times the one before, as batch systems count.
    pub fn parse(text: &str) -> Option<Self> {
        let text = text.trim();
        let unit = text.find(|c: char| c.is_ascii_alphabetic())?;
        let (number, unit) = text.split_at(unit);
        let power = match unit.to_ascii_lowercase().as_str() {
            "k" | "kb" | "kib" => 1,
            "m" | "mb" | "mib" => 2,
            "g" | "gb" | "gib" => 3,
            "t" | "tb" | "tib" => 4,
            _ => return None,
        };
        let number = number.trim();
        if !number.chars().all(|c| c.is_ascii_digit() || c == '.') {
            return None;
        }
        let bytes = number.parse::<f64>().ok()? * 1024_f64.powi(power);
        // A thousand petabytes are a mistake.
        (1.0..1e18).contains(&bytes).then_some(Self(bytes as u64))
    }

    /// In whole megabytes (of 1024 × 1024 bytes), rounded up.
    pub fn megabytes(self) -> u64 {
        self.0.div_ceil(1 << 20)
    }

    /// So many times as much.
    pub fn times(self, count: u32) -> Self {
        Self(self.0.saturating_mul(count.into()))
    }
}

impl fmt::Display for Memory {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.megabytes() {
            megabytes if megabytes % 1024 == 0 => write!(formatter, "{}G", megabytes / 1024),
            megabytes => write!(formatter, "{megabytes}M"),
        }
    }
}

/// Reads a time as batch systems write it (`00:30:00`, `1-12:00:00`) or with units (`90s`, `30m`, `1h 30m`).
///
/// # Errors
/// What is wrong with it.
pub fn read_time(text: &str) -> Result<Duration, String> {
    let wrong = || {
        format!(
            "`{}` is no time; write \"00:30:00\" (hours, minutes, seconds), \"1-12:00:00\" (a day and a half) or \"90m\"",
            shown(text)
        )
    };
    let text = text.trim();
    let time = if text.contains(':') {
        let (days, clock) = match text.split_once('-') {
            Some((days, clock)) => (days.parse().map_err(|_| wrong())?, clock),
            None => (0, text),
        };
        let parts: Vec<u64> = clock
            .split(':')
            .map(|part| {
                let digits = !part.is_empty() && part.chars().all(|c| c.is_ascii_digit());
                part.parse().ok().filter(|_| digits).ok_or_else(wrong)
            })
            .collect::<Result<_, _>>()?;
        // Two parts are minutes and seconds to Slurm, and hours and minutes to most people.
        let [hours, minutes, seconds] = parts[..] else {
            return Err(wrong());
        };
        if minutes > 59 || seconds > 59 || days > 0 && hours > 23 || days.max(hours) > 99_999 {
            return Err(wrong());
        }
        let days: u64 = days;
        Duration::from_secs(((days * 24 + hours) * 60 + minutes) * 60 + seconds)
    } else {
        humantime::parse_duration(text).map_err(|_| wrong())?
    };
    if time < Duration::from_secs(1) {
        return Err("must be at least a second".to_owned());
    }
    Ok(time)
}

impl Resources {
    /// Reads what stands under `resources`.
    ///
    /// # Errors
    /// Each key with what is wrong with it; an empty one for what is wrong with all of it.
    pub fn read(value: &Value) -> Result<Self, BTreeMap<String, String>> {
        let mut errors = BTreeMap::new();
        let Value::Object(map) = value else {
            let problem = format!("must be an object, not {}", kind(value));
            return Err([(String::new(), problem)].into());
        };
        let mut resources = Self::default();
        for (key, value) in map.iter().filter(|(_, value)| !value.is_null()) {
            let outcome = match key.as_str() {
                "cpus" => positive(value).map(|count| resources.cpus = Some(count)),
                "nodes" => positive(value).map(|count| resources.nodes = Some(count)),
                "ranks" => positive(value).map(|count| resources.ranks = Some(count)),
                "gpus" => count(value).map(|count| resources.gpus = Some(count)),
                "memory" => memory(value).map(|memory| resources.memory = Some(memory)),
                "time" => time(value).map(|time| resources.time = Some(time)),
                _ => Err(format!("unknown key{}", nearest(key, KEYS))),
            };
            if let Err(problem) = outcome {
                errors.insert(shown(key), problem);
            }
        }
        if let (Some(nodes), Some(ranks)) = (resources.nodes, resources.ranks)
            && nodes > ranks
        {
            let problem = format!("{ranks} ranks do not reach over {nodes} nodes");
            errors.insert("ranks".to_owned(), problem);
        }
        if errors.is_empty() {
            Ok(resources)
        } else {
            Err(errors)
        }
    }
}

/// As it is written in a cell's metadata.
#[derive(Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "Resources")]
struct Written {
    /// CPUs, of each rank where there are ranks.
    #[serde(skip_serializing_if = "Option::is_none")]
    cpus: Option<NonZeroU32>,
    /// GPUs, of each rank where there are ranks, for the step alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    gpus: Option<u32>,
    /// Memory, such as `16G`, of each rank where there are ranks.
    #[serde(skip_serializing_if = "Option::is_none")]
    memory: Option<String>,
    /// For how long it runs at most: `00:30:00`, `90m`.
    #[serde(skip_serializing_if = "Option::is_none")]
    time: Option<String>,
    /// Over how many nodes.
    #[serde(skip_serializing_if = "Option::is_none")]
    nodes: Option<NonZeroU32>,
    /// How many MPI ranks, each a process that runs the cell.
    #[serde(skip_serializing_if = "Option::is_none")]
    ranks: Option<NonZeroU32>,
}

impl Serialize for Resources {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let written = Written {
            cpus: self.cpus,
            gpus: self.gpus,
            memory: self.memory.map(|memory| memory.to_string()),
            time: self.time.map(|time| format!("{}s", time.as_secs())),
            nodes: self.nodes,
            ranks: self.ranks,
        };
        written.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Resources {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::read(&Value::deserialize(deserializer)?).map_err(|errors| {
            let told = errors
                .iter()
                .map(|(key, problem)| format!("{key}: {problem}"));
            serde::de::Error::custom(told.collect::<Vec<_>>().join("; "))
        })
    }
}

impl JsonSchema for Resources {
    fn schema_name() -> Cow<'static, str> {
        Written::schema_name()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        Written::json_schema(generator)
    }
}

fn count(value: &Value) -> Result<u32, String> {
    match value.as_u64().map(u32::try_from) {
        // More than any machine has.
        Some(Ok(count)) if count <= 10_000_000 => Ok(count),
        Some(_) => Err("is too many".to_owned()),
        None if value.is_number() => Err("must be a whole number".to_owned()),
        None => Err(format!("must be a whole number, not {}", kind(value))),
    }
}

fn positive(value: &Value) -> Result<NonZeroU32, String> {
    NonZeroU32::new(count(value)?).ok_or_else(|| "must be at least 1".to_owned())
}

fn memory(value: &Value) -> Result<Memory, String> {
    match value {
        Value::String(text) => Memory::parse(text).ok_or_else(|| {
            format!(
                "`{}` is no amount of memory; write \"16G\" or \"512M\"",
                shown(text)
            )
        }),
        Value::Number(number) => Err(format!(
            "{number} of what? Write \"{number}G\" or \"{number}M\""
        )),
        other => Err(format!(
            "must be an amount in quotes, such as \"16G\", not {}",
            kind(other)
        )),
    }
}

fn time(value: &Value) -> Result<Duration, String> {
    match value {
        Value::String(text) => read_time(text),
        Value::Number(number) => Err(format!(
            "{number} of what? Write \"{number}m\" or \"{number}h\""
        )),
        other => Err(format!(
            "must be a time in quotes, such as \"00:30:00\", not {}",
            kind(other)
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn problem(value: Value) -> String {
        let errors = Resources::read(&value).unwrap_err();
        let told: Vec<String> = errors
            .iter()
            .map(|(key, problem)| format!("{key}: {problem}"))
            .collect();
        told.join("; ")
    }

    #[test]
    fn all_of_it_is_read() {
        let all = json!({"cpus": 4, "gpus": 1, "memory": "16G", "time": "00:30:00", "nodes": 2, "ranks": 8});
        let read = Resources::read(&all).unwrap();
        assert_eq!(
            (read.cpus, read.gpus, read.nodes, read.ranks),
            (
                NonZeroU32::new(4),
                Some(1),
                NonZeroU32::new(2),
                NonZeroU32::new(8)
            )
        );
        assert_eq!(read.memory, Some(Memory(16 << 30)));
        assert_eq!(read.time, Some(Duration::from_secs(1800)));
        assert_eq!(
            Resources::read(&json!({"cpus": null})),
            Ok(Resources::default())
        );
    }

    #[test]
    fn memory_is_counted_as_batch_systems_do() {
        for (text, bytes) in [
            ("512M", 512 << 20),
            ("16GB", 16 << 30),
            ("1.5 GiB", 3 << 29),
            ("2t", 2 << 40),
            ("100k", 100 << 10),
        ] {
            assert_eq!(Memory::parse(text), Some(Memory(bytes)), "{text}");
        }
        for text in [
            "", "G", "16", "16X", "-1G", "1e3G", "0M", "inf G", "9999999T",
        ] {
            assert_eq!(Memory::parse(text), None, "{text}");
        }
        assert_eq!(Memory(16 << 30).to_string(), "16G");
        assert_eq!(Memory((512 << 20) + 1).to_string(), "513M");
    }

    #[test]
    fn times_are_read_as_people_and_batch_systems_write_them() {
        for (text, seconds) in [
            ("00:30:00", 1800),
            ("1-12:00:00", 129_600),
            ("100:00:00", 360_000),
            ("90s", 90),
            ("1h 30m", 5400),
            ("2d", 172_800),
        ] {
            assert_eq!(read_time(text), Ok(Duration::from_secs(seconds)), "{text}");
        }
        for text in [
            "",
            "30",
            "30:00",
            "00:61:00",
            "-1:00:00",
            "1-24:00:00",
            "soon",
            "+1:00:00",
            "0s",
        ] {
            assert!(read_time(text).is_err(), "{text}");
        }
    }

    #[test]
    fn what_is_wrong_is_told_key_by_key() {
        let told = problem(json!({"cpu": 2, "gpus": -1, "memory": 16, "time": 30, "ranks": 0}));
        for expected in [
            "cpu: unknown key; did you mean `cpus`?",
            "gpus: must be a whole number",
            "memory: 16 of what? Write \"16G\" or \"16M\"",
            "time: 30 of what? Write \"30m\" or \"30h\"",
            "ranks: must be at least 1",
        ] {
            assert!(told.contains(expected), "{told}");
        }
        assert!(
            problem(json!({"nodes": 3, "ranks": 2})).contains("2 ranks do not reach over 3 nodes")
        );
        assert!(problem(json!([1])).contains("must be an object, not a list"));
        assert!(problem(json!({"cpus": 1e12})).contains("cpus: "));
    }
}
