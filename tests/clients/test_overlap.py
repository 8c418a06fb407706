"""Steps overlap wherever the data allows, and nobody can tell from the results.

That cells really run at the same time is shown by steps that wait for each other: run one after another they would fail."""

import subprocess
import sys
import textwrap

import nbformat
import pytest
from client import on
from compare import notebook
from processes import command_line, marked, wait_until

pytestmark = pytest.mark.cellferry

# `meet(n)` returns when n cells are in it at the same time; each leaves a file of its own.
MEET = textwrap.dedent(
    """
    import os, time, uuid
    def meet(n, round):
        folder = os.path.join(os.environ["MEETING"], round)
        os.makedirs(folder, exist_ok=True)
        open(os.path.join(folder, uuid.uuid4().hex), "w").close()
        deadline = time.monotonic() + 45
        while len(os.listdir(folder)) < n:
            assert time.monotonic() < deadline, "the others never came"
            time.sleep(0.01)
    """
)
# The first cell leaves the workers running, so that no deadline depends on how fast they start.
NAMES = ["one", "two", "three", "four"]


@pytest.fixture
def four(targets, tmp_path, monkeypatch):
    """Four targets, and a folder where cells meet."""
    monkeypatch.setenv("MEETING", str(tmp_path / "meeting"))
    (tmp_path / "meeting").mkdir()
    for name in NAMES:
        (tmp_path / name).mkdir()
        targets.define(name)
    return targets


def all_at_once(kernel, *cells):
    """Sends all cells as Run All does; returns their runs, done."""
    runs = [kernel.send(source, on(target) if target else None) for source, target in map(placed, cells)]
    kernel.finish(*runs, timeout=90)
    return runs


def placed(cell):
    return cell if isinstance(cell, tuple) else (cell, None)


def in_order(runs):
    """Fails unless everything about each cell came after everything about the one before."""
    spans = [(run.messages[0][0], run.messages[-1][0]) for run in runs]
    for (_, end), (begin, _) in zip(spans, spans[1:], strict=False):
        assert end <= begin
    for run in runs:
        states = [m["content"]["execution_state"] for m in run.of_type("status")]
        assert states == ["busy", "idle"]
        assert run.messages[0][1]["msg_type"] == run.messages[-1][1]["msg_type"] == "status"


INDEPENDENT = [
    MEET,
    *((f"print('{name} begins')\nmeet(4, 'all')\n{name} = {number}\nprint('{name} ends')\n{name}", name)
      for number, name in enumerate(NAMES)),
    "print(one + two + three + four)",
]  # fmt: skip
DIAMOND = [
    MEET + "seed = [1, 2, 3]",
    ("data = [k * 2 for k in seed]", "one"),
    *((f"meet(4, 'middle')\n{name} = sum(data) + {number}", name) for number, name in enumerate(NAMES)),
    ("print(one, two, three, four)", "two"),
]


def test_run_all(four, kernel):
    runs = all_at_once(kernel, *INDEPENDENT)
    in_order(runs)
    for number, (name, run) in enumerate(zip(NAMES, runs[1:], strict=False)):
        assert run.ok().text() == f"{name} begins\n{name} ends\n" and run.result == str(number)
    assert runs[-1].ok().text() == "6\n"
    assert [run.reply["content"]["execution_count"] for run in runs] == [1, 2, 3, 4, 5, 6]


def test_a_diamond(four, kernel):
    runs = all_at_once(kernel, *DIAMOND)
    in_order(runs)
    assert runs[-1].ok().text() == "12 13 14 15\n"


def test_several_workers_of_one_target(four, kernel):
    four.define("one", workers=4)
    cells = [(source, "one" if target else None) for source, target in map(placed, INDEPENDENT)]
    runs = all_at_once(kernel, *cells)
    in_order(runs)
    assert runs[-1].ok().text() == "6\n"
    # There are no more than that, and the next steps find them.
    more = all_at_once(kernel, *((f"r{k} = {k}", "one") for k in range(8)), "print(r0, r7)")
    assert more[-1].ok().text() == "0 7\n"


