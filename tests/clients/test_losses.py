"""Workers that die: their steps run again, what only they held is made again, and nothing is shown twice."""

import os
import signal

import pytest
from client import on
from processes import command_line, parent

pytestmark = pytest.mark.cellferry

LEFT, RIGHT = on("left"), on("right")


@pytest.fixture
def ran(tmp_path, monkeypatch):
    """Notes in a file how often cells run: `ran.by(name)` begins a source, `ran.times(name)` counts."""
    path = tmp_path / "ran.txt"
    path.touch()
    monkeypatch.setenv("RAN", str(path))

    class Ran:
        @staticmethod
        def by(name):
            return f"__import__('pathlib').Path(__import__('os').environ['RAN']).open('a').write('{name}\\n')\n"

        @staticmethod
        def times(name):
            return path.read_text().split().count(name)

    return Ran()


@pytest.fixture
def kernel(ran, targets, start):
    return start()


def kill(kernel, *places):
    """Kills the workers of these targets, all at once."""
    pids = [int(kernel.run("__import__('os').getpid()", place).ok().result) for place in places]
    for pid in pids:
        os.kill(pid, signal.SIGKILL)


def test_a_lost_value_is_made_again_and_only_that(kernel, ran):
    kernel.run("base = 3").ok()
    kernel.run(ran.by("x") + "print('making')\nx = [base]", LEFT).ok()
    kernel.run(ran.by("other") + "other = 5", LEFT).ok()
    kill(kernel, LEFT)
    run = kernel.run("x").ok()
    assert run.result == "[3]" and run.text() == ""
    assert run.text("stderr") == "Cellferry: `x` was lost with the worker of `left`; cell [2] was run again to make it\n"
    assert run.reply["content"]["execution_count"] == 5
    assert (ran.times("x"), ran.times("other")) == (2, 1)
    # Now somebody has it.
    assert kernel.run("x", RIGHT).ok().result == "[3]"
    assert ran.times("x") == 2
    assert kernel.run("other", LEFT).ok().result == "5"


def test_a_chain_of_changes_and_aliases(kernel, ran):
    """What the cells that made and changed it did is done again, in order; what shares objects still does."""
    kernel.run(ran.by("one") + "x = []\ny = {'same': x}", LEFT).ok()
    kernel.run(ran.by("two") + "x.append(1)", LEFT).ok()
    kernel.run(ran.by("look") + "print(x)", LEFT).ok()
    kernel.run(ran.by("three") + "x.append(len(x))", LEFT).ok()
    kill(kernel, LEFT)
    run = kernel.run("print(x, y, y['same'] is x)", RIGHT).ok()
    assert run.text() == "[1, 1] {'same': [1, 1]} True\n"
    assert "cells [1], [2], [4] were run again" in run.text("stderr")
    assert [ran.times(name) for name in ("one", "two", "look", "three")] == [2, 2, 1, 2]
    kernel.run("y['same'].append(9)").ok()
    assert kernel.run("x", LEFT).ok().result == "[1, 1, 9]"


def test_targets_that_die_together(kernel, ran):
    kernel.run(ran.by("x") + "import numpy as np\nx = np.arange(200_000)", LEFT).ok()
    kernel.run(ran.by("y") + "y = x * 2", RIGHT).ok()
    kernel.run(ran.by("z") + "def f(a):\n    return a[-1] + shift\nshift = 1\nz = f(y)", LEFT).ok()
    kill(kernel, LEFT, RIGHT)
    assert kernel.run("print(z, y.sum())").ok().text() == "399999 39999800000\n"
    assert [ran.times(name) for name in "xyz"] == [2, 2, 2]


def test_a_step_at_home(kernel, ran):
    kernel.run(ran.by("x") + "x = [1]", on("home")).ok()
    kill(kernel, on("home"))
    # A plain cell that the dying worker may have begun is not run again.
    while "held by nobody" not in kernel.run("%cellferry where x").ok().text():
        pass
    assert kernel.run("x").ok().result == "[1]"
    assert ran.times("x") == 2


def test_results_are_made_again(kernel):
    kernel.run("[4]", LEFT).ok()
    kill(kernel, LEFT)
    assert kernel.run("print(_1)").ok().text() == "[4]\n"


def test_what_is_no_step_is_not_run_again(kernel, ran):
    kernel.run(ran.by("base") + "base = [1]").ok()
    kernel.run("y = base[0] + 1", LEFT).ok()
    kernel.run("base = [10]").ok()
    kill(kernel, LEFT)
    error = kernel.run("y").error
    assert error.startswith("LostValue") and "`y`" in error and "cell [2]" in error and "cell [1] is no step" in error, error
    assert ran.times("base") == 1
    # What does not surely read it runs.
    assert kernel.run("if base == 5:\n    y\nbase[0]").ok().result == "10"


