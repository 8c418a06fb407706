"""Fixtures of all tests through clients: which kernel is under test, and a world of its own for each test (world.py).

`CELLFERRY_TEST_KERNEL=python3` runs what does not need Cellferry against ipykernel itself."""

import shutil
import sys
import uuid
from contextlib import ExitStack
from pathlib import Path

import pytest

pytest.register_assert_rewrite("browser", "client", "compare")

from client import Kernel  # noqa: E402
from compare import assert_same_as_ipykernel, notebook  # noqa: E402
from world import KERNEL, own_world, write_targets  # noqa: E402

# What a test can ask for, one of them, and the fixture that lasts.
HOSTS = {"bed": "session_bed", "cluster": "session_cluster", "accounted": "session_accounted"}
OUT = Path(__file__).parent.parent / "out"


def pytest_collection_modifyitems(items):
    for item in items:
        if KERNEL != "cellferry" and item.get_closest_marker("cellferry"):
            item.add_marker(pytest.mark.skip(reason=f"needs Cellferry; {KERNEL} is under test"))


@pytest.fixture
def mark():
    """The word that every process of this test carries in its environment."""
    return uuid.uuid4().hex


@pytest.fixture(scope="session", autouse=True)
def base_folder(tmp_path_factory):
    """pytest's own folder must not be made inside the world of the first test."""
    return tmp_path_factory.getbasetemp()


@pytest.fixture(autouse=True)
def world(mark, monkeypatch, tmp_path, request):
    """Each test's own world. Where the test has hosts, they are looked over once its kernels have ended."""
    with own_world(mark, monkeypatch) as folder, ExitStack() as hosts:
        for name, session in HOSTS.items():
            if name in request.fixturenames:
                hosts.enter_context(request.getfixturevalue(session).used(folder, monkeypatch))
        yield folder


@pytest.fixture
def bed(world, session_bed):
    """Hosts `login`, `node1`, `node2` that HOME leads to (bed.py)."""
    return session_bed


@pytest.fixture
def cluster(world, session_cluster):
    """Real Slurm on `login`, `node1` to `node3`, and the host `lab`, that HOME leads to (bed.py)."""
    return session_cluster


@pytest.fixture
def accounted(world, session_accounted):
    """The same with accounting."""
    return session_accounted


@pytest.fixture(scope="module")
def module_world():
    """A world for kernels that a module's tests share."""
    with pytest.MonkeyPatch.context() as patch, own_world(uuid.uuid4().hex, patch) as folder:
        yield folder


@pytest.fixture
def kernel_name():
    """The kernelspec under test."""
    return KERNEL


@pytest.fixture
def start(kernel_name, tmp_path):
    """Starts kernels under test, in the test's folder; they are shut down at its end."""
    started = []

    def start(name=kernel_name, cwd=tmp_path, **options):
        kernel = Kernel(name, cwd, **options)
        started.append(kernel)
        return kernel

    yield start
    for kernel in started:
        kernel.close()


@pytest.fixture
def kernel(start):
    """One kernel under test."""
    return start()


@pytest.fixture
def targets(tmp_path):
    """Two `local` targets, `left` and `right`, defined above every folder of the test.

    Returns their tables; `targets.define(name, key=value…)` adds one or changes one."""

    class Targets(dict):
        def define(self, name, **keys):
            table = self.setdefault(name, {"type": "local", "workdir": tmp_path / name, "python": sys.executable})
            table.update(keys)
            write_targets(tmp_path / "cellferry.toml", self)
            return table

    made = Targets()
    for name in ("left", "right"):
        made.define(name)
        (tmp_path / name).mkdir()
    return made


@pytest.fixture
def hosts(bed, tmp_path, request):
    """Defines targets of type `ssh`: `hosts.define("node1", key=value…)`. Its parameter, if it has one, is their transport."""
    usual = {"transport": request.param} if hasattr(request, "param") else {}

    class Hosts(dict):
        def define(self, name, **keys):
            table = self.setdefault(name, {"type": "ssh", "host": name, "python": bed.python, **usual})
            table.update(keys)
            write_targets(tmp_path / "cellferry.toml", self)
            return table

    made = Hosts()
    for name in bed.hosts[1:]:
        made.define(name)
    return made


@pytest.fixture
def slurm(request, tmp_path):
    """Defines targets on the test's cluster: `slurm("big", nodes=3)`."""
    cluster = request.getfixturevalue("accounted" if "accounted" in request.fixturenames else "cluster")
    targets = {}

    def define(name="big", **keys):
        usual = {"type": "slurm", "login": "login", "python": cluster.python}
        targets[name] = targets.get(name, usual) | keys
        write_targets(tmp_path / "cellferry.toml", targets)

    return define


@pytest.fixture
def same_as_ipykernel(kernel_name, tmp_path):
    """Runs cells by nbclient under the kernel under test, and without metadata under ipykernel; fails where they
    differ. Returns the executed notebook."""

    def check(*cells, **options):
        return assert_same_as_ipykernel(
            notebook(*cells), kernel_name, tmp_path, plain=notebook(*cells, metadata=False), **options
        )

    return check


@pytest.fixture
def binary():
    """The `cellferry` program."""
    found = shutil.which("cellferry")
    assert found, "`cellferry` is not on PATH: install the wheel first"
    return found


@pytest.fixture
def pictures():
    """Where screenshots go."""
    OUT.mkdir(exist_ok=True)
    return OUT
