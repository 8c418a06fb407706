"""A world of its own for whatever starts kernels: folders, targets, and the check that it leaves no process and no file
behind. Tests of all kinds share it."""

import os
import shutil
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path

import processes

# The kernelspec under test.
KERNEL = os.environ.get("CELLFERRY_TEST_KERNEL", "cellferry")
LEFT_WITHIN_SECONDS = 5

# Files seen while another test ran beside: nobody's yet, looked at again when this worker is alone.
suspects = set()


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
    try:
        yield folder
        processes.wait_until(
            lambda: not processes.marked(mark), LEFT_WITHIN_SECONDS, lambda: f"processes left: {processes.marked(mark)}"
        )
        leftovers(folder, before)
    finally:
        for pid in processes.marked(mark):
            os.kill(pid, 9)
        shutil.rmtree(folder, ignore_errors=True)


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
