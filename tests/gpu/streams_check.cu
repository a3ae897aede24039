/*
 * streams_check.cu - forwards and backwards that do not have the GPU to themselves.
 *
 *   streams_check [--bare]
 *
 * Two forwards on two streams of different priority, many times in a row, so that each gets a part of the
 * SMs only; then the same while another kernel holds half of the SMs, or all but one. Every forward must
 * end, and give the bits that it gives alone. The same of two whole backwards of one layer. Then the plan of
 * many experts, whose CTAs wait for each other too.
 *
 * A call that waits for a CTA which never starts would wait for ever: a watchdog then ends the program with a
 * sentence and status 1. --bare makes fewer rounds (for compute-sanitizer).
 */
#include "check.cuh"
#include "ops/moe/backward/backward_sm90.h"
#include "ops/moe/moe_sm90.h"
#include "values.cuh"

#include <signal.h>
#include <unistd.h>

enum { HIDDEN = 2048, INTERMEDIATE = 768, EXPERTS = 128, TOP_K = 8, N_STREAMS = 2, WATCHDOG_SECONDS = 30 };

static char subject[96]; /* what runs now */

/* ---- The watchdog */

static void say_hang(int signal) {
    static const char text[] = " did not end: a CTA waits for one that is not running\n";
    (void)signal;
    if (write(STDOUT_FILENO, "WRONG ", 6) < 0 || write(STDOUT_FILENO, subject, strlen(subject)) < 0 ||
        write(STDOUT_FILENO, text, sizeof(text) - 1) < 0)
        _exit(2);
    _exit(1);
}

/* ---- A kernel that holds SMs: one CTA each, with all of its shared memory, until the host says stop */

enum { MAX_HELD = 1024 };

/* In host memory that the GPU sees. */
typedef struct holder {
    volatile int32_t stop, is_running[MAX_HELD];
} holder;

static const long long HOLD_LIMIT_CLOCKS = 100ll * 1000 * 1000 * 1000;

static __global__ void hold_an_sm(holder *h) {
    const long long begin = clock64();
    h->is_running[blockIdx.x] = 1;
    while (!h->stop && clock64() - begin < HOLD_LIMIT_CLOCKS)
        __nanosleep(1000);
}

/* Returns when all of them run. */
static void hold(holder *h, int n_held, cudaStream_t stream) {
    int device, shared_bytes;
    CUDA(cudaGetDevice(&device));
    CUDA(cudaDeviceGetAttribute(&shared_bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device));
    CUDA(cudaFuncSetAttribute(hold_an_sm, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes));
    memset((void *)h, 0, sizeof(*h));
    hold_an_sm<<<n_held, 1, shared_bytes, stream>>>(h);
    CUDA(cudaGetLastError());
    for (int i = 0; i < n_held; i++)
        while (!h->is_running[i])
            ;
}

/* ---- What runs beside each other */

typedef struct output {
    void *memory, *alone; /* alone: of the same call, with the GPU to itself */
    int64_t n;
    mb_dtype dtype;
} output;

enum { MOST_OUTPUTS = 6 };

/* A forward, or a backward of the forward's layer and tokens. */
typedef struct call {
    mb_moe_forward_args forward;
    mb_moe_backward_args backward;
    int is_backward;
    output outputs[MOST_OUTPUTS];
    int n_outputs;
    void *workspace;
    size_t workspace_bytes;
} call;

static size_t output_bytes(const output *o) {
    return (size_t)o->n * mb_dtype_bytes(o->dtype);
}

static void *add_output(call *c, int64_t n, mb_dtype dtype) {
    output *o = &c->outputs[c->n_outputs++];
    *o = {NULL, NULL, n, dtype};
    o->memory = allocate(output_bytes(o));
    o->alone = allocate(output_bytes(o));
    return o->memory;
}

static void enqueue(const call *c, cudaStream_t stream) {
    if (c->is_backward)
        MB(mb_moe_backward_sm90(&c->backward, c->workspace, c->workspace_bytes, stream));
    else
        MB(mb_moe_forward_sm90(&c->forward, c->workspace, c->workspace_bytes, stream));
}

