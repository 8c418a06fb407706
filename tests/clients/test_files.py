"""Files of steps: brought to where the step runs before it, and home after it."""

import os
import stat
import subprocess
import sys

import nbformat
import pytest
from client import on
from compare import notebook
from processes import wait_until
from world import write_targets

pytestmark = pytest.mark.cellferry


def files(**step):
    """Cell metadata of a step on `left` with these `in` and `out`: paths, or elements as they are written."""

    def element(item):
        return {"type": "file", "value": item} if isinstance(item, (str, list)) else {"type": "file", **item}

    return on("left", step={key: [element(item) for item in items] for key, items in step.items()})


def tree(folder):
    """All that is below a folder: content, mode, or where a link leads."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name, status = str(path.relative_to(folder)), path.lstat()
        if path.is_symlink():
            found[name] = os.readlink(path)
        else:
            found[name] = (path.read_bytes() if path.is_file() else None, oct(stat.S_IMODE(status.st_mode)))
    return found


def test_a_file_is_there_when_the_cell_runs_and_what_it_makes_comes_home(targets, kernel, tmp_path):
    (tmp_path / "table.csv").write_text("1,2,3")
    metadata = files(**{"in": ["table.csv"], "out": ["sum.txt"]})
    source = "n = sum(map(int, open('table.csv').read().split(',')))\nopen('sum.txt', 'w').write(str(n))"
    kernel.run(source, metadata).ok()
    assert (tmp_path / "sum.txt").read_text() == "6" and (tmp_path / "left/table.csv").read_text() == "1,2,3"
    # A later step elsewhere, and a plain cell, find the newest content.
    kernel.run("open('sum.txt', 'a').write('!')").ok()
    right = on("right", step={"in": [{"type": "file", "value": "sum.txt"}]})
    assert kernel.run("print(open('sum.txt').read())", right).ok().text() == "6!\n"


def test_lines_in_the_source_say_the_same(targets, kernel, tmp_path):
    (tmp_path / "a.txt").write_text("a")
    kernel.run("k = 1").ok()
    source = (
        "#| target: left\n#| in: [k, {type: file, value: a.txt}]\n#| out: [{type: file, value: [b.txt, 'c/*.txt']}]\n"
        "import os\nos.makedirs('c')\nfor name in ('b', 'c/1', 'c/2'):\n"
        "    open(name + '.txt', 'w').write(open('a.txt').read() + name)"
    )
    kernel.run(source).ok()
    made = [(tmp_path / f"{name}.txt").read_text() for name in ("b", "c/1", "c/2")]
    assert made == ["ab", "ac/1", "ac/2"]


def test_directories_keep_modes_and_links(targets, kernel, tmp_path):
    data = tmp_path / "data"
    (data / "deep/er").mkdir(parents=True)
    (data / "run.sh").write_text("#!/bin/sh\necho ran")
    (data / "run.sh").chmod(0o750)
    (data / "deep/er/empty").touch()
    (data / "deep/link").symlink_to("../run.sh")
    (data / "closed").mkdir()
    (data / "closed/x").write_text("x")
    (data / "closed").chmod(0o550)
    source = "import subprocess, shutil\nshutil.copytree('data', 'back', symlinks=True)\nprint(subprocess.getoutput('data/deep/link'))"
    run = kernel.run(source, files(**{"in": ["data"], "out": ["back"]})).ok()
    assert run.text() == "ran\n"
    assert tree(tmp_path / "left/data") == tree(data) == tree(tmp_path / "back")
    (data / "run.sh").chmod(0o700)
    kernel.run("1", files(**{"in": ["data"]})).ok()
    assert tree(tmp_path / "left/data") == tree(data)


def test_what_is_there_is_not_sent_again(targets, kernel, tmp_path):
    (tmp_path / "a").write_text("same")
    (tmp_path / "b").write_text("old")
    there = tmp_path / "left"
    kernel.run("1", files(**{"in": ["a", "b"]})).ok()
    before = {name: (there / name).stat().st_ino for name in "ab"}
    (tmp_path / "b").write_text("new")
    kernel.run("1", files(**{"in": ["?"]})).ok()
    assert (there / "a").stat().st_ino == before["a"] and (there / "b").stat().st_ino != before["b"]
    assert (there / "b").read_text() == "new"


@pytest.mark.parametrize("value", ["'x.txt'", "pathlib.Path('x.txt')", "['x.txt', pathlib.Path('y.txt')]"])
def test_a_variable_may_hold_the_path(targets, kernel, tmp_path, value):
    for name in "xy":
        (tmp_path / f"{name}.txt").write_text(name)
    kernel.run(f"import pathlib\nwhere = {value}").ok()
    source = "print(open('x.txt').read())\nmade = 'made.txt'\nopen(made, 'w').write('made')"
    run = kernel.run(source, files(**{"in": [{"name": "where"}], "out": [{"name": "result", "valueFrom": "made"}]})).ok()
    assert run.text() == "x\n" and (tmp_path / "made.txt").read_text() == "made"
    assert (tmp_path / "left/y.txt").exists() == ("y.txt" in value)


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        ({"in": ["no.csv"]}, ["`no.csv`, an input of cell [1], is not on `home`", "{0}/no.csv", "No such file"]),
        ({"in": ["*.csv"]}, ["`*.csv`, an input of cell [1], is not on `home`", "matches", "{0}"]),
        ({"in": [{"name": "table"}]}, ["no variable `table` is bound"]),
        ({"in": [{"name": "number"}]}, ["`number` is a value of type int"]),
        ({"out": ["no.png"]}, ["`no.png`, an output of cell [1], is not on `left`", "{0}/left/no.png"]),
        ({"out": ["*.png"]}, ["`*.png`, an output of cell [1], is not on `left`", "matches", "{0}/left"]),
        ({"out": [{"name": "plot", "value": "no"}]}, ["`no` (`plot`), an output of cell [1]"]),
    ],
)
def test_what_is_missing_is_an_error_under_the_cell(targets, kernel, tmp_path, step, expected):
    if "number" in str(step):
        kernel.run("number = 3", store_history=False).ok()
    run = kernel.send("print('ran')", files(**step))
    after = kernel.send("open('after', 'w')")
    kernel.finish(run, after)
    assert run.error.startswith("FileError: ")
    for text in expected:
        assert text.format(tmp_path) in run.error
    (shown,) = run.of_type("error")
    assert shown["content"]["evalue"] == run.error.removeprefix("FileError: ")
    assert run.text() == ("" if "in" in step else "ran\n")
    # As after any error, nothing more runs.
    assert after.status == "aborted" and not (tmp_path / "after").exists()
    assert kernel.run("print(1)", on("left")).ok().text() == "1\n"


def test_what_a_failing_cell_has_made_comes_home(targets, kernel, tmp_path):
    run = kernel.run("open('log', 'w').write('so far')\n1 / 0", files(out=["log", "never", {"name": "unbound"}]))
    assert run.error == "ZeroDivisionError: division by zero" and len(run.of_type("error")) == 1
    assert (tmp_path / "log").read_text() == "so far"


def test_wrong_paths_are_told_before_anything_runs(targets, kernel, tmp_path):
    run = kernel.run("open('ran', 'w')", files(**{"in": ["", "..", "~bob/x"], "out": [{}]}))
    assert run.error.startswith("MetadataError: ") and run.error.count("\n") == 3
    assert "`workflow.step.out[0]`: must have a `value`" in run.error
    assert not list(tmp_path.rglob("ran"))


def test_paths_beyond_the_working_directory(targets, kernel, tmp_path, world, monkeypatch, start):
    """`..` begins at the working directory there, what is absolute is the same path, `~` the home directory."""
    targets.define("left", workdir=tmp_path / "far/left")
    inner = tmp_path / "inner"
    inner.mkdir()
    (tmp_path / "beside.txt").write_text("beside")
    (tmp_path / "absolute.txt").write_text("absolute")
    monkeypatch.setenv("HOME", str(world))
    (world / "own.txt").write_text("own")
    kernel = start(cwd=inner)
    source = (
        f"import os\nprint(open('../beside.txt').read(), open('{tmp_path}/absolute.txt').read(), "
        "open(os.path.expanduser('~/own.txt')).read())\nopen('../out.txt', 'w').write('out')"
    )
    step = {"in": ["../beside.txt", f"{tmp_path}/absolute.txt", "~/own.txt"], "out": ["../out.txt"]}
    assert kernel.run(source, files(**step)).ok().text() == "beside absolute own\n"
    assert (tmp_path / "far/beside.txt").exists() and (tmp_path / "out.txt").read_text() == "out"


def test_shared_paths_are_not_copied(targets, kernel, tmp_path):
    here, there = tmp_path / "here", tmp_path / "there"
    for folder in (here, there):
        folder.mkdir()
    (here / "big").write_text("home's")
    (there / "big").write_text("left's")
    config = tmp_path / "cellferry.toml"
    config.write_text(config.read_text() + f"\n[[shared]]\npath = '{tmp_path}/there'\ntargets = ['home', 'left']\n")
    run = kernel.run(f"print(open('{there}/big').read())\nopen('{there}/new', 'w').write('x')",
                     files(**{"in": [f"{there}/*"], "out": [f"{there}/new"]})).ok()  # fmt: skip
    assert run.text() == "left's\n"
    config.write_text(config.read_text() + f"\n[[shared]]\npaths = {{home = '{here}', left = '{there}'}}\n")
    run = kernel.run(f"print(open('{there}/big').read())", files(**{"in": [f"{here}/big"]})).ok()
    assert run.text() == "left's\n"
    config.write_text(config.read_text().replace("'home', 'left'", "'home', 'lfet'"))
    failed = kernel.run("1", files(**{"in": [f"{here}/big"]}))
    assert "no target `lfet`; did you mean `left`" in failed.error and "cellferry.toml" in failed.error
    assert kernel.run("print(1)", on("left")).ok().text() == "1\n"


def test_steps_with_files_follow_each_other(targets, kernel, tmp_path):
    """Sent all at once, on two targets: each finds what the one before has made."""
    runs = []
    for number in range(6):
        target = ("left", "right")[number % 2]
        element = [{"type": "file", "value": "count"}]
        metadata = on(target, step={"in": element if number else [], "out": element})
        source = f"n{number} = int(open('count').read()) + 1 if {number} else 0\nopen('count', 'w').write(str(n{number}))"
        runs.append(kernel.send(source, metadata))
    kernel.finish(*runs)
    for run in runs:
        run.ok()
    assert (tmp_path / "count").read_text() == "5"


def test_a_batch_run(targets, kernel_name, tmp_path):
    (tmp_path / "in.csv").write_text("4,5")
    cells = [
        "total = 0",
        "#| target: left\n#| in: [{type: file, value: in.csv}]\n#| out: [{type: file, value: out/*.txt}]\n"
        "import os\nos.mkdir('out')\nopen('out/n.txt', 'w').write(open('in.csv').read())",
        "#| target: right\n#| in: [{type: file, value: out}]\nprint(open('out/n.txt').read())",
        "print(open('out/n.txt').read())",
    ]
    nbformat.write(notebook(*cells), tmp_path / "in.ipynb")
    done = subprocess.run(
        [sys.executable, "-m", "nbconvert", "--to", "notebook", "--execute", "--output", "done.ipynb", "in.ipynb",
         f"--ExecutePreprocessor.kernel_name={kernel_name}"],
        cwd=tmp_path, capture_output=True, text=True, timeout=110,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    made = nbformat.read(tmp_path / "done.ipynb", 4)
    assert [cell.outputs[0]["text"] for cell in made.cells[2:]] == ["4,5\n", "4,5\n"]
