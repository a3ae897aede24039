/* gemm_refusals.cuh - the grouped GEMM given no rows, and given what it must refuse with a sentence. */
#ifndef MB_TESTS_GEMM_REFUSALS_CUH
#define MB_TESTS_GEMM_REFUSALS_CUH

#include "gemm_problem.cuh"
#include "ops/moe/moe_sm90.h"

#define REFUSED(change)                                                                              \
    do {                                                                                             \
        mb_grouped_gemm_args g = p->args;                                                            \
        g.change;                                                                                    \
        expect(p->name, #change, mb_grouped_gemm_sm90(&g, workspace, bytes, NULL), MB_ERR_ARGUMENT); \
    } while (0)
#define NO_SUCH(change)                                                                     \
    do {                                                                                    \
        mb_grouped_gemm_args g = p->args;                                                   \
        g.change;                                                                           \
        expect_no_such(p->name, #change, mb_grouped_gemm_sm90(&g, workspace, bytes, NULL)); \
    } while (0)

/* p has several groups and a bias. */
static inline void check_gemm_refusals(const gemm_problem *p) {
    const mb_grouped_gemm_args *right = &p->args;
    const size_t bytes = bytes_of(mb_grouped_gemm_sm90_workspace, right);
    void *workspace = allocate(bytes);
    const int is_fp8 = right->dtype == MB_F8_E4M3;
    NO_SUCH(dtype = (mb_dtype)9);
    NO_SUCH(b.dtype = right->dtype == MB_BF16 ? MB_F16 : MB_BF16);
    NO_SUCH(out_dtype = (mb_dtype)9);
    NO_SUCH(bias_dtype = (mb_dtype)9);
    NO_SUCH(bias_dtype = MB_F8_E4M3);
    if (!is_fp8)
        NO_SUCH(out_dtype = right->dtype == MB_BF16 ? MB_F16 : MB_BF16);
    if (right->dtype == MB_F32) {
        NO_SUCH(out_dtype = MB_F8_E4M3);
        REFUSED(f32_math = (mb_f32_math)9);
    }
    REFUSED(n_rows = -1);
    REFUSED(activation = (mb_activation)99);
    REFUSED(b.count = 0);
    REFUSED(b.rows = 0);
    REFUSED(b.cols = 6); /* no multiple of 16 bytes */
    REFUSED(b.data = NULL);
    REFUSED(a = NULL);
    REFUSED(out = NULL);
    REFUSED(offsets = NULL);
    REFUSED(a = (const char *)right->a + 4);
    REFUSED(b.data = (const char *)right->b.data + 4);
    REFUSED(out = (char *)right->out + 4);
    if (is_fp8) {
        REFUSED(a_scale = NULL);
        REFUSED(b.scale = NULL);
        NO_SUCH(b.scale_rows = 48);
        NO_SUCH(b.scale_dtype = MB_F8_E8M0);
    } else {
        REFUSED(a_scale = (const float *)right->a);
        REFUSED(b.scale = (const float *)right->a);
    }
    if (right->out_dtype == MB_F8_E4M3)
        REFUSED(out_scale = NULL);
    else
        REFUSED(out_scale = (float *)right->out);
    if (bytes > 0)
        expect(p->name, "workspace too small", mb_grouped_gemm_sm90(right, workspace, bytes - 1, NULL),
               MB_ERR_CAPACITY);
    CUDA(cudaFree(workspace));

    mb_grouped_gemm_args none = *right;
    none.n_rows = 0;
    none.a = NULL;
    none.out = NULL;
    none.out_scale = NULL;
    expect(p->name, "no rows at NULL", mb_grouped_gemm_sm90(&none, NULL, 0, NULL), MB_OK);
    CUDA(cudaDeviceSynchronize()); /* nothing was launched that fails later */
}

#undef REFUSED
#undef NO_SUCH

#endif
