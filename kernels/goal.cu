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
// Launch  grid = (ceil(n / 32), 2), at least (1, 2); block = 512; 15 KiB of static shared memory.
// Bound   latency; n planes splits words read, _ms: 2 n^2 / 32 warp steps.
// Order   splits ascending; R+ by lanes and a fixed tree; the report by blocks ascending; tickets are integers and decide
//         only who works, not in which order sums are taken. Identical bits between runs and devices.
// Needs   sm_80.
#include "common/goal.cuh"
#include "common/radix.cuh"

namespace {

constexpr uint32_t kWarps = kGoalThreads / kWarpSize;
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
    Relative rs_pos[kGoalAnchors];
    float scratch[32];
    ReportPart parts[kWarps];
    bool last;
};

// R+ of this warp's anchors.
__device__ __forceinline__ void block_relative(const GoalParams& p, const GoalSide& s, Shared& shared) {
    const uint32_t slot = warp_id() * kAnchorsPerWarp, first = blockIdx.x * kGoalAnchors + slot;
    float value[kAnchorsPerWarp];
    Relative relative[kAnchorsPerWarp];
#pragma unroll
    for (uint32_t a = 0; a < kAnchorsPerWarp; ++a) value[a] = first + a < p.n ? shared.value[slot + a] : 0.0f;
    positive_relative(p, s, first, value, relative);
    if (lane_id() != 0) return;
#pragma unroll
    for (uint32_t a = 0; a < kAnchorsPerWarp; ++a) shared.rs_pos[slot + a] = relative[a];
}

// Weights of one anchor, its entries of W, and its part of the report.
__device__ __forceinline__ ReportPart finish_anchor(const GoalParams& p, const GoalSide& s, uint32_t i,
                                                    const LineState& line, Relative rs_pos) {
    const float positive = p.pos[i], inv = s.inv[i];
    const AnchorWeights w = weigh_anchor(p, line, positive, rs_pos.mean);
    s.index[i] = line.index;
    s.positive[i] = w.of_pair();
    s.negative[i] = w.of_negative();
    if (s.skip != nullptr) s.skip[i] = inv != inv;
    if (s.detail != nullptr) write_detail(p, s, i, line, w, rs_pos);
    return anchor_report(p, line, positive, inv, w.triplet);
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
        block_relative(p, s, shared);
        __syncthreads();  // the relative similarities are in place
    }
    if (warp_id() != 0) return;
    ReportPart part{};
    if (inside) {
        Relative rs_pos{0.0f, 0};
        if (is_ms(p) && line.index >= 0) rs_pos = shared.rs_pos[lane_id()];
        part = finish_anchor(p, s, own, line, rs_pos);
    }
    part = sum_parts(part);
    if (lane_id() == 0) s.blocks[blockIdx.x] = part;
}

// The parts of all blocks, added in ascending order by a fixed assignment to threads.
__device__ __forceinline__ ReportPart add_blocks(const GoalSide& s, Shared& shared) {
    ReportPart part{};
    for (uint32_t b = threadIdx.x; b < gridDim.x; b += kGoalThreads) {
        add_part(part, read_part(s.blocks + b));
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

}  // namespace

extern "C" __global__ void __launch_bounds__(kGoalThreads, 1) goal_finalize(const __grid_constant__ GoalParams p) {
    __shared__ Shared shared;
    const GoalSide& s = blockIdx.y == 0 ? p.it : p.ti;
    block_anchors(p, s, shared);
    if (!last_to_come(p.tickets + blockIdx.y, shared.last)) return;

    const ReportPart total = add_blocks(s, shared);
    if (threadIdx.x == 0) *s.total = total;
    invert(TargetMap{s.index, p.n, p.n}, s.list, s.spare, s.offsets, shared.radix);
    if (last_to_come(p.tickets + 2, shared.last, gridDim.y) && threadIdx.x == 0) {
        write_report(p, read_part(p.it.total), read_part(p.ti.total));
        p.report->overflow = 0;  // counted by the kernel that follows
    }
}
