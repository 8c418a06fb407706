"""Cellferry's way with batch systems on a real cluster, by the program that `tests/testbed/batch.rs` is."""

import json
import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest
from processes import wait_until
from world import write_targets

ROOT = Path(__file__).parent.parent.parent
DRIVER = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "release" / "examples" / "batch"
# An agent that waits for its end, and says so in time.
WAITING = ["sleep", "1000"]


class Batch:
    """A batch system, driven line by line."""

    def __init__(self, words, **options):
        self._process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, **options)

    def order(self, do, **more):
        """Gives an order."""
        self._process.stdin.write(json.dumps({"do": do, **more}) + "\n")
        self._process.stdin.flush()

    def answer(self):
        """The next line that it says."""
        line = self._process.stdout.readline()
        assert line, f"it ended with {self._process.wait()}"
        return json.loads(line)

    def ask(self, do, **more):
        """Gives an order and returns the answer, which must be no error."""
        self.order(do, **more)
        answer = self.answer()
        assert "error" not in answer, answer
        return answer

    def submit(self, agent=WAITING, **more):
        """Submits a job that runs `agent` on each node."""
        return self.ask("submit", agent=[str(word) for word in agent], **{"secret": "hush", **more})

    def refused(self, **more):
        """Submits a job that must not be taken. Returns the answer."""
        self.order("submit", **{"agent": WAITING, "secret": "hush", **more})
        answer = self.answer()
        assert "error" in answer, answer
        self.ask("remove", folder=answer["folder"])
        return answer

    def line(self, job, places=False):
        """What the user reads of a job."""
        return self.ask("status", job=job["job"], places=places)["line"]

    def until(self, job, words, seconds=20):
        """Waits until the user reads these words."""
        return wait_until(lambda: words in (line := self.line(job)) and line, seconds, lambda: self.line(job))

    def ending(self, job):
        """What the user is told of a job's end."""
        return self.ask("ending", job=job["job"], folder=job["folder"])["told"]

    def over(self, job, seconds=30):
        """Waits for the end of a job, and returns what the user is told; then all is cleared up."""
        self.until(job, "is over", seconds)
        told = self.ending(job)
        self.ask("remove", folder=job["folder"])
        return told

    def cancel(self, job):
        """Ends a job and clears up."""
        self.ask("cancel", job=job["job"])
        self.ask("remove", folder=job["folder"])

    def close(self):
        self._process.stdin.close()
        assert self._process.wait(20) == 0


@pytest.fixture
def drive(tmp_path):
    """Starts drivers of a target with these keys, whose commands are run on `login`."""
    started = []
    if not DRIVER.exists():
        pytest.skip(f"{DRIVER} is not built: cargo build --release --examples")

    def drive(*words, **keys):
        write_targets(tmp_path / "cellferry.toml", {"big": {"type": "slurm", "login": "login", **keys}})
        started.append(Batch([DRIVER, tmp_path, "big", *words]))
        return started[-1]

    yield drive
    for batch in started:
        batch.close()


def folder_is_gone(cluster, job):
    return cluster.on("login", f"ls -d {job['folder']} 2>/dev/null || true") == ""


