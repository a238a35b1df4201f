// The parts that a tile of logits contributes to the sets of its rows and columns (common/pairwise.cuh): reduced over the
// lanes in registers, over the warps of a party through shared memory. Included behind a sweep (tile.cuh, group_tile.cuh).
#pragma once
#include "common/pairwise.cuh"

// Partial results of a party: those of set 0, its rows' negatives, from the warps beside each other; then those of the other
// set, from the same or, if it is of columns, from the warps above each other.
constexpr int kSetPartials = kWarpCols + (kWarpCols > kPartyWarpRows ? kWarpCols : kPartyWarpRows);
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
static_assert(sizeof(StatsScratch) <= kScratchBytes / kParties, "the epilogue lives in the sweep's scratch memory");
static_assert(kTileCols == kTile, "a set has as many lines at most");

// One set of a party: set 0 is of a row's negatives, set 1 of its positives or, with kBoth, of a column's negatives.
template <bool kBoth>
struct OwnedSet {
    uint32_t set;
    uint32_t line;  // of the party's rows, or of the columns

    __device__ __forceinline__ bool of_columns() const { return kBoth && set == 1; }
};

template <bool kBoth>
struct TileSets {
    using Owned = OwnedSet<kBoth>;

    StatsScratch& scratch;
    const TileThread thread;

    __device__ __forceinline__ explicit TileSets(StatsScratch& s) : scratch(s) {}

    // The sets of a party, rows first, are dealt to its threads: number `o` of this thread, whole warps at a time.
    static constexpr uint32_t kSets = kBoth ? kPartyLines : 2 * kPartyRows;
    static constexpr int kOwned = (kSets + kPartyThreads - 1) / kPartyThreads;
    __device__ __forceinline__ uint32_t number(int o) const { return o * kPartyThreads + thread.member(); }
    // The same for a warp, which the compiler is told: else it prepares for warps that are in parts.
    __device__ __forceinline__ bool owns(int o) const {
        return kSets % kPartyThreads == 0 || __shfl_sync(~0u, number(o), 0) < kSets;
    }
    __device__ __forceinline__ Owned owned(int o) const {
        const uint32_t set = number(o) / kPartyRows != 0 ? 1 : 0;
        return {set, number(o) - set * kPartyRows};
    }

    // The partial results of set `which`.
    template <typename V>
    static __device__ __forceinline__ V (*of_set(Partials<V>& partials, int which))[kTile] {
        return partials + which * kWarpCols;
    }

    template <typename V, typename Join>
    __device__ __forceinline__ void put_rows(V (&v)[kThreadRows], V (*to)[kTile], Join join) const {
        join_rows(v, thread, join);
#pragma unroll
        for (int h = 0; h < kJoinedRows; ++h) to[thread.warp_col()][thread.in_party(thread.joined_row(h))] = v[h];
    }
    // Of the thread's columns 8 h to 8 h + 7, which are joined among themselves: all columns at a time would need as many
    // registers beside the accumulators.
    template <typename V, typename Join>
    __device__ __forceinline__ void put_cols(V (&v)[8], int h, V (*to)[kTile], Join join) const {
        to[thread.party_warp_row()][thread.joined_col(h)] = join_eight_cols(v, thread, join);
    }
    // Over the warps that share a set, in order.
    template <typename V, typename Join>
    static __device__ __forceinline__ V over_warps(const Owned& of, Partials<V>& from, Join join) {
        constexpr int kFew = kWarpCols < kPartyWarpRows ? kWarpCols : kPartyWarpRows;
        constexpr int kMany = kWarpCols < kPartyWarpRows ? kPartyWarpRows : kWarpCols;
        const V(*own)[kTile] = of_set(from, of.set);
        V v = own[0][of.line];
#pragma unroll
        for (int w = 1; w < kFew; ++w) v = join(v, own[w][of.line]);
        if (of.of_columns() != (kPartyWarpRows > kWarpCols)) return v;
#pragma unroll
        for (int w = kFew; w < kMany; ++w) v = join(v, own[w][of.line]);
        return v;
    }
    template <typename V>
    static __device__ __forceinline__ V sum_over_warps(const Owned& of, Partials<V>& from) {
        return over_warps(of, from, plus<V>);
    }

