"""Resident memory of the idle kernel process: under 25 MB. That of ipykernel stands beside it."""

import sys
from pathlib import Path

from common import Kernel, folder

BOUND = 25e6


def resident_bytes(pid):
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise SystemExit(f"process {pid} has no resident memory")


def main():
    with folder() as path:
        found = {}
        for name in ("cellferry", "python3"):
            kernel = Kernel(name, path)
            try:
                kernel.seconds("pass")
                if name == "cellferry":
                    kernel.seconds("pass", "local")
                found[name] = resident_bytes(kernel.pid)
            finally:
                kernel.close()
    held = found["cellferry"] < BOUND
    print(
        f"{'idle kernel process':34s} cellferry {found['cellferry'] / 1e6:9.1f} MB  "
        f"ipykernel {found['python3'] / 1e6:9.1f} MB  under {BOUND / 1e6:g} MB  {'ok' if held else 'MISSED'}",
        flush=True,
    )
    return held


if __name__ == "__main__":
    sys.exit(not main())
