#!/usr/bin/env python3
"""The GOAL step on the CPU against numpy, in turns: five times numpy, then simgrad, on the same shapes.

    python3 benches/peers/paired_step.py 128x1024 4096x1024

Both take unit f32 rows and give the hinge gradient with respect to them. numpy's step is the faster of the two variants of
numpy_step.py. Prints one JSON object per shape: both medians in milliseconds, and their ratio.
"""
import argparse
import json
import os
import re
import statistics
import subprocess
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
ROUNDS = 5
UNITS = {"ns": 1e-6, "µs": 1e-3, "ms": 1.0, "s": 1e3}


def numpy_ms(shape):
    out = subprocess.run([sys.executable, os.path.join(HERE, "numpy_step.py"), shape], check=True, capture_output=True, text=True)
    found = json.loads(out.stdout)
    return min(found["step_sparse"]["median_ms"], found["step_dense"]["median_ms"])


def simgrad_ms(shape):
    command = ["cargo", "bench", "--bench", "goal", "--", "goal/cpu/f32_unit/n", "--warm-up-time", "1", "--measurement-time", "3"]
    env = dict(os.environ, SIMGRAD_BENCH_SHAPES=shape)
    out = subprocess.run(command, check=True, capture_output=True, text=True, env=env, cwd=os.path.join(HERE, "..", ".."))
    low, low_unit, middle, unit, high, high_unit = re.search(r"time:\s*\[(\S+) (\S+) (\S+) (\S+) (\S+) (\S+)\]", out.stdout).groups()
    return float(middle) * UNITS[unit]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shape", nargs="+", help="N x D, for example 128x1024")
    for shape in parser.parse_args().shape:
        pairs = [(numpy_ms(shape), simgrad_ms(shape)) for _ in range(ROUNDS)]
        numpy, simgrad = (statistics.median(side) for side in zip(*pairs))
        print(json.dumps({"shape": shape, "numpy_ms": numpy, "simgrad_ms": simgrad, "ratio": round(numpy / simgrad, 2), "pairs": pairs}))


if __name__ == "__main__":
    main()
