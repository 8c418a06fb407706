"""`cellferry graph` and `cellferry check`: what can be said of a notebook's file without running it."""

import json
import stat
import subprocess
import time
import xml.etree.ElementTree as ElementTree

import nbformat
import pytest
from compare import notebook

pytestmark = pytest.mark.cellferry

SVG = "{http://www.w3.org/2000/svg}"
STEPS = [
    "import math\nk = 1",
    "#| target: left\nsquares = [math.sqrt(k)]",
    ("%%time\ntotal = sum(range(k))", "right"),
    "print(squares, total)",
]


@pytest.fixture
def call(binary, tmp_path):
    """Runs the program in the test's folder, where a `cellferry.toml` may be, and returns what it did."""

    def call(*arguments, expect=0):
        done = subprocess.run([binary, *map(str, arguments)], cwd=tmp_path, capture_output=True, text=True, timeout=60)
        assert done.returncode == expect, done.stdout + done.stderr
        assert "panicked" not in done.stderr
        return done

    return call


def write(path, *cells):
    made = notebook(*cells)
    nbformat.write(made, path)
    return path


def test_graph_lists_who_reads_what_from_whom(call, tmp_path):
    before = write(tmp_path / "a.ipynb", *STEPS).read_bytes()
    done = call("graph", "a.ipynb")
    assert done.stdout.splitlines() == [
        " 1  home   import math",
        " 2  left   squares = [math.sqrt(k)]",
        "      reads k, math from 1",
        " 3  right  %%time",
        "      reads k from 1",
        " 4  home   print(squares, total)",
        "      reads squares from 2; total from 3",
        "",
        "Steps that can overlap:",
        "  2, 3",
    ]
    assert done.stderr == "" and (tmp_path / "a.ipynb").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["a.ipynb"]


def test_graph_shows_who_reads_whose_files(call, tmp_path):
    write(
        tmp_path / "a.ipynb",
        "#| target: left\n#| out: [{type: file, value: [./a//x.csv, b]}]\n1",
        "where = 'c'",
        "#| target: right\n#| in: [{type: file, value: a/x.csv}, {type: file, name: where}]\n2",
    )
    lines = call("graph", "a.ipynb").stdout.splitlines()
    assert lines[3] == "      reads ./a/x.csv from 1; where from 2"


@pytest.mark.parametrize("option", ["-o", "--output"])
def test_graph_draws(option, call, tmp_path):
    write(tmp_path / "a.ipynb", *STEPS[:-1], "print(squares, total, '<&>')")
    (tmp_path / "g.svg").write_text("old")
    call("graph", "a.ipynb", option, "g.svg")
    root = ElementTree.parse(tmp_path / "g.svg").getroot()
    texts = [text.text for text in root.iter(f"{SVG}text")]
    assert root.tag == f"{SVG}svg" and {"[1]", "[4]", "left", "right", "k, math", "squares"} <= set(texts)
    assert any("'<&>'" in text for text in texts)
    assert not list(root.iter(f"{SVG}script"))
    (tmp_path / "new").touch()
    modes = {stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("g.svg", "new")}
    assert len(modes) == 1 and len(list(tmp_path.glob("*.svg"))) == 1


def test_graph_never_overwrites_the_notebook(call, tmp_path):
    before = write(tmp_path / "a.ipynb", "1").read_bytes()
    assert "notebook itself" in call("graph", "a.ipynb", "-o", "./a.ipynb", expect=1).stderr
    assert "cannot write" in call("graph", "a.ipynb", "-o", "no/folder/g.svg", expect=1).stderr
    assert (tmp_path / "a.ipynb").read_bytes() == before


def test_faults_are_shown_and_the_rest_is_drawn(call, tmp_path):
    write(tmp_path / "a.ipynb", "x = 1", "#| targt: left\ny = x", "#| cache: true\ny", "x +", "print(y)")
    done = call("graph", "a.ipynb", "-o", "g.svg")
    assert "did you mean `target`?" in done.stdout and "not supported yet" in done.stdout
    assert "not valid Python" in done.stdout and "reads y from 2" in done.stdout
    assert (tmp_path / "g.svg").read_text().count("wrong metadata") == 2


BROKEN = {
    "not JSON": "{",
    "not a notebook": "[]",
    "old": '{"nbformat": 3, "worksheets": []}',
    "binary": "\x00\x01",
    "cells of a wrong type": '{"nbformat": 4, "cells": {}}',
}


@pytest.mark.parametrize("what", BROKEN)
def test_what_is_no_notebook(what, call, tmp_path):
    (tmp_path / "a.ipynb").write_text(BROKEN[what])
    write(tmp_path / "b.ipynb", "1")
    assert "`a.ipynb`" in call("graph", "a.ipynb", "-o", "g.svg", expect=1).stderr
    assert not (tmp_path / "g.svg").exists()
    done = call("check", "a.ipynb", "b.ipynb", "none.ipynb", expect=1)
    assert "`a.ipynb`" in done.stdout and "`none.ipynb`" in done.stdout
    assert done.stdout.endswith("2 errors: 1 cell in 3 notebooks\n")


def test_no_cells(call, tmp_path):
    nbformat.write(nbformat.v4.new_notebook(), tmp_path / "a.ipynb")
    assert call("graph", "a.ipynb", "-o", "g.svg").stdout == "no code cells\n"
    ElementTree.parse(tmp_path / "g.svg")
    assert call("check", "a.ipynb").stdout == "ok: 0 cells in 1 notebook\n"


