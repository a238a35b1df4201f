// pairwise — between the sweeps of a pairwise step: from statistics to coefficients and the report.
//
//   pairwise_extremes   lowest[i], highest[i] of a row's positives and negatives, for a miner; merges the splits
//   pairwise_finalize   per anchor the coefficients that pairwise_weights_* reads, and the report without what needs W:
//     row_coefficients (5, n) f32: shift and scale of negatives, shift, scale and constant of positives
//     col_coefficients (3, m) f32: shift and scale of negatives, constant of the positive
//     W_ij = kappa scale 2^(logit - shift) ..., by the form (docs/maths.md); an anchor without weights has scale 0 and shift
//     infinity (logit - infinity: 2^ that is 0)
//
//   row_parts, other_parts  partial states, common/pairwise.cuh, of 0 splits where there is no pair
//   or no statistics are needed (SigLIP, whose loss and counts pairwise_finish writes)
//   pos (min(n, m)), inv (lines), weights, log_q  f32 or null where not wanted
//   skip_x (n), skip_y (m) u8;  blocks (grid), scale, report: params/pairwise.h.  Outputs must not alias anything.
//
// Work    a thread per anchor, rows then columns; the last block of finalize to finish writes the report.
// Launch  extremes: grid = ceil(n / 256); finalize: grid = max(1, ceil((n + m) / 256)); block = 256.
// Bound   memory: the partial states, read once.
// Order   splits ascending; the report by a fixed tree in f64, blocks ascending; tickets decide only who works, not in
//         which order sums are taken. Identical bits between runs and devices.
// Needs   sm_80.
#include "common/pairwise.cuh"

