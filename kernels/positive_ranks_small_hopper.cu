// positive_ranks_small_hopper — the sweeps of positive_ranks.cu on warpgroups in tiles of 128 x 64: positive_ranks_score for
// all shapes, since its blocks have no tiles in common, positive_ranks_count for small batches.
//
// Launch  score: grid = (tile rows, col_splits); count: grid = (col_splits, row_splits); both block = 384, kGroupSharedBytes
//         of dynamic shared memory.
// Needs   sm_90a.
#define SIMGRAD_GROUP_TILE 64
#include "common/group_tile.cuh"
#include "common/positive_ranks.cuh"

#define POSITIVE_RANKS(SUFFIX, T)                                                                   \
    extern "C" __global__ void __maxnreg__(kLaunchRegisters)                                  \
        positive_ranks_score_hopper_##SUFFIX(const __grid_constant__ TensorMaps maps,               \
                                             const __grid_constant__ PositiveRanksParams p) {       \
        score_groups<T>(maps, p);                                                                   \
    }                                                                                               \
    extern "C" __global__ void __maxnreg__(kLaunchRegisters)                                  \
        positive_ranks_count_small_hopper_##SUFFIX(const __grid_constant__ TensorMaps maps,         \
                                                   const __grid_constant__ PositiveRanksParams p) { \
        count_groups<T>(maps, p);                                                                   \
    }
POSITIVE_RANKS(f16, __half)
POSITIVE_RANKS(bf16, __nv_bfloat16)
