//! What a job runs: one agent on each of its nodes. And the folder in which they find what they need.
//!
//! The folder is on a file system that login and compute nodes share, and only its owner may enter it: the allocation's
//! secret lies there, so that it stands in no command line and in no environment. Each node's agent says there what it has to
//! say.

use super::commands::{Commands, tail};
use super::shell::quoted;
use super::{BatchError, JobKey};
use crate::target::launch::guarded_setup;
use std::time::Duration;

/// The exit code of an agent whose kernel has been gone for longer than its patience. The job ends with it.
pub const PATIENCE_OVER: u8 = 75;

/// Below the user's home, or in the folder that the target names.
const FOLDERS: &str = "cellferry/jobs";

/// The file with the allocation's secret.
const SECRET: &str = "secret";

/// What the job itself says.
pub const LOG: &str = "job.log";

/// A file of this name and the node's number is there once nothing of ours runs on a node any more.
const OVER: &str = "over-";

/// Stands between what a job says and what is said on its nodes.
const NODES: &str = "\ncellferry: nodes\n";

/// Lines of shell that print the last words of a job, and those of each of its nodes.
pub fn ask_words(folder: &str) -> String {
    let folder = quoted(folder);
    format!(
        "tail -c 4000 {folder}/{LOG} 2>/dev/null; printf '%s' '{NODES}'\n\
         for log in {folder}/node-*.log; do tail -c 1000 \"$log\" 2>/dev/null; echo; done | head -c 20000"
    )
}

/// Tells the two apart.
pub fn words(text: &str) -> (&str, &str) {
    text.split_once(NODES).unwrap_or((text, ""))
}

/// How long the folder may take: shared file systems may be slow.
const LIMIT: Duration = Duration::from_secs(60);

/// Makes the folder of a job, with the secret in it, and returns its path. `base` is the folder that the target names, `~`
/// for the home directory; without one it is the user's cache directory.
///
/// # Errors
/// If the place is not reached, or has no room.
pub async fn prepare(
    commands: &Commands,
    base: Option<&str>,
    key: &JobKey,
    secret: &str,
) -> Result<String, BatchError> {
    let base = match base {
        None => "\"${XDG_CACHE_HOME:-$HOME/.cache}\"".to_owned(),
        Some("~") => "\"$HOME\"".to_owned(),
        Some(base) => match base.strip_prefix("~/") {
            Some(below) => format!("\"$HOME\"/{}", quoted(below)),
            None => quoted(base),
        },
    };
    let key = key.as_str();
    let (redirection, lines) = super::shell::input(secret);
    // Folders of jobs that nobody remembers go: those of kernels that were killed while the job waited, say.
    let lines = format!(
        "umask 077; cd / || exit\nb={base}/{FOLDERS}; d=\"$b/{key}\"\n\
         mkdir -p \"$b\" && mkdir \"$d\" || exit 1\n\
         cat > \"$d/{SECRET}\" {redirection} || {{ rm -rf \"$d\"; exit 1; }}{lines}\
         printf '%s\\n' \"$d\"\n\
         find \"$b\" -mindepth 1 -maxdepth 1 -type d -mtime +30 -exec rm -rf {{}} + 2>/dev/null || :"
    );
    let output = commands.run("mkdir", &lines, LIMIT).await?;
    let failed = |said: String| BatchError::Folder {
        place: commands.place(),
        said,
    };
    let path = output.stdout.trim();
    if output.code != Some(0) || path.is_empty() {
        return Err(failed(tail(&output.stderr, 2)));
    }
    // Slurm gives `%` and `\` in the names of files a meaning of its own.
    let plain = |c: char| c.is_alphanumeric() || "-_./@+".contains(c);
    if !path.starts_with('/') || !path.chars().all(plain) {
        return Err(failed(format!(
            "its path `{path}` has letters that batch systems do not take"
        )));
    }
    Ok(path.to_owned())
}

