"""Cells on the nodes of a real Slurm cluster, through its login node."""

import ast
import os
import signal
import subprocess

import nbformat
import pytest
from client import on
from faults import final_notices, notices
from jobs import no_jobs, open_jobs
from processes import wait_until

BIG = on("big")


def test_cells_run_in_one_job_that_shutdown_ends(cluster, slurm, kernel):
    slurm()
    kernel.run("x = [1, 2]").ok()
    assert open_jobs(cluster) == []
    run = kernel.run("import os\nx.append(3)\nprint(os.uname().nodename, x)", BIG)
    node = run.ok().text().split()[0]
    assert node in cluster.nodes and run.text() == f"{node} [1, 2, 3]\n"
    assert len(open_jobs(cluster)) == 1
    assert kernel.run("x.append(4); os.uname().nodename", BIG).ok().result == repr(node)
    assert kernel.run("x").ok().result == "[1, 2, 3, 4]"
    assert len(open_jobs(cluster)) == 1
    kernel.request("shutdown_request", {"restart": False}, channel="control")
    no_jobs(cluster)


def test_free_nodes_are_taken_without_a_batch_job(cluster, slurm, kernel):
    """And a cell there sees of the job what it would see in a batch job."""
    slurm(cpus=2)
    slurm("queued", cpus=2, options={"comment": "x", "mail-type": "NONE"})
    variables = "import os\nprint(sorted(name for name in os.environ if name.startswith('SLURM')))"
    told = {}
    for target, batch in (("big", "0"), ("queued", "1")):
        told[target] = set(ast.literal_eval(kernel.run(variables, on(target)).ok().text()))
        (job,) = open_jobs(cluster)
        assert cluster.job(str(job))["BatchFlag"] == batch
        kernel.run(f"%cellferry release {target}").ok()
        no_jobs(cluster)
    assert told["queued"] - told["big"] <= {"SLURM_NODE_ALIASES"}


def test_a_cell_that_waits_shows_why_and_then_where_it_runs(cluster, slurm, kernel):
    slurm(nodes=3)
    other = cluster.slurm("sbatch --parsable -N3 --exclusive --output=/dev/null --wrap 'sleep 1000'", user="bob")
    wait_until(lambda: cluster.job(other)["JobState"] == "RUNNING", 20, lambda: cluster.job(other))
    run = kernel.send("print('here')", BIG)
    kernel.read_until(lambda: "(Resources" in notices(run) and "number 1 in the queue" in notices(run), 60)
    cluster.slurm(f"scancel {other}", user=None)
    kernel.finish(run)
    assert run.ok().text() == "here\n"
    (number,) = open_jobs(cluster)
    assert f"Slurm job {number} waits" in notices(run)
    (final,) = final_notices(run)
    assert "node" in final, notices(run)


def test_cells_at_the_same_time_use_several_nodes(cluster, slurm, kernel):
    slurm(nodes=3)
    meet = "import os, time\nopen(f'at-{n}', 'w').close()\nwhile len([f for f in os.listdir('.') if f.startswith('at-')]) < 3: time.sleep(0.05)\n"
    runs = [kernel.send(f"n = {n}\n{meet}place_{n} = os.uname().nodename", BIG) for n in range(3)]
    for run in runs:
        kernel.finish(run)
        run.ok()
    places = kernel.run("{place_0, place_1, place_2}").ok().result
    assert set(ast.literal_eval(places)) == set(cluster.nodes)
    assert len(open_jobs(cluster)) == 1


@pytest.mark.parametrize("keys, told", [
    ({"partition": "nowhere"}, "nowhere"),
    ({"time": "10h", "partition": "short"}, "time"),
    ({"gpus": 7}, "gpus"),
    ({"login": "nobody-there"}, "nobody-there"),
    ({"folder": "/proc/jobs"}, "folder"),
])
def test_what_the_cluster_refuses_is_told_under_the_cell(cluster, slurm, kernel, keys, told):
    slurm(**keys)
    run = kernel.run("1", BIG)
    assert run.error.startswith("BatchError: big cannot be used: ") and told in run.error, run.error
    slurm("good")
    assert kernel.run("1", on("good")).ok().result == "1"


