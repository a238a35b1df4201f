#!/usr/bin/env python3
"""Times InfoNCE forward and backward composed from numpy operations on the CPU.

    python3 benches/peers/numpy_infonce.py 4096x512

Unit f32 rows, scale 1 / 0.07: `s = scale * x @ y.T`, both softmaxes from row and column maxima, the loss, `w`, and the
gradients `w @ y`, `w.T @ x` and of the scale. Written to reuse memory where numpy allows it (`out=`). Prints one JSON
object per shape: median and smallest time in milliseconds, and the most memory that numpy held beyond x and y, in MiB.
numpy uses as many threads as its BLAS does.
"""
import argparse
import json
import time
import tracemalloc

import numpy as np

SCALE = np.float32(1 / 0.07)


def unit_rows(rng, n, d):
    x = rng.standard_normal((n, d)).astype(np.float32)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def step(x, y):
    n = len(x)
    s = x @ y.T
    s *= SCALE
    positive = s.diagonal().copy()
    row_max, col_max = s.max(1, keepdims=True), s.max(0, keepdims=True)
    p = s - row_max
    np.exp(p, out=p)
    row_sum = p.sum(1, keepdims=True)
    p /= row_sum
    q = s - col_max
    np.exp(q, out=q)
    col_sum = q.sum(0, keepdims=True)
    q /= col_sum
    row_lse, col_lse = row_max[:, 0] + np.log(row_sum[:, 0]), col_max[0] + np.log(col_sum[0])
    loss = 0.5 * ((row_lse - positive).mean() + (col_lse - positive).mean())
    p += q
    index = np.arange(n)
    p[index, index] -= 2
    p *= SCALE / (2 * n)
    d_scale = np.vdot(p, s) / SCALE**2
    return loss, d_scale, p @ y, p.T @ x


def measure(n, d, repeat):
    rng = np.random.default_rng(0)
    x, y = unit_rows(rng, n, d), unit_rows(rng, n, d)
    step(x, y)
    times = []
    for _ in range(repeat):
        start = time.perf_counter()
        step(x, y)
        times.append((time.perf_counter() - start) * 1e3)
    tracemalloc.start()
    step(x, y)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return {
        "n": n,
        "d": d,
        "repeat": repeat,
        "numpy": np.__version__,
        "median_ms": round(float(np.median(times)), 4),
        "min_ms": round(min(times), 4),
        "peak_mib": round(peak / 2**20, 2),
    }


def shape(text):
    n, d = (int(part) for part in text.split("x"))
    return n, d


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shapes", nargs="+", type=shape, metavar="NxD", help="pairs x features, such as 4096x512")
    parser.add_argument("--repeat", type=int, default=0, help="repetitions; default: 100 for small shapes, 5 for large")
    args = parser.parse_args()
    for n, d in args.shapes:
        print(json.dumps(measure(n, d, args.repeat or (100 if n * n * d < 1 << 28 else 5))), flush=True)


if __name__ == "__main__":
    main()
