// pairwise_custom — statistics and weights of an objective that the user wrote as formulas, from stored similarities.
//
//   pairwise_custom_rows     what the formulas may know of every row of a wave: own pair, largest negative and where, logarithms
//                            of the sums of e^logit over its negatives and its positives, their numbers
//   pairwise_custom_cols     the same of the columns: adds the wave's rows to their partial states
//   pairwise_custom_anchors  merges the columns' states; which rows are left out of products; the report without what needs W
//   pairwise_custom_near_*   if the formulas have near pairs (src/custom.rs, PairObjective::slack): means over those of every row
//                            (rows) and, wave by wave (cols, then finish), of every column
//   pairwise_custom_weights_*
//     W_ij = row_weights_i f(s_ij, row i, column j), f = negative or positive of common/pair_formulas.cuh; NaN where s is
//     w[i - first, j] = W_ij inv_x[i] inv_y[j] (f32: W_ij), 0 for pairs that are ignored, for own pairs that are positive and
//     outside; diagonal[i] = W_ii of an own pair that is positive, else 0;  sums: of W s, of W and of s of positives
//
//   s (wave rows, lds) f32, by cosine_matrix_*;  w (wave rows, lds) bf16 for 16-bit operands, else f32 in the place of s;
//   rows (9, n), cols (9, m), col_parts (8, splits, m): 4-byte words, params/pairwise_custom.h.  No other output may alias.
//
// Work    rows: a block per row, its threads stride over the columns. cols: 32 columns and a part of the wave's rows per
//         block, each warp every 8th row. anchors: a thread per row, then per column. weights: the wave's tiles are dealt to
//         row_splits x col_splits blocks, half a block per row of 128 columns.
// Launch  rows, near_rows: grid = wave rows, block = 32 ceil(m / 32) up to 256; cols, near_cols: (ceil(m / 32), splits), 256;
//         anchors: max(1, ceil((n + m) / 256)), 256; near_finish: ceil(m / 256), 256; weights: row_splits col_splits, 256.
// Bound   memory: s is read three times (five with near pairs), w written once. rows, cols: an exponential per element if the formulas ask for one.
// Order   a thread's elements ascending, the warp by a fixed tree, warps, splits and waves ascending. Integer atomics alone.
//         Identical bits between runs and devices of one compiler.
// Needs   sm_80; no header of the toolkit, since it is compiled at run time with NVRTC. The build's copy is only checked.
#include <stdint.h>

#include "common/pairwise_custom.cuh"

namespace {

constexpr uint32_t kTile = 128;
constexpr uint32_t kWarps = kCustomThreads / kWarpSize;

// --- weights ----------------------------------------------------------------------------------------------------------

__device__ __forceinline__ AnchorView view_of(const uint32_t* planes, uint32_t count, uint32_t line) {
    const uint32_t* from = planes + line;
    const size_t plane = count;
    const auto number = [&](uint32_t at) { return __uint_as_float(from[at * plane]); };
    return {number(kPlanePair), number(kPlaneHardest), number(kPlaneLse), number(kPlaneLsePositives),
            float(from[kPlanePositives * plane]), float(from[kPlaneNegatives * plane]),
            kUsesNear ? number(kPlaneNearNegatives) : 0.0f, kUsesNear ? number(kPlaneNearPositives) : 0.0f};
}

__device__ __forceinline__ void put(float* to, float v) { *to = v; }
__device__ __forceinline__ void put(uint16_t* to, float v) {
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(*to) : "f"(v));
}

// The operands of the products to come are not normalised, so their factors go to the weights; what a row with a NaN
// touches is NaN already, and its ignored pairs stay 0.
__device__ __forceinline__ float factor_of(const float* inv, uint32_t at) {
    const float f = inv == nullptr ? 1.0f : __ldg(inv + at);
    return f == f ? f : 1.0f;
}

