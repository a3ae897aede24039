/*
 * decode_check - decode attention at the shapes of Qwen3-30B-A3B (32 query heads, 4 kv heads, D 128) in device memory:
 * the bits of the two operators that it stands for, alone and in a batch, in a graph that is replayed; and the times
 * of both. Small and odd shapes are in ops_check.
 *
 *   decode_check            checks and times
 *   decode_check --check    checks
 *   decode_check --small    checks small shapes: for compute-sanitizer
 *   decode_check --layers 48  checks and times a cache whose blocks have all layers' K and V together, of which one
 *                           layer is read, against one of this layer alone
 *   decode_check 256 4096   checks and times one shape, of a 16-bit cache: for a profiler
 */
#include "ops/attention/decode_parts.h"
#include "timing.cuh"

enum { HEADS = 32, KV_HEADS = 4, D = 128, BLOCK = 64 };

typedef struct problem {
    mb_decode_attention_args args;
    int32_t n_pool;
    void *cache; /* what k_cache and v_cache are parts of */
    void *workspace, *q, *parts_out, *parts_workspace;
    size_t workspace_bytes, parts_bytes;
} problem;

/* Bytes that are numbers in bf16 and in e4m3: positive and negative ones of size 1, to four bits. */
static __global__ void fill_random(uint8_t *to, int64_t n, int is_e4m3, uint32_t seed) {
    for (int64_t i = blockIdx.x * (int64_t)blockDim.x + threadIdx.x; i < n;
         i += (int64_t)gridDim.x * blockDim.x) {
        uint32_t x = (uint32_t)i * 2654435761u ^ seed * 40503u;
        x ^= x >> 15, x *= 0x2c1b3c6du, x ^= x >> 12, x *= 0x297a2d39u, x ^= x >> 15;
        if (is_e4m3)
            to[i] = (uint8_t)((x & 0x80) | (0x30 + (x >> 8) % 12)); /* 0.5 .. 1.75 */
        else
            ((uint16_t *)to)[i] = (uint16_t)((x & 0x8000) | (0x3f00 + (x >> 16) % 192)); /* 0.5 .. 1.98 */
    }
}

static void *random_numbers(int64_t n, int is_e4m3, uint32_t seed) {
    void *to = allocate((size_t)n * (is_e4m3 ? 1 : 2));
    fill_random<<<1024, 256>>>((uint8_t *)to, n, is_e4m3, seed);
    CUDA(cudaGetLastError());
    return to;
}

static const int32_t *upload(const int32_t *host, size_t n) {
    int32_t *device = (int32_t *)allocate(n * sizeof *host);
    CUDA(cudaMemcpy(device, host, n * sizeof *host, cudaMemcpyHostToDevice));
    return device;
}

/* n sequences of `length` positions, one token each; of every third the length is cut when is_ragged.
 * n_layers: 0, or of the cache [blocks, layers, K and V, kv heads, 64, D], of which the middle layer is used. */
