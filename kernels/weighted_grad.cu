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
// Launch  invert: grid = 2, block = 512, 2 KiB of static shared memory.
//         Sums: grid = rows of X + rows of Y, block = 32 ceil(d / 256) up to 256, 2 KiB of static shared memory.
// Bound   memory: every term reads d elements, mostly from L2; d elements are written per row.
// Order   fixed, see the terms; u_i . g_i by a fixed tree. No float atomics: the counter of overflows is an integer.
// Needs   sm_80.
#include "common/gather.cuh"
#include "common/radix.cuh"

namespace {

constexpr uint32_t kInvertWarps = kInvertThreads / kWarpSize;
constexpr uint32_t kBlocks = 3;        // on a multiprocessor: up to 80 registers per thread, which nothing has to leave
constexpr uint32_t kDirect = 8;        // terms up to which the list is read from global memory, without barriers

struct Terms {
    uint32_t source[kGatherThreads];
    float weight[kGatherThreads];
};

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
                terms.weight[threadIdx.x] = weight(base + threadIdx.x) * inv_of(s, from);
            }
            __syncthreads();  // these terms are in place
#pragma unroll 4
            for (uint32_t i = 0; i < count; ++i) add_term<T>(s, p, terms.source[i], terms.weight[i], col, g);
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

    __device__ __forceinline__ void add(uint32_t row, float coefficient, uint32_t col, float (&g)[kGatherColumns]) const {
        add_term<T>(s, p, row, coefficient * inv_of(s, row), col, g);
    }
};

template <typename T, typename G>
__device__ __forceinline__ void gather_body(const GatherParams& p) {
    __shared__ Terms terms;
    __shared__ float scratch[kGatherThreads / kWarpSize];
    const bool of_x = blockIdx.x < p.x.rows;
    const GatherSide& s = of_x ? p.x : p.y;
    const uint32_t t = of_x ? blockIdx.x : blockIdx.x - p.x.rows;
    const Gather<T> gather(s, p, t, terms);
    const uint32_t overflow = gather_row<T, G>(
        s, p, t, threadIdx.x, blockDim.x, [&](uint32_t col, float (&g)[kGatherColumns]) { gather.sum(col, g); },
        [&](float radial) { return block_sum(radial, scratch); });
    if (sizeof(G) == 2 && overflow > 0) atomicAdd(p.overflow, overflow);
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
