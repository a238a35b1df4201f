"""One case measured: simgrad and its peers in turns in this process, ceilings before and after, results against f64."""

import gc
import math
import subprocess
import time

import torch

from . import parts, stats
from .cases import BY_KEY
from .sides import BUILDERS, Missing

WARM_SECONDS = 0.2
SAMPLE_SECONDS = 0.02
GRAPH_CALLS = 50
# Above this a call is so long that launches cost nothing, and a graph of 50 would take too long.
GRAPH_LIMIT_SECONDS = 1e-3
ROUNDS = 20
FEWEST_ROUNDS = 3
# Pairs of rows up to which a peer may run while others make themselves ready: it stores a matrix of them, or several.
READY_PAIRS = 1 << 31


def ceilings(place):
    """Rates of a product of 8192³ in bf16 on random data, and of a copy of 1 GiB: what the rest is a fraction of."""
    n, copied = (128, 1 << 20) if place.rehearsal else (8192, 1 << 30)
    a, b = (torch.randn(n, n, device=place.device).to(torch.bfloat16) for _ in range(2))
    source = torch.randint(0, 255, (copied,), dtype=torch.uint8, device=place.device)
    target = torch.empty_like(source)
    rates = {}
    for name, work, run in (("tflops", 2e-12 * n**3, lambda: torch.mm(a, b)), ("tbps", 2e-12 * copied, lambda: target.copy_(source))):
        begin = time.perf_counter()
        while time.perf_counter() - begin < (0 if place.rehearsal else WARM_SECONDS):
            place.sample(run)
        rates[name] = 5 * work / stats.percentile([place.sample(lambda: [run() for _ in range(5)]) for _ in range(10)], 50)
    return rates


