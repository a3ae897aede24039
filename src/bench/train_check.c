/* train_check.c - see train_check.h. */
#include "bench/train_check.h"

#include <math.h>

#include "base/alloc.h"
#include "base/status.h"
#include "ops/common/dtype.h"

enum { MAX_BLOCKS = 48, WORKSPACE_ALIGNMENT = 256 };

/* Host memory of the reference. */
typedef struct reference {
    const mb_bench_arrays *arrays;
    void *blocks[MAX_BLOCKS];
    int n_blocks;
} reference;

static mb_status allocate(reference *r, size_t n_bytes, void **block) {
    *block = r->n_blocks < MAX_BLOCKS ? mb_malloc(n_bytes) : NULL;
    if (!*block)
        return mb_fail(MB_ERR_MEMORY, "%zu bytes of the reference could not be allocated", n_bytes);
    r->blocks[r->n_blocks++] = *block;
    return MB_OK;
}

static mb_status downloaded(reference *r, const void *array, size_t n_bytes, void **block) {
    mb_device *device = r->arrays->device;
    MB_TRY(allocate(r, n_bytes, block));
    MB_TRY(device->download(device, *block, array, n_bytes, r->arrays->stream));
    return device->synchronize(device, r->arrays->stream);
}

/* n values of a device's array in fp32; NULL stays NULL. */
static mb_status widened(reference *r, mb_dtype dtype, const void *array, int64_t n, const void **values) {
    void *narrow = NULL, *wide = NULL;
    *values = NULL;
    if (!array)
        return MB_OK;
    MB_TRY(downloaded(r, array, (size_t)n * mb_dtype_bytes(dtype), &narrow));
    MB_TRY(allocate(r, (size_t)n * sizeof(float), &wide));
    mb_load_f32(dtype, narrow, 0, n, wide);
    *values = wide;
    return MB_OK;
}

static int64_t n_values(const mb_weight *weight) {
    return weight->count * weight->rows * weight->cols;
}

/* The layer's inputs in fp32 on the host, and memory for its outputs. */
static mb_status copy_inputs(reference *r, const mb_bench_layer *layer, mb_bench_layer *copy) {
    const mb_moe_backward_args *b = &layer->backward;
    const int64_t n_choices = b->n_tokens * b->top_k, n_x = b->n_tokens * b->hidden;
    const int64_t rows13 = b->w13.count * b->w13.rows, rows2 = b->w2.count * b->w2.rows;
    void *weights = NULL, *ids = NULL, *logits = NULL;
    *copy = *layer;
    mb_moe_backward_args *to = &copy->backward;
    MB_TRY(downloaded(r, b->weights, (size_t)n_choices * sizeof(float), &weights));
    MB_TRY(downloaded(r, b->ids, (size_t)n_choices * sizeof(int32_t), &ids));
    MB_TRY(downloaded(r, layer->route.logits, (size_t)(b->n_tokens * b->n_experts) * sizeof(float), &logits));
    MB_TRY(widened(r, b->dtype, b->x, n_x, &to->x));
    MB_TRY(widened(r, b->dtype, b->d_out, n_x, &to->d_out));
    MB_TRY(widened(r, b->dtype, b->w13.data, n_values(&b->w13), &to->w13.data));
    MB_TRY(widened(r, b->dtype, b->w2.data, n_values(&b->w2), &to->w2.data));
    MB_TRY(widened(r, b->dtype, b->bias13, rows13, &to->bias13));
    MB_TRY(widened(r, b->dtype, b->bias2, rows2, &to->bias2));
    to->weights = weights;
    to->ids = ids;
    to->p = NULL;
    to->dtype = to->grad_dtype = to->w13.dtype = to->w2.dtype = MB_F32;
    MB_TRY(allocate(r, (size_t)n_x * sizeof(float), &to->dx));
    MB_TRY(allocate(r, (size_t)n_choices * sizeof(float), (void **)&to->dweights));
    MB_TRY(allocate(r, (size_t)n_values(&b->w13) * sizeof(float), &to->dw13));
    MB_TRY(allocate(r, (size_t)n_values(&b->w2) * sizeof(float), &to->dw2));
    if (b->dbias13)
        MB_TRY(allocate(r, (size_t)rows13 * sizeof(float), &to->dbias13));
    if (b->dbias2)
        MB_TRY(allocate(r, (size_t)rows2 * sizeof(float), &to->dbias2));
    mb_moe_forward_args *f = &copy->forward;
    f->x = to->x, f->weights = (float *)weights, f->ids = (int32_t *)ids;
    f->w13 = to->w13, f->w2 = to->w2, f->bias13 = to->bias13, f->bias2 = to->bias2;
    f->p = NULL, f->dtype = MB_F32;
    MB_TRY(allocate(r, (size_t)n_x * sizeof(float), &f->out));
    copy->route_backward.logits = logits;
    copy->route_backward.ids = ids;
    copy->route_backward.dweights = to->dweights;
    return allocate(r, (size_t)(b->n_tokens * b->n_experts) * sizeof(float),
                    (void **)&copy->route_backward.dlogits);
}

