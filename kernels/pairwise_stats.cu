// pairwise_stats — what the weights of a pairwise objective need to know of every anchor, in one sweep over the tiles of S.
//
//   S[i, j] = (x_i . y_j) inv_x[i] inv_y[j]; not stored, or where `keep` says so stored, or loaded
//   per row: the states of its negatives and of its positives; both sides: of the negatives of every row and every column
//   (states: common/pairwise.cuh; logits and terms of each form: docs/maths.md). With `extremes` only the largest negative
//   and the smallest positive of every row, which a miner compares with (NaN left out).
//
//   x (n, d), y (m, d)    T: f32 | f16 | bf16, row-major, base and rows aligned to 16 bytes
//   inv_x (n), inv_y (m)  f32 or null;  groups i64, masks u8, log_q f32: see params/pairwise.h
//   row_parts, other_parts (6, splits, lines): 4-byte words; where columns are anchors too, planes 0, 1 and 3 alone
//   pos (min(n, m)) f32;  col_flags (m) u32;  counts (2) u64
//   No output may alias an input or another output.
//
// Work    the tiles are dealt to row_splits x col_splits blocks; a block sweeps its rectangle, columns innermost. Thread t
//         owns set t of the tile at hand (128 sets of the rows' negatives, then 128 of the columns' negatives or the rows'
//         positives), whose state lives in the block's own partial slot.
// Launch  grid = (col_splits, row_splits), block = 256, 98,304 bytes of dynamic shared memory.
// Bound   tensor cores (f32: FMA), 2 n m d, and one exponential per element; written: O(planes splits (n + m)).
// Order   a thread's elements ascending, then a fixed tree, then the warps, then the tiles ascending. Integer atomics alone
//         (counts of pairs); splits by shape alone: identical bits between runs, streams, devices of one architecture.
// Needs   sm_80.
#include "common/tile.cuh"
#include "common/pairwise_stats.cuh"

namespace {

template <typename T, bool kBoth>
__device__ __forceinline__ void stats_body(const PairwiseStatsParams& p) {
    extern __shared__ __align__(128) char stages[];
    const TileRect rect = stats_rect(p);
    RectSweep<T> sweep(stages, TileOperands<T, PairwiseTiles>{p.tiles}, rect, computes(p.tiles));
    stats_tiles<kBoth>(p, sweep, rect);
}

}  // namespace

#define STATS(SUFFIX, T, BOTH)                                            \
    extern "C" __global__ void __launch_bounds__(kTileThreads, 1)          \
        pairwise_stats_##SUFFIX(const __grid_constant__ PairwiseStatsParams p) { \
        stats_body<T, BOTH>(p);                                            \
    }
STATS(f32, float, false)
STATS(f16, __half, false)
STATS(bf16, __nv_bfloat16, false)
STATS(both_f32, float, true)
STATS(both_f16, __half, true)
STATS(both_bf16, __nv_bfloat16, true)
