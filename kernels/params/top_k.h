// Parameters of mine_top_k_* and mine_top_k_merge, shared with Rust (src/cuda/top_k_params.rs): pointers, then 64-bit
// numbers, then words.
#pragma once
#include <stdint.h>

// How survivors are ranked (Pick in src/top_k.rs).
constexpr uint32_t kPickHardest = 0;
constexpr uint32_t kPickRandom = 1;
constexpr uint32_t kPickDistance = 2;

// How far below the positive survivors are (Margin in src/top_k.rs).
constexpr uint32_t kMarginNone = 0;
constexpr uint32_t kMarginAbsolute = 1;
constexpr uint32_t kMarginRelative = 2;

// Words of a line's state in one slot, a plane each: places used in the list; places used in the list of those left out, or
// with kPickHardest the similarity that an element has to exceed to get into the list; survivors; index and value of the
// smallest candidate, with `easiest` and while nothing survives.
constexpr uint32_t kTopKPlanes = 5;

// The most entries of a line that mine_top_k_merge sorts.
constexpr uint32_t kTopKMerged = 4096;

// A candidate: larger keys come first, then lower indices.
struct alignas(16) TopKEntry {
    uint64_t key;
    float value;
    int32_t index;
};

// The lists of one direction. Slot s of line l has its `skip` places for candidates that are left out before a sample is
// drawn, then its `keep` places, from lists[(s * len + l) * (skip + keep)] on; plane p of its state is
// state[(p * slots + s) * len + l].
struct TopKSide {
    TopKEntry* lists;
    uint32_t* state;
    uint64_t start;  // of the direction's random numbers
    uint32_t len;    // lines
    uint32_t slots;
    uint32_t skip;
    uint32_t keep;
};
static_assert(sizeof(TopKSide) == 40, "keep in step with src/cuda/top_k_params.rs");

struct TopKParams {
    const void* x;            // (n, d) T, row stride ldx; base and rows aligned to 16 bytes
    const void* y;            // (m, d) T, row stride ldy; the same
    const float* inv_x;       // (n), factor on a row of S; null: 1
    const float* inv_y;       // (m), factor on a column of S; null: 1
    const int64_t* row_ids;   // (n), or null; equal ids are no candidates of each other
    const int64_t* col_ids;   // (m), or null
    const uint64_t* stamps;   // (m), or null; the id of a column counts if its stamp is `oldest` or more
    const float* pos;         // (pairs), similarity of each pair; read with a margin only
    TopKSide rows;
    TopKSide cols;            // len 0: the columns are no anchors
    uint64_t oldest;
    int64_t ldx;              // elements
    int64_t ldy;              // elements
    double far;               // factor of ln(2 - 2 s) in the logarithm of a weight
    double near;              // factor of ln((1 + s) / 2)
    double margin;
    float low;                // survivors have low <= s <= high
    float high;
    uint32_t n;
    uint32_t m;
    uint32_t d;
    uint32_t row_splits;
    uint32_t col_splits;
    uint32_t row_slot;        // the rows' first slot of this launch
    uint32_t offset;          // index of column 0 as a candidate
    uint32_t pairs;           // lines below this have a pair
    uint32_t own_pairs;       // 1: the pair, the column of the row's index, is no candidate
    uint32_t pick;            // kPick*
    uint32_t margin_kind;     // kMargin*
    uint32_t admits_nan;      // 1: everything survives, NaN too; without a window and a margin alone
    uint32_t easiest;         // 1: the smallest candidate is wanted
    uint32_t pad_;
};
static_assert(sizeof(TopKParams) == 256, "keep in step with src/cuda/top_k_params.rs");

struct TopKMergeParams {
    TopKSide rows;
    TopKSide cols;
    int32_t* row_index;       // (n, k)
    float* row_value;         // (n, k)
    uint32_t* row_survivors;  // (n)
    int32_t* col_index;       // (m, k)
    float* col_value;         // (m, k)
    uint32_t* col_survivors;  // (m)
    double far;
    double near;
    uint32_t k;
    uint32_t drop;            // sorted entries that are left out; with kPickHardest only
    uint32_t pick;
    uint32_t easiest;
};
static_assert(sizeof(TopKMergeParams) == 160, "keep in step with src/cuda/top_k_params.rs");
