// ranks_small_hopper — ranks.cu on warpgroups for small batches: tiles of 128 x 64.
//
// Launch  grid = (col_splits, row_splits), block = 384, kGroupSharedBytes of dynamic shared memory.
// Needs   sm_90a.
#define SIMGRAD_GROUP_TILE 64
#include "common/group_tile.cuh"
#include "common/ranks.cuh"

#define RANKS(SUFFIX, T)                                                                                              \
    extern "C" __global__ void __maxnreg__(kLaunchRegisters)                                                    \
        ranks_small_hopper_##SUFFIX(const __grid_constant__ TensorMaps maps, const __grid_constant__ RanksParams p) { \
        rank_groups<T>(maps, p);                                                                                      \
    }
RANKS(f16, __half)
RANKS(bf16, __nv_bfloat16)
