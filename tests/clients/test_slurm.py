"""Cells on the nodes of a real Slurm cluster, through its login node."""

import ast

import pytest
from client import on
from faults import final_notices, notices
from processes import wait_until
from world import write_targets


BIG = on("big")


@pytest.fixture
def slurm(cluster, tmp_path):
    """Defines targets on the cluster: `slurm("big", nodes=3)`."""
    targets = {}

    def define(name="big", **keys):
        usual = {"type": "slurm", "login": "login", "python": cluster.python}
        targets[name] = targets.get(name, usual) | keys
        write_targets(tmp_path / "cellferry.toml", targets)

    return define


def jobs(cluster, states="all"):
    """The numbers of all jobs that have not ended."""
    return [int(number) for number in cluster.slurm(f"squeue -h -o %A -t {states}", user=None).split()]


def open_jobs(cluster):
    return jobs(cluster, "PENDING,RUNNING,SUSPENDED,CONFIGURING")


def no_jobs(cluster, seconds=10):
    wait_until(lambda: open_jobs(cluster) == [], seconds, lambda: f"jobs: {cluster.slurm('squeue')}")


def test_cells_run_in_one_job_that_shutdown_ends(cluster, slurm, kernel):
    slurm()
    kernel.run("x = [1, 2]").ok()
    assert jobs(cluster) == []
    run = kernel.run("import os\nx.append(3)\nprint(os.uname().nodename, x)", BIG)
    node = run.ok().text().split()[0]
    assert node in cluster.nodes and run.text() == f"{node} [1, 2, 3]\n"
    assert len(open_jobs(cluster)) == 1
    assert kernel.run("x.append(4); os.uname().nodename", BIG).ok().result == repr(node)
    assert kernel.run("x").ok().result == "[1, 2, 3, 4]"
    assert len(open_jobs(cluster)) == 1
    kernel.request("shutdown_request", {"restart": False}, channel="control")
    no_jobs(cluster)


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
    assert run.error.startswith("SlurmError: big cannot be used: ") and told in run.error, run.error
    slurm("good")
    assert kernel.run("1", on("good")).ok().result == "1"


@pytest.mark.parametrize("how, told", [
    ("cancelled", "CANCELLED"),
    ("time limit", "TIMEOUT"),
    ("out of memory", "OUT_OF_MEMORY"),
])
def test_the_end_of_a_job_is_told_and_the_next_cell_gets_another(cluster, slurm, kernel, how, told):
    keys = {"time limit": {"time": "00:01:00"}, "out of memory": {"memory": "300M"}}.get(how, {})
    slurm(**keys)
    kernel.run("import time\nx = 5", BIG).ok()
    (first,) = open_jobs(cluster)
    cell = "many = bytearray(900_000_000)\ntime.sleep(600)" if how == "out of memory" else "time.sleep(600)"
    run = kernel.send(f"print('go', flush=True)\n{cell}", BIG)
    if how == "cancelled":
        kernel.read_printed(run, "go")
        cluster.slurm(f"scancel {first}", user=None)
    kernel.finish(run, timeout=150)
    assert run.error.startswith("JobEnded: ") and told in run.error or "WorkerDied" in run.error, run.error
    assert kernel.run("x + 1", BIG).ok().result == "6"
    # What Slurm kills has no time to clear up; the next agent there does, after a while.
    for node in cluster.nodes:
        cluster.on(node, "rm -rf /tmp/cellferry-* /dev/shm/cellferry-*")