/// Removes the folder of a job. A job that has not started by then ends at once when it does.
///
/// # Errors
/// If the place is not reached.
pub async fn remove(commands: &Commands, folder: &str) -> Result<(), BatchError> {
    let lines = format!("rm -rf {}", quoted(folder));
    commands.run("rm", &lines, LIMIT).await.map(drop)
}

/// The file with the allocation's secret, in the folder of a job.
pub fn secret(folder: &str) -> String {
    format!("{folder}/{SECRET}")
}

/// The script of a Slurm job. `agent` is the command of each node's agent; `setup` are the target's shell lines, which run
/// before it on each node.
pub fn slurm(folder: &str, agent: &[String], setup: Option<&str>) -> String {
    let node = format!(
        "if [ -n \"$CELLFERRY_BEGUN\" ]; then unset CELLFERRY_BEGUN; echo 'cellferry: begun' >&2; exec 2>&1; fi\n\
         {}if [ $code = {PATIENCE_OVER} ]; then\n\
         # Not left to the job's script: its node may be lost.\n\
         [ \"$SLURM_NODEID\" = 0 ] || sleep 10\nscancel --quiet \"$SLURM_JOB_ID\"\nfi\nexit $code\n",
        node(folder, agent, setup)
    );
    let (redirection, node) = super::shell::input(&node);
    let login = if setup.is_some() { "-l " } else { "" };
    // The environment that sbatch makes of its options would be taken for options of the step, where they contradict
    // its own. `--overlap`: other steps have the nodes, too. `--no-kill`, `--kill-on-bad-exit=0`, `--wait=0`: what is lost on
    // one node is no matter on the others. Where CELLFERRY_BEGUN is set, somebody waits for the first word of an agent.
    format!(
        "#!/bin/bash\n\
         folder={folder}\n\
         # Nobody waits for it any more.\n\
         [ -e \"$folder/{SECRET}\" ] || exit 0\n\
         node=$(cat {redirection}{node})\n\
         unset SLURM_MEM_PER_CPU SLURM_MEM_PER_GPU SLURM_MEM_PER_NODE SLURM_GPUS_PER_TASK SLURM_NTASKS_PER_GPU \
         SLURM_NTASKS_PER_SOCKET SLURM_NTASKS_PER_CORE SLURM_TRES_PER_TASK SLURM_CPU_BIND SLURM_GPU_BIND SLURM_DISTRIBUTION\n\
         srun --export=ALL --overlap --no-kill --kill-on-bad-exit=0 --wait=0 --mpi=none --cpu-bind=none --mem=0 \
         --nodes=\"$SLURM_JOB_NUM_NODES\" --ntasks=\"$SLURM_JOB_NUM_NODES\" --ntasks-per-node=1 --input=none \
         --output=\"$folder/node-%N.log\" --open-mode=append ${{CELLFERRY_BEGUN:+--error=all}} \
         bash {login}-c \"$node\"\n\
         code=$?\n\
         # It ended in good order: nobody will ask why.\n\
         [ $code != 0 ] || rm -rf \"$folder\"\n\
         exit $code\n",
        folder = quoted(folder),
    )
}

