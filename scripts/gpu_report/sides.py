"""What takes turns in a case: simgrad's call and its peers, on the same tensors."""

import contextlib
import importlib
import os
import pathlib
import sys

import torch

from . import checks
from .place import Operation, input_sets
from .simgrad import GOAL_OBJECTIVES, PAIRWISE_OBJECTIVES

PEERS = pathlib.Path(__file__).resolve().parents[2] / "benches" / "peers"
sys.path.insert(0, str(PEERS))
import torch_ops  # noqa: E402
import torch_step  # noqa: E402


class Side:
    """`run(at)` does the work on input set `at`; `result()` what it gave for set 0; `bytes` what it needs, if that is known;
    `compile()` does what only the first run does, where there is such a thing."""

    def __init__(self, name, run, result=None, bytes=None, graph=True, note=None, limits=None, compile=None):
        self.name, self.run, self.bytes, self.graph, self.note, self.limits = name, run, bytes, graph, note, limits
        self.result, self.compile = result or (lambda: run(0)), compile


def compiled_side(name, run):
    """A side with a compiled function in it."""
    return Side(name, run, compile=lambda: run(0))


class Missing:
    """A peer that this machine cannot run, and why."""

    def __init__(self, name, reason):
        self.name, self.reason = name, reason


class Built:
    """A case ready to run: `sides` with simgrad first, and `check(result)` for a side's errors by name.

    `limits` are those of simgrad's errors, where a side has none of its own. `peer_limits` are wide: rounding to 16 bits between two operations is a peer's own affair,
    another operation than the one that was meant is not.
    """

    def __init__(self, sets, set_bytes, sides, check, limits, peer_limits):
        self.sets, self.set_bytes, self.sides, self.check = sets, set_bytes, sides, check
        self.limits, self.peer_limits = limits, peer_limits

    def correct(self, side, errors):
        """Whether no error is above its limit; NaN is."""
        limits = side.limits or (self.limits if side.name.startswith("simgrad") else self.peer_limits)
        return all(errors[name] <= limit for name, limit in limits.items() if name in errors)


def compiled(place, function):
    """In a rehearsal traced alone: code for the CPU would say nothing and take minutes."""
    return torch.compile(function, backend="eager") if place.rehearsal else torch.compile(function)


def peers(place, sets, function, *rest, name="", compile_too=True):
    """A function of x, y and `rest` as it is, and compiled."""
    over = lambda f: lambda at: f(*sets[at % len(sets)], *rest)
    suffix = f" {name}" if name else ""
    yield Side(f"eager{suffix}", over(function))
    if compile_too:
        yield compiled_side(f"compile{suffix}", over(compiled(place, function)))


def triton_peer(place, module, sides):
    """`sides(module, only)` of a Triton module, or why there is none. `only` are the choices of a rehearsal."""
    if place.rehearsal:
        os.environ.setdefault("TRITON_INTERPRET", "1")
    try:
        found = importlib.import_module(module)
    except ImportError as error:
        return Missing("triton", f"{error.name} is not installed")
    return sides(found, [found.INTERPRETED] if place.rehearsal else None)


def fastest(place, choices, run):
    """The choice that takes the least time; those that the card or the compiler refuses are left out."""
    if len(choices) == 1:
        return choices[0]
    times, reason = {}, None
    for choice in choices:
        try:
            run(choice)
            times[choice] = min(place.sample(lambda: run(choice)) for _ in range(3))
        except Exception as error:  # too much shared memory, too many registers: the next one
            reason = error
    if not times:
        raise RuntimeError(f"no choice of tiles runs: {reason}")
    return min(times, key=times.get)


def tuned(place, name, choices, run):
    """A side of `run(at, choice)` with the fastest choice, found at its first use."""
    chosen = []

    def work(at):
        if not chosen:
            chosen.append(fastest(place, choices, lambda choice: run(0, choice)))
        return run(at, chosen[0])

    def compile():
        for choice in choices:
            # Some have too much shared memory for the card: `fastest` leaves those out.
            with contextlib.suppress(Exception):
                run(0, choice)

    return Side(name, work, compile=compile)


def ours(place, op, sets, result, inputs=(), name="simgrad", limits=None, **fields):
    operation = Operation(place, op, sets, inputs, **fields)
    read = lambda: (operation(0), result(operation))[1]
    return Side(name, operation, read, operation.bytes(), limits=limits)


