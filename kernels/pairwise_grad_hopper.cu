// pairwise_grad_hopper — the two products of a wave on warpgroups: pairwise_grad.cu for 16-bit operands on sm_90a.
//
//   gx[first + i] = sum_j w[i, j] y_j        for the wave's rows i
//   gy[j]     (+)= sum_i w[i, j] x_(first+i)  for all columns j; waves follow each other in the stream, so in fixed order
//
//   w (wave rows, ldw)   bf16, whole tiles of 128 x 128, zeros outside; through two maps: boxes of 128 rows and 64 columns,
//                        and of 64 rows and two panels. _f32: two such matrices, what bf16 rounds off rest_w rows behind
//   x (n, d), y (m, d)   bf16, through maps of boxes of 64 rows and 64 columns or, where rows are a multiple of those long, as
//                        many panels of 64 columns as a block brings. Rows behind the last and columns behind d are zeros.
//                        _f16: bf16 parts of f16 rows, as pairwise_split_f16 writes them; _f32: X' and Y' of split_f32
//   skip_x, skip_y, gx, gy, ldg   as in pairwise_grad.cu
//
// Work    a cluster makes 256 rows and tile_cols columns of gx or of gy, either block 128 rows, and goes on with the next such
//         tile: loads of that one fly while the sums of this one are stored. Blocks multiply the same rows of y or x: each
//         loads half of them, into both. In a block two warpgroups multiply, 64 rows each; one thread of the third copies.
//         Rows that are skipped arrive as they are, and two more of its warps put zeros in their place.
// Order   k ascending, 16 at a time, in one accumulator; _f16: of 64 k the leading parts, then the rests; _f32: of 64 k rests of
//         w with hi*, leading parts of w with lo, then with hi. It depends neither on tile_cols nor on which cluster makes a tile.
// Launch  grid = 2 per cluster, any number of them, block = 384, kGradSharedBytes of dynamic shared memory.
// Shared  4 stages of 16 KiB of w and tile_cols x 128 bytes of the other operand, all with the 128-byte swizzle of tensor copies.
//         Operands with k outermost lie in panels of 64 columns: 64 rows, one per k, of 128 bytes.
// Bound   tensor cores, 4 n m d over all waves; f16: 8 n m d, f32: 12 n m d.
// Needs   sm_90a.
#define SIMGRAD_GROUP_TILE 128
#define SIMGRAD_GROUP_STEP 2
#include "common/group_tile.cuh"
#include "common/numeric.cuh"
#include "params/pairwise.h"

namespace {

constexpr uint32_t kStepK = kRowBytes / 2;                  // of a stage
constexpr uint32_t kPanel = 64;                             // columns of a panel
constexpr uint32_t kPanelBytes = kStepK * kRowBytes;
constexpr uint32_t kGradSharedBytes = kPipelineBytes + 2048;  // barriers, and up to 1008 bytes to align the rest
static_assert(kGradSharedBytes == 198656, "keep in step with src/cuda/pairwise_grad_hopper.rs");
static_assert(kClusterBlocks == 2 && kStages == 4 && kStageBytesX == 2 * kPanelBytes, "see above");

struct GradMaps {
    TensorMap w_rows;  // (ldw, wave rows, parts)
    TensorMap w_cols;  // (64, wave rows, ldw / 64)
    TensorMap x;       // (d, rows), or (64, rows, d / 64); _f32: of 3 part columns
    TensorMap y;
};

// An operand with k outermost, in panels as above: columns 64 further lie a panel further, k 8 further 1024 bytes. Advances by
// 2048 bytes for 16 elements of k, so by 128 in units of 16 bytes.
__device__ __forceinline__ uint64_t wide_operand(uint32_t address) {
    return uint64_t((address & 0x3ffff) >> 4) | uint64_t(kPanelBytes >> 4) << 16 | uint64_t(1024 >> 4) << 32 | uint64_t(1) << 62;
}

// What a cluster makes at a time; `row0` is this block's own.
struct GradTile {
    bool of_x;       // of gx
    uint32_t row0;   // of w or its transpose
    uint32_t col0;
    uint32_t steps;  // of kStepK
};

// Tile `at` of this cluster, if there is one. The tiles of one product have more steps than those of the other: they come
// first, in rounds over all clusters. Clusters without one in the last such round take as many of the others as go into it; then
// the rest goes around. Tiles beside each other in a round share their part of w.
__device__ __forceinline__ bool find_tile(const PairwiseGradGroupParams& p, uint32_t at, GradTile& tile) {
    const uint32_t clusters = gridDim.x / kClusterBlocks, own = blockIdx.x / kClusterBlocks;
    const uint32_t rounds = (p.long_tiles + clusters - 1 - own) / clusters;
    bool is_long = true;
    uint32_t index = own + at * clusters;
    if (at >= rounds) {
        is_long = false;
        const uint32_t taken = p.long_tiles % clusters, free = clusters - taken;
        const uint32_t place = own < taken ? own + free : own - taken;
        const uint32_t meanwhile = taken == 0 ? 0 : p.meanwhile, earlier = place < free ? meanwhile : 0;
        const uint32_t turn = at - rounds;
        index = turn < earlier ? place + turn * free : meanwhile * free + place + (turn - earlier) * clusters;
        if (index >= p.short_tiles) return false;
    }
    const uint32_t row = index / p.across * kClusterBlocks + cluster_rank();
    tile.of_x = is_long == (p.x_is_long != 0);
    tile.row0 = row * kTile;
    tile.col0 = index % p.across * p.tile_cols;
    tile.steps = is_long ? p.long_steps : p.short_steps;
    return true;
}

// kParts: products that the one of w with x or y is the sum of; 3: of f32, 2: of f16.
template <uint32_t kParts>
class GradProducts {
  public:
    // All threads; on return the barriers of the whole cluster are ready.
    __device__ __forceinline__ GradProducts(char* shared, const GradMaps& maps, const PairwiseGradGroupParams& p)
        : maps_(maps), p_(p), base_((shared_address(shared) + 1023) & ~1023u) {
        if (threadIdx.x == 0) {
            for (uint32_t s = 0; s < kStages; ++s) {
                barrier_init(full(s), 1);
                barrier_init(empty(s), 2 * kClusterBlocks);  // warpgroups that read what this block has sent for
                barrier_init(cleaned(s), 2);                 // warps
            }
            barrier_init_fence();
        }
        cluster_sync();
    }

