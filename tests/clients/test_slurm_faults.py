"""Faults of a real Slurm cluster as users meet them: what is told under the cell, and that nothing is left behind."""

import os
import signal
from contextlib import contextmanager

import pytest
from client import on
from faults import notices
from jobs import no_jobs, open_jobs
from processes import wait_until

BIG = on("big")


@contextmanager
def busy(cluster):
    """All nodes are another user's."""
    other = cluster.slurm("sbatch --parsable -N3 --exclusive --output=/dev/null --wrap 'sleep 1000'", user="bob")
    wait_until(lambda: cluster.job(other)["JobState"] == "RUNNING", 20, lambda: cluster.job(other))
    try:
        yield other
    finally:
        cluster.slurm("scancel --user=bob", user=None)


def no_jobs_of_alice(cluster, seconds=20):
    wait_until(lambda: not cluster.slurm("squeue -h -u alice", user=None), seconds, lambda: cluster.slurm("squeue"))


def no_folders(cluster, below="~/.cache", seconds=10):
    """Waits until no folder of a job is left."""
    listed = f"ls {below}/cellferry/jobs 2>/dev/null || true"
    wait_until(lambda: not cluster.slurm(listed), seconds, lambda: cluster.slurm(f"find {below}/cellferry/jobs"))


def wrap(cluster, text):
    """What `sbatch` is for alice: `$real` is Slurm's own."""
    cluster.write("login", "bin/sbatch", f"#!/bin/bash\nreal=/usr/bin/sbatch\n{text}\n")
    cluster.slurm("chmod +x bin/sbatch")
    cluster.write("login", ".bashrc", "PATH=~/bin:$PATH\n")


# --- a full queue


@pytest.fixture
def limits(accounted):
    """Sets limits of alice's association: `limits(MaxSubmitJobs=1)`."""
    accounted.on("login", "scontrol show config | grep -q 'AccountingStorageEnforce.*limits'")
    given = set()

    def limits(what="user alice", **keys):
        given.update((what, key) for key in keys)
        values = " ".join(f"{key}={value}" for key, value in keys.items())
        accounted.on("login", f"sacctmgr -i modify {what} set {values}")

    yield limits
    for what, key in given:
        none = "cpu=-1" if "TRES" in key else "-1"
        accounted.on("login", f"sacctmgr -i modify {what} set {key}={none}")


@pytest.mark.timeout(200)
def test_limits_of_users_and_accounts(accounted, slurm, limits, kernel):
    slurm(cpus=4)
    limits(MaxSubmitJobs=1)
    other = accounted.slurm("sbatch --parsable --hold --output=/dev/null --wrap true")
    run = kernel.send("x = 5", BIG)
    told = "as many jobs of yours wait and run as may (AssocMaxSubmitJobLimit); end one"
    kernel.read_until(lambda: told in notices(run), 60)
    accounted.slurm(f"scancel {other}")
    kernel.finish(run)
    assert kernel.run("x").ok().result == "5"
    kernel.run("%cellferry release").ok()
    no_jobs(accounted)

    limits(MaxTRESPerUser="cpu=2", what="qos normal")
    run = kernel.send("1", BIG)
    kernel.read_until(lambda: "QOSMaxCpuPerUserLimit" in notices(run), 60)
    assert "never if there are none: ask for less then" in notices(run)
    accounted.slurm("scancel --user=alice", user=None)
    kernel.finish(run)
    assert "CANCELLED" in run.error and "the administrator (root) cancelled it" in run.error

    limits(MaxTRESPerUser="cpu=-1", what="qos normal")
    limits(GrpTRESMins="cpu=0", what="account default")
    run = kernel.run("1", BIG)
    assert "AssocGrpCPUMinutesLimit" in run.error and "take another `account`" in run.error
    no_jobs(accounted)

    # Who waits for a full queue no more need not wait for its end.
    other = accounted.slurm("sbatch --parsable --hold --output=/dev/null --wrap true")
    run = kernel.send("x = 6", BIG)
    kernel.read_until(lambda: told in notices(run), 60)
    kernel.close()
    assert "cellferry" not in accounted.slurm("squeue -h -o %j", user=None)
    no_folders(accounted)
    accounted.slurm(f"scancel {other}")


# --- quotas


def test_no_room_for_the_agent(cluster, slurm, kernel):
    cluster.on("login", "mkdir /run/little && mount -t tmpfs -o size=64k,mode=1777 tb-little /run/little")
    try:
        slurm(folder="/run/little")
        run = kernel.run("1", BIG)
        assert "No space left" in run.error and "name another place as `folder`" in run.error
        assert cluster.on("login", "ls /run/little/cellferry/jobs") == ""
    finally:
        cluster.on("login", "umount /run/little; rmdir /run/little")


