#!/usr/bin/env python3
"""A step on the CPU against numpy, in turns: five times numpy, then simgrad, on the same shapes.

    python3 benches/peers/paired_step.py 128x1024 4096x1024
    python3 benches/peers/paired_step.py --op infonce 4096x512

Both take unit f32 rows and give the gradient with respect to them: `goal` that of the hinge, of which numpy's is the faster
of the two variants of numpy_step.py; `infonce` that of numpy_infonce.py. Prints one JSON object per shape: both medians in milliseconds, and their ratio.
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


def numpy_ms(op, shape):
    script = {"goal": "numpy_step.py", "infonce": "numpy_infonce.py"}[op]
    out = subprocess.run([sys.executable, os.path.join(HERE, script), shape], check=True, capture_output=True, text=True)
    found = json.loads(out.stdout)
    if op == "infonce":
        return found["median_ms"]
    return min(found["step_sparse"]["median_ms"], found["step_dense"]["median_ms"])


def simgrad_ms(op, shape):
    bench, case = {"goal": ("goal", "goal/cpu/f32_unit/n"), "infonce": ("pairwise", "pairwise/cpu/f32/infonce/n")}[op]
    command = ["cargo", "bench", "--bench", bench, "--", case, "--warm-up-time", "1", "--measurement-time", "3"]
    env = dict(os.environ, SIMGRAD_BENCH_SHAPES=shape)
    out = subprocess.run(command, check=True, capture_output=True, text=True, env=env, cwd=os.path.join(HERE, "..", ".."))
    low, low_unit, middle, unit, high, high_unit = re.search(r"time:\s*\[(\S+) (\S+) (\S+) (\S+) (\S+) (\S+)\]", out.stdout).groups()
    return float(middle) * UNITS[unit]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shape", nargs="+", help="N x D, for example 128x1024")
    parser.add_argument("--op", choices=["goal", "infonce"], default="goal")
    args = parser.parse_args()
    for shape in args.shape:
        pairs = [(numpy_ms(args.op, shape), simgrad_ms(args.op, shape)) for _ in range(ROUNDS)]
        numpy, simgrad = (statistics.median(side) for side in zip(*pairs))
        print(json.dumps({"op": args.op, "shape": shape, "numpy_ms": numpy, "simgrad_ms": simgrad, "ratio": round(numpy / simgrad, 2), "pairs": pairs}))


if __name__ == "__main__":
    main()
