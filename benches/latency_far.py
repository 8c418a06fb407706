"""A no-op step on a far host, against one on a local target; and the first step on a host that has never seen Cellferry,
against what a login and the start of a kernel take there."""

import socket
import statistics
import sys
import time

from common import Kernel, in_turn, milliseconds
from far import DELAY, hosts, seconds, slow

COUNT, WARM_UP, FIRST = 200, 30, 5
STEP = 1.3  # times a local step, and a round trip
FRESH = 2.0  # seconds, beyond login and Python

# Run on the host: how long Python takes there until an ipykernel is ready to serve.
PYTHON = """
began=$(date +%s%N)
{python} -c 'from ipykernel.kernelapp import IPKernelApp; IPKernelApp.instance().initialize([]); import os; os._exit(0)'
echo $(($(date +%s%N) - began))
"""


def round_trip(address):
    """Seconds to a host and back: until it says that nobody listens there."""

    def sample():
        began = time.perf_counter()
        with socket.socket() as probe:
            probe.connect_ex((address, 9))
        return time.perf_counter() - began

    return sample


def steps(title, bed, path):
    near, far = Kernel("cellferry", path), Kernel("cellferry", path)
    try:
        samplers = {
            "near": lambda: near.seconds("pass", "local"),
            "far": lambda: far.seconds("pass", "node1"),
            "trip": round_trip(bed.address("node1")),
        }
        in_turn(WARM_UP, **samplers)
        samples = in_turn(COUNT, **samplers)
    finally:
        near.close()
        far.close()
    near, far, trip = (statistics.median(samples[name]) for name in ("near", "far", "trip"))
    ratio = (far - trip) / near
    print(
        f"{title:34s} cellferry {milliseconds(far)}  local step {milliseconds(near)}  round trip {milliseconds(trip)}  "
        f"ratio without it {ratio:6.3f}  at most {STEP}  {'ok' if ratio <= STEP else 'MISSED'}",
        flush=True,
    )
    return ratio <= STEP


def first(title, bed, path):
    there = PYTHON.format(python=bed.python)
    def fresh():
        bed.on("node1", "rm -rf ~/.cache", user=bed.user)
        kernel = Kernel("cellferry", path)
        try:
            kernel.seconds("pass")
            return kernel.seconds("pass", "node1")
        finally:
            kernel.close()

    samplers = {
        "ours": fresh,
        "login": lambda: seconds("ssh", "node1", "true"),
        "python": lambda: int(bed.on("node1", there, user=bed.user).split()[-1]) / 1e9,
    }
    in_turn(1, **samplers)
    samples = in_turn(FIRST, **samplers)
    ours, login, python = (statistics.median(samples[name]) for name in ("ours", "login", "python"))
    beyond = ours - login - python
    print(
        f"{title:34s} cellferry {milliseconds(ours)}  login {milliseconds(login)}  Python {milliseconds(python)}  "
        f"beyond them {milliseconds(beyond)}  under {FRESH:g} s  {'ok' if beyond < FRESH else 'MISSED'}",
        flush=True,
    )
    return beyond < FRESH


def main():
    with hosts() as (bed, path):
        results = [steps("no-op step by ssh", bed, path), first("first step on a fresh host", bed, path)]
        with slow(bed, "node1", rate=None):
            results.append(steps(f"no-op step by ssh, {2 * DELAY} ms away", bed, path))
        with slow(bed, "node1"):
            results.append(first("first step on a fresh, slow host", bed, path))
    return all(results)


if __name__ == "__main__":
    sys.exit(not main())
