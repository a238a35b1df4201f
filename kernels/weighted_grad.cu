// weighted_grad: dX (+)= u W Y and dY (+)= u W^T X for a sparse W, through the normalisation where rows are normalised.
//
//   g_i  = sum_j W_ij v_j,  v_j the row as the similarities see it            (eq. 9, docs/maths.md)
//   dx_i = u g_i,  or with normalised rows  u (g_i - u_i (u_i . g_i)) / r_i;  exactly 0 for a zero row
//
//   weighted_grad_invert: for index triples (rows, cols, values) the terms of every row of X and of Y
//     rows, cols (count) i32;  list, spare (count) u32, offsets (targets + 1) u32 per side;  report (2) u32
//     A triple with an index out of range is left out on both sides and counted.
//   weighted_grad_count, weighted_grad_place for each 9 bits of row numbers, weighted_grad_offsets: the same of many triples
//     counts (passes, blocks, 512) u32 per side
//   weighted_grad_hubs_*: g of the rows with at least 2048 entries in the index, where they have no other terms
//     hubs (ceil(count / 2048), width) f32 per side
//   weighted_grad_*: the sums
//     own, other (rows, d) T: f32 | f16 | bf16, base and rows aligned to 16 bytes;  out (rows, d) G: T or f32, any stride
//     Terms of a row, added in this order: its pair, its own negative, the entries of the inverse index ascending.
//   Outputs must not alias anything.
//
// Work    invert: one block per side. count, place: a block per chunk of the triples and side. offsets: a thread per place of
//         the lists. hubs: a block per 64 columns and per row of the sums. Sums: one block per row of X, then of Y; a thread
//         holds 8 columns at a time and loads 8 terms of them (f32: 4) before it adds the first. Rows wider than 2048 are
//         summed twice, for u_i . g_i and for the result.
// Launch  invert: grid = 2, block = 512, 2 KiB of static shared memory.
//         count, place: grid = (ceil(count / chunk), 2), at most (64, 2), block = 512, 2 and 33 KiB of static shared
//         memory.
//         offsets: grid = (ceil((count + 1) / 512), 2), block = 512.
//         hubs: grid = (ceil(count / 2048) width / 64, 2), block = 256, 38 KiB (f32: 35 KiB) of static shared memory.
//         Sums: grid = rows of X + rows of Y, block = 32 ceil(d / 256) up to 256, 2 KiB of static shared memory.
// Bound   invert to hubs: latency. Sums: memory; every term reads d elements, mostly from L2; d elements are written per row.
// Order   fixed, see the terms; u_i . g_i by a fixed tree. No float atomics: the counter of overflows is an integer.
// Needs   sm_80.
#include "common/gather_hubs.cuh"
#include "common/radix.cuh"
#include "common/radix_blocks.cuh"

namespace {

constexpr uint32_t kInvertWarps = kInvertThreads / kWarpSize;
constexpr uint32_t kBlocks = 3;        // on a multiprocessor: up to 80 registers per thread, which nothing has to leave
// Terms whose rows a thread loads before it adds the first of them: 128 bytes, which hide most of the latency.
template <typename T>
constexpr uint32_t kTermsAhead = 128 / (kGatherColumns * sizeof(T));

constexpr uint32_t kLine = 128;  // bytes that a request brings to L2

// Brings a line to L2.
__device__ __forceinline__ void ask_for(const void* address) {
    asm volatile("prefetch.global.L2 [%0];" ::"l"(__cvta_generic_to_global(address)));
}

struct Terms {
    uint32_t source[kGatherThreads];
    float weight[kGatherThreads];
};

// The terms of one row. Up to 32 of them are loaded once, by every warp for itself, so that no warp waits for another; more
// than that 256 at a time, by the whole block.
template <typename T>
class Gather {
   public:
    __device__ __forceinline__ Gather(const GatherSide& side, const GatherParams& params, uint32_t target, Terms& scratch)
        : s(side), p(params), t(target), terms(scratch), begin(side.offsets[target]) {
        has_pair = s.diagonal[0] != nullptr && t < p.pairs;
        negative = s.negative != nullptr ? s.negative[t] : -1;
        count = own_terms() + (s.offsets[t + 1] - begin);
        if (!is_short()) return;
        if (lane_id() < count) load_term(lane_id(), threadIdx.x);
        __syncwarp();  // the warp's terms are in place
    }

