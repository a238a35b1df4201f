// What ranks_* do with a tile, whichever engine makes it: see ranks.cu. Included behind the engine's sweep.
#pragma once
#include "common/ahead.cuh"
#include "params/ranks.h"

struct RankCounter {
    const RanksParams& p;
    const TileThread thread;

    __device__ __forceinline__ explicit RankCounter(const RanksParams& params) : p(params) {}

    // The bound of this thread's line, a row or a column of the tile.
    __device__ __forceinline__ LineBound bound(uint32_t row0, uint32_t col0) const {
        const bool is_row = thread.index < kTile;
        const uint32_t line = is_row ? row0 + thread.index : col0 + (thread.index - kTile);
        if (thread.index >= TileBounds::kCount || line >= (is_row ? p.n : p.m)) return {0.0f, 0.0f, 0};
        const float score = __ldg((is_row ? p.row_score : p.col_score) + line);
        const int32_t index = __ldg((is_row ? p.row_index : p.col_index) + line);
        return line_bound(score, index, is_row ? col0 : row0, is_row ? kTileCols : kTile, p.ties);
    }

    // Says which elements exist and are no positives. Returns whether all are.
    __device__ __forceinline__ bool candidates(uint32_t row0, uint32_t col0, TileBits& bits) const {
        const bool grouped = p.row_groups != nullptr;
        bits = ~TileBits(0);
        if (!grouped && !on_diagonal(row0, col0) && row0 + kTile <= p.n && col0 + kTileCols <= p.m) return true;
        bits = select_elements(thread, row0, col0, p.n, p.m, p.row_groups, p.col_groups,
                               [&](bool pair, bool same) { return grouped ? !same : !pair; });
        return false;
    }
};

// `bounds` is a block's shared memory, which nobody reads any more when a tile begins.
template <typename Sweep>
__device__ __forceinline__ void rank_tiles(const RanksParams& p, Sweep& sweep, const TileRect& rect, TileBounds& bounds) {
    uint32_t row_counts[kJoinedRows];  // of rows joined_row(h)
    sweep.run([&](TileAcc& acc, uint32_t r, uint32_t c, char*) {
        const uint32_t row0 = r * kTile;
        const uint32_t col0 = c * kTileCols;
        TileBits bits;
        bool all;
        {
            const RankCounter counter(p);
            bounds.publish(counter.thread.index, counter.bound(row0, col0));
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
    __shared__ TileBounds bounds;
    const TileRect rect = tile_rect(0, tiles_of(p.n), p.m, p.row_splits, p.col_splits);
    RectSweep<T> sweep(shared, maps, p.d, rect);
    rank_tiles(p, sweep, rect, bounds);
}
#endif
