/*
 * api_check.cu - the public operators find the GPU by their pointers: each gives on the GPU what it gives
 * on the CPU, can be captured in a graph, and leaves the caller's CUDA state as it was. One small layer in
 * bf16, its experts and its attention; what the kernels compute in other shapes and dtypes is the other
 * checks' business. No options.
 */
#include "check.cuh"
#include "moebius/layers.h"

#include <cuda_bf16.h>

enum { T = 37, H = 256, I = 128, E = 16, K = 4, R = T * K, MAX_TILES = R + E };

static void must(const char *what, int is_so) {
    if (!is_so)
        complain("api", what, 0);
}

/* One layer's memory, in one place. */
typedef struct memory {
    __nv_bfloat16 *x, *router, *w13, *w2, *h, *y, *experts_y, *summed, *out;
    float *logits, *weights;
    int32_t *ids, *offsets, *row_token, *token_row, *n_tiles;
    mb_moe_token_tile *tiles;
    char *workspace;
} memory;

enum { WORKSPACE_BYTES = 1 << 23, ALL_BYTES = 1 << 25 };

/* Cuts the pieces, the random ones first, from one block. */
static memory cut(char *block) {
    memory m;
    char *at = block;
#define CUT(field, n)                \
    m.field = (decltype(m.field))at; \
    at += ((n) * sizeof *m.field + 255) / 256 * 256
/* Aligned to its element and no more, as a slice of rows may be. */
#define CUT_VECTOR(field, n) \
    CUT(field, (n) + 1);     \
    m.field++
    CUT(x, T * H);
    CUT(router, E * H);
    CUT(w13, E * 2 * I * H);
    CUT(w2, E * H * I);
    CUT(h, R * I);
    CUT(y, R * H);
    CUT(experts_y, R * H);
    CUT(summed, T * H);
    CUT(out, T * H);
    CUT_VECTOR(logits, T * E);
    CUT_VECTOR(weights, R);
    CUT_VECTOR(ids, R);
    CUT_VECTOR(offsets, E + 1);
    CUT_VECTOR(row_token, R);
    CUT_VECTOR(token_row, R);
    CUT_VECTOR(n_tiles, 1);
    CUT(tiles, MAX_TILES);
    CUT(workspace, WORKSPACE_BYTES);
#undef CUT_VECTOR
#undef CUT
    must("the layer fits its block", at <= block + ALL_BYTES);
    return m;
}

static mb_moe_route_args route_args(const memory *m) {
    mb_moe_route_args args = {};
    args.logits = m->logits;
    args.weights = m->weights;
    args.ids = m->ids;
    args.n_tokens = T;
    args.n_experts = E;
    args.top_k = K;
    args.renormalize = 1;
    return args;
}

static mb_moe_forward_args forward_args(const memory *m) {
    mb_moe_forward_args args = {};
    args.x = m->x;
    args.weights = m->weights;
    args.ids = m->ids;
    args.w13.data = m->w13;
    args.w2.data = m->w2;
    args.w13.count = args.w2.count = args.n_experts = args.n_local_experts = E;
    args.w13.rows = 2 * I;
    args.w13.cols = args.w2.rows = args.hidden = H;
    args.w2.cols = args.intermediate = I;
    args.w13.dtype = args.w2.dtype = args.dtype = MB_BF16;
    args.out = m->out;
    args.n_tokens = T;
    args.top_k = K;
    return args;
}

