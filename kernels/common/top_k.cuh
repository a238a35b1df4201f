// Keys, and the list of the best candidates of a line: what mine_top_k_* and mine_top_k_merge share.
#pragma once
#include <stdint.h>

#include "common/order.cuh"
#include "params/top_k.h"

constexpr int32_t kNobody = -1;

// An integer that orders similarities: NaN above everything, -0 equal to +0.
__device__ __forceinline__ uint64_t order_key(float v) {
    if (v != v) return ~uint64_t(0);
    const uint32_t bits = __float_as_uint(v + 0.0f);
    return uint64_t(bits >> 31 ? ~bits : bits | 0x80000000u) << 32;
}

__device__ __forceinline__ uint64_t order_key(double v) {
    const uint64_t bits = uint64_t(__double_as_longlong(__dadd_rn(v, 0.0)));
    return bits >> 63 ? ~bits : bits | uint64_t(1) << 63;
}

// The output function of SplitMix64.
__device__ __forceinline__ uint64_t mix_bits(uint64_t z) {
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    return z ^ (z >> 31);
}

__device__ __forceinline__ uint64_t random_bits(uint64_t start, uint32_t anchor, int32_t candidate) {
    return mix_bits(start + (uint64_t(anchor) << 32 | uint32_t(candidate)) * 0x9e3779b97f4a7c15ull);
}

// The natural logarithm of a normal positive number, by the operations of src/cpu/top_k/keys.rs in their order: equal bits on
// every backend. Intrinsics, because the compiler would fuse multiplications and additions.
__device__ __forceinline__ double ln_steps(double x) {
    const int64_t bits = __double_as_longlong(x);
    const int64_t exponent = (bits - 0x3fe6a09e667f3bcdll) >> 52;
    const double m = __longlong_as_double(bits - int64_t(uint64_t(exponent) << 52));
    const double z = __ddiv_rn(__dsub_rn(m, 1.0), __dadd_rn(m, 1.0));
    const double square = __dmul_rn(z, z);
    double sum = 2.0 / 21.0;
    const auto step = [&](double c) { sum = __dadd_rn(__dmul_rn(sum, square), c); };
    step(2.0 / 19.0);
    step(2.0 / 17.0);
    step(2.0 / 15.0);
    step(2.0 / 13.0);
    step(2.0 / 11.0);
    step(2.0 / 9.0);
    step(2.0 / 7.0);
    step(2.0 / 5.0);
    step(2.0 / 3.0);
    step(2.0 / 1.0);
    return __dadd_rn(__dmul_rn(double(exponent), 0.693147180559945309417), __dmul_rn(z, sum));
}

// The key of a survivor.
struct TopKKeys {
    uint64_t start;
    double far;
    double near;
    uint32_t pick;

    __device__ __forceinline__ uint64_t key(uint32_t anchor, int32_t candidate, float value) const {
        if (pick == kPickHardest) return order_key(value);
        const uint64_t bits = random_bits(start, anchor, candidate);
        if (pick == kPickRandom) return bits;
        const double s = value < 0.875f ? double(value) : 0.875;
        const double weight = __dadd_rn(__dmul_rn(far, ln_steps(__dsub_rn(2.0, __dmul_rn(2.0, s)))),
                                        __dmul_rn(near, ln_steps(__dmul_rn(__dadd_rn(1.0, s), 0.5))));
        const double uniform = __dmul_rn(__dadd_rn(double(bits >> 12), 0.5), 0x1p-52);
        return order_key(__dsub_rn(weight, ln_steps(-ln_steps(uniform))));
    }
};

// Whether `a` comes after `b`. A place without a candidate has key 0 and index -1, and comes after all.
__device__ __forceinline__ bool comes_after(uint64_t a_key, int32_t a_index, uint64_t b_key, int32_t b_index) {
    return a_key < b_key || (a_key == b_key && uint32_t(a_index) > uint32_t(b_index));
}
__device__ __forceinline__ bool comes_after(const TopKEntry& a, const TopKEntry& b) {
    return comes_after(a.key, a.index, b.key, b.index);
}

// The best `places` entries so far as a heap whose root comes last, in memory that only this thread touches.
struct TopKHeap {
    TopKEntry* at;
    uint32_t places;
    uint32_t count;
    uint64_t floor_key;   // of the root once all places are taken, else such that every entry comes before it
    int32_t floor_index;

    __device__ __forceinline__ void open(TopKEntry* first, uint32_t room, uint32_t used) {
        at = first;
        places = room;
        count = used;
        set_floor();
    }
    __device__ __forceinline__ void set_floor() {
        const bool full = count == places && places > 0;
        floor_key = full ? at[0].key : 0;
        floor_index = full ? at[0].index : kNobody;
    }
    __device__ __forceinline__ bool takes(const TopKEntry& e) const {
        return comes_after(floor_key, floor_index, e.key, e.index);
    }
    // Takes `e`, which takes(e) has admitted. Returns the entry that had to go, or one with index -1.
    __device__ __forceinline__ TopKEntry put(const TopKEntry& e) {
        if (count < places) {
            uint32_t i = count++;
            while (i > 0 && comes_after(e, at[(i - 1) / 2])) {
                at[i] = at[(i - 1) / 2];
                i = (i - 1) / 2;
            }
            at[i] = e;
            if (count == places) set_floor();
            return {0, 0.0f, kNobody};
        }
        const TopKEntry gone = at[0];
        uint32_t i = 0;
        for (uint32_t child = 1; child < count; child = 2 * i + 1) {
            if (child + 1 < count && comes_after(at[child + 1], at[child])) ++child;
            if (!comes_after(at[child], e)) break;
            at[i] = at[child];
            i = child;
        }
        at[i] = e;
        set_floor();
        return gone;
    }
};
