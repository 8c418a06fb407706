//! How the Python of a target's workers is started: directly, or from a shell that prepares its environment.

use crate::target::config::Target;

/// What every Python worker is started with, after its program.
const KERNEL: [&str; 4] = ["-m", "ipykernel_launcher", "-f", "{connection_file}"];

/// The notebook's history is kept at home.
const NO_HISTORY: &str = "--HistoryManager.enabled=False";

/// Says that a host has no Python at all; [`missing_python`] finds it in what a worker said last.
const NO_PYTHON: &str = "cellferry: no python3 and no python on PATH";

/// Says that there is no such conda environment.
const NO_CONDA: &str = "cellferry: no conda environment";

/// Says that the lines of `setup` failed.
const SETUP_FAILED: &str = "cellferry: setup failed";

/// Program and arguments of a worker of the target at home or on this machine, where `python` is known.
pub fn here(target: &Target, python: &str, home: bool) -> Vec<String> {
    let mut argv = match script(target, Some(python)) {
        Some(script) => shell(script),
        None => vec![python.to_owned()],
    };
    argv.extend(KERNEL.map(str::to_owned));
    if !home {
        argv.push(NO_HISTORY.to_owned());
    }
    argv
}

/// Program and arguments of a worker on a far host, which finds its own Python if none is named.
pub fn there(target: &Target) -> Vec<String> {
    let mut argv = match (&target.python, script(target, target.python.as_deref())) {
        (Some(python), None) => vec![python.clone()],
        (_, Some(script)) => shell(script),
        (None, None) => vec![
            "sh".to_owned(),
            "-c".to_owned(),
            default_python().to_owned(),
            "cellferry".to_owned(),
        ],
    };
    argv.extend(KERNEL.map(str::to_owned));
    argv.push(NO_HISTORY.to_owned());
    argv
}

/// A command that is run where the environment is prepared as it is for the target's Python.
pub fn prepared(target: &Target, command: Vec<String>) -> Vec<String> {
    match preparation(target) {
        Some(lines) => {
            let mut argv = shell(lines + "exec \"$@\"\n");
            argv.extend(command);
            argv
        }
        None => command,
    }
}

/// What the user calls the Python of a target on a far host.
pub fn name_there(target: &Target) -> String {
    match (&target.python, &target.conda, &target.place) {
        (Some(python), ..) => python.clone(),
        (None, Some(conda), _) => format!("conda environment {conda}"),
        (None, None, _) => "python3".to_owned(),
    }
}

/// Whether a worker's last words say that there is no Python; the reason, if so.
pub fn missing_python(last_words: &str) -> Option<&str> {
    last_words
        .lines()
        .find(|line| {
            [NO_PYTHON, NO_CONDA, SETUP_FAILED]
                .iter()
                .any(|what| line.starts_with(what))
        })
        .map(|line| line.trim_start_matches("cellferry: "))
}

/// A login shell, in which `module`, `conda` and the like are defined.
fn shell(script: String) -> Vec<String> {
    let words = ["bash", "-l", "-c"].map(str::to_owned);
    words
        .into_iter()
        .chain([script, "cellferry".to_owned()])
        .collect()
}

/// The shell lines that prepare the environment and end in the Python; `None` where nothing is to be prepared.
fn script(target: &Target, python: Option<&str>) -> Option<String> {
    let run = match python {
        Some(python) => format!("exec {} \"$@\"", expanding(python)),
        None => default_python().to_owned(),
    };
    Some(preparation(target)? + &run)
}

