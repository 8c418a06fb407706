"""A no-op cell at home and a no-op step on a local target, against ipykernel alone."""

import sys

from common import Kernel, folder, in_turn, report

COUNT = 300
WARM_UP = 50


def main():
    with folder() as path:
        # A kernel each: a cell at home also notes the steps that ran elsewhere since the last one, for `In`.
        ours, stepping, theirs = Kernel("cellferry", path), Kernel("cellferry", path), Kernel("python3", path)
        try:
            samplers = {
                "home": lambda: ours.seconds("pass"),
                "step": lambda: stepping.seconds("pass", "local"),
                "peer": lambda: theirs.seconds("pass"),
            }
            in_turn(WARM_UP, **samplers)
            samples = in_turn(COUNT, **samplers)
        finally:
            ours.close()
            stepping.close()
            theirs.close()
    held = report("no-op cell at home", samples["home"], samples["peer"], 1.25)
    return report("no-op step on a local target", samples["step"], samples["peer"], 1.5) and held


if __name__ == "__main__":
    sys.exit(not main())
