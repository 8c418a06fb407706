"""All benchmarks, one after another; exits with 1 if a bound was missed."""

import sys

import analysis
import carry
import latency
import memory
import overlap
import plan
import start

if __name__ == "__main__":
    results = [bench.main() for bench in (start, latency, carry, memory, overlap, plan, analysis)]
    sys.exit(not all(results))
