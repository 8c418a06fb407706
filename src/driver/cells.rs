//! Reads what a client asks to execute: the request, its metadata from wherever it stands, the analysis.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::{Map, Value, json};

use super::execute_request::{ExecuteRequest, like, tells_cell};
use super::magics::Magic;
use crate::analysis::{Analysis, Read, python};
use crate::cell::{self, Workflow};
use crate::graph::{Access, Accesses};
use crate::ledger::Needed;
use crate::name::Name;
use crate::notebook::{self, FileCell, Notebook, Parent, locate};
use crate::session::{Asked, Cell, GENERATORS, HOME, Problem, Request, TargetName};
use crate::spelling::near;
use crate::target::config::Slurm;
use crate::target::config::{ConfigError, Ssh, Target, Targets};
use crate::target::shape::Shape;

/// What stands in the source of a cell that sets the state of a generator that all code shares to something
/// known. Until then it is not carried: it is random anyway.
const SEEDS: [&str; 3] = ["seed", "setstate", "set_state"];

/// Starts a comment in the notebook's language.
const COMMENT: &str = "#";

/// How many more times a step runs if its worker dies under it, unless its metadata says so.
const RETRY: u32 = 1;

/// Knows the notebook, if it can be known.
#[derive(Debug)]
pub struct Cells {
    notebook: Option<Notebook>,
    folder: PathBuf,
    accesses: Accesses,
    /// How many workers each target may have.
    limits: HashMap<TargetName, u32>,
    /// What `after` can call the cells so far.
    called: BTreeSet<String>,
    /// Whether a cell so far may have seeded a generator: then their states are carried, too.
    seeded: bool,
    expected: Expected,
}

/// The cells that a client will ask for if it goes on in the order of the notebook's file.
#[derive(Debug, Default)]
struct Expected {
    /// Their place in the file, and they themselves.
    cells: VecDeque<(usize, FileCell)>,
    /// Those of them that have been asked for.
    asked: Vec<FileCell>,
    /// What was known before the first of them.
    before: Accesses,
}

impl Cells {
    /// Finds the notebook's file once; a client that tells none leaves only the source's own lines.
    pub fn new(jupyter_session: Option<&str>) -> Self {
        let parent = Parent::current();
        let located = locate(
            &|name| std::env::var(name).ok(),
            jupyter_session,
            parent.as_ref(),
        );
        let folder = std::env::current_dir().unwrap_or_default();
        Self {
            notebook: located.map(|located| Notebook::new(located.path, located.in_order)),
            expected: Expected::default(),
            folder,
            accesses: Accesses::default(),
            limits: HashMap::new(),
            called: BTreeSet::new(),
            seeded: false,
        }
    }

    /// The notebook's file, if the client tells it.
    pub fn notebook(&self) -> Option<&Path> {
        self.notebook.as_ref().map(Notebook::path)
    }

    /// Where the notebook's metadata comes from, for `%cellferry status`.
    pub fn source(&self) -> String {
        match &self.notebook {
            Some(notebook) => format!("the request, else `{}`, else `#|` lines", notebook.path().display()),
            None => "the request, else `#|` lines: which file the notebook is, this client does not tell".to_owned(),
        }
    }

    /// The definition of a target, as the configuration says now.
    pub fn target(&self, name: &str) -> Result<Target, ConfigError> {
        match self.targets() {
            Ok(targets) => targets.get(name),
            // A broken file harms no plain cell.
            Err(_) if name == HOME => Targets::default().get(name),
            Err(error) => Err(error),
        }
    }

    /// The host on which the commands of a cluster are run; `None` for this machine.
    pub fn login(&self, target: &Target, slurm: &Slurm) -> Result<Option<Ssh>, ConfigError> {
        self.targets()?
            .login(&target.name, slurm, target.defined_in.as_deref())
    }

