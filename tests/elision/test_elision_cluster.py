"""Serial elision with a target on the nodes of a Slurm cluster, and one on a host that ssh reaches."""

import pytest
from check import COUNT, LIMIT_SECONDS, SEEDS, check


@pytest.mark.timeout(LIMIT_SECONDS)
@pytest.mark.cellferry
@pytest.mark.parametrize("seed", SEEDS if SEEDS is not None else range(2000, 2000 + COUNT // 4))
def test_same_with_a_target_on_a_cluster(cluster_pairs, seed):
    check(cluster_pairs, seed)
