// Parameters of pairwise_*, shared with Rust (src/cuda/pairwise_params.rs): pointers, then doubles and strides, then words.
#pragma once
#include <stdint.h>

// What an objective's weights are made of; constants c[] of each, logarithms to base 2:
constexpr uint32_t kFormSoftmax = 0;      // scale log2(e), scale
constexpr uint32_t kFormSigLip = 1;       // scale, bias
constexpr uint32_t kFormMulti = 2;        // beta log2(e), -alpha log2(e), lambda, epsilon
constexpr uint32_t kFormCircle = 3;       // gamma log2(e), margin, gamma, 1 if the factors are detached
constexpr uint32_t kFormTriplet = 4;      // margin
constexpr uint32_t kFormContrastive = 5;  // positive margin, negative margin
constexpr uint32_t kFormLifted = 6;       // positive margin, negative margin
constexpr uint32_t kFormRanked = 7;       // alpha, alpha - margin, temperature log2(e), balance
constexpr uint32_t kFormGoal = 8;         // none: a weight for one negative of every row and column (kernels/goal.cu)

// What a sweep does with the similarities of a tile.
constexpr uint32_t kKeepNothing = 0;  // computes them
constexpr uint32_t kKeepStore = 1;    // computes and stores them
constexpr uint32_t kKeepLoad = 2;     // loads what an earlier sweep has stored
constexpr uint32_t kKeepSkip = 3;     // needs none

// What becomes of the weights of one part of a mixture.
constexpr uint32_t kMixAdd = 1;   // those of earlier parts are added
constexpr uint32_t kMixKeep = 2;  // they are kept for a later part, not written to W

constexpr uint32_t kPairConstants = 6;
constexpr uint32_t kSetPlanes = 6;       // of a set's partial state, common/pairwise.cuh
constexpr uint32_t kRowPlanes = 5;       // of a row's coefficients
constexpr uint32_t kColPlanes = 3;       // of a column's
constexpr uint32_t kPairLines = 256;     // per block of pairwise_finalize, a thread each
constexpr uint32_t kPairFinish = 256;    // threads of a block of pairwise_finish_*, at most
constexpr uint32_t kSplitThreads = 64;   // of a block of pairwise_split_f16
constexpr uint32_t kWaveSums = 4;       // of a block of pairwise_weights_*: W s, W; kFormSigLip: loss and similarities of positives
constexpr uint32_t kPairZeroed = 8;      // words: two counters of pairs (u64), overflow, a ticket, spare

// What S is made of and which pairs count.
struct PairwiseTiles {
    const void* x;               // (n, d) T, row stride ldx; base and rows aligned to 16 bytes
    const void* y;               // (m, d) T, row stride ldy; the same
    const float* inv_x;          // (n), factor on a row of S; null: 1
    const float* inv_y;          // (m), factor on a column of S; null: 1
    const int64_t* row_groups;   // (n), or null: no groups
    const int64_t* col_groups;   // (m), or null
    const uint8_t* ignore_rows;  // (n), not 0: ignored; or null
    const uint8_t* ignore_cols;  // (m), or null
    const float* log_q;          // (m), or null
    const float* pos;            // (min(n, m)), S[i, i]; kFormTriplet only
    const float* lowest;         // (n), smallest positive similarity of a row; kFormMulti with a miner only, else null
    const float* highest;        // (n), largest negative similarity of a row; the same
    float* kept;                 // similarities, tile after tile, common/pairwise.cuh; kKeepStore and kKeepLoad only
    int64_t ldx;                 // elements
    int64_t ldy;                 // elements
    uint32_t n;
    uint32_t m;
    uint32_t d;
    uint32_t form;               // kForm*
    uint32_t single;             // 1: rows and columns are one set, without the diagonal
    uint32_t single_positive;    // 1: the own pair is the only positive
    float c[kPairConstants];
    uint32_t keep;               // kKeep*
    uint32_t first_kept;         // row of tiles that `kept` begins with
};
static_assert(sizeof(PairwiseTiles) == 176, "keep in step with src/cuda/pairwise_params.rs");

