// The order of similarities: NaN is larger than everything, -0 equals +0.
#pragma once

__device__ __forceinline__ float neg_infinity() { return __int_as_float(0xff800000); }
__device__ __forceinline__ float pos_infinity() { return __int_as_float(0x7f800000); }

// The larger value; NaN if either is NaN.
__device__ __forceinline__ float max_nan(float a, float b) {
    float r;
    asm("max.NaN.f32 %0, %1, %2;" : "=f"(r) : "f"(a), "f"(b));
    return r;
}

// Whether `a` is larger than `b`.
__device__ __forceinline__ bool value_beats(float a, float b) { return !(a <= b) && b == b; }

// A bound so that !(x <= bound) is true of exactly the x that are at least `v`, for v other than NaN: the next smaller
// float, and NaN for -infinity, which everything is at least. One comparison then does for x >= v including x = NaN.
__device__ __forceinline__ float bound_below(float v) {
    if (v == neg_infinity()) return __int_as_float(0x7fffffff);
    if (v == 0.0f) return __int_as_float(0x80000001);
    const int bits = __float_as_int(v);
    return __int_as_float(v > 0.0f ? bits - 1 : bits + 1);
}
