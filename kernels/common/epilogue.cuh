// What a thread holds of a tile, and what all epilogues do with it first.
//
// A thread owns kThreadRows rows and kThreadCols columns of the tile (tile_layout.cuh), and the elements where they cross:
//   row i     first row of its warp + 8 i + lane / 4
//   column k  first column of its warp + 8 (k / 2) + 2 (lane % 4) + k % 2
#pragma once
#include <stdint.h>

#include "common/tile_layout.cuh"

struct TileThread {
    uint32_t index;      // among those that hold the tile
    uint32_t first_row;  // row 0
    uint32_t first_col;  // column 0

    // Made anew for every epilogue. The index is read by a volatile instruction so that neither it nor what follows from it
    // is kept in registers through the products, which need them.
    __device__ __forceinline__ TileThread() {
        asm volatile("mov.u32 %0, %%tid.x;" : "=r"(index));
        first_row = warp_row() * (8 * kThreadRows) + (lane() >> 2);
        first_col = warp_col() * (4 * kThreadCols) + (lane() & 3) * 2;
    }
    __device__ __forceinline__ uint32_t lane() const { return index & 31; }
    __device__ __forceinline__ uint32_t warp_row() const { return (index >> 5) / kWarpCols; }
    __device__ __forceinline__ uint32_t warp_col() const { return (index >> 5) % kWarpCols; }
    // The thread's party, its first row, and the places of a row, of the thread and of the warp in it.
    __device__ __forceinline__ uint32_t party() const { return kParties == 1 ? 0 : index / kPartyThreads; }
    __device__ __forceinline__ uint32_t party_row() const { return party() * kPartyRows; }
    __device__ __forceinline__ uint32_t in_party(uint32_t row) const { return kParties == 1 ? row : row % kPartyRows; }
    __device__ __forceinline__ uint32_t member() const { return kParties == 1 ? index : index % kPartyThreads; }
    __device__ __forceinline__ uint32_t party_warp_row() const {
        return kParties == 1 ? warp_row() : warp_row() % kPartyWarpRows;
    }
    __device__ __forceinline__ uint32_t row(int i) const { return first_row + 8 * i; }
    __device__ __forceinline__ uint32_t col(int k) const { return first_col + 8 * (k >> 1) + (k & 1); }

    // Row h of kJoinedRows and column h of kJoinedCols that join_rows() and join_cols() leave to this thread. The lanes of a
    // warp get different ones modulo 32, so storing by them meets no bank conflict; with kThreadRows = 2 every row goes to
    // two lanes.
    __device__ __forceinline__ uint32_t joined_row(int h) const {
        return warp_row() * (8 * kThreadRows) + 32 * h + (lane() & (kThreadRows < 4 ? 1 : 3)) * 8 + (lane() >> 2);
    }
    __device__ __forceinline__ uint32_t joined_col(int h) const {
        const uint32_t k = lane() >> 2;
        return warp_col() * (4 * kThreadCols) + 32 * h + (k >> 1) * 8 + (lane() & 3) * 2 + (k & 1);
    }
};

// Element (row i, column k) of a thread.
__device__ __forceinline__ float& element(TileAcc& acc, int i, int k) { return acc[element_at(i, k)]; }
__device__ __forceinline__ float element(const TileAcc& acc, int i, int k) { return acc[element_at(i, k)]; }

// The factors of a thread's columns 2 k and 2 k + 1, which lie beside each other.
__device__ __forceinline__ float2 column_factors(const TileThread& t, const float* inv_y, uint32_t col0, uint32_t m, bool inside,
                                                 int k) {
    const uint32_t col = col0 + t.col(2 * k);
    if (inside) return __ldg(reinterpret_cast<const float2*>(inv_y + col));
    return {col < m ? __ldg(inv_y + col) : 1.0f, col + 1 < m ? __ldg(inv_y + col + 1) : 1.0f};
}

// S = acc * inv_x[row] * inv_y[col], in this order everywhere. A missing factor is 1, which changes no bits.
__device__ __forceinline__ void scale_tile(TileAcc& acc, const TileThread& t, const float* inv_x,
                                           const float* inv_y, uint32_t row0, uint32_t col0, uint32_t n, uint32_t m) {
    if (inv_x != nullptr) {
#pragma unroll
        for (int i = 0; i < kThreadRows; ++i) {
            const uint32_t row = row0 + t.row(i);
            const float f = row < n ? __ldg(inv_x + row) : 1.0f;
#pragma unroll
            for (int k = 0; k < kThreadCols; ++k) element(acc, i, k) *= f;
        }
    }
    if (inv_y != nullptr) {
        const bool inside = col0 + kTileCols <= m && (reinterpret_cast<uintptr_t>(inv_y) & 7) == 0;
        float2 f[kThreadCols / 2];
        if (inside) {
#pragma unroll
            for (int k = 0; k < kThreadCols / 2; ++k) f[k] = column_factors(t, inv_y, col0, m, true, k);
        } else {
#pragma unroll
            for (int k = 0; k < kThreadCols / 2; ++k) f[k] = column_factors(t, inv_y, col0, m, false, k);
        }
#pragma unroll
        for (int k = 0; k < kThreadCols; ++k) {
#pragma unroll
            for (int i = 0; i < kThreadRows; ++i) element(acc, i, k) *= k % 2 == 0 ? f[k / 2].x : f[k / 2].y;
        }
    }
}

