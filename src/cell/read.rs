//! Reads workflow metadata value by value, noting for each fault where it is.

use std::collections::BTreeSet;

use serde_json::{Map, Value};

use super::MetadataError;
use super::resources::Resources;
use super::schema::{Element, ElementType, FileElement, FileType, Paths, Step, Target, Workflow};
use crate::spelling::nearest;

/// Keys under `workflow`.
const WORKFLOW_KEYS: [&str; 15] = [
    "target",
    "step",
    "resources",
    "after",
    "language",
    "retry",
    "cache",
    "when",
    "repeat",
    "version",
    "interpreter",
    "deployments",
    "models",
    "serializers",
    "cell_id",
];

/// Keys under `workflow.step`.
pub const STEP_KEYS: [&str; 6] = ["in", "out", "autoin", "scatter", "background", "workdir"];

/// Keys of the short form.
pub const SHORT_KEYS: [&str; 12] = [
    "target",
    "in",
    "out",
    "autoin",
    "scatter",
    "resources",
    "after",
    "language",
    "retry",
    "cache",
    "when",
    "repeat",
];

const TARGET_KEYS: [&str; 6] = [
    "deployment",
    "model",
    "locations",
    "resources",
    "service",
    "workdir",
];
const INPUT_TYPES: [&str; 4] = ["name", "file", "env", "control"];
const OUTPUT_TYPES: [&str; 3] = ["name", "file", "control"];
const INPUT_KEYS: [&str; 6] = [
    "name",
    "type",
    "value",
    "valueFrom",
    "serializer",
    "scatter",
];
const OUTPUT_KEYS: [&str; 6] = ["name", "type", "value", "valueFrom", "serializer", "gather"];
const SCATTER_KEYS: [&str; 4] = ["items", "method", "size", "num"];
const REPEAT_KEYS: [&str; 2] = ["while", "max"];

/// Whether a key is so near to one of ours that it was surely meant for us.
pub fn is_near(key: &str) -> bool {
    if key.len() > 20 {
        return false;
    }
    let lower = key.to_lowercase();
    SHORT_KEYS.iter().any(|known| {
        let limit = match known.len() {
            0..=3 => 0,
            4..=5 => 1,
            _ => 2,
        };
        strsim::damerau_levenshtein(&lower, known) <= limit
    })
}

/// The most faults that are told of one cell.
const MOST: usize = 30;

/// The user's own words in a message: on one line, without backticks, cut where they get long.
pub fn shown(text: &str) -> String {
    let mut short: String = text.chars().take(40).flat_map(char::escape_debug).collect();
    if text.chars().nth(40).is_some() {
        short.push('…');
    }
    short.replace('`', "'")
}

/// What a value is, for messages.
pub fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

struct Reader<'a> {
    errors: &'a mut Vec<MetadataError>,
}

/// Reads what stands under `workflow`.
pub fn workflow(map: &Map<String, Value>, errors: &mut Vec<MetadataError>) -> Workflow {
    let mut reader = Reader { errors };
    reader.known(map, "workflow", &WORKFLOW_KEYS);
    let mut workflow = Workflow::default();
    for (key, value) in map {
        let path = format!("workflow.{key}");
        match (key.as_str(), value) {
            (_, Value::Null) => {}
            ("target", value) => workflow.target = reader.target(value, &path),
            ("step", Value::Object(step)) => workflow.step = Some(reader.step(step, &path)),
            ("step", other) => reader.must_be("an object", other, &path),
            ("after", value) => workflow.after = reader.texts(value, &path),
            ("version", value) => workflow.version = reader.version(value, &path),
            ("interpreter", Value::String(name)) if name == "ipython" => {}
            ("interpreter", Value::String(_)) => {
                reader.later("an interpreter other than `ipython`", &path)
            }
            ("interpreter", other) => reader.must_be("a string", other, &path),
            ("language", Value::String(name)) if name == "python" => {
                workflow.language = Some(name.clone())
            }
            ("language", Value::String(name)) => {
                reader.later(&format!("language `{}`", shown(name)), &path)
            }
            ("language", other) => reader.must_be("a string", other, &path),
            ("resources", value) => {
                workflow.resources = reader.resources(value, &path);
            }
            ("retry", value) => workflow.retry = reader.count(value, &path),
            ("cache", Value::Bool(_)) => reader.later("cache", &path),
            ("cache", other) => reader.must_be("a boolean", other, &path),
            ("when", Value::String(_)) => reader.later("when", &path),
            ("when", other) => reader.must_be("a Python expression as a string", other, &path),
            ("repeat", Value::Object(repeat)) => {
                reader.known(repeat, &path, &REPEAT_KEYS);
                reader.later("repeat", &path);
            }
            ("repeat", other) => reader.must_be("an object", other, &path),
            // Jupyter-workflow's client sends these along with each cell. What they define is
            // refused where it is used.
            ("deployments" | "models" | "serializers", Value::Object(_)) => {}
            ("deployments" | "models" | "serializers", other) => {
                reader.must_be("an object", other, &path)
            }
            ("cell_id", Value::String(_)) => {}
            ("cell_id", other) => reader.must_be("a string", other, &path),
            _ => {}
        }
    }
    workflow
}