def test_chains_overlap_whatever_names_they_share(four, kernel):
    def chain(target):
        yield "meet(2, 'first')\ntotal = 0\nfor i in range(3):\n    total += i\nkept_%s = [total]" % target, target
        yield f"meet(2, 'second')\nfor i in range(2):\n    kept_{target}.append(i)", target

    runs = all_at_once(kernel, MEET, *chain("one"), *chain("two"), "print(kept_one, kept_two, total, i)")
    in_order(runs)
    assert runs[-1].ok().text() == "[3, 0, 1] [3, 0, 1] 3 1\n"


CLIENTS = {
    "nbconvert": ["nbconvert", "--to", "notebook", "--execute", "--output", "done.ipynb", "n.ipynb"],
    "papermill": ["papermill", "n.ipynb", "done.ipynb"],
    "jupyter execute": ["jupyter", "execute", "--output=done.ipynb", "n.ipynb"],
}


@pytest.mark.parametrize("client", CLIENTS)
@pytest.mark.parametrize("cells", [INDEPENDENT, DIAMOND], ids=["independent", "diamond"])
def test_clients_that_ask_for_one_cell_after_the_other(client, cells, four, tmp_path, kernel_name):
    made = notebook(*cells)
    made.metadata["kernelspec"] = {"name": kernel_name, "display_name": kernel_name, "language": "python"}
    nbformat.write(made, tmp_path / "n.ipynb")
    done = subprocess.run(
        [sys.executable, "-m", *CLIENTS[client]], cwd=tmp_path, capture_output=True, text=True, timeout=110
    )
    assert done.returncode == 0, done.stderr
    executed = [cell for cell in nbformat.read(tmp_path / "done.ipynb", 4).cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in executed] == list(range(1, len(cells) + 1))
    printed = "".join(output.text for output in executed[-1].outputs)
    assert printed == ("6\n" if cells is INDEPENDENT else "12 13 14 15\n")
    if cells is INDEPENDENT:
        printed = "".join(output.text for output in executed[2].outputs if output.output_type == "stream")
        assert printed == "two begins\ntwo ends\n"


def test_what_was_expected_and_never_asked_for_leaves_no_trace(start, four, tmp_path, monkeypatch):
    path = tmp_path / "n.ipynb"
    later = "open(os.environ['MEETING'] + '/ran', 'w').close()\nsecret = 1\nprint('seen')"
    nbformat.write(notebook("import os", "x = 1", (later, "one"), "print(secret)"), path)
    monkeypatch.setenv("CELLFERRY_NOTEBOOK", str(path))
    kernel = start()
    kernel.run("import os").ok()
    wait_until(lambda: (tmp_path / "meeting" / "ran").exists(), 30, "it did not look ahead")
    run = kernel.run("print('secret' in globals())")
    assert run.ok().text() == "False\n"
    assert kernel.run("print(secret)").error == "NameError: name 'secret' is not defined"
    assert "seen" not in str(kernel.others)
    assert kernel.run("print('secret' in globals())\n%who_ls", on("one")).ok().text() == "False\n"


def test_a_notebook_that_changes_on_disk_is_read_again(start, four, tmp_path, monkeypatch):
    path = tmp_path / "n.ipynb"
    step = ("open(os.environ['MEETING'] + '/old', 'w').close()\nwhich = 'old'", "one")
    nbformat.write(notebook("import os", step, "print(which)"), path)
    monkeypatch.setenv("CELLFERRY_NOTEBOOK", str(path))
    kernel = start()
    kernel.run("import os").ok()
    wait_until(lambda: (tmp_path / "meeting" / "old").exists(), 30, "it did not look ahead")
    changed = ("which = 'new'", "two")
    nbformat.write(notebook("import os", changed, "import os; print(which, os.getcwd())"), path)
    kernel.run("which = 'new'").ok()
    assert kernel.run("import os; print(which, os.getcwd())").ok().text() == f"new {tmp_path}\n"


def test_a_client_that_tells_its_cells_is_not_run_ahead_of(start, four, tmp_path, monkeypatch):
    path = tmp_path / "n.ipynb"
    later = ("open(os.environ['MEETING'] + '/ran', 'w').close()", "one")
    nbformat.write(notebook("import os", later, "x = 1"), path)
    monkeypatch.setenv("CELLFERRY_NOTEBOOK", str(path))
    kernel = start()
    kernel.run("import os", {"cellId": "cell-0", "trusted": True}).ok()
    kernel.run("pass", on("one")).ok()
    assert not (tmp_path / "meeting" / "ran").exists()


