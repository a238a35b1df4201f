// weighted_grad: dX (+)= u W Y and dY (+)= u W^T X for a sparse W, through the normalisation where rows are normalised.
//
//   g_i  = sum_j W_ij v_j,  v_j the row as the similarities see it            (eq. 9, docs/maths.md)
//   dx_i = u g_i,  or with normalised rows  u (g_i - u_i (u_i . g_i)) / r_i;  exactly 0 for a zero row
//
//   weighted_grad_invert: for index triples (rows, cols, values) the terms of every row of X and of Y
//     rows, cols (count) i32;  list, spare (count) u32, offsets (targets + 1) u32 per side;  report (2) u32
//     A triple with an index out of range is left out on both sides and counted.
//   weighted_grad_*: the sums
//     own, other (rows, d) T: f32 | f16 | bf16, base and rows aligned to 16 bytes;  out (rows, d) G: T or f32, any stride
//     Terms of a row, added in this order: its pair, its own negative, the entries of the inverse index ascending.
//   Outputs must not alias anything.
//
// Work    invert: one block per side. Sums: one block per row of X, then of Y; a thread holds 8 columns at a time. Rows wider
//         than 2048 are summed twice, for u_i . g_i and for the result.
// Launch  invert: grid = 2, block = 512, 16,420 bytes of static shared memory.
//         Sums: grid = rows of X + rows of Y, block = 32 ceil(d / 256) up to 256, 2 KiB of static shared memory.
// Bound   memory: every term reads d elements, mostly from L2; d elements are written per row.
// Order   fixed, see the terms; u_i . g_i by a fixed tree. No float atomics: the counter of overflows is an integer.
// Needs   sm_80.
#include "common/numeric.cuh"
#include "common/radix.cuh"
#include "params/weighted_grad.h"

namespace {

constexpr uint32_t kInvertWarps = kInvertThreads / kWarpSize;
constexpr uint32_t kBlocks = 3;        // on a multiprocessor: up to 80 registers per thread, which nothing has to leave
constexpr uint32_t kDirect = 8;        // terms up to which the list is read from global memory, without barriers

struct Terms {
    uint32_t source[kGatherThreads];
    float weight[kGatherThreads];
};

// Columns [col, col + 8) of a row, zeros from column d on.
template <typename T>
__device__ __forceinline__ void load_columns(const T* row, uint32_t col, uint32_t d, float (&v)[kGatherColumns]) {
#pragma unroll
    for (uint32_t part = 0; part < kGatherColumns; part += kVector<T>) {
        float values[kVector<T>];
        load_vector(row, col + part, d, true, values);
#pragma unroll
        for (uint32_t k = 0; k < kVector<T>; ++k) v[part + k] = values[k];
    }
}

template <typename T>
class Gather {
   public:
    __device__ __forceinline__ Gather(const GatherSide& side, const GatherParams& params, uint32_t target, Terms& scratch)
        : s(side), p(params), t(target), terms(scratch), begin(side.offsets[target]), end(side.offsets[target + 1]) {}

    // g of columns [col, col + 8). Every thread of the block calls this the same number of times.
    __device__ __forceinline__ void sum(uint32_t col, float (&g)[kGatherColumns]) const {
#pragma unroll
        for (uint32_t k = 0; k < kGatherColumns; ++k) g[k] = 0.0f;
        if (s.diagonal[0] != nullptr && t < p.pairs) add(t, s.diagonal[0][t] + s.diagonal[1][t], col, g);
        if (s.negative != nullptr && s.negative[t] >= 0) add(s.negative[t], s.coefficient[t], col, g);
        if (end - begin <= kDirect) {
            for (uint32_t at = begin; at < end; ++at) add(source(at), weight(at), col, g);
            return;
        }
        for (uint32_t base = begin; base < end; base += blockDim.x) {
            const uint32_t count = min(blockDim.x, end - base);
            __syncthreads();  // the previous terms have been used
            if (threadIdx.x < count) {
                const uint32_t from = source(base + threadIdx.x);
                terms.source[threadIdx.x] = from;
                terms.weight[threadIdx.x] = weight(base + threadIdx.x) * inv(from);
            }
            __syncthreads();  // these terms are in place
#pragma unroll 4
            for (uint32_t i = 0; i < count; ++i) accumulate(terms.source[i], terms.weight[i], col, g);
        }
    }

   private:
    const GatherSide& s;
    const GatherParams& p;
    const uint32_t t;
    Terms& terms;
    const uint32_t begin, end;

    __device__ __forceinline__ uint32_t source(uint32_t at) const {
        const uint32_t entry = s.list[at];
        return s.source == nullptr ? entry : uint32_t(s.source[entry]);
    }
    __device__ __forceinline__ float weight(uint32_t at) const { return s.weight[s.list[at]]; }
    __device__ __forceinline__ float inv(uint32_t row) const { return s.other_inv == nullptr ? 1.0f : s.other_inv[row]; }

    __device__ __forceinline__ void add(uint32_t row, float coefficient, uint32_t col, float (&g)[kGatherColumns]) const {
        accumulate(row, coefficient * inv(row), col, g);
    }

