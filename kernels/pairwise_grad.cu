// pairwise_grad — the two products of a wave: gradients with respect to the rows as the similarities see them.
//
//   gx[first + i] = sum_j w[i, j] y_j        for the wave's rows i
//   gy[j]     (+)= sum_i w[i, j] x_(first+i)  for all columns j; waves follow each other in the stream, so in fixed order
//
//   w (wave rows, ldw)   bf16, or f32 for f32 operands; whole tiles, zeros outside
//   x (n, d), y (m, d)   T: f32 | f16 | bf16, row-major, base and rows aligned to 16 bytes; f16 as the sum of two bf16, exactly
//   skip_x (n), skip_y (m)  u8 or null: rows that count as zeros, whatever they hold
//   gx (n, ldg), gy (m, ldg)  f32.  No output may alias an input or another output.
//
// Work    a block makes one 128 x 128 tile of gx or of gy; tiles of gx come first, their sums are the longer ones, and the
//         tiles of one row of tiles next to each other, since they share their part of w.
// Launch  grid = (wave row tiles + column tiles) ceil(d / 128), block = 256, 98,304 bytes of dynamic shared memory.
// Shared  3 stages of 2 x 16 KiB. The operand with k innermost (w of gx) has 128 rows of 128 bytes, chunk c of row r at
//         c ^ (r & 7) (16-bit) or c ^ (r >> 2 & 7) (f32); the others have rows of 128 elements per k, chunk c at
//         c ^ (k & 7) (16-bit) or c (f32). Neither reads nor writes meet a bank conflict.
// Bound   tensor cores (f32: FMA), 4 n m d over all waves; f16: 8 n m d.
// Order   k ascending; f32: per 64 or 32 bytes of k one chain of fused multiply-adds, then their sum (common/simt.cuh).
// Needs   sm_80.
#include "common/numeric.cuh"
#include "common/tile.cuh"
#include "params/pairwise.h"

namespace {

// Four transposed 8 x 8 matrices; otherwise as load_matrices().
__device__ __forceinline__ void load_transposed(uint32_t (&r)[4], uint32_t shared) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared)
                 : "memory");
}

// Two pairs of bf16 whose sums are a pair of f16, exactly: 11 bits are 8 and 3.
__device__ __forceinline__ void split_f16(uint32_t& two, uint32_t& rest) {
    const float2 v = __half22float2(reinterpret_cast<const __half2&>(two));
    const __nv_bfloat162 high = __floats2bfloat162_rn(v.x, v.y);
    const __nv_bfloat162 low = __floats2bfloat162_rn(v.x - __low2float(high), v.y - __high2float(high));
    two = reinterpret_cast<const uint32_t&>(high);
    rest = reinterpret_cast<const uint32_t&>(low);
}

// Elements of k per step, and the swizzle of the operand with k innermost.
template <typename T>
constexpr uint32_t kDepth = kRowBytes / sizeof(T);
template <typename T>
__device__ __forceinline__ uint32_t deep_chunk(uint32_t row, uint32_t chunk) {
    return chunk ^ ((sizeof(T) == 4 ? row >> 2 : row) & 7);
}
// 16-byte chunks of a row of the operand with k outermost, and its swizzle.
template <typename T>
constexpr uint32_t kWideChunks = kTile * sizeof(T) / 16;
template <typename T>
__device__ __forceinline__ uint32_t wide_chunk(uint32_t k, uint32_t chunk) {
    return sizeof(T) == 4 ? chunk : chunk ^ (k & 7);
}

// One operand's loads. `limit` rows of k and `bytes` of each row exist, counted from `from`.
template <typename T>
struct Wide {
    const char* from;
    int64_t row_bytes;
    const uint8_t* skip;
    uint32_t limit;
    int32_t bytes;