// First tile of a part when `tiles` are dealt to `parts` as evenly as they go.
__device__ __forceinline__ uint32_t first_of(uint32_t tiles, uint32_t parts, uint32_t part) { return tiles * part / parts; }

struct WeightSums {
    float ws = 0.0f, w = 0.0f, positive = 0.0f;
};

template <typename W>
struct WeighColumn {
    const CustomWeightsParams& p;
    const uint32_t col;
    const bool inside = col < p.pairs.m;
    // A column beyond the last has no pair; it reads what there is.
    const uint32_t safe = inside ? col : 0;
    const AnchorView view = view_of(p.cols, p.pairs.m, safe);
    const uint32_t hardest = p.cols[kPlaneHardestAt * size_t(p.pairs.m) + safe];
    const float factor = factor_of(p.inv_y, safe);

    __device__ __forceinline__ WeighColumn(const CustomWeightsParams& params, uint32_t column) : p(params), col(column) {}

    // Weight of the pair with `row`, which exists; own pairs that are positive go to the diagonal.
    __device__ __forceinline__ float weight(uint32_t row, float s, WeightSums& sums) const {
        const bool counts = inside && !ignored(p.pairs.ignore_rows, row);
        const PairClass pair = counts ? class_of(p.pairs, row, col) : PairClass::ignored;
        const bool positive = pair == PairClass::positive;
        float w = 0.0f;
        if (pair != PairClass::ignored) {
            const PairView v{s, p.rows[kPlaneHardestAt * size_t(p.pairs.n) + row] == col ? 1.0f : 0.0f,
                             hardest == row ? 1.0f : 0.0f, float(p.pairs.n), float(p.pairs.m),
                             view_of(p.rows, p.pairs.n, row), view};
            // Whatever the formula makes of it, NaN is not dropped.
            w = s != s ? s : positive ? formula_positive(v) : formula_negative(v);
            if (p.row_weights != nullptr) w *= __ldg(p.row_weights + row);
            sums.ws += w * s;
            sums.w += w;
            sums.positive += positive ? s : 0.0f;
        }
        if (row == col && inside) {
            p.diagonal[row] = positive ? w : 0.0f;
            if (positive) w = 0.0f;
        }
        return sizeof(W) == 2 ? w * (factor_of(p.inv_x, row) * factor) : w;
    }
};

template <typename W>
__device__ __forceinline__ void weights_body(const CustomWeightsParams& p) {
    __shared__ double scratch[kWarps][kWaveSums];
    const uint32_t rows = (p.pairs.end_row - p.pairs.first_row + kTile - 1) / kTile, cols = (p.pairs.m + kTile - 1) / kTile;
    const uint32_t row_part = blockIdx.x / p.col_splits, col_part = blockIdx.x % p.col_splits;
    const uint32_t r_begin = first_of(rows, p.row_splits, row_part) * kTile;
    const uint32_t r_end = first_of(rows, p.row_splits, row_part + 1) * kTile;
    const uint32_t c_end = first_of(cols, p.col_splits, col_part + 1);
    double total[kWaveSums] = {0.0, 0.0, 0.0, 0.0};  // W s, W, nothing, similarities of positives
    for (uint32_t c = first_of(cols, p.col_splits, col_part); c < c_end; ++c) {
        const WeighColumn<W> column(p, c * kTile + threadIdx.x % kTile);
        for (uint32_t tile = r_begin; tile < r_end; tile += kTile) {
            WeightSums sums;
            for (uint32_t r = tile + threadIdx.x / kTile; r < tile + kTile; r += kCustomThreads / kTile) {
                const int64_t at = r * p.pairs.lds + column.col;
                const uint32_t row = p.pairs.first_row + r;
                float w = 0.0f;
                if (row < p.pairs.end_row) w = column.weight(row, column.inside ? p.pairs.s[at] : 0.0f, sums);
                put(static_cast<W*>(p.w) + at, w);
            }
            total[0] += double(sums.ws);
            total[1] += double(sums.w);
            total[3] += double(sums.positive);
        }
    }
#pragma unroll
    for (uint32_t k = 0; k < kWaveSums; ++k) {
        const double sum = warp_sum(total[k]);
        if (lane_id() == 0) scratch[warp_id()][k] = sum;
    }
    __syncthreads();  // every warp's sums are in place
    if (threadIdx.x >= kWaveSums) return;
    double sum = 0.0;
    for (uint32_t w = 0; w < kWarps; ++w) sum += scratch[w][threadIdx.x];
    p.sums[kWaveSums * size_t(blockIdx.x) + threadIdx.x] = sum;
}