    // Everything below is for a tile of which the bits tell the members of a set, or with kPlain of which all are.
    template <bool kPlain>
    static __device__ __forceinline__ bool has(TileBits bits, int i, int k) {
        return kPlain || (bits >> bit_at(i, k) & 1) != 0;
    }

    // What the terms of row i of the thread are relative to in set `which`.
    __device__ __forceinline__ float row_reference(int which, int i) const {
        return scratch.reference[which][thread.in_party(thread.row(i))];
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
#pragma unroll
        for (int h = 0; h < kJoinedCols; ++h) {
            float v[8];
#pragma unroll
            for (int q = 0; q < 8; ++q) {
                const int k = 8 * h + q;
                v[q] = neg_infinity();
#pragma unroll
                for (int i = 0; i < kThreadRows; ++i) {
                    v[q] = max_nan(v[q], has<kPlain>(bits, i, k) ? element(acc, i, k) : neg_infinity());
                }
            }
            put_cols(v, h, of_set(scratch.top, 1), larger);
        }
    }

    // Of the rows' set `which`: sum of 2^(u - reference), members, and with `weighted` the sum of those terms times u; of
    // positives the sum of u.
    template <bool kPlain>
    __device__ __forceinline__ void row_sums(const TileAcc& acc, TileBits bits, int which, bool weighted) const {
        float sum[kThreadRows], aux[kThreadRows];
        uint32_t count[kThreadRows];
#pragma unroll
        for (int i = 0; i < kThreadRows; ++i) {
            const float reference = row_reference(which, i);
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
        float row[kThreadRows], to_col[kThreadRows];
        uint32_t count[kThreadRows];
#pragma unroll
        for (int i = 0; i < kThreadRows; ++i) {
            row[i] = 0.0f;
            count[i] = __popc(row_bits(bits, i));
            // That of a row without a member has no part in the origin.
            to_col[i] = near ? exp2_fast(fminf(row_reference(0, i) - origin, 0.0f)) : 0.0f;
        }
        float col[kJoinedCols][8] = {};
        const auto sums = [&](auto add) {
#pragma unroll
            for (int i = 0; i < kThreadRows; ++i) {
#pragma unroll
                for (int k = 0; k < kThreadCols; ++k) add(i, k, col[k / 8][k % 8]);
            }
        };
        if (near) {
            sums([&](int i, int k, float& col) {
                const float e = exp2_fast(element(acc, i, k) - row_reference(0, i));
                const float term = has<kPlain>(bits, i, k) ? e : 0.0f;
                row[i] += term;
                col = fmaf(term, to_col[i], col);
            });
        } else {
            sums([&](int i, int k, float& col) {
                const float u = element(acc, i, k);
                const bool member = has<kPlain>(bits, i, k);
                row[i] += member ? exp2_fast(u - row_reference(0, i)) : 0.0f;
                col += member ? exp2_fast(u - scratch.reference[1][thread.col(k)]) : 0.0f;
            });
        }
#pragma unroll
        for (int h = 0; h < kJoinedCols; ++h) put_cols(col[h], h, of_set(scratch.sum, 1), plus<float>);
        put_rows(row, of_set(scratch.sum, 0), plus<float>);
        put_rows(count, of_set(scratch.count, 0), plus<uint32_t>);
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
#pragma unroll
        for (int h = 0; h < kJoinedCols; ++h) {
            float sum[8];
            uint32_t count[8];
#pragma unroll
            for (int q = 0; q < 8; ++q) {
                const int k = 8 * h + q;
                sum[q] = 0.0f;
                count[q] = 0;
#pragma unroll
                for (int i = 0; i < kThreadRows; ++i) {
                    const float v = value(element(acc, i, k), k);
                    const bool member = (bits >> bit_at(i, k) & 1) && active(v);
                    sum[q] += member ? v : 0.0f;
                    count[q] += member ? 1u : 0u;
                }
            }
            put_cols(sum, h, of_set(scratch.sum, 1), plus<float>);
            put_cols(count, h, of_set(scratch.count, 1), plus<uint32_t>);
        }
    }

  private:
    template <typename V>
    static __device__ __forceinline__ V plus(V a, V b) {
        return a + b;
    }
    static __device__ __forceinline__ float larger(float a, float b) { return max_nan(a, b); }
};
