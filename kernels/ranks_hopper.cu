// ranks_hopper — ranks.cu on warpgroups, in steps of 128 x 256, each for its 64 rows of a tile.
//
// Launch  grid = (col_splits, row_splits), clusters of 2 blocks along rows, block = 384, kGroupSharedBytes of dynamic shared
//         memory.
// Needs   sm_90a.
#define SIMGRAD_GROUP_TILE 128
#define SIMGRAD_GROUP_STEP 2
#define SIMGRAD_GROUPS_APART
#include "common/group_tile.cuh"
#include "common/ranks.cuh"

#define RANKS(SUFFIX, T)                                                                                        \
    extern "C" __global__ void __cluster_dims__(1, kClusterBlocks, 1) __maxnreg__(kLaunchRegisters)       \
        ranks_hopper_##SUFFIX(const __grid_constant__ TensorMaps maps, const __grid_constant__ RanksParams p) { \
        rank_groups<T>(maps, p);                                                                                \
    }
RANKS(f16, __half)
RANKS(bf16, __nv_bfloat16)
