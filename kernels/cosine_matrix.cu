// cosine_matrix — scaled similarities of all rows of X with all rows of Y, for every matrix of a batch.
//
//   out[b, i, j] = scale * ((x_bi . y_bj) inv_x[b, i] inv_y[b, j]), accumulated in f32, rounded to nearest even once
//
//   x (batch, n, d), y (batch, m, d)     T: f32 | f16 | bf16; base, rows and matrices aligned to 16 bytes
//   inv_x (batch, n), inv_y (batch, m)   f32 or null
//   out (batch, n, m)                    f32 | f16 | bf16, any strides; must not alias an input
//
// Work    persistent blocks take tiles t, t + gridDim.x, ... of all matrices; within a matrix the order runs down bands of
//         8 tile rows, so that the tiles in flight at one time share their operands in L2.
// Launch  grid <= number of tiles, block = 256, 98,304 bytes of dynamic shared memory. The grid does not affect the bits.
// Bound   tensor cores (f32: FMA), 2 n m d, or the store of n m elements (f32 output: below d of about 370).
// Order   one order over k per element, whatever the grid, the batch and the position.
// Needs   sm_80.
#include "common/tile.cuh"
#include "common/epilogue.cuh"
#include "params/cosine_matrix.h"

// Tile rows per band: 8 x 16 tiles in flight read 24 operand blocks where a row-major order reads up to 129.
constexpr uint32_t kBand = 8;

struct BatchCursor {
    const CosineMatrixParams& p;
    uint32_t size;  // of an element of x and y
    uint64_t tile;

    struct Place {
        uint32_t matrix, r, c;
    };
    __device__ __forceinline__ uint64_t tiles() const {
        return uint64_t(tiles_of(p.n)) * tiles_of(p.m) * p.batch;
    }
    __device__ __forceinline__ bool valid() const { return tile < tiles(); }
    __device__ __forceinline__ void advance() { tile += gridDim.x; }
    __device__ __forceinline__ Place place() const {
        const uint32_t rows = tiles_of(p.n);
        const uint32_t cols = tiles_of(p.m);
        const uint64_t per_matrix = uint64_t(rows) * cols;
        const uint64_t in_matrix = tile % per_matrix;
        const uint64_t per_band = uint64_t(kBand) * cols;
        const uint32_t first = uint32_t(in_matrix / per_band) * kBand;
        const uint32_t height = min(rows - first, kBand);
        const uint64_t in_band = in_matrix % per_band;
        return {uint32_t(tile / per_matrix), first + uint32_t(in_band % height), uint32_t(in_band / height)};
    }
    __device__ __forceinline__ TileAt at() const {
        const Place place = this->place();
        return {static_cast<const char*>(p.x) + int64_t(place.matrix) * p.x_matrix * size,
                static_cast<const char*>(p.y) + int64_t(place.matrix) * p.y_matrix * size, place.r * kTile, place.c * kTile};
    }
};

__device__ __forceinline__ float round_to(float v, float) { return v; }
__device__ __forceinline__ __half round_to(float v, __half) { return __float2half_rn(v); }
__device__ __forceinline__ __nv_bfloat16 round_to(float v, __nv_bfloat16) { return __float2bfloat16_rn(v); }

__device__ __forceinline__ uint32_t pack(float a, float b, __half) {
    const __half2 v = __floats2half2_rn(a, b);
    return *reinterpret_cast<const uint32_t*>(&v);
}
__device__ __forceinline__ uint32_t pack(float a, float b, __nv_bfloat16) {
    const __nv_bfloat162 v = __floats2bfloat162_rn(a, b);
    return *reinterpret_cast<const uint32_t*>(&v);
}

