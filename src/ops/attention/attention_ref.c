#include "ops/attention/attention.h"

#include "ops/common/dtype.h"
#include "ops/common/parallel.h"
#include "ops/common/tensor.h"
#include "ops/common/vector.h"

#include <inttypes.h>
#include <math.h>

/*
 * Schedule: a work item is one query token and one kv head. Up to HEAD_GROUP query heads of that kv head walk
 * the cached positions together, block by block from position 0, so that each row of K and V is widened once.
 * Per block: scores, new maximum, sums rescaled, probabilities, sums increased (online softmax, Milakov and
 * Gimelshein 2018). The walk of one query head depends on its own position alone.
 */
enum { BLOCK = 64, MAX_HEAD_DIM = 512, HEAD_GROUP = 8 };

typedef struct head_state {
    _Alignas(64) float q[MAX_HEAD_DIM]; /* scaled, zero-padded to whole vectors */
    _Alignas(64) float sum[MAX_HEAD_DIM];
    _Alignas(64) float weights[BLOCK]; /* scores, then probabilities, of the present block */
    float maximum, total;
} head_state;

/* Row of the cache in fp32, zero-padded: in place if it is that already. */
static const float *widen_row(const mb_attention_args *args, const void *cache, int64_t row, float *buffer) {
    int64_t d = args->head_dim;
    if (args->cache_dtype == MB_F32 && d % MB_LANES == 0)
        return (const float *)cache + row * d;
    mb_load_f32(args->cache_dtype, cache, row * d, d, buffer);
    memset(buffer + d, 0, (size_t)(mb_pad_lanes(d) - d) * sizeof *buffer);
    return buffer;
}

static float dot(const float *a, const float *b, int64_t n) {
    mb_f32x16 sums = {0};
    for (int64_t i = 0; i < n; i += MB_LANES)
        sums += *(const mb_f32x16_unaligned *)(a + i) * *(const mb_f32x16_unaligned *)(b + i);
    return mb_sum_lanes(&sums);
}

/* Scores in .weights become probabilities relative to the new maximum; former sums are brought to it too. */
static void advance_softmax(head_state *head, int64_t d) {
    float maximum = head->maximum;
    for (int i = 0; i < BLOCK; i++)
        maximum = head->weights[i] > maximum ? head->weights[i] : maximum;
    float correction = mb_exp(head->maximum - maximum);
    mb_f32x16 lanes = {0};
    for (int i = 0; i < BLOCK; i++)
        head->weights[i] = mb_exp(head->weights[i] - maximum);
    for (int i = 0; i < BLOCK; i += MB_LANES)
        lanes += *(const mb_f32x16_unaligned *)(head->weights + i);
    head->total = head->total * correction + mb_sum_lanes(&lanes);
    for (int64_t i = 0; i < d; i++)
        head->sum[i] *= correction;
    head->maximum = maximum;
}

/* One block of one kv head; `n` of its positions are visible. */
static void attend_block(const mb_attention_args *args, int64_t first_row, int n, int n_heads,
                         head_state *heads) {
    _Alignas(64) float buffer[MAX_HEAD_DIM];
    int64_t d = mb_pad_lanes(args->head_dim);
    for (int j = 0; j < n; j++) {
        const float *k = widen_row(args, args->k_cache, first_row + j, buffer);
        for (int h = 0; h < n_heads; h++)
            heads[h].weights[j] = dot(heads[h].q, k, d);
    }
    for (int h = 0; h < n_heads; h++) {
        for (int j = n; j < BLOCK; j++)
            heads[h].weights[j] = -INFINITY;
        advance_softmax(&heads[h], d);
    }
    for (int j = 0; j < n; j++) {
        const float *v = widen_row(args, args->v_cache, first_row + j, buffer);
        for (int h = 0; h < n_heads; h++) {
            float weight = heads[h].weights[j];
            for (int64_t i = 0; i < d; i++)
                heads[h].sum[i] += weight * v[i];
        }
    }
}

static int32_t sequence_of_token(const mb_attention_args *args, int64_t t) {
    int32_t low = 0, high = args->n_sequences; /* q_start[low] <= t < q_start[high] */
    while (high - low > 1) {
        int32_t middle = low + (high - low) / 2;
        if (args->q_start[middle] <= t)
            low = middle;
        else
            high = middle;
    }
    return low;
}

static void attend(const mb_attention_args *args, int64_t t, int32_t kv_head, int32_t first_head,
                   int32_t n_heads) {
    int32_t s = sequence_of_token(args, t), d = args->head_dim;
    int32_t n_visible = args->kv_len[s] - args->q_start[s + 1] + (int32_t)t + 1;
    const int32_t *blocks = args->block_table + (int64_t)s * args->max_blocks;
    float q_scale = args->k_scale ? args->scale * args->k_scale[kv_head] : args->scale;
    head_state heads[HEAD_GROUP];
    for (int h = 0; h < n_heads; h++) {
        memset(&heads[h], 0, sizeof heads[h]);
        heads[h].maximum = -INFINITY;
        mb_load_f32(args->dtype, args->q, (t * args->n_heads + first_head + h) * d, d, heads[h].q);
        for (int32_t i = 0; i < d; i++)
            heads[h].q[i] *= q_scale;
    }
    for (int32_t position = 0; position < n_visible; position += BLOCK) {
        int n = n_visible - position < BLOCK ? n_visible - position : BLOCK;
        int64_t block = blocks[position / BLOCK];
        attend_block(args, (block * args->n_kv_heads + kv_head) * BLOCK, n, n_heads, heads);
    }
    for (int h = 0; h < n_heads; h++) {
        for (int32_t i = 0; i < d; i++)
            heads[h].sum[i] /= heads[h].total;
        for (int32_t i = 0; args->v_scale && i < d; i++)
            heads[h].sum[i] *= args->v_scale[kv_head];
        mb_store_f32(args->dtype, args->out, (t * args->n_heads + first_head + h) * d, d, heads[h].sum);
    }
}

