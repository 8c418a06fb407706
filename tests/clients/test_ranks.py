"""MPI steps: a cell that runs once for each rank, in interpreters that stay."""

import ast
import re

import pytest
from client import on
from world import write_targets

ROOT = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}


@pytest.fixture
def mpi(targets):
    """A local target that may run ranks whoever we are."""
    targets.define("left", env=ROOT)
    targets.define("right", env=ROOT)
    return targets


def ranks(count, target="left", **more):
    return on(target, resources={"ranks": count}, **more)


def printed(run):
    """What each rank printed, by rank."""
    found = {}
    for line in run.text().splitlines():
        label, text = re.fullmatch(r"\[([\d,-]+)\] ?(.*)", line).groups()
        for part in label.split(","):
            first, _, last = part.partition("-")
            for rank in range(int(first), int(last or first) + 1):
                found.setdefault(rank, []).append(text)
    return found


def test_values_reach_all_ranks_and_come_back_from_the_first(mpi, kernel):
    kernel.run("import numpy as np\nx = np.arange(300_000.)\ndef twice(a): return 2 * a").ok()
    code = """
from mpi4py import MPI
comm = MPI.COMM_WORLD
rank = comm.rank
total = comm.reduce(twice(x[rank::comm.size]).sum())
mine = comm.rank * 10
print(rank, x.size)
"""
    run = kernel.run(code, ranks(3)).ok()
    assert printed(run) == {rank: [f"{rank} 300000"] for rank in range(3)}
    assert kernel.run("bool(total == 2 * x.sum()), mine").ok().result == "(True, 0)"
    # State and communicator stay, and a change made elsewhere reaches all.
    kernel.run("x[:] = 1").ok()
    run = kernel.run("mine += 1\nprint(mine, x.sum(), comm.allreduce(1))", ranks(3)).ok()
    assert printed(run) == {rank: [f"{10 * rank + 1} 300000.0 3"] for rank in range(3)}
    # To ranks of another number, and to a plain worker.
    run = kernel.run("from mpi4py import MPI\nprint(MPI.COMM_WORLD.size, x.sum(), total)", ranks(2)).ok()
    assert {text.split()[0] for lines in printed(run).values() for text in lines} == {"2"}
    assert kernel.run("int(x.sum()) + mine", on("right")).ok().result == "300001"


def test_an_error_of_one_rank_is_the_cells(mpi, kernel):
    kernel.run("from mpi4py import MPI\nrank = MPI.COMM_WORLD.rank", ranks(3)).ok()
    run = kernel.run("kept = rank\nimport time\nif rank == 2: raise ValueError('mine')\ntime.sleep(600)", ranks(3))
    assert run.error == "ValueError: mine"
    assert "rank 2:" in run.reply["content"]["traceback"][0]
    (error,) = run.of_type("error")
    assert "rank 2:" in error["content"]["traceback"][0]
    assert printed(kernel.run("print(rank)", ranks(3)).ok()) == {rank: [str(rank)] for rank in range(3)}


def test_ranks_that_wait_for_one_that_failed_are_started_anew(mpi, kernel):
    kernel.run("from mpi4py import MPI\ncomm = MPI.COMM_WORLD\nrank = comm.rank", ranks(2)).ok()
    run = kernel.run("if rank == 0: 1 / 0\nwhile True: comm.Barrier()", ranks(2))
    assert run.error == "ZeroDivisionError: division by zero"
    assert "did not end within" in run.text("stderr")
    run = kernel.run("from mpi4py import MPI\nprint(MPI.COMM_WORLD.allreduce(1))", ranks(2)).ok()
    assert printed(run) == {0: ["2"], 1: ["2"]}


def test_a_rank_that_dies_is_named(mpi, kernel):
    code = "from mpi4py import MPI\nimport os\nif MPI.COMM_WORLD.rank == 1: os._exit(7)\nMPI.COMM_WORLD.Barrier()"
    run = kernel.run(code, ranks(2))
    assert "rank 1 of `left[ranks=2]` died (exit code 7)" in run.error


def test_ranks_span_the_nodes_of_an_allocation(cluster, kernel, tmp_path):
    # What Open MPI says where no network hardware is found is of no interest here.
    env = {"OMPI_MCA_btl": "self,vader,tcp"}
    big = {"type": "slurm", "login": "login", "python": cluster.python, "nodes": 2, "env": env}
    write_targets(tmp_path / "cellferry.toml", {"big": big})
    kernel.run("data = bytes(2_000_000)").ok()
    code = """
from mpi4py import MPI
import os
comm = MPI.COMM_WORLD
node = os.uname().nodename
nodes = comm.gather(node)
big = data + bytes(comm.rank)
print(comm.rank, comm.allreduce(len(data)))
"""
    island = on("big", resources={"ranks": 4, "nodes": 2})
    run = kernel.run(code, island, timeout=90).ok()
    assert printed(run) == {rank: [f"{rank} 8000000"] for rank in range(4)}
    run = kernel.run("print(node, comm.allreduce(1), len(big))", island).ok()
    assert {lines[0].split()[0] for lines in printed(run).values()} == {"node1", "node2"}
    assert kernel.run("sorted(set(nodes)), len(nodes), len(big)").ok().result == "(['node1', 'node2'], 4, 2000000)"
    # Another island and a plain step share the nodes.
    run = kernel.run("from mpi4py import MPI\nprint(MPI.COMM_WORLD.size)", on("big", resources={"ranks": 2})).ok()
    assert printed(run) == {0: ["2"], 1: ["2"]}
    assert kernel.run("len(nodes)", on("big")).ok().result == "4"