    __device__ __forceinline__ void load(uint32_t shared, uint32_t k0) const {
        constexpr uint32_t kRows = kTileThreads / kWideChunks<T>;
        const uint32_t chunk = threadIdx.x % kWideChunks<T>, first = threadIdx.x / kWideChunks<T>;
        const uint32_t present = uint32_t(min(max(bytes - int32_t(chunk * 16), 0), 16));
#pragma unroll
        for (uint32_t i = 0; i < 4; ++i) {
            const uint32_t k = first + i * kRows, row = k0 + k;
            const bool there = row < limit && (skip == nullptr || __ldg(skip + row) == 0);
            copy_chunk_async(shared + k * kWideChunks<T> * 16 + wide_chunk<T>(k, chunk) * 16,
                             from + int64_t(row) * row_bytes + chunk * 16, there ? present : 0);
        }
    }
};

template <typename T>
struct Deep {
    const char* from;
    int64_t row_bytes;

    __device__ __forceinline__ void load(uint32_t shared, uint32_t k0) const {
        const uint32_t chunk = threadIdx.x % kRowChunks, first = threadIdx.x / kRowChunks;
#pragma unroll
        for (uint32_t i = 0; i < 4; ++i) {
            const uint32_t row = first + i * 32;
            copy_chunk_async(shared + row * kRowBytes + deep_chunk<T>(row, chunk) * 16,
                             from + int64_t(row) * row_bytes + int64_t(k0) * sizeof(T) + chunk * 16, 16);
        }
    }
};

// acc += A B of one stage; B has k outermost, A too if kTransposed.
template <typename T, bool kTransposed>
struct StageMath {
    static __device__ __forceinline__ void accumulate(uint32_t a_base, uint32_t b_base, float (&acc)[64]) {
        const uint32_t lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
        const uint32_t swizzle = lane & 7;
        const uint32_t row0 = (warp >> 2) * 64, col0 = (warp & 3) * 32;
#pragma unroll
        for (uint32_t k16 = 0; k16 < 4; ++k16) {
            uint32_t a[4][4], b[2][4], rest[2][4];
#pragma unroll
            for (uint32_t mi = 0; mi < 4; ++mi) {
                if (kTransposed) {
                    const uint32_t k = k16 * 16 + (lane >> 4) * 8 + swizzle;
                    const uint32_t chunk = (row0 + mi * 16) / 8 + (lane >> 3 & 1);
                    load_transposed(a[mi], a_base + k * 256 + (chunk ^ swizzle) * 16);
                } else {
                    const uint32_t row = row0 + mi * 16 + (lane & 15);
                    load_matrices(a[mi], a_base + row * kRowBytes + ((k16 * 2 + (lane >> 4)) ^ swizzle) * 16);
                }
            }
#pragma unroll
            for (uint32_t nj = 0; nj < 2; ++nj) {
                const uint32_t k = k16 * 16 + (lane >> 3 & 1) * 8 + swizzle;
                const uint32_t chunk = (col0 + nj * 16) / 8 + (lane >> 4);
                load_transposed(b[nj], b_base + k * 256 + (chunk ^ swizzle) * 16);
                if (__is_same(T, __half)) {
#pragma unroll
                    for (int e = 0; e < 4; ++e) split_f16(b[nj][e], rest[nj][e]);
                }
            }
            multiply(acc, a, b);
            if (__is_same(T, __half)) multiply(acc, a, rest);
        }
    }
    static __device__ __forceinline__ void multiply(float (&acc)[64], const uint32_t (&a)[4][4], const uint32_t (&b)[2][4]) {
#pragma unroll
        for (uint32_t mi = 0; mi < 4; ++mi) {
#pragma unroll
            for (uint32_t ni = 0; ni < 4; ++ni) {
                float(&c)[4] = reinterpret_cast<float(&)[4]>(acc[(mi * 4 + ni) * 4]);
                mma_m16n8k16<__nv_bfloat16>(c, a[mi], b[ni >> 1][2 * (ni & 1)], b[ni >> 1][2 * (ni & 1) + 1]);
            }
        }
    }
    // Row and column in the tile of element pair e of 32: elements 2 e and 2 e + 1 are beside each other.
    static __device__ __forceinline__ uint32_t row(uint32_t e) {
        return (threadIdx.x >> 7) * 64 + (e >> 3) * 16 + (e & 1) * 8 + (threadIdx.x & 31) / 4;
    }
    static __device__ __forceinline__ uint32_t col(uint32_t e) {
        return (threadIdx.x >> 5 & 3) * 32 + (e >> 1 & 3) * 8 + (threadIdx.x & 3) * 2;
    }
};

