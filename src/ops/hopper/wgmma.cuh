/*
 * wgmma.cuh - the warpgroup's matrix multiply: 64 rows of A times N rows of B, both K-major in shared
 * memory, summed in fp32 registers. Only the shapes that the tile tables use: N = 8, 16 .. 144. At the end
 * of the file A or B is read across.
 *
 * One instruction takes 32 bytes of every row: 16 elements of bf16 or fp16, 8 of tf32, 32 of fp8.
 * Accumulators: warp w of the group, lane l hold rows 16 w + l / 4 and + 8; sum[4 j + 0, 1] are the first
 * row's columns 8 j + 2 (l % 4) + 0, 1, and sum[4 j + 2, 3] the second row's.
 */
#ifndef MB_OPS_HOPPER_WGMMA_CUH
#define MB_OPS_HOPPER_WGMMA_CUH

#include <stdint.h>

/* Registers and shared memory written before are seen by the wgmma that follow. */
static __device__ __forceinline__ void mb_wgmma_fence(void) {
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}

static __device__ __forceinline__ void mb_wgmma_commit(void) {
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}

/* Returns when all but the last n_groups groups are done. */
template <int n_groups> static __device__ __forceinline__ void mb_wgmma_wait(void) {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(n_groups) : "memory");
}

/* Keeps the compiler from moving an accumulator across the wgmma that own it. */
template <int n> static __device__ __forceinline__ void mb_wgmma_pin(float (&sum)[n]) {
#pragma unroll
    for (int i = 0; i < n; i++)
        asm volatile("" : "+f"(sum[i])::"memory");
}

/* Rows of 128 bytes, swizzled by 128 bytes (16-byte chunk c of row r lies at chunk c ^ (r % 8)), groups of
 * eight rows 1024 bytes apart, from a 1024-byte boundary. The next 32 bytes of K are 2 further in the low
 * word. */
static __device__ __forceinline__ uint64_t mb_wgmma_descriptor(uint32_t shared_address) {
    return (uint64_t)((shared_address & 0x3ffff) >> 4) | (1ull << 16) | (64ull << 32) | (1ull << 62);
}

enum { MB_WGMMA_ACROSS_K16 = 16 * 128 / 16 }; /* from 16 of K to the next, in a descriptor */

/* The same memory read across: its rows of 128 bytes are K, and 64 of A's M or B's N rows lie in one of them.
 * Groups of eight of K are 1024 bytes apart, the next 64 of M or N panel_bytes further. The next 16 of K are
 * MB_WGMMA_ACROSS_K16 further in the low word. */
static __device__ __forceinline__ uint64_t mb_wgmma_descriptor_across(uint32_t shared_address,
                                                                      uint32_t panel_bytes) {
    return (uint64_t)((shared_address & 0x3ffff) >> 4) | ((uint64_t)(panel_bytes >> 4) << 16) |
           (64ull << 32) | (1ull << 62);
}

/* What is multiplied. */
enum mb_wgmma_type { MB_WGMMA_BF16, MB_WGMMA_F16, MB_WGMMA_TF32, MB_WGMMA_E4M3 };

/* sum = A B^T + (accumulate ? sum : 0), 32 bytes of K. */
template <int type, int n, int accumulate>
static __device__ __forceinline__ void mb_wgmma(float (&sum)[n / 2], uint64_t a, uint64_t b);

/*
 * PTX wants every accumulator spelled out, so each N has its lists: MB_NAMES_N of the places "%0, %1, ...",
 * MB_SUMS_N of the operands. The descriptors and the flag come behind them.
 */