def clocks():
    """What nvidia-smi says of the card at this moment."""
    fields = ["clocks.sm", "clocks.mem", "power.draw", "temperature.gpu", "clocks_event_reasons.active"]
    try:
        run = subprocess.run(
            ["nvidia-smi", "-i", parts.card(), f"--query-gpu={','.join(fields)}", "--format=csv,noheader"], capture_output=True, text=True, timeout=20
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return dict(zip(fields, (v.strip() for v in run.stdout.split(",")))) if run.returncode == 0 else None


def first_line(error):
    """What an error says first; of one that only says that another was raised, what that says too."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return " ".join(lines[: 2 if lines[0].endswith(":") else 1])[:300]


class Turn:
    """A side ready to be sampled: `run` enqueues `calls` calls."""

    def __init__(self, place, side, sets):
        self.side, self.next = side, 0
        side.run(0)
        place.synchronize()
        once = min(place.sample(lambda at=at: side.run(at)) for at in range(1 if place.rehearsal else 3))
        self.graph, self.note = False, side.note
        if place.rehearsal:
            self.calls = 1
        elif once < GRAPH_LIMIT_SECONDS:
            self.calls = max(GRAPH_CALLS, sets)
        else:
            self.calls = max(1, math.ceil(SAMPLE_SECONDS / once))
        self.run = lambda: self.call(self.calls)
        if side.graph and not place.rehearsal and once < GRAPH_LIMIT_SECONDS:
            try:
                self.run = place.graph(self.run)
                self.graph = True
            except Exception as error:  # something in it cannot be captured: timed with its launches
                self.note = f"not captured: {first_line(error)}"

    def call(self, count):
        # No result outlives its call: fifty matrices of similarities would not fit. The sets go on where the last sample ended.
        for _ in range(count):
            self.side.run(self.next)
            self.next += 1

    def warm(self, place):
        begin = time.perf_counter()
        while time.perf_counter() - begin < (0 if place.rehearsal else WARM_SECONDS):
            place.sample(self.run)

    def sample(self, place):
        return place.sample(self.run) / self.calls


def prepare(place, built, side):
    """A side's result checked against f64, its memory, and its turn; or why it cannot take part."""
    about = {}
    try:
        check = built.check
        reference = getattr(side, "reference", None)
        result = side.result()
        about["error"] = check(result, reference) if reference else check(result)
        about["correct"] = built.correct(side, about["error"])
        del result
        about["bytes"] = side.bytes if side.bytes is not None else place.peak(lambda: side.run(0))
        turn = Turn(place, side, len(built.sets))
        about |= {"calls": turn.calls, "graph": turn.graph}
        if turn.note:
            about["note"] = turn.note
        return turn, about
    except Exception as error:
        # Too little memory is a result too.
        if side.name.startswith("simgrad"):
            raise
        gc.collect()
        if not place.rehearsal:
            torch.cuda.empty_cache()
        return None, {"skipped": first_line(error)}


def floor(case, extents, rates):
    """Seconds at the ceilings: of the products and of the bytes, the longer."""
    *batch, n, m, d = extents
    products = case.t1 * 2 * n * m * d * (batch[0] if batch else 1) / (rates["tflops"] * 1e12)
    moved = case.bytes(extents, case.dtype) / (rates["tbps"] * 1e12)
    return {"products": products, "bytes": moved, "longer": max(products, moved)}


def make_ready(place, built):
    """Compiles what has to be compiled. What fails here says so when its turn comes."""
    for side in built.sides:
        try:
            if not isinstance(side, Missing) and side.compile:
                side.compile()
        except Exception:
            pass
    place.synchronize()
    gc.collect()
    if not place.rehearsal:
        torch.cuda.empty_cache()


def run(place, key, among, seconds):
    """`among` are the processes that this one shares the card with, a `turns.Turns`."""
    case = BY_KEY[key]
    extents = case.extents(place.rehearsal)
    torch.manual_seed(1)
    with among.together():
        built = BUILDERS[case.build](place, case, extents)
        if math.prod(extents[:-1]) <= READY_PAIRS:
            make_ready(place, built)
    with among.alone():
        return measured(place, case, extents, built, seconds)


def measured(place, case, extents, built, seconds):
    before = ceilings(place)
    turns, sides = [], {}
    for side in built.sides:
        if isinstance(side, Missing):
            sides[side.name] = {"skipped": side.reason}
            continue
        turn, sides[side.name] = prepare(place, built, side)
        if turn:
            turns.append(turn)
    by_name = {turn.side.name: turn for turn in turns}
    first, *others = by_name
    failed = {}
    for name, turn in by_name.items():
        try:
            turn.warm(place)
        except Exception as error:
            if name == first:
                raise
            failed[name] = first_line(error)
    hot = clocks()
    order, samples, more = stats.collect(
        first,
        [name for name in others if name not in failed],
        lambda name: by_name[name].sample(place),
        rounds=1 if place.rehearsal else ROUNDS,
        fewest=FEWEST_ROUNDS,
        seconds=seconds,
    )
    failed |= {name: first_line(error) for name, error in more.items()}
    after = ceilings(place)
    rates = {name: (before[name] + after[name]) / 2 for name in before}
    lowest = floor(case, extents, rates)
    ratios = stats.paired_ratios(order, samples, first)
    for name in by_name:
        if name in failed:
            sides[name] = {"skipped": failed[name]}
            continue
        times = [sample for who, sample in zip(order, samples) if who == name]
        sides[name]["seconds"] = stats.summary(times)
        # The floor's products at R, its bytes at BW, and the longer of the two, over the time.
        middle = stats.percentile(times, 50)
        sides[name] |= {"of_R": lowest["products"] / middle, "of_BW": lowest["bytes"] / middle, "of_floor": lowest["longer"] / middle}
        if name != first:
            sides[name]["times_simgrad"] = stats.summary(ratios[name])
    return {
        "key": case.key,
        "title": case.title,
        "op": case.build,
        "extents": list(extents),
        "dtype": case.dtype,
        "target": case.target,
        "rehearsal": place.rehearsal,
        "device": place.name,
        "input_sets": len(built.sets),
        "input_set_bytes": built.set_bytes,
        "ceilings": {"before": before, "after": after, "drift": {k: stats.drift(before[k], after[k]) for k in before}},
        "floor_seconds": lowest,
        "clocks": hot,
        "sides": sides,
    }