// A thread owns rows 32 (i / 4) + 4 g + i % 4 and columns 16 (k / 4) + 4 q + k % 4 of its warp's 64 x 32.
template <bool kTransposed>
struct StageMath<float, kTransposed> {
    static __device__ __forceinline__ float4 read(uint32_t shared) {
        float4 v;
        asm volatile("ld.shared.v4.f32 {%0, %1, %2, %3}, [%4];"
                     : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w)
                     : "r"(shared)
                     : "memory");
        return v;
    }
    static __device__ __forceinline__ void accumulate(uint32_t a_base, uint32_t b_base, float (&acc)[64]) {
        const uint32_t lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
        const uint32_t g = lane >> 2, q = lane & 3;
        const uint32_t row0 = (warp >> 2) * 64 + 4 * g, col0 = (warp & 3) * 32 + 4 * q;
        float part[64] = {};
#pragma unroll 1
        for (uint32_t k4 = 0; k4 < kDepth<float>; k4 += 4) {
            float b[4][8];
#pragma unroll
            for (uint32_t k = 0; k < 4; ++k) {
#pragma unroll
                for (uint32_t h = 0; h < 2; ++h) {
                    const float4 v = read(b_base + (k4 + k) * 512 + (col0 + 16 * h) * 4);
                    b[k][4 * h] = v.x, b[k][4 * h + 1] = v.y, b[k][4 * h + 2] = v.z, b[k][4 * h + 3] = v.w;
                }
            }
            // Four values of k of a row, or four rows at one k: either way four rows' worth of 4 values of k.
#pragma unroll
            for (uint32_t h = 0; h < 2; ++h) {
                float a[4][4];  // [k][row]
#pragma unroll
                for (uint32_t e = 0; e < 4; ++e) {
                    if (kTransposed) {
                        const float4 v = read(a_base + (k4 + e) * 512 + (row0 + 32 * h) * 4);
                        a[e][0] = v.x, a[e][1] = v.y, a[e][2] = v.z, a[e][3] = v.w;
                    } else {
                        const uint32_t row = row0 + 32 * h + e;
                        const float4 v = read(a_base + row * kRowBytes + deep_chunk<float>(row, k4 / 4) * 16);
                        a[0][e] = v.x, a[1][e] = v.y, a[2][e] = v.z, a[3][e] = v.w;
                    }
                }
#pragma unroll
                for (uint32_t k = 0; k < 4; ++k) {
#pragma unroll
                    for (uint32_t i = 0; i < 4; ++i) {
#pragma unroll
                        for (uint32_t c = 0; c < 8; ++c) {
                            float& sum = part[(4 * h + i) * 8 + c];
                            sum = fmaf(a[k][i], b[k][c], sum);
                        }
                    }
                }
            }
        }
#pragma unroll
        for (int e = 0; e < 64; ++e) acc[e] += part[e];
    }
    static __device__ __forceinline__ uint32_t row(uint32_t e) {
        const uint32_t i = e >> 2;
        return (threadIdx.x >> 7) * 64 + 32 * (i >> 2) + ((threadIdx.x & 31) >> 2) * 4 + (i & 3);
    }
    static __device__ __forceinline__ uint32_t col(uint32_t e) {
        const uint32_t k = 2 * (e & 3);
        return (threadIdx.x >> 5 & 3) * 32 + 16 * (k >> 2) + (threadIdx.x & 3) * 4 + (k & 3);
    }
};