/// The shell lines that prepare the environment; `None` where nothing is to be prepared.
fn preparation(target: &Target) -> Option<String> {
    if target.setup.is_none() && target.conda.is_none() {
        return None;
    }
    let mut script = String::new();
    if let Some(setup) = &target.setup {
        script += &guarded_setup(setup);
    }
    if let Some(conda) = &target.conda {
        let conda = quoted(conda);
        script += &format!(
            "if ! command -v conda >/dev/null; then\n\
             for base in ~/miniforge3 ~/miniconda3 ~/mambaforge ~/anaconda3 /opt/conda /opt/miniforge3 /opt/miniconda3; do\n\
             if [ -e \"$base/etc/profile.d/conda.sh\" ]; then . \"$base/etc/profile.d/conda.sh\"; break; fi\ndone\nfi\n\
             if ! command -v conda >/dev/null; then\n\
             echo \"{NO_CONDA} \"{conda}\": conda itself is not found; load it in \\`setup\\`\" >&2; exit 127\nfi\n\
             eval \"$(conda shell.posix hook 2>/dev/null)\"\n\
             conda activate {conda} || {{ echo \"{NO_CONDA} \"{conda} >&2; exit 127; }}\n"
        );
    }
    Some(script)
}

/// Shell words that run the first Python on `PATH` with the shell's arguments.
fn default_python() -> &'static str {
    "for python in python3 python; do if command -v $python >/dev/null; then exec $python \"$@\"; fi; done; \
     echo \"cellferry: no python3 and no python on PATH\" >&2; exit 127"
}

/// The user's shell lines, for bash. One that fails must not be passed over: the wrong Python would start.
pub fn guarded_setup(setup: &str) -> String {
    format!(
        "trap 'echo \"{SETUP_FAILED} (status $?): $BASH_COMMAND\" >&2' ERR\nset -e\n{setup}\nset +e\ntrap - ERR\n"
    )
}

fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', "'\\''"))
}

/// As a shell word in which `~/` at the start is the home directory.
fn expanding(path: &str) -> String {
    match path.strip_prefix("~/") {
        Some(rest) => format!("~/{}", quoted(rest)),
        None => quoted(path),
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;
    use crate::target::config::Targets;

    fn target(lines: &str) -> Target {
        let folder = tempfile::tempdir().unwrap();
        let text = format!("[targets.lab]\ntype='ssh'\nhost='lab'\n{lines}");
        std::fs::write(folder.path().join("cellferry.toml"), text).unwrap();
        Targets::load(folder.path(), None)
            .unwrap()
            .get("lab")
            .unwrap()
    }

    /// Runs the program with its arguments, but `echo` in the place of Python.
    fn run(argv: &[String]) -> (Option<i32>, String, String) {
        let output = Command::new(&argv[0]).args(&argv[1..]).output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
        (
            output.status.code(),
            text(&output.stdout),
            text(&output.stderr),
        )
    }

    #[test]
    fn a_named_python_is_started_itself() {
        let argv = there(&target("python='~/env/bin/python'"));
        assert_eq!(argv[..2], ["~/env/bin/python", "-m"]);
        assert!(argv.contains(&NO_HISTORY.to_owned()));
    }

    #[test]
    fn setup_runs_first_and_its_failure_is_told() {
        let argv = there(&target(
            "python='echo'\nsetup='''\nX=1\nexport X\necho \"it's $X\"'''",
        ));
        let (code, out, _) = run(&argv);
        assert_eq!(code, Some(0));
        assert!(out.starts_with("it's 1\n-m ipykernel_launcher"), "{out}");
        let argv = there(&target(
            "python='echo'\nsetup='module_that_is_not_there load x'",
        ));
        let (code, out, error) = run(&argv);
        assert_eq!((code, out.as_str()), (Some(127), ""));
        assert_eq!(
            missing_python(&error),
            Some("setup failed (status 127): module_that_is_not_there load x")
        );
    }

    #[test]
    fn no_python_and_no_conda_are_told() {
        let mut argv = there(&target(""));
        argv.splice(
            0..1,
            ["/usr/bin/env", "PATH=/nowhere", "/bin/sh"].map(str::to_owned),
        );
        let (code, _, error) = run(&argv);
        assert_eq!(code, Some(127));
        assert_eq!(
            missing_python(&error),
            Some("no python3 and no python on PATH")
        );
        let (code, _, error) = run(&there(&target("conda=\"it's not there\"")));
        assert_eq!(code, Some(127));
        assert!(
            missing_python(&error)
                .unwrap()
                .starts_with("no conda environment it's not there"),
            "{error}"
        );
    }
}
