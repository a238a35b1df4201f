// mine_stats_hopper — mine_stats of mine.cu on warpgroups, in steps of 128 x 128.
//
// Launch  as mine_hopper.
// Needs   sm_90a.
#define SIMGRAD_GROUP_TILE 128
#include "common/mine_groups.cuh"

#define MINE_STATS(SUFFIX, T) \
    extern "C" __global__ void __cluster_dims__(1, kClusterBlocks, 1) __maxnreg__(kLaunchRegisters) \
        mine_stats_hopper_##SUFFIX(const __grid_constant__ TensorMaps maps, const __grid_constant__ MineParams p) { \
        mine_groups<T, true>(maps, p); \
    }
MINE_STATS(f16, __half)
MINE_STATS(bf16, __nv_bfloat16)
