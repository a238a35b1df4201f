#!/usr/bin/env python3
"""Times the work of simgrad's `goal_step` and `pairwise_step` in PyTorch: from two batches of raw embeddings to both gradients.

    python3 benches/peers/torch_step.py                  # on the GPU
    python3 benches/peers/torch_step.py --device cpu --objective infonce siglip ms --variant eager

Variants: `eager`; `compile` (torch.compile with its defaults); on a GPU also `compile-graph` (mode reduce-overhead,
which replays a CUDA graph, as simgrad's step can be). A variant that this installation cannot run is reported and left
out. The objectives are `hinge-con`, which is the VSE++ loss and is differentiated by autograd; `nca-sig`, which has
no loss and whose gradient is written out; and the losses over all pairs that open_clip (`infonce` and `siglip`, with the
gradients of their scale and bias) and pytorch-metric-learning define, with the parameters that simgrad has as defaults and
a pair per row, differentiated by autograd (RankedListLoss takes no second set, so it is not among them). Those of a package that is not installed are reported and left out.

Prints one JSON object per line: times are microseconds per step, and `gmac_per_s` counts n * m * d multiply-adds per
step, the similarities once, as `cargo bench` does. Inputs are Gaussian and stay in the cache between steps, as those of
a training step do. On a GPU a sample is the device time of several steps between two events, on the CPU wall time.
"""

import argparse
import json
import platform
import statistics
import sys
import time

try:
    import torch
except ImportError:
    sys.exit("torch_step.py: PyTorch is not installed for this Python")

DTYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}
MARGIN, TAU, ALPHA, BETA, LAMBDA = 0.2, 1.0, 2.0, 10.0, 0.5


def hinge_con(x, y):
    """Gradients of the VSE++ loss with respect to raw embeddings, by autograd."""
    x, y = x.detach().requires_grad_(), y.detach().requires_grad_()
    s = (torch.nn.functional.normalize(x, dim=1) @ torch.nn.functional.normalize(y, dim=1).T).float()
    positive = s.diagonal()
    negatives = s.masked_fill(torch.eye(len(s), dtype=torch.bool, device=s.device), float("-inf"))
    rows = (MARGIN + negatives.amax(1) - positive).clamp(min=0).sum()
    cols = (MARGIN + negatives.amax(0) - positive).clamp(min=0).sum()
    return torch.autograd.grad(rows + cols, (x, y))


def nca_sig(x, y):
    """The GOAL gradient written out: sparse weights, two products, the Jacobian of the normalisation."""
    rx, ry = (v.float().norm(dim=1, keepdim=True).clamp(min=1e-12) for v in (x, y))
    ux, uy = x / rx.to(x.dtype), y / ry.to(y.dtype)
    s = (ux @ uy.T).float()
    positive = s.diagonal()
    negatives = s.masked_fill(torch.eye(len(s), dtype=torch.bool, device=s.device), float("-inf"))
    w = torch.zeros_like(s)
    index = torch.arange(len(s), device=s.device)
    for dim, place in ((1, lambda j: (index, j)), (0, lambda j: (j, index))):
        value, j = negatives.max(dim)
        triplet = torch.sigmoid(TAU * (value - positive))
        w.index_put_((index, index), -triplet * torch.sigmoid(-ALPHA * (positive - LAMBDA)), accumulate=True)
        w.index_put_(place(j), triplet * torch.sigmoid(BETA * (value - LAMBDA)), accumulate=True)
    w = w.to(x.dtype)
    gx, gy = w @ uy, w.T @ ux
    project = lambda g, u, r: (g - u * (u * g).sum(1, keepdim=True)) / r.to(g.dtype)
    return project(gx, ux, rx), project(gy, uy, ry)


def unit(v):
    return torch.nn.functional.normalize(v, dim=1)


def open_clip_loss(name):
    """open_clip's loss with its learned parameters."""
    from open_clip.loss import ClipLoss, SigLipLoss

    loss_of, learned = (ClipLoss(), [1 / 0.07]) if name == "infonce" else (SigLipLoss(), [10.0, -10.0])

    def step(x, y):
        x, y, *rest = (v.detach().requires_grad_() for v in (x, y, *(torch.tensor(v, device=x.device) for v in learned)))
        return torch.autograd.grad(loss_of(unit(x), unit(y), *rest), (x, y, *rest))

    return step


def pml_loss(name):
    """pytorch-metric-learning's loss of the rows of x against those of y."""
    from pytorch_metric_learning import distances, losses, miners

    cosine, euclidean = distances.CosineSimilarity(), distances.LpDistance(normalize_embeddings=True, p=2)
    mine = miners.MultiSimilarityMiner(epsilon=0.1, distance=cosine) if name == "ms-mined" else None
    loss_of = {
        "supcon": lambda: losses.SupConLoss(temperature=0.1, distance=cosine),
        "ms": lambda: losses.MultiSimilarityLoss(alpha=2, beta=50, base=0.5, distance=cosine),
        "ms-mined": lambda: losses.MultiSimilarityLoss(alpha=2, beta=50, base=0.5, distance=cosine),
        "circle": lambda: losses.CircleLoss(m=0.4, gamma=80, distance=cosine),
        "contrastive": lambda: losses.ContrastiveLoss(pos_margin=1, neg_margin=0, distance=cosine),
        "lifted": lambda: losses.GeneralizedLiftedStructureLoss(neg_margin=1, pos_margin=0, distance=euclidean),
    }[name]()

    def step(x, y):
        x, y = (v.detach().requires_grad_() for v in (x, y))
        # Two tensors: labels that are the same object stand for one set, of which the diagonal is left out.
        of_x, of_y = (torch.arange(len(x), device=x.device) for _ in range(2))
        chosen = mine(x.detach(), of_x, y.detach(), of_y) if mine else None
        return torch.autograd.grad(loss_of(x, of_x, chosen, ref_emb=y, ref_labels=of_y), (x, y))

    return step


