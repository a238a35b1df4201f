// What the kernels of an objective that the user wrote as formulas share: the class of a pair, and the states of an anchor over
// some of its pairs, for its statistics and for its means over near pairs. A state is stored in planes of 4-byte words, `plane`
// words apart. Included at run time too: no header of the CUDA toolkit.
#pragma once
#include <stdint.h>

#include "common/pair_formulas.cuh"
#include "common/order.cuh"
#include "common/pair_view.cuh"
#include "common/reduce.cuh"
#include "params/pairwise_custom.h"

constexpr uint32_t kNowhere = 0xffffffffu;

__device__ __forceinline__ float quiet_nan() { return __int_as_float(0x7fc00000); }

enum class PairClass { ignored, negative, positive };

__device__ __forceinline__ bool ignored(const uint8_t* mask, uint32_t at) { return mask != nullptr && __ldg(mask + at) != 0; }

// Of a pair whose row is not ignored.
__device__ __forceinline__ PairClass class_of(const CustomPairs& p, uint32_t row, uint32_t col) {
    if (ignored(p.ignore_cols, col)) return PairClass::ignored;
    const bool own = row == col;
    if (p.row_groups == nullptr) return own ? PairClass::positive : PairClass::negative;
    const bool same = __ldg(p.row_groups + row) == __ldg(p.col_groups + col);
    if (p.single_positive == 0) return same ? PairClass::positive : PairClass::negative;
    return own ? PairClass::positive : same ? PairClass::ignored : PairClass::negative;
}

// --- statistics -------------------------------------------------------------------------------------------------------

// Sum of e^(logit - max) over a set. NaN makes the sum NaN and leaves the maximum; an empty set has -infinity and 0.
struct SoftSum {
    float max = neg_infinity(), sum = 0.0f;

    // One exponential for whichever of the two is the smaller.
    __device__ __forceinline__ void add(float logit) {
        const float above = logit == max ? 0.0f : logit - max;
        const float e = expf(-fabsf(above));
        sum = above > 0.0f ? sum * e + 1.0f : sum + e;
        if (above > 0.0f) max = logit;
    }
    __device__ __forceinline__ void merge(const SoftSum& b) {
        const float both = fmaxf(max, b.max);
        sum = sum * factor(max, both) + b.sum * factor(b.max, both);
        max = both;
    }
    static __device__ __forceinline__ float factor(float from, float to) { return from == to ? 1.0f : expf(from - to); }
    __device__ __forceinline__ float log() const { return sum == 0.0f ? neg_infinity() : max + logf(sum); }
};

template <typename V>
__device__ __forceinline__ V exchange(V v, int mask) {
    return __shfl_xor_sync(kFullWarp, v, mask);
}

// An anchor's state over some of its pairs.
struct AnchorState {
    SoftSum neg, pos;
    float hardest = neg_infinity();  // NaN is passed over
    uint32_t at = kNowhere;          // the lowest of several
    uint32_t negatives = 0, positives = 0;

    __device__ __forceinline__ void add(PairClass pair, float s, uint32_t other) {
        if (pair == PairClass::ignored) return;
        const bool positive = pair == PairClass::positive;
        positives += positive;
        negatives += !positive;
        if (kUsesHardest && !positive && s > hardest) hardest = s, at = other;
        if (!kUsesSums) return;
        if (positive) pos.add(formula_logit(s));
        else neg.add(formula_logit(s));
    }
    __device__ __forceinline__ void merge(const AnchorState& b) {
        if (b.hardest > hardest || (b.hardest == hardest && b.at < at)) hardest = b.hardest, at = b.at;
        negatives += b.negatives;
        positives += b.positives;
        if (!kUsesSums) return;
        neg.merge(b.neg);
        pos.merge(b.pos);
    }
    // The state of the lane whose index differs in the bits of `mask`.
    __device__ __forceinline__ AnchorState exchanged(int mask) const {
        AnchorState b;
        b.neg.max = exchange(neg.max, mask), b.neg.sum = exchange(neg.sum, mask);
        b.pos.max = exchange(pos.max, mask), b.pos.sum = exchange(pos.sum, mask);
        b.hardest = exchange(hardest, mask), b.at = exchange(at, mask);
        b.negatives = exchange(negatives, mask), b.positives = exchange(positives, mask);
        return b;
    }
    // Into one of `lines` lines of kCustomParts planes.
    __device__ __forceinline__ void store(uint32_t* to, size_t plane) const {
        to[0] = __float_as_uint(neg.max), to[plane] = __float_as_uint(neg.sum);
        to[2 * plane] = __float_as_uint(pos.max), to[3 * plane] = __float_as_uint(pos.sum);
        to[4 * plane] = __float_as_uint(hardest), to[5 * plane] = at;
        to[6 * plane] = negatives, to[7 * plane] = positives;
    }
    static __device__ __forceinline__ AnchorState load(const uint32_t* from, size_t plane) {
        AnchorState b;
        b.neg.max = __uint_as_float(from[0]), b.neg.sum = __uint_as_float(from[plane]);
        b.pos.max = __uint_as_float(from[2 * plane]), b.pos.sum = __uint_as_float(from[3 * plane]);
        b.hardest = __uint_as_float(from[4 * plane]), b.at = from[5 * plane];
        b.negatives = from[6 * plane], b.positives = from[7 * plane];
        return b;
    }
    // What formulas and the report read of it; planes of `count` words.
    __device__ __forceinline__ void finish(uint32_t* planes, uint32_t count, uint32_t line, float pair) const {
        uint32_t* to = planes + line;
        const size_t plane = count;
        to[kPlanePair * plane] = __float_as_uint(pair);
        to[kPlaneHardest * plane] = __float_as_uint(hardest);
        to[kPlaneLse * plane] = __float_as_uint(neg.log());
        to[kPlaneLsePositives * plane] = __float_as_uint(pos.log());
        to[kPlanePositives * plane] = positives;
        to[kPlaneNegatives * plane] = negatives;
        to[kPlaneHardestAt * plane] = at;
    }
};

