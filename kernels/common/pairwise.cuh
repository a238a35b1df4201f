// What the kernels of a pairwise step share: the class of a pair, the logits of an objective, partial states of a set.
//
// A set is the negatives or the positives of one anchor. Its state, over the members that have a weight:
//   max    largest logit u to base 2 (kFormTriplet, kFormContrastive: not used)
//   sum    sum of 2^(u - max); of the terms themselves for the forms without a softmax
//   aux    sum of 2^(u - max) u of negatives (kFormRanked); sum of u of positives
//   count  members
//   total  sum of the similarities of all positives, raw: their number; with or without a weight
// A set without a member has max -infinity and zeros.
//
// Partial states lie in planes of 4-byte words, plane p of split s of line l at parts[(p * splits + s) * len + l], in the
// order above. They are merged in ascending order of the splits.
#pragma once
#include <stdint.h>

#include "common/epilogue.cuh"
#include "common/order.cuh"
#include "common/reduce.cuh"
#include "params/pairwise.h"

// Tiles of f32 that one launch stores and another one of the same engine loads. Tile t lies at elements [kTileElements t, ...),
// and in it elements 4 c to 4 c + 3 that a thread holds (tile_layout.cuh) as chunk c of 16 bytes, the chunks of all threads
// beside each other: every access is whole sectors, and the registers are those it came from.
constexpr uint32_t kTileElements = kTile * kTileCols;
constexpr int kTileChunks = kThreadElements / 4;

__device__ __forceinline__ float4* tile_chunk(float* tiles, uint64_t tile, const TileThread& t, int c) {
    return reinterpret_cast<float4*>(tiles + tile * kTileElements) + c * kTileThreads + t.index;
}
__device__ __forceinline__ void store_tile(float* tiles, uint64_t tile, const TileThread& t, const TileAcc& acc) {
#pragma unroll
    for (int c = 0; c < kTileChunks; ++c) {
        *tile_chunk(tiles, tile, t, c) = make_float4(acc[4 * c], acc[4 * c + 1], acc[4 * c + 2], acc[4 * c + 3]);
    }
}
__device__ __forceinline__ void load_tile(float* tiles, uint64_t tile, const TileThread& t, TileAcc& acc) {
#pragma unroll
    for (int c = 0; c < kTileChunks; ++c) {
        const float4 v = *tile_chunk(tiles, tile, t, c);
        acc[4 * c] = v.x, acc[4 * c + 1] = v.y, acc[4 * c + 2] = v.z, acc[4 * c + 3] = v.w;
    }
}
__device__ __forceinline__ void add_tile(float* tiles, uint64_t tile, const TileThread& t, TileAcc& acc) {
#pragma unroll
    for (int c = 0; c < kTileChunks; ++c) {
        const float4 v = *tile_chunk(tiles, tile, t, c);
        acc[4 * c] += v.x, acc[4 * c + 1] += v.y, acc[4 * c + 2] += v.z, acc[4 * c + 3] += v.w;
    }
}

// Whether the sweep computes similarities at all.
__device__ __forceinline__ bool computes(const PairwiseTiles& p) { return p.keep <= kKeepStore; }

// From the products of a tile, where there are any, to its similarities. A tile behind the last row has none to keep.
__device__ __forceinline__ void similarities(const PairwiseTiles& p, const TileThread& t, TileAcc& acc,
                                             uint32_t row0, uint32_t col0) {
    const uint64_t tile = uint64_t(row0 / kTile - p.first_kept) * tiles_of(p.m) + col0 / kTile;
    if (p.keep == kKeepLoad && row0 < p.n) load_tile(p.kept, tile, t, acc);
    if (!computes(p)) return;
    scale_tile(acc, t, p.inv_x, p.inv_y, row0, col0, p.n, p.m);
    if (p.keep == kKeepStore && row0 < p.n) store_tile(p.kept, tile, t, acc);
}

constexpr float kLog2E = 1.4426950408889634f;

// 2^x, relative error 2^-22; results below 2^-126 become 0.
__device__ __forceinline__ float exp2_fast(float x) {
    float r;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(x));
    return r;
}
// 1/x, relative error 2^-23.
__device__ __forceinline__ float reciprocal(float x) {
    float r;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(x));
    return r;
}
// Relative error below 1e-6 also far from 0, because there is no difference in it.
__device__ __forceinline__ float sigmoid_fast(float z) { return reciprocal(1.0f + exp2_fast(-kLog2E * z)); }

