// top_k_hopper — mine_top_k of top_k.cu on warpgroups, in tiles of 128 x 64: one fits beside the stages, and without
// clusters any number of splits will do.
//
// Launch  grid = (col_splits, row_splits), block = 384, kGroupSharedBytes of dynamic shared memory.
// Needs   sm_90a.
#define SIMGRAD_GROUP_TILE 64
#include "common/group_tile.cuh"
#include "common/top_k_select.cuh"

#define MINE_TOP_K(SUFFIX, T)                                                                                      \
    extern "C" __global__ void __maxnreg__(kLaunchRegisters)                                                 \
        mine_top_k_hopper_##SUFFIX(const __grid_constant__ TensorMaps maps, const __grid_constant__ TopKParams p) { \
        select_groups<T>(maps, p);                                                                                 \
    }
MINE_TOP_K(f16, __half)
MINE_TOP_K(bf16, __nv_bfloat16)
