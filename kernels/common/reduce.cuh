// Reductions over a warp or a block, in a fixed order: identical bits between runs and on every device.
#pragma once
#include <stdint.h>

constexpr uint32_t kWarpSize = 32;
constexpr uint32_t kFullWarp = 0xffffffffu;

__device__ __forceinline__ uint32_t lane_id() { return threadIdx.x & (kWarpSize - 1); }
__device__ __forceinline__ uint32_t warp_id() { return threadIdx.x / kWarpSize; }

// Sum over the warp, in every lane.
template <typename V>
__device__ __forceinline__ V warp_sum(V v) {
#pragma unroll
    for (int mask = 16; mask > 0; mask >>= 1) v += __shfl_xor_sync(kFullWarp, v, mask);
    return v;
}

// Smallest value over the warp, NaN ignored, in every lane.
__device__ __forceinline__ float warp_min(float v) {
#pragma unroll
    for (int mask = 16; mask > 0; mask >>= 1) v = fminf(v, __shfl_xor_sync(kFullWarp, v, mask));
    return v;
}

// Sum over the block, in every thread; `scratch` holds one value per warp. Two barriers: the first publishes the warps'
// sums, the second frees `scratch` for the next use.
__device__ __forceinline__ float block_sum(float v, float* scratch) {
    v = warp_sum(v);
    if (lane_id() == 0) scratch[warp_id()] = v;
    __syncthreads();
    float total = 0.0f;
    for (uint32_t w = 0; w < blockDim.x / kWarpSize; ++w) total += scratch[w];
    __syncthreads();
    return total;
}

// Whether this block is the last of `count` to come here. What the others wrote before is then visible to this one.
__device__ __forceinline__ bool last_to_come(uint32_t* ticket, bool& shared_flag, uint32_t count = gridDim.x) {
    __threadfence();  // this block's results before its ticket
    __syncthreads();  // of all its threads
    if (threadIdx.x == 0) shared_flag = atomicAdd(ticket, 1) == count - 1;
    __syncthreads();  // the answer is in place
    __threadfence();  // the tickets before the others' results
    return shared_flag;
}
