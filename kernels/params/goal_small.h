// Parameters of goal_small_*; twin in src/cuda/goal_small.rs.
#pragma once
#include <stdint.h>

#include "params/goal.h"
#include "params/weighted_grad.h"

constexpr uint32_t kSmallPairs = 1024;     // at most: a warp holds one bit per anchor, 32 in every lane
constexpr uint32_t kSmallRows = 8;         // of the gradients that a block writes, at most
constexpr uint32_t kSmallThreads = 256;    // at most

struct GoalSmallParams {
    GoalParams goal;         // positive, negative, index, list, spare, offsets, total, skip of both directions are not used
    GatherParams gather;     // nor diagonal, negative, coefficient, offsets, list, source, weight, hubs of both matrices
    uint32_t pairs;          // whose rows a block writes: a power of two, at most kSmallRows / 2
    uint32_t row_warps;      // warps that work on a row, of which a block has a multiple
    uint32_t report_blocks;  // the first blocks of the grid, a warp for 32 anchors of a direction
    uint32_t pad_;
};
static_assert(sizeof(GoalSmallParams) == 712, "keep in step with src/cuda/goal_small.rs");
