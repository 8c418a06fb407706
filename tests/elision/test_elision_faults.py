"""Serial elision while hosts fail: a notebook with targets on far hosts gives what it gives without them, whatever
happens to one of the hosts at some moment.

`CELLFERRY_ELISION_FAULTS=100` plays that many notebooks, `CELLFERRY_ELISION_SEED=7` only one. Notebooks are those of
the other tests, with faults on top. Where workers die, half of them have no plain cells: so all can be made again."""

import os
import re
from dataclasses import replace
from random import Random

import generate
import pytest
from check import SEEDS, TURNS
from faults import FAULTS, LOSING, Fault
from play import difference
from shrink import told

COUNT = int(os.environ.get("CELLFERRY_ELISION_FAULTS", "7"))
HOSTS = {"left": "node1", "right": "node2"}
# What may use any name, and so is not run again: text as code, the namespace itself, magics, earlier results.
ANYTHING = re.compile(
    r"\b(exec|eval|globals|locals|vars|dir|import_module|__import__|__main__|get_ipython|Out|_\d*|__+)\b|import \*|^[%!]", re.M
)


@pytest.mark.timeout(300)
@pytest.mark.cellferry
@pytest.mark.parametrize("seed", SEEDS if SEEDS is not None else range(COUNT))
def test_same_while_a_host_fails(faulty_pairs, session_bed, seed):
    cells, fault = notebook(session_bed, seed)
    way = TURNS[seed // len(FAULTS) % len(TURNS)]
    with fault:
        expected, got = faulty_pairs.outcomes(cells, way, begins=fault.begins)
    seen = lost(cells, expected, got, fault) if fault.what in LOSING else None
    happened = str(fault) if fault.happened else f"no {fault.what}, for no worker ran on {fault.host}"
    print(happened if seen is None else f"{happened}; cell {seen + 1} lacks a value that is gone for good")
    if seen is not None:
        # What comes after a value that is gone for good is another notebook.
        expected, got = expected[:seen], got[:seen]
    found = difference(expected, got)
    if found is not None:
        pytest.fail(f"{happened}\n{told(cells, found, seed, way)}", pytrace=False)


def notebook(bed, seed):
    """The cells of a seed, and what happens while they run."""
    cells, random = generate.notebook(seed), Random(f"faults {seed}")
    what = list(FAULTS)[seed % len(FAULTS)]
    if what in LOSING and random.random() < 0.5:
        cells = [replace(cell, target=cell.target or "home") for cell in cells]
    # A cell up to which a target has been used.
    index = random.randrange(1, len(cells))
    used = [cell.target for cell in cells[: index + 1] if cell.target in HOSTS]
    host = HOSTS[random.choice(used or ["left"])]
    # Most are over before anybody notices, some are not.
    lasts = random.uniform(8, 12) if random.random() < 0.25 else random.uniform(0, 2)
    return cells, Fault(bed, what, host, index, random.choice([0, 0.02, 0.1, 0.5]) * random.random(), lasts)


def lost(cells, expected, got, fault):
    """The index of the first cell that lacks a value which, as docs/values.md says, cannot be made again."""
    for index, outcome in enumerate(got):
        if outcome.error is None or outcome.error[0] != "LostValue" or not fault.happened:
            continue
        why = re.search(r"\(cell \[(\d+)\] (.*)\)$", outcome.error[1])
        makers = [at for at in range(index) if why and expected[at].count == int(why[1])]
        return index if any(_is_true(why[2], at, cells, expected[at]) for at in makers) else None
    return None


def _is_true(why, at, cells, outcome):
    """Whether a cell is what is said of it."""
    if why.startswith("is no step"):
        return cells[at].target is None
    if why.startswith("may use any name"):
        # Or a function does that it may call.
        functions = [cell for cell in cells[:at] if re.search(r"\bdef |\blambda\b", cell.source)]
        return any(ANYTHING.search(cell.source) for cell in [cells[at], *functions])
    return why.startswith("failed when it ran") and outcome.status == "error"
