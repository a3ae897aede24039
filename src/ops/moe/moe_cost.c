#include "ops/moe/moe.h"

enum { MAX_EXPERTS = 1024 };

/* silu and its like: an exponential, a sum, a quotient, and the product with up. */
mb_op_cost mb_gated_activation_cost(const mb_gated_activation_args *args) {
    double out = (double)args->n_rows * args->intermediate;
    double n_inputs = mb_activation_is_gated(args->activation) ? 2 : 1;
    return (mb_op_cost){.bytes = (n_inputs + 1) * out * (double)mb_dtype_bytes(args->dtype),
                        .flops = 4 * out,
                        .tflops = MB_TFLOPS_F32};
}

/* A weight in fp32 beside tokens in 16 bits is multiplied in parts of 16 bits: the parts are the kernel's
 * affair. */
mb_op_cost mb_moe_router_gemm_cost(const mb_moe_router_gemm_args *args) {
    double T = (double)args->n_tokens, H = args->hidden, E = args->n_experts;
    mb_op_cost cost = {.tflops = args->dtype == MB_F32 ? MB_TFLOPS_TF32 : MB_TFLOPS_16BIT};
    if (args->n_tokens <= 0)
        return cost;
    cost.bytes = T * H * (double)mb_dtype_bytes(args->dtype) +
                 E * H * (double)mb_dtype_bytes(args->weight_dtype) + T * E * sizeof *args->logits;
    cost.bytes += args->bias ? E * sizeof(float) : 0;
    cost.flops = 2 * T * H * E;
    return cost;
}

/* Local experts that have tokens; *n_rows: the tokens' choices that are local. */
static int32_t count_experts_hit(const mb_moe_forward_args *args, int64_t *n_rows) {
    char is_hit[MAX_EXPERTS] = {0};
    int32_t n_hit = 0;
    *n_rows = 0;
    for (int64_t i = 0; i < args->n_tokens * args->top_k; i++) {
        int32_t id = args->ids[i];
        if (id < args->first_expert || id >= args->first_expert + args->n_local_experts || id >= MAX_EXPERTS)
            continue;
        ++*n_rows;
        n_hit += !is_hit[id];
        is_hit[id] = 1;
    }
    return n_hit;
}

mb_op_cost mb_moe_forward_cost(const mb_moe_forward_args *args) {
    double T = (double)args->n_tokens, H = args->hidden, I = args->intermediate, K = args->top_k;
    double element = (double)mb_dtype_bytes(args->dtype), hidden_rows = args->x8 ? 1 : 2; /* x, out */
    double matrices = mb_activation_is_gated(args->activation) ? 3 : 2;
    mb_op_cost cost = {.tflops = mb_product_tflops(args->dtype, args->w13.dtype, args->f32_math)};
    int64_t n_rows;
    if (args->n_tokens <= 0)
        return cost;
    double n_hit = count_experts_hit(args, &n_rows);
    hidden_rows += (args->residual ? 1 : 0) + (args->shared ? 1 : 0);
    cost.bytes = mb_weight_bytes(&args->w13, n_hit) + mb_weight_bytes(&args->w2, n_hit);
    cost.bytes += args->x8 ? mb_f8_rows_bytes(T, args->hidden) : 0;
    cost.bytes += args->bias13 ? n_hit * (double)args->w13.rows * element : 0;
    cost.bytes += args->bias2 ? n_hit * H * element : 0;
    cost.bytes += hidden_rows * T * H * element + T * K * (sizeof *args->ids + sizeof *args->weights);
    if (args->route)
        cost.bytes += T * args->n_experts * (double)mb_dtype_bytes(args->route->logits_dtype);
    cost.flops = 2 * matrices * (double)n_rows * H * I;
    return cost;
}
