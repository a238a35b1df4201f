// What mine_top_k_* do with a tile, whichever engine makes it: see top_k.cu. Included behind the engine's sweep.
#pragma once
#include "common/epilogue.cuh"
#include "common/top_k.cuh"

// A finished tile is looked at in parts of 64 x 64: 128 lines, to each two lanes of a warp, 16 apart, with 32 elements each.
// Warps 0 to 3 have the rows of a part, the others its columns.
constexpr uint32_t kPart = 64;
constexpr uint32_t kSeen = 32;  // elements of a lane
constexpr uint32_t kParts = 2;  // that lie in the sweep's scratch memory at a time: above each other, or side by side
constexpr bool kAcross = kTileCols > kPart;
static_assert(kTileThreads == 2 * 2 * kPart && kPart == 2 * kSeen, "two lanes per line");
static_assert(kTileCols == (kAcross ? kParts : 1) * kPart, "one or two parts side by side");
static_assert(kParts * kPart * kPart * sizeof(float) <= kScratchBytes, "parts live in the sweep's scratch memory");

// Chunk c / 4 of row r of a part lies at chunk (c / 4) ^ turn(r): neither 8 bytes of four rows, which is how the accumulators
// come, nor 16 bytes of eight rows nor 16 columns of two rows 32 apart meet a bank conflict.
__device__ __forceinline__ constexpr uint32_t turn(uint32_t r) { return ((r & 3) << 1 | (r >> 2 & 1)) ^ (r >> 5 << 2); }
__device__ __forceinline__ constexpr uint32_t part_at(uint32_t r, uint32_t c) { return r * kPart + (c ^ turn(r) * 4); }

// The lowest `count` bits; all from 32 on.
__device__ __forceinline__ uint32_t low_bits(uint32_t count) { return count >= 32 ? ~0u : (1u << count) - 1; }

// One line (a row or a column of the part at hand), in one slot of its direction. Both lanes know its bounds; the first one
// has its list.
struct TopKLine {
    const TopKParams& p;
    const uint32_t lane;
    const uint32_t in_part;  // the line
    const bool is_row;
    uint32_t line;
    uint32_t slot;
    bool exists;
    uint32_t first;  // candidate at the part's first element
    uint32_t survivors;
    int32_t easiest_index;
    float easiest;
    float low;
    float high;
    float bound;   // only elements above it can belong into the list; see pass_bound()
    bool fresh;    // nothing has been offered to it in this slot; the same for all lines of a warp
    bool changed;  // what `few` holds
    TopKHeap left_out;
    TopKHeap best;
    TopKShort few;

    __device__ __forceinline__ const TopKSide& side() const { return is_row ? p.rows : p.cols; }
    __device__ __forceinline__ uint32_t* state(uint32_t plane) const {
        const TopKSide& s = side();
        return s.state + (size_t(plane) * s.slots + slot) * s.len + line;
    }
    __device__ __forceinline__ bool leads() const { return (lane & 16) == 0; }
    __device__ __forceinline__ uint32_t seen_from() const { return lane & 16 ? kSeen : 0; }

    __device__ __forceinline__ TopKLine(const TopKParams& params, uint32_t thread)
        : p(params), lane(thread & 31), in_part((thread >> 5 & 3) * 16 + (thread & 15)), is_row(thread < 2 * kPart) {
        slot = is_row ? p.row_slot + blockIdx.x : blockIdx.y;
    }

    // Whether the list is `few`, else `best`; the same for all lines of a warp.
    __device__ __forceinline__ bool is_short() const { return p.pick == kPickHardest && side().keep <= kShort; }

    // The line of the part whose corner is (row0, col0).
    __device__ __forceinline__ void open(uint32_t row0, uint32_t col0, bool is_fresh) {
        fresh = is_fresh;
        changed = is_fresh;
        line = (is_row ? row0 : col0) + in_part;
        first = is_row ? col0 : row0;
        const TopKSide& s = side();
        exists = line < s.len;
        survivors = 0;
        easiest_index = kNobody;
        easiest = 0.0f;
        low = p.low;
        high = p.high;
        bound = pass_all();
        if (!exists) return;
        TopKEntry* const list = s.lists + (size_t(slot) * s.len + line) * (s.skip + s.keep);
        best.at = list + s.skip;
        if (is_short()) {
            if (!fresh) bound = __uint_as_float(*state(1));
            few.clear(s.keep);
            if (!fresh && leads()) few.load(best.at, s.keep);
        } else {
            const bool drawn = p.pick != kPickHardest;  // else `bound` says what the list takes
            best.open(best.at, s.keep, fresh ? 0 : *state(0), leads() && drawn);
            if (!fresh && !drawn) bound = __uint_as_float(*state(1));
            left_out.open(list, s.skip, fresh || !drawn ? 0 : *state(1), leads() && drawn);
        }
        if (!fresh) {
            survivors = *state(2);
            if (p.easiest) {
                easiest_index = int32_t(*state(3));
                easiest = __uint_as_float(*state(4));
            }
        }
        set_bounds();
    }

