// Included by the files of kernels for each engine, behind its sweep (tile.cuh, slice_tile.cuh, group_tile.cuh).
#pragma once
#include <type_traits>

#include "common/epilogue.cuh"
#include "common/mine_tile.cuh"

// A line is a row or a column of the tile; thread t owns row t or column t - kTile, and its state. With fewer columns than
// rows the last threads own nothing.
constexpr int kLines = kTile + kTileCols;
constexpr uint32_t kNowhere = 0x7fffffffu;

// Per warp and line. Kept apart from the stages because slower warps still read the last one.
struct TileMaxima {
    float rows[kWarpCols][kTile];      // of the warps beside each other
    float cols[kWarpRows][kTileCols];  // of the warps above each other
};

// In the freed stage, after the barrier that follows the maxima.
struct TileScratch {
    float above[kLines];      // elements not <= this are looked up; see lookup_bound()
    uint32_t found[kLines];   // lowest place of such an element in the tile
    float reference[kLines];  // maximum that gaps are measured from, or less than the threshold: nothing to count
    TileMaxima second;
    uint32_t row_members[kWarpCols][kTile];  // members | ties << 16
    uint32_t col_members[kWarpRows][kTileCols];
    TileMaxima sum;
};
static_assert(sizeof(TileScratch) <= kScratchBytes, "the epilogue lives in the sweep's scratch memory");

struct Top {
    float value;
};
struct Top2 {
    float value;
    float second;
};
__device__ __forceinline__ Top exchange(Top v, int partner) { return {exchange(v.value, partner)}; }
__device__ __forceinline__ Top2 exchange(Top2 v, int partner) {
    return {exchange(v.value, partner), exchange(v.second, partner)};
}
__device__ __forceinline__ Top join(Top a, Top b) { return {max_nan(a.value, b.value)}; }
// fminf returns the other operand for NaN, which is the smaller one in this order.
__device__ __forceinline__ Top2 join(Top2 a, Top2 b) {
    return {max_nan(a.value, b.value), max_nan(fminf(a.value, b.value), max_nan(a.second, b.second))};
}
__device__ __forceinline__ void admit(Top& t, float x) { t.value = max_nan(t.value, x); }
__device__ __forceinline__ void admit(Top2& t, float x) {
    t.second = max_nan(t.second, fminf(t.value, x));
    t.value = max_nan(t.value, x);
}
__device__ __forceinline__ void start(Top& t, float x) { t = {x}; }
__device__ __forceinline__ void start(Top2& t, float x) { t = {x, neg_infinity()}; }

template <bool kStats>
struct Miner {
    using Best = std::conditional_t<kStats, Top2, Top>;

    const MineParams& p;
    const float threshold;
    const TileThread thread;
    const bool owns_row = thread.index < kTile;
    const bool owns = kLines == kTileThreads || thread.index < kLines;
    const uint32_t line_in_tile = thread.index % (owns_row ? kTile : kTileCols);  // kTileCols divides kTile

    __device__ __forceinline__ Miner(const MineParams& params, float threshold) : p(params), threshold(threshold) {}

    __device__ __forceinline__ uint32_t stats() const { return kStats ? p.stats : kStatsNone; }

    // Maxima of the warp's rows and columns; `rows` and `cols` end up as join_rows() and join_cols() leave them.
    __device__ __forceinline__ void maxima(const TileAcc& acc, Best (&rows)[kThreadRows], Best (&cols)[kThreadCols]) const {
#pragma unroll
        for (int i = 0; i < kThreadRows; ++i) {
#pragma unroll
            for (int k = 0; k < kThreadCols; ++k) {
                const float s = element(acc, i, k);
                if (k == 0) start(rows[i], s);
                else admit(rows[i], s);
                if (i == 0) start(cols[k], s);
                else admit(cols[k], s);
            }
        }
        const auto both = [](Best a, Best b) { return join(a, b); };
        join_rows(rows, thread, both);
        join_cols(cols, thread, both);
    }

