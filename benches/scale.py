"""Many agents at one kernel: what its process takes as they grow, and how long a step to each of them takes.

All agents are real processes, on this machine, and so are their workers, but those are no Pythons (worker.rs). They come in two
ways: each on a `local` target of its own; or on the nodes of one allocation, by way of its gate and with one `reach` each,
where programs of Slurm's names start the processes that Slurm would start. What both sides do competes for the
same processors, so what the kernel itself takes is given, too.

`scale.py [--local|--nodes] [COUNT…]`: 10, 30, 100 and 300 of each without arguments. First the session
is measured alone, with simulated workers: three times as many at the end."""

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

from common import Kernel

COUNTS = (10, 30, 100, 300)
IDLE, DISPATCHES = 10, 5
# What each agent may take of the kernel: bytes, the share of a processor at idle, and seconds of its time for a step.
MEMORY, AT_IDLE, STEP = 400e3, 1e-4, 1e-3

ROOT = Path(__file__).parent.parent

LOCAL = """
[targets.t{number}]
type = "local"
python = "{worker}"
"""
NODES = """
[targets.t]
type = "slurm"
python = "{worker}"
folder = "{folder}"
nodes = {count}
"""

# The programs of Slurm, as far as they are needed here: one job, whose nodes are this machine. It is the job's script that
# starts the agents, as it is.
PROGRAMS = {
    "sbatch": """case " $* " in *" --test-only "*) exit 1 ;; esac
cat > {folder}/script
SLURM_JOB_ID=1 SLURM_JOB_NUM_NODES={count} setsid bash {folder}/script </dev/null >{folder}/log 2>&1 &
echo $! > {folder}/job; echo 1""",
    "srun": """while [ "${{1#--}}" != "$1" ]; do shift; done
for ((number = 0; number < {count}; number++)); do SLURM_NODEID=$number "$@" </dev/null & done
wait""",
    "squeue": "echo '1|RUNNING|None|1|N/A|N/A|batch|node[1-{count}]'",
    "scancel": "kill -- -$(cat {folder}/job)",
    "scontrol": "echo 'AccountingStorageType = accounting_storage/none'",
}


def program(package, name):
    """A program of this folder: `worker` stands for Python."""
    command = ["cargo", "build", "--release", "--quiet", "-p", package, "--example", name, "--message-format=json"]
    lines = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()
    built = [message["executable"] for message in map(json.loads, lines) if message.get("executable")]
    return built[-1]


@contextmanager
def world(way, count, worker):
    """A folder with the targets, and PATH and HOME as the kernel is to have them."""
    path = Path(tempfile.mkdtemp(prefix="bench-", dir="/tmp"))
    before = dict(os.environ)
    try:
        if way == "local":
            text = "".join(LOCAL.format(number=number, worker=worker) for number in range(count))
        else:
            text = NODES.format(worker=worker, folder=path, count=count)
            (path / "bin").mkdir()
            for name, lines in PROGRAMS.items():
                file = path / "bin" / name
                file.write_text(f"#!/bin/bash\n{lines.format(folder=path, count=count)}\n")
                file.chmod(0o755)
        (path / "cellferry.toml").write_text(text)
        os.environ["PATH"] = f"{path}/bin:{sys.prefix}/bin:{before['PATH']}"
        yield path
    finally:
        os.environ.clear()
        os.environ.update(before)
        shutil.rmtree(path, ignore_errors=True)


