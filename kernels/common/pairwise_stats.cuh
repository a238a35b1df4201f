// Included by the files of kernels for each engine, behind its sweep (tile.cuh, group_tile.cuh).
#pragma once
#include "common/pairwise_sets.cuh"

namespace {

template <bool kBoth>
struct Statistics : TileSets<kBoth> {
    using Base = TileSets<kBoth>;
    using Base::kOwned;
    using Base::of_set;
    using Base::owned;
    using Base::owns;
    using Base::scratch;
    using Base::thread;
    using Owned = typename Base::Owned;
    using States = SetState[kOwned];  // of the sets that this thread owns

    const PairwiseStatsParams& p;
    const PairwiseTiles& t;

    __device__ __forceinline__ Statistics(const PairwiseStatsParams& params, StatsScratch& s)
        : Base(s), p(params), t(params.tiles) {}

    // --- what a thread knows of its own rows and columns -------------------------------------------------------------

    __device__ __forceinline__ void write_pairs(const TileAcc& acc, uint32_t row0, uint32_t col0) const {
#pragma unroll
        for (int i = 0; i < kThreadRows; ++i) {
#pragma unroll
            for (int k = 0; k < kThreadCols; ++k) {
                const uint32_t row = row0 + thread.row(i);
                if (row == col0 + thread.col(k) && row < t.n && row < t.m) p.pos[row] = element(acc, i, k);
            }
        }
    }

    // Sum and number of the similarities of all positives, before any of them is left out.
    __device__ __forceinline__ void put_positives(const TileAcc& acc, TileBits pos) const {
        float total[kThreadRows];
        uint32_t raw[kThreadRows];
#pragma unroll
        for (int i = 0; i < kThreadRows; ++i) {
            total[i] = 0.0f;
            raw[i] = __popc(row_bits(pos, i));
#pragma unroll
            for (int k = 0; k < kThreadCols; ++k) total[i] += pos >> bit_at(i, k) & 1 ? element(acc, i, k) : 0.0f;
        }
        this->put_rows(total, scratch.total, [](float a, float b) { return a + b; });
        this->put_rows(raw, scratch.raw, [](uint32_t a, uint32_t b) { return a + b; });
    }

    // Every similarity becomes what is maximised or summed of it.
    template <typename Negative, typename Positive>
    static __device__ __forceinline__ void transform(TileAcc& acc, TileBits pos, Negative neg, Positive of_pos) {
#pragma unroll
        for (int i = 0; i < kThreadRows; ++i) {
            float s[kThreadCols];
#pragma unroll
            for (int k = 0; k < kThreadCols; ++k) {
                s[k] = element(acc, i, k);
                element(acc, i, k) = neg(s[k]);
            }
            if (row_bits(pos, i) == 0) continue;
#pragma unroll
            for (int k = 0; k < kThreadCols; ++k) {
                if (pos >> bit_at(i, k) & 1) element(acc, i, k) = of_pos(s[k]);
            }
        }
    }
    template <typename Logits>
    static __device__ __forceinline__ void transform(TileAcc& acc, TileBits pos, const Logits& l) {
        transform(acc, pos, [&](float s) { return l.neg(s); }, [&](float s) { return l.pos(s); });
    }
    // To the logits of rows, which know the probabilities of columns.
    __device__ __forceinline__ void scale(TileAcc& acc, uint32_t col0) const {
        const float c0 = t.c[0];
        if (t.log_q == nullptr) {
#pragma unroll
            for (int e = 0; e < kThreadElements; ++e) acc[e] *= c0;
            return;
        }
#pragma unroll
        for (int k = 0; k < kThreadCols; ++k) {
            const float q = log_q_of(t, col0 + thread.col(k));
#pragma unroll
            for (int i = 0; i < kThreadRows; ++i) element(acc, i, k) = fmaf(c0, element(acc, i, k), -q);
        }
    }

    // --- this thread's sets: with kBoth of negatives alone, which have no aux, total and raw ----------------------------

