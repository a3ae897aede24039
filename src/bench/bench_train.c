/* bench_train.c - mb_bench_train: one random MoE layer, trained, compared and timed. */
#include "bench/bench.h"

#include <math.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "base/alloc.h"
#include "base/median.h"
#include "base/status.h"
#include "bench/random_arrays.h"
#include "bench/sizes.h"
#include "bench/train_check.h"
#include "ops/common/dtype.h"

enum { GPU_REPEATS = 31, CPU_REPEATS = 3, MOST_CHOICES = 32, LOAD_US = 600000, MOST_RUNS = 4000 };
/* Before a pass a GPU rests: at its power limit it is slower the longer it has worked before. */
enum { REST_US = 500000 };

typedef struct dtype_row {
    const char *name;
    mb_dtype dtype;
    double limit; /* of the mean relative difference; bf16's is that of SonicMoE, arXiv 2512.14080 */
} dtype_row;

static const dtype_row dtypes[] = {{"bf16", MB_BF16, 3e-2}, {"fp16", MB_F16, 4e-3}, {"fp32", MB_F32, 1e-5}};

typedef struct training {
    mb_bench_arrays arrays;
    mb_bench_layer layer;
    mb_moe_forward_args inference; /* of the router's choices; keeps nothing */
    mb_moe_token_rounding_args rounding;
    mb_moe_rounding_report *report; /* on the device */
    int is_rounded;
    void *workspace;
    size_t workspace_bytes;
} training;

static mb_status make_router(training *t, const mb_bench_train_args *args) {
    mb_bench_layer *l = &t->layer;
    int32_t places = args->top_k;
    if (args->rounding != MB_ROUNDING_NONE) /* a quarter more, so that choices can be added */
        places = args->top_k + (args->top_k + 3) / 4;
    if (places > args->n_experts || places > MOST_CHOICES)
        places = args->n_experts < MOST_CHOICES ? args->n_experts : MOST_CHOICES;
    l->route = (mb_moe_route_args){.n_tokens = args->n_tokens,
                                   .n_experts = args->n_experts,
                                   .top_k = args->top_k,
                                   .logits_dtype = MB_F32,
                                   .order = MB_ROUTE_SOFTMAX_TOPK,
                                   .renormalize = 1};
    size_t n_choices = (size_t)args->n_tokens * (size_t)args->top_k;
    size_t n_places = (size_t)args->n_tokens * (size_t)places;
    MB_TRY(mb_bench_random_array(&t->arrays, MB_F32, args->n_tokens * args->n_experts, MB_NORMAL, 1,
                                 &l->route.logits));
    MB_TRY(mb_bench_allocate(&t->arrays, n_choices * sizeof(float), (void **)&l->route.weights));
    MB_TRY(mb_bench_allocate(&t->arrays, n_choices * sizeof(int32_t), (void **)&l->route.ids));
    t->rounding = (mb_moe_token_rounding_args){.logits = l->route.logits,
                                               .ids = l->route.ids,
                                               .n_tokens = args->n_tokens,
                                               .n_experts = args->n_experts,
                                               .top_k = args->top_k,
                                               .max_choices = places,
                                               .tile_rows = args->tile_rows,
                                               .rounding = args->rounding,
                                               .logits_dtype = MB_F32,
                                               .order = l->route.order,
                                               .renormalize = l->route.renormalize};
    MB_TRY(mb_bench_allocate(&t->arrays, n_places * sizeof(int32_t), (void **)&t->rounding.out_ids));
    MB_TRY(mb_bench_allocate(&t->arrays, n_places * sizeof(float), (void **)&t->rounding.out_weights));
    MB_TRY(mb_bench_allocate(&t->arrays, (size_t)args->n_experts * sizeof(int32_t),
                             (void **)&t->rounding.counts));
    MB_TRY(mb_bench_allocate(&t->arrays, sizeof *t->report, (void **)&t->report));
    t->rounding.report = t->report;
    t->is_rounded = args->rounding != MB_ROUNDING_NONE;
    return MB_OK;
}

static mb_status make_weights(training *t, const mb_bench_train_args *args, mb_dtype dtype,
                              mb_moe_forward_args *f) {
    const int64_t H = args->hidden, I = args->intermediate, E = args->n_experts;
    const int64_t rows13 = mb_activation_is_gated(args->activation) ? 2 * I : I;
    f->w13 = (mb_weight){.count = E, .rows = rows13, .cols = H, .dtype = dtype};
    f->w2 = (mb_weight){.count = E, .rows = H, .cols = I, .dtype = dtype};
    MB_TRY(mb_bench_random_array(&t->arrays, dtype, args->n_tokens * H, MB_NORMAL, 1, &f->x));
    MB_TRY(mb_bench_random_array(&t->arrays, dtype, E * rows13 * H, MB_NORMAL, 1 / sqrt((double)H),
                                 &f->w13.data));
    MB_TRY(mb_bench_random_array(&t->arrays, dtype, E * H * I, MB_NORMAL, 1 / sqrt((double)I), &f->w2.data));
    if (args->has_bias) {
        MB_TRY(mb_bench_random_array(&t->arrays, dtype, E * rows13, MB_NORMAL, 0.5, &f->bias13));
        MB_TRY(mb_bench_random_array(&t->arrays, dtype, E * H, MB_NORMAL, 0.5, &f->bias2));
    }
    return MB_OK;
}