def test_an_agent_runs_on_each_node_with_the_secret_in_a_file_of_the_owner(cluster, drive):
    batch = drive(nodes=2, cpus=2, gpus=1, time="00:05:00")
    tell = "echo $SLURM_NODEID $(cat {secret}) gpu $CUDA_VISIBLE_DEVICES > ~/said-$(hostname)"
    tell += "; until [ -e ~/go ]; do sleep 0.1; done"
    job = batch.submit(["bash", "-c", tell], secret="very secret")
    line = batch.until(job, "runs on node[1-2], until")
    assert line.startswith(f"Slurm job {job['job']} runs")
    wait_until(lambda: len(cluster.slurm("cat said-node1 said-node2 2>/dev/null || true").splitlines()) == 2, 20, "not said")
    assert cluster.slurm("cat said-node1 said-node2").splitlines() == ["0 very secret gpu 0", "1 very secret gpu 0"]
    assert cluster.on("login", f"stat -c '%a %U' {job['folder']} {job['folder']}/secret").split() == [
        "700",
        "alice",
        "600",
        "alice",
    ]
    for host in ("login", "node1", "node2"):
        places = "/var/log /var/spool /tmp /proc/[0-9]*/cmdline /proc/[0-9]*/environ"
        assert cluster.on(host, f"grep -rasl 'very [s]ecret' {places} || true") == ""
    found = cluster.job(job["job"])
    assert found["NumNodes"] == "2" and found["NumCPUs"] == "4" and found["TresPerNode"] in ("gres:gpu:1", "gres/gpu:1")
    cluster.slurm("touch go")
    batch.until(job, "is over")
    assert "it ended by itself" in batch.ending(job)
    assert folder_is_gone(cluster, job)


def test_steps_of_mpi_run_beside_the_agents(cluster, drive):
    """The agents hold no resource that steps want."""
    code = "from mpi4py import MPI; world = MPI.COMM_WORLD; print(world.allreduce(1), end=' ')"
    options = "--mpi=pmix --nodes=2 --ntasks=4 --ntasks-per-node=2 --cpus-per-task=1"
    step = f'unset SLURM_CPU_BIND; OMPI_MCA_btl=self,vader,tcp srun {options} {cluster.python} -c "{code}"'
    first = f"if [ $SLURM_NODEID = 0 ]; then {step} > ~/ranks 2> ~/complaints; touch ~/done; fi"
    batch = drive(nodes=2, cpus=2, time="00:05:00")
    job = batch.submit(["bash", "-c", f"{first}; until [ -e ~/done ]; do sleep 0.1; done"])
    batch.until(job, "is over")
    assert cluster.slurm("cat ranks").split() == ["4"] * 4, cluster.slurm("cat complaints")


def test_setup_comes_first_and_its_failure_is_told(cluster, drive):
    batch = drive(setup="export FROM_SETUP=yes")
    job = batch.submit(["bash", "-c", "echo $FROM_SETUP > ~/said"])
    batch.until(job, "is over")
    assert cluster.slurm("cat said") == "yes"
    batch = drive(setup="module load nonesuch")
    job = batch.submit()
    told = batch.over(job)
    assert "its script failed with exit code 127" in told and "`setup` of [targets.big]" in told, told


def test_what_the_kernels_environment_holds_stays_there(cluster, drive):
    """Nor do what a user has set for squeue and the like, and an outer job's variables, change anything."""
    cluster.write(
        "login", ".bashrc", "export TOKEN=secret SLURM_NTASKS=7 SQUEUE_STATES=COMPLETED SQUEUE_FORMAT=%i; echo welcome\n"
    )
    batch = drive()
    job = batch.submit(["bash", "-c", "env > ~/environment; exec sleep 1000"])
    batch.until(job, "runs on")
    environment = wait_until(lambda: cluster.slurm("cat environment 2>/dev/null || true"), 20, "no environment")
    assert "TOKEN" not in environment and "SLURM_NTASKS=1\n" in environment
    batch.cancel(job)
    batch = drive(options={"export": "ALL"})
    job = batch.submit(["bash", "-c", "env > ~/other; exec sleep 1000"])
    assert "TOKEN=secret" in wait_until(lambda: cluster.slurm("cat other 2>/dev/null || true"), 20, "no environment")
    batch.cancel(job)


