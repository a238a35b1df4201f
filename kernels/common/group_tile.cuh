// The tile engine of sm_90a: tiles of X Y^T by warpgroups, loaded by tensor copies that run ahead of them.
//
//   x (n, d), y (m, d)  T: f16 | bf16, through tensor maps of boxes of kBoxBytes: what lies outside arrives as zeros
//
// Work    384 threads: two warpgroups multiply, each 64 rows of a step of 128 rows and kStepCols columns, and hold the
//         accumulators; one thread of the third enqueues the copies. A step is kStepTiles tiles beside each other.
//         SIMGRAD_GROUP_TILE = 128: steps of SIMGRAD_GROUP_STEP tiles, 128 x 256 or, where the epilogue needs the registers,
//           128 x 128. Blocks come in clusters of two, above each other, which multiply the same rows of Y: each loads half of
//           them, into both blocks.
//         SIMGRAD_GROUP_TILE = 64, for small batches: steps of one tile, and no cluster.
// Shared  kStages stages of 128 rows of X and kStepCols rows of Y with 128 bytes of k each, laid down with a swizzle of 128
//         bytes; then kScratchBytes for the epilogue; then two barriers per stage.
// Order   the k-steps of all steps of a block form one sequence; while an epilogue runs, kStages of them fly, and one
//         warpgroup can be that far ahead of the other. k ascending, 16 elements at a time; the same for all tiles, so that
//         S[i, j] has the same bits in every kernel of this engine.
#pragma once
#include "common/hopper.cuh"
#include "common/tile_layout.cuh"

#ifndef SIMGRAD_GROUP_TILE
#error "the columns of a tile, before the first include"
#endif

constexpr int kHolders = kTileThreads;                // threads that hold a tile
constexpr int kGroupThreads = kHolders + 128;
#ifndef SIMGRAD_GROUP_STEP
#define SIMGRAD_GROUP_STEP 1
#endif
constexpr int kStepTiles = SIMGRAD_GROUP_STEP;        // beside each other
constexpr int kStepCols = kStepTiles * kTileCols;
constexpr int kClusterBlocks = kTileCols == 128 ? 2 : 1;
constexpr int kStages = kStepCols == 256 ? 4 : 6;
constexpr int kRowBytes = 128;                        // of k in a row of a stage
constexpr int kStageBytesX = kTile * kRowBytes;
constexpr int kStageBytes = kStageBytesX + kStepCols * kRowBytes;
constexpr int kPipelineBytes = kStages * kStageBytes;
constexpr int kScratchBytes = kTileCols == 128 ? 28672 : 32768;
constexpr int kGroupSharedBytes = kPipelineBytes + kScratchBytes + 1024;  // barriers, and up to 1008 bytes to align the rest
static_assert(kGroupSharedBytes == (kTileCols == 128 ? 226304 : 181248), "keep in step with src/cuda/plan.rs");
// Registers of a thread at launch; 40 for those that copy then leave 232 for those that multiply. Given by __maxnreg__, which
// setmaxnreg asks for, and not by __launch_bounds__.
constexpr uint32_t kLaunchRegisters = 168;
constexpr uint32_t kCopierRegisters = 40;
constexpr uint32_t kHolderRegisters = 232;

// The share of this block, (column split, row split) of the grid, of row tiles [first, end) and all columns. The blocks of a
// cluster have as many rows each, the second one those behind the first one's and possibly behind the end, and the same
// columns.
__device__ __forceinline__ TileRect tile_rect(uint32_t first, uint32_t end, uint32_t cols, uint32_t row_splits,
                                              uint32_t col_splits) {
    const uint32_t rows = (end - first + kClusterBlocks - 1) / kClusterBlocks;
    const uint32_t steps = (cols + kStepCols - 1) / kStepCols;
    const uint32_t parts = row_splits / kClusterBlocks, part = blockIdx.y / kClusterBlocks;
    const uint32_t begin = part_begin(rows, parts, part), height = part_begin(rows, parts, part + 1) - begin;
    const uint32_t r = first + begin * kClusterBlocks + blockIdx.y % kClusterBlocks * height;
    return {r, r + height,
            part_begin(steps, col_splits, blockIdx.x) * kStepTiles,
            min(part_begin(steps, col_splits, blockIdx.x + 1) * kStepTiles, tile_cols_of(cols))};
}

// One place in the ring of stages, and the parity of the barriers' phase there.
struct StageAt {
    uint32_t stage = 0;
    uint32_t parity = 0;

