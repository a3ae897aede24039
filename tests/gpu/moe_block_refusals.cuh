/* moe_block_refusals.cuh - MoE blocks and sums in front of a dense layer that must be refused. */
#ifndef MB_TESTS_MOE_BLOCK_REFUSALS_CUH
#define MB_TESTS_MOE_BLOCK_REFUSALS_CUH

#include "moe_block_problem.cuh"

#define REFUSED(change)                                                                         \
    do {                                                                                        \
        block b = right;                                                                        \
        b.forward.route = &b.route;                                                             \
        b.change;                                                                               \
        expect("block", #change,                                                                \
               mb_moe_block_sm90(&b.norm, &b.score, &b.forward, workspace, bytes, &left, NULL), \
               MB_ERR_ARGUMENT);                                                                \
    } while (0)

/* Four rows where the launch for few tokens would be taken. */
static inline void check_parts_refused(const block_shape *s, const mb_weight *w13, const mb_weight *w2) {
    block right = block_of(s, *w13, *w2, 40);
    const block_outputs outputs = new_outputs(s);
    aim_block(&right, &outputs);
    const size_t bytes = block_workspace(&right);
    void *workspace = poisoned(bytes);
    mb_moe_reduce_args left;
    REFUSED(norm.n_rows = s->n_tokens + 1);
    REFUSED(score.n_tokens = s->n_tokens + 1);
    REFUSED(forward.n_tokens = s->n_tokens + 1);
    REFUSED(route.n_tokens = s->n_tokens + 1);
    REFUSED(norm.hidden = s->hidden - 16);
    REFUSED(score.hidden = s->hidden - 16);
    REFUSED(score.n_experts = s->n_experts - 16);
    REFUSED(route.n_experts = s->n_experts - 16);
    REFUSED(norm.dtype = MB_F16);
    REFUSED(score.dtype = MB_F16);
    REFUSED(norm.out = outputs.data[OUT]);
    REFUSED(score.x = outputs.data[OUT]);
    REFUSED(forward.x = outputs.data[OUT]);
    REFUSED(forward.route = NULL);
    REFUSED(route.logits = outputs.data[OUT]);
    REFUSED(route.logits_dtype = MB_BF16);
    REFUSED(score.weight = NULL);
    REFUSED(norm.weight.data = NULL);
    CUDA(cudaFree(workspace));
    release((const void *const *)outputs.data, N_OUTPUTS);
    free_block(&right);
}
#undef REFUSED

#define REFUSED(change)                                                                                \
    do {                                                                                               \
        mb_moe_reduce_args sum = right;                                                                \
        mb_gemm_args args = layer;                                                                     \
        args.x_sum = &sum;                                                                             \
        change;                                                                                        \
        expect("sum in front", #change, mb_gemm_sm90(&args, workspace, bytes, NULL), MB_ERR_ARGUMENT); \
    } while (0)

static inline void check_sums_refused(void) {
    enum { HIDDEN = 512, OUTPUTS = 256, ROWS = 2, TOP_K = 4 };
    char *memory = (char *)poisoned(1 << 20); /* everything may be here: nothing is launched */
    mb_moe_reduce_args right = {};
    right.y = memory;
    right.weights = (const float *)memory;
    right.token_row = (const int32_t *)memory;
    right.residual = memory;
    right.out = memory + 65536;
    right.n_tokens = ROWS;
    right.hidden = HIDDEN;
    right.top_k = TOP_K;
    right.dtype = right.out_dtype = MB_BF16;
    mb_gemm_args layer = {};
    layer.x = right.out;
    layer.weight = experts_weight(1, OUTPUTS, HIDDEN, 0, 50);
    layer.norm_weight = norm_weight(HIDDEN, MB_BF16, 51);
    layer.out = memory + 131072;
    layer.n_tokens = ROWS;
    layer.dtype = layer.out_dtype = layer.bias_dtype = MB_BF16;
    const size_t bytes = bytes_of(mb_gemm_sm90_workspace, &layer);
    void *workspace = poisoned(bytes);
    REFUSED(sum.top_k = 0);
    REFUSED(sum.weights = NULL);
    REFUSED(sum.token_row = NULL);
    REFUSED(sum.weights = (const float *)(memory + 2));
    REFUSED(sum.token_row = (const int32_t *)(memory + 2));
    REFUSED(sum.y = memory + 8);
    REFUSED(sum.residual = memory + 8);
    REFUSED(sum.out = memory);
    REFUSED(sum.n_tokens = ROWS - 1);
    REFUSED(sum.hidden = HIDDEN - 8);
    REFUSED(sum.dtype = MB_F8_E4M3);
    REFUSED(sum.out_dtype = MB_F32);
    REFUSED(args.x8 = memory);
    CUDA(cudaFree(workspace));
    CUDA(cudaFree(memory));
    free_weight(&layer.weight);
    free_weight(&layer.norm_weight);
}
#undef REFUSED

static inline void check_block_refusals(void) {
    const block_shape s = {4, 512, 32, 8};
    const mb_weight w13 = experts_weight(s.n_experts, 2 * 64, s.hidden, 0, 60),
                    w2 = experts_weight(s.n_experts, s.hidden, 64, 0, 61);
    check_parts_refused(&s, &w13, &w2);
    check_sums_refused();
    free_weight(&w13);
    free_weight(&w2);
    CUDA(cudaDeviceSynchronize()); /* nothing was launched that fails later */
}

#endif
