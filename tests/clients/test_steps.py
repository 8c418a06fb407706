"""Steps: cells that run on a target give what one kernel would have given, while they run and afterwards."""

import getpass
import os
import re
import signal
import sys
from pathlib import Path

import pytest
from client import on
from compare import assert_same_outputs, notebook
from processes import alive, command_line, marked, parent, wait_until

pytestmark = pytest.mark.cellferry

LEFT, RIGHT, HOME = "left", "right", None

# Every cell also notes where it runs, in a file that no output shows.
NOTE = "__import__('pathlib').Path(__import__('os').environ['PLACES']).open('a').write(__import__('os').getcwd() + '\\n')\n"


@pytest.fixture
def both(start, targets, tmp_path):
    """Runs cells with their targets sent as request metadata under Cellferry, and without under ipykernel; fails
    where outputs, counts or replies differ. The cells must also have run where they were sent."""

    def execute(name, cells):
        folder = tmp_path / name
        folder.mkdir()
        places = folder / "places.txt"
        kernel = start(name, cwd=folder, env={**os.environ, "PLACES": str(places)})
        runs = []
        for cell in cells:
            source, target = cell if isinstance(cell, tuple) else (cell, HOME)
            metadata = on(target) if target and name != "python3" else None
            runs.append(kernel.run(source if source.startswith("%%") else NOTE + source, metadata))
        return folder, runs, places.read_text().split()

    def check(*cells):
        folder, expected, _ = execute("python3", cells)
        test_folder, actual, places = execute("cellferry", cells)
        for number, (one, other) in enumerate(zip(expected, actual, strict=True)):
            label = f"cell {number}: {cells[number]!r}"
            assert_same_outputs(one.outputs(), other.outputs(), (folder, test_folder), label)
            for key in ("status", "execution_count", "ename", "evalue"):
                assert other.reply["content"].get(key) == one.reply["content"].get(key), label
        wanted = []
        for cell, run in zip(cells, expected, strict=True):
            source, target = cell if isinstance(cell, tuple) else (cell, HOME)
            if not source.startswith("%%") and run.reply["content"].get("ename") != "SyntaxError":
                wanted.append(str(tmp_path / target if target else test_folder))
        assert places == wanted
        return actual

    return check


