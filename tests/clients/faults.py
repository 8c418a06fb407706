"""What goes wrong with a far host while a kernel uses it: each fault with its end, and what a user sees of it."""

import threading
import time
from dataclasses import dataclass

# What begins a fault and what ends it: faults of the bed (`tests/testbed/fault`), or the processes that are killed.
FAULTS = {
    "cut": (("cut",), ("heal",)),
    "drop": (("drop",), ("heal",)),
    "sshd killed": (("crash", "sshd"), ("start", "sshd")),
    "sshd restarted": (("restart", "sshd"), None),
    "host booted": (("kill",), ("boot",)),
    "agent killed": ("agents", None),
    "worker killed": ("workers", None),
}
# Workers die of these, and with them what only they held.
LOSING = ("host booted", "agent killed", "worker killed")


def agents(bed, host):
    """The pids of the agents on a host."""
    return [pid for pid, command in bed.processes(host).items() if command.startswith("cellferry-agent stay")]


def workers(bed, host):
    """The pids of the workers on a host."""
    return [pid for pid, command in bed.processes(host).items() if "ipykernel" in command]


def kill(bed, host, pids):
    """Kills processes of a host; those that have just ended are no error."""
    bed.on(host, f"kill -KILL {' '.join(map(str, pids))} 2>/dev/null || true")


def begin(bed, host, what):
    """A fault begins."""
    first, _ = FAULTS[what]
    if isinstance(first, str):
        kill(bed, host, {"agents": agents, "workers": workers}[first](bed, host))
    else:
        bed.fault(first[0], host, *first[1:])


def end(bed, host, what):
    """It ends, if it has not with its beginning."""
    _, last = FAULTS[what]
    if last is not None:
        bed.fault(last[0], host, *last[1:])


@dataclass
class Fault:
    """One fault of one host: some seconds after cell `index` has begun and a worker runs there, for some seconds."""

    bed: object
    what: str
    host: str
    index: int
    after: float
    lasts: float

    def __post_init__(self):
        self.happened = False
        self._error = None
        self._begun, self._over = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __str__(self):
        return f"{self.what} on {self.host}, {self.after:.2f} s after cell {self.index + 1} begins, for {self.lasts:.1f} s"

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        """Waits until all is mended."""
        self._over.set()
        self._begun.set()
        self._thread.join()
        if self._error:
            raise self._error

    def begins(self, index):
        """Cell `index` begins."""
        if index >= self.index:
            self._begun.set()

    def _run(self):
        try:
            self._begun.wait()
            while not workers(self.bed, self.host):
                if self._over.is_set():
                    return
            time.sleep(self.after)  # the moment is the point
            self.happened = True
            begin(self.bed, self.host, self.what)
            time.sleep(self.lasts if FAULTS[self.what][1] else 0)
            end(self.bed, self.host, self.what)
        except BaseException as error:
            self._error = error


def notices(run):
    """All that was said of links and connections under a cell."""
    return " ".join(_text(message) for message in run.of_type("display_data", "update_display_data"))


def final_notices(run):
    """What is left of each, as clients show it."""
    shown = {}
    for message in run.of_type("display_data", "update_display_data"):
        shown[message["content"]["transient"]["display_id"]] = _text(message)
    return list(shown.values())


def _text(message):
    return message["content"]["data"]["text/plain"]
