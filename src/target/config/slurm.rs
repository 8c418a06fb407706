//! Targets of types `slurm` and `pbs`: what their table says.

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::time::Duration;

use toml::{Table, Value};

use crate::cell::resources::{Memory, read_time};
use crate::target::batch::Request;
use crate::target::batch::request::{Choice, Gpus};
use crate::target::batch::slurm::OURS;

/// The keys of the table.
pub const KEYS: [&str; 24] = [
    "type",
    "login",
    "partition",
    "account",
    "qos",
    "time",
    "nodes",
    "cpus",
    "memory",
    "gpus",
    "gres",
    "constraint",
    "options",
    "folder",
    "idle",
    "patience",
    "keep",
    "python",
    "conda",
    "setup",
    "workdir",
    "workers",
    "env",
    "mpi",
];

/// After how long without a step an allocation is given back.
const IDLE: Duration = Duration::from_secs(600);

/// How long an allocation waits for its kernel to come back.
const PATIENCE: Duration = Duration::from_secs(600);

/// What gives out a cluster's nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum System {
    /// Slurm.
    Slurm,
    /// Torque, OpenPBS or PBS Professional.
    Pbs,
}

/// A cluster that runs Slurm, or PBS, and what allocations on it ask for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slurm {
    /// By which commands.
    pub system: System,
    /// Where its commands are run: a target of type `ssh`, or a host; `None` for this machine.
    pub login: Option<String>,
    /// What a job asks for, unless a cell needs more.
    pub request: Request,
    /// A folder that login and compute nodes share, as written; the user's cache directory by default.
    pub folder: Option<String>,
    /// An allocation that was not used for so long is given back.
    pub idle: Duration,
    /// An allocation whose kernel has been gone for so long ends itself.
    pub patience: Duration,
    /// Whether the next kernel of the same notebook takes over the allocations of the last one.
    pub keep: bool,
    /// What starts the ranks of MPI steps.
    pub mpi: Mpi,
}

/// What starts the ranks of MPI steps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mpi {
    /// `srun` with the cluster's own choice of `--mpi`, or with this one: `pmix`, `pmi2`.
    Srun(Option<String>),
    /// `mpirun`.
    Mpirun,
}

/// What is wrong: the key, below the table, and the problem.
type Problem = (String, String);

/// Reads the keys that no other type of target has.
pub fn read(table: &Table) -> Result<Slurm, Problem> {
    let reader = Reader { table };
    let request = Request {
        partition: reader.word("partition")?,
        account: reader.word("account")?,
        qos: reader.word("qos")?,
        time: reader.time("time")?,
        nodes: reader.count("nodes")?.unwrap_or(NonZeroU32::MIN),
        cpus: reader.count("cpus")?,
        memory: reader.memory()?,
        gpus: reader.gpus()?,
        gres: reader.gres()?,
        constraint: reader.word("constraint")?,
        options: reader.options()?,
    };
    Ok(Slurm {
        system: System::Slurm,
        login: reader.word("login")?,
        request,
        folder: reader.folder()?,
        idle: reader.time("idle")?.unwrap_or(IDLE),
        patience: reader.time("patience")?.unwrap_or(PATIENCE),
        keep: reader.flag("keep")?.unwrap_or(true),
        mpi: reader.mpi()?,
    })
}

struct Reader<'a> {
    table: &'a Table,
}

