// Parameters of pairwise_custom_*, shared with Rust (src/cuda/pairwise_custom_params.rs): pointers, then strides, then words.
#pragma once
#include <stdint.h>

#include "params/pairwise.h"

constexpr uint32_t kCustomPlanes = 9;   // of an anchor: kPlane*
constexpr uint32_t kPlanePair = 0;      // similarity of the own pair, f32; NaN: it has none
constexpr uint32_t kPlaneHardest = 1;   // largest similarity of a negative, f32; -infinity without one
constexpr uint32_t kPlaneLse = 2;       // ln sum e^logit over the negatives, f32; -infinity without one
constexpr uint32_t kPlaneLsePositives = 3;  // the same over the positives
constexpr uint32_t kPlanePositives = 4;     // number, u32
constexpr uint32_t kPlaneNegatives = 5;     // number, u32
constexpr uint32_t kPlaneHardestAt = 6;     // index of the hardest negative, u32; 2^32 - 1 without one
constexpr uint32_t kPlaneNearNegatives = 7;  // means over the near pairs, f32; written only if the formulas have them
constexpr uint32_t kPlaneNearPositives = 8;

constexpr uint32_t kCustomParts = 8;      // planes of a column's partial state
constexpr uint32_t kCustomThreads = 256;  // of a block, of pairwise_custom_rows at most
constexpr uint32_t kCustomCols = 32;      // columns of a block of pairwise_custom_cols, each of 8 threads
constexpr uint32_t kCustomCounters = 11;  // words, 0 on entry: negatives and positives (u64), rows and columns with a positive, zero
                                          // rows of X and Y, rows of X and Y with a NaN or Inf, the least pair

// The similarities of a wave of rows and which of the pairs count.
struct CustomPairs {
    const float* s;              // (wave rows, lds)
    const int64_t* row_groups;   // (n), or null: no groups
    const int64_t* col_groups;   // (m), or null
    const uint8_t* ignore_rows;  // (n), not 0: ignored; or null
    const uint8_t* ignore_cols;  // (m), or null
    int64_t lds;                 // elements, a multiple of 128
    uint32_t n;
    uint32_t m;
    uint32_t first_row;          // of the wave
    uint32_t end_row;            // at most n
    uint32_t single_positive;    // 1: the own pair is the only positive
    uint32_t pad_;
};
static_assert(sizeof(CustomPairs) == 72, "keep in step with src/cuda/pairwise_custom_params.rs");

struct CustomStatsParams {
    CustomPairs pairs;
    uint32_t* rows;       // (kCustomPlanes, n); pairwise_custom_rows
    uint32_t* col_parts;  // (kCustomParts, splits, m); pairwise_custom_cols
    uint32_t splits;      // of the wave's rows
    uint32_t pad_;
};
static_assert(sizeof(CustomStatsParams) == 96, "keep in step with src/cuda/pairwise_custom_params.rs");

struct CustomNearParams {
    CustomPairs pairs;
    uint32_t* rows;             // (kCustomPlanes, n), but for the means that pairwise_custom_near_rows adds
    uint32_t* cols;             // (kCustomPlanes, m), the same by pairwise_custom_near_finish
    uint32_t* col_parts;        // (4 of kCustomParts, splits, m)
    const uint32_t* least_pair;  // as CustomAnchorsParams left it
    uint32_t splits;            // of the wave's rows
    uint32_t pad_;
};
static_assert(sizeof(CustomNearParams) == 112, "keep in step with src/cuda/pairwise_custom_params.rs");

struct CustomAnchorsParams {
    const uint32_t* rows;       // (kCustomPlanes, n), complete
    const uint32_t* col_parts;  // (kCustomParts, splits, m)
    uint32_t* cols;             // (kCustomPlanes, m)
    const float* inv_x;         // (n): 0 marks a zero row, NaN a row with a NaN or Inf
    const float* inv_y;         // (m)
    const uint8_t* ignore_rows;  // (n), or null
    const uint8_t* ignore_cols;  // (m), or null
    uint8_t* skip_x;            // (n): 1 if the row is to be left out of products; or null
    uint8_t* skip_y;            // (m), or null
    unsigned long long* counters;  // kCustomCounters words
    uint32_t* ticket;           // 0 on entry
    PairwiseReport* report;     // (1)
    uint32_t n;
    uint32_t m;
    uint32_t splits;            // 0: there are no pairs
    uint32_t normalised;        // 1: rows with a NaN are NaN throughout
};
static_assert(sizeof(CustomAnchorsParams) == 112, "keep in step with src/cuda/pairwise_custom_params.rs");

struct CustomWeightsParams {
    CustomPairs pairs;
    const uint32_t* rows;      // (kCustomPlanes, n)
    const uint32_t* cols;      // (kCustomPlanes, m)
    const float* inv_x;        // (n), factor on a row of S; null: 1; bf16 only
    const float* inv_y;        // (m)
    const float* row_weights;  // (n), or null: 1
    void* w;                   // (wave rows, lds), whole tiles: bf16, or f32, then it may be `pairs.s`
    float* diagonal;           // (min(n, m)), weights of own pairs that are positive, which W does not hold
    double* sums;              // (grid, kWaveSums): W s, W, 0, similarities of positives
    uint32_t row_splits;       // parts that the wave's tiles are dealt to; the grid is their product
    uint32_t col_splits;
};
static_assert(sizeof(CustomWeightsParams) == 144, "keep in step with src/cuda/pairwise_custom_params.rs");
