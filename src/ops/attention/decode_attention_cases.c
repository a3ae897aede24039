/*
 * The operator against the two that it stands for (whose own cases compare with fp64): the same bits, of the output
 * and of all of the cache. Rows of the cache that are not to be read are NaN.
 */
#include "ops/attention/decode_parts.h"
#include "ops/common/check.h"

#include <math.h>
#include <string.h>

enum { MAX_SEQUENCES = 70, BLOCK = 64, RANDOM_LENGTHS = -1 };

/* n_sequences with RANDOM_LENGTHS: a token each. */
typedef struct batch {
    int32_t n_sequences, q_len[4], kv_len[4], kind;
} batch;

typedef struct heads {
    int32_t n, n_kv, dim, rotary_dim; /* rotary_dim 0: all */
} heads;

typedef struct problem {
    mb_decode_attention_args args;
    int32_t n_blocks;
    int32_t q_start[MAX_SEQUENCES + 1], kv_len[MAX_SEQUENCES];
} problem;

static int64_t slot_of(const problem *p, const int32_t *table, int32_t s, int32_t position) {
    return (int64_t)table[s * p->args.max_blocks + position / BLOCK] * BLOCK + position % BLOCK;
}

static void *copy(mb_check *check, const void *from, size_t n_bytes) {
    void *to = mb_check_alloc(check, n_bytes);
    memcpy(to, from, n_bytes);
    return to;
}

static void make_lengths(mb_check *check, const batch *b, problem *p) {
    mb_decode_attention_args *args = &p->args;
    args->n_sequences = b->n_sequences;
    for (int32_t s = 0; s < b->n_sequences; s++) {
        int is_random = b->kind == RANDOM_LENGTHS;
        int32_t q_len = is_random ? 1 : b->q_len[s];
        int32_t kv_len = is_random ? 1 + (int32_t)(mb_check_random(check) % 600) : b->kv_len[s];
        p->q_start[s + 1] = p->q_start[s] + q_len;
        p->kv_len[s] = kv_len;
        p->n_blocks += (kv_len + BLOCK - 1) / BLOCK;
        args->max_q_len = q_len > args->max_q_len ? q_len : args->max_q_len;
        args->max_kv_len = kv_len > args->max_kv_len ? kv_len : args->max_kv_len;
    }
    args->n_tokens = p->q_start[b->n_sequences];
    args->max_blocks = (args->max_kv_len + BLOCK - 1) / BLOCK + 1;
}

/* The arrays of a step. The pool's blocks are dealt out backwards and in turn; every eleventh token is not stored,
 * nor is the first one of a batch of several sequences. */
static void make_arrays(mb_check *check, problem *p) {
    mb_decode_attention_args *args = &p->args;
    size_t n_sequences = (size_t)args->n_sequences, n_tokens = (size_t)args->n_tokens;
    int32_t *table = mb_check_alloc(check, n_sequences * (size_t)args->max_blocks * sizeof *table);
    int32_t *span_start = mb_check_alloc(check, (n_sequences + 1) * sizeof *span_start);
    int32_t *positions = mb_check_alloc(check, n_tokens * sizeof *positions);
    int32_t *slots = mb_check_alloc(check, n_tokens * sizeof *slots);
    for (int32_t i = 0, next = p->n_blocks; i < args->max_blocks; i++)
        for (int32_t s = 0; s < args->n_sequences; s++)
            if (i < (p->kv_len[s] + BLOCK - 1) / BLOCK)
                table[s * args->max_blocks + i] = --next;
    span_start[0] = 0;
    for (int32_t s = 0; s < args->n_sequences; s++) {
        int32_t q_len = p->q_start[s + 1] - p->q_start[s];
        span_start[s + 1] = span_start[s] + (q_len > 0 ? (p->kv_len[s] + 255) / 256 : 0);
        for (int32_t i = 0; i < q_len; i++) {
            int32_t t = p->q_start[s] + i, position = p->kv_len[s] - q_len + i;
            positions[t] = position + 3; /* of the rotation alone */
            slots[t] = (args->n_sequences > 1 && t == 0) || t % 11 == 10
                           ? -1
                           : (int32_t)slot_of(p, table, s, position);
        }
    }
    args->q_start = copy(check, p->q_start, (n_sequences + 1) * sizeof *p->q_start);
    args->kv_len = copy(check, p->kv_len, n_sequences * sizeof *p->kv_len);
    args->block_table = table;
    args->span_start = span_start;
    args->positions = positions;
    args->slots = slots;
}