    __device__ __forceinline__ uint32_t row_split() const { return p.select == kSelectPair ? 0 : blockIdx.y; }
    __device__ __forceinline__ uint32_t col_split() const { return p.select == kSelectPair ? 0 : blockIdx.x; }
    // Lowest place in the tile of an element that reaches its line's bound.
    __device__ __forceinline__ void look_up(const TileAcc& acc, TileBits candidates, TileScratch& scratch) const {
#pragma unroll
        for (int i = 0; i < kThreadRows; ++i) {
            const float bound = scratch.above[thread.row(i)];
            uint32_t place = kNowhere;
#pragma unroll
            for (int k = kThreadCols - 1; k >= 0; --k) {
                if (!(element(acc, i, k) <= bound) && (candidates >> bit_at(i, k) & 1)) place = thread.col(k);
            }
            if (place != kNowhere) atomicMin(&scratch.found[thread.row(i)], place);
        }
#pragma unroll
        for (int k = 0; k < kThreadCols; ++k) {
            const float bound = scratch.above[kTile + thread.col(k)];
            uint32_t place = kNowhere;
#pragma unroll
            for (int i = kThreadRows - 1; i >= 0; --i) {
                if (!(element(acc, i, k) <= bound) && (candidates >> bit_at(i, k) & 1)) place = thread.row(i);
            }
            if (place != kNowhere) atomicMin(&scratch.found[kTile + thread.col(k)], place);
        }
    }

    // Members and sum of one of the thread's lines. Elements equal to the reference are counted and not summed: their gap is
    // 0, also between two infinities. Without a branch per element: the lines of a warp differ in which are members.
    template <bool kRows, bool kSig>
    __device__ __forceinline__ void count_line(const TileAcc& acc, TileBits candidates, float reference, int line,
                                               uint32_t& members, float& sum) const {
        members = 0;
        sum = 0.0f;
        if (reference < threshold) return;
        const float scale = -p.beta * kLog2E;
#pragma unroll
        for (int at = 0; at < (kRows ? kThreadCols : kThreadRows); ++at) {
            const int i = kRows ? line : at;
            const int k = kRows ? at : line;
            const float s = element(acc, i, k);
            const bool member = s >= threshold && (candidates >> bit_at(i, k) & 1);
            const bool tie = s >= reference;
            const float gap = reference - s;
            const float term = kSig ? sig_term(gap, scale) : gap;
            members += member ? (tie ? 0x10001u : 1u) : 0u;
            sum += member && !tie ? term : 0.0f;
        }
    }

    template <bool kSig>
    __device__ __forceinline__ void count_members(const TileAcc& acc, TileBits candidates,
                                                  TileScratch& scratch) const {
        const auto add = [](auto a, auto b) { return a + b; };
        uint32_t row_members[kThreadRows], col_members[kThreadCols];
        float row_sum[kThreadRows], col_sum[kThreadCols];
#pragma unroll
        for (int i = 0; i < kThreadRows; ++i) {
            count_line<true, kSig>(acc, candidates, scratch.reference[thread.row(i)], i, row_members[i], row_sum[i]);
        }
        join_rows(row_members, thread, add);
        join_rows(row_sum, thread, add);
#pragma unroll
        for (int h = 0; h < kJoinedRows; ++h) {
            scratch.row_members[thread.warp_col()][thread.joined_row(h)] = row_members[h];
            scratch.sum.rows[thread.warp_col()][thread.joined_row(h)] = row_sum[h];
        }
#pragma unroll
        for (int k = 0; k < kThreadCols; ++k) {
            const float reference = scratch.reference[kTile + thread.col(k)];
            count_line<false, kSig>(acc, candidates, reference, k, col_members[k], col_sum[k]);
        }
        join_cols(col_members, thread, add);
        join_cols(col_sum, thread, add);
#pragma unroll
        for (int h = 0; h < kJoinedCols; ++h) {
            scratch.col_members[thread.warp_row()][thread.joined_col(h)] = col_members[h];
            scratch.sum.cols[thread.warp_row()][thread.joined_col(h)] = col_sum[h];
        }
    }

