//! The commands that start the ranks of MPI steps: to each, the program of a rank is appended.

use std::num::NonZeroU32;

use cellferry_wire::protocol::Ranks;

use super::config::Target;
use super::config::slurm::Mpi;
use super::launch;
use crate::cell::resources::Resources;

/// What makes Open MPI's `mpirun` do for an island what it would not by itself; others ignore it. The names are those of versions 4
/// and, with `PRTE`, 5.
///
/// Several islands share a machine, so none may bind itself to its first processors or refuse to start because there are
/// more ranks than those. What it writes goes into the island's folder, which is removed whatever happens.
const OPEN_MPI: [&str; 6] = [
    "OMPI_MCA_rmaps_base_oversubscribe=1",
    "OMPI_MCA_hwloc_base_binding_policy=none",
    "OMPI_MCA_orte_tmpdir_base={folder}",
    "PRTE_MCA_rmaps_default_mapping_policy=:oversubscribe",
    "PRTE_MCA_hwloc_default_binding_policy=none",
    "PRTE_MCA_prte_tmpdir_base={folder}",
];

/// What Open MPI shares between the ranks of one machine would stay in shared memory if they were killed.
const ON_ONE_MACHINE: &str = "OMPI_MCA_btl_vader_backing_directory={folder}";

/// The launcher that was not found, if its last words say so.
pub fn missing_launcher(last_words: &str) -> Option<&'static str> {
    let missing = last_words
        .lines()
        .find(|line| line.contains("env: ") && line.contains("No such file"))?;
    ["mpirun", "srun"]
        .into_iter()
        .find(|name| missing.contains(name))
}

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

/// Ranks on the one machine of a target, by `mpirun` of Open MPI or MPICH.
pub fn on_one_machine(target: &Target, count: NonZeroU32, needs: &Resources) -> Ranks {
    let mut command = words(&["env"]);
    command.extend(words(&OPEN_MPI));
    command.push(ON_ONE_MACHINE.to_owned());
    command.extend(words(&["mpirun", "-n", &count.to_string()]));
    Ranks {
        count: count.get(),
        launcher: launch::prepared(target, command),
        spread: false,
        gpus: needs.gpus,
    }
}

/// Ranks within an allocation of Slurm, started from an agent on the first of its nodes, whose environment names the job.
///
/// `needs` are those of the step: over how many nodes it is to reach, and what each rank is to have.
pub fn in_allocation(target: &Target, mpi: &Mpi, count: NonZeroU32, needs: &Resources) -> Ranks {
    let command = match mpi {
        Mpi::Srun(kind) => srun(kind.as_deref(), count, needs),
        Mpi::Mpirun => {
            let mut command = words(&["env", OVERLAP]);
            command.extend(words(&OPEN_MPI));
            command.extend(words(&["mpirun", "-n", &count.to_string()]));
            if let Some(nodes) = needs.nodes {
                let each = on_each(count, nodes).to_string();
                command.extend(words(&["-npernode", &each]));
            }
            command
        }
    };
    Ranks {
        count: count.get(),
        launcher: launch::prepared(target, command),
        spread: true,
        gpus: needs.gpus,
    }
}

/// `mpirun` starts its daemons by a step of `srun`, which is to share the job with other steps as ours do: else it would wait
/// for the end of the islands that there are.
const OVERLAP: &str = "SLURM_OVERLAP=1";

/// What srun takes from the environment for options, and the step that the agents are leaves there.
const OF_AGENTS: [&str; 14] = [
    "SLURM_MPI_TYPE",
    "SLURM_NTASKS_PER_NODE",
    "SLURM_TASKS_PER_NODE",
    "SLURM_CPU_BIND",
    "SLURM_CPU_BIND_TYPE",
    "SLURM_CPU_BIND_LIST",
    "SLURM_CPU_BIND_VERBOSE",
    "SLURM_CPUS_PER_TASK",
    "SLURM_DISTRIBUTION",
    "SLURM_NNODES",
    "SLURM_NPROCS",
    "SLURM_NTASKS",
    "SLURM_STEP_ID",
    "SLURM_STEPID",
];

