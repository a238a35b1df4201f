// mine — hardest candidate of every row and of every column of S in one sweep over its tiles; S is never stored.
//
//   S[i, j] = (x_i . y_j) inv_x[i] inv_y[j]
//   row i:    value = max over candidates j of S[i, j], index = the lowest j that has it; column j likewise over i
//   and on request second, count, ties, sum as defined in common/mining.cuh, with threshold = min(pmin) - eps
//
//   x (n, d), y (m, d)   T: f32 | f16 | bf16, row-major, base and rows aligned to 16 bytes
//   inv_x (n), inv_y (m) f32 or null;  row_groups (n), col_groups (m) i64 or null
//   pos (min(n, m))      f32 or null: the diagonal of S
//   row_parts (planes, col_splits, n), col_parts (planes, row_splits, m): 4-byte words, common/mining.cuh
//   No output may alias an input or another output.
//
// Which (i, j) are candidates is decided by index and group alone (kSelect*, params/mine.h), never by value: a candidate of
// value -infinity counts, NaN is larger than everything, and -0 equals +0.
//
// Work    the tiles are dealt to row_splits x col_splits blocks; a block sweeps its rectangle, columns innermost. A thread
//         owns a row or a column of the tile at hand, whose state lives in the block's own partial slot.
// Launch  grid = (col_splits, row_splits), or for kSelectPair the larger of the two numbers of tiles with one split each;
//         block = 256, 98,304 bytes of dynamic shared memory.
// Bound   tensor cores (f32: FMA), 2 n m d; written: O(n row planes + m column planes), no term in n m.
// Order   per tile: maxima of values only, in a fixed tree; where one beats the running best strictly, the index is looked
//         up among the registers. Tiles come in ascending order, so the lowest index wins ties. Atomics only on places in
//         a tile, where the lowest wins; splits by shape alone: identical bits between runs, streams, and devices of one
//         architecture.
// Needs   sm_80.
#include <type_traits>

#include "common/epilogue.cuh"
#include "common/mining.cuh"

// A line is a row or a column of the tile; thread t owns row t or column t - kTile, and its state.
constexpr int kLines = 2 * kTile;
constexpr uint32_t kNowhere = 0x7fffffffu;

// Per warp and line. Kept apart from the stages because slower warps still read the last one.
struct TileMaxima {
    float rows[4][kTile];  // of the 4 warps beside each other
    float cols[2][kTile];  // of the 2 warps above each other
};

// In the freed stage, after the barrier that follows the maxima.
struct TileScratch {
    float above[kLines];      // elements not <= this are looked up; see lookup_bound()
    uint32_t found[kLines];   // lowest place of such an element in the tile
    float reference[kLines];  // maximum that gaps are measured from, or less than the threshold: nothing to count
    TileMaxima second;
    uint32_t row_members[4][kTile];  // members | ties << 16
    uint32_t col_members[2][kTile];
    TileMaxima sum;
};
static_assert(sizeof(TileScratch) <= kStageBytes, "the epilogue lives in one stage");

struct Top {
    float value;
};
struct Top2 {
    float value;
    float second;
};
__device__ __forceinline__ Top exchange(Top v, int partner) { return {exchange(v.value, partner)}; }
__device__ __forceinline__ Top2 exchange(Top2 v, int partner) {
    return {exchange(v.value, partner), exchange(v.second, partner)};
}
__device__ __forceinline__ Top join(Top a, Top b) { return {max_nan(a.value, b.value)}; }
// fminf returns the other operand for NaN, which is the smaller one in this order.
__device__ __forceinline__ Top2 join(Top2 a, Top2 b) {
    return {max_nan(a.value, b.value), max_nan(fminf(a.value, b.value), max_nan(a.second, b.second))};
}
__device__ __forceinline__ void admit(Top& t, float x) { t.value = max_nan(t.value, x); }
__device__ __forceinline__ void admit(Top2& t, float x) {
    t.second = max_nan(t.second, fminf(t.value, x));
    t.value = max_nan(t.value, x);
}
__device__ __forceinline__ void start(Top& t, float x) { t = {x}; }
__device__ __forceinline__ void start(Top2& t, float x) { t = {x, neg_infinity()}; }

// A bound that, of elements none of which beats `top`, only those equal to it exceed. -infinity: all of them do, and the
// candidates' bits tell.
__device__ __forceinline__ float lookup_bound(float top) { return top != top ? pos_infinity() : bound_below(top); }

