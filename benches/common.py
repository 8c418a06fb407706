"""What the benchmarks share: kernels driven by jupyter_client, samples taken in turn, and the lines they print.

Every benchmark runs Cellferry and its peer in the same run, in turn, so that what slows the machine slows both;
what counts is the ratio of medians."""

import os
import shutil
import statistics
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

from jupyter_client.manager import KernelManager

TARGETS = """
[targets.local]
type = "local"
workdir = "{workdir}"
python = "{python}"
"""


class Kernel:
    """A kernel and a client that is interested in little: replies and idle."""

    def __init__(self, name, folder, ready=True):
        self.manager = KernelManager(kernel_name=name)
        self.manager.start_kernel(cwd=str(folder))
        self.client = self.manager.blocking_client()
        self.client.start_channels()
        if ready:
            self.client.wait_for_ready(timeout=60)

    @property
    def pid(self):
        return self.manager.provisioner.process.pid

    def send(self, code, target=None, **more):
        """Sends a cell and returns its id. `more` is what else its metadata say."""
        metadata = {"workflow": {"target": target, **more}} if target else {}
        content = {
            "code": code, "silent": False, "store_history": True, "user_expressions": {}, "allow_stdin": False,
            "stop_on_error": True,
        }  # fmt: skip
        message = self.client.session.msg("execute_request", content, metadata=metadata)
        self.client.shell_channel.send(message)
        return message["header"]["msg_id"]

    def wait(self, sent):
        """Waits until all these cells have their replies and their idles."""
        replies, idles = set(sent), set(sent)
        while replies:
            reply = self.client.get_shell_msg(timeout=120)
            if reply["content"].get("status") != "ok":
                raise SystemExit("\n".join(reply["content"].get("traceback", [str(reply["content"])])))
            replies.discard(reply["parent_header"].get("msg_id"))
        while idles:
            seen = self.client.get_iopub_msg(timeout=120)
            if seen["msg_type"] == "status" and seen["content"]["execution_state"] == "idle":
                idles.discard(seen["parent_header"].get("msg_id"))

    def seconds(self, code, target=None, **more):
        """Runs a cell; returns the seconds from sending it to having both its reply and its idle."""
        began = time.perf_counter()
        self.wait({self.send(code, target, **more)})
        return time.perf_counter() - began

    def value(self, expression, target=None):
        """The number that `expression` gives, through a file beside the notebook."""
        with tempfile.NamedTemporaryFile() as file:
            self.seconds(f"with open({file.name!r}, 'w') as __f:\n    __f.write(repr(float({expression})))", target)
            return float(Path(file.name).read_text())

    def close(self):
        self.client.stop_channels()
        self.manager.shutdown_kernel()
        self.manager.cleanup_resources()


@contextmanager
def folder():
    """A folder with a `cellferry.toml` of one target, `local`; its kernels find this Python first."""
    os.environ["PATH"] = f"{sys.prefix}/bin:{os.environ['PATH']}"
    path = Path(tempfile.mkdtemp(prefix="bench-"))
    try:
        (path / "work").mkdir()
        (path / "cellferry.toml").write_text(TARGETS.format(workdir=path / "work", python=sys.executable))
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def in_turn(count, **samplers):
    """Calls each sampler `count` times, in turn, and returns the lists of what they gave, by name."""
    samples = {name: [] for name in samplers}
    for _ in range(count):
        for name, sampler in samplers.items():
            samples[name].append(sampler())
    return samples


def milliseconds(seconds):
    return f"{seconds * 1000:9.2f} ms"


def report(title, ours, theirs, bound, peer="ipykernel"):
    """Prints one line: medians, their ratio and its bound. Returns whether the bound holds."""
    mine, other = statistics.median(ours), statistics.median(theirs)
    ratio = mine / other
    print(
        f"{title:34s} cellferry {milliseconds(mine)}  {peer} {milliseconds(other)}  "
        f"ratio {ratio:6.3f}  at most {bound:g}  {'ok' if ratio <= bound else 'MISSED'}",
        flush=True,
    )
    return ratio <= bound
