//! The workflow metadata as types, from which the published JSON Schema is generated.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::resources::Resources;

/// What stands under `workflow` in a cell's metadata.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(title = "Cellferry workflow metadata", transform = as_jupyter_workflow_writes_it)]
pub struct Workflow {
    /// Where the cell runs; `home` if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target: Option<Target>,
    /// What the cell reads and binds, where the source alone does not say it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub step: Option<Step>,
    /// Ids, tags or names of cells that must run before this one.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub after: Vec<String>,
    /// How many more times the cell runs if its worker dies under it; 1 if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retry: Option<u32>,
    /// What the step needs of a machine.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resources: Option<Resources>,
    /// The cell's language; the kernel's own if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub language: Option<String>,
    /// The version of Jupyter-workflow's schema: `v1.0`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
}

/// Where a cell runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum Target {
    /// The name of a target in `cellferry.toml`, or `home`.
    Name(String),
    /// The long form of Jupyter-workflow.
    Object {
        /// The name of a target.
        deployment: String,
    },
}

impl Target {
    /// The target's name.
    pub fn name(&self) -> &str {
        match self {
            Self::Name(name) | Self::Object { deployment: name } => name,
        }
    }
}

/// What a step reads and binds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(transform = step_as_jupyter_workflow_writes_it)]
pub struct Step {
    /// Names that the step reads, in addition to those found in its source.
    #[serde(rename = "in")]
    pub inputs: Vec<Element>,
    /// Names that the step binds or changes, in addition to those found.
    #[serde(rename = "out")]
    pub outputs: Vec<Element>,
    /// Whether names that the source reads are inputs; if not, only `in` counts.
    pub autoin: bool,
}

impl Step {
    /// The outputs that become lists by rank.
    pub fn gathered(&self) -> impl Iterator<Item = &str> {
        self.outputs.iter().filter_map(|element| match element {
            Element::Object {
                name, gather: true, ..
            } => Some(name.as_str()),
            _ => None,
        })
    }

    /// The files that it reads, and those that it makes.
    pub fn files(&self) -> Files {
        let files = |elements: &[Element]| {
            elements
                .iter()
                .filter_map(Element::files)
                .cloned()
                .collect()
        };
        Files {
            inputs: files(&self.inputs),
            outputs: files(&self.outputs),
        }
    }
}

/// The files of a step.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Files {
    /// Brought to the step's working directory before it runs.
    pub inputs: Vec<FileElement>,
    /// Brought home after it has run.
    pub outputs: Vec<FileElement>,
}

impl Files {
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.inputs.is_empty() && self.outputs.is_empty()
    }
}

impl Default for Step {
    fn default() -> Self {
        Self {
            inputs: Vec::new(),
            outputs: Vec::new(),
            autoin: true,
        }
    }
}

/// One input or output.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum Element {
    /// A variable.
    Name(String),
    /// The long form.
    Object {
        /// The variable, or for `control` a label.
        name: String,
        /// What it is.
        #[serde(rename = "type", default)]
        kind: ElementType,
        /// Of an output of a step with MPI ranks: the list of all ranks' values, by rank, instead of that of rank 0.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        gather: bool,
    },
    /// Files.
    File(FileElement),
}

impl Element {
    /// The variable that is meant; none for files, and for an element that only orders steps.
    pub fn variable(&self) -> Option<&str> {
        match self {
            Self::Name(name)
            | Self::Object {
                name,
                kind: ElementType::Name,
                ..
            } => Some(name),
            Self::Object {
                kind: ElementType::Control,
                ..
            }
            | Self::File(_) => None,
        }
    }

    /// The files that are meant, if they are.
    pub fn files(&self) -> Option<&FileElement> {
        match self {
            Self::File(files) => Some(files),
            Self::Name(_) | Self::Object { .. } => None,
        }
    }
}

/// Files and directories that a step reads or makes. They have a `value`, or a variable says where they are: the one of
/// `valueFrom`, else of `name`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct FileElement {
    /// What it is.
    #[serde(rename = "type")]
    pub kind: FileType,
    /// Beside a `value` only what messages call the files; else the variable that holds a path or a list of paths.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Paths or glob patterns, relative to the working directory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub value: Option<Paths>,
    /// The variable that holds a path or a list of paths, if it is not the `name`.
    #[serde(rename = "valueFrom", skip_serializing_if = "Option::is_none")]
    pub value_from: Option<String>,
}

impl FileElement {
    /// The paths that the metadata itself gives.
    pub fn paths(&self) -> &[String] {
        match &self.value {
            Some(Paths::One(path)) => std::slice::from_ref(path),
            Some(Paths::Many(paths)) => paths,
            None => &[],
        }
    }

    /// The variable that holds the paths, if the metadata does not give them.
    pub fn variable(&self) -> Option<&str> {
        match self.value {
            Some(_) => None,
            None => self.value_from.as_deref().or(self.name.as_deref()),
        }
    }
}

/// What says that an element means files.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum FileType {
    /// Files.
    File,
}

/// One path or several, each of which may be a glob pattern.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum Paths {
    /// One.
    One(String),
    /// Several.
    Many(Vec<String>),
}

/// What an input or output is that is no file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ElementType {
    /// A variable of the notebook.
    #[default]
    Name,
    /// Nothing is carried: it only orders steps.
    Control,
}

/// Keys that Jupyter-workflow writes and that change nothing here.
fn as_jupyter_workflow_writes_it(schema: &mut schemars::Schema) {
    let object = json!({"type": "object"});
    also(
        schema,
        [
            ("interpreter", json!({"const": "ipython"})),
            ("cell_id", json!({"type": "string"})),
            ("deployments", object.clone()),
            ("models", object.clone()),
            ("serializers", object),
        ],
    );
}

fn step_as_jupyter_workflow_writes_it(schema: &mut schemars::Schema) {
    also(schema, [("background", json!({"const": false}))]);
}

fn also<const N: usize>(schema: &mut schemars::Schema, keys: [(&str, Value); N]) {
    if let Some(Value::Object(properties)) = schema.get_mut("properties") {
        properties.extend(keys.map(|(key, value)| (key.to_owned(), value)));
    }
}

/// The schema of `workflow`, as published in `docs/metadata.schema.json`.
pub fn published() -> String {
    let schema = schemars::schema_for!(Workflow);
    let mut text = serde_json::to_string_pretty(&schema).unwrap_or_default();
    text.push('\n');
    text
}
