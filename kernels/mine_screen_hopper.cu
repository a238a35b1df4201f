// mine_screen_hopper — mine_screen_<T> of mine_screen.cu on warpgroups, in steps of 128 x 256.
//
// Launch  grid = (col_splits, row_splits), clusters of 2 blocks along rows, block = 384, kGroupSharedBytes of dynamic shared
//         memory.
// Needs   sm_90a.
#define SIMGRAD_GROUP_TILE 128
#define SIMGRAD_GROUP_STEP 2
#include "common/group_tile.cuh"
#include "common/mine_screen.cuh"

template <typename T>
__device__ __forceinline__ void screen_groups(const TensorMaps& maps, const ScreenParams& p) {
    extern __shared__ __align__(1024) char shared[];
    __shared__ ScreenBatches batches;
    const TileRect rect = screen_rect(p);
    RectSweep<T> sweep(shared, maps, p.d, rect);
    Screener screener(p, batches);
    sweep.template run<false>([&](TileAcc& acc, uint32_t r, uint32_t c, char*) {
        screener.tile(acc, r * kTile, c * kTileCols);
    });
    screener.flush();  // the warps that copy have nothing
}

#define SCREEN(SUFFIX, T)                                                                                                   \
    extern "C" __global__ void __cluster_dims__(1, kClusterBlocks, 1) __maxnreg__(kLaunchRegisters)                          \
        mine_screen_hopper_##SUFFIX(const __grid_constant__ TensorMaps maps, const __grid_constant__ ScreenParams p) {        \
        screen_groups<T>(maps, p);                                                                                           \
    }
SCREEN(f16, __half)
SCREEN(bf16, __nv_bfloat16)