DATAFLOW = {
    "values": [
        "import numpy as np, pandas as pd, datetime\n"
        "n, s, none, b, big = 3, 'ünï', None, b'\\x00\\xff', 10 ** 40\n"
        "d = {'k': [1, (2, {3})]}\narray = np.arange(6).reshape(2, 3)\nframe = pd.DataFrame({'a': [1.5, None]})\n"
        "day = datetime.date(2026, 1, 2)",
        ("print(n, s, none, b, big, d, array, day)\nframe", LEFT),
        ("total = array.sum() + n\nmore = frame.assign(b=2)", RIGHT),
        "print(type(total), total, none)\nmore",
    ],
    "definitions": [
        "import math\nfrom collections import Counter as Count\nscale = 2",
        "def scaled(x):\n    return math.floor(x * scale)\n"
        "class Point:\n    def __init__(self, x):\n        self.x = scaled(x)\n    def __eq__(self, other):\n"
        "        return type(other) is Point and other.x == self.x\n    def __repr__(self):\n"
        "        return f'Point({self.x})'",
        ("p = Point(2.6)\nprint(scaled(1.5), Count('aab'), p)", LEFT),
        "scale = 3\nprint(p, isinstance(p, Point), p == Point(1.9), type(p).__module__)",
        ("print(scaled(1.5), Point(1), isinstance(p, Point), p == Point(1.9))", LEFT),
        ("def after(y):\n    return scaled(y) + 1\nq = Point(4)", RIGHT),
        "print(after(1), q, isinstance(q, Point))",
    ],
    "functions as values": [
        "base = 10\ndef adder(n):\n    return lambda x: x + n + base\nadd = adder(1)\ntwice = lambda x: 2 * x",
        ("print(add(1), twice(2))\nbase = 20\nprint(add(1))", LEFT),
        "add(1)",
        "import functools\n@functools.lru_cache\ndef fib(n):\n    return n if n < 2 else fib(n - 1) + fib(n - 2)\n"
        "part = functools.partial(max, 3)",
        ("print(fib(30), part(2), part(5))", RIGHT),
    ],
    "dataclasses, enums and tuples": [
        "from dataclasses import dataclass, field\nfrom enum import Enum\nfrom typing import NamedTuple\n"
        "@dataclass(order=True)\nclass Item:\n    name: str\n    tags: list = field(default_factory=list)\n"
        "class Color(Enum):\n    RED = 1\nclass Pair(NamedTuple):\n    a: int\n    b: int",
        "item = Item('a', ['x'])",
        ("item.tags.append('y')\ncolor, pair = Color.RED, Pair(1, 2)\nprint(item, Item('b') > item)", LEFT),
        "print(item, color is Color.RED, pair, isinstance(pair, Pair))",
    ],
    "aliases": [
        "a = [1]\nb = a\nnest = {'same': a}",
        ("a.append(2)", LEFT),
        "print(a, b, nest, a is b, nest['same'] is a)",
        ("b.append(3)", RIGHT),
        "a",
        "import numpy as np\nwhole = np.zeros(4)\npart = whole[1:3]",
        ("part += 1", LEFT),
        "print(whole, part, part.base is whole)",
        "other = np.ones(4)\ngrid = np.arange(6).reshape(2, 3)\ntime = [np.float64(1), other.dtype]",
        ("print(whole, grid.flags.owndata, grid.T.flags.f_contiguous)\ngrid += 1", LEFT),
        "print(grid, grid.flags.owndata, other, time)",
    ],
    "changes elsewhere": [
        "import numpy as np\nfrom sklearn.linear_model import LinearRegression\n"
        "x = np.arange(4.0).reshape(-1, 1)\ny = 2 * x[:, 0] + 1\nmodel = LinearRegression()\nseen = []\ntable = {}",
        ("model.fit(x, y)\nseen.append('left')", LEFT),
        ("x[0] = 9\nseen.append('right')\ntable['k'] = seen", RIGHT),
        "print(model.coef_.round(6), seen, x[0], table, table['k'] is seen)",
        "seen += ['home']",
        ("seen[0] = seen[0].upper()\nprint(seen, table)", LEFT),
        "print(seen, table['k'])",
    ],
    "chains": [
        "x = 1",
        ("x = x + 1", LEFT),
        ("x = x * 10\ny = [x]", RIGHT),
        "print(x, y)",
        ("y = y + [x + 1]\nx", LEFT),
        "x, y",
    ],
    "rebinding": [
        "x = 'first'",
        ("print(x)", LEFT),
        "x = 'second'",
        ("print(x)", LEFT),
        ("x = 'third'", RIGHT),
        ("print(x)", LEFT),
        "for x in range(3):\n    pass",
        ("print(x)", RIGHT),
    ],
    "deletion": [
        "x = 1\ny = 2",
        ("print(x)\ndel x", LEFT),
        "x",
        ("x", RIGHT),
        "del y",
        ("y", LEFT),
        ("x = 5", LEFT),
        "x",
    ],
    "errors on a target": [
        "def fails(n):\n    return 1 / n",
        ("print('before')\nfails(0)", LEFT),
        ("def broken(:\n    pass", LEFT),
        ("nosuchname", RIGHT),
        ("try:\n    fails(0)\nexcept ZeroDivisionError as e:\n    raise RuntimeError('outer') from e", RIGHT),
        ("x = 7\nraise ValueError('after binding')", LEFT),
        "x",
        ("raise KeyboardInterrupt", LEFT),
        ("raise SystemExit(2)", LEFT),
        "print('alive')",
    ],
    "rich output": [
        ("%matplotlib inline\nimport matplotlib.pyplot as plt\nplt.plot([1, 2])\nplt.show()", LEFT),
        ("fig, ax = plt.subplots()\nax.bar([1], [2])\nprint('figure')", RIGHT),
        ("from IPython.display import HTML, display, clear_output\nh = display('one', display_id='d')\nh.update('two')", LEFT),
        ("print('gone')\nclear_output()\nprint('kept')\nHTML('<b>x</b>')", RIGHT),
        ("from tqdm import tqdm\nfor _ in tqdm(range(2)):\n    pass", LEFT),
        ("import pandas as pd\npd.DataFrame({'a': [1]})", RIGHT),
    ],
    "magics": [
        ("%%bash\necho from $0", LEFT),
        ("x = 4\n!echo {x} $x", RIGHT),
        ("lines = !printf 'a\\nb'\nlines", LEFT),
        "lines",
        ("%time x + 1", RIGHT),
        ("len?", LEFT),
        ("import asyncio\nawait asyncio.sleep(0)\nx = 'awaited'", LEFT),
        "x",
    ],
    "state of definitions": [
        "class Counter:\n    made = 0\n    seen = []\n    def __init__(self):\n        Counter.made += 1\n"
        "        self.seen.append(self.made)\n"
        "def remember(x, kept=[]):\n    kept.append(x)\n    return kept\n"
        "def ticked():\n    ticked.n += 1\n    return ticked.n\nticked.n = 0\nCounter.label = 'set'",
        ("one = Counter()\nprint(remember(1), ticked(), Counter.label)", LEFT),
        "two = Counter()\nprint(remember(2), ticked(), Counter.made, Counter.seen, one.seen is two.seen is Counter.seen)",
        ("Counter.label = 'left'\nCounter.twice = lambda self: 2 * self.made\nkept = remember(3)", LEFT),
        ("print(Counter.label, one.twice(), kept is remember(4), kept, ticked(), len(one.seen))", RIGHT),
        "del Counter.label\nkept.append('home')",
        ("print(remember(5), hasattr(Counter, 'label'), two.twice())", LEFT),
        "def ticked():\n    return 'new'\nclass Counter:\n    pass",
        ("print(ticked(), hasattr(Counter, 'made'), ticked.__dict__, type(one).made)", RIGHT),
    ],
    "definitions that must travel": [
        "from collections import namedtuple\nfrom contextlib import contextmanager\nfrom functools import singledispatch\n"
        "k = 1\ndef f(v=k):\n    return v\nk = 2\nPair = namedtuple('Pair', 'a b')\npair = Pair(1, [2])\n"
        "if k:\n    class Base:\n        kinds = []\n        def __init_subclass__(cls):\n            cls.kinds.append(cls)\n"
        "class Kid(Base):\n    def __init__(self):\n        self.v = k\nkid = Kid()\n"
        "@contextmanager\ndef within(t):\n    yield t + k\n"
        "@singledispatch\ndef shown(v):\n    return 'any'\n@shown.register(int)\ndef _(v):\n    return 'int'",
        ("print(f(), pair, Pair(3, 4), Kid.kinds == [Kid], isinstance(kid, Base), shown(1), shown(''))\n"
         "with within(1) as v:\n    print(v)\npair.b.append(kid)", LEFT),
        "print(pair.b[1] is kid, isinstance(pair, Pair), type(kid) is Kid, Kid.kinds == [Kid], f())",
        "class Base:\n    made = 'new'",
        ("print(Kid.__mro__[1] is Base, hasattr(Kid, 'made'), Base.made, Kid().v, type(kid) is Kid)", RIGHT),
        "class Bad(ValueError):\n    def __init__(self, code):\n        super().__init__(f'code {code}')\n        self.code = code\n"
        "try:\n    raise Bad(3)\nexcept Bad as error:\n    kept = error",
        ("print(kept, kept.code, type(kept) is Bad)", LEFT),
    ],
    "old versions do not come back": [
        "a = [1]\ntree = {'k': a}",
        ("tree['k'].append(2)", LEFT),
        "a = [9]",
        ("print(tree)", RIGHT),
        "print(tree, a)",
        ("print(a, tree['k'] is a)", LEFT),
        "n = 1\ncalls = {'f': lambda v: v + n}",
        ("n = 5", LEFT),
        "print(calls['f'](2))",
        "'home'",
        ("made = [1]\nmade", LEFT),
        "made.append(2)",
        "_",
    ],
    "comprehensions, walrus and scopes": [
        "k = 3\ndata = [1, 2]",
        ("squares = [k * k for k in data if (last := k)]\nprint(k, last)", LEFT),
        "print(squares, k, last)",
        ("def use():\n    global made\n    made = [k]\nuse()", RIGHT),
        "made",
        ("from math import *\nr = floor(pi * k)", LEFT),
        "r",
        ("if k > 100:\n    never = 1\nelse:\n    always = 1", RIGHT),
        "always",
        "never",
    ],
    "results": [
        ("40 + 2", LEFT),
        ("'none shown';", RIGHT),
        ("None", LEFT),
        "print('counted')",
    ],
}