static mb_status make_backward(training *t, const mb_bench_train_args *args) {
    mb_bench_layer *l = &t->layer;
    const mb_moe_forward_args *f = &l->forward;
    const size_t E = (size_t)args->n_experts, H = (size_t)args->hidden, I = (size_t)args->intermediate;
    const size_t n_tokens = (size_t)args->n_tokens, rows13 = (size_t)f->w13.rows;
    mb_moe_backward_args *b = &l->backward;
    *b = (mb_moe_backward_args){.x = f->x,
                                .weights = f->weights,
                                .ids = f->ids,
                                .w13 = f->w13,
                                .w2 = f->w2,
                                .bias13 = f->bias13,
                                .bias2 = f->bias2,
                                .p = f->p,
                                .n_tokens = f->n_tokens,
                                .hidden = f->hidden,
                                .intermediate = f->intermediate,
                                .top_k = f->top_k,
                                .n_experts = f->n_experts,
                                .n_local_experts = f->n_local_experts,
                                .dtype = f->dtype,
                                .grad_dtype = args->narrow_gradients ? f->dtype : MB_F32,
                                .activation = f->activation};
    MB_TRY(mb_bench_random_array(&t->arrays, f->dtype, f->n_tokens * args->hidden, MB_NORMAL, 1, &b->d_out));
    MB_TRY(mb_bench_allocate(&t->arrays, n_tokens * H * mb_dtype_bytes(f->dtype), &b->dx));
    const size_t width = mb_dtype_bytes(b->grad_dtype);
    MB_TRY(mb_bench_allocate(&t->arrays, n_tokens * (size_t)f->top_k * sizeof(float), (void **)&b->dweights));
    MB_TRY(mb_bench_allocate(&t->arrays, E * rows13 * H * width, &b->dw13));
    MB_TRY(mb_bench_allocate(&t->arrays, E * H * I * width, &b->dw2));
    if (args->has_bias) {
        MB_TRY(mb_bench_allocate(&t->arrays, E * rows13 * width, &b->dbias13));
        MB_TRY(mb_bench_allocate(&t->arrays, E * H * width, &b->dbias2));
    }
    l->route_backward = (mb_moe_route_backward_args){.logits = l->route.logits,
                                                     .ids = f->ids,
                                                     .dweights = b->dweights,
                                                     .n_tokens = f->n_tokens,
                                                     .n_experts = f->n_experts,
                                                     .top_k = f->top_k,
                                                     .logits_dtype = MB_F32,
                                                     .order = l->route.order,
                                                     .renormalize = l->route.renormalize};
    return mb_bench_allocate(&t->arrays, n_tokens * E * sizeof(float), (void **)&l->route_backward.dlogits);
}

/* One for all operators, which run one after another. */
static mb_status make_workspace(training *t) {
    size_t bytes[4];
    MB_TRY(mb_moe_forward_workspace(&t->inference, &bytes[0]));
    MB_TRY(mb_moe_forward_workspace(&t->layer.forward, &bytes[1]));
    MB_TRY(mb_moe_token_rounding_workspace(&t->rounding, &bytes[2]));
    MB_TRY(mb_moe_backward_workspace(&t->layer.backward, &bytes[3]));
    for (int i = 0; i < 4; i++)
        t->workspace_bytes = bytes[i] > t->workspace_bytes ? bytes[i] : t->workspace_bytes;
    return mb_bench_allocate(&t->arrays, t->workspace_bytes, &t->workspace);
}