def test_a_machine_without_mpi_is_told(mpi, kernel, tmp_path):
    (tmp_path / "env").symlink_to("/usr/bin/env")
    mpi.define("left", env=ROOT | {"PATH": str(tmp_path)})
    run = kernel.run("1", ranks(2))
    assert "the ranks of `left[ranks=2]` cannot be started: there is no `mpirun` on PATH" in run.error
    assert "[targets.left]" in run.error


def test_outputs_are_lists_by_rank_where_the_metadata_says_so(mpi, kernel):
    step = {"out": [{"name": "squares", "gather": True}, "first"]}
    kernel.run("from mpi4py import MPI\nsquares = first = MPI.COMM_WORLD.rank ** 2", ranks(3, step=step)).ok()
    assert kernel.run("squares, first").ok().result == "([0, 1, 4], 0)"
    run = kernel.run("y = 1", on("left", step={"out": [{"name": "y", "gather": True}]}))
    assert run.error.startswith("MetadataError") and "ranks" in run.error


def test_what_ranks_print_alike_comes_once(mpi, kernel):
    kernel.run("from mpi4py import MPI\nrank = MPI.COMM_WORLD.rank", ranks(3)).ok()
    # All print at the same time.
    run = kernel.run("MPI.COMM_WORLD.Barrier()\nprint('same')\nprint('rank', rank)", ranks(3)).ok()
    lines = run.text().splitlines()
    assert lines[0] == "[0-2] same" and sorted(lines[1:]) == [f"[{rank}] rank {rank}" for rank in range(3)]


def test_lines_of_ranks_that_print_much_stay_whole(mpi, kernel):
    kernel.run("from mpi4py import MPI\nrank = MPI.COMM_WORLD.rank", ranks(4)).ok()
    run = kernel.run("for n in range(25_000): print(n, 'of', rank)", ranks(4)).ok()
    assert printed(run) == {rank: [f"{n} of {rank}" for n in range(25_000)] for rank in range(4)}


def test_the_cell_after_ranks_that_were_given_up_is_not_disturbed(mpi, kernel):
    kernel.run("from mpi4py import MPI\ncomm = MPI.COMM_WORLD", ranks(2)).ok()
    kernel.run("if comm.rank == 0: 1 / 0\nwhile True: comm.Barrier()", ranks(2))
    run = kernel.run("from mpi4py import MPI\nprint(MPI.COMM_WORLD.size)", ranks(2, retry=0)).ok()
    assert printed(run) == {0: ["2"], 1: ["2"]} and run.text("stderr") == ""


def test_ranks_that_await_something_are_interrupted(mpi, kernel):
    kernel.run("import asyncio\nfrom mpi4py import MPI\nrank = MPI.COMM_WORLD.rank", ranks(2)).ok()
    run = kernel.run("if rank == 1: 1 / 0\nawait asyncio.sleep(600)", ranks(2))
    assert run.error == "ZeroDivisionError: division by zero" and run.text("stderr") == ""
    run = kernel.send("print('now', flush=True)\nawait asyncio.sleep(600)", ranks(2))
    kernel.read_until(lambda: "now" in run.text(), 20)
    kernel.interrupt()
    kernel.finish(run, timeout=20)
    assert run.status == "error" and run.text("stderr") == ""
    assert printed(kernel.run("print(rank)", ranks(2)).ok()) == {0: ["0"], 1: ["1"]}


def test_a_crash_says_where_in_the_cell_it_was(mpi, start, monkeypatch):
    # By which ipykernel would know that it is tested, and leave the standard streams alone.
    monkeypatch.delenv("PYTEST_CURRENT_TEST")
    kernel = start()
    code = "from mpi4py import MPI\nimport ctypes\nif MPI.COMM_WORLD.rank == 1:\n    ctypes.string_at(0)\nMPI.COMM_WORLD.Barrier()"
    run = kernel.run(code, ranks(2))
    assert "rank 1 of `left[ranks=2]` died (signal 11, SIGSEGV" in run.error
    assert "line 4 in " in run.error and "string_at" in run.error, run.error


def test_ranks_that_wait_for_each_other_are_ended_by_a_second_interrupt(mpi, kernel):
    kernel.run("from mpi4py import MPI\ncomm = MPI.COMM_WORLD", ranks(2)).ok()
    run = kernel.send("print('now', flush=True)\ncomm.recv(source=1 - comm.rank)", ranks(2))
    kernel.read_until(lambda: "now" in run.text(), 20)
    kernel.interrupt()
    kernel.read_until(lambda: "interrupt again" in run.text("stderr"), 20)
    kernel.interrupt()
    kernel.finish(run, timeout=20)
    assert run.error == "KeyboardInterrupt: " and len(run.of_type("error")) == 1
    run = kernel.run("from mpi4py import MPI\nprint(MPI.COMM_WORLD.allreduce(1))", ranks(2, retry=0)).ok()
    assert printed(run) == {0: ["2"], 1: ["2"]} and run.text("stderr") == ""