/* Values in the rows of earlier tokens and of those that are not stored, NaN in all others. */
static void *make_cache(mb_check *check, const problem *p, double low, double high) {
    const mb_decode_attention_args *args = &p->args;
    int64_t n = (int64_t)p->n_blocks * args->n_kv_heads * BLOCK * args->head_dim;
    size_t row_bytes = (size_t)args->head_dim * mb_dtype_bytes(args->cache_dtype);
    char *values = mb_check_values(check, args->cache_dtype, n, low, high);
    char *cache = mb_check_alloc(check, (size_t)n * mb_dtype_bytes(args->cache_dtype));
    memset(cache, 0xff, (size_t)n * mb_dtype_bytes(args->cache_dtype));
    for (int32_t s = 0; s < args->n_sequences; s++) {
        int32_t first_new = p->kv_len[s] - (p->q_start[s + 1] - p->q_start[s]);
        for (int32_t position = 0; position < p->kv_len[s]; position++) {
            if (position >= first_new && args->slots[p->q_start[s] + position - first_new] >= 0)
                continue;
            int64_t slot = slot_of(p, args->block_table, s, position);
            for (int64_t head = 0; head < args->n_kv_heads; head++) {
                size_t at =
                    (size_t)((slot / BLOCK * args->n_kv_heads + head) * BLOCK + slot % BLOCK) * row_bytes;
                memcpy(cache + at, values + at, row_bytes);
            }
        }
    }
    return cache;
}

static void compare_bytes(mb_check *check, const char *what, const void *got, const void *expected,
                          size_t n_bytes) {
    const unsigned char *a = got, *b = expected;
    for (size_t i = 0; i < n_bytes; i++)
        if (a[i] != b[i]) {
            mb_check_fail(check, "%s: other bits than those of the two operators, first at byte %zu of %zu",
                          what, i, n_bytes);
            return;
        }
}

static double *values_of(mb_check *check, mb_dtype dtype, const void *array, int64_t n) {
    double *values = mb_check_alloc(check, (size_t)n * sizeof *values);
    for (int64_t i = 0; i < n; i++)
        values[i] = mb_check_value(dtype, array, i);
    return values;
}

static void run_parts(mb_check *check, const mb_decode_attention_args *args, void *out, void *k, void *v) {
    mb_decode_attention_args apart = *args;
    apart.out = out;
    apart.k_cache = k;
    apart.v_cache = v;
    void *q = mb_check_alloc(check, mb_decode_q_bytes(args));
    mb_qk_norm_rope_store_args rope = mb_decode_rope_part(&apart, q);
    mb_attention_args attend = mb_decode_attention_part(&apart, q);
    size_t bytes = 0;
    mb_check_ok(check, check->ops->attention_workspace(&attend, &bytes));
    void *workspace = mb_check_alloc(check, bytes);
    mb_check_ok(check, check->ops->qk_norm_rope_store(&rope, check->stream));
    mb_check_ok(check, check->ops->attention(&attend, workspace, bytes, check->stream));
    if (check->finish)
        mb_check_ok(check, check->finish(check->stream));
}

static float *ramp(mb_check *check, int32_t n, float from) {
    float *values = mb_check_alloc(check, (size_t)n * sizeof *values);
    for (int32_t i = 0; i < n; i++)
        values[i] = from + 0.1f * (float)i;
    return values;
}

static void fill_args(mb_check *check, problem *p, heads h, mb_dtype dtype, mb_dtype cache_dtype,
                      int has_norm) {
    mb_decode_attention_args *args = &p->args;
    args->n_heads = h.n;
    args->n_kv_heads = h.n_kv;
    args->head_dim = h.dim;
    args->rotary_dim = h.rotary_dim;
    args->dtype = dtype;
    args->cache_dtype = cache_dtype;
    args->eps = 1e-6f;
    args->rope_scale = 1.25f;
    args->scale = (float)(1 / sqrt(h.dim));
    make_arrays(check, p);
    args->qkv = mb_check_values(check, dtype, args->n_tokens * (h.n + 2 * h.n_kv) * h.dim, -2, 2);
    float *inv_freq = mb_check_alloc(check, (size_t)(h.dim / 2) * sizeof *inv_freq);
    for (int32_t i = 0; i < h.dim / 2; i++)
        inv_freq[i] = (float)pow(1e6, -2.0 * i / h.dim);
    args->inv_freq = inv_freq;
    if (has_norm) {
        args->q_norm = mb_check_weight(check, MB_BF16, 1, 1, h.dim);
        args->k_norm = mb_check_weight(check, MB_F32, 1, 1, h.dim);
    }
    if (has_norm && cache_dtype == MB_F8_E4M3) {
        args->k_scale = ramp(check, h.n_kv, 0.3f);
        args->v_scale = ramp(check, h.n_kv, 0.5f);
    }
    size_t n_counters = (size_t)mb_decode_attention_counters(args) * sizeof *args->counters;
    args->counters = mb_check_alloc(check, n_counters);
    memset(args->counters, 0, n_counters);
}

