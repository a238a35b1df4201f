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
// Work    the tiles are dealt to row_splits x col_splits blocks; a block sweeps its rectangle, columns innermost. Counts of
//         rows stay in registers over a sweep.
// Launch  grid = (col_splits, row_splits), block = 256, 98,304 bytes of dynamic shared memory.
// Bound   tensor cores (f32: FMA), 2 n m d.
// Order   free: integer sums, by atomic addition.
// Needs   sm_80.
#include "common/tile.cuh"
#include "common/ahead.cuh"
#include "params/ranks.h"

struct RankCounter {
    const RanksParams& p;
    const TileThread thread;

    __device__ __forceinline__ explicit RankCounter(const RanksParams& params) : p(params) {}

    // Line `line` of `len` against the tile whose candidates start at `first`.
    __device__ __forceinline__ LineBound bound(const float* scores, const int32_t* indices, uint32_t line, uint32_t len,
                                               uint32_t first) const {
        if (line >= len) return {0.0f, 0.0f, 0};
        return line_bound(__ldg(scores + line), __ldg(indices + line), first, p.ties);
    }

    // Bit 8 i + k says whether element (i, k) exists and is not a positive. Returns whether all bits are set.
    __device__ __forceinline__ bool candidates(uint32_t row0, uint32_t col0, uint64_t& bits) const {
        const bool grouped = p.row_groups != nullptr;
        bits = ~uint64_t(0);
        if (!grouped && row0 != col0 && row0 + kTile <= p.n && col0 + kTile <= p.m) return true;
        bits = select_elements(thread, row0, col0, p.n, p.m, p.row_groups, p.col_groups,
                               [&](bool pair, bool same) { return grouped ? !same : !pair; });
        return false;
    }

    // Elements of the warp that are ahead in the thread's 8 rows or columns, as count_lines() packs them.
    template <bool kRows>
    __device__ __forceinline__ void count(const TileAcc& acc, uint64_t bits, bool all, uint32_t row0, uint32_t col0,
                                          uint32_t (&words)[2]) const {
        count_lines<kRows>(acc, bits, all, thread, words, [&](int line) {
            return kRows ? bound(p.row_score, p.row_index, row0 + thread.row(line), p.n, col0)
                         : bound(p.col_score, p.col_index, col0 + thread.col(line), p.m, row0);
        });
    }
};

template <typename T>
__device__ __forceinline__ void ranks_body(const RanksParams& p) {
    extern __shared__ __align__(128) char stages[];
    const uint32_t r_begin = part_begin(tiles_of(p.n), p.row_splits, blockIdx.y);
    const uint32_t r_end = part_begin(tiles_of(p.n), p.row_splits, blockIdx.y + 1);
    const uint32_t c_begin = part_begin(tiles_of(p.m), p.col_splits, blockIdx.x);
    const uint32_t c_end = part_begin(tiles_of(p.m), p.col_splits, blockIdx.x + 1);
    const TileShape shape{p.ldx * int64_t(sizeof(T)), p.ldy * int64_t(sizeof(T)), p.n, p.m, p.d * uint32_t(sizeof(T))};
    TileStream<T, RectCursor> stream(
        stages, shape,
        {static_cast<const char*>(p.x), static_cast<const char*>(p.y), r_begin, r_end, c_begin, c_begin, c_end});

    for (uint32_t r = r_begin; r < r_end; ++r) {
        const uint32_t row0 = r * kTile;
        uint32_t row_counts[2] = {0, 0};  // of rows joined_row(0) and joined_row(1)
        for (uint32_t c = c_begin; c < c_end; ++c) {
            const uint32_t col0 = c * kTile;
            TileAcc acc;
            for (int e = 0; e < kThreadElements; ++e) acc[e] = 0.0f;
            stream.accumulate(acc);
            const RankCounter counter(p);
            scale_tile(acc, counter.thread, p.inv_x, p.inv_y, row0, col0, p.n, p.m);

            uint64_t bits;
            const bool all = counter.candidates(row0, col0, bits);
            const uint32_t lane = counter.thread.lane();
            uint32_t words[2];
            counter.count<true>(acc, bits, all, row0, col0, words);
            row_counts[0] += joined_row_count(words, lane, 0);
            row_counts[1] += joined_row_count(words, lane, 1);
            counter.count<false>(acc, bits, all, row0, col0, words);
            const uint32_t count = joined_col_count(words, lane);
            const uint32_t col = col0 + counter.thread.joined_col(0);
            if (count != 0 && p.col_index[col] >= 0) atomicAdd(p.col_rank + col, int(count));
        }
        const TileThread thread;
#pragma unroll
        for (int h = 0; h < 2; ++h) {
            const uint32_t row = row0 + thread.joined_row(h);
            if (row_counts[h] != 0 && p.row_index[row] >= 0) atomicAdd(p.row_rank + row, int(row_counts[h]));
        }
    }
}

#define RANKS(SUFFIX, T, BLOCKS)                                       \
    extern "C" __global__ void __launch_bounds__(kTileThreads, BLOCKS) \
        ranks_##SUFFIX(const __grid_constant__ RanksParams p) {        \
        ranks_body<T>(p);                                              \
    }
RANKS(f32, float, 1)
RANKS(f16, __half, kTileBlocks)
RANKS(bf16, __nv_bfloat16, kTileBlocks)
