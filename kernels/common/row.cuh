// What a warp finds out about one row: its norm, without overflow or underflow of the squares.
#pragma once
#include "common/numeric.cuh"
#include "common/reduce.cuh"

// ||row|| = norm 2^exponent. A zero row has norm 0, a row with a NaN or an infinity norm NaN.
struct RowNorm {
    float norm;
    int exponent;
};

// f16 rows are not scaled: their squares fit f32 anyway.
template <typename T>
constexpr bool kScaled = !__is_same(T, __half);

// Calls visit(col, values) for the row's vectors that belong to this lane, in ascending order. The assignment of elements to
// lanes does not depend on the alignment.
template <typename T, typename Visit>
__device__ __forceinline__ void for_each_vector(const T* row, uint32_t d, bool aligned, Visit visit) {
    for (uint32_t col = lane_id() * kVector<T>; col < d; col += kWarpSize * kVector<T>) {
        float v[kVector<T>];
        load_vector(row, col, d, aligned, v);
        visit(col, v);
    }
}

// Two passes over the row: the largest magnitude, then the sum of squares of the row times a power of two that brings
// that magnitude into [1, 2). The second pass finds the row in the cache.
template <typename T>
__device__ __forceinline__ RowNorm measure_row(const T* row, uint32_t d, bool aligned) {
    uint32_t largest = 0;
    for_each_vector(row, d, aligned, [&](uint32_t, const float(&v)[kVector<T>]) {
#pragma unroll
        for (uint32_t i = 0; i < kVector<T>; ++i) largest = max(largest, magnitude_bits(v[i]));
    });
    largest = __reduce_max_sync(kFullWarp, largest);
    if (largest == 0) return {0.0f, 0};
    if (largest >= kInfinityBits) return {quiet_nan(), 0};

    const int exponent = kScaled<T> ? exponent_of(largest) : 0;
    float sum = 0.0f;
    for_each_vector(row, d, aligned, [&](uint32_t, const float(&v)[kVector<T>]) {
#pragma unroll
        for (uint32_t i = 0; i < kVector<T>; ++i) {
            const float s = kScaled<T> ? scale_pow2(v[i], -exponent) : v[i];
            sum = fmaf(s, s, sum);
        }
    });
    return {sqrtf(warp_sum(sum)), exponent};
}

// An element of the normalised row; rows of norm 0 stay 0, and norm NaN gives NaN.
template <typename T>
__device__ __forceinline__ float unit_element(float v, const RowNorm& r) {
    const float s = kScaled<T> ? scale_pow2(v, -r.exponent) : v;
    return r.norm == 0.0f ? 0.0f : s / r.norm;
}