@pytest.mark.parametrize("name", DATAFLOW)
def test_same_as_one_kernel(both, name):
    both(*DATAFLOW[name])


UNCARRIABLE = {
    "generator": ("g = (i for i in range(3))", "next(g)", "g", "generator"),
    "lock": ("import threading\nk = threading.Lock()", "k.locked()", "k", "lock"),
    "open file": ("f = open(__import__('os').devnull)", "f.read()", "f", "TextIOWrapper"),
    "database": ("import sqlite3\ndb = sqlite3.connect(':memory:')", "db.execute('select 1')", "db", "Connection"),
    "held inside": ("import threading\nbox = {'deep': [threading.Lock()]}", "box['deep']", "box", "lock"),
}


@pytest.mark.parametrize("name", UNCARRIABLE)
def test_uncarriable_value_fails_only_who_needs_it(start, targets, name):
    make, use, variable, kind = UNCARRIABLE[name]
    kernel = start()
    kernel.run(f"{make}\nplain = 5").ok()
    error = kernel.run(f"ran = open('ran', 'w')\n{use}", on(LEFT)).error
    assert f"`{variable}`" in error and kind in error and "home" in error and "left" in error, error
    assert not (Path(targets[LEFT]["workdir"]) / "ran").exists()
    assert kernel.run("plain + 1", on(LEFT)).ok().result == "6"
    kernel.run(use).ok()