// ln(1 + e^z) with relative error below 1e-6: ln(1 + e) = 2 artanh(e / (2 + e)) for e from 0 to 1, by its series.
__device__ __forceinline__ float softplus_fast(float z) {
    const float e = exp2_fast(-kLog2E * fabsf(z));
    const float r = e * reciprocal(2.0f + e);
    const float q = r * r;
    float series = fmaf(q, 1.0f / 13.0f, 1.0f / 11.0f);
    series = fmaf(q, series, 1.0f / 9.0f);
    series = fmaf(q, series, 1.0f / 7.0f);
    series = fmaf(q, series, 1.0f / 5.0f);
    series = fmaf(q, series, 1.0f / 3.0f);
    series = fmaf(q, series, 1.0f);
    return fmaf(2.0f * r, series, fmaxf(z, 0.0f));
}

// Distance of unit rows; NaN stays NaN.
__device__ __forceinline__ float distance_of(float s) {
    float r;
    asm("sqrt.approx.f32 %0, %1;" : "=f"(r) : "f"(max_nan(fmaf(-2.0f, s, 2.0f), 0.0f)));
    return r;
}
// 1 / distance, 0 at distance 0.
__device__ __forceinline__ float inverse_distance(float s) {
    const float square = max_nan(fmaf(-2.0f, s, 2.0f), 0.0f);
    float r;
    asm("rsqrt.approx.f32 %0, %1;" : "=f"(r) : "f"(square));
    return square == 0.0f ? 0.0f : r;
}

// References of a tile's rows and columns that are that far apart at most, to base 2, share an exponential: 2^120 is still a
// float.
constexpr float kNear = 60.0f;

// The lines of a party's part of a tile: its rows, then all columns, dealt to its threads.
constexpr uint32_t kPartyLines = kPartyRows + kTileCols;

// What the terms of a party's rows and columns are relative to: the largest of every 32 of them, and of their negatives. In
// shared memory; first the rows, then the columns.
struct References {
    static constexpr int kRowWarps = kPartyRows / 32;
    static constexpr int kColWarps = kTileCols / 32;
    float high[kRowWarps + kColWarps];
    float low[kRowWarps + kColWarps];

    // A warp puts those of 32 lines beside each other, a lane each; -infinity twice: none. Returns the largest of them.
    __device__ __forceinline__ float put(uint32_t line_of_party, float reference, float negative) {
#pragma unroll
        for (int mask = 16; mask > 0; mask >>= 1) {
            reference = max_nan(reference, exchange(reference, mask));
            negative = max_nan(negative, exchange(negative, mask));
        }
        if (lane_id() == 0) high[line_of_party >> 5] = reference, low[line_of_party >> 5] = negative;
        return reference;
    }
    // Behind a barrier. NaN and infinities are not near.
    __device__ __forceinline__ bool near() const {
        const float highs[2] = {largest<kRowWarps>(high), largest<kColWarps>(high + kRowWarps)};
        const float lows[2] = {largest<kRowWarps>(low), largest<kColWarps>(low + kRowWarps)};
        return highs[0] + lows[1] <= kNear && highs[1] + lows[0] <= kNear;
    }
    __device__ __forceinline__ float highest_row() const { return largest<kRowWarps>(high); }

  private:
    template <int kCount>
    static __device__ __forceinline__ float largest(const float* of) {
        if constexpr (kCount == 1) return of[0];
        else return max_nan(largest<kCount / 2>(of), largest<kCount - kCount / 2>(of + kCount / 2));
    }
};

struct SetState {
    float max;
    float sum;
    float aux;
    uint32_t count;
    float total;
    uint32_t raw;
};

__device__ __forceinline__ SetState empty_set() { return {neg_infinity(), 0.0f, 0.0f, 0u, 0.0f, 0u}; }

// What sums relative to `from` are multiplied by when they become relative to `to`, which is at least as large.
__device__ __forceinline__ float shift_of(float from, float to) { return from == to ? 1.0f : exp2_fast(from - to); }

// Which fields of a set are relative to its maximum.
struct SetRule {
    bool sum;
    bool aux;
};

__device__ __forceinline__ SetRule set_rule(uint32_t form, bool positives) {
    const bool plain = form == kFormTriplet || form == kFormContrastive;
    return {!plain, form == kFormRanked && !positives};
}

