#!/usr/bin/env python3
"""Every operation of the CPU path against its composition from numpy operations, in turns.

    cargo build --release --no-default-features --bench turns
    python3 benches/peers/paired_ops.py                                  # everything, half an hour
    python3 benches/peers/paired_ops.py --op product mine --shape 1024x512 --rounds 3

numpy's side is numpy_ops.py, simgrad's the bench `turns`, each in a process of its own that waits while the other one
measures. Five times numpy, then simgrad: a figure is the median of the five medians. Prints a row of a Markdown table per
operation and shape, and with --json all of it as an object per line. `--path avx2` and `--path portable` time other
instruction sets of simgrad's; `--against avx512` takes that path of simgrad in the place of numpy.
"""
import argparse
import glob
import json
import os
import statistics
import subprocess
import sys
import time

HERE = os.path.dirname(os.path.abspath(__file__))
OPS = ["product", "cosine_matrix", "mine", "goal-hinge-con", "goal-nca-sig", "goal-nca-sig_ms", "ranks", "top_k-10",
       "top_k-100", "positive_ranks", "mined_triplet-hardest", "mined_triplet-semi-hard", "weighted_grad", "row_norms",
       "normalize", "normalize_backward", "infonce", "siglip", "supcon", "ms", "ms-mined", "circle", "circle-full",
       "triplet-all", "contrastive", "lifted", "ranked-list"]
PAUSE = 0.1
SHAPES = ["128x128", "128x512", "128x1024", "1024x128", "1024x512", "1024x1024", "4096x128", "4096x512", "4096x1024"]


class Server:
    def __init__(self, command):
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)

    def pin(self):
        """One thread per core, the first one on the first: a busy machine's scheduler puts two of them on the same."""
        cores = sorted(os.sched_getaffinity(0))
        threads = sorted(int(task) for task in os.listdir(f"/proc/{self.process.pid}/task"))
        for place, thread in enumerate(threads):
            os.sched_setaffinity(thread, {cores[place % len(cores)]})

    def ask(self, line):
        # The other side's threads wait for more work for a while before they sleep.
        time.sleep(PAUSE)
        self.process.stdin.write(line + "\n")
        answer = json.loads(self.process.stdout.readline())
        if "refused" in answer:
            sys.exit(f"paired_ops.py: simgrad refuses `{line}`")
        return answer["median_ms"]


def turns_binary():
    target = os.environ.get("CARGO_TARGET_DIR", os.path.join(HERE, "..", "..", "target"))
    found = [path for path in glob.glob(os.path.join(target, "release", "deps", "turns-*")) if os.access(path, os.X_OK)]
    if not found:
        sys.exit("paired_ops.py: no `turns`; cargo build --release --no-default-features --bench turns")
    return max(found, key=os.path.getmtime)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--op", nargs="+", default=OPS)
    parser.add_argument("--shape", nargs="+", default=SHAPES, metavar="NxD")
    parser.add_argument("--dtype", default="f32", choices=["f32", "f16", "bf16"], help="of simgrad's inputs; numpy's are f32")
    parser.add_argument("--path", default="best", help="avx512, avx2 or portable; default: the best one of this machine")
    parser.add_argument("--against", help="compare with this path of simgrad, with f32 inputs, and not with numpy")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--pin", action="store_true", help="keep each thread on a core of its own")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.25, help="that one measurement takes at least")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    os.environ.setdefault("OPENBLAS_NUM_THREADS", str(args.threads))
    simgrad = Server([turns_binary()])
    peer = simgrad if args.against else Server([sys.executable, os.path.join(HERE, "numpy_ops.py"), "--serve"])
    name = args.against or "numpy"
    print(f"| operation | n, d | {name} ms | simgrad ms | ratio | all pairs' ratios |\n| --- | --- | --: | --: | --: | --- |", flush=True)
    for op in args.op:
        for shape in args.shape:
            n, d = shape.split("x")
            tail = f"{args.threads} {args.seconds}"
            other = f"{op} f32 {n} {d} {args.against} {tail}" if args.against else f"{op} {n} {d} {args.seconds}"
            ours = f"{op} {args.dtype} {n} {d} {args.path} {tail}"
            if args.pin:
                # Threads exist from the first call on.
                for server, line in ((peer, other), (simgrad, ours)):
                    server.ask(line.rsplit(" ", 1)[0] + " 0")
                    server.pin()
            pairs = [(peer.ask(other), simgrad.ask(ours)) for _ in range(args.rounds)]
            theirs, mine = (statistics.median(side) for side in zip(*pairs))
            ratios = sorted(a / b for a, b in pairs)
            print(f"| `{op}` | {n}, {d} | {theirs:.4g} | {mine:.4g} | {theirs / mine:.2f} | {ratios[0]:.2f} to {ratios[-1]:.2f} |", flush=True)
            if args.json:
                print(json.dumps({"op": op, "n": int(n), "d": int(d), "dtype": args.dtype, "path": args.path, "against": name, "pairs": pairs}), flush=True)


if __name__ == "__main__":
    main()
