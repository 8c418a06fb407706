//! `cellferry.toml`: the targets that the user names, and what is wrong with it.
//!
//! A fault in one target harms no cell but those that use it.

pub mod slurm;

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Map, Value as Json};
use thiserror::Error;
use toml::Value;
use toml::de::DeTable;

use crate::session::HOME;
use crate::spelling::nearest;
use crate::target::shared::Shared;

pub use slurm::{Slurm, System};

/// The name of the file.
pub const FILE: &str = "cellferry.toml";

const TYPES: [&str; 6] = ["local", "ssh", "slurm", "pbs", "container", "kubernetes"];

/// The types that are clusters with a batch system.
const BATCH: [&str; 2] = ["slurm", "pbs"];
const LOCAL_KEYS: [&str; 8] = [
    "type", "python", "conda", "setup", "workdir", "workers", "env", "gpus",
];
const SSH_KEYS: [&str; 14] = [
    "type",
    "host",
    "user",
    "port",
    "ssh_config",
    "transport",
    "patience",
    "python",
    "conda",
    "setup",
    "workdir",
    "workers",
    "env",
    "gpus",
];
const FILE_KEYS: [&str; 2] = ["targets", "shared"];
const SHARED_KEYS: [&str; 3] = ["path", "targets", "paths"];
const HOME_KEYS: [&str; 3] = ["type", "python", "env"];

/// What stands before the alias of a host that is a target without a definition.
const SSH_PREFIX: &str = "ssh:";

/// How long a location may be out of reach before it counts as lost, unless its target says otherwise.
const PATIENCE: Duration = Duration::from_secs(120);

/// All targets in sight of a notebook.
#[derive(Clone, Debug, Default)]
pub struct Targets {
    targets: BTreeMap<String, Result<Target, ConfigError>>,
    /// What targets share, with where each tree was declared; read only when it is asked for.
    shared: Vec<(Tree, Declared)>,
    /// The files looked at, nearest first.
    pub files: Vec<PathBuf>,
}

/// A shared tree: the path at which each target sees it, and the key that says so.
type Tree = Result<Vec<(String, PathBuf, String)>, ConfigError>;

/// Where something is declared.
#[derive(Clone, Debug)]
struct Declared {
    file: PathBuf,
    text: String,
}

/// A target, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// Its name.
    pub name: String,
    /// The file that defines it; `None` for what is always there.
    pub defined_in: Option<PathBuf>,
    /// Where it is.
    pub place: Place,
    /// The Python of its workers, as written: a path (`~` for the home directory) or a name on `PATH`.
    pub python: Option<String>,
    /// The conda environment of its workers: a name or a path.
    pub conda: Option<String>,
    /// Shell lines that run before the Python of its workers starts.
    pub setup: Option<String>,
    /// The working directory of its workers, there.
    pub workdir: Option<PathBuf>,
    /// How many workers it may have.
    pub workers: NonZeroU32,
    /// How many GPUs each of its locations has for steps that ask for some; those of the job for the nodes of a batch system.
    pub gpus: u32,
    /// Variables of its workers' environment.
    pub env: BTreeMap<String, String>,
}

/// Where the locations of a target are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// This machine.
    Local,
    /// A host that is reached by ssh.
    Ssh(Ssh),
    /// The nodes that a Slurm cluster grants.
    Slurm(Box<Slurm>),
}

/// A host that is reached by ssh. What is not given here comes from ssh's own configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ssh {
    /// An alias of `~/.ssh/config`, a host name, or `user@host:port`.
    pub host: String,
    /// The user there.
    pub user: Option<String>,
    /// The port.
    pub port: Option<u16>,
    /// The file to read instead of `~/.ssh/config`, as `ssh -F` does.
    pub config: Option<PathBuf>,
    /// Whether the system's `ssh` program carries the bytes, instead of our own client.
    pub openssh: bool,
    /// How long it may be out of reach before it counts as lost.
    pub patience: Duration,
}

impl Ssh {
    /// The host that the user's own ssh configuration calls so.
    fn alias(host: &str) -> Self {
        Self {
            host: host.to_owned(),
            user: None,
            port: None,
            config: None,
            openssh: false,
            patience: PATIENCE,
        }
    }
}

