//! Jobs that do not wait until the controller looks through its queue.
//!
//! What `sbatch` submits starts in one of the controller's next cycles, up to seconds later, on an idle cluster, too
//! (`batch_sched_delay` in slurm.conf(5)); what `salloc` asks for is given at once if it is free. So where it is, the nodes
//! are taken by `salloc`, and what would be the batch script is its command on the login node, in a session of its own,
//! where its `srun` starts the agents. In every other case `sbatch` submits the job: while the nodes are busy, where `srun`
//! has failed to start anything from the login node (a firewall may keep the nodes from answering it), and where options
//! are given that `salloc` may understand in another way.

use super::super::Job;
use super::super::shell::{input, quoted};

/// The lines that do it, as a function.
const LINES: &str = include_str!("at_once.sh");

/// Further options that `salloc` takes as `sbatch` does.
const ALIKE: [&str; 20] = [
    "comment",
    "contiguous",
    "core-spec",
    "cores-per-socket",
    "exclude",
    "exclusive",
    "gpus-per-node",
    "hint",
    "licenses",
    "mem-per-cpu",
    "mincpus",
    "nodelist",
    "ntasks-per-node",
    "oversubscribe",
    "reservation",
    "sockets-per-node",
    "switches",
    "threads-per-core",
    "tmp",
    "wckey",
];

/// Options of ours that an allocation without a script has no use for.
const OF_SCRIPTS: [&str; 3] = ["no-requeue", "output", "parsable"];

