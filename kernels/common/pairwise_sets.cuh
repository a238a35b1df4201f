// The parts that a tile of logits contributes to the sets of its rows and columns (common/pairwise.cuh): reduced over the
// lanes in registers, over the warps through shared memory. Included behind a sweep (tile.cuh, group_tile.cuh).
#pragma once
#include "common/pairwise.cuh"

// Partial results of a tile: those of set 0, the rows' negatives, from the warps beside each other; then those of the other
// set, from the same or, if it is of columns, from the warps above each other.
constexpr int kSetPartials = kWarpCols + (kWarpCols > kWarpRows ? kWarpCols : kWarpRows);
template <typename V>
using Partials = V[kSetPartials][kTile];

// In the sweep's scratch memory.
struct StatsScratch {
    Partials<float> top;
    Partials<float> sum;
    Partials<float> aux;
    Partials<uint32_t> count;
    float reference[2][kTile];
    float total[kWarpCols][kTile];
    uint32_t raw[kWarpCols][kTile];
    References references;
};
static_assert(sizeof(StatsScratch) <= kScratchBytes, "the epilogue lives in the sweep's scratch memory");
static_assert(kTileCols == kTile, "a thread owns a set of a row or a column");

template <bool kBoth>
struct TileSets {
    StatsScratch& scratch;
    const TileThread thread;
    const uint32_t set = thread.index / kTile;   // of this thread
    const uint32_t line = thread.index % kTile;  // in the tile

    __device__ __forceinline__ explicit TileSets(StatsScratch& s) : scratch(s) {}

    __device__ __forceinline__ bool of_columns() const { return kBoth && set == 1; }

    // The partial results of set `which`.
    template <typename V>
    static __device__ __forceinline__ V (*of_set(Partials<V>& partials, int which))[kTile] {
        return partials + which * kWarpCols;
    }

    template <typename V, typename Join>
    __device__ __forceinline__ void put_rows(V (&v)[kThreadRows], V (*to)[kTile], Join join) const {
        join_rows(v, thread, join);
#pragma unroll
        for (int h = 0; h < kJoinedRows; ++h) to[thread.warp_col()][thread.joined_row(h)] = v[h];
    }
    template <typename V, typename Join>
    __device__ __forceinline__ void put_cols(V (&v)[kThreadCols], V (*to)[kTile], Join join) const {
        join_cols(v, thread, join);
#pragma unroll
        for (int h = 0; h < kJoinedCols; ++h) to[thread.warp_row()][thread.joined_col(h)] = v[h];
    }
    // Over the warps that share this thread's set, in order.
    template <typename V, typename Join>
    __device__ __forceinline__ V over_warps(Partials<V>& from, Join join) const {
        constexpr int kFew = kWarpCols < kWarpRows ? kWarpCols : kWarpRows;
        constexpr int kMany = kWarpCols < kWarpRows ? kWarpRows : kWarpCols;
        const V(*own)[kTile] = of_set(from, set);
        V v = own[0][line];
#pragma unroll
        for (int w = 1; w < kFew; ++w) v = join(v, own[w][line]);
        if (of_columns() != (kWarpRows > kWarpCols)) return v;
#pragma unroll
        for (int w = kFew; w < kMany; ++w) v = join(v, own[w][line]);
        return v;
    }
    template <typename V>
    __device__ __forceinline__ V sum_over_warps(Partials<V>& from) const {
        return over_warps(from, plus<V>);
    }

    // Everything below is for a tile of which the bits tell the members of a set, or with kPlain of which all are.
    template <bool kPlain>
    static __device__ __forceinline__ bool has(TileBits bits, int i, int k) {
        return kPlain || (bits >> bit_at(i, k) & 1) != 0;
    }

    template <bool kPlain>
    __device__ __forceinline__ void row_tops(const TileAcc& acc, TileBits bits, int which) const {
        float v[kThreadRows];
#pragma unroll
        for (int i = 0; i < kThreadRows; ++i) {
            v[i] = neg_infinity();
#pragma unroll
            for (int k = 0; k < kThreadCols; ++k) {
                v[i] = max_nan(v[i], has<kPlain>(bits, i, k) ? element(acc, i, k) : neg_infinity());
            }
        }
        put_rows(v, of_set(scratch.top, which), larger);
    }
    template <bool kPlain>
    __device__ __forceinline__ void col_tops(const TileAcc& acc, TileBits bits) const {
        float v[kThreadCols];
#pragma unroll
        for (int k = 0; k < kThreadCols; ++k) {
            v[k] = neg_infinity();
#pragma unroll
            for (int i = 0; i < kThreadRows; ++i) {
                v[k] = max_nan(v[k], has<kPlain>(bits, i, k) ? element(acc, i, k) : neg_infinity());
            }
        }
        put_cols(v, of_set(scratch.top, 1), larger);
    }

