// goal_finalize: from mined statistics to the weights of the gradient, its inverse index and the report.
//
//   R+, T, w+, w-     eqs. 5 to 8, docs/maths.md, for every anchor of both directions
//   positive[i] = -T w+,  negative[i] = T w-,  index[i] = n_i                 (the non-zeros of W)
//   list, offsets     for every candidate the anchors of which it is the hardest negative, ascending
//   report            sums over the anchors, counts
//   skip              rows that pairwise_grad_* is to leave out: no weight but 0 or NaN meets them, and 0 times NaN is NaN
//
//   parts  (planes, splits, n) 4-byte words from mine_*;  pos, inv (n) f32;  groups (n) i64 or null
//   positive, negative (n) f32;  index (n) i32;  list, spare (n), offsets (n + 1) u32;  detail (10, n) words or null
//   skip (n) u8 or null
//   tickets (kGoalTickets) u32, 0 on entry.  No output may alias an input or another output.
//
// Work    a block takes 32 anchors of one direction. Each warp loads the partial states of one split, the first warp merges
//         them, a thread per anchor. For the _ms weights each warp then sums R+ of two anchors over the positives. The
//         first warp evaluates the weights. The last block of a direction to finish adds the report's parts and sorts
//         the inverse index; the last direction writes the report.
// Launch  grid = (ceil(n / 32), 2), at least (1, 2); block = 512; below 18 KiB of static shared memory.
// Bound   latency; n planes splits words read, _ms: 2 n^2 / 32 warp steps.
// Order   splits ascending; R+ by lanes and a fixed tree; the report by blocks ascending; tickets are integers and decide
//         only who works, not in which order sums are taken. Identical bits between runs and devices.
// Needs   sm_80.
#include "common/mining.cuh"
#include "common/numeric.cuh"
#include "common/objective.cuh"
#include "common/radix.cuh"