// The block's rectangle of tiles, and where its partial results go.
struct Share {
    uint32_t r, r_end;
    uint32_t c, c_end;

    __device__ __forceinline__ explicit Share(const MineParams& p) {
        const uint32_t row_tiles = tiles_of(p.n);
        const uint32_t col_tiles = tiles_of(p.m);
        if (p.select == kSelectPair) {
            r = c = blockIdx.x;
            r_end = min(blockIdx.x + 1, row_tiles);
            c_end = min(blockIdx.x + 1, col_tiles);
            return;
        }
        r = part_begin(row_tiles, p.row_splits, blockIdx.y);
        r_end = part_begin(row_tiles, p.row_splits, blockIdx.y + 1);
        c = part_begin(col_tiles, p.col_splits, blockIdx.x);
        c_end = part_begin(col_tiles, p.col_splits, blockIdx.x + 1);
    }
};

template <typename T, bool kStats>
struct Miner {
    using Best = std::conditional_t<kStats, Top2, Top>;

    const MineParams& p;
    const float threshold;
    const TileThread thread;
    const bool owns_row = thread.index < kTile;
    const uint32_t line_in_tile = thread.index % kTile;

    __device__ __forceinline__ Miner(const MineParams& params, float threshold) : p(params), threshold(threshold) {}

    __device__ __forceinline__ uint32_t stats() const { return kStats ? p.stats : kStatsNone; }

    __device__ __forceinline__ uint64_t candidates(uint32_t row0, uint32_t col0) const {
        const int64_t* const row_groups = p.select == kSelectPair ? nullptr : p.row_groups;
        return select_elements(thread, row0, col0, p.n, p.m, row_groups, p.col_groups, [&](bool pair, bool same) {
            return p.select == kSelectNegatives ? !pair && !same : p.select == kSelectPair ? pair : same;
        });
    }

    __device__ __forceinline__ void write_pairs(const float (&acc)[4][4][4], uint32_t row0, uint32_t col0) const {
#pragma unroll
        for (int i = 0; i < 8; ++i) {
#pragma unroll
            for (int k = 0; k < 8; ++k) {
                const uint32_t row = row0 + thread.row(i);
                if (row == col0 + thread.col(k) && row < p.n && row < p.m) p.pos[row] = element(acc, i, k);
            }
        }
    }

    // Sets what is no candidate to -infinity. Returns whether a candidate is -infinity, which values alone no longer tell.
    __device__ __forceinline__ bool mask(float (&acc)[4][4][4], uint64_t candidates) const {
        bool neg_inf = false;
#pragma unroll
        for (int i = 0; i < 8; ++i) {
#pragma unroll
            for (int k = 0; k < 8; ++k) {
                float& s = element(acc, i, k);
                const bool candidate = candidates >> (8 * i + k) & 1;
                neg_inf |= candidate && s == neg_infinity();
                if (!candidate) s = neg_infinity();
            }
        }
        return neg_inf;
    }

    // Maxima of the warp's 64 rows and 32 columns; `rows` and `cols` end up as join_rows() and join_cols() leave them.
    __device__ __forceinline__ void maxima(const float (&acc)[4][4][4], Best (&rows)[8], Best (&cols)[8]) const {
#pragma unroll
        for (int i = 0; i < 8; ++i) {
#pragma unroll
            for (int k = 0; k < 8; ++k) {
                const float s = element(acc, i, k);
                if (k == 0) start(rows[i], s);
                else admit(rows[i], s);
                if (i == 0) start(cols[k], s);
                else admit(cols[k], s);
            }
        }
        const auto both = [](Best a, Best b) { return join(a, b); };
        join_rows(rows, thread, both);
        join_cols(cols, thread, both);
    }

