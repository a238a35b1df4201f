// pairwise_weights_hopper — pairwise_weights.cu on warpgroups, in steps of 128 x 128, each for its 64 rows of a tile.
//
// Launch  grid = (col_splits, row_splits), clusters of 2 blocks along rows, block = 384, kGroupSharedBytes of dynamic shared
//         memory.
// Needs   sm_90a.
#define SIMGRAD_GROUP_TILE 128
#define SIMGRAD_GROUPS_APART
#include "common/group_tile.cuh"
#include "common/pairwise_weights.cuh"

#define WEIGHTS(SUFFIX, T, BOTH)                                                                                \
    extern "C" __global__ void __cluster_dims__(1, kClusterBlocks, 1) __maxnreg__(kLaunchRegisters)             \
        pairwise_weights_##SUFFIX(const __grid_constant__ TensorMaps maps,                                      \
                                  const __grid_constant__ PairwiseWeightsParams p) {                            \
        weights_groups<T, BOTH>(maps, p);                                                                       \
    }
WEIGHTS(hopper_f16, __half, false)
WEIGHTS(hopper_bf16, __nv_bfloat16, false)
WEIGHTS(both_hopper_f16, __half, true)
WEIGHTS(both_hopper_bf16, __nv_bfloat16, true)