/// The script of a job of PBS, in which `pbsdsh` starts the agents; or of Slurm with PBS's commands.
pub fn pbs(folder: &str, agent: &[String], setup: Option<&str>) -> String {
    let slurm = slurm(folder, agent, setup);
    let (redirection, slurm) = super::shell::input(&slurm);
    // The agent learns its number as in a job of Slurm's.
    let node = format!(
        "export SLURM_NODEID=$1\n{}exit $code\n",
        node(folder, agent, setup)
    );
    let (node_redirection, node) = super::shell::input(&node);
    let login = if setup.is_some() { "-l " } else { "" };
    // What pbsdsh starts has next to no environment, so the node's part is a file. The lines of the node file are its
    // numbers of nodes; one with several CPUs stands there several times.
    format!(
        "#!/bin/bash\n\
         folder={folder}\n\
         [ -e \"$folder/{SECRET}\" ] || exit 0\n\
         umask 077\n\
         if [ -n \"${{SLURM_JOB_ID:-}}\" ]; then\n\
         cat > \"$folder/slurm.sh\" {redirection}{slurm}\
         exec bash \"$folder/slurm.sh\"\n\
         fi\n\
         cat > \"$folder/node.sh\" {node_redirection}{node}\
         number=0; nodes=0; seen=' '\n\
         while read -r host; do\n\
         case $seen in\n\
         *\" $host \"*) ;;\n\
         *) seen=\"$seen$host \"\n\
         pbsdsh -n $number /bin/bash {login}\"$folder/node.sh\" $nodes </dev/null >> \"$folder/node-${{host%%.*}}.log\" 2>&1 &\n\
         nodes=$((nodes + 1)) ;;\n\
         esac\n\
         number=$((number + 1))\n\
         done < \"$PBS_NODEFILE\"\n\
         code=0\n\
         for job in $(jobs -p); do wait \"$job\" || code=$?; done\n\
         [ $code != 0 ] || rm -rf \"$folder\"\n\
         exit $code\n",
        folder = quoted(folder),
    )
}