def test_cells_that_are_not_python(call, targets, tmp_path):
    made = notebook("d = '.'", "%%bash -s {d} --out listing\n#| target: left\nls $1; if [ x", "print(listing)", "")
    made.cells.insert(0, nbformat.v4.new_markdown_cell("#| target: nowhere\n# A title"))
    made.cells.insert(2, nbformat.v4.new_raw_cell("#| target: nowhere"))
    nbformat.write(made, tmp_path / "a.ipynb")
    done = call("graph", "a.ipynb")
    assert done.stdout.splitlines()[:6] == [
        " 1  home  d = '.'",
        " 2  left  %%bash -s {d} --out listing",
        "      reads d from 1",
        " 3  home  print(listing)",
        "      reads listing from 2",
        " 4  home  (empty)",
    ]
    assert call("check", "a.ipynb").stdout == "ok: 4 cells in 1 notebook, targets `left`\n"


def test_check_tells_all_that_is_wrong(call, targets, tmp_path):
    made = notebook(
        "x = 1",
        ("y = x", "lfet"),
        "#| targt: left\n#| cache: true\nfirst_line = 1",
        "x +",
        "#| after: [prepare, cell-0, cell-5]\nx",
        ("z = 1", "right"),
    )
    made.cells[0].metadata["tags"] = ["prepared"]
    nbformat.write(made, tmp_path / "a.ipynb")
    lines = call("check", "a.ipynb", expect=1).stdout.splitlines()
    expected = [
        ("error: a.ipynb: cell 2 (id cell-1) `y = x`: no target `lfet`; did you mean `left`?", "cellferry.toml"),
        ("error: a.ipynb: cell 3 (id cell-2) `first_line = 1`: `#| targt`: unknown key", "did you mean `target`?"),
        ("error: a.ipynb: cell 3 (id cell-2) `first_line = 1`: `workflow.cache`: cache is not supported yet", ""),
        ("warning: a.ipynb: cell 4 (id cell-3) `x +`: the source is not valid Python", ""),
        ("error: a.ipynb: cell 5 (id cell-4) `x`: `workflow.after`: no cell has the id, tag or name `prepare`", "`prepared`?"),
        ("error: a.ipynb: cell 5 (id cell-4) `x`: `workflow.after`: `cell-5` names no cell before this one", ""),
        ("5 errors, 1 warning: 6 cells in 1 notebook", ""),
    ]  # fmt: skip
    assert len(lines) == len(expected), lines
    for line, (start, rest) in zip(lines, expected, strict=True):
        assert line.startswith(start) and rest in line, line


def test_check_knows_the_targets_of_each_notebook(call, targets, tmp_path):
    """A `cellferry.toml` nearer to one of them, and a notebook's own deployments. No target is started."""
    targets.define("left", python="/nowhere/python")
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "cellferry.toml").write_text('[targets.near]\ntype = "local"\n[targets.far]\ntype = "container"\n')
    write(tmp_path / "a.ipynb", ("1", "left"), ("2", "near"))
    write(tmp_path / "deep" / "b.ipynb", ("1", "left"), ("2", "near"))
    made = notebook(("1", "own"), ("2", "far"))
    made.metadata["workflow"] = {"deployments": {"own": {"type": "local"}}}
    nbformat.write(made, tmp_path / "deep" / "c.ipynb")
    done = call("check", "a.ipynb", "deep/b.ipynb", "deep/c.ipynb", expect=1)
    assert done.stdout.count("error: ") == 2
    assert "a.ipynb: cell 2 (id cell-1) `2`: no target `near`" in done.stdout
    assert "deep/c.ipynb: cell 2" in done.stdout and "type `container` are not supported yet" in done.stdout
    assert call("check", "deep/b.ipynb").stdout == "ok: 2 cells in 1 notebook, targets `left`, `near`\n"


def test_check_with_a_broken_configuration(call, tmp_path):
    (tmp_path / "cellferry.toml").write_text("[targets\n")
    write(tmp_path / "a.ipynb", "1", ("2", "left"), "#| targt: x\n3")
    done = call("check", "a.ipynb", expect=1)
    assert "not valid TOML" in done.stdout and "`#| targt`" in done.stdout and "2 errors: 3 cells" in done.stdout


def test_ten_thousand_cells(call, targets, tmp_path):
    def cell(number):
        if number % 3 == 1:
            return f"#| target: left\na{number} = f(a{max(number - 3, 0)})"
        return f"a{number} = {number}" if number % 3 else "def f(x):\n    return x + a0"

    raw = {
        "nbformat": 4, "nbformat_minor": 5, "metadata": {},
        "cells": [
            {"cell_type": "code", "id": f"c{number}", "metadata": {}, "source": cell(number), "outputs": [], "execution_count": None}
            for number in range(10_000)
        ],
    }  # fmt: skip
    (tmp_path / "a.ipynb").write_text(json.dumps(raw))
    began = time.monotonic()
    done = call("graph", "a.ipynb", "-o", "g.svg")
    assert "f from 9997" in done.stdout and (tmp_path / "g.svg").read_text().count("<rect") > 20_000
    assert call("check", "a.ipynb").stdout == "ok: 10000 cells in 1 notebook, targets `left`\n"
    assert time.monotonic() - began < 20


def test_output_is_fit_for_terminals_and_pipes(binary, call, tmp_path):
    write(tmp_path / "a.ipynb", "x = '\x1b[31m\u202e'", *["y = 1"] * 3000)
    for done in (call("graph", "a.ipynb"), call("check", "a.ipynb")):
        assert "\x1b" not in done.stdout and "\u202e" not in done.stdout
    command = f"'{binary}' graph a.ipynb | head -n 1; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, ""), done


def test_help(call):
    assert "check" in call("--help").stdout and "graph" in call("--help").stdout
    assert "--output" in call("graph", "--help").stdout
    assert "Exit code" in call("check", "--help").stdout
    assert "required" in call("check", expect=2).stderr
