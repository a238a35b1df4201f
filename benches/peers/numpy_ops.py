#!/usr/bin/env python3
"""simgrad's CPU operations composed from numpy's, the faster of several forms where there are some.

    python3 benches/peers/numpy_ops.py product 1024x512
    python3 benches/peers/numpy_ops.py --serve          # requests from paired_ops.py on standard input

Inputs are unit f32 rows with a common part, and gradients are with respect to them. The similarities are `x @ y.T`, and
what follows is written as one writes it in numpy who knows what numpy is slow at: in place where that saves memory,
without the subtraction of maxima where logits of unit rows cannot overflow, with partitions instead of sorts.
`positive_ranks` has five captions per item. Prints the number of calls, their median and the shortest in milliseconds.
"""
import argparse
import json
import os
import sys
import time

import numpy as np

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import numpy_infonce
import numpy_step

CAPTIONS = 5
f32 = np.float32


def unit_rows(n, d):
    rng = np.random.default_rng(0)
    common = 0.7 * rng.standard_normal((n, d))
    rows = ((common + rng.standard_normal((n, d))).astype(f32) for _ in range(2))
    return [v / np.linalg.norm(v, axis=1, keepdims=True) for v in rows]


def product(x, y):
    return x @ y.T


def cosine_matrix(x, y):
    x = x / np.linalg.norm(x, axis=1, keepdims=True)
    y = y / np.linalg.norm(y, axis=1, keepdims=True)
    return x @ y.T


def mine(x, y):
    return numpy_step.mine(x @ y.T)


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


def nca_sig(x, y, dense, tau=1.0, alpha=2.0, beta=10.0, lam=0.5):
    positive, (row_max, row_arg), (col_max, col_arg) = mine(x, y)
    wp = sigmoid(-alpha * (positive - lam))
    t_row, t_col = sigmoid(tau * (row_max - positive)), sigmoid(tau * (col_max - positive))
    return triplet_gradient(x, y, dense, -(t_row + t_col) * wp, row_arg, t_row * sigmoid(beta * (row_max - lam)),
                            col_arg, t_col * sigmoid(beta * (col_max - lam)))


def triplet_gradient(x, y, dense, own, row_arg, row_w, col_arg, col_w):
    index = np.arange(len(x))
    if dense:
        w = np.zeros((len(x), len(y)), f32)
        w[index, index] = own
        w[index, row_arg] += row_w
        w[col_arg, index] += col_w
        return w @ y, w.T @ x
    own, row_w, col_w = own[:, None], row_w[:, None], col_w[:, None]
    dx, dy = own * y, own * x
    dx += row_w * y[row_arg]
    dy += col_w * x[col_arg]
    np.add.at(dx, col_arg, col_w * y)
    np.add.at(dy, row_arg, row_w * x)
    return dx, dy


def hinge_con(x, y, dense):
    gradient = numpy_step.grad_dense if dense else numpy_step.grad_sparse
    return gradient(x, y, mine(x, y))


def nca_sig_ms(x, y, dense, tau=1.0, alpha=2.0, beta=10.0, lam=0.5, eps=0.1):
    s = x @ y.T
    n = len(s)
    positive = s.diagonal().copy()
    np.fill_diagonal(s, -np.inf)
    lowest = positive.min() - eps
    side = []
    for axis in (1, 0):
        arg = s.argmax(axis)
        most = s.max(axis)
        below = s - np.expand_dims(most, axis)
        below *= f32(beta)
        np.exp(below, out=below)
        below *= s >= lowest
        count = (s >= lowest).sum(axis) - (most >= lowest)
        total = below.sum(axis) - (most >= lowest)
        rs_neg = np.where(count > 0, total / np.maximum(count, 1), 0)
        order = np.sort(positive)
        sums = np.concatenate([[0], np.cumsum(np.exp(-alpha * order.astype(np.float64)))])
        members = np.searchsorted(order, most + eps, side="right")
        inside = positive <= most + eps
        number = members - inside
        value = np.exp(alpha * positive.astype(np.float64)) * (sums[members]) - inside
        rs_pos = np.where(number > 0, value / np.maximum(number, 1), 0)
        t = sigmoid(tau * (most - positive))
        side.append((t, arg, 1 / (np.exp(alpha * (positive - lam)) + rs_pos), 1 / (np.exp(-beta * (most - lam)) + rs_neg)))
    (tr, row_arg, wpr, wnr), (tc, col_arg, wpc, wnc) = side
    own = -(tr * wpr + tc * wpc)
    return triplet_gradient(x, y, dense, own.astype(f32), row_arg, (tr * wnr).astype(f32), col_arg, (tc * wnc).astype(f32))


