"""A notebook without workflow metadata is the same as in ipykernel: outputs, errors, counts, replies."""

import os
import sys

import pytest
from processes import wait_until

NOTEBOOKS = {
    "streams": [
        "import sys\nprint('out')\nprint('err', file=sys.stderr)",
        "print('no newline', end='')\nprint(' and more')\nprint(b'\\xff', 0x10, None, True)",
        "sys.stdout.write('ünïcödé ✓ \\x1b[31mred\\x1b[0m\\r\\n')",
        "import os\nos.write(1, b'from the file descriptor\\n');\nsys.stdout.flush()",
        "",
        "   # only a comment",
    ],
    "results": [
        "1 + 1",
        "_ + 1",
        "(_1, _2, Out[2], In[1])",
        "x = 5",
        "x",
        "None",
        "'text'; 3;",
        "[i for i in range(2000)]",
        "{'nested': [1, {'a': (1, 2)}], 'set': {1}}",
        "class Page:\n    def _repr_html_(self):\n        return '<p>hi</p>'\n"
        "    def _repr_markdown_(self):\n        return '*hi*'\n    def __repr__(self):\n        return 'Page()'\nPage()",
        "class Bad:\n    def __repr__(self):\n        raise ValueError('no repr')\nBad()",
        "object()",
    ],
    "displays": [
        "from IPython.display import HTML, JSON, Latex, Markdown, SVG, Javascript, Image, clear_output, display\n"
        "display(HTML('<b>x</b>'), Markdown('# y'), JSON({'z': 1}), Latex('$a$'))",
        "handle = display('first', display_id='mine')\nprint('between')\nhandle.update(HTML('<i>second</i>'))",
        "handle.update('third')\nhandle.display('fourth')",
        "display({'application/x-own+json': {'a': 1}, 'text/plain': 'own'}, raw=True, metadata={'k': 'v'})",
        "print('gone'); clear_output(); print('kept')",
        "print('gone'); clear_output(wait=True); display('kept'); clear_output(wait=True)",
        "display('a', transient={'display_id': 'other'}); HTML('<hr>')",
    ],
    "matplotlib": [
        "%matplotlib inline\nimport matplotlib.pyplot as plt",
        "plt.plot([1, 2, 3])\nplt.title('t')",
        "fig, ax = plt.subplots(figsize=(2, 2))\nax.bar([1, 2], [3, 4])\nprint('before the figure')",
        "ax.set_title('later')\nfig",
        "plt.plot([1]); plt.show(); print('after'); plt.plot([2]); plt.show()",
    ],
    "pandas": [
        "import pandas as pd, numpy as np\ndf = pd.DataFrame({'a': [1, 2], 'b': ['x', None]})\ndf",
        "df.describe()",
        "df.style.format('{}').to_html()[:6]",
        "df.a",
        "np.arange(12.0).reshape(3, 4)",
        "df.c",
    ],
    "widgets": [
        "import ipywidgets as w\nslider = w.IntSlider(description='n', value=3)\nslider",
        "slider.value = 7\nout = w.Output()\nwith out:\n    print('into the widget')\nout",
        "seen = []\nslider.observe(lambda change: seen.append(change['new']), 'value')\nslider.value = 8\nseen",
        "w.interact(lambda k: k * 2, k=(0, 4));",
        "from tqdm.auto import tqdm\nfor _ in tqdm(range(3), desc='auto'):\n    pass",
    ],
    "tqdm": ["from tqdm import tqdm\nfor i in tqdm(range(3), desc='bar'):\n    pass\nprint(i)"],
    "magics": [
        "%%bash\necho from bash; echo to stderr >&2",
        "!echo shell; exit 3",
        "lines = !printf 'a\\nb\\n'\nlines",
        "_exit_code",
        "%time sum(range(10))",
        "%%time\nprint('timed')",
        "%who_ls",
        "%history -n 1-3",
        "%env CELLFERRY_PLAIN=1",
        "%%writefile made.txt\nhello",
        "%pycat made.txt",
        "%%capture held\nprint('captured')",
        "held.stdout",
        "%nosuchmagic",
        "%%nosuchcell\n1",
        "%cd -q ..\n%pwd",
        "%config InlineBackend.figure_format",
        "%load_ext nosuchextension",
    ],
    "help": ["len?", "def f(a, b=2):\n    'Adds.'\n    return a + b\nf?", "f??", "nosuch?", "?f", "*int*?"],
    "asynchronous": [
        "import asyncio\nawait asyncio.sleep(0)\nprint('awaited')",
        "async def double(x):\n    await asyncio.sleep(0)\n    return 2 * x\nawait asyncio.gather(double(1), double(2))",
        "async for n in (i async for i in aiter_()):\n    print(n)",
        "async with asyncio.timeout(5):\n    print('inside')",
        "task = asyncio.create_task(double(4))",
        "await task",
        "asyncio.run(double(1))",
    ],
    "errors": [
        "1 / 0",
        "def f(n):\n    return g(n)\ndef g(n):\n    return n['key']\nf(3)",
        "try:\n    int('x')\nexcept ValueError as e:\n    raise RuntimeError('outer') from e",
        "try:\n    int('x')\nexcept ValueError:\n    {}['missing']",
        "def broken(:\n    pass",
        "if True:\nprint(1)",
        "'unterminated",
        "nosuchname",
        "import nosuchmodule",
        "import json; json.loads('{')",
        "class Mine(Exception):\n    def __str__(self):\n        return 'mine ✓'\nraise Mine",
        "raise ExceptionGroup('both', [ValueError(1), TypeError(2)])",
        "raise KeyboardInterrupt",
        "raise SystemExit(3)",
        "import sys; sys.exit('bye')",
        "def deep(n):\n    return deep(n + 1)\ndeep(0)",
        "import warnings\nwarnings.warn('careful')\nwarnings.warn('old', DeprecationWarning)",
        "assert 1 == 2, 'not equal'",
        "input('may not: ')",
        "import getpass; getpass.getpass('nor this: ')",
        "print('alive')",
    ],
    "state": [
        "x = [1]\ny = x\ny.append(2)\nx",
        "del x",
        "x",
        "y is _1",
        "import math as m\nm.pi",
        "globals()['made'] = 3\nmade",
        "exec('other = made + 1')\nother",
        "get_ipython().user_ns['third'] = 4\nthird",
        "__name__",
        "f'{y!r:>10}'",
        "import sys; sys.modules['__main__'].__dict__ is globals()",
    ],
    "quit": ["1", "quit"],
}


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_same_as_ipykernel(same_as_ipykernel, name):
    same_as_ipykernel(*NOTEBOOKS[name])


