// The products of one stage on tensor cores: f16 and bf16, accumulated in f32.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <stdint.h>

#include "common/tile_layout.cuh"

// accumulate(x, y, acc): acc += the stage's products; x and y are 128 swizzled rows of 128 bytes (tile.cuh).
template <typename T>
struct TileMath;

// Four 8 x 8 matrices of 16-bit elements; lane l gives the address of row l & 7 of matrix l >> 3.
__device__ __forceinline__ void load_matrices(uint32_t (&r)[4], uint32_t shared) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared)
                 : "memory");
}

template <typename T>
__device__ __forceinline__ void mma_m16n8k16(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1);

template <>
__device__ __forceinline__ void mma_m16n8k16<__half>(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
                 "{%0, %1, %2, %3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

template <>
__device__ __forceinline__ void mma_m16n8k16<__nv_bfloat16>(float (&c)[4], const uint32_t (&a)[4], uint32_t b0,
                                                            uint32_t b1) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
                 "{%0, %1, %2, %3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

template <typename T>
struct TileMath16 {
    static __device__ __forceinline__ void accumulate(const char* x, const char* y, TileAcc& acc) {
        const uint32_t lane = threadIdx.x & 31;
        const uint32_t warp = threadIdx.x >> 5;
        const uint32_t swizzle = lane & 7;  // all rows below are multiples of 8 plus this
        // A: matrices are (rows 0-7, k 0-7), (rows 8-15, k 0-7), then k 8-15. B: (cols 0-7, k 0-7), (cols 0-7, k 8-15),
        // then cols 8-15; rows of Y are columns of B, so that neither needs a transpose.
        const uint32_t a_row = (warp >> 2) * 64 + (lane & 15);
        const uint32_t a_chunk = lane >> 4;
        const uint32_t b_row = (warp & 3) * 32 + (lane >> 4) * 8 + (lane & 7);
        const uint32_t b_chunk = (lane >> 3) & 1;
        // Chunk 2 k16 + {0, 1} of a row, swizzled, is the chunk of k16 = 0 with two address bits flipped: rows start at
        // multiples of 128 bytes.
        const uint32_t sx = uint32_t(__cvta_generic_to_shared(x)) + a_row * 128 + (a_chunk ^ swizzle) * 16;
        const uint32_t sy = uint32_t(__cvta_generic_to_shared(y)) + b_row * 128 + (b_chunk ^ swizzle) * 16;
#pragma unroll
        for (uint32_t k16 = 0; k16 < 4; ++k16) {
            uint32_t a[4][4];
            uint32_t b[2][4];
#pragma unroll
            for (int mi = 0; mi < 4; ++mi) load_matrices(a[mi], (sx ^ (k16 * 32)) + mi * 16 * 128);
#pragma unroll
            for (int nj = 0; nj < 2; ++nj) load_matrices(b[nj], (sy ^ (k16 * 32)) + nj * 16 * 128);
#pragma unroll
            for (int mi = 0; mi < 4; ++mi) {
#pragma unroll
                for (int ni = 0; ni < 4; ++ni) {
                    float(&c)[4] = reinterpret_cast<float(&)[4]>(acc[element_at(2 * mi, 2 * ni)]);
                    mma_m16n8k16<T>(c, a[mi], b[ni >> 1][2 * (ni & 1)], b[ni >> 1][2 * (ni & 1) + 1]);
                }
            }
        }
    }
};

template <>
struct TileMath<__half> : TileMath16<__half> {};
template <>
struct TileMath<__nv_bfloat16> : TileMath16<__nv_bfloat16> {};
