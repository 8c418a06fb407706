//! Which file the session's notebook is: told by the client, or read off its command line.

use std::path::{Path, PathBuf};

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

/// Finds the notebook: `CELLFERRY_NOTEBOOK`, the path that Jupyter Server tells, then the one
/// notebook among the arguments of nbconvert, papermill or `jupyter execute`.
pub fn locate(
    environment: &dyn Fn(&str) -> Option<String>,
    jupyter_session: Option<&str>,
    parent: Option<&Parent>,
) -> Option<PathBuf> {
    if let Some(path) = environment("CELLFERRY_NOTEBOOK").filter(|path| !path.is_empty()) {
        return Some(PathBuf::from(path));
    }
    let told = [
        jupyter_session.map(str::to_owned),
        environment("JPY_SESSION_NAME"),
    ];
    for path in told.into_iter().flatten().map(PathBuf::from) {
        if is_notebook(&path) && path.is_file() {
            return Some(path);
        }
    }
    let parent = parent?;
    let argument = from_arguments(&parent.arguments)?;
    let path = parent.directory.join(argument);
    // nbconvert adds the suffix if it is left out.
    let with_suffix = PathBuf::from(format!("{}.ipynb", path.display()));
    [path, with_suffix]
        .into_iter()
        .find(|path| is_notebook(path) && path.is_file())
}

fn is_notebook(path: &Path) -> bool {
    path.extension()
        .is_some_and(|extension| extension == "ipynb")
}

/// Options of papermill that take one value, and `-p` and `-r`, which take two.
const PAPERMILL_VALUES: [&str; 21] = [
    "-y",
    "--parameters_yaml",
    "-b",
    "--parameters_base64",
    "-f",
    "--parameters_file",
    "-k",
    "--kernel",
    "-l",
    "--language",
    "--engine",
    "--autosave-cell-every",
    "--cwd",
    "--execution-timeout",
    "--start-timeout",
    "--start_timeout",
    "--log-level",
    "--stdout-file",
    "--stderr-file",
    "--request-save-on-cell-execute",
    "--report-mode-dir",
];

fn from_arguments(arguments: &[String]) -> Option<&str> {
    let program = |argument: &String| {
        Path::new(argument)
            .file_name()
            .map(|name| name.to_string_lossy().into_owned())
    };
    // The command stands among the first words: `python -m papermill`, `python …/bin/jupyter nbconvert`.
    let head: Vec<String> = arguments.iter().take(5).filter_map(program).collect();
    let named = |name: &str| {
        head.iter()
            .position(|word| word == name || word == &format!("{name}.py"))
    };
    if let Some(at) = named("papermill").or_else(|| {
        named("__main__").filter(|_| arguments.iter().any(|word| word.contains("papermill")))
    }) {
        return papermill_input(&arguments[at + 1..]);
    }
    let after_jupyter = |command: &str| {
        named(&format!("jupyter-{command}")).or_else(|| {
            let at = named("jupyter")?;
            (arguments.get(at + 1).map(String::as_str) == Some(command)).then_some(at + 1)
        })
    };
    let module = |name: &str| {
        arguments
            .windows(2)
            .position(|pair| pair[0] == "-m" && pair[1] == name)
            .map(|at| at + 1)
            .or_else(|| {
                // `python -m nbconvert` shows as the path of its `__main__`.
                arguments
                    .iter()
                    .take(5)
                    .position(|word| word.ends_with(&format!("{name}/__main__.py")))
            })
    };
    let at = after_jupyter("nbconvert")
        .or_else(|| module("nbconvert"))
        .or_else(|| after_jupyter("execute"))
        .or_else(|| module("nbclient"))
        .or_else(|| module("jupyter_execute"))?;
    let mut found = None;
    let mut words = arguments[at + 1..].iter();
    while let Some(word) = words.next() {
        if matches!(
            word.as_str(),
            "--output"
                | "--output-dir"
                | "--template"
                | "--to"
                | "--config"
                | "--kernel_name"
                | "--timeout"
        ) {
            words.next();
            continue;
        }
        if word.starts_with('-') {
            continue;
        }
        if found.is_some() {
            // Several notebooks: no guess.
            return None;
        }
        found = Some(word.as_str());
    }
    found
}

fn papermill_input(arguments: &[String]) -> Option<&str> {
    let mut words = arguments.iter();
    while let Some(word) = words.next() {
        let option = word.as_str();
        if matches!(option, "-p" | "--parameters" | "-r" | "--parameters_raw") {
            words.next();
            words.next();
        } else if PAPERMILL_VALUES.contains(&option) {
            words.next();
        } else if option == "-" {
            return None;
        } else if !option.starts_with('-') {
            return Some(option);
        }
    }
    None
}
