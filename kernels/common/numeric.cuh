// Element types: conversion, vector access, scaling by powers of two. All arithmetic is f32; denormals are kept.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <stdint.h>

__device__ __forceinline__ float to_f32(float v) { return v; }
__device__ __forceinline__ float to_f32(__half v) { return __half2float(v); }
__device__ __forceinline__ float to_f32(__nv_bfloat16 v) { return __bfloat162float(v); }

// Rounds to nearest even; beyond the largest finite value gives infinity.
template <typename T>
__device__ __forceinline__ T from_f32(float v) {
    if constexpr (sizeof(T) == 4) return v;
    else if constexpr (__is_same(T, __half)) return __float2half_rn(v);
    else return __float2bfloat16_rn(v);
}

// Elements of T in a 16-byte access.
template <typename T>
constexpr uint32_t kVector = 16 / sizeof(T);

template <typename T>
union Packed {
    uint4 bits;
    T lanes[kVector<T>];
    __device__ Packed() {}
};

// Columns [col, col + kVector) of a row of d elements as they lie in memory, zeros from column d on. With `aligned`, the row
// starts on a 16-byte boundary; the result does not depend on it. Nothing waits for them before they are used.
template <typename T>
__device__ __forceinline__ void load_packed(const T* row, uint32_t col, uint32_t d, bool aligned, Packed<T>& packed) {
    if (aligned && col + kVector<T> <= d) {
        packed.bits = *reinterpret_cast<const uint4*>(row + col);
        return;
    }
    packed.bits = {0, 0, 0, 0};
#pragma unroll
    for (uint32_t i = 0; i < kVector<T>; ++i) {
        if (col + i < d) packed.lanes[i] = row[col + i];
    }
}

// The same as f32.
template <typename T>
__device__ __forceinline__ void load_vector(const T* row, uint32_t col, uint32_t d, bool aligned,
                                            float (&v)[kVector<T>]) {
    if (aligned && col + kVector<T> <= d) {
        Packed<T> packed;
        packed.bits = *reinterpret_cast<const uint4*>(row + col);
#pragma unroll
        for (uint32_t i = 0; i < kVector<T>; ++i) v[i] = to_f32(packed.lanes[i]);
        return;
    }
#pragma unroll
    for (uint32_t i = 0; i < kVector<T>; ++i) v[i] = col + i < d ? to_f32(row[col + i]) : 0.0f;
}

// Writes columns [col, min(col + kVector, d)) of a row.
template <typename T>
__device__ __forceinline__ void store_vector(T* row, uint32_t col, uint32_t d, bool aligned,
                                             const float (&v)[kVector<T>]) {
    if (aligned && col + kVector<T> <= d) {
        Packed<T> packed;
#pragma unroll
        for (uint32_t i = 0; i < kVector<T>; ++i) packed.lanes[i] = from_f32<T>(v[i]);
        *reinterpret_cast<uint4*>(row + col) = packed.bits;
        return;
    }
#pragma unroll
    for (uint32_t i = 0; i < kVector<T>; ++i) {
        if (col + i < d) row[col + i] = from_f32<T>(v[i]);
    }
}

// 2^e for |e| <= 126.
__device__ __forceinline__ float pow2(int e) { return __int_as_float((127 + e) << 23); }

// v 2^e for |e| <= 252, in two exact steps where the result is normal: a single factor can be outside f32's range.
__device__ __forceinline__ float scale_pow2(float v, int e) {
    const int half = e / 2;
    return v * pow2(half) * pow2(e - half);
}

// floor(log2 |v|) of a finite v != 0 given as the bits of |v|.
__device__ __forceinline__ int exponent_of(uint32_t magnitude) {
    const int biased = int(magnitude >> 23);
    return biased > 0 ? biased - 127 : 31 - __clz(magnitude) - 149;
}

constexpr uint32_t kInfinityBits = 0x7f800000u;

__device__ __forceinline__ uint32_t magnitude_bits(float v) { return __float_as_uint(v) & 0x7fffffffu; }
__device__ __forceinline__ float quiet_nan() { return __int_as_float(0x7fc00000); }
