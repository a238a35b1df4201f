// Which elements of a tile may be the largest of their row or column, once a bound is known for each: nearly none. What every
// engine does behind its products.
//
// A warp collects them in shared memory and puts 32 at a time on the list, so that the list's counter is raised rarely.
#pragma once
#include "common/epilogue.cuh"
#include "common/order.cuh"
#include "params/mine_screen.h"

constexpr uint32_t kScreenBatch = 32;  // of a warp's candidates: no more can come at a time
struct ScreenBatches {
    uint64_t entries[kTileThreads / 32][kScreenBatch];
};

struct Screener {
    const ScreenParams& p;
    ScreenBatches& batches;
    uint32_t count = 0;  // of the warp's batch

    __device__ __forceinline__ Screener(const ScreenParams& params, ScreenBatches& shared) : p(params), batches(shared) {}

    // All threads of a warp.
    __device__ __forceinline__ void tile(const TileAcc& acc, uint32_t row0, uint32_t col0) {
        const TileThread thread;
        float rows[kThreadRows];
        float over = neg_infinity();  // the most by which a column's bound is reached
        const auto* const bounds = reinterpret_cast<const float2*>(p.col_bound + (col0 + thread.first_col));
#pragma unroll
        for (int k = 0; k < kThreadCols; k += 2) {
            const float2 bound = __ldg(bounds + (thread.col(k) - thread.first_col) / 2);
            float cols[2];
#pragma unroll
            for (int i = 0; i < kThreadRows; ++i) {
#pragma unroll
                for (int h = 0; h < 2; ++h) {
                    const float s = element(acc, i, k + h);
                    rows[i] = k + h == 0 ? s : fmaxf(rows[i], s);
                    cols[h] = i == 0 ? s : fmaxf(cols[h], s);
                }
            }
            over = fmaxf(over, fmaxf(cols[0] - bound.x, cols[1] - bound.y));
        }
        bool any = over >= 0.0f;
#pragma unroll
        for (int i = 0; i < kThreadRows; ++i) any |= rows[i] >= __ldg(p.row_bound + row0 + thread.row(i));
        if (__any_sync(~0u, any)) collect(acc, row0, col0);
    }

    __device__ __forceinline__ void flush() {
        if (count == 0) return;
        const uint32_t lane = threadIdx.x & 31;
        __syncwarp();  // the batch is written
        unsigned long long first = 0;
        if (lane == 0) {
            first = atomicAdd(reinterpret_cast<unsigned long long*>(&p.state->candidates), count);
            if (first + count > p.capacity) atomicOr(&p.state->overflow, 1u);
        }
        first = __shfl_sync(~0u, first, 0);
        if (lane < count && first + lane < p.capacity) p.list[first + lane] = batches.entries[threadIdx.x >> 5][lane];
        __syncwarp();  // and read
        count = 0;
    }

  private:
    __device__ __forceinline__ bool is_candidate(uint32_t row, uint32_t col) const {
        if (row == col) return false;
        return p.row_groups == nullptr || __ldg(p.row_groups + row) != __ldg(p.col_groups + col);
    }

    __device__ __forceinline__ void collect(const TileAcc& acc, uint32_t row0, uint32_t col0) {
        // Nobody reads the list once it is known to be too short.
        uint32_t overflow;
        asm volatile("ld.relaxed.gpu.global.u32 %0, [%1];" : "=r"(overflow) : "l"(&p.state->overflow) : "memory");
        if (__any_sync(~0u, overflow != 0)) return;
        const TileThread thread;  // anew: beside the accumulators there is no room for what tile() has loaded
        // Which elements reach a bound, a bit each, by code as short as it can be; then, rolled up, what each of them needs. One
        // warp in ten comes here, and while it is here all others of its cluster wait for it: unrolled, it would not fit the
        // instruction cache.
        TileBits over = 0;
#pragma unroll
        for (int k = 0; k < kThreadCols; k += 2) {
            const float2 bound = __ldg(reinterpret_cast<const float2*>(p.col_bound + (col0 + thread.col(k))));
#pragma unroll
            for (int i = 0; i < kThreadRows; ++i) {
                if (element(acc, i, k) >= bound.x) over |= TileBits(1) << bit_at(i, k);
                if (element(acc, i, k + 1) >= bound.y) over |= TileBits(1) << bit_at(i, k + 1);
            }
        }
#pragma unroll
        for (int i = 0; i < kThreadRows; ++i) {
            const float bound = __ldg(p.row_bound + row0 + thread.row(i));
#pragma unroll
            for (int k = 0; k < kThreadCols; ++k) {
                if (element(acc, i, k) >= bound) over |= TileBits(1) << bit_at(i, k);
            }
        }
#pragma unroll 1
        while (__any_sync(~0u, over != 0)) {
            const int bit = __ffsll(static_cast<long long>(over)) - 1;  // -1: none of this lane's is left
            const uint32_t row = row0 + thread.row(bit / kThreadCols), col = col0 + thread.col(bit % kThreadCols);
            // Bounds of rows and columns that do not exist are infinite, but the other one may let it pass.
            append(bit >= 0 && row < p.n && col < p.m && is_candidate(row, col), row, col);
            over &= over - 1;
        }
    }

    __device__ __forceinline__ void append(bool passes, uint32_t row, uint32_t col) {
        const uint32_t votes = __ballot_sync(~0u, passes);
        const uint32_t more = __popc(votes), lane = threadIdx.x & 31;
        if (count + more > kScreenBatch) flush();
        if (passes) {
            batches.entries[threadIdx.x >> 5][count + __popc(votes & ((1u << lane) - 1))] = uint64_t(row) << 32 | col;
        }
        count += more;
    }
};

// The rectangle of this block: nothing where the rows are not fit for it, which earlier kernels have found out.
__device__ __forceinline__ TileRect screen_rect(const ScreenParams& p) {
    if (p.state->unfit != 0) return {0, 0, 0, 0};
    return tile_rect(0, tiles_of(p.n), p.m, p.row_splits, p.col_splits);
}
