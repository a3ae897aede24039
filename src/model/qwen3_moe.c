/*
 * qwen3_moe.c - the forward pass of Qwen3-MoE for every backend:
 *
 *   embed
 *   each layer:  norm + qkv -> head norm + rope + store k, v -> attention -> o + residual
 *                norm -> (router -> route, experts + residual) or (gate, up -> activation -> down + residual)
 *   final norm of the rows whose logits are wanted + lm_head
 *
 * x is the residual stream. Every block reads x through a norm, and its last operator adds the block's
 * output to x (add_to_residual, end_block).
 */
#include "model/qwen3_moe.h"

#include <math.h>
#include <string.h>

#include "model/trace.h"
#include "ops/common/dtype.h"
#include "ops/op_table.h"

/* ---- Arguments of each operator: made in one place, for the workspace query and for the run -------- */

static mb_gemm_args linear(const mb_forward *f, const void *x, const mb_weight *weight, void *out,
                           int64_t n_tokens) {
    return (mb_gemm_args){.x = x,
                          .weight = *weight,
                          .out = out,
                          .n_tokens = n_tokens,
                          .dtype = f->dtype,
                          .out_dtype = f->dtype,
                          .bias_dtype = f->dtype};
}

static mb_gemm_args linear_f32(const mb_forward *f, const void *x, const mb_weight *weight, float *out,
                               int64_t n_tokens) {
    mb_gemm_args args = linear(f, x, weight, out, n_tokens);
    args.out_dtype = MB_F32;
    return args;
}

static void add_bias(mb_gemm_args *args, const mb_weight *bias) {
    args->bias = bias->data;
    args->bias_dtype = bias->dtype;
}

/* x is normed first. */
static void add_norm(const mb_forward *f, mb_gemm_args *args, const mb_weight *weight) {
    args->norm_weight = *weight;
    args->eps = f->config->rms_eps;
}

static mb_rms_norm_args norm(const mb_forward *f, const void *x, const mb_weight *weight, void *out,
                             int64_t n_rows) {
    return (mb_rms_norm_args){.x = x,
                              .weight = *weight,
                              .out = out,
                              .n_rows = n_rows,
                              .hidden = f->config->hidden,
                              .eps = f->config->rms_eps,
                              .dtype = f->dtype};
}

/* What a layer's operators are told of the cache. Pointers are NULL while workspaces are measured. */
typedef struct layer_cache {
    void *k, *v;
    mb_dtype dtype;
    const float *k_scale, *v_scale;
    const int32_t *slots, *block_table;
} layer_cache;

static layer_cache cache_of(const mb_forward *f, const mb_kv_memory *kv, const mb_batch *batch, int layer) {
    const mb_kv_layer place = mb_kv_layout_layer(&kv->layout, layer);
    const int has_own_ids = layer == 0 && mb_kv_layout_first_differs(&kv->layout);
    layer_cache cache = {.dtype = place.dtype,
                         .slots = has_own_ids ? batch->first_slots : batch->slots,
                         .block_table = has_own_ids ? batch->first_block_table : batch->block_table};
    if (kv->memory) {
        cache.k = (char *)kv->memory + place.k_offset;
        cache.v = (char *)kv->memory + place.v_offset;
    }
    if (kv->scales && place.dtype == MB_F8_E4M3) {
        cache.k_scale = kv->scales + 2 * layer * f->config->n_kv_heads;
        cache.v_scale = cache.k_scale + f->config->n_kv_heads;
    }
    return cache;
}

static mb_attention_args attention(const mb_forward *f, const mb_kv_memory *kv, const mb_batch *batch,
                                   int layer) {
    const mb_config *c = f->config;
    const layer_cache cache = cache_of(f, kv, batch, layer);
    return (mb_attention_args){.q = f->q,
                               .k_cache = cache.k,
                               .v_cache = cache.v,
                               .q_start = batch->q_start,
                               .kv_len = batch->kv_len,
                               .block_table = cache.block_table,
                               .out = f->attended,
                               .n_tokens = batch->n_tokens,
                               .n_sequences = batch->n_sequences,
                               .max_blocks = batch->max_blocks,
                               .max_q_len = batch->max_q_len,
                               .max_kv_len = batch->max_kv_len,
                               .n_heads = c->n_heads,
                               .n_kv_heads = c->n_kv_heads,
                               .head_dim = c->head_dim,
                               .scale = 1.0f / sqrtf((float)c->head_dim),
                               .dtype = f->dtype,
                               .cache_dtype = cache.dtype,
                               .k_scale = cache.k_scale,
                               .v_scale = cache.v_scale};
}

