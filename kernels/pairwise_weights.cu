// pairwise_weights — W = dL/dS of a wave of rows, from the tiles of S computed once more and each anchor's coefficients.
//
//   W_ij = kappa (what row i says of the pair + what column j says of it)      by the form, docs/maths.md
//   w[i - first, j] = W_ij inv_x[i] inv_y[j], 0 for pairs that are ignored, for own pairs that are positive and outside
//   diagonal[i] = W_ii of an own pair that is positive, else 0;  sums: of W S and of W, every pair included; of a form whose
//   weights need no statistics (SigLIP) its loss, its pairs and who has a positive
//   Own pairs are kept apart because their weight can be as large as all others of the row together: in 16 bits its
//   rounding alone would be as large as they are.
//
//   x (n, d), y (m, d)   T: f32 | f16 | bf16, row-major, base and rows aligned to 16 bytes
//   w (wave rows, ldw)   bf16 for 16-bit T (whose range is that of f32: weights may be as small as e^-80), f32 for f32
//   diagonal (min(n, m)) f32;  sums (blocks, 4) f64;  flags u32, counts u64.  No output may alias an input or another output.
//
// Work    the wave's tiles are dealt to row_splits x col_splits blocks; a block goes through its rectangle, columns
//         innermost. Whole tiles are written: what follows needs no edges.
// Launch  grid = (col_splits, row_splits), block = 256, 98,304 bytes of dynamic shared memory.
// Bound   tensor cores (f32: FMA), 2 n m d over all waves, and the store of n m elements.
// Order   S has the same bits as in pairwise_stats. Sums: a thread's elements ascending, the warp by a fixed tree, then tiles and
//         warps ascending in f64.
// Needs   sm_80.
#include <type_traits>

#include "common/tile.cuh"
#include "common/pairwise.cuh"

namespace {

// What the warps add up over their tiles, in shared memory: the registers are needed. of[] as kWaveSums says.
struct Sums {
    double of[kWaveSums][kTileThreads / kWarpSize];
    uint32_t negatives[kTileThreads / kWarpSize];
    uint32_t positives[kTileThreads / kWarpSize];

    // Every lane of the warp has a part of the tile's sum.
    __device__ __forceinline__ void add(uint32_t k, float part) {
        const float sum = warp_sum(part);
        if (lane_id() == 0) of[k][warp_id()] += double(sum);
    }
};

// What row i of 8 of the thread says.
struct RowCoefficients {
    float neg_shift, neg_scale, pos_shift, pos_scale, pos_constant;
    uint32_t index;
};

template <typename T, bool kBoth>
struct Weights {
    using W = std::conditional_t<sizeof(T) == 4, float, __nv_bfloat16>;

    const PairwiseWeightsParams& p;
    const PairwiseTiles& t;
    const PairwiseScale scale;
    const TileThread thread;

    __device__ __forceinline__ explicit Weights(const PairwiseWeightsParams& params)
        : p(params), t(params.tiles), scale(params.scale == nullptr ? PairwiseScale{1.0f, 1.0f} : *params.scale) {}

    __device__ __forceinline__ RowCoefficients row(uint32_t row0, int i) const {
        const uint32_t at = min(row0 + thread.row(i), t.n - 1);
        const float* c = p.row_coefficients + at;
        const size_t n = t.n;
        // With column anchors the own pair is the only positive, whose weight is a constant.
        const float pos_shift = kBoth ? 0.0f : __ldg(c + 2 * n), pos_scale = kBoth ? 0.0f : __ldg(c + 3 * n);
        return {__ldg(c), scale.negative * __ldg(c + n), pos_shift, scale.positive * pos_scale,
                scale.positive * __ldg(c + 4 * n), at};
    }

