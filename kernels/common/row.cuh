// What a warp finds out about one row: its norm, without overflow or underflow of the squares.
#pragma once
#include "common/numeric.cuh"
#include "common/reduce.cuh"

// ||row|| = norm 2^exponent. A zero row has norm 0, a row with an infinity infinity, a row with a NaN NaN.
struct RowNorm {
    float norm;
    int exponent;
    float inverse;  // what a scaled element is multiplied by to normalise it: 0 for a zero row, NaN for a norm that is not finite

    __device__ __forceinline__ RowNorm() : norm(0.0f), exponent(0), inverse(0.0f) {}
    __device__ __forceinline__ RowNorm(float scaled_norm, int power)
        : norm(scaled_norm), exponent(power), inverse(is_zero() ? 0.0f : is_finite() ? 1.0f / scaled_norm : quiet_nan()) {}

    __device__ __forceinline__ bool is_zero() const { return norm == 0.0f; }
    __device__ __forceinline__ bool is_finite() const { return magnitude_bits(norm) < kInfinityBits; }

    // scaled / norm, of an element of the row. Without the branch that a division has for numbers out of range: no norm comes near
    // the ends of f32. The second correction rounds as a division does wherever remainders are exact, which is from 2^-100 on,
    // and else to one of the two numbers next to the quotient.
    __device__ __forceinline__ float divide(float scaled) const {
        float q = scaled * inverse;
#pragma unroll
        for (int correction = 0; correction < 2; ++correction) q = fmaf(fmaf(-q, norm, scaled), inverse, q);
        return copysignf(q, scaled);  // corrections make -0 a 0
    }
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

// A row as a warp reads it, several times. Held, it is loaded once, all of it under way at a time; it has at most
// kHeldColumns columns then. Neither changes which elements a lane has, or their order.
template <typename T>
constexpr uint32_t kHeldVectors = sizeof(T) == 4 ? 8 : 4;
template <typename T>
constexpr uint32_t kHeldColumns = kHeldVectors<T> * kWarpSize * kVector<T>;

template <typename T, bool kHeld>
class Row {
  public:
    __device__ __forceinline__ Row(const T* row, uint32_t d, bool aligned) : row_(row), d_(d), aligned_(aligned) {
        if constexpr (kHeld) {
#pragma unroll
            for (uint32_t v = 0; v < kHeldVectors<T>; ++v) load_packed(row, column(v), d, aligned, held_[v]);
        }
    }

    // Calls visit(col, values) for the vectors of this lane, ascending; zeros behind the last column.
    template <typename Visit>
    __device__ __forceinline__ void each(Visit visit) const {
        if constexpr (kHeld) {
#pragma unroll
            for (uint32_t v = 0; v < kHeldVectors<T>; ++v) {
                if (column(v) >= d_) break;
                float values[kVector<T>];
                get(v, values);
                visit(column(v), values);
            }
        } else {
            for_each_vector(row_, d_, aligned_, visit);
        }
    }
    // The same for two rows of one length: visit(a, b).
    template <typename Visit>
    __device__ __forceinline__ void each_with(const Row& other, Visit visit) const {
        if constexpr (kHeld) {
#pragma unroll
            for (uint32_t v = 0; v < kHeldVectors<T>; ++v) {
                if (column(v) >= d_) break;
                float a[kVector<T>], b[kVector<T>];
                get(v, a);
                other.get(v, b);
                visit(a, b);
            }
        } else {
            for_each_vector(row_, d_, aligned_, [&](uint32_t col, const float(&a)[kVector<T>]) {
                float b[kVector<T>];
                load_vector(other.row_, col, d_, other.aligned_, b);
                visit(a, b);
            });
        }
    }

  private:
    static __device__ __forceinline__ uint32_t column(uint32_t v) { return (v * kWarpSize + lane_id()) * kVector<T>; }
    __device__ __forceinline__ void get(uint32_t v, float (&values)[kVector<T>]) const {
#pragma unroll
        for (uint32_t i = 0; i < kVector<T>; ++i) values[i] = to_f32(held_[v].lanes[i]);
    }

    const T* row_;
    uint32_t d_;
    bool aligned_;
    Packed<T> held_[kHeld ? kHeldVectors<T> : 1];
};

// Two passes over the row: the largest magnitude, then the sum of squares of the row times a power of two that brings
// that magnitude into [1, 2). The second pass finds a row that is not held in the cache.
template <typename T, bool kHeld>
__device__ __forceinline__ RowNorm measure_row(const Row<T, kHeld>& row) {
    uint32_t largest = 0;
    row.each([&](uint32_t, const float(&v)[kVector<T>]) {
#pragma unroll
        for (uint32_t i = 0; i < kVector<T>; ++i) largest = max(largest, magnitude_bits(v[i]));
    });
    largest = __reduce_max_sync(kFullWarp, largest);
    if (largest == 0) return {0.0f, 0};
    if (largest >= kInfinityBits) return {__uint_as_float(largest), 0};

    const int exponent = kScaled<T> ? exponent_of(largest) : 0;
    float sum = 0.0f;
    row.each([&](uint32_t, const float(&v)[kVector<T>]) {
#pragma unroll
        for (uint32_t i = 0; i < kVector<T>; ++i) {
            const float s = kScaled<T> ? scale_pow2(v[i], -exponent) : v[i];
            sum = fmaf(s, s, sum);
        }
    });
    return {sqrtf(warp_sum(sum)), exponent};
}
template <typename T>
__device__ __forceinline__ RowNorm measure_row(const T* row, uint32_t d, bool aligned) {
    return measure_row(Row<T, false>(row, d, aligned));
}

// An element of the normalised row; rows of norm 0 stay 0, and a norm that is not finite gives NaN.
template <typename T>
__device__ __forceinline__ float unit_element(float v, const RowNorm& r) {
    const float s = kScaled<T> ? scale_pow2(v, -r.exponent) : v;
    return r.is_zero() ? 0.0f : r.is_finite() ? r.divide(s) : quiet_nan();
}