/* Everything, operator by operator, then the layer in one call. */
static void run(const memory *m, cudaStream_t stream) {
    mb_moe_router_gemm_args router = {};
    router.x = m->x;
    router.weight = m->router;
    router.logits = m->logits;
    router.n_tokens = T;
    router.hidden = H;
    router.n_experts = E;
    router.dtype = router.weight_dtype = MB_BF16;
    must("workspace of router", bytes_of(mb_moe_router_gemm_workspace, &router) <= WORKSPACE_BYTES);
    MB(mb_moe_router_gemm(&router, m->workspace, WORKSPACE_BYTES, stream));
    mb_moe_route_args route = route_args(m);
    MB(mb_moe_route(&route, stream));

    mb_moe_plan_args plan = {};
    plan.ids = m->ids;
    plan.offsets = m->offsets;
    plan.row_token = m->row_token;
    plan.token_row = m->token_row;
    plan.n_tokens = T;
    plan.top_k = K;
    plan.n_experts = plan.n_local_experts = E;
    plan.tiles = m->tiles;
    plan.n_tiles = m->n_tiles;
    plan.tile_rows = 16;
    plan.tile_step = 8;
    must("workspace of plan", bytes_of(mb_moe_plan_workspace, &plan) <= WORKSPACE_BYTES);
    MB(mb_moe_plan(&plan, m->workspace, WORKSPACE_BYTES, stream));

    mb_moe_forward_args forward = forward_args(m);
    mb_grouped_gemm_args gemm = {};
    gemm.a = m->x;
    gemm.row_index = m->row_token;
    gemm.offsets = m->offsets;
    gemm.b = forward.w13;
    gemm.out = m->h;
    gemm.n_rows = R;
    gemm.dtype = gemm.out_dtype = MB_BF16;
    must("workspace of gemm", bytes_of(mb_grouped_gemm_workspace, &gemm) <= WORKSPACE_BYTES);
    MB(mb_grouped_gemm(&gemm, m->workspace, WORKSPACE_BYTES, stream));
    gemm.a = m->h;
    gemm.row_index = NULL;
    gemm.b = forward.w2;
    gemm.out = m->y;
    gemm.activation = MB_ACT_NONE;
    MB(mb_grouped_gemm(&gemm, m->workspace, WORKSPACE_BYTES, stream));

    mb_moe_experts_args experts = {};
    experts.x = m->x;
    experts.row_index = m->row_token;
    experts.offsets = m->offsets;
    experts.w13 = forward.w13;
    experts.w2 = forward.w2;
    experts.y = m->experts_y;
    experts.n_tokens = T;
    experts.n_rows = R;
    experts.hidden = H;
    experts.intermediate = I;
    experts.n_local_experts = E;
    experts.dtype = MB_BF16;
    must("workspace of experts", bytes_of(mb_moe_experts_workspace, &experts) <= WORKSPACE_BYTES);
    MB(mb_moe_experts(&experts, m->workspace, WORKSPACE_BYTES, stream));

    mb_moe_reduce_args reduce = {};
    reduce.y = m->y;
    reduce.weights = m->weights;
    reduce.token_row = m->token_row;
    reduce.out = m->summed;
    reduce.n_tokens = T;
    reduce.hidden = H;
    reduce.top_k = K;
    reduce.dtype = reduce.out_dtype = MB_BF16;
    MB(mb_moe_reduce(&reduce, stream));

    forward.route = &route;
    must("workspace of forward", bytes_of(mb_moe_forward_workspace, &forward) <= WORKSPACE_BYTES);
    MB(mb_moe_forward(&forward, m->workspace, WORKSPACE_BYTES, stream));
}

static void compare(const char *what, const __nv_bfloat16 *a, const __nv_bfloat16 *b, int n) {
    double xx = 0, xy = 0, yy = 0;
    for (int i = 0; i < n; i++) {
        double x = __bfloat162float(a[i]), y = __bfloat162float(b[i]);
        xx += x * x;
        xy += x * y;
        yy += y * y;
    }
    double diff = 1 - 2 * xy / (xx + yy);
    printf("%-8s calc_diff %.2e\n", what, diff);
    if (!(xx > 0 && diff <= 1e-5))
        complain("api", what, diff);
}

static void compare_with_cpu(const memory *got, const memory *cpu) {
    float worst = 0;
    for (int i = 0; i < T * E; i++) {
        float diff = fabsf(got->logits[i] - cpu->logits[i]);
        worst = diff <= worst ? worst : diff; /* NaN stays */
    }
    if (!(worst < 1e-5f))
        complain("api", "logits", worst);
    must("ids", memcmp(got->ids, cpu->ids, R * sizeof *got->ids) == 0);
    must("offsets", memcmp(got->offsets, cpu->offsets, (E + 1) * sizeof *got->offsets) == 0);
    must("row_token", memcmp(got->row_token, cpu->row_token, R * sizeof *got->row_token) == 0);
    must("token_row", memcmp(got->token_row, cpu->token_row, R * sizeof *got->token_row) == 0);
    must("n_tiles", *got->n_tiles == *cpu->n_tiles);
    for (int i = 0; i < *cpu->n_tiles; i++)
        must("tile", memcmp(&got->tiles[i], &cpu->tiles[i], 3 * sizeof(int32_t)) == 0);
    compare("h", got->h, cpu->h, R * I);
    compare("y", got->y, cpu->y, R * H);
    must("the experts in one call and in pieces, bit for bit",
         memcmp(got->experts_y, got->y, R * H * sizeof *got->y) == 0);
    compare("summed", got->summed, cpu->summed, T * H);
    /* The CPU's experts and forward round gate and up, as Hugging Face does; its pieces
     * do not, as the GPU's. */
    compare("out", got->out, cpu->summed, T * H);
    must("the layer in one call and in pieces, bit for bit",
         memcmp(got->out, got->summed, T * H * sizeof *got->out) == 0);
}

