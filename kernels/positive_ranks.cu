// positive_ranks — place of every relevant pair among all candidates of its query, both directions; S is never stored.
//
//   begin   score = NaN, row_rank = col_rank = 0
//   score   score[p] = S[i, j] for the pair p = (i, j), in a sweep over the tiles that hold pairs
//   count   row_rank[p] += #{j': S[i, j'] ahead of score[p]}, col_rank likewise, in a sweep over all tiles
//           ahead: larger or NaN; equal too if the tie policy puts it first: by index if j' < j, optimistic never, pessimistic
//           always
//   finish  with Q the pairs of the same query, U those of them whose score is NaN, E those of score[p]'s value:
//           rank[p] = rank[p] - #U                                          by index
//           rank[p] = rank[p] - #U + #{q in E before p}                     optimistic
//           rank[p] = rank[p] - #U - #E + #{q in E before p}                pessimistic
//           rank[p] = candidates - #U + #{q in U before p}                  if p itself is in U
//           before: lower index; under optimistic first higher, under pessimistic first lower grade
//
//   x (n, d), y (m, d)   T: f32 | f16 | bf16, row-major, base and rows aligned to 16 bytes; inv_* as for mine_*
//   row_*, col_*         the pairs in compressed rows and in compressed columns; what they say is read with bounds, so that
//                        wrong contents give wrong ranks and no stray access; a pair out of range keeps the score NaN
//
// Work    begin: a thread per pair. score: a block per tile row and split of the columns, its tiles found by searching the
//         pairs. count: the tiles are dealt to row_splits x col_splits blocks; every pair of a line is one comparison of
//         the line's elements. finish: a warp per query, a lane per pair; where ties or NaN need it, against all pairs of
//         the query.
// Launch  begin: block 256. score: grid = (tile rows, col_splits); count: grid = (col_splits, row_splits); both block 256,
//         98,304 bytes of dynamic shared memory. finish: block 256.
// Bound   tensor cores (f32: FMA), 2 n m d and once more for the tiles with pairs; with many pairs per query the comparisons.
// Order   free: integer sums, by atomic addition.
// Needs   sm_80.
#include "common/tile.cuh"
#include "common/ahead.cuh"
#include "params/positive_ranks.h"

namespace {

// Pairs in compressed lines.
struct Lines {
    const uint32_t* offsets;
    const int32_t* candidates;
    uint32_t count;  // lines
    uint32_t pairs;

    __device__ __forceinline__ uint2 of(uint32_t line) const {
        if (line >= count) return make_uint2(0, 0);
        const uint32_t begin = min(__ldg(offsets + line), pairs);
        return make_uint2(begin, max(min(__ldg(offsets + line + 1), pairs), begin));
    }
    __device__ __forceinline__ uint32_t candidate(uint32_t pair) const { return uint32_t(__ldg(candidates + pair)); }
    // The first pair in [begin, end) whose candidate is at least `least`.
    __device__ __forceinline__ uint32_t from(uint32_t begin, uint32_t end, uint32_t least) const {
        while (begin < end) {
            const uint32_t middle = begin + (end - begin) / 2;
            if (candidate(middle) < least) {
                begin = middle + 1;
            } else {
                end = middle;
            }
        }
        return begin;
    }
};

__device__ __forceinline__ Lines rows_of(const PositiveRanksParams& p) {
    return {p.row_offsets, p.row_candidates, p.n, p.pairs};
}
__device__ __forceinline__ Lines cols_of(const PositiveRanksParams& p) {
    return {p.col_offsets, p.col_candidates, p.m, p.pairs};
}

// Number of a pair in the order of the rows, from its place in the order of either direction.
template <bool kRows>
__device__ __forceinline__ uint32_t pair_at(const PositiveRanksParams& p, uint32_t place) {
    return kRows ? place : __ldg(p.col_pairs + place);
}
template <bool kRows>
__device__ __forceinline__ float score_at(const PositiveRanksParams& p, uint32_t place) {
    const uint32_t pair = pair_at<kRows>(p, place);
    return pair < p.pairs ? __ldg(p.score + pair) : __int_as_float(0x7fffffff);
}
template <bool kRows>
__device__ __forceinline__ float grade_at(const PositiveRanksParams& p, uint32_t place) {
    const uint32_t pair = pair_at<kRows>(p, place);
    return p.grades != nullptr && pair < p.pairs ? __ldg(p.grades + pair) : 1.0f;
}

// The tiles of one row of tiles that hold a pair, ascending. Every warp searches all 128 rows, so that no two disagree and
// the block need not meet.
struct PairCursor {
    const PositiveRanksParams* p;
    uint32_t r;
    uint32_t c;
    uint32_t c_end;

