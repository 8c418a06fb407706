"""Cells on a real Slurm cluster, against Slurm's own commands: the first cell and the next ones, the launch of MPI ranks, how
often the controller is asked, and islands that hand values on against batch jobs that hand files on."""

import random
import re
import statistics
import sys
import time

from common import Kernel, in_turn, milliseconds, report
from far import cluster, seconds

FIRST, SECOND, WARM_UP, LAUNCHES, ROUNDS, PIPELINES = 11, 200, 20, 7, 3, 5
LAUNCH = 1.2  # times what srun takes
STEP = 0.010  # seconds
WAITING = 20  # cells, each of which waits for a job of its own
WINDOW = 60  # seconds
LEAST = 5  # seconds between two questions
PIPELINE = 0.96  # times what the batch jobs take: RADICAL-Pilot with Cylon gains 4 % at least

RANKS = {"ranks": 4, "nodes": 2}
FEW = {"ranks": 2}

# Run on a node: how long Python's kernel takes there from the start of its process to its first answer.
IPYKERNEL = """
import sys, time
from jupyter_client.manager import KernelManager
manager = KernelManager(kernel_name="python3")
manager.kernel_spec.argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
began = time.perf_counter()
manager.start_kernel()
client = manager.blocking_client()
client.start_channels()
client.kernel_info()
client.get_shell_msg(timeout=60)
print(time.perf_counter() - began)
client.stop_channels()
manager.shutdown_kernel(now=True)
"""

# What both sides run when MPI ranks are launched.
SCRIPT = "from mpi4py import MPI\nMPI.COMM_WORLD.barrier()\n"
# What our ranks need beyond that: each is a kernel.
AS_KERNEL = "from ipykernel.kernelapp import IPKernelApp\nIPKernelApp.instance().initialize([])\n"
# An ipykernel that is not served would wait for threads at its end.
AT_ONCE = "import os\nMPI.Finalize()\nos._exit(0)\n"

# Ranks that prepare data, and ranks that reduce it: the same lines in cells and in the scripts of batch jobs.
PREPARE = """
import numpy as np
from mpi4py import MPI
world = MPI.COMM_WORLD
part = np.sort(np.random.default_rng(100 * number + world.rank).random(1_000_000))
parts = world.gather(part)
data = np.concatenate(parts) if world.rank == 0 else None
"""
REDUCE = """
import numpy as np
from mpi4py import MPI
world = MPI.COMM_WORLD
answer = world.allreduce(float(np.sqrt(data[world.rank::world.size]).sum()))
"""


def idle(bed):
    """Waits until the cluster is, and then up to a second more: the controller looks through its queue once a second."""
    bed.settle()
    time.sleep(random.random())


def first_cell(bed, path):
    def ours():
        idle(bed)
        kernel = Kernel("cellferry", path)
        try:
            kernel.seconds("pass")
            return kernel.seconds("pass", "big")
        finally:
            kernel.close()

    def srun():
        idle(bed)
        return seconds("ssh", "login", f"srun {bed.python} -c pass")

    def batch():
        """From submitting a batch job to its first command. The controller starts those when it looks through its queue
        the next time, whereas it starts what srun asks for at once."""
        idle(bed)
        submit = "sbatch --output=/dev/null --wrap 'date +%s%N > .at && mv .at at'"
        script = f"cd; rm -f at; began=$(date +%s%N); {submit} >&2; until [ -e at ]; do sleep 0.01; done; echo $(($(cat at) - began))"
        return int(bed.on("login", script, user=bed.user)) / 1e9

    def python():
        idle(bed)
        return float(bed.on("node1", f"cd; {bed.python} -", user=bed.user, stdin=None, input=IPYKERNEL))

    samplers = {"ours": ours, "srun": srun, "python": python, "batch": batch}
    in_turn(1, **samplers)
    samples = in_turn(FIRST, **samplers)
    ours, srun, python, batch = (statistics.median(samples[name]) for name in ("ours", "srun", "python", "batch"))
    held = True
    for title, name, peer in (("first cell, idle cluster", "srun", srun), ("the same", "a batch job's start", batch)):
        ratio = ours / (peer + python)
        held = held and ratio <= LAUNCH
        print(
            f"{title:34s} cellferry {milliseconds(ours)}  {name} {milliseconds(peer)}  ipykernel {milliseconds(python)}  "
            f"ratio {ratio:6.3f}  at most {LAUNCH:g}  {'ok' if ratio <= LAUNCH else 'MISSED'}",
            flush=True,
        )
    print(f"{'':34s} all of ours: {' '.join(f'{taken:.2f}' for taken in sorted(samples['ours']))} s", flush=True)
    return held