/* All of it in a graph, captured in the strictest mode; a CPU call between does not disturb it. */
static void check_graph(const memory *gpu, const memory *cpu, const __nv_bfloat16 *expected,
                        cudaStream_t stream) {
    static __nv_bfloat16 again[T * H];
    cudaGraph_t graph;
    cudaGraphExec_t replay;
    CUDA(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal));
    run(gpu, stream);
    run(cpu, NULL);
    CUDA(cudaStreamEndCapture(stream, &graph));
    CUDA(cudaGraphInstantiate(&replay, graph, 0));
    CUDA(cudaMemset(gpu->out, 0xff, sizeof again));
    CUDA(cudaDeviceSynchronize());
    CUDA(cudaGraphLaunch(replay, stream));
    CUDA(cudaStreamSynchronize(stream));
    CUDA(cudaMemcpy(again, gpu->out, sizeof again, cudaMemcpyDeviceToHost));
    must("a graph's replay", memcmp(again, expected, sizeof again) == 0);
    CUDA(cudaGraphExecDestroy(replay));
    CUDA(cudaGraphDestroy(graph));
}

/* The first pointer decides: pinned memory is the CPU's, managed memory the GPU's. */
static void check_places(const char *host, const memory *cpu, const memory *got, cudaStream_t stream) {
    const size_t out_bytes = T * H * sizeof *cpu->out;
    char *pinned, *managed;
    CUDA(cudaMallocHost((void **)&pinned, ALL_BYTES));
    CUDA(cudaMallocManaged((void **)&managed, ALL_BYTES));
    memcpy(pinned, host, ALL_BYTES);
    memcpy(managed, host, ALL_BYTES);
    memory in_pinned = cut(pinned), in_managed = cut(managed);
    memset((void *)in_pinned.out, 0xff, out_bytes);
    memset((void *)in_managed.out, 0xff, out_bytes);
    run(&in_pinned, NULL);
    must("pinned memory is the CPU's", memcmp(in_pinned.out, cpu->out, out_bytes) == 0);
    run(&in_managed, stream);
    CUDA(cudaStreamSynchronize(stream));
    must("managed memory is the GPU's", memcmp(in_managed.out, got->out, out_bytes) == 0);
    CUDA(cudaFreeHost(pinned));
    CUDA(cudaFree(managed));
}

/* Nothing to do, and what only this device refuses. */
static void check_refusals(const memory *gpu, cudaStream_t stream) {
    mb_moe_forward_args none = forward_args(gpu), odd = forward_args(gpu), whole = forward_args(gpu);
    none.n_tokens = 0;
    none.x = none.out = NULL;
    none.weights = NULL;
    none.ids = NULL;
    expect("api", "no tokens", mb_moe_forward(&none, NULL, 0, stream), MB_OK);
    expect("api", "workspace at 16 bytes",
           mb_moe_forward(&none, gpu->workspace + 16, WORKSPACE_BYTES, stream), MB_ERR_ARGUMENT);
    odd.x = gpu->x + 1;
    expect("api", "x at 2 bytes", mb_moe_forward(&odd, gpu->workspace, WORKSPACE_BYTES, stream),
           MB_ERR_ARGUMENT);
    must("the sentence says aligned", strstr(mb_last_error(), "aligned") != NULL);
    const size_t needed = bytes_of(mb_moe_forward_workspace, &whole); /* of so few tokens one tile's needs */
    expect("api", "workspace too small", mb_moe_forward(&whole, gpu->workspace, needed - 1, stream),
           MB_ERR_CAPACITY);
}

/* ---- layers.h: norm, qkv, attention over a paged cache, o, then sampling ------------------------------- */

