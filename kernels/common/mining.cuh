// Hardest-candidate statistics of one line (a row or a column of S), and the rule that merges two partial states.
//
//   value, index   the largest similarity and the lowest index that has it; NaN counts as the largest value of all
//   second         the largest among the other candidates
//   count          candidates other than `index` with s >= threshold: the set B
//   ties           those of them that equal `value`
//   sum            over B: value - s (kStatsLin) or exp(-beta (value - s)) (kStatsSig)
//
// The maximum is kept outside of its own set, so no term is ever subtracted again. Merging two states shifts the sums of
// the smaller one by the difference of the maxima and admits its maximum as a member:
//   lin  sum + members * gap           sig  (sum + [value >= threshold]) * exp(-beta * gap)
// A state without a candidate has index -1, and every other field is then at its neutral value.
//
// Partial states lie in planes of 4-byte words: plane p of split s of line l at parts[(p * splits + s) * len + l], planes
// 0 value f32, 1 index i32, 2 second f32, 3 count u32, 4 ties u32, 5 sum f32. The split with the lower number holds the
// lower candidate indices; merging in ascending order keeps the lowest index among equal values.
#pragma once
#include <stdint.h>

#include "common/order.cuh"
#include "params/mine.h"

constexpr float kLog2E = 1.4426950408889634f;

// Alternatively (kStatsKeys) there is one 64-bit key per line and no split: the value in an order of integers, then the
// complement of the index, so that the largest key is that of the largest value and, among those, of the lowest index. 0
// without a candidate: no index is 2^32 - 1.

struct LineState {
    float value;
    int32_t index;
    float second;
    uint32_t count;
    uint32_t ties;
    float sum;
};

// What the fields of a state mean: one of kStats*, and for the last two of them the set's lower bound and the exponent.
struct StatsRule {
    uint32_t stats;
    float threshold;
    float beta;
};

__device__ __forceinline__ LineState empty_line() { return {neg_infinity(), -1, neg_infinity(), 0u, 0u, 0.0f}; }

// exp(-beta * gap), `scale` being -beta * log2(e): one multiplication and one special-function instruction.
__device__ __forceinline__ float sig_term(float gap, float scale) {
    float r;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(gap * scale));
    return r;
}

// The state of both parts together; every candidate of `a` has a lower index than every candidate of `b`.
__device__ __forceinline__ LineState merge_lines(const LineState& a, const LineState& b, const StatsRule& rule) {
    if (b.index < 0) return a;
    if (a.index < 0) return b;
    const bool b_wins = value_beats(b.value, a.value);
    LineState top = b_wins ? b : a;
    const LineState low = b_wins ? a : b;
    top.second = max_nan(top.second, low.value);
    if (rule.stats < kStatsLin) return top;

    const uint32_t admitted = low.value >= rule.threshold ? 1u : 0u;
    const uint32_t members = low.count + admitted;
    if (members == 0) return top;  // also keeps 0 * infinity out of the sum
    const bool equal = low.value == top.value;
    const float gap = equal ? 0.0f : top.value - low.value;  // infinity - infinity is no gap
    top.count += members;
    if (equal) top.ties += low.ties + admitted;
    if (rule.stats == kStatsLin) {
        top.sum += fmaf(float(members), gap, low.sum);
    } else {
        const float shift = equal ? 1.0f : sig_term(gap, -rule.beta * kLog2E);  // also where beta overflows the scale
        top.sum += (low.sum + float(admitted)) * shift;
    }
    return top;
}

// NaN of every kind becomes the largest code, -0 that of +0.
__device__ __forceinline__ uint64_t mining_key(float value, uint32_t index) {
    const uint32_t bits = __float_as_uint(value + 0.0f);
    const uint32_t order = value != value ? ~0u : bits ^ (uint32_t(int32_t(bits) >> 31) | 0x80000000u);
    return uint64_t(order) << 32 | ~index;
}
__device__ __forceinline__ LineState line_of_key(uint64_t key) {
    LineState s = empty_line();
    if (key == 0) return s;
    const uint32_t order = uint32_t(key >> 32);
    s.value = order == ~0u ? __int_as_float(0x7fffffff) : __uint_as_float(order & 0x80000000u ? order ^ 0x80000000u : ~order);
    s.index = int32_t(~uint32_t(key));
    return s;
}

__device__ __forceinline__ LineState load_line(const uint32_t* parts, uint32_t splits, uint32_t len, uint32_t split,
                                               uint32_t line, uint32_t stats) {
    if (stats == kStatsKeys) return line_of_key(reinterpret_cast<const uint64_t*>(parts)[line]);
    const uint32_t* at = parts + size_t(split) * len + line;
    const size_t plane = size_t(splits) * len;
    LineState s = empty_line();
    s.value = __uint_as_float(at[0]);
    s.index = int32_t(at[plane]);
    if (stats >= kStatsSecond) s.second = __uint_as_float(at[2 * plane]);
    if (stats >= kStatsLin) {
        s.count = at[3 * plane];
        s.ties = at[4 * plane];
        s.sum = __uint_as_float(at[5 * plane]);
    }
    return s;
}

__device__ __forceinline__ void store_line(uint32_t* parts, uint32_t splits, uint32_t len, uint32_t split, uint32_t line,
                                           uint32_t stats, const LineState& s) {
    uint32_t* at = parts + size_t(split) * len + line;
    const size_t plane = size_t(splits) * len;
    at[0] = __float_as_uint(s.value);
    at[plane] = uint32_t(s.index);
    if (stats >= kStatsSecond) at[2 * plane] = __float_as_uint(s.second);
    if (stats >= kStatsLin) {
        at[3 * plane] = s.count;
        at[4 * plane] = s.ties;
        at[5 * plane] = __float_as_uint(s.sum);
    }
}

// The state of a whole line: its splits merged in ascending order.
__device__ __forceinline__ LineState merged_line(const uint32_t* parts, uint32_t splits, uint32_t len, uint32_t line,
                                                 const StatsRule& rule) {
    LineState s = load_line(parts, splits, len, 0, line, rule.stats);
    for (uint32_t split = 1; split < splits; ++split) {
        s = merge_lines(s, load_line(parts, splits, len, split, line, rule.stats), rule);
    }
    return s;
}

// The lower bound of the relative set: the smallest partial minimum, NaN ignored (infinity if there is nothing else),
// minus eps. Every thread of the block calls this and gets the result; `scratch` holds 32 floats, and the block must not
// touch it before or after without a barrier of its own.
__device__ __forceinline__ float block_threshold(const float* pmin, uint32_t count, float eps, float* scratch) {
    float low = pos_infinity();
    for (uint32_t i = threadIdx.x; i < count; i += blockDim.x) low = fminf(low, pmin[i]);
#pragma unroll
    for (int mask = 16; mask > 0; mask >>= 1) low = fminf(low, __shfl_xor_sync(~0u, low, mask));
    if ((threadIdx.x & 31) == 0) scratch[threadIdx.x >> 5] = low;
    __syncthreads();  // every warp's minimum is in place
    for (uint32_t w = 0; w < blockDim.x >> 5; ++w) low = fminf(low, scratch[w]);
    return low - eps;
}
