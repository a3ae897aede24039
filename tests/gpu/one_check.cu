/*
 * one_check.cu - what few tokens have in one launch, against the launches that it stands for: the same bits.
 *
 *   one_check
 *
 * The sum of the experts' rows in front of a norm and a dense layer (gemm's x_sum), the norm in front of the router,
 * and all that is in front of the experts.
 * Each problem runs with the switch of its change off and on (base/trial.h). Exit status 1 when anything differs.
 */
#include "check.cuh"
#include "ops/gemm/gemm.h"
#include "ops/moe/moe_sm90.h"
#include "values.cuh"

static char subject[128];

static void compare(const char *what, const void *a, const void *b, size_t n_bytes) {
    unsigned char *x = (unsigned char *)download((void *)a, n_bytes),
                  *y = (unsigned char *)download((void *)b, n_bytes);
    for (size_t i = 0; i < n_bytes; i++)
        if (x[i] != y[i]) {
            char text[192];
            snprintf(text, sizeof(text), "%s differs, first at byte %zu of %zu", what, i, n_bytes);
            complain(subject, text, 0);
            break;
        }
    free(x);
    free(y);
}

static void *poisoned(size_t n_bytes) {
    void *memory = allocate(n_bytes);
    CUDA(cudaMemset(memory, 0xff, n_bytes));
    return memory;
}

/* ---- The sum */

static void check_sum(mb_dtype dtype, int is_fp8, int n_tokens, int hidden, int n_outputs, int top_k,
                      int is_in_order) {
    const int n_rows = n_tokens * top_k;
    const uint64_t seed = (uint64_t)(n_tokens * 1000 + hidden + top_k);
    int32_t rows[64];
    for (int i = 0; i < n_rows; i++) /* another order than the choices'; some are not local */
        rows[i] = i % 5 == 3 && !is_in_order ? -1 : (i * 7 + 3) % n_rows;
    int32_t *token_row = (int32_t *)allocate(sizeof(rows));
    CUDA(cudaMemcpy(token_row, rows, sizeof(int32_t) * n_rows, cudaMemcpyHostToDevice));
    mb_moe_reduce_args sum = {};
    sum.y = random_values((int64_t)n_rows * hidden, dtype, seed, 1);
    sum.weights = (float *)random_values(n_rows, MB_F32, seed + 1, 0.3f);
    sum.token_row = token_row;
    sum.residual = random_values((int64_t)n_tokens * hidden, dtype, seed + 2, 1);
    sum.n_tokens = n_tokens;
    sum.hidden = hidden;
    sum.top_k = top_k;
    sum.dtype = sum.out_dtype = dtype;
    mb_gemm_args args = {};
    args.weight =
        random_weight(1, n_outputs, hidden, is_fp8 ? MB_F8_E4M3 : dtype, is_fp8 ? 128 : 0, seed + 3);
    args.norm_weight.data = random_values(hidden, dtype, seed + 4, 1);
    args.norm_weight.count = args.norm_weight.rows = 1;
    args.norm_weight.cols = hidden;
    args.norm_weight.dtype = dtype;
    args.eps = 1e-6f;
    args.n_tokens = n_tokens;
    args.dtype = args.out_dtype = args.bias_dtype = dtype;
    const size_t x_bytes = (size_t)n_tokens * hidden * 2, out_bytes = (size_t)n_tokens * n_outputs * 2;
    void *x[2], *out[2];
    for (int i = 0; i < 2; i++) {
        setenv("MB_ONE_SUM", i ? "1" : "0", 1);
        sum.out = x[i] = poisoned(x_bytes);
        args.x = x[i];
        args.x_sum = &sum;
        args.out = out[i] = poisoned(out_bytes);
        const size_t bytes = bytes_of(mb_gemm_sm90_workspace, &args);
        void *workspace = allocate(bytes);
        MB(mb_gemm_sm90(&args, workspace, bytes, NULL));
        CUDA(cudaDeviceSynchronize());
        CUDA(cudaFree(workspace));
    }
    snprintf(subject, sizeof(subject), "sum, %s %s, T %d, H %d, N %d, K %d", mb_dtype_name(dtype),
             is_fp8 ? "fp8" : "16 bits", n_tokens, hidden, n_outputs, top_k);
    compare("x", x[0], x[1], x_bytes);
    compare("out", out[0], out[1], out_bytes);
    const void *all[] = {token_row,
                         sum.y,
                         sum.weights,
                         sum.residual,
                         args.weight.data,
                         args.weight.scale,
                         args.norm_weight.data,
                         x[0],
                         x[1],
                         out[0],
                         out[1]};
    for (const void *one : all)
        CUDA(cudaFree((void *)one));
}

