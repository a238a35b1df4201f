// The inverse index of radix.cuh by many blocks, for maps of many entries: a stable radix sort, least significant digit
// first, 9 bits a pass.
//
//   counts   (passes, blocks, 512): how many entries of a block's chunk have a digit
//
// A block owns a chunk of consecutive places. Before a pass, the entries of every chunk are counted by digit; the place of a
// block's first entry of a digit is the number of entries with lower digits and of those with the same one in earlier chunks,
// so that no block waits for another. A pass counts for the next one as it places. Sums of integers: the result is the
// same whatever the timing.
#pragma once
#include "common/radix.cuh"
#include "params/weighted_grad.h"

constexpr uint32_t kIndexBits = 9;
constexpr uint32_t kIndexWarps = kIndexDigits / kWarpSize;
constexpr uint32_t kIndexPerLane = kIndexTile / kIndexDigits;  // entries of a tile
constexpr uint32_t kIndexAhead = 8;                            // counters of other blocks that are loaded at a time
static_assert(kIndexDigits == 1u << kIndexBits && kIndexWarps <= kWarpSize, "a thread per digit");

struct PlaceScratch {
    uint32_t counters[kIndexWarps][kIndexDigits];  // per warp: counts, then places of a tile's digits
    uint32_t sums[kIndexWarps];
};

__device__ __forceinline__ uint32_t index_digit(uint32_t key, uint32_t pass) {
    return key >> (kIndexBits * pass) & (kIndexDigits - 1);
}

// The counters of a block in a pass.
__device__ __forceinline__ uint32_t* counters_of(uint32_t* counts, uint32_t pass, uint32_t block) {
    return counts + (size_t(pass) * gridDim.x + block) * kIndexDigits;
}

// The lanes with the same value among those that are valid, or 0 in all but the lowest of them.
__device__ __forceinline__ uint32_t led_peers(bool valid, uint32_t value) {
    const uint32_t peers = __match_any_sync(kFullWarp, valid ? value : ~0u);
    return valid && (peers & ((1u << lane_id()) - 1)) == 0 ? peers : 0;
}

// Sum over the threads before this one of a block of kIndexDigits.
__device__ __forceinline__ uint32_t sum_before(uint32_t v, uint32_t* sums) {
    uint32_t up_to = v;
#pragma unroll
    for (uint32_t shift = 1; shift < kWarpSize; shift <<= 1) {
        const uint32_t below = __shfl_up_sync(kFullWarp, up_to, shift);
        if (lane_id() >= shift) up_to += below;
    }
    if (lane_id() == kWarpSize - 1) sums[warp_id()] = up_to;
    __syncthreads();  // every warp's sum is in place
    return warp_sum(lane_id() < warp_id() ? sums[lane_id()] : 0u) + up_to - v;
}

// Where this block's first entry goes that has the thread's number as its digit.
__device__ __forceinline__ uint32_t first_place(uint32_t* counts, uint32_t pass, PlaceScratch& scratch) {
    const uint32_t* of_digit = counters_of(counts, pass, 0) + threadIdx.x;
    uint32_t total = 0, before = 0;
    for (uint32_t base = 0; base < gridDim.x; base += kIndexAhead) {
        uint32_t count[kIndexAhead];
#pragma unroll
        for (uint32_t k = 0; k < kIndexAhead; ++k) {
            count[k] = base + k < gridDim.x ? of_digit[size_t(base + k) * kIndexDigits] : 0;
        }
#pragma unroll
        for (uint32_t k = 0; k < kIndexAhead; ++k) {
            total += count[k];
            if (base + k < blockIdx.x) before += count[k];
        }
    }
    return sum_before(total, scratch.sums) + before;
}

// One pass over this block's chunk: `from` (null: the entries in order) sorted by a digit into `to`. `counts` has the counts
// of this pass; those of the next one, if there is one, are added up. All threads of a block of kIndexDigits.
__device__ __forceinline__ void place_chunk(const TargetMap& map, const uint32_t* from, uint32_t* to, uint32_t* counts,
                                            uint32_t pass, bool is_last, uint32_t chunk, PlaceScratch& scratch) {
    const uint32_t begin = chunk * blockIdx.x, end = min(begin + chunk, map.count);
    const uint32_t below = (1u << lane_id()) - 1;
    uint32_t* mine = scratch.counters[warp_id()];
    uint32_t place = first_place(counts, pass, scratch);  // of the thread's digit
    for (uint32_t base = begin; base < end; base += kIndexTile) {
        // A warp takes 32 consecutive entries at a time, in order, and the warps one stretch after the other.
        const uint32_t first = base + warp_id() * kIndexPerLane * kWarpSize + lane_id();
        uint32_t entry[kIndexPerLane], key[kIndexPerLane], peers[kIndexPerLane];
#pragma unroll
        for (uint32_t k = 0; k < kIndexPerLane; ++k) {
            const uint32_t at = first + k * kWarpSize;
            entry[k] = at >= end ? 0 : from == nullptr ? at : from[at];
        }
#pragma unroll
        for (uint32_t k = 0; k < kIndexPerLane; ++k) key[k] = first + k * kWarpSize < end ? map.key(entry[k]) : 0;
#pragma unroll
        for (uint32_t k = 0; k < kIndexDigits / kWarpSize; ++k) mine[k * kWarpSize + lane_id()] = 0;
        __syncwarp();  // the warp's counters are 0
#pragma unroll
        for (uint32_t k = 0; k < kIndexPerLane; ++k) {
            const bool valid = first + k * kWarpSize < end;
            const uint32_t digit = index_digit(key[k], pass);
            peers[k] = __match_any_sync(kFullWarp, valid ? digit : kIndexDigits);
            if (valid && (peers[k] & below) == 0) mine[digit] += __popc(peers[k]);
            __syncwarp();  // counters are complete before the next 32 entries read them
        }
        __syncthreads();  // all warps' counters are complete
#pragma unroll
        for (uint32_t w = 0; w < kIndexWarps; ++w) {
            const uint32_t count = scratch.counters[w][threadIdx.x];
            scratch.counters[w][threadIdx.x] = place;
            place += count;
        }
        __syncthreads();  // all places are in place
#pragma unroll
        for (uint32_t k = 0; k < kIndexPerLane; ++k) {
            const bool valid = first + k * kWarpSize < end;
            const uint32_t digit = index_digit(key[k], pass);
            const uint32_t of_lowest = valid ? mine[digit] : 0;
            __syncwarp();  // every lane has read its place before one of them moves it
            const uint32_t mine_to = of_lowest + __popc(peers[k] & below);
            if (valid) {
                to[mine_to] = entry[k];
                if ((peers[k] & below) == 0) mine[digit] = of_lowest + __popc(peers[k]);
            }
            __syncwarp();  // places are moved before the next 32 entries read them
            if (is_last) continue;
            // A target with many entries has them in one counter: one addition for all that meet.
            const uint32_t counter = mine_to / chunk * kIndexDigits + index_digit(key[k], pass + 1);
            const uint32_t led = led_peers(valid, counter);
            if (led != 0) atomicAdd(counters_of(counts, pass + 1, 0) + counter, __popc(led));
        }
    }
}