# Similarities in f32, and peers' in 16 bits: of unit rows, far below 1.
NEAREST, PEER_NEAREST = {"value": 2e-6, "regret": 2e-6}, {"value": 1e-2, "regret": 1e-2}


def cosine(place, case, extents):
    (*batch, n, m, d) = extents
    sets, size = input_sets(place, case.dtype, (*batch, n, d), (*batch, m, d))
    out = lambda o: o.output(0, torch.float32, *batch, n, m)
    sides = [ours(place, "cosine_matrix", sets, out, normalize=1, out_dtype=0)]
    if case.dtype == "f32":
        # Its error bound, docs/numerics.md; the error of most similarities is a hundredth of that.
        split = {"max_abs": 2**-15 + 1e-5}
        sides.append(ours(place, "cosine_matrix", sets, out, name="simgrad split", limits=split, normalize=1, out_dtype=0, objective=1))
    if batch:
        sides += peers(place, sets, torch_ops.cosine_batched)
    elif case.dtype == "f32":
        for precision in ("highest", "high"):
            sides.append(Side(f"eager {precision}", with_precision(precision, sets, torch_ops.cosine)))
        sides.append(compiled_side("compile highest", with_precision("highest", sets, compiled(place, torch_ops.cosine))))
    else:
        sides += peers(place, sets, torch_ops.cosine)
    # 16-bit inputs are taken exactly and summed in f32.
    return Built(sets, size, sides, lambda s: checks.cosine(*sets[0], s), {"max_abs": 2e-6}, {"max_abs": 2e-2})


def with_precision(precision, sets, function):
    def run(at):
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision(precision)
        try:
            return function(*sets[at % len(sets)])
        finally:
            torch.set_float32_matmul_precision(before)

    return run


def both(o, n, m):
    return (o.output(1, torch.float32, n), o.output(2, torch.int32, n), o.output(3, torch.float32, m), o.output(4, torch.int32, m))


def mine(place, case, extents):
    n, m, d = extents
    sets, size = input_sets(place, case.dtype, (n, d), (m, d))
    sides = [ours(place, "mine", sets, lambda o: both(o, n, m))]
    chunk = case.options.get("chunk")
    function = torch_ops.mine_chunked if chunk else torch_ops.mine
    sides += peers(place, sets, function, *([chunk] if chunk else []))
    precision = "tf32x3" if case.dtype == "f32" and not place.rehearsal else "ieee"

    def triton_sides(module, only):
        choices = only or (module.CHOICES_F32 if case.dtype == "f32" else module.CHOICES)
        return tuned(place, "triton", choices, lambda at, choice: module.mine(*sets[at % len(sets)], choice, precision))

    sides.append(triton_peer(place, "triton_mine", triton_sides))
    return Built(sets, size, sides, lambda r: checks.mined(*sets[0], r), NEAREST, PEER_NEAREST)


def top_k(place, case, extents):
    n, m, d = extents
    k = 8
    sets, size = input_sets(place, case.dtype, (n, d), (m, d))
    result = lambda o: (
        o.output(2, torch.float32, n, k), o.output(1, torch.int32, n, k), o.output(5, torch.float32, m, k), o.output(4, torch.int32, m, k)
    )
    sides = [ours(place, "mine_top_k", sets, result, k=k), *peers(place, sets, torch_ops.top_k, k)]
    return Built(sets, size, sides, lambda r: checks.top_k(*sets[0], r), NEAREST, PEER_NEAREST)


def semi_hard(place, case, extents):
    n, m, d = extents
    sets, size = input_sets(place, case.dtype, (n, d), (m, d))
    result = lambda o: (o.output(2, torch.float32, n), o.output(1, torch.int32, n), o.output(5, torch.float32, m), o.output(4, torch.int32, m))
    sides = [ours(place, "mine_top_k", sets, result, k=1, semi_hard=1)]
    if n == m:
        sides += peers(place, sets, torch_ops.semi_hard)
    else:
        sides.append(Missing("eager", "the rehearsal's shape is not square"))
    return Built(sets, size, sides, lambda r: checks.mined(*sets[0], r, below_positive=True), NEAREST, PEER_NEAREST)


def report_loss(o):
    """The first f64 of a step's report."""
    return float(o.output(2, torch.float64, -1)[0])