    /// All targets, as the configuration says now.
    pub fn targets(&self) -> Result<Targets, ConfigError> {
        let folder = self
            .notebook
            .as_ref()
            .and_then(|notebook| notebook.path().parent())
            .unwrap_or(&self.folder);
        let folder = std::path::absolute(folder).unwrap_or_else(|_| folder.to_owned());
        let mut targets = Targets::load(&folder, Targets::user_dir().as_deref())?;
        if let Some(path) = self.notebook.as_ref().map(Notebook::path) {
            match notebook::deployments(path) {
                Ok(deployments) => targets.add_deployments(path, &deployments),
                Err(error) => tracing::warn!("{error}"),
            }
        }
        Ok(targets)
    }

    /// The source in a request, for showing it.
    pub fn code(&self, asked: &Asked) -> String {
        asked
            .message
            .parse_content::<ExecuteRequest>()
            .map(|request| request.code)
            .unwrap_or_default()
    }

    /// Reads an `execute_request`.
    pub fn read(&mut self, asked: &Arc<Asked>) -> Result<(Request, Cell), Problem> {
        let content = ExecuteRequest::read(&asked.message.content)?;
        let metadata: Value = serde_json::from_slice(&asked.message.metadata).unwrap_or_default();
        let told = self.told(&content, metadata);
        Ok(self.cell(asked, content, &told))
    }

    /// Takes up an `execute_request` for the cell that was expected next; `None` if it is another one.
    pub fn read_expected(&mut self, asked: &Arc<Asked>) -> Option<Request> {
        let (next, _) = self.expected.cells.front()?;
        let content = ExecuteRequest::read(&asked.message.content).ok()?;
        let notebook = self.notebook.as_mut()?;
        let found = match notebook.cell_of(None, &content.code) {
            Ok(found) => found?,
            Err(_) => return None,
        };
        let same = notebook.last() == Some(*next)
            && !notebook.has_changed()
            && !content.silent
            && content.store_history.unwrap_or(true)
            && content.workflow.is_null()
            && content.user_expressions.is_none_or(|map| map.is_empty())
            && !tells_cell(&asked.message.metadata);
        if !same {
            notebook.rewind();
            return None;
        }
        self.expected.cells.pop_front();
        self.expected.asked.push(found);
        Some(Request {
            message: asked.clone(),
            silent: false,
            store_history: true,
            stop_on_error: content.stop_on_error.unwrap_or(true),
        })
    }

    /// Whether a cell is expected next.
    pub fn expects(&self) -> bool {
        !self.expected.cells.is_empty()
    }

    /// Expects nothing more: the client has done something else.
    pub fn forget_expected(&mut self) {
        let Expected { asked, before, .. } = std::mem::take(&mut self.expected);
        self.accesses = before;
        for cell in asked {
            let workflow = cell::resolve(&cell.metadata, &cell.source, COMMENT);
            let analysis = python::analyse(&cell.source);
            self.accesses
                .next(&analysis, workflow.ok().flatten().as_ref());
        }
    }

    /// The cells that come after the one just asked for, if the client goes through the notebook's
    /// file: as requests of our own, which the client's will replace.
    pub fn expect(&mut self, asked: &Arc<Asked>) -> Vec<(Request, Cell)> {
        if tells_cell(&asked.message.metadata) {
            return Vec::new();
        }
        let rest = self.notebook.as_ref().map_or_else(Vec::new, Notebook::rest);
        if rest.is_empty() {
            return Vec::new();
        }
        // What comes after a release starts workers anew.
        let releases =
            |cell: &FileCell| matches!(Magic::parse(&cell.source), Some(Ok(Magic::Release(_))));
        let rest = rest
            .into_iter()
            .take_while(|(_, cell)| !releases(cell))
            .filter(|(_, cell)| Magic::parse(&cell.source).is_none());
        self.expected = Expected {
            cells: rest.collect(),
            asked: Vec::new(),
            before: self.accesses.clone(),
        };
        let cells: Vec<FileCell> = self
            .expected
            .cells
            .iter()
            .map(|(_, cell)| cell.clone())
            .collect();
        let made = cells.iter().map_while(|cell| {
            let asked = Arc::new(like(asked, &cell.source)?);
            let content = ExecuteRequest::read(&asked.message.content).ok()?;
            Some(self.cell(&asked, content, cell))
        });
        made.collect()
    }