SLOW = "import time; time.sleep(0.5)\n"


@pytest.mark.parametrize(
    "cells",
    {
        "through a call": ["def grow(v): v.append(9)\nx = [1]", (SLOW + "grow(x)", "one"), ("print(sum(x))", "two"), "x"],
        "through an alias": ["x = [1]; y = x", (SLOW + "y.append(2)", "one"), ("print(len(x))", "two"), "x, y, x is y"],
        "through a container": ["x = [1]; box = {'x': x}", (SLOW + "box['x'].append(2)", "one"), ("print(x)", "two"), "x"],
        "of a global": ["n = 1\ndef bump():\n    global n\n    n += 1", (SLOW + "bump()", "one"), ("print(n)", "two"), "n"],
        "of a class": ["class C:\n    seen = 0\n    def __init__(self): C.seen += 1", (SLOW + "c = C()", "one"),
                       ("print(C.seen)", "two"), "C.seen"],
        "of a view": ["import numpy as np\na = np.zeros(4)\nv = a[:2]", (SLOW + "np.add(v, 1, out=v)", "one"),
                      ("print(a.sum())", "two"), "a"],
        "by a closure": ["def make():\n    n = [0]\n    def up():\n        n.append(1)\n        return len(n)\n    return up, lambda: len(n)\n"
                         "up, see = make()", (SLOW + "print(up())", "one"), ("print(see())", "two"), "see()"],
        "by code unseen": ["x = [1]", (SLOW + "exec('x.append(2)')", "one"), ("print(x)", "two"), "x"],
        "escaped": ["x = [1]\nboxes = []", (SLOW + "boxes.append(x)", "one"), ("print(x)", "two"),
                    (SLOW + "boxes[0].append(5)", "one"), ("print(x)", "two"), "x, boxes"],
        "deleted": ["x = [1]\ndef drop():\n    global x\n    del x", (SLOW + "drop()", "one"), ("print(x)", "two")],
    }.items(),
    ids=lambda item: item[0],
)  # fmt: skip
def test_hidden_changes_give_the_serial_answer(cells, start, four):
    def outcome(name):
        kernel = start(name)
        runs = [kernel.send(source, on(target) if target and name != "python3" else None, stop_on_error=False)
                for source, target in map(placed, cells[1])]  # fmt: skip
        kernel.finish(*runs, timeout=90)
        return [(run.status, run.text(), run.reply["content"].get("evalue"),
                 [m["content"]["data"] for m in run.of_type("execute_result")]) for run in runs]  # fmt: skip

    assert outcome("cellferry") == outcome("python3")


@pytest.mark.parametrize("file", [True, False], ids=["from a file", "told"])
def test_after_keeps_an_order_that_no_name_shows(file, four, start, tmp_path, monkeypatch):
    made = notebook(
        "import os, time",
        ("time.sleep(0.5)\nopen(os.environ['MEETING'] + '/file', 'w').write('x')", "one"),
        ("print(open(os.environ['MEETING'] + '/file').read())", "two"),
        ("print('late')", "two"),
    )
    made.cells[1].metadata["tags"] = ["writes"]
    made.cells[2].metadata["workflow"]["after"] = ["writes"]
    made.cells[3].metadata["workflow"]["after"] = ["wrties"]
    path = tmp_path / "n.ipynb"
    nbformat.write(made, path)
    monkeypatch.setenv("CELLFERRY_NOTEBOOK", str(path))
    kernel = start()
    if file:
        runs = [kernel.run(cell.source) for cell in made.cells]
    else:
        runs = [kernel.send(cell.source, dict(cell.metadata) or {"trusted": True}) for cell in made.cells]
        kernel.finish(*runs)
    assert runs[2].ok().text() == "x\n"
    assert runs[3].error.startswith("MetadataError") and "did you mean `writes`" in runs[3].error


