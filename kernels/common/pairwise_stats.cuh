// Included by the files of kernels for each engine, behind its sweep (tile.cuh, group_tile.cuh).
#pragma once
#include "common/pairwise_sets.cuh"

namespace {

template <bool kBoth>
struct Statistics : TileSets<kBoth> {
    using Base = TileSets<kBoth>;
    using Base::line;
    using Base::of_columns;
    using Base::of_set;
    using Base::scratch;
    using Base::set;
    using Base::thread;

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

    // --- this thread's set ----------------------------------------------------------------------------------------------

    __device__ __forceinline__ uint32_t lines() const { return of_columns() ? t.m : t.n; }
    __device__ __forceinline__ uint32_t splits() const { return of_columns() ? p.row_splits : p.col_splits; }
    __device__ __forceinline__ uint32_t split() const { return of_columns() ? blockIdx.y : blockIdx.x; }
    __device__ __forceinline__ uint32_t* parts() const { return set == 0 ? p.row_parts : p.other_parts; }
    __device__ __forceinline__ SetState load(uint32_t first_line, bool first) const {
        const uint32_t at = first_line + line;
        return first || at >= lines() ? empty_set() : load_set(parts(), splits(), lines(), split(), at);
    }
    __device__ __forceinline__ void store(uint32_t first_line, const SetState& s) const {
        const uint32_t at = first_line + line;
        if (at < lines()) store_set(parts(), splits(), lines(), split(), at, s);
    }

    // The tile of a form with a softmax. `any` tells whether the block has positives here; `q` is what a column's logits are
    // larger by than the tile's, which are those of rows.
    template <bool kPlain>
    __device__ __forceinline__ void softmax(TileAcc& acc, const PairBits& bits, bool any, float q, SetState& state) const {
        const bool weighted = !kBoth && t.form == kFormRanked;
        this->template row_tops<kPlain>(acc, bits.neg, 0);
        if (kBoth) this->template col_tops<kPlain>(acc, bits.neg);
        else if (any) this->template row_tops<false>(acc, bits.pos, 1);
        tile_sync();  // the largest logits are in place
        const bool mine = set == 0 || kBoth || any;
        const float before = state.max;
        if (mine) state.max = max_nan(before, top_over_warps() + q);
        // Without a finite logit every term is 2^-infinity.
        const bool none = state.max == neg_infinity();
        const float reference = none ? 0.0f : state.max - q;
        scratch.reference[set][line] = reference;
        if (kBoth) scratch.references.put(thread, none ? neg_infinity() : reference, none ? neg_infinity() : -reference);
        tile_sync();  // the references are in place
        float scale_of_sum = 1.0f;
        if (kBoth) {
            const bool near = scratch.references.near();
            const float origin = scratch.references.highest_row();
            this->template both_sums<kPlain>(acc, bits.neg, near, origin);
            // That of a column without a member is of nothing.
            if (near && set == 1) scale_of_sum = exp2_fast(fminf(origin - reference, kNear));
        } else {
            this->template row_sums<kPlain>(acc, bits.neg, 0, weighted);
            if (any) this->template row_sums<false>(acc, bits.pos, 1, false);
        }
        tile_sync();  // the sums are in place
        if (!mine) return;
        const float shift = shift_of(before, state.max);
        state.sum = state.sum * shift + this->sum_over_warps(scratch.sum) * scale_of_sum;
        if (of_columns()) return;
        if (set == 1) state.aux += this->sum_over_warps(scratch.aux);
        else if (weighted) state.aux = state.aux * shift + this->sum_over_warps(scratch.aux);
        state.count += this->sum_over_warps(scratch.count);
    }
    __device__ __forceinline__ float top_over_warps() const {
        return this->over_warps(scratch.top, [](float a, float b) { return max_nan(a, b); });
    }

    __device__ __forceinline__ void add_terms(bool any, SetState& state) const {
        tile_sync();  // the sums are in place
        if (set == 1 && !kBoth && !any) return;
        state.sum += this->sum_over_warps(scratch.sum);
        state.count += this->sum_over_warps(scratch.count);
    }