template <typename T, bool kTransposed, typename A>
__device__ __forceinline__ void product(char* stages, const A& a, const Wide<T>& b, uint32_t depth, float (&acc)[64]) {
    const uint32_t base = uint32_t(__cvta_generic_to_shared(stages));
    const auto load = [&](uint32_t stage, uint32_t k0) {
        if (k0 < depth) {
            a.load(base + stage * kStageBytes, k0);
            b.load(base + stage * kStageBytes + kOperandBytes, k0);
        }
        commit_copies();  // an empty group behind the end keeps the count of groups right
    };
#pragma unroll
    for (uint32_t s = 0; s < kStages - 1; ++s) load(s, s * kDepth<T>);
    uint32_t stage = 0;
    for (uint32_t k0 = 0; k0 < depth; k0 += kDepth<T>) {
        wait_copies<kStages - 2>();
        __syncthreads();  // this step's data has arrived from all threads, and nobody reads the last step's stage
        load(stage == 0 ? kStages - 1 : stage - 1, k0 + (kStages - 1) * kDepth<T>);
        const uint32_t at = base + stage * kStageBytes;
        StageMath<T, kTransposed>::accumulate(at, at + kOperandBytes, acc);
        stage = stage == kStages - 1 ? 0 : stage + 1;
    }
}

// Writes or adds the tile's rows below `rows` and columns below `cols`, an even number.
template <typename T>
__device__ __forceinline__ void store_tile(const float (&acc)[64], float* out, int64_t ld, uint32_t rows, uint32_t cols,
                                           bool accumulate) {
#pragma unroll
    for (uint32_t e = 0; e < 32; ++e) {
        const uint32_t row = StageMath<T, false>::row(e), col = StageMath<T, false>::col(e);
        if (row >= rows || col >= cols) continue;
        float2* to = reinterpret_cast<float2*>(out + row * ld + col);
        float2 v = make_float2(acc[2 * e], acc[2 * e + 1]);
        if (accumulate) {
            const float2 before = *to;
            v = make_float2(before.x + v.x, before.y + v.y);
        }
        *to = v;
    }
}

template <typename T>
__device__ __forceinline__ void grad_body(const PairwiseGradParams& p) {
    extern __shared__ __align__(128) char stages[];
    constexpr int64_t kSizeW = sizeof(T);  // w is as wide as the operands
    const uint32_t across = tiles_of(p.d), wave = p.end_tile - p.first_tile;
    const uint32_t c = blockIdx.x % across * kTile, tile = blockIdx.x / across;
    const int32_t bytes = int32_t(min(p.d - c, uint32_t(kTile)) * sizeof(T));
    const uint32_t cols = min(uint32_t(p.ldg) - c, uint32_t(kTile));
    const uint32_t first = p.first_tile * kTile;
    const char* w = static_cast<const char*>(p.w);
    float acc[64] = {};
    if (tile < wave) {
        const Deep<T> a{w + int64_t(tile) * kTile * p.ldw * kSizeW, p.ldw * kSizeW};
        const Wide<T> b{static_cast<const char*>(p.y) + c * sizeof(T), p.ldy * int64_t(sizeof(T)), p.skip_y, p.m, bytes};
        product<T, false>(stages, a, b, p.m, acc);
        const uint32_t r = first + tile * kTile;
        store_tile<T>(acc, p.gx + r * p.ldg + c, p.ldg, p.n - r, cols, false);
    } else {
        const uint32_t r = (tile - wave) * kTile;
        const Wide<T> a{w + r * kSizeW, p.ldw * kSizeW, nullptr, wave * kTile, kTile * int32_t(kSizeW)};
        const Wide<T> b{static_cast<const char*>(p.x) + first * (p.ldx * int64_t(sizeof(T))) + c * sizeof(T),
                        p.ldx * int64_t(sizeof(T)), p.skip_x == nullptr ? nullptr : p.skip_x + first, p.n - first, bytes};
        product<T, true>(stages, a, b, wave * kTile, acc);
        store_tile<T>(acc, p.gy + r * p.ldg + c, p.ldg, p.m - r, cols, p.accumulate);
    }
}

}  // namespace

#define GRAD(SUFFIX, T, BLOCKS)                                                                                    \
    extern "C" __global__ void __launch_bounds__(kTileThreads, BLOCKS)                                             \
        pairwise_grad_##SUFFIX(const __grid_constant__ PairwiseGradParams p) {                                     \
        grad_body<T>(p);                                                                                          \
    }
GRAD(f32, float, 1)
GRAD(f16, __half, 1)
GRAD(bf16, __nv_bfloat16, kTileBlocks)