def test_uncarriable_value_made_on_a_target(start, targets):
    kernel = start()
    kernel.run("g = (i for i in range(3))", on(LEFT)).ok()
    assert kernel.run("next(g)", on(LEFT)).ok().result == "0"
    error = kernel.run("next(g)").error
    assert "`g`" in error and "generator" in error and "left" in error, error
    assert kernel.run("next(g)", on(LEFT)).ok().result == "1"


def test_place_of_a_step(start, targets, tmp_path):
    targets.define(LEFT, env={"CELLFERRY_OWN": "yes"})
    kernel = start()
    kernel.run("import os, sys\nhere = os.getpid()").ok()
    run = kernel.run("print(os.getcwd(), sys.executable, os.environ.get('CELLFERRY_OWN'), os.getpid() != here)", on(LEFT))
    assert run.ok().text() == f"{tmp_path / 'left'} {sys.executable} yes True\n"
    assert kernel.run("print(os.environ.get('CELLFERRY_OWN'), os.getcwd())").ok().text() == f"None {tmp_path}\n"


def test_worker_is_kept_between_steps(start, targets):
    kernel = start()
    pids = [kernel.run("import os\nos.getpid()", on(target)).ok().result for target in (LEFT, RIGHT, LEFT, RIGHT)]
    assert pids[:2] == pids[2:] and pids[0] != pids[1]


def test_home_is_a_target(start, targets):
    kernel = start()
    assert kernel.run("import os\nos.getpid()").ok().result == kernel.run("os.getpid()", on("home")).ok().result


def test_output_is_live(start, targets, tmp_path):
    gate = tmp_path / "gate"
    kernel = start()
    run = kernel.send(
        "import os, sys, time\nprint('before', flush=True)\nprint('also', file=sys.stderr)\n"
        f"while not os.path.exists({str(gate)!r}):\n    time.sleep(0.01)\nprint('after')",
        on(LEFT),
    )
    kernel.read_printed(run, "before")
    kernel.read_printed(run, "also")
    assert run.reply is None and not run.idle
    gate.touch()
    kernel.finish(run)
    assert run.ok().text() == "before\nafter\n"


def test_big_output_and_values(start, targets):
    kernel = start()
    run = kernel.run("for n in range(100_000):\n    print(f'{n:08d}', 'x' * 91)", on(LEFT)).ok()
    assert len(run.text()) == 100_000 * 101
    kernel.run("import numpy as np\nmany = np.random.default_rng(0).random(12_500_000)").ok()
    kernel.run("total = float(many.sum()); many[0] = -1.0", on(LEFT)).ok()
    assert kernel.run("many[0], bool(abs(total - (many.sum() + 1 + 0.6369616873214543)) < 1e-3)").ok().result == "(np.float64(-1.0), True)"


def test_input_and_password(start, targets):
    kernel = start()
    run = kernel.run("name = input('who? ')\nprint('hello', name)", on(LEFT), answers=["Ada"]).ok()
    assert run.text() == "hello Ada\n"
    assert kernel.run("name").ok().result == "'Ada'"
    assert kernel.run("import getpass\ngetpass.getpass()", on(LEFT), answers=["secret"]).ok().result == "'secret'"
    assert "StdinNotImplementedError" in kernel.run("input()", on(LEFT)).error


