"""`cellferry graph` on a notebook of 10,000 cells: from process start to end, and that it grows with the cells and no
faster, by the same notebook of 1,000 cells."""

import json
import shutil
import statistics
import subprocess
import sys
import time

from common import folder, in_turn, milliseconds

BOUND = 1.0  # seconds
GROWTH = 12  # for ten times the cells
TIMES = 7


def cell(number):
    """Every third cell is a step; all read what stands before, by functions too."""
    if number % 3 == 1:
        return f"#| target: local\na{number} = f(a{max(number - 3, 1)}, np)"
    if number % 3:
        return f"a{number} = a{number - 1}.sum()\nprint(a{number})"
    return f"import numpy as np\ndef f(x, y):\n    return y.sqrt(x) + k\nk = {number}"


def write(path, count, cell=cell):
    cells = [
        {"cell_type": "code", "id": f"c{number}", "metadata": {}, "source": cell(number), "outputs": [], "execution_count": None}
        for number in range(count)
    ]  # fmt: skip
    path.write_text(json.dumps({"nbformat": 4, "nbformat_minor": 5, "metadata": {}, "cells": cells}))


def main():
    with folder() as path:
        program = shutil.which("cellferry")
        for count in (1_000, 10_000):
            write(path / f"{count}.ipynb", count)

        def seconds(count):
            began = time.perf_counter()
            subprocess.run([program, "graph", path / f"{count}.ipynb"], check=True, stdout=subprocess.DEVNULL)
            return time.perf_counter() - began

        samples = in_turn(TIMES, small=lambda: seconds(1_000), large=lambda: seconds(10_000))
    small, large = (statistics.median(samples[name]) for name in ("small", "large"))
    held = large < BOUND and large / small < GROWTH
    print(
        f"{'graph of 10,000 cells':34s} cellferry {milliseconds(large)}  1,000 cells {milliseconds(small)}  "
        f"ratio {large / small:6.3f}  at most {GROWTH}  under {BOUND:g} s  {'ok' if held else 'MISSED'}",
        flush=True,
    )
    return held


if __name__ == "__main__":
    sys.exit(not main())
