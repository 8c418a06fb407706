"""Clients that run a notebook file and send no metadata: nbconvert, jupyter execute, papermill, nbclient."""

import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from compare import assert_same_notebooks, assert_same_as_ipykernel, execute, notebook

LEFT, RIGHT = "left", "right"
PLACE = "open(os.environ['PLACES'], 'a').write(os.path.basename(os.getcwd()) + '\\n');\n"

# Equal cells, on different targets, tell apart matching by place from matching by source.
CELLS = [
    "import os\nimport numpy as np\nimport matplotlib.pyplot as plt\nn = 3",
    "def grown(values):\n    return [value * n for value in values]\ndata = np.arange(n)",
    (PLACE + "print('one', n)\nleft = grown(data)", LEFT),
    (PLACE + "print('two')\nright = float(data.mean())", RIGHT),
    (PLACE + "n", RIGHT),
    (PLACE + "n", LEFT),
    (PLACE + "1 / 0", LEFT),
    "print(left, right)\nplt.plot([int(v) for v in left])",
]
PLACES = ["left", "right", "right", "left", "left"]


@pytest.fixture
def places(tmp_path, monkeypatch):
    """The file in which the cells of `CELLS` note where they run."""
    path = tmp_path / "places.txt"
    monkeypatch.setenv("PLACES", str(path))
    return path


def run(*command, cwd, expect=0):
    done = subprocess.run([sys.executable, "-m", *command], cwd=cwd, capture_output=True, text=True, timeout=110)
    assert done.returncode == expect, done.stderr
    return done


def nbconvert(path, kernel_name, options=()):
    run(
        "nbconvert", "--to", "notebook", "--execute", f"--ExecutePreprocessor.kernel_name={kernel_name}",
        "--allow-errors", "--output", "done.ipynb", path.name, *options, cwd=path.parent,
    )  # fmt: skip
    return path.parent / "done.ipynb"


def jupyter_execute(path, kernel_name):
    run("jupyter", "execute", f"--kernel_name={kernel_name}", "--allow-errors", "--inplace", path.name, cwd=path.parent)
    return path


def papermill(path, kernel_name):
    """From another folder, as papermill leaves the working directory to the shell. It stops at the first error, so the
    failing cell is left to those who go on."""
    run("papermill", path.name, "done.ipynb", "-k", kernel_name, "-p", "n", "5", cwd=path.parent)
    return path.parent / "done.ipynb"


def nbclient(path, kernel_name):
    made = nbformat.read(path, 4)
    nbformat.write(execute(made, kernel_name, path.parent), path.parent / "done.ipynb")
    return path.parent / "done.ipynb"


CLIENTS = {"nbconvert": nbconvert, "jupyter execute": jupyter_execute, "papermill": papermill, "nbclient": nbclient}


@pytest.mark.parametrize("name", CLIENTS)
def test_same_as_ipykernel(name, kernel_name, targets, tmp_path, places):
    cells = [cell for cell in CELLS if name != "papermill" or "1 / 0" not in cell[0]]
    folders, done = [], []
    for kernel, metadata in (("python3", False), (kernel_name, True)):
        folder = tmp_path / f"as-{len(folders)}"
        folder.mkdir()
        path = folder / "notebook.ipynb"
        nbformat.write(notebook(*cells, metadata=metadata, parameters=0), path)
        places.unlink(missing_ok=True)
        done.append(nbformat.read(CLIENTS[name](path, kernel), 4))
        folders.append(folder)
    for executed in done:
        for cell in executed.cells:  # papermill's own notes of when and where
            cell.metadata.pop("papermill", None)
    assert_same_notebooks(*done, folders)
    if kernel_name == "cellferry":
        # In any order: steps run ahead of their turn.
        assert sorted(places.read_text().split()) == sorted(PLACES[:-1] if name == "papermill" else PLACES)
    if name == "papermill":
        printed = [output["text"] for cell in done[1].cells for output in cell.outputs if output.output_type == "stream"]
        assert "one 5\n" in printed


def test_papermill_from_another_folder(kernel_name, targets, tmp_path, places):
    """The notebook is found by papermill's argument, and its targets beside it."""
    folder = tmp_path / "deep" / "er"
    folder.mkdir(parents=True)
    nbformat.write(notebook("import os\nn = 1", (PLACE + "print(n)", LEFT), parameters=0), folder / "in.ipynb")
    run("papermill", "deep/er/in.ipynb", "deep/er/out.ipynb", "-k", kernel_name, cwd=tmp_path)
    assert nbformat.read(folder / "out.ipynb", 4).cells[-1].outputs[0]["text"] == "1\n"
    if kernel_name == "cellferry":
        assert places.read_text() == "left\n"


def test_error_ends_the_batch_run(kernel_name, targets, tmp_path):
    nbformat.write(notebook("1", ("raise ValueError('in a step')", LEFT), "open('ran', 'w')"), tmp_path / "in.ipynb")
    done = subprocess.run(
        [sys.executable, "-m", "nbconvert", "--to", "notebook", "--execute", "in.ipynb",
         f"--ExecutePreprocessor.kernel_name={kernel_name}"],
        cwd=tmp_path, capture_output=True, text=True, timeout=110,
    )  # fmt: skip
    assert done.returncode != 0
    assert "ValueError: in a step" in re.sub(r"\x1b\[[\d;]*m", "", done.stderr), done.stderr
    assert not (tmp_path / "ran").exists()


@pytest.mark.cellferry
def test_wrong_metadata_ends_the_batch_run(targets, tmp_path):
    nbformat.write(notebook("1", ("open('ran', 'w')", "lfet")), tmp_path / "in.ipynb")
    done = subprocess.run(
        [sys.executable, "-m", "nbconvert", "--to", "notebook", "--execute", "in.ipynb",
         "--ExecutePreprocessor.kernel_name=cellferry"],
        cwd=tmp_path, capture_output=True, text=True, timeout=110,
    )  # fmt: skip
    assert done.returncode != 0 and "`lfet`" in done.stderr and "`left`" in done.stderr, done.stderr
    assert not list(tmp_path.rglob("ran"))


def test_html_of_an_executed_notebook(kernel_name, targets, tmp_path):
    nbformat.write(notebook("import os", ("print('from the step')", LEFT)), tmp_path / "in.ipynb")
    run("nbconvert", "--to", "html", "--execute", "in.ipynb", f"--ExecutePreprocessor.kernel_name={kernel_name}", cwd=tmp_path)
    assert "from the step" in (tmp_path / "in.html").read_text()


@pytest.mark.cellferry
@pytest.mark.parametrize("name", ["quickstart"])
def test_examples(name, tmp_path):
    """The examples run as they are, and give what one ordinary kernel gives."""
    source = Path(__file__).parents[2] / "notebooks"
    made = nbformat.read(source / f"{name}.ipynb", 4)
    for file in source.glob("*.toml"):
        (tmp_path / file.name).write_text(file.read_text())
    assert any("workflow" in cell.metadata or "#|" in cell.source for cell in made.cells)
    assert_same_as_ipykernel(made, "cellferry", tmp_path, allow_errors=False)
