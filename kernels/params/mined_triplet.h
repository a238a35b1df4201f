// Parameters of mined_triplet_*, shared with Rust (src/cuda/mined_triplet.rs): pointers, then doubles, then words.
#pragma once
#include <stdint.h>

constexpr uint32_t kMinedTripletThreads = 256;  // of a block: a warp per anchor index

// Layout of src/mined_triplet.rs.
struct MinedTripletReport {
    double loss;
    double mean_positive;
    double mean_negative;
    uint64_t triplets;
    uint64_t active;
    uint32_t pairs;
    uint32_t empty_rows;
    uint32_t empty_cols;
    uint32_t zero_x;
    uint32_t zero_y;
    uint32_t nan_x;
    uint32_t nan_y;
    uint32_t overflow;
};
static_assert(sizeof(MinedTripletReport) == 72, "keep in step with src/mined_triplet.rs");

// The share of some anchors in the report.
struct MinedTripletPart {
    double loss;
    double negative;  // sum over the triplets' negatives
    double positive;  // sum over the pairs
    uint64_t triplets;
    uint64_t active;
    uint32_t empty_rows;
    uint32_t empty_cols;
    uint32_t zero_x;
    uint32_t zero_y;
    uint32_t nan_x;
    uint32_t nan_y;
};
static_assert(sizeof(MinedTripletPart) == 64, "keep in step with src/cuda/mined_triplet.rs");

struct MinedTripletParams {
    const int32_t* row_index;  // (n, k), from mine_top_k
    const float* row_value;    // (n, k)
    const int32_t* col_index;  // (m, k)
    const float* col_value;    // (m, k)
    const float* pos;          // (min(n, m)): similarity of the pairs
    const float* inv_x;        // (n): 0 marks a zero row, NaN a row with a NaN or Inf
    const float* inv_y;        // (m)
    int32_t* rows;             // (places) with places = min(n, m) (1 + 2 k): row of a weight, -1 for none
    int32_t* cols;             // (places): its column
    float* values;             // (places): the weight
    MinedTripletPart* parts;   // (blocks)
    MinedTripletReport* report;
    double margin;
    double factor;             // of the reduction, on the loss in the report
    uint32_t n;
    uint32_t m;
    uint32_t k;
    uint32_t blocks;           // of mined_triplet_weigh
};
static_assert(sizeof(MinedTripletParams) == 128, "keep in step with src/cuda/mined_triplet.rs");
