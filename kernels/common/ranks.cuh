// What ranks_* do with a tile, whichever engine makes it: see ranks.cu. Included behind the engine's sweep.
#pragma once
#include "common/ahead.cuh"
#include "params/ranks.h"

struct RankCounter {
    const RanksParams& p;
    const TileThread thread;

    __device__ __forceinline__ explicit RankCounter(const RanksParams& params) : p(params) {}

    // The bounds of the party's lines, which are dealt to its threads.
    __device__ __forceinline__ void publish(TileBounds& bounds, uint32_t row0, uint32_t col0) const {
#pragma unroll
        for (uint32_t first = 0; first < TileBounds::kCount; first += kPartyThreads) {
            const uint32_t line = first + thread.member();
            // The same for a warp, which the compiler is told.
            if (first != 0 && __shfl_sync(~0u, line, 0) >= TileBounds::kCount) break;
            bounds.publish(line, bound(line, row0, col0));
        }
    }
    __device__ __forceinline__ LineBound bound(uint32_t of_party, uint32_t row0, uint32_t col0) const {
        const bool is_row = of_party < kPartyRows;
        const uint32_t line = is_row ? row0 + thread.party_row() + of_party : col0 + (of_party - kPartyRows);
        if (of_party >= TileBounds::kCount || line >= (is_row ? p.n : p.m)) return {0.0f, 0.0f, 0};
        const float score = __ldg((is_row ? p.row_score : p.col_score) + line);
        const int32_t index = __ldg((is_row ? p.row_index : p.col_index) + line);
        return line_bound(score, index, is_row ? col0 : row0, is_row ? kTileCols : kTile, p.ties);
    }

    // Says which elements exist and are no positives. Returns whether all are, the same for a warp.
    __device__ __forceinline__ bool candidates(uint32_t row0, uint32_t col0, TileBits& bits) const {
        const bool grouped = p.row_groups != nullptr;
        bits = ~TileBits(0);
        if (is_inner(row0, col0, p.n, p.m) &&
            (!grouped || !may_share_group(thread, row0, col0, p.row_groups, p.col_groups))) {
            return true;
        }
        bits = select_elements(thread, row0, col0, p.n, p.m, p.row_groups, p.col_groups,
                               [&](bool pair, bool same) { return grouped ? !same : !pair; });
        return false;
    }
};

// `shared` is a block's shared memory, of which nobody of a party reads that party's bounds any more when a tile begins.
template <typename Sweep>
__device__ __forceinline__ void rank_tiles(const RanksParams& p, Sweep& sweep, const TileRect& rect,
                                           TileBounds (&shared)[kParties]) {
    uint32_t row_counts[kJoinedRows];  // of rows joined_row(h)
    sweep.run([&](TileAcc& acc, uint32_t r, uint32_t c, char*) {
        const uint32_t row0 = r * kTile;
        const uint32_t col0 = c * kTileCols;
        TileBounds& bounds = shared[kParties == 1 ? 0 : __shfl_sync(~0u, threadIdx.x / kPartyThreads, 0)];
        TileBits bits;
        bool all;
        {
            const RankCounter counter(p);
            counter.publish(bounds, row0, col0);
            scale_tile(acc, counter.thread, p.inv_x, p.inv_y, row0, col0, p.n, p.m);
            all = counter.candidates(row0, col0, bits);
        }
        tile_sync();  // the bounds are in place

        const TileThread thread;  // made anew, so that it takes no registers before
        uint32_t rows[kRowWords];
        count_lines<true>(acc, bits, all, thread, bounds, rows);
#pragma unroll
        for (int h = 0; h < kJoinedRows; ++h) {
            row_counts[h] = (c == rect.c ? 0 : row_counts[h]) + joined_row_count(rows, thread.lane(), h);
        }
        uint32_t cols[kColWords];
        count_lines<false>(acc, bits, all, thread, bounds, cols);
#pragma unroll
        for (int h = 0; h < kJoinedCols; ++h) {
            const uint32_t count = joined_col_count(cols, thread.lane(), h);
            const uint32_t col = col0 + thread.joined_col(h);
            if (count != 0 && p.col_index[col] >= 0) atomicAdd(p.col_rank + col, int(count));
        }
        if (c + 1 != rect.c_end) return;
#pragma unroll
        for (int h = 0; h < kJoinedRows; ++h) {
            const uint32_t row = row0 + thread.joined_row(h);
            if (row_counts[h] != 0 && p.row_index[row] >= 0) atomicAdd(p.row_rank + row, int(row_counts[h]));
        }
    });
}

#ifdef SIMGRAD_GROUP_TILE
template <typename T>
__device__ __forceinline__ void rank_groups(const TensorMaps& maps, const RanksParams& p) {
    extern __shared__ __align__(1024) char shared[];
    __shared__ TileBounds bounds[kParties];
    const TileRect rect = tile_rect(0, tiles_of(p.n), p.m, p.row_splits, p.col_splits);
    RectSweep<T> sweep(shared, maps, p.d, rect);
    rank_tiles(p, sweep, rect, bounds);
}
#endif
