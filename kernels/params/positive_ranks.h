// Parameters of positive_ranks_*, shared with Rust (src/cuda/positive_ranks.rs): pointers, then strides, then words.
#pragma once
#include <stdint.h>

#include "params/ranks.h"  // kTies*

struct PositiveRanksParams {
    const void* x;                  // (n, d) T, row stride ldx; base and rows aligned to 16 bytes
    const void* y;                  // (m, d) T, row stride ldy; the same
    const float* inv_x;             // (n), factor on a row of S; null: 1
    const float* inv_y;             // (m), factor on a column of S; null: 1
    const uint32_t* row_offsets;    // (n + 1), the pairs of each row
    const int32_t* row_candidates;  // (pairs), the column of each pair, ascending within a row
    const uint32_t* col_offsets;    // (m + 1), the same pairs column by column
    const int32_t* col_candidates;  // (pairs), the row of each
    const uint32_t* col_pairs;      // (pairs), its number in the order of the rows
    const float* grades;            // (pairs) in the order of the rows; null: 1
    float* score;                   // (pairs) in the order of the rows, the similarity of each
    int32_t* row_rank;              // (pairs), in the order of the rows
    int32_t* col_rank;              // (pairs), in the order of the columns
    int64_t ldx;                    // elements
    int64_t ldy;                    // elements
    uint32_t n;
    uint32_t m;
    uint32_t d;
    uint32_t pairs;
    uint32_t row_splits;
    uint32_t col_splits;
    uint32_t ties;  // kTies*
    uint32_t pad_;
};
static_assert(sizeof(PositiveRanksParams) == 152, "keep in step with src/cuda/positive_ranks.rs");
