/*
 * cluster.cuh - CTAs of a cluster: who is who, waiting for each other, writing to each other's shared
 * memory and reading it.
 *
 * The CTAs of a cluster always run at the same time, so no wait among them is for a CTA that has not been
 * started. But a CTA's shared memory must not be touched before its first instruction or after its last.
 */
#ifndef MB_OPS_HOPPER_CLUSTER_CUH
#define MB_OPS_HOPPER_CLUSTER_CUH

#include "ops/hopper/barrier.cuh"

/* 1 where a kernel was launched without clusters. */
static __device__ __forceinline__ uint32_t mb_cluster_size(void) {
    uint32_t size;
    asm("mov.u32 %0, %%cluster_nctarank;" : "=r"(size));
    return size;
}

static __device__ __forceinline__ uint32_t mb_cluster_rank(void) {
    uint32_t rank;
    asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
    return rank;
}

/* The barrier of all threads of all CTAs of the cluster, in two parts. A relaxed arrival says that the
 * thread has come this far, not that others see what it wrote. */
static __device__ __forceinline__ void mb_cluster_arrive_relaxed(void) {
    asm volatile("barrier.cluster.arrive.relaxed;" ::: "memory");
}
static __device__ __forceinline__ void mb_cluster_arrive(void) {
    asm volatile("barrier.cluster.arrive.release;" ::: "memory");
}
static __device__ __forceinline__ void mb_cluster_wait(void) {
    asm volatile("barrier.cluster.wait.acquire;" ::: "memory");
}
static __device__ __forceinline__ void mb_cluster_sync(void) {
    mb_cluster_arrive();
    mb_cluster_wait();
}

/* Two numbers into the shared memory of the CTA of that rank, where this CTA has `to`. */
static __device__ __forceinline__ void mb_store_cluster_8(const float *to, uint32_t cta_rank, float a,
                                                          float b) {
    asm volatile("{\n"
                 ".reg .b32 remote;\n"
                 "mapa.shared::cluster.u32 remote, %0, %1;\n"
                 "st.shared::cluster.v2.f32 [remote], {%2, %3};\n"
                 "}" ::"r"(mb_shared_address(to)),
                 "r"(cta_rank), "f"(a), "f"(b)
                 : "memory");
}

/* A word into the shared memory of the CTA of that rank, where this CTA has `to`; or from there. */
static __device__ __forceinline__ void mb_store_cluster_u64(unsigned long long *to, uint32_t cta_rank,
                                                            unsigned long long value) {
    asm volatile("{\n"
                 ".reg .b32 remote;\n"
                 "mapa.shared::cluster.u32 remote, %0, %1;\n"
                 "st.shared::cluster.u64 [remote], %2;\n"
                 "}" ::"r"(mb_shared_address(to)),
                 "r"(cta_rank), "l"(value)
                 : "memory");
}
static __device__ __forceinline__ unsigned long long mb_load_cluster_u64(const unsigned long long *from,
                                                                         uint32_t cta_rank) {
    unsigned long long value;
    asm volatile("{\n"
                 ".reg .b32 remote;\n"
                 "mapa.shared::cluster.u32 remote, %1, %2;\n"
                 "ld.shared::cluster.u64 %0, [remote];\n"
                 "}"
                 : "=l"(value)
                 : "r"(mb_shared_address(from)), "r"(cta_rank)
                 : "memory");
    return value;
}
static __device__ __forceinline__ uint32_t mb_load_cluster_u32(const uint32_t *from, uint32_t cta_rank) {
    uint32_t value;
    asm volatile("{\n"
                 ".reg .b32 remote;\n"
                 "mapa.shared::cluster.u32 remote, %1, %2;\n"
                 "ld.shared::cluster.u32 %0, [remote];\n"
                 "}"
                 : "=r"(value)
                 : "r"(mb_shared_address(from)), "r"(cta_rank)
                 : "memory");
    return value;
}

/* Two numbers from the shared memory of the CTA of that rank, where this CTA has from_shared. */
static __device__ __forceinline__ float2 mb_load_cluster_8(uint32_t from_shared, uint32_t cta_rank) {
    float2 value;
    asm volatile("{\n"
                 ".reg .b32 remote;\n"
                 "mapa.shared::cluster.u32 remote, %2, %3;\n"
                 "ld.shared::cluster.v2.f32 {%0, %1}, [remote];\n"
                 "}"
                 : "=f"(value.x), "=f"(value.y)
                 : "r"(from_shared), "r"(cta_rank)
                 : "memory");
    return value;
}

/* One arrival at the mbarrier of the CTA of that rank, where this CTA has `barrier`. (Not .release.cluster,
 * which costs a fence of the whole GPU and is not needed to say that shared memory has been read.) */
static __device__ __forceinline__ void mb_mbarrier_arrive_cluster(uint64_t *barrier, uint32_t cta_rank) {
    asm volatile("{\n"
                 ".reg .b32 remote;\n"
                 "mapa.shared::cluster.u32 remote, %0, %1;\n"
                 "mbarrier.arrive.shared::cluster.b64 _, [remote];\n"
                 "}" ::"r"(mb_shared_address(barrier)),
                 "r"(cta_rank)
                 : "memory");
}

/* The same, n_arrivals at once. */
static __device__ __forceinline__ void mb_mbarrier_arrive_cluster_n(uint64_t *barrier, uint32_t cta_rank,
                                                                    uint32_t n_arrivals) {
    asm volatile("{\n"
                 ".reg .b32 remote;\n"
                 "mapa.shared::cluster.u32 remote, %0, %1;\n"
                 "mbarrier.arrive.shared::cluster.b64 _, [remote], %2;\n"
                 "}" ::"r"(mb_shared_address(barrier)),
                 "r"(cta_rank), "r"(n_arrivals)
                 : "memory");
}

/* A value into the same place of the CTA of that rank in the cluster; its four bytes are counted on its
 * barrier. */
static __device__ __forceinline__ void mb_store_async_cluster(int32_t *to, uint64_t *full, uint32_t cta_rank,
                                                              int32_t value) {
    asm volatile("{\n"
                 ".reg .b32 place, barrier;\n"
                 "mapa.shared::cluster.u32 place, %0, %2;\n"
                 "mapa.shared::cluster.u32 barrier, %1, %2;\n"
                 "st.async.shared::cluster.mbarrier::complete_tx::bytes.u32 [place], %3, [barrier];\n"
                 "}" ::"r"(mb_shared_address(to)),
                 "r"(mb_shared_address(full)), "r"(cta_rank), "r"(value)
                 : "memory");
}

#endif
