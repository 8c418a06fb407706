"""A NumPy array of 100 MB from home to a local target, against one memcpy of it plus pickling it out of band.

The step's time is taken less that of a no-op step on the same target; the array is new each time, so it is carried
each time."""

import sys

from common import Kernel, folder, in_turn, report

COUNT = 15

# Both measured in a kernel of their own, on the same kind of array; the copy goes to memory that was written before.
PEER = """
def __copy_and_pickle():
    import pickle, time, numpy
    source = numpy.random.default_rng(0).random(12_500_000)
    into = numpy.zeros_like(source)
    began = time.perf_counter()
    numpy.copyto(into, source)
    pickle.dumps(source, protocol=5, buffer_callback=lambda _: None)
    return time.perf_counter() - began
"""


def main():
    with folder() as path:
        ours, theirs = Kernel("cellferry", path), Kernel("python3", path)
        try:
            ours.seconds("import numpy as np")
            ours.seconds("pass", "local")
            theirs.seconds(PEER)
            number = iter(range(10**6))

            def carried():
                n = next(number)
                ours.seconds(f"array = np.random.default_rng({n}).random(12_500_000)")
                return ours.seconds("array[0]", "local") - ours.seconds("0", "local")

            samplers = {"carried": carried, "peer": lambda: theirs.value("__copy_and_pickle()")}
            in_turn(2, **samplers)
            samples = in_turn(COUNT, **samplers)
        finally:
            ours.close()
            theirs.close()
    return report("100 MB array, home to local target", samples["carried"], samples["peer"], 3, peer="copy+pickle")


if __name__ == "__main__":
    sys.exit(not main())
