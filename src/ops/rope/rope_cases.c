#include "ops/common/check.h"

#include <math.h>
#include <string.h>

typedef struct shape {
    int64_t n_tokens;
    int32_t n_heads, n_kv_heads, head_dim, rotary_dim; /* rotary_dim 0: all */
} shape;

/* What one head becomes: normalised if there is a weight, then rotated by the position's angles. */
static void expect_head(const mb_qk_norm_rope_store_args *args, const mb_weight *norm, int64_t first,
                        int32_t position, double *out) {
    int32_t d = args->head_dim, rotated = mb_rotated_dims(args->rotary_dim, d), half = rotated / 2;
    double normed[512], squares = 0;
    for (int32_t i = 0; i < d; i++)
        squares += pow(mb_check_value(args->dtype, args->qkv, first + i), 2);
    for (int32_t i = 0; i < d; i++) {
        normed[i] = mb_check_value(args->dtype, args->qkv, first + i);
        if (norm->data)
            normed[i] *= mb_check_weight_value(norm, 0, 0, i) / sqrt(squares / d + (double)args->eps);
    }
    for (int32_t i = 0; i < d; i++) {
        if (i >= rotated) {
            out[i] = normed[i];
            continue;
        }
        /* the angle is an fp32 product by contract; all else is exact */
        double angle = (double)((float)position * args->inv_freq[i % half]);
        double other = i < half ? -normed[i + half] : normed[i - half];
        out[i] = (normed[i] * cos(angle) + other * sin(angle)) * (double)args->rope_scale;
    }
}