    // Replaces every similarity by its weight: negative(s, row, k), or positive(s, row, k) for the few that are positive.
    template <bool kSums, typename Negative, typename Positive>
    __device__ __forceinline__ void fill(TileAcc& acc, const PairBits& bits, uint32_t row0, Sums& sums,
                                         Negative negative, Positive positive) const {
        float ws = 0.0f, w_sum = 0.0f;
#pragma unroll
        for (int i = 0; i < kThreadRows; ++i) {
            const RowCoefficients r = row(row0, i);
            float s[8];
#pragma unroll
            for (int k = 0; k < kThreadCols; ++k) {
                s[k] = element(acc, i, k);
                const float w = negative(s[k], r, k);
                element(acc, i, k) = bits.neg >> bit_at(i, k) & 1 ? w : 0.0f;
            }
            if ((bits.pos >> (8 * i) & 0xff) != 0) {
#pragma unroll
                for (int k = 0; k < kThreadCols; ++k) {
                    if (bits.pos >> bit_at(i, k) & 1) element(acc, i, k) = positive(s[k], r, k);
                }
            }
            if (kSums) {
                float row_ws = 0.0f, row_w = 0.0f;
#pragma unroll
                for (int k = 0; k < kThreadCols; ++k) {
                    const float w = element(acc, i, k);
                    const bool member = (bits.neg | bits.pos) >> bit_at(i, k) & 1;
                    row_ws += member ? w * s[k] : 0.0f;
                    row_w += w;
                }
                ws += row_ws;
                w_sum += row_w;
            }
        }
        if (kSums) {
            sums.add(0, ws);
            sums.add(1, w_sum);
        }
    }

    // Weight of a violation; NaN if it cannot be told to be one.
    static __device__ __forceinline__ float hinge(float violation, float weight) {
        return violation > 0.0f ? weight : violation != violation ? violation : 0.0f;
    }

    __device__ __forceinline__ void of_both(TileAcc& acc, const PairBits& bits, uint32_t row0, uint32_t col0,
                                            Sums& sums) const {
        const float c0 = t.c[0];
        float shift[8], factor[8];
#pragma unroll
        for (int k = 0; k < kThreadCols; ++k) {
            const uint32_t at = min(col0 + thread.col(k), t.m - 1);
            shift[k] = __ldg(p.col_coefficients + at);
            factor[k] = scale.negative * __ldg(p.col_coefficients + t.m + at);
        }
        const auto positive = [&](float, const RowCoefficients& r, int k) {
            const uint32_t at = min(col0 + thread.col(k), t.m - 1);
            return fmaf(scale.positive, __ldg(p.col_coefficients + 2 * size_t(t.m) + at), r.pos_constant);
        };
        if (t.form == kFormGoal) {
            // Of every anchor the number of its negative, in the place of the shift, and that one's weight.
            fill<false>(acc, bits, row0, sums,
                        [&](float, const RowCoefficients& r, int k) {
                            const float of_row = __float_as_uint(r.neg_shift) == col0 + thread.col(k) ? r.neg_scale : 0.0f;
                            return of_row + (__float_as_uint(shift[k]) == r.index ? factor[k] : 0.0f);
                        },
                        positive);
            return;
        }
        if (t.form == kFormTriplet) {
            fill<false>(acc, bits, row0, sums,
                        [&](float s, const RowCoefficients& r, int k) {
                            return hinge(c0 + s - r.neg_shift, r.neg_scale) + hinge(c0 + s - shift[k], factor[k]);
                        },
                        positive);
            return;
        }
        float q[8];
        load_log_q(t, thread, col0, q);
        float high[2] = {neg_infinity(), neg_infinity()}, low[2] = {neg_infinity(), neg_infinity()};  // low: of -x
#pragma unroll
        for (int k = 0; k < kThreadCols; ++k) {
            const float of_row = __ldg(p.row_coefficients + min(row0 + thread.row(k), t.n - 1));
            const float of_col = shift[k] - q[k];
            high[0] = max_nan(high[0], of_row), low[0] = max_nan(low[0], -of_row);
            high[1] = max_nan(high[1], of_col), low[1] = max_nan(low[1], -of_col);
        }
        // NaN and infinities, of anchors without weights, are not near either. The same for the warp, which sums together.
        if (!__all_sync(kFullWarp, high[0] + low[1] <= kNear && high[1] + low[0] <= kNear)) {
            fill<true>(acc, bits, row0, sums,
                       [&](float s, const RowCoefficients& r, int k) {
                           const float u = c0 * s;
                           return r.neg_scale * exp2_fast(u - q[k] - r.neg_shift) + factor[k] * exp2_fast(u - shift[k]);
                       },
                       positive);
            return;
        }
        // One exponential for both, as in TileSets::both_sums().
        const float origin = high[0];
#pragma unroll
        for (int k = 0; k < kThreadCols; ++k) factor[k] *= exp2_fast(origin - (shift[k] - q[k]));
        fill<true>(acc, bits, row0, sums,
                   [&](float s, const RowCoefficients& r, int k) {
                       const float scale_of_pair = fmaf(exp2_fast(r.neg_shift - origin), factor[k], r.neg_scale);
                       return scale_of_pair * exp2_fast(c0 * s - q[k] - r.neg_shift);
                   },
                   positive);
    }

