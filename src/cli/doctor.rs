//! `cellferry doctor`: checks the set-up and the targets, and says what to mend.

use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use cellferry_ssh::Question;
use clap::Args;
use zeroize::Zeroizing;

use crate::driver::User;
use crate::session::HOME;
use crate::target::config::{ConfigError, Place, Slurm, Ssh, Target, Targets};
use crate::target::home::{home_python, python_version};
use crate::target::ssh::agents;

/// How long a Python may take to import ipykernel.
const IMPORT_LIMIT: Duration = Duration::from_secs(60);

/// What `cellferry doctor` takes.
#[derive(Debug, Args)]
pub struct Arguments {
    /// Targets to check [default: all that are defined for this folder]
    targets: Vec<String>,
}

/// Prints what is found; false if something must be mended.
#[derive(Debug, Default)]
struct Report {
    sick: bool,
}

impl Report {
    fn good(&self, text: &str) {
        println!("ok    {text}");
    }

    fn note(&self, text: &str) {
        println!("note  {text}");
    }

    fn bad(&mut self, text: &str, cure: &str) {
        self.sick = true;
        println!("FAIL  {text}");
        for line in cure.lines() {
            println!("      {line}");
        }
    }
}

/// Runs the checks; true if all is well.
pub async fn run(arguments: &Arguments) -> bool {
    let mut report = Report::default();
    println!("cellferry {}", env!("CARGO_PKG_VERSION"));
    kernelspec(&mut report);
    directories(&mut report);
    let folder = std::env::current_dir().unwrap_or_default();
    match Targets::load(&folder, Targets::user_dir().as_deref()) {
        Ok(targets) => {
            match targets.files.as_slice() {
                [] => report.note("no cellferry.toml here or above: all cells run at home"),
                files => files.iter().for_each(|file| {
                    report.good(&format!("targets are defined in {}", file.display()))
                }),
            }
            if let Err(error) = targets.shared() {
                report.bad(
                    &error.to_string(),
                    "mend it in that file; until then no cell with files can run",
                );
            }
            check_targets(&mut report, arguments, &targets).await;
        }
        Err(error) => {
            report.bad(
                &error.to_string(),
                "mend the file; until then only cells at home can run",
            );
            home(&mut report, None).await;
        }
    }
    !report.sick
}

async fn check_targets(report: &mut Report, arguments: &Arguments, targets: &Targets) {
    let mut names: Vec<&str> = arguments.targets.iter().map(String::as_str).collect();
    if names.is_empty() {
        names.push(HOME);
        names.extend(
            targets
                .iter()
                .map(|(name, _)| name)
                .filter(|name| *name != HOME),
        );
    }
    for name in names {
        match targets.get(name) {
            Ok(target) if name == HOME => home(report, target.python.as_deref()).await,
            Ok(target) => match &target.place {
                Place::Local => local(report, &target).await,
                Place::Ssh(ssh) => far(report, &target, ssh).await,
                Place::Slurm(_) if arguments.targets.is_empty() => report.note(&format!(
                    "target `{name}` is well defined; `cellferry doctor {name}` submits a job of one node to try it"
                )),
                Place::Slurm(slurm) => match targets.login(name, slurm, target.defined_in.as_deref()) {
                    Ok(login) => cluster(report, &target, slurm, login).await,
                    Err(error) => report.bad(&format!("target `{name}`: {error}"), "mend it in that file"),
                },
            },
            Err(error @ ConfigError::Unknown { .. }) => {
                report.bad(&format!("target `{name}`: {error}"), "")
            }
            Err(error) => report.bad(&format!("target `{name}`: {error}"), "mend it in that file"),
        }
    }
}

