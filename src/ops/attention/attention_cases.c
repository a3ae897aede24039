#include "ops/common/check.h"

#include <math.h>

enum { MAX_SEQUENCES = 4, BLOCK = 64 };

/* q_len queries that are the last of kv_len positions, per sequence */
typedef struct batch {
    int32_t n_sequences, q_len[MAX_SEQUENCES], kv_len[MAX_SEQUENCES];
} batch;

typedef struct heads {
    int32_t n, n_kv, dim;
} heads;

static int64_t cache_row(const mb_attention_args *args, int32_t s, int32_t kv_head, int32_t position) {
    int64_t block = args->block_table[s * args->max_blocks + position / BLOCK];
    return ((block * args->n_kv_heads + kv_head) * BLOCK + position % BLOCK) * args->head_dim;
}

/* softmax(q k^T scale) v over positions [0, n), in two passes. */
static void expect_head(const mb_attention_args *args, int32_t s, int64_t t, int32_t head, int32_t n,
                        double *scores, double *out) {
    int32_t d = args->head_dim, kv_head = head / (args->n_heads / args->n_kv_heads);
    double maximum = -INFINITY, total = 0;
    for (int32_t p = 0; p < n; p++) {
        int64_t row = cache_row(args, s, kv_head, p);
        scores[p] = 0;
        for (int32_t i = 0; i < d; i++)
            scores[p] += mb_check_value(args->dtype, args->q, (t * args->n_heads + head) * d + i) *
                         mb_check_value(args->cache_dtype, args->k_cache, row + i) * (double)args->scale *
                         (args->k_scale ? (double)args->k_scale[kv_head] : 1);
        maximum = fmax(maximum, scores[p]);
    }
    for (int32_t p = 0; p < n; p++)
        total += exp(scores[p] - maximum);
    for (int32_t i = 0; i < d; i++)
        out[i] = 0;
    for (int32_t p = 0; p < n; p++)
        for (int32_t i = 0; i < d; i++)
            out[i] += exp(scores[p] - maximum) / total *
                      mb_check_value(args->cache_dtype, args->v_cache, cache_row(args, s, kv_head, p) + i) *
                      (args->v_scale ? (double)args->v_scale[kv_head] : 1);
}

/* A scale for each head, not a power of two. */
static float *head_scales(mb_check *check, int32_t n) {
    float *scales = mb_check_alloc(check, (size_t)n * sizeof *scales);
    for (int32_t i = 0; i < n; i++)
        scales[i] = 0.3f + 0.1f * (float)i;
    return scales;
}