/// What runs on each node, up to the agent's exit code in `$code`.
fn node(folder: &str, agent: &[String], setup: Option<&str>) -> String {
    let over = quoted(&format!("{folder}/{OVER}"));
    let setup = setup.map(guarded_setup).unwrap_or_default();
    let words: Vec<String> = agent.iter().map(|word| quoted(word)).collect();
    // Nobody need wait for a node on which `setup` has failed, or the agent.
    format!(
        "over={over}$SLURM_NODEID; rm -f \"$over\"; trap '{{ echo $? > \"$over\"; }} 2>/dev/null' EXIT\n\
         {setup}{}\ncode=$?\n",
        words.join(" ")
    )
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::path::Path;
    use std::process::Command;
    use std::sync::Arc;

    use super::*;
    use crate::target::batch::shell::Here;

    fn here() -> Commands {
        Commands::new("Slurm", Arc::new(Here))
    }

    #[tokio::test]
    async fn only_its_owner_enters_the_folder_of_a_job() {
        let base = tempfile::tempdir().unwrap();
        let key = JobKey::new();
        let base = base.path().join("jobs of mine").display().to_string();
        let refused = prepare(&here(), Some(&base), &key, "hush").await;
        let told = refused.unwrap_err().to_string();
        assert!(
            told.contains("has letters that batch systems do not take"),
            "{told}"
        );

        let base = base.replace(' ', "-");
        let folder = prepare(&here(), Some(&base), &key, "hush").await.unwrap();
        assert_eq!(std::fs::read_to_string(secret(&folder)).unwrap(), "hush\n");
        let mode = |path: &str| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&folder), mode(&secret(&folder))), (0o700, 0o600));
        let again = prepare(&here(), Some(&base), &key, "other").await;
        assert!(again.unwrap_err().to_string().contains("File exists"));
        remove(&here(), &folder).await.unwrap();
        assert!(!Path::new(&folder).exists());
    }

    #[tokio::test]
    async fn no_room_for_the_folder_is_told_with_what_to_do() {
        let error = prepare(&here(), Some("/proc"), &JobKey::new(), "hush")
            .await
            .unwrap_err();
        let told = error.to_string();
        assert!(told.contains("cannot be made on this machine"), "{told}");
        assert!(told.contains("name another one as `folder`"), "{told}");
    }

    /// Runs a job's script with programs of our own in the place of the batch system's.
    fn run(script: &str, programs: &[(&str, &str)], variables: &[(&str, &str)]) -> Option<i32> {
        let folder = tempfile::tempdir().unwrap();
        for (name, text) in programs {
            let path = folder.path().join(name);
            std::fs::write(&path, format!("#!/bin/bash\n{text}\n")).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        }
        let path = format!("{}:/usr/bin:/bin", folder.path().display());
        Command::new("bash")
            .args(["-c", script])
            .env_clear()
            .env("PATH", path)
            .envs(variables.iter().copied())
            .status()
            .unwrap()
            .code()
    }

    /// A folder with a secret, as a job finds it.
    fn prepared() -> (tempfile::TempDir, String) {
        let base = tempfile::tempdir().unwrap();
        let folder = base.path().join("job").display().to_string();
        std::fs::create_dir(&folder).unwrap();
        std::fs::write(secret(&folder), "hush").unwrap();
        (base, folder)
    }

    fn words(words: &[&str]) -> Vec<String> {
        words.iter().map(|word| (*word).to_owned()).collect()
    }

    /// An `srun` that runs its command here.
    const SRUN: (&str, &str) = (
        "srun",
        "while [[ $1 == --* ]]; do shift; done; SLURM_NODEID=0 SLURM_JOB_ID=17 exec \"$@\"",
    );

    #[test]
    fn a_job_runs_the_agent_after_its_setup_and_clears_up() {
        let (base, folder) = prepared();
        let said = base.path().join("said").display().to_string();
        let agent = words(&[
            "bash",
            "-c",
            "echo \"$X it's $1\" > \"$2\"",
            "agent",
            "a b",
            &said,
        ]);
        let script = slurm(&folder, &agent, Some("export X='so'\n# fine"));
        assert_eq!(run(&script, &[SRUN], &[]), Some(0));
        assert_eq!(std::fs::read_to_string(&said).unwrap(), "so it's a b\n");
        assert!(!Path::new(&folder).exists());
    }

    #[test]
    fn a_job_that_nobody_waits_for_any_more_does_nothing() {
        let (_base, folder) = prepared();
        std::fs::remove_dir_all(&folder).unwrap();
        let script = slurm(&folder, &words(&["false"]), None);
        assert_eq!(run(&script, &[("srun", "exit 9")], &[]), Some(0));
    }

    #[test]
    fn what_fails_leaves_its_words_behind() {
        let (_base, folder) = prepared();
        let script = slurm(&folder, &words(&["true"]), Some("false it"));
        assert_eq!(run(&script, &[SRUN], &[]), Some(1));
        assert!(Path::new(&folder).exists());
    }

    #[test]
    fn an_agent_that_has_lost_its_patience_ends_the_job() {
        let (base, folder) = prepared();
        let cancelled = base.path().join("cancelled").display().to_string();
        let scancel = format!("echo \"$@\" > {cancelled}");
        let script = slurm(&folder, &words(&["bash", "-c", "exit 75"]), None);
        assert_eq!(run(&script, &[SRUN, ("scancel", &scancel)], &[]), Some(75));
        assert_eq!(std::fs::read_to_string(cancelled).unwrap(), "--quiet 17\n");
    }

    #[test]
    fn pbs_starts_one_agent_on_each_node() {
        let (base, folder) = prepared();
        let nodes = base.path().join("nodes").display().to_string();
        std::fs::write(&nodes, "a.site\na.site\nb.site\na.site\n").unwrap();
        let started = base.path().join("started").display().to_string();
        let pbsdsh = format!("echo \"$1 $2\" >> {started}; shift 2; exec env -i \"$@\"");
        let agent = words(&["bash", "-c", &format!("echo ran >> {started}")]);
        let script = pbs(&folder, &agent, None);
        assert_eq!(
            run(&script, &[("pbsdsh", &pbsdsh)], &[("PBS_NODEFILE", &nodes)]),
            Some(0)
        );
        let text = std::fs::read_to_string(started).unwrap();
        let mut lines: Vec<&str> = text.lines().collect();
        lines.sort_unstable();
        assert_eq!(lines, ["-n 0", "-n 2", "ran", "ran"]);
        assert!(!Path::new(&folder).exists());
    }

    #[test]
    fn the_commands_of_pbs_on_slurm_start_them_as_slurm_does() {
        let (base, folder) = prepared();
        let said = base.path().join("said").display().to_string();
        let script = pbs(&folder, &words(&["touch", &said]), None);
        assert_eq!(run(&script, &[SRUN], &[("SLURM_JOB_ID", "17")]), Some(0));
        assert!(Path::new(&said).exists());
    }
}