static mb_decode_attention_args decode_attention(const mb_forward *f, const mb_kv_memory *kv,
                                                 const mb_batch *batch, int layer) {
    const mb_config *c = f->config;
    const layer_cache cache = cache_of(f, kv, batch, layer);
    const mb_layer_weights *w = &f->weights->layers[layer];
    return (mb_decode_attention_args){.qkv = f->qkv,
                                      .q_norm = w->q_norm,
                                      .k_norm = w->k_norm,
                                      .positions = batch->positions,
                                      .slots = cache.slots,
                                      .inv_freq = f->inv_freq,
                                      .k_cache = cache.k,
                                      .v_cache = cache.v,
                                      .q_start = batch->q_start,
                                      .kv_len = batch->kv_len,
                                      .span_start = batch->span_start,
                                      .block_table = cache.block_table,
                                      .counters = f->attention_counters,
                                      .out = f->attended,
                                      .n_tokens = batch->n_tokens,
                                      .n_sequences = batch->n_sequences,
                                      .max_blocks = batch->max_blocks,
                                      .max_q_len = batch->max_q_len,
                                      .max_kv_len = batch->max_kv_len,
                                      .n_heads = c->n_heads,
                                      .n_kv_heads = c->n_kv_heads,
                                      .head_dim = c->head_dim,
                                      .eps = c->rms_eps,
                                      .rope_scale = c->rope_scale,
                                      .scale = 1.0f / sqrtf((float)c->head_dim),
                                      .dtype = f->dtype,
                                      .cache_dtype = cache.dtype,
                                      .k_scale = cache.k_scale,
                                      .v_scale = cache.v_scale};
}

/* Tokens of a sequence with which a batch goes to decode_attention: as many as have rows for one walk. */
static int32_t most_decode_tokens(const mb_config *c) {
    int32_t n = MB_DECODE_ROWS / (c->n_heads / c->n_kv_heads);
    return n < 1 ? 1 : n < MB_DECODE_TOKENS ? n : MB_DECODE_TOKENS;
}

static mb_moe_router_gemm_args router(const mb_forward *f, const mb_layer_weights *w, int64_t n_tokens) {
    return (mb_moe_router_gemm_args){.x = f->normed,
                                     .weight = w->router.data,
                                     .logits = f->router_logits,
                                     .n_tokens = n_tokens,
                                     .hidden = f->config->hidden,
                                     .n_experts = f->config->n_experts,
                                     .dtype = f->dtype,
                                     .weight_dtype = w->router.dtype};
}

/* A NaN in the router's logits needs no flag here: it came from the token's hidden state, which carries it
 * on to the token's logits, where sampling finds it. */
static mb_moe_route_args route(const mb_forward *f, int64_t n_tokens) {
    const mb_config *c = f->config;
    return (mb_moe_route_args){.logits = f->router_logits,
                               .weights = f->route_weights,
                               .ids = f->route_ids,
                               .n_tokens = n_tokens,
                               .n_experts = c->n_experts,
                               .top_k = c->top_k,
                               .logits_dtype = MB_F32,
                               .order = MB_ROUTE_SOFTMAX_TOPK,
                               .renormalize = c->norm_topk_prob};
}

static mb_moe_forward_args experts(const mb_forward *f, const mb_layer_weights *w,
                                   const mb_moe_route_args *route) {
    const mb_config *c = f->config;
    return (mb_moe_forward_args){.x = f->normed,
                                 .weights = route->weights,
                                 .ids = route->ids,
                                 .route = route,
                                 .w13 = w->w13,
                                 .w2 = w->w2,
                                 .n_tokens = route->n_tokens,
                                 .hidden = c->hidden,
                                 .intermediate = (int32_t)w->w2.cols,
                                 .top_k = c->top_k,
                                 .n_experts = c->n_experts,
                                 .n_local_experts = c->n_experts,
                                 .dtype = f->dtype,
                                 .activation = c->activation,
                                 .f32_math = MB_F32_EXACT};
}

/* ---- fp8 rows from what makes them --------------------------------------------------------------------- */

/* Whether the device wants x of a product with this weight in fp8. */
static int wants_x8(const mb_forward *f, const mb_weight *weight, int64_t n_tokens) {
    return f->ops->wants_x8 && f->ops->wants_x8(f->dtype, weight, n_tokens);
}

