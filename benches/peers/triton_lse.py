"""Log-sum-exp of every row and column of scale · x yᵀ in one Triton kernel, similarities never stored: a peer of the statistics.

One exponential per element, relative to the largest logit of its tile, serves the row and the column. That is exact as long as no line
is more than about 80 below its tile, which holds for random embeddings at a scale of 100; `check` against f64 says so each time. Partial
sums per tile are merged by a second kernel in a fixed order. Rows are taken as they are. Needs a GPU, or TRITON_INTERPRET=1.
"""

import torch
import triton
import triton.language as tl

from triton_mine import CHOICES, INTERPRETED, _similarities, _tile, operands

__all__ = ["CHOICES", "INTERPRETED", "lse"]

LOG2E = 1.4426950408889634


@triton.jit
def _partials(
    x, y, scale, tile_max, row_sum, col_sum, n, m, d,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, GROUP: tl.constexpr, PRECISION: tl.constexpr,
):
    tile_i, tile_j = _tile(tl.program_id(0), n, m, BM, BN, GROUP)
    i, j = tile_i * BM + tl.arange(0, BM), tile_j * BN + tl.arange(0, BN)
    z = _similarities(x, y, i, j, n, m, d, BM, BN, BK, PRECISION) * scale
    z = tl.where((i[:, None] < n) & (j[None, :] < m), z, float("-inf"))
    top = tl.max(tl.max(z, 1), 0)
    e = tl.exp2(z - top)
    tl.store(tile_max + tile_i * tl.cdiv(m, BN) + tile_j, top)
    tl.store(row_sum + tile_j.to(tl.int64) * n + i, tl.sum(e, 1), mask=i < n)
    tl.store(col_sum + tile_i.to(tl.int64) * m + j, tl.sum(e, 0), mask=j < m)


@triton.jit
def _merge(tile_max, sums, out, count, tiles, of_line, of_tile, TILE: tl.constexpr):
    # The lines of a block lie in one tile row or column, so that its tiles' maxima are scalars.
    block = tl.program_id(0)
    at = block * TILE + tl.arange(0, TILE)
    top = float("-inf")
    for t in range(0, tiles):
        top = tl.maximum(top, tl.load(tile_max + block * of_line + t * of_tile))
    total = tl.zeros((TILE,), tl.float32)
    line = sums + at
    for t in range(0, tiles):
        factor = tl.exp2(tl.load(tile_max + block * of_line + t * of_tile) - top)
        total += tl.load(line, mask=at < count, other=0.0) * factor
        line += count
    tl.store(out + at, (tl.log2(total) + top) * 0.6931471805599453, mask=at < count)


def lse(x, y, scale, choice, precision="ieee"):
    """ln Σ_j exp(scale x_i · y_j) of every row i, and the same of every column."""
    x, y = operands(x, y)
    (n, d), m = x.shape, y.shape[0]
    block_m, block_n, block_k, warps, stages = choice
    tiles_n, tiles_m = triton.cdiv(n, block_m), triton.cdiv(m, block_n)
    new = lambda *shape: torch.empty(shape, dtype=torch.float32, device=x.device)
    tile_max, row_sum, col_sum, rows, cols = new(tiles_n, tiles_m), new(tiles_m, n), new(tiles_n, m), new(n), new(m)
    _partials[(tiles_n * tiles_m,)](
        x, y, scale * LOG2E, tile_max, row_sum, col_sum, n, m, d,
        BM=block_m, BN=block_n, BK=block_k, GROUP=8, PRECISION=precision, num_warps=warps, num_stages=stages,
    )
    _merge[(tiles_n,)](tile_max, row_sum, rows, n, tiles_m, tiles_m, 1, TILE=block_m)
    _merge[(tiles_m,)](tile_max, col_sum, cols, m, tiles_n, 1, tiles_m, TILE=block_n)
    return rows, cols