    // The best of the tile's part of this thread's line, joined over the warps in order.
    __device__ __forceinline__ Best best_of(const TileMaxima& value, const TileMaxima& second) const {
        const uint32_t t = line_in_tile;
        const auto read = [&](float v, float s) {
            if constexpr (kStats) return Best{v, s};
            else return Best{v};
        };
        Best best = owns_row ? read(value.rows[0][t], second.rows[0][t]) : read(value.cols[0][t], second.cols[0][t]);
        if (owns_row) {
#pragma unroll
            for (int w = 1; w < kWarpCols; ++w) best = join(best, read(value.rows[w][t], second.rows[w][t]));
        } else {
#pragma unroll
            for (int w = 1; w < kWarpRows; ++w) best = join(best, read(value.cols[w][t], second.cols[w][t]));
        }
        return best;
    }

    // The tile's part of `line`, in which `beaten` says whether the tile's maximum `top` is the line's. Returns whether the
    // state changed.
    __device__ __forceinline__ bool update(LineState& line, float top, bool beaten, uint32_t base, const TileMaxima& values,
                                           const TileScratch& scratch) const {
        LineState tile = empty_line();
        tile.value = top;
        if constexpr (kStats) {
            const uint32_t t = line_in_tile;
            if (beaten) tile.second = best_of(values, scratch.second).second;
            if (stats() >= kStatsLin) {
                uint32_t packed = 0;
                if (owns_row) {
#pragma unroll
                    for (int w = 0; w < kWarpCols; ++w) {
                        packed += scratch.row_members[w][t];
                        tile.sum += scratch.sum.rows[w][t];
                    }
                } else {
#pragma unroll
                    for (int w = 0; w < kWarpRows; ++w) {
                        packed += scratch.col_members[w][t];
                        tile.sum += scratch.sum.cols[w][t];
                    }
                }
                tile.count = packed & 0xffffu;
                tile.ties = packed >> 16;
            }
        }
        if (!beaten) {
            // All of the tile's candidates are others, and their gaps are already measured from the line's own maximum.
            line.second = max_nan(line.second, top);
            line.count += tile.count;
            line.ties += tile.ties;
            line.sum += tile.sum + (stats() == kStatsSig ? float(tile.ties) : 0.0f);
            return kStats;
        }
        const uint32_t place = scratch.found[thread.index];
        if (place == kNowhere) return false;  // every -infinity of this line is one that is no candidate
        tile.index = int32_t(base + place);
        if (kStats && top >= threshold && tile.ties > 0) {  // the maximum counted itself
            tile.count -= 1;
            tile.ties -= 1;
            if (stats() == kStatsSig) tile.sum += float(tile.ties);
        }
        line = merge_lines(line, tile, {stats(), threshold, p.beta});
        return true;
    }

    // This thread's line in the tile whose lines start at `first_line`, as the block has left it in its partial slot.
    __device__ __forceinline__ LineState load(uint32_t first_line) const {
        const uint32_t line = first_line + line_in_tile;
        if (!owns || line >= (owns_row ? p.n : p.m)) return empty_line();
        return owns_row ? load_line(p.row_parts, p.col_splits, p.n, col_split(), line, stats())
                        : load_line(p.col_parts, p.row_splits, p.m, row_split(), line, stats());
    }
    __device__ __forceinline__ void store(uint32_t first_line, const LineState& state) const {
        const uint32_t line = first_line + line_in_tile;
        if (!owns || line >= (owns_row ? p.n : p.m)) return;
        if (owns_row) store_line(p.row_parts, p.col_splits, p.n, col_split(), line, stats(), state);
        else store_line(p.col_parts, p.row_splits, p.m, row_split(), line, stats(), state);
    }