@pytest.mark.parametrize(
    "cells",
    [
        ["import random\nrandom.seed(4)", ("print(random.random())", "one"), ("print(random.random())", "two"), "print(random.random())"],
        [("import numpy as np\nnp.random.seed(4)\nprint(np.random.rand())", "one"), ("x = 1", "two"), "import numpy as np\nprint(np.random.rand())",
         (SLOW + "print(np.random.rand(2))", "one"), (SLOW + "print(x)", "two"), ("print(np.random.randint(0, 99, 5))", "two")],
        ["import random\ndef draw(): return random.choice(range(1000))\nrandom.seed(1)", (SLOW + "a = draw()", "one"), (SLOW + "b = draw()", "two"),
         "print(a, b, draw())"],
    ],
    ids=["random", "numpy", "function"],
)  # fmt: skip
def test_seeded_generators_go_on_wherever_they_are_drawn_from(cells, start, four):
    def printed(name):
        kernel = start(name)
        runs = [kernel.send(source, on(target) if target and name != "python3" else None) for source, target in map(placed, cells)]
        kernel.finish(*runs, timeout=90)
        return [run.ok().text() for run in runs]

    assert printed("cellferry") == printed("python3")


def test_a_hidden_change_is_told_once(four, kernel):
    first = ["def grow(v): v.append(9)\nx = [1]", ("pass", "one"), ("pass", "two")]
    all_at_once(kernel, *first)
    again = [(SLOW + "grow(x)", "one"), ("print(len(x))", "two")]
    runs = all_at_once(kernel, *again, *again)
    assert [run.ok().text() for run in runs] == ["", "2\n", "", "3\n"]
    notes = [run.text("stderr") for run in runs]
    assert "`x`" in notes[0] and "#| out: [x]" in notes[0] and not any(notes[1:]), notes


def test_an_error_stops_what_comes_after_it(four, kernel, tmp_path):
    own = "kept = [1]\ndef own(): pass\nclass C: n = 1"
    all_at_once(kernel, MEET, (own, "two"), ("pass", "one"))
    ahead = "kept.append(2)\nown.note = C.n = later = 2\nprint('never seen')\nopen(os.environ['MEETING'] + '/ran', 'w').close()"
    wait = "while not os.path.exists(os.environ['MEETING'] + '/ran'): time.sleep(0.01)\n1 / 0"
    runs = all_at_once(kernel, (wait, "one"), (ahead, "two"), "after = 1")
    assert [run.status for run in runs] == ["error", "aborted", "aborted"]
    assert not runs[1].text() and not runs[1].of_type("execute_input")
    # Also where it ran: nothing of it is left.
    check = "print(kept, 'later' in globals(), vars(own), C.n)"
    assert kernel.run(check, on("two")).ok().text() == "[1] False {} 1\n"
    assert kernel.run(check).ok().text() == "[1] False {} 1\n"
    assert kernel.run("1").reply["content"]["execution_count"] == 7


def test_errors_and_displays_of_a_step_ahead_stand_under_its_own_cell(four, kernel):
    ahead = (
        "from IPython.display import display, HTML\nimport sys\nprint('out')\nprint('err', file=sys.stderr)\n"
        "display(HTML('<b>x</b>'))\nmeet(2, 'both')\n{}['missing']"
    )
    runs = all_at_once(kernel, MEET, ("meet(2, 'both')\ntime.sleep(0.3)\nprint('first')", "one"), (ahead, "two"), "1")
    in_order(runs[:3])
    assert runs[1].ok().text() == "first\n"
    assert runs[2].error == "KeyError: 'missing'" and runs[2].text() == "out\n" and runs[2].text("stderr") == "err\n"
    assert [m["msg_type"] for m in runs[2].of_type("display_data", "error")] == ["display_data", "error"]
    assert runs[3].status == "aborted"


def test_an_interrupt_stops_what_runs_and_cancels_what_waits(four, kernel, mark):
    all_at_once(kernel, MEET, ("pass", "one"), ("pass", "two"))
    endless = "meet(2, 'both')\nprint('in it', flush=True)\nwhile True: time.sleep(0.01)"
    runs = [kernel.send(endless, on(target)) for target in ("one", "two")] + [kernel.send("after = 1")]
    kernel.read_printed(runs[0], "in it")
    kernel.interrupt()
    kernel.finish(*runs)
    assert [run.status for run in runs] == ["error", "aborted", "aborted"]
    assert runs[0].error.startswith("KeyboardInterrupt")
    # Both workers are free again.
    for target in ("one", "two"):
        assert kernel.run("print('after' in globals())", on(target)).ok().text() == "False\n"


