/* memory.cuh - loads and stores with an order, and shared-memory matrix stores. */
#ifndef MB_OPS_HOPPER_MEMORY_CUH
#define MB_OPS_HOPPER_MEMORY_CUH

#include "ops/hopper/barrier.cuh"

/* What the writer did before its release is visible after this load has seen the value. */
static __device__ __forceinline__ int32_t mb_load_acquire(const int32_t *from) {
    int32_t value;
    asm volatile("ld.acquire.gpu.global.s32 %0, [%1];" : "=r"(value) : "l"(from) : "memory");
    return value;
}

static __device__ __forceinline__ void mb_add_release(int32_t *to, int32_t value) {
    asm volatile("red.release.gpu.global.add.s32 [%0], %1;" ::"l"(to), "r"(value) : "memory");
}

/* Returns the value before. What others did before their release is visible after it, and what this thread
 * did before is to them. */
static __device__ __forceinline__ int32_t mb_add_acquire_release(int32_t *to, int32_t value) {
    int32_t before;
    asm volatile("atom.acq_rel.gpu.global.add.s32 %0, [%1], %2;"
                 : "=r"(before)
                 : "l"(to), "r"(value)
                 : "memory");
    return before;
}

/* L2 fetches the line that this lies in. */
static __device__ __forceinline__ void mb_prefetch_l2(const void *from) {
    asm volatile("prefetch.global.L2 [%0];" ::"l"(from));
}

static __device__ __forceinline__ float mb_load_shared_4(uint32_t from_shared) {
    float value;
    asm volatile("ld.shared.f32 %0, [%1];" : "=f"(value) : "r"(from_shared) : "memory");
    return value;
}

static __device__ __forceinline__ float2 mb_load_shared_8(uint32_t from_shared) {
    float2 value;
    asm volatile("ld.shared.v2.f32 {%0, %1}, [%2];"
                 : "=f"(value.x), "=f"(value.y)
                 : "r"(from_shared)
                 : "memory");
    return value;
}

static __device__ __forceinline__ uint4 mb_load_shared_16(uint32_t from_shared) {
    uint4 value;
    asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(value.x), "=r"(value.y), "=r"(value.z), "=r"(value.w)
                 : "r"(from_shared)
                 : "memory");
    return value;
}

static __device__ __forceinline__ void mb_store_shared_16(uint32_t to_shared, uint4 value) {
    asm volatile("st.shared.v4.u32 [%0], {%1, %2, %3, %4};" ::"r"(to_shared), "r"(value.x), "r"(value.y),
                 "r"(value.z), "r"(value.w)
                 : "memory");
}

static __device__ __forceinline__ void mb_store_shared_8(uint32_t to_shared, float x, float y) {
    asm volatile("st.shared.v2.f32 [%0], {%1, %2};" ::"r"(to_shared), "f"(x), "f"(y) : "memory");
}

static __device__ __forceinline__ void mb_store_shared_4(uint32_t to_shared, float value) {
    asm volatile("st.shared.f32 [%0], %1;" ::"r"(to_shared), "f"(value) : "memory");
}

static __device__ __forceinline__ void mb_store_shared_8(uint32_t to_shared, uint2 value) {
    asm volatile("st.shared.v2.u32 [%0], {%1, %2};" ::"r"(to_shared), "r"(value.x), "r"(value.y) : "memory");
}

static __device__ __forceinline__ void mb_store_shared_2(uint32_t to_shared, uint16_t value) {
    asm volatile("st.shared.u16 [%0], %1;" ::"r"(to_shared), "h"(value) : "memory");
}

/* Four 8x8 matrices of 16-bit elements in accumulator layout: lane i names the 16 bytes that row i % 8 of
 * matrix i / 8 goes to. */
static __device__ __forceinline__ void mb_store_matrix_x4(uint32_t to_shared, const uint32_t (&a)[4]) {
    asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(to_shared),
                 "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3])
                 : "memory");
}

/* 8x8 matrices of 16-bit elements in accumulator layout, stored transposed: lane i (of matrix i / 8) names
 * the 16 bytes that column i % 8 goes to. */
static __device__ __forceinline__ void mb_store_matrix_transposed_x1(uint32_t to_shared, uint32_t a) {
    asm volatile("stmatrix.sync.aligned.m8n8.x1.trans.shared.b16 [%0], {%1};" ::"r"(to_shared), "r"(a)
                 : "memory");
}
static __device__ __forceinline__ void mb_store_matrix_transposed_x2(uint32_t to_shared, uint32_t a,
                                                                     uint32_t b) {
    asm volatile("stmatrix.sync.aligned.m8n8.x2.trans.shared.b16 [%0], {%1, %2};" ::"r"(to_shared), "r"(a),
                 "r"(b)
                 : "memory");
}
static __device__ __forceinline__ void mb_store_matrix_transposed_x4(uint32_t to_shared,
                                                                     const uint32_t (&a)[4]) {
    asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(to_shared),
                 "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3])
                 : "memory");
}

/* Two 8x8 matrices of 16-bit elements that lie transposed, into accumulator layout: lane i (of matrix i / 8)
 * names the 16 bytes that column i % 8 comes from. */
static __device__ __forceinline__ void mb_load_matrix_transposed_x2(uint32_t (&to)[2], uint32_t from_shared) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
                 : "=r"(to[0]), "=r"(to[1])
                 : "r"(from_shared)
                 : "memory");
}

#endif