OPEN_CLIP = ("infonce", "siglip")
PML = ("supcon", "ms", "ms-mined", "circle", "contrastive", "lifted")
OBJECTIVES = ("hinge-con", "nca-sig", *OPEN_CLIP, *PML)
VARIANTS = ("eager", "compile", "compile-graph")


def objective(name):
    """The step of that name; ImportError if its package is not installed."""
    if name in OPEN_CLIP:
        return open_clip_loss(name)
    return pml_loss(name) if name in PML else {"hinge-con": hinge_con, "nca-sig": nca_sig}[name]


def variants(step, device, wanted):
    if "eager" in wanted:
        yield "eager", step
    if "compile" in wanted:
        yield "compile", torch.compile(step)
    if "compile-graph" in wanted and device.type == "cuda":
        yield "compile-graph", torch.compile(step, mode="reduce-overhead")


def sample(run, steps, device):
    """Seconds per step."""
    if device.type == "cuda":
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(steps):
            run()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) * 1e-3 / steps
    begin = time.perf_counter()
    for _ in range(steps):
        run()
    return (time.perf_counter() - begin) / steps


def measure(run, device, seconds, samples):
    for _ in range(3):  # compilation, allocation, autotuning
        run()
    if device.type == "cuda":
        torch.cuda.synchronize()
    begin, warm = time.perf_counter(), []
    while not warm or time.perf_counter() - begin < 0.3:
        warm.append(sample(run, 1, device))
    steps = max(1, min(10_000, int(seconds / samples / max(statistics.median(warm), 1e-7))))
    return sorted(sample(run, steps, device) for _ in range(samples)), steps


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", help="cuda (default), cuda:1, cpu")
    parser.add_argument("--n", type=int, nargs="+", default=[128, 1024, 4096], help="pairs in a batch")
    parser.add_argument("--d", type=int, nargs="+", default=[256, 1024], help="elements of an embedding")
    parser.add_argument("--dtype", nargs="+", default=["f32", "bf16"], choices=DTYPES)
    parser.add_argument("--objective", nargs="+", default=list(OBJECTIVES), choices=OBJECTIVES)
    parser.add_argument("--variant", nargs="+", default=list(VARIANTS), choices=VARIANTS)
    parser.add_argument("--tf32", action="store_true", help="let f32 products use TF32 tensor cores; simgrad does not")
    parser.add_argument("--threads", type=int, help="CPU threads")
    parser.add_argument("--seconds", type=float, default=1.0, help="per case (default 1)")
    parser.add_argument("--samples", type=int, default=20)
    options = parser.parse_args()
    if options.device.startswith("cuda") and not torch.cuda.is_available():
        sys.exit("torch_step.py: PyTorch finds no CUDA device here; --device cpu times the CPU")
    device = torch.device(options.device)
    torch.backends.cuda.matmul.allow_tf32 = options.tf32
    if options.threads:
        torch.set_num_threads(options.threads)
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    about = {"torch": torch.__version__, "device": where, "threads": torch.get_num_threads(), "tf32": options.tf32}

    for name in options.objective:
        op = "goal_step" if name in ("hinge-con", "nca-sig") else "pairwise_step"
        try:
            chosen = objective(name)
        except ImportError as error:
            print(json.dumps({"op": op, "objective": name, "skipped": f"{error.name} is not installed"}), flush=True)
            continue
        for variant, step in variants(chosen, device, options.variant):
            for dtype in options.dtype:
                for n in options.n:
                    for d in options.d:
                        generator = torch.Generator(device).manual_seed(n + d)
                        x, y = (
                            torch.randn(n, d, device=device, generator=generator).to(DTYPES[dtype]) for _ in range(2)
                        )
                        case = {"op": op, "objective": name, "variant": variant, "dtype": dtype, "n": n, "d": d}
                        try:
                            times, steps = measure(lambda: step(x, y), device, options.seconds, options.samples)
                        except Exception as error:  # a missing compiler, too little memory: say so and go on
                            reason = str(error).strip().splitlines() or [type(error).__name__]
                            print(json.dumps({**case, "skipped": reason[0]}), flush=True)
                            continue
                        median = statistics.median(times)
                        figures = {
                            "median_us": round(median * 1e6, 2),
                            "p10_us": round(times[len(times) // 10] * 1e6, 2),
                            "p90_us": round(times[len(times) * 9 // 10] * 1e6, 2),
                            "gmac_per_s": round(n * n * d / median * 1e-9, 2),
                            "steps_per_sample": steps,
                            "samples": len(times),
                        }
                        print(json.dumps({**case, **figures, **about}), flush=True)


if __name__ == "__main__":
    main()
