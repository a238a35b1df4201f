// Sums of the rows that have many entries in the inverse index, and no other terms: as they are added in order, only columns
// can be dealt to blocks.
//
//   hubs   (ceil(count / kHubEntries), width) f32: a list of that many entries or more contains a place whose number is a
//          multiple of kHubEntries; the first such place says in which row its sum is
#pragma once
#include "common/gather.cuh"

// Columns of a sum: d up to whole steps of the blocks that use it.
__device__ __forceinline__ uint32_t hub_width(uint32_t d) {
    constexpr uint32_t kWarpStep = kWarpSize * kGatherColumns, kStep = kGatherThreads * kGatherColumns;
    return d <= kStep ? (d + kWarpStep - 1) / kWarpStep * kWarpStep : (d + kStep - 1) / kStep * kStep;
}

// The sum of a list that begins at a place.
__device__ __forceinline__ float* hub_sum(const GatherSide& s, uint32_t d, uint32_t begin) {
    return s.hubs + size_t((begin + kHubEntries - 1) / kHubEntries) * hub_width(d);
}

template <typename T>
constexpr uint32_t kHubTile = 512 / sizeof(T);  // entries whose columns are in shared memory at a time
template <typename T>
constexpr uint32_t kHubVectors = kHubColumns / kVector<T>;  // of a row's columns
template <typename T>
constexpr uint32_t kHubRows = kHubThreads / kHubVectors<T>;  // that the block loads at a time
template <typename T>
constexpr uint32_t kHubAhead = kHubTile<T> / kHubRows<T>;  // vectors of a thread in flight

// Three tiles: one is added, the rows of the next one are loaded, and of the one after next what they are.
template <typename T>
struct HubScratch {
    uint4 values[kHubTile<T>][kHubVectors<T>];
    uint32_t source[3][kHubTile<T>];
    float weight[3][kHubTile<T>];
};

// Rows and coefficients of the entries [at, end), as many as fit, by threads `thread` of `threads`.
template <typename T>
__device__ __forceinline__ void load_hub_terms(const GatherSide& s, uint32_t at, uint32_t end, uint32_t thread,
                                               uint32_t threads, uint32_t (&source)[kHubTile<T>],
                                               float (&weight)[kHubTile<T>]) {
    for (uint32_t i = thread; i < kHubTile<T> && at + i < end; i += threads) {
        const uint32_t entry = s.list[at + i], row = uint32_t(s.source[entry]);
        source[i] = row;
        weight[i] = s.weight[entry] * inv_of(s, row);
    }
}

// This thread's columns of `some` rows, zeros from column d on.
template <typename T>
__device__ __forceinline__ void load_hub_rows(const GatherSide& s, uint32_t d, uint32_t col, uint32_t some,
                                              const uint32_t (&source)[kHubTile<T>], Packed<T> (&packed)[kHubAhead<T>]) {
#pragma unroll
    for (uint32_t k = 0; k < kHubAhead<T>; ++k) {
        const uint32_t i = threadIdx.x / kHubVectors<T> + k * kHubRows<T>;
        if (i >= some) continue;
        const T* row = static_cast<const T*>(s.other) + source[i] * s.other_ld;
        if (col + kVector<T> <= d) {
            packed[k].bits = *reinterpret_cast<const uint4*>(row + col);
        } else {
            packed[k].bits = uint4{0, 0, 0, 0};
#pragma unroll
            for (uint32_t c = 0; c < kVector<T>; ++c) {
                if (col + c < d) packed[k].lanes[c] = row[col + c];
            }
        }
    }
}

// One block: kHubColumns columns of the sum that belongs to a place, if a list is long enough to have it.
template <typename T>
__device__ __forceinline__ void sum_hub(const GatherParams& p, HubScratch<T>& scratch) {
    const GatherSide& s = blockIdx.y == 0 ? p.x : p.y;
    const int32_t* target = blockIdx.y == 0 ? p.y.source : p.x.source;
    const uint32_t chunks = hub_width(p.d) / kHubColumns;
    const uint32_t place = blockIdx.x / chunks * kHubEntries, column = blockIdx.x % chunks * kHubColumns;
    if (place >= s.offsets[s.rows]) return;  // of triples that are left out
    const uint32_t t = uint32_t(target[s.list[place]]);
    const uint32_t begin = s.offsets[t], end = s.offsets[t + 1];
    if (end - begin < kHubEntries || place - begin >= kHubEntries) return;

    const uint32_t vector = threadIdx.x % kHubVectors<T>, col = column + vector * kVector<T>;
    const bool adds = threadIdx.x < kHubColumns;  // a column each
    Packed<T> packed[kHubAhead<T>];
    load_hub_terms<T>(s, begin, end, threadIdx.x, kHubThreads, scratch.source[0], scratch.weight[0]);
    load_hub_terms<T>(s, begin + kHubTile<T>, end, threadIdx.x, kHubThreads, scratch.source[1], scratch.weight[1]);
    __syncthreads();  // the terms of two tiles are in place
    load_hub_rows<T>(s, p.d, col, min(kHubTile<T>, end - begin), scratch.source[0], packed);
    float g = 0.0f;
    uint32_t tile = 0;
    for (uint32_t at = begin; at < end; at += kHubTile<T>) {
        const uint32_t some = min(kHubTile<T>, end - at);
#pragma unroll
        for (uint32_t k = 0; k < kHubAhead<T>; ++k) {
            const uint32_t i = threadIdx.x / kHubVectors<T> + k * kHubRows<T>;
            if (i < some) scratch.values[i][vector] = packed[k].bits;
        }
        __syncthreads();  // the tile's values are in place, and so are the next tile's terms
        const uint32_t next = tile == 2 ? 0 : tile + 1, after = next == 2 ? 0 : next + 1;
        if (end - at > kHubTile<T>) {
            load_hub_rows<T>(s, p.d, col, min(kHubTile<T>, end - at - kHubTile<T>), scratch.source[next], packed);
        }
        if (adds) {
            const T* values = reinterpret_cast<const T*>(scratch.values) + threadIdx.x;
#pragma unroll 8
            for (uint32_t i = 0; i < some; ++i) g = fmaf(scratch.weight[tile][i], to_f32(values[i * kHubColumns]), g);
        } else if (end - at > 2 * kHubTile<T>) {
            load_hub_terms<T>(s, at + 2 * kHubTile<T>, end, threadIdx.x - kHubColumns, kHubThreads - kHubColumns,
                              scratch.source[after], scratch.weight[after]);
        }
        __syncthreads();  // the tile's values have been used
        tile = next;
    }
    if (adds) hub_sum(s, p.d, place)[column + threadIdx.x] = g;
}
