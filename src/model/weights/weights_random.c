/*
 * weights_random.c - the weights of a model that has no checkpoint: random, of config.json's shape, for
 * measuring speed at real size. The same config gives the same weights.
 *
 * A region of memory holds what is filled in one way: the embedding, the other 16-bit matrices, the fp8
 * matrices, their scales, the norms in front of blocks, the other vectors. Values of a matrix have mean 0 and
 * standard deviation 0.02. They come from a block whose length is a prime, written again and again through
 * the region, so that no two experts or layers are alike.
 *
 * The router must spread the tokens, or a measurement reads too few experts. So tokens must stay unlike each
 * other, although attention adds nearly the same to all tokens of a prompt: the embedding's deviation is 1,
 * and the norms in front of blocks are 0.1, so that a block adds little. (With 0.02 and 1 a prompt of 512
 * tokens hit 39 of Qwen3-30B-A3B's 128 experts in the fourth layer.) The other vectors are 1.
 */
#include "model/weights/weights.h"

#include <math.h>

#include "base/alloc.h"
#include "base/arena.h"
#include "base/random.h"
#include "ops/common/dtype.h"

enum { BLOCK_ELEMENTS = 4194301, FP8_DEVIATION = 64 };

static const float DEVIATION = 0.02f, EMBEDDING_DEVIATION = 1.0f, BLOCK_NORM = 0.1f;

typedef struct regions {
    mb_arena embedding, plain, fp8, scales, norms, vectors;
    mb_dtype plain_dtype, quantized_dtype; /* of matrices that fp8 checkpoints keep, and that they quantise */
} regions;

enum { N_REGIONS = 6 };
#define ALL_REGIONS(r) \
    { &(r)->embedding, &(r)->plain, &(r)->fp8, &(r)->scales, &(r)->norms, &(r)->vectors }

/* Of the type that checkpoints have it in: some kernels are faster with norms of 16 bits. */
static mb_weight vector(const regions *r, mb_arena *region, int64_t n) {
    return (mb_weight){.data = mb_arena_push(region, 1, mb_dtype_row_bytes(r->plain_dtype, n)),
                       .count = 1,
                       .rows = 1,
                       .cols = n,
                       .dtype = r->plain_dtype};
}

static mb_weight matrix(regions *r, mb_dtype dtype, int64_t count, int64_t rows, int64_t cols) {
    mb_weight w = {.count = count, .rows = rows, .cols = cols, .dtype = dtype};
    int is_fp8 = dtype == MB_F8_E4M3;
    w.data =
        mb_arena_push(is_fp8 ? &r->fp8 : &r->plain, (size_t)(count * rows), mb_dtype_row_bytes(dtype, cols));
    if (is_fp8) {
        int64_t n_scales = mb_f8_blocks(rows) * mb_f8_blocks(cols);
        w.scale_rows = w.scale_cols = MB_F8_BLOCK;
        w.scale = mb_arena_push(&r->scales, (size_t)(count * n_scales), sizeof(float));
    }
    return w;
}

static void cut(const mb_config *c, mb_weight_types types, regions *r, mb_weights *weights) {
    int64_t q = (int64_t)c->n_heads * c->head_dim, kv = (int64_t)c->n_kv_heads * c->head_dim;
    weights->embedding = (mb_weight){
        .data = mb_arena_push(&r->embedding, (size_t)c->vocab, mb_dtype_row_bytes(r->plain_dtype, c->hidden)),
        .count = 1,
        .rows = c->vocab,
        .cols = c->hidden,
        .dtype = r->plain_dtype};
    for (int32_t l = 0; l < c->n_layers; l++) {
        mb_layer_weights *w = &weights->layers[l];
        int64_t n_experts = c->is_moe[l] ? c->n_experts : 1;
        int64_t inner = c->is_moe[l] ? mb_held_inner(c->moe_intermediate, types) : c->intermediate;
        w->input_norm = vector(r, &r->norms, c->hidden);
        w->post_norm = vector(r, &r->norms, c->hidden);
        w->q_norm = vector(r, &r->vectors, c->head_dim);
        w->k_norm = vector(r, &r->vectors, c->head_dim);
        w->qkv = matrix(r, r->quantized_dtype, 1, q + 2 * kv, c->hidden);
        w->o = matrix(r, r->quantized_dtype, 1, c->hidden, q);
        if (c->attention_bias) {
            w->qkv_bias = vector(r, &r->vectors, q + 2 * kv);
            w->o_bias = vector(r, &r->vectors, c->hidden);
        }
        if (c->is_moe[l])
            w->router = matrix(r, r->plain_dtype, 1, c->n_experts, c->hidden);
        w->w13 = matrix(r, r->quantized_dtype, n_experts, 2 * inner, c->hidden);
        w->w2 = matrix(r, r->quantized_dtype, n_experts, c->hidden, inner);
    }
    weights->final_norm = vector(r, &r->vectors, c->hidden);
    weights->is_tied = c->tie_embeddings;
    if (!weights->is_tied)
        weights->lm_head = matrix(r, r->plain_dtype, 1, c->vocab, c->hidden);
}

/* The sum of four uniform numbers: near enough to a normal distribution, and bounded. Regions have seeds of
 * their own: with one seed the first rows of two regions would be multiples of each other. */
static void random_block(mb_dtype dtype, float deviation, uint64_t state, void *block) {
    for (int64_t i = 0; i < BLOCK_ELEMENTS; i++) {
        uint64_t bits = mb_random(&state);
        int32_t sum = 0;
        for (int part = 0; part < 4; part++)
            sum += (int32_t)(bits >> 16 * part & 0xffff);
        float value = (float)(sum - 2 * 0xffff) / (float)0x10000 * sqrtf(3.0f) * deviation;
        mb_store_f32(dtype, block, i, 1, &value);
    }
}