/* Columns of the rows in fp8 of a step; 0: no layer wants them. */
static int64_t x8_width(const mb_forward *f) {
    for (int i = 0; i < f->config->n_layers; i++)
        if (wants_x8(f, &f->weights->layers[i].w13, f->limits.max_tokens))
            return f->config->hidden;
    return 0;
}

/* ---- Scratch memory -------------------------------------------------------------------------------- */

/* Raises *size to what the operator wants for these arguments. */
#define AT_LEAST(size, op, args)                                  \
    do {                                                          \
        size_t wanted_;                                           \
        MB_TRY(f->device->ops->op##_workspace((args), &wanted_)); \
        if (wanted_ > *(size))                                    \
            *(size) = wanted_;                                    \
    } while (0)

static mb_status layer_workspace(const mb_forward *f, int layer, size_t *size) {
    const mb_layer_weights *w = &f->weights->layers[layer];
    const mb_weight *matrices[] = {&w->qkv, &w->o, &w->w13, &w->w2}; /* the last two: of a dense layer */
    int is_moe = f->config->is_moe[layer];
    for (int i = 0; i < (is_moe ? 2 : 4); i++) {
        mb_gemm_args args = linear(f, NULL, matrices[i], NULL, f->limits.max_tokens);
        if (i == 0)
            add_norm(f, &args, &w->input_norm);
        AT_LEAST(size, gemm, &args);
    }
    if (!is_moe)
        return MB_OK;
    mb_moe_router_gemm_args score = router(f, w, f->limits.max_tokens);
    AT_LEAST(size, moe_router_gemm, &score);
    mb_moe_route_args choose = route(f, f->limits.max_tokens);
    mb_moe_forward_args args = experts(f, w, &choose);
    AT_LEAST(size, moe_forward, &args);
    return MB_OK;
}

/* The largest batch that goes to decode_attention. */
static mb_batch most_decode_batch(const mb_forward *f) {
    int32_t max_q_len = most_decode_tokens(f->config);
    int64_t most = (int64_t)f->limits.max_sequences * max_q_len;
    return (mb_batch){.n_tokens = (int32_t)(most < f->limits.max_tokens ? most : f->limits.max_tokens),
                      .n_sequences = f->limits.max_sequences,
                      .max_blocks = f->limits.max_blocks,
                      .max_q_len = max_q_len,
                      .max_kv_len = f->limits.max_blocks * MB_KV_BLOCK};
}

/* What the hungriest operator of a step wants. */
static mb_status needed_workspace(const mb_forward *f, size_t *size) {
    *size = 0;
    mb_gemm_args head = linear_f32(f, NULL, &f->weights->lm_head, NULL, f->limits.max_logits);
    add_norm(f, &head, &f->weights->final_norm);
    AT_LEAST(size, gemm, &head);
    const mb_kv_memory kv = {.layout = mb_kv_layout_make(f->config, f->dtype, f->limits.kv_dtype)};
    mb_batch batch = {.n_tokens = f->limits.max_tokens,
                      .n_sequences = f->limits.max_sequences,
                      .max_blocks = f->limits.max_blocks,
                      .max_q_len = f->limits.max_tokens,
                      .max_kv_len = f->limits.max_blocks * MB_KV_BLOCK};
    mb_batch decode = most_decode_batch(f);
    for (int i = 0; i < f->config->n_layers; i++) {
        mb_attention_args attend = attention(f, &kv, &batch, i);
        AT_LEAST(size, attention, &attend);
        mb_decode_attention_args attend_decode = decode_attention(f, &kv, &decode, i);
        AT_LEAST(size, decode_attention, &attend_decode);
        MB_TRY(layer_workspace(f, i, size));
    }
    return MB_OK;
}

static size_t n_attention_counters(const mb_forward *f) {
    const mb_kv_memory kv = {.layout = mb_kv_layout_make(f->config, f->dtype, f->limits.kv_dtype)};
    mb_batch decode = most_decode_batch(f);
    int64_t most = 0;
    for (int i = 0; i < f->config->n_layers; i++) {
        mb_decode_attention_args args = decode_attention(f, &kv, &decode, i);
        int64_t n = mb_decode_attention_counters(&args);
        most = n > most ? n : most;
    }
    return (size_t)most;
}

static void cut_scratch(mb_forward *f, mb_arena *arena) {
    const mb_config *c = f->config;
    size_t element = mb_dtype_bytes(f->dtype), n_tokens = (size_t)f->limits.max_tokens;
    size_t q_width = (size_t)c->n_heads * (size_t)c->head_dim,
           kv_width = (size_t)c->n_kv_heads * (size_t)c->head_dim;
    int any_dense = 0, any_moe = 0;
    for (int i = 0; i < c->n_layers; i++) {
        any_dense |= !c->is_moe[i];
        any_moe |= c->is_moe[i];
    }
    size_t dense = any_dense ? (size_t)c->intermediate : 0, n_experts = any_moe ? (size_t)c->n_experts : 0;
    size_t top_k = any_moe ? (size_t)c->top_k : 0;

    f->attention_counters = mb_arena_push(arena, n_attention_counters(f), sizeof *f->attention_counters);
    f->inv_freq = mb_arena_push(arena, (size_t)c->head_dim / 2, sizeof(float));
    const int n_x = any_moe && f->ops->moe_block ? 2 : 1; /* run_moe_block reads one and writes the other */
    for (int i = 0; i < n_x; i++)
        f->rows_of_x[i] = mb_arena_push(arena, n_tokens * (size_t)c->hidden, element);
    f->x = f->rows_of_x[0];
    f->normed = mb_arena_push(arena, n_tokens * (size_t)c->hidden, element);
    f->qkv = mb_arena_push(arena, n_tokens * (q_width + 2 * kv_width), element);
    f->q = mb_arena_push(arena, n_tokens * q_width, element);
    f->attended = mb_arena_push(arena, n_tokens * q_width, element);
    f->x8 = mb_arena_push(arena, n_tokens, (size_t)x8_width(f));
    f->x8_scale = mb_arena_push(arena, n_tokens, (size_t)mb_f8_blocks(x8_width(f)) * sizeof *f->x8_scale);
    f->gate_up = mb_arena_push(arena, n_tokens * 2 * dense, element);
    f->activated = mb_arena_push(arena, n_tokens * dense, element);
    f->router_logits = mb_arena_push(arena, n_tokens * n_experts, sizeof(float));
    f->route_weights = mb_arena_push(arena, n_tokens * top_k, sizeof(float));
    f->route_ids = mb_arena_push(arena, n_tokens * top_k, sizeof(int32_t));
    f->workspace = mb_arena_push(arena, f->workspace_bytes, 1);
}

mb_status mb_forward_check_device(const mb_device *device) {
    char names[512];
    if (mb_ops_missing(device->ops, names, sizeof names) == 0)
        return MB_OK;
    return mb_fail(MB_ERR_UNSUPPORTED,
                   "%s: it has no operators %s yet, which a model needs; use the CPU (--device cpu)",
                   device->name, names);
}

mb_status mb_forward_init(mb_forward *forward, const mb_config *config, const mb_weights *weights,
                          mb_device *device, mb_dtype dtype, const mb_forward_limits *limits,
                          mb_stream stream) {
    *forward = (mb_forward){.config = config,
                            .weights = weights,
                            .device = device,
                            .ops = device->ops,
                            .dtype = dtype,
                            .limits = *limits};
    MB_TRY(mb_forward_check_device(device));
    mb_status status = needed_workspace(forward, &forward->workspace_bytes);
    if (status != MB_OK)
        return mb_fail_context(status, "workspace for %d tokens a step", limits->max_tokens);

    mb_arena measure;
    mb_arena_measure(&measure);
    cut_scratch(forward, &measure);
    if (measure.overflowed)
        return mb_fail(MB_ERR_ARGUMENT, "scratch memory for %d tokens a step overflows; ask for fewer",
                       limits->max_tokens);
    status = device->allocate(device, measure.used, &forward->memory);
    if (status != MB_OK)
        return mb_device_no_memory(device, status, "the activations of a step", measure.used,
                                   MB_LOWER_LIMITS);
    forward->memory_bytes = measure.used;
    mb_arena_init(&forward->arena, forward->memory, measure.used, device->host_memory);
    cut_scratch(forward, &forward->arena);

    static const int32_t zero = 0;
    status = device->upload(device, forward->inv_freq, config->inv_freq,
                            (size_t)config->head_dim / 2 * sizeof(float), stream);
    if (status == MB_OK)
        status = device->fill(device, forward->attention_counters,
                              n_attention_counters(forward) * sizeof zero, &zero, sizeof zero, stream);
    if (status == MB_OK)
        status = device->synchronize(device, stream);
    if (status != MB_OK)
        mb_forward_free(forward);
    return status;
}

void mb_forward_free(mb_forward *forward) {
    if (forward->memory)
        forward->device->free(forward->device, forward->memory);
    forward->memory = NULL;
}

/* ---- The pass -------------------------------------------------------------------------------------- */

/* What every operator of one step needs to know. */
typedef struct pass {
    mb_forward *f;
    const mb_ops *ops;
    const mb_kv_memory *kv;
    const mb_batch *batch;
    mb_stream stream;
    /* What the MoE block in front has left to be added up (mb_ops, moe_block); n_tokens 0: nothing. */
    mb_moe_reduce_args left;
} pass;

static mb_status gemm(const pass *p, const mb_gemm_args *args) {
    return p->ops->gemm(args, p->f->workspace, p->f->workspace_bytes, p->stream);
}

static void trace(const pass *p, int layer, const char *name, const void *data, mb_dtype dtype, int64_t rows,
                  int64_t cols) {
    mb_trace(p->f->device, p->stream, layer, name, data, dtype, rows, cols);
}

/* Makes a block's last operator write x + its output to x. */
static void add_to_residual(const pass *p, const void **residual, void **out) {
    *residual = p->f->x;
    *out = p->f->x;
}

/* Called behind the last operator of every block, except of a MoE block that is one call (is_one_call).
 * This is where a model that is spread over several devices adds up their parts of x; only one of them then
 * adds the residual in add_to_residual. */
static mb_status end_block(const pass *p, int layer, const char *name) {
    trace(p, layer, name, p->f->x, p->f->dtype, p->batch->n_tokens, p->f->config->hidden);
    return MB_OK;
}

/* Head norms, rotation, store and attention of sequences with few tokens. */
static mb_status attend_decode(const pass *p, int layer) {
    mb_decode_attention_args args = decode_attention(p->f, p->kv, p->batch, layer);
    return p->ops->decode_attention(&args, p->f->workspace, p->f->workspace_bytes, p->stream);
}

/* The same of any batch, with the same bits. */
static mb_status attend_any(const pass *p, int layer) {
    mb_forward *f = p->f;
    const mb_config *c = f->config;
    const layer_cache cache = cache_of(f, p->kv, p->batch, layer);
    const mb_layer_weights *w = &f->weights->layers[layer];
    int64_t n_tokens = p->batch->n_tokens, q_width = (int64_t)c->n_heads * c->head_dim;

    mb_qk_norm_rope_store_args prepare = {.qkv = f->qkv,
                                          .q_norm = w->q_norm,
                                          .k_norm = w->k_norm,
                                          .positions = p->batch->positions,
                                          .slots = cache.slots,
                                          .inv_freq = f->inv_freq,
                                          .q = f->q,
                                          .k_cache = cache.k,
                                          .v_cache = cache.v,
                                          .n_tokens = n_tokens,
                                          .n_heads = c->n_heads,
                                          .n_kv_heads = c->n_kv_heads,
                                          .head_dim = c->head_dim,
                                          .eps = c->rms_eps,
                                          .rope_scale = c->rope_scale,
                                          .dtype = f->dtype,
                                          .cache_dtype = cache.dtype,
                                          .k_scale = cache.k_scale,
                                          .v_scale = cache.v_scale};
    MB_TRY(p->ops->qk_norm_rope_store(&prepare, p->stream));
    trace(p, layer, "03-q", f->q, f->dtype, n_tokens, q_width);

    mb_attention_args attend = attention(f, p->kv, p->batch, layer);
    return p->ops->attention(&attend, f->workspace, f->workspace_bytes, p->stream);
}

/* left: what the block in front has left to be added up. */
static mb_status attention_block(const pass *p, int layer, const mb_moe_reduce_args *left) {
    mb_forward *f = p->f;
    const mb_config *c = f->config;
    const mb_layer_weights *w = &f->weights->layers[layer];
    int64_t n_tokens = p->batch->n_tokens, q_width = (int64_t)c->n_heads * c->head_dim;

    if (mb_trace_is_on()) { /* the layer keeps its normed rows to itself */
        mb_rms_norm_args input_norm = norm(f, f->x, &w->input_norm, f->normed, n_tokens);
        MB_TRY(p->ops->rms_norm(&input_norm, p->stream));
        trace(p, layer, "01-input-norm", f->normed, f->dtype, n_tokens, c->hidden);
    }
    mb_gemm_args project = linear(f, f->x, &w->qkv, f->qkv, n_tokens);
    add_norm(f, &project, &w->input_norm);
    add_bias(&project, &w->qkv_bias);
    project.x_sum = left->n_tokens > 0 ? left : NULL;
    MB_TRY(gemm(p, &project));
    trace(p, layer, "02-qkv", f->qkv, f->dtype, n_tokens, w->qkv.rows);

    MB_TRY(p->batch->max_q_len <= most_decode_tokens(c) ? attend_decode(p, layer) : attend_any(p, layer));
    trace(p, layer, "04-attention", f->attended, f->dtype, n_tokens, q_width);

    mb_gemm_args output = linear(f, f->attended, &w->o, NULL, n_tokens);
    add_bias(&output, &w->o_bias);
    add_to_residual(p, &output.residual, &output.out);
    MB_TRY(gemm(p, &output));
    return end_block(p, layer, "05-attention-out");
}

typedef struct attention_part {
    const pass *p;
    int layer;
    mb_moe_reduce_args left;
} attention_part;

static mb_status enqueue_attention(const void *context, mb_stream stream) {
    const attention_part *part = context;
    (void)stream; /* the pass's */
    return attention_block(part->p, part->layer, &part->left);
}

static mb_status run_attention(pass *p, int layer) {
    const mb_batch *batch = p->batch;
    const attention_part part = {p, layer, p->left};
    p->left = (mb_moe_reduce_args){0};
    if (!batch->enqueue_attention)
        return enqueue_attention(&part, p->stream);
    return batch->enqueue_attention(batch->enqueue_attention_user, layer, enqueue_attention, &part,
                                    p->stream);
}

static mb_status mix_tokens(pass *p, int layer) {
    const mb_config *c = p->f->config;
    switch ((mb_layer_kind)c->kinds[layer]) {
    case MB_LAYER_ATTENTION:
        return run_attention(p, layer);
    }
    return mb_fail(MB_ERR_INTERNAL, "layer %d is of kind %d, which the forward pass does not know", layer,
                   c->kinds[layer]);
}

/* Whether a MoE block is one call. The sum of its experts' rows, residual included, is then made by the
 * next layer's first operator, and end_block has no x to look at. So neither a trace nor a model that is
 * spread over several devices may take this way. */
static int is_one_call(const pass *p) {
    return p->ops->moe_block && !mb_trace_is_on();
}

/* x is then what the next layer's first operator will write. */
static mb_status run_moe_block(pass *p, int layer, const mb_rms_norm_args *norm,
                               const mb_moe_router_gemm_args *score, mb_moe_forward_args *args) {
    mb_forward *f = p->f;
    const int is_last = layer + 1 == f->config->n_layers;
    if (!is_last) {
        f->x = f->rows_of_x[f->x == f->rows_of_x[0]];
        args->out = f->x;
    }
    return p->ops->moe_block(norm, score, args, f->workspace, f->workspace_bytes, is_last ? NULL : &p->left,
                             p->stream);
}

/* norm: what makes the rows. */
static mb_status moe_block(pass *p, int layer, int in_fp8, const mb_rms_norm_args *norm) {
    mb_forward *f = p->f;
    const mb_config *c = f->config;
    const mb_layer_weights *w = &f->weights->layers[layer];
    int64_t n_tokens = p->batch->n_tokens;

    mb_moe_router_gemm_args score = router(f, w, n_tokens);
    mb_moe_route_args choose = route(f, n_tokens);
    mb_moe_forward_args combine = experts(f, w, &choose);
    if (in_fp8) {
        combine.x8 = f->x8;
        combine.x8_scale = f->x8_scale;
    }
    add_to_residual(p, &combine.residual, &combine.out);
    if (is_one_call(p))
        return run_moe_block(p, layer, norm, &score, &combine);
    MB_TRY(p->ops->rms_norm(norm, p->stream));
    trace(p, layer, "06-post-norm", f->normed, f->dtype, n_tokens, c->hidden);
    MB_TRY(p->ops->moe_router_gemm(&score, f->workspace, f->workspace_bytes, p->stream));
    trace(p, layer, "07-router", f->router_logits, MB_F32, n_tokens, c->n_experts);
    MB_TRY(p->ops->moe_forward(&combine, f->workspace, f->workspace_bytes, p->stream));
    trace(p, layer, "08-route-weights", f->route_weights, MB_F32, n_tokens, c->top_k);
    return end_block(p, layer, "09-experts-out");
}

static mb_status dense_block(const pass *p, int layer, int in_fp8, const mb_rms_norm_args *norm) {
    mb_forward *f = p->f;
    const mb_config *c = f->config;
    const mb_layer_weights *w = &f->weights->layers[layer];
    int64_t n_tokens = p->batch->n_tokens;

    MB_TRY(p->ops->rms_norm(norm, p->stream));
    trace(p, layer, "06-post-norm", f->normed, f->dtype, n_tokens, c->hidden);

    mb_gemm_args gate_up = linear(f, f->normed, &w->w13, f->gate_up, n_tokens);
    if (in_fp8) {
        gate_up.x8 = f->x8;
        gate_up.x8_scale = f->x8_scale;
    }
    MB_TRY(gemm(p, &gate_up));
    mb_gated_activation_args activate = {.x = f->gate_up,
                                         .out = f->activated,
                                         .n_rows = n_tokens,
                                         .intermediate = c->intermediate,
                                         .activation = c->activation,
                                         .dtype = f->dtype};
    MB_TRY(p->ops->gated_activation(&activate, p->stream));
    trace(p, layer, "07-activated", f->activated, f->dtype, n_tokens, c->intermediate);

    mb_gemm_args down = linear(f, f->activated, &w->w2, NULL, n_tokens);
    add_to_residual(p, &down.residual, &down.out);
    MB_TRY(gemm(p, &down));
    return end_block(p, layer, "08-mlp-out");
}

static mb_status check_batch(const mb_forward *f, const mb_batch *batch) {
    if (batch->n_tokens <= f->limits.max_tokens && batch->n_sequences <= f->limits.max_sequences &&
        batch->n_logits <= f->limits.max_logits && batch->max_blocks <= f->limits.max_blocks)
        return MB_OK;
    return mb_fail(MB_ERR_INTERNAL,
                   "batch of %d tokens, %d sequences, %d logits, %d blocks is over the forward's limits",
                   batch->n_tokens, batch->n_sequences, batch->n_logits, batch->max_blocks);
}

mb_status mb_forward_run(mb_forward *f, const mb_kv_memory *kv, const mb_batch *batch, mb_stream stream) {
    const mb_config *c = f->config;
    pass p = {.f = f, .ops = f->ops, .kv = kv, .batch = batch, .stream = stream};
    f->x = f->rows_of_x[0];
    MB_TRY(check_batch(f, batch));
    mb_trace_step();

    mb_embed_args embed = {.ids = batch->ids,
                           .draw_of = batch->draw_of,
                           .draws = batch->draws,
                           .table = f->weights->embedding,
                           .out = f->x,
                           .n_tokens = batch->n_tokens,
                           .dtype = f->dtype};
    MB_TRY(p.ops->embed(&embed, stream));
    trace(&p, -1, "embed", f->x, f->dtype, batch->n_tokens, c->hidden);

    for (int layer = 0; layer < c->n_layers; layer++) {
        MB_TRY(mix_tokens(&p, layer));
        mb_rms_norm_args post_norm =
            norm(f, f->x, &f->weights->layers[layer].post_norm, f->normed, batch->n_tokens);
        int in_fp8 = wants_x8(f, &f->weights->layers[layer].w13, batch->n_tokens);
        if (in_fp8) {
            post_norm.out8 = f->x8;
            post_norm.out8_scale = f->x8_scale;
        }
        MB_TRY(c->is_moe[layer] ? moe_block(&p, layer, in_fp8, &post_norm)
                                : dense_block(&p, layer, in_fp8, &post_norm));
    }

    mb_gemm_args head = linear_f32(f, f->x, &f->weights->lm_head, batch->logits, batch->n_logits);
    add_norm(f, &head, &f->weights->final_norm);
    head.norm_rows = batch->logit_rows;
    MB_TRY(gemm(&p, &head));
    trace(&p, -1, "logits", batch->logits, MB_F32, batch->n_logits, c->vocab);

    size_t overrun = mb_arena_check(&f->arena); /* debug builds on the CPU only */
    if (overrun)
        return mb_fail(MB_ERR_INTERNAL, "an operator wrote past the end of its buffer at scratch offset %zu",
                       overrun);
    return MB_OK;
}
