// Inverse index of a map from entries to targets, by one block: for every target the entries that map to it, ascending.
//
//   list     the entries sorted by target, stable; those without a valid target come last
//   offsets  (targets + 1): the entries of target t are list[offsets[t]] ... list[offsets[t + 1] - 1]
//
// Radix sort, least significant digit first, 5 bits a pass: as many digits as shared memory has banks, so that counters of
// different digits never conflict, whatever the data. Each warp counts and then places one contiguous stretch of the
// entries, 32 at a time in order, so that the result is the same whatever the timing, and a target with many entries costs
// no more than many targets with one.
#pragma once
#include "common/reduce.cuh"

constexpr uint32_t kDigitBits = 5;
constexpr uint32_t kDigits = 1u << kDigitBits;
constexpr uint32_t kSortAhead = 8;  // times 32 entries whose keys are loaded at a time: each is two loads in a row

// Shared memory of the sort: one counter per digit for each of W warps.
template <uint32_t W>
struct RadixScratch {
    uint32_t counters[W][kDigits];
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

// The place of the first entry of every digit and warp, in place of their counts: digits ascending, then warps ascending. All
// lanes of one warp, a lane per digit.
template <uint32_t W>
__device__ __forceinline__ void first_places(RadixScratch<W>& scratch) {
    uint32_t count[W];
#pragma unroll
    for (uint32_t w = 0; w < W; ++w) count[w] = scratch.counters[w][lane_id()];
    uint32_t total = 0;
#pragma unroll
    for (uint32_t w = 0; w < W; ++w) total += count[w];
    uint32_t up_to = total;
#pragma unroll
    for (uint32_t shift = 1; shift < kWarpSize; shift <<= 1) {
        const uint32_t below = __shfl_up_sync(kFullWarp, up_to, shift);
        if (lane_id() >= shift) up_to += below;
    }
    uint32_t place = up_to - total;
#pragma unroll
    for (uint32_t w = 0; w < W; ++w) {
        scratch.counters[w][lane_id()] = place;
        place += count[w];
    }
}
static_assert(kDigits == kWarpSize, "a lane per digit");

// One pass: `from` (null: the entries in order) sorted by 5 bits of their keys into `to`. All threads of a block of W warps.
template <uint32_t W>
__device__ __forceinline__ void radix_pass(const TargetMap& map, const uint32_t* from, uint32_t* to, uint32_t shift,
                                           RadixScratch<W>& scratch) {
    uint32_t* mine = scratch.counters[warp_id()];
    mine[lane_id()] = 0;
    __syncwarp();  // the warp's counters are 0

    const uint32_t stretch = (map.count / W + kWarpSize) & ~(kWarpSize - 1);
    const uint64_t begin = uint64_t(stretch) * warp_id();
    const uint64_t end = min(begin + stretch, uint64_t(map.count));
    // Calls visit(valid, entry, digit, lanes with the same digit) for the warp's entries in order, 32 at a time.
    const auto each = [&](auto visit) {
        for (uint64_t base = begin; base < end; base += kSortAhead * kWarpSize) {
            uint32_t entry[kSortAhead], digit[kSortAhead];
#pragma unroll
            for (uint32_t k = 0; k < kSortAhead; ++k) {
                const uint64_t at = base + k * kWarpSize + lane_id();
                entry[k] = at >= end ? 0 : from == nullptr ? uint32_t(at) : from[at];
            }
#pragma unroll
            for (uint32_t k = 0; k < kSortAhead; ++k) {
                const bool valid = base + k * kWarpSize + lane_id() < end;
                digit[k] = valid ? map.key(entry[k]) >> shift & (kDigits - 1) : kDigits;
            }
#pragma unroll
            for (uint32_t k = 0; k < kSortAhead; ++k) {
                visit(digit[k] < kDigits, entry[k], digit[k], __match_any_sync(kFullWarp, digit[k]));
                __syncwarp();  // counters are complete before the next 32 entries read them
            }
        }
    };
    const uint32_t below = (1u << lane_id()) - 1;

    each([&](bool valid, uint32_t, uint32_t digit, uint32_t peers) {
        if (valid && (peers & below) == 0) mine[digit] += __popc(peers);
    });
    __syncthreads();  // all counters are complete
    if (warp_id() == 0) first_places(scratch);
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

// store(t, number of sorted entries with a key below t) for every t up to `targets`, by `threads` threads of which this is
// number `thread`. Each looks at one place of the list and fills in the targets that begin there; the warp shares the work of
// long gaps.
template <typename Store>
__device__ __forceinline__ void fill_offsets(const TargetMap& map, const uint32_t* list, uint32_t thread, uint32_t threads,
                                             Store store) {
    for (uint64_t base = thread - lane_id(); base <= map.count; base += threads) {
        const uint64_t place = base + lane_id();
        // Targets first ... end - 1 begin at this place.
        uint32_t first = 0, end = 0;
        if (place <= map.count) {
            first = place == 0 ? 0 : map.key(list[place - 1]) + 1;
            end = place == map.count ? map.targets + 1 : map.key(list[place]) + 1;
        }
        const bool is_long = end - first > kShortGap;
        if (!is_long) {
            for (uint32_t t = first; t < end; ++t) store(t, uint32_t(place));
        }
        for (uint32_t gaps = __ballot_sync(kFullWarp, is_long); gaps != 0; gaps &= gaps - 1) {
            const uint32_t lane = __ffs(gaps) - 1;
            const uint32_t from = __shfl_sync(kFullWarp, first, lane);
            const uint32_t to = __shfl_sync(kFullWarp, end, lane);
            for (uint32_t t = from + lane_id(); t < to; t += kWarpSize) store(t, uint32_t(base + lane));
        }
    }
}

// Builds the index. `list` and `spare` hold `count` words each. All threads of a block of W warps.
template <uint32_t W>
__device__ __forceinline__ void invert(const TargetMap& map, uint32_t* list, uint32_t* spare, uint32_t* offsets,
                                       RadixScratch<W>& scratch) {
    const uint32_t bits = kWarpSize - __clz(map.targets);  // keys are at most `targets`
    const uint32_t passes = max(1u, (bits + kDigitBits - 1) / kDigitBits);
    const uint32_t* from = nullptr;
    for (uint32_t pass = 0; pass < passes; ++pass) {
        uint32_t* to = (passes - pass) & 1 ? list : spare;  // the last pass ends in `list`
        radix_pass(map, from, to, kDigitBits * pass, scratch);
        from = to;
    }
    fill_offsets(map, list, threadIdx.x, blockDim.x, [&](uint32_t t, uint32_t place) { offsets[t] = place; });
}