def second_cell(bed, path):
    bed.settle()
    kernel = Kernel("cellferry", path)
    try:
        kernel.seconds("pass", "big")
        samplers = {"ours": lambda: kernel.seconds("pass", "big")}
        in_turn(WARM_UP, **samplers)
        ours = statistics.median(in_turn(SECOND, **samplers)["ours"])
    finally:
        kernel.close()
    print(
        f"{'second cell':34s} cellferry {milliseconds(ours)}  under {milliseconds(STEP).strip()}  "
        f"{'ok' if ours < STEP else 'MISSED'}",
        flush=True,
    )
    return ours < STEP


def job(bed):
    """The number of the only job."""
    (number,) = bed.slurm("squeue -h -o %A").split()
    return number


def launch(bed, path):
    """Each time new ranks, in an allocation that has run a plain cell."""
    bed.write("login", "bare.py", SCRIPT)
    bed.write("login", "kernels.py", AS_KERNEL + SCRIPT + AT_ONCE)

    def by_srun(script):
        # Timed where it runs: on the node from which our ranks are started, too.
        line = f"srun --jobid={job(bed)} --overlap --mpi=pmix --cpu-bind=none --ntasks=4 --nodes=2 {bed.python} ~/{script}"
        timed = f"cd; began=$(date +%s%N); {line} >&2 && echo $(($(date +%s%N) - began))"
        return int(bed.on("node1", timed, user=bed.user)) / 1e9

    samples = {"ours": [], "bare": [], "kernels": []}
    for number in range(LAUNCHES + 1):
        bed.settle()
        kernel = Kernel("cellferry", path)
        try:
            kernel.seconds("pass", "big")
            samplers = {
                "ours": lambda kernel=kernel: kernel.seconds(SCRIPT, "big", resources=RANKS),
                "bare": lambda: by_srun("bare.py"),
                "kernels": lambda: by_srun("kernels.py"),
            }
            for name in list(samplers)[:: -1 if number % 2 else 1]:
                taken = samplers[name]()
                if number:
                    samples[name].append(taken)
        finally:
            kernel.close()
    ours, bare = (statistics.median(samples[name]) for name in ("ours", "bare"))
    held = report("launch of 4 MPI ranks on 2 nodes", samples["ours"], samples["kernels"], LAUNCH, "srun of as many kernels")
    print(f"{'':34s} srun of the bare script {milliseconds(bare)}  ratio {ours / bare:6.3f}", flush=True)
    return held


def asked(bed):
    """How many messages of each type the controller has had, and how many of our user."""
    text = bed.on("login", "sdiag")
    types, users = text.split("Remote Procedure Call statistics by user")
    counts = dict(re.findall(r"^\s*(REQUEST_\w+)\s+\(.*?count:(\d+)", types, re.MULTILINE))
    of_user = re.search(rf"^\s*{bed.user}\s+\(.*?count:(\d+)", users, re.MULTILINE)
    return {name: int(count) for name, count in counts.items()}, int(of_user[1]) if of_user else 0