def lse(place, case, extents):
    n, m, d = extents
    scale = 100.0
    sets, size = input_sets(place, case.dtype, (n, d), (m, d))
    # The call leaves the statistics in its workspace; the loss is made of all of them.
    fields = {"objective": PAIRWISE_OBJECTIVES["infonce"], "scale": scale, "wave_bytes": 1}
    sides = [ours(place, "pairwise_statistics", sets, report_loss, **fields)]
    sides += peers(place, sets, torch_ops.lse_chunked, scale)
    triton_sides = lambda module, only: tuned(
        place, "triton", only or module.CHOICES, lambda at, choice: module.lse(*sets[at % len(sets)], scale, choice)
    )
    sides.append(triton_peer(place, "triton_lse", triton_sides))
    x, y = sets[0]
    wanted = checks.row_col_lse(x, y, scale)

    def check(result):
        if not isinstance(result, float):
            return checks.lse(wanted, result)
        pairs = min(n, m)
        positive = scale * (x[:pairs].double() * y[:pairs].double()).sum(1)
        loss = float(((wanted[0][:pairs] - positive).mean() + (wanted[1][:pairs] - positive).mean()) / 2)
        return {"loss_relative": abs(result - loss) / abs(loss)}

    return Built(sets, size, sides, check, {"loss_relative": 1e-5}, {"max_abs": 0.3})


def gradients_of(o, n, m, d):
    return o.output(0, torch.float32, n, d), o.output(1, torch.float32, m, d)


def clip(place, case, extents):
    n, m, d = extents
    scale = 100.0
    sets, size = input_sets(place, case.dtype, (n, d), (m, d))
    fields = {"objective": PAIRWISE_OBJECTIVES["infonce"], "scale": scale, "wave_bytes": 1 << 30}
    result = lambda o: gradients_of(o, n, m, d)
    sides = [ours(place, "pairwise_step", sets, result, **fields)]
    if case.options.get("keep"):
        sides.append(ours(place, "pairwise_step", sets, result, name="simgrad, S stored", keep_bytes=1 << 40, **fields))
    eager = lambda x, y: torch_ops.gradients(torch_ops.clip_loss, x, y, scale)
    loss = compiled(place, torch_ops.clip_loss)
    sides += peers(place, sets, eager, name="open_clip", compile_too=False)
    sides.append(compiled_side("compile open_clip", lambda at: torch_ops.gradients(loss, *sets[at % len(sets)], scale)))
    weights = compiled(place, torch_ops.clip_weights)

    def triton_sides(module, only):
        def run(at, choice):
            return torch_ops.clip_fused(*sets[at % len(sets)], scale, lambda x, y: module.lse(x, y, scale, choice), weights)

        return tuned(place, "triton + cuBLAS", only or module.CHOICES, run)

    sides.append(triton_peer(place, "triton_lse", triton_sides))
    wanted = checks.row_col_lse(*sets[0], scale)
    # W is rounded to bf16, own pairs apart; peers round logits of up to 100 to bf16.
    return Built(sets, size, sides, lambda r: checks.clip(*sets[0], scale, wanted, r), {"relative": 1e-2}, {"relative": 0.5})


def siglip(place, case, extents):
    n, m, d = extents
    scale, bias = 10.0, -10.0
    sets, size = input_sets(place, case.dtype, (n, d), (m, d))
    fields = {"objective": PAIRWISE_OBJECTIVES["siglip"], "scale": scale, "bias": bias, "wave_bytes": 1 << 30}
    sides = [ours(place, "pairwise_step", sets, lambda o: gradients_of(o, n, m, d), **fields)]
    loss = compiled(place, torch_ops.siglip_loss)
    for name, chunk in (("whole", 0), ("chunks of 512", 512)):
        sides += peers(place, sets, torch_ops.siglip_gradients, scale, bias, chunk, name=name, compile_too=False)
    sides.append(compiled_side("compile whole", lambda at: torch_ops.siglip_gradients(*sets[at % len(sets)], scale, bias, 0, loss)))
    return Built(sets, size, sides, lambda r: checks.siglip(*sets[0], scale, bias, r), {"relative": 3e-3}, {"relative": 0.1})


