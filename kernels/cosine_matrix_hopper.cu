// cosine_matrix_hopper — cosine_matrix.cu on warpgroups, in steps of 128 x 256.
//
// Launch  grid <= number of blocks in units of 256 x 256, clusters of 2 blocks, block = 384, kGroupSharedBytes of dynamic shared memory.
// Needs   sm_90a.
#define SIMGRAD_GROUP_TILE 128
#define SIMGRAD_GROUP_STEP 2
#include "common/group_tile.cuh"
#include "common/cosine_matrix.cuh"

#define COSINE_MATRIX(SUFFIX, T) \
    extern "C" __global__ void __cluster_dims__(kClusterBlocks, 1, 1) __maxnreg__(kLaunchRegisters) \
        cosine_matrix_hopper_##SUFFIX(const __grid_constant__ TensorMaps maps, const __grid_constant__ CosineMatrixParams p) { \
        matrix_groups<T>(maps, p); \
    }
COSINE_MATRIX(f16, __half)
COSINE_MATRIX(bf16, __nv_bfloat16)