/// What is wrong with a configuration file or a target.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read `{file}`: {reason}")]
    Unreadable {
        /// The file.
        file: String,
        /// Why.
        reason: String,
    },
    /// The file is not TOML.
    #[error("`{file}` is not valid TOML: {reason}")]
    Syntax {
        /// The file.
        file: String,
        /// What and where, with line and column.
        reason: String,
    },
    /// A key or value is wrong.
    #[error("`{path}` in `{file}`{}: {problem}", line.map(|line| format!(", line {line}")).unwrap_or_default())]
    Invalid {
        /// The key's path.
        path: String,
        /// The file.
        file: String,
        /// The line, from 1, if the file has lines of its own.
        line: Option<usize>,
        /// What is wrong, and the nearest valid word.
        problem: String,
    },
    /// Nobody defines the target.
    #[error("no target `{name}`{hint}; {looked}")]
    Unknown {
        /// The name asked for.
        name: String,
        /// The nearest name, as a question.
        hint: String,
        /// Where it was looked for.
        looked: String,
    },
}

impl ConfigError {
    /// Adds the line of `text` where the key stands, or its nearest parent.
    fn at_line(mut self, text: &str) -> Self {
        if let Self::Invalid { path, line, .. } = &mut self
            && let Ok(document) = DeTable::parse(text)
        {
            let line_of = |at: usize| Some(1 + text[..at].matches('\n').count());
            let mut table = Some(document.get_ref());
            let mut rest = path.as_str();
            // A key may itself hold a dot, so the path is followed by what the file holds.
            while let Some((key, value)) = table.and_then(|table| {
                let leads = |key: &str| {
                    let after = rest.strip_prefix(key);
                    after.is_some_and(|after| after.is_empty() || after.starts_with(['.', '[']))
                };
                let candidates = table.iter().filter(|(key, _)| leads(key.get_ref()));
                candidates.max_by_key(|(key, _)| key.get_ref().len())
            }) {
                *line = line_of(key.span().start);
                rest = &rest[key.get_ref().len()..];
                let mut value = value;
                if let Some((index, after)) =
                    rest.strip_prefix('[').and_then(|rest| rest.split_once(']'))
                    && let Some(element) = value
                        .get_ref()
                        .as_array()
                        .zip(index.parse::<usize>().ok())
                        .and_then(|(array, index)| array.get(index))
                {
                    *line = line_of(element.span().start);
                    (rest, value) = (after, element);
                }
                rest = rest.trim_start_matches('.');
                table = value.get_ref().as_table();
            }
        }
        self
    }
}

impl Target {
    /// A target about which nothing more is said.
    fn plain(name: &str, defined_in: Option<&Path>, place: Place) -> Self {
        Self {
            name: name.to_owned(),
            defined_in: defined_in.map(Path::to_owned),
            place,
            python: None,
            conda: None,
            setup: None,
            workdir: None,
            workers: NonZeroU32::MIN,
            gpus: 0,
            env: BTreeMap::new(),
        }
    }

    /// Where its definition is mended: the table in the file, as a user would look for it.
    pub fn table(&self) -> String {
        format!("[targets.{}] in {FILE}", self.name)
    }
}

impl Targets {
    /// Reads the file beside the notebook, those above it, and the user's own, nearest first.
    pub fn load(notebook_dir: &Path, user_dir: Option<&Path>) -> Result<Self, ConfigError> {
        let mut targets = Self::default();
        let above = notebook_dir.ancestors().map(|folder| folder.join(FILE));
        let user = user_dir.map(|folder| folder.join(FILE));
        for file in above.chain(user) {
            match std::fs::read_to_string(&file) {
                Ok(text) => targets.add(&file, &text)?,
                Err(error)
                    if matches!(
                        error.kind(),
                        std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory
                    ) => {}
                Err(error) => {
                    return Err(ConfigError::Unreadable {
                        file: file.display().to_string(),
                        reason: error.to_string(),
                    });
                }
            }
        }
        Ok(targets)
    }

    /// The user's configuration directory for Cellferry.
    pub fn user_dir() -> Option<PathBuf> {
        use etcetera::BaseStrategy;
        etcetera::choose_base_strategy()
            .ok()
            .map(|strategy| strategy.config_dir().join("cellferry"))
    }

