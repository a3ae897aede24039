/* tensor_map.cuh - host side of the copy engine: who encodes tensor maps. */
#ifndef MB_OPS_HOPPER_TENSOR_MAP_CUH
#define MB_OPS_HOPPER_TENSOR_MAP_CUH

#include <cuda.h>
#include <cuda_runtime.h>

typedef CUresult (*mb_tensor_map_encode)(CUtensorMap *, CUtensorMapDataType, cuuint32_t, void *,
                                         const cuuint64_t *, const cuuint64_t *, const cuuint32_t *,
                                         const cuuint32_t *, CUtensorMapInterleave, CUtensorMapSwizzle,
                                         CUtensorMapL2promotion, CUtensorMapFloatOOBfill);

/* The driver's encoder, without linking the driver; NULL: it has none. Threads that ask at the same time find
 * the same one. */
static inline mb_tensor_map_encode mb_tensor_map_encoder(void) {
    static void *encoder;
    void *found = __atomic_load_n(&encoder, __ATOMIC_RELAXED);
    if (found)
        return (mb_tensor_map_encode)found;
    cudaDriverEntryPointQueryResult result;
    if (cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &found, 12000, cudaEnableDefault,
                                         &result) != cudaSuccess ||
        result != cudaDriverEntryPointSuccess)
        return NULL;
    __atomic_store_n(&encoder, found, __ATOMIC_RELAXED);
    return (mb_tensor_map_encode)found;
}

#endif
