// mine_small_hopper — mine.cu on warpgroups for small batches: tiles of 128 x 64, so that n = m = 1024 gives 128 blocks.
//
// Launch  grid = (col_splits, row_splits), or for kSelectPair the larger number of tiles of 128 rows or columns; block = 384,
//         kGroupSharedBytes of dynamic shared memory.
// Needs   sm_90a.
#define SIMGRAD_GROUP_TILE 64
#include "common/mine_groups.cuh"

#define MINE_SMALL(NAME, T, STATS) \
    extern "C" __global__ void __maxnreg__(kLaunchRegisters) \
        NAME(const __grid_constant__ TensorMaps maps, const __grid_constant__ MineParams p) { \
        mine_groups<T, STATS>(maps, p); \
    }
MINE_SMALL(mine_small_hopper_f16, __half, false)
MINE_SMALL(mine_small_hopper_bf16, __nv_bfloat16, false)
MINE_SMALL(mine_stats_small_hopper_f16, __half, true)
MINE_SMALL(mine_stats_small_hopper_bf16, __nv_bfloat16, true)
