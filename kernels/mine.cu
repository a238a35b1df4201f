// mine — hardest candidate of every row and of every column of S in one sweep over its tiles; S is never stored.
//
//   S[i, j] = (x_i . y_j) inv_x[i] inv_y[j]
//   row i:    value = max over candidates j of S[i, j], index = the lowest j that has it; column j likewise over i
//   and on request second, count, ties, sum as defined in common/mining.cuh, with threshold = min(pmin) - eps
//
//   x (n, d), y (m, d)   T: f32 | f16 | bf16, row-major, base and rows aligned to 16 bytes
//   inv_x (n), inv_y (m) f32 or null;  row_groups (n), col_groups (m) i64 or null
//   pos (min(n, m))      f32 or null: the diagonal of S
//   row_parts (planes, col_splits, n), col_parts (planes, row_splits, m): 4-byte words, common/mining.cuh
//   No output may alias an input or another output.
//
// Which (i, j) are candidates is decided by index and group alone (kSelect*, params/mine.h), never by value: a candidate of
// value -infinity counts, NaN is larger than everything, and -0 equals +0.
//
// Work    the tiles are dealt to row_splits x col_splits blocks; a block sweeps its rectangle, columns innermost. A thread
//         owns a row or a column of the tile at hand, whose state lives in the block's own partial slot.
// Launch  grid = (col_splits, row_splits), or for kSelectPair the larger of the two numbers of tiles with one split each;
//         block = 256, 98,304 bytes of dynamic shared memory.
//         In f32 mine_small.cu takes the place of these where the tiles are few.
// Bound   tensor cores (f32: FMA), 2 n m d; written: O(n row planes + m column planes), no term in n m.
// Order   per tile: maxima of values only, in a fixed tree; where one beats the running best strictly, the index is looked
//         up among the registers. Tiles come in ascending order, so the lowest index wins ties. Atomics only on places in
//         a tile, where the lowest wins; splits by shape alone: identical bits between runs, streams, and devices of one
//         architecture.
// Needs   sm_80.
#include "common/tile.cuh"
#include "common/mine_warps.cuh"

#define MINE(SUFFIX, T, STATS, BLOCKS)                                \
    extern "C" __global__ void __launch_bounds__(kTileThreads, BLOCKS) \
        mine_##SUFFIX(const __grid_constant__ MineParams p) {          \
        mine_body<T, STATS>(p);                                        \
    }
MINE(f32, float, false, kTileBlocksOf<float>)
MINE(f16, __half, false, kTileBlocks)
MINE(bf16, __nv_bfloat16, false, kTileBlocks)
MINE(stats_f32, float, true, 1)
MINE(stats_f16, __half, true, 1)
MINE(stats_bf16, __nv_bfloat16, true, 1)

// mine_merge — the standalone operation's result: one thread per row, then per column, merges the splits in ascending order.
// Launch  grid = ceil((n + m) / 256), block = 256.
extern "C" __global__ void __launch_bounds__(256) mine_merge(const __grid_constant__ MineMergeParams p) {
    const uint64_t at = uint64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (at >= uint64_t(p.n) + p.m) return;
    const bool is_row = at < p.n;
    const uint32_t line = uint32_t(is_row ? at : at - p.n);
    const bool screened = p.screen != nullptr && !p.screen->failed();
    const StatsRule rule{screened ? kStatsKeys : p.stats, 0.0f, 0.0f};
    // Keys have no splits.
    const LineState s =
        is_row ? merged_line(screened ? p.row_keys : p.row_parts, screened ? 1 : p.col_splits, p.n, line, rule)
               : merged_line(screened ? p.col_keys : p.col_parts, screened ? 1 : p.row_splits, p.m, line, rule);
    (is_row ? p.row_value : p.col_value)[line] = s.value;
    (is_row ? p.row_index : p.col_index)[line] = s.index;
    float* const second = is_row ? p.row_second : p.col_second;
    if (second != nullptr) second[line] = s.second;
    int32_t* const rank = is_row ? p.row_rank : p.col_rank;
    if (rank != nullptr) rank[line] = s.index < 0 ? -1 : 0;
    if (at != 0 || p.report == nullptr) return;
    p.report[0] = screened ? uint32_t(p.screen->candidates) : 0;
    p.report[1] = p.screen == nullptr ? kScreenNone : p.screen->outcome();
}
