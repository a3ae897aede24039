/*
 * rows_check - the operators around the matrix products, which memory bounds: norm, rotary, embedding, sampler.
 * A row's bits must be the same alone and among thousands, and the same whether it is moved 16 bytes at a time or
 * by single elements, which an address that is not a multiple of 16 asks for. Then their times.
 *
 * --check: no times. --small: not the shapes of a model either (for compute-sanitizer).
 */
#include "ops/embed/embed.h"
#include "ops/norm/norm.h"
#include "ops/rope/rope.h"
#include "ops/sample/sample.h"
#include "timing.cuh"
#include "values.cuh"

enum { MOST = 8192, VOCAB = 151936 };
static const int64_t counts[] = {1, 64, 2048, MOST};
static const double FLOOR_GBPS = 3000;
static void *flush; /* NULL: nothing is timed */

static void report(const char *name, int64_t n, mb_op_cost cost,
                   void (*launch)(const void *context, cudaStream_t stream), const void *context) {
    if (!flush)
        return;
    const double us = time_graph(launch, context, flush), floor = cost.bytes / FLOOR_GBPS * 1e-3;
    printf("%-28s %6lld %9.2f us  %8.2f MB  floor %7.2f us  %5.1f %%\n", name, (long long)n, us,
           cost.bytes * 1e-6, floor, 100 * floor / us);
}

static void compare(const char *name, const char *what, const void *a, const void *b, int64_t n,
                    mb_dtype dtype) {
    CUDA(cudaDeviceSynchronize());
    const double n_wrong = differences(a, b, n, dtype);
    if (n_wrong > 0)
        complain(name, what, n_wrong);
}

/* ---- norm */

static void launch_norm(const void *context, cudaStream_t stream) {
    MB(mb_rms_norm_sm90((const mb_rms_norm_args *)context, stream));
}

static void check_norm(mb_dtype dtype, int32_t hidden) {
    char name[80];
    snprintf(name, sizeof name, "rms_norm %s H=%d", mb_dtype_name(dtype), hidden);
    const size_t bytes = (size_t)MOST * hidden * mb_dtype_bytes(dtype);
    char *whole = (char *)allocate(bytes), *part = (char *)allocate(bytes);
    mb_rms_norm_args args = {};
    args.x = random_values((int64_t)MOST * hidden, dtype, 1, 1.0f);
    args.weight = random_weight(1, 1, hidden, dtype, 0, 2);
    args.hidden = hidden;
    args.eps = 1e-6f;
    args.dtype = dtype;
    args.out = whole;
    args.n_rows = MOST;
    CUDA(cudaMemset(whole, 0xff, bytes));
    MB(mb_rms_norm_sm90(&args, NULL));
    const mb_rms_norm_args all = args;
    for (int64_t n : counts) {
        const int64_t first = n == MOST ? 0 : 3 * n; /* the rows [first, first + n) */
        const size_t at = (size_t)(first * hidden) * mb_dtype_bytes(dtype);
        args.x = (const char *)all.x + at;
        args.out = part;
        args.n_rows = n;
        CUDA(cudaMemset(part, 0xff, bytes));
        MB(mb_rms_norm_sm90(&args, NULL));
        compare(name, "rows have other bits in a batch of another size", part, whole + at, n * hidden, dtype);
        report(name, n, mb_rms_norm_cost(&args), launch_norm, &args);
    }
    /* rows one by one */
    args = all;
    args.out = part;
    args.n_rows = 1;
    CUDA(cudaMemset(part, 0xff, bytes));
    for (int64_t row = 0; row < 300; row++) {
        const size_t at = (size_t)(row * hidden) * mb_dtype_bytes(dtype);
        args.x = (const char *)all.x + at;
        args.out = part + at;
        MB(mb_rms_norm_sm90(&args, NULL));
    }
    compare(name, "a row alone has other bits", part, whole, (int64_t)300 * hidden, dtype);
    /* out not at a multiple of 16 bytes: a CTA a row, by single elements */
    char *single = (char *)allocate(bytes + mb_dtype_bytes(dtype));
    args = all;
    args.out = single + mb_dtype_bytes(dtype);
    MB(mb_rms_norm_sm90(&args, NULL));
    compare(name, "other bits than by single elements", args.out, whole, (int64_t)MOST * hidden, dtype);
    CUDA(cudaFree(single));
    CUDA(cudaFree((void *)all.x));
    CUDA(cudaFree((void *)all.weight.data));
    CUDA(cudaFree(whole));
    CUDA(cudaFree(part));
}