    __device__ __forceinline__ uint32_t lines(const Owned& of) const { return of.of_columns() ? t.m : t.n; }
    __device__ __forceinline__ uint32_t splits(const Owned& of) const {
        return of.of_columns() ? p.row_splits * kParties : p.col_splits;
    }
    __device__ __forceinline__ uint32_t split(const Owned& of) const {
        return of.of_columns() ? blockIdx.y * kParties + thread.party() : blockIdx.x;
    }
    __device__ __forceinline__ uint32_t* parts(const Owned& of) const { return of.set == 0 ? p.row_parts : p.other_parts; }
    __device__ __forceinline__ uint32_t at(const Owned& of, uint32_t row0, uint32_t col0) const {
        return (of.of_columns() ? col0 : row0 + thread.party_row()) + of.line;
    }
    // `first_row`, `first_col`: whether the tile is in the first row, column of its block's, which has found nothing yet.
    __device__ __forceinline__ void load(States& states, uint32_t row0, uint32_t col0, bool first_row, bool first_col) const {
#pragma unroll
        for (int o = 0; o < kOwned; ++o) {
            states[o] = empty_set();
            if (!owns(o)) continue;
            const Owned of = owned(o);
            const uint32_t line = at(of, row0, col0);
            if ((of.of_columns() ? first_row : first_col) || line >= lines(of)) continue;
            states[o] = load_set<kBoth>(parts(of), splits(of), lines(of), split(of), line);
        }
    }
    __device__ __forceinline__ void store(const States& states, uint32_t row0, uint32_t col0) const {
#pragma unroll
        for (int o = 0; o < kOwned; ++o) {
            if (!owns(o)) continue;
            const Owned of = owned(o);
            const uint32_t line = at(of, row0, col0);
            if (line < lines(of)) store_set<kBoth>(parts(of), splits(of), lines(of), split(of), line, states[o]);
        }
    }
    // Whether the tile can have changed set `o` of this thread; without any positive it has not those of positives.
    __device__ __forceinline__ bool takes_part(int o, bool any) const {
        return owns(o) && (kBoth || any || owned(o).set == 0);
    }

    // What the logits of a column are larger by than the tile's, which are those of rows.
    __device__ __forceinline__ float shift_of_logits(const Owned& of, uint32_t col0) const {
        return of.of_columns() ? log_q_of(t, col0 + of.line) : 0.0f;
    }

    // The tile of a form with a softmax. `any` tells whether the party has positives here.
    template <bool kPlain>
    __device__ __forceinline__ void softmax(TileAcc& acc, const PairBits& bits, uint32_t col0, bool any, States& states) const {
        const bool weighted = !kBoth && t.form == kFormRanked;
        this->template row_tops<kPlain>(acc, bits.neg, 0);
        if (kBoth) this->template col_tops<kPlain>(acc, bits.neg);
        else if (any) this->template row_tops<false>(acc, bits.pos, 1);
        tile_sync();  // the largest logits are in place
        float before[kOwned];
#pragma unroll
        for (int o = 0; o < kOwned; ++o) {
            if (!owns(o)) continue;
            const Owned of = owned(o);
            SetState& state = states[o];
            const float q = kBoth ? shift_of_logits(of, col0) : 0.0f;
            before[o] = state.max;
            if (takes_part(o, any)) state.max = max_nan(before[o], top_over_warps(of) + q);
            // Without a finite logit every term is 2^-infinity.
            const bool none = state.max == neg_infinity();
            const float reference = none ? 0.0f : state.max - q;
            scratch.reference[of.set][of.line] = reference;
            if (!kBoth) continue;
            scratch.references.put(this->number(o), none ? neg_infinity() : reference, none ? neg_infinity() : -reference);
        }
        tile_sync();  // the references are in place
        const bool near = kBoth && scratch.references.near();
        const float origin = kBoth ? scratch.references.highest_row() : 0.0f;
        if (kBoth) {
            this->template both_sums<kPlain>(acc, bits.neg, near, origin);
        } else {
            this->template row_sums<kPlain>(acc, bits.neg, 0, weighted);
            if (any) this->template row_sums<false>(acc, bits.pos, 1, false);
        }
        tile_sync();  // the sums are in place
#pragma unroll
        for (int o = 0; o < kOwned; ++o) {
            if (!takes_part(o, any)) continue;
            const Owned of = owned(o);
            SetState& state = states[o];
            const float shift = shift_of(before[o], state.max);
            // The reference of a column without a member is of nothing.
            const float scale_of_sum =
                near && of.of_columns() ? exp2_fast(fminf(origin - scratch.reference[of.set][of.line], kNear)) : 1.0f;
            state.sum = state.sum * shift + this->sum_over_warps(of, scratch.sum) * scale_of_sum;
            if (of.of_columns()) continue;
            if (of.set == 1) state.aux += this->sum_over_warps(of, scratch.aux);
            else if (weighted) state.aux = state.aux * shift + this->sum_over_warps(of, scratch.aux);
            state.count += this->sum_over_warps(of, scratch.count);
        }
    }
    __device__ __forceinline__ float top_over_warps(const Owned& of) const {
        return this->over_warps(of, scratch.top, [](float a, float b) { return max_nan(a, b); });
    }