// Whether the tile has neither the edge of the matrix nor own pairs in it.
__device__ __forceinline__ bool is_inner(uint32_t row0, uint32_t col0, uint32_t n, uint32_t m) {
    return !on_diagonal(row0, col0) && row0 + kTile <= n && col0 + kTileCols <= m;
}

// Whether a row and a column of the warp's part of an inner tile may be of one group: the lower halves of their numbers tell,
// without a branch. In most tiles they are not, and need no look at pair after pair. The same for a warp.
__device__ __forceinline__ bool may_share_group(const TileThread& t, uint32_t row0, uint32_t col0, const int64_t* row_groups,
                                                const int64_t* col_groups) {
    const auto low = [](const int64_t* group) { return __ldg(reinterpret_cast<const uint32_t*>(group)); };
    uint32_t rows[kThreadRows];
#pragma unroll
    for (int i = 0; i < kThreadRows; ++i) rows[i] = low(row_groups + row0 + t.row(i));
    bool same = false;
#pragma unroll
    for (int k = 0; k < kThreadCols; ++k) {
        const uint32_t col = low(col_groups + col0 + t.col(k));
#pragma unroll
        for (int i = 0; i < kThreadRows; ++i) same |= rows[i] == col;
    }
    return __any_sync(~0u, same);
}

// Which of the thread's elements exist and satisfy `rule`(is the pair, is of the own group): see bit_at().
// Apart from the accumulators and rolled up on purpose: beside them, unrolled tests do not fit the registers.
template <typename Rule>
__device__ __forceinline__ TileBits select_elements(const TileThread& t, uint32_t row0, uint32_t col0, uint32_t n, uint32_t m,
                                                    const int64_t* row_groups, const int64_t* col_groups, Rule rule) {
    const bool grouped = row_groups != nullptr;
    TileBits bits = 0;
#pragma unroll 1
    for (int k = 0; k < kThreadCols; ++k) {
        const uint32_t col = col0 + t.col(k);
        const int64_t group = grouped && col < m ? __ldg(col_groups + col) : 0;
        TileBits column = 0;
#pragma unroll
        for (int i = 0; i < kThreadRows; ++i) {
            const uint32_t row = row0 + t.row(i);
            const bool inside = row < n && col < m;
            const bool same = grouped && inside && __ldg(row_groups + row) == group;
            if (inside && rule(row == col, same)) column |= TileBits(1) << (kThreadCols * i);
        }
        bits |= column << k;
    }
    return bits;
}

__device__ __forceinline__ float exchange(float v, int partner) { return __shfl_xor_sync(~0u, v, partner); }
__device__ __forceinline__ uint32_t exchange(uint32_t v, int partner) { return __shfl_xor_sync(~0u, v, partner); }

// One step of a halving butterfly: of the pairs (2 h, 2 h + 1) of v[0 .. 2 kHalf), lanes with `bit` clear keep the even
// and the others the odd one, joined with the partner's. Textually unrolled: a loop over the steps would index v by a
// run-time value and send it to local memory.
template <int kHalf, typename V, typename Join>
__device__ __forceinline__ void halve(V* v, bool bit, int partner, Join join) {
#pragma unroll
    for (int h = 0; h < kHalf; ++h) {
        const V keep = bit ? v[2 * h + 1] : v[2 * h];
        const V give = bit ? v[2 * h] : v[2 * h + 1];
        v[h] = join(keep, exchange(give, partner));
    }
}

// Joins the values of a row-wise quantity over the 4 lanes that share the rows. On return v[h], h of kJoinedRows, belongs to
// row joined_row(h) of the tile.
template <typename V, typename Join>
__device__ __forceinline__ void join_rows(V (&v)[kThreadRows], const TileThread& t, Join join) {
    if constexpr (kThreadRows == 8) {
        halve<4>(v, t.index & 1, 1, join);
        halve<2>(v, t.index & 2, 2, join);
    } else {
        halve<1>(v, t.index & 1, 1, join);
        v[0] = join(v[0], exchange(v[0], 2));
    }
}

// The same for the 8 lanes that share the columns. On return v[h], h of kJoinedCols, belongs to column joined_col(h).
template <typename V, typename Join>
__device__ __forceinline__ void join_cols(V (&v)[kThreadCols], const TileThread& t, Join join) {
    halve<kThreadCols / 2>(v, t.index & 4, 4, join);
    halve<kThreadCols / 4>(v, t.index & 8, 8, join);
    halve<kThreadCols / 8>(v, t.index & 16, 16, join);
}
// Of eight columns 8 h to 8 h + 7 that of joined_col(h).
template <typename V, typename Join>
__device__ __forceinline__ V join_eight_cols(V (&v)[8], const TileThread& t, Join join) {
    halve<4>(v, t.index & 4, 4, join);
    halve<2>(v, t.index & 8, 8, join);
    halve<1>(v, t.index & 16, 16, join);
    return v[0];
}