    // The weights of this form need no statistics, so that its loss and its counts are found here.
    __device__ __forceinline__ void sig_lip(TileAcc& acc, const PairBits& bits, uint32_t row0, uint32_t col0,
                                            Sums& sums) const {
        const uint32_t negatives = warp_sum<uint32_t>(__popcll(bits.neg));
        const uint32_t positives = warp_sum<uint32_t>(__popcll(bits.pos));
        if (lane_id() == 0) {
            sums.negatives[warp_id()] += negatives;
            sums.positives[warp_id()] += positives;
        }
        if (bits.pos != 0) {
            flag_rows(thread, bits.pos, row0, p.row_flags);
            flag_columns(thread, bits.pos, col0, p.col_flags);
        }
        const float c0 = t.c[0], c1 = t.c[1];
        float loss = 0.0f, similarity = 0.0f;
#pragma unroll
        for (int i = 0; i < kThreadRows; ++i) {
            const RowCoefficients r = row(row0, i);
            float of_row = 0.0f;
#pragma unroll
            for (int k = 0; k < kThreadCols; ++k) {
                const float term = softplus_fast(fmaf(c0, element(acc, i, k), c1));
                of_row += bits.neg >> bit_at(i, k) & 1 ? term : 0.0f;
            }
            loss = fmaf(r.neg_scale, of_row, loss);
            if ((bits.pos >> (8 * i) & 0xff) == 0) continue;
            of_row = 0.0f;
#pragma unroll
            for (int k = 0; k < kThreadCols; ++k) {
                const float s = element(acc, i, k);
                const bool positive = bits.pos >> bit_at(i, k) & 1;
                of_row += positive ? softplus_fast(-fmaf(c0, s, c1)) : 0.0f;
                similarity += positive ? s : 0.0f;
            }
            loss = fmaf(-r.pos_scale, of_row, loss);
        }
        sums.add(2, loss);
        sums.add(3, similarity);
        fill<true>(acc, bits, row0, sums,
                   [&](float s, const RowCoefficients& r, int) { return r.neg_scale * sigmoid_fast(fmaf(c0, s, c1)); },
                   [&](float s, const RowCoefficients& r, int) { return r.pos_scale * sigmoid_fast(-fmaf(c0, s, c1)); });
    }

    // Forms of which a pair's weight is scale 2^(logit - shift) slope.
    template <typename Logits, typename NegSlope, typename PosSlope>
    __device__ __forceinline__ void fill_softmax(TileAcc& acc, const PairBits& bits, uint32_t row0, Sums& sums,
                                                 const Logits& l, NegSlope neg_slope, PosSlope pos_slope) const {
        fill<false>(acc, bits, row0, sums,
                    [&](float s, const RowCoefficients& r, int) {
                        return r.neg_scale * exp2_fast(l.neg(s) - r.neg_shift) * neg_slope(s);
                    },
                    [&](float s, const RowCoefficients& r, int) {
                        return r.pos_scale * exp2_fast(l.pos(s) - r.pos_shift) * pos_slope(s);
                    });
    }

