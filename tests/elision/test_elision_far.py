"""Serial elision with targets on hosts that ssh reaches: fewer notebooks, for what differs is the way, not the cells.

A module of its own, so that its world is not that of the other kernels."""

import pytest
from check import COUNT, LIMIT_SECONDS, SEEDS, check


@pytest.mark.timeout(LIMIT_SECONDS)
@pytest.mark.cellferry
@pytest.mark.parametrize("seed", SEEDS if SEEDS is not None else range(1000, 1000 + COUNT // 4))
def test_same_with_targets_on_far_hosts(far_pairs, seed):
    check(far_pairs, seed)