    // g of columns [col, col + 8). Every thread of the block calls this the same number of times.
    __device__ __forceinline__ void sum(uint32_t col, float (&g)[kGatherColumns]) const {
#pragma unroll
        for (uint32_t k = 0; k < kGatherColumns; ++k) g[k] = 0.0f;
        if (is_hub()) {
            const float* sums = hub_sum(s, p.d, begin) + col;
#pragma unroll
            for (uint32_t k = 0; k < kGatherColumns; ++k) g[k] = sums[k];
            return;
        }
        const uint32_t first = is_short() ? warp_id() * kWarpSize : 0;
#pragma unroll 1
        for (uint32_t base = 0; base < count; base += kGatherThreads) {
            const uint32_t some = min(kGatherThreads, count - base);
            if (!is_short()) {
                __syncthreads();  // the previous terms have been used
                load_chunk(base, some, col - threadIdx.x * kGatherColumns);
                __syncthreads();  // these terms are in place
            }
            if (col + kGatherColumns <= p.d) {
                add_slots(first, first + some, col, g);
            } else {
#pragma unroll 1
                for (uint32_t i = first; i < first + some; ++i) add_term<T>(s, p, terms.source[i], terms.weight[i], col, g);
            }
        }
    }

   private:
    const GatherSide& s;
    const GatherParams& p;
    const uint32_t t;
    Terms& terms;
    const uint32_t begin;
    bool has_pair;
    int32_t negative;
    uint32_t count;

    __device__ __forceinline__ uint32_t own_terms() const { return uint32_t(has_pair) + uint32_t(negative >= 0); }
    __device__ __forceinline__ bool is_short() const { return count <= kWarpSize; }
    __device__ __forceinline__ bool is_hub() const { return s.hubs != nullptr && count >= kHubEntries; }

    // Term i of the row into a slot: its pair, its own negative, the entries of the inverse index.
    __device__ __forceinline__ void load_term(uint32_t i, uint32_t slot) const {
        uint32_t row;
        float coefficient;
        if (i >= own_terms()) {
            const uint32_t entry = s.list[begin + (i - own_terms())];
            row = s.source == nullptr ? entry : uint32_t(s.source[entry]);
            coefficient = s.weight[entry];
        } else if (has_pair && i == 0) {
            row = t;
            coefficient = s.diagonal[0][t] + s.diagonal[1][t];
        } else {
            row = negative;
            coefficient = s.coefficient[t];
        }
        terms.source[slot] = row;
        terms.weight[slot] = coefficient * inv_of(s, row);
    }

    // Terms [i, i + some) of many; and asks for what they need of the other matrix, the block's columns from `col` on, so that
    // the sum waits for L2 and not for memory.
    __device__ __forceinline__ void load_chunk(uint32_t i, uint32_t some, uint32_t col) const {
#pragma unroll 1
        for (uint32_t slot = threadIdx.x; slot < some; slot += blockDim.x) load_term(i + slot, slot);
        const uint32_t cols = min(p.d - col, blockDim.x * kGatherColumns);
#pragma unroll 1
        for (uint32_t slot = threadIdx.x; slot < some; slot += blockDim.x) {
            const T* row = static_cast<const T*>(s.other) + terms.source[slot] * s.other_ld + col;
#pragma unroll 1
            for (uint32_t c = 0; c < cols; c += kLine / sizeof(T)) ask_for(row + c);
        }
    }

