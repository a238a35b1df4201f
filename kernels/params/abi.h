// Parameter block of abi_layout; its Rust twin is in src/cuda/abi.rs.
#pragma once
#include <stdint.h>

struct AbiParams {
    uint32_t* out;      // (capacity) words
    uint32_t capacity;  // words that fit
    uint32_t pad_;
};
static_assert(sizeof(AbiParams) == 16, "keep in step with src/cuda/abi.rs");
