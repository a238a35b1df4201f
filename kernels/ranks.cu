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

struct RankCounter {
    const RanksParams& p;
    const TileThread thread;

    __device__ __forceinline__ explicit RankCounter(const RanksParams& params) : p(params) {}

    // Line `line` of `len` against the tile whose candidates start at `first`.
    __device__ __forceinline__ LineBound bound(const float* scores, const int32_t* indices, uint32_t line, uint32_t len,
                                               uint32_t first) const {
        if (line >= len) return {0.0f, 0.0f, 0};
        const float score = __ldg(scores + line);
        if (p.ties == kTiesOptimistic) return {score, score, 0};
        const float equals = bound_with_equals(score);
        if (p.ties == kTiesPessimistic) return {equals, equals, 0};
        return {equals, score, uint32_t(min(max(int64_t(__ldg(indices + line)) - int64_t(first), int64_t(0)), int64_t(kTile)))};
    }

    // Bit 8 i + k says whether element (i, k) exists and is not a positive. Returns whether all bits are set.
    __device__ __forceinline__ bool candidates(uint32_t row0, uint32_t col0, uint64_t& bits) const {
        const bool grouped = p.row_groups != nullptr;
        bits = ~uint64_t(0);
        if (!grouped && row0 != col0 && row0 + kTile <= p.n && col0 + kTile <= p.m) return true;
        int64_t col_group[8];
#pragma unroll
        for (int k = 0; k < 8; ++k) {
            const uint32_t col = col0 + thread.col(k);
            col_group[k] = grouped && col < p.m ? p.col_groups[col] : 0;
        }
        bits = 0;
#pragma unroll
        for (int i = 0; i < 8; ++i) {
            const uint32_t row = row0 + thread.row(i);
            const int64_t row_group = grouped && row < p.n ? p.row_groups[row] : 0;
#pragma unroll
            for (int k = 0; k < 8; ++k) {
                const uint32_t col = col0 + thread.col(k);
                const bool positive = grouped ? row_group == col_group[k] : row == col;
                bits |= uint64_t(row < p.n && col < p.m && !positive) << (8 * i + k);
            }
        }
        return false;
    }

    // Elements of one of the thread's 8 lines that are ahead. `whole` says that one bound serves all of them, and that all
    // are candidates.
    template <bool kRows, bool kWhole>
    __device__ __forceinline__ uint32_t ahead(const float (&acc)[4][4][4], uint64_t bits, const LineBound& bound,
                                              int line) const {
        uint32_t count = 0;
#pragma unroll
        for (int at = 0; at < 8; ++at) {
            const int i = kRows ? line : at;
            const int k = kRows ? at : line;
            const float limit = kWhole ? bound.whole() : bound.at(kRows ? thread.col(k) : thread.row(i));
            if (!(element(acc, i, k) <= limit) && (kWhole || (bits >> (8 * i + k) & 1))) count += 1;
        }
        return count;
    }

    // Elements of the warp that are ahead in the thread's 8 rows or columns, a byte per line: at most 32 or 64. `all` says
    // that every element is a candidate.
    template <bool kRows>
    __device__ __forceinline__ void count(const float (&acc)[4][4][4], uint64_t bits, bool all, uint32_t row0, uint32_t col0,
                                          uint32_t (&words)[2]) const {
        words[0] = words[1] = 0;
#pragma unroll
        for (int line = 0; line < 8; ++line) {
            const LineBound b = kRows ? bound(p.row_score, p.row_index, row0 + thread.row(line), p.n, col0)
                                      : bound(p.col_score, p.col_index, col0 + thread.col(line), p.m, row0);
            // The warp takes the branch as one: in most tiles no line has its positive.
            const bool whole = all && !__any_sync(~0u, b.mixed());
            const uint32_t count = whole ? ahead<kRows, true>(acc, bits, b, line) : ahead<kRows, false>(acc, bits, b, line);
            words[line >> 2] += count << (8 * (line & 3));
        }
#pragma unroll
        for (int w = 0; w < 2; ++w) {
#pragma unroll
            for (int mask = kRows ? 1 : 4; mask < (kRows ? 4 : 32); mask <<= 1) words[w] += exchange(words[w], mask);
        }
    }
};

template <typename T>
__device__ __forceinline__ void ranks_body(const RanksParams& p) {
    extern __shared__ __align__(128) char stages[];
    const RankCounter counter(p);
    const uint32_t r_begin = part_begin(tiles_of(p.n), p.row_splits, blockIdx.y);
    const uint32_t r_end = part_begin(tiles_of(p.n), p.row_splits, blockIdx.y + 1);
    const uint32_t c_begin = part_begin(tiles_of(p.m), p.col_splits, blockIdx.x);
    const uint32_t c_end = part_begin(tiles_of(p.m), p.col_splits, blockIdx.x + 1);
    const TileShape shape{p.ldx * int64_t(sizeof(T)), p.ldy * int64_t(sizeof(T)), p.n, p.m, p.d * uint32_t(sizeof(T))};
    TileStream<T, RectCursor> stream(
        stages, shape,
        {static_cast<const char*>(p.x), static_cast<const char*>(p.y), r_begin, r_end, c_begin, c_begin, c_end});

    const uint32_t group = (threadIdx.x & 31) >> 2;  // of the 8 columns, the one this lane adds up
    const uint32_t quarter = threadIdx.x & 3;        // of 4 rows, the one this lane adds up
    for (uint32_t r = r_begin; r < r_end; ++r) {
        const uint32_t row0 = r * kTile;
        uint32_t row_counts[2] = {0, 0};
        for (uint32_t c = c_begin; c < c_end; ++c) {
            const uint32_t col0 = c * kTile;
            float acc[4][4][4];
            clear_tile(acc);
            stream.accumulate(acc);
            scale_tile(acc, counter.thread, p.inv_x, p.inv_y, row0, col0, p.n, p.m);

            uint64_t bits;
            const bool all = counter.candidates(row0, col0, bits);
            uint32_t words[2];
            counter.count<true>(acc, bits, all, row0, col0, words);
            row_counts[0] += words[0] >> (8 * quarter) & 0xffu;
            row_counts[1] += words[1] >> (8 * quarter) & 0xffu;
            counter.count<false>(acc, bits, all, row0, col0, words);
            const uint32_t count = (group < 4 ? words[0] : words[1]) >> (8 * (group & 3)) & 0xffu;
            const uint32_t col = col0 + ((threadIdx.x >> 5) & 3) * 32 + joined_col();
            if (count != 0 && p.col_index[col] >= 0) atomicAdd(p.col_rank + col, int(count));
        }
#pragma unroll
        for (int h = 0; h < 2; ++h) {
            const uint32_t row = row0 + (threadIdx.x >> 7) * 64 + 32 * h + joined_row();
            if (row_counts[h] != 0 && p.row_index[row] >= 0) atomicAdd(p.row_rank + row, int(row_counts[h]));
        }
    }
}

#define RANKS(SUFFIX, T)                                                                                              \
    extern "C" __global__ void __launch_bounds__(kTileThreads, 1) ranks_##SUFFIX(const __grid_constant__ RanksParams p) { \
        ranks_body<T>(p);                                                                                             \
    }
RANKS(f32, float)
RANKS(f16, __half)
RANKS(bf16, __nv_bfloat16)
