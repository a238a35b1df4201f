// The tile engine: 128 x 128 tiles of X Y^T, one after the other, with the loads of the next in flight at every moment.
//
//   x  (n, d) T, y  (m, d) T: row-major, base and row stride multiples of 16 bytes; T is f32, f16 or bf16.
//
// Work    256 threads, 8 warps as 2 (rows) x 4 (columns), 64 x 32 elements each: in the layout of the
//         accumulators of mma.sync.m16n8k16, for f32 too, so that all epilogues are shared (epilogue.cuh).
// Shared  3 stages of 2 x 128 rows x 128 bytes of k (64 16-bit or 32 f32 elements): 98,304 bytes, which an SM of every
//         architecture from sm_80 on can give to one block. The 16-byte chunk c of row r lies at chunk c ^ (r & 7): eight
//         rows read at one k, and eight chunks written to one row, both fall on eight different groups of banks.
// Loads   cp.async of 16 bytes, 8 lanes on 128 consecutive bytes. Rows >= n and elements >= d arrive as zeros, so every
//         element is summed in one order over k whatever the tile's position: S[i, j] has the same bits in every kernel.
// Order   the k-steps of all tiles of a block form one sequence; while an epilogue runs, two steps of the next tile fly.
#pragma once
#include <stdint.h>

#include "common/mma.cuh"
#include "common/simt.cuh"
#include "common/tile_layout.cuh"
#include "common/tile_sweep.cuh"

constexpr int kStages = 3;        // two in flight, one in use
constexpr int kRowBytes = 128;    // bytes of k in a row of a stage
constexpr int kRowChunks = kRowBytes / 16;
constexpr int kOperandBytes = kTile * kRowBytes;
constexpr int kStageBytes = 2 * kOperandBytes;
constexpr int kPipelineBytes = kStages * kStageBytes;
constexpr int kScratchBytes = kStageBytes;  // for the epilogue of a sweep
static_assert(kPipelineBytes == 98304, "keep in step with TILE_SHARED_BYTES in src/cuda/plan.rs");

// Blocks that are to fit a multiprocessor at a time, so that one multiplies during the epilogue of another. The shared
// memory of sm_90 has room for two, which then have 128 registers a thread; that of sm_80 has not. f32 keeps the sums of a
// step beside the accumulators (common/simt.cuh) and so the registers of both blocks to itself.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
constexpr int kTileBlocks = 2;
#else
constexpr int kTileBlocks = 1;
#endif
template <typename T>
constexpr int kTileBlocksOf = sizeof(T) == 4 ? 1 : kTileBlocks;

template <typename T, typename Cursor>
class TileStream {
  public:
    // Starts the first loads. `stages` is kPipelineBytes of shared memory, aligned to 128 bytes.
    __device__ __forceinline__ TileStream(char* stages, const TileShape& shape, const Cursor& cursor)
        : stages_(stages), shape_(shape), cursor_(cursor), stage_(kStages - 1) {
        begin_tile();
#pragma unroll
        for (int s = 0; s < kStages - 1; ++s) load_step(s);
    }

    // The products of the next tile, added to `acc`. On return all threads of the block may still be reading scratch().
    __device__ __forceinline__ void accumulate(TileAcc& acc) {
        for (uint32_t k = 0; k < shape_.k_bytes; k += kRowBytes) {
            wait_copies<kStages - 2>();
            __syncthreads();  // this step's data has arrived from all threads, and nobody reads the last step's stage
            load_step(stage_);
            stage_ = stage_ == kStages - 1 ? 0 : stage_ + 1;
            const char* stage = stages_ + stage_ * kStageBytes;
            TileMath<T>::accumulate(stage, stage + kOperandBytes, acc);
        }
    }

    // The stage of the last k-step, kStageBytes: free for the epilogue from the first barrier after accumulate() on,
    // until the next accumulate().
    __device__ __forceinline__ char* scratch() const { return stages_ + stage_ * kStageBytes; }

  private:
    __device__ __forceinline__ void begin_tile() {
        k_ = 0;
        if (!cursor_.valid()) return;
        const TileAt tile = cursor_.at();
        const uint32_t row = threadIdx.x / kRowChunks;  // and 32, 64 and 96 rows further
        gx_ = tile.x + int64_t(tile.row0 + row) * shape_.x_row_bytes + threadIdx.x % kRowChunks * 16;
        gy_ = tile.y + int64_t(tile.col0 + row) * shape_.y_row_bytes + threadIdx.x % kRowChunks * 16;
        inside_ = 0;
#pragma unroll
        for (int i = 0; i < kTile / 32; ++i) {
            if (tile.row0 + row + i * 32 < shape_.n) inside_ |= 1u << i;
            if (tile.col0 + row + i * 32 < shape_.m) inside_ |= 16u << i;
        }
    }

    // Enqueues the copies of one k-step, or an empty group behind the last one so that the count of groups stays right.
    __device__ __forceinline__ void load_step(uint32_t stage) {
        if (cursor_.valid()) {
            const uint32_t row = threadIdx.x / kRowChunks;
            const uint32_t chunk = threadIdx.x % kRowChunks;
            const uint32_t to = uint32_t(__cvta_generic_to_shared(stages_)) + stage * kStageBytes + row * kRowBytes +
                                ((chunk ^ (row & 7)) * 16);
            const int left = int(shape_.k_bytes - k_) - int(chunk * 16);
            const uint32_t bytes = uint32_t(min(max(left, 0), 16));
#pragma unroll
            for (int i = 0; i < kTile / 32; ++i) {
                copy_chunk_async(to + i * 32 * kRowBytes, gx_ + i * 32 * shape_.x_row_bytes,
                                 inside_ & (1u << i) ? bytes : 0);
            }
#pragma unroll
            for (int i = 0; i < kTile / 32; ++i) {
                copy_chunk_async(to + kOperandBytes + i * 32 * kRowBytes, gy_ + i * 32 * shape_.y_row_bytes,
                                 inside_ & (16u << i) ? bytes : 0);
            }
            gx_ += kRowBytes;
            gy_ += kRowBytes;
            k_ += kRowBytes;
            if (k_ >= shape_.k_bytes) {
                cursor_.advance();
                begin_tile();
            }
        }
        commit_copies();
    }

    char* stages_;
    const TileShape shape_;
    Cursor cursor_;    // the tile whose loads come next
    const char* gx_;   // this thread's chunk of its first row of X, and of Y
    const char* gy_;
    uint32_t inside_;  // which of its 4 rows of X (bits 0 to 3) and of Y (4 to 7) exist
    uint32_t k_;       // bytes of k that are loaded
    uint32_t stage_;   // of the last k-step
};
