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
//         tile goes through shared memory in parts of 64 x 64. Two lanes have a line of a part, 32 elements each: they count
//         survivors and find those above the last entry of the line's list by comparisons alone; the few that are go to the
//         list one by one, in ascending order of their indices. A list of at most 8 places by similarity is held in
//         registers for the part, any other is a heap in global memory. To random and weighted picks all survivors go.
// Launch  grid = (col_splits, row_splits), block = 256, 98,304 bytes of dynamic shared memory.
// Bound   tensor cores (f32: FMA), 2 n m d, and behind them, tile by tile, 2 n m comparisons by all threads, and about
//         k (1 + ln(candidates of the slot / k)) entries per line and slot, which a warp takes one after the other.
// Order   free: the entries with the largest keys are the same set in whatever order they are offered, and keys differ in
//         their index where all else is equal.
// Needs   sm_80.
#include "common/tile.cuh"
#include "common/top_k_select.cuh"

template <typename T>
__device__ __forceinline__ void top_k_body(const TopKParams& p) {
    extern __shared__ __align__(128) char stages[];
    const TileRect rect = tile_rect(0, tiles_of(p.n), p.m, p.row_splits, p.col_splits);
    RectSweep<T> sweep(stages, TileOperands<T, TopKParams>{p}, rect);
    select_tiles(p, sweep, rect);
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
// Work    one block per row, then per column. Of at most 128 entries a thread has one each and counts those before it; more,
//         or lists of what is left out, go through a bitonic sort in shared memory.
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
                const TopKEntry* const list = side.lists + (size_t(slot) * side.len + line) * (side.skip + side.keep);
                sorter.set(i, load_entry(list + first + place));
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
    // Of all entries, if each thread can have one: it goes where the number of those before it says.
    __device__ __forceinline__ void rank(uint32_t count, int32_t* index, float* value) const {
        const uint32_t t = threadIdx.x;
        const bool some = t < count && t % side.keep < state(0, t / side.keep);
        TopKEntry own{0, neg_infinity(), kNobody};
        if (some) own = load_entry(side.lists + (size_t(t / side.keep) * side.len + line) * side.keep + t % side.keep);
        if (t < count) {
            sorter.key[t] = own.key;
            sorter.index[t] = own.index;
        }
        const uint32_t found = __syncthreads_count(some);
        for (uint32_t q = t; q < p.k; q += blockDim.x) {
            if (p.drop + q >= found) put(index, value, q, kNobody, neg_infinity());
        }
        if (!some) return;
        uint32_t before = 0;
#pragma unroll 8
        for (uint32_t i = 0; i < count; ++i) before += comes_after(own.key, own.index, sorter.key[i], sorter.index[i]);
        if (before >= p.drop && before - p.drop < p.k) put(index, value, before - p.drop, own.index, own.value);
    }
    __device__ __forceinline__ void put(int32_t* index, float* value, uint32_t place, int32_t i, float v) const {
        index[size_t(line) * p.k + place] = i;
        value[size_t(line) * p.k + place] = v;
    }
    __device__ __forceinline__ void write(uint32_t count, int32_t* index, float* value) const {
        for (uint32_t q = threadIdx.x; q < p.k; q += blockDim.x) {
            const bool some = p.drop + q < count && sorter.index[p.drop + q] >= 0;
            put(index, value, q, some ? sorter.index[p.drop + q] : kNobody, some ? sorter.value[p.drop + q] : neg_infinity());
        }
    }
    // By the first warp, whose first thread has written the first place if nothing survives.
    __device__ __forceinline__ void finish(int32_t* index, float* value, uint32_t* survivors) const {
        if (threadIdx.x >= 32) return;
        uint32_t total = 0;
        for (uint32_t slot = threadIdx.x; slot < side.slots; slot += 32) total += state(2, slot);
        total = __reduce_add_sync(~0u, total);
        if (threadIdx.x == 0) survivors[line] = total;
        if (!p.easiest || total > 0 || threadIdx.x != 0) return;
        TopKEntry least{0, 0.0f, kNobody};
        for (uint32_t slot = 0; slot < side.slots; ++slot) {
            const float v = __uint_as_float(state(4, slot));
            const TopKEntry e{order_key(v), v, int32_t(state(3, slot))};
            const bool lower = e.key < least.key || (e.key == least.key && e.index < least.index);
            if (e.index >= 0 && (least.index < 0 || lower)) least = e;
        }
        if (least.index >= 0) put(index, value, 0, least.index, least.value);
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
    int32_t* const index = is_row ? p.row_index : p.col_index;
    float* const best = is_row ? p.row_value : p.col_value;
    if (held == 0 && count <= blockDim.x) {
        merger.rank(side.slots * side.keep, index, best);
    } else {
        if (held > 0) merger.settle(held);
        merger.load(held, count, side.skip, side.keep, 0);
        sorter.sort(count);
        merger.write(count, index, best);
    }
    merger.finish(index, best, is_row ? p.row_survivors : p.col_survivors);
}
