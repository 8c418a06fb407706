"""Runs the cells of a notebook in one kernel, in the ways that clients do, and keeps what must not depend on where
cells ran: what each printed, its result, its error, its count. Other tests see to timing, stderr and tracebacks."""

import os
import re
import uuid
from dataclasses import asdict, dataclass
from pathlib import Path

import nbformat
from client import Kernel, on
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from traitlets.config import Config
from world import KERNEL

PLAIN, FERRY = "python3", KERNEL
TOLERATED = "raises-exception"
TIMEOUT_SECONDS = 60


@dataclass(frozen=True)
class Cell:
    """A cell of a generated notebook: its source, the target it is sent to, whether its error may be passed over."""

    source: str
    target: str | None = None
    tolerated: bool = False


@dataclass(frozen=True)
class Outcome:
    """What a client saw of one cell."""

    status: str
    printed: str = ""
    result: str | None = None
    error: tuple | None = None
    count: int | None = None


@dataclass(frozen=True)
class Difference:
    """The first cell whose outcomes are not the same."""

    index: int
    expected: Outcome
    got: Outcome

    def parts(self):
        """The fields that differ, with what was expected and what came."""
        wanted, got = asdict(self.expected), asdict(self.got)
        return {key: (wanted[key], got[key]) for key in wanted if wanted[key] != got[key]}

    def signature(self):
        """What tells this difference from one with another cause, as far as outcomes show it."""
        error = self.got.error if self.got.error != self.expected.error else None
        return tuple(self.parts())[:1], (error or ("",))[0]


ADDRESS = re.compile(r" at 0x[0-9a-f]+")


def _without_addresses(outcome):
    return ADDRESS.sub(" at 0x0", str(asdict(outcome)))


def difference(expected, got):
    """The first difference between two lists of outcomes, or None. Where an object lies in memory is none."""
    for index, (one, other) in enumerate(zip(expected, got, strict=True)):
        if _without_addresses(one) != _without_addresses(other):
            return Difference(index, one, other)
    return None


def _nothing(index):
    pass


def one_by_one(kernel, cells, metadata, begins=_nothing):
    """As a patient user: each cell after the end of the one before, on after errors."""
    runs = []
    for index, cell in enumerate(cells):
        begins(index)
        runs.append(kernel.run(cell.source, _of(cell, metadata), timeout=TIMEOUT_SECONDS))
    return [_outcome(run) for run in runs]


def all_at_once(kernel, cells, metadata, begins=_nothing):
    """As JupyterLab's Run All: an error ends it, unless its cell is tagged."""
    runs = [kernel.send(cell.source, _of(cell, metadata), stop_on_error=not cell.tolerated) for cell in cells]
    for index, run in enumerate(runs):
        begins(index)
        kernel.finish(run, timeout=TIMEOUT_SECONDS)
    return [_outcome(run) for run in runs]


def from_file(name, folder, cells, metadata, begins=_nothing):
    """As nbclient, nbconvert and papermill do: from a file, no metadata in the requests."""
    made = nbformat.v4.new_notebook()
    made.metadata["kernelspec"] = {"name": name, "display_name": name, "language": "python"}
    for number, cell in enumerate(cells):
        new = nbformat.v4.new_code_cell(cell.source, id=f"cell-{number}")
        new.metadata.update(_of(cell, metadata) or {})
        if cell.tolerated:
            new.metadata["tags"] = [TOLERATED]
        made.cells.append(new)
    path = Path(folder) / f"{name}.ipynb"
    nbformat.write(made, path)
    client = NotebookClient(
        made,
        timeout=TIMEOUT_SECONDS,
        kernel_name=name,
        resources={"metadata": {"path": str(folder)}},
        on_cell_execute=lambda cell, cell_index: begins(cell_index),
        config=Config({"KernelManager": _connection(folder)}),
    )
    try:
        client.execute(env={**os.environ, "CELLFERRY_NOTEBOOK": str(path)})
    except CellExecutionError:
        pass
    return [_saved(cell) for cell in made.cells]


WAYS = {"one by one": one_by_one, "all at once": all_at_once, "from a file": from_file}


class Pairs:
    """Plays notebooks under ipykernel and Cellferry, in fresh kernels: those of the next notebook start meanwhile."""

    def __init__(self, folder):
        self.folder = Path(folder)
        self.ready = None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._close(self.ready)

    def play(self, cells, way, more=True):
        """The difference that `cells` make, or None. Without `more`, no kernels are started for another notebook."""
        return difference(*self.outcomes(cells, way, more))

    def outcomes(self, cells, way, more=True, begins=_nothing):
        """What comes without targets and with them. `begins` is told the index of each cell that begins with them."""
        if way == "from a file":
            return (
                from_file(PLAIN, self.folder, cells, False),
                from_file(FERRY, self.folder, cells, True, begins),
            )
        kernels = self.ready or self._start()
        try:
            self.ready = None
            for kernel in kernels:
                kernel.client.wait_for_ready(timeout=TIMEOUT_SECONDS)
            self.ready = self._start() if more else None
            plain, ferry = kernels
            return WAYS[way](plain, cells, False), WAYS[way](ferry, cells, True, begins)
        finally:
            self._close(kernels)

    def _start(self):
        return [Kernel(name, self.folder, ready=False, **_connection(self.folder)) for name in (PLAIN, FERRY)]

    def _close(self, kernels):
        for kernel in kernels or ():
            kernel.close()


def _connection(folder):
    """Free TCP ports are found before they are bound, so among thousands of kernels some would find theirs taken."""
    return {"transport": "ipc", "ip": f"{folder}/{uuid.uuid4().hex[:8]}"}


def _of(cell, metadata):
    return on(cell.target) if metadata and cell.target else None


def _outcome(run):
    reply = run.reply["content"]
    kept = run.outputs()
    results = [output for output in kept if output.output_type == "execute_result"]
    return Outcome(
        status=reply["status"],
        printed="".join(output.text for output in kept if output.get("name") == "stdout"),
        result=results[0].data["text/plain"] if results else None,
        error=(reply["ename"], reply["evalue"]) if reply["status"] == "error" else None,
        count=reply.get("execution_count"),
    )


def _saved(cell):
    """The outcome that a client wrote into the notebook."""
    printed, result, error = "", None, None
    for output in cell.outputs:
        if output.output_type == "stream" and output.name == "stdout":
            printed += output.text
        elif output.output_type == "execute_result":
            result = output.data["text/plain"]
        elif output.output_type == "error":
            error = (output.ename, output.evalue)
    status = "aborted" if cell.execution_count is None else "error" if error else "ok"
    return Outcome(status, printed, result, error, cell.execution_count)
