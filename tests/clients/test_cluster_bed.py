"""The cluster of the test bed itself: that its Slurm is real, and that its faults do what they say."""

import pytest
from bed import Failed
from processes import wait_until

# What Open MPI says where no network hardware is found is of no interest here.
MPI = "OMPI_MCA_btl=self,vader,tcp"


def submit(cluster, script, *options, user=None):
    """Submits a bash script, and returns the job's number."""
    command = f"sbatch --parsable --output=/shared/%u-%j.out {' '.join(options)}"
    answer = cluster.slurm(command, user or cluster.user, stdin=None, input=f"#!/bin/bash\n{script}\n")
    return int(answer.split(";")[0])


def running(cluster, job):
    """The job, once it runs."""
    return wait_until(
        lambda: (found := cluster.job(job))["JobState"] == "RUNNING" and found, 20, lambda: f"job: {cluster.job(job)}"
    )


def printed(cluster, job):
    return cluster.slurm(f"cat /shared/*-{job}.out", user=None)


def test_a_job_runs_on_the_nodes_that_it_asked_for(cluster):
    job = submit(cluster, "srun --label hostname", "--nodes=2", "--ntasks-per-node=2")
    assert cluster.ended(job)["JobState"] == "COMPLETED"
    hosts = dict(line.split(": ") for line in printed(cluster, job).splitlines())
    assert sorted(hosts.values()) == ["node1", "node1", "node2", "node2"]
    assert set(cluster.slurm("srun --nodes=3 hostname").split()) == set(cluster.nodes)


def test_hosts_share_home_but_lab_does_not(cluster):
    cluster.ssh("login", "echo here > ~/mine")
    assert cluster.ssh("node3", "cat ~/mine") == "here\n"
    assert cluster.slurm("srun cat mine") == "here"
    with pytest.raises(Failed, match="No such file"):
        cluster.ssh("lab", "cat ~/mine")
    with pytest.raises(Failed, match="Permission denied"):
        cluster.ssh("node1", "ls /home/alice", "-l", "bob")
    with pytest.raises(Failed):
        cluster.ssh("lab", "sinfo")


def test_nodes_see_this_python(cluster):
    code = "import ipykernel, os; print(os.uname().nodename)"
    assert set(cluster.slurm(f"srun --nodes=3 {cluster.python} -c '{code}'").split()) == set(cluster.nodes)


def test_pretended_gpus_are_given_out_one_by_one(cluster):
    step = "srun -n1 --exact --gres=gpu:1 --mem=50 bash -c 'echo step $CUDA_VISIBLE_DEVICES; sleep 1'"
    job = submit(cluster, f"echo job $CUDA_VISIBLE_DEVICES; {step} & {step} & wait", "-n2", "-N1", "--gres=gpu:2")
    assert cluster.ended(job)["JobState"] == "COMPLETED"
    assert sorted(printed(cluster, job).splitlines()) == ["job 0,1", "step 0", "step 1"]
    with pytest.raises(Failed, match="Requested node configuration is not available"):
        submit(cluster, "true", "--gres=gpu:3")


def test_mpi_spans_nodes_over_pmix(cluster):
    code = (
        "from mpi4py import MPI; import os; world = MPI.COMM_WORLD; "
        "names = world.gather(os.uname().nodename); total = world.allreduce(world.rank); "
        "print(world.size, total, sorted(names)) if world.rank == 0 else None"
    )
    said = cluster.slurm(f"{MPI} srun --mpi=pmix --nodes=2 --ntasks=4 --ntasks-per-node=2 {cluster.python} -c '{code}'")
    assert said.splitlines()[-1] == "4 6 ['node1', 'node1', 'node2', 'node2']"


def test_a_job_is_cancelled(cluster):
    job = submit(cluster, "sleep 1000")
    running(cluster, job)
    cluster.slurm(f"scancel {job}", user=None)
    assert cluster.ended(job)["JobState"] == "CANCELLED"


def test_too_much_memory_is_the_end_of_a_job(cluster):
    job = submit(cluster, f"exec {cluster.python} -c 'import time; x = bytearray(400_000_000); time.sleep(60)'", "--mem=100")
    assert cluster.ended(job)["JobState"] in ("FAILED", "OUT_OF_MEMORY")


def test_an_urgent_job_takes_the_place_of_another(cluster):
    job = submit(cluster, "sleep 1000", "--nodes=3", "--exclusive")
    running(cluster, job)
    urgent = submit(cluster, "true", "--partition=urgent", user=cluster.other_user)
    assert cluster.ended(job)["JobState"] == "PREEMPTED"
    assert cluster.ended(urgent)["JobState"] == "COMPLETED"