    fn add(&mut self, file: &Path, text: &str) -> Result<(), ConfigError> {
        let shown = file.display().to_string();
        self.files.push(file.to_owned());
        let table: toml::Table =
            text.parse()
                .map_err(|error: toml::de::Error| ConfigError::Syntax {
                    file: shown.clone(),
                    reason: error.to_string().trim_end().to_owned(),
                })?;
        let invalid = |path: &str, problem: String| ConfigError::Invalid {
            path: path.to_owned(),
            file: shown.clone(),
            line: None,
            problem,
        };
        if let Some(key) = table.keys().find(|key| !FILE_KEYS.contains(&key.as_str())) {
            let error = invalid(key, format!("unknown key{}", nearest(key, FILE_KEYS)));
            return Err(error.at_line(text));
        }
        match table.get("shared") {
            None => {}
            Some(Value::Array(trees)) => {
                for (index, tree) in trees.iter().enumerate() {
                    let tree = read_shared(index, tree, file).map_err(|error| error.at_line(text));
                    let declared = Declared {
                        file: file.to_owned(),
                        text: text.to_owned(),
                    };
                    self.shared.push((tree, declared));
                }
            }
            Some(_) => {
                let problem = "must be a list of tables: write [[shared]]".to_owned();
                return Err(invalid("shared", problem).at_line(text));
            }
        }
        let Some(targets) = table.get("targets") else {
            return Ok(());
        };
        let Value::Table(targets) = targets else {
            return Err(invalid("targets", "must be a table of targets".to_owned()));
        };
        for (name, value) in targets {
            let target = read_target(name, value, file).map_err(|error| error.at_line(text));
            self.targets.entry(name.clone()).or_insert(target);
        }
        Ok(())
    }

    /// Adds the deployments of a notebook, which give way to the targets of every file.
    /// Only those of type `local` are supported yet; the others are refused where they are used.
    pub fn add_deployments(&mut self, notebook: &Path, deployments: &Map<String, Json>) {
        for (name, deployment) in deployments.iter().filter(|(name, _)| *name != HOME) {
            self.targets
                .entry(name.clone())
                .or_insert_with(|| read_deployment(name, deployment, notebook));
        }
    }

    /// The target of that name.
    pub fn get(&self, name: &str) -> Result<Target, ConfigError> {
        if let Some(target) = self.targets.get(name) {
            if let Ok(Target {
                place: Place::Slurm(slurm),
                defined_in,
                ..
            }) = target
            {
                self.login(name, slurm, defined_in.as_deref())?;
            }
            return target.clone();
        }
        if name == HOME {
            return Ok(Target::plain(HOME, None, Place::Local));
        }
        if let Some(alias) = name.strip_prefix(SSH_PREFIX) {
            if !is_host(alias) {
                return Err(ConfigError::Unknown {
                    name: name.to_owned(),
                    hint: String::new(),
                    looked: "after `ssh:` comes an alias of ~/.ssh/config, or user@host:port"
                        .to_owned(),
                });
            }
            return Ok(Target::plain(name, None, Place::Ssh(Ssh::alias(alias))));
        }
        let names = self.targets.keys().map(String::as_str).chain([HOME]);
        let looked = if self.files.is_empty() {
            format!(
                "there is no `{FILE}` beside the notebook or above it; define it there as [targets.{name}]"
            )
        } else {
            let files: Vec<String> = self
                .files
                .iter()
                .map(|file| format!("`{}`", file.display()))
                .collect();
            format!("{} defines {}", files.join(", "), self.names())
        };
        Err(ConfigError::Unknown {
            name: name.to_owned(),
            hint: nearest(name, names),
            looked,
        })
    }

    /// What targets share.
    pub fn shared(&self) -> Result<Shared, ConfigError> {
        let mut shared = Shared::default();
        for (tree, declared) in &self.shared {
            let tree = tree.clone()?;
            for (name, _, key) in &tree {
                if let Err(ConfigError::Unknown { hint, .. }) = self.get(name) {
                    let error = ConfigError::Invalid {
                        path: key.clone(),
                        file: declared.file.display().to_string(),
                        line: None,
                        problem: format!("no target `{name}`{hint}"),
                    };
                    return Err(error.at_line(&declared.text));
                }
            }
            shared.add(tree.into_iter().map(|(name, path, _)| (name, path)));
        }
        Ok(shared)
    }

