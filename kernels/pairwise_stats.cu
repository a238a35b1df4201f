// pairwise_stats — what the weights of a pairwise objective need to know of every anchor, in one sweep over the tiles of S.
//
//   S[i, j] = (x_i . y_j) inv_x[i] inv_y[j]; not stored, or where `keep` says so stored, or loaded
//   per row: the states of its negatives and of its positives; both sides: of the negatives of every row and every column
//   (states: common/pairwise.cuh; logits and terms of each form: docs/maths.md). With `extremes` only the largest negative
//   and the smallest positive of every row, which a miner compares with (NaN left out).
//
//   x (n, d), y (m, d)    T: f32 | f16 | bf16, row-major, base and rows aligned to 16 bytes
//   inv_x (n), inv_y (m)  f32 or null;  groups i64, masks u8, log_q f32: see params/pairwise.h
//   row_parts, other_parts (6, splits, lines): 4-byte words;  pos (min(n, m)) f32;  col_flags (m) u32;  counts (2) u64
//   No output may alias an input or another output.
//
// Work    the tiles are dealt to row_splits x col_splits blocks; a block sweeps its rectangle, columns innermost. Thread t
//         owns set t of the tile at hand (128 sets of the rows' negatives, then 128 of the columns' negatives or the rows'
//         positives), whose state lives in the block's own partial slot.
// Launch  grid = (col_splits, row_splits), block = 256, 98,304 bytes of dynamic shared memory.
// Bound   tensor cores (f32: FMA), 2 n m d, and one exponential per element; written: O(planes splits (n + m)).
// Order   a thread's elements ascending, then a fixed tree, then the warps, then the tiles ascending. Integer atomics alone
//         (counts of pairs); splits by shape alone: identical bits between runs, streams, devices of one architecture.
// Needs   sm_80.
#include "common/tile.cuh"
#include "common/pairwise_sets.cuh"

namespace {

template <bool kBoth>
struct Statistics : TileSets<kBoth> {
    using Base = TileSets<kBoth>;
    using Base::line;
    using Base::q;
    using Base::scratch;
    using Base::set;
    using Base::thread;

    const PairwiseStatsParams& p;
    const PairwiseTiles& t;

    __device__ __forceinline__ Statistics(const PairwiseStatsParams& params, StatsScratch& s)
        : Base(s), p(params), t(params.tiles) {}

    // --- what a thread knows of its own 8 rows and 8 columns ----------------------------------------------------------

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
    __device__ __forceinline__ void put_positives(const TileAcc& acc, uint64_t pos) const {
        float total[8];
        uint32_t raw[8];
#pragma unroll
        for (int i = 0; i < kThreadRows; ++i) {
            total[i] = 0.0f;
            raw[i] = __popc(line_bits(pos, i));
#pragma unroll
            for (int k = 0; k < kThreadCols; ++k) total[i] += pos >> bit_at(i, k) & 1 ? element(acc, i, k) : 0.0f;
        }
        this->put_rows(total, scratch.total);
        this->put_rows(raw, scratch.raw);
    }

    // Every similarity becomes what is maximised or summed of it.
    template <typename Negative, typename Positive>
    static __device__ __forceinline__ void transform(TileAcc& acc, uint64_t pos, Negative neg, Positive of_pos) {
#pragma unroll
        for (int i = 0; i < kThreadRows; ++i) {
            float s[8];
#pragma unroll
            for (int k = 0; k < kThreadCols; ++k) {
                s[k] = element(acc, i, k);
                element(acc, i, k) = neg(s[k]);
            }
            if (line_bits(pos, i) == 0) continue;
#pragma unroll
            for (int k = 0; k < kThreadCols; ++k) {
                if (pos >> bit_at(i, k) & 1) element(acc, i, k) = of_pos(s[k]);
            }
        }
    }
    template <typename Logits>
    static __device__ __forceinline__ void transform(TileAcc& acc, uint64_t pos, const Logits& l) {
        transform(acc, pos, [&](float s) { return l.neg(s); }, [&](float s) { return l.pos(s); });
    }

    // --- this thread's set ----------------------------------------------------------------------------------------------

    __device__ __forceinline__ bool of_columns() const { return kBoth && set == 1; }
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

