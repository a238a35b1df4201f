// How the elements of a tile lie in the registers of the threads that hold it: what every epilogue depends on, and the only
// thing of an engine that it knows. kTileThreads hold a tile of kTile x kTileCols, in the layout of the accumulators of
// mma.sync.m16n8k16 and of wgmma, which agree: the 4 lanes of a quad share rows, the 8 lanes beside each other columns.
//
//                          warps of the tile    a warp's part     a thread's part
//   warp MMA  (tile.cuh)         2 x 4             64 x 32             8 x 8
//   group MMA (group_tile.cuh)   8 x 1             16 x 128            2 x 32     SIMGRAD_GROUP_TILE = 128
//                                8 x 1             16 x 64             2 x 16     SIMGRAD_GROUP_TILE = 64
//   slices    (slice_tile.cuh)   4 x 1             16 x 32             2 x 8      SIMGRAD_SLICE_TILE
//
// A file whose kernels use warpgroups defines SIMGRAD_GROUP_TILE, the columns of a tile, before its first include; one whose
// warps share the features of small tiles SIMGRAD_SLICE_TILE.
//
// A party is the threads that meet in an epilogue: all that hold the tile, or with SIMGRAD_GROUPS_APART each warpgroup for
// itself, so that one can multiply while the other one is in its epilogue. A party holds kPartyRows rows of the tile.
#pragma once
#include <stdint.h>

#ifdef SIMGRAD_SLICE_TILE
constexpr int kTile = 64;
constexpr int kTileThreads = 128;
#else
constexpr int kTile = 128;         // rows of a tile, and columns where it is square
constexpr int kTileThreads = 256;  // that hold a tile
#endif

#if defined(SIMGRAD_SLICE_TILE)
constexpr int kTileCols = 32;
constexpr int kWarpRows = 4;
constexpr int kWarpCols = 1;
#elif defined(SIMGRAD_GROUP_TILE)
constexpr int kTileCols = SIMGRAD_GROUP_TILE;
constexpr int kWarpRows = 8;  // warps above each other
constexpr int kWarpCols = 1;  // warps beside each other
#else
constexpr int kTileCols = kTile;
constexpr int kWarpRows = 2;
constexpr int kWarpCols = 4;
#endif
#ifdef SIMGRAD_GROUPS_APART
constexpr int kParties = 2;
#else
constexpr int kParties = 1;
#endif
constexpr int kPartyThreads = kTileThreads / kParties;
constexpr int kPartyRows = kTile / kParties;
constexpr int kPartyWarpRows = kWarpRows / kParties;
constexpr int kThreadRows = kTile / kWarpRows / 8;
constexpr int kThreadCols = kTileCols / kWarpCols / 4;
constexpr int kThreadElements = kThreadRows * kThreadCols;
// Lines that a thread is left with where join_rows() and join_cols() of epilogue.cuh have reduced them over the lanes.
constexpr int kJoinedRows = kThreadRows > 4 ? kThreadRows / 4 : 1;
constexpr int kJoinedCols = kThreadCols / 8;

// Element (row i, column k) of a thread at element_at(i, k).
typedef float TileAcc[kThreadElements];
__device__ __forceinline__ constexpr int element_at(int i, int k) {
    return (i >> 1) * 2 * kThreadCols + (k >> 1) * 4 + (i & 1) * 2 + (k & 1);
}

// Barriers of a party, and of all threads that hold a tile: the whole block, or all of it but the warpgroup that loads.
#ifdef SIMGRAD_GROUP_TILE
// Number 2 is that of group_tile.cuh. Read anew for every barrier, not kept in a register.
__device__ __forceinline__ uint32_t party_barrier() {
    if (kParties == 1) return 1;
    uint32_t index;
    asm volatile("mov.u32 %0, %%tid.x;" : "=r"(index));
    return 3 + index / kPartyThreads;
}
__device__ __forceinline__ void holders_sync() { asm volatile("barrier.cta.sync 1, 256;" ::: "memory"); }
__device__ __forceinline__ void tile_sync() {
    asm volatile("barrier.cta.sync %0, %1;" ::"r"(party_barrier()), "n"(kPartyThreads) : "memory");
}
__device__ __forceinline__ bool tile_sync_or(bool v) {
    uint32_t any;
    asm volatile(
        "{\n.reg .pred a, b;\n"
        "setp.ne.u32 a, %1, 0;\n"
        "barrier.cta.red.or.pred b, %2, %3, a;\n"
        "selp.u32 %0, 1, 0, b;\n}"
        : "=r"(any)
        : "r"(uint32_t(v)), "r"(party_barrier()), "n"(kPartyThreads)
        : "memory");
    return any != 0;
}
#else
__device__ __forceinline__ void holders_sync() { __syncthreads(); }
__device__ __forceinline__ void tile_sync() { __syncthreads(); }
__device__ __forceinline__ bool tile_sync_or(bool v) { return __syncthreads_or(v) != 0; }
#endif

// Bits of a thread's elements: bit kThreadCols i + k for element (i, k).
typedef uint64_t TileBits;
__device__ __forceinline__ constexpr int bit_at(int i, int k) { return kThreadCols * i + k; }
constexpr TileBits kColumnBits = kThreadRows == 8   ? 0x0101010101010101u
                                 : kThreadCols == 32 ? 0x0000000100000001u
                                 : kThreadCols == 16 ? 0x0000000000010001u
                                                     : 0x0000000000000101u;
constexpr uint32_t kRowMask = kThreadCols == 32 ? ~0u : (1u << (kThreadCols & 31)) - 1;
__device__ __forceinline__ uint32_t row_bits(TileBits bits, int i) { return uint32_t(bits >> (kThreadCols * i)) & kRowMask; }

// Tiles of an extent, and the first tile of part `part` when `tiles` are dealt to `parts` as evenly as they go. At most 2^24
// tiles to 16 parts.
__device__ __forceinline__ uint32_t tiles_of(uint32_t extent) { return (extent + (kTile - 1)) / kTile; }
__device__ __forceinline__ uint32_t part_begin(uint32_t tiles, uint32_t parts, uint32_t part) {
    return tiles * part / parts;
}

__device__ __forceinline__ uint32_t tile_cols_of(uint32_t extent) { return (extent + (kTileCols - 1)) / kTileCols; }

// Whether a tile holds elements (i, i); row0 and col0 are those of its corner.
__device__ __forceinline__ bool on_diagonal(uint32_t row0, uint32_t col0) { return col0 - row0 < uint32_t(kTile); }

// The tiles of a block: rows from r and columns from c on.
struct TileRect {
    uint32_t r, r_end;
    uint32_t c, c_end;

    __device__ __forceinline__ bool empty() const { return r >= r_end || c >= c_end; }
};
