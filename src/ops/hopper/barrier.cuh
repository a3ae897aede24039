/* barrier.cuh - mbarriers in shared memory, named barriers of some warps, the fence to the async proxy. */
#ifndef MB_OPS_HOPPER_BARRIER_CUH
#define MB_OPS_HOPPER_BARRIER_CUH

#include <stdint.h>

/* Addresses of shared memory are 32 bits wide in PTX. */
static __device__ __forceinline__ uint32_t mb_shared_address(const void *pointer) {
    return (uint32_t)__cvta_generic_to_shared(pointer);
}

/* The same pointer to shared memory, kept in a register. (Where the compiler knows the array, it makes each
 * address anew from a special register, which takes some 30 clocks.) */
static __device__ __forceinline__ unsigned char *mb_kept_pointer(unsigned char *pointer) {
    asm volatile("" : "+l"(pointer));
    return pointer;
}

/* A number that is computed here and kept in a register: not computed again, from what is slow to read, where
 * it is used. */
static __device__ __forceinline__ uint32_t mb_kept(uint32_t number) {
    asm volatile("" : "+r"(number));
    return number;
}

/* The number, which never is 0xffffffff, is known before what follows. (ptxas moves what is slow to come
 * behind a wait for other kernels. A branch that depends on it stays in front.) */
static __device__ __forceinline__ void mb_known_here(uint32_t number) {
    asm volatile("{\n"
                 ".reg .pred never;\n"
                 "setp.eq.u32 never, %0, 0xffffffff;\n"
                 "@never trap;\n"
                 "}" ::"r"(number)
                 : "memory");
}

/* The compiler moves neither x nor an access of memory across this place. */
static __device__ __forceinline__ void mb_keep_here(float &x) {
    asm volatile("" : "+f"(x)::"memory");
}

static __device__ __forceinline__ void mb_mbarrier_init(uint64_t *barrier, uint32_t n_arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(mb_shared_address(barrier)),
                 "r"(n_arrivals));
}

/* Makes initialised mbarriers visible to the copy engine and to the cluster. */
static __device__ __forceinline__ void mb_mbarrier_init_fence(void) {
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

static __device__ __forceinline__ void mb_mbarrier_arrive(uint64_t *barrier) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(mb_shared_address(barrier)) : "memory");
}

/* One arrival of a warp that is whole here. elect.sync orders no memory: what the other lanes have read or
 * written comes before a __syncwarp in front, or before a wait for wgmma that each lane has done. */
static __device__ __forceinline__ void mb_mbarrier_arrive_warp(uint64_t *barrier) {
    asm volatile("{\n"
                 ".reg .pred one;\n"
                 "elect.sync _|one, 0xffffffff;\n"
                 "@one mbarrier.arrive.shared::cta.b64 _, [%0];\n"
                 "}" ::"r"(mb_shared_address(barrier))
                 : "memory");
}

/* One arrival, and that many bytes still to come from the copy engine. */
static __device__ __forceinline__ void mb_mbarrier_arrive_expect(uint64_t *barrier, uint32_t n_bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(mb_shared_address(barrier)),
                 "r"(n_bytes)
                 : "memory");
}

/* Returns when the phase of that parity is complete. A fresh barrier passes a wait for parity 1. */
static __device__ __forceinline__ void mb_mbarrier_wait(uint64_t *barrier, uint32_t parity) {
    asm volatile("{\n"
                 ".reg .pred done;\n"
                 "again:\n"
                 "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
                 "@!done bra again;\n"
                 "}" ::"r"(mb_shared_address(barrier)),
                 "r"(parity)
                 : "memory");
}

/* Barrier number `id` (1 .. 15; 0 is __syncthreads) among n_threads threads. */
static __device__ __forceinline__ void mb_named_barrier_sync(uint32_t id, uint32_t n_threads) {
    asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(n_threads) : "memory");
}

/* The same without waiting: for threads that only say they have come this far. */
static __device__ __forceinline__ void mb_named_barrier_arrive(uint32_t id, uint32_t n_threads) {
    asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(n_threads) : "memory");
}

/* Shared memory that this thread wrote is now seen by wgmma and the copy engine. */
static __device__ __forceinline__ void mb_fence_async_shared(void) {
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

#endif