    __device__ __forceinline__ void accumulate(uint32_t row, float coefficient, uint32_t col, float (&g)[kGatherColumns]) const {
        float v[kGatherColumns];
        load_columns(static_cast<const T*>(s.other) + row * s.other_ld, col, p.d, v);
#pragma unroll
        for (uint32_t k = 0; k < kGatherColumns; ++k) g[k] = fmaf(coefficient, v[k], g[k]);
    }
};

// Writes columns [col, col + 8) of the result; returns how many became infinite by rounding.
template <typename G>
__device__ __forceinline__ uint32_t write_columns(G* row, uint32_t col, uint32_t d, bool aligned, bool accumulate,
                                                  float (&v)[kGatherColumns]) {
    uint32_t overflow = 0;
#pragma unroll
    for (uint32_t part = 0; part < kGatherColumns; part += kVector<G>) {
        float values[kVector<G>];
        if (accumulate) load_vector(row, col + part, d, aligned, values);
#pragma unroll
        for (uint32_t k = 0; k < kVector<G>; ++k) {
            values[k] = accumulate ? values[k] + v[part + k] : v[part + k];
            if (sizeof(G) == 2) {
                const uint32_t rounded = magnitude_bits(to_f32(from_f32<G>(values[k])));
                if (rounded == kInfinityBits && magnitude_bits(values[k]) < kInfinityBits) ++overflow;
            }
        }
        store_vector(row, col + part, d, aligned, values);
    }
    return overflow;
}

template <typename T, typename G>
__device__ __forceinline__ void gather_row(const GatherSide& s, const GatherParams& p, uint32_t t, Terms& terms,
                                           float* scratch) {
    const T* own = static_cast<const T*>(s.own) + t * s.own_ld;  // (d)
    G* out = static_cast<G*>(s.out) + t * s.out_ld;              // (d)
    const Gather<T> gather(s, p, t, terms);
    const uint32_t first = threadIdx.x * kGatherColumns, step = blockDim.x * kGatherColumns;
    const bool normalised = s.own_inv != nullptr;
    const float inv = normalised ? s.own_inv[t] : 1.0f;
    const float to_unit = sizeof(T) == 4 ? 1.0f : inv;
    const int exponent = normalised ? s.own_exponent[t] : 0;
    const float factor = p.upstream == nullptr ? p.factor : *p.upstream * p.factor;
    const bool zero_row = normalised && inv == 0.0f;

    // The first pass finds u . g, the second writes. One step covers a narrow row, whose sums are then still in the
    // registers; without normalisation there is only the second pass.
    float g[kGatherColumns];
    float radial = 0.0f;
    uint32_t overflow = 0;
#pragma unroll 1
    for (int pass = normalised ? 0 : 1; pass < 2; ++pass) {
        for (uint32_t base = 0; base < p.d; base += step) {
            const uint32_t col = base + first;
            if (pass == 0 || !normalised || p.d > step) gather.sum(col, g);
            float u[kGatherColumns];
            if (normalised) load_columns(own, col, p.d, u);
            if (pass == 0) {
#pragma unroll
                for (uint32_t k = 0; k < kGatherColumns; ++k) radial = fmaf(u[k] * to_unit, g[k], radial);
                continue;
            }
            if (normalised) {
#pragma unroll
                for (uint32_t k = 0; k < kGatherColumns; ++k) {
                    const float tangent = g[k] - u[k] * to_unit * radial;
                    g[k] = zero_row ? 0.0f : scale_pow2(tangent * factor * inv, -exponent);
                }
            } else {
#pragma unroll
                for (uint32_t k = 0; k < kGatherColumns; ++k) g[k] *= factor;
            }
            overflow += write_columns(out, col, p.d, s.out_aligned, p.accumulate, g);
        }
        if (pass == 0) radial = block_sum(radial, scratch);
    }
    if (sizeof(G) == 2 && overflow > 0) atomicAdd(p.overflow, overflow);
}

template <typename T, typename G>
__device__ __forceinline__ void gather_body(const GatherParams& p) {
    __shared__ Terms terms;
    __shared__ float scratch[kGatherThreads / kWarpSize];
    const bool of_x = blockIdx.x < p.x.rows;
    gather_row<T, G>(of_x ? p.x : p.y, p, of_x ? blockIdx.x : blockIdx.x - p.x.rows, terms, scratch);
}

}  // namespace

// The block of one side; the triples that count are told once, and each block writes its own side's targets.
extern "C" __global__ void __launch_bounds__(kInvertThreads, 1)
    weighted_grad_invert(const __grid_constant__ InvertParams p) {
    __shared__ RadixScratch<kInvertWarps> scratch;
    __shared__ uint32_t left_out;
    const bool of_x = blockIdx.x == 0;
    const InvertSide& side = of_x ? p.x : p.y;
    int32_t* target = of_x ? p.x_target : p.y_target;
    if (threadIdx.x == 0) left_out = 0;
    __syncthreads();  // the counter is 0
    for (uint32_t e = threadIdx.x; e < p.count; e += blockDim.x) {
        const int32_t row = p.rows[e], col = p.cols[e];
        const bool valid = row >= 0 && uint32_t(row) < p.x.targets && col >= 0 && uint32_t(col) < p.y.targets;
        target[e] = !valid ? -1 : of_x ? row : col;
        if (!valid) atomicAdd(&left_out, 1u);
    }
    __syncthreads();  // all targets and the count are complete
    if (of_x && threadIdx.x == 0) {
        p.report[0] = left_out;
        p.report[1] = 0;
    }
    invert(TargetMap{side.target, p.count, side.targets}, side.list, side.spare, side.offsets, scratch);
}

#define PER_PAIR(SUFFIX, T, G)                                                                                       \
    extern "C" __global__ void __launch_bounds__(kGatherThreads, kBlocks) weighted_grad_##SUFFIX(                       \
        const __grid_constant__ GatherParams p) {                                                                    \
        gather_body<T, G>(p);                                                                                        \
    }
PER_PAIR(f32_f32, float, float)
PER_PAIR(f16_f16, __half, __half)
PER_PAIR(f16_f32, __half, float)
PER_PAIR(bf16_bf16, __nv_bfloat16, __nv_bfloat16)
PER_PAIR(bf16_f32, __nv_bfloat16, float)
