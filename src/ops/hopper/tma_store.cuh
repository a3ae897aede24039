/* tma_store.cuh - the bulk tensor copy engine from shared memory to global memory, and its groups. */
#ifndef MB_OPS_HOPPER_TMA_STORE_CUH
#define MB_OPS_HOPPER_TMA_STORE_CUH

#include <cuda.h>

#include "ops/hopper/barrier.cuh"

/* One box of a three-dimensional tensor; what lies outside of the tensor is not written. In L2 it makes room
 * before anything else does: for results that are read again only after much else. */
static __device__ __forceinline__ void
mb_tma_store_3d_evict_first(const CUtensorMap *map, uint32_t from_shared, int x0, int x1, int x2) {
    asm volatile("{\n"
                 ".reg .b64 policy;\n"
                 "createpolicy.fractional.L2::evict_first.b64 policy, 1.0;\n"
                 "cp.async.bulk.tensor.3d.global.shared::cta.tile.bulk_group.L2::cache_hint "
                 "[%0, {%2, %3, %4}], [%1], policy;\n"
                 "}" ::"l"(map),
                 "r"(from_shared), "r"(x0), "r"(x1), "r"(x2)
                 : "memory");
}

/* The same box added to what is there, in the tensor's type (fp32: subnormal results become 0). */
static __device__ __forceinline__ void mb_tma_add_3d(const CUtensorMap *map, uint32_t from_shared, int x0,
                                                     int x1, int x2) {
    asm volatile("cp.reduce.async.bulk.tensor.3d.global.shared::cta.add.tile.bulk_group "
                 "[%0, {%2, %3, %4}], [%1];" ::"l"(map),
                 "r"(from_shared), "r"(x0), "r"(x1), "r"(x2)
                 : "memory");
}

/* Closes the group of the stores that this thread has started since the last one; a group may be empty. */
static __device__ __forceinline__ void mb_tma_store_commit(void) {
    asm volatile("cp.async.bulk.commit_group;" ::: "memory");
}

/* Returns when all but the last n of this thread's groups have read their shared memory. */
template <int n> static __device__ __forceinline__ void mb_tma_store_wait_read(void) {
    asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(n) : "memory");
}

#endif
