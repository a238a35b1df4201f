// The body of the mining kernels of all engines but warpgroups. Included behind the engine.
#pragma once
#include "common/mine.cuh"
#include "common/tile_sweep.cuh"

template <typename T, bool kStats>
__device__ __forceinline__ void mine_body(const MineParams& p) {
    extern __shared__ __align__(128) char stages[];
    __shared__ TileMaxima values;
    if constexpr (sizeof(T) == 4 && !kStats) {
        if (p.screen != nullptr && !p.screen->failed()) return;
    }
    const TileRect rect = mine_rect(p);
    RectSweep<T> sweep(stages, TileOperands<T, MineParams>{p}, rect);
    float threshold = 0.0f;
    if (kStats && p.stats >= kStatsLin) {
        // The maxima are not written before the first barrier of the sweep.
        threshold = block_threshold(p.pmin, p.pmin_count, p.eps, values.rows[0]);
    }
    mine_tiles<kStats>(p, sweep, rect, threshold, values);
}
