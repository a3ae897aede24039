/*
 * moe_block_check.cu - what a decode step has in one launch for few tokens, against the launches that it
 * stands for: the same bits.
 *
 *   moe_block_check [--small]
 *
 * The MoE block as one operator (norm, router, choice, plan, x to fp8 by one cluster) against rms_norm,
 * router and moe_forward; and the sum that it leaves (gemm's x_sum) against reduce and gemm. All outputs
 * are filled with 0xff bytes before. More tokens than the launch takes are among the problems. --small: few
 * of them, for compute-sanitizer. Exit status 1 when anything differs.
 */
#include "capture.cuh"
#include "ops/gemm/gemm.h"
#include "ops/moe/moe_sm90.h"
#include "values.cuh"

static char subject[128];

static void compare(const char *what, const void *a, const void *b, size_t n_bytes) {
    unsigned char *x = (unsigned char *)download(a, n_bytes), *y = (unsigned char *)download(b, n_bytes);
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

static mb_weight norm_weight(int hidden, mb_dtype dtype, uint64_t seed) {
    mb_weight weight = {};
    weight.data = random_values(hidden, dtype, seed, 1);
    weight.count = weight.rows = 1;
    weight.cols = hidden;
    weight.dtype = dtype;
    return weight;
}

/* ---- The sum that the block leaves */

static void run_gemm(const mb_gemm_args *args) {
    const size_t bytes = bytes_of(mb_gemm_sm90_workspace, args);
    void *workspace = poisoned(bytes);
    MB(mb_gemm_sm90(args, workspace, bytes, NULL));
    CUDA(cudaDeviceSynchronize());
    CUDA(cudaFree(workspace));
}

static void check_sum(mb_dtype dtype, int is_fp8, int n_tokens, int hidden, int n_outputs, int top_k,
                      int all_are_local) {
    const int n_rows = n_tokens * top_k;
    const uint64_t seed = (uint64_t)(n_tokens * 1000 + hidden + top_k);
    int32_t rows[64];
    for (int i = 0; i < n_rows; i++) /* another order than the choices' */
        rows[i] = i % 5 == 3 && !all_are_local ? -1 : (i * 7 + 3) % n_rows;
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
    args.norm_weight = norm_weight(hidden, dtype, seed + 4);
    args.eps = 1e-6f;
    args.n_tokens = n_tokens;
    args.dtype = args.out_dtype = args.bias_dtype = dtype;
    const size_t x_bytes = (size_t)n_tokens * hidden * 2, out_bytes = (size_t)n_tokens * n_outputs * 2;
    void *x[2], *out[2];
    for (int i = 0; i < 2; i++) {
        sum.out = x[i] = poisoned(x_bytes);
        args.x = x[i];
        args.out = out[i] = poisoned(out_bytes);
        args.x_sum = i == 0 ? NULL : &sum;
        if (i == 0)
            MB(mb_moe_reduce_experts_sm90(&sum, NULL));
        run_gemm(&args);
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

/* ---- The block */

enum { APART, IN_BLOCK, SUM_LEFT, WAYS, TOP_K = 8 };

typedef struct block {
    mb_rms_norm_args norm;
    mb_moe_router_gemm_args score;
    mb_moe_route_args route;
    mb_moe_forward_args forward;
} block;

/* What is the same in every way to run it; all but route, which forward points to where the block is. */
static block block_of(int n_tokens, int hidden, int n_experts, mb_weight w13, mb_weight w2, int has_bias) {
    const uint64_t seed = (uint64_t)(n_tokens * 1000 + hidden + n_experts);
    block b = {};
    b.norm.x = random_values((int64_t)n_tokens * hidden, MB_BF16, seed, 2);
    b.norm.weight = norm_weight(hidden, MB_BF16, seed + 1);
    b.norm.n_rows = n_tokens;
    b.norm.hidden = hidden;
    b.norm.eps = 1e-6f;
    b.norm.dtype = MB_BF16;
    b.score.weight = random_values((int64_t)n_experts * hidden, MB_BF16, seed + 2, 0.02f);
    b.score.bias = has_bias ? random_values(n_experts, MB_F32, seed + 3, 0.5f) : NULL;
    b.score.n_tokens = n_tokens;
    b.score.hidden = hidden;
    b.score.n_experts = n_experts;
    b.score.dtype = b.score.weight_dtype = MB_BF16;
    b.route.n_tokens = n_tokens;
    b.route.n_experts = n_experts;
    b.route.top_k = TOP_K;
    b.route.renormalize = 1;
    b.forward.w13 = w13;
    b.forward.w2 = w2;
    b.forward.n_tokens = n_tokens;
    b.forward.hidden = hidden;
    b.forward.intermediate = (int32_t)w2.cols;
    b.forward.top_k = TOP_K;
    b.forward.n_experts = b.forward.n_local_experts = n_experts;
    b.forward.dtype = MB_BF16;
    b.forward.activation = MB_ACT_SWIGLU;
    b.forward.residual = b.norm.x;
    return b;
}

typedef struct block_run {
    const block *block;
    int way;
    void *workspace;
    size_t bytes;
} block_run;

static void launch_block(const void *context, cudaStream_t stream) {
    const block_run *r = (const block_run *)context;
    const block *b = r->block;
    mb_moe_reduce_args left = {};
    switch (r->way) {
    case APART:
        MB(mb_rms_norm_sm90(&b->norm, stream));
        MB(mb_moe_router_gemm_sm90(&b->score, r->workspace, r->bytes, stream));
        MB(mb_moe_forward_sm90(&b->forward, r->workspace, r->bytes, stream));
        break;
    case IN_BLOCK:
        MB(mb_moe_block_sm90(&b->norm, &b->score, &b->forward, r->workspace, r->bytes, NULL, stream));
        break;
    default:
        MB(mb_moe_block_sm90(&b->norm, &b->score, &b->forward, r->workspace, r->bytes, &left, stream));
        MB(mb_moe_reduce_experts_sm90(&left, stream));
    }
}

/* Three times, since the counters are left as the next call needs them. How many launches one call has. */
static size_t run_block(const block_run *run) {
    const captured c = capture(launch_block, run);
    size_t n_launches = 0;
    CUDA(cudaGraphGetNodes(c.graph, NULL, &n_launches));
    for (int i = 0; i < 3; i++)
        CUDA(cudaGraphLaunch(c.replay, c.stream));
    CUDA(cudaStreamSynchronize(c.stream));
    free_captured(&c);
    return n_launches;
}

static void check_block(int is_fp8, int n_tokens, int hidden, int n_experts, mb_weight w13, mb_weight w2) {
    block b = block_of(n_tokens, hidden, n_experts, w13, w2, n_tokens % 2);
    b.forward.route = &b.route;
    const size_t sizes[5] = {(size_t)n_tokens * hidden * 2, (size_t)n_tokens * n_experts * sizeof(float),
                             (size_t)n_tokens * TOP_K * sizeof(float),
                             (size_t)n_tokens * TOP_K * sizeof(int32_t), (size_t)n_tokens * hidden * 2};
    static const char *const names[5] = {"normed", "logits", "weights", "ids", "out"};
    static const char *const ways[WAYS] = {"apart", "in one", "in one, its sum left"};
    void *results[WAYS][5];
    size_t n_launches[WAYS];
    for (int way = 0; way < WAYS; way++) {
        for (int k = 0; k < 5; k++)
            results[way][k] = poisoned(sizes[k]);
        b.forward.x = b.score.x = b.norm.out = results[way][0];
        b.route.logits = b.score.logits = (float *)results[way][1];
        b.forward.weights = b.route.weights = (float *)results[way][2];
        b.forward.ids = b.route.ids = (int32_t *)results[way][3];
        b.forward.out = results[way][4];
        const size_t bytes = bytes_of(mb_moe_forward_sm90_workspace, &b.forward);
        void *workspace = poisoned(bytes);
        CUDA(cudaDeviceSynchronize());
        const block_run run = {&b, way, workspace, bytes};
        n_launches[way] = run_block(&run);
        CUDA(cudaFree(workspace));
    }
    const int is_one = n_tokens <= 4 && n_experts % 16 == 0; /* of as many columns all are taken */
    for (int way = IN_BLOCK; way < WAYS; way++) {
        snprintf(subject, sizeof(subject), "block %s, %s, T %d, H %d, E %d", ways[way],
                 is_fp8 ? "fp8" : "bf16", n_tokens, hidden, n_experts);
        for (int k = 0; k < 5; k++)
            compare(names[k], results[APART][k], results[way][k], sizes[k]);
        if (is_one != (n_launches[way] < n_launches[APART]))
            complain(subject, "launches", (double)n_launches[way]);
    }
    for (int way = 0; way < WAYS; way++)
        for (int k = 0; k < 5; k++)
            CUDA(cudaFree(results[way][k]));
    const void *all[] = {b.norm.x, b.norm.weight.data, b.score.weight, b.score.bias};
    for (const void *one : all)
        CUDA(cudaFree((void *)one));
}

static void check_sums(int is_small) {
    for (int n_tokens = 1; n_tokens <= 5; n_tokens++)
        for (int hidden : {2048, 4096, 1056, 96})
            for (int n_outputs : {5120, 512})
                for (int is_fp8 = 0; is_fp8 < 2; is_fp8++)
                    for (int is_f16 = 0; is_f16 < 2; is_f16++)
                        if (!is_small || (hidden < 2048 && n_outputs < 5120 && n_tokens % 3 == 1))
                            check_sum(is_f16 ? MB_F16 : MB_BF16, is_fp8, n_tokens, hidden, n_outputs,
                                      n_tokens % 2 ? 8 : 3, hidden == 2048);
}

static void check_blocks(int is_small) {
    for (int hidden : {2048, 3072, 1056, 352})
        for (int n_experts : {128, 48, 60})
            for (int is_fp8 = 0; is_fp8 < 2; is_fp8++) {
                if (is_small && (hidden > 352 || n_experts == 60))
                    continue;
                const mb_dtype type = is_fp8 ? MB_F8_E4M3 : MB_BF16;
                const mb_weight w13 = random_weight(n_experts, 2 * 256, hidden, type, is_fp8 ? 128 : 0, 5);
                const mb_weight w2 = random_weight(n_experts, hidden, 256, type, is_fp8 ? 128 : 0, 6);
                for (int n_tokens = 1; n_tokens <= 5; n_tokens += is_small ? 3 : 1)
                    check_block(is_fp8, n_tokens, hidden, n_experts, w13, w2);
                const void *all[] = {w13.data, w13.scale, w2.data, w2.scale};
                for (const void *one : all)
                    CUDA(cudaFree((void *)one));
            }
}

int main(int argc, char **argv) {
    const int is_small = argc == 2 && !strcmp(argv[1], "--small");
    if (argc > 1 && !is_small) {
        fprintf(stderr, "moe_block_check [--small]\n");
        return 2;
    }
    check_sums(is_small);
    check_blocks(is_small);
    printf(wrong ? "WRONG: %d\n" : "all right\n", wrong);
    return wrong > 0;
}