static void check_case(mb_check *check, shape s, mb_dtype dtype, mb_dtype cache_dtype, int with_norm) {
    mb_check_begin(check, "qk_norm_rope_store %s cache=%s T=%lld Hq=%d Hkv=%d D=%d R=%d%s",
                   mb_dtype_name(dtype), mb_dtype_name(cache_dtype), (long long)s.n_tokens, s.n_heads,
                   s.n_kv_heads, s.head_dim, s.rotary_dim, with_norm ? " norm" : "");
    int32_t d = s.head_dim, rotated = mb_rotated_dims(s.rotary_dim, d), heads = s.n_heads + 2 * s.n_kv_heads;
    int64_t n_blocks = s.n_tokens / MB_KV_BLOCK + 2, n_cache = n_blocks * s.n_kv_heads * MB_KV_BLOCK * d;
    int64_t n_slots = n_blocks * MB_KV_BLOCK, n_q = s.n_tokens * s.n_heads * d;
    int32_t *positions = mb_check_alloc(check, (size_t)s.n_tokens * sizeof *positions);
    int32_t *slots = mb_check_alloc(check, (size_t)s.n_tokens * sizeof *slots);
    float *inv_freq = mb_check_alloc(check, (size_t)(rotated / 2) * sizeof *inv_freq);
    for (int32_t i = 0; i < rotated / 2; i++)
        inv_freq[i] = (float)pow(1e6, -2.0 * i / rotated);
    for (int64_t t = 0; t < s.n_tokens; t++) { /* slots scattered; every fifth token is not stored */
        positions[t] = (int32_t)(mb_check_random(check) % 40000);
        slots[t] = t % 5 == 4 ? -1 : (int32_t)((t * 29 + 7) % n_slots);
    }
    size_t cache_bytes = (size_t)n_cache * mb_dtype_bytes(cache_dtype);
    mb_qk_norm_rope_store_args args = {
        .qkv = mb_check_values(check, dtype, s.n_tokens * heads * d, -2, 2),
        .positions = positions,
        .slots = slots,
        .inv_freq = inv_freq,
        .q = mb_check_alloc(check, (size_t)n_q * mb_dtype_bytes(dtype)),
        .k_cache = mb_check_alloc(check, cache_bytes),
        .v_cache = mb_check_alloc(check, cache_bytes),
        .n_tokens = s.n_tokens,
        .n_heads = s.n_heads,
        .n_kv_heads = s.n_kv_heads,
        .head_dim = d,
        .rotary_dim = s.rotary_dim,
        .eps = 1e-6f,
        .rope_scale = 1.25f,
        .dtype = dtype,
        .cache_dtype = cache_dtype,
    };
    float *scales = NULL;
    if (cache_dtype == MB_F8_E4M3 && with_norm) {
        scales = mb_check_alloc(check, (size_t)s.n_kv_heads * sizeof *scales);
        for (int32_t h = 0; h < s.n_kv_heads; h++)
            scales[h] = 0.3f + 0.1f * (float)h;
        args.k_scale = args.v_scale = scales;
    }
    if (with_norm) {
        args.q_norm = mb_check_weight(check, MB_BF16, 1, 1, d);
        args.k_norm = mb_check_weight(check, MB_F32, 1, 1, d);
    }
    /* Rows of the cache that no token stores must stay as they are: a value that no input can give. */
    float untouched = 7;
    double *q = mb_check_alloc(check, (size_t)n_q * sizeof *q);
    double *k = mb_check_alloc(check, (size_t)n_cache * sizeof *k);
    double *v = mb_check_alloc(check, (size_t)n_cache * sizeof *v);
    void *k_before = mb_check_values(check, cache_dtype, n_cache, 7, 7), *v_before = k_before;
    for (int64_t i = 0; i < n_cache; i++)
        k[i] = v[i] = (double)untouched;
    memcpy(args.k_cache, k_before, cache_bytes);
    memcpy(args.v_cache, v_before, cache_bytes);

    for (int64_t t = 0; t < s.n_tokens; t++) {
        for (int32_t h = 0; h < s.n_heads; h++)
            expect_head(&args, &args.q_norm, (t * heads + h) * d, positions[t], q + (t * s.n_heads + h) * d);
        for (int32_t h = 0; h < s.n_kv_heads && slots[t] >= 0; h++) {
            int64_t row = ((int64_t)(slots[t] / 64) * s.n_kv_heads + h) * 64 + slots[t] % 64;
            expect_head(&args, &args.k_norm, (t * heads + s.n_heads + h) * d, positions[t], k + row * d);
            double scale = scales ? (double)scales[h] : 1;
            for (int32_t i = 0; i < d; i++) {
                k[row * d + i] /= scale;
                v[row * d + i] =
                    mb_check_value(dtype, args.qkv, (t * heads + s.n_heads + s.n_kv_heads + h) * d + i) /
                    scale;
            }
        }
    }
    MB_CHECK_CALL(check, check->ops->qk_norm_rope_store(&args, check->stream));
    mb_check_compare(check, "q", dtype, args.q, q, n_q);
    mb_check_compare(check, "k_cache", cache_dtype, args.k_cache, k, n_cache);
    mb_check_compare(check, "v_cache", cache_dtype, args.v_cache, v, n_cache);
    double n = (double)s.n_tokens * heads * d;
    mb_check_end(check, 10 * n, 2 * n * (double)mb_dtype_bytes(dtype));
}

void mb_rope_cases(mb_check *check) {
    static const mb_dtype dtypes[] = {MB_F32, MB_BF16, MB_F16, MB_F8_E4M3};
    static const shape shapes[] = {{0, 4, 2, 64, 0},     {1, 1, 1, 2, 0},     {3, 3, 1, 18, 0},
                                   {13, 8, 2, 64, 0},    {70, 32, 4, 128, 0}, {2, 4, 4, 512, 0},
                                   {5, 3, 1, 18, 2},     {13, 8, 2, 64, 32},  {9, 16, 2, 256, 64},
                                   {3, 32, 4, 128, 126}, {4, 4, 1, 64, 64}};
    for (size_t s = 0; s < sizeof shapes / sizeof shapes[0]; s++)
        for (int a = 0; a < 3; a++)
            for (int b = 0; b < 4; b++)
                for (int norm = 0; norm < 2; norm++)
                    check_case(check, shapes[s], dtypes[a], dtypes[b], norm);
}
