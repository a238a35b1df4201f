// Counting the elements of a tile that are ahead of a bar, for the kernels that rank.
#pragma once
#include <stdint.h>

#include "common/epilogue.cuh"
#include "common/order.cuh"
#include "params/ranks.h"

// Elements x with !(x <= bound) are ahead. Where a candidate equal to the score is behind, the bound is the score itself;
// where it is ahead, the bound below. Beside a score of NaN everything is ahead: nothing is <= NaN.
__device__ __forceinline__ float bound_with_equals(float score) { return score != score ? score : bound_below(score); }

// The bounds of one line against the 128 candidates of a tile.
struct LineBound {
    float before;   // for candidates at places below `turn`
    float after;    // for the others
    uint32_t turn;  // 0 .. kTile

    __device__ __forceinline__ bool mixed() const { return turn > 0 && turn < kTile; }
    __device__ __forceinline__ float whole() const { return turn == 0 ? after : before; }
    __device__ __forceinline__ float at(uint32_t place) const { return place < turn ? before : after; }
};

// The bounds that a candidate of this score and index sets to the tile whose candidates start at `first`.
__device__ __forceinline__ LineBound line_bound(float score, int32_t index, uint32_t first, uint32_t ties) {
    if (ties == kTiesOptimistic) return {score, score, 0};
    const float equals = bound_with_equals(score);
    if (ties == kTiesPessimistic) return {equals, equals, 0};
    return {equals, score, uint32_t(min(max(int64_t(index) - int64_t(first), int64_t(0)), int64_t(kTile)))};
}

// Elements of line `line` of the thread's 8 rows or columns that are ahead. Bit 8 i + k of `bits` says whether element (i, k)
// counts; `kWhole` says that all do, and that one bound serves all of them.
template <bool kRows, bool kWhole>
__device__ __forceinline__ uint32_t count_ahead(const TileAcc& acc, uint64_t bits, const LineBound& bound,
                                                const TileThread& thread, int line) {
    uint32_t count = 0;
#pragma unroll
    for (int at = 0; at < 8; ++at) {
        const int i = kRows ? line : at;
        const int k = kRows ? at : line;
        const float limit = kWhole ? bound.whole() : bound.at(kRows ? thread.col(k) : thread.row(i));
        if (!(element(acc, i, k) <= limit) && (kWhole || (bits >> bit_at(i, k) & 1))) count += 1;
    }
    return count;
}

// Elements of the warp that are ahead in the thread's 8 rows or columns, a byte per line: at most 32 or 64. `all` says that
// every element counts, `bound_of(line)` gives the bounds.
template <bool kRows, typename BoundOf>
__device__ __forceinline__ void count_lines(const TileAcc& acc, uint64_t bits, bool all, const TileThread& thread,
                                            uint32_t (&words)[2], BoundOf bound_of) {
    words[0] = words[1] = 0;
#pragma unroll
    for (int line = 0; line < 8; ++line) {
        const LineBound b = bound_of(line);
        // The warp takes the branch as one: in most tiles no line has its positive.
        const bool whole = all && !__any_sync(~0u, b.mixed());
        const uint32_t count = whole ? count_ahead<kRows, true>(acc, bits, b, thread, line)
                                     : count_ahead<kRows, false>(acc, bits, b, thread, line);
        words[line >> 2] += count << (8 * (line & 3));
    }
#pragma unroll
    for (int w = 0; w < 2; ++w) {
#pragma unroll
        for (int mask = kRows ? 1 : 4; mask < (kRows ? 4 : 32); mask <<= 1) words[w] += exchange(words[w], mask);
    }
}

// The count of row joined_row(h), and of column joined_col(0).
__device__ __forceinline__ uint32_t joined_row_count(const uint32_t (&words)[2], uint32_t lane, int h) {
    return words[h] >> (8 * (lane & 3)) & 0xffu;
}
__device__ __forceinline__ uint32_t joined_col_count(const uint32_t (&words)[2], uint32_t lane) {
    return (lane < 16 ? words[0] : words[1]) >> (8 * (lane >> 2 & 3)) & 0xffu;
}