    __device__ __forceinline__ PairCursor(const PositiveRanksParams& params, uint32_t row, uint32_t begin, uint32_t end)
        : p(&params), r(row), c(begin), c_end(end) {
        find();
    }
    __device__ __forceinline__ bool valid() const { return c < c_end; }
    __device__ __forceinline__ TileAt at() const {
        return {static_cast<const char*>(p->x), static_cast<const char*>(p->y), r * kTile, c * kTile};
    }
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
            const uint32_t pair = rows.from(of.x, of.y, c * kTile);
            if (pair < of.y) next = min(next, rows.candidate(pair) / kTile);
        }
#pragma unroll
        for (int mask = 16; mask > 0; mask >>= 1) next = min(next, exchange(next, mask));
        c = next;
    }
};

template <typename T>
__device__ __forceinline__ TileShape shape_of(const PositiveRanksParams& p) {
    return {p.ldx * int64_t(sizeof(T)), p.ldy * int64_t(sizeof(T)), p.n, p.m, p.d * uint32_t(sizeof(T))};
}

// Writes the elements of the tile that are pairs.
__device__ __forceinline__ void store_scores(const PositiveRanksParams& p, const TileAcc& acc,
                                             const TileThread& thread, uint32_t row0, uint32_t col0) {
    const Lines rows = rows_of(p);
#pragma unroll
    for (int i = 0; i < kThreadRows; ++i) {
        const uint2 of = rows.of(row0 + thread.row(i));
        const uint32_t begin = rows.from(of.x, of.y, col0);
        const uint32_t end = rows.from(begin, of.y, col0 + kTile);
        if (begin == end) continue;
#pragma unroll
        for (int k = 0; k < kThreadCols; ++k) {
            const uint32_t col = col0 + thread.col(k);
            const uint32_t pair = rows.from(begin, end, col);
            if (pair < end && rows.candidate(pair) == col) p.score[pair] = element(acc, i, k);
        }
    }
}

template <typename T>
__device__ __forceinline__ void score_body(const PositiveRanksParams& p) {
    extern __shared__ __align__(128) char stages[];
    const uint32_t tiles = tiles_of(p.m);
    PairCursor at(p, blockIdx.x, part_begin(tiles, p.col_splits, blockIdx.y),
                  part_begin(tiles, p.col_splits, blockIdx.y + 1));
    if (!at.valid()) return;
    const TileShape shape = shape_of<T>(p);
    TileStream<T, PairCursor> stream(stages, shape, at);
    for (; at.valid(); at.advance()) {
        const uint32_t row0 = at.r * kTile;
        const uint32_t col0 = at.c * kTile;
        TileAcc acc;
        for (int e = 0; e < kThreadElements; ++e) acc[e] = 0.0f;
        stream.accumulate(acc);
        const TileThread thread;
        scale_tile(acc, thread, p.inv_x, p.inv_y, row0, col0, p.n, p.m);
        store_scores(p, acc, thread, row0, col0);
    }
}

// Counts the tile against every pair of its rows or columns: the pairs in place t of all lines at a time.
template <bool kRows>
__device__ __forceinline__ void count_tile(const PositiveRanksParams& p, const TileAcc& acc, uint64_t bits, bool all,
                                           uint32_t row0, uint32_t col0) {
    const Lines lines = kRows ? rows_of(p) : cols_of(p);
    const uint32_t first = kRows ? col0 : row0;
    const auto line_of = [&](const TileThread& thread, int l) {
        return kRows ? row0 + thread.row(l) : col0 + thread.col(l);
    };
    uint32_t most = 0;
#pragma unroll 1
    for (int l = 0; l < 8; ++l) {
        const uint2 of = lines.of(line_of(TileThread(), l));
        most = max(most, of.y - of.x);
    }
#pragma unroll
    for (int mask = 16; mask > 0; mask >>= 1) most = max(most, exchange(most, mask));

    int32_t* ranks = kRows ? p.row_rank : p.col_rank;
#pragma unroll 1
    for (uint32_t t = 0; t < most; ++t) {
        const TileThread thread;  // made anew, so that it takes no registers through the loop
        uint32_t words[2];
        count_lines<kRows>(acc, bits, all, thread, words, [&](int l) {
            const uint2 of = lines.of(line_of(thread, l));
            if (t >= of.y - of.x) return LineBound{0.0f, 0.0f, 0};
            return line_bound(score_at<kRows>(p, of.x + t), int32_t(lines.candidate(of.x + t)), first, p.ties);
        });
        const uint32_t lane = thread.lane();
#pragma unroll
        for (int h = 0; h < (kRows ? 2 : 1); ++h) {
            const uint32_t count = kRows ? joined_row_count(words, lane, h) : joined_col_count(words, lane);
            const uint2 of = lines.of(kRows ? row0 + thread.joined_row(h) : col0 + thread.joined_col(0));
            if (count != 0 && t < of.y - of.x) atomicAdd(ranks + of.x + t, int(count));
        }
    }
}