    // Everything between the products of a tile and their effect on this thread's line; `first` if it is the line's first.
    __device__ __forceinline__ void tile(TileAcc& acc, uint32_t row0, uint32_t col0, bool first,
                                         TileMaxima& values, TileScratch& scratch) const {
        const uint32_t first_line = owns_row ? row0 : col0;
        LineState line = first ? empty_line() : load(first_line);  // early: it arrives behind the maxima
        scale_tile(acc, thread, p.inv_x, p.inv_y, row0, col0, p.n, p.m);
        TileBits bits = ~TileBits(0);
        bool neg_inf = true;
        const bool all = p.select == kSelectNegatives && p.row_groups == nullptr && !on_diagonal(row0, col0) && row0 + kTile <= p.n &&
                         col0 + kTileCols <= p.m;
        if (!all) {
            if (on_diagonal(row0, col0) && p.pos != nullptr) write_pairs(p, thread, acc, row0, col0);
            bits = mining_candidates(p, thread, row0, col0);
            neg_inf = mask_others(acc, bits);
        }

        Best rows[kThreadRows];
        Best cols[kThreadCols];
        maxima(acc, rows, cols);
#pragma unroll
        for (int h = 0; h < kJoinedRows; ++h) values.rows[thread.warp_col()][thread.joined_row(h)] = rows[h].value;
#pragma unroll
        for (int h = 0; h < kJoinedCols; ++h) values.cols[thread.warp_row()][thread.joined_col(h)] = cols[h].value;
        neg_inf = tile_sync_or(neg_inf);  // the maxima are in place, and the last stage is free

        const float top = best_of(values, values).value;
        const bool beaten =
            owns && (value_beats(top, line.value) || (neg_inf && line.index < 0 && top == neg_infinity()));
        if (owns) scratch.above[thread.index] = beaten ? lookup_bound(top) : pos_infinity();
        if (owns) scratch.found[thread.index] = kNowhere;
        if constexpr (kStats) {
            // Below the threshold: the tile has no member of this line.
            if (owns) scratch.reference[thread.index] = top < threshold ? neg_infinity() : beaten ? top : line.value;
#pragma unroll
            for (int h = 0; h < kJoinedRows; ++h) {
                scratch.second.rows[thread.warp_col()][thread.joined_row(h)] = rows[h].second;
            }
#pragma unroll
            for (int h = 0; h < kJoinedCols; ++h) {
                scratch.second.cols[thread.warp_row()][thread.joined_col(h)] = cols[h].second;
            }
        }
        const bool any = tile_sync_or(beaten);  // bounds and references are in place
        if (any) look_up(acc, bits, scratch);
        if constexpr (kStats) {
            if (stats() == kStatsLin) count_members<false>(acc, bits, scratch);
            if (stats() == kStatsSig) count_members<true>(acc, bits, scratch);
        }
        if (any || stats() >= kStatsLin) tile_sync();  // places and sums are in place
        if (!owns) return;
        bool changed = first;
        if (beaten || kStats) changed |= update(line, top, beaten, owns_row ? col0 : row0, values, scratch);
        if (changed) store(first_line, line);
    }
};

// `values` is a block's shared memory.
template <bool kStats, typename Sweep>
__device__ __forceinline__ void mine_tiles(const MineParams& p, Sweep& sweep, const TileRect& rect, float threshold,
                                           TileMaxima& values) {
    sweep.run([&](TileAcc& acc, uint32_t r, uint32_t c, char* scratch) {
        const Miner<kStats> miner(p, threshold);
        const bool first = miner.owns_row ? c == rect.c : r == rect.r;
        miner.tile(acc, r * kTile, c * kTileCols, first, values, *reinterpret_cast<TileScratch*>(scratch));
    });
    if (!rect.empty() || !sweep.holds()) return;
    // Without a tile nothing has said yet that the lines are empty.
    const Miner<kStats> miner(p, threshold);
    for (uint32_t r = rect.r; r < rect.r_end; ++r) {
        if (miner.owns_row) miner.store(r * kTile, empty_line());
    }
    for (uint32_t c = rect.c; c < rect.c_end; ++c) {
        if (!miner.owns_row) miner.store(c * kTileCols, empty_line());
    }
}