impl Reader<'_> {
    /// A word for Slurm, on one line.
    fn word(&self, key: &str) -> Result<Option<String>, Problem> {
        match self.table.get(key) {
            None => Ok(None),
            Some(Value::String(word)) if is_word(word) => Ok(Some(word.clone())),
            Some(Value::String(_)) => Err(wrong(key, "must be one line of text, and not be empty")),
            Some(_) => Err(wrong(key, "must be a string")),
        }
    }

    fn count(&self, key: &str) -> Result<Option<NonZeroU32>, Problem> {
        match self.table.get(key) {
            None => Ok(None),
            Some(Value::Integer(count)) => u32::try_from(*count)
                .ok()
                .and_then(NonZeroU32::new)
                .map(Some)
                .ok_or_else(|| wrong(key, "must be at least 1")),
            Some(_) => Err(wrong(key, "must be a whole number")),
        }
    }

    fn flag(&self, key: &str) -> Result<Option<bool>, Problem> {
        match self.table.get(key) {
            None => Ok(None),
            Some(Value::Boolean(flag)) => Ok(Some(*flag)),
            Some(_) => Err(wrong(key, "must be true or false")),
        }
    }

    fn time(&self, key: &str) -> Result<Option<Duration>, Problem> {
        match self.table.get(key) {
            None => Ok(None),
            Some(Value::String(text)) => read_time(text)
                .map(Some)
                .map_err(|problem| wrong(key, &problem)),
            Some(Value::Integer(number)) => Err(wrong(
                key,
                &format!("{number} of what? Write \"{number}m\" or \"{number}h\""),
            )),
            Some(_) => Err(wrong(
                key,
                "must be a time in quotes, such as \"00:30:00\" or \"30m\"",
            )),
        }
    }

    fn memory(&self) -> Result<Option<Memory>, Problem> {
        match self.table.get("memory") {
            None => Ok(None),
            Some(Value::String(text)) => Memory::parse(text).map(Some).ok_or_else(|| {
                let problem = format!("`{text}` is no amount of memory; write \"16G\" or \"512M\"");
                wrong("memory", &problem)
            }),
            Some(Value::Integer(number)) => Err(wrong(
                "memory",
                &format!("{number} of what? Write \"{number}G\" or \"{number}M\""),
            )),
            Some(_) => Err(wrong(
                "memory",
                "must be an amount in quotes, such as \"16G\"",
            )),
        }
    }

    fn gpus(&self) -> Result<Option<Gpus>, Problem> {
        let problem = || {
            wrong(
                "gpus",
                "must be a whole number of at least 1, or a kind and a number, such as \"a100:2\"",
            )
        };
        let (kind, count) = match self.table.get("gpus") {
            None => return Ok(None),
            Some(Value::Integer(count)) => (None, u32::try_from(*count).ok()),
            Some(Value::String(text)) => {
                let (kind, count) = text.split_once(':').ok_or_else(problem)?;
                let named = !kind.is_empty()
                    && kind
                        .chars()
                        .all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c));
                if !named {
                    return Err(problem());
                }
                (Some(kind.to_owned()), count.parse().ok())
            }
            Some(_) => return Err(problem()),
        };
        let count = count.and_then(NonZeroU32::new).ok_or_else(problem)?;
        Ok(Some(Gpus { kind, count }))
    }

    fn gres(&self) -> Result<Option<String>, Problem> {
        let gres = self.word("gres")?;
        let asks_for_gpus = |gres: &String| {
            gres.split(',')
                .any(|one| one == "gpu" || one.starts_with("gpu:"))
        };
        if gres.as_ref().is_some_and(asks_for_gpus) {
            let problem = "asks for GPUs; write them as `gpus`, so that steps get their share: gpus = 2, or gpus = \"a100:2\"";
            return Err(wrong("gres", problem));
        }
        Ok(gres)
    }

    fn folder(&self) -> Result<Option<String>, Problem> {
        let folder = self.word("folder")?;
        match folder.as_deref() {
            Some(path) if path != "~" && !path.starts_with("~/") && !path.starts_with('/') => {
                let problem = "must be a path on the cluster that begins with `/` or `~/`";
                Err(wrong("folder", problem))
            }
            _ => Ok(folder),
        }
    }

    fn mpi(&self) -> Result<Mpi, Problem> {
        let word = self.word("mpi")?;
        match word.as_deref() {
            None | Some("srun") => Ok(Mpi::Srun(None)),
            Some("mpirun") => Ok(Mpi::Mpirun),
            Some(kind) if kind.chars().all(|c| c.is_ascii_alphanumeric() || c == '_') => {
                Ok(Mpi::Srun(Some(kind.to_owned())))
            }
            Some(_) => Err(wrong(
                "mpi",
                "must be `srun`, `mpirun`, or what `srun --mpi=list` lists, such as `pmix`",
            )),
        }
    }

    fn options(&self) -> Result<BTreeMap<String, Choice>, Problem> {
        let options = match self.table.get("options") {
            None => return Ok(BTreeMap::new()),
            Some(Value::Table(options)) => options,
            Some(_) => {
                let problem = "must be a table of options of sbatch by their long names: options = { exclusive = true }";
                return Err(wrong("options", problem));
            }
        };
        let mut choices = BTreeMap::new();
        for (name, value) in options {
            let path = format!("options.{name}");
            let valid = name.starts_with(|c: char| c.is_ascii_lowercase())
                && name.len() > 1
                && name
                    .chars()
                    .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-');
            if !valid {
                let problem = "is no option of sbatch: give its long name, without the dashes";
                return Err(wrong(&path, problem));
            }
            if let Some((_, instead)) = OURS.iter().find(|(ours, _)| ours == name) {
                let problem = format!("cannot be given here: {instead}");
                return Err(wrong(&path, &problem));
            }
            let choice = match value {
                Value::Boolean(true) => Choice::Given,
                Value::Boolean(false) => Choice::Left,
                Value::Integer(number) => Choice::Value(number.to_string()),
                Value::String(text) if is_word(text) => Choice::Value(text.clone()),
                _ => {
                    let problem = "must be a string on one line, a whole number, or true for an option without a value";
                    return Err(wrong(&path, problem));
                }
            };
            choices.insert(name.clone(), choice);
        }
        Ok(choices)
    }
}

fn is_word(text: &str) -> bool {
    !text.trim().is_empty() && !text.chars().any(char::is_control)
}

fn wrong(key: &str, problem: &str) -> Problem {
    (key.to_owned(), problem.to_owned())
}

#[cfg(test)]
mod tests {
    use super::super::{Place, Ssh, Targets};
    use super::*;
    use std::path::Path;

    fn targets(text: &str) -> Targets {
        let mut targets = Targets::default();
        targets.add(Path::new("/n/cellferry.toml"), text).unwrap();
        targets
    }