    // The tile of a form with a softmax. `any` tells whether the block has positives here.
    template <bool kPlain>
    __device__ __forceinline__ void softmax(TileAcc& acc, const PairBits& bits, bool any, SetState& state) const {
        const bool weighted = !kBoth && t.form == kFormRanked;
        this->template row_tops<kPlain>(acc, bits.neg, scratch.top[0]);
        if (kBoth) this->template col_tops<kPlain>(acc, bits.neg, scratch.top[1]);
        else if (any) this->template row_tops<false>(acc, bits.pos, scratch.top[1]);
        tile_sync();  // the largest logits are in place
        const bool mine = set == 0 || kBoth || any;
        const float before = state.max;
        if (mine) state.max = max_nan(before, this->top_over_warps());
        // Without a finite logit every term is 2^-infinity.
        scratch.reference[set][line] = state.max == neg_infinity() ? 0.0f : state.max;
        tile_sync();  // the references are in place
        if (kBoth) {
            this->template both_sums<kPlain>(acc, bits.neg);
        } else {
            this->template row_sums<kPlain>(acc, bits.neg, 0, weighted);
            if (any) this->template row_sums<false>(acc, bits.pos, 1, false);
        }
        tile_sync();  // the sums are in place
        if (!mine) return;
        const float shift = shift_of(before, state.max);
        state.sum = state.sum * shift + this->over_warps(scratch.sum);
        if (of_columns()) return;
        if (set == 1) state.aux += this->over_warps(scratch.aux);
        else if (weighted) state.aux = state.aux * shift + this->over_warps(scratch.aux);
        state.count += this->over_warps(scratch.count);
    }

    __device__ __forceinline__ void add_terms(bool any, SetState& state) const {
        tile_sync();  // the sums are in place
        if (set == 1 && !kBoth && !any) return;
        state.sum += this->over_warps(scratch.sum);
        state.count += this->over_warps(scratch.count);
    }

    __device__ __forceinline__ void triplet(const TileAcc& acc, const PairBits& bits, uint32_t row0, uint32_t col0,
                                            SetState& state) const {
        const uint32_t pairs = min(t.n, t.m);
        // A line without a pair has no violation.
        const auto own = [&](uint32_t at) { return at < pairs ? t.pos[at] : pos_infinity(); };
        const auto violated = [](float v) { return !(v <= 0.0f); };
        float pair[8];
#pragma unroll
        for (int i = 0; i < kThreadRows; ++i) pair[i] = own(row0 + thread.row(i));
        this->term_rows(acc, bits.neg, 0, [&](float s, int i) { return t.c[0] + s - pair[i]; }, violated);
#pragma unroll
        for (int k = 0; k < kThreadCols; ++k) pair[k] = own(col0 + thread.col(k));
        this->term_cols(acc, bits.neg, [&](float s, int k) { return t.c[0] + s - pair[k]; }, violated);
        add_terms(true, state);
    }

    __device__ __forceinline__ void extremes(TileAcc& acc, const PairBits& bits, bool any, SetState& state) const {
        // fmaxf leaves NaN out.
        const auto tops = [&](uint64_t which, bool negate, float(&to)[4][kTile]) {
            float v[8];
#pragma unroll
            for (int i = 0; i < kThreadRows; ++i) {
                v[i] = neg_infinity();
#pragma unroll
                for (int k = 0; k < kThreadCols; ++k) {
                    const float s = element(acc, i, k);
                    v[i] = fmaxf(v[i], which >> bit_at(i, k) & 1 ? (negate ? -s : s) : neg_infinity());
                }
            }
            join_rows(v, thread, [](float a, float b) { return fmaxf(a, b); });
            to[thread.warp_col()][thread.joined_row(0)] = v[0];
            to[thread.warp_col()][thread.joined_row(1)] = v[1];
        };
        tops(bits.neg, false, scratch.top[0]);
        if (any) tops(bits.pos, true, scratch.top[1]);
        tile_sync();  // the extremes are in place
        if (set == 0 || any) state.max = fmaxf(state.max, this->top_over_warps());
    }