@pytest.mark.parametrize("how", ["signal", "message"])
def test_interrupt(start, targets, how):
    kernel = start()
    kernel.run("import time\nkept = 1", on(LEFT)).ok()
    run = kernel.send("print('in')\ntime.sleep(60)", on(LEFT))
    queued = kernel.send("print('never')", on(RIGHT))
    kernel.read_printed(run, "in")
    if how == "signal":
        os.kill(kernel.pid, signal.SIGINT)
    else:
        kernel.request("interrupt_request", {}, channel="control")
    kernel.finish(run, queued, timeout=10)
    assert run.reply["content"]["ename"] == "KeyboardInterrupt"
    assert queued.status == "aborted"
    assert kernel.run("kept", on(LEFT)).ok().result == "1"


def test_error_aborts_steps_in_the_queue(start, targets, tmp_path):
    gate = tmp_path / "gate"
    kernel = start()
    failing = f"import os, time\nwhile not os.path.exists({str(gate)!r}):\n    time.sleep(0.01)\nraise ValueError('stop')"
    runs = [kernel.send(failing, on(LEFT))]
    runs += [kernel.send("ran = open('ran', 'w')", on(target)) for target in (RIGHT, LEFT)] + [kernel.send("1")]
    gate.touch()
    kernel.finish(*runs)
    assert [run.status for run in runs] == ["error", "aborted", "aborted", "aborted"]
    # The step on the other target may have begun ahead of its turn; but for its file nothing of it is left.
    assert not (tmp_path / LEFT / "ran").exists()
    for target in (LEFT, RIGHT):
        assert kernel.run("print('ran' in globals())", on(target)).ok().text() == "False\n"


def test_widget_lives_on_its_target(start, targets):
    kernel = start()
    run = kernel.run("import ipywidgets as w\nslider = w.IntSlider(value=3)\nslider", on(LEFT)).ok()
    (shown,) = run.of_type("execute_result")
    model = shown["content"]["data"]["application/vnd.jupyter.widget-view+json"]["model_id"]
    kernel.run("seen = []\nslider.observe(lambda c: seen.append(c['new']), 'value')", on(LEFT)).ok()
    kernel.request("comm_msg", {"comm_id": model, "data": {"method": "update", "state": {"value": 9}, "buffer_paths": []}})
    assert kernel.run("print(seen, slider.value)", on(LEFT)).ok().text() == "[9] 9\n"
    info = kernel.reply_to(kernel.request("comm_info_request", {"target_name": "jupyter.widget"}))
    assert model in info["content"]["comms"]


def test_killed_worker(start, targets):
    kernel = start()
    kernel.run("import os, sys\nhere = 1").ok()
    pid = kernel.run("there = 2\nos.getpid()", on(LEFT)).ok().result
    run = kernel.run("sys.__stderr__.write('last words\\n'); sys.__stderr__.flush()\nos.kill(os.getpid(), 9)", on(LEFT))
    assert "signal 9" in run.error and "left" in run.error and "last words" in run.error, run.error
    fresh = kernel.run("print(here)\nos.getpid()", on(LEFT)).ok()
    assert fresh.text() == "1\n" and fresh.result != pid
    # It is made again: see test_losses.
    assert kernel.run("there").ok().result == "2"


def test_exiting_worker(start, targets):
    kernel = start()
    run = kernel.run("import os\nos._exit(7)", on(LEFT))
    assert "7" in run.error and "left" in run.error, run.error
    assert kernel.run("1 + 1", on(LEFT)).ok().result == "2"


def test_killed_home_worker(start):
    kernel = start()
    run = kernel.run("import os\nos.kill(os.getpid(), 9)")
    assert "signal 9" in run.error and "home" in run.error, run.error
    assert kernel.run("1 + 1").ok().result == "2"


def agent_of(kernel, worker):
    """The agent that started process `worker`: its nearest ancestor below the kernel."""
    pid = worker
    while parent(pid) not in (kernel.pid, 0, 1):
        pid = parent(pid)
    assert parent(pid) == kernel.pid, f"{command_line(worker)} is not below the kernel"
    assert pid != worker, f"worker {command_line(worker)} has no agent between it and the kernel"
    return pid


def test_killed_agent(start, targets):
    kernel = start()
    worker = int(kernel.run("import os\nos.getpid()", on(LEFT)).ok().result)
    run = kernel.send("import time\nprint('in')\ntime.sleep(60)", on(LEFT, retry=0))
    kernel.read_printed(run, "in")
    os.kill(agent_of(kernel, worker), signal.SIGKILL)
    kernel.finish(run, timeout=20)
    assert "left" in run.error and "agent" in run.error, run.error
    wait_until(lambda: not alive(worker), 5, f"the end of worker {worker}, whose agent is dead")
    assert kernel.run("1 + 1", on(LEFT)).ok().result == "2"