    __device__ __forceinline__ uint32_t row_split() const { return p.select == kSelectPair ? 0 : blockIdx.y; }
    __device__ __forceinline__ uint32_t col_split() const { return p.select == kSelectPair ? 0 : blockIdx.x; }
    // Lowest place in the tile of an element that reaches its line's bound.
    __device__ __forceinline__ void look_up(const float (&acc)[4][4][4], uint64_t candidates, TileScratch& scratch) const {
#pragma unroll
        for (int i = 0; i < 8; ++i) {
            const float bound = scratch.above[thread.row(i)];
            uint32_t place = kNowhere;
#pragma unroll
            for (int k = 7; k >= 0; --k) {
                if (!(element(acc, i, k) <= bound) && (candidates >> (8 * i + k) & 1)) place = thread.col(k);
            }
            if (place != kNowhere) atomicMin(&scratch.found[thread.row(i)], place);
        }
#pragma unroll
        for (int k = 0; k < 8; ++k) {
            const float bound = scratch.above[kTile + thread.col(k)];
            uint32_t place = kNowhere;
#pragma unroll
            for (int i = 7; i >= 0; --i) {
                if (!(element(acc, i, k) <= bound) && (candidates >> (8 * i + k) & 1)) place = thread.row(i);
            }
            if (place != kNowhere) atomicMin(&scratch.found[kTile + thread.col(k)], place);
        }
    }

    // Members and sum of one of the thread's lines. Elements equal to the reference are counted and not summed: their gap is
    // 0, also between two infinities. Without a branch per element: the lines of a warp differ in which are members.
    template <bool kRows, bool kSig>
    __device__ __forceinline__ void count_line(const float (&acc)[4][4][4], uint64_t candidates, float reference, int line,
                                               uint32_t& members, float& sum) const {
        members = 0;
        sum = 0.0f;
        if (reference < threshold) return;
        const float scale = -p.beta * kLog2E;
#pragma unroll
        for (int at = 0; at < 8; ++at) {
            const int i = kRows ? line : at;
            const int k = kRows ? at : line;
            const float s = element(acc, i, k);
            const bool member = s >= threshold && (candidates >> (8 * i + k) & 1);
            const bool tie = s >= reference;
            const float gap = reference - s;
            const float term = kSig ? sig_term(gap, scale) : gap;
            members += member ? (tie ? 0x10001u : 1u) : 0u;
            sum += member && !tie ? term : 0.0f;
        }
    }

    template <bool kSig>
    __device__ __forceinline__ void count_members(const float (&acc)[4][4][4], uint64_t candidates,
                                                  TileScratch& scratch) const {
        const auto add = [](auto a, auto b) { return a + b; };
        uint32_t members[8];
        float sum[8];
#pragma unroll
        for (int i = 0; i < 8; ++i) {
            count_line<true, kSig>(acc, candidates, scratch.reference[thread.row(i)], i, members[i], sum[i]);
        }
        join_rows(members, thread, add);
        join_rows(sum, thread, add);
#pragma unroll
        for (int h = 0; h < 2; ++h) {
            scratch.row_members[thread.warp_col()][thread.joined_row(h)] = members[h];
            scratch.sum.rows[thread.warp_col()][thread.joined_row(h)] = sum[h];
        }
#pragma unroll
        for (int k = 0; k < 8; ++k) {
            count_line<false, kSig>(acc, candidates, scratch.reference[kTile + thread.col(k)], k, members[k], sum[k]);
        }
        join_cols(members, thread, add);
        join_cols(sum, thread, add);
        scratch.col_members[thread.warp_row()][thread.joined_col()] = members[0];
        scratch.sum.cols[thread.warp_row()][thread.joined_col()] = sum[0];
    }

    // The best of the tile's part of this thread's line, joined over the warps in order.
    __device__ __forceinline__ Best best_of(const TileMaxima& value, const TileMaxima& second) const {
        const uint32_t t = line_in_tile;
        const auto read = [&](float v, float s) {
            if constexpr (kStats) return Best{v, s};
            else return Best{v};
        };
        Best best = owns_row ? read(value.rows[0][t], second.rows[0][t]) : read(value.cols[0][t], second.cols[0][t]);
        if (owns_row) {
#pragma unroll
            for (int w = 1; w < 4; ++w) best = join(best, read(value.rows[w][t], second.rows[w][t]));
        } else {
            best = join(best, read(value.cols[1][t], second.cols[1][t]));
        }
        return best;
    }