static __global__ void add_values(const void *a, const void *b, int64_t n, mb_dtype dtype, void *sum) {
    for (int64_t i = blockIdx.x * (int64_t)blockDim.x + threadIdx.x; i < n;
         i += (int64_t)gridDim.x * blockDim.x)
        store_value(sum, i, dtype, load_value(a, i, dtype) + load_value(b, i, dtype));
}

/* A residual in front: against the sum and the norm apart. fp8 (not of fp32): none, beside out, alone. */
static void check_residual(mb_dtype dtype, int32_t hidden) {
    enum { APART, BY_ELEMENTS, SUM_IS_RESIDUAL, SUM_IS_X, N_PLACES };
    static const char *const wrong_sum[N_PLACES] = {
        "sum has other bits", "sum has other bits by single elements",
        "sum has other bits in residual's place", "sum has other bits in x's place"};
    static const char *const wrong_out[N_PLACES] = {
        "other bits than the norm of the sum", "other bits than the norm of the sum, by single elements",
        "other bits than the norm of the sum, in x's place",
        "other bits than the norm of the sum, in residual's place"};
    char name[80];
    snprintf(name, sizeof name, "norm+residual %s H=%d", mb_dtype_name(dtype), hidden);
    const int64_t n_values = (int64_t)MOST * hidden, n_scales = (int64_t)MOST * n_scale_blocks(hidden);
    const size_t element = mb_dtype_bytes(dtype), bytes = (size_t)n_values * element;
    void *x = random_values(n_values, dtype, 1, 1.0f), *residual = random_values(n_values, dtype, 3, 2.0f);
    char *sum = (char *)allocate(bytes + element), *out = (char *)allocate(bytes);
    void *x_place = allocate(bytes), *residual_place = allocate(bytes);
    void *right_sum = allocate(bytes), *right_out = allocate(bytes);
    void *out8 = allocate((size_t)n_values), *right_out8 = allocate((size_t)n_values);
    float *scale = (float *)allocate(sizeof(float) * (size_t)n_scales),
          *right_scale = (float *)allocate(sizeof(float) * (size_t)n_scales);
    const int most_fp8 = dtype == MB_F32 ? 0 : 2;
    mb_rms_norm_args right = {};
    right.x = right_sum;
    right.weight = random_weight(1, 1, hidden, dtype, 0, 2);
    right.hidden = hidden;
    right.eps = 1e-6f;
    right.dtype = dtype;
    right.n_rows = MOST;
    right.out = right_out;
    if (most_fp8) {
        right.out8 = right_out8;
        right.out8_scale = right_scale;
    }
    add_values<<<1024, 256>>>(x, residual, n_values, dtype, right_sum);
    CUDA(cudaGetLastError());
    MB(mb_rms_norm_sm90(&right, NULL));

    for (int place = 0; place < N_PLACES; place++)
        for (int fp8 = 0; fp8 <= most_fp8; fp8++) {
            CUDA(cudaMemcpy(x_place, x, bytes, cudaMemcpyDeviceToDevice));
            CUDA(cudaMemcpy(residual_place, residual, bytes, cudaMemcpyDeviceToDevice));
            CUDA(cudaMemset(sum, 0xff, bytes + element));
            CUDA(cudaMemset(out, 0xff, bytes));
            CUDA(cudaMemset(out8, 0xff, (size_t)n_values));
            CUDA(cudaMemset(scale, 0xff, sizeof(float) * (size_t)n_scales));
            mb_rms_norm_args args = right;
            args.x = x_place;
            args.residual = residual_place;
            args.sum = place == SUM_IS_X          ? x_place
                       : place == SUM_IS_RESIDUAL ? residual_place
                                                  : sum + (place == BY_ELEMENTS ? element : 0);
            args.out = fp8 == 2                   ? NULL
                       : place == SUM_IS_X        ? residual_place
                       : place == SUM_IS_RESIDUAL ? x_place
                                                  : out;
            args.out8 = fp8 ? out8 : NULL;
            args.out8_scale = fp8 ? scale : NULL;
            MB(mb_rms_norm_sm90(&args, NULL));
            compare(name, wrong_sum[place], args.sum, right_sum, n_values, dtype);
            if (args.out)
                compare(name, wrong_out[place], args.out, right_out, n_values, dtype);
            if (fp8) {
                compare(name, "out8 has other bits", out8, right_out8, n_values, MB_F8_E4M3);
                compare(name, "out8_scale has other bits", scale, right_scale, n_scales, MB_F32);
            }
        }

    for (int64_t n : counts) { /* the rows [first, first + n) */
        const size_t at = (size_t)((n == MOST ? 0 : 3 * n) * hidden) * element;
        mb_rms_norm_args args = right;
        args.x = (char *)x + at;
        args.residual = (char *)residual + at;
        args.sum = sum;
        args.out = out;
        args.out8 = NULL;
        args.out8_scale = NULL;
        args.n_rows = n;
        MB(mb_rms_norm_sm90(&args, NULL));
        compare(name, "sums have other bits in a batch of another size", sum, (char *)right_sum + at,
                n * hidden, dtype);
        compare(name, "rows have other bits in a batch of another size", out, (char *)right_out + at,
                n * hidden, dtype);
        report(name, n, mb_rms_norm_cost(&args), launch_norm, &args);
    }
    const void *memory[] = {x,         residual, sum,        out,   x_place,     residual_place,   right_sum,
                            right_out, out8,     right_out8, scale, right_scale, right.weight.data};
    for (const void *one : memory)
        CUDA(cudaFree((void *)one));
}