    // On to the part behind the one at hand.
    __device__ __forceinline__ void go_on() {
        first += kPart;
        fresh = false;
        bound = __shfl_sync(~0u, bound, lane & 15);
    }

    // Bounds: elements v with !(v <= bound) may belong into the list, which for NaN are all. Elements come in ascending order
    // of their indices, so that one equal to the last entry of a full list does not.
    __device__ __forceinline__ static float pass_all() { return __int_as_float(0x7fffffff); }
    __device__ __forceinline__ static float pass_bound(float last) { return last != last ? pos_infinity() : last; }

    // The similarities of survivors: the window, and what is strictly below the margin's bound as the f64 that it is.
    __device__ __forceinline__ void set_bounds() {
        if (p.margin_kind == kMarginNone) return;
        const double pos = line < p.pairs ? double(p.pos[line]) : double(__int_as_float(0x7fc00000));
        const double width = p.margin_kind == kMarginAbsolute ? p.margin : __dmul_rn(p.margin, fabs(pos));
        const double limit64 = __dsub_rn(pos, width);
        const float down = __double2float_rd(limit64);
        const float limit = double(down) == limit64 ? bound_below(down) : down;
        if (!(limit >= high)) high = limit;
    }

    __device__ __forceinline__ void store() const {
        if (!exists || !leads()) return;
        if (is_short()) {
            if (changed) {
                *state(0) = few.store(best.at, side().keep);
                *state(1) = __float_as_uint(bound);
            }
        } else {
            *state(0) = best.count;
            *state(1) = p.pick == kPickHardest ? __float_as_uint(bound) : left_out.count;
        }
        *state(2) = survivors;
        if (!p.easiest) return;
        *state(3) = uint32_t(easiest_index);
        *state(4) = __float_as_uint(easiest);
    }

    // Which of the lane's elements are candidates.
    __device__ __forceinline__ uint32_t candidates() const {
        const uint32_t extent = is_row ? p.m : p.n;
        const uint32_t from = first + seen_from();
        if (!exists || from >= extent) return 0;
        uint32_t bits = low_bits(extent - from);
        if (p.own_pairs && line - from < kSeen) bits &= ~(1u << (line - from));
        if (p.row_ids == nullptr) return bits;
        const int64_t* const ids = is_row ? p.col_ids : p.row_ids;
        const int64_t id = (is_row ? p.row_ids : p.col_ids)[line];
        uint32_t own = 0;
#pragma unroll 8
        for (uint32_t j = 0; j < kSeen; ++j) own |= ids[min(from + j, extent - 1)] == id ? 1u << j : 0;
        if (p.stamps != nullptr) {
#pragma unroll 8
            for (uint32_t j = 0; j < kSeen; ++j) own &= p.stamps[min(from + j, extent - 1)] >= p.oldest ? ~0u : ~(1u << j);
        }
        bits &= ~own;
        return bits;
    }

    __device__ __forceinline__ float value(const float* part, uint32_t element) const {
        return part[is_row ? part_at(in_part, element) : part_at(element, in_part)];
    }

    // The lane's elements.
    __device__ __forceinline__ void load(float (&v)[kSeen], const float* part) const {
        const uint32_t from = seen_from();
        if (is_row) {
            const float* const row = part + in_part * kPart + from;
#pragma unroll
            for (uint32_t q = 0; q < kSeen / 4; ++q) {
                const float4 four = *reinterpret_cast<const float4*>(row + (q ^ turn(in_part)) * 4);
                v[4 * q] = four.x;
                v[4 * q + 1] = four.y;
                v[4 * q + 2] = four.z;
                v[4 * q + 3] = four.w;
            }
        } else {
            const float* const rows = part + from * kPart + (in_part & 3);
            const uint32_t chunk = in_part / 4 ^ turn(from);
#pragma unroll
            for (uint32_t j = 0; j < kSeen; ++j) v[j] = rows[j * kPart + (chunk ^ turn(j)) * 4];
        }
    }