struct PairwiseStatsParams {
    PairwiseTiles tiles;
    uint32_t* row_parts;          // (kSetPlanes, col_splits, n): negatives of the rows
    uint32_t* other_parts;        // both: (kSetPlanes, kParties row_splits, m), negatives of the columns; else of the rows' positives
    float* pos;                   // (min(n, m)), S[i, i] is written here; or null
    uint32_t* col_flags;          // (m), 0 on entry: 1 is written for columns with a positive; or null
    unsigned long long* counts;   // (2), 0 on entry: negative and positive pairs are added
    uint32_t row_splits;
    uint32_t col_splits;
    uint32_t extremes;            // 1: max of each set (of -s for positives) and nothing else
    uint32_t pad_;
};
static_assert(sizeof(PairwiseStatsParams) == 232, "keep in step with src/cuda/pairwise_params.rs");

struct PairwiseExtremesParams {
    const uint32_t* neg_parts;  // (kSetPlanes, splits, n)
    const uint32_t* pos_parts;  // (kSetPlanes, splits, n)
    float* lowest;              // (n)
    float* highest;             // (n)
    uint32_t n;
    uint32_t splits;
};
static_assert(sizeof(PairwiseExtremesParams) == 40, "keep in step with src/cuda/pairwise_params.rs");

// Layout of src/pairwise.rs.
struct PairwiseReport {
    double loss;
    double d_scale;
    double d_bias;
    double mean_positive;
    unsigned long long positives;
    unsigned long long negatives;
    uint32_t anchors_rows;
    uint32_t anchors_cols;
    uint32_t zero_x;
    uint32_t zero_y;
    uint32_t nan_x;
    uint32_t nan_y;
    uint32_t overflow;
    uint32_t reserved;
};
static_assert(sizeof(PairwiseReport) == 80, "keep in step with src/pairwise.rs");

// A block's share of the report, then everybody's.
struct PairwiseBlock {
    double loss[2];              // rows and columns; kFormContrastive: positives and negatives
    double positive;             // sum of the similarities of the positives
    unsigned long long active[2];  // kFormContrastive: positives and negatives with a weight
    uint32_t mean;               // rows that the mean is over
    uint32_t anchors_rows;
    uint32_t anchors_cols;
    uint32_t zero_x;
    uint32_t zero_y;
    uint32_t nan_x;
    uint32_t nan_y;
    uint32_t pad_;
};
static_assert(sizeof(PairwiseBlock) == 72, "keep in step with src/cuda/pairwise_params.rs");

// Factors of the reduction, on weights of negatives and of positives.
struct PairwiseScale {
    float negative;
    float positive;
};

struct PairwiseFinalizeParams {
    const uint32_t* row_parts;    // as in PairwiseStatsParams
    const uint32_t* other_parts;
    const float* pos;             // (min(n, m)); single_positive only
    const uint32_t* col_flags;    // (m); not single_positive only
    const unsigned long long* counts;
    const float* inv_x;           // (n): 0 marks a zero row, NaN a row with a NaN or Inf
    const float* inv_y;           // (m)
    const uint8_t* ignore_rows;   // (n), or null
    const uint8_t* ignore_cols;   // (m), or null
    const float* row_weights;     // (n), or null: 1
    const float* col_weights;     // (m), or null: 1
    const float* log_q;           // (m), or null: 0
    float* row_coefficients;      // (kRowPlanes, n)
    float* col_coefficients;      // (kColPlanes, m), both sides only
    uint8_t* skip_x;              // (n): 1 if the row is to be left out of products; or null
    uint8_t* skip_y;              // (m), or null
    PairwiseBlock* blocks;         // (grid)
    uint32_t* ticket;             // 0 on entry
    PairwiseScale* scale;         // (1)
    PairwiseReport* report;       // (1)
    double k[kPairConstants];     // as PairwiseTiles::c, without log2(e): scale; scale, bias; alpha, beta; gamma; ...
    uint32_t n;
    uint32_t m;
    uint32_t row_splits;
    uint32_t col_splits;
    uint32_t form;
    uint32_t both;                // 1: columns are anchors too
    uint32_t single;
    uint32_t normalised;          // 1: rows with a NaN are NaN throughout
};
static_assert(sizeof(PairwiseFinalizeParams) == 240, "keep in step with src/cuda/pairwise_params.rs");

