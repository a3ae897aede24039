#include "model/weights/weight_plan.h"

#include <stdio.h>
#include <string.h>

#include "base/alloc.h"
#include "model/json.h"

enum { SHOWN = 160, NAME_BYTES = 128, MAX_PARTS = 3, ALIGNMENT = 256 };

typedef struct planner {
    const mb_checkpoint *checkpoint;
    const mb_config *config;
    mb_weight_plan *plan;
    unsigned char *used; /* [n_tensors] of the checkpoint */
} planner;

/* A weight to be assembled: `count` matrices, each from the rows of n_parts tensors. */
typedef struct recipe {
    mb_weight *weight;
    int32_t layer;   /* -1: the names are whole; else they follow "model.layers.<layer>." */
    int64_t experts; /* 0: one matrix; else that many, and names follow "mlp.experts.<e>." */
    int rank;        /* of the tensors: 2, or 1 for vectors */
    int may_be_fp8;
    int n_parts;
    const char *names[MAX_PARTS];
    int64_t heights[MAX_PARTS]; /* rows of each part; for vectors their length */
    int64_t cols;               /* 1 for vectors */
} recipe;

/* ---- Tensors ------------------------------------------------------------------------------------------ */

static void format_name(char *name, const recipe *r, int64_t expert, int part) {
    if (r->layer < 0)
        snprintf(name, NAME_BYTES, "%s", r->names[part]);
    else if (r->experts == 0)
        snprintf(name, NAME_BYTES, "model.layers.%d.%s", r->layer, r->names[part]);
    else
        snprintf(name, NAME_BYTES, "model.layers.%d.mlp.experts.%lld.%s", r->layer, (long long)expert,
                 r->names[part]);
}

/* Finds a tensor and checks its shape; shape has `rank` dimensions. */
static mb_status take_tensor(planner *p, const char *name, int rank, const int64_t *shape,
                             const mb_tensor **found) {
    const mb_tensor *tensor = mb_checkpoint_find(p->checkpoint, name);
    const char *path = p->checkpoint->shards[0].path;
    int directory_length = (int)(strrchr(path, '/') - path);
    if (!tensor)
        return mb_fail(
            MB_ERR_CONFIG,
            "%.*s: tensor \"%s\" is missing, and config.json needs it; download the checkpoint again, or "
            "correct config.json",
            directory_length, path, name);
    int same = tensor->rank == rank;
    for (int i = 0; same && i < rank; i++)
        same = tensor->shape[i] == (uint64_t)shape[i];
    if (!same) {
        mb_tensor wanted = {.rank = rank};
        for (int i = 0; i < rank; i++)
            wanted.shape[i] = (uint64_t)shape[i];
        char is[SHOWN], should_be[SHOWN];
        return mb_fail(MB_ERR_CONFIG, "%s: tensor \"%s\" has the shape %s, but config.json makes it %s",
                       mb_checkpoint_path(p->checkpoint, tensor), name,
                       mb_tensor_shape(is, sizeof is, tensor),
                       mb_tensor_shape(should_be, sizeof should_be, &wanted));
    }
    p->used[tensor - p->checkpoint->tensors] = 1;
    *found = tensor;
    return MB_OK;
}

static mb_status check_dtype(const planner *p, const mb_tensor *tensor, int may_be_fp8) {
    const char *path = mb_checkpoint_path(p->checkpoint, tensor);
    if (!tensor->is_float)
        return mb_fail(MB_ERR_UNSUPPORTED,
                       "%s: tensor \"%s\" is %s; weights may be BF16, F16, F32 or F8_E4M3 with block scales",
                       path, tensor->name, tensor->dtype_name);
    if (tensor->dtype != MB_F8_E4M3)
        return MB_OK;
    if (!may_be_fp8)
        return mb_fail(MB_ERR_UNSUPPORTED,
                       "%s: tensor \"%s\" is F8_E4M3; only linear layers may be, and not merged "
                       "experts",
                       path, tensor->name);
    if (!p->config->fp8_blocks)
        return mb_fail(MB_ERR_CONFIG,
                       "%s: tensor \"%s\" is F8_E4M3, but config.json has no \"quantization_config\" "
                       "for fp8",
                       path, tensor->name);
    return MB_OK;
}

/* ---- Laying out --------------------------------------------------------------------------------------- */

