// abi_layout: the layout of every parameter block as the device compiler sees it.
//
//   out  (capacity) u32: for each block its size, then the offset of every field in order; then the constants; the rest
//        is left alone
//
// Work    one thread.
// Launch  grid 1, block 1, no dynamic shared memory.
// Bound   nothing; run once, by a test.
// Order   fixed.
// Needs   sm_80.
#include "common/layout.cuh"
#include "params/abi.h"

namespace {

__device__ void put_abi(LayoutWriter& w) {
    LAYOUT_BEGIN(w, AbiParams);
    LAYOUT_FIELD(w, AbiParams, out);
    LAYOUT_FIELD(w, AbiParams, capacity);
    LAYOUT_FIELD(w, AbiParams, pad_);
}

}  // namespace

extern "C" __global__ void __launch_bounds__(1) abi_layout(const __grid_constant__ AbiParams p) {
    LayoutWriter w{p.out, p.capacity, 0};
    put_abi(w);
}