/* ---- rotary */

typedef struct rope_problem {
    mb_qk_norm_rope_store_args args; /* of MOST tokens */
    size_t q_bytes, cache_bytes;
    int64_t n_q, n_cache; /* elements */
} rope_problem;

static void launch_rope(const void *context, cudaStream_t stream) {
    MB(mb_qk_norm_rope_store_sm90((const mb_qk_norm_rope_store_args *)context, stream));
}

static int32_t *upload(const int32_t *host, int64_t n) {
    int32_t *device = (int32_t *)allocate(sizeof(int32_t) * (size_t)n);
    CUDA(cudaMemcpy(device, host, sizeof(int32_t) * (size_t)n, cudaMemcpyHostToDevice));
    return device;
}

static rope_problem make_rope(int32_t n_heads, int32_t n_kv_heads, int32_t dim, mb_dtype dtype,
                              mb_dtype cache_dtype, int with_norm) {
    rope_problem p = {};
    mb_qk_norm_rope_store_args *args = &p.args;
    static int32_t positions[MOST], slots[MOST];
    static float inv_freq[256];
    for (int32_t t = 0; t < MOST; t++) { /* every eleventh token is not stored */
        positions[t] = (t * 29 + 11) % 40000;
        slots[t] = t % 11 == 10 ? -1 : (t ^ 37);
    }
    for (int32_t i = 0; i < dim / 2; i++)
        inv_freq[i] = (float)pow(1e6, -2.0 * i / dim);
    args->inv_freq = (const float *)upload((const int32_t *)inv_freq, dim / 2);
    args->positions = upload(positions, MOST);
    args->slots = upload(slots, MOST);
    args->qkv = random_values((int64_t)MOST * (n_heads + 2 * n_kv_heads) * dim, dtype, 3, 1.0f);
    if (with_norm) {
        args->q_norm = random_weight(1, 1, dim, MB_BF16, 0, 4);
        args->k_norm = random_weight(1, 1, dim, MB_F32, 0, 5);
    }
    if (cache_dtype == MB_F8_E4M3) {
        args->k_scale = random_scales(n_kv_heads, 6, 0.1f);
        args->v_scale = random_scales(n_kv_heads, 7, 0.02f);
    }
    args->n_tokens = MOST;
    args->n_heads = n_heads;
    args->n_kv_heads = n_kv_heads;
    args->head_dim = dim;
    args->eps = 1e-6f;
    args->rope_scale = 1.25f;
    args->dtype = dtype;
    args->cache_dtype = cache_dtype;
    p.n_q = (int64_t)MOST * n_heads * dim;
    p.n_cache = (int64_t)MOST * n_kv_heads * dim;
    p.q_bytes = (size_t)p.n_q * mb_dtype_bytes(dtype);
    p.cache_bytes = (size_t)p.n_cache * mb_dtype_bytes(cache_dtype);
    return p;
}