/* Two sequences of 70 and 8 positions, of which the last 3 and 8 are new. Their blocks are 2, 0 and 1. */
enum {
    AT = 11,
    AH = 256,
    HQ = 8,
    HKV = 2,
    D = 64,
    QKV = (HQ + 2 * HKV) * D,
    S = 2,
    BLOCKS = 3,
    MAX_BLOCKS = 2
};
enum { CACHE = BLOCKS * HKV * MB_KV_BLOCK * D, COUNTERS = 64, V = 1000, ROWS = 3, IDS = 6, N_PROMPT = 3 };

typedef struct attention_memory {
    __nv_bfloat16 *x, *norm, *w_qkv, *head_norm, *w_o, *k, *v, *k_again, *v_again;
    float *inv_freq, *logits;
    int32_t *positions, *slots, *q_start, *kv_len, *span_start, *block_table, *tokens, *counters;
    mb_sample_row *rows;
    __nv_bfloat16 *h, *qkv, *q, *attended, *attended_again, *out; /* from here on: what is computed */
    float *logprobs, *all_logprobs;
    int32_t *ids, *seen;
    char *workspace;
} attention_memory;

static attention_memory cut_attention(char *block) {
    attention_memory m;
    char *at = block;
#define CUT(field, n)                \
    m.field = (decltype(m.field))at; \
    at += ((n) * sizeof *m.field + 255) / 256 * 256
    CUT(x, AT * AH);
    CUT(norm, AH);
    CUT(w_qkv, QKV * AH);
    CUT(head_norm, D);
    CUT(w_o, AH * HQ * D);
    CUT(k, CACHE);
    CUT(v, CACHE);
    CUT(k_again, CACHE);
    CUT(v_again, CACHE);
    CUT(inv_freq, D / 2);
    CUT(logits, ROWS * V);
    CUT(positions, AT);
    CUT(slots, AT);
    CUT(q_start, S + 1);
    CUT(kv_len, S);
    CUT(span_start, S + 1);
    CUT(block_table, S * MAX_BLOCKS);
    CUT(tokens, IDS);
    CUT(counters, COUNTERS);
    CUT(rows, ROWS);
    CUT(h, AT * AH);
    CUT(qkv, AT * QKV);
    CUT(q, AT * HQ * D);
    CUT(attended, AT * HQ * D);
    CUT(attended_again, AT * HQ * D);
    CUT(out, AT * AH);
    CUT(logprobs, ROWS);
    CUT(all_logprobs, ROWS * V);
    CUT(ids, ROWS);
    CUT(seen, V);
    CUT(workspace, WORKSPACE_BYTES);
#undef CUT
    must("the attention fits its block", at <= block + ALL_BYTES);
    return m;
}

/* On the host: `seen` is where the rows will be read. */
static void fill_attention(const attention_memory *m, int32_t *seen) {
    static const int32_t q_start[S + 1] = {0, 3, AT}, kv_len[S] = {70, 8}, span_start[S + 1] = {0, 1, 2};
    static const int32_t block_table[S * MAX_BLOCKS] = {2, 0, 1, -1}, tokens[IDS] = {3, 3, 5, 3, 7, 7};
    srand(2);
    for (__nv_bfloat16 *p = m->x; p < m->k_again; p++)
        *p = __float2bfloat16((float)rand() / (float)RAND_MAX - 0.5f);
    memcpy(m->k_again, m->k, CACHE * sizeof *m->k);
    memcpy(m->v_again, m->v, CACHE * sizeof *m->v);
    for (int i = 0; i < D / 2; i++)
        m->inv_freq[i] = powf(10000, -2.0f * (float)i / D);
    for (int i = 0; i < ROWS * V; i++)
        m->logits[i] = 8 * (float)rand() / (float)RAND_MAX;
    for (int s = 0; s < S; s++)
        for (int t = q_start[s]; t < q_start[s + 1]; t++) {
            m->positions[t] = kv_len[s] - q_start[s + 1] + t;
            m->slots[t] = block_table[s * MAX_BLOCKS + m->positions[t] / MB_KV_BLOCK] * MB_KV_BLOCK +
                          m->positions[t] % MB_KV_BLOCK;
        }
    memcpy(m->q_start, q_start, sizeof q_start);
    memcpy(m->kv_len, kv_len, sizeof kv_len);
    memcpy(m->span_start, span_start, sizeof span_start);
    memcpy(m->block_table, block_table, sizeof block_table);
    memcpy(m->tokens, tokens, sizeof tokens);
    memset(m->counters, 0, COUNTERS * sizeof *m->counters);
    for (int r = 0; r < ROWS; r++) { /* greedy, drawn, drawn with penalties */
        mb_sample_row row = {};
        row.temperature = r > 0;
        row.top_p = r > 0 ? 0.9f : 1;
        row.top_k = r == 1 ? 50 : 0;
        row.repetition_penalty = 1.1f;
        row.frequency_penalty = 0.5f;
        row.seed = 7;
        row.position = (uint64_t)r;
        row.seen = r == 2 ? seen : NULL;
        m->rows[r] = row;
    }
}

