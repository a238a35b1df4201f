// Included by the files of kernels for each engine, behind its sweep (tile.cuh, group_tile.cuh).
#pragma once
#include <type_traits>

#include "common/pairwise.cuh"

namespace {

// What the warps add up over their tiles, in shared memory: the registers are needed. of[] as kWaveSums says.
struct Sums {
    double of[kWaveSums][kTileThreads / kWarpSize];
    uint32_t negatives[kTileThreads / kWarpSize];
    uint32_t positives[kTileThreads / kWarpSize];

    __device__ __forceinline__ void clear() {
        if (lane_id() != 0 || threadIdx.x >= kTileThreads) return;
        for (uint32_t k = 0; k < kWaveSums; ++k) of[k][warp_id()] = 0.0;
        negatives[warp_id()] = positives[warp_id()] = 0;
    }
    // Every lane of the warp has a part of the tile's sum.
    __device__ __forceinline__ void add(uint32_t k, float part) {
        const float sum = warp_sum(part);
        if (lane_id() == 0) of[k][warp_id()] += double(sum);
    }
};

// What the columns of a tile say, in the sweep's scratch memory: read there by the threads that have them.
struct WeightsScratch {
    float shift[kTileCols];
    float factor[kTileCols];
    float log_q[kTileCols];
    float near[kTileCols];  // factor times 2^(the references' largest among 32 columns - the column's)
    float inv[kTileCols];
    References references;
};
static_assert(sizeof(WeightsScratch) <= kScratchBytes / kParties, "the epilogue lives in the sweep's scratch memory");

// What row i of the thread says.
struct RowCoefficients {
    float neg_shift, neg_scale, pos_shift, pos_scale, pos_constant;
    uint32_t index;
};

template <typename T, bool kBoth>
struct Weights {
    using W = std::conditional_t<sizeof(T) == 4, float, __nv_bfloat16>;

    const PairwiseWeightsParams& p;
    const PairwiseTiles& t;
    WeightsScratch& columns;
    const PairwiseScale scale;
    const TileThread thread;

    __device__ __forceinline__ Weights(const PairwiseWeightsParams& params, WeightsScratch& scratch)
        : p(params), t(params.tiles), columns(scratch), scale(params.scale == nullptr ? PairwiseScale{1.0f, 1.0f} : *params.scale) {}

    __device__ __forceinline__ RowCoefficients row(uint32_t row0, int i) const {
        const uint32_t at = min(row0 + thread.row(i), t.n - 1);
        const float* c = p.row_coefficients + at;
        const size_t n = t.n;
        // With column anchors the own pair is the only positive, whose weight is a constant.
        const float pos_shift = kBoth ? 0.0f : __ldg(c + 2 * n), pos_scale = kBoth ? 0.0f : __ldg(c + 3 * n);
        return {__ldg(c), scale.negative * __ldg(c + n), pos_shift, scale.positive * pos_scale,
                scale.positive * __ldg(c + 4 * n), at};
    }

    static __device__ __forceinline__ float factor_of(const float* inv, uint32_t at, uint32_t count) {
        const float f = inv != nullptr && at < count ? __ldg(inv + at) : 1.0f;
        return f == f ? f : 1.0f;
    }

    // The party's threads put what the columns say into the scratch memory, and what its rows are relative to: the lines,
    // rows first, are dealt to them, to whole warps those of one kind.
    __device__ __forceinline__ void put_columns(uint32_t row0, uint32_t col0) const {
        tile_sync();  // the scratch memory is free
#pragma unroll
        for (uint32_t first = 0; first < kPartyLines; first += kPartyThreads) {
            const uint32_t of_party = first + thread.member();
            // The same for a warp, which the compiler is told.
            const uint32_t of_warp = kParties == 1 ? of_party : __shfl_sync(~0u, of_party, 0);
            if (kPartyLines % kPartyThreads != 0 && of_warp >= kPartyLines) break;
            const bool is_row = of_warp < kPartyRows;
            const uint32_t line = is_row ? of_party : of_party - kPartyRows;
            const uint32_t row = min(row0 + thread.party_row() + line, t.n - 1), col = min(col0 + line, t.m - 1);
            const float q = log_q_of(t, col);
            float factor = 0.0f, reference = 0.0f;
            if (kBoth) {
                const float shift = is_row ? __ldg(p.row_coefficients + row) : __ldg(p.col_coefficients + col);
                reference = is_row ? shift : shift - q;
                if (!is_row) factor = scale.negative * __ldg(p.col_coefficients + t.m + col);
                const float largest = columns.references.put(of_party, reference, -reference);
                if (!is_row) {
                    columns.shift[line] = shift;
                    columns.factor[line] = factor;
                    columns.near[line] = factor * exp2_fast(largest - reference);
                }
            }
            if (!is_row) {
                columns.log_q[line] = q;
                columns.inv[line] = factor_of(t.inv_y, col0 + line, t.m);
            }
        }
        tile_sync();  // what the columns say is in place
    }

