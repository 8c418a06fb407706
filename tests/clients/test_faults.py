"""Bad input, vanished clients, killed processes, full disks: the kernel says what happened, lives, and leaves nothing."""

import hashlib
import hmac
import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import uuid
from contextlib import contextmanager
from pathlib import Path

import pytest
import zmq
from client import on
from jupyter_client.kernelspec import KernelSpecManager
from processes import MARK, alive, marked, parent, resident_bytes, wait_until

DELIMITER = b"<IDS|MSG>"


def frames(kernel, content, kind="execute_request", key=None, **header):
    """The frames of a message, signed with `key` (the kernel's own if none is given)."""
    header = {
        "msg_id": uuid.uuid4().hex, "session": "raw", "username": "u", "msg_type": kind, "version": "5.4",
        "date": "2026-01-01T00:00:00Z", **header,
    }  # fmt: skip
    parts = [part if isinstance(part, bytes) else json.dumps(part).encode() for part in (header, {}, {}, content)]
    key = kernel.client.session.key if key is None else key
    signature = hmac.new(key, b"".join(parts), hashlib.sha256).hexdigest().encode()
    return [DELIMITER, signature, *parts]


@pytest.fixture
def raw(kernel):
    """A bare socket to the kernel's shell or control channel."""
    context = zmq.Context()

    def connect(channel="shell"):
        socket = context.socket(zmq.DEALER)
        socket.linger = 0
        socket.connect(f"tcp://{kernel.manager.ip}:{getattr(kernel.manager, channel + '_port')}")
        return socket

    yield connect
    context.destroy(linger=0)


def execute(code):
    return {"code": code, "silent": False, "store_history": True, "user_expressions": {}, "allow_stdin": False}


@pytest.mark.parametrize("channel", ["shell", "control"])
def test_forged_and_malformed_messages(kernel, raw, channel, tmp_path):
    socket = raw(channel)
    ran = tmp_path / "ran"
    code = execute(f"open({str(ran)!r}, 'w')")
    good = frames(kernel, code)
    harmless = execute("pass")
    bad = [
        frames(kernel, code, key=b"somebody else's"),
        [DELIMITER, b"", *good[2:]],
        [DELIMITER, b"00" * 32, *good[2:]],
        [DELIMITER, b"\xff not hex", *good[2:]],
        [b""],
        [b"no delimiter"],
        [DELIMITER],
        good[:2],
        good[:4],
        good[1:],
        frames(kernel, b"not json"),
        frames(kernel, b"\xff\xfe"),
        frames(kernel, b"[]"),
        frames(kernel, b"3"),
        frames(kernel, b"[" * 100_000),
        frames(kernel, harmless, kind="nosuch_request"),
        frames(kernel, harmless, kind=""),
        frames(kernel, harmless, msg_type=3),
        frames(kernel, harmless, msg_id=None),
        [b"x" * 1000] * 3 + good[1:],
        [DELIMITER] * 10,
    ]
    for message in bad:
        socket.send_multipart(message)
    assert kernel.run("1 + 1").ok().result == "2"
    assert kernel.reply_to(kernel.request("kernel_info_request", {}, channel="control"), channel="control")
    assert not ran.exists()


@pytest.mark.cellferry
def test_garbage_on_the_ports(kernel):
    """Peers that do not speak ZeroMQ, or hang up in the middle of it."""
    import socket

    manager = kernel.manager
    for port in (manager.shell_port, manager.control_port, manager.iopub_port, manager.stdin_port, manager.hb_port):
        for garbage in (b"GET / HTTP/1.1\r\n\r\n", b"\xff" + b"\0" * 8, b"\xff\0\0\0\0\0\0\0\1\x7f\3", os.urandom(4096)):
            with socket.create_connection((manager.ip, port)) as peer:
                peer.sendall(garbage)
    assert kernel.run("1 + 1").ok().result == "2"


@pytest.mark.cellferry
@pytest.mark.parametrize("content", [{}, {"code": 3}, {"code": None}, {"silent": True}, {"code": "1", "silent": "no"}])
def test_execute_request_with_wrong_content(kernel, content):
    """Answered with an error that says what is wrong, and the kernel is idle again."""
    run = kernel.send("")
    kernel.finish(run)
    identity = kernel.request("execute_request", content)
    reply = kernel.reply_to(identity)
    assert reply["content"]["status"] == "error"
    assert ("silent" if content.get("code") == "1" else "code") in reply["content"]["evalue"]
    assert kernel.run("1 + 1").ok().result == "2"


def test_only_the_given_address_is_bound(kernel):
    import socket

    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.2", kernel.manager.shell_port), timeout=5)


