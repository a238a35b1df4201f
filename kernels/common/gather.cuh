// One row of a sparse gradient (eqs. 9 and 2b, docs/maths.md): its terms summed, through the Jacobian where rows are
// normalised, written or added. Shared by weighted_grad_* and goal_small_*, so that both compute the same bits.
#pragma once
#include "common/numeric.cuh"
#include "common/reduce.cuh"
#include "params/weighted_grad.h"

// Columns [col, col + 8) of a row, zeros from column d on.
template <typename T>
__device__ __forceinline__ void load_columns(const T* row, uint32_t col, uint32_t d, float (&v)[kGatherColumns]) {
#pragma unroll
    for (uint32_t part = 0; part < kGatherColumns; part += kVector<T>) {
        float values[kVector<T>];
        load_vector(row, col + part, d, true, values);
#pragma unroll
        for (uint32_t k = 0; k < kVector<T>; ++k) v[part + k] = values[k];
    }
}

// Columns [col, col + 8) of a row as they lie in memory, zeros from column d on.
template <typename T>
struct RawColumns {
    Packed<T> parts[kGatherColumns / kVector<T>];

    __device__ __forceinline__ void load(const T* row, uint32_t col, uint32_t d) {
#pragma unroll
        for (uint32_t part = 0; part < kGatherColumns / kVector<T>; ++part) {
            load_packed(row, col + part * kVector<T>, d, true, parts[part]);
        }
    }
    __device__ __forceinline__ float operator[](uint32_t k) const { return to_f32(parts[k / kVector<T>].lanes[k % kVector<T>]); }
};

// g[k] += coefficient other[row, col + k], which is one more term of the sum.
template <typename T>
__device__ __forceinline__ void add_term(const GatherSide& s, const GatherParams& p, uint32_t row, float coefficient,
                                         uint32_t col, float (&g)[kGatherColumns]) {
    float v[kGatherColumns];
    load_columns(static_cast<const T*>(s.other) + row * s.other_ld, col, p.d, v);
#pragma unroll
    for (uint32_t k = 0; k < kGatherColumns; ++k) g[k] = fmaf(coefficient, v[k], g[k]);
}

// Adds columns [col, col + 8), all inside the rows, of up to kAhead terms, no more than `most`: first all loads, then all
// additions in order. Term k is row source(k) of the other matrix times weight(k).
template <typename T, uint32_t kAhead, typename Source, typename Weight>
__device__ __forceinline__ void add_terms(const GatherSide& s, uint32_t most, uint32_t col, Source source, Weight weight,
                                          float (&g)[kGatherColumns]) {
    constexpr uint32_t kParts = kGatherColumns / kVector<T>;
    const T* other = static_cast<const T*>(s.other) + col;
    RawColumns<T> rows[kAhead];
#pragma unroll
    for (uint32_t k = 0; k < kAhead; ++k) {
        if (k >= most) continue;
        const uint4* row = reinterpret_cast<const uint4*>(other + source(k) * s.other_ld);
#pragma unroll
        for (uint32_t part = 0; part < kParts; ++part) rows[k].parts[part].bits = row[part];
    }
#pragma unroll
    for (uint32_t k = 0; k < kAhead; ++k) {
        if (k >= most) continue;
        const float w = weight(k);
#pragma unroll
        for (uint32_t c = 0; c < kGatherColumns; ++c) g[c] = fmaf(w, rows[k][c], g[c]);
    }
}

// The factor of a row of the other matrix.
__device__ __forceinline__ float inv_of(const GatherSide& s, uint32_t row) {
    return s.other_inv == nullptr ? 1.0f : s.other_inv[row];
}

// Writes columns [col, col + 8) of the result; returns how many became infinite by rounding.
template <typename G>
__device__ __forceinline__ uint32_t write_columns(G* row, uint32_t col, uint32_t d, bool aligned, bool accumulate,
                                                  float (&v)[kGatherColumns]) {
    uint32_t overflow = 0;
#pragma unroll
    for (uint32_t part = 0; part < kGatherColumns; part += kVector<G>) {
        float values[kVector<G>];
        if (accumulate) load_vector(row, col + part, d, aligned, values);
#pragma unroll
        for (uint32_t k = 0; k < kVector<G>; ++k) {
            values[k] = accumulate ? values[k] + v[part + k] : v[part + k];
            if (sizeof(G) == 2) {
                const uint32_t rounded = magnitude_bits(to_f32(from_f32<G>(values[k])));
                if (rounded == kInfinityBits && magnitude_bits(values[k]) < kInfinityBits) ++overflow;
            }
        }
        store_vector(row, col + part, d, aligned, values);
    }
    return overflow;
}

// Row t, by `threads` threads of which this is number `thread`. sum(col, g) gives the sum of the terms in
// columns [col, col + 8), join(v) the sum of v over the row's threads: every one of them calls it once if the rows are
// normalised, and never otherwise. Returns how many of this thread's elements became infinite by rounding.
template <typename T, typename G, typename Sum, typename Join>
__device__ __forceinline__ uint32_t gather_row(const GatherSide& s, const GatherParams& p, uint32_t t, uint32_t thread,
                                               uint32_t threads, Sum sum, Join join) {
    const T* own = static_cast<const T*>(s.own) + t * s.own_ld;  // (d)
    G* out = static_cast<G*>(s.out) + t * s.out_ld;              // (d)
    const uint32_t first = thread * kGatherColumns, step = threads * kGatherColumns;
    const bool normalised = s.own_inv != nullptr;
    const float inv = normalised ? s.own_inv[t] : 1.0f;
    const float to_unit = sizeof(T) == 4 ? 1.0f : inv;
    const int exponent = normalised ? s.own_exponent[t] : 0;
    const float factor = p.upstream == nullptr ? p.factor : *p.upstream * p.factor;
    const bool zero_row = normalised && inv == 0.0f;

    // The first pass finds u . g, the second writes. One step covers a narrow row, which with its sums is then still in the
    // registers; without normalisation there is only the second pass.
    float g[kGatherColumns];
    RawColumns<T> u;
    float radial = 0.0f;
    uint32_t overflow = 0;
#pragma unroll 1
    for (int pass = normalised ? 0 : 1; pass < 2; ++pass) {
        for (uint32_t base = 0; base < p.d; base += step) {
            const uint32_t col = base + first;
            if (pass == 0 || !normalised || p.d > step) {
                if (normalised) u.load(own, col, p.d);  // under way beside the terms
                sum(col, g);
            }
            if (pass == 0) {
#pragma unroll
                for (uint32_t k = 0; k < kGatherColumns; ++k) radial = fmaf(u[k] * to_unit, g[k], radial);
                continue;
            }
            if (normalised) {
#pragma unroll
                for (uint32_t k = 0; k < kGatherColumns; ++k) {
                    const float tangent = g[k] - u[k] * to_unit * radial;
                    g[k] = zero_row ? 0.0f : scale_pow2(tangent * factor * inv, -exponent);
                }
            } else {
#pragma unroll
                for (uint32_t k = 0; k < kGatherColumns; ++k) g[k] *= factor;
            }
            overflow += write_columns(out, col, p.d, s.out_aligned, p.accumulate, g);
        }
        if (pass == 0) radial = join(radial);
    }
    return overflow;
}