    /// The host on which Slurm's commands are run; `None` for this machine.
    ///
    /// # Errors
    /// If what the target calls its `login` is no host that is reached by ssh.
    pub fn login(
        &self,
        name: &str,
        slurm: &Slurm,
        file: Option<&Path>,
    ) -> Result<Option<Ssh>, ConfigError> {
        let Some(login) = &slurm.login else {
            return Ok(None);
        };
        let problem = match self.targets.get(login) {
            Some(Ok(Target {
                place: Place::Ssh(ssh),
                ..
            })) => return Ok(Some(ssh.clone())),
            Some(Ok(_)) => format!("target `{login}` is not of type `ssh`"),
            Some(Err(_)) => format!("target `{login}` has a fault of its own; mend that first"),
            None => {
                let alias = login.strip_prefix(SSH_PREFIX).unwrap_or(login);
                if is_host(alias) {
                    return Ok(Some(Ssh::alias(alias)));
                }
                format!(
                    "`{login}` is no host: give an alias of ~/.ssh/config, user@host:port, or a target of type `ssh`"
                )
            }
        };
        Err(ConfigError::Invalid {
            path: format!("targets.{name}.login"),
            file: file.unwrap_or(Path::new(FILE)).display().to_string(),
            line: None,
            problem,
        })
    }

    /// All targets, with what is wrong with them.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Result<Target, ConfigError>)> {
        self.targets
            .iter()
            .map(|(name, target)| (name.as_str(), target))
    }

    fn names(&self) -> String {
        if self.targets.is_empty() {
            return "no target".to_owned();
        }
        self.targets
            .keys()
            .map(|name| format!("`{name}`"))
            .collect::<Vec<_>>()
            .join(", ")
    }
}