    __device__ __forceinline__ uint32_t see_survivors(const float (&v)[kSeen], uint32_t bits) const {
        if (p.admits_nan) return bits;
        uint32_t inside = 0;
#pragma unroll
        for (uint32_t j = 0; j < kSeen; ++j) inside |= (v[j] >= low) & (v[j] <= high) ? 1u << j : 0;
        return bits & inside;
    }
    __device__ __forceinline__ uint32_t see_passed(const float (&v)[kSeen], uint32_t bits) const {
        uint32_t passed = 0;
#pragma unroll
        for (uint32_t j = 0; j < kSeen; ++j) passed |= v[j] <= bound ? 0 : 1u << j;
        return bits & passed;
    }
    // The bound of a line's first part, which nearly all elements would pass otherwise. The two lanes' survivors form 8
    // groups: what the maxima of as many groups reach as the list has places, so many survivors do, and none below is selected.
    __device__ __forceinline__ float first_bound(const float (&v)[kSeen], uint32_t bits) const {
        constexpr uint32_t kGroups = kSeen / 8;
        float top[2 * kGroups];
#pragma unroll
        for (uint32_t g = 0; g < kGroups; ++g) {
            top[g] = neg_infinity();
#pragma unroll
            for (uint32_t j = 8 * g; j < 8 * g + 8; ++j) top[g] = fmaxf(top[g], bits & 1u << j ? v[j] : neg_infinity());
            top[kGroups + g] = exchange(top[g], 16);
        }
        float found = neg_infinity();
#pragma unroll
        for (uint32_t g = 0; g < 2 * kGroups; ++g) {
            uint32_t as_large = 0;
#pragma unroll
            for (uint32_t h = 0; h < 2 * kGroups; ++h) as_large += top[h] >= top[g];
            if (as_large >= side().keep) found = fmaxf(found, top[g]);
        }
        return bound_below(found);
    }
    // The smallest candidate is of interest as long as nothing survives.
    __device__ __forceinline__ uint32_t see_easy(const float (&v)[kSeen], uint32_t bits) const {
        if (easiest_index < 0 || easiest != easiest) return bits;
        uint32_t easy = 0;
#pragma unroll
        for (uint32_t j = 0; j < kSeen; ++j) easy |= v[j] < easiest ? 1u << j : 0;
        return easy & bits;
    }

    __device__ __forceinline__ void offer_easy(float v, int32_t index) {
        const uint64_t key = order_key(v);
        const uint64_t least = order_key(easiest);
        if (easiest_index >= 0 && (key > least || (key == least && index > easiest_index))) return;
        easiest = v;
        easiest_index = index;
    }
    // A survivor.
    __device__ __forceinline__ void offer(float v, int32_t index) {
        TopKEntry e{order_key(v), v, index};
        if (p.pick == kPickHardest) {
            if (v <= bound) return;
            if (v != v && best.full()) {
                // Whether one NaN more belongs into the list is not said by a comparison.
                best.root = load_entry(best.at);
                if (!best.takes(e)) return;
            }
            best.put(e);
            if (best.full()) bound = pass_bound(best.root.value);
            return;
        }
        if (left_out.places > 0) {
            if (left_out.takes(e)) e = left_out.put(e);
            if (e.index < 0) return;
        }
        e.key = TopKKeys{side().start, p.far, p.near, p.pick}.key(line, e.index, e.value);
        if (best.takes(e)) best.put(e);
    }

    // The line's elements in the part, by its two lanes. The rare ones go to its list one by one.
    __device__ __forceinline__ void scan(const float* part) {
        float v[kSeen];
        load(v, part);
        const uint32_t bits = candidates();
        const uint32_t alive = see_survivors(v, bits);
        const uint32_t count = __popc(alive);
        survivors += count + exchange(count, 16);
        if (fresh && is_short()) bound = first_bound(v, alive);
        const uint32_t passed = see_passed(v, alive);
        const uint32_t easy = p.easiest && survivors == 0 ? see_easy(v, bits) : 0;
        const uint64_t to_list = uint64_t(exchange(passed, 16)) << 32 | passed;
        const uint64_t to_easy = uint64_t(exchange(easy, 16)) << 32 | easy;
        if (!leads()) return;
        const int32_t index = int32_t(is_row ? p.offset + first : first);
        if (is_short()) {
            for_each(to_list, [&](int32_t at) { changed |= few.offer(value(part, at), index + at); });
            if (few.full()) bound = pass_bound(few.last());
        } else {
            for_each(to_list, [&](int32_t at) { offer(value(part, at), index + at); });
        }
        for_each(to_easy, [&](int32_t at) { offer_easy(value(part, at), index + at); });
    }
    template <typename Body>
    __device__ __forceinline__ static void for_each(uint64_t bits, Body body) {
#pragma unroll 1
        for (; bits != 0; bits &= bits - 1) body(__ffsll(int64_t(bits)) - 1);
    }
};