/* What a call gives; the cache is zeros where nothing is stored. `beside`: bytes that q is moved by. */
typedef struct rope_result {
    char *q_memory, *q, *k, *v;
} rope_result;

static rope_result make_result(const rope_problem *p, size_t beside) {
    rope_result r = {(char *)allocate(p->q_bytes + beside), NULL, (char *)allocate(p->cache_bytes),
                     (char *)allocate(p->cache_bytes)};
    r.q = r.q_memory + beside;
    CUDA(cudaMemset(r.q_memory, 0, p->q_bytes + beside));
    CUDA(cudaMemset(r.k, 0, p->cache_bytes));
    CUDA(cudaMemset(r.v, 0, p->cache_bytes));
    return r;
}

static void free_result(const rope_result *r) {
    CUDA(cudaFree(r->q_memory));
    CUDA(cudaFree(r->k));
    CUDA(cudaFree(r->v));
}

/* Tokens [first, first + n). */
static mb_qk_norm_rope_store_args rope_of(const rope_problem *p, const rope_result *to, int64_t first,
                                          int64_t n) {
    mb_qk_norm_rope_store_args args = p->args;
    const size_t row = (size_t)args.head_dim * mb_dtype_bytes(args.dtype);
    args.qkv = (const char *)args.qkv + (size_t)first * (args.n_heads + 2 * args.n_kv_heads) * row;
    args.positions += first;
    args.slots += first;
    args.q = to->q + (size_t)first * args.n_heads * row;
    args.k_cache = to->k;
    args.v_cache = to->v;
    args.n_tokens = n;
    return args;
}

static void compare_rope(const rope_problem *p, const char *name, const char *what, const rope_result *a,
                         const rope_result *b) {
    compare(name, what, a->q, b->q, p->n_q, p->args.dtype);
    compare(name, what, a->k, b->k, p->n_cache, p->args.cache_dtype);
    compare(name, what, a->v, b->v, p->n_cache, p->args.cache_dtype);
}

static void check_rope(int32_t n_heads, int32_t n_kv_heads, int32_t dim, mb_dtype dtype, mb_dtype cache_dtype,
                       int with_norm) {
    char name[100];
    snprintf(name, sizeof name, "rope %s %s %d+%d D=%d%s", mb_dtype_name(dtype), mb_dtype_name(cache_dtype),
             n_heads, n_kv_heads, dim, with_norm ? "" : " bare");
    const rope_problem p = make_rope(n_heads, n_kv_heads, dim, dtype, cache_dtype, with_norm);
    const rope_result whole = make_result(&p, 0);
    mb_qk_norm_rope_store_args args = rope_of(&p, &whole, 0, MOST);
    MB(mb_qk_norm_rope_store_sm90(&args, NULL));

    const rope_result single = make_result(&p, mb_dtype_bytes(dtype));
    args = rope_of(&p, &single, 0, MOST);
    MB(mb_qk_norm_rope_store_sm90(&args, NULL));
    compare_rope(&p, name, "other bits than by single elements", &whole, &single);
    free_result(&single);

    const rope_result parts = make_result(&p, 0);
    static const int64_t sizes[] = {1, 2, 3, 64, 65, 300, 2048};
    int64_t first = 0;
    for (int i = 0; first < MOST; i++) {
        const int64_t size = sizes[i % 7], n = first + size < MOST ? size : MOST - first;
        args = rope_of(&p, &parts, first, n);
        MB(mb_qk_norm_rope_store_sm90(&args, NULL));
        first += n;
    }
    compare_rope(&p, name, "a token has other bits in another batch", &whole, &parts);
    for (int64_t n : counts) {
        args = rope_of(&p, &parts, 0, n);
        report(name, n, mb_qk_norm_rope_store_cost(&args), launch_rope, &args);
    }
    free_result(&parts);
    free_result(&whole);
    const void *inputs[] = {p.args.qkv,         p.args.positions,   p.args.slots,   p.args.inv_freq,
                            p.args.q_norm.data, p.args.k_norm.data, p.args.k_scale, p.args.v_scale};
    for (const void *input : inputs)
        CUDA(cudaFree((void *)input));
}

