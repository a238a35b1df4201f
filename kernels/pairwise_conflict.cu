// pairwise_conflict — how long the gradients of a mixture's parts are, and how much they agree.
//
//   out[a] = |g_a|,   out[parts + a parts + b] = g_a . g_b / (|g_a| |g_b|), 0 where one of them is 0
//
//   gradients (parts, len) f32;  partial (pairs, blocks), dots (pairs), out (parts + parts^2) f64; pairs (a, b) with a <= b,
//   a outermost.  Outputs must not alias anything.
//
// Work    pairwise_conflict_dots: `blocks` blocks for every pair, each adds up every blocks-th run of 256 elements.
//         pairwise_conflict_finish: one block; a warp adds up the partial sums of a pair, then a thread has an element of out.
// Launch  dots: grid = pairs blocks; finish: grid = 1; block = 256.
// Bound   memory: every gradient is read parts + 1 times, mostly from cache.
// Order   a thread's elements ascending, lanes and warps by a fixed tree, blocks ascending within a lane; all in f64.
// Needs   sm_80.
#include "common/reduce.cuh"
#include "params/pairwise_conflict.h"

namespace {

constexpr uint32_t kWarps = kConflictThreads / kWarpSize;

// Number of the pair (a, b), a <= b.
__device__ __forceinline__ uint32_t pair_at(uint32_t parts, uint32_t a, uint32_t b) {
    return a * parts - a * (a + 1) / 2 + b;
}

}  // namespace

extern "C" __global__ void __launch_bounds__(kConflictThreads)
    pairwise_conflict_dots(const __grid_constant__ PairwiseConflictParams p) {
    __shared__ double scratch[kWarps];
    const uint32_t pair = blockIdx.x / p.blocks, block = blockIdx.x % p.blocks;
    uint32_t a = 0;
    while (a + 1 < p.parts && pair_at(p.parts, a + 1, a + 1) <= pair) ++a;
    const uint32_t b = a + (pair - pair_at(p.parts, a, a));
    const float* x = p.gradients + a * p.len;
    const float* y = p.gradients + b * p.len;
    double sum = 0.0;
    for (uint64_t at = uint64_t(block) * kConflictThreads + threadIdx.x; at < p.len; at += uint64_t(p.blocks) * kConflictThreads) {
        sum = fma(double(x[at]), double(y[at]), sum);
    }
    sum = warp_sum(sum);
    if (lane_id() == 0) scratch[warp_id()] = sum;
    __syncthreads();  // every warp's sum is in place
    if (threadIdx.x != 0) return;
    double total = 0.0;
    for (uint32_t w = 0; w < kWarps; ++w) total += scratch[w];
    p.partial[blockIdx.x] = total;
}

extern "C" __global__ void __launch_bounds__(kConflictThreads)
    pairwise_conflict_finish(const __grid_constant__ PairwiseConflictParams p) {
    const uint32_t pairs = p.parts * (p.parts + 1) / 2;
    for (uint32_t pair = warp_id(); pair < pairs; pair += kWarps) {
        double sum = 0.0;
        for (uint32_t at = lane_id(); at < p.blocks; at += kWarpSize) sum += p.partial[size_t(pair) * p.blocks + at];
        sum = warp_sum(sum);
        if (lane_id() == 0) p.dots[pair] = sum;
    }
    __syncthreads();  // every pair's sum is in place, for this block
    for (uint32_t at = threadIdx.x; at < p.parts * p.parts; at += kConflictThreads) {
        const uint32_t a = at / p.parts, b = at % p.parts;
        const double norm_a = sqrt(p.dots[pair_at(p.parts, a, a)]), norm_b = sqrt(p.dots[pair_at(p.parts, b, b)]);
        const double dot = p.dots[a < b ? pair_at(p.parts, a, b) : pair_at(p.parts, b, a)], product = norm_a * norm_b;
        p.out[p.parts + at] = product == 0.0 ? 0.0 : dot / product;
        if (a == b) p.out[a] = norm_a;
    }
}
