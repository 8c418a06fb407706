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