/// Lines of shell that start a job at once or submit it, with these arguments of `sbatch`, and print its number last.
pub fn lines(job: &Job, arguments: &[String]) -> String {
    let join = |words: &mut dyn Iterator<Item = &String>| {
        let words: Vec<String> = words.map(|word| quoted(word)).collect();
        words.join(" ")
    };
    let of_scripts = |argument: &&String| {
        let name = argument.trim_start_matches('-').split('=').next();
        name.is_some_and(|name| OF_SCRIPTS.contains(&name))
    };
    let all = join(&mut arguments.iter());
    let allocate = join(&mut arguments.iter().filter(|argument| !of_scripts(argument)));
    let (redirection, script) = input(&job.script);
    let script = format!("script=$(cat {redirection}{script})\n");
    let submit = format!("printf '%s\\n' \"$script\" | timeout -k 5 40 sbatch {all}\n");
    let options = &mut job.request.options.keys();
    if !options.all(|name| ALIKE.contains(&name.as_str())) {
        return format!("{script}{submit}");
    }
    let folder = &job.folder;
    format!(
        "{LINES}\
         ask() {{ SLURM_TIME_FORMAT=%s timeout 10 sbatch --test-only {all}; }}\n\
         allocate() {{ exec setsid salloc --immediate {allocate} \"$@\"; }}\n\
         folder={folder} refused={refused} name={name}\n\
         {script}\
         job=$(at_once)\n\
         if [ -n \"$job\" ]; then printf '%s\\n' \"$job\"; else\n{submit}fi\n",
        folder = quoted(folder),
        refused = quoted(&format!("{folder}/../no-srun")),
        name = super::name(&job.key),
    )
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::path::Path;
    use std::process::{Command, Output};
    use std::time::{Duration, Instant};

    use super::*;
    use crate::target::batch::request::{Choice, Request};
    use crate::target::batch::{JobKey, script};

    /// A cluster of programs, each of which notes its arguments in the file `asked`.
    struct Fake {
        place: tempfile::TempDir,
    }

    /// Slurm's programs on an idle cluster.
    const IDLE: [(&str, &str); 4] = [
        (
            "sbatch",
            "cat > \"$PLACE/submitted\"; case $1 in --test-only) \
             echo \"sbatch: Job 8 to start at $(date +%s) using 1 processors on nodes n1 in partition p\" >&2 ;; \
             *) echo 9 ;; esac",
        ),
        // Runs its command, and gives the nodes back when that ends.
        (
            "salloc",
            "echo 'salloc: Granted job allocation 7' >&2; while [[ $1 == --* ]]; do shift; done; \
             SLURM_JOB_ID=7 SLURM_JOB_NUM_NODES=1 \"$@\"; echo \"relinquished $?\" >> $PLACE/asked",
        ),
        ("srun", "while [[ $1 == --* ]]; do shift; done; exec \"$@\""),
        ("scancel", ""),
    ];

    impl Fake {
        /// With these programs instead of those of an idle cluster.
        fn new(others: &[(&str, &str)]) -> Self {
            let place = tempfile::tempdir().unwrap();
            let here = place.path().display().to_string();
            std::fs::create_dir(place.path().join("job")).unwrap();
            std::fs::write(place.path().join("job/secret"), "hush").unwrap();
            std::fs::create_dir(place.path().join("bin")).unwrap();
            for (name, text) in IDLE.iter().chain(others) {
                let path = place.path().join("bin").join(name);
                let text = format!(
                    "#!/bin/bash\nPLACE={here}\necho \"{name} ${{*//$'\\n'/ }}\" >> {here}/asked\n{text}\n"
                );
                std::fs::write(&path, text).unwrap();
                std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
            }
            Self { place }
        }

        fn path(&self, name: &str) -> std::path::PathBuf {
            self.place.path().join(name)
        }

        /// What the lines print for a job that runs this in the place of an agent.
        fn start(&self, agent: &str, options: &[&str], variables: &[(&str, &str)]) -> String {
            let folder = self.path("job").display().to_string();
            let agent = ["bash", "-c", agent].map(str::to_owned);
            let options = options
                .iter()
                .map(|name| ((*name).to_owned(), Choice::Given));
            let job = Job {
                key: JobKey::new(),
                request: Request {
                    options: options.collect(),
                    ..Request::default()
                },
                script: script::slurm(&folder, &agent, None),
                folder,
            };
            let lines = lines(&job, &super::super::arguments(&job));
            let path = format!("{}:/usr/bin:/bin", self.path("bin").display());
            let output: Output = Command::new("sh")
                .args(["-c", &format!("{{\n{lines}\n}}\n")])
                .env_clear()
                .env("PATH", path)
                .envs(variables.iter().copied())
                .output()
                .unwrap();
            String::from_utf8(output.stdout).unwrap()
        }

        fn asked(&self, command: &str) -> bool {
            let asked = std::fs::read_to_string(self.path("asked")).unwrap();
            asked.lines().any(|line| line.starts_with(command))
        }

        fn until(&self, what: &str, is_so: impl Fn() -> bool) {
            let begun = Instant::now();
            while !is_so() {
                assert!(begun.elapsed() < Duration::from_secs(20), "not so: {what}");
                std::thread::sleep(Duration::from_millis(5));
            }
        }
    }

    #[test]
    fn free_nodes_are_taken_at_once_until_the_script_ends() {
        let fake = Fake::new(&[]);
        let folder = fake.path("job").display().to_string();
        let agent = format!("while [ -e {folder}/secret ]; do sleep 0.05; done; exit 3");
        assert_eq!(fake.start(&agent, &["exclusive"], &[]), "7\n");
        assert!(fake.asked("salloc --immediate --exclusive --job-name="));
        assert!(!fake.asked("sbatch --exclusive") && !fake.asked("relinquished"));
        std::fs::remove_file(fake.path("job/secret")).unwrap();
        fake.until("the nodes are given back", || fake.asked("relinquished 3"));
        assert!(!fake.asked("scancel"));
    }

    #[test]
    fn a_job_that_cannot_start_now_is_submitted() {
        let later = "cat > /dev/null; case $1 in --test-only) \
            echo \"sbatch: Job 8 to start at $(($(date +%s) + 60)) using 1 processors on nodes n1 in partition p\" >&2 ;; \
            *) echo 9 ;; esac";
        let busy = [("salloc", "echo 'salloc: error: busy' >&2; exit 1")];
        let away = [("sbatch", "[ $1 != --test-only ] && echo 9")];
        for others in [&[("sbatch", later)][..], &busy, &away] {
            let fake = Fake::new(others);
            assert_eq!(fake.start("true", &[], &[]), "9\n", "{others:?}");
        }
    }

    #[test]
    fn what_salloc_may_take_otherwise_is_submitted() {
        let fake = Fake::new(&[]);
        assert_eq!(fake.start("true", &["hold"], &[]), "9\n");
        assert_eq!(fake.start("true", &[], &[("SBATCH_QOS", "low")]), "9\n");
        assert!(!fake.asked("salloc"));
    }

    #[test]
    fn where_srun_starts_nothing_jobs_are_submitted_from_then_on() {
        let fake = Fake::new(&[("srun", "echo 'srun: error: no route' >&2; exit 1")]);
        assert_eq!(fake.start("true", &[], &[]), "9\n");
        assert!(fake.asked("salloc") && fake.asked("scancel --quiet"));
        let why = std::fs::read_to_string(fake.path("no-srun")).unwrap();
        assert!(why.contains("no route"), "{why}");
        std::fs::remove_file(fake.path("asked")).unwrap();
        assert_eq!(fake.start("true", &[], &[]), "9\n");
        assert!(!fake.asked("salloc"));
        let script = std::fs::read_to_string(fake.path("submitted")).unwrap();
        assert!(script.starts_with("#!/bin/bash\n"), "{script}");
        assert!(Path::new(&fake.path("job")).exists());
    }
}