    __device__ __forceinline__ void add_terms(bool any, States& states) const {
        tile_sync();  // the sums are in place
#pragma unroll
        for (int o = 0; o < kOwned; ++o) {
            if (!takes_part(o, any)) continue;
            states[o].sum += this->sum_over_warps(owned(o), scratch.sum);
            states[o].count += this->sum_over_warps(owned(o), scratch.count);
        }
    }

    __device__ __forceinline__ void triplet(const TileAcc& acc, const PairBits& bits, uint32_t row0, uint32_t col0,
                                            States& states) const {
        const uint32_t pairs = min(t.n, t.m);
        const auto violated = [](float v) { return !(v <= 0.0f); };
#pragma unroll
        for (int o = 0; o < kOwned; ++o) {
            if (!owns(o)) continue;
            const Owned of = owned(o);
            const uint32_t line = at(of, row0, col0);
            // A line without a pair has no violation.
            scratch.reference[of.set][of.line] = line < pairs ? t.pos[line] : pos_infinity();
        }
        tile_sync();  // the pairs' similarities are in place
        const auto of_row = [&](float s, int i) { return t.c[0] + s - this->row_reference(0, i); };
        const auto of_col = [&](float s, int k) { return t.c[0] + s - scratch.reference[1][thread.col(k)]; };
        this->term_rows(acc, bits.neg, 0, of_row, violated);
        this->term_cols(acc, bits.neg, of_col, violated);
        add_terms(true, states);
    }

    __device__ __forceinline__ void extremes(TileAcc& acc, const PairBits& bits, bool any, States& states) const {
        // fmaxf leaves NaN out.
        const auto larger = [](float a, float b) { return fmaxf(a, b); };
        const auto tops = [&](TileBits which, bool negate, int of) {
            float v[kThreadRows];
#pragma unroll
            for (int i = 0; i < kThreadRows; ++i) {
                v[i] = neg_infinity();
#pragma unroll
                for (int k = 0; k < kThreadCols; ++k) {
                    const float s = element(acc, i, k);
                    v[i] = fmaxf(v[i], which >> bit_at(i, k) & 1 ? (negate ? -s : s) : neg_infinity());
                }
            }
            this->put_rows(v, of_set(scratch.top, of), larger);
        };
        tops(bits.neg, false, 0);
        if (any) tops(bits.pos, true, 1);
        tile_sync();  // the extremes are in place
#pragma unroll
        for (int o = 0; o < kOwned; ++o) {
            if (takes_part(o, any)) states[o].max = fmaxf(states[o].max, top_over_warps(owned(o)));
        }
    }