def test_heartbeat(kernel):
    context = zmq.Context()
    beat = context.socket(zmq.REQ)
    beat.linger = 0
    beat.connect(f"tcp://{kernel.manager.ip}:{kernel.manager.hb_port}")
    run = kernel.send("import time\nprint('busy')\ntime.sleep(60)")
    kernel.read_printed(run, "busy")
    beat.send(b"ping \x00\xff")
    assert beat.poll(5000) and beat.recv() == b"ping \x00\xff"
    kernel.interrupt()
    kernel.finish(run)
    context.destroy(linger=0)


@pytest.mark.cellferry
def test_stalled_and_vanished_subscribers(kernel):
    """One that never reads starves nobody, and costs a bounded amount of memory."""
    kernel.run("text = 'x' * 1_000_000").ok()
    context = zmq.Context()
    stalled = context.socket(zmq.SUB)
    stalled.setsockopt(zmq.RCVHWM, 1)
    stalled.setsockopt(zmq.RCVBUF, 4096)
    stalled.subscribe(b"")
    address = f"tcp://{kernel.manager.ip}:{kernel.manager.iopub_port}"
    stalled.connect(address)
    for _ in range(20):
        gone = context.socket(zmq.SUB)
        gone.subscribe(b"")
        gone.connect(address)
        gone.close(linger=0)
    assert stalled.poll(0) == 0
    kernel.run("1").ok()
    before = resident_bytes(kernel.pid)
    for _ in range(10):
        run = kernel.run(
            "from IPython.display import display\nfor n in range(30):\n    display({'text/plain': text + str(n)}, raw=True)"
        ).ok()
        shown = [message["content"]["data"]["text/plain"][1_000_000:] for message in run.of_type("display_data")]
        assert shown == [str(n) for n in range(30)]
        run.messages.clear()
    grown = resident_bytes(kernel.pid) - before
    context.destroy(linger=0)
    assert grown < 150_000_000, f"the kernel grew by {grown / 1e6:.0f} MB for 300 MB nobody read"


CONNECTION_FAULTS = {
    "missing": None,
    "empty": "",
    "truncated": '{"shell_port": 5',
    "not an object": "[]",
    "a port missing": '{"ip": "127.0.0.1", "transport": "tcp", "key": "k", "signature_scheme": "hmac-sha256"}',
    "a port out of range": json.dumps(
        {f"{name}_port": 70000 for name in ("shell", "iopub", "stdin", "control", "hb")}
        | {"ip": "127.0.0.1", "transport": "tcp", "key": "k", "signature_scheme": "hmac-sha256"}
    ),
    "unknown signature scheme": json.dumps(
        {f"{name}_port": 0 for name in ("shell", "iopub", "stdin", "control", "hb")}
        | {"ip": "127.0.0.1", "transport": "tcp", "key": "k", "signature_scheme": "hmac-md4"}
    ),
}


@pytest.mark.cellferry
@pytest.mark.parametrize("name", CONNECTION_FAULTS)
def test_broken_connection_file(name, tmp_path):
    path = tmp_path / "connection.json"
    if CONNECTION_FAULTS[name] is not None:
        path.write_text(CONNECTION_FAULTS[name])
    spec = KernelSpecManager().get_kernel_spec("cellferry")
    command = [part.format(connection_file=path, resource_dir=spec.resource_dir) for part in spec.argv]
    done = subprocess.run(command, capture_output=True, text=True, timeout=20, cwd=tmp_path)
    assert done.returncode not in (0, 101) and done.returncode > 0
    assert str(path) in done.stderr and "panicked" not in done.stderr, done.stderr


CLIENT = """
import sys, time
sys.path.insert(0, {helpers!r})
from client import Kernel, on
kernel = Kernel({kernel!r}, {cwd!r})
pids = [kernel.run("import os\\nos.getpid()", on(t) if t and {kernel!r} == "cellferry" else None).ok().result
        for t in (None, "left", "right")]
print(kernel.pid, *pids, flush=True)
if {busy!r}:
    kernel.send("import time\\ntime.sleep(600)", on("left"))
time.sleep(600)
"""


@contextmanager
def client_process(kernel_name, tmp_path, busy):
    """A client of its own that has started a kernel with workers; yields it and the pids."""
    script = CLIENT.format(helpers=str(Path(__file__).parent), kernel=kernel_name, cwd=str(tmp_path), busy=busy)
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    try:
        yield process, [int(word) for word in process.stdout.readline().split()]
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


@pytest.mark.parametrize("busy", [False, True], ids=["idle", "busy"])
@pytest.mark.parametrize("victim", ["client", pytest.param("kernel", marks=pytest.mark.cellferry)])
def test_nothing_is_left_after_a_kill(kernel_name, victim, busy, targets, tmp_path, mark):
    """The fixture that ends every test looks for files; the processes must be gone here."""
    with client_process(kernel_name, tmp_path, busy) as (client, pids):
        assert len(pids) == 4
        if kernel_name == "cellferry":
            assert len(set(pids)) == 4
        os.kill(client.pid if victim == "client" else pids[0], signal.SIGKILL)
        if victim == "client":
            client.wait()
        wait_until(
            lambda: not set(marked(mark)) - {client.pid}, 5, lambda: f"the end of {marked(mark)} after kill -9 of the {victim}"
        )


