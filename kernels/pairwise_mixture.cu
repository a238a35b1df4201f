// pairwise_mixture_report: what the report of one part of a mixture lacks before the gradients are finished.
//
//   of an objective over all pairs   d_scale, d_bias = u share (sum of W S, of W) / scale; SigLIP: also its loss and counts
//   of a GOAL objective              everything, from the report of goal_finalize
//
//   sums (count, 4) f64;  row_flags (n), col_flags (m) u32 or null;  counts (2) u64;  goal, report: params/pairwise.h
//   No output may alias an input.
//
// Work    one warp.
// Launch  grid = 1, block = 32.
// Bound   latency.
// Order   lanes by a fixed tree, in f64.
// Needs   sm_80.
#include "common/pairwise_report.cuh"
#include "params/goal.h"

namespace {

// Every anchor of a GOAL objective has one positive, and one negative that counts.
__device__ void report_goal(PairwiseReport& r, const StepReport& s) {
    r = PairwiseReport{};
    r.loss = s.loss;
    r.mean_positive = s.mean_positive;
    r.positives = s.pairs;
    r.negatives = s.pairs - s.empty_it;
    r.anchors_rows = r.anchors_cols = s.pairs;
    r.zero_x = s.zero_x;
    r.zero_y = s.zero_y;
    r.nan_x = s.nan_x;
    r.nan_y = s.nan_y;
}

}  // namespace

extern "C" __global__ void __launch_bounds__(kWarpSize)
    pairwise_mixture_report(const __grid_constant__ PairwiseMixtureReportParams p) {
    if (p.goal != nullptr) {
        if (lane_id() == 0) report_goal(*p.report, *static_cast<const StepReport*>(p.goal));
        return;
    }
    const double upstream = p.share * double(p.factor) * (p.upstream == nullptr ? 1.0 : double(*p.upstream));
    report_sums(*p.report, p.sums, p.sums_count, upstream, p.per_scale, p.per_bias, p.row_flags, p.n, p.col_flags, p.m,
                p.counts);
}