namespace {

constexpr double kLn2Exact = 0.693147180559945309417;
constexpr double kLog2EExact = 1.44269504088896340736;

__device__ __forceinline__ double infinite() { return __longlong_as_double(0x7ff0000000000000ll); }

__device__ __forceinline__ SetState merged_set(const uint32_t* parts, uint32_t splits, uint32_t len, uint32_t line,
                                               SetRule rule) {
    SetState s = empty_set();
    for (uint32_t split = 0; split < splits; ++split) s = merge_sets(s, load_set(parts, splits, len, split, line), rule);
    return s;
}

// ln(1 + e^z), and 1 / (1 + e^-z).
__device__ double softplus(double z) { return z > 0.0 ? z + log1p(exp(-z)) : log1p(exp(z)); }
__device__ double sigmoid(double z) {
    const double e = exp(-fabs(z));
    return (z >= 0.0 ? 1.0 : e) / (1.0 + e);
}
// Logarithm of the set's sum of exponentials, and of two such sums together, all to base 2. -infinity: nothing.
__device__ double log_sum(const SetState& s) {
    return s.max == neg_infinity() ? -infinite() : double(s.max) + log2(double(s.sum));
}
__device__ double log_add(double a, double b) {
    const double low = a < b ? a : b, high = a < b ? b : a;
    return low == -infinite() ? high : high + kLog2EExact * log1p(exp2(low - high));
}

// What an anchor contributes: its coefficients, and its terms of the loss.
struct AnchorTerms {
    double neg_shift, neg_scale, pos_shift, pos_scale, pos_constant;
    double loss, other_loss;
};

// One positive of logit v (base 2) among the negatives' log_sum n: p - 1 without its difference.
__device__ void one_positive(AnchorTerms& a, double n, double v, double slope) {
    const double z = (n - v) * kLn2Exact;
    a.neg_shift = log_add(n, v);
    a.neg_scale = slope;
    a.pos_constant = -slope * sigmoid(z);
    a.loss = softplus(z);
}

__device__ void softmax_terms(AnchorTerms& a, const SetState& neg, const SetState& pos, double slope) {
    const double n = log_sum(neg);
    if (pos.count == 0) return;
    if (pos.count == 1) return one_positive(a, n, pos.max, slope);
    const double all = log_add(n, log_sum(pos)), count = pos.count;
    a.neg_shift = a.pos_shift = all;
    a.neg_scale = a.pos_scale = slope;
    a.pos_constant = -slope / count;
    a.loss = (all - double(pos.aux) / count) * kLn2Exact;
}

__device__ void joint_terms(AnchorTerms& a, const PairwiseFinalizeParams& p, const SetState& neg, const SetState& pos) {
    if (neg.count == 0 || pos.count == 0) return;
    const double n = log_sum(neg), v = log_sum(pos), total = (n + v) * kLn2Exact;
    if (p.form == kFormLifted && total <= 0.0) return;
    a.neg_shift = n;
    a.pos_shift = v;
    a.neg_scale = p.form == kFormCircle ? sigmoid(total) * p.k[0] : 1.0;
    a.pos_scale = -a.neg_scale;
    a.loss = p.form == kFormCircle ? softplus(total) : total;
}

__device__ void multi_terms(AnchorTerms& a, const PairwiseFinalizeParams& p, const SetState& neg, const SetState& pos) {
    const double n = softplus(log_sum(neg) * kLn2Exact), v = softplus(log_sum(pos) * kLn2Exact);
    a.neg_shift = n * kLog2EExact;
    a.pos_shift = v * kLog2EExact;
    a.neg_scale = 1.0;
    a.pos_scale = -1.0;
    a.loss = v / p.k[0] + n / p.k[1];
}

__device__ void ranked_terms(AnchorTerms& a, const PairwiseFinalizeParams& p, const SetState& neg, const SetState& pos) {
    const double balance = p.k[3], share = (1.0 - balance) / (pos.count > 0 ? double(pos.count) : 1.0);
    a.pos_scale = -share;
    a.loss = share * double(pos.aux);
    if (neg.count == 0) return;
    a.neg_shift = log_sum(neg);
    a.neg_scale = balance;
    a.loss += balance * (double(neg.aux) / double(neg.sum)) * kLn2Exact / p.k[2];
}

__device__ void row_terms(AnchorTerms& a, const PairwiseFinalizeParams& p, const SetState& neg, const SetState& pos) {
    switch (p.form) {
        case kFormSigLip:
            a.neg_scale = p.k[0];
            a.pos_scale = -p.k[0];
            return;
        case kFormContrastive:
            a.neg_scale = 1.0;
            a.pos_scale = -1.0;
            a.loss = pos.sum;
            a.other_loss = neg.sum;
            return;
        case kFormMulti: return multi_terms(a, p, neg, pos);
        case kFormRanked: return ranked_terms(a, p, neg, pos);
        case kFormCircle:
        case kFormLifted: return joint_terms(a, p, neg, pos);
        default: return softmax_terms(a, neg, pos, p.k[0]);
    }
}

__device__ __forceinline__ void add_part(PairwiseBlock& a, const PairwiseBlock& b) {
    a.loss[0] += b.loss[0];
    a.loss[1] += b.loss[1];
    a.positive += b.positive;
    a.active[0] += b.active[0];
    a.active[1] += b.active[1];
    a.mean += b.mean;
    a.anchors_rows += b.anchors_rows;
    a.anchors_cols += b.anchors_cols;
    a.zero_x += b.zero_x;
    a.zero_y += b.zero_y;
    a.nan_x += b.nan_x;
    a.nan_y += b.nan_y;
}

__device__ __forceinline__ PairwiseBlock sum_parts(const PairwiseBlock& v) {
    PairwiseBlock r{};
    r.loss[0] = warp_sum(v.loss[0]);
    r.loss[1] = warp_sum(v.loss[1]);
    r.positive = warp_sum(v.positive);
    r.active[0] = warp_sum(v.active[0]);
    r.active[1] = warp_sum(v.active[1]);
    r.mean = warp_sum(v.mean);
    r.anchors_rows = warp_sum(v.anchors_rows);
    r.anchors_cols = warp_sum(v.anchors_cols);
    r.zero_x = warp_sum(v.zero_x);
    r.zero_y = warp_sum(v.zero_y);
    r.nan_x = warp_sum(v.nan_x);
    r.nan_y = warp_sum(v.nan_y);
    return r;
}

__device__ __forceinline__ bool is_pair(const PairwiseFinalizeParams& p, uint32_t at) {
    return at < p.n && at < p.m && !p.single && !ignored(p.ignore_rows, at) && !ignored(p.ignore_cols, at);
}

// Objectives with columns as anchors: the own pair is the only positive, of rows and of columns.
__device__ void paired_terms(AnchorTerms& a, const PairwiseFinalizeParams& p, const SetState& neg, float s, double log_q) {
    if (p.form == kFormTriplet) {
        a.neg_shift = s;
        a.neg_scale = 1.0;
        a.pos_constant = s == s ? -double(neg.count) : double(s);
        a.loss = neg.sum;
        return;
    }
    one_positive(a, log_sum(neg), (p.k[0] * double(s) - log_q) * kLog2EExact, p.k[0]);
}

__device__ __forceinline__ AnchorTerms no_terms() { return {infinite(), 0.0, infinite(), 0.0, 0.0, 0.0, 0.0}; }

__device__ void finish_row(const PairwiseFinalizeParams& p, uint32_t i, PairwiseBlock& part) {
    const bool left_out = ignored(p.ignore_rows, i);
    const double weight = p.row_weights == nullptr ? 1.0 : double(p.row_weights[i]);
    AnchorTerms a = no_terms();
    if (p.both) {
        if (is_pair(p, i)) {
            const SetState neg = merged_set(p.row_parts, p.col_splits, p.n, i, set_rule(p.form, false));
            paired_terms(a, p, neg, p.pos[i], p.log_q == nullptr ? 0.0 : double(p.log_q[i]));
            part.positive = p.pos[i];
            part.anchors_rows = 1;
        }
    } else if (!left_out) {
        const SetState neg = merged_set(p.row_parts, p.col_splits, p.n, i, set_rule(p.form, false));
        const SetState pos = merged_set(p.other_parts, p.col_splits, p.n, i, set_rule(p.form, true));
        row_terms(a, p, neg, pos);
        part.positive = pos.total;
        part.anchors_rows = pos.raw > 0;
        part.active[0] = pos.count;
        part.active[1] = neg.count;
    }
    const bool of_anchors = p.form == kFormSoftmax;  // the mean is over rows with a positive
    part.mean = of_anchors ? part.anchors_rows : !left_out;
    part.loss[0] = weight * a.loss;
    part.loss[1] = weight * a.other_loss;
    float* c = p.row_coefficients + i;
    const size_t n = p.n;
    c[0] = float(a.neg_shift);
    c[n] = float(weight * a.neg_scale);
    c[2 * n] = float(a.pos_shift);
    c[3 * n] = float(weight * a.pos_scale);
    c[4 * n] = float(weight * a.pos_constant);
    const float inv = p.inv_x[i];
    part.zero_x = inv == 0.0f;
    part.nan_x = inv != inv;
    if (p.skip_x != nullptr) p.skip_x[i] = left_out || (p.normalised && inv != inv);
}

__device__ void finish_col(const PairwiseFinalizeParams& p, uint32_t j, PairwiseBlock& part) {
    const bool pair = p.both && is_pair(p, j);
    part.anchors_cols = p.both ? pair : p.col_flags[j] != 0;
    const float inv = p.inv_y[j];
    part.zero_y = inv == 0.0f;
    part.nan_y = inv != inv;
    if (p.skip_y != nullptr) p.skip_y[j] = ignored(p.ignore_cols, j) || (p.normalised && inv != inv);
    if (!p.both) return;
    const double weight = p.col_weights == nullptr ? 1.0 : double(p.col_weights[j]);
    AnchorTerms a = no_terms();
    if (pair) paired_terms(a, p, merged_set(p.other_parts, p.row_splits, p.m, j, set_rule(p.form, false)), p.pos[j], 0.0);
    part.loss[1] = weight * a.loss;
    float* c = p.col_coefficients + j;
    const size_t m = p.m;
    c[0] = float(a.neg_shift);
    c[m] = float(weight * a.neg_scale);
    c[2 * m] = float(weight * a.pos_constant);
}

__device__ PairwiseBlock load_part(const PairwiseBlock* at) {
    constexpr uint32_t kWords = sizeof(PairwiseBlock) / 8;
    union {
        unsigned long long words[kWords];
        PairwiseBlock part;
    } r{};
    const auto* words = reinterpret_cast<const unsigned long long*>(at);
#pragma unroll
    for (uint32_t w = 0; w < kWords; ++w) r.words[w] = __ldcg(words + w);
    return r.part;
}

__device__ void write_report(const PairwiseFinalizeParams& p, const PairwiseBlock& total) {
    const double mean = total.mean == 0 ? 0.0 : 1.0 / double(total.mean);
    double kappa[2] = {mean, mean};  // of rows or positives, of columns or negatives
    if (p.form == kFormTriplet) kappa[0] = kappa[1] = 1.0;
    if (p.form == kFormSoftmax && p.both) kappa[0] = kappa[1] = 0.5 * mean;
    if (p.form == kFormContrastive) {
        for (int k = 0; k < 2; ++k) kappa[k] = 1.0 / double(total.active[k] == 0 ? 1 : total.active[k]);
    }
    *p.scale = {float(kappa[1]), float(kappa[0])};
    PairwiseReport r{};
    r.loss = kappa[0] * total.loss[0] + kappa[1] * total.loss[1];
    r.negatives = p.counts[0];
    r.positives = p.counts[1];
    r.mean_positive = r.positives == 0 ? 0.0 : total.positive / double(r.positives);
    r.anchors_rows = total.anchors_rows;
    r.anchors_cols = total.anchors_cols;
    r.zero_x = total.zero_x;
    r.zero_y = total.zero_y;
    r.nan_x = total.nan_x;
    r.nan_y = total.nan_y;
    *p.report = r;
}

// Of block-wide parts, in thread 0.
__device__ PairwiseBlock over_block(const PairwiseBlock& mine, PairwiseBlock* scratch) {
    const PairwiseBlock sum = sum_parts(mine);
    if (lane_id() == 0) scratch[warp_id()] = sum;
    __syncthreads();  // every warp's part is in place
    PairwiseBlock total{};
    if (threadIdx.x == 0) {
        for (uint32_t w = 0; w < kPairLines / kWarpSize; ++w) add_part(total, scratch[w]);
    }
    __syncthreads();  // the scratch is free again
    return total;
}

}  // namespace

