"""`%cellferry release`: workers are given back, what only they hold comes home, and what cannot is told."""

import sys

import nbformat
import pytest
from client import on
from faults import agents, begin, end
from processes import wait_until

pytestmark = [pytest.mark.cellferry, pytest.mark.timeout(200)]
both = pytest.mark.parametrize("hosts", ["russh", "openssh"], indirect=True)

NODE1, NODE2, BESIDE = on("node1"), on("node2"), on("beside")
RELEASE = "%cellferry release"


def where(kernel, name):
    return kernel.run(f"%cellferry where {name}").ok().text()


def ended(bed, *hosts):
    """Waits until no agent is left on these hosts."""
    wait_until(lambda: not any(agents(bed, host) for host in hosts), 20, f"no agent on {hosts}")


@both
def test_values_come_home_as_they_were_with_what_they_share(bed, hosts, kernel):
    kernel.run(
        "import numpy as np\nclass Thing:\n    pass\nthing = Thing()\nthing.items = rows = [1]\n"
        "base = np.arange(3_000_000)\nview = base[::2]\nhidden = lambda: rows",
        NODE1,
    ).ok()
    kernel.run("other = [2]", NODE2).ok()
    released = kernel.run(f"{RELEASE} node1").ok()
    assert released.text().startswith("released node1: 1 worker; 5 values (")
    assert released.text().endswith(" MB) were brought home\n")
    assert released.reply["content"]["execution_count"] == 2  # it does not count
    ended(bed, "node1")
    assert agents(bed, "node2")
    kernel.run("rows.append(2)\nbase[0] = 7").ok()
    seen = kernel.run("print(thing.items is rows, hidden() is rows, view[0], view.base is base, type(thing) is Thing)")
    assert seen.ok().text() == "True True 7 True True\n"
    # The next cell there starts anew.
    assert kernel.run("print(thing.items, len(base), other)", NODE1).ok().text() == "[1, 2] 3000000 [2]\n"


def test_all_far_targets_and_then_nothing(bed, hosts, kernel):
    hosts["beside"] = {"type": "local", "python": sys.executable}
    hosts.define("node1")
    kernel.run("a = [1]", NODE1).ok()
    kernel.run("b = [a]", NODE2).ok()
    kernel.run("c = [b]", BESIDE).ok()
    released = kernel.run(RELEASE).ok().text()
    assert released == "released node1: 1 worker\nreleased node2: 1 worker\n"
    ended(bed, "node1", "node2")
    assert "current on `beside`" in where(kernel, "a")
    assert kernel.run(RELEASE).ok().text() == "nothing to release\n"
    assert kernel.run(f"{RELEASE} node1").ok().text() == "nothing to release\n"
    assert kernel.run(f"{RELEASE} beside").ok().text().startswith("released beside: 1 worker; 3 values (")
    assert kernel.run("print(a, b, c, c[0] is b, b[0] is a)").ok().text() == "[1] [[1]] [[[1]]] True True\n"
    assert "`home` holds the notebook's own values" in kernel.run(f"{RELEASE} home").error
    assert "did you mean `node1`" in kernel.run(f"{RELEASE} nod1").error


def test_what_cannot_be_carried(bed, hosts, kernel):
    """It is made again by its steps, or lost if they are not run again unasked; the rest comes home."""
    kernel.run("exec('pass')\nlost = (k for k in range(3))\nfound = [1]", NODE1).ok()
    kernel.run("again = (k * k for k in range(3))\nnext(again)", NODE1).ok()
    released = kernel.run(f"{RELEASE} node1").ok().text().splitlines()
    assert released[0].startswith("released node1: 1 worker; 1 value (")
    assert released[1].startswith("`again` (generator) could not be brought home, and is made again when a cell needs it: ")
    assert released[2].startswith("`lost` (generator) could not be brought home, and is lost: ")
    assert all("generator" in line.split(": ", 1)[1] for line in released[1:])
    ended(bed, "node1")
    assert kernel.run("found").ok().result == "[1]"
    failed = kernel.run("lost", NODE1).error
    assert failed.startswith("LostValue: `lost` (generator) is lost: only the worker of `node1` held it")
    assert "was given back" in failed and "generator" in failed and "run cell [1] again" in failed
    remade = kernel.run("list(again)", NODE1).ok()
    assert remade.result == "[1, 4]"
    assert "cell [2] was run again to make it" in remade.text("stderr")


