"""Files of steps: brought to where the step runs before it, and home after it."""

import hashlib
import os
import stat
import subprocess
import sys
import time

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


# Runs a program below `data`, and makes a copy of all.
COPY = (
    "import subprocess, shutil\nprint(subprocess.getoutput('data/{0}'))\nshutil.copytree('data', 'back', symlinks=True)"
)


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
    run = kernel.run(COPY.format("deep/link"), files(**{"in": ["data"], "out": ["back"]})).ok()
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
    # What is there under another name is taken from there; two that change places do not get in each other's way.
    (tmp_path / "a").write_text("new")
    (tmp_path / "b").write_text("same")
    (tmp_path / "c").write_text("same")
    kernel.run("1", files(**{"in": ["?"]})).ok()
    assert [(there / name).read_text() for name in "abc"] == ["new", "same", "same"]


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


def test_at_home_files_are_only_looked_for(targets, kernel, tmp_path):
    (tmp_path / "a").write_text("a")
    metadata = files(**{"in": ["a"], "out": ["b*"]})
    metadata["workflow"]["target"] = "home"
    kernel.run("open('b', 'w').write(open('a').read())", metadata).ok()
    (tmp_path / "b").unlink()
    assert "`b*`, an output of cell [2], is not on `home`" in kernel.run("1", metadata).error
    (tmp_path / "a").unlink()
    assert f"there is no `{tmp_path}/a`" in kernel.run("1", metadata).error


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


# --- the notebook's own modules


def test_modules_beside_the_notebook_are_found_by_targets_on_this_machine(targets, kernel, tmp_path):
    (tmp_path / "helpers.py").write_text("def f():\n    return 'home'")
    (tmp_path / "left/helpers.py").write_text("def f():\n    return 'an old copy'")
    assert kernel.run("import helpers\nprint(helpers.f())", on("left")).ok().text() == "home\n"


# --- far hosts


@pytest.fixture
def far(bed, tmp_path):
    """Targets `node1` and `node2` on real hosts, which work in `~/work`."""
    tables = {
        name: {"type": "ssh", "host": name, "python": bed.python, "workdir": "~/work"} for name in bed.hosts[1:]
    }
    write_targets(tmp_path / "cellferry.toml", tables)
    return bed


def there(target, **step):
    metadata = files(**step)
    metadata["workflow"]["target"] = target
    return metadata


def wait_for_part(far):
    """Until a part of the file `big` has come to node1."""
    parts = "find /home/alice/work -name '.big*' -size +100k 2>/dev/null || true"
    wait_until(lambda: far.on("node1", parts).strip(), 30, "no part of it has come")


def test_files_of_a_far_host(far, kernel, tmp_path):
    data = tmp_path / "data"
    (data / "sub").mkdir(parents=True)
    (data / "run.sh").write_text("#!/bin/sh\necho ran")
    (data / "run.sh").chmod(0o755)
    (data / "sub/link").symlink_to("../run.sh")
    (data / "sub/empty").touch()
    run = kernel.run(COPY.format("sub/link"), there("node1", **{"in": ["data"], "out": ["ba*"]})).ok()
    assert run.text() == "ran\n" and tree(tmp_path / "back") == tree(data)
    assert far.on("node1", "cat /home/alice/work/data/run.sh") == "#!/bin/sh\necho ran"
    # Another host gets it from home; what is there is not sent again.
    source = "import os\nprint(sorted(os.listdir('back')), os.stat('back/run.sh').st_ino)"
    first = kernel.run(source, there("node2", **{"in": ["back"]})).ok().text()
    assert first.startswith("['run.sh', 'sub'] ")
    assert kernel.run(source, there("node2", **{"in": ["back/*"]})).ok().text() == first
    failed = kernel.run("1", there("node1", **{"in": ["no"]}))
    assert failed.error.startswith("FileError: `no`, an input of cell") and f"{tmp_path}/no" in failed.error
    failed = kernel.run("1", there("node1", out=["no"]))
    assert "is not on `node1`" in failed.error and "/home/alice/work/no" in failed.error


def test_what_a_far_host_cannot_write_is_told(far, kernel):
    outside = "/etc/passwd"  # another one there
    failed = kernel.run("1", there("node1", **{"in": [outside]}))
    assert failed.error.startswith(f"FileError: `{outside}`, an input of cell [1], cannot be brought from `home` to `node1`")
    assert "ermission denied" in failed.error and "[[shared]]" in failed.error


def test_a_variable_of_a_far_host_names_only_what_is_below_its_folder(far, kernel, tmp_path):
    source = "path = '/tmp/made'\nopen(path, 'w').write('x')"
    failed = kernel.run(source, there("node1", out=[{"name": "path"}]))
    assert "give the path as `value`" in failed.error and not os.path.exists("/tmp/made")
    far.on("node1", "rm /tmp/made")


def test_a_large_file_goes_on_after_a_cut(far, kernel, tmp_path):
    kernel.run("import hashlib", on("node1")).ok()
    content = os.urandom(60_000_000)
    (tmp_path / "big").write_bytes(content)
    far.fault("rate", "node1", "200mbit")
    source = "data = open('big', 'rb').read()\nopen('back', 'wb').write(data[::-1])\nprint(hashlib.sha256(data).hexdigest())"
    run = kernel.send(source, there("node1", **{"in": ["big"], "out": ["back"]}))
    wait_for_part(far)
    far.fault("cut", "node1")
    kernel.read_until(lambda: run.of_type("display_data"), 30)
    far.fault("heal", "node1")
    kernel.finish(run, timeout=90)
    assert run.ok().text() == hashlib.sha256(content).hexdigest() + "\n"
    assert (tmp_path / "back").read_bytes() == content[::-1]


