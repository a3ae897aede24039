/*
 * streams_check.cu - forwards that do not have the GPU to themselves.
 *
 *   streams_check [--bare]
 *
 * Two forwards on two streams of different priority, many times in a row, so that each gets a part of the
 * SMs only; then the same while another kernel holds half of the SMs, or all but one. Every forward must
 * end, and give the bits that it gives alone. Then the plan of many experts, whose CTAs wait for each other
 * too.
 *
 * A forward that waits for a CTA which never starts would wait for ever: a watchdog then ends the program
 * with a sentence and status 1. --bare makes fewer rounds (for compute-sanitizer).
 */
#include "check.cuh"
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

typedef struct forward {
    mb_moe_forward_args args;
    void *workspace, *alone; /* the output of the same call, with the GPU to itself */
    size_t workspace_bytes, out_bytes;
} forward;

static void make_forward(forward *f, int n_tokens, mb_weight w13, mb_weight w2, uint64_t seed) {
    memset(f, 0, sizeof(*f));
    mb_moe_forward_args *a = &f->args;
    mb_moe_route_args route = {};
    const size_t n_choices = (size_t)n_tokens * TOP_K;
    route.logits = random_values((int64_t)n_tokens * EXPERTS, MB_F32, seed, 1.0f);
    route.weights = (float *)allocate(sizeof(float) * n_choices);
    route.ids = (int32_t *)allocate(sizeof(int32_t) * n_choices);
    route.n_tokens = n_tokens;
    route.n_experts = EXPERTS;
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
    a->n_experts = a->n_local_experts = EXPERTS;
    a->dtype = MB_BF16;
    a->activation = MB_ACT_SWIGLU;
    f->out_bytes = (size_t)n_tokens * HIDDEN * mb_dtype_bytes(MB_BF16);
    a->out = allocate(f->out_bytes);
    f->alone = allocate(f->out_bytes);
    f->workspace_bytes = bytes_of(mb_moe_forward_sm90_workspace, a);
    f->workspace = allocate(f->workspace_bytes);
    MB(mb_moe_forward_sm90(a, f->workspace, f->workspace_bytes, NULL));
    CUDA(cudaDeviceSynchronize());
    CUDA(cudaMemcpy(f->alone, a->out, f->out_bytes, cudaMemcpyDeviceToDevice));
    CUDA(cudaFree((void *)route.logits));
}

static void free_forward(const forward *f) {
    const void *all[] = {f->args.x, f->args.weights, f->args.ids, f->args.out, f->alone, f->workspace};
    for (size_t i = 0; i < sizeof(all) / sizeof(all[0]); i++)
        CUDA(cudaFree((void *)all[i]));
}

/* n_rounds forwards on each stream, while a kernel holds n_held SMs. */
static void run_together(forward *forwards, cudaStream_t *streams, int n_rounds, holder *h, int n_held,
                         cudaStream_t holding) {
    alarm(WATCHDOG_SECONDS);
    for (int i = 0; i < N_STREAMS; i++)
        CUDA(cudaMemset(forwards[i].args.out, 0xff, forwards[i].out_bytes));
    CUDA(cudaDeviceSynchronize());
    if (n_held > 0)
        hold(h, n_held, holding);
    for (int round = 0; round < n_rounds; round++) {
        for (int i = 0; i < N_STREAMS; i++)
            MB(mb_moe_forward_sm90(&forwards[i].args, forwards[i].workspace, forwards[i].workspace_bytes,
                                   streams[i]));
        if (round % 20 == 19 || round == n_rounds - 1)
            for (int i = 0; i < N_STREAMS; i++)
                CUDA(cudaStreamSynchronize(streams[i]));
    }
    h->stop = 1;
    CUDA(cudaDeviceSynchronize());
    alarm(0);
    for (int i = 0; i < N_STREAMS; i++) {
        const double n =
            differences(forwards[i].alone, forwards[i].args.out, forwards[i].args.n_tokens * HIDDEN, MB_BF16);
        if (n > 0)
            complain(subject, "elements that differ from those of the forward alone", n);
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

int main(int n_arguments, char **arguments) {
    const int bare = n_arguments > 1 && strcmp(arguments[1], "--bare") == 0;
    const int tokens[] = {1, 64, 704, 4096};
    int device, n_processors;
    CUDA(cudaGetDevice(&device));
    CUDA(cudaDeviceGetAttribute(&n_processors, cudaDevAttrMultiProcessorCount, device));
    signal(SIGALRM, say_hang);
    cudaStream_t streams[N_STREAMS], holding;
    for (int i = 0; i < N_STREAMS; i++)
        CUDA(cudaStreamCreateWithPriority(&streams[i], cudaStreamNonBlocking, -5 * i));
    CUDA(cudaStreamCreateWithFlags(&holding, cudaStreamNonBlocking));
    holder *h;
    CUDA(cudaHostAlloc((void **)&h, sizeof(*h), cudaHostAllocMapped));

    for (int is_fp8 = 0; is_fp8 < 2; is_fp8++) {
        const mb_dtype weights = is_fp8 ? MB_F8_E4M3 : MB_BF16;
        const int32_t scale_rows = is_fp8 ? 128 : 0;
        const mb_weight w13 = random_weight(EXPERTS, 2 * INTERMEDIATE, HIDDEN, weights, scale_rows, 11);
        const mb_weight w2 = random_weight(EXPERTS, HIDDEN, INTERMEDIATE, weights, scale_rows, 12);
        for (size_t t = 0; t < sizeof(tokens) / sizeof(tokens[0]); t++) {
            forward forwards[N_STREAMS];
            for (int i = 0; i < N_STREAMS; i++)
                make_forward(&forwards[i], tokens[t], w13, w2, 100 * (uint64_t)i + t);
            /* A tile of many tokens takes two SMs side by side: it cannot start where a single one is
             * free. */
            const int held[] = {0, n_processors / 2, tokens[t] < 1000 ? n_processors - 1 : 0};
            const int n_rounds[] = {bare ? 2 : 200, bare ? 1 : 20, bare ? 1 : 2};
            for (int i = 0; i < 3; i++)
                if (i == 0 || held[i] > 0) {
                    snprintf(subject, sizeof(subject), "%s T=%d, two streams, %d of %d SMs held",
                             is_fp8 ? "fp8_block" : "bf16", tokens[t], held[i], n_processors);
                    run_together(forwards, streams, n_rounds[i], h, held[i], holding);
                }
            for (int i = 0; i < N_STREAMS; i++)
                free_forward(&forwards[i]);
        }
        const void *all[] = {w13.data, w13.scale, w2.data, w2.scale};
        for (size_t i = 0; i < sizeof(all) / sizeof(all[0]); i++)
            CUDA(cudaFree((void *)all[i]));
    }
    snprintf(subject, sizeof(subject), "plan of many experts, %d of %d SMs held", n_processors - 1,
             n_processors);
    run_plan(h, n_processors - 1, streams[0], holding);
    CUDA(cudaFreeHost(h));
    for (int i = 0; i < N_STREAMS; i++)
        CUDA(cudaStreamDestroy(streams[i]));
    CUDA(cudaStreamDestroy(holding));
    printf(wrong ? "WRONG: %d\n" : "all right\n", wrong);
    return wrong > 0;
}
