// row_norms: Euclidean norms of rows, normalisation, its Jacobian, and the operands of the tile kernels.
//
//   r_i = ||x_i||_2                                            (eq. 1, docs/maths.md)
//   row_norms_*           norms[i] = r_i (NaN for a row with a NaN, else Inf for one with an Inf), unit[i] = x_i / r_i; a zero
//                         row stays 0, a row with a NaN or Inf becomes NaN throughout
//   normalize_backward_*  dx_i (+)= (g_i - u_i (u_i . g_i)) / r_i with u_i = x_i / r_i; exactly 0 for a zero row
//   prepare_*             what the tile kernels and the gather read, of X and of Y in one launch:
//     inv[i]       1 / (r_i 2^-exponent[i]); 0 for a zero row, NaN for a row with a NaN or Inf
//     exponent[i]  floor(log2 max_k |x_ik|) for f32 and bf16, 0 for f16
//     staged       without normalisation a copy of x; with it u (f32), x 2^-exponent, exact (bf16), or x (f16), so that
//                  staged (f32) or inv staged (16-bit) is the normalised row
//     pmin[b]      smallest similarity of the pairs of block b, NaN ignored, Inf without one
//     zeroed, cleared   words that later kernels count in
//
//   x, y   (rows, d) or a batch of them   T: f32 | f16 | bf16, any row stride, aligned to an element
//   unit, staged   T;  norms, inv, pmin, g   f32;  exponent   i32;  dx   G: T or f32
//   Outputs must not alias anything.
//
// Work    one warp per row, 8 rows at a time per block; prepare_*: row i of X and row i of Y by the same warp, which keeps both
//         in registers up to 1024 columns: of three passes only the first one reads them.
// Launch  grid = min(ceil(rows / 8), 1024), by the shape alone; block = 256, no dynamic shared memory.
// Bound   memory: one read of the inputs (longer rows are re-read from the cache), one write of the outputs.
// Order   elements go to lanes by column, then a fixed tree. Neither alignment nor device changes a bit.
// Needs   sm_80.
#include "common/row.cuh"
#include "params/row_norms.h"