def test_a_job_that_waits_says_why_and_at_which_place(cluster, drive):
    cluster.write("login", "job.sh", "#!/bin/bash\nsleep 1000\n", user="bob")
    full = cluster.slurm("sbatch --parsable -N3 --exclusive --time=5 job.sh", user="bob")
    wait_until(lambda: cluster.job(full)["JobState"] == "RUNNING", 20, "it does not run")
    before = cluster.slurm("sbatch --parsable -N3 --exclusive --time=5 job.sh", user="bob")
    batch = drive(nodes=2, time="00:05:00")
    job = batch.submit()
    batch.until(job, "(Priority: jobs of higher priority go first)")
    line = wait_until(
        lambda: "expected to start" in (line := batch.line(job, places=True)) and line, 30, lambda: batch.line(job)
    )
    assert "number 2 in the queue, expected to start" in line
    cluster.slurm(f"scancel {before} {full}", user="bob")
    batch.until(job, "runs on")
    batch.cancel(job)
    batch.until(job, "is over")


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"partition": "bach"}, "there is no partition `bach`; did you mean `batch`"),
        ({"constraint": "nonesuch"}, "`sinfo -o %f` lists the features"),
        ({"gpus": 3}, "no node of the partition has all of it"),
        ({"memory": "999G"}, "lower `memory`: no node has so much"),
        ({"options": {"frob": 2}}, "unrecognized option '--frob=2'; take it out of the `options`"),
        ({"gres": "nonesuch:1"}, "change `gpus` or `gres`"),
    ],
)
def test_what_slurm_refuses_is_told_with_what_to_change(cluster, drive, keys, expected):
    answer = drive(**keys).refused()
    assert answer["error"].startswith("Slurm refuses the job: ") and expected in answer["error"], answer
    assert not answer["passing"]


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"partition": "short", "time": "00:10:00"}, "more time than the partition gives; lower `time`"),
        ({"nodes": 9}, "cannot give what it asks for; lower `nodes`"),
    ],
)
def test_what_slurm_takes_and_never_starts_is_told_with_what_to_change(cluster, drive, keys, expected):
    batch = drive(**keys)
    job = batch.submit()
    batch.until(job, expected)
    batch.cancel(job)


def test_a_folder_that_cannot_be_made_is_told(cluster, drive):
    cluster.full("login", "/run/full")
    batch = drive(folder="/run/full")
    batch.order("submit", agent=WAITING, secret="hush")
    told = batch.answer()["error"]
    assert "cannot be made on login" in told and "No space left" in told and "name another one as `folder`" in told, told


@pytest.mark.parametrize("system", [(), ("pbs",)])
def test_a_job_is_found_again_whose_number_was_lost(cluster, drive, system):
    batch = drive(*system)
    first, second = batch.submit(), batch.submit()
    assert batch.ask("find", key=second["key"])["job"] == second["job"]
    assert batch.ask("find", key="0123456789")["job"] is None
    batch.cancel(first)
    batch.cancel(second)
    wait_until(lambda: batch.ask("find", key=second["key"])["job"] is None, 20, "it is still found")


def test_a_cancelled_job_says_by_whom_only_where_that_is_recorded(cluster, drive):
    batch = drive()
    job = batch.submit()
    batch.until(job, "runs on")
    cluster.slurm(f"scancel {job['job']}")
    assert "it was cancelled; this cluster does not record by whom" in batch.over(job)


def test_with_accounting_it_is_told_who_cancelled(accounted, drive):
    batch = drive()
    for user, expected in [("alice", "you cancelled it, from elsewhere"), (None, "the administrator (root) cancelled it")]:
        job = batch.submit()
        batch.until(job, "runs on")
        accounted.slurm(f"scancel {job['job']}", user=user)
        assert expected in batch.over(job)


def test_a_time_limit_is_told_with_what_to_change(cluster, drive):
    batch = drive(time="00:01:00")
    job = batch.submit()
    batch.until(job, "runs on")
    cluster.slurm(f"scontrol update jobid={job['job']} EndTime=now+1", user=None)
    told = batch.over(job, 90)
    assert "(TIMEOUT): its time limit was reached; ask for more: `time` in [targets.big]" in told, told


def test_too_much_memory_is_told_with_what_to_change(cluster, drive):
    batch = drive(memory="100M")
    job = batch.submit([cluster.python, "-c", "import time; x = bytearray(400_000_000); time.sleep(60)"])
    told = batch.over(job)
    assert "it used more memory than it had asked for; ask for more: `memory` in [targets.big]" in told, told