static void check_case(mb_check *check, const batch *b, heads h, mb_dtype dtype, mb_dtype cache_dtype,
                       int has_norm) {
    problem p = {0};
    mb_decode_attention_args *args = &p.args;
    mb_check_begin(check, "decode_attention %s cache=%s%s S=%d%s q=%d kv=%d Hq=%d Hkv=%d D=%d R=%d",
                   mb_dtype_name(dtype), mb_dtype_name(cache_dtype), has_norm ? " norm" : "", b->n_sequences,
                   b->kind ? " random" : "", b->q_len[0], b->kv_len[0], h.n, h.n_kv, h.dim, h.rotary_dim);
    make_lengths(check, b, &p);
    fill_args(check, &p, h, dtype, cache_dtype, has_norm);
    int64_t n_out = args->n_tokens * h.n * h.dim, n_cache = (int64_t)p.n_blocks * h.n_kv * BLOCK * h.dim;
    size_t out_bytes = (size_t)n_out * mb_dtype_bytes(dtype),
           cache_bytes = (size_t)n_cache * mb_dtype_bytes(cache_dtype);
    args->k_cache = make_cache(check, &p, -2, 2);
    args->v_cache = make_cache(check, &p, -0.5, 1);
    void *k = copy(check, args->k_cache, cache_bytes), *v = copy(check, args->v_cache, cache_bytes);
    void *out = mb_check_alloc(check, out_bytes);
    run_parts(check, args, out, k, v);

    args->out = mb_check_alloc(check, out_bytes);
    size_t bytes = 0;
    mb_check_ok(check, check->ops->decode_attention_workspace(args, &bytes));
    void *workspace = mb_check_alloc(check, bytes);
    for (int i = 0; i < 2; i++) { /* the second call finds what the first one left */
        MB_CHECK_CALL(check, check->ops->decode_attention(args, workspace, bytes, check->stream));
        for (int64_t c = 0; c < mb_decode_attention_counters(args); c++)
            if (args->counters[c] != 0)
                mb_check_fail(check, "counter %lld is %d after call %d", (long long)c, args->counters[c], i);
        mb_check_compare(check, "out", dtype, args->out, values_of(check, dtype, out, n_out), n_out);
        compare_bytes(check, "out", args->out, out, out_bytes);
        compare_bytes(check, "k_cache", args->k_cache, k, cache_bytes);
        compare_bytes(check, "v_cache", args->v_cache, v, cache_bytes);
    }
    mb_check_end(check, 4.0 * args->max_kv_len * h.n * h.dim * (double)args->n_tokens,
                 2 * (double)cache_bytes);
}

void mb_decode_attention_cases(mb_check *check) {
    static const mb_dtype dtypes[] = {MB_BF16, MB_F16, MB_F32},
                          cache_dtypes[] = {MB_BF16, MB_F16, MB_F32, MB_F8_E4M3};
    static const batch batches[] = {
        {1, {1}, {1}, 0},
        {1, {1}, {65}, 0},
        {1, {1}, {128}, 0},
        {1, {1}, {256}, 0},
        {1, {1}, {257}, 0},
        {1, {8}, {261}, 0}, /* new tokens in two spans */
        {1, {7}, {135}, 0}, /* in two steps and two blocks */
        {4, {1, 5, 0, 3}, {130, 5, 70, 67}, 0},
        {3, {1, 2, 1}, {700, 64, 1025}, 0},
        {2, {2, 1}, {8500, 300}, 0}, /* more spans than one CTA merges */
        {40, {0}, {0}, RANDOM_LENGTHS},
        {MAX_SEQUENCES, {0}, {0}, RANDOM_LENGTHS},
    };
    static const heads shapes[] = {{8, 1, 128, 0}, {6, 2, 64, 0}, {20, 1, 64, 0},
                                   {1, 1, 128, 0}, {4, 4, 32, 0}, {4, 1, 64, 16}};
    enum { N_BATCHES = sizeof batches / sizeof batches[0] };
    for (size_t i = 0; i < N_BATCHES; i++)
        for (size_t j = 0; j < sizeof shapes / sizeof shapes[0]; j++)
            for (int a = 0; a < 3 && (shapes[j].rotary_dim == 0 || i < 5); a++)
                for (int c = 0; c < 4; c++)
                    /* On a GPU one kernel takes these alone; large batches need not be run with all others. */
                    if (i + 3 < N_BATCHES || (dtypes[a] == MB_BF16 && (c == 0 || c == 3)))
                        check_case(check, &batches[i], shapes[j], dtypes[a], cache_dtypes[c],
                                   (i + j) % 3 != 0);
}
