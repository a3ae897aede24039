/*
 * moe_block_check.cu - what a decode step has in one launch for few tokens, against the launches that it
 * stands for: the same bits.
 *
 *   moe_block_check [--small]
 *
 * The MoE block as one operator (norm, router, choice, plan, x to fp8 by one cluster) against rms_norm,
 * router and moe_forward; the sum that it leaves (gemm's x_sum) against reduce and gemm; and both in a chain
 * of layers. All outputs are filled with 0xff bytes before. More tokens and choices than the launch takes are
 * among the problems, and arguments that must be refused. --small: few of them, for compute-sanitizer. Exit
 * status 1 when anything differs.
 */
#include "moe_block_chain.cuh"
#include "moe_block_refusals.cuh"

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
    const void *const all[] = {token_row, sum.y, sum.weights, sum.residual, x[0], x[1], out[0], out[1]};
    release(all, 8);
    free_weight(&args.weight);
    free_weight(&args.norm_weight);
}

/* ---- The block */

enum { APART, IN_BLOCK, SUM_LEFT, WAYS };

typedef struct block_run {
    const block *b;
    int way;
    void *workspace;
    size_t bytes;
} block_run;

static void launch_block(const void *context, cudaStream_t stream) {
    const block_run *r = (const block_run *)context;
    const block *b = r->b;
    mb_moe_reduce_args left = {};
    switch (r->way) {
    case APART:
        launch_apart(b, r->workspace, r->bytes, stream);
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

static const char *const output_names[N_OUTPUTS] = {"normed", "logits", "weights", "ids", "out"};

/* Returns the outputs of the block as one call, which the caller frees. */
static block_outputs check_block(const block_shape *s, mb_weight w13, mb_weight w2) {
    block b = block_of(s, w13, w2, (uint64_t)(s->hidden + s->n_experts));
    static const char *const ways[WAYS] = {"apart", "in one", "in one, its sum left"};
    block_outputs outputs[WAYS];
    int32_t flags[WAYS];
    size_t n_launches[WAYS];
    int32_t *flag = s->has_nan ? (int32_t *)allocate(sizeof(int32_t)) : NULL;
    b.route.nan_flag = flag;
    for (int way = 0; way < WAYS; way++) {
        outputs[way] = new_outputs(s);
        aim_block(&b, &outputs[way]);
        const size_t bytes = block_workspace(&b);
        void *workspace = poisoned(bytes);
        if (flag)
            CUDA(cudaMemset(flag, 0, sizeof(int32_t)));
        CUDA(cudaDeviceSynchronize());
        const block_run run = {&b, way, workspace, bytes};
        n_launches[way] = run_block(&run);
        if (flag)
            CUDA(cudaMemcpy(&flags[way], flag, sizeof(int32_t), cudaMemcpyDeviceToHost));
        CUDA(cudaFree(workspace));
    }
    /* All H of these lists fit. */
    const int is_one = s->n_tokens <= 4 && s->n_tokens * s->top_k <= 32 && s->n_experts % 16 == 0;
    for (int way = IN_BLOCK; way < WAYS; way++) {
        snprintf(subject, sizeof(subject), "block %s, %s, T %d, H %d, E %d, local %d from %d, K %d%s%s%s%s%s",
                 ways[way], s->is_fp8 ? "fp8" : "bf16", s->n_tokens, s->hidden, s->n_experts, n_local_of(s),
                 s->first_expert, s->top_k, s->avoids_local ? ", none chosen" : "",
                 s->has_shared ? ", shared" : "", s->has_no_residual ? ", no residual" : "",
                 s->has_nan ? ", NaN" : "", s->gives_sums ? ", softmax of the choices" : "");
        for (int k = 0; k < N_OUTPUTS; k++)
            if (!s->has_nan || k == WEIGHTS || k == IDS) /* which NaN it is does not matter */
                compare(output_names[k], outputs[APART].data[k], outputs[way].data[k],
                        outputs[way].n_bytes[k]);
        if (is_one != (n_launches[way] < n_launches[APART]))
            complain(subject, "launches", (double)n_launches[way]);
        if (flag && !flags[way])
            complain(subject, "the flag of NaN", flags[way]);
    }
    for (int way = 0; way < WAYS; way++)
        if (way != IN_BLOCK)
            release((const void *const *)outputs[way].data, N_OUTPUTS);
    CUDA(cudaFree(flag));
    free_block(&b);
    return outputs[IN_BLOCK];
}

static void check_and_free(const block_shape *s, mb_weight w13, mb_weight w2) {
    const block_outputs found = check_block(s, w13, w2);
    release((const void *const *)found.data, N_OUTPUTS);
}

/* Row 0 in the company of others: the bits that it has alone. */
static void check_company(const block_shape *s, const block_outputs *alone, const block_outputs *found) {
    snprintf(subject, sizeof(subject), "row 0 of %d, %s, H %d, E %d", s->n_tokens, s->is_fp8 ? "fp8" : "bf16",
             s->hidden, s->n_experts);
    for (int k = 0; k < N_OUTPUTS; k++)
        compare(output_names[k], alone->data[k], found->data[k], alone->n_bytes[k]);
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
    for (int top_k : {1, 4, 9})
        for (int is_fp8 = 0; is_fp8 < 2; is_fp8++)
            for (int all_are_local = 0; all_are_local < 2; all_are_local++)
                check_sum(MB_BF16, is_fp8, 4, is_small ? 96 : 2048, 512, top_k, all_are_local);
}

static void check_blocks(int is_small) {
    for (int hidden : {2048, 3072, 1056, 352})
        for (int n_experts : {128, 48, 60})
            for (int is_fp8 = 0; is_fp8 < 2; is_fp8++) {
                if (is_small && (hidden > 352 || n_experts == 60))
                    continue;
                const mb_weight w13 = experts_weight(n_experts, 2 * 256, hidden, is_fp8, 5),
                                w2 = experts_weight(n_experts, hidden, 256, is_fp8, 6);
                block_outputs alone = {};
                for (int n_tokens = 1; n_tokens <= 5; n_tokens += is_small ? 3 : 1) {
                    block_shape s = {n_tokens, hidden, n_experts, 8, is_fp8};
                    s.has_bias = n_experts != 48;
                    const block_outputs found = check_block(&s, w13, w2);
                    if (n_tokens == 1) {
                        alone = found;
                        continue;
                    }
                    check_company(&s, &alone, &found);
                    release((const void *const *)found.data, N_OUTPUTS);
                }
                release((const void *const *)alone.data, N_OUTPUTS);
                free_weight(&w13);
                free_weight(&w2);
            }
}

/* What else a layer may ask for. n_tokens, hidden, n_experts, top_k are filled in. */
static void check_other_blocks(int is_small) {
    const int hidden = is_small ? 352 : 2048, n_experts = is_small ? 48 : 128, n_local = n_experts / 4;
    for (int is_fp8 = 0; is_fp8 < 2; is_fp8++) {
        const mb_weight w13 = experts_weight(n_experts, 2 * 256, hidden, is_fp8, 7),
                        w2 = experts_weight(n_experts, hidden, 256, is_fp8, 8);
        for (int n_tokens = 1; n_tokens <= 4; n_tokens += 3) {
            const block_shape plain = {n_tokens, hidden, n_experts, 8, is_fp8, 1};
            block_shape s = plain;
            s.first_expert = n_local;
            s.n_local = n_local;
            check_and_free(&s, w13, w2);
            s.avoids_local = 1;
            check_and_free(&s, w13, w2);
            for (int top_k : {1, 4, 9}) { /* 4 x 9 choices are more than the launch takes */
                s = plain;
                s.top_k = top_k;
                check_and_free(&s, w13, w2);
            }
            s = plain;
            s.gives_sums = 1;
            check_and_free(&s, w13, w2);
            s = plain;
            s.has_no_residual = 1;
            check_and_free(&s, w13, w2);
            s.has_shared = 1;
            check_and_free(&s, w13, w2);
            s = plain;
            s.has_nan = 1;
            if (!is_fp8)
                check_and_free(&s, w13, w2);
        }
        free_weight(&w13);
        free_weight(&w2);
    }
}

static void check_chains(int is_small) {
    for (int hidden : {2048, 352})
        for (int is_fp8 = 0; is_fp8 < 2; is_fp8++) {
            if (is_small && hidden > 352)
                continue;
            const int n_experts = hidden > 352 ? 128 : 48, n_outputs = hidden > 352 ? 5120 : 512;
            mb_weight w13[CHAIN_LAYERS], w2[CHAIN_LAYERS];
            for (int i = 0; i < CHAIN_LAYERS; i++) {
                w13[i] = experts_weight(n_experts, 2 * 256, hidden, is_fp8, (uint64_t)(20 + i));
                w2[i] = experts_weight(n_experts, hidden, 256, is_fp8, (uint64_t)(30 + i));
            }
            for (int n_tokens = 1; n_tokens <= 5; n_tokens += is_small ? 3 : 1) {
                block_shape s = {n_tokens, hidden, n_experts, 8, is_fp8};
                check_chain(&s, n_outputs, w13, w2);
                s.first_expert = s.n_local = n_experts / 4;
                check_chain(&s, n_outputs, w13, w2);
                s.avoids_local = 1;
                s.top_k = 4;
                check_chain(&s, n_outputs, w13, w2);
            }
            for (int i = 0; i < CHAIN_LAYERS; i++) {
                free_weight(&w13[i]);
                free_weight(&w2[i]);
            }
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
    check_other_blocks(is_small);
    check_chains(is_small);
    check_block_refusals();
    printf(wrong ? "WRONG: %d\n" : "all right\n", wrong);
    return wrong > 0;
}
