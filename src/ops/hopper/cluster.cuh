/*
 * cluster.cuh - CTAs of a cluster: who is who, waiting for each other, writing to each other's shared
 * memory.
 *
 * The CTAs of a cluster always run at the same time, so no wait among them is for a CTA that has not been
 * started. But a CTA's shared memory must not be touched before its first instruction or after its last.
 */
#ifndef MB_OPS_HOPPER_CLUSTER_CUH
#define MB_OPS_HOPPER_CLUSTER_CUH

#include "ops/hopper/barrier.cuh"

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
