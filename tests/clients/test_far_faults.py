"""Far hosts that fail while something is under way: nothing hangs, nothing finished is lost, nothing printed is missing or
doubled, and no process stays behind (the fixture `bed` looks at every host after each test).

`CELLFERRY_FAULTS=50` meets each fault that often, at other moments each time."""

import os
import signal
import time
from random import Random

import pytest
from bed import Unavailable
from client import on
from faults import FAULTS, LOSING, agents, begin, end, final_notices, kill, notices, workers

pytestmark = [pytest.mark.cellferry, pytest.mark.timeout(200)]

TIMES = int(os.environ.get("CELLFERRY_FAULTS", "2"))
PASSING = [what for what in FAULTS if what not in LOSING]
both = pytest.mark.parametrize("hosts", ["russh", "openssh"], indirect=True)
turns = pytest.mark.parametrize("turn", range(TIMES))

NODE1, NODE2 = on("node1"), on("node2")
DIGEST = "print(hashlib.sha256(memoryview({0})).hexdigest())"


def chance(*words):
    """The same random numbers each time for a turn of a test."""
    return Random(" ".join(map(str, words)))


def numbers(count):
    return "".join(f"{i}\n" for i in range(count))


def broken(bed, host, what, lasts):
    """One fault of a link from its beginning to its end."""
    begin(bed, host, what)
    time.sleep(lasts)  # as long as this is what is tried
    end(bed, host, what)


# --- the link


