"""What the benchmarks of far hosts and of clusters share: hosts of `tests/testbed` on this machine, and links like those of users."""

import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "clients"))

from bed import SLURM_PROGRAMS, Bed, Cluster, requirements  # noqa: E402
from common import folder  # noqa: E402

# A link as users have it: its rate, and milliseconds that every packet takes, each way.
RATE, DELAY = "100mbit", 10

TARGET = """
[targets.{name}]
type = "ssh"
host = "{name}"
python = "{python}"
workers = 2
"""


SLURM_TARGET = """
[targets.{name}]
type = "slurm"
login = "login"
python = "{python}"
nodes = 2
cpus = 4
"""


@contextmanager
def used(kind, programs=()):
    """A bed of this kind that HOME leads to, and a folder whose `cellferry.toml` names the target `local`."""
    bed = kind.start(requirements(programs))
    try:
        with (
            pytest.MonkeyPatch.context() as patch,
            tempfile.TemporaryDirectory(prefix="bench-", dir="/tmp") as home,
            folder() as path,
            bed.used(Path(home), patch),
        ):
            yield bed, path
    finally:
        bed.stop()


def define(bed, path, target, names):
    """Adds targets to `cellferry.toml`."""
    with (path / "cellferry.toml").open("a") as config:
        config.writelines(target.format(name=name, python=bed.python) for name in names)


@contextmanager
def hosts():
    """A bed, and a folder whose `cellferry.toml` names the targets `local`, `node1` and `node2`."""
    with used(Bed) as (bed, path):
        define(bed, path, TARGET, bed.hosts[1:])
        yield bed, path


@contextmanager
def cluster(*names):
    """Real Slurm, and a folder whose `cellferry.toml` has targets of these names on two of its three nodes."""
    with used(Cluster, SLURM_PROGRAMS) as (bed, path):
        define(bed, path, SLURM_TARGET, names)
        yield bed, path


@contextmanager
def slow(bed, *names, rate=RATE, delay=DELAY):
    """Gives these hosts a link of so many milliseconds each way and, if `rate` is not None, so many bits a second."""
    for name in names:
        bed.fault("delay", name, delay)
        if rate is not None:
            bed.fault("rate", name, rate)
    try:
        yield
    finally:
        for name in names:
            bed.fault("heal", name)


def seconds(*words):
    """How long a command takes."""
    began = time.perf_counter()
    subprocess.run([*map(str, words)], check=True, stdin=subprocess.DEVNULL, capture_output=True)
    return time.perf_counter() - began