/* ---- embedding */

static void launch_embed(const void *context, cudaStream_t stream) {
    MB(mb_embed_sm90((const mb_embed_args *)context, stream));
}

static void check_embed(mb_dtype dtype, int64_t hidden) {
    char name[80];
    snprintf(name, sizeof name, "embed %s H=%lld", mb_dtype_name(dtype), (long long)hidden);
    static int32_t ids[MOST];
    for (int32_t t = 0; t < MOST; t++)
        ids[t] = (int32_t)((uint32_t)t * 2654435761u % VOCAB);
    const size_t row = (size_t)hidden * mb_dtype_bytes(dtype);
    mb_embed_args args = {};
    args.ids = upload(ids, MOST);
    args.table = random_weight(1, VOCAB, hidden, dtype, 0, 8);
    args.out = allocate(row * MOST);
    args.dtype = dtype;
    for (int64_t n : counts) {
        args.n_tokens = n;
        CUDA(cudaMemset(args.out, 0xff, row * MOST));
        MB(mb_embed_sm90(&args, NULL));
        for (int64_t t = 0; t<n; t += n> 64 ? 97 : 1)
            compare(name, "not the table's row", (char *)args.out + (size_t)t * row,
                    (const char *)args.table.data + (size_t)ids[t] * row, hidden, dtype);
        report(name, n, mb_embed_cost(&args), launch_embed, &args);
    }
    CUDA(cudaFree((void *)args.ids));
    CUDA(cudaFree((void *)args.table.data));
    CUDA(cudaFree(args.out));
}

/* ---- sampler */

enum { ROWS = 256, N_BIAS = 3 };

typedef struct sampling {
    mb_sample_args args;
    void *workspace;
    size_t workspace_bytes;
} sampling;

static void launch_sample(const void *context, cudaStream_t stream) {
    const sampling *s = (const sampling *)context;
    MB(mb_sample_sm90(&s->args, s->workspace, s->workspace_bytes, stream));
}

static void launch_log_softmax(const void *context, cudaStream_t stream) {
    MB(mb_log_softmax_sm90((const mb_log_softmax_args *)context, stream));
}

/* Every filter, with and without penalties, biases and a mask. */
static mb_sample_row row_of(int r, int32_t vocab, int32_t *seen, const int32_t *bias_ids, const float *biases,
                            const uint32_t *allowed) {
    mb_sample_row row = {};
    row.temperature = r % 4 == 0 ? 0 : 0.6f + 0.1f * (r % 16);
    row.top_p = r % 3 == 1 ? 0.95f : 1;
    row.top_k = r % 5 == 2 ? 20 : 0;
    row.min_p = r % 7 == 3 ? 0.05f : 0;
    row.repetition_penalty = 1.3f;
    row.presence_penalty = 0.5f;
    row.frequency_penalty = 0.25f;
    row.seed = 1234567u * (uint64_t)r;
    row.position = 17 * r;
    row.seen = r % 4 == 3 ? seen + (int64_t)r * vocab : NULL;
    row.n_bias = r % 6 == 5 ? N_BIAS : 0;
    row.bias_ids = bias_ids;
    row.biases = biases;
    row.allowed = r % 10 == 8 ? allowed : NULL;
    return row;
}

enum { FILTERED = 256, COMPARED = 3, N_LOGITS = 5 };
static const char *const logits_names[N_LOGITS] = {"random", "peaked", "nearly flat", "flat", "one-hot"};