def test_a_job_that_had_to_give_way_says_so(cluster, drive):
    cluster.write("login", "job.sh", "#!/bin/bash\ntrue\n", user="bob")
    batch = drive(nodes=3, cpus=4)
    job = batch.submit()
    batch.until(job, "runs on")
    urgent = cluster.slurm("sbatch --parsable --partition=urgent job.sh", user="bob")
    assert "(PREEMPTED): a job of higher priority took its nodes" in batch.over(job)
    cluster.ended(urgent)


def test_a_node_that_fails_takes_no_other_along(cluster, drive):
    """Not even that on which the job's script runs."""
    batch = drive(nodes=2)
    tick = "while :; do date +%s%N > ~/tick-$(hostname); sleep 0.2; done"
    job = batch.submit(["bash", "-c", tick])
    batch.until(job, "runs on node[1-2]")
    wait_until(lambda: cluster.slurm("ls").count("tick-") == 2, 20, "the agents do not run")
    cluster.fault("kill", "node1")
    batch.until(job, "runs on node2", 60)
    tick = cluster.slurm("cat tick-node2")
    wait_until(lambda: cluster.slurm("cat tick-node2") != tick, 10, "the other agent does not go on")
    batch.cancel(job)
    batch.until(job, "is over")


def test_a_job_of_one_node_that_fails_says_so(cluster, drive):
    batch = drive(options={"nodelist": "node3", "no-kill": False})
    job = batch.submit()
    batch.until(job, "runs on node3")
    cluster.fault("kill", "node3")
    assert "(NODE_FAIL): a node of it failed; run the cell again" in batch.over(job, 60)


def test_a_controller_that_is_away_is_no_end_of_a_job(cluster, drive):
    batch = drive()
    job = batch.submit()
    batch.order("follow", job=job["job"])
    while "runs on" not in batch.answer()["line"]:
        pass
    cluster.fault("stop", "login", "slurmctld")
    batch.order("status", job=job["job"])
    answer = batch.answer()
    assert answer["passing"] and "Slurm does not answer on login: " in answer["error"], answer
    refused = batch.refused()
    assert refused["passing"], refused
    cluster.fault("start", "login", "slurmctld")
    batch.until(job, "runs on")
    batch.cancel(job)
    while "over" not in (answer := batch.answer()):
        pass
    assert answer["over"] == job["job"]


def test_a_cut_off_login_node_loses_no_job(cluster, drive):
    batch = drive()
    job = batch.submit()
    batch.until(job, "runs on")
    cluster.fault("cut", "login")
    batch.order("status", job=job["job"])
    cluster.fault("heal", "login")
    assert "runs on" in batch.answer()["line"]
    batch.cancel(job)


def test_a_job_whose_kernel_has_been_gone_for_too_long_ends_itself(cluster, drive):
    batch = drive(nodes=2)
    job = batch.submit(["bash", "-c", "exit 75"])
    batch.until(job, "is over")
    batch.ask("remove", folder=job["folder"])


def test_a_job_that_nobody_waits_for_any_more_ends_at_once(cluster, drive):
    batch = drive(options={"hold": True})
    job = batch.submit(["touch", "ran"])
    assert "it is held, by you; release it with `scontrol release`" in batch.until(job, "JobHeldUser")
    batch.ask("remove", folder=job["folder"])
    cluster.slurm(f"scontrol release {job['job']}")
    assert "StartTime" in cluster.ended(job["job"])
    assert cluster.slurm("ls") == ""


def test_on_the_login_node_itself_no_ssh_is_needed(cluster):
    assert DRIVER.exists()
    with DRIVER.open("rb") as program:
        cluster.ssh("login", "cat > batch; chmod +x batch", stdin=program)
    cluster.write("login", "cellferry.toml", '[targets.big]\ntype = "slurm"\n')
    batch = Batch([shutil.which("ssh"), "login", "./batch . big"])
    job = batch.submit()
    batch.until(job, "runs on")
    batch.cancel(job)
    batch.close()


