// goal_small: the end of a GOAL step of at most 1024 pairs in one launch: what goal_finalize and weighted_grad_* do in two.
//
//   T, w+, w-  eqs. 5 to 8, docs/maths.md;  dX, dY  eqs. 9 and 2b
//   row i of dX: its pair, the hardest negative of x_i, the y_j of which x_i is the hardest negative, j ascending; dY likewise
//
//   goal    parts from mine_*: (planes, splits, n) 4-byte words, or with kStatsKeys (n) keys and one split;  pos, inv (n) f32;
//           groups (n) i64 or null;  detail (10, n) words or null;  tickets u32, 0 on entry;  blocks (ceil(n / 32)) per direction
//   gather  own, other (n, d) T: f32 | f16 | bf16, base and rows aligned to 16 bytes;  out (n, d) G: T or f32, any stride;
//           overflow u32, 0 on entry
//   Outputs must not alias anything.
//
// Work    nothing that a block needs comes from another one, so there is no inverse index to wait for. A block writes the rows
//         of 1, 2 or 4 pairs. Its warps
//           look for the anchors of the other direction that chose its rows. Only the split that holds the rows can have
//           found them, so n words are read per direction, not n states; of the few anchors that chose them there all
//           splits are compared, to see whether it stays so, and the weight is evaluated;
//           merge the states of the rows' own anchors and weigh them, a lane each (_ms: a warp each, for the sum R+).
//         Then the block's rows are gathered, ceil(d / 256) warps per row, a thread with 8 columns.
//         The first blocks make the report from the same states, a thread per anchor; the last of them adds up.
// Launch  grid = report_blocks + ceil(n / pairs); block = 32 row_warps min(floor(8 / row_warps), 2 pairs), at least one row;
//         13.6 KiB of static shared memory.
// Bound   latency: partial states, operands and gradients are read and written once each, mostly in L2; _ms: 2 n / 32 warp
//         steps per pair.
// Order   every sum is taken as goal_finalize and weighted_grad_* take it, in the same order: the result has the same bits.
//         No float atomics: the counter of overflows is an integer.
// Needs   sm_80.
#include "common/gather.cuh"
#include "common/goal.cuh"
#include "params/goal_small.h"

