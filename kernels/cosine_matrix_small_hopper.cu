// cosine_matrix_small_hopper — cosine_matrix.cu on warpgroups for small matrices: tiles of 128 x 64.
//
// Launch  grid <= number of tiles, block = 384, kGroupSharedBytes of dynamic shared memory.
// Needs   sm_90a.
#define SIMGRAD_GROUP_TILE 64
#include "common/group_tile.cuh"
#include "common/cosine_matrix.cuh"

#define COSINE_MATRIX(SUFFIX, T) \
    extern "C" __global__ void __maxnreg__(kLaunchRegisters) \
        cosine_matrix_small_hopper_##SUFFIX(const __grid_constant__ TensorMaps maps, const __grid_constant__ CosineMatrixParams p) { \
        matrix_groups<T>(maps, p); \
    }
COSINE_MATRIX(f16, __half)
COSINE_MATRIX(bf16, __nv_bfloat16)
