// The products of one stage in f32, on the ordinary arithmetic units.
//
// Every element is the sum, over k-steps of 32 features in ascending order, of one chain of fused multiply-adds per step. A
// single chain over all of d would round against the growing sum every time: for two equal unit rows of 1024 features its
// error passes 1e-6, the sum of steps stays well below. Tensor cores could do f32 by splitting operands into TF32 or bf16
// parts, but they align the products of an instruction to their largest exponent and truncate, so that the error is
// biased and grows with d; f32 inputs are there to be exact.
//
// A thread owns the same 8 x 8 elements as its accumulators in the mma layout. For 4 steps of k it reads 16 vectors of 16
// bytes for 256 multiply-adds: rows of X differ by lane / 4, rows of Y by lane % 4, the rest is broadcast.
#pragma once
#include <stdint.h>

#include "common/mma.cuh"
#include "common/tile_layout.cuh"

__device__ __forceinline__ float4 load_vector(const char* shared) { return *reinterpret_cast<const float4*>(shared); }

template <>
struct TileMath<float> {
    static __device__ __forceinline__ void accumulate(const char* x, const char* y, TileAcc& acc) {
        const uint32_t lane = threadIdx.x & 31;
        const uint32_t warp = threadIdx.x >> 5;
        const uint32_t g = lane >> 2;
        const uint32_t q = lane & 3;
        float part[4][4][4] = {};
        const char* sx = x + ((warp >> 2) * 64 + g) * 128;     // rows g + 8 i, swizzled by g
        const char* sy = y + ((warp & 3) * 32 + 2 * q) * 128;  // rows 8 ni + 2 q + {0, 1}, swizzled by 2 q + {0, 1}
#pragma unroll 1
        for (uint32_t chunk = 0; chunk < 8; ++chunk) {
            float4 b[4][2];
#pragma unroll
            for (int ni = 0; ni < 4; ++ni) {
#pragma unroll
                for (int j = 0; j < 2; ++j) b[ni][j] = load_vector(sy + (8 * ni + j) * 128 + ((chunk ^ (2 * q + j)) * 16));
            }
#pragma unroll
            for (int i = 0; i < 8; ++i) {
                const float4 a = load_vector(sx + 8 * i * 128 + ((chunk ^ g) * 16));
                float(&row)[4][4] = part[i >> 1];
#pragma unroll
                for (int ni = 0; ni < 4; ++ni) {
#pragma unroll
                    for (int j = 0; j < 2; ++j) {
                        float& c = row[ni][(i & 1) * 2 + j];
                        c = fmaf(a.x, b[ni][j].x, c);
                        c = fmaf(a.y, b[ni][j].y, c);
                        c = fmaf(a.z, b[ni][j].z, c);
                        c = fmaf(a.w, b[ni][j].w, c);
                    }
                }
            }
        }
#pragma unroll
        for (int i = 0; i < 8; ++i) {
#pragma unroll
            for (int k = 0; k < 8; ++k) acc[element_at(i, k)] += part[i >> 1][k >> 1][(i & 1) * 2 + (k & 1)];
        }
    }
};