#define MB_NAMES_8 "%0, %1, %2, %3"
#define MB_NAMES_16 MB_NAMES_8 ", %4, %5, %6, %7"
#define MB_NAMES_24 MB_NAMES_16 ", %8, %9, %10, %11"
#define MB_NAMES_32 MB_NAMES_24 ", %12, %13, %14, %15"
#define MB_NAMES_40 MB_NAMES_32 ", %16, %17, %18, %19"
#define MB_NAMES_48 MB_NAMES_40 ", %20, %21, %22, %23"
#define MB_NAMES_56 MB_NAMES_48 ", %24, %25, %26, %27"
#define MB_NAMES_64 MB_NAMES_56 ", %28, %29, %30, %31"
#define MB_NAMES_72 MB_NAMES_64 ", %32, %33, %34, %35"
#define MB_NAMES_80 MB_NAMES_72 ", %36, %37, %38, %39"
#define MB_NAMES_88 MB_NAMES_80 ", %40, %41, %42, %43"
#define MB_NAMES_96 MB_NAMES_88 ", %44, %45, %46, %47"
#define MB_NAMES_104 MB_NAMES_96 ", %48, %49, %50, %51"
#define MB_NAMES_112 MB_NAMES_104 ", %52, %53, %54, %55"
#define MB_NAMES_120 MB_NAMES_112 ", %56, %57, %58, %59"
#define MB_NAMES_128 MB_NAMES_120 ", %60, %61, %62, %63"
#define MB_NAMES_136 MB_NAMES_128 ", %64, %65, %66, %67"
#define MB_NAMES_144 MB_NAMES_136 ", %68, %69, %70, %71"
#define MB_SUMS_8 "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
#define MB_SUMS_16 MB_SUMS_8, "+f"(sum[4]), "+f"(sum[5]), "+f"(sum[6]), "+f"(sum[7])
#define MB_SUMS_24 MB_SUMS_16, "+f"(sum[8]), "+f"(sum[9]), "+f"(sum[10]), "+f"(sum[11])
#define MB_SUMS_32 MB_SUMS_24, "+f"(sum[12]), "+f"(sum[13]), "+f"(sum[14]), "+f"(sum[15])
#define MB_SUMS_40 MB_SUMS_32, "+f"(sum[16]), "+f"(sum[17]), "+f"(sum[18]), "+f"(sum[19])
#define MB_SUMS_48 MB_SUMS_40, "+f"(sum[20]), "+f"(sum[21]), "+f"(sum[22]), "+f"(sum[23])
#define MB_SUMS_56 MB_SUMS_48, "+f"(sum[24]), "+f"(sum[25]), "+f"(sum[26]), "+f"(sum[27])
#define MB_SUMS_64 MB_SUMS_56, "+f"(sum[28]), "+f"(sum[29]), "+f"(sum[30]), "+f"(sum[31])
#define MB_SUMS_72 MB_SUMS_64, "+f"(sum[32]), "+f"(sum[33]), "+f"(sum[34]), "+f"(sum[35])
#define MB_SUMS_80 MB_SUMS_72, "+f"(sum[36]), "+f"(sum[37]), "+f"(sum[38]), "+f"(sum[39])
#define MB_SUMS_88 MB_SUMS_80, "+f"(sum[40]), "+f"(sum[41]), "+f"(sum[42]), "+f"(sum[43])
#define MB_SUMS_96 MB_SUMS_88, "+f"(sum[44]), "+f"(sum[45]), "+f"(sum[46]), "+f"(sum[47])
#define MB_SUMS_104 MB_SUMS_96, "+f"(sum[48]), "+f"(sum[49]), "+f"(sum[50]), "+f"(sum[51])
#define MB_SUMS_112 MB_SUMS_104, "+f"(sum[52]), "+f"(sum[53]), "+f"(sum[54]), "+f"(sum[55])
#define MB_SUMS_120 MB_SUMS_112, "+f"(sum[56]), "+f"(sum[57]), "+f"(sum[58]), "+f"(sum[59])
#define MB_SUMS_128 MB_SUMS_120, "+f"(sum[60]), "+f"(sum[61]), "+f"(sum[62]), "+f"(sum[63])
#define MB_SUMS_136 MB_SUMS_128, "+f"(sum[64]), "+f"(sum[65]), "+f"(sum[66]), "+f"(sum[67])
#define MB_SUMS_144 MB_SUMS_136, "+f"(sum[68]), "+f"(sum[69]), "+f"(sum[70]), "+f"(sum[71])

/* bf16 and fp16 have two more flags, whether A and B are transposed. */
#define MB_WGMMA(type, n, shape, flags, a_place, b_place)                                              \
    template <>                                                                                        \
    __device__ __forceinline__ void mb_wgmma<type, n, 0>(float(&sum)[n / 2], uint64_t a, uint64_t b) { \
        asm volatile("wgmma.mma_async.sync.aligned.m64n" #n shape " {" MB_NAMES_##n                    \
                     "}, %" #a_place ", %" #b_place ", 0" flags ";"                                    \
                     : MB_SUMS_##n                                                                     \
                     : "l"(a), "l"(b));                                                                \
    }                                                                                                  \
    template <>                                                                                        \
    __device__ __forceinline__ void mb_wgmma<type, n, 1>(float(&sum)[n / 2], uint64_t a, uint64_t b) { \
        asm volatile("wgmma.mma_async.sync.aligned.m64n" #n shape " {" MB_NAMES_##n                    \
                     "}, %" #a_place ", %" #b_place ", 1" flags ";"                                    \
                     : MB_SUMS_##n                                                                     \
                     : "l"(a), "l"(b));                                                                \
    }
#define MB_WGMMA_TYPES(n, a_place, b_place)                                           \
    MB_WGMMA(MB_WGMMA_BF16, n, "k16.f32.bf16.bf16", ", 1, 1, 0, 0", a_place, b_place) \
    MB_WGMMA(MB_WGMMA_F16, n, "k16.f32.f16.f16", ", 1, 1, 0, 0", a_place, b_place)    \
    MB_WGMMA(MB_WGMMA_TF32, n, "k8.f32.tf32.tf32", ", 1, 1", a_place, b_place)        \
    MB_WGMMA(MB_WGMMA_E4M3, n, "k32.f32.e4m3.e4m3", ", 1, 1", a_place, b_place)