def test_figures_are_there(same_as_ipykernel):
    executed = same_as_ipykernel("import matplotlib.pyplot as plt\nplt.plot([1, 2])")
    kinds = [set(output.data) for output in executed.cells[0].outputs]
    assert {"image/png", "text/plain"} in kinds


def test_first_error_stops_nbclient(same_as_ipykernel):
    from nbclient.exceptions import CellExecutionError

    with pytest.raises(CellExecutionError, match="ZeroDivisionError"):
        same_as_ipykernel("print(1)", "1 / 0", "print(2)", allow_errors=False)


def test_big_stream(kernel):
    run = kernel.run("for line in range(100_000):\n    print(f'{line:08d}', 'x' * 91)").ok()
    text = run.text()
    assert len(text) == 100_000 * 101
    assert text.splitlines()[::9999][:3] == [f"{n:08d} " + "x" * 91 for n in (0, 9999, 19998)]


def test_big_display(kernel):
    run = kernel.run(
        "from IPython.display import display\n"
        "display({'application/x-big': 'ab' * 50_000_000, 'text/plain': 'big'}, raw=True)"
    ).ok()
    (message,) = run.of_type("display_data")
    assert len(message["content"]["data"]["application/x-big"]) == 100_000_000


def test_prints_appear_while_the_cell_runs(kernel, tmp_path):
    gate = tmp_path / "gate"
    run = kernel.send(f"import os, time\nprint('before')\nwhile not os.path.exists({str(gate)!r}):\n    time.sleep(0.01)")
    kernel.read_printed(run, "before")
    assert run.reply is None
    gate.touch()
    kernel.finish(run)
    run.ok()


def test_thread_prints_after_its_cell(kernel, tmp_path):
    gate = tmp_path / "gate"
    run = kernel.run(
        "import os, threading, time\n"
        f"def later():\n    while not os.path.exists({str(gate)!r}):\n        time.sleep(0.01)\n    print('from behind')\n"
        "thread = threading.Thread(target=later); thread.start()"
    ).ok()
    gate.touch()
    kernel.read_printed(run, "from behind")
    kernel.run("thread.join()").ok()


def test_input_and_password(kernel):
    run = kernel.run("name = input('who? ')\nprint('hello', name)", answers=["Ada"]).ok()
    assert run.text() == "hello Ada\n"
    assert kernel.run("import getpass\ngetpass.getpass()", answers=["secret"]).ok().result == "'secret'"


def test_interrupt(kernel):
    kernel.run("kept = 1").ok()
    run = kernel.send("import time\nprint('in')\ntime.sleep(60)")
    kernel.read_printed(run, "in")
    kernel.interrupt()
    kernel.finish(run, timeout=10)
    assert run.reply["content"]["ename"] == "KeyboardInterrupt"
    assert kernel.run("kept").ok().result == "1"


def test_error_aborts_the_queue(kernel, tmp_path):
    gate = tmp_path / "gate"
    runs = [
        kernel.send(
            f"import os, time\nwhile not os.path.exists({str(gate)!r}):\n    time.sleep(0.01)\nraise ValueError('stop')"
        )
    ]
    runs += [kernel.send(f"print({n})") for n in range(4)]
    gate.touch()
    kernel.finish(*runs)
    assert [run.status for run in runs] == ["error"] + ["aborted"] * 4
    assert all(run.text() == "" for run in runs)
    assert kernel.run("print('again')").ok().text() == "again\n"


