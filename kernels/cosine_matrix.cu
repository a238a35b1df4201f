// cosine_matrix — scaled similarities of all rows of X with all rows of Y, for every matrix of a batch.
//
//   out[b, i, j] = scale * ((x_bi . y_bj) inv_x[b, i] inv_y[b, j]), accumulated in f32, rounded to nearest even once
//
//   x (batch, n, d), y (batch, m, d)     T: f32 | f16 | bf16; base, rows and matrices aligned to 16 bytes
//   inv_x (batch, n), inv_y (batch, m)   f32 or null
//   out (batch, n, m)                    f32 | f16 | bf16, any strides; must not alias an input
//
// Work    persistent blocks take tiles t, t + gridDim.x, ... of all matrices, in the order of common/cosine_matrix.cuh.
// Launch  grid <= number of tiles, block = 256, 98,304 bytes of dynamic shared memory. The grid does not affect the bits.
// Bound   tensor cores (f32: FMA), 2 n m d, or the store of n m elements (f32 output: below d of about 370).
// Order   one order over k per element, whatever the grid, the batch and the position.
// Needs   sm_80.
#include "common/tile.cuh"
#include "common/cosine_matrix.cuh"

struct BatchCursor {
    const CosineMatrixParams& p;
    uint32_t size;  // of an element of x and y
    uint64_t tile;

    __device__ __forceinline__ MatrixUnits units() const { return {tiles_of(p.n), tiles_of(p.m), p.batch}; }
    __device__ __forceinline__ bool valid() const { return tile < units().count(); }
    __device__ __forceinline__ void advance() { tile += gridDim.x; }
    __device__ __forceinline__ MatrixUnits::Place place() const { return units().place(tile); }
    __device__ __forceinline__ TileAt at() const {
        const MatrixUnits::Place place = this->place();
        return {static_cast<const char*>(p.x) + int64_t(place.matrix) * p.x_matrix * size,
                static_cast<const char*>(p.y) + int64_t(place.matrix) * p.y_matrix * size, place.r * kTile, place.c * kTile};
    }
};

template <typename T>
__device__ __forceinline__ void cosine_matrix_body(const CosineMatrixParams& p) {
    extern __shared__ __align__(128) char stages[];
    BatchCursor cursor{p, uint32_t(sizeof(T)), blockIdx.x};
    TileStream<T, BatchCursor> stream(stages, TileOperands<T, CosineMatrixParams>{p}.shape(), cursor);
    for (; cursor.valid(); cursor.advance()) {
        TileAcc acc;
#pragma unroll
        for (int e = 0; e < kThreadElements; ++e) acc[e] = 0.0f;
        stream.accumulate(acc);
        const MatrixUnits::Place place = cursor.place();
        finish_tile(acc, p, place.matrix, place.r * kTile, place.c * kTile);
    }
}

#define COSINE_MATRIX(SUFFIX, T)                                           \
    extern "C" __global__ void __launch_bounds__(kTileThreads, kTileBlocksOf<T>) \
        cosine_matrix_##SUFFIX(const __grid_constant__ CosineMatrixParams p) { \
        cosine_matrix_body<T>(p);                                          \
    }
COSINE_MATRIX(f32, float)
COSINE_MATRIX(f16, __half)
COSINE_MATRIX(bf16, __nv_bfloat16)