    __device__ __forceinline__ void of_rows(TileAcc& acc, PairBits& bits, uint32_t row0, uint32_t col0,
                                            Sums& sums) const {
        const float c0 = t.c[0], c1 = t.c[1];
        const auto one = [](float) { return 1.0f; };
        switch (t.form) {
            case kFormSigLip: return sig_lip(acc, bits, row0, col0, sums);
            case kFormContrastive:
                return fill<false>(acc, bits, row0, sums,
                                   [&](float s, const RowCoefficients& r, int) {
                                       return hinge(s - c1, r.neg_scale);
                                   },
                                   [&](float s, const RowCoefficients& r, int) {
                                       return hinge(c0 - s, r.pos_scale);
                                   });
            case kFormMulti:
                if (t.lowest != nullptr) keep_mined(t, thread, acc, bits, row0);
                return fill_softmax(acc, bits, row0, sums, MultiLogits{t.c}, one, one);
            case kFormCircle: {
                const CircleLogits l{t.c};
                const bool detached = t.c[3] != 0.0f;
                if (detached) {
                    return fill_softmax(acc, bits, row0, sums, l, [&](float s) { return l.open_neg(s); },
                                        [&](float s) { return l.open_pos(s); });
                }
                return fill_softmax(acc, bits, row0, sums, l, [&](float s) { return s + c1 > 0.0f ? 2.0f * s : s * 0.0f; },
                                    [&](float s) { return 1.0f + c1 - s > 0.0f ? 2.0f * (1.0f - s) : s * 0.0f; });
            }
            case kFormLifted: {
                const auto slope = [](float s) { return inverse_distance(s); };
                return fill_softmax(acc, bits, row0, sums, LiftedLogits{t.c}, slope, slope);
            }
            case kFormRanked: {
                const RankedLogits l{t.c};
                return fill<false>(acc, bits, row0, sums,
                                   [&](float s, const RowCoefficients& r, int) {
                                       const float w = r.neg_scale * exp2_fast(l.neg(s) - r.neg_shift) * inverse_distance(s);
                                       return l.within(s) <= 0.0f ? 0.0f : w;
                                   },
                                   [&](float s, const RowCoefficients& r, int) {
                                       return hinge(l.pos(s), r.pos_scale * inverse_distance(s));
                                   });
            }
            default: {
                float q[8];
                load_log_q(t, thread, col0, q);
                fill<true>(acc, bits, row0, sums,
                           [&](float s, const RowCoefficients& r, int k) {
                               return r.neg_scale * exp2_fast(c0 * s - q[k] - r.neg_shift);
                           },
                           [&](float s, const RowCoefficients& r, int k) {
                               return fmaf(r.pos_scale, exp2_fast(c0 * s - q[k] - r.pos_shift), r.pos_constant);
                           });
            }
        }
    }

    // Moves the weights of own pairs that are positive from the tile to the array of their own.
    __device__ __forceinline__ void take_diagonal(TileAcc& acc, uint64_t pos, uint32_t row0) const {
#pragma unroll
        for (int i = 0; i < kThreadRows; ++i) {
#pragma unroll
            for (int k = 0; k < kThreadCols; ++k) {
                const uint32_t at = row0 + thread.row(i);
                if (thread.row(i) != thread.col(k) || at >= t.n || at >= t.m) continue;
                const bool positive = pos >> bit_at(i, k) & 1;
                const float w = positive ? p.share * element(acc, i, k) : 0.0f;
                p.diagonal[at] = p.mix & kMixAdd ? p.diagonal[at] + w : w;
                if (positive) element(acc, i, k) = 0.0f;
            }
        }
    }

