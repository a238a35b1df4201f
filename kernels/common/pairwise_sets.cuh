// The parts that a tile of logits contributes to the sets of its rows and columns (common/pairwise.cuh): reduced over the
// lanes in registers, over the warps through shared memory.
#pragma once
#include "common/pairwise.cuh"

// In the freed stage. Index [0] is the rows' negatives, [1] the other set.
struct StatsScratch {
    float top[2][4][kTile];  // per warp beside each other (rows) or above each other (columns, 2 of them)
    float sum[2][4][kTile];
    float aux[2][4][kTile];
    uint32_t count[2][4][kTile];
    float reference[2][kTile];
    float total[4][kTile];
    uint32_t raw[4][kTile];
};
static_assert(sizeof(StatsScratch) <= kStageBytes, "the epilogue lives in one stage");

__device__ __forceinline__ uint32_t line_bits(uint64_t bits, int i) { return uint32_t(bits >> (8 * i)) & 0xffu; }

template <bool kBoth>
struct TileSets {
    StatsScratch& scratch;
    const TileThread thread;
    const uint32_t set = thread.index / kTile;   // of this thread
    const uint32_t line = thread.index % kTile;  // in the tile
    float q[8];  // logarithms of the columns' probabilities, to base 2

    __device__ __forceinline__ explicit TileSets(StatsScratch& s) : scratch(s) {}

    template <typename V>
    __device__ __forceinline__ void put_rows(V (&v)[8], V (&to)[4][kTile]) const {
        join_rows(v, thread, [](V a, V b) { return a + b; });
        to[thread.warp_col()][thread.joined_row(0)] = v[0];
        to[thread.warp_col()][thread.joined_row(1)] = v[1];
    }
    template <typename V>
    __device__ __forceinline__ void put_cols(V (&v)[8], V (&to)[4][kTile]) const {
        join_cols(v, thread, [](V a, V b) { return a + b; });
        to[thread.warp_row()][thread.joined_col(0)] = v[0];
    }
    // Over the warps that share this thread's set, in order.
    template <typename V>
    __device__ __forceinline__ V over_warps(const V (&from)[2][4][kTile]) const {
        V v = from[set][0][line] + from[set][1][line];
        if (!kBoth || set == 0) v = v + from[set][2][line] + from[set][3][line];
        return v;
    }
    __device__ __forceinline__ float top_over_warps() const {
        float v = max_nan(scratch.top[set][0][line], scratch.top[set][1][line]);
        if (!kBoth || set == 0) v = max_nan(max_nan(v, scratch.top[set][2][line]), scratch.top[set][3][line]);
        return v;
    }

    // Everything below is for a tile of which the bits tell the members of a set, or with kPlain of which all are, and
    // whose columns have no probabilities.
    template <bool kPlain>
    static __device__ __forceinline__ bool has(uint64_t bits, int i, int k) {
        return kPlain || (bits >> bit_at(i, k) & 1) != 0;
    }
    // Of a row; the logits of columns know no probabilities.
    template <bool kPlain>
    __device__ __forceinline__ float logit(const TileAcc& acc, int i, int k) const {
        return kPlain ? element(acc, i, k) : element(acc, i, k) - q[k];
    }

    template <bool kPlain>
    __device__ __forceinline__ void row_tops(const TileAcc& acc, uint64_t bits, float (&to)[4][kTile]) const {
        float v[8];
#pragma unroll
        for (int i = 0; i < kThreadRows; ++i) {
            v[i] = neg_infinity();
#pragma unroll
            for (int k = 0; k < kThreadCols; ++k) {
                v[i] = max_nan(v[i], has<kPlain>(bits, i, k) ? logit<kPlain>(acc, i, k) : neg_infinity());
            }
        }
        join_rows(v, thread, [](float a, float b) { return max_nan(a, b); });
        to[thread.warp_col()][thread.joined_row(0)] = v[0];
        to[thread.warp_col()][thread.joined_row(1)] = v[1];
    }
    template <bool kPlain>
    __device__ __forceinline__ void col_tops(const TileAcc& acc, uint64_t bits, float (&to)[4][kTile]) const {
        float v[8];
#pragma unroll
        for (int k = 0; k < kThreadCols; ++k) {
            v[k] = neg_infinity();
#pragma unroll
            for (int i = 0; i < kThreadRows; ++i) {
                v[k] = max_nan(v[k], has<kPlain>(bits, i, k) ? element(acc, i, k) : neg_infinity());
            }
        }
        join_cols(v, thread, [](float a, float b) { return max_nan(a, b); });
        to[thread.warp_row()][thread.joined_col(0)] = v[0];
    }

