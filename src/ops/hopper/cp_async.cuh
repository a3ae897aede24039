/* cp_async.cuh - copies of 16 bytes that a thread starts and later waits for: for rows chosen by an index. */
#ifndef MB_OPS_HOPPER_CP_ASYNC_CUH
#define MB_OPS_HOPPER_CP_ASYNC_CUH

#include "ops/hopper/barrier.cuh"

/* Copies n_bytes (16 or 0) through L2 and fills the rest of the 16 with zeros. */
static __device__ __forceinline__ void mb_cp_async_16(uint32_t to_shared, const void *from,
                                                      uint32_t n_bytes) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to_shared), "l"(from), "r"(n_bytes)
                 : "memory");
}

/* The same; L2 takes the 256 bytes around them, which the next copies want. */
static __device__ __forceinline__ void mb_cp_async_16_ahead(uint32_t to_shared, const void *from,
                                                            uint32_t n_bytes) {
    asm volatile("cp.async.cg.shared.global.L2::256B [%0], [%1], 16, %2;" ::"r"(to_shared), "l"(from),
                 "r"(n_bytes)
                 : "memory");
}

/* Four bytes, through L1: for a few of a line at a time. */
static __device__ __forceinline__ void mb_cp_async_4(uint32_t to_shared, const void *from) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"(to_shared), "l"(from) : "memory");
}

/* One arrival at the mbarrier when all copies that this thread has started have landed. */
static __device__ __forceinline__ void mb_cp_async_arrive(uint64_t *barrier) {
    asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(mb_shared_address(barrier))
                 : "memory");
}

/* Closes the group of the copies that this thread has started since the last one. */
static __device__ __forceinline__ void mb_cp_async_commit(void) {
    asm volatile("cp.async.commit_group;" ::: "memory");
}

/* Waits until all but the last n of this thread's groups have landed. */
template <int n> static __device__ __forceinline__ void mb_cp_async_wait(void) {
    asm volatile("cp.async.wait_group %0;" ::"n"(n) : "memory");
}

#endif