struct PairwiseWeightsParams {
    PairwiseTiles tiles;
    const float* row_coefficients;  // (kRowPlanes, n)
    const float* col_coefficients;  // (kColPlanes, m), both sides only
    const PairwiseScale* scale;     // null: 1
    void* w;                        // (wave rows, ldw): bf16 for 16-bit T, else f32; whole tiles are written
    void* low;                      // the same, what bf16 rounds off, in bf16; or null. By warpgroups of bf16 only
    float* mixed;                   // the wave's sum of the parts' weights, tile after tile; null unless kMix* says so
    float* diagonal;                // (min(n, m)), weights of own pairs that are positive, which W does not hold
    double* sums;                   // (grid, kWaveSums)
    uint32_t* row_flags;            // (n), 0 on entry: 1 is written for rows with a positive; kFormSigLip only
    uint32_t* col_flags;            // (m), the same for columns
    unsigned long long* counts;     // (2), 0 on entry: negative and positive pairs are added; kFormSigLip only
    int64_t ldw;                    // elements, a multiple of 128
    uint32_t first_tile;            // of the wave's rows, in tiles
    uint32_t end_tile;
    uint32_t row_splits;
    uint32_t col_splits;
    float share;                    // factor of this part's weights, but not of sums
    uint32_t mix;                   // kMix* or 0
};
static_assert(sizeof(PairwiseWeightsParams) == 296, "keep in step with src/cuda/pairwise_params.rs");

struct PairwiseGradParams {
    const void* w;         // (wave rows, ldw), whole tiles
    const void* x;         // (n, d) T
    const void* y;         // (m, d) T
    const uint8_t* skip_x;  // (n), not 0: the row counts as zeros; or null
    const uint8_t* skip_y;  // (m), or null
    float* gx;             // (n, ldg)
    float* gy;             // (m, ldg)
    int64_t ldw;           // elements
    int64_t ldx;           // elements
    int64_t ldy;           // elements
    int64_t ldg;           // elements, a multiple of 8, at least d
    uint32_t n;
    uint32_t m;
    uint32_t d;
    uint32_t first_tile;   // of the wave's rows, in tiles
    uint32_t end_tile;
    uint32_t accumulate;   // 1: gy is added to, else written
};
static_assert(sizeof(PairwiseGradParams) == 112, "keep in step with src/cuda/pairwise_params.rs");

// The same beside tensor maps.
struct PairwiseGradGroupParams {
    const uint8_t* skip_x;  // as in PairwiseGradParams
    const uint8_t* skip_y;
    float* gx;
    float* gy;
    int64_t ldg;
    uint32_t n;
    uint32_t m;
    uint32_t d;
    uint32_t first_tile;
    uint32_t end_tile;
    uint32_t accumulate;
    uint32_t tile_cols;     // 128 or 256, columns of a tile of gx or gy
    uint32_t panels;        // 1: the maps of x and y are those of panels, else those of rows
    uint32_t rest_x;        // f16: rows from a leading part to the rest
    uint32_t rest_y;
    uint32_t across;        // tiles of a cluster beside each other
    uint32_t x_is_long;     // 1: those of gx have more steps than those of gy, else not
    uint32_t long_tiles;    // of a cluster, of the product with more steps
    uint32_t short_tiles;
    uint32_t long_steps;    // of 64 k, in each of them
    uint32_t short_steps;
    uint32_t meanwhile;     // long_steps / short_steps
    uint32_t part;          // f32: columns from one part of x and y to the next
    uint32_t rest_w;        // f32: rows from the leading part of w to the rest
    uint32_t pad_;
};
static_assert(sizeof(PairwiseGradGroupParams) == 120, "keep in step with src/cuda/pairwise_params.rs");