fn srun(kind: Option<&str>, count: NonZeroU32, needs: &Resources) -> Vec<String> {
    let mut command = words(&["env"]);
    for name in OF_AGENTS {
        command.extend(words(&["-u", name]));
    }
    // Processors and memory are shared with the other steps of the job, the agents among them; a rank that dies is for
    // us to tell of.
    command.extend(words(&[
        "srun",
        "--overlap",
        "--mem=0",
        "--kill-on-bad-exit=0",
        "--input=none",
        "--quiet",
    ]));
    command.push(format!("--ntasks={count}"));
    if let Some(kind) = kind {
        command.push(format!("--mpi={kind}"));
    }
    if let Some(nodes) = needs.nodes {
        // Without the second, the first node would be filled, and the others would get one rank each.
        command.push(format!("--nodes={nodes}"));
        command.push(format!("--ntasks-per-node={}", on_each(count, nodes)));
    }
    match needs.cpus {
        // `--exact` gives a step only what it asks for, so that islands side by side get different processors.
        Some(cpus) => command.extend(["--exact".to_owned(), format!("--cpus-per-task={cpus}")]),
        None => command.push("--cpu-bind=none".to_owned()),
    }
    // Of GPUs the step gets all that the job has: to Slurm, what `--overlap` asks for is shared with other steps, which is why
    // we give them out ourselves.
    command
}

/// How many of the ranks are on each of so many nodes, at most.
pub fn on_each(count: NonZeroU32, nodes: NonZeroU32) -> u32 {
    count.get().div_ceil(nodes.get())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::target::config::Targets;

    fn target(lines: &str) -> Target {
        let folder = tempfile::tempdir().unwrap();
        let text = format!("[targets.big]\n{lines}");
        std::fs::write(folder.path().join("cellferry.toml"), text).unwrap();
        let targets = Targets::load(folder.path(), None).unwrap();
        targets.get("big").unwrap()
    }

    fn needs(text: serde_json::Value) -> Resources {
        Resources::read(&text).unwrap()
    }

    #[test]
    fn mpirun_has_its_files_in_the_islands_folder() {
        let four = NonZeroU32::new(4).unwrap();
        let ranks = on_one_machine(&target("type='local'"), four, &Resources::default());
        assert_eq!((ranks.count, ranks.spread), (4, false));
        let line = ranks.launcher.join(" ");
        assert!(line.starts_with("env OMPI_MCA_"), "{line}");
        assert!(line.contains("orte_tmpdir_base={folder}"), "{line}");
        assert!(line.ends_with("mpirun -n 4"), "{line}");
    }

    #[test]
    fn a_launcher_that_is_not_there_is_named() {
        let output = std::process::Command::new("/usr/bin/env")
            .args(["PATH=/nowhere", "mpirun"])
            .output()
            .unwrap();
        let words = String::from_utf8_lossy(&output.stderr);
        assert_eq!(missing_launcher(&words), Some("mpirun"), "{words}");
        assert_eq!(missing_launcher("mpirun noticed that rank 0 died"), None);
    }

    #[test]
    fn the_launcher_runs_where_setup_has_run() {
        let target = target("type='local'\nsetup='module load openmpi'");
        let ranks = on_one_machine(&target, NonZeroU32::MIN, &Resources::default());
        assert_eq!(ranks.launcher[..3], ["bash", "-l", "-c"]);
        assert!(ranks.launcher[3].contains("module load openmpi"));
        assert!(ranks.launcher[3].ends_with("exec \"$@\"\n"));
        assert_eq!(ranks.launcher[4..6], ["cellferry", "env"]);
    }

    #[test]
    fn srun_says_what_each_rank_is_to_have() {
        let target = target("type='slurm'");
        let step = needs(serde_json::json!({"ranks": 4, "nodes": 2, "cpus": 3, "gpus": 1}));
        let count = NonZeroU32::new(4).unwrap();
        let kind = Mpi::Srun(Some("pmix".to_owned()));
        let ranks = in_allocation(&target, &kind, count, &step);
        assert_eq!((ranks.spread, ranks.gpus), (true, Some(1)));
        for word in [
            "--ntasks=4",
            "--nodes=2",
            "--cpus-per-task=3",
            "--ntasks-per-node=2",
            "--mpi=pmix",
            "--overlap",
        ] {
            assert!(ranks.launcher.iter().any(|other| other == word), "{word}");
        }
        let plain = in_allocation(&target, &Mpi::Srun(None), count, &Resources::default());
        let line = plain.launcher.join(" ");
        assert!(
            !line.contains("--mpi") && !line.contains("--nodes"),
            "{line}"
        );
        let step = needs(serde_json::json!({"ranks": 5, "nodes": 2}));
        let five = NonZeroU32::new(5).unwrap();
        let ranks = in_allocation(&target, &Mpi::Mpirun, five, &step);
        assert!(
            ranks
                .launcher
                .join(" ")
                .ends_with("mpirun -n 5 -npernode 3")
        );
        assert!(ranks.launcher.contains(&OVERLAP.to_owned()));
    }
}
