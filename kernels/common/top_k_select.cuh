// What mine_top_k_* do with a tile, whichever engine makes it: see top_k.cu. Included behind the engine's sweep.
#pragma once
#include "common/epilogue.cuh"
#include "common/top_k.cuh"

constexpr uint32_t kHalf = kTile / 2;
static_assert(kHalf * kTileCols * sizeof(float) <= kScratchBytes, "half a tile lives in the sweep's scratch memory");

// Element (r, c) of half a tile: neither a row nor a column meets a bank conflict.
__device__ __forceinline__ uint32_t half_at(uint32_t r, uint32_t c) { return r * kTileCols + ((c + r) & (kTileCols - 1)); }

// One line (a row or a column of the tile at hand), in one slot of its direction.
struct TopKLine {
    const TopKParams& p;
    const bool is_row;
    const uint32_t line;
    const bool exists;
    uint32_t slot;
    uint32_t survivors;
    int32_t easiest_index;
    float easiest;
    float low;
    float high;
    int64_t id;
    TopKHeap left_out;
    TopKHeap best;

    __device__ __forceinline__ const TopKSide& side() const { return is_row ? p.rows : p.cols; }
    __device__ __forceinline__ uint32_t* state(uint32_t plane) const {
        const TopKSide& s = side();
        return s.state + (size_t(plane) * s.slots + slot) * s.len + line;
    }

    __device__ __forceinline__ TopKLine(const TopKParams& params, uint32_t thread, uint32_t row0, uint32_t col0, bool first)
        : p(params), is_row(thread < kTile), line((is_row ? row0 : col0) + thread % kTile), exists(thread < kTile + kTileCols && line < side().len) {
        slot = is_row ? p.row_slot + blockIdx.x : blockIdx.y;
        survivors = 0;
        easiest_index = kNobody;
        easiest = 0.0f;
        if (!exists) return;
        const TopKSide& s = side();
        TopKEntry* const list = s.lists + (size_t(slot) * s.len + line) * (s.skip + s.keep);
        best.open(list + s.skip, s.keep, first ? 0 : *state(0));
        left_out.open(list, s.skip, first ? 0 : *state(1));
        if (!first) {
            survivors = *state(2);
            easiest_index = int32_t(*state(3));
            easiest = __uint_as_float(*state(4));
        }
        id = p.row_ids == nullptr ? 0 : (is_row ? p.row_ids : p.col_ids)[line];
        set_bounds();
    }

    // The similarities of survivors: the window, and what is strictly below the margin's bound as the f64 that it is.
    __device__ __forceinline__ void set_bounds() {
        low = p.low;
        high = p.high;
        if (p.margin_kind == kMarginNone) return;
        const double pos = line < p.pairs ? double(p.pos[line]) : double(__int_as_float(0x7fc00000));
        const double width = p.margin_kind == kMarginAbsolute ? p.margin : __dmul_rn(p.margin, fabs(pos));
        const double bound = __dsub_rn(pos, width);
        const float down = __double2float_rd(bound);
        const float limit = double(down) == bound ? bound_below(down) : down;
        if (!(limit >= high)) high = limit;
    }

    __device__ __forceinline__ void store() const {
        if (!exists) return;
        *state(0) = best.count;
        *state(1) = left_out.count;
        *state(2) = survivors;
        *state(3) = uint32_t(easiest_index);
        *state(4) = __float_as_uint(easiest);
    }

    // A candidate, whatever its value.
    __device__ __forceinline__ void offer(float value, int32_t index) {
        if (p.easiest) {
            const uint64_t key = order_key(value);
            const uint64_t least = order_key(easiest);
            if (easiest_index < 0 || key < least || (key == least && index < easiest_index)) {
                easiest = value;
                easiest_index = index;
            }
        }
        if (!((value >= low && value <= high) || (p.admits_nan && value != value))) return;
        survivors += 1;
        TopKEntry e{order_key(value), value, index};
        if (left_out.places > 0) {
            if (left_out.takes(e)) e = left_out.put(e);
            if (e.index < 0) return;
        }
        if (p.pick != kPickHardest) e.key = TopKKeys{side().start, p.far, p.near, p.pick}.key(line, e.index, e.value);
        if (best.takes(e)) best.put(e);
    }

    // The line's elements in half `h` of the tile.
    __device__ __forceinline__ void scan(const float* half, uint32_t h, uint32_t row0, uint32_t col0) {
        const uint32_t in_tile = threadIdx.x % kTile;
        if (!exists || (is_row && in_tile / kHalf != h)) return;
        const uint32_t first = is_row ? col0 : row0 + h * kHalf;
        const uint32_t end = min(first + (is_row ? kTileCols : kHalf), is_row ? p.m : p.n);
        const int64_t* const ids = p.row_ids == nullptr ? nullptr : is_row ? p.col_ids : p.row_ids;
#pragma unroll 1
        for (uint32_t c = first; c < end; ++c) {
            const float value = is_row ? half[half_at(in_tile % kHalf, c - first)] : half[half_at(c - first, in_tile)];
            if (p.own_pairs && c == line) continue;
            if (ids != nullptr && ids[c] == id && (p.stamps == nullptr || p.stamps[c] >= p.oldest)) continue;
            offer(value, int32_t(is_row ? p.offset + c : c));
        }
    }
};

template <typename Sweep>
__device__ __forceinline__ void select_tiles(const TopKParams& p, Sweep& sweep, const TileRect& rect) {
    sweep.run([&](TileAcc& acc, uint32_t r, uint32_t c, char* scratch) {
        const uint32_t row0 = r * kTile;
        const uint32_t col0 = c * kTileCols;
        const TileThread thread;
        scale_tile(acc, thread, p.inv_x, p.inv_y, row0, col0, p.n, p.m);
        TopKLine line(p, thread.index, row0, col0, thread.index < kTile ? c == rect.c : r == rect.r);
        float* const half = reinterpret_cast<float*>(scratch);
        for (uint32_t h = 0; h < 2; ++h) {
            tile_sync();  // the scratch memory is free: its products are done, and its first half was scanned
            if (thread.warp_row() / (kWarpRows / 2) == h) {
#pragma unroll
                for (int i = 0; i < kThreadRows; ++i) {
#pragma unroll
                    for (int k = 0; k < kThreadCols; ++k) {
                        half[half_at(thread.row(i) - h * kHalf, thread.col(k))] = element(acc, i, k);
                    }
                }
            }
            tile_sync();  // the half is in place
            line.scan(half, h, row0, col0);
        }
        line.store();
    });
    if (!rect.empty() || !sweep.holds()) return;
    // Without a tile nothing has said yet that the lists are empty.
    const TileThread thread;
    for (uint32_t r = rect.r; r < rect.r_end; ++r) {
        if (thread.index < kTile) TopKLine(p, thread.index, r * kTile, 0, true).store();
    }
    for (uint32_t c = rect.c; c < rect.c_end; ++c) {
        if (thread.index >= kTile) TopKLine(p, thread.index, 0, c * kTileCols, true).store();
    }
}

#ifdef SIMGRAD_GROUP_TILE
template <typename T>
__device__ __forceinline__ void select_groups(const TensorMaps& maps, const TopKParams& p) {
    extern __shared__ __align__(1024) char shared[];
    const TileRect rect = tile_rect(0, tiles_of(p.n), p.m, p.row_splits, p.col_splits);
    RectSweep<T> sweep(shared, maps, p.d, rect);
    select_tiles(p, sweep, rect);
}
#endif