@pytest.mark.timeout(300)
@pytest.mark.parametrize("how, told", [
    ("cancelled", "CANCELLED"),
    ("time limit", "TIMEOUT"),
    ("out of memory", "OUT_OF_MEMORY"),
])
def test_the_end_of_a_job_is_told_and_the_next_cell_gets_another(cluster, slurm, kernel, how, told):
    keys = {"out of memory": {"memory": "300M"}}.get(how, {})
    slurm(**keys)
    kernel.run("import time\nx = 5", BIG).ok()
    (first,) = open_jobs(cluster)
    cell = "many = bytearray(900_000_000)\ntime.sleep(600)" if how == "out of memory" else "time.sleep(600)"
    run = kernel.send(f"print('go', flush=True)\n{cell}", BIG)
    if how == "cancelled":
        kernel.read_printed(run, "go")
        cluster.slurm(f"scancel {first}", user=None)
    elif how == "time limit":
        kernel.read_printed(run, "go")
        cluster.on("login", f"scontrol update jobid={first} EndTime=now+1")
    kernel.finish(run, timeout=150)
    assert run.error.startswith("JobEnded: ") and told in run.error or "WorkerDied" in run.error, run.error
    assert kernel.run("x + 1", BIG).ok().result == "6"
    # What Slurm kills has no time to clear up; the next agent there does, after a while.
    for node in cluster.nodes:
        cluster.on(node, "rm -rf /tmp/cellferry-* /dev/shm/cellferry-*")


@pytest.mark.timeout(300)
def test_a_node_that_crashes_is_lost_and_its_step_runs_on_another(cluster, slurm, kernel):
    slurm(nodes=2)
    kernel.run("import time, os\nx = 5", BIG).ok()
    run = kernel.send("print(os.uname().nodename, flush=True)\ntime.sleep(8)\ny = x + 1", BIG)
    kernel.read_until(lambda: run.text().startswith("node"))
    first = run.text().strip()
    cluster.fault("kill", first)
    cluster.left_within = 60
    kernel.finish(run, timeout=180)
    assert run.ok().text().strip() != first
    assert kernel.run("y").ok().result == "6"


def test_slurmd_killed_harms_no_cell(cluster, slurm, kernel):
    slurm()
    kernel.run("import time, os\nx = 5", BIG).ok()
    node = kernel.run("print(os.uname().nodename)", BIG).ok().text().strip()
    run = kernel.send("print('go', flush=True)\ntime.sleep(5)\nx += 1", BIG)
    kernel.read_printed(run, "go")
    cluster.fault("crash", node, "slurmd")
    kernel.finish(run)
    run.ok()
    assert kernel.run("x", BIG).ok().result == "6"


def test_a_controller_that_is_away_for_a_while_is_waited_for(cluster, slurm, kernel):
    slurm()
    slurm("other")
    kernel.run("x = 5", BIG).ok()
    cluster.fault("stop", "login", "slurmctld")
    assert kernel.run("x + 1", BIG).ok().result == "6"
    run = kernel.send("x + 2", on("other"))
    kernel.read_until(lambda: "no job yet, trying again" in notices(run), 60)
    cluster.fault("start", "login", "slurmctld")
    kernel.finish(run, timeout=90)
    assert run.ok().result == "7"


