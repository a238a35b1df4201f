// What positive_ranks_score_* and positive_ranks_count_* do with a tile, whichever engine makes it: see positive_ranks.cu.
// Included behind the engine's sweep.
#pragma once
#include "common/ahead.cuh"
#include "common/pair_lines.cuh"

// The tiles of one row of tiles that hold a pair, ascending. Every warp searches all 128 rows, so that no two disagree and
// the block need not meet.
struct PairCursor {
    const PositiveRanksParams* p;
    uint32_t r;
    uint32_t c;
    uint32_t c_end;

    // The share of this block, (tile row, column split) of the grid.
    __device__ __forceinline__ explicit PairCursor(const PositiveRanksParams& params) : p(&params), r(blockIdx.x) {
        const uint32_t tiles = tile_cols_of(params.m);
        c = part_begin(tiles, params.col_splits, blockIdx.y);
        c_end = part_begin(tiles, params.col_splits, blockIdx.y + 1);
        find();
    }
    __device__ __forceinline__ bool valid() const { return c < c_end; }
    __device__ __forceinline__ void advance() {
        ++c;
        find();
    }

  private:
    __device__ __forceinline__ void find() {
        const Lines rows = rows_of(*p);
        uint32_t next = c_end;
#pragma unroll 1
        for (uint32_t row = r * kTile + (threadIdx.x & 31); row < (r + 1) * kTile; row += 32) {
            const uint2 of = rows.of(row);
            const uint32_t pair = rows.from(of.x, of.y, c * kTileCols);
            if (pair < of.y) next = min(next, rows.candidate(pair) / kTileCols);
        }
#pragma unroll
        for (int mask = 16; mask > 0; mask >>= 1) next = min(next, exchange(next, mask));
        c = next;
    }
};

// Writes the elements of the tile that are pairs.
__device__ __forceinline__ void score_tile(const PositiveRanksParams& p, TileAcc& acc, uint32_t row0, uint32_t col0) {
    const TileThread thread;
    scale_tile(acc, thread, p.inv_x, p.inv_y, row0, col0, p.n, p.m);
    const Lines rows = rows_of(p);
#pragma unroll
    for (int i = 0; i < kThreadRows; ++i) {
        const uint2 of = rows.of(row0 + thread.row(i));
        const uint32_t begin = rows.from(of.x, of.y, col0);
        const uint32_t end = rows.from(begin, of.y, col0 + kTileCols);
        if (begin == end) continue;
#pragma unroll
        for (int k = 0; k < kThreadCols; ++k) {
            const uint32_t col = col0 + thread.col(k);
            const uint32_t pair = rows.from(begin, end, col);
            if (pair < end && rows.candidate(pair) == col) p.score[pair] = element(acc, i, k);
        }
    }
}

// Counts the tile against every pair of its rows and columns: the pairs in place t of all lines at a time, whose bounds go
// through one half of `bounds` while slower warps still read the other.
struct PairCounter {
    const PositiveRanksParams& p;
    const uint32_t row0;
    const uint32_t col0;

    // This thread's line, a row or a column of the tile.
    __device__ __forceinline__ bool is_row(const TileThread& thread) const { return thread.index < kTile; }
    __device__ __forceinline__ uint2 pairs(const TileThread& thread) const {
        if (is_row(thread)) return rows_of(p).of(row0 + thread.index);
        if (thread.index >= TileBounds::kCount) return make_uint2(0, 0);
        return cols_of(p).of(col0 + (thread.index - kTile));
    }
    // What its pair at `place` sets.
    __device__ __forceinline__ LineBound bound(const TileThread& thread, uint32_t place) const {
        if (is_row(thread)) {
            return line_bound(score_at<true>(p, place), int32_t(rows_of(p).candidate(place)), col0, kTileCols, p.ties);
        }
        return line_bound(score_at<false>(p, place), int32_t(cols_of(p).candidate(place)), row0, kTile, p.ties);
    }