static mb_weight bf16_matrix(const void *data, int64_t rows, int64_t cols) {
    mb_weight w = {};
    w.data = data;
    w.count = 1;
    w.rows = rows;
    w.cols = cols;
    w.dtype = MB_BF16;
    return w;
}

static mb_attention_args attention_args(const attention_memory *m) {
    mb_attention_args args = {};
    args.q = m->q;
    args.k_cache = m->k;
    args.v_cache = m->v;
    args.q_start = m->q_start;
    args.kv_len = m->kv_len;
    args.block_table = m->block_table;
    args.out = m->attended;
    args.n_tokens = AT;
    args.n_sequences = S;
    args.max_blocks = MAX_BLOCKS;
    args.max_q_len = 8;
    args.max_kv_len = 70;
    args.n_heads = HQ;
    args.n_kv_heads = HKV;
    args.head_dim = D;
    args.scale = 0.125f;
    args.dtype = args.cache_dtype = MB_BF16;
    return args;
}

static void run_gemm(const attention_memory *m, const void *x, mb_weight weight, const void *residual,
                     void *out, cudaStream_t stream) {
    mb_gemm_args gemm = {};
    gemm.x = x;
    gemm.weight = weight;
    gemm.residual = residual;
    gemm.out = out;
    gemm.n_tokens = AT;
    gemm.dtype = gemm.out_dtype = MB_BF16;
    must("workspace of dense layer", bytes_of(mb_gemm_workspace, &gemm) <= WORKSPACE_BYTES);
    MB(mb_gemm(&gemm, m->workspace, WORKSPACE_BYTES, stream));
}

static void run_attention(const attention_memory *m, cudaStream_t stream) {
    mb_rms_norm_args norm = {};
    norm.x = m->x;
    norm.weight = bf16_matrix(m->norm, 1, AH);
    norm.out = m->h;
    norm.n_rows = AT;
    norm.hidden = AH;
    norm.eps = 1e-6f;
    norm.dtype = MB_BF16;
    MB(mb_rms_norm(&norm, stream));
    run_gemm(m, m->h, bf16_matrix(m->w_qkv, QKV, AH), NULL, m->qkv, stream);

    mb_qk_norm_rope_store_args store = {};
    store.qkv = m->qkv;
    store.q_norm = store.k_norm = bf16_matrix(m->head_norm, 1, D);
    store.positions = m->positions;
    store.slots = m->slots;
    store.inv_freq = m->inv_freq;
    store.q = m->q;
    store.k_cache = m->k;
    store.v_cache = m->v;
    store.n_tokens = AT;
    store.n_heads = HQ;
    store.n_kv_heads = HKV;
    store.head_dim = D;
    store.eps = 1e-6f;
    store.rope_scale = 1;
    store.dtype = store.cache_dtype = MB_BF16;
    MB(mb_qk_norm_rope_store(&store, stream));
    const mb_attention_args attend = attention_args(m);
    must("workspace of attention", bytes_of(mb_attention_workspace, &attend) <= WORKSPACE_BYTES);
    MB(mb_attention(&attend, m->workspace, WORKSPACE_BYTES, stream));

    mb_decode_attention_args both = {};
    both.qkv = m->qkv;
    both.q_norm = store.q_norm;
    both.k_norm = store.k_norm;
    both.positions = m->positions;
    both.slots = m->slots;
    both.inv_freq = m->inv_freq;
    both.k_cache = m->k_again;
    both.v_cache = m->v_again;
    both.q_start = m->q_start;
    both.kv_len = m->kv_len;
    both.span_start = m->span_start;
    both.block_table = m->block_table;
    both.counters = m->counters;
    both.out = m->attended_again;
    both.n_tokens = AT;
    both.n_sequences = S;
    both.max_blocks = MAX_BLOCKS;
    both.max_q_len = 8;
    both.max_kv_len = 70;
    both.n_heads = HQ;
    both.n_kv_heads = HKV;
    both.head_dim = D;
    both.eps = 1e-6f;
    both.rope_scale = 1;
    both.scale = attend.scale;
    both.dtype = both.cache_dtype = MB_BF16;
    must("counters", mb_decode_attention_counters(&both) <= COUNTERS);
    must("workspace of decode", bytes_of(mb_decode_attention_workspace, &both) <= WORKSPACE_BYTES);
    MB(mb_decode_attention(&both, m->workspace, WORKSPACE_BYTES, stream));
    run_gemm(m, m->attended, bf16_matrix(m->w_o, AH, HQ * D), m->x, m->out, stream);

    mb_count_tokens_args count = {m->tokens, m->seen, IDS, N_PROMPT, V};
    MB(mb_count_tokens(&count, stream));
    mb_sample_args sample = {m->logits, m->rows, m->ids, m->logprobs, ROWS, V};
    must("workspace of sample", bytes_of(mb_sample_workspace, &sample) <= WORKSPACE_BYTES);
    MB(mb_sample(&sample, m->workspace, WORKSPACE_BYTES, stream));
    mb_log_softmax_args softmax = {m->logits, m->all_logprobs, ROWS, V};
    MB(mb_log_softmax(&softmax, stream));
}

