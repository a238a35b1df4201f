// Parameters of mine_screen_*, shared with Rust (src/cuda/mine_screen.rs): pointers, then strides, then words.
#pragma once
#include <stdint.h>

// How it went, for the caller.
constexpr uint32_t kScreenNone = 0;  // f32 similarities alone, or rows of 16 bits
constexpr uint32_t kScreenDone = 1;
constexpr uint32_t kScreenUnfit = 2;     // failed: everything was done again
constexpr uint32_t kScreenOverflow = 3;  // failed likewise

// What the kernels of a screen tell each other; all 0 before.
struct ScreenState {
    uint32_t unfit;        // 1: a row is not finite, too large for the screen's type, or has no useful bound
    uint32_t overflow;     // 1: there were more candidates than the list has room for
    uint32_t norm[2];      // the largest bound on a norm of a row of X, and of Y: bits of an f32
    uint32_t error[2];     // the same for what rounding took from it
    uint64_t candidates;   // entries of the list, counted on where it is full

#ifdef __CUDACC__
    __device__ __forceinline__ bool failed() const { return (unfit | overflow) != 0; }
    __device__ __forceinline__ uint32_t outcome() const {
        return unfit ? kScreenUnfit : overflow ? kScreenOverflow : kScreenDone;
    }
#endif
};
static_assert(sizeof(ScreenState) == 32, "keep in step with src/cuda/mine_screen.rs");

// Rows and columns that the bounds are padded to: the blocks of a cluster have as many rows each.
constexpr uint32_t kScreenPadding = 256;

struct ScreenRowsParams {
    const float* x;      // (n, d), row stride ldx; base and rows aligned to 16 bytes
    const float* y;      // (m, d), row stride ldy; the same
    void* x_screen;      // (n, ld) T, the last elements of a row zeros
    void* y_screen;      // (m, ld) T
    float* norm;         // (n + m), not less than the norm of the row and of what it was rounded to; 0 of a zero row alone
    float* error;        // (n + m), not less than the norm of their difference
    ScreenState* state;
    int64_t ldx;
    int64_t ldy;
    int64_t ld;          // a multiple of 8
    uint32_t n;
    uint32_t m;
    uint32_t d;
    uint32_t pad_;
};
static_assert(sizeof(ScreenRowsParams) == 96, "keep in step with src/cuda/mine_screen.rs");

struct ScreenBoundsParams {
    const uint32_t* row_parts;  // what mining the rounded rows has left (params/mine.h)
    const uint32_t* col_parts;
    const float* norm;          // (n + m)
    const float* error;         // (n + m)
    float* row_bound;           // (n, padded), similarities of the rounded rows below it are no maximum
    float* col_bound;           // (m, padded)
    uint64_t* row_keys;         // (n), written for zero rows alone
    uint64_t* col_keys;         // (m), likewise
    ScreenState* state;
    uint32_t n;
    uint32_t m;
    uint32_t d;
    uint32_t row_splits;
    uint32_t col_splits;
    uint32_t stats;             // kStatsKeys or kStatsNone
};
static_assert(sizeof(ScreenBoundsParams) == 96, "keep in step with src/cuda/mine_screen.rs");

struct ScreenParams {
    const void* x;              // (n, d) T, rounded
    const void* y;              // (m, d) T
    const float* row_bound;     // (n, padded)
    const float* col_bound;     // (m, padded)
    const int64_t* row_groups;  // (n), or null: no groups
    const int64_t* col_groups;  // (m), or null
    uint64_t* list;             // (capacity), row << 32 | column
    ScreenState* state;
    int64_t ldx;
    int64_t ldy;
    uint32_t n;
    uint32_t m;
    uint32_t d;
    uint32_t row_splits;
    uint32_t col_splits;
    uint32_t capacity;
};
static_assert(sizeof(ScreenParams) == 104, "keep in step with src/cuda/mine_screen.rs");

struct ScreenRescoreParams {
    const float* x;           // as in ScreenRowsParams
    const float* y;
    const uint64_t* list;     // (state->candidates)
    const ScreenState* state;
    uint64_t* row_keys;       // (n), 0 before (common/mining.cuh)
    uint64_t* col_keys;       // (m), 0 before
    float* pos;               // (min(n, m)), S[i, i]; null: not written
    int64_t ldx;
    int64_t ldy;
    uint32_t n;
    uint32_t m;
    uint32_t d;
    uint32_t pad_;
};
static_assert(sizeof(ScreenRescoreParams) == 88, "keep in step with src/cuda/mine_screen.rs");
