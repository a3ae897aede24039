/*
 * attention.c - a layer's attention with the operators alone, on the CPU: a prompt goes into a paged KV
 * cache in two chunks of odd sizes, then in one piece into another. The results have the same bits.
 */
#include <math.h>
#include <moebius/layers.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { TOKENS = 100, FIRST = 67, HEADS = 8, KV_HEADS = 2, DIM = 32, BLOCKS = 4, MAX_BLOCKS = 2 };
enum { QKV = (HEADS + 2 * KV_HEADS) * DIM, CACHE = BLOCKS * KV_HEADS * MB_KV_BLOCK * DIM };

static float qkv[TOKENS * QKV], inv_freq[DIM / 2], q[TOKENS * HEADS * DIM], k_cache[CACHE], v_cache[CACHE];
static float in_chunks[TOKENS * HEADS * DIM], at_once[TOKENS * HEADS * DIM];

static void check(mb_status status) {
    if (status == MB_OK)
        return;
    fprintf(stderr, "attention: %s\n", mb_last_error());
    exit(1);
}

/* The positions [first, end) of a sequence whose blocks are those of `table`: their q to attend with,
 * their k and v into the cache; then attention to all positions up to each. */
static void attend(const int32_t *table, int32_t first, int32_t end, float *out) {
    int32_t positions[TOKENS], slots[TOKENS];
    const int32_t n_tokens = end - first, q_start[2] = {0, n_tokens};
    for (int32_t t = 0; t < n_tokens; t++) {
        positions[t] = first + t;
        slots[t] = table[positions[t] / MB_KV_BLOCK] * MB_KV_BLOCK + positions[t] % MB_KV_BLOCK;
    }
    mb_qk_norm_rope_store_args store = {
        .qkv = qkv + first * QKV, /* without norms of the heads: q_norm and k_norm are left empty */
        .positions = positions,
        .slots = slots,
        .inv_freq = inv_freq,
        .q = q,
        .k_cache = k_cache,
        .v_cache = v_cache,
        .n_tokens = n_tokens,
        .n_heads = HEADS,
        .n_kv_heads = KV_HEADS,
        .head_dim = DIM,
        .rope_scale = 1,
    };
    check(mb_qk_norm_rope_store(&store, NULL));
    mb_attention_args attention = {
        .q = q,
        .k_cache = k_cache,
        .v_cache = v_cache,
        .q_start = q_start,
        .kv_len = &end,
        .block_table = table,
        .out = out + first * HEADS * DIM,
        .n_tokens = n_tokens,
        .n_sequences = 1,
        .max_blocks = MAX_BLOCKS,
        .max_q_len = n_tokens,
        .max_kv_len = end,
        .n_heads = HEADS,
        .n_kv_heads = KV_HEADS,
        .head_dim = DIM,
        .scale = 1 / sqrtf(DIM),
    };
    size_t n_bytes;
    check(mb_attention_workspace(&attention, &n_bytes));
    void *workspace = n_bytes > 0 ? aligned_alloc(256, (n_bytes + 255) / 256 * 256) : NULL;
    check(mb_attention(&attention, workspace, n_bytes, NULL));
    free(workspace);
}

int main(void) {
    for (int i = 0; i < TOKENS * QKV; i++)
        qkv[i] = 2 * (float)rand() / (float)RAND_MAX - 1;
    for (int i = 0; i < DIM / 2; i++)
        inv_freq[i] = powf(10000, -2.0f * (float)i / DIM);

    const int32_t table[MAX_BLOCKS] = {3, 0}, other_table[MAX_BLOCKS] = {1, 2};
    attend(table, 0, FIRST, in_chunks);
    attend(table, FIRST, TOKENS, in_chunks);
    attend(other_table, 0, TOKENS, at_once);
    const float *last = at_once + (TOKENS - 1) * HEADS * DIM;
    printf("the last token: %.4f, %.4f, ...\n", (double)last[0], (double)last[1]);
    int same = memcmp(in_chunks, at_once, sizeof at_once) == 0;
    printf("in two chunks: %s\n", same ? "the same bits" : "differs");
    return same ? 0 : 1;
}