# `interrupted()` returns when an interrupt has come to its process, unless that ends it; and at once the next time.
INTERRUPTED = textwrap.dedent(
    """
    import os, signal
    def interrupted():
        there = os.path.join(os.environ["MEETING"], "there")
        if os.path.exists(there):
            return
        reader, writer = os.pipe()
        os.set_blocking(writer, False)
        before = signal.set_wakeup_fd(writer)
        open(there, "w").close()
        os.read(reader, 1)
        signal.set_wakeup_fd(before)
    """
)
UNTIL_THERE = "while not os.path.exists(os.environ['MEETING'] + '/there'): time.sleep(0.01)\n"
# IPython loads what runs scripts when it is first used, and never tries that again; nor does it start a thread for them
# twice.
LOADS_SLOWLY = textwrap.dedent(
    """
    from IPython.core.magics.script import ScriptMagics
    def loads_slowly(self, shell, load=ScriptMagics.__init__):
        interrupted()
        load(self, shell)
    ScriptMagics.__init__ = loads_slowly
    """
)
STARTS_SLOWLY = textwrap.dedent(
    """
    from IPython.core.magics import script
    class StartsSlowly(script.Thread):
        def start(self):
            interrupted()
            super().start()
    script.Thread = StartsSlowly
    """
)


@pytest.mark.parametrize(
    ("prepare", "step"),
    [
        ("", "import slow_module\nprint(slow_module.done)"),
        (LOADS_SLOWLY, "%%bash\necho done"),
        (STARTS_SLOWLY, "%%bash\necho done"),
    ],
    ids=["module", "magic", "thread"],
)
def test_what_is_taken_back_leaves_nothing_half_done(prepare, step, four, kernel, tmp_path):
    (tmp_path / "slow_module.py").write_text(INTERRUPTED + "interrupted()\ndone = 'done'\n")
    all_at_once(kernel, "import os, time", (INTERRUPTED + prepare + "x = [1]", "one"))
    # The second cell wants `x` of the worker where the step runs ahead.
    runs = all_at_once(kernel, UNTIL_THERE, "print(x)", (step, "one"))
    assert [run.ok().text() for run in runs] == ["", "[1]\n", "done\n"]
    assert not any(run.text("stderr") for run in runs)


# Replies that come later than idle, as they may: only within a channel do messages keep their order.
LATE_REPLIES = textwrap.dedent(
    """
    import asyncio
    held = []
    class Held:
        def __init__(self, stream):
            self.stream = stream
        def send_multipart(self, parts, **options):
            held.append((self.stream, parts))
            asyncio.get_running_loop().call_later(0.2, release)
    def release():
        while held:
            stream, parts = held.pop(0)
            stream.send_multipart(parts)
    def hold(session):
        send = session.send
        def sends(stream, kind, *args, **options):
            if kind == "cellferry_reply":
                release()
            return send(Held(stream) if kind == "execute_reply" else stream, kind, *args, **options)
        session.send = sends
    def drop_x():
        import __main__
        del __main__.x
    """
)


def test_a_late_reply_of_what_is_taken_back_is_not_that_of_its_next_run(four, kernel, tmp_path):
    (tmp_path / "late.py").write_text(INTERRUPTED + LATE_REPLIES)
    hold = "import asyncio, late\nasyncio.get_running_loop().call_soon(late.hold, get_ipython().kernel.session)"
    all_at_once(kernel, (hold, "one"), "import os, time, late\nx = [1]", ("print(x)", "one"))
    step = "import late\nlate.interrupted()\ntry: print(x)\nexcept NameError: print('gone')"
    runs = all_at_once(kernel, UNTIL_THERE + "late.drop_x()", (step, "one"))
    assert [run.ok().text() for run in runs] == ["", "gone\n"]