template <typename T>
__device__ __forceinline__ void count_body(const PositiveRanksParams& p) {
    extern __shared__ __align__(128) char stages[];
    const uint32_t r_begin = part_begin(tiles_of(p.n), p.row_splits, blockIdx.y);
    const uint32_t r_end = part_begin(tiles_of(p.n), p.row_splits, blockIdx.y + 1);
    const uint32_t c_begin = part_begin(tiles_of(p.m), p.col_splits, blockIdx.x);
    const uint32_t c_end = part_begin(tiles_of(p.m), p.col_splits, blockIdx.x + 1);
    const TileShape shape = shape_of<T>(p);
    TileStream<T, RectCursor> stream(
        stages, shape,
        {static_cast<const char*>(p.x), static_cast<const char*>(p.y), r_begin, r_end, c_begin, c_begin, c_end});
    for (uint32_t r = r_begin; r < r_end; ++r) {
        for (uint32_t c = c_begin; c < c_end; ++c) {
            const uint32_t row0 = r * kTile;
            const uint32_t col0 = c * kTile;
            TileAcc acc;
            for (int e = 0; e < kThreadElements; ++e) acc[e] = 0.0f;
            stream.accumulate(acc);
            const TileThread thread;
            scale_tile(acc, thread, p.inv_x, p.inv_y, row0, col0, p.n, p.m);
            const bool all = row0 + kTile <= p.n && col0 + kTile <= p.m;
            uint64_t bits = ~uint64_t(0);
            if (!all) {
                bits = select_elements(thread, row0, col0, p.n, p.m, nullptr, nullptr, [](bool, bool) { return true; });
            }
            count_tile<true>(p, acc, bits, all, row0, col0);
            count_tile<false>(p, acc, bits, all, row0, col0);
        }
    }
}

// Whether the pair at place `f` comes before the one at `e` of the same query and the same score.
template <bool kRows>
__device__ __forceinline__ bool comes_before(const PositiveRanksParams& p, uint32_t f, uint32_t e, float grade) {
    if (p.ties != kTiesLowestIndex) {
        const float other = grade_at<kRows>(p, f);
        if (other != grade) return (other > grade) == (p.ties == kTiesOptimistic);
    }
    return f < e;
}

template <bool kRows>
__device__ __forceinline__ void finish_query(const PositiveRanksParams& p, uint32_t query) {
    const uint2 of = (kRows ? rows_of(p) : cols_of(p)).of(query);
    const uint32_t candidates = kRows ? p.m : p.n;
    int32_t* ranks = kRows ? p.row_rank : p.col_rank;
    const uint32_t lane = threadIdx.x & 31;
    uint32_t unknown = 0;
    for (uint32_t e = of.x + lane; e < of.y; e += 32) {
        const float score = score_at<kRows>(p, e);
        unknown += score != score ? 1 : 0;
    }
#pragma unroll
    for (int mask = 16; mask > 0; mask >>= 1) unknown += exchange(unknown, mask);

    for (uint32_t e = of.x + lane; e < of.y; e += 32) {
        const float score = score_at<kRows>(p, e);
        const bool nan = score != score;
        uint32_t same = 0;
        uint32_t before = 0;
        if (nan || p.ties != kTiesLowestIndex) {
            const float grade = grade_at<kRows>(p, e);
            for (uint32_t f = of.x; f < of.y; ++f) {
                const float other = score_at<kRows>(p, f);
                if (other == score || (nan && other != other)) {
                    same += 1;
                    before += comes_before<kRows>(p, f, e, grade) ? 1 : 0;
                }
            }
        }
        // By index, `same` and `before` are 0 for a number: its ties were counted where they belong.
        if (p.ties == kTiesOptimistic) same = 0;
        const uint32_t ahead = nan ? candidates : uint32_t(ranks[e]) - same;
        ranks[e] = int32_t(ahead - unknown + before);
    }
}

}  // namespace

extern "C" __global__ void __launch_bounds__(256) positive_ranks_begin(const __grid_constant__ PositiveRanksParams p) {
    const uint32_t pair = blockIdx.x * 256 + threadIdx.x;
    if (pair >= p.pairs) return;
    p.score[pair] = __int_as_float(0x7fffffff);
    p.row_rank[pair] = 0;
    p.col_rank[pair] = 0;
}

extern "C" __global__ void __launch_bounds__(256) positive_ranks_finish(const __grid_constant__ PositiveRanksParams p) {
    const uint32_t query = blockIdx.x * 8 + threadIdx.x / 32;
    if (query < p.n) {
        finish_query<true>(p, query);
    } else if (query - p.n < p.m) {
        finish_query<false>(p, query - p.n);
    }
}

#define POSITIVE_RANKS(SUFFIX, T, BLOCKS)                                         \
    extern "C" __global__ void __launch_bounds__(kTileThreads, BLOCKS)            \
        positive_ranks_score_##SUFFIX(const __grid_constant__ PositiveRanksParams p) { \
        score_body<T>(p);                                                         \
    }                                                                             \
    extern "C" __global__ void __launch_bounds__(kTileThreads, BLOCKS)            \
        positive_ranks_count_##SUFFIX(const __grid_constant__ PositiveRanksParams p) { \
        count_body<T>(p);                                                         \
    }
POSITIVE_RANKS(f32, float, 1)
POSITIVE_RANKS(f16, __half, kTileBlocks)
POSITIVE_RANKS(bf16, __nv_bfloat16, kTileBlocks)