static __global__ void fill_logits(float *out, int64_t n, int32_t vocab, int kind) {
    for (int64_t i = blockIdx.x * (int64_t)blockDim.x + threadIdx.x; i < n;
         i += (int64_t)gridDim.x * blockDim.x) {
        const float value = random_value(77, (uint64_t)i);
        const int32_t id = (int32_t)(i % vocab);
        switch (kind) {
        case 0: /* of a random model */
            out[i] = 3 * value;
            break;
        case 1: /* of a model that is rather sure: some hundred tokens stand out */
            out[i] = 2 * value + (id % 997 == 5 ? 14 + 2 * value : 0);
            break;
        case 2:
            out[i] = 0.01f * value;
            break;
        case 3:
            out[i] = 0.5f;
            break;
        default:
            out[i] = id == vocab / 3 ? 100 : 0;
        }
    }
}

static const struct {
    const char *name;
    float temperature, top_p, min_p;
    int32_t top_k;
} filters[] = {
    {"top_k 20 top_p 0.95 at 0.6", 0.6f, 0.95f, 0, 20},
    {"top_p 0.95 at 0.6", 0.6f, 0.95f, 0, 0},
    {"top_p 0.95 at 1", 1, 0.95f, 0, 0},
    {"top_p 0.9 at 2", 2, 0.9f, 0, 0},
    {"top_k 50 at 1", 1, 1, 0.01f, 50},
    {"top_k 3000 top_p 0.99 at 1", 1, 0.99f, 0, 3000},
    {"top_k 3000 at 1", 1, 1, 0, 3000},
};

/* The tokens are the reference's; and the times. */
static void check_filters(int32_t vocab) {
    sampling s = {};
    const int64_t n = (int64_t)FILTERED * vocab;
    float *logits = (float *)allocate(sizeof(float) * (size_t)n), log_probs[COMPARED];
    float *host_logits = (float *)host_allocate(sizeof(float) * COMPARED * (size_t)vocab);
    mb_sample_row host[FILTERED], *rows = (mb_sample_row *)allocate(sizeof host);
    s.args = {logits,
              rows,
              (int32_t *)allocate(sizeof(int32_t) * FILTERED),
              (float *)allocate(sizeof(float) * FILTERED),
              FILTERED,
              vocab};
    s.workspace_bytes = bytes_of(mb_sample_sm90_workspace, &s.args);
    s.workspace = allocate(s.workspace_bytes);
    int32_t ids[COMPARED], found[FILTERED];
    mb_sample_args reference = {host_logits, host, ids, log_probs, COMPARED, vocab};
    const size_t reference_bytes = bytes_of(mb_sample_ref_workspace, &reference);
    void *reference_workspace = host_allocate(reference_bytes);
    for (int kind = 0; kind < N_LOGITS; kind++) {
        fill_logits<<<1024, 256>>>(logits, n, vocab, kind);
        CUDA(cudaMemcpy(host_logits, logits, sizeof(float) * COMPARED * (size_t)vocab,
                        cudaMemcpyDeviceToHost));
        for (const auto &filter : filters) {
            char name[100];
            snprintf(name, sizeof name, "%s, %s", filter.name, logits_names[kind]);
            for (int r = 0; r < FILTERED; r++) {
                host[r] = row_of(0, vocab, NULL, NULL, NULL, NULL);
                host[r].seed = 99u + (uint64_t)r;
                host[r].temperature = filter.temperature;
                host[r].top_k = filter.top_k;
                host[r].top_p = filter.top_p;
                host[r].min_p = filter.min_p;
            }
            CUDA(cudaMemcpy(rows, host, sizeof host, cudaMemcpyHostToDevice));
            MB(mb_sample_ref(&reference, reference_workspace, reference_bytes, NULL));
            int32_t whole[FILTERED];
            static const int64_t batches[] = {FILTERED, 64, 16, 1};
            for (int64_t n_rows : batches) {
                s.args.n_rows = n_rows;
                CUDA(cudaMemset(s.args.ids, 0xff, sizeof(int32_t) * FILTERED));
                launch_sample(&s, NULL);
                CUDA(cudaMemcpy(found, s.args.ids, sizeof found, cudaMemcpyDeviceToHost));
                if (n_rows == FILTERED)
                    memcpy(whole, found, sizeof found);
                for (int64_t r = 0; r < n_rows; r++)
                    if (found[r] != (r < COMPARED ? ids[r] : whole[r]))
                        complain(name, "another token than the reference's, or in a batch of another size",
                                 (double)r);
                mb_op_cost cost = {};
                cost.bytes = sizeof(float) * (double)n_rows * vocab;
                report(name, n_rows, cost, launch_sample, &s);
            }
        }
    }
    free(host_logits);
    free(reference_workspace);
    const void *memory[] = {logits, rows, s.args.ids, s.args.logprobs, s.workspace};
    for (const void *one : memory)
        CUDA(cudaFree((void *)one));
}