static mb_status fill_random(mb_device *device, const mb_arena *region, mb_dtype dtype, float deviation,
                             uint64_t seed, void *block, mb_stream stream) {
    if (region->used == 0)
        return MB_OK;
    random_block(dtype, deviation, seed, block);
    MB_TRY(device->fill(device, region->base, region->used, block, BLOCK_ELEMENTS * mb_dtype_bytes(dtype),
                        stream));
    return device->synchronize(device, stream);
}

static mb_status fill_constant(mb_device *device, const mb_arena *region, mb_dtype dtype, float value,
                               mb_stream stream) {
    if (region->used == 0)
        return MB_OK;
    float element; /* or as many of its bytes as dtype has */
    mb_store_f32(dtype, &element, 0, 1, &value);
    MB_TRY(device->fill(device, region->base, region->used, &element, mb_dtype_bytes(dtype), stream));
    return device->synchronize(device, stream);
}

static mb_status fill(mb_device *device, const regions *r, void *block) {
    mb_stream stream;
    MB_TRY(device->stream_open(device, &stream));
    mb_status status =
        fill_random(device, &r->embedding, r->plain_dtype, EMBEDDING_DEVIATION, 2, block, stream);
    if (status == MB_OK)
        status = fill_random(device, &r->plain, r->plain_dtype, DEVIATION, 1, block, stream);
    if (status == MB_OK)
        status = fill_random(device, &r->fp8, MB_F8_E4M3, FP8_DEVIATION, 3, block, stream);
    if (status == MB_OK)
        status = fill_constant(device, &r->scales, MB_F32, DEVIATION / FP8_DEVIATION, stream);
    if (status == MB_OK)
        status = fill_constant(device, &r->norms, r->plain_dtype, BLOCK_NORM, stream);
    if (status == MB_OK)
        status = fill_constant(device, &r->vectors, r->plain_dtype, 1.0f, stream);
    device->stream_close(device, stream);
    return status;
}

/* The regions' sizes and their sum. */
static mb_status measure(const mb_config *config, mb_weight_types types, regions *r, size_t sizes[N_REGIONS],
                         mb_weights *weights) {
    mb_arena *all[] = ALL_REGIONS(r);
    size_t total = 0;
    for (int i = 0; i < N_REGIONS; i++)
        mb_arena_measure(all[i]);
    cut(config, types, r, weights);
    for (int i = 0; i < N_REGIONS; i++) {
        sizes[i] = all[i]->used;
        if (all[i]->overflowed || sizes[i] > SIZE_MAX - total)
            return mb_fail(MB_ERR_CONFIG, "config.json: the model is too large for this machine's addresses");
        total += sizes[i];
    }
    weights->n_bytes = total;
    return MB_OK;
}

static mb_status allocate(const mb_config *config, mb_device *device, mb_weight_types types, regions *r,
                          mb_weights *weights) {
    mb_arena *all[] = ALL_REGIONS(r);
    size_t sizes[N_REGIONS];
    MB_TRY(measure(config, types, r, sizes, weights));
    mb_status status = device->allocate(device, (size_t)weights->n_bytes, &weights->memory);
    if (status != MB_OK)
        return mb_device_no_memory(device, status, "random weights", weights->n_bytes,
                                   "take fp8 (--quant fp8), a smaller config.json, or a larger device");
    char *base = weights->memory;
    for (int i = 0; i < N_REGIONS; base += sizes[i++])
        mb_arena_init(all[i], base, sizes[i], 0);
    cut(config, types, r, weights);
    return MB_OK;
}

static regions regions_of(const mb_config *config, mb_weight_types types) {
    const mb_dtype *wanted = types.matrix_dtype;
    int is_fp8 = types.to_fp8 || (config->fp8_blocks && !(wanted && *wanted == MB_F32));
    mb_dtype plain_dtype = wanted ? *wanted : config->dtype;
    return (regions){.plain_dtype = plain_dtype, .quantized_dtype = is_fp8 ? MB_F8_E4M3 : plain_dtype};
}

static mb_status no_memory(const mb_config *config) {
    return mb_fail(MB_ERR_MEMORY, "no memory for a list of %d layers", config->n_layers);
}

mb_status mb_weights_of_config(const mb_config *config, mb_weight_types types, mb_weights *weights) {
    *weights = (mb_weights){.n_layers = config->n_layers};
    weights->layers = mb_calloc((size_t)config->n_layers, sizeof *weights->layers);
    if (!weights->layers)
        return no_memory(config);
    regions r = regions_of(config, types);
    size_t sizes[N_REGIONS];
    mb_status status = measure(config, types, &r, sizes, weights);
    if (status == MB_OK)
        mb_weights_describe(config, weights);
    else
        mb_weights_free(weights);
    return status;
}

mb_status mb_weights_random(const mb_config *config, mb_device *device, mb_weight_types types,
                            mb_weights *weights) {
    *weights = (mb_weights){.device = device, .n_layers = config->n_layers};
    regions r = regions_of(config, types);
    weights->layers = mb_calloc((size_t)config->n_layers, sizeof *weights->layers);
    void *block = mb_malloc(BLOCK_ELEMENTS * sizeof(float));
    mb_status status =
        weights->layers && block ? allocate(config, device, types, &r, weights) : no_memory(config);
    if (status == MB_OK)
        status = fill(device, &r, block);
    mb_free(block);
    if (status != MB_OK) {
        mb_weights_free(weights);
        return status;
    }
    mb_weights_describe(config, weights);
    return MB_OK;
}