    __device__ __forceinline__ void triplet(const TileAcc& acc, const PairBits& bits, uint32_t row0, uint32_t col0,
                                            SetState& state) const {
        const uint32_t pairs = min(t.n, t.m);
        // A line without a pair has no violation.
        const auto own = [&](uint32_t at) { return at < pairs ? t.pos[at] : pos_infinity(); };
        const auto violated = [](float v) { return !(v <= 0.0f); };
        float of_row[kThreadRows], of_col[kThreadCols];
#pragma unroll
        for (int i = 0; i < kThreadRows; ++i) of_row[i] = own(row0 + thread.row(i));
        this->term_rows(acc, bits.neg, 0, [&](float s, int i) { return t.c[0] + s - of_row[i]; }, violated);
#pragma unroll
        for (int k = 0; k < kThreadCols; ++k) of_col[k] = own(col0 + thread.col(k));
        this->term_cols(acc, bits.neg, [&](float s, int k) { return t.c[0] + s - of_col[k]; }, violated);
        add_terms(true, state);
    }

    __device__ __forceinline__ void extremes(TileAcc& acc, const PairBits& bits, bool any, SetState& state) const {
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
        if (set == 0 || any) state.max = fmaxf(state.max, top_over_warps());
    }

    __device__ __forceinline__ void of_rows(TileAcc& acc, PairBits& bits, uint32_t row0, uint32_t col0, bool plain,
                                            bool any, SetState& state) const {
        const auto active = [](float v) { return !(v <= 0.0f); };
        const auto same = [](float v, int) { return v; };
        const float c0 = t.c[0], c1 = t.c[1];
        switch (t.form) {
            case kFormContrastive:
                transform(acc, bits.pos, [&](float s) { return s - c1; }, [&](float s) { return c0 - s; });
                this->term_rows(acc, bits.neg, 0, same, active);
                if (any) this->term_rows(acc, bits.pos, 1, same, active);
                return add_terms(any, state);
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
        if (plain && !refined) softmax<true>(acc, bits, any, 0.0f, state);
        else softmax<false>(acc, bits, any, 0.0f, state);
    }

    // Everything between the products of a tile and their effect on this thread's set.
    __device__ __forceinline__ void tile(TileAcc& acc, uint32_t row0, uint32_t col0, bool first_row, bool first_col,
                                         uint32_t& negatives, uint32_t& positives) {
        const uint32_t first_line = of_columns() ? col0 : row0;
        SetState state = load(first_line, of_columns() ? first_row : first_col);  // early: it arrives behind the logits
        const float q = of_columns() ? log_q_of(t, col0 + line) : 0.0f;
        similarities(t, thread, acc, row0, col0);
        const bool plain = all_negative(t, row0, col0);
        PairBits bits = classify(t, thread, row0, col0);
        if (row0 == col0 && p.pos != nullptr) write_pairs(acc, row0, col0);
        const bool any = tile_sync_or(bits.pos != 0);  // also: the scratch memory is free
        if (!kBoth && p.extremes != 0) {
            extremes(acc, bits, any, state);
            store(first_line, state);
            return;
        }
        negatives += __popcll(bits.neg);
        positives += __popcll(bits.pos);
        if (any && p.col_flags != nullptr) flag_columns(thread, bits.pos, col0, p.col_flags);
        if (kBoth && t.form == kFormTriplet) {
            triplet(acc, bits, row0, col0, state);
        } else if (kBoth) {
            scale(acc, col0);
            if (plain) softmax<true>(acc, bits, any, q, state);
            else softmax<false>(acc, bits, any, q, state);
        } else {
            if (any) put_positives(acc, bits.pos);
            of_rows(acc, bits, row0, col0, plain, any, state);
            if (any && set == 1) {
#pragma unroll
                for (int w = 0; w < kWarpCols; ++w) {
                    state.total += scratch.total[w][line];
                    state.raw += scratch.raw[w][line];
                }
            }
        }
        store(first_line, state);
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
    RectSweep<T> sweep(shared, maps, p.tiles.d, rect, computes(p.tiles));
    stats_tiles<kBoth>(p, sweep, rect);
}
#endif

}  // namespace