def sparse(place, case, extents):
    n, m, d = extents
    sets, size = input_sets(place, case.dtype, (n, d), (m, d))
    generator = torch.Generator(place.device).manual_seed(7)
    draw = lambda high: torch.randint(high, (n,), generator=generator, device=place.device)
    hubs = case.options.get("hubs")
    own = torch.arange(n, device=place.device)
    negatives = draw(m) if hubs is None else draw(min(hubs, m)) * (m // min(hubs, m))
    rows, cols = torch.cat([own, own]).int(), torch.cat([own, negatives]).int()
    values = torch.randn(2 * n, generator=generator, device=place.device)
    inputs = (rows, cols, values)
    sides = [ours(place, "weighted_grad", sets, lambda o: gradients_of(o, n, m, d), inputs=inputs, k=2 * n)]
    longs = (rows.long(), cols.long(), values)
    sides += peers(place, sets, torch_ops.sparse_gradient, *longs, name="index_add_")

    def deterministic(at):
        torch.use_deterministic_algorithms(True)
        try:
            return torch_ops.sparse_gradient(*sets[at % len(sets)], *longs)
        finally:
            torch.use_deterministic_algorithms(False)

    sides.append(Side("eager index_add_, deterministic", deterministic))
    return Built(sets, size, sides, lambda r: checks.sparse(*sets[0], *inputs, r), {"relative": 1e-5}, {"relative": 1e-5})


def step(place, case, extents):
    n, m, d = extents
    sets, size = input_sets(place, case.dtype, (n, d), (m, d))
    result = lambda o: gradients_of(o, n, m, d)
    goal = lambda name: {"normalize": 1, "objective": GOAL_OBJECTIVES[name]}
    hot = ours(place, "goal_step", sets[:1], result, name="simgrad, inputs in L2", **goal("hinge-con"))
    sides = [ours(place, "goal_step", sets, result, **goal("hinge-con")), hot]
    eager = lambda at: torch_step.hinge_con(*sets[at % len(sets)])
    sides.append(Side("eager VSE++", eager, graph=False))
    sides.append(Side("eager VSE++, graph", eager))
    sides.append(compiled_side("compile VSE++, graph", next(reversed(list(peers(place, sets, torch_step.hinge_con)))).run))
    nca = ours(place, "goal_step", sets, result, name="simgrad nca-sig", **goal("nca-sig"))
    nca.reference = torch_step.nca_sig
    sides.append(nca)
    for side in peers(place, sets, torch_step.nca_sig, name="GOAL, graph"):
        side.reference = torch_step.nca_sig
        sides.append(side)
    if n <= 128:
        sides.append(Side("GOAL loop", lambda at: torch_ops.goal_loop(*sets[at % len(sets)]), graph=False))
    wanted = {}

    def check(result, reference=torch_step.hinge_con):
        if reference not in wanted:
            wanted[reference] = [g.double() for g in reference(*(v.double() for v in sets[0]))]
        return checks.whole(wanted[reference], result)

    # In 16 bits a peer may find another negative the hardest, which makes another gradient of that row.
    return Built(sets, size, sides, check, {"relative": 1e-4}, {"relative": 1e-4} if case.dtype == "f32" else {})


def ranks(place, case, extents):
    n, m, d = extents
    sets, size = input_sets(place, case.dtype, (n, d), (m, d), most=4)
    texts = m // n
    ids = (torch.arange(n, device=place.device), torch.arange(m, device=place.device) // texts)
    for x, y in sets:
        # Texts lie near their image, so that ranks are those of a model that has learned something.
        y.copy_(torch.nn.functional.normalize(y.float() + 0.1 * x.float()[ids[1]], dim=1).to(y.dtype))
    result = lambda o: (o.output(0, torch.int32, n), o.output(1, torch.int32, m))
    sides = [ours(place, "ranks", sets, result, inputs=ids), *peers(place, sets, torch_ops.top_matches, *ids, name="top-10", compile_too=True)]
    wanted = checks.rank(*sets[0], *ids)

    def check(result):
        other = 0
        for (at, rank), found in zip(wanted, result):
            if found.dim() == 1:
                other += int((found[at].long() != rank).sum())
            else:
                # Matches in order of nearness: the first one is the rank, if there is one among the ten.
                first = torch.where(found.any(1), found.int().argmax(1), found.shape[1])[at]
                other += int((first != rank.clamp(max=found.shape[1])).sum())
        return {"other_rank": other / sum(len(at) for at, _ in wanted)}

    # Candidates whose similarity differs from the positive's by less than a rounding may change places.
    return Built(sets, size, sides, check, {"other_rank": 0.125}, {"other_rank": 0.5})


BUILDERS = {f.__name__: f for f in (cosine, mine, top_k, semi_hard, lse, clip, siglip, sparse, step, ranks)}