/* The tokens, their choices and the layer. */
static void make_call(call *c, int n_tokens, mb_weight w13, mb_weight w2, uint64_t seed) {
    memset(c, 0, sizeof(*c));
    mb_moe_forward_args *a = &c->forward;
    mb_moe_route_args route = {};
    const int32_t n_experts = (int32_t)w13.count;
    const size_t n_choices = (size_t)n_tokens * TOP_K;
    route.logits = random_values((int64_t)n_tokens * n_experts, MB_F32, seed, 1.0f);
    route.weights = (float *)allocate(sizeof(float) * n_choices);
    route.ids = (int32_t *)allocate(sizeof(int32_t) * n_choices);
    route.n_tokens = n_tokens;
    route.n_experts = n_experts;
    route.top_k = TOP_K;
    route.renormalize = 1;
    MB(mb_moe_route_sm90(&route, NULL));
    a->x = random_values((int64_t)n_tokens * HIDDEN, MB_BF16, seed + 1, 1.0f);
    a->weights = route.weights;
    a->ids = route.ids;
    a->w13 = w13;
    a->w2 = w2;
    a->n_tokens = n_tokens;
    a->hidden = HIDDEN;
    a->intermediate = INTERMEDIATE;
    a->top_k = TOP_K;
    a->n_experts = a->n_local_experts = n_experts;
    a->dtype = MB_BF16;
    a->activation = MB_ACT_SWIGLU;
    CUDA(cudaDeviceSynchronize());
    CUDA(cudaFree((void *)route.logits));
}

/* With this every kernel is loaded, too: loading one may wait for the kernel that holds SMs. */
static void run_alone(call *c) {
    c->workspace = allocate(c->workspace_bytes);
    enqueue(c, NULL);
    CUDA(cudaDeviceSynchronize());
    for (int i = 0; i < c->n_outputs; i++)
        CUDA(cudaMemcpy(c->outputs[i].alone, c->outputs[i].memory, output_bytes(&c->outputs[i]),
                        cudaMemcpyDeviceToDevice));
}

static void make_forward(call *c, int n_tokens, mb_weight w13, mb_weight w2, uint64_t seed) {
    make_call(c, n_tokens, w13, w2, seed);
    c->forward.out = add_output(c, (int64_t)n_tokens * HIDDEN, MB_BF16);
    c->workspace_bytes = bytes_of(mb_moe_forward_sm90_workspace, &c->forward);
    run_alone(c);
}

/* All gradients; p is computed again, so every step of the backward runs. */
static void make_backward(call *c, int n_tokens, mb_weight w13, mb_weight w2, uint64_t seed) {
    make_call(c, n_tokens, w13, w2, seed);
    c->is_backward = 1;
    const mb_moe_forward_args *f = &c->forward;
    mb_moe_backward_args *a = &c->backward;
    a->x = f->x;
    a->weights = f->weights;
    a->ids = f->ids;
    a->w13 = w13;
    a->w2 = w2;
    a->bias13 = random_values(w13.count * w13.rows, MB_BF16, seed + 2, 0.5f);
    a->bias2 = random_values(w2.count * w2.rows, MB_BF16, seed + 3, 0.5f);
    a->d_out = random_values((int64_t)n_tokens * HIDDEN, MB_BF16, seed + 4, 1.0f);
    a->dx = add_output(c, (int64_t)n_tokens * HIDDEN, MB_BF16);
    a->dweights = (float *)add_output(c, (int64_t)n_tokens * TOP_K, MB_F32);
    a->dw13 = add_output(c, w13.count * w13.rows * w13.cols, MB_F32);
    a->dw2 = add_output(c, w2.count * w2.rows * w2.cols, MB_F32);
    a->dbias13 = add_output(c, w13.count * w13.rows, MB_F32);
    a->dbias2 = add_output(c, w2.count * w2.rows, MB_F32);
    a->n_tokens = f->n_tokens;
    a->hidden = f->hidden;
    a->intermediate = f->intermediate;
    a->top_k = f->top_k;
    a->n_experts = a->n_local_experts = f->n_experts;
    a->dtype = f->dtype;
    a->grad_dtype = MB_F32;
    a->activation = f->activation;
    c->workspace_bytes = bytes_of(mb_moe_backward_sm90_workspace, a);
    run_alone(c);
}

static void free_call(const call *c) {
    const void *all[] = {c->forward.x,      c->forward.weights, c->forward.ids, c->backward.bias13,
                         c->backward.bias2, c->backward.d_out,  c->workspace};
    for (const void *one : all)
        CUDA(cudaFree((void *)one));
    for (int i = 0; i < c->n_outputs; i++) {
        CUDA(cudaFree(c->outputs[i].memory));
        CUDA(cudaFree(c->outputs[i].alone));
    }
}