static void check_sample(int32_t vocab) {
    char name[80];
    snprintf(name, sizeof name, "sample V=%d", vocab);
    const size_t seen_bytes = sizeof(int32_t) * ROWS * (size_t)vocab;
    const int32_t bias_ids[N_BIAS] = {vocab / 2, 3, vocab / 2};
    const float biases[N_BIAS] = {2.5f, 1.5f, 1.25f};
    int32_t *seen = (int32_t *)allocate(seen_bytes), *ids = upload(bias_ids, N_BIAS);
    float *values = (float *)upload((const int32_t *)biases, N_BIAS);
    const size_t mask_bytes = sizeof(uint32_t) * (size_t)((vocab + 31) / 32);
    uint32_t *allowed = (uint32_t *)allocate(mask_bytes);
    CUDA(cudaMemset(allowed, 0x5a, mask_bytes));
    mb_sample_row host[ROWS], *rows = (mb_sample_row *)allocate(sizeof host);
    for (int r = 0; r < ROWS; r++)
        host[r] = row_of(r, vocab, seen, ids, values, allowed);
    CUDA(cudaMemcpy(rows, host, sizeof host, cudaMemcpyHostToDevice));
    sampling s = {};
    s.args.logits = (const float *)random_values((int64_t)ROWS * vocab, MB_F32, 9, 3.0f);
    s.args.rows = rows;
    s.args.ids = (int32_t *)allocate(sizeof(int32_t) * ROWS);
    s.args.logprobs = (float *)allocate(sizeof(float) * ROWS);
    s.args.n_rows = ROWS;
    s.args.vocab = vocab;
    s.workspace_bytes = bytes_of(mb_sample_sm90_workspace, &s.args);
    s.workspace = allocate(s.workspace_bytes);
    const sampling all = s;

    /* together, then in smaller batches, each from the same counts */
    static const int sizes[] = {ROWS, 1, 2, 8, 9, 33, 64, 66, 100};
    int32_t *whole = NULL;
    for (int size : sizes) {
        CUDA(cudaMemset(seen, 0x01, seen_bytes));
        CUDA(cudaMemset(s.args.ids, 0xff, sizeof(int32_t) * ROWS));
        CUDA(cudaMemset(s.args.logprobs, 0xff, sizeof(float) * ROWS));
        for (int first = 0; first < ROWS; first += size) {
            sampling part = all;
            part.args.logits += (int64_t)first * vocab;
            part.args.rows += first;
            part.args.ids += first;
            part.args.logprobs += first;
            part.args.n_rows = first + size < ROWS ? size : ROWS - first;
            launch_sample(&part, NULL);
        }
        CUDA(cudaDeviceSynchronize());
        int32_t *found = (int32_t *)host_allocate(2 * sizeof(int32_t) * ROWS);
        CUDA(cudaMemcpy(found, s.args.ids, sizeof(int32_t) * ROWS, cudaMemcpyDeviceToHost));
        CUDA(cudaMemcpy(found + ROWS, s.args.logprobs, sizeof(float) * ROWS, cudaMemcpyDeviceToHost));
        for (int r = 0; r < ROWS; r++) {
            if (found[r] < 0 || found[r] >= vocab)
                complain(name, "no token of the vocabulary", found[r]);
            if (whole && (found[r] != whole[r] || found[ROWS + r] != whole[ROWS + r]))
                complain(name, "another token or log-probability in a batch of another size", size);
        }
        if (whole)
            free(found);
        else
            whole = found;
    }
    free(whole);

    float *out = (float *)allocate(sizeof(float) * ROWS * (size_t)vocab);
    float *alone = (float *)allocate(sizeof(float) * ROWS * (size_t)vocab);
    mb_log_softmax_args softmax = {s.args.logits, out, ROWS, vocab};
    launch_log_softmax(&softmax, NULL);
    for (int64_t r = 0; r < ROWS; r++) {
        const mb_log_softmax_args one = {s.args.logits + r * vocab, alone + r * vocab, 1, vocab};
        launch_log_softmax(&one, NULL);
    }
    compare(name, "log_softmax: a row alone has other bits", out, alone, (int64_t)ROWS * vocab, MB_F32);

    static const int64_t batches[] = {1, 8, 16, 64, ROWS};
    static const char *kinds[] = {"sample, greedy", "sample, all", "sample, top_k 20 top_p", "log_softmax"};
    for (int kind = 0; kind < 4 && flush; kind++) {
        for (int r = 0; r < ROWS; r++) {
            host[r] = row_of(r, vocab, NULL, NULL, NULL, NULL);
            host[r].seen = NULL;
            host[r].n_bias = 0;
            host[r].temperature = kind == 0 ? 0 : 0.6f;
            host[r].top_k = kind == 2 ? 20 : 0;
            host[r].top_p = kind == 2 ? 0.95f : 1;
            host[r].min_p = 0;
        }
        CUDA(cudaMemcpy(rows, host, sizeof host, cudaMemcpyHostToDevice));
        for (int64_t n : batches) {
            s.args.n_rows = softmax.n_rows = n;
            mb_op_cost cost = {};
            cost.bytes = (kind == 3 ? 2.0 : 1.0) * sizeof(float) * (double)n * vocab;
            report(kinds[kind], n, cost, kind == 3 ? launch_log_softmax : launch_sample,
                   kind == 3 ? (const void *)&softmax : &s);
        }
    }
    const void *memory[] = {seen,        ids,           values,     allowed,
                            rows,        s.args.logits, s.args.ids, s.args.logprobs,
                            s.workspace, out,           alone};
    for (const void *one : memory)
        CUDA(cudaFree((void *)one));
    check_filters(vocab);
}