def test_target_without_steps_is_not_started(start, targets, mark):
    kernel = start()
    kernel.run("1 + 1").ok()
    before = set(marked(mark))
    kernel.run("1 + 1", on(LEFT)).ok()
    assert set(marked(mark)) > before


WRONG = {
    "unknown target": ({"target": "lfet"}, ["workflow.target", "`lfet`", "`left`"]),
    "unknown key": ({"target": "left", "targt": "x"}, ["workflow.targt", "`target`"]),
    "number for a target": ({"target": 3}, ["workflow.target"]),
    "list for the workflow": (["left"], ["workflow"]),
    "word for a list": ({"target": "left", "step": {"in": "x"}}, ["workflow.step.in"]),
    "word for a switch": ({"target": "left", "step": {"autoin": "yes"}}, ["workflow.step.autoin"]),
    "unknown key of a step": ({"target": "left", "step": {"inn": ["x"]}}, ["workflow.step.inn", "`in`"]),
    "resources": ({"target": "left", "resources": {"gpus": 1}}, ["workflow.resources.gpus", "has no GPUs"]),
    "key of resources": ({"target": "left", "resources": {"cpu": 2}}, ["workflow.resources.cpu", "`cpus`"]),
    "amount without a unit": ({"target": "left", "resources": {"memory": 16}}, ["workflow.resources.memory", '"16G"']),
    "scatter": ({"target": "left", "step": {"scatter": {"items": ["x"]}}}, ["scatter", "not supported yet"]),
    "word for a number of tries": ({"target": "left", "retry": "often"}, ["workflow.retry"]),
    "cache": ({"target": "left", "cache": True}, ["workflow.cache", "not supported yet"]),
    "when": ({"target": "left", "when": "x > 1"}, ["workflow.when", "not supported yet"]),
    "repeat": ({"target": "left", "repeat": {"while": "x", "max": 2}}, ["workflow.repeat", "not supported yet"]),
    "language": ({"target": "left", "language": "rust"}, ["workflow.language", "not supported yet"]),
    "environment": (
        {"target": "left", "step": {"in": [{"name": "t", "type": "env"}]}},
        ["workflow.step.in", "not supported yet"],
    ),
}


def test_wrong_metadata_never_runs_the_cell(start, targets, tmp_path):
    """All in one kernel, which lives through it."""
    kernel = start()
    ran = tmp_path / "ran"
    wrong = []
    for name, (workflow, words) in WRONG.items():
        run = kernel.run(f"open({str(ran)!r}, 'w')", {"workflow": workflow})
        if run.status != "error" or ran.exists():
            wrong.append(f"{name}: the cell ran")
            ran.unlink(missing_ok=True)
        elif missing := [word for word in words if word not in run.error]:
            wrong.append(f"{name}: {run.error!r} lacks {missing}")
    assert not wrong, "\n".join(wrong)
    assert kernel.run("1 + 1", on(LEFT)).ok().result == "2"


def test_options_in_the_source(start, targets, tmp_path):
    kernel = start()
    where = "import os\nprint(os.path.basename(os.getcwd()))"
    assert kernel.run(f"#| target: left\n#| echo: false\n{where}").ok().text() == "left\n"
    assert kernel.run(f"#| target: right\n{where}", on(LEFT)).ok().text() == "right\n"
    assert kernel.run(f"{where}\n#| target: left").ok().text() == f"{tmp_path.name}\n"
    for source, words in (
        ("#| target: lfet", ["`lfet`", "`left`"]),
        ("#| tarqet: left", ["`tarqet`", "`target`"]),
        ("#| target: [left", ["target"]),
        ("#| target: left\n#| cache: true", ["cache", "not supported yet"]),
    ):
        error = kernel.run(f"{source}\nopen('ran', 'w')").error
        assert all(word in error for word in words), error
    assert not (tmp_path / "ran").exists()


def test_declared_names(start, targets):
    kernel = start()
    kernel.run("x, y = 1, 2").ok()
    step = {"step": {"in": ["y"], "out": ["z"]}}
    assert kernel.run("z = eval('y')\nz", on(LEFT, **step)).ok().result == "2"
    assert kernel.run("z").ok().result == "2"
    assert kernel.run("x", on(RIGHT, step={"autoin": False})).error.startswith("NameError")


