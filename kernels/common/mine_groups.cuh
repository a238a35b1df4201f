// The bodies of the mining kernels on warpgroups.
#pragma once
#include "common/group_tile.cuh"
#include "common/mine.cuh"
#include "common/mine_keys.cuh"

template <typename T, bool kStats>
__device__ __forceinline__ void mine_groups(const TensorMaps& maps, const MineParams& p) {
    extern __shared__ __align__(1024) char shared[];
    const TileRect rect = mine_rect(p);
    if constexpr (kStats) {
        __shared__ TileMaxima values;
        // The block meets in the sweep's constructor, behind the reads of the threshold's scratch memory.
        const float threshold = p.stats >= kStatsLin ? block_threshold(p.pmin, p.pmin_count, p.eps, values.rows[0]) : 0.0f;
        RectSweep<T> sweep(shared, maps, p.d, rect);
        mine_tiles<true>(p, sweep, rect, threshold, values);
    } else {
        RectSweep<T> sweep(shared, maps, p.d, rect);
        mine_keys(p, sweep, rect);
    }
}