static problem make(int32_t n, int32_t length, mb_dtype cache_dtype, int is_ragged, int32_t n_layers) {
    problem p = {};
    mb_decode_attention_args *a = &p.args;
    const int is_e4m3 = cache_dtype == MB_F8_E4M3;
    const int32_t max_blocks = (length + BLOCK - 1) / BLOCK;
    p.n_pool = n * max_blocks;
    int32_t *ints = (int32_t *)host_allocate(sizeof(int32_t) * (size_t)(5 * n + 2 + p.n_pool));
    int32_t *q_start = ints, *kv_len = q_start + n + 1, *span_start = kv_len + n,
            *positions = span_start + n + 1;
    int32_t *slots = positions + n, *table = slots + n;
    for (int32_t s = 0; s < n; s++) {
        kv_len[s] = is_ragged && s % 3 == 0 ? 1 + length * (s % 17) / 17 : length;
        positions[s] = kv_len[s] - 1;
        q_start[s + 1] = s + 1;
        span_start[s + 1] = span_start[s] + (kv_len[s] + MB_DECODE_SPAN - 1) / MB_DECODE_SPAN;
        for (int32_t i = 0; i < max_blocks; i++) { /* scattered: 7919 is prime */
            const int32_t block = (int32_t)(((int64_t)s * max_blocks + i) * 7919 % p.n_pool);
            table[s * max_blocks + i] = n_layers ? 2 * (block * n_layers + n_layers / 2) : block;
        }
        slots[s] = table[s * max_blocks + positions[s] / BLOCK] * BLOCK + positions[s] % BLOCK;
    }
    if (p.n_pool % 7919 == 0)
        complain("decode_check", "blocks are not dealt out once each", p.n_pool);
    float inv_freq[D / 2];
    for (int i = 0; i < D / 2; i++)
        inv_freq[i] = (float)pow(1e6, -2.0 * i / D);
    float *frequencies = (float *)allocate(sizeof inv_freq);
    CUDA(cudaMemcpy(frequencies, inv_freq, sizeof inv_freq, cudaMemcpyHostToDevice));
    const int64_t n_block = (int64_t)KV_HEADS * BLOCK * D, n_cache = n_block * p.n_pool;
    p.cache = random_numbers(2 * n_cache * (n_layers ? n_layers : 1), is_e4m3, 4);
    a->qkv = random_numbers((int64_t)n * (HEADS + 2 * KV_HEADS) * D, 0, 1);
    a->q_norm.data = random_numbers(D, 0, 2);
    a->k_norm.data = random_numbers(D, 0, 3);
    a->q_norm.count = a->q_norm.rows = a->k_norm.count = a->k_norm.rows = 1;
    a->q_norm.cols = a->k_norm.cols = D;
    a->q_norm.dtype = a->k_norm.dtype = MB_BF16;
    a->positions = upload(positions, (size_t)n);
    a->slots = upload(slots, (size_t)n);
    a->inv_freq = frequencies;
    a->k_cache = p.cache;
    a->v_cache = (char *)p.cache + (n_layers ? n_block : n_cache) * (int64_t)mb_dtype_bytes(cache_dtype);
    a->q_start = upload(q_start, (size_t)n + 1);
    a->kv_len = upload(kv_len, (size_t)n);
    a->span_start = upload(span_start, (size_t)n + 1);
    a->block_table = upload(table, (size_t)p.n_pool);
    a->n_tokens = a->n_sequences = n;
    a->max_blocks = max_blocks;
    a->max_q_len = 1;
    a->max_kv_len = length;
    a->n_heads = HEADS;
    a->n_kv_heads = KV_HEADS;
    a->head_dim = D;
    a->eps = 1e-6f;
    a->rope_scale = 1;
    a->scale = 0.08838834764f;
    a->dtype = MB_BF16;
    a->cache_dtype = cache_dtype;
    const size_t counter_bytes = (size_t)mb_decode_attention_counters(a) * sizeof(int32_t);
    a->counters = (int32_t *)allocate(counter_bytes);
    CUDA(cudaMemset(a->counters, 0, counter_bytes));
    a->out = allocate(mb_decode_q_bytes(a));
    p.workspace_bytes = bytes_of(mb_decode_attention_sm90_workspace, a);
    p.workspace = allocate(p.workspace_bytes);
    p.q = allocate(mb_decode_q_bytes(a));
    p.parts_out = allocate(mb_decode_q_bytes(a));
    const mb_attention_args attend = mb_decode_attention_part(a, NULL);
    p.parts_bytes = bytes_of(mb_attention_sm90_workspace, &attend);
    p.parts_workspace = allocate(p.parts_bytes);
    free(ints);
    CUDA(cudaDeviceSynchronize());
    return p;
}

static void release(const problem *p) {
    const mb_decode_attention_args *a = &p->args;
    const void *all[] = {a->qkv,         a->q_norm.data,    a->k_norm.data, a->positions, a->slots,
                         a->inv_freq,    p->cache,          a->q_start,     a->kv_len,    a->span_start,
                         a->block_table, a->counters,       a->out,         p->workspace, p->q,
                         p->parts_out,   p->parts_workspace};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        CUDA(cudaFree((void *)all[i]));
}