/// Reads a deployment as Jupyter-workflow writes it into a notebook.
fn read_deployment(name: &str, value: &Json, notebook: &Path) -> Result<Target, ConfigError> {
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

/// Whether ssh could take it for a host: nothing that it would take for an option, or a shell for words.
fn is_host(host: &str) -> bool {
    !host.is_empty()
        && !host.starts_with('-')
        && !host.contains(|c: char| {
            c.is_whitespace() || c.is_control() || "'\"`$\\;&<>|(){}".contains(c)
        })
}

/// A path as a file gives it: relative to the file, unless it starts at the root or at `~`.
fn from_file(file: &Path, path: &str) -> String {
    if path.starts_with('~') {
        path.to_owned()
    } else {
        let base = file.parent().unwrap_or(Path::new(""));
        base.join(path).display().to_string()
    }
}

fn read_shared(index: usize, value: &Value, file: &Path) -> Tree {
    let invalid = |key: &str, problem: String| ConfigError::Invalid {
        path: format!("shared[{index}]{key}"),
        file: file.display().to_string(),
        line: None,
        problem,
    };
    let Value::Table(table) = value else {
        return Err(invalid("", "must be a table".to_owned()));
    };
    if let Some(key) = table
        .keys()
        .find(|key| !SHARED_KEYS.contains(&key.as_str()))
    {
        let problem = format!("unknown key{}", nearest(key, SHARED_KEYS));
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

fn read_target(name: &str, value: &Value, file: &Path) -> Result<Target, ConfigError> {
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
        "ssh" => &SSH_KEYS,
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

#[cfg(test)]
mod tests {
    use super::*;

    fn targets(text: &str) -> Result<Targets, ConfigError> {
        let mut targets = Targets::default();
        targets.add(Path::new("/n/cellferry.toml"), text)?;
        Ok(targets)
    }

    fn problem(text: &str, name: &str) -> String {
        targets(text)
            .and_then(|targets| targets.get(name))
            .unwrap_err()
            .to_string()
    }

    #[test]
    fn a_local_target_is_read_with_paths_relative_to_its_file() {
        let text = "[targets.lab]\ntype='local'\npython='env/bin/python'\nworkdir='w'\nworkers=3\nenv={A='1'}";
        let lab = targets(text).unwrap().get("lab").unwrap();
        assert_eq!(lab.python.as_deref(), Some("/n/env/bin/python"));
        assert_eq!(lab.workdir, Some(PathBuf::from("/n/w")));
        assert_eq!((lab.workers.get(), lab.env["A"].as_str()), (3, "1"));
        let plain = targets("[targets.lab]\ntype='local'\npython='python3.12'")
            .unwrap()
            .get("lab")
            .unwrap();
        assert_eq!(plain.python.as_deref(), Some("python3.12"));
    }

    #[test]
    fn an_ssh_target_leaves_to_ssh_what_it_does_not_say() {
        let text = "[targets.lab]\ntype='ssh'\nhost='me@lab:2222'\npython='env/bin/python'\nworkdir='w'\npatience='10m'\n\
                    transport='openssh'\nssh_config='config'\nsetup='module load python'";
        let lab = targets(text).unwrap().get("lab").unwrap();
        assert_eq!(lab.python.as_deref(), Some("env/bin/python"));
        assert_eq!(lab.workdir, Some(PathBuf::from("w")));
        assert_eq!(lab.setup.as_deref(), Some("module load python"));
        let Place::Ssh(ssh) = lab.place else {
            panic!("not ssh")
        };
        assert_eq!((ssh.host.as_str(), ssh.openssh), ("me@lab:2222", true));
        assert_eq!(ssh.patience, Duration::from_secs(600));
        assert_eq!(ssh.config, Some(PathBuf::from("/n/config")));
    }

    #[test]
    fn a_host_of_the_ssh_configuration_needs_no_definition() {
        let lab = Targets::default().get("ssh:lab").unwrap();
        assert_eq!(
            (lab.name.as_str(), &lab.place),
            ("ssh:lab", &Place::Ssh(Ssh::alias("lab")))
        );
    }

    #[test]
    fn home_is_always_there() {
        assert_eq!(Targets::default().get("home").unwrap().name, "home");
        let home = targets("[targets.home]\npython='/p'")
            .unwrap()
            .get("home")
            .unwrap();
        assert_eq!(home.python.as_deref(), Some("/p"));
    }

    #[test]
    fn what_is_wrong_is_named_with_the_nearest_word() {
        let good = "[targets.lab]\ntype='local'\n";
        let cases = [
            (good, "lap", "did you mean `lab`"),
            ("[targets.lab]\ntype='lokal'", "lab", "did you mean `local`"),
            (
                "[targets.lab]\ntype='local'\nworkerz=2",
                "lab",
                "`targets.lab.workerz` in `/n/cellferry.toml`, line 3: unknown key; did you mean `workers`",
            ),
            (
                "[targets.lab]\ntype='local'\nworkers=0",
                "lab",
                "at least 1",
            ),
            (
                "[targets.lab]\ntype='local'\nworkers='2'",
                "lab",
                "whole number",
            ),
            (
                "[targets.lab]\ntype='local'\nenv={A=1}",
                "lab",
                "targets.lab.env.A",
            ),
            (
                "[targets.lab]\ntype='kubernetes'",
                "lab",
                "not supported yet",
            ),
            (
                "[targets.lab]\ntype='ssh'",
                "lab",
                "targets.lab.host` in `/n/cellferry.toml`, line 1: is missing",
            ),
            (
                "[targets.lab]\ntype='ssh'\nhost='-oProxyCommand=x'",
                "lab",
                "is no host",
            ),
            (
                "[targets.lab]\ntype='ssh'\nhost='x'\nport=0",
                "lab",
                "from 1 to 65535",
            ),
            (
                "[targets.lab]\ntype='ssh'\nhost='x'\npatience='soon'",
                "lab",
                "line 4: `soon` is no time",
            ),
            (
                "[targets.lab]\ntype='ssh'\nhost='x'\npatience=5",
                "lab",
                "a time in quotes",
            ),
            (
                "[targets.lab]\ntype='ssh'\nhost='x'\ntransport='opensh'",
                "lab",
                "did you mean `openssh`",
            ),
            (
                "[targets.lab]\ntype='ssh'\nhost='x'\npython='p'\nconda='c'",
                "lab",
                "cannot stand beside",
            ),
            (
                "[targets.home]\ntype='ssh'\nhost='x'",
                "home",
                "another name",
            ),
            ("[targets.lab]\nhost='x'", "lab", "is missing"),
            ("targets=3", "lab", "must be a table"),
            ("[target.lab]\n", "lab", "did you mean `targets`"),
            ("[targets.lab\n", "lab", "line 1"),
            (good, "ssh:", "after `ssh:` comes an alias"),
        ];
        for (text, name, expected) in cases {
            let found = problem(text, name);
            assert!(found.contains(expected), "{text:?}: {found}");
        }
    }

    #[test]
    fn what_targets_share_is_read() {
        let good = "[targets.lab]\ntype='local'\n";
        let shared = |text: &str| targets(&format!("{good}{text}")).and_then(|all| all.shared());
        let both = shared(
            "[[shared]]\npath='/data'\ntargets=['home','lab']\n[[shared]]\npaths={home='/mnt/s', lab='/s'}",
        );
        let same = |here: &str, there: &str| {
            both.as_ref()
                .unwrap()
                .same(("home", Path::new(here)), ("lab", Path::new(there)))
        };
        assert!(same("/data/x", "/data/x") && same("/mnt/s/x", "/s/x") && !same("/s/x", "/s/x"));
        for (text, expected) in [
            (
                "[[shared]]\npath='/d'\ntargets=['home','lap']",
                "`shared[0].targets` in `/n/cellferry.toml`, line 5: no target `lap`; did you mean `lab`",
            ),
            (
                "[[shared]]\npath='/d'\ntargets=['home','lab']\n[[shared]]\npat='/d'",
                "`shared[1].pat` in `/n/cellferry.toml`, line 7: unknown key; did you mean `path`",
            ),
            (
                "[[shared]]\npath='d'\ntargets=['home','lab']",
                "must be an absolute path",
            ),
            (
                "[[shared]]\npath='/d'\ntargets='lab'",
                "must be a list of names",
            ),
            (
                "[[shared]]\npath='/d'\ntargets=['lab']",
                "two targets at least",
            ),
            (
                "[[shared]]\npaths={home=1,lab='/d'}",
                "`shared[0].paths.home`",
            ),
            ("[[shared]]\npaths='/d'", "must be a table"),
            ("[[shared]]\npath='/d'", "must have `path` and `targets`"),
        ] {
            let found = shared(text).unwrap_err().to_string();
            assert!(found.contains(expected), "{text}: {found}");
            // Cells that bring no files do not care.
            assert!(
                targets(&format!("{good}{text}"))
                    .unwrap()
                    .get("lab")
                    .is_ok()
            );
        }
        let found = targets("shared='/d'").unwrap_err().to_string();
        assert!(found.contains("write [[shared]]"), "{found}");
    }

    #[test]
    fn faults_name_their_line() {
        let dotted =
            "# x\n[targets]\n'a.b' = {type = 'local',\n  env = {X = 1}}\na = {type = 'local'}";
        assert!(
            problem(dotted, "a.b").contains("`targets.a.b.env.X` in `/n/cellferry.toml`, line 4:")
        );
        assert!(problem("\n[targets.lab]\nhost='x'", "lab").contains("line 2: is missing"));
        assert!(problem("\n\ntarget=3", "lab").contains("line 3: unknown key"));
        assert!(
            problem("[targets.a]\ntype='local'\nenv={'A=B'='1'}", "a")
                .contains("cannot be a variable")
        );
    }

    #[test]
    fn a_notebooks_deployments_give_way_to_the_files() {
        let mut all = targets("[targets.lab]\ntype='local'\nworkers=2").unwrap();
        let given = serde_json::json!({
            "lab": {"type": "local", "config": {}}, "home": {"type": "nonsense"},
            "near": {"type": "local", "config": {}, "external": false, "workdir": "w"},
            "far": {"type": "slurm", "config": {"hostname": "h"}}, "odd": {"type": "local", "workdirr": "w"}, "none": 3,
        });
        all.add_deployments(Path::new("/n/a.ipynb"), given.as_object().unwrap());
        assert_eq!(all.get("lab").unwrap().workers.get(), 2);
        assert_eq!(all.get("home").unwrap().defined_in, None);
        let near = all.get("near").unwrap();
        assert_eq!(near.workdir, Some(PathBuf::from("/n/w")));
        assert_eq!(near.defined_in, Some(PathBuf::from("/n/a.ipynb")));
        for (name, expected) in [
            (
                "far",
                "`workflow.deployments.far.type` in `/n/a.ipynb`: deployments of type `slurm` are not supported yet",
            ),
            (
                "odd",
                "`workflow.deployments.odd.workdirr` in `/n/a.ipynb`: unknown key; did you mean `workdir`",
            ),
            ("none", "must be an object"),
        ] {
            let found = all.get(name).unwrap_err().to_string();
            assert!(found.contains(expected), "{found}");
        }
    }

    #[test]
    fn a_bad_target_harms_no_other() {
        let both = targets("[targets.a]\ntype='nonsense'\n[targets.b]\ntype='local'").unwrap();
        assert!(both.get("a").is_err());
        assert!(both.get("b").is_ok());
    }

    #[test]
    fn the_nearest_file_wins() {
        let folder = tempfile::tempdir().unwrap();
        let inner = folder.path().join("a/b");
        std::fs::create_dir_all(&inner).unwrap();
        std::fs::write(
            folder.path().join(FILE),
            "[targets.x]\ntype='local'\nworkers=1\n[targets.y]\ntype='local'",
        )
        .unwrap();
        std::fs::write(inner.join(FILE), "[targets.x]\ntype='local'\nworkers=5").unwrap();
        let targets = Targets::load(&inner, None).unwrap();
        assert_eq!(targets.get("x").unwrap().workers.get(), 5);
        assert!(targets.get("y").is_ok());
    }
}
