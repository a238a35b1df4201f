// What sm_90a adds: barriers in shared memory that count bytes, tensor copies, products of a warpgroup, clusters.
// Addresses of shared memory are the 32-bit ones of the shared window.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <stdint.h>

__device__ __forceinline__ uint32_t shared_address(const void* p) { return uint32_t(__cvta_generic_to_shared(p)); }

// --- barriers ---------------------------------------------------------------------------------------------------------

__device__ __forceinline__ void barrier_init(uint32_t barrier, uint32_t arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}
// Makes the initialised barriers known to the other blocks of the cluster and to tensor copies.
__device__ __forceinline__ void barrier_init_fence() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }
__device__ __forceinline__ void barrier_expect(uint32_t barrier, uint32_t bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}
__device__ __forceinline__ void barrier_arrive(uint32_t barrier) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}
// At the barrier of the same place in block `rank` of the cluster. Orders nothing but what this block did: with the scope of
// the cluster every arrival would wait for all stores of the block and every wait would empty the first-level cache. What
// blocks of a cluster tell each other is that products have read a stage, and those are over before (products_wait); what
// arrives in a stage comes by tensor copies, which the barrier's bytes order.
__device__ __forceinline__ void barrier_arrive_at(uint32_t barrier, uint32_t rank) {
    asm volatile(
        "{\n.reg .b32 remote;\n"
        "mapa.shared::cluster.u32 remote, %0, %1;\n"
        "mbarrier.arrive.shared::cluster.b64 _, [remote];\n}" ::"r"(barrier), "r"(rank)
        : "memory");
}
// Until the phase of this parity is complete.
__device__ __forceinline__ void barrier_wait(uint32_t barrier, uint32_t parity) {
    asm volatile(
        "{\n.reg .pred done;\n"
        "again:\n"
        "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
        "@!done bra again;\n}" ::"r"(barrier), "r"(parity)
        : "memory");
}

// --- tensor copies ----------------------------------------------------------------------------------------------------

// A tensor map, 128 bytes of which the driver knows the meaning: CUtensorMap.
struct alignas(128) TensorMap {
    uint64_t opaque[16];
};
// Rows of both operands, as matrices of a batch: (d, n, batch), (d, m, batch).
struct TensorMaps {
    TensorMap x;
    TensorMap y;
};

__device__ __forceinline__ void prefetch_map(const TensorMap& map) {
    asm volatile("prefetch.tensormap [%0];" ::"l"(&map) : "memory");
}
// A box from (element k of a row, row, matrix) on; what lies outside arrives as zeros, and its bytes count.
__device__ __forceinline__ void copy_box(uint32_t to, const TensorMap& map, uint32_t barrier, int32_t k, int32_t row,
                                         int32_t matrix) {
    asm volatile(
        "cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5}], [%2];" ::"r"(to),
        "l"(&map), "r"(barrier), "r"(k), "r"(row), "r"(matrix)
        : "memory");
}
// The same to the same place in all blocks of `mask`, each of which is told by its own barrier.
__device__ __forceinline__ void copy_box_to(uint32_t to, const TensorMap& map, uint32_t barrier, int32_t k, int32_t row,
                                            int32_t matrix, uint16_t mask) {
    asm volatile(
        "cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.multicast::cluster [%0], "
        "[%1, {%3, %4, %5}], [%2], %6;" ::"r"(to),
        "l"(&map), "r"(barrier), "r"(k), "r"(row), "r"(matrix), "h"(mask)
        : "memory");
}

// --- clusters and registers -------------------------------------------------------------------------------------------

__device__ __forceinline__ uint32_t cluster_rank() {
    uint32_t rank;
    asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
    return rank;
}
// All threads of all blocks of the cluster; a warp's may come apart.
__device__ __forceinline__ void cluster_sync() {
    asm volatile("barrier.cluster.arrive.release;\nbarrier.cluster.wait.acquire;" ::: "memory");
}
template <uint32_t kCount>
__device__ __forceinline__ void take_registers() {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kCount));
}
template <uint32_t kCount>
__device__ __forceinline__ void give_registers() {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kCount));
}

// --- products ---------------------------------------------------------------------------------------------------------

// Rows of 128 bytes, 16-byte chunk c of row r at c ^ (r & 7), in blocks of 8 rows 1024 bytes apart: as tensor copies with a
// swizzle of 128 bytes lay them down. Advances by 32 bytes for 16 elements of k, so by 2 in units of 16 bytes.
__device__ __forceinline__ uint64_t deep_operand(uint32_t address) {
    return uint64_t((address & 0x3ffff) >> 4) | uint64_t(1) << 16 | uint64_t(1024 >> 4) << 32 | uint64_t(1) << 62;
}

__device__ __forceinline__ void products_begin() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void products_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int kPending>
__device__ __forceinline__ void products_wait() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}

