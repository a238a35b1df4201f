// What the report of a pairwise step needs of its weights: from the sums that pairwise_weights_* leave per block.
#pragma once
#include "common/reduce.cuh"
#include "params/pairwise.h"

// Number of flags that are set, in every lane of the warp.
__device__ __forceinline__ uint32_t count_flags(const uint32_t* flags, uint32_t count) {
    uint32_t set = 0;
    for (uint32_t at = lane_id(); at < count; at += kWarpSize) set += flags[at];
    return warp_sum(set);
}

// One warp: d_scale and d_bias, times `upstream`; with `of_weights` also the sum of W S as the loss, and where `row_flags` is
// not null what statistics would say.
__device__ __forceinline__ void report_sums(PairwiseReport& r, const double* all, uint32_t all_count, double upstream,
                                            double per_scale, double per_bias, const uint32_t* row_flags, uint32_t n,
                                            const uint32_t* col_flags, uint32_t m, const unsigned long long* counts,
                                            bool of_weights = false) {
    double sums[kWaveSums] = {};
    for (uint32_t at = lane_id(); at < all_count; at += kWarpSize) {
#pragma unroll
        for (uint32_t k = 0; k < kWaveSums; ++k) sums[k] += all[kWaveSums * size_t(at) + k];
    }
#pragma unroll
    for (uint32_t k = 0; k < kWaveSums; ++k) sums[k] = warp_sum(sums[k]);
    if (lane_id() == 0) {
        r.d_scale = per_scale == 0.0 ? 0.0 : upstream * sums[0] * per_scale;
        r.d_bias = per_bias == 0.0 ? 0.0 : upstream * sums[1] * per_bias;
    }
    if (of_weights && lane_id() == 0) {
        r.loss = upstream * sums[0];
        r.mean_positive = r.positives == 0 ? 0.0 : sums[3] / double(r.positives);
    }
    if (row_flags == nullptr) return;
    const uint32_t rows = count_flags(row_flags, n), cols = count_flags(col_flags, m);
    if (lane_id() != 0) return;
    r.loss = sums[2] * per_scale;
    r.negatives = counts[0];
    r.positives = counts[1];
    r.mean_positive = r.positives == 0 ? 0.0 : sums[3] / double(r.positives);
    r.anchors_rows = rows;
    r.anchors_cols = cols;
}