    template <bool kRows>
    __device__ __forceinline__ void count(const TileAcc& acc, TileBits bits, bool all, const TileBounds& bounds,
                                          uint32_t t) const {
        const Lines lines = kRows ? rows_of(p) : cols_of(p);
        int32_t* const ranks = kRows ? p.row_rank : p.col_rank;
        const TileThread thread;  // made anew, so that it takes no registers through the loop
        uint32_t words[kRows ? kRowWords : kColWords];
        count_lines<kRows>(acc, bits, all, thread, bounds, words);
#pragma unroll
        for (int h = 0; h < (kRows ? kJoinedRows : kJoinedCols); ++h) {
            uint32_t count;
            if constexpr (kRows) count = joined_row_count(words, thread.lane(), h);
            else count = joined_col_count(words, thread.lane(), h);
            if (count == 0) continue;
            const uint2 of = lines.of(kRows ? row0 + thread.joined_row(h) : col0 + thread.joined_col(h));
            if (t < of.y - of.x) atomicAdd(ranks + of.x + t, int(count));
        }
    }

    __device__ __forceinline__ void tile(TileAcc& acc, TileBounds (&bounds)[2]) const {
        scale_tile(acc, TileThread(), p.inv_x, p.inv_y, row0, col0, p.n, p.m);
        const bool all = row0 + kTile <= p.n && col0 + kTileCols <= p.m;
        TileBits bits = ~TileBits(0);
        if (!all) {
            bits = select_elements(TileThread(), row0, col0, p.n, p.m, nullptr, nullptr, [](bool, bool) { return true; });
        }
#pragma unroll 1
        for (uint32_t t = 0;; ++t) {
            {
                const TileThread thread;
                const uint2 of = pairs(thread);
                const bool some = t < of.y - of.x;
                bounds[t & 1].publish(thread.index, some ? bound(thread, of.x + t) : LineBound{0.0f, 0.0f, 0});
                if (!tile_sync_or(some)) break;  // the bounds are in place, and nobody reads the other half
            }
            count<true>(acc, bits, all, bounds[t & 1], t);
            count<false>(acc, bits, all, bounds[t & 1], t);
        }
    }
};

#ifdef SIMGRAD_GROUP_TILE
template <typename T>
__device__ __forceinline__ void count_groups(const TensorMaps& maps, const PositiveRanksParams& p) {
    extern __shared__ __align__(1024) char shared[];
    __shared__ TileBounds bounds[2];
    RectSweep<T> sweep(shared, maps, p.d, tile_rect(0, tiles_of(p.n), p.m, p.row_splits, p.col_splits));
    sweep.run([&](TileAcc& acc, uint32_t r, uint32_t c, char*) {
        PairCounter{p, r * kTile, c * kTileCols}.tile(acc, bounds);
    });
}

// A block has a row of tiles, of which it makes those with pairs: no two blocks the same ones, so for tiles without clusters.
template <typename T>
__device__ __forceinline__ void score_groups(const TensorMaps& maps, const PositiveRanksParams& p) {
    static_assert(kClusterBlocks == 1 && kStepTiles == 1, "a block's own tiles, one by one");
    extern __shared__ __align__(1024) char shared[];
    PairCursor at(p);
    if (!at.valid()) return;
    GroupStream<T> stream(shared, maps, p.d);
    if (stream.holds()) {
        take_registers<kHolderRegisters>();
        for (StageAt stage; at.valid(); at.advance()) {
            TileAcc acc;
            stream.template multiply_step<false>(stage, acc);
            score_tile(p, acc, at.r * kTile, at.c * kTileCols);
        }
    } else {
        give_registers<kCopierRegisters>();
        if (threadIdx.x >= kHolders + 32) return;
        // A warp searches, one of its threads copies.
        const bool copies = threadIdx.x == kHolders;
        if (copies) stream.begin_copies();
        for (StageAt stage{0, 1}; at.valid(); at.advance()) {
            if (copies) stream.copy_step(stage, at.r * kTile, at.c * kTileCols);
            __syncwarp();
        }
    }
}
#endif
