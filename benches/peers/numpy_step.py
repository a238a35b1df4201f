#!/usr/bin/env python3
"""Times the hinge (VSE++) GOAL step composed from numpy operations on the CPU.

    python3 benches/peers/numpy_step.py 128x1024 4096x1024

Parts: `gemm` is `x @ y.T`; `mine` masks the diagonal and takes max and argmax along both axes; `grad_sparse` builds the
gradient by fancy indexing and np.add.at; `grad_dense` by the products `W @ y` and `W.T @ x`. `step_sparse` and
`step_dense` are all parts together. Rows are unit rows already. Prints one JSON object per shape: the median and the
smallest time in milliseconds over the repetitions. numpy uses as many threads as its BLAS does.
"""
import argparse
import json
import time

import numpy as np

MARGIN = np.float32(0.2)


def unit_rows(rng, n, d, common):
    x = (common + rng.standard_normal((n, d))).astype(np.float32)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def gemm(x, y):
    return x @ y.T


def mine(s):
    positive = s.diagonal().copy()
    np.fill_diagonal(s, -np.inf)
    return positive, (s.max(1), s.argmax(1)), (s.max(0), s.argmax(0))


def weights(mined):
    positive, (row_max, row_arg), (col_max, col_arg) = mined
    it = (MARGIN + row_max - positive > 0).astype(np.float32)
    ti = (MARGIN + col_max - positive > 0).astype(np.float32)
    return it, ti, row_arg, col_arg


def grad_sparse(x, y, mined):
    it, ti, row_arg, col_arg = weights(mined)
    pair = -(it + ti)[:, None]
    dx = pair * y + it[:, None] * y[row_arg]
    dy = pair * x + ti[:, None] * x[col_arg]
    np.add.at(dx, col_arg, ti[:, None] * y)
    np.add.at(dy, row_arg, it[:, None] * x)
    return dx, dy


def grad_dense(x, y, mined):
    it, ti, row_arg, col_arg = weights(mined)
    n = len(x)
    w = np.zeros((n, n), np.float32)
    index = np.arange(n)
    w[index, index] = -(it + ti)
    w[index, row_arg] += it
    w[col_arg, index] += ti
    return w @ y, w.T @ x


def clock(run, repeat):
    times = []
    for _ in range(repeat):
        start = time.perf_counter()
        run()
        times.append((time.perf_counter() - start) * 1e3)
    return {"median_ms": round(float(np.median(times)), 4), "min_ms": round(min(times), 4)}


def measure(n, d, repeat):
    rng = np.random.default_rng(0)
    common = rng.standard_normal((n, d))
    x, y = unit_rows(rng, n, d, common), unit_rows(rng, n, d, common)
    s = gemm(x, y)
    mined = mine(s.copy())
    for got, want in zip(grad_sparse(x, y, mined), grad_dense(x, y, mined)):
        assert np.allclose(got, want, atol=1e-4), "the two forms of the gradient disagree"
    return {
        "n": n,
        "d": d,
        "dtype": "f32",
        "repeat": repeat,
        "numpy": np.__version__,
        "gemm": clock(lambda: gemm(x, y), repeat),
        "mine": clock(lambda: mine(s), repeat),
        "grad_sparse": clock(lambda: grad_sparse(x, y, mined), repeat),
        "grad_dense": clock(lambda: grad_dense(x, y, mined), repeat),
        "step_sparse": clock(lambda: grad_sparse(x, y, mine(gemm(x, y))), repeat),
        "step_dense": clock(lambda: grad_dense(x, y, mine(gemm(x, y))), repeat),
    }


def shape(text):
    n, d = (int(part) for part in text.split("x"))
    return n, d


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shapes", nargs="+", type=shape, metavar="NxD", help="pairs x features, such as 4096x1024")
    parser.add_argument("--repeat", type=int, default=0, help="repetitions; default: 200 for small shapes, 5 for large")
    args = parser.parse_args()
    for n, d in args.shapes:
        repeat = args.repeat or (200 if n * n * d < 1 << 28 else 5)
        print(json.dumps(measure(n, d, repeat)), flush=True)


if __name__ == "__main__":
    main()