// Rows of f16 and where their parts go.
struct PairwiseSplitSide {
    const void* src;   // (rows, d) f16, rows aligned to 16 bytes
    void* parts;       // (2, padded, ld_parts) bf16
    int64_t ld;        // elements
    uint32_t rows;
    uint32_t padded;   // at least rows
};
static_assert(sizeof(PairwiseSplitSide) == 32, "keep in step with src/cuda/pairwise_params.rs");

struct PairwiseSplitParams {
    PairwiseSplitSide x;
    PairwiseSplitSide y;  // without rows for a set with itself
    uint32_t d;
    uint32_t ld_parts;    // elements, a multiple of 8, at least d
};
static_assert(sizeof(PairwiseSplitParams) == 72, "keep in step with src/cuda/pairwise_params.rs");

// The gradient of one matrix.
struct PairwiseFinishSide {
    const void* own;              // (rows, d) T, rows aligned to 16 bytes
    const void* other;            // (others, d) T, the same
    const float* g[2];            // (rows, ldg), sums of products, added up; null: none
    const float* own_inv;         // (rows): staged (f32) or own_inv staged (16-bit) is the normalised row; null: not normalised
    const int32_t* own_exponent;  // (rows): the row's norm is 2^own_exponent / own_inv
    const float* other_inv;       // (others), factor on a row of `other`; null: 1
    void* out;                    // (rows, d) G
    int64_t own_ld;
    int64_t other_ld;
    int64_t out_ld;
    uint32_t rows;
    uint32_t out_aligned;         // 1 if every row of out starts on a 16-byte boundary
};
static_assert(sizeof(PairwiseFinishSide) == 96, "keep in step with src/cuda/pairwise_params.rs");

struct PairwiseFinishParams {
    PairwiseFinishSide x;
    PairwiseFinishSide y;
    const float* diagonal;   // (pairs), weight of the own pair
    const float* upstream;   // one element, or null: 1
    const double* sums;      // (sums_count, kWaveSums) of the waves
    const uint32_t* row_flags;  // as in PairwiseWeightsParams; null: the report has its loss and counts already
    const uint32_t* col_flags;
    const unsigned long long* counts;
    PairwiseReport* report;
    int64_t ldg;
    double per_scale;        // 1 / scale for d_scale; 0: there is none
    double per_bias;         // 1 / scale for d_bias; 0: there is none
    float factor;            // on the gradient, beside upstream
    uint32_t d;
    uint32_t pairs;
    uint32_t accumulate;     // 1: added to out
    uint32_t sums_count;
    uint32_t n;
    uint32_t m;
    uint32_t of_weights;     // 1: the report's loss is the sum of W S with the factors, its mean the sums' too
    uint32_t more_reports;   // reports behind the first that are to have the overflow too
    uint32_t pad_;
};
static_assert(sizeof(PairwiseFinishParams) == 312, "keep in step with src/cuda/pairwise_params.rs");

// One part of a mixture.
struct PairwiseMixtureReportParams {
    const float* upstream;   // one element, or null: 1
    const double* sums;      // (sums_count, kWaveSums) of the waves
    const uint32_t* row_flags;  // as in PairwiseWeightsParams; null: the report has its loss and counts already
    const uint32_t* col_flags;
    const unsigned long long* counts;
    const void* goal;        // StepReport of a GOAL objective, or null
    PairwiseReport* report;
    double per_scale;        // as in PairwiseFinishParams
    double per_bias;
    double share;            // the part's weight
    float factor;            // beside upstream
    uint32_t sums_count;
    uint32_t n;
    uint32_t m;
};
static_assert(sizeof(PairwiseMixtureReportParams) == 96, "keep in step with src/cuda/pairwise_params.rs");