static mb_status make(training *t, const mb_bench_train_args *args, mb_dtype dtype) {
    mb_bench_layer *l = &t->layer;
    MB_TRY(make_router(t, args));
    l->forward = (mb_moe_forward_args){.weights = t->is_rounded ? t->rounding.out_weights : l->route.weights,
                                       .ids = t->is_rounded ? t->rounding.out_ids : l->route.ids,
                                       .n_tokens = args->n_tokens,
                                       .hidden = args->hidden,
                                       .intermediate = args->intermediate,
                                       .top_k = t->rounding.max_choices,
                                       .n_experts = args->n_experts,
                                       .n_local_experts = args->n_experts,
                                       .dtype = dtype,
                                       .activation = args->activation};
    mb_moe_forward_args *f = &l->forward;
    MB_TRY(make_weights(t, args, dtype, f));
    size_t out_bytes = (size_t)args->n_tokens * mb_dtype_row_bytes(dtype, args->hidden);
    MB_TRY(mb_bench_allocate(&t->arrays, out_bytes, &f->out));
    t->inference = *f;
    t->inference.weights = l->route.weights;
    t->inference.ids = l->route.ids;
    t->inference.top_k = args->top_k;
    size_t n_rows = (size_t)args->n_tokens * (size_t)f->top_k;
    MB_TRY(mb_bench_allocate(&t->arrays, n_rows * mb_dtype_row_bytes(dtype, f->w13.rows), &f->p));
    MB_TRY(make_backward(t, args));
    return make_workspace(t);
}

/* ---- What is timed ------------------------------------------------------------------------------------- */

static mb_status inference(const void *context, mb_stream stream) {
    const training *t = context;
    MB_TRY(mb_moe_route(&t->layer.route, stream));
    return mb_moe_forward(&t->inference, t->workspace, t->workspace_bytes, stream);
}

static mb_status forward(const void *context, mb_stream stream) {
    const training *t = context;
    MB_TRY(mb_moe_route(&t->layer.route, stream));
    if (t->is_rounded)
        MB_TRY(mb_moe_token_rounding(&t->rounding, t->workspace, t->workspace_bytes, stream));
    return mb_moe_forward(&t->layer.forward, t->workspace, t->workspace_bytes, stream);
}

static mb_status backward(const void *context, mb_stream stream) {
    const training *t = context;
    MB_TRY(mb_moe_backward(&t->layer.backward, t->workspace, t->workspace_bytes, stream));
    return mb_moe_route_backward(&t->layer.route_backward, stream);
}

static mb_status both(const void *context, mb_stream stream) {
    MB_TRY(forward(context, stream));
    return backward(context, stream);
}

typedef struct load_events {
    mb_event *half, *late, *end; /* the second half is timed; clock and power are read in the last quarter */
} load_events;

static mb_status run_under_load(const training *t, mb_device_work work, const load_events *e, int pass,
                                mb_bench_train_result *result) {
    mb_device *device = t->arrays.device;
    mb_stream stream = t->arrays.stream;
    mb_device_state state;
    double wanted = LOAD_US / result->us[pass] + 2;
    int n_runs = wanted < MOST_RUNS ? (int)wanted : MOST_RUNS;
    for (int i = 0; i < n_runs; i++) {
        if (i == n_runs / 2)
            MB_TRY(device->event_record(device, e->half, stream));
        MB_TRY(work(t, stream));
        if (i == n_runs * 3 / 4)
            MB_TRY(device->event_record(device, e->late, stream));
    }
    MB_TRY(device->event_record(device, e->end, stream));
    MB_TRY(device->event_synchronize(device, e->late));
    device->state(device, &state); /* the last quarter still runs */
    MB_TRY(device->event_synchronize(device, e->end));
    MB_TRY(device->event_elapsed(device, e->half, e->end, &result->sustained_us[pass]));
    result->sustained_us[pass] /= n_runs - n_runs / 2;
    result->sm_mhz[pass] = state.sm_mhz;
    result->watts[pass] = state.watts;
    result->limit_watts = state.limit_watts;
    result->watts_are_mean = state.watts_are_mean;
    return MB_OK;
}

/* Time, clock and power after half a second of the pass: the card has then found its balance at the power limit. */
static mb_status load(const training *t, mb_device_work work, int pass, mb_bench_train_result *result) {
    mb_device *device = t->arrays.device;
    mb_device_state state;
    load_events e = {0};
    if (!device->state)
        return MB_OK;
    device->state(device, &state); /* the first call takes long */
    mb_status status = device->event_open(device, 1, &e.half);
    if (status == MB_OK)
        status = device->event_open(device, 0, &e.late);
    if (status == MB_OK)
        status = device->event_open(device, 1, &e.end);
    if (status == MB_OK)
        status = run_under_load(t, work, &e, pass, result);
    if (status != MB_OK)
        (void)device->synchronize(device, t->arrays.stream);
    device->event_close(device, e.half);
    device->event_close(device, e.late);
    device->event_close(device, e.end);
    return status;
}

static void rest(const mb_device *device) {
    const struct timespec time = {.tv_nsec = REST_US * 1000};
    if (device->n_sms > 0)
        nanosleep(&time, NULL);
}