    // Replaces every similarity by its weight: negative(s, row, k), or positive(s, row, k) for the few that are positive.
    // `kPlain`: all pairs of the tile are negative.
    template <bool kSums, bool kPlain = false, typename Negative, typename Positive>
    __device__ __forceinline__ void fill(TileAcc& acc, const PairBits& bits, uint32_t row0, Sums& sums,
                                         Negative negative, Positive positive) const {
        float ws = 0.0f, w_sum = 0.0f;
#pragma unroll
        for (int i = 0; i < kThreadRows; ++i) {
            const RowCoefficients r = row(row0, i);
            const uint32_t neg = row_bits(bits.neg, i), pos = row_bits(bits.pos, i);
            float row_ws = 0.0f, row_w = 0.0f;
#pragma unroll
            for (int k = 0; k < kThreadCols; ++k) {
                const float s = element(acc, i, k);
                const float w = negative(s, r, k);
                const bool member = kPlain || (neg & 1u << k) != 0;
                element(acc, i, k) = member ? w : s;
                row_ws += member ? w * s : 0.0f;
                row_w += member ? w : 0.0f;
            }
            if (!kPlain && neg != kRowMask) {
#pragma unroll
                for (int k = 0; k < kThreadCols; ++k) {
                    if ((neg & 1u << k) != 0) continue;
                    const float s = element(acc, i, k);
                    const bool member = (pos & 1u << k) != 0;
                    const float w = member ? positive(s, r, k) : 0.0f;
                    element(acc, i, k) = w;
                    row_ws += member ? w * s : 0.0f;
                    row_w += w;
                }
            }
            ws += row_ws;
            w_sum += row_w;
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
        const auto shift = [&](int k) { return columns.shift[thread.col(k)]; };
        const auto factor = [&](int k) { return columns.factor[thread.col(k)]; };
        const auto q = [&](int k) { return columns.log_q[thread.col(k)]; };
        const auto positive = [&](float, const RowCoefficients& r, int k) {
            const uint32_t at = min(col0 + thread.col(k), t.m - 1);
            return fmaf(scale.positive, __ldg(p.col_coefficients + 2 * size_t(t.m) + at), r.pos_constant);
        };
        if (t.form == kFormGoal) {
            // Of every anchor the number of its negative, in the place of the shift, and that one's weight.
            fill<false>(acc, bits, row0, sums,
                        [&](float, const RowCoefficients& r, int k) {
                            const float of_row = __float_as_uint(r.neg_shift) == col0 + thread.col(k) ? r.neg_scale : 0.0f;
                            return of_row + (__float_as_uint(shift(k)) == r.index ? factor(k) : 0.0f);
                        },
                        positive);
            return;
        }
        if (t.form == kFormTriplet) {
            fill<false>(acc, bits, row0, sums,
                        [&](float s, const RowCoefficients& r, int k) {
                            return hinge(c0 + s - r.neg_shift, r.neg_scale) + hinge(c0 + s - shift(k), factor(k));
                        },
                        positive);
            return;
        }
        // NaN and infinities, of anchors without weights, are not near either. The same for the party.
        if (!columns.references.near()) {
            fill<true>(acc, bits, row0, sums,
                       [&](float s, const RowCoefficients& r, int k) {
                           const float u = c0 * s;
                           return r.neg_scale * exp2_fast(u - q(k) - r.neg_shift) + factor(k) * exp2_fast(u - shift(k));
                       },
                       positive);
            return;
        }
        // One exponential for both, as in TileSets::both_sums(), and one for a row and 32 columns.
        const auto scale_of_pair = [&](const RowCoefficients& r, int k) {
            const float largest = columns.references.high[References::kRowWarps + thread.warp_col() * kJoinedCols + (k >> 3)];
            return fmaf(exp2_fast(r.neg_shift - largest), columns.near[thread.col(k)], r.neg_scale);
        };
        if (t.log_q == nullptr) {
            const auto negative = [&](float s, const RowCoefficients& r, int k) {
                return scale_of_pair(r, k) * exp2_fast(c0 * s - r.neg_shift);
            };
            if (all_negative(t, row0, col0)) fill<true, true>(acc, bits, row0, sums, negative, positive);
            else fill<true>(acc, bits, row0, sums, negative, positive);
        } else {
            fill<true>(acc, bits, row0, sums,
                       [&](float s, const RowCoefficients& r, int k) {
                           return scale_of_pair(r, k) * exp2_fast(c0 * s - q(k) - r.neg_shift);
                       },
                       positive);
        }
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
            if (row_bits(bits.pos, i) == 0) continue;
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
        // The compiler is not to know that this is the same again: it would keep logits or tests, beside the accumulators.
        float scale_of = c0, bias = c1;
        PairBits again = bits;
        asm volatile("" : "+f"(scale_of), "+f"(bias), "+l"(again.neg), "+l"(again.pos));
        const auto logit = [&](float s) { return fmaf(scale_of, s, bias); };
        fill<true>(acc, again, row0, sums,
                   [&](float s, const RowCoefficients& r, int) { return r.neg_scale * sigmoid_fast(logit(s)); },
                   [&](float s, const RowCoefficients& r, int) { return r.pos_scale * sigmoid_fast(-logit(s)); });
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
                const auto q = [&](int k) { return columns.log_q[thread.col(k)]; };
                fill<true>(acc, bits, row0, sums,
                           [&](float s, const RowCoefficients& r, int k) {
                               return r.neg_scale * exp2_fast(c0 * s - q(k) - r.neg_shift);
                           },
                           [&](float s, const RowCoefficients& r, int k) {
                               return fmaf(r.pos_scale, exp2_fast(c0 * s - q(k) - r.pos_shift), r.pos_constant);
                           });
            }
        }
    }

