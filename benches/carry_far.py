"""A NumPy array of 1 GB from home to a far host, from there to home, and from one host to another, against `scp` of as many
bytes; on the machine itself and over a link of 100 Mbit/s and 20 ms, there with 100 MB unless `--full` is given.

Everything that `scp` reads and writes is in memory. A step's time is taken less that of a no-op step, and that of `scp` less
that of a login. Noise does not compress, so neither side gains by that."""

import statistics
import sys
from pathlib import Path

from common import Kernel, in_turn
from far import hosts, seconds, slow
from processes import resident_bytes

COUNT = 5
BOUND = 0.9  # of scp's rate
AT_HOME = 0.01  # of the bytes, when a value goes from host to host
MEMORY = 100e6  # bytes that the kernel's process may have grown by
CIPHER = ("-c", "aes256-gcm@openssh.com")  # the one that we use, where scp would use another by itself
HERE, THERE = Path("/dev/shm/cellferry-bench"), "/dev/shm/bench"


def rate(size, seconds):
    return f"{size / seconds / 1e6:7.1f} MB/s"


def report(title, size, samples):
    """As `common.report`, of rates (more is better), against both peers."""
    mine, *others = (statistics.median(samples[name]) for name in ("ours", "scp", "same"))
    login = statistics.median(samples["login"])
    others = [other - login for other in others]
    ratios = [other / mine for other in others]
    held = min(ratios) >= BOUND
    print(
        f"{title:42s} cellferry {rate(size, mine)}  scp {rate(size, others[0])}  with our cipher {rate(size, others[1])}  "
        f"ratios {ratios[0]:6.3f} {ratios[1]:6.3f}  at least {BOUND:g}  {'ok' if held else 'MISSED'}",
        flush=True,
    )
    return held


class Carrier:
    """A kernel, and files for `scp`."""

    def __init__(self, bed, path, size):
        self.bed, self.size = bed, size
        self.kernel = Kernel("cellferry", path)
        self.number = 0
        for target in (None, "node1", "node2"):
            self.kernel.seconds("import numpy as np", target)
        self.before = resident_bytes(self.kernel.pid)
        self.most = self.before

    def carried(self, maker, reader):
        """Makes an array in one place and reads it in another: the seconds that takes beyond a no-op."""
        self.number += 1
        kernel = self.kernel
        kernel.seconds(f"array = np.random.default_rng({self.number}).random({self.size // 8})", maker)
        kernel.seconds("0", reader)
        taken = kernel.seconds("array[0]", reader) - kernel.seconds("0", reader)
        self.most = max(self.most, resident_bytes(kernel.pid))
        return taken

    def close(self):
        self.kernel.close()


def links(title, bed, path, size, count):
    what = f"{size / 1e9:g} GB array, {title}"
    carrier = Carrier(bed, path, size)
    bytes_at_home = []

    def login():
        return seconds("ssh", "node1", "true")

    def across():
        carrier.kernel.seconds("0", "node2")
        before = bed.traffic()
        taken = carrier.carried("node1", "node2")
        bytes_at_home.append(bed.traffic() - before)
        return taken

    try:
        for target in ("node1", "node2"):  # what happens once only
            carrier.carried(None, target)
        samples = in_turn(
            count,
            ours=lambda: carrier.carried(None, "node1"),
            scp=lambda: seconds("scp", HERE, f"node1:{THERE}"),
            same=lambda: seconds("scp", *CIPHER, HERE, f"node1:{THERE}"),
            login=login,
        )
        held = report(f"{what}, home to host", size, samples)
        samples = in_turn(
            count,
            ours=lambda: carrier.carried("node1", None),
            scp=lambda: seconds("scp", f"node1:{THERE}", HERE),
            same=lambda: seconds("scp", *CIPHER, f"node1:{THERE}", HERE),
            login=login,
        )
        held = report(f"{what}, host to home", size, samples) and held
        samples = in_turn(
            count,
            ours=across,
            scp=lambda: seconds("ssh", "node1", f"scp {THERE} {bed.address('node2')}:{THERE}"),
            same=lambda: seconds("ssh", "node1", f"scp {' '.join(CIPHER)} {THERE} {bed.address('node2')}:{THERE}"),
            login=lambda: seconds("ssh", "node1", f"ssh {bed.address('node2')} true"),
        )
        held = report(f"{what}, host to host", size, samples) and held
        share, grown = statistics.median(bytes_at_home) / size, carrier.most - carrier.before
    finally:
        carrier.close()
    print(
        f"{'':42s} of the last, {100 * share:.3f} % of the bytes passed home  under {100 * AT_HOME:g} %  "
        f"{'ok' if share < AT_HOME else 'MISSED'}"
    )
    print(
        f"{'':42s} the kernel grew by {grown / 1e6:.1f} MB  under {MEMORY / 1e6:g} MB  {'ok' if grown < MEMORY else 'MISSED'}",
        flush=True,
    )
    return held and share < AT_HOME and grown < MEMORY


def main(full=False):
    with hosts() as (bed, path):
        # So that one host can log in to the other, as scp needs it.
        for name in ("id_ed25519", "known_hosts"):
            bed.write("node1", f".ssh/{name}", (bed.home / ".ssh" / name).read_text())
        bed.on("node1", "chmod -R go= ~/.ssh", user=bed.user)
        try:
            size = 1_000_000_000
            noise(size)
            results = [links("loopback", bed, path, size, COUNT)]
            size = size if full else size // 10
            noise(size)
            with slow(bed, "node1", "node2"):
                results.append(links("slow link", bed, path, size, 1 if full else 3))
        finally:
            HERE.unlink(missing_ok=True)
    return all(results)


def noise(size):
    """Makes the file that is copied."""
    with HERE.open("wb") as file, Path("/dev/urandom").open("rb") as source:
        for _ in range(size // 1_000_000):
            file.write(source.read(1_000_000))


if __name__ == "__main__":
    sys.exit(not main("--full" in sys.argv[1:]))
