/*
 * mma.cuh - matrix products of one warp: 16 x 8 += 16 x 16 times 16 x 8, with operands from registers, and
 * the loads of such operands from shared memory. For tiles too small for wgmma.
 */
#ifndef MB_OPS_HOPPER_MMA_CUH
#define MB_OPS_HOPPER_MMA_CUH

#include <stdint.h>

/*
 * Registers of lane l, with g = l / 4 and c = l % 4 * 2:
 *   a    rows g, g + 8 by columns c, c + 1 (a[0], a[1]), and by columns c + 8, c + 9 (a[2], a[3])
 *   b    rows c, c + 1 (b0) and c + 8, c + 9 (b1) of column g
 *   sum  row g, columns c, c + 1 (sum[0], sum[1]); row g + 8 (sum[2], sum[3])
 */
static __device__ __forceinline__ void mb_mma_bf16(float (&sum)[4], const uint32_t (&a)[4], uint32_t b0,
                                                   uint32_t b1) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

static __device__ __forceinline__ void mb_mma_f16(float (&sum)[4], const uint32_t (&a)[4], uint32_t b0,
                                                  uint32_t b1) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

/* Four 8 x 8 matrices of 16-bit elements: lane i names row i % 8 of matrix i / 8. Of each, lane l gets the
 * columns l % 4 * 2 and the next of row l / 4. */
static __device__ __forceinline__ void mb_load_matrix_x4(uint32_t (&to)[4], uint32_t from_shared) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(from_shared)
                 : "memory");
}

/* The same of the transposed matrices. */
static __device__ __forceinline__ void mb_load_matrix_transposed_x4(uint32_t (&to)[4], uint32_t from_shared) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(from_shared)
                 : "memory");
}

#endif
