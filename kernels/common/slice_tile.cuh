// The tile engine for small batches in f32: tiles of 64 x 32 of X Y^T, each by all warps of a block, which share its features.
//
//   x (n, d), y (m, d)  f32, row-major, base and row stride multiples of 16 bytes
//
// A tile of this size is one warp's part of a tile of tile.cuh, 8 x 8 elements a thread, with as few reads of shared memory
// for a multiply-add. There, few blocks would run all of d one step after the other; here the steps of 32 features are dealt
// to the warps, which need nothing of each other until they add up.
//
// Work    128 threads, 4 warps: in every round warp w makes the products of step 4 round + w for the whole tile. Then each
//         warp takes the others' sums for 16 rows of the tile, and adds the four in the order of the steps.
// Shared  per warp 3 stages of (64 + 32) rows x 64 bytes of k (16 features), 73,728 bytes in all; 24,576 bytes in which the
//         warps pass their sums on. The 16-byte chunk c of row r lies at chunk c ^ (r / 2 & 3): two rows fill all banks, and
//         eight rows read at one k, and eight chunks written to two rows, fall on eight different groups of banks.
// Loads   cp.async of 16 bytes by the warp that needs them, 4 lanes on 64 consecutive bytes, two stages ahead also across
//         tiles: no warp waits for another one's loads.
// Order   as simt.cuh has it: one chain of fused multiply-adds per step of 32 features, then the sum of the steps, ascending.
//         S[i, j] has the same bits in both engines.
#pragma once
#include "common/tile_layout.cuh"
#include "common/tile_sweep.cuh"

#ifndef SIMGRAD_SLICE_TILE
#error "the layout of a tile, before the first include"
#endif

constexpr int kSlices = 4;       // warps
constexpr int kStages = 3;       // of each warp: two in flight, one in use
constexpr int kRowBytes = 64;    // bytes of k in a row of a stage: half a step
constexpr int kStepBytes = 128;  // of k in a step
constexpr int kRoundBytes = kSlices * kStepBytes;
constexpr int kStageBytes = (kTile + kTileCols) * kRowBytes;
constexpr int kPipelineBytes = kSlices * kStages * kStageBytes;
// Every warp has 16 elements of a thread for each of the three others.
constexpr int kPassedBytes = 32 * 16 * sizeof(float);
constexpr int kScratchBytes = kSlices * (kSlices - 1) * kPassedBytes;  // between rounds, and for the epilogue of a sweep
static_assert(kPipelineBytes + kScratchBytes == 98304, "keep in step with TILE_SHARED_BYTES in src/cuda/plan.rs");
static_assert(kTileThreads == 32 * kSlices && kThreadRows == 2 && kThreadCols == 8, "a warp is left with what it adds up");

// Blocks that are to fit a multiprocessor at a time: the shared memory of sm_90 has room for two, and they may have all
// registers that a thread can name.
constexpr int kTileBlocks = 2;

template <typename Cursor>
class TileStream<float, Cursor> {
  public:
    // Starts the first loads. `shared` is kPipelineBytes + kScratchBytes of shared memory, aligned to 128 bytes.
    __device__ __forceinline__ TileStream(char* shared, const TileShape& shape, const Cursor& cursor)
        : stages_(shared + threadIdx.x / 32 * (kStages * kStageBytes)), passed_(shared + kPipelineBytes), shape_(shape),
          cursor_(cursor), stage_(kStages - 1) {
        begin_tile();
#pragma unroll
        for (int s = 0; s < kStages - 1; ++s) load_half(s);
    }

    // The products of the next tile, added to `acc`, which is zeros. On return all threads of the block may still be reading
    // scratch().
    __device__ __forceinline__ void accumulate(TileAcc& acc) {
        const uint32_t warp = threadIdx.x >> 5;
        for (uint32_t round = 0; round < shape_.k_bytes; round += kRoundBytes) {
            const uint32_t k = round + warp * kStepBytes;
            Part part[kSlices] = {};
            // Rolled up: the instructions of one half fill half of the cache that they come from.
#pragma unroll 1
            for (uint32_t half = k; half < min(k + kStepBytes, shape_.k_bytes); half += kRowBytes) add_half(part);
            __syncthreads();  // nobody reads the sums of the round before, or the epilogue's scratch memory
            if (k < shape_.k_bytes) {
#pragma unroll
                for (uint32_t v = 1; v < kSlices; ++v) pass(part[v], passed((warp + v) % kSlices, warp));
            }
            __syncthreads();  // all sums of this round are in place
#pragma unroll
            for (uint32_t s = 0; s < kSlices; ++s) {
                if (round + s * kStepBytes >= shape_.k_bytes) break;
                if (s == warp) {
#pragma unroll
                    for (int e = 0; e < kThreadElements; ++e) acc[e] += part[0].sum[e];
                } else {
                    add_passed(acc, passed(warp, s));
                }
            }
        }
    }

