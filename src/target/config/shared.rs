//! Reads a table of `[[shared]]`: files that several targets see, each at a path of its own.

use std::path::{Path, PathBuf};

use toml::Value;

use super::ConfigError;
use crate::spelling::nearest;

const KEYS: [&str; 3] = ["path", "targets", "paths"];

/// A shared tree: the path at which each target sees it, and the key that says so.
pub(super) type Tree = Result<Vec<(String, PathBuf, String)>, ConfigError>;

pub(super) fn read(index: usize, value: &Value, file: &Path) -> Tree {
    let invalid = |key: &str, problem: String| ConfigError::Invalid {
        path: format!("shared[{index}]{key}"),
        file: file.display().to_string(),
        line: None,
        problem,
    };
    let Value::Table(table) = value else {
        return Err(invalid("", "must be a table".to_owned()));
    };
    if let Some(key) = table.keys().find(|key| !KEYS.contains(&key.as_str())) {
        let problem = format!("unknown key{}", nearest(key, KEYS));
        return Err(invalid(&format!(".{key}"), problem));
    }
    let path = |value: &Value, key: &str| match value {
        Value::String(path) if Path::new(path).is_absolute() => Ok(PathBuf::from(path)),
        _ => Err(invalid(key, "must be an absolute path".to_owned())),
    };
    let tree: Vec<(String, PathBuf, String)> = match (
        table.get("path"),
        table.get("targets"),
        table.get("paths"),
    ) {
        (Some(common), Some(Value::Array(names)), None) => {
            let common = path(common, ".path")?;
            let named = names.iter().map(|name| match name {
                Value::String(name) => Ok((
                    name.clone(),
                    common.clone(),
                    format!("shared[{index}].targets"),
                )),
                _ => Err(invalid(
                    ".targets",
                    "must be a list of names of targets".to_owned(),
                )),
            });
            named.collect::<Result<_, _>>()?
        }
        (Some(_), Some(_), None) => {
            return Err(invalid(
                ".targets",
                "must be a list of names of targets".to_owned(),
            ));
        }
        (None, None, Some(Value::Table(paths))) => {
            let named = paths.iter().map(|(name, value)| {
                let key = format!(".paths.{name}");
                Ok((
                    name.clone(),
                    path(value, &key)?,
                    format!("shared[{index}]{key}"),
                ))
            });
            named.collect::<Result<_, _>>()?
        }
        (None, None, Some(_)) => {
            let problem =
                "must be a table: for each target the path at which it sees the same files";
            return Err(invalid(".paths", problem.to_owned()));
        }
        _ => {
            let problem = "must have `path` and `targets`, or `paths` where the path is not everywhere the same";
            return Err(invalid("", problem.to_owned()));
        }
    };
    if tree.len() < 2 {
        return Err(invalid(
            "",
            "must name two targets at least, `home` among them if it is one".to_owned(),
        ));
    }
    Ok(tree)
}