def test_cells_that_wait(bed, hosts, kernel):
    """Those asked for before run as if nothing were to be released; those after it find a new worker."""
    kernel.run("import time, os", NODE1).ok()
    first = kernel.send("print('go', flush=True)\ntime.sleep(1.5)\nfirst = [os.getpid()]", NODE1)
    second = kernel.send("second = [os.getpid(), first]", NODE1)
    release = kernel.send(f"{RELEASE} node1")
    third = kernel.send("third = [os.getpid(), second]", NODE1)
    last = kernel.send("print(second[1] is first, third[1] is second, first[0] == second[0])")
    kernel.finish(first, second, release, third, last)
    assert release.ok().text().startswith("released node1: 1 worker")
    assert release.replied_at > second.replied_at
    assert last.ok().text() == "True True True\n"
    third.ok()
    # The old agent may still be ending when the next cell is asked for.
    before = kernel.run("first[0]").ok().result
    kernel.run(f"{RELEASE} node1").ok()
    assert kernel.run("print(os.getpid(), third[1] is second)", NODE1).ok().text().split()[1] == "True"
    assert kernel.run("os.getpid()", NODE1).ok().result != before


def test_a_long_cell_at_home_does_not_hold_it_up(bed, hosts, kernel):
    kernel.run("import numpy as np\nbase = np.arange(200_000)\nview = base[1:]\nrows = [base]", NODE1).ok()
    long = kernel.send("import time\nprint('go', flush=True)\ntime.sleep(120)")
    kernel.read_printed(long, "go")
    assert kernel.run(f"{RELEASE} node1", timeout=30).ok().text().startswith("released node1: 1 worker; 3 values (")
    ended(bed, "node1")
    assert long.reply is None
    kernel.interrupt()
    kernel.finish(long)
    kernel.run("base[1] = 9").ok()
    assert kernel.run("print(view[0], rows[0] is base, view.base is base)").ok().text() == "9 True True\n"


def test_a_notebook_whose_cells_are_looked_ahead_for(bed, hosts, start, tmp_path, monkeypatch):
    """What comes after the release is not done ahead of it, on workers that go."""
    sources = [
        "#| target: node1\nimport os\na = [os.getpid()]",
        "import time\ntime.sleep(1)",
        f"{RELEASE} node1",
        "#| target: node1\nb = [os.getpid(), a]",
        "print(b[1] is a, b[0] != a[0])",
    ]
    path = tmp_path / "book.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in sources]), path)
    monkeypatch.setenv("CELLFERRY_NOTEBOOK", str(path))
    kernel = start()
    runs = [kernel.run(source).ok() for source in sources]
    assert runs[2].text().startswith("released node1: 1 worker; 1 value (")
    assert runs[4].text() == "True True\n"


def test_a_release_that_is_interrupted_goes_on(bed, hosts, kernel):
    kernel.run("import numpy as np\nlarge = np.ones(30_000_000)\nsmall = [1]", NODE1).ok()
    release = kernel.send(f"{RELEASE} node1")
    reader = kernel.send("print(large.sum(), small)")
    kernel.interrupt()
    kernel.finish(release, reader)
    assert release.ok().text().startswith("released node1: 1 worker; 2 values (240 MB)")
    assert kernel.run("print(large.sum(), small)").ok().text() == "30000000.0 [1]\n"


@both
def test_a_link_that_breaks_meanwhile(bed, hosts, kernel):
    kernel.run("import numpy as np\nlarge = np.ones(20_000_000)\nsmall = [1]", NODE1).ok()
    begin(bed, "node1", "sshd killed")
    release = kernel.send(f"{RELEASE} node1")
    end(bed, "node1", "sshd killed")
    kernel.finish(release)
    assert release.ok().text().startswith("released node1: 1 worker; 2 values (160 MB)")
    ended(bed, "node1")
    assert kernel.run("print(large.sum(), small)").ok().text() == "20000000.0 [1]\n"