    fn slurm(lines: &str) -> Slurm {
        let text = format!("[targets.big]\ntype='slurm'\n{lines}");
        match targets(&text).get("big").unwrap().place {
            Place::Slurm(slurm) => *slurm,
            other => panic!("{other:?}"),
        }
    }

    fn problem(lines: &str) -> String {
        let text = format!("[targets.big]\ntype='slurm'\n{lines}");
        targets(&text).get("big").unwrap_err().to_string()
    }

    #[test]
    fn what_is_not_said_is_left_to_the_cluster() {
        let plain = slurm("");
        assert_eq!(plain.request, Request::default());
        assert_eq!(
            (plain.login, plain.keep, plain.mpi),
            (None, true, Mpi::Srun(None))
        );
    }

    #[test]
    fn all_that_is_said_is_read() {
        let all = slurm(
            "login='lab'\npartition='gpu'\naccount='phys'\nqos='long'\ntime='1-12:00:00'\nnodes=2\ncpus=4\nmemory='16G'\n\
             gpus='a100:2'\ngres='nvme:1'\nconstraint='ib'\nfolder='~/jobs'\nidle='30m'\npatience='1h'\nkeep=false\nmpi='pmix'\n\
             options={mail-user='me@x', exclusive=true, no-kill=false, nice=100}",
        );
        let request = &all.request;
        assert_eq!(request.partition.as_deref(), Some("gpu"));
        assert_eq!(request.time, Some(Duration::from_secs(129_600)));
        assert_eq!((request.nodes.get(), request.cpus.unwrap().get()), (2, 4));
        assert_eq!(request.memory, Memory::parse("16G"));
        assert_eq!(request.gpus.as_ref().unwrap().to_string(), "a100:2");
        assert_eq!(request.options["no-kill"], Choice::Left);
        assert_eq!(request.options["nice"], Choice::Value("100".to_owned()));
        assert_eq!(request.options["exclusive"], Choice::Given);
        assert_eq!(
            (all.idle.as_secs(), all.patience.as_secs(), all.keep),
            (1800, 3600, false)
        );
        assert_eq!(all.mpi, Mpi::Srun(Some("pmix".to_owned())));
        assert_eq!(all.folder.as_deref(), Some("~/jobs"));
    }

    #[test]
    fn a_login_is_a_target_or_a_host() {
        let text = "[targets.lab]\ntype='ssh'\nhost='me@lab.site:2222'\n[targets.here]\ntype='local'\n\
                    [targets.a]\ntype='slurm'\nlogin='lab'\n[targets.b]\ntype='slurm'\nlogin='other'\n\
                    [targets.c]\ntype='slurm'\nlogin='here'\n[targets.d]\ntype='slurm'\nlogin='-oProxyCommand=x'";
        let targets = targets(text);
        let login = |name: &str| {
            let target = targets.get(name)?;
            let Place::Slurm(slurm) = target.place else {
                panic!("not Slurm")
            };
            targets.login(name, &slurm, None)
        };
        assert_eq!(login("a").unwrap().unwrap().host, "me@lab.site:2222");
        assert_eq!(login("b").unwrap(), Some(Ssh::alias("other")));
        assert!(
            login("c")
                .unwrap_err()
                .to_string()
                .contains("is not of type `ssh`")
        );
        assert!(login("d").unwrap_err().to_string().contains("is no host"));
    }

    #[test]
    fn what_is_wrong_is_told_with_what_to_write() {
        for (lines, expected) in [
            ("partion='x'", "unknown key; did you mean `partition`?"),
            (
                "time=30",
                "`targets.big.time` in `/n/cellferry.toml`, line 3: 30 of what? Write \"30m\" or \"30h\"",
            ),
            ("time='30'", "is no time"),
            ("nodes=0", "at least 1"),
            ("cpus='4'", "whole number"),
            ("memory=16", "16 of what?"),
            ("memory='lots'", "is no amount of memory"),
            ("gpus=0", "at least 1"),
            ("gpus='a100'", "a kind and a number"),
            ("gres='gpu:2'", "write them as `gpus`"),
            ("partition=\"a\\nb\"", "one line of text"),
            ("options='x'", "must be a table of options"),
            (
                "options={partition='x'}",
                "`targets.big.options.partition` in `/n/cellferry.toml`, line 3: cannot be given here: write the key `partition`",
            ),
            ("options={N=2}", "give its long name"),
            ("options={nice=1.5}", "must be a string"),
            ("options={array='1-9'}", "one job"),
            ("folder='jobs'", "begins with `/` or `~/`"),
            ("keep='yes'", "true or false"),
            ("mpi='a b'", "`srun --mpi=list`"),
            ("python='p'\nconda='c'", "cannot stand beside"),
        ] {
            let found = problem(lines);
            assert!(found.contains(expected), "{lines}: {found}");
        }
        let home = targets("[targets.home]\ntype='slurm'")
            .get("home")
            .unwrap_err();
        assert!(home.to_string().contains("another name"));
    }
}