    // Adds the terms in slots [first, last), in order, of columns that are all inside the row.
    __device__ __forceinline__ void add_slots(uint32_t first, uint32_t last, uint32_t col, float (&g)[kGatherColumns]) const {
#pragma unroll 1
        for (uint32_t slot = first; slot < last; slot += kTermsAhead<T>) {
            add_terms<T, kTermsAhead<T>>(
                s, last - slot, col, [&](uint32_t k) { return terms.source[slot + k]; },
                [&](uint32_t k) { return terms.weight[slot + k]; }, g);
        }
    }
};

template <typename T, typename G>
__device__ __forceinline__ void gather_body(const GatherParams& p) {
    __shared__ Terms terms;
    __shared__ float scratch[kGatherThreads / kWarpSize];
    const bool of_x = blockIdx.x < p.x.rows;
    const GatherSide& s = of_x ? p.x : p.y;
    const uint32_t t = of_x ? blockIdx.x : blockIdx.x - p.x.rows;
    const Gather<T> gather(s, p, t, terms);
    const uint32_t overflow = gather_row<T, G>(
        s, p, t, threadIdx.x, blockDim.x, [&](uint32_t col, float (&g)[kGatherColumns]) { gather.sum(col, g); },
        [&](float radial) { return block_sum(radial, scratch); });
    if (sizeof(G) == 2 && overflow > 0) atomicAdd(p.overflow, overflow);
}

// Whether triple `e` counts: both of its rows exist.
__device__ __forceinline__ bool has_rows(const InvertParams& p, int32_t row, int32_t col) {
    return row >= 0 && uint32_t(row) < p.x.targets && col >= 0 && uint32_t(col) < p.y.targets;
}

__device__ __forceinline__ TargetMap map_of(const InvertParams& p, const InvertSide& side) {
    return TargetMap{side.target, p.count, side.targets};
}

}  // namespace

// The block of one side; the triples that count are told once, and each block writes its own side's targets.
extern "C" __global__ void __launch_bounds__(kInvertThreads, 1)
    weighted_grad_invert(const __grid_constant__ InvertParams p) {
    __shared__ RadixScratch<kInvertWarps> scratch;
    __shared__ uint32_t left_out;
    const bool of_x = blockIdx.x == 0;
    const InvertSide& side = of_x ? p.x : p.y;
    int32_t* target = of_x ? p.x_target : p.y_target;
    if (threadIdx.x == 0) left_out = 0;
    __syncthreads();  // the counter is 0
    for (uint32_t e = threadIdx.x; e < p.count; e += blockDim.x) {
        const int32_t row = p.rows[e], col = p.cols[e];
        const bool valid = has_rows(p, row, col);
        target[e] = !valid ? -1 : of_x ? row : col;
        if (!valid) atomicAdd(&left_out, 1u);
    }
    __syncthreads();  // all targets and the count are complete
    if (of_x && threadIdx.x == 0) {
        p.report[0] = left_out;
        p.report[1] = 0;
    }
    invert(map_of(p, side), side.list, side.spare, side.offsets, scratch);
}

