#include "model/weights/weight_plan.h"

#include <stdio.h>
#include <string.h>

#include "base/alloc.h"
#include "base/log.h"
#include "model/weights/weight_tensors.h"
#include "ops/common/dtype.h"

enum { NAME_BYTES = 128, MAX_PIECES = 3, ALIGNMENT = 256, MAX_QUANTIZED_COLS = 32768 };

typedef struct planner {
    mb_weight_tensors tensors;
    const mb_config *config;
    const mb_weight_share *share;
    mb_weight_plan *plan;
} planner;

/* One tensor's share in a weight: all of its rows there are, and those wanted. */
typedef struct piece {
    const char *name;
    int64_t height; /* of a vector: its length */
    mb_range rows;
    int64_t n_added; /* rows of 0 behind them */
} piece;

/* A weight to be assembled: a matrix for each expert (or one), from the rows of n_pieces tensors. */
typedef struct recipe {
    mb_weight *weight;
    int32_t layer; /* -1: the names are whole; else they follow "model.layers.<layer>." */
    int is_vector; /* tensors of rank 1 */
    int is_router; /* keeps its type, whatever the kernels want of other matrices; fp8 becomes fp32 */
    int may_be_fp8;
    mb_range experts; /* count 0: one matrix; else one for each, and names follow "mlp.experts.<e>." */
    int64_t width;    /* columns of the tensors; 1 for vectors */
    mb_range cols;    /* of these */
    int64_t n_added;  /* columns of 0 behind them */
    int n_pieces;
    piece pieces[MAX_PIECES];
} recipe;

/* ---- Tensors as matrices ------------------------------------------------------------------------------ */

int64_t mb_tensor_cols(const mb_tensor *tensor) {
    return tensor->rank > 1 ? (int64_t)tensor->shape[tensor->rank - 1] : 1;
}

uint64_t mb_tensor_row_bytes(const mb_tensor *tensor) {
    return mb_dtype_row_bytes(tensor->dtype, mb_tensor_cols(tensor));
}

uint64_t mb_weight_part_row_bytes(const mb_weight_part *part) {
    int is_scale = part->kind == MB_PART_SCALES;
    return mb_dtype_row_bytes(part->dtype, is_scale ? mb_f8_blocks(part->cols.count) : part->width);
}

int64_t mb_weight_part_n_rows(const mb_weight_part *part) {
    return part->kind == MB_PART_SCALES ? mb_ceil_div(part->rows.count, part->scale_rows) : part->rows.count;
}

/* ---- Laying out --------------------------------------------------------------------------------------- */

static mb_status add_part(planner *p, const mb_weight_part *part) {
    mb_weight_plan *plan = p->plan;
    if (mb_grow((void **)&plan->parts, &plan->parts_capacity, plan->n_parts + 1, sizeof *part) != 0)
        return mb_fail(MB_ERR_MEMORY, "no memory for a plan of %zu tensors", plan->n_parts + 1);
    plan->parts[plan->n_parts++] = *part;
    if (part->kind == MB_PART_SCALES)
        plan->read_bytes += part->tensor->n_bytes;
    else
        plan->read_bytes += (uint64_t)part->rows.count * mb_tensor_row_bytes(part->tensor) +
                            (part->scale ? part->scale->n_bytes : 0);
    return MB_OK;
}

static mb_status add_place(planner *p, const mb_weight_place *place) {
    mb_weight_plan *plan = p->plan;
    if (mb_grow((void **)&plan->places, &plan->places_capacity, plan->n_places + 1, sizeof *place) != 0)
        return mb_fail(MB_ERR_MEMORY, "no memory for a plan of %zu matrices", plan->n_places + 1);
    plan->places[plan->n_places++] = *place;
    return MB_OK;
}

