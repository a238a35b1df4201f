// mine_screen — mining of f32 rows by similarities of rows rounded to 16 bits, which tell who comes into question, and those
// again in f32. Values, indices and pairs' similarities are those of mine_f32.
//
//   x~, y~ = x, y rounded to T,  S~ = x~ . y~ on tensor cores,  S = x . y as mine_f32 adds it up
//   |S~[i, j] - S[i, j]| <= D_ij = e_i N_j + N_i h_j + K N_i N_j
//     e_i >= ||x_i - x~_i||, h_j >= ||y_j - y~_j||, N >= norms of the rows before and after; all measured
//     K = (2 d + 64) 2^-23, more than both sums of d products can be off: docs/kernels.md
//   With D_i = e_i max N_j + N_i max h_j + K N_i max N_j: whatever is largest in row i of S is in row i of S~ at least
//   max_j S~[i, j] - 2 D_i, and so is all that equals it. Columns likewise.
//
//   x (n, d), y (m, d)  f32, normalised or not, rows aligned to 16 bytes;  T: f16 for normalised rows, else bf16
//
// In the order of their launches, with mine_<T> between the first two:
//   screen_rows_<T>   x~, y~, N, e, and the largest of them
//   screen_bounds     max S~ - 2 D of every row and column
//   mine_screen_<T>   the elements of S~ that reach the bound of their row or column, and are negatives: a list
//   screen_rescore    S of those and of the pairs in f32; 64-bit keys of rows and columns (common/mining.cuh)
//   mine_f32          only where a row was not fit for this or the list too short: everything, as if nothing had been
//   mine_merge        from whichever it was
// A zero row's similarities are all 0, and its maximum is the one of the rounded rows.
// Sums of squares that underflow are covered by 2^-60 on top of every norm, and products by 2^-96 on top of D.
//
// Launch  rows: grid = min(ceil((n + m) / 8), 1024), block = 256; bounds: ceil((n + m, both padded) / 256), block = 256;
//         mine_screen_<T>: as mine_<T>; rescore: a number of blocks by the shape, block = 256.
// Bound   tensor cores: twice 2 n m d. Written: rounded rows, 8 bytes per candidate.
// Order   the list has any order; what is made of it is a maximum of integer keys. The result has identical bits between
//         runs, streams and devices, and those of mine_f32; the number of candidates between runs and streams.
// Needs   sm_80.
#include "common/tile.cuh"
#include "common/mine_screen.cuh"
#include "common/mining.cuh"
#include "common/row.cuh"

constexpr uint32_t kRowWarps = 8;
constexpr uint32_t kRowThreads = 32 * kRowWarps;
// 2^-60: beside squares of numbers whose squares underflow. 2^60: products of two such norms are finite.
constexpr float kNormFloor = 8.67361738e-19f;
constexpr float kNormLimit = 1.15292150e18f;
constexpr float kProductFloor = 1.26217745e-29f;  // 2^-96
constexpr float kSumSlack = 1.0f + 1.0f / 256.0f;  // a sum of 2^20 squares is off by less than 2^-9 of itself

template <typename T>
__device__ __forceinline__ void screen_rows(const ScreenRowsParams& p) {
    __shared__ float largest[4][kRowWarps];
    float most[4] = {};  // norms of X and of Y, errors of X and of Y
    bool fit = true;
    const uint32_t lines = p.n + p.m;
    for (uint64_t at = blockIdx.x * kRowWarps + warp_id(); at < lines; at += gridDim.x * kRowWarps) {
        const bool of_y = at >= p.n;
        const float* from = of_y ? p.y + (at - p.n) * p.ldy : p.x + at * p.ldx;  // (d)
        T* to = of_y ? static_cast<T*>(p.y_screen) + (at - p.n) * p.ld : static_cast<T*>(p.x_screen) + at * p.ld;  // (ld)
        float squares = 0.0f, lost = 0.0f;
        bool zero = true;  // not to be seen from squares, which underflow
        for (uint32_t col = lane_id() * 8; col < p.ld; col += 32 * 8) {
            Packed<T> packed;
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                float v[4];
                load_vector(from, col + 4 * half, p.d, true, v);
#pragma unroll
                for (int i = 0; i < 4; ++i) {
                    const T rounded = from_f32<T>(v[i]);
                    const float rest = v[i] - to_f32(rounded);
                    packed.lanes[4 * half + i] = rounded;
                    zero &= v[i] == 0.0f;
                    squares = fmaf(v[i], v[i], squares);
                    lost = fmaf(rest, rest, lost);
                }
            }
            *reinterpret_cast<uint4*>(to + col) = packed.bits;
        }
        const float error = fmaf(sqrtf(warp_sum(lost)), kSumSlack, kNormFloor);
        const float norm = fmaf(sqrtf(warp_sum(squares)), kSumSlack, kNormFloor) + error;
        zero = __all_sync(kFullWarp, zero);
        if (lane_id() == 0) p.norm[at] = zero ? 0.0f : norm, p.error[at] = zero ? 0.0f : error;
        fit &= norm < kNormLimit;  // not if NaN
        most[of_y] = fmaxf(most[of_y], norm);
        most[2 + of_y] = fmaxf(most[2 + of_y], error);
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        if (lane_id() == 0) largest[i][warp_id()] = most[i];
    }
    const bool all_fit = __syncthreads_and(fit);  // and the maxima are in place
    if (threadIdx.x < 4) {
        float v = 0.0f;
        for (uint32_t w = 0; w < kRowWarps; ++w) v = fmaxf(v, largest[threadIdx.x][w]);
        uint32_t* const word = threadIdx.x < 2 ? p.state->norm + threadIdx.x : p.state->error + (threadIdx.x - 2);
        atomicMax(word, __float_as_uint(v));  // of numbers that are not negative
    }
    if (threadIdx.x == 0 && !all_fit) atomicOr(&p.state->unfit, 1u);
}