def test_the_shared_folder_is_full_while_cells_run(cluster, slurm, kernel):
    cluster.share("/run/quota", "40m")
    slurm(folder="/run/quota")
    kernel.run("x = 5", BIG).ok()
    cluster.slurm("cat /dev/zero > /run/quota/rest || true")
    assert kernel.run("y = x + 1\ny", BIG).ok().result == "6"
    kernel.run("%cellferry release").ok()
    no_jobs(cluster)
    # The rest takes all the room that this has left: there is none for another job.
    cluster.slurm("cat /dev/zero >> /run/quota/rest || true")
    run = kernel.run("y", BIG)
    assert "No space left" in run.error and "`folder`" in run.error, run.error
    no_folders(cluster, "/run/quota")
    cluster.unshare("/run/quota")


# --- the controller


def test_the_controller_is_away_at_the_end(cluster, slurm, start):
    slurm(patience="3s")
    kernel = start()
    kernel.run("1", BIG).ok()
    cluster.fault("stop", "login", "slurmctld")
    kernel.close()

    def agents():
        lines = [line for node in cluster.nodes for line in cluster.processes(node).values()]
        return [line for line in lines if "cellferry" in line]

    wait_until(lambda: not agents(), 30, agents)
    cluster.fault("start", "login", "slurmctld")
    no_jobs(cluster, 30)
    no_folders(cluster)
    cluster.left_within = 30


def test_the_controller_is_away_when_a_waiting_job_is_not_wanted_any_more(cluster, slurm, start):
    slurm(nodes=3, patience="3s")
    kernel = start()
    with busy(cluster):
        run = kernel.send("1", BIG)
        kernel.read_until(lambda: " waits" in notices(run), 60)
        cluster.fault("stop", "login", "slurmctld")
        os.kill(kernel.pid, signal.SIGKILL)
        wait_until(lambda: "scancel" in str(cluster.processes("login")), 20, lambda: cluster.processes("login"))
        cluster.fault("start", "login", "slurmctld")
        no_jobs_of_alice(cluster, 40)
    cluster.left_within = 30


# --- others


@pytest.mark.timeout(200)
def test_what_becomes_of_a_job_that_waits(cluster, slurm, kernel):
    slurm(nodes=3)
    slurm("closed", partition="short", time="1m")
    with busy(cluster):
        # Another shell cancels it.
        run = kernel.send("1", BIG)
        kernel.read_until(lambda: " waits" in notices(run), 60)
        cluster.slurm("scancel --user=alice", user=None)
        kernel.finish(run)
        assert "(CANCELLED): it was cancelled; this cluster does not record by whom" in run.error
        # It is held, beside one whose partition is closed.
        cluster.on("login", "scontrol update PartitionName=short State=DOWN")
        try:
            closed = kernel.send("2", on("closed"))
            run = kernel.send("3", BIG)
            kernel.read_until(lambda: " waits" in notices(run), 60)
            number = cluster.slurm("squeue -h -u alice -p batch -o %A")
            cluster.slurm(f"scontrol hold {number}")
            kernel.read_until(lambda: "it is held, by you" in notices(run), 60)
            assert "the partition is closed by the administrators" in notices(closed)
            cluster.slurm(f"scontrol release {number}")
        finally:
            cluster.on("login", "scontrol update PartitionName=short State=UP")
        # The controller is away for a while.
        cluster.fault("stop", "login", "slurmctld")
        kernel.read_until(lambda: "Slurm does not answer on login" in notices(run), 60)
        cluster.fault("start", "login", "slurmctld")
    kernel.finish(run, closed, timeout=100)
    assert (run.ok().result, closed.ok().result) == ("3", "2")


def test_a_node_is_drained_while_a_cell_runs(cluster, slurm, kernel):
    slurm()
    kernel.run("import os, time", BIG).ok()
    run = kernel.send("print(os.uname().nodename, flush=True)\ntime.sleep(6)\nx = 5", BIG)
    kernel.read_until(lambda: run.text().startswith("node"))
    node = run.text().strip()
    cluster.on("login", f"scontrol update NodeName={node} State=DRAIN Reason=test")
    kernel.finish(run)
    run.ok()
    assert kernel.run("x + 1", BIG).ok().result == "6"
    kernel.run("%cellferry release").ok()
    assert kernel.run("os.uname().nodename", BIG).ok().result != repr(node)


