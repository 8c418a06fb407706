"""What is left behind: processes that inherited a test's mark, and files with Cellferry's prefix.

A test's mark is an environment variable; children inherit it, whoever their parent becomes."""

import os
import time
from pathlib import Path

MARK = "CELLFERRY_TEST_ID"
SHARED_PLACES = (Path("/tmp"), Path("/dev/shm"))


def wait_until(condition, seconds, what):
    """Polls `condition` until it is true, and returns what it gave. Fails with `what` at the deadline."""
    deadline = time.monotonic() + seconds
    while True:
        found = condition()
        if found:
            return found
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds} s: {what() if callable(what) else what}")
        time.sleep(0.02)


def alive(pid):
    """Whether `pid` is a process that still runs: neither gone nor a zombie."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in "ZX"


def command_line(pid):
    """The command line of `pid`, for messages and for telling processes apart."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:
        return ""


def marks():
    """Every live process that carries a mark, by pid."""
    found = {}
    for entry in os.listdir("/proc"):
        if not entry.isdigit() or not alive(int(entry)):
            continue
        try:
            environment = Path(f"/proc/{entry}/environ").read_bytes()
        except OSError:
            continue
        for variable in environment.split(b"\0"):
            if variable.startswith(MARK.encode() + b"="):
                found[int(entry)] = variable.partition(b"=")[2].decode()
    return found


def marked(mark):
    """The live processes that carry `mark`, by pid, with their command lines."""
    return {pid: command_line(pid) for pid, its_mark in marks().items() if its_mark == mark}


def parent(pid):
    """The pid of the parent of `pid`; 0 where the process is gone."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0


def resident_bytes(pid):
    """The resident memory of `pid`, in bytes."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise AssertionError(f"process {pid} has no resident memory")


def shared_files():
    """Cellferry's files in the places that all tests share."""
    return {path for place in SHARED_PLACES for path in place.glob("*cellferry-*")}