static mb_status run_on_stream(reference *r, const mb_bench_layer *copy, mb_stream stream) {
    size_t forward_bytes, backward_bytes;
    void *memory = NULL;
    MB_TRY(mb_moe_forward_workspace(&copy->forward, &forward_bytes));
    MB_TRY(mb_moe_backward_workspace(&copy->backward, &backward_bytes));
    size_t bytes = forward_bytes > backward_bytes ? forward_bytes : backward_bytes;
    MB_TRY(allocate(r, bytes + WORKSPACE_ALIGNMENT, &memory));
    uintptr_t address = (uintptr_t)memory;
    void *workspace = (char *)memory + (WORKSPACE_ALIGNMENT - address % WORKSPACE_ALIGNMENT);
    MB_TRY(mb_moe_forward(&copy->forward, workspace, bytes, stream));
    MB_TRY(mb_moe_backward(&copy->backward, workspace, bytes, stream));
    return mb_moe_route_backward(&copy->route_backward, stream);
}

/* Beside a GPU too on all threads. */
static mb_status run_reference(reference *r, const mb_bench_layer *copy, int n_threads) {
    mb_device *cpu = NULL;
    mb_stream stream = NULL;
    MB_TRY(mb_device_open("cpu", n_threads, NULL, &cpu));
    mb_status status = cpu->stream_open(cpu, &stream);
    if (status == MB_OK)
        status = run_on_stream(r, copy, stream);
    cpu->stream_close(cpu, stream);
    mb_device_close(cpu);
    return status;
}

static void compare(const char *name, const float *got, const float *expected, int64_t n,
                    mb_bench_check *check) {
    double sum = 0, difference_sum = 0;
    *check = (mb_bench_check){.name = name};
    for (int64_t i = 0; i < n; i++) {
        double value = fabs((double)expected[i]), difference = fabs((double)got[i] - (double)expected[i]);
        sum += value;
        difference_sum += difference;
        if (value > check->max_reference)
            check->max_reference = value;
        if (!(difference <= check->max_difference)) /* NaN too */
            check->max_difference = difference;
    }
    check->mean_reference = sum / (double)n;
    /* All zeros on both sides: the router's gradient, where a token's only choice has the weight 1. */
    check->mean_relative = difference_sum == 0 ? 0 : difference_sum / sum;
}

static mb_status compare_all(reference *r, const mb_bench_layer *layer, const mb_bench_layer *copy,
                             mb_bench_check *checks, int *n_checks) {
    const mb_moe_backward_args *b = &layer->backward, *to = &copy->backward;
    const int64_t n_x = b->n_tokens * b->hidden;
    const struct {
        const char *name;
        mb_dtype dtype;
        const void *got, *expected;
        int64_t n;
    } results[] = {
        {"o", b->dtype, layer->forward.out, copy->forward.out, n_x},
        {"dx", b->dtype, b->dx, to->dx, n_x},
        {"dw1", b->grad_dtype, b->dw13, to->dw13, n_values(&b->w13)},
        {"dw2", b->grad_dtype, b->dw2, to->dw2, n_values(&b->w2)},
        {"db1", b->grad_dtype, b->dbias13, to->dbias13, b->w13.count * b->w13.rows},
        {"db2", b->grad_dtype, b->dbias2, to->dbias2, b->w2.count * b->w2.rows},
        {"drouter", MB_F32, layer->route_backward.dlogits, copy->route_backward.dlogits,
         b->n_tokens * b->n_experts},
    };
    *n_checks = 0;
    for (size_t i = 0; i < sizeof results / sizeof results[0]; i++) {
        const void *got = NULL;
        if (!results[i].got)
            continue;
        MB_TRY(widened(r, results[i].dtype, results[i].got, results[i].n, &got));
        compare(results[i].name, got, results[i].expected, results[i].n, &checks[(*n_checks)++]);
    }
    return MB_OK;
}

mb_status mb_bench_check_training(const mb_bench_layer *layer, const mb_bench_arrays *arrays, int n_threads,
                                  mb_bench_check *checks, int *n_checks) {
    reference r = {.arrays = arrays};
    mb_bench_layer copy;
    mb_status status = copy_inputs(&r, layer, &copy);
    if (status == MB_OK)
        status = run_reference(&r, &copy, n_threads);
    if (status == MB_OK)
        status = compare_all(&r, layer, &copy, checks, n_checks);
    for (int i = 0; i < r.n_blocks; i++)
        mb_free(r.blocks[i]);
    return status;
}
