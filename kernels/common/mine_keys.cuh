// Mining of values and indices alone by warps that do not wait for each other: the epilogue for tiles of which the products
// are so fast that a barrier, or an index carried along with every element, would cost more than they do.
//
// The best of a line is one 64-bit key, larger for larger values and, among equal ones, for lower indices (mining.cuh). A
// warp reduces its 16 rows and all columns of the tile to maxima of values. Where one may beat the key that is there, the
// index is looked up in the registers, and the key is raised by an atomic maximum: which is the same in whatever order.
// Rows belong to one block at a time, which keeps their best in registers until it leaves them.
#pragma once
#include "common/mine_tile.cuh"

// The best so far of a thread's rows; the four threads that share them hold the same.
struct RowBest {
    float value[kThreadRows];
    int32_t index[kThreadRows];

    __device__ __forceinline__ void clear() {
#pragma unroll
        for (int i = 0; i < kThreadRows; ++i) value[i] = neg_infinity(), index[i] = -1;
    }
};

struct KeyMiner {
    const MineParams& p;
    const TileThread thread;

    static_assert(kThreadRows == 2 && kWarpCols == 1, "a warp has whole rows of the tile");

    __device__ __forceinline__ explicit KeyMiner(const MineParams& params) : p(params) {}

    __device__ __forceinline__ unsigned long long* row_key(uint32_t row) const {
        return reinterpret_cast<unsigned long long*>(p.row_parts) + row;
    }
    __device__ __forceinline__ unsigned long long* col_key(uint32_t col) const {
        return reinterpret_cast<unsigned long long*>(p.col_parts) + col;
    }

    // Of the thread's part of its rows, and of the warp's part of the columns, as join_cols() leaves it.
    __device__ __forceinline__ void maxima(const TileAcc& acc, float (&rows)[kThreadRows], float (&cols)[kThreadCols]) const {
#pragma unroll
        for (int i = 0; i < kThreadRows; ++i) {
#pragma unroll
            for (int k = 0; k < kThreadCols; ++k) {
                const float s = element(acc, i, k);
                rows[i] = k == 0 ? s : max_nan(rows[i], s);
                cols[k] = i == 0 ? s : max_nan(cols[k], s);
            }
        }
        join_cols(cols, thread, [](float a, float b) { return max_nan(a, b); });
    }

    // The lowest column of row i, of the thread's candidates that `bound` lets pass.
    template <bool kAll>
    __device__ __forceinline__ uint32_t lowest_place(const TileAcc& acc, TileBits candidates, int i, float bound) const {
        uint32_t place = kThreadCols;
#pragma unroll
        for (int k = kThreadCols - 1; k >= 0; --k) {
            if (!(element(acc, i, k) <= bound) && (kAll || (candidates >> bit_at(i, k) & 1))) place = k;
        }
        return place == kThreadCols ? ~0u : thread.col(int(place));
    }

    template <bool kAll>
    __device__ __forceinline__ void update_rows(const TileAcc& acc, TileBits candidates, const float (&rows)[kThreadRows],
                                                bool neg_inf, uint32_t col0, RowBest& best) const {
        const auto beats = [&](float top, int i) {
            return value_beats(top, best.value[i]) || (neg_inf && best.index[i] < 0 && top == neg_infinity());
        };
#pragma unroll
        for (int i = 0; i < kThreadRows; ++i) {
            if (!__any_sync(~0u, beats(rows[i], i))) continue;
            float top = max_nan(rows[i], exchange(rows[i], 1));
            top = max_nan(top, exchange(top, 2));
            const bool beaten = beats(top, i);
            uint32_t place = lowest_place<kAll>(acc, candidates, i, beaten ? lookup_bound(top) : pos_infinity());
            place = min(place, exchange(place, 1));
            place = min(place, exchange(place, 2));
            // Without a place every -infinity of the row is one that is no candidate.
            if (beaten && place != ~0u) best.value[i] = top, best.index[i] = int32_t(col0 + place);
        }
    }

