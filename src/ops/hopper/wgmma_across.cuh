/*
 * wgmma_across.cuh - the warpgroup's matrix multiply with both operands read across: in shared memory the
 * rows of 128 bytes are K, and 64 of A's (of B's) rows lie in one of them (mb_wgmma_descriptor_across). 64
 * rows of A times 256 rows of B, bf16 or fp16, summed in fp32 registers.
 *
 * The 64 rows of A are one panel, so A's panel_bytes is not read. The next 16 of K are MB_WGMMA_ACROSS_K16
 * further in the low word of both. Accumulators lie as wgmma.cuh says.
 */
#ifndef MB_OPS_HOPPER_WGMMA_ACROSS_CUH
#define MB_OPS_HOPPER_WGMMA_ACROSS_CUH

#include "ops/hopper/wgmma.cuh"

/* sum += A B^T, 16 of K. */
template <int type>
static __device__ __forceinline__ void mb_wgmma_both_across(float (&sum)[128], uint64_t a, uint64_t b);

#define MB_NAMES_176 \
    MB_NAMES_144 ", %72, %73, %74, %75, %76, %77, %78, %79, %80, %81, %82, %83, %84, %85, %86, %87"
#define MB_NAMES_208 \
    MB_NAMES_176 ", %88, %89, %90, %91, %92, %93, %94, %95, %96, %97, %98, %99, %100, %101, %102, %103"
#define MB_NAMES_240 \
    MB_NAMES_208     \
    ", %104, %105, %106, %107, %108, %109, %110, %111, %112, %113, %114, %115, %116, %117, %118, %119"
#define MB_NAMES_256 MB_NAMES_240 ", %120, %121, %122, %123, %124, %125, %126, %127"
#define MB_SUMS_AT(i) "+f"(sum[i]), "+f"(sum[i + 1]), "+f"(sum[i + 2]), "+f"(sum[i + 3])
#define MB_SUMS_192                                                                              \
    MB_SUMS_144, MB_SUMS_AT(72), MB_SUMS_AT(76), MB_SUMS_AT(80), MB_SUMS_AT(84), MB_SUMS_AT(88), \
        MB_SUMS_AT(92)
#define MB_SUMS_256                                                                                  \
    MB_SUMS_192, MB_SUMS_AT(96), MB_SUMS_AT(100), MB_SUMS_AT(104), MB_SUMS_AT(108), MB_SUMS_AT(112), \
        MB_SUMS_AT(116), MB_SUMS_AT(120), MB_SUMS_AT(124)

#define MB_WGMMA_BOTH_ACROSS(type, types)                                                                  \
    template <>                                                                                            \
    __device__ __forceinline__ void mb_wgmma_both_across<type>(float(&sum)[128], uint64_t a, uint64_t b) { \
        asm volatile("wgmma.mma_async.sync.aligned.m64n256k16.f32." types " {" MB_NAMES_256                \
                     "}, %128, %129, 1, 1, 1, 1, 1;"                                                       \
                     : MB_SUMS_256                                                                         \
                     : "l"(a), "l"(b));                                                                    \
    }
MB_WGMMA_BOTH_ACROSS(MB_WGMMA_BF16, "bf16.bf16")
MB_WGMMA_BOTH_ACROSS(MB_WGMMA_F16, "f16.f16")
#undef MB_WGMMA_BOTH_ACROSS
#undef MB_SUMS_AT

#endif