// A block's chunk of one side: the targets of the triples that count, how many have each value of the lowest digit, and
// zeros where later passes add up their counts.
extern "C" __global__ void __launch_bounds__(kIndexDigits) weighted_grad_count(const __grid_constant__ InvertParams p) {
    __shared__ uint32_t counters[kIndexDigits];
    const bool of_x = blockIdx.y == 0;
    const InvertSide& side = of_x ? p.x : p.y;
    int32_t* target = of_x ? p.x_target : p.y_target;
    counters[threadIdx.x] = 0;
    for (uint32_t pass = 1; pass < side.passes; ++pass) counters_of(side.counts, pass, blockIdx.x)[threadIdx.x] = 0;
    __syncthreads();  // the counters are 0
    const uint32_t begin = p.chunk * blockIdx.x, end = min(begin + p.chunk, p.count);
    for (uint32_t base = begin; base < end; base += kIndexTile) {
        int32_t row[kIndexPerLane], col[kIndexPerLane];
#pragma unroll
        for (uint32_t k = 0; k < kIndexPerLane; ++k) {
            const uint32_t e = base + k * kIndexDigits + threadIdx.x;
            row[k] = e < end ? p.rows[e] : -1;
            col[k] = e < end ? p.cols[e] : -1;
        }
#pragma unroll
        for (uint32_t k = 0; k < kIndexPerLane; ++k) {
            const uint32_t e = base + k * kIndexDigits + threadIdx.x;
            const bool valid = has_rows(p, row[k], col[k]);
            const int32_t t = of_x ? row[k] : col[k];
            if (e < end) target[e] = valid ? t : -1;
            const uint32_t digit = index_digit(valid ? uint32_t(t) : side.targets, 0);
            const uint32_t led = led_peers(e < end, digit);
            if (led != 0) atomicAdd(&counters[digit], __popc(led));
        }
    }
    __syncthreads();  // all triples are counted
    counters_of(side.counts, 0, blockIdx.x)[threadIdx.x] = counters[threadIdx.x];
}

// Pass p.pass of the sort of one side. A side with fewer passes than the other is complete before.
extern "C" __global__ void __launch_bounds__(kIndexDigits) weighted_grad_place(const __grid_constant__ InvertParams p) {
    __shared__ PlaceScratch scratch;
    const InvertSide& side = blockIdx.y == 0 ? p.x : p.y;
    if (p.pass >= side.passes) return;
    // The last pass ends in `list`.
    const bool to_list = (side.passes - p.pass) % 2 == 1;
    const uint32_t* from = p.pass == 0 ? nullptr : to_list ? side.spare : side.list;
    uint32_t* to = to_list ? side.list : side.spare;
    place_chunk(map_of(p, side), from, to, side.counts, p.pass, p.pass + 1 == side.passes, p.chunk, scratch);
}

// Where the entries of every target begin; and, from where those begin that have none, how many were left out.
extern "C" __global__ void __launch_bounds__(kIndexDigits) weighted_grad_offsets(const __grid_constant__ InvertParams p) {
    const bool of_x = blockIdx.y == 0;
    const InvertSide& side = of_x ? p.x : p.y;
    const uint32_t thread = blockIdx.x * kIndexDigits + threadIdx.x;
    fill_offsets(map_of(p, side), side.list, thread, gridDim.x * kIndexDigits, [&](uint32_t t, uint32_t place) {
        side.offsets[t] = place;
        if (of_x && t == side.targets) {
            p.report[0] = p.count - place;
            p.report[1] = 0;
        }
    });
}

#define PER_TYPE(SUFFIX, T)                                                                                            \
    extern "C" __global__ void __launch_bounds__(kHubThreads) weighted_grad_hubs_##SUFFIX(                              \
        const __grid_constant__ GatherParams p) {                                                                    \
        __shared__ HubScratch<T> scratch;                                                                            \
        sum_hub<T>(p, scratch);                                                                                      \
    }
PER_TYPE(f32, float)
PER_TYPE(f16, __half)
PER_TYPE(bf16, __nv_bfloat16)

#define PER_PAIR(SUFFIX, T, G)                                                                                       \
    extern "C" __global__ void __launch_bounds__(kGatherThreads, kBlocks) weighted_grad_##SUFFIX(                       \
        const __grid_constant__ GatherParams p) {                                                                    \
        gather_body<T, G>(p);                                                                                        \
    }
PER_PAIR(f32_f32, float, float)
PER_PAIR(f16_f16, __half, __half)
PER_PAIR(f16_f32, __half, float)
PER_PAIR(bf16_bf16, __nv_bfloat16, __nv_bfloat16)
PER_PAIR(bf16_f32, __nv_bfloat16, float)
