// Parameters of weighted_grad_*; twins in src/cuda/weighted_grad.rs.
#pragma once
#include <stdint.h>

constexpr uint32_t kInvertThreads = 512;  // enough warps to hide most of the latency of one block's scattered accesses
constexpr uint32_t kIndexDigits = 512;    // values of a digit of the sort by many blocks, and threads of their blocks
constexpr uint32_t kIndexTile = 2048;     // entries that such a block holds at a time: four per thread
constexpr uint32_t kIndexBlocks = 64;     // per side at most: both sides' blocks fit on a device at a time
constexpr uint32_t kHubEntries = 2048;    // of a row, from which on blocks of their own add them up, some columns each
constexpr uint32_t kHubColumns = 64;      // of such a block
constexpr uint32_t kHubThreads = 256;
constexpr uint32_t kGatherThreads = 256;  // at most
constexpr uint32_t kGatherColumns = 8;    // of a thread: one 16-byte access of 16-bit elements, two of f32

// One direction of the inverse index: entries are triples, targets rows of one matrix.
struct InvertSide {
    const int32_t* target;  // (count)
    uint32_t* list;         // (count)
    uint32_t* spare;        // (count)
    uint32_t* offsets;      // (targets + 1)
    uint32_t* counts;       // (passes, blocks, kIndexDigits) entries per pass, block and digit; not of one block
    uint32_t targets;
    uint32_t passes;        // of the sort by many blocks
};
static_assert(sizeof(InvertSide) == 48, "keep in step with src/cuda/weighted_grad.rs");

struct InvertParams {
    InvertSide x;
    InvertSide y;
    int32_t* x_target;    // (count), copy of rows in which a triple with an index out of range is -1; x.target
    int32_t* y_target;    // (count), the same of cols; y.target
    const int32_t* rows;  // (count)
    const int32_t* cols;  // (count)
    uint32_t* report;     // (2): triples left out, overflow (set to 0)
    uint32_t count;
    uint32_t chunk;       // of many blocks: consecutive entries of one, a multiple of kIndexTile
    uint32_t pass;        // of weighted_grad_place
    uint32_t pad_;
};
static_assert(sizeof(InvertParams) == 152, "keep in step with src/cuda/weighted_grad.rs");

// The gradient of one matrix: of row t, sum over its terms of coefficient times row of the other matrix.
struct GatherSide {
    const void* own;           // (rows, d) T, rows aligned to 16 bytes
    const void* other;         // (others, d) T, the same
    const float* own_inv;      // (rows): staged (f32) or own_inv staged (16-bit) is the normalised row; null: not normalised
    const int32_t* own_exponent;  // (rows): the row's norm is 2^own_exponent / own_inv
    const float* other_inv;    // (others), or null: 1
    void* out;                 // (rows, d) G
    const float* diagonal[2];  // (pairs) each, added up: coefficient of the row of the same index; null: none
    const int32_t* negative;   // (rows): one more term, -1: none; null: none for all
    const float* coefficient;  // (rows), of that term
    const uint32_t* offsets;   // (rows + 1)
    const uint32_t* list;      // entries of the inverse index
    const int32_t* source;     // entry -> row of the other matrix; null: the same number
    const float* weight;       // entry -> coefficient
    float* hubs;               // (entries / kHubEntries, width) sums of the rows with many entries, which have no other terms;
                               // width is d up to whole steps of a block of weighted_grad_*; null: there are no such sums
    int64_t own_ld;
    int64_t other_ld;
    int64_t out_ld;
    uint32_t rows;
    uint32_t out_aligned;      // 1 if every row of out starts on a 16-byte boundary
};
static_assert(sizeof(GatherSide) == 152, "keep in step with src/cuda/weighted_grad.rs");

struct GatherParams {
    GatherSide x;
    GatherSide y;
    const float* upstream;  // one element, or null: 1
    uint32_t* overflow;     // count of gradient elements that became infinite by rounding
    float factor;           // on the gradient, beside upstream
    uint32_t d;
    uint32_t pairs;         // rows t < pairs have a diagonal
    uint32_t accumulate;    // 1: added to out
};
static_assert(sizeof(GatherParams) == 336, "keep in step with src/cuda/weighted_grad.rs");