namespace {

constexpr uint32_t kWarps = kGoalThreads / kWarpSize;
constexpr uint32_t kFlush = 64;  // terms of R+ that a lane adds up before it adds them to its total, to bound rounding

constexpr uint32_t kAnchorsPerWarp = kGoalAnchors / kWarps;
static_assert(kWarps >= kGoalSplits, "a warp loads one split");

// An odd number of words apart, so that the lanes of a warp meet different banks.
struct LineSlot {
    LineState line;
    uint32_t odd_;
};

struct Shared {
    union {
        LineSlot slots[kGoalSplits][kGoalAnchors];  // partial states of this block's anchors
        RadixScratch<kWarps> radix;                 // of the last block
    };
    float value[kGoalAnchors];
    float rs_pos[kGoalAnchors];
    uint32_t rs_pos_count[kGoalAnchors];
    float scratch[32];
    ReportPart parts[kWarps];
    bool last;
};

struct Relative {
    float mean;
    uint32_t count;
};

__device__ __forceinline__ Relative relative_mean(float sum, uint32_t count) {
    return {count == 0 ? 0.0f : sum / float(count), count};
}

__device__ __forceinline__ bool is_ms(const GoalParams& p) { return p.stats >= kStatsLin; }

// R+ of this warp's anchors: over the other pairs' similarities that are at most the anchor's hardest value plus eps.
__device__ __forceinline__ void positive_relative(const GoalParams& p, const GoalSide& s, Shared& shared) {
    const bool sig = p.objective.pair == kPairSigMs, grouped = s.anchor_groups != nullptr;
    const float alpha = float(p.objective.alpha);
    const uint32_t slot = warp_id() * kAnchorsPerWarp, first = blockIdx.x * kGoalAnchors + slot;
    float own[kAnchorsPerWarp], bound[kAnchorsPerWarp], sum[kAnchorsPerWarp], part[kAnchorsPerWarp];
    int64_t group[kAnchorsPerWarp];
    uint32_t count[kAnchorsPerWarp];
#pragma unroll
    for (uint32_t a = 0; a < kAnchorsPerWarp; ++a) {
        const bool inside = first + a < p.n;
        own[a] = inside ? p.pos[first + a] : 0.0f;
        // Nothing is at most NaN.
        bound[a] = inside ? shared.value[slot + a] + p.objective.eps : quiet_nan();
        group[a] = inside && grouped ? s.anchor_groups[first + a] : 0;
        sum[a] = part[a] = 0.0f;
        count[a] = 0;
    }
    uint32_t pending = 0;
    for (uint32_t j = lane_id(); j < p.n; j += kWarpSize) {
        const float other = p.pos[j];
        const int64_t other_group = grouped ? s.other_groups[j] : 0;
#pragma unroll
        for (uint32_t a = 0; a < kAnchorsPerWarp; ++a) {
            const bool member = j != first + a && other <= bound[a] && !(grouped && other_group == group[a]);
            const float difference = own[a] - other;
            if (member) {
                part[a] += sig ? expf(alpha * difference) : difference;
                // The paper's code divides by the number of non-zero terms.
                count[a] += sig || difference != 0.0f ? 1 : 0;
            }
        }
        if (++pending < kFlush) continue;
        pending = 0;
#pragma unroll
        for (uint32_t a = 0; a < kAnchorsPerWarp; ++a) {
            sum[a] += part[a];
            part[a] = 0.0f;
        }
    }
#pragma unroll
    for (uint32_t a = 0; a < kAnchorsPerWarp; ++a) {
        const Relative r = relative_mean(warp_sum(sum[a] + part[a]), warp_sum(count[a]));
        if (lane_id() != 0) continue;
        shared.rs_pos[slot + a] = r.mean;
        shared.rs_pos_count[slot + a] = r.count;
    }
}

// R- from the statistics that the sweep collected.
__device__ __forceinline__ Relative negative_relative(const LineState& line, bool sig) {
    if (sig) return relative_mean(line.sum, line.count);
    // Differences of exactly 0 are not counted; next to a NaN there is no difference above 0.
    const uint32_t count = line.value != line.value ? 0 : line.count - line.ties;
    return relative_mean(line.sum, count);
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

__device__ __forceinline__ void put(const GoalParams& p, const GoalSide& s, uint32_t plane, uint32_t i, uint32_t word) {
    s.detail[size_t(plane) * p.n + i] = word;
}

// Weights of one anchor, its entries of W, and its part of the report.
__device__ __forceinline__ ReportPart finish_anchor(const GoalParams& p, const GoalSide& s, uint32_t i,
                                                    const LineState& line, Relative rs_pos) {
    const ObjectiveParams& o = p.objective;
    const float positive = p.pos[i], inv = s.inv[i];
    const bool some = line.index >= 0;
    ReportPart part{};
    part.positive = positive;
    part.zero = inv == 0.0f;
    part.nan = inv != inv;

    float triplet = 0.0f, w_pos = 0.0f, w_neg = 0.0f;
    Relative rs_neg{0.0f, 0};
    if (some) {
        if (is_ms(p)) rs_neg = negative_relative(line, o.pair == kPairSigMs);
        triplet = triplet_weight(o, positive, line.value);
        w_pos = positive_weight(o, positive, rs_pos.mean);
        w_neg = negative_weight(o, line.value, rs_neg.mean);
        part.loss = triplet_loss(o, positive, line.value);
        part.log = double(line.value) - double(positive);
        part.negative = line.value;
        part.anchors = 1;
        part.active = triplet != 0.0f;
    }
    s.index[i] = line.index;
    // Without a negative both are 0, also beside a NaN.
    s.positive[i] = -triplet * w_pos;
    s.negative[i] = triplet * w_neg;
    if (s.skip != nullptr) s.skip[i] = inv != inv;
    if (s.detail != nullptr) {
        put(p, s, kDetailIndex, i, uint32_t(line.index));
        put(p, s, kDetailValue, i, __float_as_uint(line.value));
        put(p, s, kDetailSecond, i, __float_as_uint(line.second));
        put(p, s, kDetailTriplet, i, __float_as_uint(triplet));
        put(p, s, kDetailPairPos, i, __float_as_uint(w_pos));
        put(p, s, kDetailPairNeg, i, __float_as_uint(w_neg));
        put(p, s, kDetailRsPos, i, __float_as_uint(rs_pos.mean));
        put(p, s, kDetailRsNeg, i, __float_as_uint(rs_neg.mean));
        put(p, s, kDetailRsPosCount, i, rs_pos.count);
        put(p, s, kDetailRsNegCount, i, rs_neg.count);
    }
    return part;
}

// The merged states of the block's anchors, in the lanes of the first warp. The other warps help to load.
__device__ __forceinline__ LineState merged_anchor(const GoalParams& p, const GoalSide& s, bool inside, float threshold,
                                                   Shared& shared) {
    const uint32_t i = blockIdx.x * kGoalAnchors + lane_id();
    const uint32_t split = warp_id();
    if (split < s.splits && i < p.n) {
        shared.slots[split][lane_id()].line = load_line(s.parts, s.splits, p.n, split, i, p.stats);
    }
    __syncthreads();  // all partial states are in place
    if (!inside) return empty_line();
    const StatsRule rule{p.stats, threshold, float(p.objective.beta)};
    LineState line = shared.slots[0][lane_id()].line;
    for (uint32_t k = 1; k < s.splits; ++k) line = merge_lines(line, shared.slots[k][lane_id()].line, rule);
    return line;
}

// The 32 anchors of this block.
__device__ __forceinline__ void block_anchors(const GoalParams& p, const GoalSide& s, Shared& shared) {
    const uint32_t own = blockIdx.x * kGoalAnchors + lane_id();
    const bool inside = warp_id() == 0 && own < p.n;
    const float threshold = is_ms(p) ? block_threshold(p.pmin, p.pmin_count, p.objective.eps, shared.scratch) : 0.0f;
    const LineState line = merged_anchor(p, s, inside, threshold, shared);
    if (is_ms(p)) {
        if (inside) shared.value[lane_id()] = line.value;
        __syncthreads();  // the anchors' hardest values are in place
        positive_relative(p, s, shared);
        __syncthreads();  // the relative similarities are in place
    }
    if (warp_id() != 0) return;
    ReportPart part{};
    if (inside) {
        Relative rs_pos{0.0f, 0};
        if (is_ms(p) && line.index >= 0) rs_pos = {shared.rs_pos[lane_id()], shared.rs_pos_count[lane_id()]};
        part = finish_anchor(p, s, own, line, rs_pos);
    }
    part = sum_parts(part);
    if (lane_id() == 0) s.blocks[blockIdx.x] = part;
}

// The parts of all blocks, added in ascending order by a fixed assignment to threads.
__device__ __forceinline__ ReportPart add_blocks(const GoalSide& s, Shared& shared) {
    ReportPart part{};
    for (uint32_t b = threadIdx.x; b < gridDim.x; b += kGoalThreads) {
        const double* d = reinterpret_cast<const double*>(s.blocks + b);
        const uint32_t* w = reinterpret_cast<const uint32_t*>(d + 4);
        add_part(part, {__ldcg(d), __ldcg(d + 1), __ldcg(d + 2), __ldcg(d + 3), __ldcg(w), __ldcg(w + 1), __ldcg(w + 2),
                        __ldcg(w + 3)});
    }
    part = sum_parts(part);
    if (lane_id() == 0) shared.parts[warp_id()] = part;
    __syncthreads();  // every warp's part is in place
    ReportPart total{};
    if (threadIdx.x == 0) {
        for (uint32_t w = 0; w < kWarps; ++w) add_part(total, shared.parts[w]);
    }
    return total;
}

__device__ __forceinline__ double mean(double sum, uint32_t count) { return count == 0 ? 0.0 : sum / double(count); }

__device__ __forceinline__ void write_report(const GoalParams& p) {
    // Volatile: the other direction's part was written by another block of this launch.
    const volatile ReportPart& it = *p.it.total;
    const volatile ReportPart& ti = *p.ti.total;
    StepReport& r = *p.report;
    r.loss = (it.loss + ti.loss) * p.factor;
    r.log_it = it.log * p.factor;
    r.log_ti = ti.log * p.factor;
    r.mean_positive = mean(it.positive, p.n);
    r.mean_negative_it = mean(it.negative, it.anchors);
    r.mean_negative_ti = mean(ti.negative, ti.anchors);
    r.pairs = p.n;
    r.empty_it = p.n - it.anchors;
    r.empty_ti = p.n - ti.anchors;
    r.active_it = it.active;
    r.active_ti = ti.active;
    r.zero_x = it.zero;
    r.zero_y = ti.zero;
    r.nan_x = it.nan;
    r.nan_y = ti.nan;
    r.overflow = 0;  // counted by the kernel that follows
}

}  // namespace

extern "C" __global__ void __launch_bounds__(kGoalThreads, 1) goal_finalize(const __grid_constant__ GoalParams p) {
    __shared__ Shared shared;
    const GoalSide& s = blockIdx.y == 0 ? p.it : p.ti;
    block_anchors(p, s, shared);
    if (!last_to_come(p.tickets + blockIdx.y, shared.last)) return;

    const ReportPart total = add_blocks(s, shared);
    if (threadIdx.x == 0) *s.total = total;
    invert(TargetMap{s.index, p.n, p.n}, s.list, s.spare, s.offsets, shared.radix);
    if (last_to_come(p.tickets + 2, shared.last, gridDim.y) && threadIdx.x == 0) write_report(p);
}