// --- near pairs -------------------------------------------------------------------------------------------------------

// A number that is the larger, the smaller v is; 0 for NaN, and for nothing.
__device__ __forceinline__ uint32_t order_key(float v) {
    const uint32_t bits = __float_as_uint(v);
    return v != v ? 0 : ~(bits >> 31 ? ~bits : bits | 0x80000000u);
}
__device__ __forceinline__ float least_of(uint32_t key) {
    if (key == 0) return pos_infinity();
    const uint32_t bits = ~key;
    return __uint_as_float(bits >> 31 ? bits & 0x7fffffffu : ~bits);
}

// Sum over a set, and how many of its values are not 0.
struct CountedSum {
    float sum = 0.0f;
    uint32_t count = 0;

    __device__ __forceinline__ void add(float v) {
        sum += v;
        count += v != 0.0f;
    }
    __device__ __forceinline__ void merge(const CountedSum& b) {
        sum += b.sum;
        count += b.count;
    }
    __device__ __forceinline__ float mean() const { return count == 0 ? 0.0f : sum / float(count); }
};

// What a near pair is to one of its anchors: the anchor, its hardest negative, and the own pair of the other.
struct NearAnchor {
    float pair, hardest;
    uint32_t hardest_at;

    __device__ __forceinline__ NearAnchor(const uint32_t* planes, uint32_t count, uint32_t line) {
        const uint32_t* from = planes + line;
        const size_t plane = count;
        pair = __uint_as_float(from[kPlanePair * plane]);
        hardest = __uint_as_float(from[kPlaneHardest * plane]);
        hardest_at = from[kPlaneHardestAt * plane];
    }
};

struct NearState {
    CountedSum negatives, positives;

    // A negative pair of `a`, of similarity s, whose other anchor is number `other` with the own pair `other_pair`.
    __device__ __forceinline__ void add(const NearAnchor& a, float threshold, float s, uint32_t other, float other_pair) {
        AnchorView v{};
        v.pair = a.pair;
        v.hardest = a.hardest;
        // NaN is not near.
        if (s >= threshold && a.hardest_at != other) negatives.add(formula_near_negative(s, v));
        if (other_pair <= a.hardest + kSlack) positives.add(formula_near_positive(other_pair, v));
    }
    __device__ __forceinline__ void merge(const NearState& b) {
        negatives.merge(b.negatives);
        positives.merge(b.positives);
    }
    __device__ __forceinline__ NearState exchanged(int mask) const {
        NearState b;
        b.negatives.sum = exchange(negatives.sum, mask), b.negatives.count = exchange(negatives.count, mask);
        b.positives.sum = exchange(positives.sum, mask), b.positives.count = exchange(positives.count, mask);
        return b;
    }
    __device__ __forceinline__ void store(uint32_t* to, size_t plane) const {
        to[0] = __float_as_uint(negatives.sum), to[plane] = negatives.count;
        to[2 * plane] = __float_as_uint(positives.sum), to[3 * plane] = positives.count;
    }
    static __device__ __forceinline__ NearState load(const uint32_t* from, size_t plane) {
        NearState b;
        b.negatives.sum = __uint_as_float(from[0]), b.negatives.count = from[plane];
        b.positives.sum = __uint_as_float(from[2 * plane]), b.positives.count = from[3 * plane];
        return b;
    }
    __device__ __forceinline__ void finish(uint32_t* planes, uint32_t count, uint32_t line) const {
        const size_t plane = count;
        planes[kPlaneNearNegatives * plane + line] = __float_as_uint(negatives.mean());
        planes[kPlaneNearPositives * plane + line] = __float_as_uint(positives.mean());
    }
};

__device__ __forceinline__ float pair_of(const uint32_t* planes, uint32_t count, uint32_t line) {
    return __uint_as_float(planes[kPlanePair * size_t(count) + line]);
}