    __device__ __forceinline__ bool cleans() const { return p_.skip_x != nullptr || p_.skip_y != nullptr; }

    // One thread.
    __device__ __forceinline__ void copy() const {
        StageAt at{0, 1};
        prefetch_map(maps_.w_rows);
        prefetch_map(maps_.w_cols);
        prefetch_map(maps_.x);
        prefetch_map(maps_.y);
        GradTile tile;
        for (uint32_t i = 0; find_tile(p_, i, tile); ++i) {
            for (uint32_t k = 0; k < tile.steps; ++k) {
#pragma unroll 1
                for (uint32_t part = 0; part < kParts; ++part) {
                    copy_step(at.stage, at.parity, tile, k * kStepK, part);
                    at.advance();
                }
            }
        }
    }

    // Warp `half` of two: zeros for rows 32 half + 0 ... 31 of every stage that are skipped.
    __device__ __forceinline__ void clean(uint32_t half) const {
        const uint32_t lane = threadIdx.x % 32, first = p_.first_tile * kTile;
        const uint32_t chunk = kStageBytesX + lane / 8 * kPanelBytes + half * 32 * kRowBytes + lane % 8 * 16;
        StageAt at;
        GradTile tile;
        for (uint32_t i = 0; find_tile(p_, i, tile); ++i) {
            const uint8_t* skip = tile.of_x ? p_.skip_y : p_.skip_x;
            const uint32_t begin = tile.of_x ? 0 : first, end = tile.of_x ? p_.m : p_.n;
            for (uint32_t k = 0; k < tile.steps; ++k) {
                const uint32_t row = begin + k * kStepK + half * 32 + lane;
                const uint32_t skipped = __ballot_sync(~0u, skip != nullptr && row < end && __ldg(skip + row) != 0);
#pragma unroll 1
                for (uint32_t part = 0; part < kParts; ++part) {
                    barrier_wait(full(at.stage), at.parity);
                    if (skipped != 0) {
                        const uint32_t to = base_ + at.stage * kStageBytes + chunk;
                        const bool there = lane / 8 * kPanel < p_.tile_cols;
#pragma unroll
                        for (uint32_t r = 0; r < 32; ++r) {
                            if (there && skipped & 1u << r) clear_chunk(to + r * kRowBytes);
                        }
                        // The products read it as tensor copies write it: not as threads do.
                        asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
                        __syncwarp();
                    }
                    if (lane == 0) barrier_arrive(cleaned(at.stage));
                    at.advance();
                }
            }
        }
    }

    // The threads that multiply.
    __device__ __forceinline__ void hold() const {
        StageAt at;
        GradTile tile;
        for (uint32_t i = 0; find_tile(p_, i, tile); ++i) {
            const bool wide = p_.tile_cols == 256 && p_.d - tile.col0 > 128;
            if (tile.of_x) {
                if (wide) make<256, true>(at, tile);
                else make<128, true>(at, tile);
            } else {
                if (wide) make<256, false>(at, tile);
                else make<128, false>(at, tile);
            }
        }
    }