    __device__ __forceinline__ char* scratch() const { return passed_; }

  private:
    static constexpr int kLaneRows = (kTile + kTileCols) / 8;  // of the operands, of which a lane copies a chunk each
    static constexpr uint32_t kAllInside = (1u << kLaneRows) - 1;

    // What is to become the accumulators of one warp, in their order, of one step.
    struct Part {
        float sum[kThreadElements];
    };

    // Where warp `to` finds what warp `from` has made for it.
    __device__ __forceinline__ float4* passed(uint32_t to, uint32_t from) const {
        const uint32_t slot = to * (kSlices - 1) + (from - to) % kSlices - 1;
        return reinterpret_cast<float4*>(passed_ + slot * kPassedBytes) + threadIdx.x % 32;
    }
    static __device__ __forceinline__ void pass(const Part& part, float4* to) {
#pragma unroll
        for (int e = 0; e < kThreadElements; e += 4) {
            to[e / 4 * 32] = make_float4(part.sum[e], part.sum[e + 1], part.sum[e + 2], part.sum[e + 3]);
        }
    }
    static __device__ __forceinline__ void add_passed(TileAcc& acc, const float4* from) {
        float4 v[kThreadElements / 4];
#pragma unroll
        for (int e = 0; e < kThreadElements; e += 4) v[e / 4] = from[e / 4 * 32];
#pragma unroll
        for (int e = 0; e < kThreadElements; e += 4) {
            acc[e] += v[e / 4].x;
            acc[e + 1] += v[e / 4].y;
            acc[e + 2] += v[e / 4].z;
            acc[e + 3] += v[e / 4].w;
        }
    }

    // The products of the next 16 features, added to the chains. part[v] are those of the rows that warp (this + v) % 4 adds
    // up, so that which of them stay here is known when this is compiled.
    __device__ __forceinline__ void add_half(Part (&part)[kSlices]) {
        wait_copies<kStages - 2>();
        __syncwarp();  // this half's data has arrived from all lanes, and none reads the last half's stage
        load_half(stage_);
        stage_ = stage_ == kStages - 1 ? 0 : stage_ + 1;
        const uint32_t lane = threadIdx.x & 31;
        const uint32_t g = lane >> 2;
        const uint32_t q = lane & 3;
        const char* stage = stages_ + stage_ * kStageBytes;
        const char* sx[kSlices];  // rows g and g + 8 of those 16, swizzled by g / 2
#pragma unroll
        for (uint32_t v = 0; v < kSlices; ++v) {
            sx[v] = stage + (((threadIdx.x >> 5) + v) % kSlices * 16 + g) * kRowBytes;
        }
        const char* sy = stage + (kTile + 2 * q) * kRowBytes;  // rows 8 ni + 2 q + {0, 1}, swizzled by q
#pragma unroll
        for (uint32_t chunk = 0; chunk < kRowBytes / 16; ++chunk) {
            const uint32_t x_chunk = (chunk ^ (g >> 1)) * 16, y_chunk = (chunk ^ q) * 16;
            float4 b[4][2];
#pragma unroll
            for (int ni = 0; ni < 4; ++ni) {
#pragma unroll
                for (int j = 0; j < 2; ++j) b[ni][j] = load_vector(sy + (8 * ni + j) * kRowBytes + y_chunk);
            }
#pragma unroll
            for (uint32_t v = 0; v < kSlices; ++v) {
#pragma unroll
                for (int i = 0; i < 2; ++i) {
                    const float4 a = load_vector(sx[v] + 8 * i * kRowBytes + x_chunk);
#pragma unroll
                    for (int k = 0; k < kThreadCols; ++k) {
                        float& c = part[v].sum[element_at(i, k)];
                        c = fmaf(a.x, b[k >> 1][k & 1].x, c);
                        c = fmaf(a.y, b[k >> 1][k & 1].y, c);
                        c = fmaf(a.z, b[k >> 1][k & 1].z, c);
                        c = fmaf(a.w, b[k >> 1][k & 1].w, c);
                    }
                }
            }
        }
    }
    static __device__ __forceinline__ float4 load_vector(const char* shared) {
        return *reinterpret_cast<const float4*>(shared);
    }