static mb_status time_passes(training *t, mb_bench_train_result *result) {
    static const mb_device_work passes[MB_N_PASSES] = {
        [MB_PASS_INFERENCE] = inference,
        [MB_PASS_FORWARD] = forward,
        [MB_PASS_BOTH] = both,
        [MB_PASS_BACKWARD] = backward,
    };
    double *times = mb_malloc_array((size_t)result->n_repeats, sizeof *times);
    if (!times)
        return mb_fail(MB_ERR_MEMORY, "%d times could not be allocated", result->n_repeats);
    mb_status status = MB_OK;
    for (int pass = 0; pass < MB_N_PASSES && status == MB_OK; pass++) {
        rest(t->arrays.device);
        status = mb_device_time(t->arrays.device, passes[pass], t, result->n_repeats, times);
        if (status == MB_OK)
            result->us[pass] = mb_median(times, (size_t)result->n_repeats);
        if (status == MB_OK)
            status = load(t, passes[pass], pass, result);
    }
    mb_free(times);
    return status;
}

/* One step, so that what is compared and counted is there; the report, of plain top-k too. */
static mb_status run_once(training *t, mb_bench_train_result *result) {
    mb_device *device = t->arrays.device;
    MB_TRY(both(t, t->arrays.stream));
    MB_TRY(mb_moe_token_rounding(&t->rounding, t->workspace, t->workspace_bytes, t->arrays.stream));
    MB_TRY(device->download(device, &result->report, t->report, sizeof result->report, t->arrays.stream));
    return device->synchronize(device, t->arrays.stream);
}

static void count_flops(const mb_bench_train_args *args, mb_bench_train_result *result) {
    double matrices = mb_activation_is_gated(args->activation) ? 3 : 2;
    double row = 2 * matrices * args->hidden * args->intermediate;
    double processed = row * (double)result->report.processed;
    result->flops[MB_PASS_INFERENCE] = row * (double)args->n_tokens * args->top_k;
    result->flops[MB_PASS_FORWARD] = processed;
    result->flops[MB_PASS_BACKWARD] = 2 * processed;
    result->flops[MB_PASS_BOTH] = 3 * processed;
}

static mb_status measure(training *t, const mb_bench_train_args *args, const dtype_row *dtype,
                         mb_bench_train_result *result) {
    snprintf(result->device, sizeof result->device, "%s", t->arrays.device->name);
    int is_gpu = t->arrays.device->n_sms > 0;
    result->n_repeats = args->n_repeats > 0 ? args->n_repeats : is_gpu ? GPU_REPEATS : CPU_REPEATS;
    mb_status status = make(t, args, dtype->dtype);
    if (status != MB_OK)
        return mb_fail_context(status, "bench_train");
    MB_TRY(run_once(t, result));
    if (result->report.processed == 0)
        return mb_fail(
            MB_ERR_ARGUMENT,
            "token rounding to tiles of %d rows leaves no row, as no expert has enough tokens: give more "
            "tokens or smaller tiles",
            (int)args->tile_rows);
    count_flops(args, result);
    const mb_moe_forward_args *f = &t->layer.forward;
    result->saved_bytes = (double)f->n_tokens * f->top_k * (double)mb_dtype_row_bytes(f->dtype, f->w13.rows);
    result->limit = dtype->limit;
    result->is_right = 1;
    if (!args->skip_check)
        MB_TRY(mb_bench_check_training(&t->layer, &t->arrays, args->n_threads, result->checks,
                                       &result->n_checks));
    for (int i = 0; i < result->n_checks; i++)
        if (!(result->checks[i].mean_relative <= result->limit))
            result->is_right = 0;
    return time_passes(t, result);
}

mb_status mb_bench_train(const mb_bench_train_args *args, mb_bench_train_result *result) {
    MB_TRY(mb_need(args, "mb_bench_train: args"));
    MB_TRY(mb_need(result, "mb_bench_train: result"));
    MB_TRY(mb_need(args->dtype, "mb_bench_train: args->dtype"));
    *result = (mb_bench_train_result){0};
    const dtype_row *dtype = NULL;
    for (size_t i = 0; i < sizeof dtypes / sizeof dtypes[0]; i++)
        if (strcmp(args->dtype, dtypes[i].name) == 0)
            dtype = &dtypes[i];
    if (!dtype)
        return mb_fail(MB_ERR_ARGUMENT, "dtype \"%s\" is unknown", args->dtype);
    const mb_bench_sizes sizes = {.n_tokens = args->n_tokens,
                                  .hidden = args->hidden,
                                  .intermediate = args->intermediate,
                                  .n_experts = args->n_experts,
                                  .top_k = args->top_k,
                                  .n_repeats = args->n_repeats};
    MB_TRY(mb_bench_check_sizes(&sizes));
    training t = {0};
    mb_status status = mb_bench_arrays_open(&t.arrays, args->device, args->n_threads, args->seed);
    if (status == MB_OK)
        status = measure(&t, args, dtype, result);
    mb_bench_arrays_close(&t.arrays);
    return status;
}
