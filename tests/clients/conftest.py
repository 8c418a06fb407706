"""Fixtures of all tests through clients: which kernel is under test, a world of its own for each test, and the
check that a test leaves no process and no file behind.

`CELLFERRY_TEST_KERNEL=python3` runs what does not need Cellferry against ipykernel itself."""

import os
import shutil
import sys
import tempfile
import uuid
from contextlib import contextmanager
from pathlib import Path

import pytest

pytest.register_assert_rewrite("browser", "client", "compare")

import processes  # noqa: E402
from client import Kernel  # noqa: E402
from compare import assert_same_as_ipykernel, notebook  # noqa: E402

KERNEL = os.environ.get("CELLFERRY_TEST_KERNEL", "cellferry")
LEFT_WITHIN_SECONDS = 5
OUT = Path(__file__).parent.parent / "out"

# Files seen while another test ran beside: nobody's yet, looked at again when this worker is alone.
suspects = set()


def pytest_collection_modifyitems(items):
    for item in items:
        if KERNEL != "cellferry" and item.get_closest_marker("cellferry"):
            item.add_marker(pytest.mark.skip(reason=f"needs Cellferry; {KERNEL} is under test"))


@pytest.fixture
def mark():
    """The word that every process of this test carries in its environment."""
    return uuid.uuid4().hex


@contextmanager
def own_world(mark, patch):
    """A world of its own for whatever starts kernels; afterwards nothing of it may be left. Yields its short folder."""
    folder = Path(tempfile.mkdtemp(prefix="cft-", dir="/tmp"))
    before = processes.shared_files()
    places = {
        "TMPDIR": "tmp",
        "XDG_RUNTIME_DIR": "run",
        "XDG_CONFIG_HOME": "config",
        "JUPYTER_RUNTIME_DIR": "jupyter-run",
        "JUPYTER_CONFIG_DIR": "jupyter-config",
        "JUPYTER_DATA_DIR": "jupyter-data",
        "IPYTHONDIR": "ipython",
    }
    for variable, name in places.items():
        (folder / name).mkdir(mode=0o700)
        patch.setenv(variable, str(folder / name))
    patch.setattr(tempfile, "tempdir", str(folder / "tmp"))
    patch.setenv("PATH", f"{sys.prefix}/bin:{os.environ['PATH']}")
    patch.delenv("CELLFERRY_NOTEBOOK", raising=False)
    patch.setenv(processes.MARK, mark)
    yield folder
    try:
        processes.wait_until(
            lambda: not processes.marked(mark), LEFT_WITHIN_SECONDS, lambda: f"processes left: {processes.marked(mark)}"
        )
        leftovers(folder, before)
    finally:
        for pid in processes.marked(mark):
            os.kill(pid, 9)
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(autouse=True)
def world(mark, monkeypatch, tmp_path):
    """Each test's own world."""
    with own_world(mark, monkeypatch) as folder:
        yield folder


@pytest.fixture(scope="module")
def module_world():
    """A world for kernels that a module's tests share."""
    with pytest.MonkeyPatch.context() as patch, own_world(uuid.uuid4().hex, patch) as folder:
        yield folder


def leftovers(folder, before):
    """Fails if Cellferry's files outlive the test that made them."""

    def own():
        return [path for name in ("tmp", "run") for path in (folder / name).rglob("*cellferry-*")]

    processes.wait_until(lambda: not own(), LEFT_WITHIN_SECONDS, lambda: f"files left: {own()}")

    def new():
        return (processes.shared_files() - before) | (suspects & processes.shared_files())

    def settled():
        return not new() or processes.marks()

    processes.wait_until(settled, LEFT_WITHIN_SECONDS, lambda: f"files left: {new()}")
    suspects.clear()
    suspects.update(new())


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


def write_targets(path, tables):
    """Writes `[targets.NAME]` tables of plain values to a `cellferry.toml`."""

    def toml(value):
        if isinstance(value, bool):
            return str(value).lower()
        if isinstance(value, dict):
            return "{" + ", ".join(f"{key} = {toml(item)}" for key, item in value.items()) + "}"
        return str(value) if isinstance(value, int) else f'"{value}"'

    lines = []
    for name, table in tables.items():
        lines += [f"[targets.{name}]", *(f"{key} = {toml(value)}" for key, value in table.items()), ""]
    path.write_text("\n".join(lines))


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