/* n_rounds calls on each stream, while a kernel holds n_held SMs. */
static void run_together(const call *calls, cudaStream_t *streams, int n_rounds, holder *h, int n_held,
                         cudaStream_t holding) {
    alarm(WATCHDOG_SECONDS);
    for (int i = 0; i < N_STREAMS; i++)
        for (int o = 0; o < calls[i].n_outputs; o++)
            CUDA(cudaMemset(calls[i].outputs[o].memory, 0xff, output_bytes(&calls[i].outputs[o])));
    CUDA(cudaDeviceSynchronize());
    if (n_held > 0)
        hold(h, n_held, holding);
    for (int round = 0; round < n_rounds; round++) {
        for (int i = 0; i < N_STREAMS; i++)
            enqueue(&calls[i], streams[i]);
        if (round % 20 == 19 || round == n_rounds - 1)
            for (int i = 0; i < N_STREAMS; i++)
                CUDA(cudaStreamSynchronize(streams[i]));
    }
    h->stop = 1;
    CUDA(cudaDeviceSynchronize());
    alarm(0);
    for (int i = 0; i < N_STREAMS; i++)
        for (int o = 0; o < calls[i].n_outputs; o++) {
            const output *of = &calls[i].outputs[o];
            const double n = differences(of->alone, of->memory, of->n, of->dtype);
            if (n > 0)
                complain(subject, "elements that differ from those of the call alone", n);
        }
    printf("%s: done\n", subject);
    fflush(stdout);
}

/* ---- The plan of many experts, whose CTAs wait for each other */

static void run_plan(holder *h, int n_held, cudaStream_t stream, cudaStream_t holding) {
    enum { N_TOKENS = 40000, N_EXPERTS = 60000 };
    int32_t *ids = (int32_t *)host_allocate(sizeof(int32_t) * N_TOKENS);
    for (int i = 0; i < N_TOKENS; i++)
        ids[i] = (int32_t)((i * 7919ll) % N_EXPERTS);
    mb_moe_plan_args plan = {};
    int32_t *on_device = (int32_t *)allocate(sizeof(int32_t) * N_TOKENS);
    CUDA(cudaMemcpy(on_device, ids, sizeof(int32_t) * N_TOKENS, cudaMemcpyHostToDevice));
    plan.ids = on_device;
    plan.n_tokens = N_TOKENS;
    plan.top_k = 1;
    plan.n_experts = plan.n_local_experts = N_EXPERTS;
    plan.offsets = (int32_t *)allocate(sizeof(int32_t) * (N_EXPERTS + 1));
    plan.row_token = (int32_t *)allocate(sizeof(int32_t) * N_TOKENS);
    plan.token_row = (int32_t *)allocate(sizeof(int32_t) * N_TOKENS);
    const size_t workspace_bytes = bytes_of(mb_moe_plan_sm90_workspace, &plan);
    void *workspace = allocate(workspace_bytes);
    int32_t *offsets[2];
    for (int i = 0; i < 2; i++) { /* alone, then beside the kernel that holds SMs */
        alarm(WATCHDOG_SECONDS);
        CUDA(cudaMemset(plan.offsets, 0xff, sizeof(int32_t) * (N_EXPERTS + 1)));
        CUDA(cudaDeviceSynchronize());
        if (i == 1)
            hold(h, n_held, holding);
        MB(mb_moe_plan_sm90(&plan, workspace, workspace_bytes, stream));
        CUDA(cudaStreamSynchronize(stream));
        h->stop = 1;
        CUDA(cudaDeviceSynchronize());
        alarm(0);
        offsets[i] = (int32_t *)download(plan.offsets, sizeof(int32_t) * (N_EXPERTS + 1));
    }
    if (memcmp(offsets[0], offsets[1], sizeof(int32_t) * (N_EXPERTS + 1)) != 0)
        complain(subject, "offsets that differ from those of the plan alone", 0);
    printf("%s: done\n", subject);
    const void *all[] = {on_device, plan.offsets, plan.row_token, plan.token_row, workspace};
    for (size_t i = 0; i < sizeof(all) / sizeof(all[0]); i++)
        CUDA(cudaFree((void *)all[i]));
    free(offsets[0]);
    free(offsets[1]);
    free(ids);
}

/* What the program runs on. */
typedef struct place {
    cudaStream_t streams[N_STREAMS], holding;
    holder *h;
    int n_processors, bare;
} place;

static void free_weights(const mb_weight *w13, const mb_weight *w2) {
    const void *all[] = {w13->data, w13->scale, w2->data, w2->scale};
    for (const void *one : all)
        CUDA(cudaFree((void *)one));
}

