//! A cell's workflow metadata: where it stands, what it may say, what is wrong with it.
//!
//! It stands under `workflow` in the cell's metadata or in `#|` lines at the top of the source,
//! which win key by key. Wrong metadata never runs the cell, and what has a meaning that is not
//! built yet is refused, never ignored.

mod lines;
mod read;
pub mod resources;
pub mod schema;

use std::fmt;

use serde_json::{Map, Value};

pub use schema::{Element, ElementType, FileElement, Files, Step, Target, Workflow};

/// One thing that is wrong with a cell's metadata.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MetadataError {
    /// Where, such as `workflow.step.in[1].type`.
    pub path: String,
    /// What is wrong, and the nearest valid word.
    pub problem: String,
}

impl fmt::Display for MetadataError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "`{}`: {}", self.path, self.problem)
    }
}

/// Reads the workflow metadata of a cell: `None` for a cell without any.
///
/// `metadata` is the cell's whole metadata, `comment` what starts a comment in its language.
/// All that is wrong is reported together.
pub fn resolve(
    metadata: &Value,
    source: &str,
    comment: &str,
) -> Result<Option<Workflow>, Vec<MetadataError>> {
    let mut errors = Vec::new();
    let short = lines::options(source, comment, &mut errors);
    let mut merged = match metadata.get("workflow") {
        None | Some(Value::Null) => Map::new(),
        Some(Value::Object(workflow)) => workflow.clone(),
        Some(other) => {
            let problem = format!("must be an object, not {}", read::kind(other));
            errors.push(MetadataError {
                path: "workflow".to_owned(),
                problem,
            });
            Map::new()
        }
    };
    let given = metadata.get("workflow").is_some_and(Value::is_object) || !short.is_empty();
    // Only what belongs to the step goes into it; the rest stands beside it.
    let mut step = Map::new();
    for (key, value) in short {
        if read::STEP_KEYS.contains(&key.as_str()) {
            step.insert(key, value);
        } else {
            merged.insert(key, value);
        }
    }
    if !step.is_empty() {
        let below = merged
            .entry("step")
            .or_insert_with(|| Value::Object(Map::new()));
        // A step of a wrong type is an error of its own.
        if let Value::Object(below) = below {
            below.extend(step);
        }
    }
    let workflow = if given {
        Some(read::workflow(&merged, &mut errors))
    } else {
        None
    };
    if errors.is_empty() {
        Ok(workflow)
    } else {
        Err(errors)
    }
}

/// All errors of a cell as one message.
pub fn report(errors: &[MetadataError]) -> String {
    errors
        .iter()
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join("\n")
}

#[cfg(test)]
mod tests;