impl Reader<'_> {
    fn fault(&mut self, path: &str, problem: String) {
        let (path, problem) = match self.errors.len() {
            0..MOST => (path, problem),
            MOST => ("workflow", "and more that is wrong".to_owned()),
            _ => return,
        };
        self.errors.push(MetadataError {
            path: path.to_owned(),
            problem,
        });
    }

    fn must_be(&mut self, wanted: &str, found: &Value, path: &str) {
        self.fault(path, format!("must be {wanted}, not {}", kind(found)));
    }

    fn later(&mut self, what: &str, path: &str) {
        self.fault(path, format!("{what} is not supported yet"));
    }

    fn known(&mut self, map: &Map<String, Value>, path: &str, keys: &[&str]) {
        for key in map.keys().filter(|key| !keys.contains(&key.as_str())) {
            self.fault(
                &format!("{path}.{}", shown(key)),
                format!("unknown key{}", nearest(key, keys.iter().copied())),
            );
        }
    }

    fn count(&mut self, value: &Value, path: &str) -> Option<u32> {
        let count = value.as_u64().and_then(|count| u32::try_from(count).ok());
        if count.is_none() {
            self.must_be("a whole number that is not negative", value, path);
        }
        count
    }

    fn resources(&mut self, value: &Value, path: &str) -> Option<Resources> {
        match Resources::read(value) {
            Ok(resources) => Some(resources),
            Err(problems) => {
                for (key, problem) in problems {
                    let path = match key.as_str() {
                        "" => path.to_owned(),
                        key => format!("{path}.{key}"),
                    };
                    self.fault(&path, problem);
                }
                None
            }
        }
    }

    fn version(&mut self, value: &Value, path: &str) -> Option<String> {
        match value {
            Value::String(version) if version == "v1.0" => Some(version.clone()),
            Value::String(version) => {
                self.fault(
                    path,
                    format!("unknown version `{}`; valid: `v1.0`", shown(version)),
                );
                None
            }
            other => {
                self.must_be("a string", other, path);
                None
            }
        }
    }

    fn target(&mut self, value: &Value, path: &str) -> Option<Target> {
        match value {
            Value::String(name) if !name.trim().is_empty() => {
                Some(Target::Name(name.trim().to_owned()))
            }
            Value::String(_) => {
                self.fault(path, "must name a target; it is empty".to_owned());
                None
            }
            Value::Object(map) => self.target_object(map, path),
            other => {
                self.must_be("the name of a target or an object", other, path);
                None
            }
        }
    }

    fn target_object(&mut self, map: &Map<String, Value>, path: &str) -> Option<Target> {
        self.known(map, path, &TARGET_KEYS);
        let mut deployment = None;
        for (key, value) in map {
            let path = format!("{path}.{key}");
            match (key.as_str(), value) {
                (_, Value::Null) => {}
                // `model` and `resources` are the older words of Jupyter-workflow.
                ("deployment" | "model", Value::String(name)) if !name.trim().is_empty() => {
                    deployment = Some(name.trim().to_owned());
                }
                ("deployment" | "model", Value::Object(_)) => {
                    self.later("a deployment defined in the cell", &path);
                    self.fault(
                        &path,
                        "name a target and define it in cellferry.toml".to_owned(),
                    );
                }
                ("deployment" | "model", other) => {
                    self.must_be("the name of a target", other, &path)
                }
                ("locations" | "resources", Value::Number(count)) if count.as_u64() == Some(1) => {}
                ("locations" | "resources", Value::Number(count))
                    if count.as_u64().is_some_and(|count| count > 1) =>
                {
                    self.later("more than one location", &path);
                }
                ("locations" | "resources", other) => {
                    self.must_be("a whole number of at least 1", other, &path)
                }
                // An editor's empty field.
                ("service" | "workdir", Value::String(text)) if text.is_empty() => {}
                ("service", Value::String(_)) => self.later("service", &path),
                ("workdir", Value::String(_)) => {
                    self.later(
                        "a cell's own workdir (set it for the target in cellferry.toml)",
                        &path,
                    );
                }
                ("service" | "workdir", other) => self.must_be("a string", other, &path),
                _ => {}
            }
        }
        if deployment.is_none() && !map.contains_key("deployment") && !map.contains_key("model") {
            self.fault(
                path,
                "must have a `deployment`, the name of a target".to_owned(),
            );
        }
        deployment.map(|deployment| Target::Object { deployment })
    }

    fn step(&mut self, map: &Map<String, Value>, path: &str) -> Step {
        self.known(map, path, &STEP_KEYS);
        let mut step = Step::default();
        for (key, value) in map {
            let path = format!("{path}.{key}");
            match (key.as_str(), value) {
                (_, Value::Null) => {}
                ("in", value) => step.inputs = self.elements(value, &path, true),
                ("out", value) => step.outputs = self.elements(value, &path, false),
                ("autoin", Value::Bool(autoin)) => step.autoin = *autoin,
                ("autoin", other) => self.must_be("a boolean", other, &path),
                ("scatter", Value::Object(scatter)) => {
                    self.known(scatter, &path, &SCATTER_KEYS);
                    self.later("scatter", &path);
                }
                ("scatter", Value::String(_) | Value::Array(_)) => self.later("scatter", &path),
                ("scatter", other) => {
                    self.must_be("a name, a list of names or an object", other, &path)
                }
                ("background", Value::Bool(false)) => {}
                ("background", Value::Bool(true)) => self.later("background", &path),
                ("background", other) => self.must_be("a boolean", other, &path),
                ("workdir", Value::String(text)) if text.is_empty() => {}
                ("workdir", Value::String(_)) => self.later(
                    "a cell's own workdir (set it for the target in cellferry.toml)",
                    &path,
                ),
                ("workdir", other) => self.must_be("a string", other, &path),
                _ => {}
            }
        }
        step
    }

    fn elements(&mut self, value: &Value, path: &str, input: bool) -> Vec<Element> {
        let list = match value {
            Value::Array(list) => list.as_slice(),
            other => {
                self.must_be("a list of names", other, path);
                return Vec::new();
            }
        };
        let mut elements = Vec::new();
        let mut seen = BTreeSet::new();
        for (index, value) in list.iter().enumerate() {
            let path = format!("{path}[{index}]");
            let element = match value {
                Value::String(name) => self.name(name, &path).map(Element::Name),
                Value::Object(map) => self.element(map, &path, input),
                other => {
                    self.must_be("a name or an object", other, &path);
                    None
                }
            };
            if let Some(element) = element {
                let name = match &element {
                    Element::Name(name) | Element::Object { name, .. } => Some(name),
                    // What is called alike, or not at all, need not be the same files.
                    Element::File(_) => None,
                };
                if name.is_some_and(|name| !seen.insert(name.clone())) {
                    self.fault(&path, "given twice".to_owned());
                }
                elements.push(element);
            }
        }
        elements
    }

    fn name(&mut self, name: &str, path: &str) -> Option<String> {
        let valid = !name.is_empty()
            && name.chars().enumerate().all(|(index, letter)| {
                letter == '_' || letter.is_alphabetic() || index > 0 && letter.is_alphanumeric()
            });
        if !valid {
            self.fault(
                path,
                format!("`{}` is not the name of a variable", shown(name)),
            );
        }
        valid.then(|| name.to_owned())
    }

    fn element(&mut self, map: &Map<String, Value>, path: &str, input: bool) -> Option<Element> {
        self.known(map, path, if input { &INPUT_KEYS } else { &OUTPUT_KEYS });
        let types: &[&str] = if input { &INPUT_TYPES } else { &OUTPUT_TYPES };
        let kind = match map.get("type") {
            None | Some(Value::Null) => ElementType::Name,
            Some(Value::String(kind)) => match kind.as_str() {
                "name" => ElementType::Name,
                "control" => ElementType::Control,
                "file" => return self.file(map, path),
                "env" if types.contains(&kind.as_str()) => {
                    self.later(&format!("type `{kind}`"), &format!("{path}.type"));
                    return None;
                }
                _ => {
                    let hint = nearest(kind, types.iter().copied());
                    self.fault(
                        &format!("{path}.type"),
                        format!("unknown type `{}`{hint}", shown(kind)),
                    );
                    return None;
                }
            },
            Some(other) => {
                self.must_be("a string", other, &format!("{path}.type"));
                return None;
            }
        };
        // A `valueFrom` that is the name itself says nothing.
        let from = map.get("valueFrom").filter(|from| !from.is_null());
        let own = from.is_none() || from == map.get("name") || !map.contains_key("name");
        let gather = match map.get("gather") {
            None | Some(Value::Null) => false,
            Some(Value::Bool(gather)) => *gather,
            Some(other) => {
                self.must_be("a boolean", other, &format!("{path}.gather"));
                false
            }
        };
        let keys = ["value", "serializer", "scatter"];
        for key in keys.into_iter().chain((!own).then_some("valueFrom")) {
            if map.get(key).is_some_and(|value| !value.is_null()) {
                self.later(&format!("`{key}`"), &format!("{path}.{key}"));
            }
        }
        let name = match map.get("name").or(from) {
            Some(Value::String(name)) => self.name(name, &format!("{path}.name"))?,
            Some(other) => {
                self.must_be("a string", other, &format!("{path}.name"));
                return None;
            }
            None => {
                self.fault(path, "must have a `name`".to_owned());
                return None;
            }
        };
        Some(Element::Object { name, kind, gather })
    }

    fn file(&mut self, map: &Map<String, Value>, path: &str) -> Option<Element> {
        for key in ["serializer", "scatter", "gather"] {
            if map.get(key).is_some_and(|value| !value.is_null()) {
                self.later(&format!("`{key}`"), &format!("{path}.{key}"));
            }
        }
        let mut variable = |key: &str| match map.get(key) {
            None | Some(Value::Null) => Some(None),
            Some(Value::String(name)) => self.name(name, &format!("{path}.{key}")).map(Some),
            Some(other) => {
                self.must_be("a string", other, &format!("{path}.{key}"));
                None
            }
        };
        let (name, value_from) = (variable("name")?, variable("valueFrom")?);
        let value = match map.get("value") {
            None | Some(Value::Null) => None,
            Some(value) => Some(self.paths(value, &format!("{path}.value"))?),
        };
        match (&name, &value, &value_from) {
            (_, Some(_), Some(_)) => {
                let problem = "cannot stand beside `value`, which says where the files are";
                self.fault(&format!("{path}.valueFrom"), problem.to_owned());
                return None;
            }
            (None, None, None) => {
                let problem = "must have a `value`, a path or a list of paths, or the `name` of a variable that holds one";
                self.fault(path, problem.to_owned());
                return None;
            }
            _ => {}
        }
        Some(Element::File(FileElement {
            kind: FileType::File,
            name,
            value,
            value_from,
        }))
    }

    fn paths(&mut self, value: &Value, path: &str) -> Option<Paths> {
        match value {
            Value::String(text) => self.one_path(text, path).map(Paths::One),
            Value::Array(list) if !list.is_empty() => {
                let all = list.iter().enumerate().map(|(index, value)| {
                    let path = format!("{path}[{index}]");
                    match value {
                        Value::String(text) => self.one_path(text, &path),
                        other => {
                            self.must_be("a path", other, &path);
                            None
                        }
                    }
                });
                // All that is wrong is told.
                let all: Vec<Option<String>> = all.collect();
                Some(Paths::Many(all.into_iter().collect::<Option<_>>()?))
            }
            Value::Array(_) => {
                self.fault(path, "must not be empty".to_owned());
                None
            }
            other => {
                self.must_be("a path or a list of paths", other, path);
                None
            }
        }
    }

    fn one_path(&mut self, text: &str, path: &str) -> Option<String> {
        match crate::paths::Place::parse(text) {
            Ok(_) => Some(text.to_owned()),
            Err(problem) => {
                self.fault(path, problem);
                None
            }
        }
    }

    fn texts(&mut self, value: &Value, path: &str) -> Vec<String> {
        match value {
            Value::String(text) => vec![text.clone()],
            Value::Array(list) => {
                let mut texts = Vec::new();
                for (index, value) in list.iter().enumerate() {
                    match value {
                        Value::String(text) => texts.push(text.clone()),
                        other => self.must_be(
                            "a cell's id, tag or name",
                            other,
                            &format!("{path}[{index}]"),
                        ),
                    }
                }
                texts
            }
            other => {
                self.must_be("a list of cell ids, tags or names", other, path);
                Vec::new()
            }
        }
    }
}
