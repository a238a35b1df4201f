// Counting the elements of a tile that are ahead of a bar, for the kernels that rank.
#pragma once
#include <stdint.h>

#include "common/epilogue.cuh"
#include "common/order.cuh"
#include "params/ranks.h"

// Elements x with !(x <= bound) are ahead. Where a candidate equal to the score is behind, the bound is the score itself;
// where it is ahead, the bound below. Beside a score of NaN everything is ahead: nothing is <= NaN.
__device__ __forceinline__ float bound_with_equals(float score) { return score != score ? score : bound_below(score); }

// The bounds of one line against the candidates of a tile.
struct LineBound {
    float before;   // for candidates at places below `turn`
    float after;    // for the others
    uint32_t turn;  // 0 where one bound serves the whole tile

    __device__ __forceinline__ float at(uint32_t place) const { return place < turn ? before : after; }
};

// The bounds that a candidate of this score and index sets to the tile whose `extent` candidates start at `first`.
__device__ __forceinline__ LineBound line_bound(float score, int32_t index, uint32_t first, uint32_t extent, uint32_t ties) {
    if (ties == kTiesOptimistic) return {score, score, 0};
    const float equals = bound_with_equals(score);
    const int64_t turn = int64_t(index) - int64_t(first);
    if (ties == kTiesPessimistic || turn >= int64_t(extent)) return {equals, equals, 0};
    return turn <= 0 ? LineBound{score, score, 0} : LineBound{equals, score, uint32_t(turn)};
}

// The bounds of a party's lines in shared memory, rows before columns: each is found by one thread and read by all that hold
// elements of the line.
struct TileBounds {
    static constexpr uint32_t kCount = kPartyRows + kTileCols;

    // A bit per line whose bound turns within the tile.
    uint32_t turning[(kCount > kPartyThreads ? kCount : kPartyThreads) / 32];
    alignas(8) float before[kCount];
    alignas(8) float after[kCount];
    alignas(2) uint8_t turn[kCount];

    // A thread says what bounds line `line`; warps do so as a whole, also where there is no such line.
    __device__ __forceinline__ void publish(uint32_t line, const LineBound& bound) {
        const uint32_t lines = __ballot_sync(~0u, bound.turn != 0);
        if ((line & 31) == 0) turning[line >> 5] = lines;
        if (kCount < kPartyThreads && line >= kCount) return;
        before[line] = bound.before;
        after[line] = bound.after;
        turn[line] = uint8_t(bound.turn);
    }
    // `kWhole`: that no bound turns is known.
    template <bool kWhole>
    __device__ __forceinline__ LineBound at(uint32_t line) const {
        if (kWhole) return {0.0f, after[line], 0};
        return {before[line], after[line], turn[line]};
    }
    // Those of `line`, which is even, and the next one.
    template <bool kWhole>
    __device__ __forceinline__ void pair_at(uint32_t line, LineBound (&bound)[2]) const {
        const float2 behind = *reinterpret_cast<const float2*>(after + line);
        const float2 ahead = kWhole ? float2{} : *reinterpret_cast<const float2*>(before + line);
        const uchar2 place = kWhole ? uchar2{} : *reinterpret_cast<const uchar2*>(turn + line);
        bound[0] = {ahead.x, behind.x, place.x};
        bound[1] = {ahead.y, behind.y, place.y};
    }
    template <bool kRows>
    __device__ __forceinline__ bool any_turns() const {
        constexpr int kFirst = kRows ? 0 : kPartyRows / 32, kWords = (kRows ? kPartyRows : kTileCols) / 32;
        uint32_t lines = 0;
#pragma unroll
        for (int w = 0; w < kWords; ++w) lines |= turning[kFirst + w];
        return lines != 0;
    }
};
static_assert(kPartyRows % 32 == 0 && kTileCols % 32 == 0, "the lines of a warp are all rows or all columns");

// Counts of a thread's lines, a byte each: of a warp no row has more than 128 elements, no column more than 64.
constexpr int kRowWords = (kThreadRows + 3) / 4;
constexpr int kColWords = kThreadCols / 4;

// The thread's own elements that are ahead in its rows or columns. `bits` says which elements count, see bit_at(); `kWhole`
// that all do, and that no bound turns.
template <bool kRows, bool kWhole, int kWords>
__device__ __forceinline__ void count_own(const TileAcc& acc, TileBits bits, const TileThread& thread,
                                          const TileBounds& bounds, uint32_t (&words)[kWords]) {
    constexpr int kStep = kRows ? 1 : 2;  // columns 2 j and 2 j + 1 lie beside each other
#pragma unroll
    for (int line = 0; line < (kRows ? kThreadRows : kThreadCols); line += kStep) {
        const uint32_t place = kRows ? thread.in_party(thread.row(line)) : kPartyRows + thread.col(line);
        LineBound bound[kStep];
        if constexpr (kRows) bound[0] = bounds.at<kWhole>(place);
        else bounds.pair_at<kWhole>(place, bound);
#pragma unroll
        for (int s = 0; s < kStep; ++s) {
            uint32_t& word = words[(line + s) >> 2];
            const uint32_t one = 1u << (8 * ((line + s) & 3));
#pragma unroll
            for (int at = 0; at < (kRows ? kThreadCols : kThreadRows); ++at) {
                const int i = kRows ? line : at;
                const int k = kRows ? at : line + s;
                const float limit = kWhole ? bound[s].after : bound[s].at(kRows ? thread.col(k) : thread.row(i));
                if (!(element(acc, i, k) <= limit) && (kWhole || (bits >> bit_at(i, k) & 1))) word += one;
            }
        }
    }
}

// Elements of the warp that are ahead in the thread's rows or columns, a byte per line. `all` says that every element counts.
template <bool kRows, int kWords>
__device__ __forceinline__ void count_lines(const TileAcc& acc, TileBits bits, bool all, const TileThread& thread,
                                            const TileBounds& bounds, uint32_t (&words)[kWords]) {
#pragma unroll
    for (int w = 0; w < kWords; ++w) words[w] = 0;
    // A warp takes the branch as one.
    if (all && !bounds.any_turns<kRows>()) count_own<kRows, true>(acc, bits, thread, bounds, words);
    else count_own<kRows, false>(acc, bits, thread, bounds, words);
    if constexpr (kRows) {
#pragma unroll
        for (int w = 0; w < kWords; ++w) {
            words[w] += exchange(words[w], 1);
            words[w] += exchange(words[w], 2);
        }
    } else {
        halve<kWords / 2>(words, thread.index & 16, 16, [](uint32_t a, uint32_t b) { return a + b; });
#pragma unroll
        for (int h = 0; h < kJoinedCols; ++h) {
            words[h] += exchange(words[h], 4);
            words[h] += exchange(words[h], 8);
        }
    }
}

// The warp's count of row joined_row(h), 0 in lanes that share the row with another one that has it.
__device__ __forceinline__ uint32_t joined_row_count(const uint32_t (&words)[kRowWords], uint32_t lane, int h) {
    if (kThreadRows < 4 && (lane & 2) != 0) return 0;
    return words[h] >> (8 * (lane & (kThreadRows < 4 ? 1 : 3))) & 0xffu;
}
// The warp's count of column joined_col(h).
__device__ __forceinline__ uint32_t joined_col_count(const uint32_t (&words)[kColWords], uint32_t lane, int h) {
    return words[h] >> (8 * (lane >> 2 & 3)) & 0xffu;
}
