"""Kernel start to the first kernel_info_reply, against ipykernel: at most a tenth of it."""

import sys
import time

from common import Kernel, folder, in_turn, report

COUNT = 15


def sampler(name, path):
    def sample():
        began = time.perf_counter()
        kernel = Kernel(name, path, ready=False)
        try:
            kernel.client.kernel_info()
            kernel.client.get_shell_msg(timeout=60)
            return time.perf_counter() - began
        finally:
            kernel.close()

    return sample


def main():
    with folder() as path:
        ours, theirs = sampler("cellferry", path), sampler("python3", path)
        ours(), theirs()  # warm the disk
        samples = in_turn(COUNT, ours=ours, theirs=theirs)
        return report("start to kernel_info_reply", samples["ours"], samples["theirs"], 0.1)


if __name__ == "__main__":
    sys.exit(not main())
