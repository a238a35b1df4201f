// split: rows of f32 as rows of bf16 in three parts, of which one product of bf16 operands is the product of the f32 ones but
// for about 2^-16 of it.
//
//   s = x_i 2^-e_i, hi = bf16(s), lo = bf16(s - hi)   element by element
//   X'_i = [lo | hi* | hi],  Y'_j = [hi* | lo | hi]   parts of D' = ceil(d / 8) 8 elements, zeros from d on
//   X'_i . Y'_j = lo_x.hi_y + hi_x.lo_y + hi_x.hi_y  =  s_x.s_y - (lo_x.lo_y and what lo is rounded by)
//   x_i . y_j  ~  X'_i . Y'_j inv_x[i] inv_y[j]
//
//   kSplitNorm    e_i = floor(log2 max_k |x_ik|), inv[i] = 1 / (r_i 2^-e_i); 0 for a zero row, NaN for a row with a NaN or Inf
//   kSplitNeeded  e_i = 0, but -64 for rows so small that bf16 cannot hold their parts, 1 for those that could round to
//                 infinity; inv[i] = 2^e_i
//   kSplitAsIs    e_i = 0; no inv
//   X', Y'  (rows, 3 D')   bf16;  inv  f32
//   hi* is hi, and 0 where it is not finite: an Inf or NaN meets the other row once, as it does in f32, and no 0 of a lo.
//   For the same reason hi is never 0 or Inf where x is not: that would make NaN of Inf . x.
//
// Order   the small products come first, so that they are added while the sum is small: the roundings of the accumulator are those
//         of one product of d features, not of 3 d.
// Work    one warp per row, 8 rows at a time per block; row i of X and row i of Y by the same warp.
// Launch  grid = min(ceil(rows / 8), 1024), by the shape alone; block = 256, no dynamic shared memory.
// Bound   memory: one read of the inputs (rows are re-read from the cache), one write of 6 bytes per element.
// Needs   sm_80.
#include "common/row.cuh"
#include "params/row_norms.h"

namespace {

constexpr uint32_t kBlocks = 6;  // on a multiprocessor: 48 warps hide the latency, and no register has to be spilled
enum Scaling : uint32_t { kSplitNeeded = 0, kSplitNorm = 1, kSplitAsIs = 2 };  // PrepareParams::normalize, here
constexpr uint32_t kSmallestNormal = 0x00800000u;
constexpr uint32_t kLargestBf16 = 0x7f7f0000u;

struct Parts {
    float hi;
    float lo;
};

// The bits of both are those of bf16 numbers. `nonzero`: whether `v` was before it was scaled, which may have made it 0.
__device__ __forceinline__ Parts split(float v, bool nonzero) {
    const uint32_t sign = __float_as_uint(v) & 0x80000000u;
    float hi = to_f32(__float2bfloat16_rn(v));
    if (magnitude_bits(v) >= kInfinityBits) return {hi, 0.0f};
    if (magnitude_bits(hi) >= kInfinityBits) hi = __uint_as_float(sign | kLargestBf16);
    if (nonzero && magnitude_bits(v) < kSmallestNormal) hi = __uint_as_float(sign | kSmallestNormal);
    return {hi, to_f32(__float2bfloat16_rn(v - hi))};
}

// Of a row that is not normalised and whose largest magnitude is in [2^exponent, 2^(exponent + 1)).
__device__ __forceinline__ int shift_of(int exponent) { return exponent < -80 ? -64 : exponent > 126 ? 1 : 0; }

using Four = float[kVector<float>];

__device__ __forceinline__ void store_four(__nv_bfloat16* to, const Four& v) {
    const __nv_bfloat162 a = __floats2bfloat162_rn(v[0], v[1]), b = __floats2bfloat162_rn(v[2], v[3]);
    *reinterpret_cast<uint2*>(to) = make_uint2(*reinterpret_cast<const uint32_t*>(&a), *reinterpret_cast<const uint32_t*>(&b));
}

// Splits row i of one side. `low_first`: X', otherwise Y'.
__device__ __forceinline__ void split_row(const PrepareSide& s, uint32_t i, uint32_t d, uint32_t scaling, bool low_first) {
    const uint32_t matrix = i / s.rows;
    const float* x = static_cast<const float*>(s.src) + matrix * s.batch_stride + (i - matrix * s.rows) * s.ld;  // (d)
    int shift = 0;
    if (scaling != kSplitAsIs) {
        const RowNorm r = measure_row(x, d, s.aligned);
        shift = scaling == kSplitNorm ? r.exponent : shift_of(r.exponent);
        if (lane_id() == 0) s.inv[i] = scaling == kSplitNorm ? r.inverse : pow2(shift);
    }
    __nv_bfloat16* const out = static_cast<__nv_bfloat16*>(s.staged) + i * s.staged_ld;  // (3, depth)
    const uint32_t depth = uint32_t(s.staged_ld) / 3;
    for (uint32_t col = lane_id() * kVector<float>; col < depth; col += kWarpSize * kVector<float>) {
        Four v, hi, finite, lo;
        load_vector(x, col, d, s.aligned, v);
#pragma unroll
        for (uint32_t k = 0; k < kVector<float>; ++k) {
            const Parts parts = split(scale_pow2(v[k], -shift), v[k] != 0.0f);
            hi[k] = parts.hi;
            lo[k] = parts.lo;
            finite[k] = magnitude_bits(parts.hi) < kInfinityBits ? parts.hi : 0.0f;
        }
        store_four(out + (low_first ? 0 : depth) + col, lo);
        store_four(out + (low_first ? depth : 0) + col, finite);
        store_four(out + 2 * depth + col, hi);
    }
}

}  // namespace

extern "C" __global__ void __launch_bounds__(kRowThreads, kBlocks) split_f32(const __grid_constant__ PrepareParams p) {
    const uint32_t count = max(p.x.count, p.y.count), step = gridDim.x * kRowsPerBlock;
    for (uint64_t row = blockIdx.x * kRowsPerBlock + warp_id(); row < count; row += step) {
        const uint32_t i = uint32_t(row);
        if (i < p.x.count) split_row(p.x, i, p.d, p.normalize, true);
        if (i < p.y.count) split_row(p.y, i, p.d, p.normalize, false);
    }
}
