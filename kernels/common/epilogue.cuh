// What a thread holds of a tile, and what all epilogues do with it first.
//
// A thread owns 8 rows and 8 columns of the tile, and the 64 elements where they cross:
//   row i of 8     warp_row * 64 + 8 i + lane / 4
//   column k of 8  warp_col * 32 + 8 (k / 2) + 2 (lane % 4) + k % 2
#pragma once
#include <stdint.h>

#include "common/tile.cuh"

struct TileThread {
    uint32_t first_row;  // row 0 of 8
    uint32_t first_col;  // column 0 of 8
    __device__ __forceinline__ TileThread()
        : first_row((threadIdx.x >> 7) * 64 + ((threadIdx.x & 31) >> 2)),
          first_col(((threadIdx.x >> 5) & 3) * 32 + (threadIdx.x & 3) * 2) {}
    __device__ __forceinline__ uint32_t row(int i) const { return first_row + 8 * i; }
    __device__ __forceinline__ uint32_t col(int k) const { return first_col + 8 * (k >> 1) + (k & 1); }
};

// Element (row i, column k) of a thread.
__device__ __forceinline__ float& element(float (&acc)[4][4][4], int i, int k) {
    return acc[i >> 1][k >> 1][(i & 1) * 2 + (k & 1)];
}
__device__ __forceinline__ float element(const float (&acc)[4][4][4], int i, int k) {
    return acc[i >> 1][k >> 1][(i & 1) * 2 + (k & 1)];
}

__device__ __forceinline__ void clear_tile(float (&acc)[4][4][4]) {
#pragma unroll
    for (int e = 0; e < 64; ++e) acc[e >> 4][(e >> 2) & 3][e & 3] = 0.0f;
}

// S = acc * inv_x[row] * inv_y[col], in this order everywhere. A missing factor is 1, which changes no bits.
__device__ __forceinline__ void scale_tile(float (&acc)[4][4][4], const TileThread& t, const float* inv_x,
                                           const float* inv_y, uint32_t row0, uint32_t col0, uint32_t n, uint32_t m) {
    if (inv_x != nullptr) {
#pragma unroll
        for (int i = 0; i < 8; ++i) {
            const uint32_t row = row0 + t.row(i);
            const float f = row < n ? __ldg(inv_x + row) : 1.0f;
#pragma unroll
            for (int k = 0; k < 8; ++k) element(acc, i, k) *= f;
        }
    }
    if (inv_y != nullptr) {
#pragma unroll
        for (int k = 0; k < 8; ++k) {
            const uint32_t col = col0 + t.col(k);
            const float f = col < m ? __ldg(inv_y + col) : 1.0f;
#pragma unroll
            for (int i = 0; i < 8; ++i) element(acc, i, k) *= f;
        }
    }
}

__device__ __forceinline__ float exchange(float v, int partner) { return __shfl_xor_sync(~0u, v, partner); }
__device__ __forceinline__ uint32_t exchange(uint32_t v, int partner) { return __shfl_xor_sync(~0u, v, partner); }

// One step of a halving butterfly: of the pairs (2 h, 2 h + 1) of v[0 .. 2 kHalf), lanes with `bit` clear keep the even
// and the others the odd one, joined with the partner's. Textually unrolled: a loop over the steps would index v by a
// run-time value and send it to local memory.
template <int kHalf, typename V, typename Join>
__device__ __forceinline__ void halve(V* v, bool bit, int partner, Join join) {
#pragma unroll
    for (int h = 0; h < kHalf; ++h) {
        const V keep = bit ? v[2 * h + 1] : v[2 * h];
        const V give = bit ? v[2 * h] : v[2 * h + 1];
        v[h] = join(keep, exchange(give, partner));
    }
}

// Joins the 8 values of a row-wise quantity over the 4 lanes that share the rows. On return v[h], h of 2, belongs to row
// i = 4 h + lane % 4 of 8, that is to row warp_row * 64 + 32 h + joined_row().
template <typename V, typename Join>
__device__ __forceinline__ void join_rows(V (&v)[8], Join join) {
    halve<4>(v, threadIdx.x & 1, 1, join);
    halve<2>(v, threadIdx.x & 2, 2, join);
}
// Place among 32 rows after join_rows(): a permutation of the lanes, so storing by it meets no bank conflict.
__device__ __forceinline__ uint32_t joined_row() { return (threadIdx.x & 3) * 8 + ((threadIdx.x & 31) >> 2); }

// The same for the 8 lanes that share the columns. On return v[0] belongs to column warp_col * 32 + joined_col().
template <typename V, typename Join>
__device__ __forceinline__ void join_cols(V (&v)[8], Join join) {
    halve<4>(v, threadIdx.x & 4, 4, join);
    halve<2>(v, threadIdx.x & 8, 8, join);
    halve<1>(v, threadIdx.x & 16, 16, join);
}
__device__ __forceinline__ uint32_t joined_col() {
    const uint32_t k = (threadIdx.x & 31) >> 2;
    return (k >> 1) * 8 + (threadIdx.x & 3) * 2 + (k & 1);
}