def test_files_are_there_for_all_ranks_and_come_home_when_all_have_made_theirs(mpi, kernel, tmp_path):
    (tmp_path / "in.txt").write_text("data")
    step = {"in": [{"type": "file", "value": "in.txt"}], "out": [{"type": "file", "value": ["log", "parts/*"]}]}
    code = """
from mpi4py import MPI
import os
rank = MPI.COMM_WORLD.rank
text = open('in.txt').read()
if rank == 0: open('log', 'w').write('made')
os.makedirs('parts', exist_ok=True)
if rank == 2: MPI.COMM_WORLD.recv(source=1)
open(f'parts/{rank}', 'w').write(f'{rank} {text}')
if rank == 1: MPI.COMM_WORLD.send(None, dest=2)
"""
    kernel.run(code, ranks(3, step=step)).ok()
    made = {path.name: path.read_text() for path in (tmp_path / "parts").iterdir()}
    assert made == {str(rank): f"{rank} data" for rank in range(3)} and (tmp_path / "log").read_text() == "made"
    step = {"out": [{"type": "file", "value": "so_far"}]}
    run = kernel.run("if rank == 0: open('so_far', 'w').close()\nif rank == 1: 1 / 0", ranks(3, step=step))
    assert run.error == "ZeroDivisionError: division by zero" and (tmp_path / "so_far").exists()
    run = kernel.run("1", ranks(3, step={"out": [{"type": "file", "value": "never"}]}))
    assert run.error.startswith("FileError: `never`, an output of cell [3], is not on `left`")
    run = kernel.run("1", ranks(3, step={"in": [{"type": "file", "value": "never"}]}))
    assert run.error.startswith("FileError: `never`, an input of cell [4]")
    assert printed(kernel.run("print(rank)", ranks(3)).ok()) == {rank: [str(rank)] for rank in range(3)}


@pytest.mark.timeout(150)
def test_islands_by_mpirun_share_the_nodes_and_gpus_of_an_allocation(cluster, kernel, tmp_path):
    env = {"OMPI_MCA_btl": "self,vader,tcp"}
    big = {"type": "slurm", "login": "login", "python": cluster.python, "nodes": 2, "gpus": 2, "env": env}
    write_targets(tmp_path / "cellferry.toml", {"big": big, "other": big | {"mpi": "mpirun", "workdir": "/tmp/apart"}})
    code = (
        "from mpi4py import MPI\nimport os\ncomm = MPI.COMM_WORLD\nnode = os.uname().nodename\n"
        "{} = comm.gather((node, os.environ['CUDA_VISIBLE_DEVICES']))"
    )
    two, four = ({"ranks": 2, "nodes": 2, "gpus": 1}, {"ranks": 4, "nodes": 2})

    def all_gpus(names):
        """What is in the lists: both GPUs of two nodes, each once."""
        found = ast.literal_eval(kernel.run(f"sorted({names})").ok().result)
        nodes = sorted({node for node, _ in found})
        return len(nodes) == 2 and found == [(node, gpu) for node in nodes for gpu in "01"]

    try:
        # Islands that srun starts: both keep their GPUs.
        kernel.run(code.format("a"), on("big", resources=two), timeout=90).ok()
        kernel.run(code.format("b"), on("big", resources={"ranks": 2, "gpus": 1}), timeout=90).ok()
        assert all_gpus("a + b")
        kernel.run("%cellferry release big").ok()
        # mpirun: a second island beside the first, and a cell after ranks that were given up.
        fails = code.format("c") + "\nif comm.rank == 3: 1 / 0\ncomm.Barrier()"
        run = kernel.run(fails, on("other", resources=four), timeout=90)
        assert run.error == "ZeroDivisionError: division by zero"
        run = kernel.run(code.format("c"), on("other", resources=four, retry=0), timeout=90).ok()
        assert run.text("stderr") == ""
        nodes = ast.literal_eval(kernel.run("[node for node, _ in c]").ok().result)
        assert nodes[0] == nodes[1] != nodes[2] == nodes[3]
        kernel.run(code.format("d"), on("other", resources=four | {"gpus": 1}), timeout=90).ok()
        assert all_gpus("d")
        # A working directory of each node's own.
        (tmp_path / "in.txt").write_text("data")
        step = {"in": [{"type": "file", "value": "in.txt"}]}
        run = kernel.run("1", on("other", resources=four, step=step))
        assert run.error.startswith("FileError: `in.txt`, an input of cell ") and f"on {nodes[2]}: ranks on several nodes" in run.error
        assert kernel.run("comm.size", on("other", resources=four)).ok().result == "4"
    finally:
        for node in cluster.nodes:
            cluster.on(node, "rm -rf /tmp/apart")
