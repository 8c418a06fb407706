//! Reads the deployments that Jupyter-workflow writes into notebooks, as far as they can be targets.

use std::path::Path;

use serde_json::Value as Json;

use super::table::from_file;
use super::{ConfigError, FILE, Place, Target};
use crate::spelling::nearest;

/// Reads a deployment as Jupyter-workflow writes it into a notebook.
pub(super) fn read(name: &str, value: &Json, notebook: &Path) -> Result<Target, ConfigError> {
    let invalid = |key: &str, problem: String| ConfigError::Invalid {
        path: format!("workflow.deployments.{name}{key}"),
        file: notebook.display().to_string(),
        line: None,
        problem,
    };
    let Json::Object(map) = value else {
        return Err(invalid("", "must be an object".to_owned()));
    };
    match map.get("type") {
        Some(Json::String(kind)) if kind == "local" => {}
        Some(Json::String(kind)) => {
            let problem = format!(
                "deployments of type `{kind}` are not supported yet; define `{name}` in `{FILE}` with type = \"local\""
            );
            return Err(invalid(".type", problem));
        }
        Some(_) => return Err(invalid(".type", "must be a string".to_owned())),
        None => return Err(invalid(".type", "is missing".to_owned())),
    }
    let keys = ["type", "config", "external", "workdir", "wraps"];
    let mut workdir = None;
    for (key, value) in map {
        let path = format!(".{key}");
        match (key.as_str(), value) {
            (_, Json::Null) | ("type", _) | ("external", Json::Bool(_)) => {}
            ("config", Json::Object(config)) if config.is_empty() => {}
            ("workdir", Json::String(path)) if path.is_empty() => {}
            ("workdir", Json::String(path)) => workdir = Some(from_file(notebook, path).into()),
            ("config", Json::Object(_)) | ("wraps", _) => {
                return Err(invalid(
                    &path,
                    "not supported yet for type `local`".to_owned(),
                ));
            }
            ("config", _) => return Err(invalid(&path, "must be an object".to_owned())),
            ("external", _) => return Err(invalid(&path, "must be true or false".to_owned())),
            ("workdir", _) => return Err(invalid(&path, "must be a string".to_owned())),
            _ => return Err(invalid(&path, format!("unknown key{}", nearest(key, keys)))),
        }
    }
    Ok(Target {
        workdir,
        ..Target::plain(name, Some(notebook), Place::Local)
    })
}
