//! Which file the session's notebook is: told by the client, or read off its command line.

use std::path::{Path, PathBuf};

use super::runner::{self, Told};

/// The process that started the kernel.
#[derive(Clone, Debug, Default)]
pub struct Parent {
    /// Its arguments, the program first.
    pub arguments: Vec<String>,
    /// Its working directory, to which its arguments are relative.
    pub directory: PathBuf,
}

impl Parent {
    /// The parent process, as `/proc` shows it.
    pub fn current() -> Option<Self> {
        let named = std::env::var("JPY_PARENT_PID")
            .ok()
            .and_then(|pid| pid.parse::<i32>().ok())
            .filter(|pid| *pid > 1);
        let pid = named.unwrap_or_else(|| nix::unistd::getppid().as_raw());
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        let arguments = line
            .split(|byte| *byte == 0)
            .filter(|argument| !argument.is_empty())
            .map(|argument| String::from_utf8_lossy(argument).into_owned())
            .collect();
        let directory = std::fs::read_link(format!("/proc/{pid}/cwd")).ok()?;
        Some(Self {
            arguments,
            directory,
        })
    }
}

/// The notebook of a session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Located {
    /// Its file.
    pub path: PathBuf,
    /// Whether the client goes through it in order, as batch clients do: then the kernel may look ahead.
    pub in_order: bool,
}

/// Finds the notebook: `CELLFERRY_NOTEBOOK`, the path that Jupyter Server tells, or the one
/// notebook among the arguments of nbconvert, papermill or `jupyter execute`.
///
/// A batch client's arguments go before what the server tells, which such a client cannot know:
/// started from a notebook's cell, it only inherits the path of that notebook.
pub fn locate(
    environment: &dyn Fn(&str) -> Option<String>,
    jupyter_session: Option<&str>,
    parent: Option<&Parent>,
) -> Option<Located> {
    let in_order = |path| Located {
        path,
        in_order: true,
    };
    if let Some(path) = environment("CELLFERRY_NOTEBOOK").filter(|path| !path.is_empty()) {
        return Some(in_order(PathBuf::from(path)));
    }
    if let Some(parent) = parent {
        match runner::notebook(&parent.arguments) {
            Told::Notebook(argument) => return existing(&parent.directory, argument).map(in_order),
            Told::Unclear => return None,
            Told::NoRunner => {}
        }
    }
    [
        jupyter_session.map(str::to_owned),
        environment("JPY_SESSION_NAME"),
    ]
    .into_iter()
    .flatten()
    .map(PathBuf::from)
    .find(|path| is_notebook(path) && path.is_file())
    .map(|path| Located {
        path,
        in_order: false,
    })
}

/// The file that an argument names, with the suffix that it may lack.
fn existing(directory: &Path, argument: &str) -> Option<PathBuf> {
    let path = directory.join(argument);
    let with_suffix = PathBuf::from(format!("{}.ipynb", path.display()));
    [path, with_suffix]
        .into_iter()
        .find(|path| is_notebook(path) && path.is_file())
}

fn is_notebook(path: &Path) -> bool {
    path.extension()
        .is_some_and(|extension| extension == "ipynb")
}
