"""The sixteen configurations: what is run, beside what, what it is compared with, and what its floor is.

`t1` is how many products of 2 n m d the floor counts, `bytes` what has to be read and written; the floor is the longer of the two at
the ceilings measured in the same process. A `tiny` shape is the rehearsal's.
"""

import dataclasses
import typing


@dataclasses.dataclass(frozen=True)
class Case:
    key: str
    title: str
    build: str
    shape: tuple  # n, m, d; of a batch b, n, m, d
    tiny: tuple
    dtype: str
    t1: float
    bytes: typing.Callable
    target: str
    options: dict = dataclasses.field(default_factory=dict)

    def extents(self, rehearsal):
        return self.tiny if rehearsal else self.shape


ELEMENT = {"f32": 4, "f16": 2, "bf16": 2}


def _operands(s, dtype):
    return (s[-3] + s[-2]) * s[-1] * ELEMENT[dtype] * (s[0] if len(s) == 4 else 1)


def _stored(s, dtype):
    return _operands(s, dtype) + s[-3] * s[-2] * 4 * (s[0] if len(s) == 4 else 1)


def _steps(s, dtype):
    """Operands once, gradients in f32 once."""
    return _operands(s, dtype) + (s[-3] + s[-2]) * s[-1] * 4


CASES = [
    Case("1", "similarities, f32 out", "cosine", (16384, 16384, 512), (130, 70, 40), "bf16", 1, _stored, "0.80 R"),
    # f32-grade similarities on tensor cores are three products of 16-bit parts.
    Case("2", "similarities, f32 in and out", "cosine", (8192, 8192, 1024), (70, 130, 40), "f32", 3, _stored, "0.80 R/3"),
    Case("3", "similarities, batched", "cosine", (64, 512, 512, 512), (3, 33, 20, 40), "f16", 1, _stored, "0.80 R"),
    Case("4", "hardest negatives, rows and columns", "mine", (16384, 16384, 512), (130, 70, 40), "bf16", 1, _operands, "0.82 R"),
    Case("5", "hardest negatives", "mine", (65536, 65536, 1024), (70, 70, 72), "bf16", 1, _operands, "0.88 R", {"chunk": 4096}),
    # The floor of a 16-bit screen with exact scores for what it leaves.
    Case("6", "hardest negatives, f32 exact", "mine", (32768, 32768, 512), (70, 130, 40), "f32", 1, _operands, "", {"chunk": 4096}),
    Case("7", "8 hardest negatives", "top_k", (16384, 16384, 512), (130, 70, 40), "bf16", 1, _operands, "0.85 of #4"),
    Case("7s", "semi-hard negatives", "semi_hard", (16384, 16384, 512), (70, 70, 40), "bf16", 1, _operands, "0.85 of #4"),
    Case("8", "log-sum-exp, rows and columns", "lse", (32768, 32768, 512), (130, 70, 40), "bf16", 1, _operands, "0.78 R"),
    Case("9", "InfoNCE step, scale 100", "clip", (4096, 4096, 512), (70, 70, 40), "bf16", 3, _steps, "3 T1 / 0.78", {"keep": True}),
    Case("10", "InfoNCE step", "clip", (32768, 32768, 768), (70, 70, 72), "bf16", 4, _steps, "4 T1 / 0.80"),
    Case("11", "InfoNCE step, bounded memory", "clip", (131072, 131072, 512), (130, 130, 40), "bf16", 4, _steps, "4 T1 / 0.80"),
    Case("12", "SigLIP step", "siglip", (32768, 32768, 768), (70, 70, 40), "bf16", 3, _steps, "3 T1 / 0.80"),
    Case("13u", "sparse gradient, uniform", "sparse", (65536, 65536, 1024), (70, 70, 40), "bf16", 0, _steps, "1.3 floors"),
    Case("13h", "sparse gradient, 64 hubs", "sparse", (65536, 65536, 1024), (70, 70, 40), "bf16", 0, _steps, "1.3 floors", {"hubs": 64}),
    *(
        Case(f"14-{n}-{dtype}", "VSE++ step", "step", (n, n, 1024), (40, 40, 24), dtype, 1, _steps, f"{us} µs" if dtype == "bf16" else "")
        for dtype in ("bf16", "f32")
        for n, us in ((128, 6), (512, 8.5), (1024, 11))
    ),
    Case("15", "ranks both ways, five texts an image", "ranks", (5000, 25000, 1024), (20, 100, 24), "f16", 2, _operands, "0.80 R"),
    Case("16", "hardest negatives, ragged", "mine", (10007, 9973, 640), (67, 45, 40), "bf16", 1, _operands, "0.93 of 16a"),
    Case("16a", "the next aligned shape", "mine", (10112, 9984, 640), (64, 64, 40), "bf16", 1, _operands, ""),
]
BY_KEY = {case.key: case for case in CASES}