    __device__ __forceinline__ void advance() {
        if (++stage == kStages) {
            stage = 0;
            parity ^= 1;
        }
    }
};

template <typename T>
class GroupStream {
  public:
    // `shared` is kGroupSharedBytes. All threads; on return the barriers of the whole cluster are ready.
    __device__ __forceinline__ GroupStream(char* shared, const TensorMaps& maps, uint32_t d)
        : maps_(maps), base_((shared_address(shared) + 1023) & ~1023u), shared_(shared),
          k_steps_((d * uint32_t(sizeof(T)) + kRowBytes - 1) / kRowBytes) {
        if (threadIdx.x == 0) {
            for (uint32_t s = 0; s < kStages; ++s) {
                barrier_init(full(s), 1);
                barrier_init(empty(s), 2 * kClusterBlocks);  // warpgroups that read what this block has sent for
            }
            barrier_init_fence();
        }
        if (kClusterBlocks > 1) cluster_sync();
        else __syncthreads();
    }

    __device__ __forceinline__ bool holds() const { return threadIdx.x < kHolders; }
    // The share of this thread's party.
    __device__ __forceinline__ char* scratch() const {
        // The same for a warp, which the compiler is told.
        const uint32_t party = kParties == 1 ? 0 : __shfl_sync(~0u, threadIdx.x / kPartyThreads, 0);
        return shared_ + (base_ - shared_address(shared_)) + kPipelineBytes + party * (kScratchBytes / kParties);
    }

    // Behind the last step: no block leaves while another one may still write to its memory.
    __device__ __forceinline__ void end() const {
        if (kClusterBlocks > 1) cluster_sync();
    }

    // --- the thread that copies -----------------------------------------------------------------------------------------

    __device__ __forceinline__ void begin_copies() const {
        prefetch_map(maps_.x);
        prefetch_map(maps_.y);
    }
    // Enqueues the copies of a step. `at` starts as {0, 1}: the stages are empty.
    __device__ __forceinline__ void copy_step(StageAt& at, uint32_t row0, uint32_t col0, uint32_t x_matrix = 0,
                                              uint32_t y_matrix = 0) const {
        for (uint32_t k = 0; k < k_steps_; ++k) {
            const uint32_t to = base_ + at.stage * kStageBytes, barrier = full(at.stage);
            const int32_t from = int32_t(k * (kRowBytes / sizeof(T)));
            barrier_wait(empty(at.stage), at.parity);
            barrier_expect(barrier, kStageBytes);
            copy_box(to, maps_.x, barrier, from, int32_t(row0), int32_t(x_matrix));
            if (kClusterBlocks > 1) {
                constexpr uint32_t kShare = kStepCols / kClusterBlocks;
                const uint32_t rank = cluster_rank();
                copy_box_to(to + kStageBytesX + rank * kShare * kRowBytes, maps_.y, barrier, from,
                            int32_t(col0 + rank * kShare), int32_t(y_matrix), (1 << kClusterBlocks) - 1);
            } else {
                copy_box(to + kStageBytesX, maps_.y, barrier, from, int32_t(col0), int32_t(y_matrix));
            }
            at.advance();
        }
    }

    // --- the threads that multiply --------------------------------------------------------------------------------------

    // The products of the next step. `at` starts as {0, 0}. With kStaggered the second warpgroup begins when the first one is
    // kStages ahead, as far as the stages let it: then the tensor cores have the work of one while the other is in its
    // epilogue. Both at once would be done at once.
    template <bool kStaggered>
    __device__ __forceinline__ void multiply_step(StageAt& at, float (&acc)[kStepTiles * kThreadElements]) const {
        const uint32_t group = threadIdx.x / 128;
        const uint32_t ahead = min(uint32_t(kStages), k_steps_);
        const bool staggered = kStaggered && can_stagger();
        uint32_t last = 0;
        if (staggered && group == 1) asm volatile("barrier.cta.sync 2, 256;" ::: "memory");
        for (uint32_t k = 0; k < k_steps_; ++k) {
            barrier_wait(full(at.stage), at.parity);
            const uint64_t a = deep_operand(base_ + at.stage * kStageBytes + group * 64 * kRowBytes);
            const uint64_t b = deep_operand(base_ + at.stage * kStageBytes + kStageBytesX);
            products_begin();
#pragma unroll
            for (uint32_t k16 = 0; k16 < 4; ++k16) {
                multiply_group<T, kStepCols>(acc, a + 2 * k16, b + 2 * k16, k > 0 || k16 > 0);
            }
            products_commit();
            if (staggered && group == 0 && k + 1 == ahead) asm volatile("barrier.cta.arrive 2, 256;" ::: "memory");
            products_wait<1>();  // those of the step before are done
            if (k > 0) release(last);
            last = at.stage;
            at.advance();
        }
        products_wait<0>();
        if (k_steps_ > 0) release(last);
    }