namespace {

constexpr uint32_t kBlocks = 6;  // on a multiprocessor: 48 warps hide the latency, and no register has to be spilled
template <typename T>
constexpr uint32_t kPrepareBlocks = sizeof(T) == 4 ? 2 : 3;  // fewer warps, each with two rows in registers

__device__ __forceinline__ float pos_infinity() { return __int_as_float(0x7f800000); }

// Calls visit(row) for the rows of this warp.
template <typename Visit>
__device__ __forceinline__ void for_each_row(uint32_t rows, Visit visit) {
    const uint32_t step = gridDim.x * kRowsPerBlock;
    for (uint64_t row = blockIdx.x * kRowsPerBlock + warp_id(); row < rows; row += step) visit(uint32_t(row));
}

template <typename T>
__device__ __forceinline__ void row_norms_body(const RowNormsParams& p) {
    for_each_row(p.rows, [&](uint32_t i) {
        const T* x = static_cast<const T*>(p.x) + i * p.ldx;  // (d)
        const bool aligned = p.aligned & 1;
        const RowNorm r = measure_row(x, p.d, aligned);
        if (p.norms != nullptr && lane_id() == 0) p.norms[i] = scale_pow2(r.norm, r.exponent);
        if (p.unit == nullptr) return;
        T* unit = static_cast<T*>(p.unit) + i * p.ld_unit;  // (d)
        for_each_vector(x, p.d, aligned, [&](uint32_t col, float(&v)[kVector<T>]) {
#pragma unroll
            for (uint32_t k = 0; k < kVector<T>; ++k) v[k] = unit_element<T>(v[k], r);
            store_vector(unit, col, p.d, p.aligned & 2, v);
        });
    });
}

template <typename T, typename G>
__device__ __forceinline__ void normalize_backward_body(const NormalizeBackwardParams& p) {
    for_each_row(p.rows, [&](uint32_t i) {
        const T* x = static_cast<const T*>(p.x) + i * p.ldx;  // (d)
        const float* g = p.grad + i * p.ld_grad;              // (d)
        G* dx = static_cast<G*>(p.dx) + i * p.ld_dx;          // (d)
        const bool aligned = p.aligned & 1;
        const RowNorm r = measure_row(x, p.d, aligned);
        const float inv = r.inverse;
        const auto unit = [&](float v) { return scale_pow2(v, -r.exponent) * inv; };
        float radial = 0.0f;
        for_each_vector(x, p.d, aligned, [&](uint32_t col, const float(&v)[kVector<T>]) {
#pragma unroll
            for (uint32_t k = 0; k < kVector<T>; ++k) {
                if (col + k < p.d) radial = fmaf(unit(v[k]), g[col + k], radial);
            }
        });
        radial = warp_sum(radial);
        for_each_vector(x, p.d, aligned, [&](uint32_t col, const float(&v)[kVector<T>]) {
#pragma unroll
            for (uint32_t k = 0; k < kVector<T>; ++k) {
                if (col + k >= p.d) continue;
                const float tangent = g[col + k] - unit(v[k]) * radial;
                float out = r.is_zero() ? 0.0f : scale_pow2(tangent * inv, -r.exponent);
                if (p.accumulate) out += to_f32(dx[col + k]);
                dx[col + k] = from_f32<G>(out);
            }
        });
    });
}

template <typename T>
__device__ __forceinline__ const T* source_row(const PrepareSide& s, uint32_t i) {
    const uint32_t matrix = i / s.rows;
    return static_cast<const T*>(s.src) + matrix * s.batch_stride + (i - matrix * s.rows) * s.ld;
}

// An element of the row as it is staged.
template <typename T>
__device__ __forceinline__ float staged_element(float v, const RowNorm& r, bool normalize) {
    if (!normalize || !kScaled<T>) return v;
    if (sizeof(T) == 4) return unit_element<T>(v, r);
    return scale_pow2(v, -r.exponent);
}

// Measures row i of one side and writes what is wanted of it.
template <typename T, bool kHeld>
__device__ __forceinline__ RowNorm prepare_row(const PrepareSide& s, uint32_t i, const Row<T, kHeld>& row, bool normalize) {
    const RowNorm r = measure_row(row);
    if (lane_id() == 0) {
        if (s.inv != nullptr) s.inv[i] = r.inverse;
        if (s.exponent != nullptr) s.exponent[i] = r.exponent;
    }
    if (s.staged == nullptr) return r;
    T* staged = static_cast<T*>(s.staged) + i * s.staged_ld;  // (staged_ld)
    row.each([&](uint32_t col, float(&v)[kVector<T>]) {
#pragma unroll
        for (uint32_t k = 0; k < kVector<T>; ++k) v[k] = staged_element<T>(v[k], r, normalize);
        // Rows are padded to whole vectors, the last of which ends with zeros.
        store_vector(staged, col, col + kVector<T>, true, v);
    });
    return r;
}

// The similarity of a pair, from the same numbers that the tile kernels multiply.
template <typename T, bool kHeld>
__device__ __forceinline__ float pair_similarity(const PrepareParams& p, const Row<T, kHeld>& x, const Row<T, kHeld>& y,
                                                 const RowNorm& rx, const RowNorm& ry) {
    float sum = 0.0f;
    x.each_with(y, [&](const float(&a)[kVector<T>], const float(&b)[kVector<T>]) {
#pragma unroll
        for (uint32_t k = 0; k < kVector<T>; ++k) {
            sum = fmaf(staged_element<T>(a[k], rx, p.normalize), staged_element<T>(b[k], ry, p.normalize), sum);
        }
    });
    sum = warp_sum(sum);
    if (!p.normalize || sizeof(T) == 4) return sum;
    return sum * rx.inverse * ry.inverse;
}

// The smallest similarity of the pairs of this warp.
template <typename T, bool kHeld>
__device__ __forceinline__ float prepare_rows(const PrepareParams& p) {
    float low = pos_infinity();
    for_each_row(max(p.x.count, p.y.count), [&](uint32_t i) {
        const bool in_x = i < p.x.count, in_y = i < p.y.count;
        // Both are under way before the first of them is looked at.
        const Row<T, kHeld> x(in_x ? source_row<T>(p.x, i) : nullptr, in_x ? p.d : 0, p.x.aligned);
        const Row<T, kHeld> y(in_y ? source_row<T>(p.y, i) : nullptr, in_y ? p.d : 0, p.y.aligned);
        RowNorm rx, ry;
        if (in_x) rx = prepare_row<T>(p.x, i, x, p.normalize);
        if (in_y) ry = prepare_row<T>(p.y, i, y, p.normalize);
        if (p.pmin != nullptr && in_x && in_y) low = fminf(low, pair_similarity<T>(p, x, y, rx, ry));
    });
    return low;
}

template <typename T>
__device__ __forceinline__ void prepare_body(const PrepareParams& p) {
    __shared__ float lowest[kRowsPerBlock];
    if (p.zeroed != nullptr) {
        for (uint32_t i = blockIdx.x * kRowThreads + threadIdx.x; i < p.zeroed_len; i += gridDim.x * kRowThreads) p.zeroed[i] = 0;
    }
    if (blockIdx.x == 0 && threadIdx.x == 0 && p.cleared != nullptr) *p.cleared = 0;
    float low = p.d <= kHeldColumns<T> ? prepare_rows<T, true>(p) : prepare_rows<T, false>(p);
    if (p.pmin == nullptr) return;
    if (lane_id() == 0) lowest[warp_id()] = low;
    __syncthreads();  // every warp's minimum is in place
    if (threadIdx.x != 0) return;
    for (uint32_t w = 1; w < kRowsPerBlock; ++w) low = fminf(low, lowest[w]);
    p.pmin[blockIdx.x] = low;
}

}  // namespace

#define PER_TYPE(SUFFIX, T)                                                                                          \
    extern "C" __global__ void __launch_bounds__(kRowThreads, kBlocks) row_norms_##SUFFIX(                                       \
        const __grid_constant__ RowNormsParams p) {                                                                  \
        row_norms_body<T>(p);                                                                                        \
    }                                                                                                                \
    extern "C" __global__ void __launch_bounds__(kRowThreads, kPrepareBlocks<T>) prepare_##SUFFIX(const __grid_constant__ PrepareParams p) { \
        prepare_body<T>(p);                                                                                          \
    }
PER_TYPE(f32, float)
PER_TYPE(f16, __half)
PER_TYPE(bf16, __nv_bfloat16)

#define PER_PAIR(SUFFIX, T, G)                                                     \
    extern "C" __global__ void __launch_bounds__(kRowThreads, kBlocks) normalize_backward_##SUFFIX( \
        const __grid_constant__ NormalizeBackwardParams p) {                       \
        normalize_backward_body<T, G>(p);                                          \
    }
PER_PAIR(f32_f32, float, float)
PER_PAIR(f16_f16, __half, __half)
PER_PAIR(f16_f32, __half, float)
PER_PAIR(bf16_bf16, __nv_bfloat16, __nv_bfloat16)
PER_PAIR(bf16_f32, __nv_bfloat16, float)