static void check_forwards(place *at, mb_dtype weights) {
    const int tokens[] = {1, 64, 704, 4096};
    const int is_fp8 = weights == MB_F8_E4M3;
    const int32_t scale_rows = is_fp8 ? 128 : 0;
    const mb_weight w13 = random_weight(EXPERTS, 2 * INTERMEDIATE, HIDDEN, weights, scale_rows, 11);
    const mb_weight w2 = random_weight(EXPERTS, HIDDEN, INTERMEDIATE, weights, scale_rows, 12);
    for (size_t t = 0; t < sizeof(tokens) / sizeof(tokens[0]); t++) {
        call calls[N_STREAMS];
        for (int i = 0; i < N_STREAMS; i++)
            make_forward(&calls[i], tokens[t], w13, w2, 100 * (uint64_t)i + t);
        /* A tile of many tokens takes two SMs side by side: it cannot start where a single one is free. */
        const int held[] = {0, at->n_processors / 2, tokens[t] < 1000 ? at->n_processors - 1 : 0};
        const int n_rounds[] = {at->bare ? 2 : 200, at->bare ? 1 : 20, at->bare ? 1 : 2};
        for (int i = 0; i < 3; i++)
            if (i == 0 || held[i] > 0) {
                snprintf(subject, sizeof(subject), "%s T=%d, two streams, %d of %d SMs held",
                         is_fp8 ? "fp8_block" : "bf16", tokens[t], held[i], at->n_processors);
                run_together(calls, at->streams, n_rounds[i], at->h, held[i], at->holding);
            }
        for (int i = 0; i < N_STREAMS; i++)
            free_call(&calls[i]);
    }
    free_weights(&w13, &w2);
}

/* Every GEMM of a backward takes two SMs side by side, whatever the number of tokens. A round takes some
 * milliseconds. */
static void check_backwards(place *at) {
    enum { BACKWARD_EXPERTS = 32 }; /* the gradients of all calls, and those alone, are 2.4 GB */
    const int tokens[] = {64, 4096};
    const mb_weight w13 = random_weight(BACKWARD_EXPERTS, 2 * INTERMEDIATE, HIDDEN, MB_BF16, 0, 13);
    const mb_weight w2 = random_weight(BACKWARD_EXPERTS, HIDDEN, INTERMEDIATE, MB_BF16, 0, 14);
    for (size_t t = 0; t < sizeof(tokens) / sizeof(tokens[0]); t++) {
        call calls[N_STREAMS];
        for (int i = 0; i < N_STREAMS; i++)
            make_backward(&calls[i], tokens[t], w13, w2, 1000 + 100 * (uint64_t)i + t);
        const int held[] = {0, at->n_processors / 2}, n_rounds[] = {at->bare ? 2 : 40, at->bare ? 1 : 10};
        for (int i = 0; i < 2; i++) {
            snprintf(subject, sizeof(subject), "backward T=%d, two streams, %d of %d SMs held", tokens[t],
                     held[i], at->n_processors);
            run_together(calls, at->streams, n_rounds[i], at->h, held[i], at->holding);
        }
        for (int i = 0; i < N_STREAMS; i++)
            free_call(&calls[i]);
    }
    free_weights(&w13, &w2);
}

int main(int n_arguments, char **arguments) {
    place at = {};
    at.bare = n_arguments > 1 && strcmp(arguments[1], "--bare") == 0;
    int device;
    CUDA(cudaGetDevice(&device));
    CUDA(cudaDeviceGetAttribute(&at.n_processors, cudaDevAttrMultiProcessorCount, device));
    signal(SIGALRM, say_hang);
    for (int i = 0; i < N_STREAMS; i++)
        CUDA(cudaStreamCreateWithPriority(&at.streams[i], cudaStreamNonBlocking, -5 * i));
    CUDA(cudaStreamCreateWithFlags(&at.holding, cudaStreamNonBlocking));
    CUDA(cudaHostAlloc((void **)&at.h, sizeof(*at.h), cudaHostAllocMapped));
    check_forwards(&at, MB_BF16);
    check_forwards(&at, MB_F8_E4M3);
    check_backwards(&at);
    snprintf(subject, sizeof(subject), "plan of many experts, %d of %d SMs held", at.n_processors - 1,
             at.n_processors);
    run_plan(at.h, at.n_processors - 1, at.streams[0], at.holding);
    CUDA(cudaFreeHost(at.h));
    for (int i = 0; i < N_STREAMS; i++)
        CUDA(cudaStreamDestroy(at.streams[i]));
    CUDA(cudaStreamDestroy(at.holding));
    printf(wrong ? "WRONG: %d\n" : "all right\n", wrong);
    return wrong > 0;
}
