// pairwise_stats_hopper — pairwise_stats.cu on warpgroups, in steps of 128 x 128.
//
// Work    a warpgroup has 64 rows of a tile, the sets of these rows, and sets of its own of all columns: the columns have
//         2 row_splits splits.
// Launch  grid = (col_splits, row_splits), clusters of 2 blocks along rows, block = 384, kGroupSharedBytes of dynamic shared
//         memory.
// Needs   sm_90a.
#define SIMGRAD_GROUP_TILE 128
#define SIMGRAD_GROUPS_APART
#include "common/group_tile.cuh"
#include "common/pairwise_stats.cuh"

#define STATS(SUFFIX, T, BOTH)                                                                                  \
    extern "C" __global__ void __cluster_dims__(1, kClusterBlocks, 1) __maxnreg__(kLaunchRegisters)             \
        pairwise_stats_##SUFFIX(const __grid_constant__ TensorMaps maps,                                        \
                                const __grid_constant__ PairwiseStatsParams p) {                                \
        stats_groups<T, BOTH>(maps, p);                                                                         \
    }
STATS(hopper_f16, __half, false)
STATS(hopper_bf16, __nv_bfloat16, false)
STATS(both_hopper_f16, __half, true)
STATS(both_hopper_bf16, __nv_bfloat16, true)