static void run_one(const void *context, cudaStream_t stream) {
    const problem *p = (const problem *)context;
    MB(mb_decode_attention_sm90(&p->args, p->workspace, p->workspace_bytes, stream));
}

static void run_parts(const void *context, cudaStream_t stream) {
    const problem *p = (const problem *)context;
    mb_qk_norm_rope_store_args rope = mb_decode_rope_part(&p->args, p->q);
    mb_attention_args attend = mb_decode_attention_part(&p->args, p->q);
    attend.out = p->parts_out;
    MB(mb_qk_norm_rope_store_sm90(&rope, stream));
    MB(mb_attention_sm90(&attend, p->parts_workspace, p->parts_bytes, stream));
}

/* How far two arrays of bf16 are apart, and how many numbers have other bits. */
static double distance(const uint16_t *a, const uint16_t *b, int64_t n, int64_t *n_others) {
    double error = 0, norm = 0;
    *n_others = 0;
    for (int64_t i = 0; i < n; i++) {
        const uint32_t x = (uint32_t)a[i] << 16, y = (uint32_t)b[i] << 16;
        float f, g;
        memcpy(&f, &x, 4);
        memcpy(&g, &y, 4);
        error += ((double)f - g) * ((double)f - g);
        norm += (double)g * g;
        *n_others += a[i] != b[i];
    }
    return sqrt(error / norm);
}

static void compare(const char *name, const char *what, const void *device, const uint16_t *expected,
                    int64_t n) {
    uint16_t *got = (uint16_t *)download(device, 2 * (size_t)n);
    int64_t n_others;
    const double apart = distance(got, expected, n, &n_others);
    if (n_others > 0) {
        char sentence[160];
        snprintf(sentence, sizeof sentence, "%s: %lld of %lld have other bits; apart by", what,
                 (long long)n_others, (long long)n);
        complain(name, sentence, apart);
    }
    free(got);
}

static void check(const char *name, problem *p) {
    mb_decode_attention_args *a = &p->args;
    const int64_t row = (int64_t)HEADS * D, n = a->n_tokens * row;
    CUDA(cudaMemset(p->parts_out, 0xff, 2 * (size_t)n));
    run_parts(p, NULL);
    CUDA(cudaDeviceSynchronize());
    uint16_t *expected = (uint16_t *)download(p->parts_out, 2 * (size_t)n);
    const captured c = capture(run_one, p);
    for (int i = 0; i < 3; i++) {
        CUDA(cudaMemset(a->out, 0xff, 2 * (size_t)n));
        CUDA(cudaMemset(p->workspace, 0xff, p->workspace_bytes));
        CUDA(cudaDeviceSynchronize());
        CUDA(cudaGraphLaunch(c.replay, c.stream));
        CUDA(cudaStreamSynchronize(c.stream));
        compare(name, i == 0 ? "first replay" : "a later replay", a->out, expected, n);
    }
    free_captured(&c);
    /* the last sequence alone */
    const int32_t s = a->n_sequences - 1, zero_one[] = {0, 1};
    int32_t kv_len;
    CUDA(cudaMemcpy(&kv_len, a->kv_len + s, 4, cudaMemcpyDeviceToHost));
    const int32_t spans[] = {0, (kv_len + MB_DECODE_SPAN - 1) / MB_DECODE_SPAN};
    problem alone = *p;
    mb_decode_attention_args *b = &alone.args;
    b->qkv = (const uint16_t *)a->qkv + s * (int64_t)(HEADS + 2 * KV_HEADS) * D;
    b->positions += s;
    b->slots += s;
    b->kv_len += s;
    b->block_table += (int64_t)s * a->max_blocks;
    b->q_start = upload(zero_one, 2);
    b->span_start = upload(spans, 2);
    b->n_tokens = b->n_sequences = 1;
    b->max_kv_len = kv_len;
    CUDA(cudaMemset(a->out, 0xff, 2 * (size_t)n));
    CUDA(cudaDeviceSynchronize());
    run_one(&alone, NULL);
    CUDA(cudaDeviceSynchronize());
    compare(name, "the last sequence alone", a->out, expected + s * row, row);
    CUDA(cudaFree((void *)b->q_start));
    CUDA(cudaFree((void *)b->span_start));
    free(expected);
}