@pytest.mark.cellferry
@pytest.mark.parametrize("restart", [False, True], ids=["shutdown", "restart"])
def test_shutdown_ends_workers_and_agents(start, targets, mark, restart):
    kernel = start()
    for target in (None, "left", "right"):
        kernel.run("import time\n1", on(target) if target else None).ok()
    run = kernel.send("print('in')\ntime.sleep(600)", on("left"))
    kernel.read_printed(run, "in")
    request = kernel.request("shutdown_request", {"restart": restart}, channel="control")
    reply = kernel.reply_to(request, channel="control")
    assert reply["content"] == {"status": "ok", "restart": restart}
    wait_until(lambda: not marked(mark), 10, lambda: f"the end of {marked(mark)}")


@pytest.mark.cellferry
@pytest.mark.parametrize("signal_number", [signal.SIGTERM, signal.SIGHUP], ids=["SIGTERM", "SIGHUP"])
def test_terminated_kernel_ends_its_workers(start, targets, mark, signal_number):
    kernel = start()
    for target in (None, "left"):
        kernel.run("1", on(target) if target else None).ok()
    os.kill(kernel.pid, signal_number)
    wait_until(lambda: not marked(mark), 5, lambda: f"the end of {marked(mark)}")


def test_interrupt_of_an_idle_kernel(kernel):
    kernel.run("kept = 1").ok()
    for _ in range(3):
        os.kill(kernel.pid, signal.SIGINT)
    assert kernel.run("kept").ok().result == "1"


@pytest.mark.cellferry
def test_interrupt_before_any_worker_is_up(start):
    kernel = start()
    os.kill(kernel.pid, signal.SIGINT)
    assert kernel.run("1 + 1").ok().result == "2"


def test_two_kernels_at_once(start, targets):
    one, other = start(), start()
    one.run("x = 'one'").ok()
    other.run("x = 'other'").ok()
    runs = [one.send("x", on("left")), other.send("x", on("left"))]
    one.finish(runs[0])
    other.finish(runs[1])
    assert [run.ok().result for run in runs] == ["'one'", "'other'"]
    one.close()
    assert other.run("x", on("left")).ok().result == "'other'"


def test_two_clients_of_one_kernel(kernel):
    """Both see the outputs of either."""
    other = kernel.manager.blocking_client()
    other.start_channels()
    other.wait_for_ready(timeout=30)
    run = kernel.run("print('for both')").ok()
    text = ""
    while "for both" not in text:
        message = other.get_iopub_msg(timeout=10)
        if message["msg_type"] == "stream" and message["parent_header"]["msg_id"] == run.id:
            text += message["content"]["text"]
    assert other.execute_interactive("x = 2", timeout=30, output_hook=lambda _: None)["content"]["status"] == "ok"
    assert kernel.run("x").ok().result == "2"
    other.stop_channels()


@pytest.mark.cellferry
def test_no_python_at_all(start, binary, tmp_path, monkeypatch):
    """A bare binary on a machine without Python: the kernel starts, the first cell says so, once Python is there
    cells run."""
    bare = tmp_path / "bare"
    (bare / "bin").mkdir(parents=True)
    (tmp_path / "empty").mkdir()
    shutil.copy(binary, bare / "bin" / "cellferry")
    environment = {**os.environ, "PATH": str(tmp_path / "empty")}
    for variable in ("VIRTUAL_ENV", "CONDA_PREFIX", "PYTHONHOME"):
        environment.pop(variable, None)
    installed = subprocess.run(
        [bare / "bin" / "cellferry", "install", "--prefix", bare], env=environment, capture_output=True, text=True
    )
    assert installed.returncode == 0, installed.stderr
    monkeypatch.setenv("JUPYTER_PATH", str(bare / "share" / "jupyter"))
    monkeypatch.setenv("JUPYTER_PREFER_ENV_PATH", "0")
    spec = KernelSpecManager().get_kernel_spec("cellferry")
    assert spec.resource_dir.startswith(str(bare)) and spec.argv[0].startswith(str(bare)), (spec.resource_dir, spec.argv)
    kernel = start(env=environment, ready=False)
    assert kernel.reply_to(kernel.request("kernel_info_request", {}))["content"]["status"] == "ok"
    run = kernel.run("1 + 1")
    assert "Python" in run.error and "PATH" in run.error, run.error
    # Not a link: a virtual environment's Python finds its packages by its own place.
    python = tmp_path / "empty" / "python3"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    assert kernel.run("1 + 1").ok().result == "2"


