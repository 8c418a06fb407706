"""What a transfer of 1 GB does to all else on the same link: how long an interrupt takes to the user's code, and what it prints
to the client, while the array is on its way for another step; on the machine itself and over a slow link, both ways.

Hosts of the test bed have the clock of this machine, so times of both can be compared. There is no peer: bounds are in
milliseconds, and beyond the way of a packet."""

import statistics
import sys
import time

from common import Kernel, milliseconds
from far import DELAY, hosts, slow

COUNT = 5
SIZE = 1_000_000_000
BOUND = 0.2  # seconds

TALK = """
talk[0]
try:
    while True:
        print(f"{time.time()!r}\\n", end="", flush=True)
        time.sleep(0.02)
except KeyboardInterrupt:
    print(f"stopped {time.time()!r}\\n", end="", flush=True)
    raise
"""


class Missed(Exception):
    """The transfer was over too early, or never began."""


def interrupted(kernel, bed, reader):
    """Seconds from the interrupt to the code, and of each line to its arrival, while `reader` gets the array."""
    talking = kernel.send(TALK, "node1")
    start = bed.traffic("node1")
    lines, waits, sent, stopped = [], [], None, None
    reading = kernel.send("array[0]", reader)
    deadline = time.monotonic() + 60
    busy = {talking, reading}
    while busy:
        message = kernel.client.get_iopub_msg(timeout=60)
        now = time.time()
        passed = bed.traffic("node1") - start
        parent = message["parent_header"].get("msg_id")
        if message["msg_type"] == "status" and message["content"]["execution_state"] == "idle":
            busy.discard(parent)
        if time.monotonic() > deadline:
            raise Missed("60 s are over")
        if message["msg_type"] != "stream" or parent != talking:
            continue
        for line in message["content"]["text"].split("\n"):
            if line.startswith("stopped"):
                stopped = float(line.split()[1])
                if passed > 0.97 * SIZE:
                    raise Missed("all had passed")
            elif line and passed > 0.02 * SIZE and sent is None:
                waits.append(now - float(line))
        if passed > 0.02 * SIZE and len(waits) >= 10 and sent is None:
            sent = time.time()
            request = kernel.client.session.msg("interrupt_request", {})
            kernel.client.control_channel.send(request)
    kernel.client.get_shell_msg(timeout=60), kernel.client.get_shell_msg(timeout=60)
    if stopped is None or sent is None:
        raise Missed("it never began")
    return stopped - sent, waits


def measure(title, bed, path, way):
    interrupts, waits = [], []
    for number in range(COUNT):
        kernel = Kernel("cellferry", path)
        try:
            maker, reader = (None, "node1") if way == "up" else ("node1", "local")
            for target in (None, "local", "node1"):
                kernel.seconds("import time, numpy as np", target)
            # At once, so in two workers of that host: the one that talks is not the one that holds the array.
            kernel.wait(
                {
                    kernel.send("talk = [0] * 1_000_000\ntime.sleep(1)", "node1"),
                    kernel.send(f"array = np.random.default_rng({number}).random({SIZE // 8})", maker),
                }
            )
            took, more = interrupted(kernel, bed, reader)
        finally:
            kernel.close()
        interrupts.append(took)
        waits.extend(more)
    worst, line = max(interrupts), statistics.median(waits)
    print(
        f"{title:34s} interrupt {milliseconds(statistics.median(interrupts))}  worst {milliseconds(worst)}  "
        f"a line {milliseconds(line)}  worst {milliseconds(max(waits))}  "
        f"interrupts under {BOUND * 1000:g} ms  {'ok' if worst < BOUND else 'MISSED'}",
        flush=True,
    )
    return worst < BOUND


def main():
    with hosts() as (bed, path):
        results = [measure("1 GB to a host meanwhile", bed, path, "up")]
        results.append(measure("1 GB from a host meanwhile", bed, path, "down"))
        with slow(bed, "node1"):
            results.append(measure(f"the same, slow link ({2 * DELAY} ms)", bed, path, "up"))
            results.append(measure("1 GB from a slow host", bed, path, "down"))
    return all(results)


if __name__ == "__main__":
    sys.exit(not main())