// c (+)= A B of 64 rows, kCols columns and 16 elements of k, both operands in shared memory. `kAcross`: bit 0, A has its rows
// and not its k along the 128 bytes; bit 1, B its columns. Accumulator (n / 8) 4 + e of a thread is column 8 (n / 8) +
// 2 (lane % 4) + e % 2 of row 16 (warp % 4) + lane / 4 + 8 (e / 2).
template <typename T, int kCols, int kAcross = 0>
__device__ __forceinline__ void multiply_group(float* c, uint64_t a, uint64_t b, bool adds);

#define SIMGRAD_MULTIPLY_64(T, NAME, ACROSS)                                                         \
    template <>                                                                                   \
    __device__ __forceinline__ void multiply_group<T, 64, ACROSS>(float* c, uint64_t a, uint64_t b, bool adds) { \
        asm volatile(                                                                             \
            "{\n.reg .pred adds;\n"                                                               \
            "setp.ne.b32 adds, %34, 0;\n"                                                     \
            "wgmma.mma_async.sync.aligned.m64n64k16.f32." NAME "." NAME " {"                     \
            "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, " \
            "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, " \
            "%32, %33, adds, 1, 1, %35, %36;\n}"                                               \
            : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3]), "+f"(c[4]), "+f"(c[5]), \
              "+f"(c[6]), "+f"(c[7]), "+f"(c[8]), "+f"(c[9]), "+f"(c[10]), "+f"(c[11]), \
              "+f"(c[12]), "+f"(c[13]), "+f"(c[14]), "+f"(c[15]), "+f"(c[16]), "+f"(c[17]), \
              "+f"(c[18]), "+f"(c[19]), "+f"(c[20]), "+f"(c[21]), "+f"(c[22]), "+f"(c[23]), \
              "+f"(c[24]), "+f"(c[25]), "+f"(c[26]), "+f"(c[27]), "+f"(c[28]), "+f"(c[29]), \
              "+f"(c[30]), "+f"(c[31]) \
            : "l"(a), "l"(b), "r"(uint32_t(adds)), "n"(ACROSS & 1), "n"(ACROSS >> 1 & 1));        \
    }
#define SIMGRAD_MULTIPLY_128(T, NAME, ACROSS)                                                         \
    template <>                                                                                   \
    __device__ __forceinline__ void multiply_group<T, 128, ACROSS>(float* c, uint64_t a, uint64_t b, bool adds) { \
        asm volatile(                                                                             \
            "{\n.reg .pred adds;\n"                                                               \
            "setp.ne.b32 adds, %66, 0;\n"                                                     \
            "wgmma.mma_async.sync.aligned.m64n128k16.f32." NAME "." NAME " {"                     \
            "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, " \
            "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, " \
            "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, " \
            "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}, " \
            "%64, %65, adds, 1, 1, %67, %68;\n}"                                               \
            : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3]), "+f"(c[4]), "+f"(c[5]), \
              "+f"(c[6]), "+f"(c[7]), "+f"(c[8]), "+f"(c[9]), "+f"(c[10]), "+f"(c[11]), \
              "+f"(c[12]), "+f"(c[13]), "+f"(c[14]), "+f"(c[15]), "+f"(c[16]), "+f"(c[17]), \
              "+f"(c[18]), "+f"(c[19]), "+f"(c[20]), "+f"(c[21]), "+f"(c[22]), "+f"(c[23]), \
              "+f"(c[24]), "+f"(c[25]), "+f"(c[26]), "+f"(c[27]), "+f"(c[28]), "+f"(c[29]), \
              "+f"(c[30]), "+f"(c[31]), "+f"(c[32]), "+f"(c[33]), "+f"(c[34]), "+f"(c[35]), \
              "+f"(c[36]), "+f"(c[37]), "+f"(c[38]), "+f"(c[39]), "+f"(c[40]), "+f"(c[41]), \
              "+f"(c[42]), "+f"(c[43]), "+f"(c[44]), "+f"(c[45]), "+f"(c[46]), "+f"(c[47]), \
              "+f"(c[48]), "+f"(c[49]), "+f"(c[50]), "+f"(c[51]), "+f"(c[52]), "+f"(c[53]), \
              "+f"(c[54]), "+f"(c[55]), "+f"(c[56]), "+f"(c[57]), "+f"(c[58]), "+f"(c[59]), \
              "+f"(c[60]), "+f"(c[61]), "+f"(c[62]), "+f"(c[63]) \
            : "l"(a), "l"(b), "r"(uint32_t(adds)), "n"(ACROSS & 1), "n"(ACROSS >> 1 & 1));        \
    }
