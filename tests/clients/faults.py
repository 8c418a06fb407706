"""What goes wrong with a far host while a kernel uses it, each fault with its end, at a moment that its user chooses."""

import threading
import time
from dataclasses import dataclass

from processes import wait_until

# What begins a fault and what ends it: faults of the bed (`tests/testbed/fault`), or a kind of process that is killed.
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
    """The agents on a host: its pids."""
    return [pid for pid, command in bed.processes(host).items() if command.startswith("cellferry-agent stay")]


def workers(bed, host):
    """The workers on a host: its pids."""
    return [pid for pid, command in bed.processes(host).items() if "ipykernel" in command]


def kill(bed, host, pids):
    """Kills processes of a host as the system's memory killer would."""
    bed.on(host, f"kill -KILL {' '.join(map(str, pids))} 2>/dev/null || true")


KILLED = {"agents": agents, "workers": workers}


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
            self._happen()
        except BaseException as error:
            self._error = error

    def _happen(self):
        begin, end = FAULTS[self.what]
        self.happened = True
        if begin in KILLED:
            kill(self.bed, self.host, KILLED[begin](self.bed, self.host))
            return
        fault(self.bed, self.host, begin)
        if end is not None:
            time.sleep(self.lasts)
            fault(self.bed, self.host, end)


def fault(bed, host, words):
    """A fault of the bed with what is said after the host's name."""
    bed.fault(words[0], host, *words[1:])


def nothing_runs(bed, hosts, within):
    """Waits until no process of a user's runs on these hosts, files included."""
    wait_until(
        lambda: not any(bed.processes(host) for host in hosts),
        within,
        lambda: f"processes left: {({host: bed.processes(host) for host in hosts})}",
    )