@pytest.mark.parametrize("when", ["waiting", "running"])
def test_a_login_node_that_is_out_of_reach_for_a_while_is_waited_for(cluster, slurm, kernel, when):
    slurm(nodes=3)
    if when == "waiting":
        other = cluster.slurm("sbatch --parsable -N3 --exclusive --output=/dev/null --wrap 'sleep 1000'", user="bob")
        wait_until(lambda: cluster.job(other)["JobState"] == "RUNNING", 20, lambda: cluster.job(other))
        run = kernel.send("print('go')\nx = 5", BIG)
        kernel.read_until(lambda: " waits" in notices(run), 60)
    else:
        kernel.run("import time", BIG).ok()
        run = kernel.send("print('go', flush=True)\ntime.sleep(10)\nx = 5", BIG)
        kernel.read_printed(run, "go")
    cluster.fault("cut", "login")
    kernel.read_until(lambda: "lost, reconnecting" in notices(run), 60)
    cluster.fault("heal", "login")
    if when == "waiting":
        cluster.slurm(f"scancel {other}", user=None)
    kernel.finish(run, timeout=90)
    assert run.ok().text() == "go\n"
    assert kernel.run("x").ok().result == "5"
    assert len(open_jobs(cluster)) == 1


@pytest.mark.parametrize("when", ["waiting", "running"])
def test_a_killed_kernel_leaves_no_job(cluster, slurm, start, when):
    slurm(nodes=3, patience="4s")
    kernel = start()
    if when == "waiting":
        other = cluster.slurm("sbatch --parsable -N3 --exclusive --output=/dev/null --wrap 'sleep 1000'", user="bob")
        wait_until(lambda: cluster.job(other)["JobState"] == "RUNNING", 20, lambda: cluster.job(other))
        run = kernel.send("1", BIG)
        kernel.read_until(lambda: " waits" in notices(run), 60)
    else:
        kernel.run("import time", BIG).ok()
        kernel.send("time.sleep(1000)", BIG)
    os.kill(kernel.pid, signal.SIGKILL)
    wait_until(lambda: not cluster.slurm("squeue -h -u alice", user=None), 40, lambda: cluster.slurm("squeue"))
    cluster.slurm("scancel --user=bob", user=None)
    cluster.left_within = 30


def test_an_interrupt_stops_the_cell_and_keeps_the_allocation(cluster, slurm, kernel):
    slurm()
    kernel.run("import time\nx = 5", BIG).ok()
    run = kernel.send("print('go', flush=True)\ntime.sleep(100)", BIG)
    kernel.read_printed(run, "go")
    kernel.interrupt()
    kernel.finish(run)
    assert run.error.startswith("KeyboardInterrupt")
    assert kernel.run("x", BIG).ok().result == "5"
    assert len(open_jobs(cluster)) == 1


def test_on_the_login_node_itself(cluster):
    """No `login`: `sbatch` is at hand."""
    table = f"[targets.big]\ntype = 'slurm'\npython = '{cluster.python}'\n"
    cluster.write("login", "work/cellferry.toml", table)
    cells = [("x = [1]", {}), ("import os\nx.append(os.uname().nodename)", BIG), ("print(x)", {})]
    notebook = nbformat.v4.new_notebook(metadata={"kernelspec": {"name": "cellferry", "display_name": "Cellferry"}})
    notebook.cells = [nbformat.v4.new_code_cell(source, metadata=metadata) for source, metadata in cells]
    cluster.write("login", "work/note.ipynb", nbformat.writes(notebook))
    command = f"cd ~/work && {cluster.python} -m nbconvert --execute --to notebook --stdout note.ipynb"
    done = nbformat.reads(cluster.on("login", command, user="alice", timeout=120), as_version=4)
    assert ast.literal_eval(done.cells[-1].outputs[0].text)[1] in cluster.nodes
    no_jobs(cluster)
    cluster.on("login", "rm -rf ~alice/work")


@pytest.mark.parametrize("how", ["restart", "kill"])
def test_the_next_kernel_of_the_notebook_takes_the_allocation_over(cluster, slurm, kernel, how):
    slurm()
    kernel.run("x = 5", BIG).ok()
    (job,) = open_jobs(cluster)
    if how == "kill":
        os.kill(kernel.pid, signal.SIGKILL)
    kernel.manager.restart_kernel()
    kernel.client.wait_for_ready(timeout=60)
    run = kernel.run("'x' in globals()", BIG)
    assert run.ok().result == "False"
    assert open_jobs(cluster) == [job]
    kernel.request("shutdown_request", {"restart": False}, channel="control")
    no_jobs(cluster)


