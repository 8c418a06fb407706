//! `cellferry install`: writes the kernelspec where Jupyter looks for it.
//!
//! Source: "Kernel specs" in the Jupyter client documentation; the options are those of
//! `python -m ipykernel install`.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;
use serde_json::json;
use thiserror::Error;

/// Where to install.
#[derive(Debug, Args)]
#[group(id = "where", multiple = false)]
pub struct Place {
    /// For this user (the default)
    #[arg(long)]
    user: bool,
    /// Into DIR/share/jupyter
    #[arg(long, value_name = "DIR")]
    prefix: Option<PathBuf>,
    /// Into the Python environment in use
    #[arg(long)]
    sys_prefix: bool,
}

/// What `cellferry install` takes.
#[derive(Debug, Args)]
pub struct Arguments {
    #[command(flatten)]
    place: Place,
    /// The kernel's name in Jupyter
    #[arg(long, default_value = "cellferry")]
    name: String,
    /// The Python of cells that run at home [default: found when the kernel starts]
    #[arg(long, value_name = "PROGRAM")]
    python: Option<PathBuf>,
}

/// Why the kernelspec was not written.
#[derive(Debug, Error)]
pub enum InstallError {
    /// No directory to install into.
    #[error("{0}")]
    Nowhere(String),
    /// The name cannot be a kernel's.
    #[error("`{0}` cannot be the name of a kernel: use letters, digits, `.`, `_` and `-`")]
    Name(String),
    /// A file cannot be written.
    #[error("cannot write `{}`: {source}; choose another place with --user, --prefix or --sys-prefix", path.display())]
    Write {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
}

const FILES: [(&str, &[u8]); 3] = [
    (
        "logo-32x32.png",
        include_bytes!("../../kernelspec/data/share/jupyter/kernels/cellferry/logo-32x32.png"),
    ),
    (
        "logo-64x64.png",
        include_bytes!("../../kernelspec/data/share/jupyter/kernels/cellferry/logo-64x64.png"),
    ),
    (
        "logo-svg.svg",
        include_bytes!("../../kernelspec/data/share/jupyter/kernels/cellferry/logo-svg.svg"),
    ),
];

/// Installs the kernelspec.
pub fn run(arguments: &Arguments) -> Result<ExitCode, InstallError> {
    let name = &arguments.name;
    if name.is_empty()
        || !name
            .chars()
            .all(|letter| letter.is_ascii_alphanumeric() || "._-".contains(letter))
    {
        return Err(InstallError::Name(name.clone()));
    }
    let environment = |name: &str| {
        std::env::var_os(name)
            .filter(|value| !value.is_empty())
            .map(PathBuf::from)
    };
    let base = base(&arguments.place, &environment)?;
    let executable =
        std::env::current_exe().map_err(|error| InstallError::Nowhere(error.to_string()))?;
    let folder = base.join("kernels").join(name);
    write(&folder, &executable, arguments.python.as_deref())?;
    println!("installed the kernel `{name}` in {}", folder.display());
    println!(
        "next: `jupyter lab`, and choose the kernel Cellferry (Python); `cellferry doctor` checks the set-up"
    );
    Ok(ExitCode::SUCCESS)
}

/// Jupyter's data directory that was asked for.
fn base(
    place: &Place,
    environment: &dyn Fn(&str) -> Option<PathBuf>,
) -> Result<PathBuf, InstallError> {
    if let Some(prefix) = &place.prefix {
        let prefix = std::path::absolute(prefix)
            .map_err(|error| InstallError::Nowhere(error.to_string()))?;
        return Ok(prefix.join("share/jupyter"));
    }
    if place.sys_prefix {
        let prefix = environment("VIRTUAL_ENV").or_else(|| environment("CONDA_PREFIX"));
        return prefix.map(|prefix| prefix.join("share/jupyter")).ok_or_else(|| {
            InstallError::Nowhere("no Python environment is active: activate one, or name its folder with --prefix".to_owned())
        });
    }
    if let Some(data) = environment("JUPYTER_DATA_DIR") {
        return Ok(data);
    }
    let home = environment("HOME")
        .ok_or_else(|| InstallError::Nowhere("HOME is not set: use --prefix".to_owned()))?;
    if cfg!(target_os = "macos") {
        return Ok(home.join("Library/Jupyter"));
    }
    Ok(environment("XDG_DATA_HOME")
        .unwrap_or_else(|| home.join(".local/share"))
        .join("jupyter"))
}

fn write(folder: &Path, executable: &Path, python: Option<&Path>) -> Result<(), InstallError> {
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| InstallError::Write { path, source }
    };
    std::fs::create_dir_all(folder).map_err(failed(folder))?;
    let mut argv = vec![
        json!(executable),
        json!("kernel"),
        json!("-f"),
        json!("{connection_file}"),
    ];
    if let Some(python) = python {
        argv.extend([json!("--python"), json!(python)]);
    }
    let spec = json!({
        "argv": argv,
        "display_name": "Cellferry (Python)",
        "language": "python",
        "interrupt_mode": "message",
        "metadata": {"debugger": true},
    });
    let mut text = serde_json::to_vec_pretty(&spec).unwrap_or_default();
    text.push(b'\n');
    for (name, content) in FILES.into_iter().chain([("kernel.json", text.as_slice())]) {
        let path = folder.join(name);
        // Whole or not at all: a client may be reading it.
        let mut file = tempfile::NamedTempFile::new_in(folder).map_err(failed(&path))?;
        std::io::Write::write_all(&mut file, content).map_err(failed(&path))?;
        let readable = std::os::unix::fs::PermissionsExt::from_mode(0o644);
        std::fs::set_permissions(file.path(), readable).map_err(failed(&path))?;
        file.persist(&path).map_err(|error| InstallError::Write {
            path: path.clone(),
            source: error.error,
        })?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(user: bool, prefix: Option<&str>, sys_prefix: bool) -> Place {
        Place {
            user,
            prefix: prefix.map(PathBuf::from),
            sys_prefix,
        }
    }

    #[test]
    fn the_place_is_jupyters_own() {
        let none = |_: &str| None;
        let set = |name: &str| {
            (name == "HOME" || name == "VIRTUAL_ENV").then(|| PathBuf::from(format!("/{name}")))
        };
        assert_eq!(
            base(&place(false, Some("/opt/x"), false), &none).unwrap(),
            Path::new("/opt/x/share/jupyter")
        );
        assert_eq!(
            base(&place(false, None, true), &set).unwrap(),
            Path::new("/VIRTUAL_ENV/share/jupyter")
        );
        assert!(
            base(&place(false, None, true), &none)
                .unwrap_err()
                .to_string()
                .contains("--prefix")
        );
        if cfg!(target_os = "linux") {
            assert_eq!(
                base(&place(true, None, false), &set).unwrap(),
                Path::new("/HOME/.local/share/jupyter")
            );
        }
    }

    #[test]
    fn the_spec_is_written_again_and_again() {
        let folder = tempfile::tempdir().unwrap();
        for _ in 0..2 {
            write(
                folder.path(),
                Path::new("/bin/cellferry"),
                Some(Path::new("/p")),
            )
            .unwrap();
        }
        let text = std::fs::read_to_string(folder.path().join("kernel.json")).unwrap();
        let spec: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(
            spec["argv"],
            json!([
                "/bin/cellferry",
                "kernel",
                "-f",
                "{connection_file}",
                "--python",
                "/p"
            ])
        );
        let count = std::fs::read_dir(folder.path()).unwrap().count();
        assert_eq!(count, 4, "something temporary was left");
        let error = write(Path::new("/proc/nowhere"), Path::new("/x"), None)
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("/proc/nowhere") && error.contains("--prefix"),
            "{error}"
        );
    }
}