__device__ __forceinline__ SetState merge_sets(const SetState& a, const SetState& b, SetRule rule) {
    SetState r{max_nan(a.max, b.max), 0.0f, 0.0f, a.count + b.count, a.total + b.total, a.raw + b.raw};
    const float fa = shift_of(a.max, r.max), fb = shift_of(b.max, r.max);
    r.sum = rule.sum ? a.sum * fa + b.sum * fb : a.sum + b.sum;
    r.aux = rule.aux ? a.aux * fa + b.aux * fb : a.aux + b.aux;
    return r;
}

// With kNegatives a set that has no aux, total and raw: those planes are neither read nor written.
template <bool kNegatives = false>
__device__ __forceinline__ SetState load_set(const uint32_t* parts, uint32_t splits, uint32_t len, uint32_t split,
                                             uint32_t line) {
    const uint32_t* at = parts + size_t(split) * len + line;
    const size_t plane = size_t(splits) * len;
    SetState s = empty_set();
    s.max = __uint_as_float(at[0]);
    s.sum = __uint_as_float(at[plane]);
    s.count = at[3 * plane];
    if (kNegatives) return s;
    s.aux = __uint_as_float(at[2 * plane]);
    s.total = __uint_as_float(at[4 * plane]);
    s.raw = at[5 * plane];
    return s;
}

template <bool kNegatives = false>
__device__ __forceinline__ void store_set(uint32_t* parts, uint32_t splits, uint32_t len, uint32_t split, uint32_t line,
                                          const SetState& s) {
    uint32_t* at = parts + size_t(split) * len + line;
    const size_t plane = size_t(splits) * len;
    at[0] = __float_as_uint(s.max);
    at[plane] = __float_as_uint(s.sum);
    at[3 * plane] = s.count;
    if (kNegatives) return;
    at[2 * plane] = __float_as_uint(s.aux);
    at[4 * plane] = __float_as_uint(s.total);
    at[5 * plane] = s.raw;
}

// The thread's elements that are negatives and that are positives: see bit_at(). Neither: ignored.
struct PairBits {
    TileBits neg;
    TileBits pos;
};

__device__ __forceinline__ bool ignored(const uint8_t* mask, uint32_t at) { return mask != nullptr && __ldg(mask + at) != 0; }

// Rolled up for the same reason as select_elements() in epilogue.cuh.
__device__ __forceinline__ PairBits classify_some(const PairwiseTiles& p, const TileThread& t, uint32_t row0, uint32_t col0) {
    const bool grouped = p.row_groups != nullptr;
    PairBits bits{0, 0};
#pragma unroll 1
    for (int k = 0; k < kThreadCols; ++k) {
        const uint32_t col = col0 + t.col(k);
        if (col >= p.m || ignored(p.ignore_cols, col)) continue;
        const int64_t group = grouped ? __ldg(p.col_groups + col) : 0;
        TileBits neg = 0, pos = 0;
#pragma unroll
        for (int i = 0; i < kThreadRows; ++i) {
            const uint32_t row = row0 + t.row(i);
            const bool own = row == col;
            if (row >= p.n || ignored(p.ignore_rows, row) || (own && p.single)) continue;
            const bool same = grouped && __ldg(p.row_groups + row) == group;
            const bool positive = grouped && !p.single_positive ? same : own;
            if (positive) pos |= TileBits(1) << (kThreadCols * i);
            else if (!(p.single_positive && same)) neg |= TileBits(1) << (kThreadCols * i);
        }
        bits.neg |= neg << k;
        bits.pos |= pos << k;
    }
    return bits;
}

// Whether all pairs of a tile are negative.
__device__ __forceinline__ bool all_negative(const PairwiseTiles& p, uint32_t row0, uint32_t col0) {
    return p.row_groups == nullptr && p.ignore_rows == nullptr && p.ignore_cols == nullptr && row0 != col0 &&
           row0 + kTile <= p.n && col0 + kTileCols <= p.m;
}

__device__ __forceinline__ PairBits classify(const PairwiseTiles& p, const TileThread& t, uint32_t row0, uint32_t col0) {
    const PairBits negatives{~TileBits(0), 0};
    if (all_negative(p, row0, col0)) return negatives;
    // With groups those of a warp, in most tiles.
    const bool asks = p.row_groups != nullptr && p.ignore_rows == nullptr && p.ignore_cols == nullptr;
    if (asks && is_inner(row0, col0, p.n, p.m) && !may_share_group(t, row0, col0, p.row_groups, p.col_groups)) return negatives;
    return classify_some(p, t, row0, col0);
}

