#include "model/weights/weights.h"

#include <stdio.h>
#include <string.h>

#include "base/alloc.h"
#include "base/log.h"
#include "model/weights/weight_plan.h"
#include "model/weights/weight_read.h"

/* 0 for a weight that the model does not have. */
static uint64_t elements(const mb_weight *weight) {
    return (uint64_t)weight->count * (uint64_t)weight->rows * (uint64_t)weight->cols;
}

static void count_parameters(mb_weights *weights, const mb_config *config) {
    uint64_t total = elements(&weights->embedding) + elements(&weights->final_norm), idle = 0;
    if (!weights->is_tied) {
        total += elements(&weights->lm_head);
        idle += elements(&weights->embedding) - (uint64_t)config->hidden; /* one row is looked up */
    }
    for (int32_t l = 0; l < weights->n_layers; l++) {
        const mb_layer_weights *w = &weights->layers[l];
        const mb_weight *all[] = {&w->input_norm, &w->post_norm, &w->qkv,    &w->qkv_bias, &w->q_norm,
                                  &w->k_norm,     &w->o,         &w->o_bias, &w->router};
        for (size_t i = 0; i < sizeof all / sizeof *all; i++)
            total += elements(all[i]);
        if (config->is_moe[l]) { /* without what pads them */
            uint64_t expert = 3 * (uint64_t)config->hidden * (uint64_t)config->moe_intermediate;
            total += (uint64_t)config->n_experts * expert;
            idle += (uint64_t)(config->n_experts - config->top_k) * expert;
        } else {
            total += elements(&w->w13) + elements(&w->w2);
        }
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

/* "61.1 GB" */
static const char *in_gb(char text[32], uint64_t n_bytes) {
    double gb = (double)n_bytes / 1e9;
    if (gb < 1)
        snprintf(text, 32, "%.2g GB", gb);
    else
        snprintf(text, 32, "%.*f GB", gb < 100, gb);
    return text;
}

/* Said before gigabytes are read, and before the system ends a program that takes too much. */
static mb_status check_memory(const char *directory, mb_device *device, const mb_weight_plan *plan) {
    uint64_t total, free_bytes;
    char shown_need[32], shown_total[32], shown_free[32];
    if (device->memory(device, &total, &free_bytes) != MB_OK)
        return MB_OK; /* not known: the allocation will tell */
    in_gb(shown_total, total);
    in_gb(shown_free, free_bytes);
    if (plan->n_bytes > free_bytes)
        return mb_fail(
            MB_ERR_MEMORY, "%s: the weights need %s of memory, but of the %s here (%s) %s are free; %s",
            directory, in_gb(shown_need, plan->n_bytes), shown_total, device->name, shown_free,
            device->host_memory
                ? "end other programs, or take a machine with more memory, or fp8 (--quant fp8)"
                : "end other programs on it, or take a GPU with more memory, or fp8 (--quant fp8)");
    if (plan->n_bytes + plan->mapped_bytes > free_bytes)
        mb_log(
            MB_LOG_WARN,
            "%s: the weights take %s and %s of memory are free: parts will be read from the disk again and "
            "again, which is slow",
            directory, in_gb(shown_need, plan->n_bytes + plan->mapped_bytes), shown_free);
    return MB_OK;
}

void mb_weights_describe(const mb_config *config, mb_weights *weights) {
    if (weights->is_tied)
        weights->lm_head = weights->embedding;
    count_parameters(weights, config);
    name_dtype(weights);
}

static void keep_sizes(const mb_weight_plan *plan, const mb_config *config, mb_weights *weights) {
    weights->n_bytes = plan->n_bytes + plan->mapped_bytes;
    mb_weights_describe(config, weights);
}

static mb_status allocate(mb_device *device, const mb_weight_plan *plan, void **memory) {
    mb_status status = device->allocate(device, (size_t)plan->n_bytes, memory);
    return status == MB_OK ? MB_OK
                           : mb_device_no_memory(device, status, "the weights", plan->n_bytes,
                                                 "end other programs there, or take fp8 (--quant fp8)");
}

static mb_status load(const char *directory, mb_checkpoint *checkpoint, const mb_config *config,
                      mb_weight_types types, int n_threads, mb_progress_fn progress, void *progress_user,
                      mb_weights *weights) {
    mb_device *device = weights->device;
    mb_weight_share share = mb_weight_share_all(config);
    share.types = types;
    mb_weight_plan plan;
    if (device->host_memory)
        MB_TRY(mb_checkpoint_map(checkpoint));
    MB_TRY(mb_weight_plan_make(checkpoint, config, &share, weights, &plan));
    mb_status status = check_memory(directory, device, &plan);
    if (status == MB_OK)
        status = allocate(device, &plan, &weights->memory);
    if (status == MB_OK)
        status = mb_weight_plan_read(&plan, checkpoint, device, weights->memory, n_threads, progress,
                                     progress_user);
    if (status == MB_OK) {
        mb_weight_plan_place(&plan, weights->memory);
        keep_sizes(&plan, config, weights);
        if (plan.mapped_bytes > 0)
            status = mb_checkpoint_give_maps(checkpoint, &weights->maps, &weights->n_maps);
    }
    mb_weight_plan_free(&plan);
    return status;
}

static mb_status measure(const mb_checkpoint *checkpoint, const mb_config *config, mb_weight_types types,
                         mb_weights *weights) {
    mb_weight_share share = mb_weight_share_all(config);
    share.types = types;
    mb_weight_plan plan;
    MB_TRY(mb_weight_plan_make(checkpoint, config, &share, weights, &plan));
    keep_sizes(&plan, config, weights);
    mb_weight_plan_free(&plan);
    return MB_OK;
}

static mb_status open_directory(const char *directory, const mb_config *config, mb_device *device,
                                mb_weights *weights, mb_checkpoint *checkpoint) {
    *weights = (mb_weights){.device = device, .n_layers = config->n_layers};
    weights->layers = mb_calloc((size_t)config->n_layers, sizeof *weights->layers);
    if (!weights->layers)
        return mb_fail(MB_ERR_MEMORY, "%s: no memory for a list of %d layers", directory, config->n_layers);
    return mb_checkpoint_open(directory, checkpoint);
}

mb_status mb_weights_load(const char *directory, const mb_config *config, mb_device *device,
                          mb_weight_types types, int n_threads, mb_progress_fn progress, void *progress_user,
                          mb_weights *weights) {
    mb_checkpoint checkpoint = {0};
    mb_status status = open_directory(directory, config, device, weights, &checkpoint);
    if (status == MB_OK)
        status = load(directory, &checkpoint, config, types, n_threads, progress, progress_user, weights);
    mb_checkpoint_close(&checkpoint);
    if (status != MB_OK)
        mb_weights_free(weights);
    return status;
}

mb_status mb_weights_measure(const char *directory, const mb_config *config, mb_weight_types types,
                             mb_weights *weights) {
    mb_checkpoint checkpoint = {0};
    mb_status status = open_directory(directory, config, NULL, weights, &checkpoint);
    if (status == MB_OK)
        status = measure(&checkpoint, config, types, weights);
    mb_checkpoint_close(&checkpoint);
    if (status != MB_OK)
        mb_weights_free(weights);
    return status;
}

void mb_weights_free(mb_weights *weights) {
    if (weights->memory)
        weights->device->free(weights->device, weights->memory);
    mb_file_maps_close(weights->maps, weights->n_maps);
    mb_free(weights->layers);
    *weights = (mb_weights){0};
}