    __device__ __forceinline__ void of_rows(TileAcc& acc, PairBits& bits, uint32_t row0, bool plain, bool any,
                                            SetState& state) const {
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
                    if (line_bits(bits.pos, i) != 0) keep_row(acc, bits.pos, i, [&](float s) { return active(l.pos(s)); });
                }
                transform(acc, bits.pos, l);
                break;
            }
            default: transform(acc, 0, [&](float s) { return c0 * s; }, [&](float s) { return s; });
        }
        const bool refined = t.form == kFormRanked || t.lowest != nullptr;
        if (plain && !refined) softmax<true>(acc, bits, any, state);
        else softmax<false>(acc, bits, any, state);
    }

    // Everything between the products of a tile and their effect on this thread's set.
    __device__ __forceinline__ void tile(TileAcc& acc, uint32_t row0, uint32_t col0, bool first_row, bool first_col,
                                         uint32_t& negatives, uint32_t& positives) {
        const uint32_t first_line = of_columns() ? col0 : row0;
        SetState state = load(first_line, of_columns() ? first_row : first_col);  // early: it arrives behind the logits
        similarities(t, thread, acc, row0, col0);
        const bool plain = all_negative(t, row0, col0) && t.log_q == nullptr;
        PairBits bits = classify(t, thread, row0, col0);
        if (row0 == col0 && p.pos != nullptr) write_pairs(acc, row0, col0);
        const bool any = __syncthreads_or(bits.pos != 0);  // also: nobody reads the last stage
        if (!kBoth && p.extremes != 0) {
            extremes(acc, bits, any, state);
            store(first_line, state);
            return;
        }
        negatives += __popcll(bits.neg);
        positives += __popcll(bits.pos);
        if (any && p.col_flags != nullptr) flag_columns(thread, bits.pos, col0, p.col_flags);
        load_log_q(t, thread, col0, q);
        if (kBoth && t.form == kFormTriplet) {
            triplet(acc, bits, row0, col0, state);
        } else if (kBoth) {
            transform(acc, 0, [&](float s) { return t.c[0] * s; }, [&](float s) { return s; });
            if (plain) softmax<true>(acc, bits, any, state);
            else softmax<false>(acc, bits, any, state);
        } else {
            if (any) put_positives(acc, bits.pos);
            of_rows(acc, bits, row0, plain, any, state);
            if (any && set == 1) {
                for (int w = 0; w < 4; ++w) {
                    state.total += scratch.total[w][line];
                    state.raw += scratch.raw[w][line];
                }
            }
        }
        store(first_line, state);
    }
};

template <typename T, bool kBoth>
__device__ __forceinline__ void stats_body(const PairwiseStatsParams& p) {
    extern __shared__ __align__(128) char stages[];
    const PairwiseTiles& t = p.tiles;
    const uint32_t row_tiles = tiles_of(t.n), col_tiles = tiles_of(t.m);
    const uint32_t r_begin = part_begin(row_tiles, p.row_splits, blockIdx.y);
    const uint32_t r_end = part_begin(row_tiles, p.row_splits, blockIdx.y + 1);
    const uint32_t c_begin = part_begin(col_tiles, p.col_splits, blockIdx.x);
    const uint32_t c_end = part_begin(col_tiles, p.col_splits, blockIdx.x + 1);
    const TileShape shape{t.ldx * int64_t(sizeof(T)), t.ldy * int64_t(sizeof(T)), t.n, t.m, t.d * uint32_t(sizeof(T))};
    TileStream<T, RectCursor> stream(
        stages, shape, {static_cast<const char*>(t.x), static_cast<const char*>(t.y), computes(t) ? r_begin : r_end, r_end, c_begin, c_begin, c_end});
    uint32_t negatives = 0, positives = 0;
    for (uint32_t r = r_begin; r < r_end; ++r) {
        for (uint32_t c = c_begin; c < c_end; ++c) {
            TileAcc acc;
            for (int e = 0; e < kThreadElements; ++e) acc[e] = 0.0f;
            if (computes(t)) stream.accumulate(acc);
            Statistics<kBoth> s(p, *reinterpret_cast<StatsScratch*>(stream.scratch()));
            s.tile(acc, r * kTile, c * kTile, r == r_begin, c == c_begin, negatives, positives);
        }
    }
    add_counts(negatives, positives, p.counts);
}

}  // namespace

#define STATS(SUFFIX, T, BOTH)                                            \
    extern "C" __global__ void __launch_bounds__(kTileThreads, 1)          \
        pairwise_stats_##SUFFIX(const __grid_constant__ PairwiseStatsParams p) { \
        stats_body<T, BOTH>(p);                                            \
    }
STATS(f32, float, false)
STATS(f16, __half, false)
STATS(bf16, __nv_bfloat16, false)
STATS(both_f32, float, true)
STATS(both_f16, __half, true)
STATS(both_bf16, __nv_bfloat16, true)