extern "C" __global__ void __launch_bounds__(kRowThreads, 4) screen_rows_f16(const __grid_constant__ ScreenRowsParams p) {
    screen_rows<__half>(p);
}
extern "C" __global__ void __launch_bounds__(kRowThreads, 4) screen_rows_bf16(const __grid_constant__ ScreenRowsParams p) {
    screen_rows<__nv_bfloat16>(p);
}

extern "C" __global__ void __launch_bounds__(256) screen_bounds(const __grid_constant__ ScreenBoundsParams p) {
    const auto padded = [](uint32_t extent) { return (uint64_t(extent) + (kScreenPadding - 1)) / kScreenPadding * kScreenPadding; };
    uint64_t at = uint64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    const bool of_y = at >= padded(p.n);
    if (of_y) at -= padded(p.n);
    if (at >= padded(of_y ? p.m : p.n)) return;
    float bound = pos_infinity();
    if (at < (of_y ? p.m : p.n)) {
        const StatsRule rule{p.stats, 0.0f, 0.0f};
        const uint32_t line = uint32_t(at);
        const LineState best = of_y ? merged_line(p.col_parts, p.row_splits, p.m, line, rule)
                                    : merged_line(p.row_parts, p.col_splits, p.n, line, rule);
        const float norm = p.norm[of_y ? p.n + at : at], error = p.error[of_y ? p.n + at : at];
        const float other_norm = __uint_as_float(p.state->norm[!of_y]);
        const float other_error = __uint_as_float(p.state->error[!of_y]);
        // At the most features the constant is a fifth more than the sums need, else more: it covers the roundings here.
        const float sums = float(2 * p.d + 64) * 0x1p-23f;
        const float off = fmaf(error, other_norm, fmaf(norm, other_error, fmaf(sums * norm, other_norm, kProductFloor)));
        if (best.index >= 0 && norm == 0.0f) {
            // All similarities of a zero row are 0, on either way: the lowest candidate is the maximum, and need not be
            // looked for among all.
            (of_y ? p.col_keys : p.row_keys)[at] = mining_key(best.value, uint32_t(best.index));
        } else if (best.index >= 0) {
            bound = best.value - 2.0f * off;
            if (!(fabsf(bound) < pos_infinity())) atomicOr(&p.state->unfit, 1u);
        }
    }
    (of_y ? p.col_bound : p.row_bound)[at] = bound;
}

template <typename T>
__device__ __forceinline__ void screen_body(const ScreenParams& p) {
    extern __shared__ __align__(128) char stages[];
    __shared__ ScreenBatches batches;
    const TileRect rect = screen_rect(p);
    RectSweep<T> sweep(stages, TileOperands<T, ScreenParams>{p}, rect);
    Screener screener(p, batches);
    sweep.run([&](TileAcc& acc, uint32_t r, uint32_t c, char*) { screener.tile(acc, r * kTile, c * kTileCols); });
    screener.flush();
}

extern "C" __global__ void __launch_bounds__(kTileThreads, kTileBlocks) mine_screen_f16(const __grid_constant__ ScreenParams p) {
    screen_body<__half>(p);
}
extern "C" __global__ void __launch_bounds__(kTileThreads, kTileBlocks) mine_screen_bf16(const __grid_constant__ ScreenParams p) {
    screen_body<__nv_bfloat16>(p);
}

// x . y of a warp, as TileMath<float> adds it up (common/simt.cuh): 32 features one after the other from 0, which is a step of
// the tiles, and then the steps in order. A lane has a step.
__device__ __forceinline__ float dot_as_tiles(const float* x, const float* y, uint32_t d) {
    float sum = 0.0f;
    for (uint32_t first = 0; first < d; first += 32 * 32) {
        const uint32_t begin = first + lane_id() * 32;
        float part = 0.0f;
        if (begin < d) {
#pragma unroll
            for (uint32_t col = 0; col < 32; col += 4) {
                float a[4], b[4];
                load_vector(x, begin + col, d, true, a);
                load_vector(y, begin + col, d, true, b);
#pragma unroll
                for (int i = 0; i < 4; ++i) part = fmaf(a[i], b[i], part);
            }
        }
        const uint32_t steps = min((d - first + 31) / 32, 32u);
        for (uint32_t s = 0; s < steps; ++s) sum += __shfl_sync(kFullWarp, part, s);
    }
    return sum;
}

extern "C" __global__ void __launch_bounds__(kRowThreads) screen_rescore(const __grid_constant__ ScreenRescoreParams p) {
    if (p.state->failed()) return;
    const uint32_t pairs = p.pos != nullptr ? min(p.n, p.m) : 0;
    const uint64_t count = pairs + p.state->candidates;
    const auto raise = [](uint64_t* key, uint64_t to) {
        // An older value only lets more through.
        if (*static_cast<volatile uint64_t*>(key) < to) atomicMax(reinterpret_cast<unsigned long long*>(key), to);
    };
    for (uint64_t at = blockIdx.x * kRowWarps + warp_id(); at < count; at += gridDim.x * kRowWarps) {
        const uint64_t entry = at < pairs ? at << 32 | at : p.list[at - pairs];
        const uint32_t row = uint32_t(entry >> 32), col = uint32_t(entry);
        const float s = dot_as_tiles(p.x + row * p.ldx, p.y + col * p.ldy, p.d);
        if (lane_id() != 0) continue;
        if (at < pairs) {
            p.pos[row] = s;
        } else {
            raise(p.row_keys + row, mining_key(s, col));
            raise(p.col_keys + col, mining_key(s, row));
        }
    }
}