// --- the anchors ------------------------------------------------------------------------------------------------------

// Adds the number of threads of the warp that say yes.
template <typename C>
__device__ __forceinline__ void count(C* counter, bool yes) {
    const uint32_t number = __popc(__ballot_sync(kFullWarp, yes));
    if (lane_id() == 0 && number > 0) atomicAdd(counter, C(number));
}

struct Anchor {
    uint32_t negatives = 0, positives = 0;
    float inv = 1.0f;
    uint32_t least = 0;  // of the own pair, as order_key()
};

__device__ __forceinline__ Anchor finish_row(const CustomAnchorsParams& p, uint32_t i) {
    Anchor a;
    a.inv = p.inv_x[i];
    if (p.splits > 0) {
        a.positives = p.rows[kPlanePositives * size_t(p.n) + i];
        a.negatives = p.rows[kPlaneNegatives * size_t(p.n) + i];
        if (kUsesNear) a.least = order_key(pair_of(p.rows, p.n, i));
    }
    if (p.skip_x != nullptr) p.skip_x[i] = ignored(p.ignore_rows, i) || (p.normalised && a.inv != a.inv);
    return a;
}

__device__ __forceinline__ Anchor finish_col(const CustomAnchorsParams& p, uint32_t j) {
    Anchor a;
    a.inv = p.inv_y[j];
    if (p.splits > 0) {
        AnchorState state;
        for (uint32_t split = 0; split < p.splits; ++split) {
            state.merge(AnchorState::load(p.col_parts + size_t(split) * p.m + j, size_t(p.splits) * p.m));
        }
        // The pair of column j is that of row j.
        state.finish(p.cols, p.m, j, j < p.n ? pair_of(p.rows, p.n, j) : quiet_nan());
        a.positives = state.positives;
        a.negatives = state.negatives;
    }
    if (p.skip_y != nullptr) p.skip_y[j] = ignored(p.ignore_cols, j) || (p.normalised && a.inv != a.inv);
    return a;
}

__device__ __forceinline__ void write_report(const CustomAnchorsParams& p) {
    const volatile unsigned long long* pairs = p.counters;
    const volatile uint32_t* anchors = reinterpret_cast<uint32_t*>(p.counters + 2);
    PairwiseReport r{};
    r.negatives = pairs[0];
    r.positives = pairs[1];
    r.anchors_rows = anchors[0];
    r.anchors_cols = anchors[1];
    r.zero_x = anchors[2];
    r.zero_y = anchors[3];
    r.nan_x = anchors[4];
    r.nan_y = anchors[5];
    *p.report = r;
}

}  // namespace

