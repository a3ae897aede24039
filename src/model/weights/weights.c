#include "model/weights/weights.h"

#include <stdio.h>
#include <string.h>

#include "base/alloc.h"
#include "model/weights/weight_plan.h"
#include "model/weights/weight_read.h"

static uint64_t elements(const mb_weight *weight) {
    return weight->data ? (uint64_t)weight->count * (uint64_t)weight->rows * (uint64_t)weight->cols : 0;
}

static void count_parameters(mb_weights *weights, const mb_config *config) {
    uint64_t total = elements(&weights->embedding) + elements(&weights->final_norm), idle = 0;
    if (weights->lm_head.data != weights->embedding.data) {
        total += elements(&weights->lm_head);
        idle += elements(&weights->embedding) - (uint64_t)config->hidden; /* one row is looked up */
    }
    for (int32_t l = 0; l < weights->n_layers; l++) {
        const mb_layer_weights *w = &weights->layers[l];
        const mb_weight *all[] = {&w->input_norm, &w->post_norm, &w->qkv, &w->qkv_bias,
                                  &w->q_norm,     &w->k_norm,    &w->o,   &w->o_bias,
                                  &w->router,     &w->w13,       &w->w2};
        for (size_t i = 0; i < sizeof all / sizeof *all; i++)
            total += elements(all[i]);
        if (config->is_moe[l])
            idle += (elements(&w->w13) + elements(&w->w2)) / (uint64_t)config->n_experts *
                    (uint64_t)(config->n_experts - config->top_k);
    }
    weights->n_parameters = total;
    weights->n_active_parameters = total - idle;
}

/* Named after the layers' matrices, which are nearly all of a model. */
static void name_dtype(mb_weights *weights) {
    mb_dtype dtype = weights->layers[0].qkv.dtype;
    int mixed = 0;
    for (int32_t l = 0; l < weights->n_layers; l++) {
        const mb_layer_weights *w = &weights->layers[l];
        mixed |=
            w->qkv.dtype != dtype || w->o.dtype != dtype || w->w13.dtype != dtype || w->w2.dtype != dtype;
    }
    snprintf(weights->dtype_name, sizeof weights->dtype_name, "%s%s", mixed ? "mixed" : mb_dtype_name(dtype),
             !mixed && dtype == MB_F8_E4M3 ? " (128x128 blocks)" : "");
}

static mb_status load(const mb_checkpoint *checkpoint, const mb_config *config, int n_threads,
                      mb_progress_fn progress, void *progress_user, mb_weights *weights) {
    mb_device *device = weights->device;
    mb_weight_plan plan;
    MB_TRY(mb_weight_plan_make(checkpoint, config, weights, &plan));
    mb_status status = device->allocate(device, (size_t)plan.n_bytes, &weights->memory);
    if (status == MB_OK) {
        weights->n_bytes = plan.n_bytes;
        mb_weight_plan_place(&plan, weights->memory);
        status = mb_weight_plan_read(&plan, checkpoint, device, weights->memory, n_threads, progress,
                                     progress_user);
    }
    mb_weight_plan_free(&plan);
    return status;
}

mb_status mb_weights_load(const char *directory, const mb_config *config, mb_device *device, int n_threads,
                          mb_progress_fn progress, void *progress_user, mb_weights *weights) {
    *weights = (mb_weights){.device = device, .n_layers = config->n_layers};
    weights->layers = mb_calloc((size_t)config->n_layers, sizeof *weights->layers);
    if (!weights->layers)
        return mb_fail(MB_ERR_MEMORY, "%s: no memory for a list of %d layers", directory, config->n_layers);
    mb_checkpoint checkpoint;
    mb_status status = mb_checkpoint_open(directory, &checkpoint);
    if (status == MB_OK) {
        status = load(&checkpoint, config, n_threads, progress, progress_user, weights);
        mb_checkpoint_close(&checkpoint);
    }
    if (status != MB_OK) {
        mb_weights_free(weights);
        return status;
    }
    if (config->tie_embeddings)
        weights->lm_head = weights->embedding;
    count_parameters(weights, config);
    name_dtype(weights);
    return MB_OK;
}

void mb_weights_free(mb_weights *weights) {
    if (weights->memory)
        weights->device->free(weights->device, weights->memory);
    mb_free(weights->layers);
    *weights = (mb_weights){0};
}