/* ---- The norm */

static void check_norm(int n_tokens, int hidden, int n_experts) {
    const uint64_t seed = (uint64_t)(n_tokens * 1000 + hidden + n_experts);
    mb_rms_norm_args norm = {};
    norm.x = random_values((int64_t)n_tokens * hidden, MB_BF16, seed, 2);
    norm.weight.data = random_values(hidden, MB_BF16, seed + 1, 1);
    norm.weight.count = norm.weight.rows = 1;
    norm.weight.cols = hidden;
    norm.weight.dtype = MB_BF16;
    norm.n_rows = n_tokens;
    norm.hidden = hidden;
    norm.eps = 1e-6f;
    norm.dtype = MB_BF16;
    mb_moe_router_gemm_args score = {};
    score.weight = random_values((int64_t)n_experts * hidden, MB_BF16, seed + 2, 0.02f);
    score.n_tokens = n_tokens;
    score.hidden = hidden;
    score.n_experts = n_experts;
    score.dtype = score.weight_dtype = MB_BF16;
    const size_t x_bytes = (size_t)n_tokens * hidden * 2,
                 out_bytes = (size_t)n_tokens * n_experts * sizeof(float);
    void *normed[2];
    float *logits[2];
    for (int i = 0; i < 2; i++) {
        setenv("MB_ONE_NORM", i ? "1" : "0", 1);
        norm.out = normed[i] = poisoned(x_bytes);
        score.x = norm.out;
        score.logits = logits[i] = (float *)poisoned(out_bytes);
        MB(mb_moe_norm_router_sm90(&norm, &score, NULL, 0, NULL));
        CUDA(cudaDeviceSynchronize());
    }
    snprintf(subject, sizeof(subject), "norm, T %d, H %d, E %d", n_tokens, hidden, n_experts);
    compare("normed", normed[0], normed[1], x_bytes);
    compare("logits", logits[0], logits[1], out_bytes);
    const void *all[] = {norm.x, norm.weight.data, score.weight, normed[0], normed[1], logits[0], logits[1]};
    for (const void *one : all)
        CUDA(cudaFree((void *)one));
}

/* ---- The block */

