"""What the analysis of a cell of 100 lines takes, by `cellferry graph` on a notebook of 500 of them (what it does besides
counts, too), and that it grows with the lines and no faster: the same lines in cells ten and a hundred times as long."""

import shutil
import statistics
import subprocess
import sys
import time

from common import folder, in_turn, milliseconds
from plan import write

LINES = 50_000
BOUND = 1e-3  # seconds
GROWTH = 2.5  # for the same lines in longer cells, which fit no cache; 100 if it grew with the square
TIMES = 7

# Twenty lines of what cells are made of; each names its own.
PART = """
import numpy as np, os.path as p{n}
from scipy.stats import norm as norm{n}
@cache(size=limit)
def f{n}(x, *args, scale=scale{m}, **more) -> "Frame":
    global calls{n}
    calls{n} = [g(y, k=x) for y in args if y.valid] + helper(x)
    return {{name: value * scale for name, value in more.items()}}
class Model{n}(Base{m}):
    rate = rate{m}
    def fit(self, frame): log{n}.append(frame.loc[self.rate :, "a"])
for i, (row, *rest) in enumerate(rows{m}):
    total{n} = total{m} + f{n}(row) if row else np.sqrt(i)
    if total{n} > limit: best{n} = Model{n}().fit(rest); break
try: data{n} = load(f"{{path}}/{{i:>{{width}}}}.csv")
except OSError as error: data{n} = fallback(error, key=lambda e: e.args[0])
finally: print(data{n}.shape, end="")
scale{n}, limit = (z := data{n}["a"].mean()), z ** 2
rows{n} = data{n}.query("a > @limit").sort_values("a")[["a", "b"]]
rows{n}.loc[0, "b"] += total{n}
!echo $limit {{rows{n}.shape}}
"""


def cell(first, lines):
    """A cell of so many lines, with names of its own."""
    parts = range(first, first + lines // 20)
    return "".join(PART.strip("\n").format(n=n, m=n - 1) + "\n" for n in parts)


def main():
    with folder() as path:
        program = shutil.which("cellferry")
        for lines in (100, 1_000, 10_000):
            write(path / f"{lines}.ipynb", LINES // lines, lambda number: cell(number * lines // 20, lines))  # noqa: B023

        def seconds(lines):
            """A cell's share."""
            began = time.perf_counter()
            subprocess.run([program, "graph", path / f"{lines}.ipynb"], check=True, stdout=subprocess.DEVNULL)
            return (time.perf_counter() - began) / (LINES // lines)

        samples = in_turn(TIMES, short=lambda: seconds(100), long=lambda: seconds(1_000), longest=lambda: seconds(10_000))
    short, long, longest = (statistics.median(samples[name]) for name in ("short", "long", "longest"))
    growth = max(long / 10, longest / 100) / short
    held = short < BOUND and growth < GROWTH
    print(
        f"{'analysis of a cell of 100 lines':34s} cellferry {milliseconds(short)}  1,000 lines {milliseconds(long)}  "
        f"10,000 lines {milliseconds(longest)}  ratio of a line's share {growth:6.3f}  at most {GROWTH}  "
        f"under {BOUND * 1000:g} ms  {'ok' if held else 'MISSED'}",
        flush=True,
    )
    return held


if __name__ == "__main__":
    sys.exit(not main())
