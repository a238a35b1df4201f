// What a formula of the user's may look at, and the functions that it may call. Included by the formulas themselves
// (common/pair_formulas.cuh, which is written anew for every expression), so: no header of the CUDA toolkit.
#pragma once
#include <stdint.h>

#include "common/order.cuh"

// An anchor, a row or a column: src/custom.rs.
struct AnchorView {
    float pair, hardest, lse, lse_positives, positives, negatives, near_negatives, near_positives;
};

// A pair that is to be weighed.
struct PairView {
    float s, hardest_of_row, hardest_of_col, n, m;
    AnchorView row, col;
};

// NaN stays NaN in all of them.
__device__ __forceinline__ float minimum(float a, float b) { return -max_nan(-a, -b); }
__device__ __forceinline__ float maximum(float a, float b) { return max_nan(a, b); }
__device__ __forceinline__ float step(float a) { return a > 0.0f ? 1.0f : a != a ? a : 0.0f; }
// Relative error of a few units also far from 0: one exponential, of which neither end overflows.
__device__ __forceinline__ float sigmoid(float a) {
    const float e = expf(-fabsf(a));
    return (a >= 0.0f ? 1.0f : e) / (1.0f + e);
}
__device__ __forceinline__ float softplus(float a) { return maximum(a, 0.0f) + log1pf(expf(-fabsf(a))); }
