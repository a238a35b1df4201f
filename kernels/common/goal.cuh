// One anchor of a GOAL objective: from its merged state to its weights (eqs. 5 to 8, docs/maths.md), its part of the report
// and its anatomy; and the report of both directions. Shared by goal_finalize and goal_small, so that both compute the
// same bits.
#pragma once
#include <stdint.h>

#include "common/mining.cuh"
#include "common/numeric.cuh"
#include "common/objective.cuh"
#include "common/reduce.cuh"

// R of one anchor, and how many terms it is the mean of.
struct Relative {
    float mean;
    uint32_t count;
};

__device__ __forceinline__ Relative relative_mean(float sum, uint32_t count) {
    return {count == 0 ? 0.0f : sum / float(count), count};
}

__device__ __forceinline__ bool is_ms(const GoalParams& p) { return p.stats >= kStatsLin; }

constexpr uint32_t kFlush = 64;  // terms of R+ that a lane adds up before it adds them to its total, to bound rounding
constexpr uint32_t kPositivesAhead = 4;  // of them that a lane loads before it adds the first
static_assert(kFlush % kPositivesAhead == 0, "a lane adds whole loads to its total");

// R+ of the anchors first ... first + A - 1, whose hardest values these are: over the other pairs' similarities that are at
// most the anchor's hardest value plus eps. All lanes of one warp call this and get the result.
template <uint32_t A>
__device__ __forceinline__ void positive_relative(const GoalParams& p, const GoalSide& s, uint32_t first,
                                                  const float (&value)[A], Relative (&relative)[A]) {
    const bool sig = p.objective.pair == kPairSigMs, grouped = s.anchor_groups != nullptr;
    const float alpha = float(p.objective.alpha);
    float own[A], bound[A], sum[A], part[A];
    int64_t group[A];
    uint32_t count[A];
#pragma unroll
    for (uint32_t a = 0; a < A; ++a) {
        const bool inside = first + a < p.n;
        own[a] = inside ? p.pos[first + a] : 0.0f;
        // Nothing is at most NaN.
        bound[a] = inside ? value[a] + p.objective.eps : quiet_nan();
        group[a] = inside && grouped ? s.anchor_groups[first + a] : 0;
        sum[a] = part[a] = 0.0f;
        count[a] = 0;
    }
    uint32_t pending = 0;
    for (uint32_t base = 0; base < p.n; base += kPositivesAhead * kWarpSize) {
        float other[kPositivesAhead];
        int64_t other_group[kPositivesAhead];
#pragma unroll
        for (uint32_t k = 0; k < kPositivesAhead; ++k) {
            const uint32_t j = base + k * kWarpSize + lane_id();
            other[k] = j < p.n ? p.pos[j] : quiet_nan();
            other_group[k] = grouped && j < p.n ? s.other_groups[j] : 0;
        }
        // Without branches, so that the terms of one load are evaluated side by side: adding 0 changes no sum.
#pragma unroll
        for (uint32_t a = 0; a < A; ++a) {
            float term[kPositivesAhead];
            bool member[kPositivesAhead];
#pragma unroll
            for (uint32_t k = 0; k < kPositivesAhead; ++k) {
                const bool own_pair = base + k * kWarpSize + lane_id() == first + a;
                const bool same_group = grouped & (other_group[k] == group[a]);
                term[k] = own[a] - other[k];
                member[k] = !own_pair & (other[k] <= bound[a]) & !same_group;
                // The paper's code divides by the number of non-zero terms.
                count[a] += member[k] & (sig | (term[k] != 0.0f)) ? 1 : 0;
            }
            if (sig) {
#pragma unroll
                for (uint32_t k = 0; k < kPositivesAhead; ++k) term[k] = expf(alpha * term[k]);
            }
#pragma unroll
            for (uint32_t k = 0; k < kPositivesAhead; ++k) part[a] += member[k] ? term[k] : 0.0f;
        }
        pending += kPositivesAhead;
        if (pending < kFlush) continue;
        pending = 0;
#pragma unroll
        for (uint32_t a = 0; a < A; ++a) {
            sum[a] += part[a];
            part[a] = 0.0f;
        }
    }
#pragma unroll
    for (uint32_t a = 0; a < A; ++a) relative[a] = relative_mean(warp_sum(sum[a] + part[a]), warp_sum(count[a]));
}

// R- from the statistics that the sweep collected.
__device__ __forceinline__ Relative negative_relative(const LineState& line, bool sig) {
    if (sig) return relative_mean(line.sum, line.count);
    // Differences of exactly 0 are not counted; next to a NaN there is no difference above 0.
    const uint32_t count = line.value != line.value ? 0 : line.count - line.ties;
    return relative_mean(line.sum, count);
}