fn kernelspec(report: &mut Report) {
    let own = std::env::current_exe().and_then(|path| path.canonicalize());
    let found: Vec<PathBuf> = jupyter_paths()
        .into_iter()
        .map(|path| path.join("kernels/cellferry"))
        .filter(|path| path.join("kernel.json").is_file())
        .collect();
    let Some(folder) = found.first() else {
        report.bad(
            "Jupyter does not know the kernel",
            "run: cellferry install --user",
        );
        return;
    };
    let file = folder.join("kernel.json");
    let program = std::fs::read(&file)
        .ok()
        .and_then(|text| serde_json::from_slice::<serde_json::Value>(&text).ok())
        .and_then(|spec| {
            Some(
                spec.get("argv")?
                    .get(0)?
                    .as_str()?
                    .replace("{resource_dir}", &folder.to_string_lossy()),
            )
        });
    match program.map(|program| PathBuf::from(program).canonicalize()) {
        Some(Ok(program)) if own.as_ref().is_ok_and(|own| *own == program) => {
            report.good(&format!("Jupyter knows the kernel: {}", folder.display()));
        }
        Some(Ok(program)) => report.note(&format!(
            "{} starts {}, not this program; `cellferry install` changes that",
            file.display(),
            program.display()
        )),
        _ => report.bad(
            &format!("{} names a program that is not there", file.display()),
            "run: cellferry install --user",
        ),
    }
}

/// Where Jupyter looks for kernels, first to last.
fn jupyter_paths() -> Vec<PathBuf> {
    let variable = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
    let mut paths: Vec<PathBuf> = variable("JUPYTER_PATH")
        .map(|value| std::env::split_paths(&value).collect())
        .unwrap_or_default();
    paths.extend(variable("JUPYTER_DATA_DIR").map(PathBuf::from));
    if let Some(home) = variable("HOME").map(PathBuf::from) {
        let data =
            variable("XDG_DATA_HOME").map_or_else(|| home.join(".local/share"), PathBuf::from);
        paths.push(data.join("jupyter"));
        paths.push(home.join("Library/Jupyter"));
    }
    let beside = std::env::current_exe()
        .ok()
        .and_then(|path| Some(path.parent()?.parent()?.to_owned()));
    paths.extend(beside.map(|prefix| prefix.join("share/jupyter")));
    paths.extend(
        ["VIRTUAL_ENV", "CONDA_PREFIX"]
            .iter()
            .filter_map(|name| variable(name))
            .map(|prefix| PathBuf::from(prefix).join("share/jupyter")),
    );
    paths.extend(["/usr/local/share/jupyter", "/usr/share/jupyter"].map(PathBuf::from));
    paths
}

fn directories(report: &mut Report) {
    match cellferry_agent::RunDir::make() {
        Ok(made) => report.good(&format!(
            "private files can be made in {}",
            made.path().parent().unwrap_or(Path::new("/")).display()
        )),
        Err(error) => report.bad(
            &error.to_string(),
            "free space there, or set XDG_RUNTIME_DIR to a folder of your own",
        ),
    }
    match cellferry_agent::RunDir::make_in(Path::new("/dev/shm")) {
        Ok(_) => report.good("large values travel through /dev/shm"),
        Err(error) => report.note(&format!(
            "no shared memory, so large values travel through the temporary folder: {error}"
        )),
    }
}

async fn home(report: &mut Report, configured: Option<&str>) {
    let executable = std::env::current_exe().unwrap_or_default();
    let explicit = configured.map(Path::new);
    match home_python(explicit, &|name| std::env::var_os(name), &executable) {
        Ok(python) => {
            let because = if configured.is_some() {
                "cellferry.toml".to_owned()
            } else {
                python.because
            };
            check_python(
                report,
                HOME,
                &python.path.display().to_string(),
                &format!("chosen by {because}"),
            )
            .await;
        }
        Err(reason) => report.bad(&format!("home: {reason}"), ""),
    }
}

async fn local(report: &mut Report, target: &Target) {
    let executable = std::env::current_exe().unwrap_or_default();
    let python = match &target.python {
        Some(python) => expand_home(python),
        None => match home_python(None, &|name| std::env::var_os(name), &executable) {
            Ok(python) => python.path.display().to_string(),
            Err(reason) => {
                report.bad(&format!("target `{}`: {reason}", target.name), "");
                return;
            }
        },
    };
    check_python(
        report,
        &target.name,
        &python,
        &format!("{} workers at most", target.workers),
    )
    .await;
    if let Some(workdir) = &target.workdir {
        let workdir = PathBuf::from(expand_home(&workdir.display().to_string()));
        let usable =
            std::fs::create_dir_all(&workdir).and_then(|()| tempfile::tempfile_in(&workdir));
        match usable {
            Ok(_) => report.good(&format!(
                "target `{}`: files can be written in {}",
                target.name,
                workdir.display()
            )),
            Err(error) => report.bad(
                &format!(
                    "target `{}`: the working directory {} cannot be used: {error}",
                    target.name,
                    workdir.display()
                ),
                "set another `workdir` in cellferry.toml, or make that one writable",
            ),
        }
    }
}