def test_what_is_not_to_be_kept_ends_at_a_restart(cluster, slurm, kernel):
    slurm(keep=False)
    kernel.run("x = 5", BIG).ok()
    (job,) = open_jobs(cluster)
    kernel.manager.restart_kernel()
    kernel.client.wait_for_ready(timeout=60)
    assert job not in open_jobs(cluster)


def test_an_idle_allocation_is_given_back_and_its_values_are_not_lost(cluster, slurm, kernel):
    slurm(idle="3s")
    kernel.run("x = [1, 2]\ny = x", BIG).ok()
    assert len(open_jobs(cluster)) == 1
    no_jobs(cluster, 30)
    assert kernel.run("x.append(3)\ny").ok().result == "[1, 2, 3]"
    assert kernel.run("y", BIG).ok().result == "[1, 2, 3]"


def test_release_gives_an_allocation_back(cluster, slurm, kernel):
    slurm(nodes=2)
    kernel.run("x = [1, 2]", BIG).ok()
    run = kernel.run("%cellferry release big")
    assert "released big: 1 worker; 1 value" in run.ok().text(), run.text()
    no_jobs(cluster)
    assert kernel.run("x", BIG).ok().result == "[1, 2]"
    run = kernel.send("import time; time.sleep(100)", BIG)
    kernel.read_until(lambda: run.of_type("execute_input"))
    kernel.interrupt()
    kernel.finish(run)
    assert "released big" in kernel.run("%cellferry release").ok().text()
    no_jobs(cluster)


def by_rank(run):
    """What each rank has printed."""
    said = set()
    for line in run.ok().text().splitlines():
        label, _, text = line.removeprefix("[").partition("] ")
        for part in label.split(","):
            first, _, last = part.strip().partition("-")
            said |= {(rank, text) for rank in range(int(first), int(last or first) + 1)}
    return said


RANKS = "from mpi4py import MPI\nimport os\nworld = MPI.COMM_WORLD\nrank = world.rank"


def test_an_mpi_step_spans_nodes_and_keeps_its_communicator(cluster, slurm, kernel):
    slurm(nodes=2)
    ranks = on("big", resources={"ranks": 4, "nodes": 2})
    kernel.run("base = 10").ok()
    run = kernel.run(f"{RANKS}\ntotal = world.allreduce(rank + base)\nprint(total)\nplaces = world.allgather(os.uname().nodename)", ranks)
    assert by_rank(run) == {(rank, "46") for rank in range(4)}
    assert kernel.run("sorted(places)").ok().result == "['node1', 'node1', 'node2', 'node2']"
    run = kernel.run("print(rank, world.size, flush=True)", ranks)
    assert by_rank(run) == {(rank, f"{rank} 4") for rank in range(4)}
    run = kernel.run("if rank == 2: raise ValueError('no')\nworld.barrier()", ranks)
    assert run.error.startswith("ValueError: ") and "no" in run.error
    assert kernel.run("total").ok().result == "46"
    assert len(open_jobs(cluster)) == 1


def test_islands_of_different_sizes_hand_values_on(cluster, slurm, kernel):
    slurm(nodes=2, cpus=4)
    wide = on("big", resources={"ranks": 4, "nodes": 2})
    small = on("big", resources={"ranks": 2})
    kernel.run(f"{RANKS}\nparts = world.allgather(rank ** 2)", wide).ok()
    kernel.run(f"{RANKS}\nhalf = sum(parts[rank::2])\nsums = world.allgather(half)", small).ok()
    assert kernel.run("sums", BIG).ok().result == "[4, 10]"
    assert len(open_jobs(cluster)) == 1