static void check_block(int is_fp8, int n_tokens, int hidden, int n_experts, mb_weight w13, mb_weight w2) {
    enum { TOP_K = 8 };
    const uint64_t seed = (uint64_t)(n_tokens * 1000 + hidden + n_experts);
    mb_rms_norm_args norm = {};
    norm.x = random_values((int64_t)n_tokens * hidden, MB_BF16, seed, 2);
    norm.weight.data = random_values(hidden, MB_BF16, seed + 1, 1);
    norm.weight.count = norm.weight.rows = 1;
    norm.weight.cols = hidden;
    norm.weight.dtype = MB_BF16;
    norm.n_rows = n_tokens;
    norm.hidden = hidden;
    norm.eps = 1e-6f;
    norm.dtype = MB_BF16;
    mb_moe_router_gemm_args score = {};
    score.weight = random_values((int64_t)n_experts * hidden, MB_BF16, seed + 2, 0.02f);
    score.n_tokens = n_tokens;
    score.hidden = hidden;
    score.n_experts = n_experts;
    score.dtype = score.weight_dtype = MB_BF16;
    mb_moe_route_args route = {};
    route.n_tokens = n_tokens;
    route.n_experts = n_experts;
    route.top_k = TOP_K;
    route.renormalize = 1;
    mb_moe_forward_args args = {};
    args.route = &route;
    args.w13 = w13;
    args.w2 = w2;
    args.n_tokens = n_tokens;
    args.hidden = hidden;
    args.intermediate = (int32_t)w2.cols;
    args.top_k = TOP_K;
    args.n_experts = args.n_local_experts = n_experts;
    args.dtype = MB_BF16;
    args.activation = MB_ACT_SWIGLU;
    args.residual = norm.x;
    const size_t sizes[5] = {(size_t)n_tokens * hidden * 2, (size_t)n_tokens * n_experts * sizeof(float),
                             (size_t)n_tokens * TOP_K * sizeof(float),
                             (size_t)n_tokens * TOP_K * sizeof(int32_t), (size_t)n_tokens * hidden * 2};
    static const char *const names[5] = {"normed", "logits", "weights", "ids", "out"};
    void *results[2][5];
    for (int i = 0; i < 2; i++) {
        setenv("MB_ONE_NORM", i ? "1" : "0", 1);
        setenv("MB_ONE_FRONT", i ? "1" : "0", 1);
        for (int k = 0; k < 5; k++)
            results[i][k] = poisoned(sizes[k]);
        args.x = score.x = norm.out = results[i][0];
        route.logits = score.logits = (float *)results[i][1];
        args.weights = route.weights = (float *)results[i][2];
        args.ids = route.ids = (int32_t *)results[i][3];
        args.out = results[i][4];
        const size_t bytes = bytes_of(mb_moe_forward_sm90_workspace, &args);
        void *workspace = poisoned(bytes);
        for (int again = 0; again < 3; again++) /* the counters are left as the next call needs them */
            MB(mb_moe_block_sm90(&norm, &score, &args, workspace, bytes, NULL, NULL));
        CUDA(cudaDeviceSynchronize());
        CUDA(cudaFree(workspace));
    }
    snprintf(subject, sizeof(subject), "block, %s, T %d, H %d, E %d", is_fp8 ? "fp8" : "bf16", n_tokens,
             hidden, n_experts);
    for (int k = 0; k < 5; k++) {
        compare(names[k], results[0][k], results[1][k], sizes[k]);
        CUDA(cudaFree(results[0][k]));
        CUDA(cudaFree(results[1][k]));
    }
    CUDA(cudaFree((void *)norm.x));
    CUDA(cudaFree((void *)norm.weight.data));
    CUDA(cudaFree((void *)score.weight));
}

int main(void) {
    const int hiddens[] = {2048, 4096, 1056, 96}, outputs[] = {5120, 512};
    for (int n_tokens = 1; n_tokens <= 5; n_tokens++)
        for (int hidden : hiddens)
            for (int n_outputs : outputs)
                for (int is_fp8 = 0; is_fp8 < 2; is_fp8++)
                    for (int is_f16 = 0; is_f16 < 2; is_f16++)
                        check_sum(is_f16 ? MB_F16 : MB_BF16, is_fp8, n_tokens, hidden, n_outputs,
                                  n_tokens % 2 ? 8 : 3, hidden == 2048);
    for (int n_tokens = 1; n_tokens <= 9; n_tokens++)
        for (int hidden : hiddens)
            for (int n_experts : {128, 60})
                check_norm(n_tokens, hidden, n_experts);
    for (int hidden : {2048, 352})
        for (int n_experts : {128, 48})
            for (int is_fp8 = 0; is_fp8 < 2; is_fp8++) {
                const mb_dtype type = is_fp8 ? MB_F8_E4M3 : MB_BF16;
                const mb_weight w13 = random_weight(n_experts, 2 * 256, hidden, type, is_fp8 ? 128 : 0, 5);
                const mb_weight w2 = random_weight(n_experts, hidden, 256, type, is_fp8 ? 128 : 0, 6);
                for (int n_tokens = 1; n_tokens <= 5; n_tokens++)
                    check_block(is_fp8, n_tokens, hidden, n_experts, w13, w2);
                const void *all[] = {w13.data, w13.scale, w2.data, w2.scale};
                for (const void *one : all)
                    CUDA(cudaFree((void *)one));
            }
    printf(wrong ? "WRONG: %d\n" : "all right\n", wrong);
    return wrong > 0;
}