extern "C" __global__ void __launch_bounds__(kCustomThreads)
    pairwise_custom_rows(const __grid_constant__ CustomStatsParams params) {
    __shared__ uint32_t scratch[kCustomParts * kWarps];
    const CustomPairs& p = params.pairs;
    const uint32_t row = p.first_row + blockIdx.x;
    const float* s = p.s + blockIdx.x * p.lds;
    const bool counts = !ignored(p.ignore_rows, row);
    AnchorState state;
    if (counts) {
        for (uint32_t col = threadIdx.x; col < p.m; col += blockDim.x) state.add(class_of(p, row, col), s[col], col);
    }
    for (int mask = 16; mask > 0; mask >>= 1) state.merge(state.exchanged(mask));
    if (lane_id() == 0) state.store(scratch + warp_id(), kWarps);
    __syncthreads();  // every warp's state is in place
    if (threadIdx.x != 0) return;
    for (uint32_t w = 1; w < blockDim.x / kWarpSize; ++w) state.merge(AnchorState::load(scratch + w, kWarps));
    const bool own = (p.single_positive || p.row_groups == nullptr) && row < p.m && counts && !ignored(p.ignore_cols, row);
    state.finish(params.rows, p.n, row, own ? s[row] : quiet_nan());
}

extern "C" __global__ void __launch_bounds__(kCustomThreads)
    pairwise_custom_cols(const __grid_constant__ CustomStatsParams params) {
    __shared__ uint32_t scratch[kCustomParts * kCustomThreads];
    const CustomPairs& p = params.pairs;
    const uint32_t col = blockIdx.x * kCustomCols + lane_id();
    const uint64_t rows = p.end_row - p.first_row;
    const uint32_t end = p.first_row + uint32_t(rows * (blockIdx.y + 1) / params.splits);
    AnchorState state;
    if (col < p.m) {
        for (uint32_t row = p.first_row + uint32_t(rows * blockIdx.y / params.splits) + warp_id(); row < end; row += kWarps) {
            if (ignored(p.ignore_rows, row)) continue;
            state.add(class_of(p, row, col), p.s[(row - p.first_row) * p.lds + col], row);
        }
    }
    state.store(scratch + threadIdx.x, kCustomThreads);
    __syncthreads();  // every warp's states are in place
    if (warp_id() != 0 || col >= p.m) return;
    for (uint32_t w = 1; w < kWarps; ++w) state.merge(AnchorState::load(scratch + w * kWarpSize + lane_id(), kCustomThreads));
    uint32_t* part = params.col_parts + size_t(blockIdx.y) * p.m + col;
    const size_t plane = size_t(params.splits) * p.m;
    if (p.first_row > 0) {
        AnchorState before = AnchorState::load(part, plane);
        before.merge(state);
        state = before;
    }
    state.store(part, plane);
}

extern "C" __global__ void __launch_bounds__(kCustomThreads)
    pairwise_custom_anchors(const __grid_constant__ CustomAnchorsParams p) {
    __shared__ bool last;
    const uint64_t at = uint64_t(blockIdx.x) * kCustomThreads + threadIdx.x;
    const bool of_rows = at < p.n, of_cols = !of_rows && at < uint64_t(p.n) + p.m;
    Anchor a;
    if (of_rows) a = finish_row(p, uint32_t(at));
    else if (of_cols) a = finish_col(p, uint32_t(at - p.n));
    const unsigned long long negatives = warp_sum<unsigned long long>(of_rows ? a.negatives : 0);
    const unsigned long long positives = warp_sum<unsigned long long>(of_rows ? a.positives : 0);
    if (lane_id() == 0) {
        atomicAdd(p.counters, negatives);
        atomicAdd(p.counters + 1, positives);
    }
    uint32_t* anchors = reinterpret_cast<uint32_t*>(p.counters + 2);
    if (kUsesNear && a.least != 0) atomicMax(anchors + 6, a.least);
    count(anchors, of_rows && a.positives > 0);
    count(anchors + 1, of_cols && a.positives > 0);
    count(anchors + 2, of_rows && a.inv == 0.0f);
    count(anchors + 3, of_cols && a.inv == 0.0f);
    count(anchors + 4, of_rows && a.inv != a.inv);
    count(anchors + 5, of_cols && a.inv != a.inv);
    if (last_to_come(p.ticket, last) && threadIdx.x == 0) write_report(p);
}