static void check_case(mb_check *check, const batch *b, heads h, mb_dtype dtype, mb_dtype cache_dtype,
                       int has_scales) {
    int32_t n_tokens = 0, n_blocks = 0, max_q_len = 0, max_kv_len = 0;
    for (int32_t s = 0; s < b->n_sequences; s++) {
        n_tokens += b->q_len[s];
        n_blocks += (b->kv_len[s] + BLOCK - 1) / BLOCK;
        max_q_len = b->q_len[s] > max_q_len ? b->q_len[s] : max_q_len;
        max_kv_len = b->kv_len[s] > max_kv_len ? b->kv_len[s] : max_kv_len;
    }
    int64_t n_cache = (int64_t)n_blocks * h.n_kv * BLOCK * h.dim;
    mb_check_begin(check, "attention %s cache=%s%s S=%d T=%d longest=%d Hq=%d Hkv=%d D=%d",
                   mb_dtype_name(dtype), mb_dtype_name(cache_dtype), has_scales ? " scaled" : "",
                   b->n_sequences, n_tokens, max_kv_len, h.n, h.n_kv, h.dim);
    int32_t max_blocks = (max_kv_len + BLOCK - 1) / BLOCK + 1;
    int32_t *block_table =
        mb_check_alloc(check, (size_t)b->n_sequences * (size_t)max_blocks * sizeof *block_table);
    int32_t *q_start = mb_check_alloc(check, (MAX_SEQUENCES + 1) * sizeof *q_start);
    int32_t *kv_len = mb_check_alloc(check, MAX_SEQUENCES * sizeof *kv_len);
    q_start[0] = 0;
    for (int32_t s = 0; s < b->n_sequences; s++) {
        q_start[s + 1] = q_start[s] + b->q_len[s];
        kv_len[s] = b->kv_len[s];
    }
    int64_t n_out = (int64_t)n_tokens * h.n * h.dim;
    double *expected = mb_check_alloc(check, (size_t)n_out * sizeof *expected);
    double *scores = mb_check_alloc(check, (size_t)max_kv_len * sizeof *scores);
    mb_attention_args args = {
        .q = mb_check_values(check, dtype, n_out, -2, 2),
        .k_cache = mb_check_values(check, cache_dtype, n_cache, -2, 2),
        /* Not around 0: with one value a head, the sum of many would nearly vanish beside its terms. */
        .v_cache = mb_check_values(check, cache_dtype, n_cache, -0.5, 1),
        .q_start = q_start,
        .kv_len = kv_len,
        .block_table = block_table,
        .out = mb_check_alloc(check, (size_t)n_out * mb_dtype_bytes(dtype)),
        .n_tokens = n_tokens,
        .n_sequences = b->n_sequences,
        .max_blocks = max_blocks,
        .max_q_len = max_q_len,
        .max_kv_len = max_kv_len,
        .n_heads = h.n,
        .n_kv_heads = h.n_kv,
        .head_dim = h.dim,
        .scale = (float)(1 / sqrt(h.dim)),
        .dtype = dtype,
        .cache_dtype = cache_dtype,
        .k_scale = has_scales ? head_scales(check, h.n_kv) : NULL,
        .v_scale = has_scales ? head_scales(check, h.n_kv) : NULL,
    };
    /* The pool's blocks are dealt out backwards and in turn; entries behind the last one stay poisoned. */
    for (int32_t i = 0, next = n_blocks; i < max_blocks; i++)
        for (int32_t s = 0; s < b->n_sequences; s++)
            if (i < (b->kv_len[s] + BLOCK - 1) / BLOCK)
                block_table[s * max_blocks + i] = --next;
    double n_pairs = 0;
    for (int32_t s = 0; s < b->n_sequences; s++)
        for (int32_t i = 0; i < b->q_len[s]; i++) {
            int64_t t = q_start[s] + i;
            int32_t n_visible = b->kv_len[s] - b->q_len[s] + i + 1;
            n_pairs += n_visible;
            for (int32_t head = 0; head < h.n; head++)
                expect_head(&args, s, t, head, n_visible, scores, expected + (t * h.n + head) * h.dim);
        }
    size_t workspace_bytes = 0;
    mb_check_ok(check, check->ops->attention_workspace(&args, &workspace_bytes));
    void *workspace = mb_check_alloc(check, workspace_bytes);
    MB_CHECK_CALL(check, check->ops->attention(&args, workspace, workspace_bytes, check->stream));
    mb_check_compare(check, "out", dtype, args.out, expected, n_out);
    mb_check_end(check, 4 * n_pairs * h.n * h.dim, 2 * (double)n_cache * (double)mb_dtype_bytes(cache_dtype));
}

void mb_attention_cases(mb_check *check) {
    static const mb_dtype dtypes[] = {MB_F32, MB_BF16, MB_F16, MB_F8_E4M3};
    static const batch batches[] = {
        {1, {0}, {0}},
        {1, {1}, {1}},
        {1, {1}, {65}},
        {1, {64}, {64}},
        {4, {1, 5, 0, 3}, {130, 5, 70, 67}}, /* decode, whole prompt, nothing, a later chunk */
        {2, {1, 1}, {700, 64}},
    };
    static const heads shapes[] = {{1, 1, 1}, {6, 2, 17}, {4, 4, 64}, {20, 2, 32}, {8, 1, 128}};
    for (size_t i = 0; i < sizeof batches / sizeof batches[0]; i++)
        for (size_t j = 0; j < sizeof shapes / sizeof shapes[0]; j++)
            for (int a = 0; a < 3; a++)
                for (int c = 0; c < 4; c++)
                    check_case(check, &batches[i], shapes[j], dtypes[a], dtypes[c], c == 3 && j % 2);
    /* Whole steps of 128 positions and spans of 256, tiles of 128 rows that are full and that are not: one
     * type each, for the reference in fp64 is slow. */
    static const batch long_ones[] = {
        {1, {20}, {290}},
        {3, {30, 1, 13}, {30, 270, 145}},
    };
    static const heads grouped[] = {{8, 1, 128}, {10, 2, 64}, {12, 1, 128}};
    static const mb_dtype pairs[][2] = {{MB_BF16, MB_BF16}, {MB_BF16, MB_F8_E4M3}, {MB_F16, MB_F16}};
    for (size_t i = 0; i < sizeof long_ones / sizeof long_ones[0]; i++)
        for (size_t j = 0; j < sizeof grouped / sizeof grouped[0]; j++)
            check_case(check, &long_ones[i], grouped[j], pairs[j][0], pairs[j][1], (int)(j == 1));
    static const heads widest = {2, 1, 512};
    check_case(check, &batches[4], widest, MB_F32, MB_F32, 0);
}
