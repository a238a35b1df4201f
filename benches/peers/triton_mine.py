"""Hardest negatives of every row and column in one Triton kernel, similarities never stored: a peer of `mine`.

A tile of similarities is formed on tensor cores; its row and column maxima, with their indices, go as 64-bit keys (value in an
order-preserving form, then the complement of the index) into an atomic maximum per row and per column, which is exact and has no order.
Own pairs (i, i) are no candidates. Rows are taken as they are. Needs a GPU, or TRITON_INTERPRET=1.
"""

import os

import torch
import triton
import triton.language as tl

# Tile, step of d, warps, stages: what is tried on the card, the fastest is kept for a shape and type.
CHOICES = [
    (128, 128, 64, 4, 3),
    (128, 128, 64, 8, 3),
    (128, 256, 64, 8, 3),
    (128, 256, 64, 8, 4),
    (256, 128, 64, 8, 3),
    (128, 128, 32, 8, 4),
]
# Of f32, which takes twice the shared memory.
CHOICES_F32 = [(128, 128, 32, 8, 3), (128, 128, 32, 8, 2), (128, 128, 16, 8, 3), (128, 64, 32, 4, 3)]
INTERPRETED = (32, 32, 32, 4, 1)


@triton.jit
def _tile(pid, n, m, BM: tl.constexpr, BN: tl.constexpr, GROUP: tl.constexpr):
    # Bands of GROUP tile rows, so that programs in flight share operands in L2.
    tiles_n, tiles_m = tl.cdiv(n, BM), tl.cdiv(m, BN)
    band = GROUP * tiles_m
    first = pid // band * GROUP
    rows = tl.minimum(tiles_n - first, GROUP)
    return first + pid % band % rows, pid % band // rows


@triton.jit
def _similarities(x, y, i, j, n, m, d, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, PRECISION: tl.constexpr):
    k = tl.arange(0, BK)
    acc = tl.zeros((BM, BN), tl.float32)
    for start in range(0, d, BK):
        column = start + k
        a = tl.load(x + i[:, None].to(tl.int64) * d + column[None, :], mask=(i[:, None] < n) & (column[None, :] < d), other=0.0)
        b = tl.load(y + j[:, None].to(tl.int64) * d + column[None, :], mask=(j[:, None] < m) & (column[None, :] < d), other=0.0)
        acc = tl.dot(a, tl.trans(b), acc, input_precision=PRECISION)
    return acc


@triton.jit
def _key(value, index):
    bits = value.to(tl.int32, bitcast=True)
    ordered = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    return (ordered.to(tl.int64) << 32) | (0xFFFFFFFF - index.to(tl.int64))


@triton.jit
def _mine(x, y, row_key, col_key, n, m, d, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, GROUP: tl.constexpr, PRECISION: tl.constexpr):
    tile_i, tile_j = _tile(tl.program_id(0), n, m, BM, BN, GROUP)
    i, j = tile_i * BM + tl.arange(0, BM), tile_j * BN + tl.arange(0, BN)
    s = _similarities(x, y, i, j, n, m, d, BM, BN, BK, PRECISION)
    candidate = (i[:, None] < n) & (j[None, :] < m) & (i[:, None] != j[None, :])
    s = tl.where(candidate, s, float("-inf"))
    value, index = tl.max(s, 1, return_indices=True)
    tl.atomic_max(row_key + i, _key(value, index + tile_j * BN), mask=i < n, sem="relaxed")
    value, index = tl.max(s, 0, return_indices=True)
    tl.atomic_max(col_key + j, _key(value, index + tile_i * BM), mask=j < m, sem="relaxed")


@triton.jit
def _decode(keys, value, index, count, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    key = tl.load(keys + at, mask=at < count, other=0)
    ordered = (key >> 32).to(tl.int32)
    bits = ordered ^ ((ordered >> 31) & 0x7FFFFFFF)
    tl.store(value + at, bits.to(tl.float32, bitcast=True), mask=at < count)
    tl.store(index + at, (0xFFFFFFFF - (key & 0xFFFFFFFF)).to(tl.int32), mask=at < count)


def operands(x, y):
    """As they are; under the interpreter, whose products of bf16 are wrong, widened, which is exact."""
    interpreted = os.environ.get("TRITON_INTERPRET") == "1" and x.dtype == torch.bfloat16
    return (x.float(), y.float()) if interpreted else (x, y)


def mine(x, y, choice, precision="ieee"):
    """Values and indices of the rows, then of the columns. `precision` matters for f32: `ieee`, `tf32x3` or `tf32`."""
    x, y = operands(x, y)
    (n, d), m = x.shape, y.shape[0]
    block_m, block_n, block_k, warps, stages = choice
    keys = torch.full((n + m,), torch.iinfo(torch.int64).min, dtype=torch.int64, device=x.device)
    value = torch.empty(n + m, dtype=torch.float32, device=x.device)
    index = torch.empty(n + m, dtype=torch.int32, device=x.device)
    grid = (triton.cdiv(n, block_m) * triton.cdiv(m, block_n),)
    _mine[grid](
        x, y, keys, keys[n:], n, m, d,
        BM=block_m, BN=block_n, BK=block_k, GROUP=8, PRECISION=precision, num_warps=warps, num_stages=stages,
    )
    _decode[(triton.cdiv(n + m, 1024),)](keys, value, index, n + m, BLOCK=1024)
    return value[:n], index[:n], value[n:], index[n:]
