// The formulas of an objective. This file is what src/expression/emit.rs writes for InfoNCE (the example of the module
// `expression`), so that the build compiles and checks pairwise_custom.cu; at run time another text takes its place.
#pragma once
#include "common/pair_view.cuh"

constexpr bool kUsesSums = true;
constexpr bool kUsesHardest = false;
constexpr bool kUsesNear = false;
constexpr float kSlack = 0.0f;

__device__ __forceinline__ float formula_logit(float s) {
    const float t0 = 14.3f * s;
    return t0;
}
__device__ __forceinline__ float formula_near_negative(float s, const AnchorView& v) {
    return 0.0f;
}
__device__ __forceinline__ float formula_near_positive(float s, const AnchorView& v) {
    return 0.0f;
}
__device__ __forceinline__ float formula_positive(const PairView& v) {
    const float t0 = -14.3f;
    const float t1 = 2.0f * v.n;
    const float t2 = t0 / t1;
    const float t3 = 14.3f * v.s;
    const float t4 = v.row.lse - t3;
    const float t5 = sigmoid(t4);
    const float t6 = v.col.lse - t3;
    const float t7 = sigmoid(t6);
    const float t8 = t5 + t7;
    const float t9 = t2 * t8;
    return t9;
}
__device__ __forceinline__ float formula_negative(const PairView& v) {
    const float t0 = 2.0f * v.n;
    const float t1 = 14.3f / t0;
    const float t2 = v.row.lse - v.row.lse_positives;
    const float t3 = sigmoid(t2);
    const float t4 = 14.3f * v.s;
    const float t5 = t4 - v.row.lse;
    const float t6 = expf(t5);
    const float t7 = t3 * t6;
    const float t8 = v.col.lse - v.col.lse_positives;
    const float t9 = sigmoid(t8);
    const float t10 = t4 - v.col.lse;
    const float t11 = expf(t10);
    const float t12 = t9 * t11;
    const float t13 = t7 + t12;
    const float t14 = t1 * t13;
    return t14;
}