  private:
    __device__ __forceinline__ uint32_t full(uint32_t stage) const { return base_ + kPipelineBytes + stage * 8; }
    __device__ __forceinline__ uint32_t empty(uint32_t stage) const { return full(stage) + kStages * 8; }
    __device__ __forceinline__ uint32_t cleaned(uint32_t stage) const { return full(stage) + 2 * kStages * 8; }
    // One thread per warpgroup, whose products are over for all of it, tells both blocks.
    __device__ __forceinline__ void release(uint32_t stage) const {
        if (threadIdx.x % 128 < kClusterBlocks) barrier_arrive_at(empty(stage), threadIdx.x % 128);
    }
    static __device__ __forceinline__ void clear_chunk(uint32_t to) {
        asm volatile("st.shared.v4.u32 [%0], {%1, %1, %1, %1};" ::"r"(to), "r"(0) : "memory");
    }

    __device__ __forceinline__ void copy_step(uint32_t stage, uint32_t parity, const GradTile& tile, uint32_t k,
                                              uint32_t part) const {
        const uint32_t to = base_ + stage * kStageBytes, barrier = full(stage);
        const uint32_t share = p_.tile_cols / (kClusterBlocks * kPanel);  // panels that this block brings
        const uint32_t panel = cluster_rank() * share, of_tile = tile.col0 / kPanel;
        barrier_wait(empty(stage), parity);
        barrier_expect(barrier, kStageBytesX + p_.tile_cols * kRowBytes);
        const uint32_t rest = kParts == 3 && part == 0 ? 1 : 0;  // of w
        if (tile.of_x) copy_box(to, maps_.w_rows, barrier, int32_t(k), int32_t(tile.row0), int32_t(rest));
        else copy_box(to, maps_.w_cols, barrier, 0, int32_t(k + rest * p_.rest_w), int32_t(tile.row0 / kPanel));
        const TensorMap& map = tile.of_x ? maps_.y : maps_.x;
        const uint32_t part_rows = kParts == 2 ? part : 0;
        const uint32_t row = (tile.of_x ? part_rows * p_.rest_y : p_.first_tile * kTile + part_rows * p_.rest_x) + k;
        // X' is [lo | hi* | hi], Y' [hi* | lo | hi].
        const uint32_t col = kParts < 3 ? 0 : (part == 2 ? 2 : (part == 0) != tile.of_x ? 1 : 0) * p_.part;
        const uint32_t panels_at = to + kStageBytesX + panel * kPanelBytes;
        if (p_.panels != 0) {
            copy_box_to(panels_at, map, barrier, 0, int32_t(row), int32_t(of_tile + panel + col / kPanel), 3);
            return;
        }
        for (uint32_t s = 0; s < share; ++s) {
            const uint32_t at = col + (of_tile + panel + s) * kPanel;
            copy_box_to(panels_at + s * kPanelBytes, map, barrier, int32_t(at), int32_t(row), 0, 3);
        }
    }

    template <int kCols, bool kOfX>
    __device__ __forceinline__ void make(StageAt& at, const GradTile& tile) const {
        float acc[kCols / 2];
        multiply<kCols, kOfX>(at, tile.steps * kParts, acc);
        // A wave's rows of gx end with the wave.
        const uint32_t end = kOfX ? min(p_.n, p_.end_tile * kTile) : p_.m;
        const uint32_t row0 = tile.row0 + (kOfX ? p_.first_tile * kTile : 0);
        float* out = (kOfX ? p_.gx : p_.gy) + tile.col0;
        store<kCols>(acc, out, row0, end, uint32_t(p_.ldg) - tile.col0, !kOfX && p_.accumulate != 0);
    }

    template <int kCols, bool kOfX>
    __device__ __forceinline__ void multiply(StageAt& at, uint32_t steps, float* acc) const {
        const uint32_t group = threadIdx.x / 128;
        const bool cleaning = cleans();
        uint32_t last = 0;
        for (uint32_t k = 0; k < steps; ++k) {
            barrier_wait(full(at.stage), at.parity);
            if (cleaning) barrier_wait(cleaned(at.stage), at.parity);
            const uint32_t from = base_ + at.stage * kStageBytes;
            const uint64_t a = kOfX ? deep_operand(from + group * 64 * kRowBytes) : wide_operand(from + group * kPanelBytes);
            const uint64_t b = wide_operand(from + kStageBytesX);
            products_begin();
#pragma unroll
            for (uint32_t k16 = 0; k16 < 4; ++k16) {
                multiply_group<__nv_bfloat16, kCols, kOfX ? 2 : 3>(acc, a + (kOfX ? 2 : 128) * k16, b + 128 * k16,
                                                                  k > 0 || k16 > 0);
            }
            products_commit();
            products_wait<1>();  // those of the step before are done
            if (k > 0) release(last);
            last = at.stage;
            at.advance();
        }
        products_wait<0>();
        release(last);
    }