static mb_status add_part(planner *p, const mb_weight_part *part) {
    mb_weight_plan *plan = p->plan;
    if (mb_grow((void **)&plan->parts, &plan->parts_capacity, plan->n_parts + 1, sizeof *part) != 0)
        return mb_fail(MB_ERR_MEMORY, "no memory for a plan of %zu tensors", plan->n_parts + 1);
    plan->parts[plan->n_parts++] = *part;
    plan->read_bytes += part->tensor->n_bytes;
    return MB_OK;
}

static mb_status add_place(planner *p, const mb_weight_place *place) {
    mb_weight_plan *plan = p->plan;
    if (mb_grow((void **)&plan->places, &plan->places_capacity, plan->n_places + 1, sizeof *place) != 0)
        return mb_fail(MB_ERR_MEMORY, "no memory for a plan of %zu matrices", plan->n_places + 1);
    plan->places[plan->n_places++] = *place;
    return MB_OK;
}

/* Takes n_bytes of the block. config.h bounds the number of parameters, so these sums stay far below 2^64. */
static uint64_t take_bytes(mb_weight_plan *plan, uint64_t n_bytes) {
    uint64_t offset = plan->n_bytes;
    plan->n_bytes += (n_bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    return offset;
}

static int64_t ceil_div(int64_t a, int64_t b) {
    return (a + b - 1) / b;
}

/* Rows that share a scale after merging: every part must begin on such a row. */
static int32_t merged_scale_rows(const recipe *r) {
    int64_t rows = MB_F8_BLOCK;
    for (int i = 0; r->n_parts > 1 && i < r->n_parts; i++)
        while (r->heights[i] % rows != 0)
            rows /= 2; /* divisors of 128 are its halves */
    return (int32_t)rows;
}

static mb_status add_scale(planner *p, const recipe *r, int part, const mb_tensor *weight, uint64_t *offset) {
    char name[NAME_BYTES + 16];
    snprintf(name, sizeof name, "%s_scale_inv", weight->name);
    int64_t shape[2] = {ceil_div(r->heights[part], MB_F8_BLOCK), ceil_div(r->cols, MB_F8_BLOCK)};
    const mb_tensor *scale;
    MB_TRY(take_tensor(p, name, 2, shape, &scale));
    if (!scale->is_float || (scale->dtype != MB_F32 && scale->dtype != MB_BF16))
        return mb_fail(MB_ERR_UNSUPPORTED, "%s: tensor \"%s\" is %s; block scales may be F32 or BF16",
                       mb_checkpoint_path(p->checkpoint, scale), name, scale->dtype_name);
    int64_t n_rows = ceil_div(r->heights[part], r->weight->scale_rows);
    mb_weight_part piece = {scale, *offset, n_rows, r->weight->scale_rows};
    *offset += (uint64_t)(n_rows * shape[1]) * sizeof(float);
    return add_part(p, &piece);
}

/* The first tensor found decides the dtype; now the sizes are known and the block's bytes can be taken. */
static void begin_weight(planner *p, mb_weight *w, mb_dtype dtype, mb_weight_place *place) {
    uint64_t count = (uint64_t)w->count, rows = (uint64_t)w->rows;
    w->dtype = dtype;
    *place = (mb_weight_place){.weight = w, .has_scale = dtype == MB_F8_E4M3};
    place->data = take_bytes(p->plan, count * rows * mb_dtype_row_bytes(dtype, w->cols));
    w->scale_cols = place->has_scale ? MB_F8_BLOCK : 0;
    if (place->has_scale)
        place->scale = take_bytes(p->plan, count * (uint64_t)ceil_div(w->rows, w->scale_rows) *
                                               (uint64_t)ceil_div(w->cols, MB_F8_BLOCK) * sizeof(float));
}

/* Finds all tensors of a recipe and gives them their places. */
static mb_status add_weight(planner *p, const recipe *r) {
    mb_weight *w = r->weight;
    *w = (mb_weight){
        .count = r->experts ? r->experts : 1, .cols = r->cols, .scale_rows = merged_scale_rows(r)};
    for (int i = 0; i < r->n_parts; i++)
        w->rows += r->heights[i];
    mb_weight_place place = {0};
    const mb_tensor *first = NULL;
    uint64_t data = 0, scale = 0;
    for (int64_t i = 0; i < w->count * r->n_parts; i++) {
        int part = (int)(i % r->n_parts);
        int64_t shape[2] = {r->heights[part], r->cols};
        char name[NAME_BYTES];
        const mb_tensor *tensor;
        format_name(name, r, i / r->n_parts, part);
        MB_TRY(take_tensor(p, name, r->rank, shape, &tensor));
        MB_TRY(check_dtype(p, tensor, r->may_be_fp8));
        if (!first) {
            first = tensor;
            begin_weight(p, w, tensor->dtype, &place);
            data = place.data;
            scale = place.scale;
        }
        if (tensor->dtype != w->dtype)
            return mb_fail(
                MB_ERR_UNSUPPORTED,
                "%s: tensor \"%s\" is %s but \"%s\" is %s; they are merged into one matrix and must have "
                "the same dtype",
                mb_checkpoint_path(p->checkpoint, tensor), name, tensor->dtype_name, first->name,
                first->dtype_name);
        mb_weight_part copy = {.tensor = tensor, .offset = data};
        MB_TRY(add_part(p, &copy));
        data += tensor->n_bytes;
        if (place.has_scale)
            MB_TRY(add_scale(p, r, part, tensor, &scale));
    }
    if (r->rank == 1) { /* vectors are one row */
        w->cols = w->rows;
        w->rows = 1;
    }
    return add_place(p, &place);
}

/* ---- The model's weights ------------------------------------------------------------------------------ */

static mb_status add_vector(planner *p, mb_weight *weight, int32_t layer, const char *name, int64_t length) {
    recipe r = {weight, layer, 0, 1, 0, 1, {name}, {length}, 1};
    return add_weight(p, &r);
}

static mb_status add_matrix(planner *p, mb_weight *weight, int32_t layer, const char *name, int64_t rows,
                            int64_t cols) {
    recipe r = {weight, layer, 0, 2, 1, 1, {name}, {rows}, cols};
    return add_weight(p, &r);
}

static mb_status add_attention(planner *p, int32_t layer, mb_layer_weights *w) {
    const mb_config *c = p->config;
    int64_t q = (int64_t)c->n_heads * c->head_dim, kv = (int64_t)c->n_kv_heads * c->head_dim;
    recipe qkv = {&w->qkv,
                  layer,
                  0,
                  2,
                  1,
                  3,
                  {"self_attn.q_proj.weight", "self_attn.k_proj.weight", "self_attn.v_proj.weight"},
                  {q, kv, kv},
                  c->hidden};
    MB_TRY(add_weight(p, &qkv));
    MB_TRY(add_matrix(p, &w->o, layer, "self_attn.o_proj.weight", c->hidden, q));
    MB_TRY(add_vector(p, &w->q_norm, layer, "self_attn.q_norm.weight", c->head_dim));
    MB_TRY(add_vector(p, &w->k_norm, layer, "self_attn.k_norm.weight", c->head_dim));
    if (!c->attention_bias)
        return MB_OK;
    recipe bias = {&w->qkv_bias,
                   layer,
                   0,
                   1,
                   0,
                   3,
                   {"self_attn.q_proj.bias", "self_attn.k_proj.bias", "self_attn.v_proj.bias"},
                   {q, kv, kv},
                   1};
    MB_TRY(add_weight(p, &bias));
    return add_vector(p, &w->o_bias, layer, "self_attn.o_proj.bias", c->hidden);
}

/* transformers can also save the experts of a layer as one tensor, already in the layout that is wanted. */
static mb_status add_merged_experts(planner *p, int32_t layer, const char *what, mb_weight *weight,
                                    int64_t rows, int64_t cols) {
    char name[NAME_BYTES];
    snprintf(name, sizeof name, "model.layers.%d.mlp.experts.%s", layer, what);
    int64_t shape[3] = {p->config->n_experts, rows, cols};
    const mb_tensor *tensor;
    MB_TRY(take_tensor(p, name, 3, shape, &tensor));
    MB_TRY(check_dtype(p, tensor, 0));
    *weight = (mb_weight){
        .count = shape[0], .rows = rows, .cols = cols, .scale_rows = MB_F8_BLOCK, .dtype = tensor->dtype};
    mb_weight_place place = {.weight = weight, .data = take_bytes(p->plan, tensor->n_bytes)};
    mb_weight_part part = {.tensor = tensor, .offset = place.data};
    MB_TRY(add_part(p, &part));
    return add_place(p, &place);
}

static mb_status add_moe(planner *p, int32_t layer, mb_layer_weights *w) {
    const mb_config *c = p->config;
    int64_t inner = c->moe_intermediate, hidden = c->hidden;
    MB_TRY(add_matrix(p, &w->router, layer, "mlp.gate.weight", c->n_experts, hidden));
    char merged[NAME_BYTES];
    snprintf(merged, sizeof merged, "model.layers.%d.mlp.experts.gate_up_proj", layer);
    if (mb_checkpoint_find(p->checkpoint, merged)) {
        MB_TRY(add_merged_experts(p, layer, "gate_up_proj", &w->w13, 2 * inner, hidden));
        return add_merged_experts(p, layer, "down_proj", &w->w2, hidden, inner);
    }
    recipe w13 = {&w->w13,        layer, c->n_experts, 2, 1, 2, {"gate_proj.weight", "up_proj.weight"},
                  {inner, inner}, hidden};
    recipe w2 = {&w->w2, layer, c->n_experts, 2, 1, 1, {"down_proj.weight"}, {hidden}, inner};
    MB_TRY(add_weight(p, &w13));
    return add_weight(p, &w2);
}

static mb_status add_dense_mlp(planner *p, int32_t layer, mb_layer_weights *w) {
    int64_t inner = p->config->intermediate, hidden = p->config->hidden;
    recipe w13 = {&w->w13,        layer, 0, 2, 1, 2, {"mlp.gate_proj.weight", "mlp.up_proj.weight"},
                  {inner, inner}, hidden};
    MB_TRY(add_weight(p, &w13));
    return add_matrix(p, &w->w2, layer, "mlp.down_proj.weight", hidden, inner);
}

static mb_status add_model(planner *p, mb_weights *weights) {
    const mb_config *c = p->config;
    recipe embedding = {&weights->embedding,           -1,         0,        2, 0, 1,
                        {"model.embed_tokens.weight"}, {c->vocab}, c->hidden};
    MB_TRY(add_weight(p, &embedding));
    for (int32_t l = 0; l < c->n_layers; l++) {
        mb_layer_weights *w = &weights->layers[l];
        MB_TRY(add_vector(p, &w->input_norm, l, "input_layernorm.weight", c->hidden));
        MB_TRY(add_attention(p, l, w));
        MB_TRY(add_vector(p, &w->post_norm, l, "post_attention_layernorm.weight", c->hidden));
        MB_TRY(c->is_moe[l] ? add_moe(p, l, w) : add_dense_mlp(p, l, w));
    }
    MB_TRY(add_vector(p, &weights->final_norm, -1, "model.norm.weight", c->hidden));
    if (c->tie_embeddings)
        return MB_OK;
    return add_matrix(p, &weights->lm_head, -1, "lm_head.weight", c->vocab, c->hidden);
}

static int ends_with(const char *text, const char *suffix) {
    size_t n = strlen(text), m = strlen(suffix);
    return n >= m && strcmp(text + n - m, suffix) == 0;
}

/* A tensor that the forward pass would not use means that the model is not what config.json says. */
static mb_status check_all_used(const planner *p) {
    for (size_t i = 0; i < p->checkpoint->n_tensors; i++) {
        const mb_tensor *tensor = &p->checkpoint->tensors[i];
        if (p->used[i] || ends_with(tensor->name, "rotary_emb.inv_freq"))
            continue;
        if (p->config->tie_embeddings && strcmp(tensor->name, "lm_head.weight") == 0)
            continue; /* a copy of the embedding, as Hugging Face has it too */
        char shown[SHOWN];
        return mb_fail(
            MB_ERR_CONFIG,
            "%s: tensor %s is not part of the model that config.json describes; without it the answers "
            "would be wrong",
            mb_checkpoint_path(p->checkpoint, tensor), mb_quote(shown, sizeof shown, tensor->name));
    }
    return MB_OK;
}

mb_status mb_weight_plan_make(const mb_checkpoint *checkpoint, const mb_config *config, mb_weights *weights,
                              mb_weight_plan *plan) {
    *plan = (mb_weight_plan){0};
    planner p = {checkpoint, config, plan, mb_calloc(checkpoint->n_tensors + 1, 1)};
    if (!p.used)
        return mb_fail(MB_ERR_MEMORY, "no memory for a list of %zu tensors", checkpoint->n_tensors);
    mb_status status = add_model(&p, weights);
    if (status == MB_OK)
        status = check_all_used(&p);
    mb_free(p.used);
    if (status != MB_OK)
        mb_weight_plan_free(plan);
    return status;
}

void mb_weight_plan_free(mb_weight_plan *plan) {
    mb_free(plan->parts);
    mb_free(plan->places);
    *plan = (mb_weight_plan){0};
}

void mb_weight_plan_place(const mb_weight_plan *plan, void *memory) {
    for (size_t i = 0; i < plan->n_places; i++) {
        const mb_weight_place *place = &plan->places[i];
        place->weight->data = (char *)memory + place->data;
        if (place->has_scale)
            place->weight->scale = (char *)memory + place->scale;
    }
}
