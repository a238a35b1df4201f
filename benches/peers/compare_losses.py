#!/usr/bin/env python3
"""Compares simgrad's objectives over all pairs with pytorch-metric-learning and open_clip on the same embeddings.

    python3 benches/peers/compare_losses.py

Needs PyTorch; pytorch-metric-learning and open_clip_torch are used where they are installed, and the objectives that they
define otherwise are left out, which is said. Prints one JSON object per comparison: both losses, and the Frobenius norm of
the difference of the gradients relative to that of the peer's gradient. simgrad's side is the example `pairwise`.
"""

import json
import os
import subprocess
import sys
import tempfile

try:
    import numpy as np
    import torch
except ImportError:
    sys.exit("compare_losses.py: PyTorch is not installed for this Python")

HERE = os.path.dirname(os.path.abspath(__file__))
N, D, CLASSES = 96, 32, 24


def simgrad(folder, objective, x, y=None, ids=None):
    path = lambda name: os.path.join(folder, name)
    command = ["cargo", "run", "--quiet", "--release", "--example", "pairwise", "--", path("x.npy")]
    np.save(path("x.npy"), x)
    if y is not None:
        np.save(path("y.npy"), y)
        command += [path("y.npy"), "--dy", path("dy.npy")]
    if ids is not None:
        np.save(path("ids.npy"), ids)
        command += ["--groups-x", path("ids.npy")]
    command += ["--objective", objective, "--dx", path("dx.npy"), "--backend", "cpu"]
    out = subprocess.run(command, check=True, capture_output=True, text=True, cwd=os.path.join(HERE, "..", ".."))
    report = json.loads(out.stdout)
    gradients = [np.load(path("dx.npy"))] + ([np.load(path("dy.npy"))] if y is not None else [])
    return report, gradients


def show(name, peer, mine, loss, gradients):
    report, got = mine
    loss = float(loss.detach())
    want = [g.detach().numpy() for g in gradients]
    off = sum(float(((a - b) ** 2).sum()) for a, b in zip(got, want)) ** 0.5
    size = sum(float((b**2).sum()) for b in want) ** 0.5
    print(json.dumps({
        "objective": name,
        "peer": peer,
        "simgrad": report["loss"],
        "peer_loss": loss,
        "loss_difference": abs(report["loss"] - loss) / max(abs(loss), 1e-3),
        "gradient_difference": off / size,
    }), flush=True)


def unit(v):
    return torch.nn.functional.normalize(v, dim=1)


def pairs(rng):
    x = rng.standard_normal((N, D))
    y = x + 0.7 * rng.standard_normal((N, D))
    return x.astype(np.float32), y.astype(np.float32)


def two_sets(folder, rng):
    try:
        from open_clip.loss import ClipLoss, SigLipLoss
    except ImportError:
        print("open_clip_torch is not installed: InfoNCE and SigLIP are left out", file=sys.stderr)
        return
    x, y = pairs(rng)
    tx, ty = (torch.from_numpy(v).double().requires_grad_() for v in (x, y))
    loss = ClipLoss()(unit(tx), unit(ty), torch.tensor(1 / 0.07, dtype=torch.float64))
    show("infonce", "open_clip ClipLoss", simgrad(folder, "infonce", x, y), loss, torch.autograd.grad(loss, (tx, ty)))
    scale, bias = torch.tensor(10.0, dtype=torch.float64), torch.tensor(-10.0, dtype=torch.float64)
    loss = SigLipLoss()(unit(tx), unit(ty), scale, bias)
    show("siglip", "open_clip SigLipLoss", simgrad(folder, "siglip", x, y), loss, torch.autograd.grad(loss, (tx, ty)))


def one_set(folder, rng):
    try:
        from pytorch_metric_learning import distances, losses, miners
    except ImportError:
        print("pytorch-metric-learning is not installed: the objectives of one set are left out", file=sys.stderr)
        return
    ids = np.arange(N, dtype=np.int64) % CLASSES
    centres = rng.standard_normal((CLASSES, D))
    x = (centres[ids] + 0.8 * rng.standard_normal((N, D))).astype(np.float32)
    cosine, euclidean = distances.CosineSimilarity(), distances.LpDistance(normalize_embeddings=True, p=2)
    miner = miners.MultiSimilarityMiner(epsilon=0.1, distance=cosine)
    peers = [
        ("supcon", "SupConLoss", losses.SupConLoss(temperature=0.1, distance=cosine), None),
        ("ms", "MultiSimilarityLoss", losses.MultiSimilarityLoss(alpha=2, beta=50, base=0.5, distance=cosine), None),
        ("ms-mined", "MultiSimilarityLoss with its miner",
         losses.MultiSimilarityLoss(alpha=2, beta=50, base=0.5, distance=cosine), miner),
        ("circle", "CircleLoss", losses.CircleLoss(m=0.4, gamma=80, distance=cosine), None),
        ("contrastive", "ContrastiveLoss", losses.ContrastiveLoss(pos_margin=1, neg_margin=0, distance=cosine), None),
        ("lifted", "GeneralizedLiftedStructureLoss",
         losses.GeneralizedLiftedStructureLoss(neg_margin=1, pos_margin=0, distance=euclidean), None),
        ("ranked-list", "RankedListLoss (differentiates through its weights)",
         losses.RankedListLoss(margin=0.4, Tn=10, imbalance=0.5, alpha=1.2, Tp=0, distance=euclidean), None),
    ]
    for name, peer, loss_of, mine in peers:
        t = torch.from_numpy(x).double().requires_grad_()
        labels = torch.from_numpy(ids)
        chosen = mine(t.detach(), labels) if mine else None
        loss = loss_of(t, labels, chosen)
        show(name, f"pytorch-metric-learning {peer}", simgrad(folder, name, x, ids=ids), loss, torch.autograd.grad(loss, t))


def main():
    with tempfile.TemporaryDirectory() as folder:
        two_sets(folder, np.random.default_rng(0))
        one_set(folder, np.random.default_rng(1))


if __name__ == "__main__":
    main()
