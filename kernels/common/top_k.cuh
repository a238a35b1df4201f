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

// An entry of a list in global memory, in one access.
__device__ __forceinline__ TopKEntry load_entry(const TopKEntry* at) {
    const uint4 words = *reinterpret_cast<const uint4*>(at);
    return {uint64_t(words.y) << 32 | words.x, __uint_as_float(words.z), int32_t(words.w)};
}
__device__ __forceinline__ void store_entry(TopKEntry* at, const TopKEntry& e) {
    *reinterpret_cast<uint4*>(at) = {uint32_t(e.key), uint32_t(e.key >> 32), __float_as_uint(e.value), uint32_t(e.index)};
}

// The best `places` entries so far as a heap whose root comes last, in memory that only this thread touches.
struct TopKHeap {
    TopKEntry* at;
    uint32_t places;
    uint32_t count;
    TopKEntry root;  // once all places are taken; else such that every entry comes before it

    // `known`: whether the root is read; without, takes() cannot be asked before put().
    __device__ __forceinline__ void open(TopKEntry* first, uint32_t room, uint32_t used, bool known) {
        at = first;
        places = room;
        count = used;
        root = {0, 0.0f, kNobody};
        if (known && full()) root = load_entry(at);
    }
    __device__ __forceinline__ bool full() const { return count == places && places > 0; }
    __device__ __forceinline__ bool takes(const TopKEntry& e) const { return comes_after(root, e); }
    // Takes `e`, which takes(e) admits. Returns the entry that had to go, or one with index -1.
    __device__ __forceinline__ TopKEntry put(const TopKEntry& e) {
        uint32_t i = 0;
        const TopKEntry gone = root;
        if (count < places) {
            i = count++;
            while (i > 0) {
                const TopKEntry parent = load_entry(at + (i - 1) / 2);
                if (!comes_after(e, parent)) break;
                store_entry(at + i, parent);
                i = (i - 1) / 2;
            }
            store_entry(at + i, e);
            if (count == places) root = i == 0 ? e : load_entry(at);
            return gone;
        }
        root = e;
        for (uint32_t child = 1; child < count; child = 2 * i + 1) {
            TopKEntry last = load_entry(at + child);
            if (child + 1 < count) {
                const TopKEntry other = load_entry(at + child + 1);
                if (comes_after(other, last)) {
                    last = other;
                    ++child;
                }
            }
            if (!comes_after(last, e)) break;
            store_entry(at + i, last);
            if (i == 0) root = last;
            i = child;
        }
        store_entry(at + i, e);
        return gone;
    }
};

// The same for at most kShort places, by similarity: in registers, in order. Entries are offered in ascending order of their
// indices, so that the upper words of the keys decide. The last `places` are those of the list; what stands in front of them
// gives way to nothing, and a place without a candidate to everything.
constexpr uint32_t kShort = 8;
struct TopKShort {
    uint32_t key[kShort];
    float value[kShort];
    int32_t index[kShort];

    __device__ __forceinline__ void clear(uint32_t places) {
#pragma unroll
        for (uint32_t i = 0; i < kShort; ++i) {
            key[i] = i + places < kShort ? ~0u : 0;
            value[i] = neg_infinity();
            index[i] = kNobody;
        }
    }
    // Behind clear().
    __device__ __forceinline__ void load(const TopKEntry* at, uint32_t places) {
#pragma unroll
        for (uint32_t i = 0; i < kShort; ++i) {
            if (i + places < kShort) continue;
            const TopKEntry e = load_entry(at + (i + places - kShort));
            key[i] = uint32_t(e.key >> 32);
            value[i] = e.value;
            index[i] = e.index;
        }
    }
    // All places, also those without a candidate. Returns how many have one.
    __device__ __forceinline__ uint32_t store(TopKEntry* at, uint32_t places) const {
        uint32_t count = 0;
#pragma unroll
        for (uint32_t i = 0; i < kShort; ++i) {
            if (i + places < kShort) continue;
            store_entry(at + (i + places - kShort), {uint64_t(key[i]) << 32, value[i], index[i]});
            count += index[i] >= 0;
        }
        return count;
    }
    __device__ __forceinline__ bool full() const { return index[kShort - 1] >= 0; }
    __device__ __forceinline__ float last() const { return value[kShort - 1]; }

    // Whether `v` belongs into the list, where it then is.
    __device__ __forceinline__ bool offer(float v, int32_t at) {
        const uint32_t k = uint32_t(order_key(v) >> 32);
        if (k <= key[kShort - 1]) return false;
        constexpr uint32_t kHalfway = kShort / 2;
        const bool upper = k > key[kHalfway - 1];
        insert<kHalfway>(k, v, at, upper);
        if (upper) insert<0>(k, v, at, false);
        return true;
    }

  private:
    // Makes room in half the places, from kFirst on. `over`: the one in front of them goes to the first.
    template <uint32_t kFirst>
    __device__ __forceinline__ void insert(uint32_t k, float v, int32_t at, bool over) {
#pragma unroll
        for (uint32_t i = kFirst + kShort / 2; i-- > kFirst;) {
            const uint32_t front = i == 0 ? 0 : i - 1;
            const bool moves = i == kFirst ? over : k > key[front];
            const bool here = k > key[i];
            key[i] = moves ? key[front] : here ? k : key[i];
            value[i] = moves ? value[front] : here ? v : value[i];
            index[i] = moves ? index[front] : here ? at : index[i];
        }
    }
};