def test_a_full_queue_makes_a_job_wait_and_says_why(cluster):
    full = submit(cluster, "sleep 1000", "--nodes=3", "--exclusive", user=cluster.other_user)
    running(cluster, full)
    job = submit(cluster, "true", "--nodes=2")
    wait_until(lambda: cluster.job(job)["Reason"] in ("Resources", "Priority"), 20, lambda: cluster.job(job))
    cluster.slurm(f"scancel {full}", user=None)
    assert cluster.ended(job)["JobState"] == "COMPLETED"


def test_a_killed_node_ends_its_job(cluster):
    job = submit(cluster, "sleep 1000", "--nodelist=node2", "--no-requeue")
    running(cluster, job)
    cluster.fault("kill", "node2")
    assert cluster.ended(job, 60)["JobState"] == "NODE_FAIL"
    assert cluster.states()["node2"].startswith("down")
    cluster.fault("boot", "node2")
    cluster.settle()


def test_a_killed_slurmd_takes_no_job_along(cluster):
    job = submit(cluster, "until [ -e /shared/go ]; do sleep 0.1; done; echo went", "--nodelist=node1")
    running(cluster, job)
    cluster.fault("crash", "node1", "slurmd")
    cluster.fault("start", "node1", "slurmd")
    cluster.slurm("touch /shared/go")
    assert cluster.ended(job)["JobState"] == "COMPLETED"
    assert printed(cluster, job) == "went"


def test_a_stopped_controller_answers_nobody_and_forgets_nothing(cluster):
    job = submit(cluster, "until [ -e /shared/go ]; do sleep 0.1; done")
    running(cluster, job)
    cluster.fault("stop", "login", "slurmctld")
    with pytest.raises(Failed, match="Unable to contact slurm controller"):
        cluster.slurm("squeue")
    cluster.fault("start", "login", "slurmctld")
    assert cluster.job(job)["JobState"] == "RUNNING"
    cluster.slurm("touch /shared/go")
    assert cluster.ended(job)["JobState"] == "COMPLETED"


def test_a_login_node_that_is_cut_off(cluster):
    job = submit(cluster, "until [ -e /shared/go ]; do sleep 0.1; done")
    running(cluster, job)
    cluster.fault("cut", "login")
    with pytest.raises(Failed):
        cluster.ssh("login", "true", "-o", "ConnectTimeout=1")
    assert "reached" in cluster.ssh("lab", "echo reached")
    cluster.fault("heal", "login")
    cluster.ssh("login", "touch /shared/go")
    assert cluster.ended(job)["JobState"] == "COMPLETED"


def test_what_is_asked_for_wrongly_is_refused(cluster):
    for option, reason in [
        ("--partition=nowhere", "invalid partition"),
        ("--constraint=nonesuch", "Invalid feature"),
    ]:
        with pytest.raises(Failed, match=reason):
            submit(cluster, "true", option)
    # As with Slurm's own defaults, a limit of the partition is no such fault: the job waits for somebody to mend it.
    for options, reason in [("--partition=short --time=10", "PartitionTimeLimit"), ("--nodes=9", "PartitionConfig")]:
        job = submit(cluster, "true", options)
        wait_until(lambda job=job, reason=reason: cluster.job(job)["Reason"] == reason, 20, lambda job=job: cluster.job(job))
        cluster.slurm(f"scancel {job}")


def test_without_accounting_sacct_says_so(cluster):
    with pytest.raises(Failed, match="accounting storage is disabled"):
        cluster.slurm("sacct")


def test_torque_commands_stand_on_slurm(cluster):
    cluster.write("login", "job.sh", "#!/bin/bash\nsleep 1000\n")
    job = int(cluster.slurm("qsub -l nodes=1:ppn=1,walltime=00:05:00 job.sh"))
    running(cluster, job)
    assert "job_state = R" in cluster.slurm(f"qstat -f {job}")
    cluster.slurm(f"qdel {job}")
    assert cluster.ended(job)["JobState"] == "CANCELLED"


def test_a_job_that_is_left_behind_fails_the_test_and_is_ended(cluster, tmp_path):
    """In a world within the world of this test."""
    home = cluster.home
    with pytest.MonkeyPatch.context() as patch, pytest.raises(AssertionError, match="left on hosts.*job .*forgotten"):
        with cluster.used(tmp_path, patch):
            cluster.left_within = 0.2
            running(cluster, submit(cluster, "sleep 1000", "--job-name=forgotten"))
    assert cluster.slurm("squeue -h") == ""
    cluster.home = home


def test_accounting_remembers_who_cancelled(accounted):
    job = submit(accounted, "sleep 1000")
    running(accounted, job)
    accounted.slurm(f"scancel {job}", user=None)
    accounted.ended(job)
    wait_until(
        lambda: "CANCELLED by 0" in accounted.slurm(f"sacct -X -n -P -o State -j {job}"), 20, lambda: accounted.slurm("sacct")
    )