static void compare_attention(const attention_memory *got, const attention_memory *cpu) {
    compare("norm", got->h, cpu->h, AT * AH);
    compare("qkv", got->qkv, cpu->qkv, AT * QKV);
    compare("q", got->q, cpu->q, AT * HQ * D);
    compare("k", got->k, cpu->k, CACHE);
    compare("v", got->v, cpu->v, CACHE);
    compare("attended", got->attended, cpu->attended, AT * HQ * D);
    compare("o", got->out, cpu->out, AT * AH);
    must("decode in one call and in pieces, bit for bit",
         memcmp(got->attended_again, got->attended, AT * HQ * D * sizeof *got->out) == 0 &&
             memcmp(got->k_again, got->k, CACHE * sizeof *got->k) == 0 &&
             memcmp(got->v_again, got->v, CACHE * sizeof *got->v) == 0);
    for (int i = 0; i < COUNTERS; i++)
        must("counters are left zero", got->counters[i] == 0);
    must("sampled ids", memcmp(got->ids, cpu->ids, ROWS * sizeof *got->ids) == 0);
    must("seen", memcmp(got->seen, cpu->seen, V * sizeof *got->seen) == 0);
    for (int r = 0; r < ROWS; r++)
        must("log-probability", fabsf(got->logprobs[r] - cpu->logprobs[r]) < 1e-5f);
    for (int i = 0; i < ROWS * V; i++)
        must("log-probabilities", fabsf(got->all_logprobs[i] - cpu->all_logprobs[i]) < 1e-5f);
}

static void check_attention_refusals(const attention_memory *gpu, cudaStream_t stream) {
    mb_attention_args odd = attention_args(gpu), none = attention_args(gpu), whole = attention_args(gpu);
    odd.q = gpu->q + 1;
    expect("api", "q at 2 bytes", mb_attention(&odd, gpu->workspace, WORKSPACE_BYTES, stream),
           MB_ERR_ARGUMENT);
    must("the sentence says aligned", strstr(mb_last_error(), "q is not 16-byte aligned") != NULL);
    odd.q = gpu->q;
    odd.v_cache = gpu->v + 1;
    expect("api", "v_cache at 2 bytes", mb_attention(&odd, gpu->workspace, WORKSPACE_BYTES, stream),
           MB_ERR_ARGUMENT);
    none.max_kv_len = 0;
    expect("api", "no longest length", mb_attention(&none, gpu->workspace, WORKSPACE_BYTES, stream),
           MB_ERR_ARGUMENT);
    const size_t needed = bytes_of(mb_attention_workspace, &whole);
    expect("api", "workspace of attention too small",
           mb_attention(&whole, gpu->workspace, needed - 1, stream), MB_ERR_CAPACITY);
}

