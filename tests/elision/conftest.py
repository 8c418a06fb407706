"""Kernels for the tests of serial elision: one world and one stock of kernels for all notebooks of a test process."""

import sys
import uuid
from contextlib import contextmanager

import pytest
from play import Pairs
from world import own_world, write_targets


@contextmanager
def playing(folder, tables):
    """Plays notebooks with these targets; at the end no process and no file may be left."""
    write_targets(folder / "cellferry.toml", tables)
    with Pairs(folder) as pairs:
        yield pairs


@pytest.fixture(scope="module")
def pairs():
    """Plays notebooks, with the targets `left` and `right` on this machine."""
    with pytest.MonkeyPatch.context() as patch, own_world(uuid.uuid4().hex, patch) as folder:
        for name in ("left", "right"):
            (folder / name).mkdir()
        table = {"type": "local", "python": sys.executable}
        tables = {name: {**table, "workdir": folder / name} for name in ("left", "right")}
        with playing(folder, tables) as pairs:
            yield pairs


@contextmanager
def far(session_bed, left_within=None, **keys):
    """Plays notebooks, with the targets `left` and `right` on two hosts."""
    with (
        pytest.MonkeyPatch.context() as patch,
        own_world(uuid.uuid4().hex, patch) as folder,
        session_bed.used(folder, patch) as bed,
    ):
        bed.left_within = left_within or bed.left_within
        table = {"type": "ssh", "python": bed.python, **keys}
        tables = {"left": {**table, "host": "node1"}, "right": {**table, "host": "node2"}}
        with playing(folder, tables) as pairs:
            yield pairs


@pytest.fixture(scope="module")
def far_pairs(session_bed):
    """Plays notebooks, with the targets `left` and `right` on two hosts."""
    with far(session_bed) as pairs:
        yield pairs


@pytest.fixture(scope="module")
def faulty_pairs(session_bed):
    """The same, where hosts fail: an agent whose kernel ends while it is out of reach ends soon after."""
    with far(session_bed, left_within=40, patience="30s") as pairs:
        yield pairs


@pytest.fixture(scope="module")
def cluster_pairs(session_cluster):
    """Plays notebooks, with the target `left` on the nodes of a cluster and `right` on a host."""
    with (
        pytest.MonkeyPatch.context() as patch,
        own_world(uuid.uuid4().hex, patch) as folder,
        session_cluster.used(folder, patch) as cluster,
    ):
        cluster.left_within = 30
        left = {"type": "slurm", "login": "login", "python": cluster.python, "nodes": 2, "memory": "300M"}
        right = {"type": "ssh", "host": "lab", "python": cluster.python}
        with playing(folder, {"left": left, "right": right}) as pairs:
            yield pairs
