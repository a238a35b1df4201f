// ranks — position of every query's best positive among its candidates, both directions in one sweep; S is never stored.
//
//   row_rank[i] += #{non-positive j: S[i, j] > s} + #{non-positive j: S[i, j] == s, and the tie policy puts j first}
//   with s = row_score[i]; columns likewise. NaN is larger than everything; s = NaN: all non-positives are ahead.
//   LowestIndex puts j first if j < row_index[i], Optimistic never, Pessimistic always.
//
//   x (n, d), y (m, d)   T: f32 | f16 | bf16, row-major, base and rows aligned to 16 bytes; inv_*, groups as for mine_*
//   row_score, row_index (n), col_score, col_index (m): from mine_* over the positives with the same operands, whose S has
//   the same bits; an index of -1 marks a line without a positive, whose rank is not touched
//   row_rank (n), col_rank (m) i32: the caller's start values, 0 or -1, as mine_merge writes them
//
// Work    the tiles are dealt to row_splits x col_splits blocks; a block sweeps its rectangle, columns innermost. The bounds
//         of its lines go through shared memory, the counts of rows stay in registers over a sweep.
// Launch  grid = (col_splits, row_splits), block = 256, 98,304 bytes of dynamic shared memory.
// Bound   tensor cores (f32: FMA), 2 n m d.
// Order   free: integer sums, by atomic addition.
// Needs   sm_80.
#include "common/tile.cuh"
#include "common/ranks.cuh"

template <typename T>
__device__ __forceinline__ void ranks_body(const RanksParams& p) {
    extern __shared__ __align__(128) char stages[];
    // Read up to a tile's end, written behind the products of the next one, which all threads meet in.
    __shared__ TileBounds bounds[kParties];
    const TileRect rect = tile_rect(0, tiles_of(p.n), p.m, p.row_splits, p.col_splits);
    RectSweep<T> sweep(stages, TileOperands<T, RanksParams>{p}, rect);
    rank_tiles(p, sweep, rect, bounds);
}

#define RANKS(SUFFIX, T, BLOCKS)                                       \
    extern "C" __global__ void __launch_bounds__(kTileThreads, BLOCKS) \
        ranks_##SUFFIX(const __grid_constant__ RanksParams p) {        \
        ranks_body<T>(p);                                              \
    }
RANKS(f32, float, 1)
RANKS(f16, __half, kTileBlocks)
RANKS(bf16, __nv_bfloat16, kTileBlocks)
