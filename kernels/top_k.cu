// mine_top_k — up to k negatives of every row and of every column of S in one sweep over its tiles; S is never stored.
//
//   S[i, j] = (x_i . y_j) inv_x[i] inv_y[j]
//   survivors of line i: candidates j with low <= S <= high and, with a margin, S < pos[i] - margin (|pos[i]|)
//   list of line i: the survivors with the largest keys, params/top_k.h; keys by similarity, random bits, or weight and noise
//
//   x (n, d), y (m, d)   T: f32 | f16 | bf16, row-major, base and rows aligned to 16 bytes
//   inv_x (n), inv_y (m) f32 or null;  row_ids (n), col_ids (m) i64 or null;  stamps (m) u64 or null;  pos (pairs) f32
//   lists, state         of both directions, params/top_k.h: a slot per split of the other direction
//   No output may alias an input or another output.
//
// Which (i, j) are candidates is decided by index and id alone; NaN is larger than everything, -0 equals +0.
//
// Work    the tiles are dealt to row_splits x col_splits blocks; a block sweeps its rectangle, columns innermost. A finished
//         tile goes through shared memory in two halves of 64 rows; a thread owns a row or a column of it and offers the
//         elements one by one to the line's heap in global memory.
// Launch  grid = (col_splits, row_splits), block = 256, 98,304 bytes of dynamic shared memory.
// Bound   tensor cores (f32: FMA), 2 n m d, and beside them 2 n m comparisons by one thread per line.
// Order   free: the entries with the largest keys are the same set in whatever order they are offered, and keys differ in
//         their index where all else is equal.
// Needs   sm_80.
#include "common/tile.cuh"
#include "common/epilogue.cuh"
#include "common/top_k.cuh"

constexpr uint32_t kHalf = kTile / 2;
static_assert(kHalf * kTile * sizeof(float) <= kStageBytes, "half a tile lives in one stage");

// Element (r, c) of half a tile: neither a row nor a column meets a bank conflict.
__device__ __forceinline__ uint32_t half_at(uint32_t r, uint32_t c) { return r * kTile + ((c + r) & (kTile - 1)); }

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
        : p(params), is_row(thread < kTile), line((is_row ? row0 : col0) + thread % kTile), exists(line < side().len) {
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
        const uint32_t end = min(first + (is_row ? kTile : kHalf), is_row ? p.m : p.n);
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

template <typename T>
__device__ __forceinline__ void top_k_body(const TopKParams& p) {
    extern __shared__ __align__(128) char stages[];
    const uint32_t r_begin = part_begin(tiles_of(p.n), p.row_splits, blockIdx.y);
    const uint32_t r_end = part_begin(tiles_of(p.n), p.row_splits, blockIdx.y + 1);
    const uint32_t c_begin = part_begin(tiles_of(p.m), p.col_splits, blockIdx.x);
    const uint32_t c_end = part_begin(tiles_of(p.m), p.col_splits, blockIdx.x + 1);
    const TileShape shape{p.ldx * int64_t(sizeof(T)), p.ldy * int64_t(sizeof(T)), p.n, p.m, p.d * uint32_t(sizeof(T))};
    TileStream<T, RectCursor> stream(
        stages, shape,
        {static_cast<const char*>(p.x), static_cast<const char*>(p.y), r_begin, r_end, c_begin, c_begin, c_end});

    for (uint32_t r = r_begin; r < r_end; ++r) {
        for (uint32_t c = c_begin; c < c_end; ++c) {
            const uint32_t row0 = r * kTile;
            const uint32_t col0 = c * kTile;
            TileAcc acc;
            for (int e = 0; e < kThreadElements; ++e) acc[e] = 0.0f;
            stream.accumulate(acc);
            const TileThread thread;
            scale_tile(acc, thread, p.inv_x, p.inv_y, row0, col0, p.n, p.m);
            TopKLine line(p, thread.index, row0, col0, thread.index < kTile ? c == c_begin : r == r_begin);
            float* const half = reinterpret_cast<float*>(stream.scratch());
            for (uint32_t h = 0; h < 2; ++h) {
                __syncthreads();  // the stage is free: its products are done, and its first half was scanned
                if (thread.warp_row() == h) {
#pragma unroll
                    for (int i = 0; i < kThreadRows; ++i) {
#pragma unroll
                        for (int k = 0; k < kThreadCols; ++k) half[half_at(thread.row(i) - h * kHalf, thread.col(k))] = element(acc, i, k);
                    }
                }
                __syncthreads();  // the half is in place
                line.scan(half, h, row0, col0);
            }
            line.store();
        }
    }
    // Without a tile nothing has said yet that the lists are empty.
    if (r_begin >= r_end || c_begin >= c_end) {
        for (uint32_t r = r_begin; r < r_end; ++r) {
            if (threadIdx.x < kTile) TopKLine(p, threadIdx.x, r * kTile, 0, true).store();
        }
        for (uint32_t c = c_begin; c < c_end; ++c) {
            if (threadIdx.x >= kTile) TopKLine(p, threadIdx.x, 0, c * kTile, true).store();
        }
    }
}

#define MINE_TOP_K(SUFFIX, T)                                    \
    extern "C" __global__ void __launch_bounds__(kTileThreads, 1) \
        mine_top_k_##SUFFIX(const __grid_constant__ TopKParams p) { \
        top_k_body<T>(p);                                         \
    }
MINE_TOP_K(f32, float)
MINE_TOP_K(f16, __half)
MINE_TOP_K(bf16, __nv_bfloat16)