static uint64_t rounded_up(uint64_t n_bytes) {
    return (n_bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
}

/* Takes n_bytes of the block. config.h bounds the number of parameters, so these sums stay far below 2^64. */
static uint64_t take_bytes(mb_weight_plan *plan, uint64_t n_bytes) {
    uint64_t offset = plan->n_bytes;
    plan->n_bytes += rounded_up(n_bytes);
    return offset;
}

/* Where the weight's bytes are mapped; NULL when they are not, or not as an element must be aligned. */
static const char *mapped_data(const planner *p, const mb_tensor *tensor, int64_t first_row) {
    const mb_shard *shard = &p->tensors.checkpoint->shards[tensor->i_file];
    if (!shard->map)
        return NULL;
    const char *data =
        (const char *)shard->map + tensor->offset + (uint64_t)first_row * mb_tensor_row_bytes(tensor);
    return (uintptr_t)data % mb_dtype_bytes(tensor->dtype) == 0 ? data : NULL;
}

/* Takes room for a weight's data, or leaves it where the one tensor that it consists of is mapped. */
static void place_data(planner *p, const mb_tensor *only, int64_t first_row, mb_weight_place *place) {
    const mb_weight *w = place->weight;
    uint64_t n_bytes = (uint64_t)w->count * (uint64_t)w->rows * mb_dtype_row_bytes(w->dtype, w->cols);
    place->mapped = only ? mapped_data(p, only, first_row) : NULL;
    if (place->mapped)
        p->plan->mapped_bytes += rounded_up(n_bytes);
    else
        place->data = take_bytes(p->plan, n_bytes);
}

/* ---- One weight --------------------------------------------------------------------------------------- */

static void format_name(char *name, const recipe *r, int64_t matrix, int i_piece) {
    const char *own = r->pieces[i_piece].name;
    if (r->layer < 0)
        snprintf(name, NAME_BYTES, "%s", own);
    else if (r->experts.count == 0)
        snprintf(name, NAME_BYTES, "model.layers.%d.%s", r->layer, own);
    else
        snprintf(name, NAME_BYTES, "model.layers.%d.mlp.experts.%lld.%s", r->layer,
                 (long long)(r->experts.first + matrix), own);
}

/* The type that holds both without loss. fp8 with scales gives way to any other; bf16 has the larger
 * range and fp16 the finer steps, so both together need fp32. */
static mb_dtype wider(mb_dtype a, mb_dtype b) {
    if (a == b || b == MB_F8_E4M3)
        return a;
    return a == MB_F8_E4M3 ? b : MB_F32;
}

/* The type in which a matrix of this type is held. is_layer: it is one of those that may become fp8. */
static mb_dtype held_dtype(const planner *p, mb_dtype stored, int is_layer) {
    const mb_dtype *wanted = p->share->types.matrix_dtype;
    if (is_layer && p->share->types.to_fp8)
        return MB_F8_E4M3;
    return !wanted || (stored == MB_F8_E4M3 && *wanted != MB_F32) ? stored : *wanted;
}

/* Finds and checks all tensors of a recipe; the weight's dtype is the widest of theirs. */
static mb_status find_tensors(planner *p, const recipe *r, int64_t n_matrices, mb_dtype *dtype) {
    for (int64_t i = 0; i < n_matrices * r->n_pieces; i++) {
        int i_piece = (int)(i % r->n_pieces);
        const int64_t shape[2] = {r->pieces[i_piece].height, r->width};
        char name[NAME_BYTES];
        const mb_tensor *tensor;
        format_name(name, r, i / r->n_pieces, i_piece);
        MB_TRY(mb_weight_tensors_take(&p->tensors, name, r->is_vector ? 1 : 2, shape, &tensor));
        MB_TRY(mb_weight_tensors_check_dtype(&p->tensors, tensor, r->may_be_fp8));
        *dtype = i == 0 ? tensor->dtype : wider(*dtype, tensor->dtype);
    }
    return MB_OK;
}

/* Rows that share a scale after merging: each piece must begin on such a row, there and in its tensor. */
static int32_t merged_scale_rows(const recipe *r) {
    int64_t rows = MB_F8_BLOCK;
    for (int i = 0; i < r->n_pieces; i++) {
        const mb_range *range = &r->pieces[i].rows;
        while (range->first % rows != 0 ||
               (r->n_pieces > 1 && (range->count + r->pieces[i].n_added) % rows != 0))
            rows /= 2; /* divisors of 128 are its halves */
    }
    return (int32_t)rows;
}

static mb_status begin_scales(planner *p, const recipe *r, mb_weight_place *place) {
    mb_weight *w = place->weight;
    if (r->cols.first % MB_F8_BLOCK != 0)
        return mb_fail(
            MB_ERR_UNSUPPORTED,
            "columns from %lld on of \"%s\" begin within a block of fp8 scales; a share must begin at "
            "a multiple of %d",
            (long long)r->cols.first, r->pieces[0].name, MB_F8_BLOCK);
    if (p->share->types.to_fp8 && r->width > MAX_QUANTIZED_COLS)
        return mb_fail(
            MB_ERR_UNSUPPORTED,
            "\"%s\" has %lld columns; at most %d can become fp8 while they load: leave the weights "
            "as they are, or take a checkpoint in fp8",
            r->pieces[0].name, (long long)r->width, MAX_QUANTIZED_COLS);
    w->scale_dtype = MB_F32;
    w->scale_rows = merged_scale_rows(r);
    w->scale_cols = MB_F8_BLOCK;
    place->has_scale = 1;
    place->scale = take_bytes(p->plan, (uint64_t)w->count * (uint64_t)mb_ceil_div(w->rows, w->scale_rows) *
                                           mb_dtype_row_bytes(MB_F32, mb_ceil_div(w->cols, w->scale_cols)));
    return MB_OK;
}

static mb_part_kind kind_of(const mb_tensor *tensor, const mb_weight *w) {
    if (tensor->dtype == w->dtype)
        return MB_PART_COPY;
    return w->dtype == MB_F8_E4M3 ? MB_PART_QUANTIZE : MB_PART_CONVERT;
}

/* A part that becomes fp8, with rows of 0 behind it; both places advance. */
static mb_status add_quantized(planner *p, mb_weight_part *part, int64_t n_added, mb_weight_place *place) {
    part->offset = place->data;
    part->scale_offset = place->scale;
    part->scale_rows = place->weight->scale_rows;
    place->data += (uint64_t)(part->rows.count + n_added) * mb_weight_part_row_bytes(part);
    place->scale += (uint64_t)mb_ceil_div(part->rows.count, part->scale_rows) *
                    mb_dtype_row_bytes(MB_F32, mb_f8_blocks(part->cols.count));
    return add_part(p, part);
}

/* One tensor's part, and its scales' part when the weight stays in fp8; both places advance. */
static mb_status add_piece(planner *p, const recipe *r, int i_piece, const mb_tensor *tensor,
                           mb_weight_place *place) {
    const mb_weight *w = place->weight;
    const piece *from = &r->pieces[i_piece];
    mb_weight_part part = {.kind = kind_of(tensor, w),
                           .tensor = tensor,
                           .rows = from->rows,
                           .cols = r->cols,
                           .width = w->cols,
                           .dtype = w->dtype,
                           .offset = place->data};
    if (part.kind == MB_PART_QUANTIZE) {
        part.matrix = (mb_range){0, from->height};
        return add_quantized(p, &part, from->n_added, place);
    }
    const mb_tensor *scale = NULL;
    if (tensor->dtype == MB_F8_E4M3)
        MB_TRY(mb_weight_tensors_take_scale(&p->tensors, tensor, from->height, r->width, &scale));
    if (part.kind == MB_PART_CONVERT)
        part.scale = scale;
    place->data += (uint64_t)(part.rows.count + from->n_added) * mb_weight_part_row_bytes(&part);
    if (!place->mapped)
        MB_TRY(add_part(p, &part));
    if (!scale || part.scale)
        return MB_OK;
    part.kind = MB_PART_SCALES;
    part.tensor = scale;
    part.dtype = MB_F32;
    part.scale_rows = w->scale_rows;
    part.offset = place->scale;
    place->scale += (uint64_t)mb_weight_part_n_rows(&part) * mb_weight_part_row_bytes(&part);
    return add_part(p, &part);
}

/* Finds all tensors of a recipe and gives them their places. */
static mb_status add_weight(planner *p, const recipe *r) {
    mb_weight *w = r->weight;
    *w = (mb_weight){.count = r->experts.count ? r->experts.count : 1, .cols = r->cols.count + r->n_added};
    for (int i = 0; i < r->n_pieces; i++) {
        w->rows += r->pieces[i].rows.count + r->pieces[i].n_added;
        p->plan->has_gaps |= r->pieces[i].n_added > 0;
    }
    MB_TRY(find_tensors(p, r, w->count, &w->dtype));
    mb_dtype stored = w->dtype;
    if (r->is_router)
        w->dtype = stored == MB_F8_E4M3 ? MB_F32 : stored;
    else if (!r->is_vector)
        w->dtype = held_dtype(p, stored, r->layer >= 0);
    mb_weight_place place = {.weight = w};
    char name[NAME_BYTES];
    format_name(name, r, 0, 0);
    int is_one = w->count * r->n_pieces == 1 && w->cols == r->width && w->dtype == stored;
    place_data(p, is_one ? mb_checkpoint_find(p->tensors.checkpoint, name) : NULL, r->pieces[0].rows.first,
               &place);
    if (w->dtype == MB_F8_E4M3)
        MB_TRY(begin_scales(p, r, &place));
    mb_weight_place next = place;
    for (int64_t i = 0; i < w->count * r->n_pieces; i++) {
        format_name(name, r, i / r->n_pieces, (int)(i % r->n_pieces));
        MB_TRY(
            add_piece(p, r, (int)(i % r->n_pieces), mb_checkpoint_find(p->tensors.checkpoint, name), &next));
    }
    if (r->is_vector) { /* vectors are one row */
        w->cols = w->rows;
        w->rows = 1;
    }
    return add_place(p, &place);
}

/* ---- The model's weights ------------------------------------------------------------------------------ */

static mb_range all(int64_t count) {
    return (mb_range){0, count};
}

static mb_range times(mb_range range, int64_t n) {
    return (mb_range){range.first * n, range.count * n};
}

int64_t mb_held_inner(int64_t inner, mb_weight_types types) {
    int64_t multiple = types.inner_multiple;
    return multiple > 0 ? mb_ceil_div(inner, multiple) * multiple : inner;
}

mb_weight_share mb_weight_share_all(const mb_config *config) {
    return (mb_weight_share){.heads = all(config->n_heads),
                             .kv_heads = all(config->n_kv_heads),
                             .inner = all(config->intermediate),
                             .moe_inner = all(config->moe_intermediate),
                             .experts = all(config->n_experts)};
}

static mb_status add_vector(planner *p, mb_weight *weight, int32_t layer, const char *name, int64_t length) {
    const recipe r = {.weight = weight,
                      .layer = layer,
                      .is_vector = 1,
                      .width = 1,
                      .cols = all(1),
                      .n_pieces = 1,
                      .pieces = {{name, length, all(length), 0}}};
    return add_weight(p, &r);
}

static mb_status add_matrix(planner *p, mb_weight *weight, int32_t layer, const char *name, int64_t rows,
                            int64_t cols) {
    const recipe r = {.weight = weight,
                      .layer = layer,
                      .may_be_fp8 = 1,
                      .width = cols,
                      .cols = all(cols),
                      .n_pieces = 1,
                      .pieces = {{name, rows, all(rows), 0}}};
    return add_weight(p, &r);
}

static mb_status add_attention(planner *p, int32_t layer, mb_layer_weights *w) {
    const mb_config *c = p->config;
    int64_t n_q = (int64_t)c->n_heads * c->head_dim, n_kv = (int64_t)c->n_kv_heads * c->head_dim;
    mb_range q = times(p->share->heads, c->head_dim), kv = times(p->share->kv_heads, c->head_dim);
    const recipe qkv = {.weight = &w->qkv,
                        .layer = layer,
                        .may_be_fp8 = 1,
                        .width = c->hidden,
                        .cols = all(c->hidden),
                        .n_pieces = 3,
                        .pieces = {{"self_attn.q_proj.weight", n_q, q, 0},
                                   {"self_attn.k_proj.weight", n_kv, kv, 0},
                                   {"self_attn.v_proj.weight", n_kv, kv, 0}}};
    const recipe o = {.weight = &w->o,
                      .layer = layer,
                      .may_be_fp8 = 1,
                      .width = n_q,
                      .cols = q,
                      .n_pieces = 1,
                      .pieces = {{"self_attn.o_proj.weight", c->hidden, all(c->hidden), 0}}};
    MB_TRY(add_weight(p, &qkv));
    MB_TRY(add_weight(p, &o));
    MB_TRY(add_vector(p, &w->q_norm, layer, "self_attn.q_norm.weight", c->head_dim));
    MB_TRY(add_vector(p, &w->k_norm, layer, "self_attn.k_norm.weight", c->head_dim));
    if (!c->attention_bias)
        return MB_OK;
    const recipe bias = {.weight = &w->qkv_bias,
                         .layer = layer,
                         .is_vector = 1,
                         .width = 1,
                         .cols = all(1),
                         .n_pieces = 3,
                         .pieces = {{"self_attn.q_proj.bias", n_q, q, 0},
                                    {"self_attn.k_proj.bias", n_kv, kv, 0},
                                    {"self_attn.v_proj.bias", n_kv, kv, 0}}};
    MB_TRY(add_weight(p, &bias));
    return add_vector(p, &w->o_bias, layer, "self_attn.o_proj.bias", c->hidden);
}

/* transformers can also save the experts of a layer as one tensor [E, height, width], in the layout that is
 * wanted. n_halves 2: gate over up, of which `rows` are taken each. Rows and columns of 0 are added behind. */
static mb_status add_merged_experts(planner *p, int32_t layer, const char *what, mb_weight *weight,
                                    int n_halves, int64_t half_height, mb_range rows, int64_t n_added_rows,
                                    int64_t width, mb_range cols, int64_t n_added_cols) {
    char name[NAME_BYTES];
    snprintf(name, sizeof name, "model.layers.%d.mlp.experts.%s", layer, what);
    const int64_t shape[3] = {p->config->n_experts, n_halves * half_height, width};
    const mb_range experts = p->share->experts;
    const mb_tensor *tensor;
    MB_TRY(mb_weight_tensors_take(&p->tensors, name, 3, shape, &tensor));
    MB_TRY(mb_weight_tensors_check_dtype(&p->tensors, tensor, 0));
    *weight = (mb_weight){.count = experts.count,
                          .rows = n_halves * (rows.count + n_added_rows),
                          .cols = cols.count + n_added_cols,
                          .dtype = held_dtype(p, tensor->dtype, 1)};
    mb_weight_place place = {.weight = weight};
    p->plan->has_gaps |= n_added_rows > 0;
    int is_stretch = rows.count == half_height && cols.count == width && n_added_rows + n_added_cols == 0,
        is_same = weight->dtype == tensor->dtype, is_fp8 = weight->dtype == MB_F8_E4M3;
    place_data(p, is_stretch && is_same ? tensor : NULL, experts.first * shape[1], &place);
    if (is_fp8) {
        const recipe halves = {
            .width = width,
            .cols = cols,
            .n_pieces = n_halves,
            .pieces = {{what, half_height, rows, n_added_rows}, {what, half_height, rows, n_added_rows}}};
        MB_TRY(begin_scales(p, &halves, &place));
    }
    MB_TRY(add_place(p, &place));
    if (place.mapped)
        return MB_OK;
    mb_weight_part part = {.kind = kind_of(tensor, weight),
                           .tensor = tensor,
                           .cols = cols,
                           .width = weight->cols,
                           .dtype = weight->dtype,
                           .offset = place.data};
    part.rows = times(experts, shape[1]);
    if (is_stretch && !is_fp8)
        return add_part(p, &part);
    for (int64_t half = experts.first * n_halves; half < (experts.first + experts.count) * n_halves; half++) {
        part.rows = (mb_range){half * half_height + rows.first, rows.count};
        if (is_fp8) {
            part.matrix = (mb_range){half * half_height, half_height};
            MB_TRY(add_quantized(p, &part, n_added_rows, &place));
            continue;
        }
        MB_TRY(add_part(p, &part));
        part.offset += (uint64_t)(rows.count + n_added_rows) * mb_weight_part_row_bytes(&part);
    }
    return MB_OK;
}

static mb_status add_moe(planner *p, int32_t layer, mb_layer_weights *w) {
    const mb_config *c = p->config;
    const mb_range inner = p->share->moe_inner, experts = p->share->experts;
    int64_t n_inner = c->moe_intermediate, hidden = c->hidden;
    int64_t n_added = mb_held_inner(inner.count, p->share->types) - inner.count;
    const recipe router = {.weight = &w->router,
                           .layer = layer,
                           .is_router = 1,
                           .may_be_fp8 = 1,
                           .width = hidden,
                           .cols = all(hidden),
                           .n_pieces = 1,
                           .pieces = {{"mlp.gate.weight", c->n_experts, all(c->n_experts), 0}}};
    MB_TRY(add_weight(p, &router));
    char merged[NAME_BYTES];
    snprintf(merged, sizeof merged, "model.layers.%d.mlp.experts.gate_up_proj", layer);
    if (mb_checkpoint_find(p->tensors.checkpoint, merged)) {
        MB_TRY(add_merged_experts(p, layer, "gate_up_proj", &w->w13, 2, n_inner, inner, n_added, hidden,
                                  all(hidden), 0));
        return add_merged_experts(p, layer, "down_proj", &w->w2, 1, hidden, all(hidden), 0, n_inner, inner,
                                  n_added);
    }
    const recipe w13 = {.weight = &w->w13,
                        .layer = layer,
                        .may_be_fp8 = 1,
                        .experts = experts,
                        .width = hidden,
                        .cols = all(hidden),
                        .n_pieces = 2,
                        .pieces = {{"gate_proj.weight", n_inner, inner, n_added},
                                   {"up_proj.weight", n_inner, inner, n_added}}};
    const recipe w2 = {.weight = &w->w2,
                       .layer = layer,
                       .may_be_fp8 = 1,
                       .experts = experts,
                       .width = n_inner,
                       .cols = inner,
                       .n_added = n_added,
                       .n_pieces = 1,
                       .pieces = {{"down_proj.weight", hidden, all(hidden), 0}}};
    MB_TRY(add_weight(p, &w13));
    return add_weight(p, &w2);
}

static mb_status add_dense_mlp(planner *p, int32_t layer, mb_layer_weights *w) {
    const mb_range inner = p->share->inner;
    int64_t n_inner = p->config->intermediate, hidden = p->config->hidden;
    const recipe w13 = {
        .weight = &w->w13,
        .layer = layer,
        .may_be_fp8 = 1,
        .width = hidden,
        .cols = all(hidden),
        .n_pieces = 2,
        .pieces = {{"mlp.gate_proj.weight", n_inner, inner, 0}, {"mlp.up_proj.weight", n_inner, inner, 0}}};
    const recipe w2 = {.weight = &w->w2,
                       .layer = layer,
                       .may_be_fp8 = 1,
                       .width = n_inner,
                       .cols = inner,
                       .n_pieces = 1,
                       .pieces = {{"mlp.down_proj.weight", hidden, all(hidden), 0}}};
    MB_TRY(add_weight(p, &w13));
    return add_weight(p, &w2);
}

/* config.json may tie lm_head to the embedding although the file has both. As in transformers, they are
 * tied when they are the same, and each keeps its own when they are not. */
static mb_status find_tied(planner *p, const char **embedding, int *is_tied) {
    const mb_checkpoint *checkpoint = p->tensors.checkpoint;
    static const char head_name[] = "lm_head.weight";
    const mb_tensor *head = mb_checkpoint_find(checkpoint, head_name);
    const mb_tensor *own = mb_checkpoint_find(checkpoint, *embedding);
    *is_tied = p->config->tie_embeddings;
    if (!*is_tied || !head)
        return MB_OK;
    if (!own) { /* the one matrix was saved under its other name */
        *embedding = head_name;
        return MB_OK;
    }
    MB_TRY(mb_weight_tensors_compare(&p->tensors, own, head, is_tied));
    if (*is_tied)
        p->tensors.is_used[head - checkpoint->tensors] = 1;
    else
        mb_log(MB_LOG_WARN,
               "%s: \"lm_head.weight\" differs from the embedding, although config.json has "
               "\"tie_word_embeddings\": true; both are kept, set it to false",
               mb_checkpoint_path(checkpoint, head));
    return MB_OK;
}

static mb_status add_model(planner *p, mb_weights *weights) {
    const mb_config *c = p->config;
    const char *embedding_name = "model.embed_tokens.weight";
    MB_TRY(find_tied(p, &embedding_name, &weights->is_tied));
    const recipe embedding = {.weight = &weights->embedding,
                              .layer = -1,
                              .width = c->hidden,
                              .cols = all(c->hidden),
                              .n_pieces = 1,
                              .pieces = {{embedding_name, c->vocab, all(c->vocab), 0}}};
    MB_TRY(add_weight(p, &embedding));
    for (int32_t l = 0; l < c->n_layers; l++) {
        mb_layer_weights *w = &weights->layers[l];
        MB_TRY(add_vector(p, &w->input_norm, l, "input_layernorm.weight", c->hidden));
        MB_TRY(add_attention(p, l, w));
        MB_TRY(add_vector(p, &w->post_norm, l, "post_attention_layernorm.weight", c->hidden));
        MB_TRY(c->is_moe[l] ? add_moe(p, l, w) : add_dense_mlp(p, l, w));
    }
    MB_TRY(add_vector(p, &weights->final_norm, -1, "model.norm.weight", c->hidden));
    if (weights->is_tied)
        return MB_OK;
    return add_matrix(p, &weights->lm_head, -1, "lm_head.weight", c->vocab, c->hidden);
}

mb_status mb_weight_plan_make(const mb_checkpoint *checkpoint, const mb_config *config,
                              const mb_weight_share *share, mb_weights *weights, mb_weight_plan *plan) {
    *plan = (mb_weight_plan){0};
    planner p = {.config = config, .share = share, .plan = plan};
    MB_TRY(mb_weight_tensors_init(&p.tensors, checkpoint, config));
    mb_status status = add_model(&p, weights);
    if (status != MB_OK)
        mb_weight_plan_free(plan);
    else if (share->experts.count == config->n_experts) /* else other experts are no surprise */
        mb_weight_tensors_warn_unused(&p.tensors);
    mb_weight_tensors_free(&p.tensors);
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
        place->weight->data = place->mapped ? place->mapped : (char *)memory + place->data;
        if (place->has_scale)
            place->weight->scale = (char *)memory + place->scale;
    }
}