    // The tile's part of `line`, in which `beaten` says whether the tile's maximum `top` is the line's. Returns whether the
    // state changed.
    __device__ __forceinline__ bool update(LineState& line, float top, bool beaten, uint32_t base, const TileMaxima& values,
                                           const TileScratch& scratch) const {
        LineState tile = empty_line();
        tile.value = top;
        if constexpr (kStats) {
            const uint32_t t = line_in_tile;
            if (beaten) tile.second = best_of(values, scratch.second).second;
            if (stats() >= kStatsLin) {
                uint32_t packed = 0;
                if (owns_row) {
#pragma unroll
                    for (int w = 0; w < 4; ++w) {
                        packed += scratch.row_members[w][t];
                        tile.sum += scratch.sum.rows[w][t];
                    }
                } else {
#pragma unroll
                    for (int w = 0; w < 2; ++w) {
                        packed += scratch.col_members[w][t];
                        tile.sum += scratch.sum.cols[w][t];
                    }
                }
                tile.count = packed & 0xffffu;
                tile.ties = packed >> 16;
            }
        }
        if (!beaten) {
            // All of the tile's candidates are others, and their gaps are already measured from the line's own maximum.
            line.second = max_nan(line.second, top);
            line.count += tile.count;
            line.ties += tile.ties;
            line.sum += tile.sum + (stats() == kStatsSig ? float(tile.ties) : 0.0f);
            return kStats;
        }
        const uint32_t place = scratch.found[thread.index];
        if (place == kNowhere) return false;  // every -infinity of this line is one that is no candidate
        tile.index = int32_t(base + place);
        if (kStats && top >= threshold && tile.ties > 0) {  // the maximum counted itself
            tile.count -= 1;
            tile.ties -= 1;
            if (stats() == kStatsSig) tile.sum += float(tile.ties);
        }
        line = merge_lines(line, tile, {stats(), threshold, p.beta});
        return true;
    }

    // This thread's line in the tile whose lines start at `first_line`, as the block has left it in its partial slot.
    __device__ __forceinline__ LineState load(uint32_t first_line) const {
        const uint32_t line = first_line + line_in_tile;
        if (line >= (owns_row ? p.n : p.m)) return empty_line();
        return owns_row ? load_line(p.row_parts, p.col_splits, p.n, col_split(), line, stats())
                        : load_line(p.col_parts, p.row_splits, p.m, row_split(), line, stats());
    }
    __device__ __forceinline__ void store(uint32_t first_line, const LineState& state) const {
        const uint32_t line = first_line + line_in_tile;
        if (line >= (owns_row ? p.n : p.m)) return;
        if (owns_row) store_line(p.row_parts, p.col_splits, p.n, col_split(), line, stats(), state);
        else store_line(p.col_parts, p.row_splits, p.m, row_split(), line, stats(), state);
    }

    // Everything between the products of a tile and their effect on this thread's line; `first` if it is the line's first.
    __device__ __forceinline__ void tile(float (&acc)[4][4][4], uint32_t row0, uint32_t col0, bool first,
                                         TileMaxima& values, TileScratch& scratch) const {
        const uint32_t first_line = owns_row ? row0 : col0;
        LineState line = first ? empty_line() : load(first_line);  // early: it arrives behind the maxima
        scale_tile(acc, thread, p.inv_x, p.inv_y, row0, col0, p.n, p.m);
        uint64_t bits = ~uint64_t(0);
        bool neg_inf = true;
        const bool all = p.select == kSelectNegatives && p.row_groups == nullptr && row0 != col0 && row0 + kTile <= p.n &&
                         col0 + kTile <= p.m;
        if (!all) {
            if (row0 == col0 && p.pos != nullptr) write_pairs(acc, row0, col0);
            bits = candidates(row0, col0);
            neg_inf = mask(acc, bits);
        }

        Best rows[8];
        Best cols[8];
        maxima(acc, rows, cols);
#pragma unroll
        for (int h = 0; h < 2; ++h) values.rows[thread.warp_col()][thread.joined_row(h)] = rows[h].value;
        values.cols[thread.warp_row()][thread.joined_col()] = cols[0].value;
        neg_inf = __syncthreads_or(neg_inf);  // the maxima are in place, and the last stage is free

        const float top = best_of(values, values).value;
        const bool beaten = value_beats(top, line.value) || (neg_inf && line.index < 0 && top == neg_infinity());
        scratch.above[thread.index] = beaten ? lookup_bound(top) : pos_infinity();
        scratch.found[thread.index] = kNowhere;
        if constexpr (kStats) {
            // Below the threshold: the tile has no member of this line.
            scratch.reference[thread.index] = top < threshold ? neg_infinity() : beaten ? top : line.value;
#pragma unroll
            for (int h = 0; h < 2; ++h) scratch.second.rows[thread.warp_col()][thread.joined_row(h)] = rows[h].second;
            scratch.second.cols[thread.warp_row()][thread.joined_col()] = cols[0].second;
        }
        const bool any = __syncthreads_or(beaten);  // bounds and references are in place
        if (any) look_up(acc, bits, scratch);
        if constexpr (kStats) {
            if (stats() == kStatsLin) count_members<false>(acc, bits, scratch);
            if (stats() == kStatsSig) count_members<true>(acc, bits, scratch);
        }
        if (any || stats() >= kStatsLin) __syncthreads();  // places and sums are in place
        bool changed = first;
        if (beaten || kStats) changed |= update(line, top, beaten, owns_row ? col0 : row0, values, scratch);
        if (changed) store(first_line, line);
    }
};

