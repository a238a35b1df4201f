// mined_triplet: from the negatives that the anchors have selected to the weights of the triplet hinge, and the report.
//
//   v = margin + S - P for every selected negative of an anchor with a pair            (eqs. 15, docs/maths.md)
//   W += 1 at the negative, W -= 1 at the anchor's pair where v > 0; NaN where v is NaN
//
//   row_index, row_value (n, k), col_index, col_value (m, k), pos (min(n, m)) from mine_top_k;  inv_x (n), inv_y (m) f32
//   rows, cols i32, values f32 (places): the pairs' weights; the rows' negatives, anchor by anchor; the columns'
//   A place without a weight has the row and column -1.  No output may alias an input or another output.
//
// Work    weigh: one warp per index of an anchor, for its row and its column; lanes stride over the negatives. finish: one
//         block adds the blocks' parts of the report.
// Launch  weigh: grid = ceil(max(n, m) / 8), at least 1; finish: grid = 1. block = 256, 512 bytes of static shared memory.
// Bound   memory: 8 bytes read and 12 written per place.
// Order   a line's sums by lanes and a fixed tree, a block's warps ascending, the blocks by threads and a fixed tree.
//         Identical bits between runs and devices.
// Needs   sm_80.
#include "common/numeric.cuh"
#include "common/reduce.cuh"
#include "params/mined_triplet.h"

namespace {

constexpr uint32_t kWarps = kMinedTripletThreads / kWarpSize;

__device__ __forceinline__ void add_part(MinedTripletPart& a, const MinedTripletPart& b) {
    a.loss += b.loss;
    a.negative += b.negative;
    a.positive += b.positive;
    a.triplets += b.triplets;
    a.active += b.active;
    a.empty_rows += b.empty_rows;
    a.empty_cols += b.empty_cols;
    a.zero_x += b.zero_x;
    a.zero_y += b.zero_y;
    a.nan_x += b.nan_x;
    a.nan_y += b.nan_y;
}

// Sum over the warp, in every lane.
__device__ __forceinline__ MinedTripletPart sum_parts(const MinedTripletPart& v) {
    return {warp_sum(v.loss),       warp_sum(v.negative),   warp_sum(v.positive), warp_sum(v.triplets),
            warp_sum(v.active),     warp_sum(v.empty_rows), warp_sum(v.empty_cols), warp_sum(v.zero_x),
            warp_sum(v.zero_y),     warp_sum(v.nan_x),      warp_sum(v.nan_y)};
}

// The negatives of anchor `t` of one direction into the places from `first` on. Adds this lane's share to `part`; returns
// the sum of the weights, and whether there is a negative, in every lane.
struct Anchor {
    float weight;
    bool some;
};

__device__ __forceinline__ Anchor weigh(const MinedTripletParams& p, uint32_t t, bool is_row, size_t first,
                                        MinedTripletPart& part) {
    const int32_t* const index = (is_row ? p.row_index : p.col_index) + size_t(t) * p.k;
    const float* const value = (is_row ? p.row_value : p.col_value) + size_t(t) * p.k;
    const double pos = p.pos[t];
    float weights = 0.0f;
    uint32_t selected = 0, active = 0;
    for (uint32_t q = lane_id(); q < p.k; q += kWarpSize) {
        const int32_t j = index[q];
        const double s = value[q];
        const double violation = __dsub_rn(__dadd_rn(p.margin, s), pos);
        // Also where it is NaN.
        const bool counts = j >= 0 && !(violation <= 0.0);
        const float weight = violation == violation ? 1.0f : quiet_nan();
        if (j >= 0) {
            selected += 1;
            part.negative += s;
        }
        if (counts) {
            active += 1;
            weights += weight;
            part.loss += violation;
        }
        p.rows[first + q] = !counts ? -1 : is_row ? int32_t(t) : j;
        p.cols[first + q] = !counts ? -1 : is_row ? j : int32_t(t);
        p.values[first + q] = counts ? weight : 0.0f;
    }
    part.triplets += selected;
    part.active += active;
    return {warp_sum(weights), __any_sync(kFullWarp, selected > 0) != 0};
}

__device__ __forceinline__ void count_row(float inv, uint32_t& zero, uint32_t& nan) {
    zero += inv == 0.0f ? 1 : 0;
    nan += inv != inv ? 1 : 0;
}

}  // namespace

extern "C" __global__ void __launch_bounds__(kMinedTripletThreads)
    mined_triplet_weigh(const __grid_constant__ MinedTripletParams p) {
    __shared__ MinedTripletPart shared[kWarps];
    const uint32_t t = blockIdx.x * kWarps + warp_id();
    const uint32_t pairs = min(p.n, p.m);
    MinedTripletPart part{};
    if (t < pairs) {
        const size_t rows = pairs, cols = rows + size_t(pairs) * p.k;
        const Anchor row = weigh(p, t, true, rows + size_t(t) * p.k, part);
        const Anchor col = weigh(p, t, false, cols + size_t(t) * p.k, part);
        if (lane_id() == 0) {
            const float weight = -(row.weight + col.weight);
            // Neither 0 nor a place that an infinite row would make NaN of.
            const bool counts = weight != 0.0f;
            p.rows[t] = counts ? int32_t(t) : -1;
            p.cols[t] = counts ? int32_t(t) : -1;
            p.values[t] = weight;
            part.positive = p.pos[t];
            part.empty_rows = row.some ? 0 : 1;
            part.empty_cols = col.some ? 0 : 1;
        }
    }
    if (lane_id() == 0) {
        if (t < p.n) count_row(p.inv_x[t], part.zero_x, part.nan_x);
        if (t < p.m) count_row(p.inv_y[t], part.zero_y, part.nan_y);
    }
    part = sum_parts(part);
    if (lane_id() == 0) shared[warp_id()] = part;
    __syncthreads();  // the warps' parts are in place
    if (threadIdx.x != 0) return;
    for (uint32_t w = 1; w < kWarps; ++w) add_part(part, shared[w]);
    p.parts[blockIdx.x] = part;
}

extern "C" __global__ void __launch_bounds__(kMinedTripletThreads)
    mined_triplet_finish(const __grid_constant__ MinedTripletParams p) {
    __shared__ MinedTripletPart shared[kWarps];
    MinedTripletPart part{};
    for (uint32_t b = threadIdx.x; b < p.blocks; b += blockDim.x) add_part(part, p.parts[b]);
    part = sum_parts(part);
    if (lane_id() == 0) shared[warp_id()] = part;
    __syncthreads();  // the warps' parts are in place
    if (threadIdx.x != 0) return;
    for (uint32_t w = 1; w < kWarps; ++w) add_part(part, shared[w]);
    const uint32_t pairs = min(p.n, p.m);
    *p.report = {p.factor * part.loss,
                 pairs == 0 ? 0.0 : part.positive / double(pairs),
                 part.triplets == 0 ? 0.0 : part.negative / double(part.triplets),
                 part.triplets,
                 part.active,
                 pairs,
                 part.empty_rows,
                 part.empty_cols,
                 part.zero_x,
                 part.zero_y,
                 part.nan_x,
                 part.nan_y,
                 0};
}
