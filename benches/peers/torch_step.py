#!/usr/bin/env python3
"""Times the work of simgrad's `goal_step` in PyTorch: from two batches of raw embeddings to both gradients.

    python3 benches/peers/torch_step.py                  # on the GPU
    python3 benches/peers/torch_step.py --device cpu

Variants: `eager`; `compile` (torch.compile with its defaults); on a GPU also `compile-graph` (mode reduce-overhead,
which replays a CUDA graph, as simgrad's step can be). A variant that this installation cannot run is reported and left
out. The objectives are `hinge-con`, which is the VSE++ loss and is differentiated by autograd, and `nca-sig`, which has
no loss and whose gradient is written out.

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


OBJECTIVES = {"hinge-con": hinge_con, "nca-sig": nca_sig}


def variants(step, device):
    yield "eager", step
    yield "compile", torch.compile(step)
    if device.type == "cuda":
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
        for variant, step in variants(OBJECTIVES[name], device):
            for dtype in options.dtype:
                for n in options.n:
                    for d in options.d:
                        generator = torch.Generator(device).manual_seed(n + d)
                        x, y = (
                            torch.randn(n, d, device=device, generator=generator).to(DTYPES[dtype]) for _ in range(2)
                        )
                        case = {"op": "goal_step", "objective": name, "variant": variant, "dtype": dtype, "n": n, "d": d}
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
