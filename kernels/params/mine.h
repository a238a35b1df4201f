// Parameters of mine_* and mine_merge, shared with Rust (src/cuda/mine.rs): pointers, then strides, then words.
#pragma once
#include <stdint.h>

#include "params/mine_screen.h"

// Which (row, column) are candidates. The pair of a row is the column of the same index.
constexpr uint32_t kSelectNegatives = 0;  // all but the pair and, with groups, the own group
constexpr uint32_t kSelectGroup = 1;      // the own group, the pair included if it belongs to it
constexpr uint32_t kSelectPair = 2;       // the pair alone: only the tiles on the diagonal are computed

// What is collected beside value and index; each level needs the planes up to the number given.
constexpr uint32_t kStatsKeys = 0;    // no planes: value and index as one 64-bit key per line, without splits
constexpr uint32_t kStatsNone = 1;    // 2 planes: value, index
constexpr uint32_t kStatsSecond = 2;  // 3 planes: and second
constexpr uint32_t kStatsLin = 3;     // 6 planes: and count, ties, sum of max - s
constexpr uint32_t kStatsSig = 4;     // 6 planes: and count, ties, sum of exp(-beta (max - s))

struct MineParams {
    const void* x;              // (n, d) T, row stride ldx; base and rows aligned to 16 bytes
    const void* y;              // (m, d) T, row stride ldy; the same
    const float* inv_x;         // (n), factor on a row of S; null: 1
    const float* inv_y;         // (m), factor on a column of S; null: 1
    const int64_t* row_groups;  // (n), or null: no groups
    const int64_t* col_groups;  // (m), or null
    const float* pmin;          // (pmin_count), partial minima of the pairs' similarities; kStatsLin and kStatsSig only
    float* pos;                 // (min(n, m)), S[i, i]; null: not written
    uint32_t* row_parts;        // (planes, col_splits, n); kStatsKeys: (n) u64, 0 before
    uint32_t* col_parts;        // (planes, row_splits, m); kStatsKeys: (m) u64, 0 before
    const ScreenState* screen;  // mine_f32, mine_small_f32: nothing is done unless this has failed; null: there was no screen
    int64_t ldx;                // elements
    int64_t ldy;                // elements
    uint32_t n;
    uint32_t m;
    uint32_t d;
    uint32_t row_splits;
    uint32_t col_splits;
    uint32_t pmin_count;
    uint32_t select;  // kSelect*
    uint32_t stats;   // kStats*
    float eps;        // members of the relative set have s >= min(pmin) - eps
    float beta;       // kStatsSig only
};
static_assert(sizeof(MineParams) == 144, "keep in step with src/cuda/mine.rs");

struct MineMergeParams {
    const uint32_t* row_parts;  // as above, up to kStatsSecond
    const uint32_t* col_parts;
    float* row_value;     // (n)
    int32_t* row_index;   // (n)
    float* row_second;    // (n), or null: not written
    int32_t* row_rank;    // (n), or null; 0 for a row with a candidate, -1 for one without
    float* col_value;     // (m)
    int32_t* col_index;   // (m)
    float* col_second;    // (m), or null
    int32_t* col_rank;    // (m), or null
    const ScreenState* screen;  // if it has not failed, the keys are merged and not the parts; null: there was no screen
    const uint32_t* row_keys;   // (n) u64, as kStatsKeys
    const uint32_t* col_keys;   // (m) u64
    uint32_t* report;           // (2), candidates of the screen and its outcome (kScreen*), or null
    uint32_t n;
    uint32_t m;
    uint32_t row_splits;
    uint32_t col_splits;
    uint32_t stats;  // up to kStatsSecond
    uint32_t pad_;
};
static_assert(sizeof(MineMergeParams) == 136, "keep in step with src/cuda/mine.rs");
