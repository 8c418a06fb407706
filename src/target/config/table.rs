//! Reads a table `[targets.x]`: what every type of target has, then what its own type adds.

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};

use toml::Value;

use super::ssh::{self, PATIENCE, is_host};
use super::{ConfigError, Place, Ssh, System, Target, slurm};
use crate::session::HOME;
use crate::spelling::nearest;

const TYPES: [&str; 6] = ["local", "ssh", "slurm", "pbs", "container", "kubernetes"];

/// The types that are clusters with a batch system.
const BATCH: [&str; 2] = ["slurm", "pbs"];
const LOCAL_KEYS: [&str; 8] = [
    "type", "python", "conda", "setup", "workdir", "workers", "env", "gpus",
];
const HOME_KEYS: [&str; 3] = ["type", "python", "env"];

pub(super) fn read(name: &str, value: &Value, file: &Path) -> Result<Target, ConfigError> {
    let invalid = |key: &str, problem: String| ConfigError::Invalid {
        path: if key.is_empty() {
            format!("targets.{name}")
        } else {
            format!("targets.{name}.{key}")
        },
        file: file.display().to_string(),
        line: None,
        problem,
    };
    let Value::Table(table) = value else {
        return Err(invalid("", "must be a table".to_owned()));
    };
    let kind = match table.get("type") {
        Some(Value::String(kind)) => kind.as_str(),
        Some(_) => return Err(invalid("type", "must be a string".to_owned())),
        None if name == HOME => "local",
        None => {
            return Err(invalid(
                "type",
                "is missing; write type = \"ssh\" for a far host, type = \"local\" for workers on this machine".to_owned(),
            ));
        }
    };
    if !TYPES.contains(&kind) {
        return Err(invalid(
            "type",
            format!("unknown type `{kind}`{}", nearest(kind, TYPES)),
        ));
    }
    let keys: &[&str] = match kind {
        "local" if name == HOME => &HOME_KEYS,
        "local" => &LOCAL_KEYS,
        "ssh" if name == HOME => {
            let problem = "`home` is this machine; give the host another name";
            return Err(invalid("type", problem.to_owned()));
        }
        "ssh" => &ssh::KEYS,
        "slurm" | "pbs" if name == HOME => {
            let problem = "`home` is this machine; give the cluster another name";
            return Err(invalid("type", problem.to_owned()));
        }
        "slurm" | "pbs" => &slurm::KEYS,
        kind => {
            let problem = format!(
                "targets of type `{kind}` are not supported yet; use `local`, `ssh`, `slurm` or `pbs`"
            );
            return Err(invalid("type", problem));
        }
    };
    if let Some(key) = table.keys().find(|key| !keys.contains(&key.as_str())) {
        return Err(invalid(
            key,
            format!("unknown key{}", nearest(key, keys.iter().copied())),
        ));
    }
    let text = |key: &str| match table.get(key) {
        None => Ok(None),
        Some(Value::String(text)) if !text.is_empty() => Ok(Some(text.clone())),
        Some(_) => Err(invalid(
            key,
            "must be a string that is not empty".to_owned(),
        )),
    };
    let workers = match table.get("workers") {
        None => NonZeroU32::MIN,
        Some(Value::Integer(count)) => u32::try_from(*count)
            .ok()
            .and_then(NonZeroU32::new)
            .ok_or_else(|| invalid("workers", "must be at least 1".to_owned()))?,
        Some(_) => return Err(invalid("workers", "must be a whole number".to_owned())),
    };
    let mut env = BTreeMap::new();
    match table.get("env") {
        None => {}
        Some(Value::Table(variables)) => {
            for (variable, value) in variables {
                let Value::String(value) = value else {
                    return Err(invalid(
                        &format!("env.{variable}"),
                        "must be a string".to_owned(),
                    ));
                };
                if variable.is_empty() || variable.contains(['=', '\0']) || value.contains('\0') {
                    let problem = "cannot be a variable of an environment".to_owned();
                    return Err(invalid(
                        &format!("env.{}", variable.escape_debug()),
                        problem,
                    ));
                }
                env.insert(variable.clone(), value.clone());
            }
        }
        Some(_) => return Err(invalid("env", "must be a table of strings".to_owned())),
    }
    let gpus = match table.get("gpus") {
        // Batch systems have their own way of asking.
        _ if BATCH.contains(&kind) => 0,
        None => 0,
        Some(Value::Integer(count)) => {
            u32::try_from(*count).map_err(|_| invalid("gpus", "must be 0 or more".to_owned()))?
        }
        Some(_) => return Err(invalid("gpus", "must be a whole number".to_owned())),
    };
    let place = if kind == "ssh" {
        let host = text("host")?.ok_or_else(|| {
            let problem = "is missing: an alias of ~/.ssh/config, or user@host:port";
            invalid("host", problem.to_owned())
        })?;
        if !is_host(&host) {
            let problem =
                format!("`{host}` is no host: give an alias of ~/.ssh/config, or user@host:port");
            return Err(invalid("host", problem));
        }
        let port = match table.get("port") {
            None => None,
            Some(Value::Integer(port)) => Some(
                u16::try_from(*port)
                    .ok()
                    .filter(|port| *port > 0)
                    .ok_or_else(|| invalid("port", "must be from 1 to 65535".to_owned()))?,
            ),
            Some(_) => return Err(invalid("port", "must be a whole number".to_owned())),
        };
        let transports = ["russh", "openssh"];
        let openssh = match text("transport")?.as_deref() {
            None | Some("russh") => false,
            Some("openssh") => true,
            Some(other) => {
                let problem = format!("unknown transport `{other}`{}", nearest(other, transports));
                return Err(invalid("transport", problem));
            }
        };
        let patience = match table.get("patience") {
            None => PATIENCE,
            Some(Value::String(text)) => humantime::parse_duration(text).map_err(|error| {
                invalid(
                    "patience",
                    format!("`{text}` is no time ({error}); write \"90s\" or \"10m\""),
                )
            })?,
            Some(_) => {
                let problem = "must be a time in quotes, such as \"90s\" or \"10m\"";
                return Err(invalid("patience", problem.to_owned()));
            }
        };
        Place::Ssh(Ssh {
            host,
            user: text("user")?,
            port,
            config: text("ssh_config")?.map(|path| PathBuf::from(from_file(file, &path))),
            openssh,
            patience,
        })
    } else if BATCH.contains(&kind) {
        let mut slurm = slurm::read(table).map_err(|(key, problem)| invalid(&key, problem))?;
        if kind == "pbs" {
            slurm.system = System::Pbs;
        }
        Place::Slurm(Box::new(slurm))
    } else {
        Place::Local
    };
    let (python, conda) = (text("python")?, text("conda")?);
    if python.is_some() && conda.is_some() {
        let problem = "cannot stand beside `python`: the environment has its own";
        return Err(invalid("conda", problem.to_owned()));
    }
    // On this machine a path with a slash is relative to the file; a bare name is looked for on PATH. Paths on
    // a far host are relative to the user's home there.
    let path = |path: String| match place {
        Place::Local => from_file(file, &path),
        Place::Ssh(_) | Place::Slurm(_) => path,
    };
    Ok(Target {
        python: python.map(|python| match python.contains('/') {
            true => path(python),
            false => python,
        }),
        conda,
        setup: text("setup")?,
        workdir: text("workdir")?.map(|workdir| PathBuf::from(path(workdir))),
        workers,
        gpus: match &place {
            Place::Slurm(slurm) => slurm
                .request
                .gpus
                .as_ref()
                .map_or(0, |gpus| gpus.count.get()),
            Place::Local | Place::Ssh(_) => gpus,
        },
        env,
        place: place.clone(),
        ..Target::plain(name, Some(file), place)
    })
}

/// A path as a file gives it: relative to the file, unless it starts at the root or at `~`.
pub(super) fn from_file(file: &Path, path: &str) -> String {
    if path.starts_with('~') {
        path.to_owned()
    } else {
        let base = file.parent().unwrap_or(Path::new(""));
        base.join(path).display().to_string()
    }
}
