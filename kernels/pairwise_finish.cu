// pairwise_finish — from the sums of products to the gradients of a pairwise step.
//
//   g_i = sums of products + diagonal_i v_i, v_i the row of the same index of the other matrix
//   dx_i (+)= u (g_i - u_i (u_i . g_i)) / r_i; without normalisation u g_i; exactly 0 for a zero row
//   Report: d_scale and d_bias from the waves' sums of W S and of W, overflow; for SigLIP also loss and counts, for formulas of
//   the user's the sum of W S as the loss.
//
//   own, other (rows, d) T: f32 | f16 | bf16, base and rows aligned to 16 bytes;  out (rows, d) G: T or f32, any stride
//   g (rows, ldg) f32, one or two of them;  diagonal (pairs) f32;  sums (count, 4) f64
//   Outputs must not alias anything.
//
// Work    a block per row of X, then of Y; a thread takes 4 columns at a time. Two passes over a normalised row: for
//         u_i . g_i and for the result; the second one reads rows of more than 1024 columns again.
// Launch  grid = rows of X + rows of Y, block = 32 ceil(d / 128) up to 256.
// Bound   memory: sums and own rows read once from memory, gradients written once.
// Order   u_i . g_i by a fixed tree. Integer atomics alone (overflow). Identical bits between runs and devices.
// Needs   sm_80.
#include <type_traits>

#include "common/numeric.cuh"
#include "common/pairwise_report.cuh"
#include "common/reduce.cuh"

namespace {

constexpr uint32_t kColumns = 4;  // of a thread at a time

// kColumns elements of T in one access.
template <typename T>
union Columns {
    std::conditional_t<sizeof(T) == 4, uint4, uint2> bits;
    T lanes[kColumns];
    __device__ Columns() {}
};

// Columns [col, col + kColumns) of a row as they lie in memory, zeros from column d on; with `aligned` the row starts on a 16-byte
// boundary.
template <typename T>
__device__ __forceinline__ void load_columns(const T* row, uint32_t col, uint32_t d, bool aligned, Columns<T>& v) {
    v.bits = {};
    if (aligned && col + kColumns <= d) {
        v.bits = *reinterpret_cast<const decltype(v.bits)*>(row + col);
        return;
    }
#pragma unroll
    for (uint32_t k = 0; k < kColumns; ++k) {
        if (col + k < d) v.lanes[k] = row[col + k];
    }
}

template <typename T>
__device__ __forceinline__ void store_columns(T* row, uint32_t col, uint32_t d, bool aligned, const T (&v)[kColumns]) {
    if (aligned && col + kColumns <= d) {
        Columns<T> c;
#pragma unroll
        for (uint32_t k = 0; k < kColumns; ++k) c.lanes[k] = v[k];
        *reinterpret_cast<decltype(c.bits)*>(row + col) = c.bits;
        return;
    }
#pragma unroll
    for (uint32_t k = 0; k < kColumns; ++k) {
        if (col + k < d) row[col + k] = v[k];
    }
}

// What a row's terms are multiplied by. Loads first, none of which waits for another one's result.
template <typename T>
struct Finish {
    const PairwiseFinishSide& s;
    const PairwiseFinishParams& p;
    const uint32_t t;
    const bool normalised = s.own_inv != nullptr;
    const float inv = normalised ? s.own_inv[t] : 1.0f;
    const int exponent = normalised ? s.own_exponent[t] : 0;
    const float weight = t < p.pairs ? p.diagonal[t] : 0.0f;
    const float other_inv = t < p.pairs && s.other_inv != nullptr ? s.other_inv[t] : 1.0f;
    const float factor = p.upstream == nullptr ? p.factor : *p.upstream * p.factor;
    const float to_unit = sizeof(T) == 4 ? 1.0f : inv;
    // The products' operands and weights carry the scale of the rows: see pairwise_weights.
    const float from_sums = sizeof(T) == 2 && normalised ? 1.0f / inv : 1.0f;
    const bool paired = weight != 0.0f;
    const float diagonal = paired ? weight * other_inv : 0.0f;

    __device__ __forceinline__ Finish(const PairwiseFinishSide& side, const PairwiseFinishParams& params, uint32_t target)
        : s(side), p(params), t(target) {}

