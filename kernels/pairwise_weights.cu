// pairwise_weights — W = dL/dS of a wave of rows, from the tiles of S computed once more and each anchor's coefficients.
//
//   W_ij = kappa (what row i says of the pair + what column j says of it)      by the form, docs/maths.md
//   w[i - first, j] = W_ij inv_x[i] inv_y[j], 0 for pairs that are ignored, for own pairs that are positive and outside
//   diagonal[i] = W_ii of an own pair that is positive, else 0;  sums: of W S and of W, every pair included; of a form whose
//   weights need no statistics (SigLIP) its loss, its pairs and who has a positive
//   Own pairs are kept apart because their weight can be as large as all others of the row together: in 16 bits its
//   rounding alone would be as large as they are.
//
//   x (n, d), y (m, d)   T: f32 | f16 | bf16, row-major, base and rows aligned to 16 bytes
//   w (wave rows, ldw)   bf16 for 16-bit T (whose range is that of f32: weights may be as small as e^-80), f32 for f32
//   diagonal (min(n, m)) f32;  sums (blocks, 4) f64;  flags u32, counts u64.  No output may alias an input or another output.
//
// Work    the wave's tiles are dealt to row_splits x col_splits blocks; a block goes through its rectangle, columns
//         innermost. Whole tiles are written: what follows needs no edges.
// Launch  grid = (col_splits, row_splits), block = 256, 98,304 bytes of dynamic shared memory.
// Bound   tensor cores (f32: FMA), 2 n m d over all waves, and the store of n m elements.
// Order   S has the same bits as in pairwise_stats. Sums: a thread's elements ascending, the warp by a fixed tree, then tiles and
//         warps ascending in f64.
// Needs   sm_80.
#include "common/tile.cuh"
#include "common/pairwise_weights.cuh"

namespace {

template <typename T, bool kBoth>
__device__ __forceinline__ void weights_body(const PairwiseWeightsParams& p) {
    extern __shared__ __align__(128) char stages[];
    __shared__ Sums sums;
    RectSweep<T> sweep(stages, TileOperands<T, PairwiseTiles>{p.tiles}, weights_rect(p), computes(p.tiles));
    weights_tiles<T, kBoth>(p, sweep, sums);
}

}  // namespace

#define WEIGHTS(SUFFIX, T, BOTH)                                                     \
    extern "C" __global__ void __launch_bounds__(kTileThreads, 1)                     \
        pairwise_weights_##SUFFIX(const __grid_constant__ PairwiseWeightsParams p) {  \
        weights_body<T, BOTH>(p);                                                     \
    }
WEIGHTS(f32, float, false)
WEIGHTS(f16, __half, false)
WEIGHTS(bf16, __nv_bfloat16, false)
WEIGHTS(both_f32, float, true)
WEIGHTS(both_f16, __half, true)
WEIGHTS(both_bf16, __nv_bfloat16, true)