    // Writes or adds rows from row0 below `end` and columns below `cols`, a multiple of 8. Four lanes write 32 bytes.
    template <int kCols>
    __device__ __forceinline__ void store(const float* acc, float* out, uint32_t row0, uint32_t end, uint32_t cols,
                                          bool accumulate) const {
        constexpr uint32_t kBatch = 8;  // that are read before the first is written
        const uint32_t first = row0 + threadIdx.x / 32 * 16 + threadIdx.x % 32 / 4;
#pragma unroll
        for (uint32_t h = 0; h < 2; ++h) {
            const uint32_t row = first + 8 * h;
            if (row >= end) continue;
            float* to = out + row * p_.ldg + threadIdx.x % 4 * 2;
#pragma unroll
            for (uint32_t b = 0; b < kCols / 8; b += kBatch) {
                float2 before[kBatch];
#pragma unroll
                for (uint32_t e = 0; e < kBatch; ++e) {
                    before[e] = make_float2(0.0f, 0.0f);
                    const uint32_t col = (b + e) * 8;
                    if (accumulate && col < cols) before[e] = *reinterpret_cast<const float2*>(to + col);
                }
#pragma unroll
                for (uint32_t e = 0; e < kBatch; ++e) {
                    const uint32_t col = (b + e) * 8;
                    const float* v = acc + (b + e) * 4 + 2 * h;
                    if (col < cols) *reinterpret_cast<float2*>(to + col) = make_float2(before[e].x + v[0], before[e].y + v[1]);
                }
            }
        }
    }

    const GradMaps& maps_;
    const PairwiseGradGroupParams& p_;
    const uint32_t base_;  // of the stages
};

template <uint32_t kParts>
__device__ __forceinline__ void grad_groups(const GradMaps& maps, const PairwiseGradGroupParams& p) {
    extern __shared__ __align__(128) char shared[];
    const GradProducts<kParts> products(shared, maps, p);
    if (threadIdx.x < kHolders) {
        take_registers<kHolderRegisters>();
        products.hold();
    } else {
        give_registers<kCopierRegisters>();
        const uint32_t warp = (threadIdx.x - kHolders) / 32;
        if (threadIdx.x == kHolders) products.copy();
        else if (products.cleans() && (warp == 1 || warp == 2)) products.clean(warp - 1);
    }
    cluster_sync();  // no block leaves while the other one may still write to its memory
}

}  // namespace

#define GRAD(SUFFIX, PARTS)                                                                                \
    extern "C" __global__ void __block_size__((kGroupThreads, 1, 1), (kClusterBlocks, 1, 1)) __maxnreg__(kLaunchRegisters) \
        pairwise_grad_hopper_##SUFFIX(const __grid_constant__ GradMaps maps,                               \
                                      const __grid_constant__ PairwiseGradGroupParams p) {                 \
        grad_groups<PARTS>(maps, p);                                                                      \
    }
GRAD(f32, 3)
GRAD(f16, 2)
GRAD(bf16, 1)

// Rows of f16 as two bf16 per element, whose sum they are exactly: 11 bits are 8 and 3. The leading parts first, as many rows
// of them as `padded` says, then the rests; zeros where there is nothing.
// Launch  grid = rows of x and of y, padded; block = kSplitThreads, a thread per 8 columns.
extern "C" __global__ void __launch_bounds__(kSplitThreads) pairwise_split_f16(const __grid_constant__ PairwiseSplitParams p) {
    const bool of_x = blockIdx.x < p.x.padded;
    const PairwiseSplitSide& side = of_x ? p.x : p.y;
    const uint32_t row = of_x ? blockIdx.x : blockIdx.x - p.x.padded;
    const __half* from = static_cast<const __half*>(side.src) + int64_t(row) * side.ld;
    __nv_bfloat16* to = static_cast<__nv_bfloat16*>(side.parts) + int64_t(row) * p.ld_parts;
    for (uint32_t col = threadIdx.x * 8; col < p.ld_parts; col += kSplitThreads * 8) {
        float v[8] = {}, high[8], low[8];
        if (row < side.rows && col < p.d) load_vector(from, col, p.d, true, v);
#pragma unroll
        for (uint32_t e = 0; e < 8; ++e) {
            high[e] = to_f32(from_f32<__nv_bfloat16>(v[e]));
            low[e] = v[e] - high[e];
        }
        store_vector(to, col, p.ld_parts, true, high);
        store_vector(to + int64_t(side.padded) * p.ld_parts, col, p.ld_parts, true, low);
    }
}
