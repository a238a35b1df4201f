// What every way to mine a tile begins with: which tiles, which of their elements.
#pragma once
#include "common/epilogue.cuh"
#include "common/mining.cuh"

// A bound that, of elements none of which beats `top`, only those equal to it exceed. -infinity: all of them do, and the
// candidates' bits tell.
__device__ __forceinline__ float lookup_bound(float top) { return top != top ? pos_infinity() : bound_below(top); }

// The tiles of this block.
__device__ __forceinline__ TileRect mine_rect(const MineParams& p) {
    if (p.select != kSelectPair) return tile_rect(0, tiles_of(p.n), p.m, p.row_splits, p.col_splits);
    // Those on the diagonal, side by side where they are narrower than high.
    constexpr uint32_t kAcross = kTile / kTileCols;
    const uint32_t c = blockIdx.x * kAcross;
    return {blockIdx.x, min(blockIdx.x + 1, tiles_of(p.n)), c, min(c + kAcross, tile_cols_of(p.m))};
}

__device__ __forceinline__ TileBits mining_candidates(const MineParams& p, const TileThread& thread, uint32_t row0,
                                                      uint32_t col0) {
    const int64_t* const row_groups = p.select == kSelectPair ? nullptr : p.row_groups;
    return select_elements(thread, row0, col0, p.n, p.m, row_groups, p.col_groups, [&](bool pair, bool same) {
        return p.select == kSelectNegatives ? !pair && !same : p.select == kSelectPair ? pair : same;
    });
}

__device__ __forceinline__ void write_pairs(const MineParams& p, const TileThread& thread, const TileAcc& acc, uint32_t row0,
                                            uint32_t col0) {
#pragma unroll
    for (int i = 0; i < kThreadRows; ++i) {
#pragma unroll
        for (int k = 0; k < kThreadCols; ++k) {
            const uint32_t row = row0 + thread.row(i);
            if (row == col0 + thread.col(k) && row < p.n && row < p.m) p.pos[row] = element(acc, i, k);
        }
    }
}

// Sets what is no candidate to -infinity. Returns whether one of the thread's candidates is -infinity, which values alone no
// longer tell.
__device__ __forceinline__ bool mask_others(TileAcc& acc, TileBits candidates) {
    bool neg_inf = false;
#pragma unroll
    for (int i = 0; i < kThreadRows; ++i) {
#pragma unroll
        for (int k = 0; k < kThreadCols; ++k) {
            float& s = element(acc, i, k);
            const bool candidate = candidates >> bit_at(i, k) & 1;
            neg_inf |= candidate && s == neg_infinity();
            if (!candidate) s = neg_infinity();
        }
    }
    return neg_inf;
}