template <typename T, bool kStats>
__device__ __forceinline__ void mine_body(const MineParams& p) {
    extern __shared__ __align__(128) char stages[];
    __shared__ TileMaxima values;
    const Share share(p);
    const TileShape shape{p.ldx * int64_t(sizeof(T)), p.ldy * int64_t(sizeof(T)), p.n, p.m, p.d * uint32_t(sizeof(T))};
    TileStream<T, RectCursor> stream(stages, shape,
                                     {static_cast<const char*>(p.x), static_cast<const char*>(p.y), share.r, share.r_end,
                                      share.c, share.c, share.c_end});
    float threshold = 0.0f;
    if (kStats && p.stats >= kStatsLin) {
        // The maxima are not written before the first barrier of accumulate().
        threshold = block_threshold(p.pmin, p.pmin_count, p.eps, values.rows[0]);
    }

    for (uint32_t r = share.r; r < share.r_end; ++r) {
        for (uint32_t c = share.c; c < share.c_end; ++c) {
            float acc[4][4][4];
            clear_tile(acc);
            stream.accumulate(acc);
            const Miner<T, kStats> miner(p, threshold);
            const bool first = miner.owns_row ? c == share.c : r == share.r;
            miner.tile(acc, r * kTile, c * kTile, first, values, *reinterpret_cast<TileScratch*>(stream.scratch()));
        }
    }
    // Without a tile nothing has said yet that the lines are empty.
    if (share.r >= share.r_end || share.c >= share.c_end) {
        const Miner<T, kStats> miner(p, threshold);
        for (uint32_t r = share.r; r < share.r_end; ++r) {
            if (miner.owns_row) miner.store(r * kTile, empty_line());
        }
        for (uint32_t c = share.c; c < share.c_end; ++c) {
            if (!miner.owns_row) miner.store(c * kTile, empty_line());
        }
    }
}

#define MINE(SUFFIX, T, STATS, BLOCKS)                                \
    extern "C" __global__ void __launch_bounds__(kTileThreads, BLOCKS) \
        mine_##SUFFIX(const __grid_constant__ MineParams p) {          \
        mine_body<T, STATS>(p);                                        \
    }
MINE(f32, float, false, kTileBlocksOf<float>)
MINE(f16, __half, false, kTileBlocks)
MINE(bf16, __nv_bfloat16, false, kTileBlocks)
MINE(stats_f32, float, true, 1)
MINE(stats_f16, __half, true, 1)
MINE(stats_bf16, __nv_bfloat16, true, 1)

// mine_merge — the standalone operation's result: one thread per row, then per column, merges the splits in ascending order.
// Launch  grid = ceil((n + m) / 256), block = 256.
extern "C" __global__ void __launch_bounds__(256) mine_merge(const __grid_constant__ MineMergeParams p) {
    const uint64_t at = uint64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (at >= uint64_t(p.n) + p.m) return;
    const bool is_row = at < p.n;
    const uint32_t line = uint32_t(is_row ? at : at - p.n);
    const StatsRule rule{p.stats, 0.0f, 0.0f};
    const LineState s = is_row ? merged_line(p.row_parts, p.col_splits, p.n, line, rule)
                               : merged_line(p.col_parts, p.row_splits, p.m, line, rule);
    (is_row ? p.row_value : p.col_value)[line] = s.value;
    (is_row ? p.row_index : p.col_index)[line] = s.index;
    float* const second = is_row ? p.row_second : p.col_second;
    if (second != nullptr) second[line] = s.second;
    int32_t* const rank = is_row ? p.row_rank : p.col_rank;
    if (rank != nullptr) rank[line] = s.index < 0 ? -1 : 0;
}