    fn cell(
        &mut self,
        asked: &Arc<Asked>,
        content: ExecuteRequest,
        told: &FileCell,
    ) -> (Request, Cell) {
        let mut problem = None;
        let workflow = match workflow(&told.metadata, &content) {
            Ok(workflow) => workflow,
            Err(error) => {
                problem = Some(error);
                None
            }
        };
        if problem.is_none()
            && let Some(workflow) = &workflow
        {
            problem = self.unknown_in_after(workflow);
        }
        let called: Vec<String> = told.called().map(str::to_owned).collect();
        self.called.extend(called.iter().cloned());
        let mut analysis = python::analyse(&content.code);
        for expression in content
            .user_expressions
            .iter()
            .flat_map(Map::values)
            .filter_map(Value::as_str)
        {
            analysis.reads.extend(
                python::analyse(expression)
                    .reads
                    .into_keys()
                    .map(|name| (name, Read::Maybe)),
            );
        }
        let target = match self.place(workflow.as_ref()) {
            Ok(target) => target,
            Err(error) => {
                problem.get_or_insert(error);
                HOME.into()
            }
        };
        let step = workflow
            .as_ref()
            .and_then(|workflow| workflow.step.as_ref());
        let files = step.map(cell::Step::files).unwrap_or_default();
        let resources = workflow
            .as_ref()
            .and_then(|workflow| workflow.resources.as_ref());
        let time = resources.and_then(|resources| resources.time);
        let gather: Vec<String> = step
            .map(|step| step.gathered().map(str::to_owned).collect())
            .unwrap_or_default();
        if !gather.is_empty() && Shape::parse(&target).resources.ranks.is_none() {
            let error = cell::MetadataError {
                path: "workflow.step.out".to_owned(),
                problem: "`gather` is for steps with MPI ranks: write `resources: {ranks: …}`"
                    .to_owned(),
            };
            problem.get_or_insert(Problem::new("MetadataError", cell::report(&[error])));
        }
        let seeds = SEEDS.iter().any(|word| content.code.contains(word));
        self.seeded |= seeds;
        let mut needed = needed(&analysis, workflow.as_ref());
        if self.seeded {
            needed.may.extend(GENERATORS.map(Name::from));
        }
        let cell = Cell {
            seeds,
            workers: self.limit(&target),
            retry: workflow
                .as_ref()
                .and_then(|workflow| workflow.retry)
                .unwrap_or(RETRY),
            target,
            called,
            after: workflow
                .as_ref()
                .map_or_else(Vec::new, |workflow| workflow.after.clone()),
            needed,
            access: if content.silent {
                Access::default()
            } else {
                self.accesses.next(&analysis, workflow.as_ref())
            },
            files: Arc::new(files),
            gather,
            time,
            definitions: analysis.definitions,
            source: Arc::from(content.code),
            problem,
        };
        let request = Request {
            message: asked.clone(),
            silent: content.silent,
            store_history: !content.silent && content.store_history.unwrap_or(true),
            stop_on_error: content.stop_on_error.unwrap_or(true),
        };
        (request, cell)
    }

    /// What is wrong if `after` names a cell that neither has been asked for nor stands in the notebook's file.
    fn unknown_in_after(&mut self, workflow: &Workflow) -> Option<Problem> {
        let unknown = |word: &&String| !self.called.contains(*word);
        let mut words = workflow.after.iter().filter(unknown).peekable();
        words.peek()?;
        let notebook = self.notebook.as_mut()?;
        let path = notebook.path().display().to_string();
        let in_file: BTreeSet<&str> = notebook.called().ok()?.collect();
        let word = words.find(|word| !in_file.contains(word.as_str()))?;
        let all = self.called.iter().map(String::as_str).chain(in_file);
        let error = cell::MetadataError {
            path: "workflow.after".to_owned(),
            problem: format!(
                "no cell that has been run, or that stands in `{path}` as it was saved last, has the id, tag or name `{word}`{}",
                near(word, all).unwrap_or_default()
            ),
        };
        Some(Problem::new("MetadataError", cell::report(&[error])))
    }