extern "C" __global__ void __launch_bounds__(kCustomThreads)
    pairwise_custom_near_rows(const __grid_constant__ CustomNearParams params) {
    __shared__ uint32_t scratch[4 * kWarps];
    const CustomPairs& p = params.pairs;
    const uint32_t row = p.first_row + blockIdx.x;
    const float* s = p.s + blockIdx.x * p.lds;
    const float threshold = least_of(*params.least_pair) - kSlack;
    const NearAnchor anchor(params.rows, p.n, row);
    NearState state;
    if (!ignored(p.ignore_rows, row)) {
        for (uint32_t col = threadIdx.x; col < p.m; col += blockDim.x) {
            if (class_of(p, row, col) != PairClass::negative) continue;
            state.add(anchor, threshold, s[col], col, pair_of(params.cols, p.m, col));
        }
    }
    for (int mask = 16; mask > 0; mask >>= 1) state.merge(state.exchanged(mask));
    if (lane_id() == 0) state.store(scratch + warp_id(), kWarps);
    __syncthreads();  // every warp's state is in place
    if (threadIdx.x != 0) return;
    for (uint32_t w = 1; w < blockDim.x / kWarpSize; ++w) state.merge(NearState::load(scratch + w, kWarps));
    state.finish(params.rows, p.n, row);
}

extern "C" __global__ void __launch_bounds__(kCustomThreads)
    pairwise_custom_near_cols(const __grid_constant__ CustomNearParams params) {
    __shared__ uint32_t scratch[4 * kCustomThreads];
    const CustomPairs& p = params.pairs;
    const uint32_t col = blockIdx.x * kCustomCols + lane_id();
    const uint64_t rows = p.end_row - p.first_row;
    const uint32_t end = p.first_row + uint32_t(rows * (blockIdx.y + 1) / params.splits);
    const float threshold = least_of(*params.least_pair) - kSlack;
    NearState state;
    if (col < p.m) {
        const NearAnchor anchor(params.cols, p.m, col);
        for (uint32_t row = p.first_row + uint32_t(rows * blockIdx.y / params.splits) + warp_id(); row < end; row += kWarps) {
            if (ignored(p.ignore_rows, row) || class_of(p, row, col) != PairClass::negative) continue;
            state.add(anchor, threshold, p.s[(row - p.first_row) * p.lds + col], row, pair_of(params.rows, p.n, row));
        }
    }
    state.store(scratch + threadIdx.x, kCustomThreads);
    __syncthreads();  // every warp's states are in place
    if (warp_id() != 0 || col >= p.m) return;
    for (uint32_t w = 1; w < kWarps; ++w) state.merge(NearState::load(scratch + w * kWarpSize + lane_id(), kCustomThreads));
    uint32_t* part = params.col_parts + size_t(blockIdx.y) * p.m + col;
    const size_t plane = size_t(params.splits) * p.m;
    if (p.first_row > 0) {
        NearState before = NearState::load(part, plane);
        before.merge(state);
        state = before;
    }
    state.store(part, plane);
}

extern "C" __global__ void __launch_bounds__(kCustomThreads)
    pairwise_custom_near_finish(const __grid_constant__ CustomNearParams params) {
    const uint32_t m = params.pairs.m, col = blockIdx.x * kCustomThreads + threadIdx.x;
    if (col >= m) return;
    NearState state;
    for (uint32_t split = 0; split < params.splits; ++split) {
        state.merge(NearState::load(params.col_parts + size_t(split) * m + col, size_t(params.splits) * m));
    }
    state.finish(params.cols, m, col);
}

extern "C" __global__ void __launch_bounds__(kCustomThreads)
    pairwise_custom_weights_f32(const __grid_constant__ CustomWeightsParams p) {
    weights_body<float>(p);
}

extern "C" __global__ void __launch_bounds__(kCustomThreads)
    pairwise_custom_weights_bf16(const __grid_constant__ CustomWeightsParams p) {
    weights_body<uint16_t>(p);
}