    __device__ __forceinline__ void store(const TileAcc& acc, uint32_t row0, uint32_t col0) const {
        const uint32_t first_row = row0 - p.first_tile * kTile;
        if constexpr (sizeof(W) == 4) {
#pragma unroll
            for (int i = 0; i < kThreadRows; ++i) {
                float* to = static_cast<float*>(p.w) + (first_row + thread.row(i)) * p.ldw + col0 + thread.first_col;
#pragma unroll
                for (int k = 0; k < kThreadCols; k += 2) {
                    *reinterpret_cast<float2*>(to + 4 * k) = make_float2(element(acc, i, k), element(acc, i, k + 1));
                }
            }
        } else {
            // The four lanes of a row exchange their pairs of columns, so that each stores 8 columns on end.
            const uint32_t lane = thread.index & 3;
#pragma unroll
            for (int i = 0; i < kThreadRows; ++i) {
                uint32_t v[4];
#pragma unroll
                for (int b = 0; b < 4; ++b) {
                    const __nv_bfloat162 two = __floats2bfloat162_rn(element(acc, i, 2 * b), element(acc, i, 2 * b + 1));
                    v[b] = reinterpret_cast<const uint32_t&>(two);
                }
                transpose(v, lane);
                W* to = static_cast<W*>(p.w) + (first_row + thread.row(i)) * p.ldw + col0 + thread.warp_col() * 32 + lane * 8;
                *reinterpret_cast<uint4*>(to) = make_uint4(v[0], v[1], v[2], v[3]);
            }
        }
    }

    // v[b] of lane l becomes v[l] of lane b, among four lanes.
    static __device__ __forceinline__ void transpose(uint32_t (&v)[4], uint32_t lane) {
        const bool odd = lane & 1, high = lane & 2;
        const uint32_t a = exchange(odd ? v[0] : v[1], 1), b = exchange(odd ? v[2] : v[3], 1);
        if (odd) v[0] = a, v[2] = b;
        else v[1] = a, v[3] = b;
        const uint32_t c = exchange(high ? v[0] : v[2], 2), d = exchange(high ? v[1] : v[3], 2);
        if (high) v[0] = c, v[1] = d;
        else v[2] = c, v[3] = d;
    }

    __device__ __forceinline__ void tile(TileAcc& acc, uint32_t row0, uint32_t col0, Sums& sums) const {
        similarities(t, thread, acc, row0, col0);
        PairBits bits = classify(t, thread, row0, col0);
        if (kBoth) of_both(acc, bits, row0, col0, sums);
        else of_rows(acc, bits, row0, col0, sums);
        if (row0 == col0) take_diagonal(acc, bits.pos, row0);
        if (p.mix != 0 || p.share != 1.0f) {
            mix(acc, row0, col0);
            if (p.mix & kMixKeep) return;
        }
        if (sizeof(W) == 2) unscale(acc, row0, col0);
        store(acc, row0, col0);
    }

    // This part's share, and the parts before it.
    __device__ __forceinline__ void mix(TileAcc& acc, uint32_t row0, uint32_t col0) const {
#pragma unroll
        for (int i = 0; i < kThreadRows; ++i) {
#pragma unroll
            for (int k = 0; k < kThreadCols; ++k) element(acc, i, k) *= p.share;
        }
        const uint64_t at = uint64_t(row0 / kTile - p.first_tile) * tiles_of(t.m) + col0 / kTile;
        if (p.mix & kMixAdd) add_tile(p.mixed, at, thread, acc);
        if (p.mix & kMixKeep) store_tile(p.mixed, at, thread, acc);
    }

