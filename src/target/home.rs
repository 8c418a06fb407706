//! Which Python is the user's own.

use std::ffi::OsString;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How long a Python may take to say its version.
const VERSION_LIMIT: Duration = Duration::from_secs(2);

/// The home Python, and why it was chosen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HomePython {
    /// Its path.
    pub path: PathBuf,
    /// Why, as the end of "… because of".
    pub because: String,
}

/// Finds the home Python: what was asked for, the environment that `cellferry` is installed in,
/// the active environment, then `PATH`.
pub fn home_python(
    explicit: Option<&Path>,
    environment: &dyn Fn(&str) -> Option<OsString>,
    executable: &Path,
) -> Result<HomePython, String> {
    let found = |path: PathBuf, because: String| HomePython { path, because };
    if let Some(path) = explicit {
        return named(path, environment)
            .map(|path| found(path, "the option --python".to_owned()))
            .ok_or_else(|| {
                format!(
                    "the option --python names `{}`, which is not a program",
                    path.display()
                )
            });
    }
    if let Some(name) = environment("CELLFERRY_PYTHON").filter(|name| !name.is_empty()) {
        let path = PathBuf::from(name);
        return named(&path, environment)
            .map(|path| found(path, "CELLFERRY_PYTHON".to_owned()))
            .ok_or_else(|| {
                format!(
                    "CELLFERRY_PYTHON names `{}`, which is not a program",
                    path.display()
                )
            });
    }
    if let Some(beside) = executable.parent() {
        for name in ["python", "python3"] {
            let path = beside.join(name);
            if is_program(&path) {
                return Ok(found(
                    path,
                    "the environment that cellferry is installed in".to_owned(),
                ));
            }
        }
    }
    for variable in ["VIRTUAL_ENV", "CONDA_PREFIX"] {
        if let Some(prefix) = environment(variable).filter(|prefix| !prefix.is_empty()) {
            let path = PathBuf::from(prefix).join("bin/python");
            if is_program(&path) {
                return Ok(found(path, variable.to_owned()));
            }
        }
    }
    for name in ["python3", "python"] {
        if let Some(path) = on_path(name, environment) {
            return Ok(found(path, format!("`{name}` on PATH")));
        }
    }
    Err("no Python was found: neither beside the cellferry program, nor in VIRTUAL_ENV or CONDA_PREFIX, \
         nor `python3` on PATH; install Python, or name one with CELLFERRY_PYTHON"
        .to_owned())
}

fn named(path: &Path, environment: &dyn Fn(&str) -> Option<OsString>) -> Option<PathBuf> {
    if path.components().count() == 1 {
        return on_path(path.to_str()?, environment);
    }
    is_program(path).then(|| path.to_owned())
}

fn on_path(name: &str, environment: &dyn Fn(&str) -> Option<OsString>) -> Option<PathBuf> {
    let path = environment("PATH")?;
    std::env::split_paths(&path)
        .map(|directory| directory.join(name))
        .find(|candidate| is_program(candidate))
}

fn is_program(path: &Path) -> bool {
    std::fs::metadata(path)
        .is_ok_and(|metadata| metadata.is_file() && metadata.permissions().mode() & 0o111 != 0)
}

/// The version of a Python: as its virtual environment notes it, else as it says itself.
pub async fn python_version(path: &Path) -> Option<String> {
    if let Some(version) = noted_version(path) {
        return Some(version);
    }
    let asked = tokio::process::Command::new(path)
        .arg("-V")
        .kill_on_drop(true)
        .output();
    let output = tokio::time::timeout(VERSION_LIMIT, asked)
        .await
        .ok()?
        .ok()?;
    Some(
        String::from_utf8_lossy(&output.stdout)
            .trim()
            .strip_prefix("Python ")?
            .to_owned(),
    )
}

fn noted_version(path: &Path) -> Option<String> {
    let configuration = path.parent()?.parent()?.join("pyvenv.cfg");
    let text = std::fs::read_to_string(configuration).ok()?;
    text.lines().find_map(|line| {
        let (key, value) = line.split_once('=')?;
        matches!(key.trim(), "version" | "version_info").then(|| {
            // `version_info` may go on with `.final.0`.
            value
                .trim()
                .split('.')
                .take(3)
                .collect::<Vec<_>>()
                .join(".")
        })
    })
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    fn program(path: &Path) {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, "#!/bin/sh\n").unwrap();
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
    }

    fn find(
        explicit: Option<&str>,
        environment: &[(&str, &Path)],
        executable: &Path,
    ) -> Result<HomePython, String> {
        let environment: HashMap<&str, &Path> = environment.iter().copied().collect();
        home_python(
            explicit.map(Path::new),
            &|name| {
                environment
                    .get(name)
                    .map(|path| path.as_os_str().to_owned())
            },
            executable,
        )
    }

    #[test]
    fn the_nearest_python_wins() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        for name in [
            "path/python3",
            "venv/bin/python",
            "own/bin/python",
            "asked/python3.12",
        ] {
            program(&at(name));
        }
        let (path, venv) = (at("path"), at("venv"));
        let bare = at("target/cellferry");
        let installed = at("own/bin/cellferry");
        assert_eq!(
            find(None, &[("PATH", &path)], &bare).unwrap().path,
            at("path/python3")
        );
        assert_eq!(
            find(None, &[("PATH", &path), ("VIRTUAL_ENV", &venv)], &bare)
                .unwrap()
                .path,
            at("venv/bin/python")
        );
        assert_eq!(
            find(None, &[("VIRTUAL_ENV", &venv)], &installed)
                .unwrap()
                .path,
            at("own/bin/python")
        );
        let asked = at("asked/python3.12");
        let both = [
            ("VIRTUAL_ENV", venv.as_path()),
            ("CELLFERRY_PYTHON", asked.as_path()),
        ];
        assert_eq!(find(None, &both, &installed).unwrap().path, asked);
    }

    #[test]
    fn a_python_that_is_not_there_is_named() {
        assert!(
            find(Some("/no/python"), &[], Path::new("/x/cellferry"))
                .unwrap_err()
                .contains("/no/python")
        );
        assert!(
            find(None, &[], Path::new("/x/cellferry"))
                .unwrap_err()
                .contains("CELLFERRY_PYTHON")
        );
    }

    #[test]
    fn the_version_of_an_environment_needs_no_process() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(
            folder.path().join("pyvenv.cfg"),
            "home = /usr/bin\nversion_info = 3.12.4.final.0\n",
        )
        .unwrap();
        assert_eq!(
            noted_version(&folder.path().join("bin/python")).as_deref(),
            Some("3.12.4")
        );
    }
}