    __device__ __forceinline__ void update_cols(const TileAcc& acc, TileBits candidates, const float (&cols)[kThreadCols],
                                                const uint64_t (&before)[kJoinedCols], bool neg_inf, uint32_t row0,
                                                uint32_t col0) const {
        float bound[kJoinedCols];
        bool beaten[kJoinedCols];
#pragma unroll
        for (int h = 0; h < kJoinedCols; ++h) {
            const float top = cols[h];
            // The best that a row of this warp can do. Columns that do not exist have no candidate, but neither do others.
            beaten[h] = mining_key(top, row0 + thread.warp_row() * 16) > before[h] &&
                               (top != neg_infinity() || neg_inf) && col0 + thread.joined_col(h) < p.m;
            bound[h] = beaten[h] ? lookup_bound(top) : pos_infinity();
        }
#pragma unroll
        for (int h = 0; h < kJoinedCols; ++h) {
            // Mostly one column is beaten, if any: of 32 columns beside each other a vote tells.
            if (!__any_sync(~0u, beaten[h])) continue;
            // Which elements they are, a bit each: those of column q of the eight, of row i at 8 i. Lane 4 q + lane % 4 knows.
            const uint32_t quad = thread.lane() & 3;
            uint32_t found = 0;
#pragma unroll
            for (int q = 0; q < 8; ++q) {
                const float of_col = __shfl_sync(~0u, bound[h], q * 4 + quad);
#pragma unroll
                for (int i = 0; i < kThreadRows; ++i) {
                    const int k = 8 * h + q;
                    if (!(element(acc, i, k) <= of_col) && (candidates >> bit_at(i, k) & 1)) found |= 1u << (8 * i + q);
                }
            }
            // Rolled up: for 64 elements one behind the other it would not fit the instruction cache beside the rest.
#pragma unroll 1
            while (__any_sync(~0u, found != 0)) {
                const uint32_t at = found == 0 ? 0 : __ffs(int(found)) - 1;
                const float top = __shfl_sync(~0u, cols[h], at % 8 * 4 + quad);  // the element's own value
                if (found != 0) {
                    const uint32_t col = col0 + 32 * h + at % 8 / 2 * 8 + quad * 2 + at % 2;
                    atomicMax(col_key(col), mining_key(top, row0 + thread.row(int(at / 8))));
                }
                found &= found - 1;
            }
        }
    }

    __device__ __forceinline__ void tile(TileAcc& acc, uint32_t row0, uint32_t col0, RowBest& best) const {
        // Early, behind the maxima; older values only let more pass.
        uint64_t before[kJoinedCols];
#pragma unroll
        for (int h = 0; h < kJoinedCols; ++h) {
            const uint32_t col = col0 + thread.joined_col(h);
            before[h] = col < p.m && p.col_parts != nullptr ? load_relaxed(col_key(col)) : ~uint64_t(0);
        }
        scale_tile(acc, thread, p.inv_x, p.inv_y, row0, col0, p.n, p.m);
        TileBits bits = ~TileBits(0);
        bool neg_inf = true;
        // No pair, and none of one group.
        const bool apart = is_inner(row0, col0, p.n, p.m) &&
                           (p.row_groups == nullptr || !may_share_group(thread, row0, col0, p.row_groups, p.col_groups));
        if (apart && p.select == kSelectGroup) return;
        const bool all = apart && p.select == kSelectNegatives;
        if (!all) {
            if (on_diagonal(row0, col0) && p.pos != nullptr) write_pairs(p, thread, acc, row0, col0);
            if (p.row_parts == nullptr) return;
            bits = mining_candidates(p, thread, row0, col0);
            neg_inf = __any_sync(~0u, mask_others(acc, bits));
        }
        float rows[kThreadRows];
        float cols[kThreadCols];
        maxima(acc, rows, cols);
        if (all) update_rows<true>(acc, bits, rows, neg_inf, col0, best);
        else update_rows<false>(acc, bits, rows, neg_inf, col0, best);
        update_cols(acc, bits, cols, before, neg_inf, row0, col0);
    }

    __device__ __forceinline__ void leave_rows(uint32_t row0, const RowBest& best) const {
#pragma unroll
        for (int i = 0; i < kThreadRows; ++i) {
            if ((thread.lane() & 3) != uint32_t(i) || best.index[i] < 0) continue;
            atomicMax(row_key(row0 + thread.row(i)), mining_key(best.value[i], uint32_t(best.index[i])));
        }
    }

    static __device__ __forceinline__ uint64_t load_relaxed(const unsigned long long* key) {
        unsigned long long v;
        asm volatile("ld.relaxed.gpu.global.u64 %0, [%1];" : "=l"(v) : "l"(key) : "memory");
        return v;
    }
};

// Values and indices of all lines of the block's tiles, raised in the keys at row_parts and col_parts, which are 0 before. Null
// with kSelectPair: only the similarities of the pairs are wanted.
template <typename Sweep>
__device__ __forceinline__ void mine_keys(const MineParams& p, Sweep& sweep, const TileRect& rect) {
    RowBest best;
    best.clear();
    sweep.template run<false>([&](TileAcc& acc, uint32_t r, uint32_t c, char*) {
        const KeyMiner miner(p);
        miner.tile(acc, r * kTile, c * kTileCols, best);
        if (c + 1 == rect.c_end) {
            miner.leave_rows(r * kTile, best);
            best.clear();
        }
    });
}
