// Parameters of row_norms_*, prepare_* and normalize_backward_*; twins in src/cuda/prepare.rs and src/cuda/row_norms.rs.
#pragma once
#include <stdint.h>

constexpr uint32_t kRowsPerBlock = 8;  // a warp per row: enough warps per block to hide the latency of the reads
constexpr uint32_t kRowThreads = 32 * kRowsPerBlock;

// One matrix, or a batch of matrices whose rows are numbered through.
struct PrepareSide {
    const void* src;       // (count / rows, rows, d) T
    void* staged;          // (count, staged_ld) T, 256-byte aligned, or null: not written
    float* inv;            // (count), or null
    int32_t* exponent;     // (count), or null
    int64_t ld;            // elements from one row of src to the next
    int64_t batch_stride;  // elements from one matrix of src to the next
    int64_t staged_ld;     // a multiple of 16 bytes
    uint32_t rows;         // rows of one matrix
    uint32_t count;        // rows of all matrices
    uint32_t aligned;      // 1 if every row of src starts on a 16-byte boundary
    uint32_t pad_;
};
static_assert(sizeof(PrepareSide) == 72, "keep in step with src/cuda/prepare.rs");

struct PrepareParams {
    PrepareSide x;
    PrepareSide y;
    float* pmin;          // (grid), partial minima of the pairs' similarities, or null
    uint32_t* zeroed;     // (zeroed_len) words to clear, or null
    uint32_t* cleared;    // one more word to clear, or null
    uint32_t zeroed_len;
    uint32_t d;
    uint32_t normalize;   // 1: rows are divided by their norms
    uint32_t pad_;
};
static_assert(sizeof(PrepareParams) == 184, "keep in step with src/cuda/prepare.rs");

struct RowNormsParams {
    const void* x;     // (rows, d) T
    float* norms;      // (rows), or null
    void* unit;        // (rows, d) T, or null
    int64_t ldx;
    int64_t ld_unit;
    uint32_t rows;
    uint32_t d;
    uint32_t aligned;  // bit 0: rows of x start on 16-byte boundaries, bit 1: rows of unit do
    uint32_t pad_;
};
static_assert(sizeof(RowNormsParams) == 56, "keep in step with src/cuda/row_norms.rs");

struct NormalizeBackwardParams {
    const void* x;        // (rows, d) T
    const float* grad;    // (rows, d), gradient with respect to the normalised rows
    void* dx;             // (rows, d) G
    int64_t ldx;
    int64_t ld_grad;
    int64_t ld_dx;
    uint32_t rows;
    uint32_t d;
    uint32_t aligned;     // bit 0: rows of x start on 16-byte boundaries
    uint32_t accumulate;  // 1: added to dx
};
static_assert(sizeof(NormalizeBackwardParams) == 64, "keep in step with src/cuda/row_norms.rs");