@pytest.mark.parametrize("how", ["before", "after"])
def test_killed_while_it_submits(cluster, slurm, start, how):
    slurm(patience="3s", options={"nice": 0})
    kernel = start()
    if how == "before":
        wrap(cluster, "touch ~/submitting; until [ -e ~/go ]; do sleep 0.05; done; exec $real \"$@\"")
    else:
        wrap(cluster, "$real \"$@\"; touch ~/submitting; until [ -e ~/go ]; do sleep 0.05; done")
    kernel.send("1", BIG)
    kernel.read_until(lambda: "submitting" in cluster.slurm("ls"), 30)
    os.kill(kernel.pid, signal.SIGKILL)
    cluster.slurm("touch go")
    wait_until(lambda: cluster.slurm("squeue -h -t all -u alice | grep -c . || true") != "0", 20, "no job")
    no_jobs_of_alice(cluster, 40)
    cluster.left_within = 30


@pytest.mark.parametrize("how", ["link", "shutdown"])
def test_cut_while_it_submits(cluster, slurm, start, how):
    """The answer is lost."""
    no_jobs(cluster, 30)
    slurm(options={"nice": 0})
    kernel = start()
    wrap(cluster, "echo x >> ~/submitting; $real \"$@\"; until [ -e ~/go ]; do sleep 0.05; done")
    run = kernel.send("1", BIG)
    kernel.read_until(lambda: "submitting" in cluster.slurm("ls"), 30)
    wait_until(lambda: open_jobs(cluster), 10, "no job")
    if how == "shutdown":
        cluster.slurm("touch go")
        kernel.close()
        no_jobs(cluster, 20)
        return
    cluster.fault("crash", "login", "sshd")
    kernel.read_until(lambda: "trying again" in notices(run), 90)
    cluster.fault("start", "login", "sshd")
    cluster.slurm("touch go")
    kernel.finish(run, timeout=90)
    assert run.ok().result == "1"
    # Jobs of earlier tests are listed, too.
    (name,) = cluster.slurm("squeue -h -t RUNNING -u alice -o %j").split()
    assert len(cluster.slurm(f"squeue -h -t all -u alice -n {name} -o %A").split()) == 1
    assert cluster.slurm("cat submitting") == "x"


def test_a_job_is_submitted_once_though_nobody_answers(cluster, slurm, kernel):
    """The controller takes the job, and is away before it says so, and still when it is asked for it."""
    away = "echo 'error: Unable to contact slurm controller (connect failure)' >&2; exit 1"
    wrap(cluster, f"echo x >> ~/submitted; $real \"$@\" > /dev/null; {away}")
    once = "echo x >> ~/asked; [ $(wc -l < ~/asked) -gt 1 ]"
    cluster.write("login", "bin/squeue", f'#!/bin/bash\n{once} || {{ {away}; }}\n/usr/bin/squeue "$@"\n')
    cluster.slurm("chmod +x bin/squeue")
    slurm(options={"nice": 0})
    run = kernel.run("1", BIG)
    assert run.ok().result == "1"
    assert cluster.slurm("cat submitted") == "x"
    assert len(open_jobs(cluster)) == 1


def test_an_sbatch_that_talks(cluster, slurm, kernel):
    said = "echo 'Welcome to our site, user 17!'; echo 'lua: 3 notes' >&2"
    wrap(cluster, f"{said}; $real \"$@\"; echo; echo 'Have a nice day, 99 times.'")
    cluster.slurm("printf 'echo hello; echo oops >&2; false\\n' >> .bashrc")
    slurm(options={"nice": 0})
    assert kernel.run("1", BIG).ok().result == "1"


def test_what_setup_says_before_it_fails_is_told(cluster, slurm, kernel):
    slurm(setup="head -c 20000000 /dev/zero | tr '\\\\0' x >&2; module load nonesuch", options={"nice": 0})
    run = kernel.run("1", BIG)
    assert "setup failed (status 127): module load nonesuch" in run.error, run.error
    assert len(run.error) < 3000
    no_jobs(cluster)


def test_a_node_on_which_setup_fails_is_passed_over(cluster, slurm, kernel):
    slurm(nodes=2, setup="[ $SLURM_NODEID = 0 ] || { echo no disk; exit 3; }")
    # The second is seated on the other node.
    runs = [kernel.send(f"import os, time\ntime.sleep(1)\nplace_{n} = os.uname().nodename", BIG) for n in range(2)]
    kernel.finish(*runs, timeout=100)
    for run in runs:
        run.ok()
    assert kernel.run("place_0 == place_1").ok().result == "True"


def test_setup_that_hangs_or_talks(cluster, slurm, kernel):
    slurm(setup="until [ -e ~/go ]; do sleep 0.1; done; yes | head -c 5000000")
    run = kernel.send("1", BIG)
    kernel.read_until(lambda: "no word from there yet" in notices(run), 60)
    cluster.slurm("touch go")
    kernel.finish(run)
    assert run.ok().result == "1"
