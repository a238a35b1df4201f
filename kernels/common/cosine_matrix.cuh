// Order and stores of cosine_matrix_*, whichever engine makes the tiles: see cosine_matrix.cu. Included behind the engine.
#pragma once
#include "common/epilogue.cuh"
#include "params/cosine_matrix.h"

// Rows of units per band: 8 x 16 units in flight read 24 operand blocks where a row-major order reads up to 129.
constexpr uint32_t kBand = 8;

// The units of all matrices, what a block or a cluster makes at a time. Within a matrix the order runs down bands of kBand rows
// of units, so that those in flight at one time share their operands in L2.
struct MatrixUnits {
    uint32_t rows;  // of one matrix
    uint32_t cols;
    uint32_t batch;

    struct Place {
        uint32_t matrix, r, c;
    };
    __device__ __forceinline__ uint64_t count() const { return uint64_t(rows) * cols * batch; }
    __device__ __forceinline__ Place place(uint64_t unit) const {
        const uint64_t per_matrix = uint64_t(rows) * cols;
        const uint64_t in_matrix = unit % per_matrix;
        const uint64_t per_band = uint64_t(kBand) * cols;
        const uint32_t first = uint32_t(in_matrix / per_band) * kBand;
        const uint32_t height = min(rows - first, kBand);
        const uint64_t in_band = in_matrix % per_band;
        return {uint32_t(unit / per_matrix), first + uint32_t(in_band % height), uint32_t(in_band / height)};
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
__device__ __forceinline__ void store_row(float* row, const float (&v)[kThreadCols], const TileThread& thread, bool inside) {
    if (!inside) return;
#pragma unroll
    for (int ni = 0; ni < kThreadCols / 2; ++ni) {
        __stcs(reinterpret_cast<float2*>(row + thread.col(2 * ni)), make_float2(v[2 * ni], v[2 * ni + 1]));
    }
}
// Two elements of 16 bits per lane would fill half a sector. Neighbouring lanes swap, so that even ones hold 4 elements of
// an even and odd ones 4 elements of an odd group of 8 columns.
template <typename O>
__device__ __forceinline__ void store_row(O* row, const float (&v)[kThreadCols], const TileThread& thread, bool inside) {
    const bool odd = thread.index & 1;
#pragma unroll
    for (int pair = 0; pair < kThreadCols / 4; ++pair) {
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
    const bool vectors = p.vectors != 0 && col0 + kTileCols <= p.m;
#pragma unroll
    for (int i = 0; i < kThreadRows; ++i) {
        const bool inside = row0 + thread.row(i) < p.n;
        O* const row = out + int64_t(thread.row(i)) * p.ldo;
        float v[kThreadCols];
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

// Scales a tile and stores what of it exists.
__device__ __forceinline__ void finish_tile(TileAcc& acc, const CosineMatrixParams& p, uint32_t matrix, uint32_t row0,
                                            uint32_t col0) {
    const float* const inv_x = p.inv_x == nullptr ? nullptr : p.inv_x + int64_t(matrix) * p.inv_x_matrix;
    const float* const inv_y = p.inv_y == nullptr ? nullptr : p.inv_y + int64_t(matrix) * p.inv_y_matrix;
    scale_tile(acc, TileThread(), inv_x, inv_y, row0, col0, p.n, p.m);
    switch (p.out_type) {
        case kOutF32: store_tile<float>(acc, p, matrix, row0, col0); break;
        case kOutF16: store_tile<__half>(acc, p, matrix, row0, col0); break;
        default: store_tile<__nv_bfloat16>(acc, p, matrix, row0, col0); break;
    }
}

#ifdef SIMGRAD_GROUP_TILE
// Clusters take units of kClusterBlocks x kStepTiles tiles in turn, a block of each a row of tiles of every unit.
template <typename T>
__device__ __forceinline__ void matrix_groups(const TensorMaps& maps, const CosineMatrixParams& p) {
    extern __shared__ __align__(1024) char shared[];
    const MatrixUnits units{(tiles_of(p.n) + kClusterBlocks - 1) / kClusterBlocks, (p.m + kStepCols - 1) / kStepCols, p.batch};
    const uint64_t first = blockIdx.x / kClusterBlocks;
    const uint32_t clusters = gridDim.x / kClusterBlocks;
    const auto row_of = [](const MatrixUnits::Place& at) {
        return (at.r * kClusterBlocks + blockIdx.x % kClusterBlocks) * kTile;
    };
    GroupStream<T> stream(shared, maps, p.d);
    if (stream.holds()) {
        take_registers<kHolderRegisters>();
        StageAt stage;
        for (uint64_t unit = first; unit < units.count(); unit += clusters) {
            float acc[kStepTiles * kThreadElements];
            stream.template multiply_step<true>(stage, acc);
            const MatrixUnits::Place at = units.place(unit);
#pragma unroll
            for (int t = 0; t < kStepTiles; ++t) {
                const uint32_t col0 = at.c * kStepCols + t * kTileCols;
                if (col0 >= p.m) break;
                finish_tile(reinterpret_cast<TileAcc&>(acc[t * kThreadElements]), p, at.matrix, row_of(at), col0);
            }
        }
    } else {
        give_registers<kCopierRegisters>();
        if (threadIdx.x == kHolders) {
            StageAt stage{0, 1};
            stream.begin_copies();
            for (uint64_t unit = first; unit < units.count(); unit += clusters) {
                const MatrixUnits::Place at = units.place(unit);
                // A matrix that repeats is the only one of its map.
                stream.copy_step(stage, row_of(at), at.c * kStepCols, p.x_matrix == 0 ? 0 : at.matrix,
                                 p.y_matrix == 0 ? 0 : at.matrix);
            }
        }
    }
    stream.end();
}
#endif