def polls(bed, path):
    """With one allocation for each of many cells, none of which can start."""
    bed.settle()
    nodes = len(bed.nodes)
    bed.slurm(f"sbatch --nodes={nodes} --exclusive --output=/dev/null --wrap 'sleep 1000'", user=bed.other_user)
    kernel = Kernel("cellferry", path)
    try:
        for number in range(WAITING):
            kernel.send("pass", f"wait{number}")
        while len(bed.slurm(f"squeue -h -u {bed.user}", user=None).splitlines()) < WAITING:
            time.sleep(0.5)
        time.sleep(2 * LEAST)  # what each job is asked once when it is new
        before, ours_before = asked(bed)
        time.sleep(WINDOW)
        after, ours_after = asked(bed)
    finally:
        bed.slurm(f"scancel --user={bed.other_user}", user=None)
        kernel.close()
    types = {name: count - before.get(name, 0) for name, count in after.items() if count > before.get(name, 0)}
    questions = sum(count for name, count in types.items() if re.fullmatch(r"REQUEST_JOB\w*INFO", name))
    # Each squeue asks for the partitions and the federation besides, by itself.
    most, beside = WINDOW // LEAST + 1, ours_after - ours_before - questions
    held = 0 < questions <= most and beside <= 2 * most
    print(
        f"{f'{WAITING} jobs wait, {WINDOW} s':34s} questions about jobs {questions}  at most {most}  "
        f"{'ok' if held else 'MISSED'}  and what squeue asks besides {beside}",
        flush=True,
    )
    return held


# How a batch job is submitted after another one: when that has ended, or at once, to be started by Slurm then.
WAITED = "sbatch --wait --parsable --output=/dev/null >&2"
CHAINED = "id=$(sbatch --parsable --output=/dev/null ${id:+--dependency=afterok:$id}"


def pipeline(bed, path):
    """Rounds of 4 ranks that prepare data and 2 ranks that reduce it, from an idle cluster to the last answer."""
    answers = []

    def ours():
        bed.settle()
        kernel = Kernel("cellferry", path)
        try:
            kernel.seconds("answers = []")
            sent = set()
            began = time.perf_counter()
            for number in range(ROUNDS):
                sent.add(kernel.send(f"number = {number}\n{PREPARE}", "big", resources=RANKS))
                sent.add(kernel.send(REDUCE, "big", resources=FEW))
                sent.add(kernel.send("answers.append(answer)"))
            kernel.wait(sent)
            taken = time.perf_counter() - began
            answers.append(kernel.value("sum(answers)"))
            return taken
        finally:
            kernel.close()

    def batch(submit):
        lines = ["set -e", "cd", "rm -f answers over", "began=$(date +%s%N)"]
        for number in range(ROUNDS):
            for ranks, script in (("--nodes=2 --ntasks=4", f"prepare.py {number}"), ("--ntasks=2", "reduce.py")):
                run = f"srun --mpi=pmix {bed.python} {script}"
                if (number, script) == (ROUNDS - 1, "reduce.py"):
                    run += " && date +%s%N > .over && mv .over over"  # nobody waits for the controller to notice
                lines.append(f"{submit} {ranks} --wrap '{run}'{')' if submit == CHAINED else ''}")
        lines += ["until [ -e over ]; do sleep 0.02; done", "echo $(($(cat over) - began))"]

        def sample():
            bed.settle()
            taken = int(bed.on("login", "\n".join(lines), user=bed.user, timeout=300)) / 1e9
            answers.append(sum(map(float, bed.on("login", "cat ~/answers", user=bed.user).split())))
            return taken

        return sample

    bed.write("login", "prepare.py", f"import sys\nnumber = int(sys.argv[1])\n{PREPARE}if world.rank == 0: np.save('data.npy', data)\n")
    keep = "if world.rank == 0: print(repr(answer), file=open('answers', 'a'))\n"
    bed.write("login", "reduce.py", f"import numpy as np\ndata = np.load('data.npy')\n{REDUCE}{keep}")
    samplers = {"ours": ours, "waited": batch(WAITED), "chained": batch(CHAINED)}
    in_turn(1, **samplers)
    samples = in_turn(PIPELINES, **samplers)
    if len(set(answers)) != 1:
        raise SystemExit(f"the answers differ: {answers}")
    title = f"{ROUNDS} rounds of two islands"
    held = report(title, samples["ours"], samples["chained"], PIPELINE, "chain of batch jobs")
    return report(title, samples["ours"], samples["waited"], PIPELINE, "sbatch --wait") and held


def main():
    with cluster("big", *(f"wait{number}" for number in range(WAITING))) as (bed, path):
        results = [bench(bed, path) for bench in (first_cell, second_cell, launch, polls, pipeline)]
    return all(results)


if __name__ == "__main__":
    sys.exit(not main())
