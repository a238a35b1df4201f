// Parameters of goal_finalize, shared with Rust (src/cuda/goal.rs): pointers, then doubles, then words.
#pragma once
#include <stdint.h>

constexpr uint32_t kGoalAnchors = 32;   // per block, one per lane of its first warp
constexpr uint32_t kGoalThreads = 512;  // the last block sorts by itself: enough warps to hide the latency of that
constexpr uint32_t kGoalSplits = 16;    // at most, of the partial states
constexpr uint32_t kGoalTickets = 3;    // blocks of each direction that are done, directions that are done

// Triplet weight T(P, N).
constexpr uint32_t kTripletCon = 0;    // 1
constexpr uint32_t kTripletHinge = 1;  // 1 if margin + N - P > 0, else 0
constexpr uint32_t kTripletNca = 2;    // sigma(tau (N - P))
constexpr uint32_t kTripletCir = 3;    // sigma(tau (N^2 + (1 - P)^2 - offset))

// Pair weights w+(P), w-(N).
constexpr uint32_t kPairCon = 0;
constexpr uint32_t kPairLin = 1;
constexpr uint32_t kPairSig = 2;
constexpr uint32_t kPairLinMs = 3;
constexpr uint32_t kPairSigMs = 4;

struct ObjectiveParams {
    double margin;
    double tau;
    double offset;
    double alpha;
    double beta;
    double lambda;
    float eps;
    uint32_t triplet;    // kTriplet*
    uint32_t pair;       // kPair*
    uint32_t potential;  // 1: the loss is the potential of which the objective is the gradient; 0: it is N - P
};
static_assert(sizeof(ObjectiveParams) == 64, "keep in step with src/cuda/goal.rs");

// Layout of src/outputs.rs.
struct StepReport {
    double loss;
    double log_it;
    double log_ti;
    double mean_positive;
    double mean_negative_it;
    double mean_negative_ti;
    uint32_t pairs;
    uint32_t empty_it;
    uint32_t empty_ti;
    uint32_t active_it;
    uint32_t active_ti;
    uint32_t zero_x;
    uint32_t zero_y;
    uint32_t nan_x;
    uint32_t nan_y;
    uint32_t overflow;
};
static_assert(sizeof(StepReport) == 88, "keep in step with src/outputs.rs");

// One direction's share of the report: of a block, then of the whole batch.
struct ReportPart {
    double loss;
    double log;
    double negative;  // sum of N
    double positive;  // sum of P
    uint32_t anchors;  // that have a negative
    uint32_t active;
    uint32_t zero;
    uint32_t nan;
};
static_assert(sizeof(ReportPart) == 48, "keep in step with src/cuda/goal.rs");

// Planes of n 4-byte words in which the anatomy of a direction is laid out.
constexpr uint32_t kDetailIndex = 0;  // i32
constexpr uint32_t kDetailValue = 1;
constexpr uint32_t kDetailSecond = 2;
constexpr uint32_t kDetailTriplet = 3;
constexpr uint32_t kDetailPairPos = 4;
constexpr uint32_t kDetailPairNeg = 5;
constexpr uint32_t kDetailRsPos = 6;
constexpr uint32_t kDetailRsNeg = 7;
constexpr uint32_t kDetailRsPosCount = 8;  // u32
constexpr uint32_t kDetailRsNegCount = 9;  // u32
constexpr uint32_t kDetailPlanes = 10;

// One direction: anchors are the rows of X (it) or of Y (ti).
struct GoalSide {
    const uint32_t* parts;   // (planes, splits, n), common/mining.cuh
    const float* inv;        // (n): 0 marks a zero row, NaN a row with a NaN or Inf
    const int64_t* anchor_groups;  // (n), or null
    const int64_t* other_groups;   // (n), or null
    float* positive;         // (n): coefficient of the anchor's own pair
    float* negative;         // (n): coefficient of its hardest negative
    int32_t* index;          // (n): its hardest negative, -1 without one
    uint32_t* list;          // (n): inverse index of `index`
    uint32_t* spare;         // (n)
    uint32_t* offsets;       // (n + 1)
    ReportPart* blocks;      // (grid.x)
    ReportPart* total;       // (1)
    uint32_t* detail;        // (kDetailPlanes, n), or null: not wanted
    uint8_t* skip;           // (n): 1 if the anchor's row is not finite, so that products are to leave it out; or null
    uint32_t splits;
    uint32_t unit;           // candidates of a tile: those of a split are whole tiles, dealt as part_begin() deals
};
static_assert(sizeof(GoalSide) == 120, "keep in step with src/cuda/goal.rs");

struct GoalParams {
    GoalSide it;
    GoalSide ti;
    const float* pos;    // (n): similarity of the pairs
    const float* pmin;   // (pmin_count), partial minima of the pairs' similarities; kStatsLin and kStatsSig only
    uint32_t* tickets;   // (kGoalTickets) words that are 0
    StepReport* report;  // (1)
    ObjectiveParams objective;
    double factor;       // of the reduction, on sums in the report
    uint32_t n;
    uint32_t pmin_count;
    uint32_t stats;      // kStats* of the partial states
    uint32_t pad_;
};
static_assert(sizeof(GoalParams) == 360, "keep in step with src/cuda/goal.rs");