def test_queue_goes_on_without_stop_on_error(kernel):
    runs = [kernel.send("raise ValueError('go on')", stop_on_error=False), kernel.send("print('went on')")]
    kernel.finish(*runs)
    assert [run.status for run in runs] == ["error", "ok"]


def test_silent_and_history(kernel):
    silent = kernel.run("print('heard'); quiet = 1", silent=True, store_history=False)
    assert silent.ok().text() == "heard\n"
    assert not silent.of_type("execute_input", "execute_result")
    unstored = kernel.run("quiet", store_history=False)
    counts = [run.reply["content"]["execution_count"] for run in (unstored, kernel.run("1"), kernel.run("2"))]
    assert counts == [0, 1, 2]


def test_user_expressions(kernel):
    content = kernel.run("x = 3", user_expressions={"good": "x * 2", "bad": "nosuch"}).reply["content"]
    assert content["user_expressions"]["good"]["data"]["text/plain"] == "6"
    assert content["user_expressions"]["bad"]["status"] == "error"
    assert content["user_expressions"]["bad"]["ename"] == "NameError"


def test_every_message_has_its_parent_between_busy_and_idle(kernel):
    run = kernel.run("print(1)\n2")
    kinds = [message["msg_type"] for _, message in run.messages]
    assert kinds[0] == "status" and kinds[-1] == "status"
    assert sorted(kinds[1:-1]) == ["execute_input", "execute_result", "stream"]
    assert [m["content"]["execution_state"] for m in run.of_type("status")] == ["busy", "idle"]
    assert run.reply["parent_header"]["msg_id"] == run.id


def test_comm_from_the_client(kernel):
    kernel.run(
        "def opened(comm, message):\n    comm.on_msg(lambda m: comm.send({'twice': 2 * m['content']['data']['n']}))\n"
        "get_ipython().kernel.comm_manager.register_target('doubler', opened)"
    ).ok()
    comm = {"comm_id": "c" * 32}
    kernel.request("comm_open", {**comm, "target_name": "doubler", "data": {}})
    info = kernel.reply_to(kernel.request("comm_info_request", {"target_name": "doubler"}))
    assert info["content"]["comms"] == {"c" * 32: {"target_name": "doubler"}}
    kernel.request("comm_msg", {**comm, "data": {"n": 21}})

    def answered():
        return any(m["msg_type"] == "comm_msg" and m["content"]["data"] == {"twice": 42} for m in kernel.others)

    kernel.read_until(answered)
    kernel.request("comm_close", {**comm, "data": {}})
    info = kernel.reply_to(kernel.request("comm_info_request", {}))
    assert info["content"]["comms"] == {}


def test_debugger(kernel):
    """A breakpoint in a cell is hit, and the cell goes on when told."""
    source = "def halved(n):\n    half = n / 2\n    return half\nhalved(8)"
    sequence = iter(range(1, 100))

    def ask(command, **arguments):
        request = {"type": "request", "command": command, "seq": next(sequence), "arguments": arguments}
        reply = kernel.reply_to(kernel.request("debug_request", request, channel="control"), channel="control")
        assert reply["content"].get("success"), reply["content"]
        return reply["content"].get("body")

    ask("initialize", clientID="test", adapterID="", pathFormat="path", linesStartAt1=True, columnsStartAt1=True)
    ask("attach")
    path = ask("dumpCell", code=source)["sourcePath"]
    ask("setBreakpoints", breakpoints=[{"line": 3}], source={"path": path}, sourceModified=False)
    ask("configurationDone")
    run = kernel.send(source)

    def stopped():
        messages = [*kernel.others, *run.of_type("debug_event")]
        return any(m["msg_type"] == "debug_event" and m["content"].get("event") == "stopped" for m in messages)

    kernel.read_until(stopped)
    assert run.reply is None
    ask("continue", threadId=1)
    kernel.finish(run)
    assert run.ok().result == "4.0"
    ask("disconnect", restart=False, terminateDebuggee=False)


def test_shutdown_and_restart(kernel):
    kernel.run("kept = 1").ok()
    kernel.manager.restart_kernel()
    kernel.client.wait_for_ready(timeout=60)
    assert kernel.run("kept").error.startswith("NameError")
    old = kernel.pid
    kernel.request("shutdown_request", {"restart": False}, channel="control")
    assert kernel.client.control_channel.get_msg(timeout=10)["content"] == {"status": "ok", "restart": False}
    wait_until(lambda: not kernel.manager.is_alive(), 10, f"the end of kernel {old}")


def test_home_python_is_the_environment_of_the_kernelspec(start):
    """Also where that environment is not activated."""
    kernel = start(env={**os.environ, "PATH": "/usr/local/bin:/usr/bin:/bin"})
    assert kernel.run("import sys\nsys.prefix").ok().result == repr(sys.prefix)
