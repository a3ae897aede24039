/* tensor_map.cuh - host side of the copy engine: who encodes tensor maps, and a map for mb_tma_load_5d. */
#ifndef MB_OPS_HOPPER_TENSOR_MAP_CUH
#define MB_OPS_HOPPER_TENSOR_MAP_CUH

#include "base/status.h"
#include "moebius/ops.h"

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

static inline CUtensorMapDataType mb_tensor_map_type(mb_dtype dtype) {
    switch (dtype) {
    case MB_F32: /* rounded to the nearest tf32 on the way; wgmma alone would truncate */
        return CU_TENSOR_MAP_DATA_TYPE_TFLOAT32;
    case MB_BF16:
        return CU_TENSOR_MAP_DATA_TYPE_BFLOAT16;
    case MB_F16:
        return CU_TENSOR_MAP_DATA_TYPE_FLOAT16;
    default:
        return CU_TENSOR_MAP_DATA_TYPE_UINT8;
    }
}

/* Boxes swizzled by 128 bytes, the length of a box in the first dimension. What lies outside of the tensor
 * becomes 0. strides: bytes, of the second dimension and later ones. `name` starts the error sentence. */
static inline mb_status mb_encode_tensor_map_of(const char *name, CUtensorMap *map, CUtensorMapDataType type,
                                                cuuint32_t rank, const void *data, const cuuint64_t *sizes,
                                                const cuuint64_t *strides, const cuuint32_t *box) {
    const mb_tensor_map_encode encode = mb_tensor_map_encoder();
    if (!encode)
        return mb_fail(MB_ERR_DEVICE, "%s: the driver has no cuTensorMapEncodeTiled; CUDA 12 is needed",
                       name);
    const cuuint32_t element_strides[5] = {1, 1, 1, 1, 1};
    const CUresult result = encode(map, type, rank, (void *)data, sizes, strides, box, element_strides,
                                   CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                                   CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
    if (result == CUDA_SUCCESS)
        return MB_OK;
    return mb_fail(
        MB_ERR_ARGUMENT,
        "%s: no tensor map for rows of %llu elements at %p (driver error %d); they must be 16-byte "
        "aligned and whole pieces of 16 bytes",
        name, (unsigned long long)sizes[0], data, (int)result);
}

/* For mb_tma_load_5d. */
static inline mb_status mb_encode_tensor_map(const char *name, CUtensorMap *map, mb_dtype dtype,
                                             const void *data, const cuuint64_t (&sizes)[5],
                                             const cuuint64_t (&strides)[4], const cuuint32_t (&box)[5]) {
    return mb_encode_tensor_map_of(name, map, mb_tensor_map_type(dtype), 5, data, sizes, strides, box);
}

#endif
