"""Plays one generated notebook and fails with the smallest one that shows the same difference."""

import os

import generate
import pytest
from shrink import shrink, told

COUNT = int(os.environ.get("CELLFERRY_ELISION", "24"))
SEEDS = [int(os.environ["CELLFERRY_ELISION_SEED"])] if "CELLFERRY_ELISION_SEED" in os.environ else None
# How often each way is taken: one cell after the other sees most, since it goes on after errors.
TURNS = ["one by one", "all at once", "one by one", "from a file", "one by one", "all at once"]
SHRINK_SECONDS = 150
LIMIT_SECONDS = 120 + 2 * SHRINK_SECONDS


def check(pairs, seed):
    """Fails if the notebook of a seed gives something else with targets than without."""
    cells, way = generate.notebook(seed), TURNS[seed % len(TURNS)]
    found = pairs.play(cells, way)
    if found is not None:
        cells, found = shrink(cells, lambda fewer: pairs.play(fewer, way), found, SHRINK_SECONDS)
        pytest.fail(told(cells, found, seed, way), pytrace=False)