def memory(pid):
    """The memory of a process, in bytes: with its part of what it shares; and what is its own alone and no file's."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    found = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines if line.endswith("kB")}
    return found["Pss"], found["Pss_Anon"]


def used(pid):
    """The seconds of processor time that the threads of a process have had."""
    return sum(int((task / "schedstat").read_text().split()[0]) for task in Path(f"/proc/{pid}/task").iterdir()) / 1e9


def measure(way, count, worker):
    with world(way, count, worker) as path:
        kernel = Kernel("cellferry", path)
        try:
            pid = kernel.pid
            kernel.seconds("pass")
            _, alone = memory(pid)

            def dispatch(code="pass"):
                """A step to each; the seconds until all have answered, and those of the kernel's processor time."""
                began, before = time.perf_counter(), used(pid)
                kernel.wait({kernel.send(code, f"t{number}" if way == "local" else "t") for number in range(count)})
                return time.perf_counter() - began, used(pid) - before

            start, start_cpu = dispatch()
            first = dispatch()  # on workers that are all there
            samples = [dispatch() for _ in range(DISPATCHES)]
            taken, cpu = (statistics.median(times) for times in zip(first, *samples, strict=True))
            time.sleep(3)  # what the last cells left to do
            before = used(pid)
            time.sleep(IDLE)
            idle = (used(pid) - before) / IDLE
            whole, own = memory(pid)
            attached = workers_of(path, pid, way)
        finally:
            kernel.close()
    found = {
        "memory": own - alone, "idle": idle, "step": taken, "step_cpu": cpu, "start": start, "start_cpu": start_cpu
    }  # fmt: skip
    print(
        f"{way:6s}{count:5d} agents ({attached} with a worker)  memory {whole / 1e6:6.1f} MB, {(own - alone) / count / 1e3:6.1f} kB each  "
        f"idle {100 * idle:6.3f} % of a CPU  start {start:7.2f} s ({start_cpu:.2f} s the kernel)  "
        f"step to each {1e3 * taken:8.1f} ms, {1e3 * taken / count:6.2f} ms each ({1e3 * cpu / count:.2f} ms the kernel)",
        flush=True,
    )
    return found


def workers_of(path, pid, way):
    """How many of the agents' processes that belong to a kernel have a worker."""
    parents, agents, workers = {}, set(), []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            words = (entry / "cmdline").read_bytes().split(b"\0")
            parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
        parents[int(entry.name)] = parent
        is_local = way == "local" and parent == pid and words[1:2] == [b"agent"]
        is_node = way == "nodes" and words[1:2] == [b"node"] and words[0].startswith(bytes(path))
        if is_local or is_node:
            agents.add(int(entry.name))
        if b"-f" in words and words[1:3] == [b"-m", b"ipykernel_launcher"]:
            workers.append(int(entry.name))
    return len({parents[worker] for worker in workers} & agents)


def simulated(counts):
    """The session alone, with simulated workers."""
    run = [program("cellferry", "session"), *map(str, counts)]
    for line in subprocess.run(run, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines():
        found = json.loads(line)
        count, started, seconds = found["workers"], found["started"], found["seconds"]
        print(
            f"alone {count:5d} simulated workers ({started} started)  step to each {1e3 * seconds:8.1f} ms, "
            f"{1e3 * seconds / count:6.2f} ms each",
            flush=True,
        )


def main(ways=("local", "nodes"), counts=COUNTS):
    worker = program("cellferry-kernel", "worker")
    simulated((*counts, 3 * counts[-1]))
    held = True
    for way in ways:
        found = [measure(way, count, worker) for count in counts]
        growth = counts[-1] / counts[0]
        for name, title in (("memory", "memory"), ("idle", "time at idle"), ("step_cpu", "time for a step to each")):
            ratio = found[-1][name] / max(found[0][name], 1e-9) / growth
            print(f"{way:6s}the kernel's {title:24s} grows {ratio:5.2f} times as fast as the agents", flush=True)
        each = found[-1]["step_cpu"] / counts[-1]
        ok = each < STEP and found[-1]["memory"] / counts[-1] < MEMORY and found[-1]["idle"] / counts[-1] < AT_IDLE
        held = held and ok
        print(
            f"{way:6s}each of {counts[-1]} agents: memory under {MEMORY / 1e3:g} kB, at idle under {100 * AT_IDLE:g} % of a CPU, "
            f"a step under {1e3 * STEP:g} ms of the kernel's time  {'ok' if ok else 'MISSED'}",
            flush=True,
        )
    return held


if __name__ == "__main__":
    words = sys.argv[1:]
    chosen = [word[2:] for word in words if word in ("--local", "--nodes")]
    numbers = [int(word) for word in words if word.isdigit()]
    sys.exit(not main(chosen or ("local", "nodes"), numbers or COUNTS))