static void attend_item(const void *context, int64_t item) {
    const mb_attention_args *args = context;
    int32_t heads_per_kv = args->n_heads / args->n_kv_heads, kv_head = (int32_t)(item % args->n_kv_heads);
    for (int32_t h = 0; h < heads_per_kv; h += HEAD_GROUP)
        attend(args, item / args->n_kv_heads, kv_head, kv_head * heads_per_kv + h,
               heads_per_kv - h < HEAD_GROUP ? heads_per_kv - h : HEAD_GROUP);
}

mb_status mb_attention_ref_workspace(const mb_attention_args *most, size_t *bytes) {
    (void)most;
    *bytes = 0;
    return MB_OK;
}

mb_status mb_attention_check_sizes(const mb_attention_args *args) {
    MB_REQUIRE(args->n_tokens >= 0 && args->n_tokens <= INT32_MAX, "attention: n_tokens is %" PRId64,
               args->n_tokens);
    MB_REQUIRE(args->n_heads > 0 && args->n_kv_heads > 0 && args->n_heads % args->n_kv_heads == 0,
               "attention: n_heads is %d, not a multiple of n_kv_heads, %d", args->n_heads, args->n_kv_heads);
    MB_REQUIRE(args->head_dim > 0 && args->head_dim <= MAX_HEAD_DIM,
               "attention: head_dim is %d, not in 1 .. %d", args->head_dim, MAX_HEAD_DIM);
    MB_REQUIRE(mb_dtype_is_activation(args->dtype), "attention: dtype %s (%d) is not one of activations",
               mb_dtype_name(args->dtype), (int)args->dtype);
    MB_REQUIRE(mb_dtype_is_activation(args->cache_dtype) || args->cache_dtype == MB_F8_E4M3,
               "attention: cache_dtype %s (%d) is not one of fp32, bf16, fp16, fp8_e4m3",
               mb_dtype_name(args->cache_dtype), (int)args->cache_dtype);
    MB_REQUIRE(args->cache_dtype == MB_F8_E4M3 || (!args->k_scale && !args->v_scale),
               "attention: k_scale or v_scale is set, but a cache of %s has none",
               mb_dtype_name(args->cache_dtype));
    return MB_OK;
}

mb_status mb_attention_check(const mb_attention_args *args) {
    MB_TRY(mb_attention_check_sizes(args));
    if (args->n_tokens == 0)
        return MB_OK;
    MB_REQUIRE(args->q && args->k_cache && args->v_cache && args->q_start && args->kv_len &&
                   args->block_table && args->out,
               "attention: one of q, k_cache, v_cache, q_start, kv_len, block_table, out is NULL");
    MB_REQUIRE(args->q != args->out, "attention: out is q");
    MB_REQUIRE(args->n_sequences > 0, "attention: n_sequences is %d for %" PRId64 " tokens",
               args->n_sequences, args->n_tokens);
    return MB_OK;
}

mb_status mb_attention_check_arrays(const mb_attention_args *args) {
    MB_TRY(mb_attention_check(args));
    if (args->n_tokens == 0)
        return MB_OK;
    MB_REQUIRE(args->q_start[0] == 0 && args->q_start[args->n_sequences] == args->n_tokens,
               "attention: q_start runs from %d to %d, not from 0 to n_tokens, %" PRId64, args->q_start[0],
               args->q_start[args->n_sequences], args->n_tokens);
    for (int32_t s = 0; s < args->n_sequences; s++) {
        const int64_t q_len = (int64_t)args->q_start[s + 1] - args->q_start[s];
        MB_REQUIRE(q_len >= 0, "attention: q_start falls at sequence %d", s);
        MB_REQUIRE(args->kv_len[s] >= q_len, "attention: kv_len[%d] is %d, less than its %" PRId64 " queries",
                   s, args->kv_len[s], q_len);
        MB_REQUIRE(args->kv_len[s] <= (int64_t)args->max_blocks * BLOCK,
                   "attention: kv_len[%d] is %d, more than max_blocks, %d, can hold", s, args->kv_len[s],
                   args->max_blocks);
        /* A GPU cannot look: it leaves out what is beyond them. */
        MB_REQUIRE(q_len <= args->max_q_len,
                   "attention: sequence %d has %" PRId64 " queries, max_q_len is %d", s, q_len,
                   args->max_q_len);
        MB_REQUIRE(args->kv_len[s] <= args->max_kv_len, "attention: kv_len[%d] is %d, max_kv_len %d", s,
                   args->kv_len[s], args->max_kv_len);
    }
    return MB_OK;
}

mb_status mb_attention_ref(const mb_attention_args *args, void *workspace, size_t workspace_bytes,
                           mb_stream stream) {
    (void)workspace;
    (void)workspace_bytes;
    MB_TRY(mb_attention_check_arrays(args));
    double work = 2.0 * (double)args->n_tokens * args->n_heads * args->head_dim * args->max_kv_len;
    mb_parallel_for(stream, work, args->n_tokens * args->n_kv_heads, attend_item, args);
    return MB_OK;
}
