// What the engines that load by cp.async have in common: the copies, the tiles of a block, and the sweep over them.
//
// An engine defines TileStream<T, Cursor>, which makes the products of one tile after the other: tile.cuh, slice_tile.cuh.
#pragma once
#include <stdint.h>

#include "common/tile_layout.cuh"

// Copies 16 bytes into shared memory, of which all but the first `bytes` are zeros and not read.
__device__ __forceinline__ void copy_chunk_async(uint32_t shared, const char* global, uint32_t bytes) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared), "l"(global), "r"(bytes) : "memory");
}
__device__ __forceinline__ void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int kPending>
__device__ __forceinline__ void wait_copies() {
    asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

// One tile of one pair of matrices.
struct TileAt {
    const char* x;  // row 0 of X
    const char* y;  // row 0 of Y
    uint32_t row0;
    uint32_t col0;
};

struct TileShape {
    int64_t x_row_bytes;
    int64_t y_row_bytes;
    uint32_t n;
    uint32_t m;
    uint32_t k_bytes;  // d * sizeof(T), below 2^31
};

// `Cursor` walks over a block's tiles: valid(), at() -> TileAt, advance().
template <typename T, typename Cursor>
class TileStream;

// The tiles of a rectangle, row of tiles after row of tiles.
struct RectCursor {
    const char* x;
    const char* y;
    uint32_t r, r_end;
    uint32_t c, c_begin, c_end;

    __device__ __forceinline__ bool valid() const { return r < r_end && c < c_end; }
    __device__ __forceinline__ TileAt at() const { return {x, y, r * kTile, c * kTileCols}; }
    __device__ __forceinline__ void advance() {
        if (++c == c_end) {
            c = c_begin;
            ++r;
        }
    }
};

// The share of this block, (column split, row split) of the grid, of row tiles [first, end) and all columns.
__device__ __forceinline__ TileRect tile_rect(uint32_t first, uint32_t end, uint32_t cols, uint32_t row_splits,
                                              uint32_t col_splits) {
    return {first + part_begin(end - first, row_splits, blockIdx.y), first + part_begin(end - first, row_splits, blockIdx.y + 1),
            part_begin(tile_cols_of(cols), col_splits, blockIdx.x), part_begin(tile_cols_of(cols), col_splits, blockIdx.x + 1)};
}

// Where the operands of a sweep are: the parameters of any of its kernels.
template <typename T, typename Params>
struct TileOperands {
    const Params& p;

    __device__ __forceinline__ TileShape shape() const {
        return {p.ldx * int64_t(sizeof(T)), p.ldy * int64_t(sizeof(T)), p.n, p.m, p.d * uint32_t(sizeof(T))};
    }
    __device__ __forceinline__ RectCursor cursor(const TileRect& rect) const {
        return {static_cast<const char*>(p.x), static_cast<const char*>(p.y), rect.r, rect.r_end, rect.c, rect.c, rect.c_end};
    }
};

// A sweep over a rectangle: tile(acc, r, c, scratch) is called for its tiles in order, by all threads; scratch is a stage's
// bytes of shared memory, free from the first barrier of the call on.
template <typename T>
class RectSweep {
  public:
    // Starts the first loads. `computes`: whether there are products at all, or `acc` comes as zeros.
    template <typename Params>
    __device__ __forceinline__ RectSweep(char* stages, const TileOperands<T, Params>& operands, const TileRect& rect,
                                         bool computes = true)
        : rect_(rect), computes_(computes),
          stream_(stages, operands.shape(), operands.cursor(computes ? rect : TileRect{0, 0, 0, 0})) {}

    template <typename Tile>
    __device__ __forceinline__ void run(Tile tile) {
        for (uint32_t r = rect_.r; r < rect_.r_end; ++r) {
            for (uint32_t c = rect_.c; c < rect_.c_end; ++c) {
                TileAcc acc;
#pragma unroll
                for (int e = 0; e < kThreadElements; ++e) acc[e] = 0.0f;
                if (computes_) stream_.accumulate(acc);
                tile(acc, r, c, stream_.scratch());
            }
        }
    }
    // Whether this thread holds tiles, and goes on after run().
    __device__ __forceinline__ bool holds() const { return true; }

  private:
    const TileRect rect_;
    const bool computes_;
    TileStream<T, RectCursor> stream_;
};