    // The operands of the products to come are not normalised, so their factors go to the weights; what a row with a NaN
    // touches is NaN already, and its ignored pairs stay 0.
    __device__ __forceinline__ void unscale(TileAcc& acc, uint32_t row0, uint32_t col0) const {
        const auto factor = [](const float* inv, uint32_t at, uint32_t count) {
            const float f = inv != nullptr && at < count ? __ldg(inv + at) : 1.0f;
            return f == f ? f : 1.0f;
        };
        float of_col[8];
#pragma unroll
        for (int k = 0; k < kThreadCols; ++k) of_col[k] = factor(t.inv_y, col0 + thread.col(k), t.m);
#pragma unroll
        for (int i = 0; i < kThreadRows; ++i) {
            const float of_row = factor(t.inv_x, row0 + thread.row(i), t.n);
#pragma unroll
            for (int k = 0; k < kThreadCols; ++k) element(acc, i, k) *= of_row * of_col[k];
        }
    }
};

template <typename T, bool kBoth>
__device__ __forceinline__ void weights_body(const PairwiseWeightsParams& p) {
    extern __shared__ __align__(128) char stages[];
    __shared__ Sums sums;
    const PairwiseTiles& t = p.tiles;
    const uint32_t row_tiles = p.end_tile - p.first_tile, col_tiles = tiles_of(t.m);
    const uint32_t r_begin = p.first_tile + part_begin(row_tiles, p.row_splits, blockIdx.y);
    const uint32_t r_end = p.first_tile + part_begin(row_tiles, p.row_splits, blockIdx.y + 1);
    const uint32_t c_begin = part_begin(col_tiles, p.col_splits, blockIdx.x);
    const uint32_t c_end = part_begin(col_tiles, p.col_splits, blockIdx.x + 1);
    const TileShape shape{t.ldx * int64_t(sizeof(T)), t.ldy * int64_t(sizeof(T)), t.n, t.m, t.d * uint32_t(sizeof(T))};
    TileStream<T, RectCursor> stream(
        stages, shape, {static_cast<const char*>(t.x), static_cast<const char*>(t.y), computes(t) ? r_begin : r_end, r_end, c_begin, c_begin, c_end});
    if (lane_id() == 0) {
        for (uint32_t k = 0; k < kWaveSums; ++k) sums.of[k][warp_id()] = 0.0;
        sums.negatives[warp_id()] = sums.positives[warp_id()] = 0;
    }
    for (uint32_t r = r_begin; r < r_end; ++r) {
        for (uint32_t c = c_begin; c < c_end; ++c) {
            TileAcc acc;
            for (int e = 0; e < kThreadElements; ++e) acc[e] = 0.0f;
            if (computes(t)) stream.accumulate(acc);
            const Weights<T, kBoth> weights(p);
            weights.tile(acc, r * kTile, c * kTile, sums);
        }
    }
    if (!kBoth && p.counts != nullptr && lane_id() == 0) {
        atomicAdd(p.counts, static_cast<unsigned long long>(sums.negatives[warp_id()]));
        atomicAdd(p.counts + 1, static_cast<unsigned long long>(sums.positives[warp_id()]));
    }
    tile_sync();  // every warp's sums are in place
    if (threadIdx.x >= kWaveSums) return;
    double sum = 0.0;
    for (uint32_t w = 0; w < kTileThreads / kWarpSize; ++w) sum += sums.of[threadIdx.x][w];
    p.sums[kWaveSums * (size_t(blockIdx.y) * gridDim.x + blockIdx.x) + threadIdx.x] = sum;
}

}  // namespace

#define WEIGHTS(SUFFIX, T, BOTH)                                                     \
    extern "C" __global__ void __launch_bounds__(kTileThreads, 1)                     \
        pairwise_weights_##SUFFIX(const __grid_constant__ PairwiseWeightsParams p) {  \
        weights_body<T, BOTH>(p);                                                     \
    }
WEIGHTS(f32, float, false)
WEIGHTS(f16, __half, false)
WEIGHTS(bf16, __nv_bfloat16, false)
WEIGHTS(both_f32, float, true)
WEIGHTS(both_f16, __half, true)
WEIGHTS(both_bf16, __nv_bfloat16, true)