// `row` points at column 0 of the thread's row of the tile. Every 4 lanes write one full sector of 32 bytes.
__device__ __forceinline__ void store_row(float* row, const float (&v)[8], const TileThread& thread, bool inside) {
    if (!inside) return;
#pragma unroll
    for (int ni = 0; ni < 4; ++ni) {
        __stcs(reinterpret_cast<float2*>(row + thread.col(2 * ni)), make_float2(v[2 * ni], v[2 * ni + 1]));
    }
}
// Two elements of 16 bits per lane would fill half a sector. Neighbouring lanes swap, so that even ones hold 4 elements of
// an even and odd ones 4 elements of an odd group of 8 columns.
template <typename O>
__device__ __forceinline__ void store_row(O* row, const float (&v)[8], const TileThread& thread, bool inside) {
    const bool odd = thread.index & 1;
#pragma unroll
    for (int pair = 0; pair < 2; ++pair) {
        const uint32_t even_group = pack(v[4 * pair], v[4 * pair + 1], O());
        const uint32_t odd_group = pack(v[4 * pair + 2], v[4 * pair + 3], O());
        const uint32_t got = exchange(odd ? even_group : odd_group, 1);
        const uint2 four = odd ? make_uint2(got, odd_group) : make_uint2(even_group, got);
        const uint32_t col = odd ? thread.col(4 * pair + 2) - 2 : thread.col(4 * pair);
        if (inside) __stcs(reinterpret_cast<uint2*>(row + col), four);
    }
}

template <typename O>
__device__ __forceinline__ void store_tile(const TileAcc& acc, const CosineMatrixParams& p, uint32_t matrix,
                                           uint32_t row0, uint32_t col0) {
    const TileThread thread;
    O* const out = static_cast<O*>(p.out) + int64_t(matrix) * p.out_matrix + int64_t(row0) * p.ldo + col0;
    const bool vectors = p.vectors != 0 && col0 + kTile <= p.m;
#pragma unroll
    for (int i = 0; i < kThreadRows; ++i) {
        const bool inside = row0 + thread.row(i) < p.n;
        O* const row = out + int64_t(thread.row(i)) * p.ldo;
        float v[8];
#pragma unroll
        for (int k = 0; k < kThreadCols; ++k) v[k] = element(acc, i, k) * p.scale;
        if (vectors) {
            store_row(row, v, thread, inside);
        } else {
#pragma unroll
            for (int k = 0; k < kThreadCols; ++k) {
                if (inside && col0 + thread.col(k) < p.m) row[thread.col(k)] = round_to(v[k], O());
            }
        }
    }
}

template <typename T>
__device__ __forceinline__ void cosine_matrix_body(const CosineMatrixParams& p) {
    extern __shared__ __align__(128) char stages[];
    const TileShape shape{p.ldx * int64_t(sizeof(T)), p.ldy * int64_t(sizeof(T)), p.n, p.m, p.d * uint32_t(sizeof(T))};
    BatchCursor cursor{p, uint32_t(sizeof(T)), blockIdx.x};
    TileStream<T, BatchCursor> stream(stages, shape, cursor);
    for (; cursor.valid(); cursor.advance()) {
        TileAcc acc;
        for (int e = 0; e < kThreadElements; ++e) acc[e] = 0.0f;
        stream.accumulate(acc);

        const BatchCursor::Place place = cursor.place();
        const uint32_t row0 = place.r * kTile;
        const uint32_t col0 = place.c * kTile;
        const float* inv_x = p.inv_x == nullptr ? nullptr : p.inv_x + int64_t(place.matrix) * p.inv_x_matrix;
        const float* inv_y = p.inv_y == nullptr ? nullptr : p.inv_y + int64_t(place.matrix) * p.inv_y_matrix;
        scale_tile(acc, TileThread(), inv_x, inv_y, row0, col0, p.n, p.m);
        switch (p.out_type) {
            case kOutF32: store_tile<float>(acc, p, place.matrix, row0, col0); break;
            case kOutF16: store_tile<__half>(acc, p, place.matrix, row0, col0); break;
            default: store_tile<__nv_bfloat16>(acc, p, place.matrix, row0, col0); break;
        }
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