    // Of the rows' set `which`: sum of 2^(u - reference), members, and with `weighted` the sum of those terms times u; of
    // positives the sum of u.
    template <bool kPlain>
    __device__ __forceinline__ void row_sums(const TileAcc& acc, TileBits bits, int which, bool weighted) const {
        float sum[kThreadRows], aux[kThreadRows];
        uint32_t count[kThreadRows];
#pragma unroll
        for (int i = 0; i < kThreadRows; ++i) {
            const float reference = scratch.reference[which][thread.row(i)];
            sum[i] = 0.0f;
            aux[i] = 0.0f;
            count[i] = __popc(row_bits(bits, i));
#pragma unroll
            for (int k = 0; k < kThreadCols; ++k) {
                const float u = element(acc, i, k);
                const float e = exp2_fast(u - reference);
                const bool member = has<kPlain>(bits, i, k);
                sum[i] += member ? e : 0.0f;
                if (which == 1) aux[i] += member ? u : 0.0f;
                else if (weighted) aux[i] += member ? e * u : 0.0f;
            }
        }
        put_rows(sum, of_set(scratch.sum, which), plus<float>);
        if (which == 1 || weighted) put_rows(aux, of_set(scratch.aux, which), plus<float>);
        put_rows(count, of_set(scratch.count, which), plus<uint32_t>);
    }

    // Of the negatives of rows and of columns. With `near` there is one exponential per element: with e = 2^(u - row's) the
    // column's term is e 2^(row's - column's), and what underflows in e is then below 2^-66 of the column's largest. The
    // columns' sums are then relative to `origin`, the largest reference of a row.
    template <bool kPlain>
    __device__ __forceinline__ void both_sums(const TileAcc& acc, TileBits bits, bool near, float origin) const {
        float row[kThreadRows], col[kThreadCols];
        uint32_t count[kThreadRows];
#pragma unroll
        for (int k = 0; k < kThreadCols; ++k) col[k] = 0.0f;
#pragma unroll
        for (int i = 0; i < kThreadRows; ++i) {
            row[i] = 0.0f;
            count[i] = __popc(row_bits(bits, i));
        }
        if (near) {
#pragma unroll
            for (int i = 0; i < kThreadRows; ++i) {
                const float reference = scratch.reference[0][thread.row(i)];
                // That of a row without a member has no part in the origin.
                const float to_col = exp2_fast(fminf(reference - origin, 0.0f));
#pragma unroll
                for (int k = 0; k < kThreadCols; ++k) {
                    const float e = exp2_fast(element(acc, i, k) - reference);
                    const float term = has<kPlain>(bits, i, k) ? e : 0.0f;
                    row[i] += term;
                    col[k] = fmaf(term, to_col, col[k]);
                }
            }
        } else {
#pragma unroll
            for (int i = 0; i < kThreadRows; ++i) {
                const float reference = scratch.reference[0][thread.row(i)];
#pragma unroll
                for (int k = 0; k < kThreadCols; ++k) {
                    const float u = element(acc, i, k);
                    const bool member = has<kPlain>(bits, i, k);
                    row[i] += member ? exp2_fast(u - reference) : 0.0f;
                    col[k] += member ? exp2_fast(u - scratch.reference[1][thread.col(k)]) : 0.0f;
                }
            }
        }
        put_rows(row, of_set(scratch.sum, 0), plus<float>);
        put_rows(count, of_set(scratch.count, 0), plus<uint32_t>);
        put_cols(col, of_set(scratch.sum, 1), plus<float>);
    }

    // Sums of the terms themselves; value(element, row i, column k) is one, active(value) whether it counts.
    template <typename Value, typename Active>
    __device__ __forceinline__ void term_rows(const TileAcc& acc, TileBits bits, int which, Value value,
                                               Active active) const {
        float sum[kThreadRows];
        uint32_t count[kThreadRows];
#pragma unroll
        for (int i = 0; i < kThreadRows; ++i) {
            sum[i] = 0.0f;
            count[i] = 0;
#pragma unroll
            for (int k = 0; k < kThreadCols; ++k) {
                const float v = value(element(acc, i, k), i);
                const bool member = (bits >> bit_at(i, k) & 1) && active(v);
                sum[i] += member ? v : 0.0f;
                count[i] += member ? 1u : 0u;
            }
        }
        put_rows(sum, of_set(scratch.sum, which), plus<float>);
        put_rows(count, of_set(scratch.count, which), plus<uint32_t>);
    }
    template <typename Value, typename Active>
    __device__ __forceinline__ void term_cols(const TileAcc& acc, TileBits bits, Value value, Active active) const {
        float sum[kThreadCols];
        uint32_t count[kThreadCols];
#pragma unroll
        for (int k = 0; k < kThreadCols; ++k) {
            sum[k] = 0.0f;
            count[k] = 0;
#pragma unroll
            for (int i = 0; i < kThreadRows; ++i) {
                const float v = value(element(acc, i, k), k);
                const bool member = (bits >> bit_at(i, k) & 1) && active(v);
                sum[k] += member ? v : 0.0f;
                count[k] += member ? 1u : 0u;
            }
        }
        put_cols(sum, of_set(scratch.sum, 1), plus<float>);
        put_cols(count, of_set(scratch.count, 1), plus<uint32_t>);
    }

  private:
    template <typename V>
    static __device__ __forceinline__ V plus(V a, V b) {
        return a + b;
    }
    static __device__ __forceinline__ float larger(float a, float b) { return max_nan(a, b); }
};
