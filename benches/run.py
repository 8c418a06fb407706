"""All benchmarks, one after another; exits with 1 if a bound was missed."""

import sys

import analysis
import carry
import carry_far
import interrupt_far
import latency
import latency_far
import memory
import overlap
import plan
import scale
import slurm
import start

if __name__ == "__main__":
    near = (start, latency, carry, memory, overlap, plan, analysis)
    far = (latency_far, carry_far, interrupt_far, slurm, scale)
    results = [bench.main() for bench in (*near, *far)]
    sys.exit(not all(results))