typedef struct shape {
    int32_t n, length;
    mb_dtype cache;
    int is_ragged;
} shape;

static void take(const shape *shape, int32_t n_layers, int is_timed, void *flush) {
    char name[80], layers[24] = "";
    problem p = make(shape->n, shape->length, shape->cache, shape->is_ragged, n_layers);
    if (n_layers)
        snprintf(layers, sizeof layers, " of %d layers", n_layers);
    snprintf(name, sizeof name, "%4d x %5d%s cache %-8s%s", shape->n, shape->length,
             shape->is_ragged ? " ragged" : "       ", mb_dtype_name(shape->cache), layers);
    check(name, &p);
    if (is_timed && !shape->is_ragged) {
        const double bytes = 2.0 * shape->n * shape->length * KV_HEADS * D * mb_dtype_bytes(shape->cache);
        const double us = time_graph(run_one, &p, flush), parts_us = time_graph(run_parts, &p, flush);
        printf("%s  %8.2f us  %5.2f TB/s   the two operators: %8.2f us\n", name, us, bytes / us * 1e-6,
               parts_us);
    }
    release(&p);
}

int main(int argc, char **argv) {
    static const shape shapes[] = {
        {1, 512, MB_BF16, 0},      {1, 1024, MB_BF16, 0},      {1, 8192, MB_BF16, 0},
        {1, 65536, MB_BF16, 0},    {16, 1024, MB_BF16, 0},     {64, 1024, MB_BF16, 0},
        {64, 4096, MB_BF16, 0},    {256, 1024, MB_BF16, 0},    {256, 4096, MB_BF16, 0},
        {100, 3000, MB_BF16, 1},   {1, 1024, MB_F8_E4M3, 0},   {1, 8192, MB_F8_E4M3, 0},
        {64, 4096, MB_F8_E4M3, 0}, {256, 1024, MB_F8_E4M3, 0}, {256, 4096, MB_F8_E4M3, 0},
        {100, 3000, MB_F8_E4M3, 1}};
    /* One span; a cluster; counted; merged by a second launch; chains. */
    static const shape small[] = {{1, 200, MB_BF16, 0},    {3, 1000, MB_BF16, 1}, {3, 1000, MB_F8_E4M3, 1},
                                  {1, 2500, MB_BF16, 0},   {1, 8500, MB_BF16, 0}, {80, 400, MB_BF16, 1},
                                  {80, 400, MB_F8_E4M3, 1}};
    const char *option = argc > 1 && argv[1][0] == '-' ? argv[1] : "";
    const int is_timed = strcmp(option, "--check") != 0 && strcmp(option, "--small") != 0;
    const int n = argc == 3 && !*option ? atoi(argv[1]) : 0, length = n ? atoi(argv[2]) : 0;
    void *flush = is_timed ? allocate(FLUSH_BYTES) : NULL;
    if (strcmp(option, "--small") == 0)
        for (size_t i = 0; i < sizeof small / sizeof *small; i++)
            take(&small[i], 0, 0, NULL);
    else if (strcmp(option, "--layers") == 0)
        for (int i = 0; i < 2; i++) {
            static const shape long_one = {64, 4096, MB_BF16, 0};
            take(&long_one, i == 0 || argc < 3 ? 0 : atoi(argv[2]), 1, flush);
        }
    else
        for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
            if (!n || (n == shapes[i].n && length == shapes[i].length && shapes[i].cache == MB_BF16))
                take(&shapes[i], 0, is_timed, flush);
    printf(wrong ? "%d WRONG\n" : "all right\n", wrong);
    return wrong ? 1 : 0;
}