def ranks(x, y):
    s = x @ y.T
    positive = s.diagonal()
    return (s > positive[:, None]).sum(1), (s > positive[None, :]).sum(0)


def top_k(x, y, k):
    s = x @ y.T
    np.fill_diagonal(s, -np.inf)
    result = []
    for t in (s, np.ascontiguousarray(s.T)):
        best = np.argpartition(t, -k, axis=1)[:, -k:]
        value = np.take_along_axis(t, best, 1)
        order = np.argsort(-value, axis=1)
        result.append((np.take_along_axis(best, order, 1), np.take_along_axis(value, order, 1)))
    return result


def captions(n, d):
    items = -(-n // CAPTIONS)
    x, _ = unit_rows(items, d)
    y, _ = unit_rows(items * CAPTIONS, d)
    return x, y


def positive_ranks(x, y):
    """Of every caption of every item, in the order of the captions, and of every item of its captions."""
    s = x @ y.T
    items = len(x)
    own = s.reshape(items, items, CAPTIONS)[np.arange(items), np.arange(items)]
    by_row = np.sort(s, axis=1)
    rows = s.shape[1] - np.stack([np.searchsorted(row, o, side="right") for row, o in zip(by_row, own)])
    cols = (s > own.reshape(1, -1)).sum(0)
    return rows, cols


def positive_ranks_counted(x, y):
    s = x @ y.T
    items = len(x)
    own = s.reshape(items, items, CAPTIONS)[np.arange(items), np.arange(items)]
    rows = np.stack([(s > own[:, c, None]).sum(1) for c in range(CAPTIONS)], 1)
    cols = (s > own.reshape(1, -1)).sum(0)
    return rows, cols


def mined_triplet(x, y, dense, semi_hard, margin=0.2):
    s = x @ y.T
    positive = s.diagonal().copy()
    np.fill_diagonal(s, -np.inf)
    side = []
    for axis in (1, 0):
        t = s
        if semi_hard:
            t = np.where(s < np.expand_dims(positive, axis), s, f32(-np.inf))
        arg, value = t.argmax(axis), t.max(axis)
        side.append((arg, ((margin + value - positive > 0) & (value > -np.inf)).astype(f32)))
    (row_arg, row_w), (col_arg, col_w) = side
    return triplet_gradient(x, y, dense, -(row_w + col_w), row_arg, row_w, col_arg, col_w)


def triples(n):
    i = np.arange(n)
    other = np.where(i % 8 == 0, 0, (i * 7919 + 1) % n)
    rows, cols = np.stack([i, i, other], 1).ravel(), np.stack([i, other, i], 1).ravel()
    return rows, cols, np.tile(np.array([-1, 0.5, 0.25], f32), n)


def weighted_grad(x, y, w, dense):
    rows, cols, values = w
    if dense:
        w = np.zeros((len(x), len(y)), f32)
        np.add.at(w, (rows, cols), values)
        return w @ y, w.T @ x
    dx, dy = np.zeros_like(x), np.zeros_like(y)
    np.add.at(dx, rows, values[:, None] * y[cols])
    np.add.at(dy, cols, values[:, None] * x[rows])
    return dx, dy


def row_norms(x):
    return np.sqrt(np.einsum("ij,ij->i", x, x))


def normalize(x):
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def normalize_fast(x):
    return x * (1 / np.sqrt(np.einsum("ij,ij->i", x, x)))[:, None]


def normalize_backward(x, g):
    norm = np.sqrt(np.einsum("ij,ij->i", x, x))
    along = np.einsum("ij,ij->i", x, g) / norm**3
    out = g / norm[:, None]
    out -= along[:, None] * x
    return out


# Objectives over all pairs, the own pair the only positive: similarities to loss and W, in place.


def infonce_bounded(s, scale=f32(1 / 0.07)):
    n = len(s)
    positive = s.diagonal() * scale
    e = s - 1
    e *= scale
    np.exp(e, out=e)
    rows, cols = e.sum(1), e.sum(0)
    loss = 0.5 * (np.log(rows).mean() + np.log(cols).mean()) + scale - positive.mean()
    factor = scale / (2 * n)
    e *= (factor / rows)[:, None] + (factor / cols)[None, :]
    e[np.arange(n), np.arange(n)] -= 2 * factor
    d_scale = np.vdot(e, s) / scale
    return loss, e, d_scale


def supcon(s, tau=f32(0.1)):
    n = len(s)
    positive = s.diagonal() / tau
    e = s
    e -= 1
    e /= tau
    np.exp(e, out=e)
    rows = e.sum(1)
    loss = np.log(rows).mean() + 1 / tau - positive.mean()
    e *= (1 / (tau * n * rows))[:, None]
    e[np.arange(n), np.arange(n)] -= 1 / (tau * n)
    return loss, e


def siglip(s, scale=f32(10), bias=f32(-10)):
    n, index = len(s), np.arange(len(s))
    t = s * scale
    t += bias
    t[index, index] *= -1
    np.exp(t, out=t)
    loss = np.log1p(t).sum() / n
    np.divide(t, t + 1, out=t)
    t *= scale / n
    t[index, index] *= -1
    d_scale, d_bias = np.vdot(t, s) / scale, t.sum() / scale
    return loss, t, d_scale, d_bias


def ms(s, mined, alpha=f32(2), beta=f32(50), lam=f32(0.5), eps=f32(0.1)):
    n, index = len(s), np.arange(len(s))
    positive = s.diagonal().copy()
    e = s
    if mined:
        keep = s + eps > positive[:, None]
        keep[index, index] = False
        highest = np.where(np.eye(n, dtype=bool), f32(-np.inf), s).max(1)
        kept = positive - eps < highest
    e -= lam
    e *= beta
    np.exp(e, out=e)
    if mined:
        e *= keep
    else:
        e[index, index] = 0
        kept = np.ones(n, bool)
    rows = e.sum(1)
    p = np.where(kept, np.exp(-alpha * (positive - lam)), 0)
    loss = (np.log1p(p) / alpha + np.log1p(rows) / beta).mean()
    e *= (1 / (n * (1 + rows)))[:, None]
    e[index, index] = -p / ((1 + p) * n)
    return loss, e


def circle(s, detached, gamma=f32(80), margin=f32(0.4)):
    n, index = len(s), np.arange(len(s))
    positive = s.diagonal().copy()
    a = np.maximum(s + margin, 0)
    e = s - margin
    e *= a
    e *= gamma
    np.exp(e, out=e)
    e[index, index] = 0
    rows = e.sum(1)
    ap = np.maximum(1 + margin - positive, 0)
    lp = -gamma * ap * (positive - 1 + margin)
    z = np.log(rows) + lp
    loss = np.logaddexp(0, z).mean()
    share = gamma * sigmoid(z) / n
    e *= (share / rows)[:, None]
    e *= a if detached else np.where(a > 0, 2 * s, 0)
    e[index, index] = -share * (ap if detached else np.where(ap > 0, 2 - 2 * positive, 0))
    return loss, e


def triplet_all(s, margin=f32(0.2)):
    index = np.arange(len(s))
    shift = margin - s.diagonal()
    v = s + shift[:, None]
    v[index, index] = 0
    by_row = v > 0
    loss = v.sum(where=by_row)
    np.add(s, shift[None, :], out=v)
    v[index, index] = 0
    by_col = v > 0
    loss += v.sum(where=by_col)
    w = by_row.astype(f32)
    w += by_col
    w[index, index] = -(by_row.sum(1) + by_col.sum(0))
    return loss, w


def contrastive(s, pos_margin=f32(1), neg_margin=f32(0)):
    index = np.arange(len(s))
    positive = s.diagonal().copy()
    v = s - neg_margin
    v[index, index] = 0
    active = v > 0
    count = max(active.sum(), 1)
    loss = v.sum(where=active) / count
    below = positive < pos_margin
    kept = max(below.sum(), 1)
    loss += np.where(below, pos_margin - positive, 0).sum() / kept
    w = active * f32(1 / count)
    w[index, index] = below * f32(-1 / kept)
    return loss, w


def distance(s):
    d = 2 - 2 * s
    np.maximum(d, 0, out=d)
    return np.sqrt(d, out=d)


def inverse(d):
    return np.divide(1, d, out=np.zeros_like(d), where=d > 0)


def lifted(s, neg_margin=f32(1)):
    n, index = len(s), np.arange(len(s))
    d = distance(s)
    own = d.diagonal().copy()
    e = np.exp(neg_margin - d)
    e[index, index] = 0
    rows = e.sum(1)
    z = own + np.log(rows)
    open_ = z > 0
    loss = np.where(open_, z, 0).mean()
    np.divide(e, d, out=e, where=d > 0)
    e *= np.where(open_, 1 / (n * rows), 0)[:, None]
    e[index, index] = np.where(open_, -inverse(own) / n, 0)
    return loss, e


def ranked_list(s, alpha=f32(1.2), margin=f32(0.4), temperature=f32(10), balance=f32(0.5)):
    n, index = len(s), np.arange(len(s))
    d = distance(s)
    own = d.diagonal().copy()
    within = alpha - d
    within[index, index] = -1
    e = np.exp(temperature * within)
    e *= within > 0
    rows = e.sum(1)
    total = np.einsum("ij,ij->i", e, within)
    share = np.divide(balance, rows, out=np.zeros_like(rows), where=rows > 0)
    outside = own > alpha - margin
    loss = ((1 - balance) * np.where(outside, own - (alpha - margin), 0) + share * total).mean()
    np.divide(e, d, out=e, where=d > 0)
    e *= (share / n)[:, None]
    e[index, index] = np.where(outside, -(1 - balance) * inverse(own) / n, 0)
    return loss, e


def over_all_pairs(weights):
    def step(x, y):
        loss, w, *scales = weights(x @ y.T)
        return loss, w @ y, w.T @ x, *scales

    return step


def infonce_stable(x, y):
    loss, d_scale, dx, dy = numpy_infonce.step(x, y)
    return loss, dx, dy, d_scale


PAIRWISE = {
    "infonce": [infonce_stable, over_all_pairs(infonce_bounded)],
    "siglip": [over_all_pairs(siglip)],
    "supcon": [over_all_pairs(supcon)],
    "ms": [over_all_pairs(lambda s: ms(s, False))],
    "ms-mined": [over_all_pairs(lambda s: ms(s, True))],
    "circle": [over_all_pairs(lambda s: circle(s, True))],
    "circle-full": [over_all_pairs(lambda s: circle(s, False))],
    "triplet-all": [over_all_pairs(triplet_all)],
    "contrastive": [over_all_pairs(contrastive)],
    "lifted": [over_all_pairs(lifted)],
    "ranked-list": [over_all_pairs(ranked_list)],
}


def forms(op, n, d):
    """Calls without arguments that all do what `op` does."""
    x, y = unit_rows(n, d)
    both = lambda f: [lambda: f(x, y, True), lambda: f(x, y, False)]
    if op in PAIRWISE:
        return [lambda f=f: f(x, y) for f in PAIRWISE[op]]
    if op == "positive_ranks":
        x, y = captions(n, d)
        return [lambda: positive_ranks(x, y), lambda: positive_ranks_counted(x, y)]
    g = np.random.default_rng(1).standard_normal((n, d)).astype(f32)
    w = triples(n)
    return {
        "product": [lambda: product(x, y)],
        "cosine_matrix": [lambda: cosine_matrix(x, y)],
        "mine": [lambda: mine(x, y)],
        "goal-hinge-con": both(hinge_con),
        "goal-nca-sig": both(nca_sig),
        "goal-nca-sig_ms": both(nca_sig_ms),
        "ranks": [lambda: ranks(x, y)],
        "top_k-10": [lambda: top_k(x, y, 10)],
        "top_k-100": [lambda: top_k(x, y, 100)],
        "mined_triplet-hardest": both(lambda x, y, dense: mined_triplet(x, y, dense, False)),
        "mined_triplet-semi-hard": both(lambda x, y, dense: mined_triplet(x, y, dense, True)),
        "weighted_grad": [lambda: weighted_grad(x, y, w, True), lambda: weighted_grad(x, y, w, False)],
        "row_norms": [lambda: row_norms(x), lambda: np.linalg.norm(x, axis=1)],
        "normalize": [lambda: normalize(x), lambda: normalize_fast(x)],
        "normalize_backward": [lambda: normalize_backward(x, g)],
    }[op]


def clock(run, seconds):
    """As the calls of benches/turns.rs."""
    times = []

    def call():
        start = time.perf_counter()
        run()
        return time.perf_counter() - start

    until = time.perf_counter() + seconds / 4
    call()
    while time.perf_counter() < until:
        call()
    until = time.perf_counter() + seconds
    while len(times) < 3 or time.perf_counter() < until:
        times.append(call())
    return {"calls": len(times), "median_ms": float(np.median(times)) * 1e3, "min_ms": min(times) * 1e3}


def measure(op, n, d, seconds):
    runs = forms(op, n, d)
    if len(runs) > 1:
        # The best of two calls each says which form is the faster one.
        best = [min(clock(run, seconds / 8)["min_ms"] for _ in range(2)) for run in runs]
        runs = [runs[best.index(min(best))]]
    return clock(runs[0], seconds)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("op", nargs="?")
    parser.add_argument("shape", nargs="*", metavar="NxD")
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--serve", action="store_true", help="read lines `op n d seconds` from standard input")
    args = parser.parse_args()
    if args.serve:
        for line in sys.stdin:
            op, n, d, seconds = line.split()
            print(json.dumps(measure(op, int(n), int(d), float(seconds))), flush=True)
        return
    for shape in args.shape:
        n, d = map(int, shape.split("x"))
        print(json.dumps({"op": args.op, "n": n, "d": d, **measure(args.op, n, d, args.seconds)}), flush=True)


if __name__ == "__main__":
    main()