extern "C" __global__ void __launch_bounds__(kPairLines)
    pairwise_extremes(const __grid_constant__ PairwiseExtremesParams p) {
    const uint32_t i = blockIdx.x * kPairLines + threadIdx.x;
    if (i >= p.n) return;
    float highest = neg_infinity(), lowest = pos_infinity();
    for (uint32_t split = 0; split < p.splits; ++split) {
        highest = fmaxf(highest, load_set(p.neg_parts, p.splits, p.n, split, i).max);
        lowest = fminf(lowest, -load_set(p.pos_parts, p.splits, p.n, split, i).max);
    }
    p.highest[i] = highest;
    p.lowest[i] = lowest;
}

extern "C" __global__ void __launch_bounds__(kPairLines)
    pairwise_finalize(const __grid_constant__ PairwiseFinalizeParams p) {
    __shared__ PairwiseBlock scratch[kPairLines / kWarpSize];
    __shared__ bool last;
    PairwiseBlock part{};
    const uint64_t at = uint64_t(blockIdx.x) * kPairLines + threadIdx.x;
    if (at < p.n) finish_row(p, uint32_t(at), part);
    else if (at < uint64_t(p.n) + p.m) finish_col(p, uint32_t(at - p.n), part);
    part = over_block(part, scratch);
    if (threadIdx.x == 0) p.blocks[blockIdx.x] = part;
    if (!last_to_come(p.ticket, last)) return;
    PairwiseBlock all{};
    for (uint32_t b = threadIdx.x; b < gridDim.x; b += kPairLines) add_part(all, load_part(p.blocks + b));
    all = over_block(all, scratch);
    if (threadIdx.x == 0) write_report(p, all);
}