def test_input_of_a_step_ahead_is_asked_for_in_its_turn(four, kernel):
    all_at_once(kernel, MEET, ("pass", "one"), ("pass", "two"))
    first = kernel.send("meet(2, 'both')\ntime.sleep(0.3)\nfirst = input('first? ')", on("one"), allow_stdin=True)
    second = kernel.send("meet(2, 'both')\nsecond = input('second? ')", on("two"), allow_stdin=True)
    asked = []

    def answer(prompt):
        asked.append(prompt)
        return prompt[:3]

    kernel.read_until(lambda: first.idle and second.idle and second.reply is not None, answer=answer)
    assert asked == ["first? ", "second? "]
    assert kernel.run("print(first, second)").ok().text() == "fir sec\n"


def test_a_worker_that_dies_ahead_of_its_turn_dies_under_its_own_cell(four, kernel):
    all_at_once(kernel, MEET, ("pass", "one"), ("pass", "two"))
    runs = all_at_once(kernel, ("time.sleep(0.5)\nprint('fine')", "one"), ("os._exit(3)", "two"))
    assert runs[0].ok().text() == "fine\n"
    assert runs[1].status == "error" and "two" in runs[1].error
    assert kernel.run("print(1)", on("two")).ok().text() == "1\n"


# A value that notes, in a file, each time it is pickled.
COUNTED = textwrap.dedent(
    """
    import os, functools
    class Counted:
        def __init__(self, size): self.data = bytearray(size)
        def __reduce__(self):
            with open(os.environ["MEETING"] + "/pickled", "a") as file: file.write("x")
            return functools.partial(Counted, len(self.data)), ()
    """
)


def pickled(tmp_path):
    path = tmp_path / "meeting" / "pickled"
    return len(path.read_text()) if path.exists() else 0


def test_a_value_made_and_read_on_one_worker_is_never_serialized(four, kernel, tmp_path):
    all_at_once(kernel, COUNTED, ("made = Counted(10)", "one"), ("print(len(made.data))", "one"), ("x = made", "one"))
    kernel.run("len(x.data)", on("one")).ok()
    assert pickled(tmp_path) == 0


def crossings(kernel, count):
    """How often values were carried for the last cells, as the graph of the session tells."""
    (shown,) = kernel.run("%cellferry graph").of_type("display_data")
    return shown["content"]["data"]["image/svg+xml"].count(" MB<")


@pytest.mark.parametrize("workers", [1, 3])
def test_a_value_read_by_many_steps_in_one_place_crosses_to_it_once(workers, four, kernel):
    four.define("one", workers=workers)
    reads = [(f"r{k} = int(np.sum(big)) + {k}", "one") for k in range(4)]
    runs = all_at_once(kernel, "import numpy as np\nbig = np.ones(400_000)", *reads, "print(r0, r1, r2, r3)")
    assert runs[-1].ok().text() == "400000 400001 400002 400003\n"
    assert crossings(kernel, 6) == 1
    # Somebody else reads it in between: it has not changed, so it stays where it is.
    all_at_once(kernel, ("print(len(big))", "two"), "print(len(big))", *reads, "print(len(big))", *reads)
    assert crossings(kernel, 17) == 2


def test_arrays_made_and_dropped_in_a_loop_take_no_more_memory(four, kernel, mark):
    kernel.run("import numpy as np", on("one")).ok()
    kernel.run("x = 0").ok()

    def resident():
        sizes = []
        for pid in marked(mark):
            if "ipykernel" in command_line(pid):
                with open(f"/proc/{pid}/status") as lines:
                    sizes += [int(line.split()[1]) // 1024 for line in lines if line.startswith("VmRSS:")]
        return sum(sizes)

    before = resident()
    for k in range(6):
        kernel.run(f"x = np.full(32_000_000, {k}.0)", on("one")).ok()
        kernel.run("mean = float(np.mean(x))", on("one")).ok()
        assert kernel.run("print(mean)").ok().text() == f"{k}.0\n"
        runs = all_at_once(kernel, ("y = np.full(32_000_000, 1.0)", "one"), ("m = float(np.mean(y))", "one"), "m")
        assert runs[-1].result == "1.0"
    # Two arrays of 256 MB are there at the end; while one is made, the old one is still there.
    assert resident() - before < 2 * 256 + 100