@pytest.mark.parametrize("way", ["in", "out"])
def test_an_interrupt_ends_the_bringing(far, kernel, tmp_path, way):
    kernel.run("import os", on("node1")).ok()
    (tmp_path / "big").write_bytes(os.urandom(40_000_000))
    far.fault("rate", "node1", "40mbit")
    source = "print('ran', flush=True)\nopen('back', 'wb').write(os.urandom(40_000_000))"
    run = kernel.send(source, there("node1", **{way: ["big" if way == "in" else "back"]}))
    if way == "in":
        wait_for_part(far)
    else:
        wait_until(lambda: list(tmp_path.glob(".back*")), 30, "no part of it")
        assert run.text() == "" or run.text() == "ran\n"
    began = time.monotonic()
    kernel.interrupt()
    kernel.finish(run, timeout=10)
    assert time.monotonic() - began < 3
    assert run.error.startswith("KeyboardInterrupt") and len(run.of_type("error")) == 1
    assert run.text() == ("" if way == "in" else "ran\n")
    # Nothing half is left.
    wait_until(lambda: far.on("node1", "ls -A /home/alice/work").split() in ([], ["back"]), 10, "parts left there")
    wait_until(lambda: not list(tmp_path.glob(".back*")), 10, "parts left here")
    assert not (tmp_path / "back").exists()
    assert kernel.run("print(1)", on("node1")).ok().text() == "1\n"


def test_a_worker_that_dies_while_its_files_come_runs_again(far, kernel, tmp_path):
    kernel.run("import os", on("node1")).ok()
    (tmp_path / "big").write_bytes(os.urandom(20_000_000))
    far.fault("rate", "node1", "40mbit")
    run = kernel.send("print(os.path.getsize('big'))", there("node1", **{"in": ["big"]}))
    wait_for_part(far)
    far.on("node1", "pkill -9 -f ipykernel_launcher")
    far.fault("heal", "node1")
    kernel.finish(run, timeout=60)
    assert run.ok().text() == "20000000\n"


def test_a_value_made_from_files_is_made_again_only_from_the_same_files(far, kernel, tmp_path):
    (tmp_path / "n").write_text("1")
    metadata = there("node1", **{"in": ["n"], "out": ["m"]})
    kernel.run("x = [int(open('n').read())]\nopen('m', 'w').write('made')", metadata).ok()
    (tmp_path / "m").write_text("newer")

    def kill():
        far.on("node1", "pkill -9 -f ipykernel_launcher")
        # The kernel has noticed once a cell there gets another worker.
        kernel.run("1", on("node1")).ok()

    kill()
    assert kernel.run("print(x)").ok().text() == "[1]\n"
    assert (tmp_path / "m").read_text() == "newer"
    kernel.run("x[0] += 1", there("node1", **{"in": ["n"]})).ok()
    (tmp_path / "n").write_text("7")
    kill()
    failed = kernel.run("print(x)")
    assert failed.error.startswith("LostValue:") and "run again to make it: the files that it read have changed" in failed.error


def test_modules_beside_the_notebook_travel(far, kernel, tmp_path):
    (tmp_path / "helpers.py").write_text("import other\ndef f():\n    return other.WORD\n")
    (tmp_path / "other.py").write_text("WORD = 'first'\n")
    package = tmp_path / "tools/deep"
    package.mkdir(parents=True)
    (tmp_path / "tools/__init__.py").write_text("from .deep import table\n")
    (package / "__init__.py").write_text(
        "import pathlib\ntable = (pathlib.Path(__file__).parent / 'table.csv').read_text()\nclass Thing:\n    size = 3\n"
    )
    (package / "table.csv").write_text("1,2")
    (tmp_path / "unused.py").write_text("")
    assert kernel.run("import helpers\nprint(helpers.f())", on("node1")).ok().text() == "first\n"
    # What a definition imports that is replayed, and what a value needs to be unpickled.
    kernel.run("import tools\ndef g():\n    from tools import table\n    return table\nthing = [tools.deep.Thing()]").ok()
    assert kernel.run("print(g())", on("node2")).ok().text() == "1,2\n"
    assert kernel.run("print(thing[0].size, helpers.f())", on("node2")).ok().text() == "3 first\n"
    found = far.on("node2", "find /tmp/cellferry-*/*/modules -name '*.*' | sed 's,.*/modules/,,' | grep -v pycache | sort")
    assert found.split() == ["helpers.py", "other.py", "tools/__init__.py", "tools/deep/__init__.py", "tools/deep/table.csv"]
    # What has changed is sent again, to whoever imports it then.
    (tmp_path / "other.py").write_text("WORD = 'second one'\n")
    source = "import importlib\nimportlib.reload(helpers.other)\nprint(helpers.f())"
    assert kernel.run(source, on("node1")).ok().text() == "second one\n"


def test_a_value_alone_brings_its_module(far, kernel, tmp_path):
    (tmp_path / "shapes.py").write_text("class Square:\n    def __init__(self, side):\n        self.area = side ** 2\n")
    kernel.run("from shapes import Square as S\ns = {'all': [S(2), S(3)]}").ok()
    assert kernel.run("t = [one.area for one in s['all']]\nprint(t)", on("node1")).ok().text() == "[4, 9]\n"
