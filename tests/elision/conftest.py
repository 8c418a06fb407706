"""Kernels for the tests of serial elision: one world and one stock of kernels for all notebooks of a test process."""

import sys
import uuid

import pytest
from play import Pairs
from world import own_world, write_targets


@pytest.fixture(scope="module")
def pairs():
    """Plays notebooks, with the targets `left` and `right`; at the end no process and no file may be left."""
    with pytest.MonkeyPatch.context() as patch, own_world(uuid.uuid4().hex, patch) as folder:
        for name in ("left", "right"):
            (folder / name).mkdir()
        table = {"type": "local", "python": sys.executable}
        write_targets(
            folder / "cellferry.toml", {name: {**table, "workdir": folder / name} for name in ("left", "right")}
        )
        with Pairs(folder) as pairs:
            yield pairs