def test_steps_that_ask_for_gpus_have_them_to_themselves(cluster, slurm, kernel):
    slurm(gpus=2)
    cluster.on("login", "mkdir ~/meet", user="alice")
    meet = (
        "import os, time\nmeet = os.path.expanduser('~/meet')\nopen(f'{meet}/{n}', 'w').close()\n"
        "while len(os.listdir(meet)) < 2: time.sleep(0.05)"
    )
    one = on("big", resources={"gpus": 1})
    runs = [kernel.send(f"n = {n}\n{meet}\nmine_{n} = os.environ['CUDA_VISIBLE_DEVICES']", one) for n in (0, 1)]
    for run in runs:
        kernel.finish(run)
        run.ok()
    assert kernel.run("sorted([mine_0, mine_1])").ok().result == "['0', '1']"
    both = on("big", resources={"gpus": 2})
    assert kernel.run("os.environ['CUDA_VISIBLE_DEVICES']", both).ok().result == "'0,1'"
    cluster.on("login", "rm -r ~/meet", user="alice")


def test_an_allocation_that_is_not_used_makes_room_for_another(cluster, slurm, kernel):
    slurm(nodes=3, gpus=2)
    kernel.run("x = [1, 2]\ny = x", BIG).ok()
    more = on("big", resources={"cpus": 3})
    run = kernel.send("x.append(3)", more)
    kernel.finish(run, timeout=60)
    run.ok()
    assert kernel.run("y").ok().result == "[1, 2, 3]"
    assert len(open_jobs(cluster)) == 1


def test_a_step_that_its_job_may_not_see_the_end_of_is_told_so(cluster, slurm, kernel):
    slurm(time="10m")
    kernel.run("x = 1", BIG).ok()
    # The time of the job's end comes with Slurm's next word on it.
    def told():
        run = kernel.run("x", on("big", resources={"time": "10m"}))
        return "may not come to its end" in run.ok().text("stderr")

    wait_until(told, 30, "nothing was told")
    assert kernel.run("x", on("big", resources={"time": "1m"})).ok().text("stderr") == ""
    assert len(open_jobs(cluster)) == 1


@pytest.mark.timeout(200)
def test_nodes_that_cannot_connect_to_the_login_node_use_mail(cluster, slurm, kernel):
    slurm()
    rules = "type filter hook input priority 0;"
    cluster.on("login", f"nft add table inet gate; nft add chain inet gate input '{{ {rules} }}'")
    cluster.on("login", "nft add rule inet gate input iifname != lo tcp dport 32768-60999 ct state new drop")
    try:
        kernel.run("x = list(range(100_000))").ok()
        assert kernel.run("print('by mail', flush=True)\nsum(x)", BIG).ok().result == "4999950000"
        assert kernel.run("x.append(1)\nlen(x)", BIG).ok().result == "100001"
        assert "mail" in cluster.slurm("ls ~/.cache/cellferry/jobs/*")
    finally:
        cluster.on("login", "nft delete table inet gate")


def test_doctor_tries_a_cluster_with_a_job(cluster, slurm, tmp_path, binary):
    slurm(nodes=3)
    done = subprocess.run([binary, "doctor", "big"], cwd=tmp_path, capture_output=True, text=True, timeout=100)
    assert "target `big`: a job of one node ran on node" in done.stdout, done.stdout + done.stderr
    assert "its nodes connect to the login node over TCP" in done.stdout
    no_jobs(cluster)
    slurm("wrong", partition="nowhere")
    done = subprocess.run([binary, "doctor", "wrong"], cwd=tmp_path, capture_output=True, text=True, timeout=100)
    assert "FAIL" in done.stdout and "nowhere" in done.stdout and done.returncode == 1


