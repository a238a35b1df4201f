// The relevant pairs of positive_ranks in compressed rows and columns, as all of its kernels read them.
#pragma once
#include <stdint.h>

#include "params/positive_ranks.h"

// Pairs in compressed lines.
struct Lines {
    const uint32_t* offsets;
    const int32_t* candidates;
    uint32_t count;  // lines
    uint32_t pairs;

    __device__ __forceinline__ uint2 of(uint32_t line) const {
        if (line >= count) return make_uint2(0, 0);
        const uint32_t begin = min(__ldg(offsets + line), pairs);
        return make_uint2(begin, max(min(__ldg(offsets + line + 1), pairs), begin));
    }
    __device__ __forceinline__ uint32_t candidate(uint32_t pair) const { return uint32_t(__ldg(candidates + pair)); }
    // The first pair in [begin, end) whose candidate is at least `least`.
    __device__ __forceinline__ uint32_t from(uint32_t begin, uint32_t end, uint32_t least) const {
        while (begin < end) {
            const uint32_t middle = begin + (end - begin) / 2;
            if (candidate(middle) < least) {
                begin = middle + 1;
            } else {
                end = middle;
            }
        }
        return begin;
    }
};

__device__ __forceinline__ Lines rows_of(const PositiveRanksParams& p) {
    return {p.row_offsets, p.row_candidates, p.n, p.pairs};
}
__device__ __forceinline__ Lines cols_of(const PositiveRanksParams& p) {
    return {p.col_offsets, p.col_candidates, p.m, p.pairs};
}

// Number of a pair in the order of the rows, from its place in the order of either direction.
template <bool kRows>
__device__ __forceinline__ uint32_t pair_at(const PositiveRanksParams& p, uint32_t place) {
    return kRows ? place : __ldg(p.col_pairs + place);
}
template <bool kRows>
__device__ __forceinline__ float score_at(const PositiveRanksParams& p, uint32_t place) {
    const uint32_t pair = pair_at<kRows>(p, place);
    return pair < p.pairs ? __ldg(p.score + pair) : __int_as_float(0x7fffffff);
}
template <bool kRows>
__device__ __forceinline__ float grade_at(const PositiveRanksParams& p, uint32_t place) {
    const uint32_t pair = pair_at<kRows>(p, place);
    return p.grades != nullptr && pair < p.pairs ? __ldg(p.grades + pair) : 1.0f;
}