@turns
@pytest.mark.parametrize("what", PASSING)
def test_output_while_the_link_breaks(bed, hosts, kernel, what, turn):
    """In bursts, and on both streams; the link breaks twice."""
    random = chance("output", what, turn)
    kernel.run("import sys, time", NODE1).ok()
    count = 400
    run = kernel.send(
        f"for i in range({count}):\n    print(i, flush=i % 3 == 0)\n    print(i, file=sys.stderr)\n"
        "    time.sleep(0.3 if i % 40 == 0 else 0.005)",
        NODE1,
    )
    for _ in range(2):
        after = random.randrange(count // 2)
        kernel.read_until(lambda after=after: len(run.text().splitlines()) > after)
        broken(bed, "node1", what, random.choice([0.1, 1, 10]) * random.random())
    kernel.finish(run)
    assert run.status == "ok", run.error + run.text("stderr")[-1000:]
    assert run.text() == run.text("stderr") == numbers(count)
    assert set(final_notices(run)) <= {""}
    assert kernel.run("i", NODE1).ok().result == str(count - 1)


@both
@turns
def test_a_link_that_breaks_again_while_it_is_mended(bed, hosts, kernel, turn):
    """At any moment of the login and of what follows it."""
    random = chance("mended", turn)
    kernel.run("import time", NODE1).ok()
    run = kernel.send("for i in range(100):\n    print(i, flush=True)\n    time.sleep(0.1)", NODE1)
    kernel.read_printed(run, "3\n")
    for _ in range(12):
        begin(bed, "node1", "sshd killed")
        end(bed, "node1", "sshd killed")
        time.sleep(0.5 * random.random())
    kernel.finish(run)
    assert run.status == "ok", run.error + run.text("stderr")
    assert run.text() == numbers(100) and not run.text("stderr")
    assert set(final_notices(run)) <= {""}


@both
@pytest.mark.parametrize("what", ["cut", "drop"])
def test_the_cell_says_that_the_link_is_lost(bed, hosts, kernel, what):
    kernel.run("import time", NODE1).ok()
    run = kernel.send("for i in range(50):\n    print(i, flush=True)\n    time.sleep(0.25)", NODE1)
    kernel.read_printed(run, "5\n")
    begin(bed, "node1", what)
    kernel.read_until(lambda: "link to node1 lost" in notices(run), 30)
    end(bed, "node1", what)
    kernel.finish(run)
    assert run.ok().text() == numbers(50)
    assert final_notices(run) == [""]


@turns
@pytest.mark.parametrize("what", PASSING)
@pytest.mark.parametrize("way", ["there", "back", "across"])
def test_a_transfer_while_the_link_breaks(bed, hosts, kernel, way, what, turn):
    random = chance("transfer", way, what, turn)
    made, used = {"there": (None, NODE1), "back": (NODE1, None), "across": (NODE2, NODE1)}[way]
    for place in (made, used):
        kernel.run("import numpy as np, hashlib", place).ok()
    kernel.run("a = np.random.default_rng(1).integers(0, 255, 30_000_000, 'uint8')", made).ok()
    digest = kernel.run(DIGEST.format("a"), made).ok().text()
    bed.fault("rate", "node1", "100mbit")
    run = kernel.send(DIGEST.format("a"), used)
    time.sleep(2.5 * random.random())
    broken(bed, "node1", what, random.choice([0.1, 1, 10]) * random.random())
    kernel.finish(run, timeout=90)
    assert run.ok().text() == digest
    assert set(final_notices(run)) <= {""}
    assert kernel.run("print(a.sum())", made).ok().text() == kernel.run("print(a.sum())", used).ok().text()


@pytest.mark.parametrize("heals", [False, True])
def test_a_transfer_between_hosts_that_lose_each_other(bed, hosts, kernel, heals):
    """It takes the way through home, and the next one the direct way if there is one again."""
    kernel.run("import numpy as np, hashlib", NODE1).ok()
    kernel.run("import hashlib", NODE2).ok()
    kernel.run("a = np.random.default_rng(1).integers(0, 255, 30_000_000, 'uint8')", NODE1).ok()
    digest = kernel.run(DIGEST.format("a"), NODE1).ok().text()
    bed.fault("rate", "node1", "100mbit")
    run = kernel.send(DIGEST.format("a"), NODE2)
    time.sleep(1.5)
    bed.fault("apart", "node1", "node2")
    if heals:
        time.sleep(3)
        bed.fault("heal", "node1")
    kernel.finish(run, timeout=100)
    assert run.ok().text() == digest


def test_a_long_silent_cell_while_the_link_breaks(bed, hosts, kernel):
    """Two hosts at once, each in its own way, for longer than it takes to notice; they go on meanwhile."""
    source = (
        "open('begun', 'w').close()\nbegun{0} = time.time()\ntime.sleep(30)\ntook{0} = time.time() - begun{0}\nprint('done')"
    )
    for place in (NODE1, NODE2):
        kernel.run("import time", place).ok()
    runs = [kernel.send(source.format(node), on(f"node{node}")) for node in (1, 2)]
    for node in (1, 2):
        kernel.read_until(lambda node=node: bed.on(f"node{node}", "ls /home/alice/begun || true"))
    begin(bed, "node1", "cut")
    begin(bed, "node2", "drop")
    kernel.read_until(lambda: all(f"link to node{n + 1} lost" in notices(run) for n, run in enumerate(runs)), 30)
    end(bed, "node1", "cut")
    end(bed, "node2", "drop")
    kernel.finish(*runs)
    assert [run.ok().text() for run in runs] == ["done\n", "done\n"]
    assert [final_notices(run) for run in runs] == [[""], [""]]
    assert kernel.run("print(took1 < 31, took2 < 31)").ok().text() == "True True\n"


def test_a_cell_at_home_that_waits_for_a_value_is_told_too(bed, hosts, kernel):
    kernel.run("import numpy as np\na = np.ones(4_000_000)", NODE1).ok()
    bed.fault("rate", "node1", "50mbit")
    begin(bed, "node1", "drop")
    run = kernel.send("print(a.sum())")
    kernel.read_until(lambda: "link to node1 lost" in notices(run), 30)
    end(bed, "node1", "drop")
    kernel.finish(run)
    assert run.ok().text() == "4000000.0\n"
    assert final_notices(run) == [""]


def test_an_answer_and_an_interrupt_while_the_link_is_lost(bed, hosts, kernel):
    """They arrive after it."""
    run = kernel.send("print(input('name? '))\nimport time\nprint('go', flush=True)\ntime.sleep(60)", NODE1, allow_stdin=True)

    def answer(prompt):
        begin(bed, "node1", "cut")
        return "Ada"

    def is_lost():
        return final_notices(run)[:1] not in ([], [""])

    kernel.read_until(is_lost, 40, answer)
    end(bed, "node1", "cut")
    kernel.read_printed(run, "Ada\ngo\n")
    begin(bed, "node1", "cut")
    kernel.read_until(is_lost, 40)
    kernel.interrupt()
    end(bed, "node1", "cut")
    kernel.finish(run, timeout=30)
    assert run.error.startswith("KeyboardInterrupt")
    assert kernel.run("print(1)", NODE1).ok().text() == "1\n"


@both
def test_the_end_of_a_kernel_whose_host_is_out_of_reach(bed, hosts, start):
    """It does not wait for the host, whose agent ends by itself."""
    hosts.define("node1", patience="4s")
    kernel = start()
    kernel.run("import time", NODE1).ok()
    kernel.send("time.sleep(100)", NODE1)
    begin(bed, "node1", "drop")
    begun = time.monotonic()
    kernel.close()
    assert time.monotonic() - begun < 10
    bed.left_within = 20


def test_a_host_that_does_not_return_is_lost(bed, hosts, kernel):
    hosts.define("node1", patience="3s")
    kernel.run("import time\nx = 1", NODE1).ok()
    run = kernel.send("time.sleep(60)", on("node1", retry=0))
    kernel.read_until(lambda: run.of_type("execute_input"), 30)
    begin(bed, "node1", "cut")
    kernel.finish(run, timeout=40)
    bed.left_within = 20
    assert run.error.startswith("LocationLost:") and "`node1`" in run.error and "patience" in run.error
    assert kernel.run("print(2)").ok().text() == "2\n"


# --- what runs there


@both
@turns
@pytest.mark.parametrize("what", LOSING)
def test_a_step_runs_again_where_its_worker_is_lost(bed, hosts, kernel, what, turn):
    """The values that it needs are made again, too; those that are elsewhere stay; nothing is shown twice."""
    random = chance("again", what, turn)
    kernel.run("finished = [1, 2, 3]").ok()
    kernel.run("import time\nbase = [0]", NODE1).ok()
    kernel.run("base.append(sum(finished))", NODE1).ok()
    kernel.run("other = {'same': base}", NODE2).ok()
    run = kernel.send(
        "for i in range(60):\n    print(i, base[1], flush=True)\n    time.sleep(0.05)\ntotal = i + base[1]", NODE1
    )
    kernel.read_until(lambda: run.text().count("\n") > random.randrange(50))
    begin(bed, "node1", what)
    time.sleep(2 * random.random())
    end(bed, "node1", what)
    kernel.finish(run, timeout=90)
    assert run.ok().text() == "".join(f"{i} 6\n" for i in range(60))
    assert len(run.of_type("execute_input")) == 1 and not run.of_type("clear_output", "error")
    assert "runs again" in run.text("stderr")
    assert set(final_notices(run)) <= {""}
    assert kernel.run("print(total, finished, base, other)").ok().text() == "65 [1, 2, 3] [0, 6] {'same': [0, 6]}\n"
    assert kernel.run("total + 1", NODE1).ok().result == "66"


@turns
@pytest.mark.parametrize("what", LOSING)
def test_a_transfer_whose_holder_is_lost(bed, hosts, kernel, what, turn):
    """The value is made again and sent again, whole."""
    random = chance("holder", what, turn)
    kernel.run("import numpy as np, hashlib", NODE1).ok()
    kernel.run("a = np.random.default_rng(1).integers(0, 255, 30_000_000, 'uint8')", NODE1).ok()
    digest = kernel.run(DIGEST.format("a"), NODE1).ok().text()
    kernel.run("import hashlib", NODE2).ok()
    bed.fault("rate", "node1", "100mbit")
    run = kernel.send(DIGEST.format("a"), random.choice([NODE2, on("home")]))
    time.sleep(2 * random.random())
    begin(bed, "node1", what)
    time.sleep(random.random())
    end(bed, "node1", what)
    kernel.finish(run, timeout=120)
    assert run.ok().text() == digest


def test_a_killed_agent_is_told_and_replaced(bed, hosts, kernel):
    kernel.run("import time\nx = 5", NODE1).ok()
    run = kernel.send("print('go', flush=True)\ntime.sleep(60)", on("node1", retry=0))
    kernel.read_printed(run, "go")
    kill(bed, "node1", agents(bed, "node1"))
    kernel.finish(run, timeout=40)
    assert run.error.startswith("LocationLost:")
    assert kernel.run("print(x)", NODE1).ok().text() == "5\n"


@turns
def test_a_worker_that_the_system_kills_for_its_memory(bed, hosts, kernel, turn):
    """By the system's own memory killer; a step that needs too much each time fails, and says why."""
    kernel.run("x = [5]", NODE1).ok()
    try:
        bed.memory("node1", "400m")
    except Unavailable as reason:
        pytest.skip(str(reason))
    # What a process has said when it is killed is lost with it unless ZeroMQ's thread has had its turn, so the first
    # run goes on only once its output has been seen.
    wait = "import os, time\nwhile not os.path.exists(os.path.expanduser('~/seen')): time.sleep(0.01)"
    run = kernel.send(f"print('many', flush=True)\n{wait}\nmany = bytearray(800_000_000)", NODE1)
    kernel.read_printed(run, "many")
    bed.write("node1", "seen", "")
    kernel.finish(run)
    assert run.error.startswith("WorkerDied:") and "memory" in run.error and "tried 2 times" in run.error, run.error
    assert run.text() == "many\n"
    assert agents(bed, "node1") and len(workers(bed, "node1")) <= 1
    assert kernel.run("x", NODE1).ok().result == "[5]"


# --- the kernel


@both
@turns
@pytest.mark.parametrize("what", ["idle", "printing", "sending", "out of reach"])
def test_a_killed_kernel_leaves_nothing_on_any_host(bed, hosts, start, what, turn):
    random = chance("kernel", what, turn)
    for node in ("node1", "node2"):
        hosts.define(node, patience="3s", workers=2)
    kernel = start()
    kernel.run("import time\nx = 5", NODE1).ok()
    kernel.run("y = x", NODE2).ok()
    if what == "printing":
        for place in (NODE1, NODE1, NODE2):
            kernel.send("import time\nwhile True:\n    print('x' * 1000)\n    time.sleep(0.001)", place)
    elif what == "sending":
        kernel.run("big = b'x' * 300_000_000", NODE1).ok()
        bed.fault("rate", "node1", "100mbit")
        kernel.send("len(big)", NODE2)
    elif what == "out of reach":
        kernel.send("time.sleep(100)", NODE1)
        begin(bed, "node1", "drop")
    time.sleep(random.random())
    os.kill(kernel.pid, signal.SIGKILL)
    bed.left_within = 30