    // Moves the weights of own pairs that are positive from the tile to the array of their own.
    __device__ __forceinline__ void take_diagonal(TileAcc& acc, TileBits pos, uint32_t row0) const {
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

    __device__ __forceinline__ void store(const TileAcc& acc, void* w, uint32_t row0, uint32_t col0) const {
        const uint32_t first_row = row0 - p.first_tile * kTile;
        if constexpr (sizeof(W) == 4) {
#pragma unroll
            for (int i = 0; i < kThreadRows; ++i) {
                float* to = static_cast<float*>(w) + (first_row + thread.row(i)) * p.ldw + col0 + thread.first_col;
#pragma unroll
                for (int k = 0; k < kThreadCols; k += 2) {
                    *reinterpret_cast<float2*>(to + 4 * k) = make_float2(element(acc, i, k), element(acc, i, k + 1));
                }
            }
        } else {
            // The four lanes of a row exchange their pairs of every 32 columns, so that each stores 8 columns on end.
            const uint32_t lane = thread.index & 3;
#pragma unroll
            for (int i = 0; i < kThreadRows; ++i) {
                W* const to = static_cast<W*>(w) + (first_row + thread.row(i)) * p.ldw + col0 +
                              thread.warp_col() * (4 * kThreadCols) + lane * 8;
#pragma unroll
                for (int k = 0; k < kThreadCols; k += 8) {
                    uint32_t v[4];
#pragma unroll
                    for (int b = 0; b < 4; ++b) {
                        const __nv_bfloat162 two =
                            __floats2bfloat162_rn(element(acc, i, k + 2 * b), element(acc, i, k + 2 * b + 1));
                        v[b] = reinterpret_cast<const uint32_t&>(two);
                    }
                    transpose(v, lane);
                    *reinterpret_cast<uint4*>(to + 4 * k) = make_uint4(v[0], v[1], v[2], v[3]);
                }
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
        put_columns(row0, col0);
        similarities(t, thread, acc, row0, col0);
        PairBits bits = classify(t, thread, row0, col0);
        if (kBoth) of_both(acc, bits, row0, col0, sums);
        else of_rows(acc, bits, row0, col0, sums);
        if (row0 == col0) take_diagonal(acc, bits.pos, row0);
        if (p.mix != 0 || p.share != 1.0f) {
            mix(acc, row0, col0);
            if (p.mix & kMixKeep) return;
        }
        if (sizeof(W) == 2) unscale(acc, row0);
        store(acc, p.w, row0, col0);
#ifdef SIMGRAD_GROUP_TILE
        if constexpr (__is_same(T, __nv_bfloat16)) {
            if (p.low == nullptr) return;
            keep_rest(acc);
            store(acc, p.low, row0, col0);
        }
#endif
    }

    // What bf16 has rounded off. Weights that are not finite have no rest, which would be NaN in every case.
    static __device__ __forceinline__ void keep_rest(TileAcc& acc) {
#pragma unroll
        for (int e = 0; e < kThreadElements; ++e) {
            const float rest = acc[e] - __bfloat162float(__float2bfloat16_rn(acc[e]));
            acc[e] = fabsf(rest) < pos_infinity() ? rest : 0.0f;
        }
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
    __device__ __forceinline__ void unscale(TileAcc& acc, uint32_t row0) const {
#pragma unroll
        for (int i = 0; i < kThreadRows; ++i) {
            const float of_row = factor_of(t.inv_x, row0 + thread.row(i), t.n);
#pragma unroll
            for (int k = 0; k < kThreadCols; ++k) element(acc, i, k) *= of_row * columns.inv[thread.col(k)];
        }
    }
};

// The tiles of this block.
__device__ __forceinline__ TileRect weights_rect(const PairwiseWeightsParams& p) {
    return tile_rect(p.first_tile, p.end_tile, p.tiles.m, p.row_splits, p.col_splits);
}

template <typename T, bool kBoth, typename Sweep>
__device__ __forceinline__ void weights_tiles(const PairwiseWeightsParams& p, Sweep& sweep, Sums& sums) {
    sums.clear();
    sweep.run([&](TileAcc& acc, uint32_t r, uint32_t c, char* scratch) {
        if (r >= p.end_tile) return;  // of a block whose share ends behind the wave
        const Weights<T, kBoth> weights(p, *reinterpret_cast<WeightsScratch*>(scratch));
        weights.tile(acc, r * kTile, c * kTile, sums);
    });
    if (!sweep.holds()) return;
    if (!kBoth && p.counts != nullptr && lane_id() == 0) {
        atomicAdd(p.counts, static_cast<unsigned long long>(sums.negatives[warp_id()]));
        atomicAdd(p.counts + 1, static_cast<unsigned long long>(sums.positives[warp_id()]));
    }
    holders_sync();  // every warp's sums are in place
    if (threadIdx.x >= kWaveSums) return;
    double sum = 0.0;
    for (uint32_t w = 0; w < kTileThreads / kWarpSize; ++w) sum += sums.of[threadIdx.x][w];
    p.sums[kWaveSums * (size_t(blockIdx.y) * gridDim.x + blockIdx.x) + threadIdx.x] = sum;
}

#ifdef SIMGRAD_GROUP_TILE
template <typename T, bool kBoth>
__device__ __forceinline__ void weights_groups(const TensorMaps& maps, const PairwiseWeightsParams& p) {
    extern __shared__ __align__(1024) char shared[];
    __shared__ Sums sums;
    RectSweep<T, true> sweep(shared, maps, p.tiles.d, weights_rect(p), computes(p.tiles));
    weights_tiles<T, kBoth>(p, sweep, sums);
}
#endif

}  // namespace