    __device__ __forceinline__ void of_rows(TileAcc& acc, PairBits& bits, uint32_t row0, uint32_t col0, bool plain,
                                            bool any, States& states) const {
        const auto active = [](float v) { return !(v <= 0.0f); };
        const auto same = [](float v, int) { return v; };
        const float c0 = t.c[0], c1 = t.c[1];
        switch (t.form) {
            case kFormContrastive:
                transform(acc, bits.pos, [&](float s) { return s - c1; }, [&](float s) { return c0 - s; });
                this->term_rows(acc, bits.neg, 0, same, active);
                if (any) this->term_rows(acc, bits.pos, 1, same, active);
                return add_terms(any, states);
            case kFormMulti:
                if (t.lowest != nullptr) keep_mined(t, thread, acc, bits, row0);
                transform(acc, bits.pos, MultiLogits{t.c});
                break;
            case kFormCircle: transform(acc, bits.pos, CircleLogits{t.c}); break;
            case kFormLifted: transform(acc, bits.pos, LiftedLogits{t.c}); break;
            case kFormRanked: {
                const RankedLogits l{t.c};
#pragma unroll
                for (int i = 0; i < kThreadRows; ++i) {
                    keep_row(acc, bits.neg, i, [&](float s) { return active(l.within(s)); });
                    if (row_bits(bits.pos, i) != 0) keep_row(acc, bits.pos, i, [&](float s) { return active(l.pos(s)); });
                }
                transform(acc, bits.pos, l);
                break;
            }
            default: scale(acc, col0);
        }
        const bool refined = t.form == kFormRanked || t.lowest != nullptr;
        if (plain && !refined) softmax<true>(acc, bits, col0, any, states);
        else softmax<false>(acc, bits, col0, any, states);
    }

    // Everything between the products of a tile and their effect on this thread's sets.
    __device__ __forceinline__ void tile(TileAcc& acc, uint32_t row0, uint32_t col0, bool first_row, bool first_col,
                                         uint32_t& negatives, uint32_t& positives) {
        States states;
        load(states, row0, col0, first_row, first_col);  // early: they arrive behind the logits
        similarities(t, thread, acc, row0, col0);
        const bool plain = all_negative(t, row0, col0);
        PairBits bits = classify(t, thread, row0, col0);
        if (row0 == col0 && p.pos != nullptr) write_pairs(acc, row0, col0);
        const bool any = tile_sync_or(bits.pos != 0);  // also: the scratch memory is free
        if (!kBoth && p.extremes != 0) {
            extremes(acc, bits, any, states);
            store(states, row0, col0);
            return;
        }
        negatives += __popcll(bits.neg);
        positives += __popcll(bits.pos);
        if (any && p.col_flags != nullptr) flag_columns(thread, bits.pos, col0, p.col_flags);
        if (kBoth && t.form == kFormTriplet) {
            triplet(acc, bits, row0, col0, states);
        } else if (kBoth) {
            scale(acc, col0);
            if (plain) softmax<true>(acc, bits, col0, any, states);
            else softmax<false>(acc, bits, col0, any, states);
        } else {
            if (any) put_positives(acc, bits.pos);
            of_rows(acc, bits, row0, col0, plain, any, states);
#pragma unroll
            for (int o = 0; o < kOwned; ++o) {
                if (!any || owned(o).set == 0) continue;
#pragma unroll
                for (int w = 0; w < kWarpCols; ++w) {
                    states[o].total += scratch.total[w][owned(o).line];
                    states[o].raw += scratch.raw[w][owned(o).line];
                }
            }
        }
        store(states, row0, col0);
    }
};

// The tiles of this block.
__device__ __forceinline__ TileRect stats_rect(const PairwiseStatsParams& p) {
    return tile_rect(0, tiles_of(p.tiles.n), p.tiles.m, p.row_splits, p.col_splits);
}

template <bool kBoth, typename Sweep>
__device__ __forceinline__ void stats_tiles(const PairwiseStatsParams& p, Sweep& sweep, const TileRect& rect) {
    uint32_t negatives = 0, positives = 0;
    sweep.run([&](TileAcc& acc, uint32_t r, uint32_t c, char* scratch) {
        Statistics<kBoth> s(p, *reinterpret_cast<StatsScratch*>(scratch));
        s.tile(acc, r * kTile, c * kTile, r == rect.r, c == rect.c, negatives, positives);
    });
    if (sweep.holds()) add_counts(negatives, positives, p.counts);
}

#ifdef SIMGRAD_GROUP_TILE
template <typename T, bool kBoth>
__device__ __forceinline__ void stats_groups(const TensorMaps& maps, const PairwiseStatsParams& p) {
    extern __shared__ __align__(1024) char shared[];
    const TileRect rect = stats_rect(p);
    RectSweep<T, true> sweep(shared, maps, p.tiles.d, rect, computes(p.tiles));
    stats_tiles<kBoth>(p, sweep, rect);
}
#endif

}  // namespace
