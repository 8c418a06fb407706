//! `cellferry.toml`: the targets that the user names, and what is wrong with it.
//!
//! A fault in one target harms no cell but those that use it.

mod deployment;
mod error;
mod shared;
pub mod slurm;
mod ssh;
mod table;
mod target;

pub use error::ConfigError;
pub use slurm::{Slurm, System};
pub use ssh::Ssh;
pub use target::{Place, Target};

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value as Json};
use toml::Value;

use self::shared::Tree;
use self::ssh::is_host;
use crate::session::HOME;
use crate::spelling::nearest;
use crate::target::shared::Shared;

/// The name of the file.
pub const FILE: &str = "cellferry.toml";

const FILE_KEYS: [&str; 2] = ["targets", "shared"];

/// All targets in sight of a notebook.
#[derive(Clone, Debug, Default)]
pub struct Targets {
    targets: BTreeMap<String, Result<Target, ConfigError>>,
    /// What targets share, with where each tree was declared; read only when it is asked for.
    shared: Vec<(Tree, Declared)>,
    /// The files looked at, nearest first.
    pub files: Vec<PathBuf>,
}

/// Where something is declared.
#[derive(Clone, Debug)]
struct Declared {
    file: PathBuf,
    text: String,
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
                    let tree = shared::read(index, tree, file).map_err(|error| error.at_line(text));
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
            let target = table::read(name, value, file).map_err(|error| error.at_line(text));
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
                .or_insert_with(|| deployment::read(name, deployment, notebook));
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
        if let Some(alias) = name.strip_prefix(ssh::PREFIX) {
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
                let alias = login.strip_prefix(ssh::PREFIX).unwrap_or(login);
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

#[cfg(test)]
mod tests;
