"""Serial elision: a notebook with targets gives what it gives without them, in plain ipykernel.

`CELLFERRY_ELISION=500` plays that many generated notebooks, `CELLFERRY_ELISION_SEED=7` only one."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import generate
import pytest
from check import COUNT, LIMIT_SECONDS, SEEDS, check
from play import FERRY, WAYS, Cell, Outcome, difference
from shrink import shrink, told


@pytest.mark.timeout(LIMIT_SECONDS)
@pytest.mark.parametrize("seed", SEEDS if SEEDS is not None else range(COUNT))
def test_same_as_without_targets(pairs, seed):
    check(pairs, seed)


def test_a_doctored_outcome_is_told():
    cells = [Cell("a = 1"), Cell("a", "left"), Cell("print(a)")]
    right = [Outcome("ok", count=1), Outcome("ok", result="1", count=2), Outcome("ok", "1\n", count=3)]
    assert difference(right, list(right)) is None
    for change in (
        {"status": "aborted"}, {"printed": "1"}, {"result": None}, {"error": ("NameError", "name 'a'")}, {"count": 3}
    ):  # fmt: skip
        found = difference(right, [right[0], replace(right[1], **change), right[2]])
        assert found is not None and found.index == 1 and list(found.parts()) == list(change)
        text = told(cells, found, 5, "one by one")
        assert "seed 5" in text and "#| target: left\na\n" in text and repr(*change.values()) in text


@pytest.mark.skipif(FERRY != "cellferry", reason="needs Cellferry")
@pytest.mark.parametrize("way", WAYS)
def test_a_true_difference_is_found_and_shrunk(pairs, way):
    """The folder of a target's worker is its own: that shows which way cells ran, and that differences are seen."""
    where = Cell("b = 2\nfolder = os.path.basename(os.getcwd())\nprint(folder == 'left', a)", "left")
    cells = [Cell("import os\na = 1"), Cell("c = 3", "right"), where, Cell("print(a)")]
    found = pairs.play(cells, way)
    assert (found.index, found.parts()) == (2, {"printed": ("False 1\n", "True 1\n")})
    if way == "one by one":
        smallest, found = shrink(cells, lambda fewer: pairs.play(fewer, way), found)
        assert [cell.target for cell in smallest] == [None, "left"] and "c = 3" not in told(smallest, found)
        assert "b = 2" not in smallest[-1].source


def test_a_seed_always_gives_the_same_notebook():
    def made(hash_seed):
        script = Path(generate.__file__)
        paths = os.pathsep.join([str(script.parent), str(script.parent.parent / "clients")])
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": paths}
        return subprocess.check_output([sys.executable, script, "5"], env=environment, text=True)

    assert made("1") == made("2") == generate.written(generate.notebook(5)) + "\n"