@pytest.mark.timeout(200)
def test_a_step_whose_job_was_preempted_runs_again(cluster, slurm, kernel):
    slurm(nodes=3, options={"exclusive": True})
    kernel.run("import time\nx = 5", BIG).ok()
    run = kernel.send("print('go', flush=True)\ntime.sleep(6)\ny = x + 1", BIG)
    kernel.read_printed(run, "go")
    cluster.slurm("sbatch -N3 --exclusive -p urgent --output=/dev/null --wrap 'sleep 12'", user="bob")
    kernel.finish(run, timeout=120)
    assert run.ok().text() == "go\n"
    assert "runs again" in run.text("stderr") and "PREEMPTED" in run.text("stderr")
    assert kernel.run("y").ok().result == "6"


@pytest.mark.timeout(300)
def test_a_node_of_an_mpi_step_that_crashes_ends_the_step(cluster, slurm, start):
    kernel = start()
    slurm(nodes=2, cpus=2)
    ranks = on("big", resources={"ranks": 4, "nodes": 2}, retry=0)
    kernel.run(f"{RANKS}\nimport time\nnames = world.allgather(os.uname().nodename)", ranks).ok()
    first, *_, last = ast.literal_eval(kernel.run("names").ok().result)
    run = kernel.send("print('go', flush=True)\ntime.sleep(10)\nworld.barrier()", ranks)
    kernel.read_printed(run, "go")
    cluster.fault("kill", last)
    cluster.left_within = 60
    kernel.finish(run, timeout=120)
    assert run.reply["content"]["status"] == "error", run.text()
    assert kernel.run("len(names)").ok().result == "4"
    kernel.request("shutdown_request", {"restart": False}, channel="control")
    no_jobs(cluster, 30)
    # What Slurm kills has no time to clear up; the next agent there does, after a while.
    cluster.on(first, "rm -rf /tmp/cellferry-* /dev/shm/cellferry-*")


def test_a_cluster_by_the_commands_of_pbs(cluster, slurm, kernel):
    slurm(type="pbs", nodes=2)
    kernel.run("x = [1]").ok()
    assert kernel.run("import os\nx.append(2)\nos.uname().nodename", BIG).ok().result.strip("'") in cluster.nodes
    assert kernel.run("x").ok().result == "[1, 2]"
    assert len(open_jobs(cluster)) == 1
    kernel.request("shutdown_request", {"restart": False}, channel="control")
    no_jobs(cluster)


def test_shutdown_cancels_a_job_that_waits(cluster, slurm, kernel):
    slurm(nodes=3)
    other = cluster.slurm("sbatch --parsable -N3 --exclusive --output=/dev/null --wrap 'sleep 1000'", user="bob")
    wait_until(lambda: cluster.job(other)["JobState"] == "RUNNING", 20, lambda: cluster.job(other))
    run = kernel.send("1", BIG)
    kernel.read_until(lambda: " waits" in notices(run), 60)
    kernel.request("shutdown_request", {"restart": False}, channel="control")
    wait_until(lambda: not cluster.slurm("squeue -h -u alice", user=None), 10, lambda: cluster.slurm("squeue"))
    cluster.slurm(f"scancel {other}", user=None)
    cluster.left_within = 20


def test_two_kernels_at_once_have_jobs_of_their_own(cluster, slurm, start):
    slurm()
    one, two = start(), start()
    runs = [kernel.send(f"x = {number}\nx", BIG) for number, kernel in enumerate((one, two))]
    for kernel, run in zip((one, two), runs, strict=True):
        kernel.finish(run)
    assert [run.ok().result for run in runs] == ["0", "1"]
    assert len(open_jobs(cluster)) == 2


def test_large_values_and_what_cannot_be_carried(cluster, slurm, kernel):
    slurm(nodes=2, memory="1500M")
    kernel.run("import numpy as np\nbig = np.arange(20_000_000)\ngen = (i for i in range(3))").ok()
    assert kernel.run("int(big.sum())", BIG).ok().result == "199999990000000"
    assert "`gen`" in kernel.run("next(gen)", BIG).error
    kernel.run("big += 1", BIG).ok()
    assert kernel.run("int(big[0])").ok().result == "1"