/// Tries a far host as a cell would.
async fn far(report: &mut Report, target: &Target, ssh: &Ssh) {
    let name = &target.name;
    let built: Vec<_> = agents::programs()
        .iter()
        .map(|program| program.architecture)
        .collect();
    if built.len() < agents::ARCHITECTURES.len() {
        report.note(&format!(
            "agents for these machines are installed: {}; others cannot be targets",
            if built.is_empty() {
                "none".to_owned()
            } else {
                built.join(", ")
            }
        ));
    }
    let start = std::time::Instant::now();
    let tell = |text: &str| println!("      {}", text.trim_end());
    let user = User {
        ask: ask_on_terminal,
        tell,
    };
    match crate::driver::probe(target, ssh, user).await {
        Ok(hello) => report.good(&format!(
            "target `{name}`: `ssh {}` leads to {} ({}, {} processors); an agent and a worker with {} start there in {:.1} s",
            ssh.host,
            hello.hostname,
            hello.arch,
            hello.cpus,
            crate::target::launch::name_there(target),
            start.elapsed().as_secs_f64()
        )),
        Err(problem) => report.bad(&format!("target `{name}`: {}", problem.evalue), ""),
    }
}

async fn cluster(report: &mut Report, target: &Target, slurm: &Slurm, login: Option<Ssh>) {
    let name = &target.name;
    let start = std::time::Instant::now();
    let user = User {
        ask: ask_on_terminal,
        tell: |text: &str| println!("      {}", text.trim_end()),
    };
    match crate::driver::probe_cluster(target, slurm, login, user).await {
        Ok((hello, by_mail)) => {
            report.good(&format!(
                "target `{name}`: a job of one node ran on {} ({}, {} processors), and a worker with {} started there, in {:.1} s",
                hello.hostname,
                hello.arch,
                hello.cpus,
                crate::target::launch::name_there(target),
                start.elapsed().as_secs_f64()
            ));
            report.note(if by_mail {
                "its nodes cannot connect to the login node, so they are reached by a mailbox on the shared file system, which is slower"
            } else {
                "its nodes connect to the login node over TCP"
            });
        }
        Err(problem) => report.bad(&format!("target `{name}`: {}", problem.evalue), ""),
    }
}

/// The user's answer on the terminal; `None` if there is none.
fn ask_on_terminal(question: &Question) -> Option<Zeroizing<String>> {
    if !question.echo {
        return rpassword::prompt_password(&question.text)
            .ok()
            .map(Zeroizing::new);
    }
    if !std::io::stdin().is_terminal() {
        return None;
    }
    print!("{}", question.text);
    std::io::stdout().flush().ok()?;
    let mut answer = Zeroizing::new(String::new());
    std::io::stdin().read_line(&mut answer).ok()?;
    Some(Zeroizing::new(answer.trim_end_matches('\n').to_owned()))
}

fn expand_home(path: &str) -> String {
    match (path.strip_prefix("~/"), std::env::var("HOME")) {
        (Some(rest), Ok(home)) => format!("{home}/{rest}"),
        _ => path.to_owned(),
    }
}

async fn check_python(report: &mut Report, target: &str, python: &str, how: &str) {
    let Some(version) = python_version(Path::new(python)).await else {
        report.bad(
            &format!("target `{target}`: the Python `{python}` cannot be run"),
            &format!("set `python` under [targets.{target}] in cellferry.toml, or install it"),
        );
        return;
    };
    let import = "import ipykernel; print(ipykernel.__version__)";
    let asked = tokio::process::Command::new(python)
        .args(["-c", import])
        .stdin(std::process::Stdio::null())
        .kill_on_drop(true)
        .output();
    match tokio::time::timeout(IMPORT_LIMIT, asked).await {
        Ok(Ok(output)) if output.status.success() => {
            let ipykernel = String::from_utf8_lossy(&output.stdout).trim().to_owned();
            report.good(&format!("target `{target}`: Python {version}, ipykernel {ipykernel} ({python}, {how})"));
        }
        _ => report.bad(
            &format!("target `{target}`: the Python {version} at {python} has no ipykernel, which its workers need"),
            &format!("run: {python} -m pip install ipykernel"),
        ),
    }
}