/* host, back, device: ALL_BYTES each. */
static void check_attention(char *host, char *back, char *device, cudaStream_t stream) {
    attention_memory cpu = cut_attention(host), got = cut_attention(back), gpu = cut_attention(device);
    memset(host, 0xff, ALL_BYTES);
    CUDA(cudaMemset(device, 0xff, ALL_BYTES));
    fill_attention(&cpu, gpu.seen);
    const size_t input_bytes = (size_t)((char *)cpu.h - (char *)cpu.x);
    CUDA(cudaMemcpy(gpu.x, cpu.x, input_bytes, cudaMemcpyHostToDevice));
    CUDA(cudaDeviceSynchronize());
    cpu.rows[2].seen = cpu.seen;
    run_attention(&cpu, NULL);
    run_attention(&gpu, stream);
    CUDA(cudaStreamSynchronize(stream));
    CUDA(cudaMemcpy(back, device, ALL_BYTES, cudaMemcpyDeviceToHost));
    compare_attention(&got, &cpu);

    cudaGraph_t graph;
    cudaGraphExec_t replay;
    CUDA(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal));
    run_attention(&gpu, stream);
    CUDA(cudaStreamEndCapture(stream, &graph));
    CUDA(cudaGraphInstantiate(&replay, graph, 0));
    CUDA(cudaMemset(gpu.out, 0xff, AT * AH * sizeof *gpu.out));
    CUDA(cudaMemset(gpu.ids, 0xff, ROWS * sizeof *gpu.ids));
    CUDA(cudaDeviceSynchronize());
    CUDA(cudaGraphLaunch(replay, stream));
    CUDA(cudaStreamSynchronize(stream));
    static __nv_bfloat16 again[AT * AH];
    int32_t ids[ROWS];
    CUDA(cudaMemcpy(again, gpu.out, sizeof again, cudaMemcpyDeviceToHost));
    CUDA(cudaMemcpy(ids, gpu.ids, sizeof ids, cudaMemcpyDeviceToHost));
    must("a graph's replay of attention", memcmp(again, got.out, sizeof again) == 0);
    must("a graph's replay of sampling", memcmp(ids, got.ids, sizeof ids) == 0);
    CUDA(cudaGraphExecDestroy(replay));
    CUDA(cudaGraphDestroy(graph));
    check_attention_refusals(&gpu, stream);
}

int main(void) {
    char *host = (char *)aligned_alloc(256, ALL_BYTES), *back = (char *)aligned_alloc(256, ALL_BYTES),
         *device;
    if (!host || !back) {
        fprintf(stderr, "no memory\n");
        return 1;
    }
    memset(host, 0xff, ALL_BYTES);
    memory cpu = cut(host), got = cut(back);
    srand(1);
    for (__nv_bfloat16 *p = cpu.x; p < cpu.h; p++)
        *p = __float2bfloat16((float)rand() / (float)RAND_MAX - 0.5f);
    /* Before any other use of CUDA: the CPU's memory is not taken for the GPU's, and no error is left. */
    run(&cpu, NULL);
    must("no CUDA error from CPU calls", cudaGetLastError() == cudaSuccess);

    device = (char *)allocate(ALL_BYTES);
    memory gpu = cut(device);
    CUDA(cudaMemset(device, 0xff, ALL_BYTES));
    CUDA(cudaMemcpy(gpu.x, cpu.x, (size_t)((char *)cpu.h - (char *)cpu.x), cudaMemcpyHostToDevice));
    cudaStream_t stream;
    CUDA(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
    CUDA(cudaDeviceSynchronize());
    run(&gpu, stream);
    CUDA(cudaStreamSynchronize(stream));
    CUDA(cudaMemcpy(back, device, ALL_BYTES, cudaMemcpyDeviceToHost));
    compare_with_cpu(&got, &cpu);
    check_graph(&gpu, &cpu, got.out, stream);
    check_places(host, &cpu, &got, stream);
    check_refusals(&gpu, stream);
    check_attention(host, back, device, stream);

    int current = -1;
    must("the current GPU is what it was", cudaGetDevice(&current) == cudaSuccess && current == 0);
    must("no CUDA error is left",
         cudaDeviceSynchronize() == cudaSuccess && cudaGetLastError() == cudaSuccess);
    CUDA(cudaStreamDestroy(stream));
    CUDA(cudaFree(device));
    free(host);
    free(back);
    printf(wrong ? "%d WRONG\n" : "all right\n", wrong);
    return wrong > 0;
}