    // Of the rows' set `which`: sum of 2^(u - reference), members, and with `weighted` the sum of those terms times u; of
    // positives the sum of u.
    template <bool kPlain>
    __device__ __forceinline__ void row_sums(const TileAcc& acc, uint64_t bits, int which, bool weighted) const {
        float sum[8], aux[8];
        uint32_t count[8];
#pragma unroll
        for (int i = 0; i < kThreadRows; ++i) {
            const float reference = scratch.reference[which][thread.row(i)];
            sum[i] = 0.0f;
            aux[i] = 0.0f;
            count[i] = __popc(line_bits(bits, i));
#pragma unroll
            for (int k = 0; k < kThreadCols; ++k) {
                const float u = logit<kPlain>(acc, i, k);
                const float e = exp2_fast(u - reference);
                const bool member = has<kPlain>(bits, i, k);
                sum[i] += member ? e : 0.0f;
                if (which == 1) aux[i] += member ? u : 0.0f;
                else if (weighted) aux[i] += member ? e * u : 0.0f;
            }
        }
        put_rows(sum, scratch.sum[which]);
        if (which == 1 || weighted) put_rows(aux, scratch.aux[which]);
        put_rows(count, scratch.count[which]);
    }

    // Of the negatives of rows and of columns, with one exponential per element where the references allow it: with
    // e = 2^(u - row's) the column's term is e 2^(row's - column's), and what underflows in e is then below 2^-66 of the
    // column's largest.
    template <bool kPlain>
    __device__ __forceinline__ void both_sums(const TileAcc& acc, uint64_t bits) const {
        float of_col[8], row[8], col[8];
        uint32_t count[8];
        float high[2] = {neg_infinity(), neg_infinity()}, low[2] = {neg_infinity(), neg_infinity()};  // low: of -x
#pragma unroll
        for (int k = 0; k < kThreadCols; ++k) {
            const float of_row = scratch.reference[0][thread.row(k)];
            of_col[k] = scratch.reference[1][thread.col(k)] - (kPlain ? 0.0f : q[k]);
            high[0] = max_nan(high[0], of_row), low[0] = max_nan(low[0], -of_row);
            high[1] = max_nan(high[1], of_col[k]), low[1] = max_nan(low[1], -of_col[k]);
            row[k] = col[k] = 0.0f;
            count[k] = __popc(line_bits(bits, k));
        }
        if (__all_sync(kFullWarp, high[0] + low[1] <= kNear && high[1] + low[0] <= kNear)) {
            const float origin = high[0];
#pragma unroll
            for (int i = 0; i < kThreadRows; ++i) {
                const float reference = scratch.reference[0][thread.row(i)];
                const float to_col = exp2_fast(reference - origin);
#pragma unroll
                for (int k = 0; k < kThreadCols; ++k) {
                    const float e = exp2_fast(logit<kPlain>(acc, i, k) - reference);
                    const float term = has<kPlain>(bits, i, k) ? e : 0.0f;
                    row[i] += term;
                    col[k] = fmaf(term, to_col, col[k]);
                }
            }
#pragma unroll
            for (int k = 0; k < kThreadCols; ++k) col[k] *= exp2_fast(origin - of_col[k]);
        } else {
#pragma unroll
            for (int i = 0; i < kThreadRows; ++i) {
                const float reference = scratch.reference[0][thread.row(i)];
#pragma unroll
                for (int k = 0; k < kThreadCols; ++k) {
                    const float u = logit<kPlain>(acc, i, k);
                    const bool member = has<kPlain>(bits, i, k);
                    row[i] += member ? exp2_fast(u - reference) : 0.0f;
                    col[k] += member ? exp2_fast(u - of_col[k]) : 0.0f;
                }
            }
        }
        put_rows(row, scratch.sum[0]);
        put_rows(count, scratch.count[0]);
        put_cols(col, scratch.sum[1]);
    }

    // Sums of the terms themselves; value(element, row i, column k) is one, active(value) whether it counts.
    template <typename Value, typename Active>
    __device__ __forceinline__ void term_rows(const TileAcc& acc, uint64_t bits, int which, Value value,
                                               Active active) const {
        float sum[8];
        uint32_t count[8];
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
        put_rows(sum, scratch.sum[which]);
        put_rows(count, scratch.count[which]);
    }
    template <typename Value, typename Active>
    __device__ __forceinline__ void term_cols(const TileAcc& acc, uint64_t bits, Value value, Active active) const {
        float sum[8];
        uint32_t count[8];
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
        put_cols(sum, scratch.sum[1]);
        put_cols(count, scratch.count[1]);
    }
};
