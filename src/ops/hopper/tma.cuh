/* tma.cuh - the bulk tensor copy engine. */
#ifndef MB_OPS_HOPPER_TMA_CUH
#define MB_OPS_HOPPER_TMA_CUH

#include <cuda.h>

#include "ops/hopper/barrier.cuh"

static __device__ __forceinline__ void mb_tma_prefetch_map(const CUtensorMap *map) {
    asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
}

/* One box of a five-dimensional tensor into shared memory; its bytes are counted on `full`. */
static __device__ __forceinline__ void mb_tma_load_5d(void *to, const CUtensorMap *map, uint64_t *full,
                                                      int x0, int x1, int x2, int x3, int x4) {
    asm volatile("cp.async.bulk.tensor.5d.shared::cluster.global.tile.mbarrier::complete_tx::bytes "
                 "[%0], [%1, {%3, %4, %5, %6, %7}], [%2];" ::"r"(mb_shared_address(to)),
                 "l"(map), "r"(mb_shared_address(full)), "r"(x0), "r"(x1), "r"(x2), "r"(x3), "r"(x4)
                 : "memory");
}

/* The same for data that nobody will read again: in L2 it makes room before anything else does. */
static __device__ __forceinline__ void mb_tma_load_5d_evict_first(void *to, const CUtensorMap *map,
                                                                  uint64_t *full, int x0, int x1, int x2,
                                                                  int x3, int x4) {
    asm volatile(
        "{\n"
        ".reg .b64 policy;\n"
        "createpolicy.fractional.L2::evict_first.b64 policy, 1.0;\n"
        "cp.async.bulk.tensor.5d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.L2::cache_hint "
        "[%0], [%1, {%3, %4, %5, %6, %7}], [%2], policy;\n"
        "}" ::"r"(mb_shared_address(to)),
        "l"(map), "r"(mb_shared_address(full)), "r"(x0), "r"(x1), "r"(x2), "r"(x3), "r"(x4)
        : "memory");
}

/* The same box to the same place in every CTA of the cluster that `cta_mask` names, and counted there. */
static __device__ __forceinline__ void mb_tma_load_5d_multicast(void *to, const CUtensorMap *map,
                                                                uint64_t *full, uint16_t cta_mask, int x0,
                                                                int x1, int x2, int x3, int x4) {
    asm volatile(
        "cp.async.bulk.tensor.5d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.multicast::cluster "
        "[%0], [%1, {%4, %5, %6, %7, %8}], [%2], %3;" ::"r"(mb_shared_address(to)),
        "l"(map), "r"(mb_shared_address(full)), "h"(cta_mask), "r"(x0), "r"(x1), "r"(x2), "r"(x3), "r"(x4)
        : "memory");
}

#endif
