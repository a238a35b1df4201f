// mine_hopper — mine.cu on warpgroups: values and indices alone, in steps of 128 x 256.
//
// Launch  grid = (col_splits, row_splits), clusters of 2 blocks along rows, block = 384, kGroupSharedBytes of dynamic shared
//         memory. Not for kSelectPair, which has no rectangles to deal.
// Needs   sm_90a.
#define SIMGRAD_GROUP_TILE 128
#define SIMGRAD_GROUP_STEP 2
#include "common/mine_groups.cuh"

#define MINE(SUFFIX, T) \
    extern "C" __global__ void __cluster_dims__(1, kClusterBlocks, 1) __maxnreg__(kLaunchRegisters) \
        mine_hopper_##SUFFIX(const __grid_constant__ TensorMaps maps, const __grid_constant__ MineParams p) { \
        mine_groups<T, false>(maps, p); \
    }
MINE(f16, __half)
MINE(bf16, __nv_bfloat16)