@contextmanager
def full_disk(kernel_name, tmp_path, place, size):
    """The command of a client whose `place` is a nearly full disk of its own, seen by nobody else."""
    if os.geteuid() != 0 or subprocess.run(["unshare", "-m", "true"], capture_output=True).returncode != 0:
        pytest.skip("needs root and private mounts")
    yield lambda script: [
        "unshare", "-m", "--propagation", "private", "sh", "-c",
        f"mount -t tmpfs -o size={size} none {place} && exec {sys.executable} {script}",
    ]  # fmt: skip


FULL = """
import sys
sys.path.insert(0, {helpers!r})
from client import Kernel, on
from pathlib import Path
with Kernel("cellferry", {cwd!r}) as kernel:
    kernel.run("import numpy as np\\nmany, few = np.ones(4_000_000), 3").ok()
    kernel.run("1", on("left")).ok()
    filler = Path({place!r}) / "filler"
    if {fill!r}:
        with open(filler, "wb", buffering=0) as file:
            try:
                while file.write(b"x" * 4096):
                    pass
            except OSError:
                pass
    run = kernel.run("many.sum()", on("left"))
    if run.status == "error":
        print("ERROR", run.error)
        words = run.error.lower()
        assert "space" in words or "full" in words, run.error
        assert {place!r} in run.error or "`many`" in run.error, run.error
    else:
        assert "4000000.0" in run.result
    assert kernel.run("many.sum(), few").ok().result == "(np.float64(4000000.0), 3)"
    filler.unlink(missing_ok=True)
    assert kernel.run("few + 1", on("left")).ok().result == "4"
print("LIVED")
"""


@pytest.mark.cellferry
@pytest.mark.parametrize(
    ("place", "size", "fill"),
    [("/dev/shm", "8m", False), ("/dev/shm", "64m", True), ("TMPDIR", "64m", True), ("XDG_RUNTIME_DIR", "64m", True)],
    ids=["small /dev/shm", "full /dev/shm", "full TMPDIR", "full XDG_RUNTIME_DIR"],
)
def test_full_disk(kernel_name, targets, tmp_path, place, size, fill):
    """A value of 32 MB that finds no room fails its step or takes another way; the kernel lives."""
    place = os.environ.get(place, place)
    script = tmp_path / "full.py"
    script.write_text(FULL.format(helpers=str(Path(__file__).parent), cwd=str(tmp_path), place=place, fill=fill))
    with full_disk(kernel_name, tmp_path, place, size) as command:
        done = subprocess.run(command(script), capture_output=True, text=True, timeout=100)
    assert done.returncode == 0 and "LIVED" in done.stdout, done.stdout + done.stderr


@pytest.mark.cellferry
def test_kernel_info_before_any_worker(start, mark):
    """The kernel answers for itself; a worker comes with the first cell or a little later, never before the answer."""
    kernel = start(env={**os.environ, "PATH": os.environ["PATH"]}, ready=False)
    reply = kernel.reply_to(kernel.request("kernel_info_request", {}))["content"]
    assert reply["status"] == "ok" and reply["language_info"]["name"] == "python"
    assert reply["implementation"] == "cellferry"
    assert tuple(int(n) for n in reply["protocol_version"].split(".")[:2]) >= (5, 4)
    assert kernel.run("1 + 1").ok().result == "2"


@pytest.mark.cellferry
def test_sockets_are_private(start, targets, mark, world):
    """Folders with sockets of workers are closed to other users."""
    import stat

    kernel = start()
    kernel.run("1", on("left")).ok()
    listening = [line.split()[-1] for line in Path("/proc/net/unix").read_text().splitlines() if "cellferry" in line]
    folders = {Path(name).parent for name in listening if name.startswith("/")}
    for folder in folders:
        assert any(stat.S_IMODE(up.stat().st_mode) == 0o700 for up in (folder, *folder.parents)), folder
    assert folders


def test_the_program_is_replaced_while_it_runs(start, targets, binary, tmp_path):
    """As by an upgrade: what the kernel starts later is still itself."""
    copy = tmp_path / "bin" / "cellferry"
    copy.parent.mkdir()
    shutil.copy(binary, copy)
    spec = tmp_path / "jupyter-data" / "kernels" / "replaced"
    spec.mkdir(parents=True)
    argv = [str(copy), "kernel", "-f", "{connection_file}"]
    (spec / "kernel.json").write_text(json.dumps({"argv": argv, "display_name": "replaced", "language": "python"}))
    environment = {**os.environ, "CELLFERRY_PYTHON": sys.executable}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JUPYTER_PATH", str(spec.parent.parent))
        kernel = start("replaced", env=environment)
    kernel.run("x = 1").ok()
    copy.unlink()
    assert kernel.run("x + 1", on("left")).ok().result == "2"
