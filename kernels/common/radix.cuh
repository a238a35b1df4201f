// Inverse index of a map from entries to targets, by one block: for every target the entries that map to it, ascending.
//
//   list     the entries sorted by target, stable; those without a valid target come last
//   offsets  (targets + 1): the entries of target t are list[offsets[t]] ... list[offsets[t + 1] - 1]
//
// Radix sort, least significant digit first, 8 bits a pass. Each warp counts and then places one contiguous stretch of
// the entries, 32 at a time in order, so that the result is the same whatever the timing, and a target with many entries
// costs no more than many targets with one.
#pragma once
#include "common/reduce.cuh"

constexpr uint32_t kDigits = 256;

// Shared memory of the sort: one counter per digit for each of W warps.
template <uint32_t W>
struct RadixScratch {
    uint32_t counters[W][kDigits];
    uint32_t scan[8];
};

// The entries' targets; those outside [0, targets) count as `targets`. Read past the L1 cache: other blocks of the same
// launch may have written them.
struct TargetMap {
    const int32_t* target;  // (count)
    uint32_t count;
    uint32_t targets;

    __device__ __forceinline__ uint32_t key(uint32_t entry) const {
        const int32_t t = __ldcg(target + entry);
        return t >= 0 && uint32_t(t) < targets ? uint32_t(t) : targets;
    }
};

// One pass: `from` (null: the entries in order) sorted by 8 bits of their keys into `to`. All threads of a block of W warps.
template <uint32_t W>
__device__ __forceinline__ void radix_pass(const TargetMap& map, const uint32_t* from, uint32_t* to, uint32_t shift,
                                           RadixScratch<W>& scratch) {
    uint32_t* mine = scratch.counters[warp_id()];
    for (uint32_t digit = lane_id(); digit < kDigits; digit += kWarpSize) mine[digit] = 0;
    __syncwarp();  // the warp's counters are 0

    const uint32_t stretch = (map.count / W + kWarpSize) & ~(kWarpSize - 1);
    const uint64_t begin = uint64_t(stretch) * warp_id();
    const uint64_t end = min(begin + stretch, uint64_t(map.count));
    // Calls visit(valid, entry, digit, lanes with the same digit) for the warp's entries in order, 32 at a time.
    const auto each = [&](auto visit) {
        for (uint64_t base = begin; base < end; base += kWarpSize) {
            const uint64_t at = base + lane_id();
            const bool valid = at < end;
            const uint32_t entry = !valid ? 0 : from == nullptr ? uint32_t(at) : from[at];
            const uint32_t digit = valid ? map.key(entry) >> shift & (kDigits - 1) : kDigits;
            visit(valid, entry, digit, __match_any_sync(kFullWarp, digit));
            __syncwarp();  // counters are complete before the next 32 entries read them
        }
    };
    const uint32_t below = (1u << lane_id()) - 1;

    each([&](bool valid, uint32_t, uint32_t digit, uint32_t peers) {
        if (valid && (peers & below) == 0) mine[digit] += __popc(peers);
    });
    __syncthreads();  // all counters are complete

    // Place of the first entry of every digit and warp: digits ascending, then warps ascending.
    uint32_t total = 0;
    if (threadIdx.x < kDigits) {
        for (uint32_t w = 0; w < W; ++w) {
            const uint32_t count = scratch.counters[w][threadIdx.x];
            scratch.counters[w][threadIdx.x] = total;
            total += count;
        }
    }
    const uint32_t first = exclusive_scan_256(total, scratch.scan);
    if (threadIdx.x < kDigits) {
        for (uint32_t w = 0; w < W; ++w) scratch.counters[w][threadIdx.x] += first;
    }
    __syncthreads();  // all places are complete

    each([&](bool valid, uint32_t entry, uint32_t digit, uint32_t peers) {
        const uint32_t place = valid ? mine[digit] : 0;
        __syncwarp();  // every lane has read its place before one of them moves it
        if (!valid) return;
        to[place + __popc(peers & below)] = entry;
        if ((peers & below) == 0) mine[digit] = place + __popc(peers);
    });
    __syncthreads();  // `to` is complete, and the counters are free
}

constexpr uint32_t kShortGap = 4;  // targets that a thread fills in by itself

// offsets[t] = number of sorted entries with a key below t. Each thread looks at one place of the list and fills in the
// targets that begin there; the warp shares the work of long gaps.
__device__ __forceinline__ void fill_offsets(const TargetMap& map, const uint32_t* list, uint32_t* offsets) {
    for (uint64_t base = threadIdx.x - lane_id(); base <= map.count; base += blockDim.x) {
        const uint64_t place = base + lane_id();
        // Targets first ... end - 1 begin at this place.
        uint32_t first = 0, end = 0;
        if (place <= map.count) {
            first = place == 0 ? 0 : map.key(list[place - 1]) + 1;
            end = place == map.count ? map.targets + 1 : map.key(list[place]) + 1;
        }
        const bool is_long = end - first > kShortGap;
        if (!is_long) {
            for (uint32_t t = first; t < end; ++t) offsets[t] = uint32_t(place);
        }
        for (uint32_t gaps = __ballot_sync(kFullWarp, is_long); gaps != 0; gaps &= gaps - 1) {
            const uint32_t lane = __ffs(gaps) - 1;
            const uint32_t from = __shfl_sync(kFullWarp, first, lane);
            const uint32_t to = __shfl_sync(kFullWarp, end, lane);
            for (uint32_t t = from + lane_id(); t < to; t += kWarpSize) offsets[t] = uint32_t(base + lane);
        }
    }
}

// Builds the index. `list` and `spare` hold `count` words each. All threads of a block of W warps, W >= 8.
template <uint32_t W>
__device__ __forceinline__ void invert(const TargetMap& map, uint32_t* list, uint32_t* spare, uint32_t* offsets,
                                       RadixScratch<W>& scratch) {
    const uint32_t bits = kWarpSize - __clz(map.targets);  // keys are at most `targets`
    const uint32_t passes = max(1u, (bits + 7) / 8);
    const uint32_t* from = nullptr;
    for (uint32_t pass = 0; pass < passes; ++pass) {
        uint32_t* to = (passes - pass) & 1 ? list : spare;  // the last pass ends in `list`
        radix_pass(map, from, to, 8 * pass, scratch);
        from = to;
    }
    fill_offsets(map, list, offsets);
}