// mine_top_k_merge — the lists of a line's slots, sorted together; what is left out by rank; the places of the output.
//
//   index, value (len, k), survivors (len) of each direction; -1 and -infinity behind the last one selected
//
// Work    one block per row, then per column; a bitonic sort in shared memory.
// Launch  grid = n + m, block = 128, 16 bytes of dynamic shared memory per entry: the power of two from slots * (skip + keep)
//         on, of the larger direction, at most kTopKMerged.
// Bound   latency.
// Order   free, as above.
struct TopKSorter {
    uint64_t* key;
    float* value;
    int32_t* index;

    __device__ __forceinline__ void set(uint32_t i, const TopKEntry& e) const {
        key[i] = e.key;
        value[i] = e.value;
        index[i] = e.index;
    }
    __device__ __forceinline__ void clear(uint32_t i) const { set(i, {0, neg_infinity(), kNobody}); }

    // Sorts the first `count`, a power of two; a barrier before and after every step.
    __device__ __forceinline__ void sort(uint32_t count) const {
        __syncthreads();
        for (uint32_t size = 2; size <= count; size *= 2) {
            for (uint32_t stride = size / 2; stride > 0; stride /= 2) {
                for (uint32_t t = threadIdx.x; t < count / 2; t += blockDim.x) {
                    const uint32_t a = 2 * t - (t & (stride - 1));
                    const uint32_t b = a + stride;
                    const bool ascending = a & size;
                    const TopKEntry at_a{key[a], value[a], index[a]};
                    const TopKEntry at_b{key[b], value[b], index[b]};
                    if (ascending ? comes_after(at_b, at_a) : comes_after(at_a, at_b)) {
                        set(a, at_b);
                        set(b, at_a);
                    }
                }
                __syncthreads();
            }
        }
    }
};

__device__ __forceinline__ uint32_t power_of_two(uint32_t count) { return count <= 1 ? 1 : 1u << (32 - __clz(count - 1)); }

struct TopKMerger {
    const TopKMergeParams& p;
    const TopKSide& side;
    const uint32_t line;
    const TopKSorter sorter;

    __device__ __forceinline__ uint32_t state(uint32_t plane, uint32_t slot) const {
        return side.state[(size_t(plane) * side.slots + slot) * side.len + line];
    }
    // Fills [begin, end) with the slots' entries, `room` of each from place `first` on; `plane` holds how many there are.
    __device__ __forceinline__ void load(uint32_t begin, uint32_t end, uint32_t first, uint32_t room, uint32_t plane) const {
        for (uint32_t i = begin + threadIdx.x; i < end; i += blockDim.x) {
            const uint32_t slot = (i - begin) / room;
            const uint32_t place = (i - begin) % room;
            if (slot < side.slots && place < state(plane, slot)) {
                sorter.set(i, side.lists[(size_t(slot) * side.len + line) * (side.skip + side.keep) + first + place]);
            } else {
                sorter.clear(i);
            }
        }
    }
    // Of what the slots have left out, all but the hardest can be drawn.
    __device__ __forceinline__ void settle(uint32_t held) const {
        load(0, power_of_two(held), 0, side.skip, 1);
        sorter.sort(power_of_two(held));
        const TopKKeys keys{side.start, p.far, p.near, p.pick};
        for (uint32_t i = threadIdx.x; i < held; i += blockDim.x) {
            const int32_t index = sorter.index[i];
            if (i < side.skip || index < 0) sorter.clear(i);
            else sorter.key[i] = keys.key(line, index, sorter.value[i]);
        }
        __syncthreads();  // places behind `held` are filled next
    }
    __device__ __forceinline__ void write(uint32_t count, int32_t* index, float* value, uint32_t* survivors) const {
        for (uint32_t q = threadIdx.x; q < p.k; q += blockDim.x) {
            const bool some = p.drop + q < count && sorter.index[p.drop + q] >= 0;
            index[size_t(line) * p.k + q] = some ? sorter.index[p.drop + q] : kNobody;
            value[size_t(line) * p.k + q] = some ? sorter.value[p.drop + q] : neg_infinity();
        }
        if (threadIdx.x != 0) return;
        uint32_t total = 0;
        TopKEntry least{0, 0.0f, kNobody};
        for (uint32_t slot = 0; slot < side.slots; ++slot) {
            total += state(2, slot);
            const float v = __uint_as_float(state(4, slot));
            const TopKEntry e{order_key(v), v, int32_t(state(3, slot))};
            const bool lower = e.key < least.key || (e.key == least.key && e.index < least.index);
            if (e.index >= 0 && (least.index < 0 || lower)) least = e;
        }
        survivors[line] = total;
        if (p.easiest && total == 0 && least.index >= 0) {
            index[size_t(line) * p.k] = least.index;
            value[size_t(line) * p.k] = least.value;
        }
    }
};

extern "C" __global__ void __launch_bounds__(128) mine_top_k_merge(const __grid_constant__ TopKMergeParams p) {
    extern __shared__ __align__(16) char sorted[];
    const bool is_row = blockIdx.x < p.rows.len;
    const TopKSide& side = is_row ? p.rows : p.cols;
    const uint32_t held = side.slots * side.skip;
    const uint32_t count = power_of_two(held + side.slots * side.keep);
    uint64_t* const key = reinterpret_cast<uint64_t*>(sorted);
    float* const value = reinterpret_cast<float*>(key + count);
    const TopKSorter sorter{key, value, reinterpret_cast<int32_t*>(value + count)};
    const TopKMerger merger{p, side, is_row ? blockIdx.x : blockIdx.x - p.rows.len, sorter};
    if (held > 0) merger.settle(held);
    merger.load(held, count, side.skip, side.keep, 0);
    sorter.sort(count);
    if (is_row) merger.write(count, p.row_index, p.row_value, p.row_survivors);
    else merger.write(count, p.col_index, p.col_value, p.col_survivors);
}