// Marks the columns of positives. Threads and blocks that have one of the same column write the same.
__device__ __forceinline__ void flag_columns(const TileThread& t, TileBits pos, uint32_t col0, uint32_t* flags) {
#pragma unroll
    for (int k = 0; k < kThreadCols; ++k) {
        if (pos >> k & kColumnBits) flags[col0 + t.col(k)] = 1;
    }
}
__device__ __forceinline__ void flag_rows(const TileThread& t, TileBits pos, uint32_t row0, uint32_t* flags) {
#pragma unroll
    for (int i = 0; i < kThreadRows; ++i) {
        if (row_bits(pos, i) != 0) flags[row0 + t.row(i)] = 1;
    }
}

// Adds the numbers of pairs that the threads of a block have seen.
__device__ __forceinline__ void add_counts(uint32_t negatives, uint32_t positives, unsigned long long* counts) {
    const unsigned long long all_negatives = warp_sum<unsigned long long>(negatives);
    const unsigned long long all_positives = warp_sum<unsigned long long>(positives);
    if (lane_id() != 0 || (all_negatives | all_positives) == 0) return;
    atomicAdd(counts, all_negatives);
    atomicAdd(counts + 1, all_positives);
}

// Whether the miner of kFormMulti keeps a pair; NaN is kept.
__device__ __forceinline__ bool keeps_negative(float s, float epsilon, float lowest) {
    return s != s || s + epsilon > lowest;
}
__device__ __forceinline__ bool keeps_positive(float s, float epsilon, float highest) {
    return s != s || s - epsilon < highest;
}

// Takes out of the bits of row i of the thread what keeps(similarity) refuses.
template <typename Keeps>
__device__ __forceinline__ void keep_row(const TileAcc& acc, TileBits& bits, int i, Keeps keeps) {
    uint32_t kept = 0;
#pragma unroll
    for (int k = 0; k < kThreadCols; ++k) kept |= keeps(element(acc, i, k)) ? 1u << k : 0u;
    bits &= ~(TileBits(kRowMask) << (kThreadCols * i)) | TileBits(kept) << (kThreadCols * i);
}

__device__ __forceinline__ void keep_mined(const PairwiseTiles& p, const TileThread& t, const TileAcc& acc,
                                           PairBits& bits, uint32_t row0) {
#pragma unroll
    for (int i = 0; i < kThreadRows; ++i) {
        const uint32_t row = min(row0 + t.row(i), p.n - 1);
        const float lowest = __ldg(p.lowest + row), highest = __ldg(p.highest + row);
        keep_row(acc, bits.neg, i, [&](float s) { return keeps_negative(s, p.c[3], lowest); });
        keep_row(acc, bits.pos, i, [&](float s) { return keeps_positive(s, p.c[3], highest); });
    }
}

// Logarithm to base 2 of the probability of a column; 0 without any.
__device__ __forceinline__ float log_q_of(const PairwiseTiles& p, uint32_t col) {
    return p.log_q != nullptr && col < p.m ? __ldg(p.log_q + col) * kLog2E : 0.0f;
}

// Logits to base 2.
struct MultiLogits {
    const float* c;
    __device__ __forceinline__ float neg(float s) const { return (s - c[2]) * c[0]; }
    __device__ __forceinline__ float pos(float s) const { return (s - c[2]) * c[1]; }
};
struct CircleLogits {
    const float* c;
    __device__ __forceinline__ float open_neg(float s) const { return max_nan(s + c[1], 0.0f); }
    __device__ __forceinline__ float open_pos(float s) const { return max_nan(1.0f + c[1] - s, 0.0f); }
    __device__ __forceinline__ float neg(float s) const { return c[0] * open_neg(s) * (s - c[1]); }
    __device__ __forceinline__ float pos(float s) const { return -c[0] * open_pos(s) * (s - 1.0f + c[1]); }
};
struct LiftedLogits {
    const float* c;
    __device__ __forceinline__ float neg(float s) const { return (c[1] - distance_of(s)) * kLog2E; }
    __device__ __forceinline__ float pos(float s) const { return (distance_of(s) - c[0]) * kLog2E; }
};
struct RankedLogits {
    const float* c;
    __device__ __forceinline__ float within(float s) const { return c[0] - distance_of(s); }
    __device__ __forceinline__ float neg(float s) const { return c[2] * within(s); }
    // Not a logit: the positives of this form are averaged.
    __device__ __forceinline__ float pos(float s) const { return distance_of(s) - c[1]; }
};
