/* bench_moe.c - mb_bench_moe: one random MoE layer, timed. */
#include "bench/bench.h"

#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include "base/alloc.h"
#include "base/median.h"
#include "base/status.h"
#include "bench/modes.h"
#include "bench/random_arrays.h"
#include "bench/sizes.h"
#include "device/device.h"
#include "ops/common/dtype.h"

enum {
    F8_DEVIATION = 112, /* of fp8 values, so that four deviations are the largest one, 448 */
    GPU_REPEATS = 31,
    CPU_REPEATS = 5,
};

typedef struct mode {
    const char *name;
    mb_dtype activations, weights;
    mb_f32_math f32_math;
    int per_tensor;
    double tflops; /* on an H100; cards with other numbers of SMs are counted in proportion */
} mode;

static const mode modes[] = {
#define MODE(id, name, activations, weights, f32_math, per_tensor, tflops) \
    {name, activations, weights, f32_math, per_tensor, tflops},
    MB_BENCH_MODES(MODE)
#undef MODE
};

typedef struct layer {
    mb_bench_arrays arrays;
    mb_moe_route_args route;
    mb_moe_forward_args forward;
    void *workspace;
    size_t workspace_bytes;
    double scale_bytes; /* of one expert's block scales */
} layer;

/* ---- The layer ------------------------------------------------------------------------------------- */

static mb_status random_f32(layer *l, int64_t n, mb_distribution kind, double scale, const float **array) {
    const void *values = NULL;
    mb_status status = mb_bench_random_array(&l->arrays, MB_F32, n, kind, scale, &values);
    *array = values;
    return status;
}

/* The largest height of scale blocks that both parts of a merged matrix are multiples of. */
static int32_t scale_rows_of(int64_t part_rows) {
    int32_t rows = MB_F8_BLOCK;
    while (part_rows % rows != 0)
        rows /= 2;
    return rows;
}

static mb_status random_weight(layer *l, const mode *m, int64_t count, int64_t rows, int64_t cols,
                               int32_t scale_rows, mb_weight *weight) {
    double deviation = 1 / sqrt((double)cols);
    *weight = (mb_weight){.count = count, .rows = rows, .cols = cols, .dtype = m->weights};
    if (m->weights != MB_F8_E4M3)
        return mb_bench_random_array(&l->arrays, m->weights, count * rows * cols, MB_NORMAL, deviation,
                                     &weight->data);
    int64_t n_scales = 1;
    if (!m->per_tensor) {
        weight->scale_rows = scale_rows;
        weight->scale_cols = MB_F8_BLOCK;
        n_scales = mb_ceil_div(rows, scale_rows) * mb_f8_blocks(cols);
        l->scale_bytes += (double)n_scales * sizeof(float);
    }
    MB_TRY(mb_bench_random_array(&l->arrays, m->weights, count * rows * cols, MB_NORMAL, F8_DEVIATION,
                                 &weight->data));
    return mb_bench_random_array(&l->arrays, MB_F32, count * n_scales, MB_UNIFORM, deviation / F8_DEVIATION,
                                 &weight->scale);
}

static mb_status make_router(layer *l, const mb_bench_moe_args *args) {
    mb_moe_route_args *r = &l->route;
    *r = (mb_moe_route_args){
        .n_tokens = args->n_tokens,
        .n_experts = args->n_experts,
        .top_k = args->top_k,
        .logits_dtype = MB_F32,
        .order = MB_ROUTE_SOFTMAX_TOPK,
        .renormalize = 1,
    };
    size_t n_choices = (size_t)args->n_tokens * (size_t)args->top_k;
    if (args->is_zipf)
        MB_TRY(mb_bench_zipf_logits(&l->arrays, args->n_tokens, args->n_experts, &r->logits));
    else
        MB_TRY(mb_bench_random_array(&l->arrays, MB_F32, args->n_tokens * args->n_experts, MB_NORMAL, 1,
                                     &r->logits));
    MB_TRY(mb_bench_allocate(&l->arrays, n_choices * sizeof(float), (void **)&r->weights));
    return mb_bench_allocate(&l->arrays, n_choices * sizeof(int32_t), (void **)&r->ids);
}

static mb_status make_layer(layer *l, const mb_bench_moe_args *args, const mode *m) {
    const int64_t T = args->n_tokens, H = args->hidden, I = args->intermediate, E = args->n_experts;
    const int64_t rows13 = mb_activation_is_gated(args->activation) ? 2 * I : I;
    mb_moe_forward_args *f = &l->forward;
    MB_TRY(make_router(l, args));
    *f = (mb_moe_forward_args){
        .weights = l->route.weights,
        .ids = l->route.ids,
        .n_tokens = T,
        .hidden = args->hidden,
        .intermediate = args->intermediate,
        .top_k = args->top_k,
        .n_experts = args->n_experts,
        .n_local_experts = args->n_experts,
        .dtype = m->activations,
        .activation = args->activation,
        .f32_math = m->f32_math,
        .route = &l->route,
    };
    MB_TRY(mb_bench_random_array(&l->arrays, m->activations, T * H, MB_NORMAL, 1, &f->x));
    MB_TRY(random_weight(l, m, E, rows13, H, scale_rows_of(I), &f->w13));
    MB_TRY(random_weight(l, m, E, H, I, MB_F8_BLOCK, &f->w2));
    if (args->has_bias) {
        MB_TRY(mb_bench_random_array(&l->arrays, m->activations, E * rows13, MB_NORMAL, 0.5, &f->bias13));
        MB_TRY(mb_bench_random_array(&l->arrays, m->activations, E * H, MB_NORMAL, 0.5, &f->bias2));
    }
    if (m->per_tensor) { /* four deviations are the largest fp8 value */
        MB_TRY(random_f32(l, 1, MB_UNIFORM, 1.0 / F8_DEVIATION, &f->x_scale));
        MB_TRY(random_f32(l, 1, MB_UNIFORM, 1.0 / F8_DEVIATION, &f->h_scale));
    }
    MB_TRY(mb_bench_allocate(&l->arrays, (size_t)(T * H) * mb_dtype_bytes(m->activations), &f->out));
    mb_status status = mb_moe_forward_workspace(f, &l->workspace_bytes);
    if (status != MB_OK)
        return mb_fail_context(status, "bench_moe");
    return mb_bench_allocate(&l->arrays, l->workspace_bytes, &l->workspace);
}

