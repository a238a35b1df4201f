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
//         the line's elements, with bounds that go through shared memory. finish: a warp per query, a lane per pair; where ties or NaN need it, against all pairs of
//         the query.
// Launch  begin: block 256. score: grid = (tile rows, col_splits); count: grid = (col_splits, row_splits); both block 256,
//         98,304 bytes of dynamic shared memory. finish: block 256.
// Bound   tensor cores (f32: FMA), 2 n m d and once more for the tiles with pairs; with many pairs per query the comparisons.
// Order   free: integer sums, by atomic addition.
// Needs   sm_80.
#include "common/tile.cuh"
#include "common/positive_ranks.cuh"

namespace {

struct TileCursor : PairCursor {
    using PairCursor::PairCursor;
    __device__ __forceinline__ TileAt at() const {
        return {static_cast<const char*>(p->x), static_cast<const char*>(p->y), r * kTile, c * kTile};
    }
};

template <typename T>
__device__ __forceinline__ void score_body(const PositiveRanksParams& p) {
    extern __shared__ __align__(128) char stages[];
    TileCursor at(p);
    if (!at.valid()) return;
    TileStream<T, TileCursor> stream(stages, TileOperands<T, PositiveRanksParams>{p}.shape(), at);
    for (; at.valid(); at.advance()) {
        TileAcc acc;
#pragma unroll
        for (int e = 0; e < kThreadElements; ++e) acc[e] = 0.0f;
        stream.accumulate(acc);
        score_tile(p, acc, at.r * kTile, at.c * kTile);
    }
}

template <typename T>
__device__ __forceinline__ void count_body(const PositiveRanksParams& p) {
    extern __shared__ __align__(128) char stages[];
    __shared__ TileBounds bounds[2];
    const TileRect rect = tile_rect(0, tiles_of(p.n), p.m, p.row_splits, p.col_splits);
    RectSweep<T> sweep(stages, TileOperands<T, PositiveRanksParams>{p}, rect);
    sweep.run([&](TileAcc& acc, uint32_t r, uint32_t c, char*) {
        PairCounter{p, r * kTile, c * kTile}.tile(acc, bounds);
    });
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

// The loop over pairs does not fit the registers of two blocks, which sm_90 would have room for: positive_ranks_hopper.cu.
#define POSITIVE_RANKS(SUFFIX, T, BLOCKS)                                         \
    extern "C" __global__ void __launch_bounds__(kTileThreads, BLOCKS)            \
        positive_ranks_score_##SUFFIX(const __grid_constant__ PositiveRanksParams p) { \
        score_body<T>(p);                                                         \
    }                                                                             \
    extern "C" __global__ void __launch_bounds__(kTileThreads, 1)                 \
        positive_ranks_count_##SUFFIX(const __grid_constant__ PositiveRanksParams p) { \
        count_body<T>(p);                                                         \
    }
POSITIVE_RANKS(f32, float, 1)
POSITIVE_RANKS(f16, __half, kTileBlocks)
POSITIVE_RANKS(bf16, __nv_bfloat16, kTileBlocks)