// What an anchor's entries of W are made of; all 0 without a negative, also beside a NaN.
struct AnchorWeights {
    float triplet;
    float positive;
    float negative;
    Relative rs_neg;

    __device__ __forceinline__ float of_pair() const { return -triplet * positive; }
    __device__ __forceinline__ float of_negative() const { return triplet * negative; }
};

__device__ __forceinline__ AnchorWeights weigh_anchor(const GoalParams& p, const LineState& line, float positive,
                                                      float rs_pos) {
    const ObjectiveParams& o = p.objective;
    AnchorWeights w{0.0f, 0.0f, 0.0f, {0.0f, 0}};
    if (line.index < 0) return w;
    if (is_ms(p)) w.rs_neg = negative_relative(line, o.pair == kPairSigMs);
    w.triplet = triplet_weight(o, positive, line.value);
    w.positive = positive_weight(o, positive, rs_pos);
    w.negative = negative_weight(o, line.value, w.rs_neg.mean);
    return w;
}

// One anchor's part of the report; `inv` is 0 for a zero row, NaN for a row with a NaN or Inf.
__device__ __forceinline__ ReportPart anchor_report(const GoalParams& p, const LineState& line, float positive, float inv,
                                                    float triplet) {
    ReportPart part{};
    part.positive = positive;
    part.zero = inv == 0.0f;
    part.nan = inv != inv;
    if (line.index >= 0) {
        part.loss = triplet_loss(p.objective, positive, line.value);
        part.log = double(line.value) - double(positive);
        part.negative = line.value;
        part.anchors = 1;
        part.active = triplet != 0.0f;
    }
    return part;
}

__device__ __forceinline__ void write_detail(const GoalParams& p, const GoalSide& s, uint32_t i, const LineState& line,
                                             const AnchorWeights& w, Relative rs_pos) {
    const auto put = [&](uint32_t plane, uint32_t word) { s.detail[size_t(plane) * p.n + i] = word; };
    put(kDetailIndex, uint32_t(line.index));
    put(kDetailValue, __float_as_uint(line.value));
    put(kDetailSecond, __float_as_uint(line.second));
    put(kDetailTriplet, __float_as_uint(w.triplet));
    put(kDetailPairPos, __float_as_uint(w.positive));
    put(kDetailPairNeg, __float_as_uint(w.negative));
    put(kDetailRsPos, __float_as_uint(rs_pos.mean));
    put(kDetailRsNeg, __float_as_uint(w.rs_neg.mean));
    put(kDetailRsPosCount, rs_pos.count);
    put(kDetailRsNegCount, w.rs_neg.count);
}

__device__ __forceinline__ void add_part(ReportPart& a, const ReportPart& b) {
    a.loss += b.loss;
    a.log += b.log;
    a.negative += b.negative;
    a.positive += b.positive;
    a.anchors += b.anchors;
    a.active += b.active;
    a.zero += b.zero;
    a.nan += b.nan;
}

// Sum over the warp, in every lane.
__device__ __forceinline__ ReportPart sum_parts(const ReportPart& v) {
    return {warp_sum(v.loss),    warp_sum(v.log),    warp_sum(v.negative), warp_sum(v.positive),
            warp_sum(v.anchors), warp_sum(v.active), warp_sum(v.zero),     warp_sum(v.nan)};
}

// A part that another block of this launch wrote: read past the L1 cache.
__device__ __forceinline__ ReportPart read_part(const ReportPart* part) {
    const double* d = reinterpret_cast<const double*>(part);
    const uint32_t* w = reinterpret_cast<const uint32_t*>(d + 4);
    return {__ldcg(d), __ldcg(d + 1), __ldcg(d + 2), __ldcg(d + 3), __ldcg(w), __ldcg(w + 1), __ldcg(w + 2), __ldcg(w + 3)};
}

__device__ __forceinline__ double mean_of(double sum, uint32_t count) { return count == 0 ? 0.0 : sum / double(count); }

// Everything but the overflows, which whoever writes the gradient counts.
__device__ __forceinline__ void write_report(const GoalParams& p, const ReportPart& it, const ReportPart& ti) {
    StepReport& r = *p.report;
    r.loss = (it.loss + ti.loss) * p.factor;
    r.log_it = it.log * p.factor;
    r.log_ti = ti.log * p.factor;
    r.mean_positive = mean_of(it.positive, p.n);
    r.mean_negative_it = mean_of(it.negative, it.anchors);
    r.mean_negative_ti = mean_of(ti.negative, ti.anchors);
    r.pairs = p.n;
    r.empty_it = p.n - it.anchors;
    r.empty_ti = p.n - ti.anchors;
    r.active_it = it.active;
    r.active_ti = ti.active;
    r.zero_x = it.zero;
    r.zero_y = ti.zero;
    r.nan_x = it.nan;
    r.nan_y = ti.nan;
}