def test_changed_targets_are_read_again(start, targets):
    kernel = start()
    assert "`newer`" in kernel.run("1", on("newer")).error
    targets.define("newer", workdir=targets[LEFT]["workdir"])
    assert kernel.run("1", on("newer")).ok().result == "1"


def test_broken_target_file(start, targets, tmp_path):
    (tmp_path / "cellferry.toml").write_text("[targets.left\n")
    kernel = start()
    assert "cellferry.toml" in kernel.run("1", on(LEFT)).error
    assert kernel.run("2").ok().result == "2"


def test_missing_python(start, targets, tmp_path):
    targets.define(LEFT, python=tmp_path / "nosuch" / "python")
    kernel = start()
    error = kernel.run("1", on(LEFT)).error
    assert str(tmp_path / "nosuch" / "python") in error and "left" in error, error
    assert kernel.run("2", on(RIGHT)).ok().result == "2"


def test_python_without_ipykernel(start, targets, tmp_path):
    import venv

    venv.create(tmp_path / "bare", symlinks=True, with_pip=False)
    python = tmp_path / "bare" / "bin" / "python"
    targets.define(LEFT, python=python)
    kernel = start()
    error = kernel.run("1", on(LEFT)).error
    assert f"{python} -m pip install ipykernel" in error and "left" in error, error
    assert kernel.run("2").ok().result == "2"


def test_unwritable_workdir(start, targets, tmp_path):
    """A file where the folder should be stops every user; missing rights stop all but root."""
    (tmp_path / "blocked").write_text("in the way")
    targets.define(LEFT, workdir=tmp_path / "blocked" / "inside")
    targets.define(RIGHT, workdir="/proc/cellferry-cannot")
    kernel = start()
    for target, path in ((LEFT, tmp_path / "blocked" / "inside"), (RIGHT, "/proc/cellferry-cannot")):
        error = kernel.run("1", on(target)).error
        assert str(path) in error and target in error, error
    if getpass.getuser() != "root":
        (tmp_path / "closed").mkdir(mode=0o500)
        targets.define("closed", workdir=tmp_path / "closed")
        assert str(tmp_path / "closed") in kernel.run("1", on("closed")).error
    assert kernel.run("2").ok().result == "2"


def test_metadata_from_the_notebook_file(start, targets, tmp_path):
    """Clients that send no metadata: the cell is found by its place and exact source, also among equal ones."""
    import nbformat

    where = "import os\nos.path.basename(os.getcwd())"
    made = notebook(where, (where, LEFT), "# between", (where, RIGHT), where)
    path = tmp_path / "from-file.ipynb"
    nbformat.write(made, path)
    kernel = start(env={**os.environ, "CELLFERRY_NOTEBOOK": str(path)})
    results = [kernel.run(cell.source) for cell in made.cells]
    found = [run.ok().result for run in results if run.of_type("execute_result")]
    assert found == [repr(tmp_path.name), "'left'", "'right'", repr(tmp_path.name)]


def test_metadata_by_cell_id(start, targets, tmp_path):
    import nbformat

    where = "import os\nos.path.basename(os.getcwd())"
    made = notebook(where, (where, LEFT), (where, RIGHT))
    path = tmp_path / "by-id.ipynb"
    nbformat.write(made, path)
    kernel = start(env={**os.environ, "CELLFERRY_NOTEBOOK": str(path)})
    for number, place in ((2, "right"), (0, tmp_path.name), (1, "left")):
        assert kernel.run(where, {"cellId": f"cell-{number}"}).ok().result == repr(place)


def test_history_and_names_of_a_step(start, targets):
    kernel = start()
    kernel.run("first = 1").ok()
    kernel.run("second = 2", on(LEFT)).ok()
    reply = kernel.reply_to(
        kernel.request("history_request", {"hist_access_type": "tail", "n": 2, "raw": True, "output": False})
    )
    assert [entry[2] for entry in reply["content"]["history"]] == ["first = 1", "second = 2"]


def test_comm_and_requests_while_a_step_runs(start, targets, tmp_path):
    """kernel_info on control is answered while a step runs."""
    gate = tmp_path / "gate"
    kernel = start()
    run = kernel.send(
        f"import os, time\nprint('in')\nwhile not os.path.exists({str(gate)!r}):\n    time.sleep(0.01)", on(LEFT)
    )
    kernel.read_printed(run, "in")
    reply = kernel.reply_to(kernel.request("kernel_info_request", {}, channel="control"), channel="control", timeout=10)
    assert reply["content"]["status"] == "ok"
    gate.touch()
    kernel.finish(run)
    run.ok()


