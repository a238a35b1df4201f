// bank_push — rows and their ids into the next slots of a ring.
//
//   slot = (cursor + r) mod capacity for row r of [first, rows):
//   embeddings[slot, :] = src[r, :], out_ids[slot] = ids[r], out_stamps[slot] = stamp
//
//   src (rows, d), embeddings (capacity, d): elements of 16 or 32 bits, copied as they are
//   No output may alias an input or another output.
//
// Work    one warp per row, 8 rows per block; the rows of a launch have slots of their own.
// Launch  grid = ceil((rows - first) / 8), block = 256, no dynamic shared memory.
// Bound   memory: every element read and written once.
// Order   none: nothing is added.
// Needs   sm_80.
#include "common/reduce.cuh"
#include "params/memory_bank.h"

template <typename Bits>
__device__ __forceinline__ void push_body(const BankPushParams& p) {
    const uint64_t row = uint64_t(p.first) + uint64_t(blockIdx.x) * (blockDim.x / kWarpSize) + warp_id();
    if (row >= p.rows) return;
    const uint64_t slot = (p.cursor + row) % p.capacity;
    const Bits* const from = static_cast<const Bits*>(p.src) + int64_t(row) * p.ld;
    Bits* const to = static_cast<Bits*>(p.embeddings) + slot * p.d;
    for (uint32_t k = lane_id(); k < p.d; k += kWarpSize) to[k] = from[k];
    if (lane_id() == 0) {
        p.out_ids[slot] = p.ids[row];
        p.out_stamps[slot] = p.stamp;
    }
}

extern "C" __global__ void __launch_bounds__(256) bank_push_16(const __grid_constant__ BankPushParams p) {
    push_body<uint16_t>(p);
}
extern "C" __global__ void __launch_bounds__(256) bank_push_32(const __grid_constant__ BankPushParams p) {
    push_body<uint32_t>(p);
}