def test_a_host_without_slurm_says_so(cluster, drive):
    batch = drive(login="lab")
    told = batch.refused()["error"]
    assert "this host belongs to no cluster; name one that does as `login`" in told, told
    cluster.without("lab", "sbatch")
    batch.order("submit", agent=WAITING, secret="hush")
    told = batch.answer()["error"]
    assert "there is no `sbatch` on lab: is Slurm installed there?" in told, told


def test_commands_of_a_login_shell_only_are_found(cluster, drive):
    """As where a module brings them."""
    cluster.without("login", "sbatch", "squeue", "scancel", "scontrol")
    cluster.write("login", ".bash_profile", "PATH=$PATH:/run/bin\n")
    batch = drive()
    job = batch.submit()
    batch.until(job, "runs on")
    batch.cancel(job)
    batch.until(job, "is over")


def test_a_submission_costs_little_and_a_job_starts_at_once(cluster, drive):
    """Compared with what Slurm itself takes."""
    batch = drive()
    cluster.slurm("srun true")
    start = time.monotonic()
    cluster.slurm("srun true")
    slurm = time.monotonic() - start
    start = time.monotonic()
    job = batch.submit(["bash", "-c", "touch ~/started; exec sleep 1000"])
    wait_until(lambda: (cluster.state / "home/alice/started").exists(), 20, "it does not start")
    ours = time.monotonic() - start
    batch.cancel(job)
    assert ours < 10 * slurm + 1, (ours, slurm)


def test_however_many_jobs_are_followed_the_controller_is_asked_once_in_five_seconds(cluster, drive):
    batch = drive(options={"hold": True})
    jobs = [batch.submit() for _ in range(10)]

    def asked():
        """How often anybody has asked for jobs."""
        lines = cluster.on("login", "sdiag").splitlines()
        kinds = ("REQUEST_JOB_INFO ", "REQUEST_JOB_USER_INFO ", "REQUEST_JOB_INFO_SINGLE ")
        found = [line.split("count:")[1].split()[0] for line in lines if line.strip().startswith(kinds)]
        return sum(map(int, found))

    before, start = asked(), time.monotonic()
    for job in jobs:
        batch.order("follow", job=job["job"])
    heard = [batch.answer()["line"] for _ in jobs]
    assert all("it is held, by you" in line for line in heard), heard
    time.sleep(16)
    times = asked() - before
    assert 3 <= times <= 1 + (time.monotonic() - start) / 5, times
    for job in jobs:
        batch.order("cancel", job=job["job"])
    over = set()
    while len(over) < len(jobs):
        over.add(batch.answer().get("over"))
        over.discard(None)
    for job in jobs:
        batch.ask("remove", folder=job["folder"])


def test_a_wrong_table_of_a_cluster_harms_only_its_own_cells(kernel, targets):
    targets.define("big", type="slurm", login="nowhere.invalid", partitoin="x")
    run = kernel.run("1 + 1", {"workflow": {"target": "big"}})
    assert "unknown key; did you mean `partition`?" in run.error, run.error
    assert kernel.run("1 + 1").ok().result == "2"


def test_torque_commands(cluster, drive):
    batch = drive("pbs", nodes=2, cpus=2, memory="100M", time="00:05:00", partition="batch")
    job = batch.submit(["bash", "-c", "touch ~/agent-$(hostname); exec sleep 1000"])
    assert batch.until(job, "runs on").startswith(f"PBS job {job['job']} runs on node1 node2")
    wait_until(lambda: cluster.slurm("ls").split().count("agent-node1") == 1, 20, "no agent")
    batch.cancel(job)
    batch.until(job, "is over")
    assert drive("pbs", partition="nonesuch").refused()["error"].endswith("change `partition`: `qstat -Q` lists the queues")