// The thread's elements of a round, to the parts.
__device__ __forceinline__ void write_parts(const TileAcc& acc, const TileThread& thread, uint32_t round, float* parts) {
    const uint32_t above = thread.row(0) / kPart;
    if (kAcross && above != round) return;
    float* const part = parts + (kAcross ? thread.col(0) / kPart : above) * (kPart * kPart);
#pragma unroll
    for (int i = 0; i < kThreadRows; ++i) {
        const uint32_t r = thread.row(i) % kPart;
#pragma unroll
        for (int k = 0; k < kThreadCols; k += 2) {
            *reinterpret_cast<float2*>(part + part_at(r, thread.col(k) % kPart)) = {element(acc, i, k), element(acc, i, k + 1)};
        }
    }
}

__device__ __forceinline__ void clear_lines(const TopKSide& s, uint32_t slot, uint32_t line, uint32_t end) {
    for (line += threadIdx.x; line < min(end, s.len); line += kTileThreads) {
        for (uint32_t plane = 0; plane < kTopKPlanes; ++plane) {
            s.state[(size_t(plane) * s.slots + slot) * s.len + line] = plane == 3 ? uint32_t(kNobody) : 0;
        }
    }
}

template <typename Sweep>
__device__ __forceinline__ void select_tiles(const TopKParams& p, Sweep& sweep, const TileRect& rect) {
    const auto select = [&](TileAcc& acc, uint32_t r, uint32_t c, char* scratch) {
        const uint32_t row0 = r * kTile;
        const uint32_t col0 = c * kTileCols;
        scale_tile(acc, TileThread(), p.inv_x, p.inv_y, row0, col0, p.n, p.m);
        float* const parts = reinterpret_cast<float*>(scratch);
#pragma unroll 1
        for (uint32_t round = 0; round < (kAcross ? kTile / kPart : 1); ++round) {
            if (row0 + round * kPart >= p.n) break;
            const TileThread thread;  // here, so that no addresses are kept through the products
            TopKLine line(p, thread.index);
            // Columns of parts above each other go through both. Rows of parts side by side could, but f32 lacks the registers.
            const bool stays = !kAcross && !line.is_row && row0 + kPart < p.n;
            tile_sync();  // the scratch memory is free: its products are done, and what it held was scanned
#pragma unroll 1
            for (uint32_t s = 0; s < kParts; ++s) {
                const uint32_t part_row = row0 + (kAcross ? round : s) * kPart;
                const uint32_t part_col = col0 + (kAcross ? s : 0) * kPart;
                if (part_row >= p.n || part_col >= p.m) break;
                if (s == 1) __syncwarp();  // the second lane of a line sees what the first has stored
                if (s == 1 && stays) line.go_on();
                else line.open(part_row, part_col, line.is_row ? part_col == rect.c * kTileCols : part_row == rect.r * kTile);
                if (s == 0) {
                    write_parts(acc, thread, round, parts);
                    tile_sync();  // the parts are in place
                }
                line.scan(parts + s * (kPart * kPart));
                if (s == 1 || !stays) line.store();
            }
        }
    };
#ifdef SIMGRAD_GROUP_TILE
    sweep.template run<false>(select);
#else
    sweep.run(select);
#endif
    if (!rect.empty() || !sweep.holds()) return;
    // Without a tile nothing has said yet that the lists are empty.
    clear_lines(p.rows, p.row_slot + blockIdx.x, rect.r * kTile, rect.r_end * kTile);
    clear_lines(p.cols, blockIdx.y, rect.c * kTileCols, rect.c_end * kTileCols);
}

#ifdef SIMGRAD_GROUP_TILE
template <typename T>
__device__ __forceinline__ void select_groups(const TensorMaps& maps, const TopKParams& p) {
    extern __shared__ __align__(1024) char shared[];
    const TileRect rect = tile_rect(0, tiles_of(p.n), p.m, p.row_splits, p.col_splits);
    RectSweep<T> sweep(shared, maps, p.d, rect);
    select_tiles(p, sweep, rect);
}
#endif
