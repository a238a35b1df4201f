// abi_layout: the layout of every parameter block and the constants, as the device compiler sees them.
//
//   out  (capacity) u32: for each block its size, then the offset of every field in order; then the constants; what follows
//        is left alone
//
// Work    one thread.
// Launch  grid 1, block 1, no dynamic shared memory.
// Bound   nothing; run once, by a test.
// Order   fixed.
// Needs   sm_80.
#include <stddef.h>

#include "common/tile.cuh"
#include "params/abi.h"
#include "params/cosine_matrix.h"
#include "params/goal.h"
#include "params/goal_small.h"
#include "params/memory_bank.h"
#include "params/mine.h"
#include "params/mine_screen.h"
#include "params/mined_triplet.h"
#include "params/pairwise.h"
#include "params/pairwise_conflict.h"
#include "params/pairwise_custom.h"
#include "params/positive_ranks.h"
#include "params/ranks.h"
#include "params/row_norms.h"
#include "params/top_k.h"
#include "params/weighted_grad.h"

namespace {

// Writes one word after the other, as far as they fit.
struct Writer {
    uint32_t* out;
    uint32_t capacity;
    uint32_t count;
    __device__ __forceinline__ void put(size_t value) {
        if (count < capacity) out[count] = uint32_t(value);
        ++count;
    }
};

#define F(field) w.put(offsetof(S, field));

__device__ __forceinline__ void put_layouts(Writer& w) {
    {
        using S = AbiParams;
        w.put(sizeof(S));
        F(out) F(capacity) F(pad_)
    }
    {
        using S = PrepareSide;
        w.put(sizeof(S));
        F(src) F(staged) F(inv) F(exponent) F(ld) F(batch_stride) F(staged_ld) F(rows) F(count) F(aligned) F(pad_)
    }
    {
        using S = PrepareParams;
        w.put(sizeof(S));
        F(x) F(y) F(pmin) F(zeroed) F(cleared) F(zeroed_len) F(d) F(normalize) F(pad_)
    }
    {
        using S = RowNormsParams;
        w.put(sizeof(S));
        F(x) F(norms) F(unit) F(ldx) F(ld_unit) F(rows) F(d) F(aligned) F(pad_)
    }
    {
        using S = NormalizeBackwardParams;
        w.put(sizeof(S));
        F(x) F(grad) F(dx) F(ldx) F(ld_grad) F(ld_dx) F(rows) F(d) F(aligned) F(accumulate)
    }
    {
        using S = InvertSide;
        w.put(sizeof(S));
        F(target) F(list) F(spare) F(offsets) F(counts) F(targets) F(passes)
    }
    {
        using S = InvertParams;
        w.put(sizeof(S));
        F(x) F(y) F(x_target) F(y_target) F(rows) F(cols) F(report) F(count) F(chunk) F(pass) F(pad_)
    }
    {
        using S = GatherSide;
        w.put(sizeof(S));
        F(own) F(other) F(own_inv) F(own_exponent) F(other_inv) F(out) F(diagonal) F(negative) F(coefficient)
        F(offsets) F(list) F(source) F(weight) F(hubs) F(own_ld) F(other_ld) F(out_ld) F(rows) F(out_aligned)
    }
    {
        using S = GatherParams;
        w.put(sizeof(S));
        F(x) F(y) F(upstream) F(overflow) F(factor) F(d) F(pairs) F(accumulate)
    }
    {
        using S = ObjectiveParams;
        w.put(sizeof(S));
        F(margin) F(tau) F(offset) F(alpha) F(beta) F(lambda) F(eps) F(triplet) F(pair) F(potential)
    }
    {
        using S = StepReport;
        w.put(sizeof(S));
        F(loss) F(log_it) F(log_ti) F(mean_positive) F(mean_negative_it) F(mean_negative_ti) F(pairs) F(empty_it)
        F(empty_ti) F(active_it) F(active_ti) F(zero_x) F(zero_y) F(nan_x) F(nan_y) F(overflow)
    }
    {
        using S = GoalSide;
        w.put(sizeof(S));
        F(parts) F(inv) F(anchor_groups) F(other_groups) F(positive) F(negative) F(index) F(list) F(spare) F(offsets)
        F(blocks) F(total) F(detail) F(skip) F(splits) F(unit)
    }
    {
        using S = GoalParams;
        w.put(sizeof(S));
        F(it) F(ti) F(pos) F(pmin) F(tickets) F(report) F(objective) F(factor) F(n) F(pmin_count) F(stats) F(pad_)
    }
    {
        using S = GoalSmallParams;
        w.put(sizeof(S));
        F(goal) F(gather) F(pairs) F(row_warps) F(report_blocks) F(pad_)
    }
    {
        using S = MineParams;
        w.put(sizeof(S));
        F(x) F(y) F(inv_x) F(inv_y) F(row_groups) F(col_groups) F(pmin) F(pos) F(row_parts) F(col_parts) F(screen)
        F(ldx) F(ldy) F(n) F(m) F(d) F(row_splits) F(col_splits) F(pmin_count) F(select) F(stats) F(eps) F(beta)
    }
    {
        using S = MineMergeParams;
        w.put(sizeof(S));
        F(row_parts) F(col_parts) F(row_value) F(row_index) F(row_second) F(row_rank) F(col_value) F(col_index)
        F(col_second) F(col_rank) F(screen) F(row_keys) F(col_keys) F(report) F(n) F(m) F(row_splits) F(col_splits)
        F(stats) F(pad_)
    }
    {
        using S = ScreenRowsParams;
        w.put(sizeof(S));
        F(x) F(y) F(x_screen) F(y_screen) F(norm) F(error) F(state) F(ldx) F(ldy) F(ld) F(n) F(m) F(d) F(pad_)
    }
    {
        using S = ScreenBoundsParams;
        w.put(sizeof(S));
        F(row_parts) F(col_parts) F(norm) F(error) F(row_bound) F(col_bound) F(row_keys) F(col_keys) F(state) F(n) F(m) F(d) F(row_splits)
        F(col_splits) F(stats)
    }
    {
        using S = ScreenParams;
        w.put(sizeof(S));
        F(x) F(y) F(row_bound) F(col_bound) F(row_groups) F(col_groups) F(list) F(state) F(ldx) F(ldy) F(n) F(m) F(d)
        F(row_splits) F(col_splits) F(capacity)
    }
    {
        using S = ScreenRescoreParams;
        w.put(sizeof(S));
        F(x) F(y) F(list) F(state) F(row_keys) F(col_keys) F(pos) F(ldx) F(ldy) F(n) F(m) F(d) F(pad_)
    }
    {
        using S = CosineMatrixParams;
        w.put(sizeof(S));
        F(x) F(y) F(inv_x) F(inv_y) F(out) F(ldx) F(ldy) F(ldo) F(x_matrix) F(y_matrix) F(out_matrix) F(inv_x_matrix)
        F(inv_y_matrix) F(batch) F(n) F(m) F(d) F(scale) F(out_type) F(vectors) F(pad_)
    }
    {
        using S = RanksParams;
        w.put(sizeof(S));
        F(x) F(y) F(inv_x) F(inv_y) F(row_groups) F(col_groups) F(row_score) F(row_index) F(col_score) F(col_index)
        F(row_rank) F(col_rank) F(ldx) F(ldy) F(n) F(m) F(d) F(row_splits) F(col_splits) F(ties)
    }
    {
        using S = TopKSide;
        w.put(sizeof(S));
        F(lists) F(state) F(start) F(len) F(slots) F(skip) F(keep)
    }
    {
        using S = TopKParams;
        w.put(sizeof(S));
        F(x) F(y) F(inv_x) F(inv_y) F(row_ids) F(col_ids) F(stamps) F(pos) F(rows) F(cols) F(oldest) F(ldx) F(ldy)
        F(far) F(near) F(margin) F(low) F(high) F(n) F(m) F(d) F(row_splits) F(col_splits) F(row_slot) F(offset) F(pairs) F(own_pairs)
        F(pick) F(margin_kind) F(admits_nan) F(easiest) F(pad_)
    }
    {
        using S = TopKMergeParams;
        w.put(sizeof(S));
        F(rows) F(cols) F(row_index) F(row_value) F(row_survivors) F(col_index) F(col_value) F(col_survivors) F(far) F(near)
        F(k) F(drop) F(pick) F(easiest)
    }
    {
        using S = BankPushParams;
        w.put(sizeof(S));
        F(src) F(ids) F(embeddings) F(out_ids) F(out_stamps) F(ld) F(stamp) F(first) F(rows) F(capacity) F(cursor) F(d) F(pad_)
    }
    {
        using S = MinedTripletReport;
        w.put(sizeof(S));
        F(loss) F(mean_positive) F(mean_negative) F(triplets) F(active) F(pairs) F(empty_rows) F(empty_cols) F(zero_x)
        F(zero_y) F(nan_x) F(nan_y) F(overflow)
    }
    {
        using S = MinedTripletPart;
        w.put(sizeof(S));
        F(loss) F(negative) F(positive) F(triplets) F(active) F(empty_rows) F(empty_cols) F(zero_x) F(zero_y) F(nan_x)
        F(nan_y)
    }
    {
        using S = MinedTripletParams;
        w.put(sizeof(S));
        F(row_index) F(row_value) F(col_index) F(col_value) F(pos) F(inv_x) F(inv_y) F(rows) F(cols) F(values) F(parts)
        F(report) F(margin) F(factor) F(n) F(m) F(k) F(blocks)
    }
    {
        using S = PositiveRanksParams;
        w.put(sizeof(S));
        F(x) F(y) F(inv_x) F(inv_y) F(row_offsets) F(row_candidates) F(col_offsets) F(col_candidates) F(col_pairs)
        F(grades) F(score) F(row_rank) F(col_rank) F(ldx) F(ldy) F(n) F(m) F(d) F(pairs) F(row_splits) F(col_splits)
        F(ties) F(pad_)
    }
    {
        using S = PairwiseTiles;
        w.put(sizeof(S));
        F(x) F(y) F(inv_x) F(inv_y) F(row_groups) F(col_groups) F(ignore_rows) F(ignore_cols) F(log_q) F(pos) F(lowest)
        F(highest) F(kept) F(ldx) F(ldy) F(n) F(m) F(d) F(form) F(single) F(single_positive) F(c)
        F(keep) F(first_kept)
    }
    {
        using S = PairwiseStatsParams;
        w.put(sizeof(S));
        F(tiles) F(row_parts) F(other_parts) F(pos) F(col_flags) F(counts) F(row_splits) F(col_splits) F(extremes)
        F(pad_)
    }
    {
        using S = PairwiseExtremesParams;
        w.put(sizeof(S));
        F(neg_parts) F(pos_parts) F(lowest) F(highest) F(n) F(splits)
    }
    {
        using S = PairwiseReport;
        w.put(sizeof(S));
        F(loss) F(d_scale) F(d_bias) F(mean_positive) F(positives) F(negatives) F(anchors_rows) F(anchors_cols)
        F(zero_x) F(zero_y) F(nan_x) F(nan_y) F(overflow) F(reserved)
    }
    {
        using S = PairwiseBlock;
        w.put(sizeof(S));
        F(loss) F(positive) F(active) F(mean) F(anchors_rows) F(anchors_cols) F(zero_x) F(zero_y) F(nan_x) F(nan_y)
        F(pad_)
    }
    {
        using S = PairwiseFinalizeParams;
        w.put(sizeof(S));
        F(row_parts) F(other_parts) F(pos) F(col_flags) F(counts) F(inv_x) F(inv_y) F(ignore_rows) F(ignore_cols)
        F(row_weights) F(col_weights) F(log_q) F(row_coefficients) F(col_coefficients) F(skip_x) F(skip_y) F(blocks)
        F(ticket) F(scale) F(report) F(k) F(n) F(m) F(row_splits) F(col_splits) F(form) F(both) F(single) F(normalised)
    }
    {
        using S = PairwiseWeightsParams;
        w.put(sizeof(S));
        F(tiles) F(row_coefficients) F(col_coefficients) F(scale) F(w) F(low) F(mixed) F(diagonal) F(sums) F(row_flags)
        F(col_flags) F(counts) F(ldw) F(first_tile)
        F(end_tile) F(row_splits) F(col_splits) F(share) F(mix)
    }
    {
        using S = PairwiseGradParams;
        w.put(sizeof(S));
        F(w) F(x) F(y) F(skip_x) F(skip_y) F(gx) F(gy) F(ldw) F(ldx) F(ldy) F(ldg) F(n) F(m) F(d) F(first_tile)
        F(end_tile) F(accumulate)
    }
    {
        using S = PairwiseGradGroupParams;
        w.put(sizeof(S));
        F(skip_x) F(skip_y) F(gx) F(gy) F(ldg) F(n) F(m) F(d) F(first_tile) F(end_tile) F(accumulate) F(tile_cols)
        F(panels) F(rest_x) F(rest_y) F(across) F(x_is_long) F(long_tiles) F(short_tiles) F(long_steps) F(short_steps)
        F(meanwhile) F(part) F(rest_w) F(pad_)
    }
    {
        using S = PairwiseSplitSide;
        w.put(sizeof(S));
        F(src) F(parts) F(ld) F(rows) F(padded)
    }
    {
        using S = PairwiseSplitParams;
        w.put(sizeof(S));
        F(x) F(y) F(d) F(ld_parts)
    }
    {
        using S = PairwiseFinishSide;
        w.put(sizeof(S));
        F(own) F(other) F(g) F(own_inv) F(own_exponent) F(other_inv) F(out) F(own_ld) F(other_ld) F(out_ld) F(rows)
        F(out_aligned)
    }
    {
        using S = PairwiseFinishParams;
        w.put(sizeof(S));
        F(x) F(y) F(diagonal) F(upstream) F(sums) F(row_flags) F(col_flags) F(counts) F(report) F(ldg) F(per_scale) F(per_bias) F(factor) F(d) F(pairs)
        F(accumulate) F(sums_count) F(n) F(m) F(of_weights)
        F(more_reports) F(pad_)
    }
    {
        using S = PairwiseMixtureReportParams;
        w.put(sizeof(S));
        F(upstream) F(sums) F(row_flags) F(col_flags) F(counts) F(goal) F(report) F(per_scale) F(per_bias) F(share)
        F(factor) F(sums_count) F(n) F(m)
    }
    {
        using S = PairwiseConflictParams;
        w.put(sizeof(S));
        F(gradients) F(partial) F(dots) F(out) F(len) F(parts) F(blocks)
    }
    {
        using S = CustomPairs;
        w.put(sizeof(S));
        F(s) F(row_groups) F(col_groups) F(ignore_rows) F(ignore_cols) F(lds) F(n) F(m) F(first_row) F(end_row)
        F(single_positive) F(pad_)
    }
    {
        using S = CustomStatsParams;
        w.put(sizeof(S));
        F(pairs) F(rows) F(col_parts) F(splits) F(pad_)
    }
    {
        using S = CustomNearParams;
        w.put(sizeof(S));
        F(pairs) F(rows) F(cols) F(col_parts) F(least_pair) F(splits) F(pad_)
    }
    {
        using S = CustomAnchorsParams;
        w.put(sizeof(S));
        F(rows) F(col_parts) F(cols) F(inv_x) F(inv_y) F(ignore_rows) F(ignore_cols) F(skip_x) F(skip_y) F(counters)
        F(ticket) F(report) F(n) F(m) F(splits) F(normalised)
    }
    {
        using S = CustomWeightsParams;
        w.put(sizeof(S));
        F(pairs) F(rows) F(cols) F(inv_x) F(inv_y) F(row_weights) F(w) F(diagonal) F(sums) F(row_splits) F(col_splits)
    }
}

__device__ __forceinline__ void put_constants(Writer& w) {
    w.put(kRowsPerBlock);
    w.put(kRowThreads);
    w.put(kInvertThreads);
    w.put(kIndexDigits);
    w.put(kIndexTile);
    w.put(kIndexBlocks);
    w.put(kHubEntries);
    w.put(kHubColumns);
    w.put(kHubThreads);
    w.put(kGatherThreads);
    w.put(kGatherColumns);
    w.put(kGoalAnchors);
    w.put(kGoalThreads);
    w.put(kGoalSplits);
    w.put(kGoalTickets);
    w.put(kDetailPlanes);
    for (uint32_t count : {kSmallPairs, kSmallRows, kSmallThreads}) w.put(count);
    w.put(sizeof(ReportPart));
    w.put(kTile);
    w.put(kTileThreads);
    w.put(kPipelineBytes);
    w.put(kTopKMerged);
    w.put(sizeof(TopKEntry));
    w.put(kTopKPlanes);
    for (uint32_t code : {kSelectNegatives, kSelectGroup, kSelectPair}) w.put(code);
    for (uint32_t code : {kStatsKeys, kStatsNone, kStatsSecond, kStatsLin, kStatsSig}) w.put(code);
    for (uint32_t code : {kTripletCon, kTripletHinge, kTripletNca, kTripletCir}) w.put(code);
    for (uint32_t code : {kPairCon, kPairLin, kPairSig, kPairLinMs, kPairSigMs}) w.put(code);
    for (uint32_t count : {kSetPlanes, kRowPlanes, kColPlanes, kPairLines, kPairFinish, kPairZeroed, kWaveSums,
                           kSplitThreads}) {
        w.put(count);
    }
    for (uint32_t code : {kFormSoftmax, kFormSigLip, kFormMulti, kFormCircle, kFormTriplet, kFormContrastive, kFormLifted,
                          kFormRanked, kFormGoal}) {
        w.put(code);
    }
    for (uint32_t code : {kKeepNothing, kKeepStore, kKeepLoad, kKeepSkip, kMixAdd, kMixKeep, kConflictThreads}) w.put(code);
    w.put(kMinedTripletThreads);
    w.put(sizeof(PairwiseScale));
    for (uint32_t count : {kCustomPlanes, kCustomParts, kCustomThreads, kCustomCols, kCustomCounters}) w.put(count);
}

}  // namespace

extern "C" __global__ void __launch_bounds__(1) abi_layout(const __grid_constant__ AbiParams p) {
    Writer w{p.out, p.capacity, 0};
    put_layouts(w);
    put_constants(w);
}