int main(int argc, char **argv) {
    const int is_small = argc > 1 && strcmp(argv[1], "--small") == 0;
    if (!is_small && (argc < 2 || strcmp(argv[1], "--check") != 0))
        flush = allocate(FLUSH_BYTES);
    if (!is_small) {
        check_rope(32, 4, 128, MB_BF16, MB_BF16, 1);
        check_rope(32, 4, 128, MB_BF16, MB_F8_E4M3, 1);
        check_norm(MB_BF16, 2048);
        check_norm(MB_BF16, 4096);
        check_residual(MB_BF16, 2048);
        check_residual(MB_BF16, 4096);
        check_embed(MB_BF16, 2048);
        check_sample(VOCAB);
    }
    if (flush)
        CUDA(cudaFree(flush));
    flush = NULL;
    check_rope(64, 4, 128, MB_BF16, MB_BF16, 1);
    check_rope(9, 3, 64, MB_BF16, MB_BF16, 1);
    check_rope(9, 3, 64, MB_F16, MB_F8_E4M3, 1);
    check_rope(3, 1, 128, MB_F16, MB_F16, 0);
    check_norm(MB_F16, 1000);
    check_norm(MB_F16, 3072);
    check_norm(MB_BF16, 8);
    check_residual(MB_F16, 1000);
    check_residual(MB_F16, 3072);
    check_residual(MB_BF16, 4104);
    check_residual(MB_F32, 300);
    check_embed(MB_F16, 520);
    check_sample(503);
    check_sample(4096);
    printf(wrong ? "%d WRONG\n" : "all right\n", wrong);
    return wrong ? 1 : 0;
}
