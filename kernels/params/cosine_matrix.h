// Parameters of cosine_matrix_*, shared with Rust (src/cuda/cosine_matrix.rs): pointers, then strides, then words.
#pragma once
#include <stdint.h>

constexpr uint32_t kOutF32 = 0;
constexpr uint32_t kOutF16 = 1;
constexpr uint32_t kOutBf16 = 2;

struct CosineMatrixParams {
    const void* x;       // (batch, n, d) T; base, rows and matrices aligned to 16 bytes
    const void* y;       // (batch, m, d) T; the same
    const float* inv_x;  // (batch, n), factor on a row of S; null: 1
    const float* inv_y;  // (batch, m), factor on a column of S; null: 1
    void* out;           // (batch, n, m), element type out_type
    int64_t ldx;         // strides in elements: from row to row ...
    int64_t ldy;
    int64_t ldo;
    int64_t x_matrix;  // ... and from matrix to matrix
    int64_t y_matrix;
    int64_t out_matrix;
    int64_t inv_x_matrix;
    int64_t inv_y_matrix;
    uint32_t batch;
    uint32_t n;
    uint32_t m;
    uint32_t d;
    float scale;
    uint32_t out_type;  // kOut*
    uint32_t vectors;   // 1: base, ldo and out_matrix of `out` are multiples of 8 bytes
    uint32_t pad_;
};
static_assert(sizeof(CosineMatrixParams) == 136, "keep in step with src/cuda/cosine_matrix.rs");