#define SIMGRAD_MULTIPLY_256(T, NAME, ACROSS)                                                         \
    template <>                                                                                   \
    __device__ __forceinline__ void multiply_group<T, 256, ACROSS>(float* c, uint64_t a, uint64_t b, bool adds) { \
        asm volatile(                                                                             \
            "{\n.reg .pred adds;\n"                                                               \
            "setp.ne.b32 adds, %130, 0;\n"                                                     \
            "wgmma.mma_async.sync.aligned.m64n256k16.f32." NAME "." NAME " {"                     \
            "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, " \
            "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, " \
            "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, " \
            "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, " \
            "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, " \
            "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, " \
            "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, " \
            "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127}, " \
            "%128, %129, adds, 1, 1, %131, %132;\n}"                                               \
            : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3]), "+f"(c[4]), "+f"(c[5]), \
              "+f"(c[6]), "+f"(c[7]), "+f"(c[8]), "+f"(c[9]), "+f"(c[10]), "+f"(c[11]), \
              "+f"(c[12]), "+f"(c[13]), "+f"(c[14]), "+f"(c[15]), "+f"(c[16]), "+f"(c[17]), \
              "+f"(c[18]), "+f"(c[19]), "+f"(c[20]), "+f"(c[21]), "+f"(c[22]), "+f"(c[23]), \
              "+f"(c[24]), "+f"(c[25]), "+f"(c[26]), "+f"(c[27]), "+f"(c[28]), "+f"(c[29]), \
              "+f"(c[30]), "+f"(c[31]), "+f"(c[32]), "+f"(c[33]), "+f"(c[34]), "+f"(c[35]), \
              "+f"(c[36]), "+f"(c[37]), "+f"(c[38]), "+f"(c[39]), "+f"(c[40]), "+f"(c[41]), \
              "+f"(c[42]), "+f"(c[43]), "+f"(c[44]), "+f"(c[45]), "+f"(c[46]), "+f"(c[47]), \
              "+f"(c[48]), "+f"(c[49]), "+f"(c[50]), "+f"(c[51]), "+f"(c[52]), "+f"(c[53]), \
              "+f"(c[54]), "+f"(c[55]), "+f"(c[56]), "+f"(c[57]), "+f"(c[58]), "+f"(c[59]), \
              "+f"(c[60]), "+f"(c[61]), "+f"(c[62]), "+f"(c[63]), "+f"(c[64]), "+f"(c[65]), \
              "+f"(c[66]), "+f"(c[67]), "+f"(c[68]), "+f"(c[69]), "+f"(c[70]), "+f"(c[71]), \
              "+f"(c[72]), "+f"(c[73]), "+f"(c[74]), "+f"(c[75]), "+f"(c[76]), "+f"(c[77]), \
              "+f"(c[78]), "+f"(c[79]), "+f"(c[80]), "+f"(c[81]), "+f"(c[82]), "+f"(c[83]), \
              "+f"(c[84]), "+f"(c[85]), "+f"(c[86]), "+f"(c[87]), "+f"(c[88]), "+f"(c[89]), \
              "+f"(c[90]), "+f"(c[91]), "+f"(c[92]), "+f"(c[93]), "+f"(c[94]), "+f"(c[95]), \
              "+f"(c[96]), "+f"(c[97]), "+f"(c[98]), "+f"(c[99]), "+f"(c[100]), "+f"(c[101]), \
              "+f"(c[102]), "+f"(c[103]), "+f"(c[104]), "+f"(c[105]), "+f"(c[106]), "+f"(c[107]), \
              "+f"(c[108]), "+f"(c[109]), "+f"(c[110]), "+f"(c[111]), "+f"(c[112]), "+f"(c[113]), \
              "+f"(c[114]), "+f"(c[115]), "+f"(c[116]), "+f"(c[117]), "+f"(c[118]), "+f"(c[119]), \
              "+f"(c[120]), "+f"(c[121]), "+f"(c[122]), "+f"(c[123]), "+f"(c[124]), "+f"(c[125]), \
              "+f"(c[126]), "+f"(c[127]) \
            : "l"(a), "l"(b), "r"(uint32_t(adds)), "n"(ACROSS & 1), "n"(ACROSS >> 1 & 1));        \
    }
SIMGRAD_MULTIPLY_64(__half, "f16", 0)
SIMGRAD_MULTIPLY_64(__nv_bfloat16, "bf16", 0)
SIMGRAD_MULTIPLY_128(__half, "f16", 0)
SIMGRAD_MULTIPLY_128(__nv_bfloat16, "bf16", 0)
SIMGRAD_MULTIPLY_256(__half, "f16", 0)
SIMGRAD_MULTIPLY_256(__nv_bfloat16, "bf16", 0)
SIMGRAD_MULTIPLY_128(__nv_bfloat16, "bf16", 2)
SIMGRAD_MULTIPLY_128(__nv_bfloat16, "bf16", 3)
SIMGRAD_MULTIPLY_256(__nv_bfloat16, "bf16", 2)
SIMGRAD_MULTIPLY_256(__nv_bfloat16, "bf16", 3)
#undef SIMGRAD_MULTIPLY_64
#undef SIMGRAD_MULTIPLY_128
#undef SIMGRAD_MULTIPLY_256