MB_WGMMA_TYPES(8, 4, 5)
MB_WGMMA_TYPES(16, 8, 9)
MB_WGMMA_TYPES(24, 12, 13)
MB_WGMMA_TYPES(32, 16, 17)
MB_WGMMA_TYPES(40, 20, 21)
MB_WGMMA_TYPES(48, 24, 25)
MB_WGMMA_TYPES(56, 28, 29)
MB_WGMMA_TYPES(64, 32, 33)
MB_WGMMA_TYPES(72, 36, 37)
MB_WGMMA_TYPES(80, 40, 41)
MB_WGMMA_TYPES(88, 44, 45)
MB_WGMMA_TYPES(96, 48, 49)
MB_WGMMA_TYPES(104, 52, 53)
MB_WGMMA_TYPES(112, 56, 57)
MB_WGMMA_TYPES(120, 60, 61)
MB_WGMMA_TYPES(128, 64, 65)
MB_WGMMA_TYPES(136, 68, 69)
MB_WGMMA_TYPES(144, 72, 73)

#undef MB_WGMMA_TYPES
#undef MB_WGMMA

/* sum += A B^T, 16 of K, with A read across (mb_wgmma_descriptor_across; its 64 rows are one panel): M lies
 * along the rows of shared memory, K from row to row. */
template <int type, int n>
static __device__ __forceinline__ void mb_wgmma_a_across(float (&sum)[n / 2], uint64_t a, uint64_t b);

#define MB_WGMMA_A_ACROSS(type, n, types, a_place, b_place)                                                  \
    template <>                                                                                              \
    __device__ __forceinline__ void mb_wgmma_a_across<type, n>(float(&sum)[n / 2], uint64_t a, uint64_t b) { \
        asm volatile("wgmma.mma_async.sync.aligned.m64n" #n "k16.f32." types " {" MB_NAMES_##n               \
                     "}, %" #a_place ", %" #b_place ", 1, 1, 1, 1, 0;"                                       \
                     : MB_SUMS_##n                                                                           \
                     : "l"(a), "l"(b));                                                                      \
    }
#define MB_WGMMA_A_ACROSS_TYPES(n, a_place, b_place)                   \
    MB_WGMMA_A_ACROSS(MB_WGMMA_BF16, n, "bf16.bf16", a_place, b_place) \
    MB_WGMMA_A_ACROSS(MB_WGMMA_F16, n, "f16.f16", a_place, b_place)

MB_WGMMA_A_ACROSS_TYPES(32, 16, 17)
MB_WGMMA_A_ACROSS_TYPES(64, 32, 33)
MB_WGMMA_A_ACROSS_TYPES(96, 48, 49)
MB_WGMMA_A_ACROSS_TYPES(128, 64, 65)
MB_WGMMA_A_ACROSS_TYPES(136, 68, 69)
MB_WGMMA_A_ACROSS_TYPES(144, 72, 73)
#undef MB_WGMMA_A_ACROSS_TYPES
#undef MB_WGMMA_A_ACROSS

/*
 * sum = A B^T + (accumulate ? sum : 0), 16 of K, with A from registers and B read across
 * (mb_wgmma_descriptor_across). Warp w, lane l hold of A's rows 16 w + l / 4 and + 8 the columns 2 (l % 4)
 * and the next (a0, a1), and those + 8 (a2, a3). So an accumulator's sum[8 i .. 8 i + 7], packed in pairs,
 * are a0 .. a3 of columns 16 i on.
 */
template <int type, int n>
static __device__ __forceinline__ void mb_wgmma_across(float (&sum)[n / 2], uint32_t a0, uint32_t a1,
                                                       uint32_t a2, uint32_t a3, uint64_t b, int accumulate);

#define MB_WGMMA_ACROSS(type, n, types, a0_, a1_, a2_, a3_, b_, flag_)                                     \
    template <>                                                                                            \
    __device__ __forceinline__ void mb_wgmma_across<type, n>(float(&sum)[n / 2], uint32_t a0, uint32_t a1, \
                                                             uint32_t a2, uint32_t a3, uint64_t b,         \
                                                             int accumulate) {                             \
        asm volatile("{\n"                                                                                 \
                     ".reg .pred add;\n"                                                                   \
                     "setp.ne.s32 add, %" #flag_ ", 0;\n"                                                  \
                     "wgmma.mma_async.sync.aligned.m64n" #n "k16.f32." types " {" MB_NAMES_##n             \
                     "}, {%" #a0_ ", %" #a1_ ", %" #a2_ ", %" #a3_ "}, %" #b_ ", add, 1, 1, 1;\n"          \
                     "}"                                                                                   \
                     : MB_SUMS_##n                                                                         \
                     : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "l"(b), "r"(accumulate));                       \
    }
MB_WGMMA_ACROSS(MB_WGMMA_BF16, 64, "bf16.bf16", 32, 33, 34, 35, 36, 37)
MB_WGMMA_ACROSS(MB_WGMMA_F16, 64, "f16.f16", 32, 33, 34, 35, 36, 37)
MB_WGMMA_ACROSS(MB_WGMMA_BF16, 128, "bf16.bf16", 64, 65, 66, 67, 68, 69)
MB_WGMMA_ACROSS(MB_WGMMA_F16, 128, "f16.f16", 64, 65, 66, 67, 68, 69)
#undef MB_WGMMA_ACROSS

#endif