  private:
    __device__ __forceinline__ uint32_t full(uint32_t stage) const { return base_ + kPipelineBytes + kScratchBytes + stage * 8; }
    __device__ __forceinline__ uint32_t empty(uint32_t stage) const { return full(stage) + kStages * 8; }
    // The barrier counts arrivals and does not know of which step they are: the first warpgroup must not arrive again before
    // the second one has passed. When it arrives, the stage of k number min(kStages, k_steps) - 1 of its step was full, so that
    // the second one has released what was kStages before it: of the step before, whose barrier it has passed, if there are
    // steps of k enough. With fewer, what a warpgroup does between its steps decides how far they are apart.
    __device__ __forceinline__ bool can_stagger() const { return 2 * k_steps_ > kStages; }
    // One thread per warpgroup, whose products are over for all of it, tells every block that fills this stage.
    __device__ __forceinline__ void release(uint32_t stage) const {
        if (threadIdx.x % 128 >= kClusterBlocks) return;
        if (kClusterBlocks > 1) barrier_arrive_at(empty(stage), threadIdx.x % 128);
        else barrier_arrive(empty(stage));
    }

    const TensorMaps& maps_;
    const uint32_t base_;  // of the stages
    char* const shared_;
    const uint32_t k_steps_;
};

// A sweep over a rectangle: tile(acc, r, c, scratch) is called for its tiles in order, by the threads that hold them; scratch
// is the party's share of kScratchBytes of shared memory. With kMeets a party has met since the tile before; without, only
// warps are together.
template <typename T, bool kMayBeZero = false>
class RectSweep {
  public:
    // `computes`: whether there are products at all, or with kMayBeZero `acc` comes as zeros.
    __device__ __forceinline__ RectSweep(char* shared, const TensorMaps& maps, uint32_t d, const TileRect& rect,
                                         bool computes = true)
        : rect_(rect), computes_(computes), stream_(shared, maps, d) {}

    // Only the threads that hold tiles go on behind it with anything that needs barriers.
    template <bool kMeets = true, typename Tile>
    __device__ __forceinline__ void run(Tile tile) {
        if (stream_.holds()) {
            take_registers<kHolderRegisters>();
            hold<kMeets>(tile);
        } else {
            give_registers<kCopierRegisters>();
            if (threadIdx.x == kHolders && computes()) copy();
        }
        stream_.end();
    }
    __device__ __forceinline__ bool holds() const { return stream_.holds(); }

  private:
    __device__ __forceinline__ bool computes() const { return !kMayBeZero || computes_; }
    __device__ __forceinline__ void copy() const {
        StageAt at{0, 1};
        stream_.begin_copies();
        for (uint32_t r = rect_.r; r < rect_.r_end; ++r) {
            for (uint32_t c = rect_.c; c < rect_.c_end; c += kStepTiles) {
                stream_.copy_step(at, r * kTile, c * kTileCols);
            }
        }
    }
    template <bool kMeets, typename Tile>
    __device__ __forceinline__ void hold(Tile tile) const {
        StageAt at;
        for (uint32_t r = rect_.r; r < rect_.r_end; ++r) {
            for (uint32_t c = rect_.c; c < rect_.c_end; c += kStepTiles) {
                float acc[kStepTiles * kThreadElements];
                if (kMayBeZero) {
                    // Also before products, which do not read it: else the compiler keeps what it held before.
#pragma unroll
                    for (int e = 0; e < kStepTiles * kThreadElements; ++e) acc[e] = 0.0f;
                }
                if (computes()) stream_.template multiply_step<!kMeets || (kParties > 1)>(at, acc);
#pragma unroll
                for (int t = 0; t < kStepTiles; ++t) {
                    if (c + t >= rect_.c_end) break;
                    if (kMeets) tile_sync();  // nobody of the party reads the scratch memory of the tile before
                    tile(reinterpret_cast<TileAcc&>(acc[t * kThreadElements]), r, c + t, stream_.scratch());
                }
            }
        }
    }

    const TileRect rect_;
    const bool computes_;
    const GroupStream<T> stream_;
};