    // Columns [col, col + kColumns) of g_i and, with normalised rows, of u_i.
    __device__ __forceinline__ void columns(uint32_t col, float (&g)[kColumns], float (&u)[kColumns]) const {
        float4 sums[2];
        Columns<T> own, other;
#pragma unroll
        for (int side = 0; side < 2; ++side) {
            // ldg is a multiple of 8 that is at least d.
            if (s.g[side] != nullptr) sums[side] = *reinterpret_cast<const float4*>(s.g[side] + t * p.ldg + col);
        }
        if (normalised) load_columns(static_cast<const T*>(s.own) + t * s.own_ld, col, p.d, true, own);
        if (paired) load_columns(static_cast<const T*>(s.other) + t * s.other_ld, col, p.d, true, other);
#pragma unroll
        for (uint32_t k = 0; k < kColumns; ++k) g[k] = 0.0f;
#pragma unroll
        for (int side = 0; side < 2; ++side) {
            if (s.g[side] == nullptr) continue;
            g[0] += sums[side].x, g[1] += sums[side].y, g[2] += sums[side].z, g[3] += sums[side].w;
        }
#pragma unroll
        for (uint32_t k = 0; k < kColumns; ++k) {
            g[k] = col + k < p.d ? g[k] * from_sums : 0.0f;
            if (paired) g[k] = fmaf(diagonal, to_f32(other.lanes[k]), g[k]);
            if (normalised) u[k] = to_f32(own.lanes[k]) * to_unit;
        }
    }
};

// One step of the block covers a row of up to 1024 columns, which is then still in the registers when it is written.
template <typename T, typename G>
__device__ __forceinline__ void finish_row_of(const PairwiseFinishSide& s, const PairwiseFinishParams& p, uint32_t t,
                                              float* scratch) {
    const Finish<T> f(s, p, t);
    G* out = static_cast<G*>(s.out) + t * s.out_ld;  // (d)
    const bool zero_row = f.normalised && f.inv == 0.0f;
    const uint32_t first = threadIdx.x * kColumns, step = blockDim.x * kColumns;
    float g[kColumns], u[kColumns];
    float radial = 0.0f;
    if (f.normalised) {
        for (uint32_t col = first; col < p.d; col += step) {
            f.columns(col, g, u);
#pragma unroll
            for (uint32_t k = 0; k < kColumns; ++k) radial = fmaf(u[k], g[k], radial);
        }
        radial = block_sum(radial, scratch);
    }
    uint32_t overflow = 0;
    for (uint32_t col = first; col < p.d; col += step) {
        Columns<G> before;
        G rounded[kColumns];
        if (!f.normalised || p.d > step) f.columns(col, g, u);
        if (p.accumulate) load_columns(out, col, p.d, s.out_aligned, before);
#pragma unroll
        for (uint32_t k = 0; k < kColumns; ++k) {
            float v = g[k] * f.factor;
            if (f.normalised) v = zero_row ? 0.0f : scale_pow2((g[k] - u[k] * radial) * f.factor * f.inv, -f.exponent);
            if (p.accumulate) v += to_f32(before.lanes[k]);
            rounded[k] = from_f32<G>(v);
            const bool infinite = magnitude_bits(to_f32(rounded[k])) == kInfinityBits && magnitude_bits(v) < kInfinityBits;
            if (sizeof(G) == 2 && infinite && col + k < p.d) ++overflow;
        }
        store_columns(out, col, p.d, s.out_aligned, rounded);
    }
    if (sizeof(G) == 2 && overflow > 0) {
        for (uint32_t part = 0; part <= p.more_reports; ++part) atomicAdd(&p.report[part].overflow, overflow);
    }
}

__device__ __forceinline__ double upstream_of(const PairwiseFinishParams& p) {
    return double(p.factor) * (p.upstream == nullptr ? 1.0 : double(*p.upstream));
}

// What the report needs of W: the first warp of the grid adds up the waves' sums.
__device__ __forceinline__ void finish_report(const PairwiseFinishParams& p) {
    if (blockIdx.x != 0 || warp_id() != 0 || p.sums_count == 0) return;
    report_sums(*p.report, p.sums, p.sums_count, upstream_of(p), p.per_scale, p.per_bias, p.row_flags, p.n, p.col_flags, p.m,
                p.counts, p.of_weights != 0);
}

template <typename T, typename G>
__device__ __forceinline__ void finish_body(const PairwiseFinishParams& p) {
    __shared__ float scratch[kPairFinish / kWarpSize];
    finish_report(p);
    const bool of_x = blockIdx.x < p.x.rows;
    finish_row_of<T, G>(of_x ? p.x : p.y, p, of_x ? blockIdx.x : blockIdx.x - p.x.rows, scratch);
}

}  // namespace

#define FINISH(SUFFIX, T, G)                                                            \
    extern "C" __global__ void __launch_bounds__(kPairFinish)                            \
        pairwise_finish_##SUFFIX(const __grid_constant__ PairwiseFinishParams p) {       \
        finish_body<T, G>(p);                                                           \
    }
FINISH(f32_f32, float, float)
FINISH(f16_f16, __half, __half)
FINISH(f16_f32, __half, float)
FINISH(bf16_bf16, __nv_bfloat16, __nv_bfloat16)
FINISH(bf16_f32, __nv_bfloat16, float)