def test_one_session_in_all_headers(start, targets):
    """JupyterLab takes another session for a restarted kernel, and drops what it has not shown yet."""
    kernel = start()
    runs = [kernel.send("print(1)\n1", on(target) if target else None) for target in (LEFT, HOME, RIGHT)]
    for run in runs:
        kernel.finish(run)
    seen = [message for run in runs for _, message in run.messages] + [run.reply for run in runs]
    assert {message["header"]["session"] for message in seen} == {seen[0]["header"]["session"]}
    assert any(message["msg_type"] == "stream" for message in seen)


def test_only_what_is_read_moves(start, targets):
    """Arrays of one dtype share that, but no change can be made to it."""
    kernel = start()
    kernel.run("import numpy as np\na, b = np.ones(3), np.zeros(3)\nc = a[1:]").ok()
    kernel.run("a[0] = 2", on(LEFT)).ok()
    for name, place in (("a", LEFT), ("b", "home"), ("c", LEFT)):
        assert f"current on `{place}`" in kernel.run(f"%cellferry where {name}").ok().text()


def test_magics_of_the_kernel(start, targets):
    kernel = start()
    kernel.run("x = [1]\ny = 2").ok()
    kernel.run("x.append(y)", on(LEFT)).ok()
    told = kernel.run("%cellferry where x").ok().text()
    assert re.fullmatch(
        r"`x` \(list, about \d+ B\): version \d+, made by cell \[1\], current on `left`, another version on `home`\n", told
    ), told
    assert "current on `home`, `left`" in kernel.run("%cellferry where y").ok().text()
    assert kernel.run("%cellferry where z").ok().text() == "no cell has bound `z`\n"
    assert "did you mean `status`" in kernel.run("%cellferry statsu").error
    (drawn,) = kernel.run("%cellferry graph").ok().of_type("display_data")
    picture = drawn["content"]["data"]["image/svg+xml"]
    for text in ("x = [1]", "x.append(y)", "left", "done"):
        assert text in picture
    assert kernel.run("%cellferry status").ok().reply["content"]["execution_count"] == 2


def test_status_of_what_runs_and_waits(start, targets, tmp_path):
    kernel = start()
    gate = tmp_path / "gate"
    first = kernel.send(f"import os, time\nprint('on')\nwhile not os.path.exists({str(gate)!r}): time.sleep(0.01)", on(LEFT))
    second = kernel.send("'second'")
    third = kernel.send("seen = given", on(RIGHT))
    fourth = kernel.send("given = 1", on(LEFT))
    fifth = kernel.send("given + 1", on(RIGHT))
    wait_until(lambda: "running on left" in kernel.run("%cellferry status").text(), 20, "a running cell")
    told = kernel.run("%cellferry status").ok().text()
    assert "waiting for its turn on home: 'second'" in told
    assert "waiting for `given` on right: given + 1" in told
    kernel.read_until(lambda: "done, waiting for its turn on right: seen = given" in
                      kernel.run("%cellferry status").text())  # fmt: skip
    gate.touch()
    kernel.finish(first, second, third, fourth, fifth)
    assert "no cell runs or waits" in kernel.run("%cellferry status").ok().text()


def test_large_arrays_are_copied_once_or_go_through_shared_memory(start, targets):
    """Straight from the memory of the worker that holds them; where the system forbids that, another way."""
    kernel = start()
    kernel.run("import numpy as np\na = np.arange(1_000_000).reshape(1000, 1000).copy()\nb = a.copy(order='F')\nc = a.copy()").ok()
    told = "print(a.sum(), a.shape, a.flags.owndata, a.base is None, a.flags.writeable)\na[0, 0] = 7"
    assert kernel.run(told, on(LEFT)).ok().text() == "499999500000 (1000, 1000) True True True\n"
    assert kernel.run("print(b.sum(), b.flags.f_contiguous)\nb[0, 0] = 7", on(LEFT)).ok().text() == "499999500000 True\n"
    assert kernel.run("print(a[0, 0], b[0, 0], a.sum() == b.sum())").ok().text() == "7 7 True\n"
    kernel.run("import _cellferry\n_cellferry.c_library = lambda: None", on(LEFT)).ok()
    assert kernel.run("print(c.sum())\nc[0, 0] = 9", on(LEFT)).ok().text() == "499999500000\n"
    assert kernel.run("print(c[0, 0], a[0, 0])").ok().text() == "9 7\n"
