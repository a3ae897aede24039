/* simt_refusals.cuh - calls of simt_check's operators that must be refused with a sentence, or do nothing. */
#ifndef MB_TESTS_SIMT_REFUSALS_CUH
#define MB_TESTS_SIMT_REFUSALS_CUH

#include "simt_support.cuh"

/* The arguments of mb_grouped_gemm_f32_sm90. */
typedef struct gemm_call {
    mb_grouped_gemm_args args;
    const mb_moe_token_tile *tiles;
    const int32_t *n_tiles;
    int64_t max_tiles;
} gemm_call;

static void refused(mb_status status, mb_status wanted, const char *word) {
    const int good = status == wanted && strstr(mb_last_error(), word) != NULL;
    expect(good, mb_last_error(), (double)status, word);
}

static void check_refusals(void) {
    char *memory = (char *)allocate(1 << 20);
    mb_moe_reduce_args d = {};
    d.y = d.out = memory;
    d.weights = (const float *)memory;
    d.token_row = (const int32_t *)memory;
    d.n_tokens = 1;
    d.hidden = 64;
    d.top_k = 2;
    d.dtype = d.out_dtype = MB_BF16;
#define REDUCE(field, value, word)                                      \
    do {                                                                \
        mb_moe_reduce_args bad = d;                                     \
        bad.field = value;                                              \
        refused(mb_moe_reduce_sm90(&bad, NULL), MB_ERR_ARGUMENT, word); \
    } while (0)
    REDUCE(y, memory + 8, "y is not");
    REDUCE(out, NULL, "out is NULL");
    REDUCE(weights, NULL, "weights is NULL");
    REDUCE(token_row, NULL, "token_row is NULL");
    REDUCE(shared, memory + 8, "shared is not");
    REDUCE(residual, memory + 2, "residual is not");
    REDUCE(hidden, 60, "hidden 60");
    REDUCE(top_k, 0, "top_k");
    REDUCE(n_tokens, -1, "n_tokens");
    REDUCE(n_tokens, (int64_t)1 << 40, "n_tokens");
    REDUCE(dtype, MB_F8_E4M3, "dtype fp8_e4m3");
    REDUCE(out_dtype, MB_F16, "out_dtype fp16");

    mb_moe_router_gemm_args r = {};
    r.x = r.weight = memory;
    r.logits = (float *)memory;
    r.n_tokens = 1;
    r.hidden = 64;
    r.n_experts = 8;
    r.dtype = MB_BF16;
#define ROUTER(field, value, word)                                                    \
    do {                                                                              \
        mb_moe_router_gemm_args bad = r;                                              \
        bad.field = value;                                                            \
        refused(mb_moe_router_gemm_sm90(&bad, NULL, 0, NULL), MB_ERR_ARGUMENT, word); \
    } while (0)
    ROUTER(x, NULL, "x is");
    ROUTER(weight, memory + 4, "weight is");
    ROUTER(logits, NULL, "logits is");
    ROUTER(bias, memory + 2, "bias is");
    ROUTER(logits, (float *)(memory + 2), "logits is");
    ROUTER(hidden, 60, "hidden 60");
    ROUTER(n_experts, 1025, "n_experts 1025");
    ROUTER(n_tokens, -1, "n_tokens");
    ROUTER(dtype, MB_F8_E4M3, "dtype fp8_e4m3");
    ROUTER(weight_dtype, MB_F8_E4M3, "weight_dtype fp8_e4m3");
    r.n_tokens = 4096;
    refused(mb_moe_router_gemm_sm90(&r, memory, 16, NULL), MB_ERR_CAPACITY, "workspace has 16 bytes");
    r.hidden = 0;
    size_t bytes;
    refused(mb_moe_router_gemm_sm90_workspace(&r, &bytes), MB_ERR_ARGUMENT, "hidden 0");

    gemm_call g = {};
    g.args.a = g.args.b.data = g.args.out = memory;
    g.args.b.count = 1;
    g.args.b.rows = g.args.b.cols = 8;
    g.args.n_rows = 4;
    g.args.f32_math = MB_F32_EXACT;
    g.tiles = (const mb_moe_token_tile *)memory;
    g.n_tiles = (const int32_t *)memory;
    g.max_tiles = 1;
#define GEMM(field, value, word)                                                                  \
    do {                                                                                          \
        gemm_call bad = g;                                                                        \
        bad.field = value;                                                                        \
        refused(mb_grouped_gemm_f32_sm90(&bad.args, bad.tiles, bad.n_tiles, bad.max_tiles, NULL), \
                MB_ERR_ARGUMENT, word);                                                           \
    } while (0)
    GEMM(args.a, NULL, "a is NULL");
    GEMM(args.b.data, memory + 4, "b.data is not");
    GEMM(args.out, NULL, "out is NULL");
    GEMM(tiles, NULL, "tiles is NULL");
    GEMM(n_tiles, NULL, "n_tiles is NULL");
    GEMM(max_tiles, -1, "max_tiles");
    GEMM(max_tiles, (int64_t)1 << 40, "max_tiles");
    GEMM(args.b.cols, 6, "b.cols 6");
    GEMM(args.b.rows, 7, "b.rows 7");
    GEMM(args.b.rows, 0, "b is");
    GEMM(args.b.scale, (const float *)memory, "b.scale");
    GEMM(args.n_rows, -1, "n_rows");
    GEMM(args.dtype, MB_BF16, "dtype bf16");
    GEMM(args.f32_math, MB_F32_TF32, "f32_math");
    GEMM(args.activation, (mb_activation)8, "activation 8");
    g.args.bias = memory;
    GEMM(args.bias_dtype, MB_BF16, "bias_dtype bf16");
    CUDA(cudaDeviceSynchronize());
    CUDA(cudaFree(memory));
}

/* No tokens: success without a look at the pointers. */
static void check_empty(void) {
    mb_moe_reduce_args d = {};
    d.hidden = 8;
    d.top_k = 1;
    MB(mb_moe_reduce_sm90(&d, NULL));
    mb_moe_router_gemm_args r = {};
    r.hidden = 8;
    r.n_experts = 1;
    MB(mb_moe_router_gemm_sm90(&r, NULL, 0, NULL));
    mb_grouped_gemm_args g = {};
    g.b.count = g.b.rows = 1;
    g.b.cols = 4;
    g.activation = MB_ACT_NONE;
    g.f32_math = MB_F32_EXACT;
    MB(mb_grouped_gemm_f32_sm90(&g, NULL, NULL, 0, NULL));
}

#endif
