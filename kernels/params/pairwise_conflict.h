// Parameters of pairwise_conflict_*, shared with Rust (src/cuda/pairwise_conflict.rs).
#pragma once
#include <stdint.h>

constexpr uint32_t kConflictThreads = 256;

struct PairwiseConflictParams {
    const float* gradients;  // (parts, len)
    double* partial;         // (pairs of parts, blocks)
    double* dots;            // (pairs of parts)
    double* out;             // (parts): norms; then (parts, parts): cosines
    uint64_t len;
    uint32_t parts;
    uint32_t blocks;         // per pair of parts
};
static_assert(sizeof(PairwiseConflictParams) == 48, "keep in step with src/cuda/pairwise_conflict.rs");