namespace {

constexpr uint32_t kBlocks = 2;  // on a multiprocessor
constexpr uint32_t kAhead = 8;   // partial states that are loaded before the first of them is merged
constexpr uint32_t kTermsAhead = 4;  // of a gradient row whose operands are loaded before the first is added

// What the first half of a block's work leaves for the second, per row of the gradients.
struct Row {
    float of_pair;      // weight of the anchor's own pair
    float inv_pair;     // factor of that row of the other matrix
    float of_negative;  // coefficient of the anchor's hardest negative
    int32_t negative;   // -1: none
    uint32_t begin;     // the anchors that chose the row, in the list of their direction
    uint32_t end;
};

constexpr uint32_t kWords = kSmallPairs / kWarpSize + 1;  // a bit per anchor; an odd number of words apart

struct Shared {
    // First of dX, then of dY.
    Row rows[2][kSmallRows / 2];
    uint32_t chosen[2][kSmallRows / 2][kWords];
    // Anchors of the direction whose candidates are the rows of X, then of the other one, and their coefficients. An anchor
    // is found at most once, in the split that is looked at.
    uint16_t list[2][kSmallPairs];  // while they are looked for with the row, times kSmallPairs
    float weight[2][kSmallPairs];
    float scratch[32];
    float radial[2][kSmallThreads / kWarpSize];  // of one round of rows and of the next
    bool last;
};

// The split whose candidates include number `candidate` of n: the tiles are dealt out as in part_begin(),
// common/tile_layout.cuh.
__device__ __forceinline__ uint32_t split_of(const GoalSide& s, uint32_t n, uint32_t candidate) {
    const uint32_t tiles = (n + s.unit - 1) / s.unit;
    return ((candidate / s.unit + 1) * s.splits - 1) / tiles;
}

// The candidate that split `split` found for an anchor, ~0 without one.
__device__ __forceinline__ uint32_t chosen_by(const GoalSide& s, uint32_t n, uint32_t split, uint32_t anchor, uint32_t stats) {
    if (stats == kStatsKeys) return uint32_t(line_of_key(reinterpret_cast<const uint64_t*>(s.parts)[anchor]).index);
    return s.parts[(size_t(s.splits) + split) * n + anchor];  // plane 1, (n)
}

// As merged_line(), but several loads are under way at a time.
__device__ __forceinline__ LineState merged_ahead(const GoalSide& s, uint32_t n, uint32_t line, const StatsRule& rule) {
    LineState merged = empty_line();
    for (uint32_t base = 0; base < s.splits; base += kAhead) {
        LineState states[kAhead];
#pragma unroll
        for (uint32_t k = 0; k < kAhead; ++k) {
            states[k] = base + k < s.splits ? load_line(s.parts, s.splits, n, base + k, line, rule.stats) : empty_line();
        }
#pragma unroll
        for (uint32_t k = 0; k < kAhead; ++k) merged = merge_lines(merged, states[k], rule);
    }
    return merged;
}

// The state of an anchor, if the candidate that split `split` found for it, number `chosen`, is the hardest of all; empty if not.
// Mostly it is not, and the values alone tell.
__device__ __forceinline__ LineState state_if_best(const GoalSide& s, uint32_t n, uint32_t anchor, uint32_t split,
                                                   uint32_t chosen, const StatsRule& rule) {
    if (rule.stats == kStatsKeys) return load_line(s.parts, 1, n, 0, anchor, kStatsKeys);
    const float* values = reinterpret_cast<const float*>(s.parts) + anchor;  // plane 0, every n words
    const float own = values[size_t(split) * n];
    bool best = true;
#pragma unroll 8
    for (uint32_t k = 0; k < s.splits; ++k) {
        const float other = values[size_t(k) * n];
        // Of equal values the lower split's wins.
        if (k != split && (k < split ? !value_beats(own, other) : value_beats(other, own))) best = false;
    }
    // A split without a candidate has the value -infinity too: then the indices tell.
    if (!best && own != neg_infinity()) return empty_line();
    if (own != neg_infinity() && rule.stats < kStatsLin) return {own, int32_t(chosen), neg_infinity(), 0, 0, 0.0f};
    const LineState line = merged_ahead(s, n, anchor, rule);
    return line.index == int32_t(chosen) ? line : empty_line();
}

// The own anchors of the block's rows in direction s. With relative similarities they are those of row `r`, by all lanes of a
// warp; else those of all rows, by a lane each.
// `g` says how the other matrix is scaled.
__device__ __forceinline__ void weigh_own(const GoalParams& p, const GoalSide& s, const GatherSide& g, uint32_t t0,
                                          uint32_t pairs, uint32_t r, const StatsRule& rule, Row* rows) {
    const bool together = is_ms(p);
    if (!together) r = lane_id();
    const uint32_t t = t0 + r;
    const bool inside = r < pairs && t < p.n;
    const LineState line = inside ? merged_ahead(s, p.n, t, rule) : empty_line();
    Relative rs_pos[1] = {{0.0f, 0}};
    if (together && line.index >= 0) {
        const float value[1] = {line.value};
        positive_relative(p, s, t, value, rs_pos);
    }
    if (!inside || (together && lane_id() != 0)) return;
    const AnchorWeights w = weigh_anchor(p, line, p.pos[t], rs_pos[0].mean);
    rows[r].of_pair = w.of_pair();
    rows[r].inv_pair = inv_of(g, t);
    rows[r].of_negative = line.index >= 0 ? w.of_negative() * inv_of(g, line.index) : 0.0f;
    rows[r].negative = line.index;
    if (s.detail != nullptr) write_detail(p, s, t, line, w, rs_pos[0]);
}

// Which anchors chose the block's rows t0, t0 + 1 ..., a bit each, in the split that holds these rows. All threads of the
// block share the anchors of both directions; `words` are those of one direction.
__device__ __forceinline__ void find_chosen(const GoalSmallParams& params, uint32_t t0, uint32_t words, Shared& shared) {
    const GoalParams& p = params.goal;
    const uint32_t warps = blockDim.x / kWarpSize;
    const uint32_t split_ti = split_of(p.ti, p.n, t0), split_it = split_of(p.it, p.n, t0);
    for (uint32_t first = warp_id(); first < 2 * words; first += kAhead * warps) {
        uint32_t row[kAhead];  // from t0, or no row of this block
#pragma unroll
        for (uint32_t k = 0; k < kAhead; ++k) {
            const uint32_t at = first + k * warps;
            const bool of_x = at < words;
            const uint32_t anchor = (of_x ? at : at - words) * kWarpSize + lane_id();
            const bool inside = at < 2 * words && anchor < p.n;
            const uint32_t chosen =
                inside ? chosen_by(of_x ? p.ti : p.it, p.n, of_x ? split_ti : split_it, anchor, p.stats) : ~0u;
            row[k] = chosen - t0;
        }
#pragma unroll
        for (uint32_t k = 0; k < kAhead; ++k) {
            const uint32_t at = first + k * warps;
            if (at >= 2 * words) break;
            uint32_t found = 0;  // in the lane of the row
#pragma unroll
            for (uint32_t r = 0; r < kSmallRows / 2; ++r) {
                const uint32_t anchors = __ballot_sync(kFullWarp, row[k] == r);
                if (lane_id() == r) found = anchors;
            }
            if (lane_id() < kSmallRows / 2) shared.chosen[at < words ? 0 : 1][lane_id()][at < words ? at : at - words] = found;
        }
    }
}

// The anchors of direction s that chose the block's rows, row by row and ascending, with their coefficients, to the block's
// list of that direction. `g` says how the other matrix is scaled. All lanes of a warp.
__device__ __forceinline__ void find_anchors(const GoalParams& p, const GoalSide& s, const GatherSide& g, uint32_t t0,
                                             uint32_t pairs, uint32_t words, const StatsRule& rule,
                                             const uint32_t (&chosen)[kSmallRows / 2][kWords], uint16_t* list, float* weight,
                                             Row* rows) {
    const uint32_t below = (1u << lane_id()) - 1;
    const uint32_t split = split_of(s, p.n, t0);
    // First all that chose one of the rows in this split, with the row beside them.
    uint32_t count = 0;
    for (uint32_t r = 0; r < pairs; ++r) {
        // Lane w has a bit for each of the anchors 32 w ... 32 w + 31.
        const uint32_t bits = lane_id() < words ? chosen[r][lane_id()] : 0;
        for (uint32_t some = __ballot_sync(kFullWarp, bits != 0); some != 0; some &= some - 1) {
            const uint32_t w = __ffs(some) - 1;
            const uint32_t word = __shfl_sync(kFullWarp, bits, w);
            const uint32_t anchor = w * kWarpSize + lane_id();
            if (word >> lane_id() & 1) list[count + __popc(word & below)] = uint16_t(r * kSmallPairs + anchor);
            count += __popc(word);
        }
    }
    __syncwarp();  // the list is complete
    // Then those that chose it for good.
    uint32_t kept = 0, kept_of_row = 0;  // the latter in the lane of the row
    for (uint32_t base = 0; base < count; base += kWarpSize) {
        const bool inside = base + lane_id() < count;
        const uint32_t entry = inside ? list[base + lane_id()] : 0;
        const uint32_t anchor = entry % kSmallPairs, r = entry / kSmallPairs;
        bool keep = false;
        float coefficient = 0.0f;
        if (inside) {
            const LineState line = state_if_best(s, p.n, anchor, split, t0 + r, rule);
            keep = line.index >= 0;
            if (keep) coefficient = weigh_anchor(p, line, p.pos[anchor], 0.0f).of_negative() * inv_of(g, anchor);
        }
        const uint32_t kept_here = __ballot_sync(kFullWarp, keep);
#pragma unroll
        for (uint32_t row = 0; row < kSmallRows / 2; ++row) {
            const uint32_t of_row = __popc(__ballot_sync(kFullWarp, keep && r == row));
            if (lane_id() == row) kept_of_row += of_row;
        }
        __syncwarp();  // every lane has read its entry
        if (keep) {
            const uint32_t at = kept + __popc(kept_here & below);
            list[at] = uint16_t(anchor);
            weight[at] = coefficient;
        }
        kept += __popc(kept_here);
        __syncwarp();  // these entries are in place
    }
    uint32_t end = kept_of_row;
#pragma unroll
    for (uint32_t shift = 1; shift < kSmallRows / 2; shift <<= 1) {
        const uint32_t lower = __shfl_up_sync(kFullWarp, end, shift);
        if (lane_id() >= shift) end += lower;
    }
    if (lane_id() >= pairs) return;
    rows[lane_id()].begin = end - kept_of_row;
    rows[lane_id()].end = end;
}

// The report, by the first blocks.
__device__ __forceinline__ void report(const GoalSmallParams& params, Shared& shared) {
    const GoalParams& p = params.goal;
    const uint32_t chunks = (p.n + kWarpSize - 1) / kWarpSize;  // of a direction
    const uint32_t at = blockIdx.x * (blockDim.x / kWarpSize) + warp_id();
    if (at < 2 * chunks) {
        const GoalSide& s = at < chunks ? p.it : p.ti;
        const uint32_t chunk = at < chunks ? at : at - chunks;
        const uint32_t i = chunk * kWarpSize + lane_id();
        ReportPart part{};
        if (i < p.n) {
            const LineState line = merged_ahead(s, p.n, i, {min(p.stats, kStatsNone), 0.0f, 0.0f});
            const float positive = p.pos[i];
            const float triplet = line.index >= 0 ? triplet_weight(p.objective, positive, line.value) : 0.0f;
            part = anchor_report(p, line, positive, s.inv[i], triplet);
        }
        part = sum_parts(part);
        if (lane_id() == 0) s.blocks[chunk] = part;
    }
    if (!last_to_come(p.tickets, shared.last, params.report_blocks) || warp_id() != 0) return;
    ReportPart totals[2];
#pragma unroll
    for (int side = 0; side < 2; ++side) {
        ReportPart part{}, total{};
        if (lane_id() < chunks) add_part(part, read_part((side == 0 ? p.it : p.ti).blocks + lane_id()));
        add_part(total, sum_parts(part));
        totals[side] = total;
    }
    if (lane_id() == 0) write_report(p, totals[0], totals[1]);
}

template <typename T, typename G>
__device__ __forceinline__ void goal_small_body(const GoalSmallParams& params) {
    __shared__ Shared shared;
    if (blockIdx.x < params.report_blocks) return report(params, shared);
    const GoalParams& p = params.goal;
    const uint32_t pairs = params.pairs, t0 = (blockIdx.x - params.report_blocks) * pairs;
    const float threshold = is_ms(p) ? block_threshold(p.pmin, p.pmin_count, p.objective.eps, shared.scratch) : 0.0f;
    const StatsRule rule{p.stats, threshold, float(p.objective.beta)};
    const uint32_t words = (p.n + kWarpSize - 1) / kWarpSize;
    find_chosen(params, t0, words, shared);
    __syncthreads();  // the bits are in place
    // The longer tasks come first.
    const uint32_t tasks = 2 + (is_ms(p) ? 2 * pairs : 2);
    for (uint32_t task = warp_id(); task < tasks; task += blockDim.x / kWarpSize) {
        const bool of_x = task % 2 == 0;
        const int side = of_x ? 0 : 1;
        const GatherSide& g = of_x ? params.gather.x : params.gather.y;
        if (task < 2) {
            find_anchors(p, of_x ? p.ti : p.it, g, t0, pairs, words, rule, shared.chosen[side], shared.list[side],
                         shared.weight[side], shared.rows[side]);
        } else {
            weigh_own(p, of_x ? p.it : p.ti, g, t0, pairs, task / 2 - 1, rule, shared.rows[side]);
        }
    }
    __syncthreads();  // the terms of all rows are in place

    const uint32_t row_threads = params.row_warps * kWarpSize, group = threadIdx.x / row_threads;
    const uint32_t groups = blockDim.x / row_threads;
    uint32_t overflow = 0;
    for (uint32_t round = 0; round * groups < 2 * pairs; ++round) {
        const uint32_t r = round * groups + group;
        const bool of_x = r < pairs;
        const uint32_t place = of_x ? r : r - pairs, t = t0 + place;
        // Once per round for every thread. The scratch of one round is read until the next one's barrier.
        const auto join = [&](float radial) {
            float* scratch = shared.radial[round & 1];
            radial = warp_sum(radial);
            if (lane_id() == 0) scratch[warp_id()] = radial;
            __syncthreads();  // every warp's part is in place
            float total = 0.0f;
            for (uint32_t w = 0; w < params.row_warps; ++w) total += scratch[group * params.row_warps + w];
            return total;
        };
        const GatherSide& s = of_x ? params.gather.x : params.gather.y;
        if (r >= 2 * pairs || t >= p.n) {
            if (s.own_inv != nullptr) join(0.0f);
            continue;
        }
        const int side = of_x ? 0 : 1;
        const Row row = shared.rows[side][place];
        const uint16_t* list = shared.list[side];
        const float* weight = shared.weight[side];
        const float of_pair = (shared.rows[0][place].of_pair + shared.rows[1][place].of_pair) * row.inv_pair;
        // Terms of the row, in order: its pair, its own negative, the anchors that chose it.
        const uint32_t own_terms = row.negative >= 0 ? 2 : 1, count = own_terms + (row.end - row.begin);
        const auto source = [&](uint32_t i) {
            return i == 0 ? t : i < own_terms ? uint32_t(row.negative) : uint32_t(list[row.begin + (i - own_terms)]);
        };
        const auto coefficient = [&](uint32_t i) {
            return i == 0 ? of_pair : i < own_terms ? row.of_negative : weight[row.begin + (i - own_terms)];
        };
        const auto sum = [&](uint32_t col, float (&g)[kGatherColumns]) {
#pragma unroll
            for (uint32_t k = 0; k < kGatherColumns; ++k) g[k] = 0.0f;
            if (col + kGatherColumns <= params.gather.d) {
#pragma unroll 1
                for (uint32_t i = 0; i < count; i += kTermsAhead) {
                    add_terms<T, kTermsAhead>(
                        s, count - i, col, [&](uint32_t k) { return source(i + k); },
                        [&](uint32_t k) { return coefficient(i + k); }, g);
                }
            } else {
#pragma unroll 1
                for (uint32_t i = 0; i < count; ++i) add_term<T>(s, params.gather, source(i), coefficient(i), col, g);
            }
        };
        overflow += gather_row<T, G>(s, params.gather, t, threadIdx.x - group * row_threads, row_threads, sum, join);
    }
    if (sizeof(G) == 2 && overflow > 0) atomicAdd(params.gather.overflow, overflow);
}

}  // namespace

#define PER_PAIR(SUFFIX, T, G)                                                              \
    extern "C" __global__ void __launch_bounds__(kSmallThreads, kBlocks) goal_small_##SUFFIX( \
        const __grid_constant__ GoalSmallParams p) {                                        \
        goal_small_body<T, G>(p);                                                           \
    }
PER_PAIR(f32_f32, float, float)
PER_PAIR(f16_f16, __half, __half)
PER_PAIR(f16_f32, __half, float)
PER_PAIR(bf16_bf16, __nv_bfloat16, __nv_bfloat16)
PER_PAIR(bf16_f32, __nv_bfloat16, float)
