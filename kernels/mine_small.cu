// mine_small — mine.cu in f32 for small batches: tiles of 64 x 32 whose features the warps of a block share, so that
// n = m = 512 gives 128 blocks.
//
// Launch  grid = (col_splits, row_splits), or for kSelectPair the larger number of tiles of 64 rows or columns; block = 128,
//         98,304 bytes of dynamic shared memory.
// Order   every similarity as mine.cu adds it up, bit for bit; statistics over these tiles.
// Needs   sm_80.
#define SIMGRAD_SLICE_TILE
#include "common/slice_tile.cuh"
#include "common/mine_warps.cuh"

#define MINE_SMALL(NAME, STATS) \
    extern "C" __global__ void __launch_bounds__(kTileThreads, kTileBlocks) NAME(const __grid_constant__ MineParams p) { \
        mine_body<float, STATS>(p); \
    }
MINE_SMALL(mine_small_f32, false)
MINE_SMALL(mine_stats_small_f32, true)