static mb_status forward(const void *context, mb_stream stream) {
    const layer *l = context;
    return mb_moe_forward(&l->forward, l->workspace, l->workspace_bytes, stream);
}

/* ---- The figures ----------------------------------------------------------------------------------- */

static mb_status median_us(layer *l, int n_repeats, double *us) {
    double *times = mb_malloc_array((size_t)n_repeats, sizeof *times);
    if (!times)
        return mb_fail(MB_ERR_MEMORY, "%d times could not be allocated", n_repeats);
    mb_status status = mb_device_time(l->arrays.device, forward, l, n_repeats, times);
    if (status == MB_OK)
        *us = mb_median(times, (size_t)n_repeats);
    mb_free(times);
    return status;
}

/* How many experts the router has chosen at all: their weights must be read. */
static mb_status count_experts_hit(layer *l, int32_t *n_hit) {
    size_t n_choices = (size_t)l->route.n_tokens * (size_t)l->route.top_k;
    int32_t *ids = mb_malloc_array(n_choices, sizeof *ids);
    char *is_hit = mb_calloc((size_t)l->route.n_experts, 1);
    mb_status status = MB_OK;
    *n_hit = 0;
    if (ids && is_hit)
        status = l->arrays.device->download(l->arrays.device, ids, l->route.ids, n_choices * sizeof *ids,
                                            l->arrays.stream);
    else
        status = mb_fail(MB_ERR_MEMORY, "%zu ids could not be allocated", n_choices);
    if (status == MB_OK)
        status = l->arrays.device->synchronize(l->arrays.device, l->arrays.stream);
    for (size_t i = 0; i < n_choices && status == MB_OK; i++) {
        if (ids[i] < 0 || ids[i] >= l->route.n_experts)
            status = mb_fail(MB_ERR_INTERNAL, "the router chose expert %d of %d", ids[i], l->route.n_experts);
        else
            is_hit[ids[i]] = 1;
    }
    for (int32_t e = 0; e < l->route.n_experts && status == MB_OK; e++)
        *n_hit += is_hit[e];
    mb_free(ids);
    mb_free(is_hit);
    return status;
}

static mb_status measure(layer *l, const mb_bench_moe_args *args, const mode *m,
                         mb_bench_moe_result *result) {
    MB_TRY(make_layer(l, args, m));
    snprintf(result->device, sizeof result->device, "%s", l->arrays.device->name);
    int is_gpu = l->arrays.device->n_sms > 0;
    result->n_repeats = args->n_repeats > 0 ? args->n_repeats : is_gpu ? GPU_REPEATS : CPU_REPEATS;
    MB_TRY(median_us(l, result->n_repeats, &result->us));
    MB_TRY(count_experts_hit(l, &result->n_experts_hit));
    double matrices = mb_activation_is_gated(args->activation) ? 3 : 2;
    double expert = matrices * args->hidden * args->intermediate;
    result->flops = 2 * expert * (double)args->n_tokens * args->top_k;
    result->bytes = result->n_experts_hit * (expert * (double)mb_dtype_bytes(m->weights) + l->scale_bytes);
    double flops_per_second = 1e12 * m->tflops * l->arrays.device->n_sms / MB_H100_SMS;
    if (is_gpu && l->arrays.device->bytes_per_second > 0)
        result->floor_us =
            1e6 * fmax(result->bytes / l->arrays.device->bytes_per_second, result->flops / flops_per_second);
    return MB_OK;
}

static const mode *find_mode(const char *name) {
    for (size_t i = 0; i < sizeof modes / sizeof modes[0]; i++)
        if (strcmp(name, modes[i].name) == 0)
            return &modes[i];
    return NULL;
}

mb_status mb_bench_moe(const mb_bench_moe_args *args, mb_bench_moe_result *result) {
    MB_TRY(mb_need(args, "mb_bench_moe: args"));
    MB_TRY(mb_need(result, "mb_bench_moe: result"));
    MB_TRY(mb_need(args->dtype, "mb_bench_moe: args->dtype"));
    *result = (mb_bench_moe_result){0};
    const mode *m = find_mode(args->dtype);
    if (!m)
        return mb_fail(MB_ERR_ARGUMENT, "dtype \"%s\" is unknown", args->dtype);
    const mb_bench_sizes sizes = {.n_tokens = args->n_tokens,
                                  .hidden = args->hidden,
                                  .intermediate = args->intermediate,
                                  .n_experts = args->n_experts,
                                  .top_k = args->top_k,
                                  .n_repeats = args->n_repeats};
    MB_TRY(mb_bench_check_sizes(&sizes));
    layer l = {0};
    mb_status status = mb_bench_arrays_open(&l.arrays, args->device, args->n_threads, args->seed);
    if (status == MB_OK)
        status = measure(&l, args, m, result);
    mb_bench_arrays_close(&l.arrays);
    return status;
}
