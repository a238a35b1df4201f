// Parameters of ranks_*, shared with Rust (src/cuda/ranks.rs): pointers, then strides, then words.
#pragma once
#include <stdint.h>

// How a candidate whose similarity equals the best positive's is ranked (TiePolicy in src/options.rs).
constexpr uint32_t kTiesLowestIndex = 0;
constexpr uint32_t kTiesOptimistic = 1;
constexpr uint32_t kTiesPessimistic = 2;

struct RanksParams {
    const void* x;              // (n, d) T, row stride ldx; base and rows aligned to 16 bytes
    const void* y;              // (m, d) T, row stride ldy; the same
    const float* inv_x;         // (n), factor on a row of S; null: 1
    const float* inv_y;         // (m), factor on a column of S; null: 1
    const int64_t* row_groups;  // (n), or null: the positive of a row is the column of the same index
    const int64_t* col_groups;  // (m), or null
    const float* row_score;     // (n), similarity of each row's best positive, from mine_* with the same operands
    const int32_t* row_index;   // (n), its column; -1: the row has no positive and is left alone
    const float* col_score;     // (m)
    const int32_t* col_index;   // (m)
    int32_t* row_rank;          // (n), added to
    int32_t* col_rank;          // (m), added to
    int64_t ldx;                // elements
    int64_t ldy;                // elements
    uint32_t n;
    uint32_t m;
    uint32_t d;
    uint32_t row_splits;
    uint32_t col_splits;
    uint32_t ties;  // kTies*
};
static_assert(sizeof(RanksParams) == 136, "keep in step with src/cuda/ranks.rs");