    /// The metadata of the request, else that of the notebook's file.
    fn told(&mut self, content: &ExecuteRequest, metadata: Value) -> FileCell {
        let id = metadata.get("cellId").and_then(Value::as_str);
        let id = id.map(str::to_owned);
        let has_cell = metadata
            .as_object()
            .is_some_and(|map| map.keys().any(|key| key != "cellId"));
        let mut told = FileCell {
            id,
            source: content.code.clone(),
            metadata: Value::Null,
        };
        if content.silent {
            return told;
        }
        if !content.workflow.is_null() {
            told.metadata = json!({"workflow": content.workflow});
        } else if has_cell {
            told.metadata = metadata;
        } else if let Some(notebook) = &mut self.notebook {
            match notebook.cell_of(told.id.as_deref(), &content.code) {
                Ok(Some(found)) => told = found,
                Ok(None) => {}
                Err(error) => tracing::warn!("{error}"),
            }
        }
        told
    }

    /// On which workers the cell runs: those of its target, or of a shape of it.
    fn place(&self, workflow: Option<&Workflow>) -> Result<TargetName, Problem> {
        let target = workflow.and_then(|workflow| workflow.target.as_ref());
        let target = target.map_or(HOME, cell::Target::name);
        let Some(resources) = workflow.and_then(|workflow| workflow.resources.as_ref()) else {
            return Ok(target.into());
        };
        // A target that is not there is told when a worker of it is to be started.
        let Ok(definition) = self.target(target) else {
            return Ok(target.into());
        };
        let shape = Shape::of(&definition, resources).map_err(|(key, problem)| {
            let error = cell::MetadataError {
                path: format!("workflow.resources.{key}"),
                problem,
            };
            Problem::new("MetadataError", cell::report(&[error]))
        })?;
        Ok(shape.name().into())
    }

    /// How many workers a target, or a shape of it, may have.
    fn limit(&mut self, target: &TargetName) -> u32 {
        if let Some(limit) = self.limits.get(target) {
            return *limit;
        }
        let shape = Shape::parse(target);
        let limit = self
            .target(&shape.target)
            .map_or(1, |target| shape.workers(&target));
        self.limits.insert(target.clone(), limit);
        limit
    }
}

/// The workflow metadata of a cell; the source's own lines win over what is told of it.
fn workflow(told: &Value, content: &ExecuteRequest) -> Result<Option<Workflow>, Problem> {
    if content.silent {
        return Ok(None);
    }
    let wrong =
        |errors: Vec<cell::MetadataError>| Problem::new("MetadataError", cell::report(&errors));
    cell::resolve(told, &content.code, COMMENT).map_err(wrong)
}

/// What the cell must have, and what it may read.
pub fn needed(analysis: &Analysis, workflow: Option<&Workflow>) -> Needed {
    let step = workflow.and_then(|workflow| workflow.step.as_ref());
    let named = |elements: &[cell::Element]| -> BTreeSet<Name> {
        elements
            .iter()
            .filter_map(cell::Element::variable)
            .map(Name::from)
            .collect()
    };
    let holders_of_paths = |elements: &[cell::Element]| -> BTreeSet<Name> {
        let files = elements.iter().filter_map(cell::Element::files);
        files
            .filter_map(cell::FileElement::variable)
            .map(Name::from)
            .collect()
    };
    let mut needed = Needed::default();
    if let Some(step) = step {
        needed.must = &named(&step.inputs) | &holders_of_paths(&step.inputs);
        needed.may = &named(&step.outputs) | &holders_of_paths(&step.outputs);
    }
    if step.is_some_and(|step| !step.autoin) {
        return needed;
    }
    for (name, read) in &analysis.reads {
        match read {
            Read::Surely => needed.must.insert(name.clone()),
            Read::Maybe | Read::Deferred => needed.may.insert(name.clone()),
        };
    }
    // What the cell changes it also reads, unless it has bound it before.
    let deletes = analysis.deletes.iter();
    let deletes = deletes.filter(|name| !needed.must.contains(*name));
    needed.may.extend(deletes.cloned());
    needed.everything = analysis.dynamic.is_some();
    needed
}
