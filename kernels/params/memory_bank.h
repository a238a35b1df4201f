// Parameters of bank_push_*, shared with Rust (src/cuda/memory_bank.rs): pointers, then 64-bit numbers, then words.
#pragma once
#include <stdint.h>

struct BankPushParams {
    const void* src;       // (rows, d), row stride ld
    const int64_t* ids;    // (rows)
    void* embeddings;      // (capacity, d), without gaps
    int64_t* out_ids;      // (capacity)
    uint64_t* out_stamps;  // (capacity)
    int64_t ld;            // elements
    uint64_t stamp;
    uint32_t first;        // rows before it are not kept: at most `capacity` follow
    uint32_t rows;
    uint32_t capacity;
    uint32_t cursor;       // slot of row 0
    uint32_t d;
    uint32_t pad_;
};
static_assert(sizeof(BankPushParams) == 80, "keep in step with src/cuda/memory_bank.rs");
