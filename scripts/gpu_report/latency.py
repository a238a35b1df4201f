"""Latency of one GOAL step as a training loop replays it: a graph of one step, inputs in L2."""

import time

import torch

from . import stats
from .place import Operation, input_sets
from .simgrad import GOAL_OBJECTIVES

KEYS = [f"{objective}/{dtype}/{n}" for objective in ("hinge-con", "nca-sig", "cir-sig_ms") for dtype in ("bf16", "f32") for n in (128, 512, 1024)]
SAMPLES = 50
REPLAYS = 50


def run(place, key, among):
    objective, dtype, n = key.split("/")
    n, d = (40, 24) if place.rehearsal else (int(n), 1024)
    sets, _ = input_sets(place, dtype, (n, d), (n, d), most=1)
    step = Operation(place, "goal_step", sets, normalize=1, objective=GOAL_OBJECTIVES[objective])
    with among.together():
        step()
        place.synchronize()
    with among.alone():
        return measured(place, key, n, d, dtype, step)


def measured(place, key, n, d, dtype, step):
    about = {"key": key, "n": n, "d": d, "dtype": dtype, "rehearsal": place.rehearsal, "device": place.name}
    if place.rehearsal:
        return {**about, "seconds": stats.summary([place.sample(step)])}
    one = place.graph(step)
    chain = place.graph(lambda: [step() for _ in range(REPLAYS)])
    begin = time.perf_counter()
    while time.perf_counter() - begin < 0.2:
        chain()
        place.synchronize()
    alone = []
    for _ in range(SAMPLES):
        # The host's way to the card and back included: what a loop that waits for every step sees.
        begin = time.perf_counter()
        one()
        torch.cuda.synchronize()
        alone.append(time.perf_counter() - begin)
    replay = [place.sample(lambda: [one() for _ in range(REPLAYS)]) / REPLAYS for _ in range(SAMPLES)]
    inside = [place.sample(chain) / REPLAYS for _ in range(SAMPLES)]
    return {
        **about,
        "seconds": stats.summary(inside),
        "seconds_per_replay": stats.summary(replay),
        "seconds_with_wait": stats.summary(alone),
    }