    // A warp without a step of its own, of few features, has no loads either.
    __device__ __forceinline__ bool loads() const { return k_ < shape_.k_bytes && cursor_.valid(); }

    __device__ __forceinline__ void begin_tile() {
        k_ = threadIdx.x / 32 * kStepBytes;
        if (!loads()) return;
        const TileAt tile = cursor_.at();
        const uint32_t row = threadIdx.x % 32 / 4;  // and every 8 rows further
        const uint32_t at = k_ + threadIdx.x % 4 * 16;
        gx_ = tile.x + int64_t(tile.row0 + row) * shape_.x_row_bytes + at;
        gy_ = tile.y + int64_t(tile.col0 + row) * shape_.y_row_bytes + at;
        inside_ = 0;
#pragma unroll
        for (int i = 0; i < kTile / 8; ++i) {
            if (tile.row0 + row + i * 8 < shape_.n) inside_ |= 1u << i;
        }
#pragma unroll
        for (int i = 0; i < kTileCols / 8; ++i) {
            if (tile.col0 + row + i * 8 < shape_.m) inside_ |= 1u << (kTile / 8 + i);
        }
    }

    // Copies this lane's chunks of k, `bytes`(i) of its row i.
    template <typename Bytes>
    __device__ __forceinline__ void copy_rows(uint32_t to, Bytes bytes) const {
        const char* x = gx_;
        const char* y = gy_;
#pragma unroll
        for (int i = 0; i < kTile / 8; ++i, x += 8 * shape_.x_row_bytes) {
            copy_chunk_async(to + i * 8 * kRowBytes, x, bytes(i));
        }
#pragma unroll
        for (int i = kTile / 8; i < kLaneRows; ++i, y += 8 * shape_.y_row_bytes) {
            copy_chunk_async(to + i * 8 * kRowBytes, y, bytes(i));
        }
    }

    // Enqueues the copies of half a step, or an empty group behind the last one so that the count of groups stays right.
    __device__ __forceinline__ void load_half(uint32_t stage) {
        if (loads()) {
            const uint32_t row = threadIdx.x % 32 / 4;
            const uint32_t chunk = threadIdx.x % 4;
            // Eight rows further the swizzle is the same.
            const uint32_t to = uint32_t(__cvta_generic_to_shared(stages_)) + stage * kStageBytes + row * kRowBytes +
                                ((chunk ^ (row >> 1)) * 16);
            const int left = int(shape_.k_bytes - k_) - int(chunk * 16);
            // Mostly there is all of it, for half as many instructions.
            if (left >= 16 && inside_ == kAllInside) {
                copy_rows(to, [](int) { return 16u; });
            } else {
                const uint32_t bytes = uint32_t(min(max(left, 0), 16));
                copy_rows(to, [&](int i) { return inside_ & (1u << i) ? bytes : 0; });
            }
            // The second half of this step, if there is any of it, or the first of this warp's next one.
            const uint32_t forth = k_ % kStepBytes == 0 && k_ + kRowBytes < shape_.k_bytes ? kRowBytes
                                   : kRoundBytes - k_ % kStepBytes;
            gx_ += forth;
            gy_ += forth;
            k_ += forth;
            if (k_ >= shape_.k_bytes) {
                cursor_.advance();
                begin_tile();
            }
        }
        commit_copies();
    }

    char* stages_;     // this warp's
    char* passed_;
    const TileShape shape_;
    Cursor cursor_;    // the tile whose loads come next
    const char* gx_;   // this lane's chunk of its first row of X, and of Y
    const char* gy_;
    uint32_t inside_;  // which of its 8 rows of X (bits 0 to 7) and of Y (8 to 11) exist
    uint32_t k_;       // byte of k where the next half begins
    uint32_t stage_;   // of the last half
};