def test_a_definition_does_not_come_without_what_was_set_on_it(kernel):
    kernel.run("def remember(v, kept=[]):\n    kept.append(v)\n    return kept", RIGHT).ok()
    kernel.run("remember(globals().get('absent', 1))", LEFT).ok()
    kill(kernel, LEFT)
    for reader in ("remember(2)", "if 1 > 2:\n    remember(2)"):
        error = kernel.run(reader).error
        assert error.startswith("LostValue") and "`remember`" in error and "may use any name" in error, error
    assert kernel.run("globals().get('absent')").ok()
    kernel.run("def remember(v, kept=[]):\n    kept.append(v)\n    return kept").ok()
    assert kernel.run("remember(2)", LEFT).ok().result == "[2]"


def test_what_asked_for_input_is_not_asked_again(kernel):
    kernel.run("name = input('name? ')", LEFT, answers=["Ada"]).ok()
    kill(kernel, LEFT)
    error = kernel.run("name").error
    assert error.startswith("LostValue") and "asked for input" in error, error


def test_an_error_while_it_is_made_again(kernel, tmp_path):
    (tmp_path / "data").write_text("7")
    kernel.run(f"import pathlib\nx = int(pathlib.Path({str(tmp_path / 'data')!r}).read_text())", LEFT).ok()
    kill(kernel, LEFT)
    (tmp_path / "data").unlink()
    error = kernel.run("x + 1").error
    assert error.startswith("LostValue") and "FileNotFoundError" in error, error
    (tmp_path / "data").write_text("8")
    assert kernel.run("x + 1").ok().result == "9"


# The first time it says who it is and waits to be killed.
ONCE = """
import os, time
ran = open(os.environ['RAN']).read().split().count('step')
print('one', flush=True)
print({told}, flush=True)
if ran == 1:
    open(os.environ['RAN'] + '.pid', 'w').write(f'{{os.getpid()}}\\n')
    time.sleep(600)
print('two')
"""


def killed_once(kernel, ran, source, printed):
    """Runs a step whose worker is killed after it has printed something."""
    run = kernel.send(ran.by("step") + source, LEFT)
    path = os.environ["RAN"] + ".pid"

    def waits():
        return printed in run.text() and os.path.exists(path) and open(path).read().endswith("\n")

    kernel.read_until(waits)
    os.kill(int(open(path).read()), signal.SIGKILL)
    kernel.finish(run)
    assert ran.times("step") == 2
    return run.ok()


def test_a_step_runs_again_and_shows_nothing_twice(kernel, ran):
    run = killed_once(kernel, ran, ONCE.format(told="'same'"), "same\n")
    assert run.text() == "one\nsame\ntwo\n"
    assert not run.of_type("clear_output") and len(run.of_type("execute_input")) == 1
    assert "runs again" in run.text("stderr") and "signal 9" in run.text("stderr")


def test_a_step_that_shows_something_else_the_second_time(kernel, ran):
    run = killed_once(kernel, ran, ONCE.format(told="'run', ran"), "run 1\n")

    def kept(name):
        return "".join(output["text"] for output in run.outputs() if output.get("name") == name)

    assert kept("stdout") == "one\nrun 2\ntwo\n"
    assert kept("stderr").count("runs again") == 1


@pytest.mark.parametrize(("retry", "times"), [(None, 2), (0, 1), (2, 3)])
def test_a_step_that_is_always_killed(kernel, ran, retry, times):
    more = {} if retry is None else {"retry": retry}
    run = kernel.run(ran.by("step") + "import os\nos.kill(os.getpid(), 9)", on("left", **more))
    assert run.error.startswith("WorkerDied") and "signal 9" in run.error, run.error
    assert (f"tried {times} times" in run.error) == (times > 1)
    assert ran.times("step") == times
    assert kernel.run("1 + 1", LEFT).ok().result == "2"


def test_what_ends_itself_is_not_run_again(kernel, ran):
    run = kernel.run(ran.by("step") + "import os\nos._exit(7)", LEFT)
    assert "exit code 7" in run.error and ran.times("step") == 1


def test_a_killed_agent(kernel):
    worker = int(kernel.run("x = 4\n__import__('os').getpid()", LEFT).ok().result)
    agent = parent(worker)
    while parent(agent) != kernel.pid:
        agent = parent(agent)
    assert "agent" in command_line(agent)
    os.kill(agent, signal.SIGKILL)
    assert kernel.run("x").ok().result == "4"


def test_a_plain_cell_is_not_run_again(kernel, ran):
    run = kernel.run(ran.by("plain") + "import os\nos.kill(os.getpid(), 9)")
    assert "signal 9" in run.error and ran.times("plain") == 1
