"""What the tests of all folders share: the test bed, one for each test process, up from the first test that needs it."""

import pytest

pytest.register_assert_rewrite("bed")

import bed  # noqa: E402


@pytest.fixture(scope="session")
def session_bed():
    """Real sshd on hosts of this machine (bed.py). Tests use the fixture `bed`, or `session_bed.used(…)`."""
    try:
        root = bed.requirements()
    except bed.Unavailable as reason:
        pytest.skip(str(reason))
    started = bed.Bed.start(root)
    yield started
    started.stop()


@pytest.fixture(scope="session")
def session_cluster():
    """A cluster with real Slurm, of the same kind. Tests use the fixture `cluster`, or `session_cluster.used(…)`."""
    yield from clusters(bed.Cluster, bed.SLURM_PROGRAMS)


@pytest.fixture(scope="session")
def session_accounted():
    """The same with accounting. Tests use the fixture `accounted`."""
    yield from clusters(bed.AccountedCluster, (*bed.SLURM_PROGRAMS, *bed.ACCOUNTING_PROGRAMS))


def clusters(kind, programs):
    """A cluster until the end of the tests."""
    try:
        root = bed.requirements(programs)
    except bed.Unavailable as reason:
        pytest.skip(str(reason))
    started = kind.start(root)
    yield started
    started.stop()
