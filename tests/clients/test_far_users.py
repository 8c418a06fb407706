"""Another user of a far host: `bob` neither reads what `alice` computes there nor speaks to her agent or workers."""

import re

import pytest
from client import on

pytestmark = pytest.mark.cellferry

SECRET = "the value that nobody else may see"

# Every file and folder of Cellferry's on a host, with kind, owner and mode.
FILES = r"find /tmp /var/tmp /dev/shm /run /home/alice/.cache -xdev -path '*cellferry*' -printf '%y %U %m %p\n'"

# Tries to open, list or connect to each path that is given; says which it got into.
TRY = """
import os, socket, sys
for path in sys.stdin.read().splitlines():
    def connect():
        socket.socket(socket.AF_UNIX).connect(path)
    for attempt in (lambda: open(path, "rb"), lambda: open(path, "ab"), lambda: os.listdir(path), connect):
        try:
            attempt()
        except OSError:
            continue
        print(path)
"""

# Says what a port answers to one who knows no secret.
KNOCK = """
import errno, os, socket, sys
for size in (0, 1, 48, 5000):
    with socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=20) as peer:
        try:
            peer.sendall(os.urandom(size))
            peer.shutdown(socket.SHUT_WR)
            while answer := peer.recv(4096):
                print(answer)
        except OSError as error:
            # It may have closed the connection already.
            if error.errno not in (errno.EPIPE, errno.ECONNRESET, errno.ENOTCONN):
                raise
"""

# Sends messages to a port of ZeroMQ, as the children of a worker do.
INJECT = """
import os, sys, zmq
socket = zmq.Context().socket(zmq.PUSH)
socket.linger = 5000
socket.connect(f"tcp://{sys.argv[1]}:{sys.argv[2]}")
for secret in (b"", bytes(16), os.urandom(16)):
    socket.send_multipart([secret, b"stream", b"<IDS|MSG>", b"", b"{}", b"{}", b"{}", b"{}"])
    socket.send_multipart([secret])
"""

# Says where something of alice's listens.
LISTENING = """
import socket
for family, table in ((socket.AF_INET, "tcp"), (socket.AF_INET6, "tcp6")):
    for line in open(f"/proc/net/{table}").readlines()[1:]:
        words = line.split()
        if (words[3], words[7]) == ("0A", "2001"):
            address, port = words[1].split(":")
            parts = [bytes.fromhex(address[at : at + 8])[::-1] for at in range(0, len(address), 8)]
            print(socket.inet_ntop(family, b"".join(parts)), int(port, 16))
"""


def as_bob(bed, script, *arguments, stdin=""):
    """What a Python program says that the other user runs on the host."""
    command = f"cd /; {bed.python} -c '{script}' {' '.join(arguments)}"
    return bed.on("node1", command, user=bed.other_user, stdin=None, input=stdin)


@pytest.fixture
def busy(bed, hosts, kernel):
    """A kernel with a large value on its way from `node1` to `node2`, slowly, and a worker that runs."""
    kernel.run(f"value = {SECRET!r} * 600_000", on("node1")).ok()
    kernel.run("1", on("node2")).ok()
    bed.fault("rate", "node1", "20mbit")
    run = kernel.send("print(len(value))", on("node2"))
    kernel.read_until(lambda: segments(bed))
    kernel.read_until(lambda: as_bob(bed, LISTENING))
    return kernel, run


def segments(bed):
    return re.findall(r"f 2001 \d+ (/dev/shm/\S+)", bed.on("node1", FILES))


def test_another_user_gets_at_nothing(bed, busy):
    kernel, run = busy
    files = [line.split(" ", 3) for line in bed.on("node1", FILES).splitlines()]
    kinds = {kind for kind, *_ in files}
    assert kinds >= {"d", "f", "s"} and any(path.endswith("connection.json") for *_, path in files)
    # What the two users share is not ours.
    assert {owner for _, owner, *_ in files} == {"2001"}
    for kind, _, mode, path in files:
        assert int(mode, 8) & 0o077 == 0 or kind == "s" and private(files, path), (kind, mode, path)
    assert as_bob(bed, TRY, stdin="\n".join(path for *_, path in files)) == ""
    bed.fault("heal", "node1")
    kernel.finish(run)
    assert run.ok().text() == f"{len(SECRET) * 600_000}\n"


def private(files, path):
    """Whether a folder above it is closed to others."""
    return any(kind == "d" and int(mode, 8) & 0o077 == 0 and path.startswith(f"{up}/") for kind, _, mode, up in files)


def test_processes_show_no_secret(bed, busy):
    kernel, run = busy
    keys = re.findall(r'"key": ?"([^"]+)"', bed.on("node1", "cat /tmp/cellferry-2001/*/*/connection.json"))
    assert keys
    pids = bed.processes("node1")
    assert any("cellferry-agent stay" in command for command in pids.values())
    for pid in pids:
        shown = bed.on("node1", f"cat /proc/{pid}/cmdline /proc/{pid}/environ | tr '\\0' '\\n'")
        assert shown and not any(key in shown for key in keys) and SECRET not in shown
    private = [f"/proc/{pid}/{name}" for pid in pids for name in ("environ", "mem", "maps", "fd/0", "cwd/")]
    assert as_bob(bed, TRY, stdin="\n".join(private)) == ""
    bed.fault("heal", "node1")
    kernel.finish(run)


def test_ports_say_nothing_to_one_who_does_not_know_their_secret(bed, busy):
    """The doors of agents, and the port at which ipykernel itself hears the children of its process: on the loopback alone."""
    kernel, run = busy
    places = as_bob(bed, LISTENING).splitlines()
    loopback = [place for place in places if place.startswith("127.")]
    doors = [place for place in places if place not in loopback]
    assert doors
    for place in doors:
        assert as_bob(bed, KNOCK, place) == "", place
    for place in loopback:
        as_bob(bed, INJECT, place)
    bed.fault("heal", "node1")
    kernel.finish(run)
    assert run.ok().text() == f"{len(SECRET) * 600_000}\n"
    again = kernel.run("print(1)", on("node1")).ok()
    assert again.text() == "1\n"
    # ipykernel refuses them, and says so.
    assert all(line.startswith("Bad pipe message") for line in again.text("stderr").splitlines())


@pytest.mark.parametrize("taken", [["/tmp"], ["/tmp", "/var/tmp"], ["/tmp", "/var/tmp", "/dev/shm"]], ids=len)
def test_a_folder_that_another_user_has_made_in_our_place_is_not_used(bed, hosts, kernel, taken):
    own = [f"{place}/cellferry-2001" for place in taken]
    bed.on("node1", f"mkdir -m 777 {' '.join(own)}", user=bed.other_user)
    run = kernel.run("print(2)", on("node1"))
    if len(taken) < 3:
        assert run.ok().text() == "2\n"
    else:
        assert "is not a directory of yours that only you can use" in run.error
    assert bed.on("node1", f"find {' '.join(own)} -mindepth 1") == ""
    bed.on("node1", f"rmdir {' '.join(own)}")
