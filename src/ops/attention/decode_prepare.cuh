/*
 * decode_prepare.cuh - from the projection's rows to an item's queries, and to k and v of the new tokens that its span
 * has: in shared memory as the cache has them, and in the cache.
 */
#ifndef MB_OPS_ATTENTION_DECODE_PREPARE_CUH
#define MB_OPS_ATTENTION_DECODE_PREPARE_CUH

#include "ops/attention/decode.cuh"
#include "ops/common/rotary.cuh"

/* What all items need. */
template <class shape, int dim>
static __device__ __forceinline__ void load_constants(const mb_qk_norm_rope_store_args *rope,
                                                      shared_map<shape, dim> *s) {
    for (int i = threadIdx.x; i < dim; i += N_CONSUMERS) {
        s->q_norm[i] = rope->q_norm.data ? mb_element_load(rope->q_norm.dtype, rope->q_norm.data, i) : 0;
        s->k_norm[i] = rope->k_norm.data ? mb_element_load(rope->k_norm.dtype, rope->k_norm.data, i) : 0;
        if (i < dim / 2)
            s->inv_freq[i] = rope->inv_freq[i];
    }
}

/* weight: [dim] fp32 in shared memory. */
template <int dim>
static __device__ __forceinline__ void norm_head(const float *weight, float eps, mb_head<dim / 64> *head) {
    mb_head<dim / 64> w;
    mb_head_load(MB_F32, weight, 0, dim / 2, &w);
    mb_head_norm(&w, eps, dim, head);
}

/* The span's new tokens [begin, end), of those of the sequence; `stored` has a bit for each with a slot. */
typedef struct new_tokens {
    int32_t begin, end;
    uint32_t stored;
} new_tokens;

/* All but `stored`, which takes a load. */
static __device__ __forceinline__ new_tokens find_new(const item *it) {
    const int32_t before = it->kv_len - it->q_len, position = it->i_span * SPAN;
    return {max(0, position - before), min(it->q_len, position + SPAN - before), 0};
}

static __device__ __forceinline__ uint32_t find_stored(const mb_qk_norm_rope_store_args *rope, const item *it,
                                                       const new_tokens *n) {
    const int32_t lane = threadIdx.x % 32;
    return __ballot_sync(0xffffffff,
                         lane >= n->begin && lane < n->end && rope->slots[it->q_base + lane] >= 0);
}

/* Puts a head's elements at to[i] of the cache's type, or where `place` says. */
template <int cache_dtype, int dim>
static __device__ __forceinline__ void store_head(void *to, int64_t at, float scale,
                                                  const mb_head<dim / 64> *head) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int i = 0; i < dim / 64; i++) {
        mb_cache_store((mb_dtype)cache_dtype, to, at + lane + 32 * i, __fdiv_rn(head->low[i], scale));
        mb_cache_store((mb_dtype)cache_dtype, to, at + dim / 2 + lane + 32 * i,
                       __fdiv_rn(head->high[i], scale));
    }
}

/* Queries as the tensor cores' A reads them. */
template <int dtype, int dim>
static __device__ __forceinline__ void store_query(unsigned char *queries, int r,
                                                   const mb_head<dim / 64> *head) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int i = 0; i < dim / 64; i++)
#pragma unroll
        for (int is_high = 0; is_high < 2; is_high++) {
            const int d = lane + 32 * i + is_high * (dim / 2);
            mb_element_store((mb_dtype)dtype, queries + r * 2 * dim + (d / 8 ^ r % 8) * 16, d % 8,
                             is_high ? head->high[i] : head->low[i]);
        }
}

/* New k and v are a warp's jobs one by one: first k of the first token, then its v. */
template <int dtype, int dim>
static __device__ __forceinline__ void load_new(const mb_qk_norm_rope_store_args *rope, const item *it,
                                                const new_tokens *fresh, int job, mb_head<dim / 64> *head) {
    const int32_t n_q = rope->n_heads, n_kv = rope->n_kv_heads, token = it->q_base + fresh->begin + job / 2;
    const int64_t i_head = (int64_t)token * (n_q + 2 * n_kv) + n_q + job % 2 * n_kv + it->kv_head;
    if (job < 2 * (fresh->end - fresh->begin))
        mb_head_load((mb_dtype)dtype, rope->qkv, i_head * dim, dim / 2, head);
}

template <int cache_dtype, int dim, class shape>
static __device__ __forceinline__ void make_new(const decode_params *p, shared_map<shape, dim> *s,
                                                const item *it, const float *cosines, const float *sines,
                                                int32_t token, int is_v, mb_head<dim / 64> *head) {
    const mb_qk_norm_rope_store_args *rope = &p->rope;
    const int32_t slot = rope->slots[it->q_base + token];
    if (!is_v) {
        if (rope->k_norm.data)
            norm_head<dim>(s->k_norm, rope->eps, head);
        mb_head_rotate(cosines + token * (dim / 2), sines + token * (dim / 2), dim / 2, head);
    }
    const float *scales = is_v ? rope->v_scale : rope->k_scale;
    const float scale = scales ? scales[it->kv_head] : 1;
    store_head<cache_dtype, dim>(s->fresh[is_v][token], 0, scale, head);
    if (it->first == 0) {
        const int64_t row = ((int64_t)(slot / BLOCK) * rope->n_kv_heads + it->kv_head) * BLOCK + slot % BLOCK;
        store_head<cache_dtype, dim>(is_v ? rope->v_cache : rope->k_cache, row * dim, scale, head);
    }
}

/* Queries, and the new tokens' k and v, of an item. All consumers call it; they see all of it afterwards. What
 * the item needs of the kernels in front is loaded at once, before the first of it is waited for. */
template <int dtype, int cache_dtype, int dim, class shape>
static __device__ __forceinline__ new_tokens prepare(const decode_params *p, shared_map<shape, dim> *s,
                                                     const item *it) {
    constexpr int n_rows = ROWS / N_WARPS, half = dim / 2;
    const mb_qk_norm_rope_store_args *rope = &p->rope;
    const int warp = threadIdx.x / 32, n_heads = rope->n_heads + 2 * rope->n_kv_heads;
    float *cosines = (float *)(s->weights + ROWS * 128 * 2), *sines = cosines + TOKENS * half;
    mb_head<dim / 64> heads[n_rows], new_head;
    int32_t tokens[n_rows];
#pragma unroll
    for (int i = 0; i < n_rows; i++) {
        const int32_t row = it->first + warp + i * N_WARPS;
        tokens[i] = token_of_row(it, row);
        if (row < it->q_len * it->group) {
            const int32_t head = it->kv_head * it->group + row - tokens[i] * it->group;
            mb_head_load((mb_dtype)dtype, rope->qkv,
                         ((int64_t)(it->q_base + tokens[i]) * n_heads + head) * dim, half, &heads[i]);
        }
    }
    const int n_angles = it->q_len * half;
    int angle = threadIdx.x;
    int32_t position = angle < n_angles ? rope->positions[it->q_base + angle / half] : 0;
    new_tokens fresh = find_new(it);
    load_new<dtype, dim>(rope, it, &fresh, warp, &new_head);
    fresh.stored = find_stored(rope, it, &fresh);

    sync_consumers(); /* nobody reads the former item's P and new tokens any more */
#pragma unroll 1
    while (angle < n_angles) {
        float sine, cosine;
        mb_sine_cosine((float)position * s->inv_freq[angle % half], &sine, &cosine);
        sines[angle] = sine * rope->rope_scale;
        cosines[angle] = cosine * rope->rope_scale;
        angle += N_CONSUMERS;
        position = angle < n_angles ? rope->positions[it->q_base + angle / half] : 0;
    }
    sync_consumers();
#pragma unroll
    for (int i = 0; i < n_rows; i++) {
        const int r = warp + i * N_WARPS;
        if (it->first + r < it->q_len * it->group) {
            if (rope->q_norm.data)
                norm_head<dim>(s->q_norm, rope->eps, &heads[i]);
            mb_head_rotate(cosines + tokens[i] * half, sines + tokens[i] * half, half, &heads[i]);
        } else {
            heads[i] = {};
        }
        store_query<dtype, dim>(s->weights, r, &heads[i]);
    }
    for (int job = warp; job < 2 * (fresh.end - fresh.begin); job += N_WARPS) {
        const int32_t token = fresh.begin + job / 2;
        if (fresh.stored >> token & 1)
            make_new<cache_dtype, dim>(p, s, it, cosines, sines, token, job % 2, &new_head);
        load_new<dtype, dim>(rope, it, &fresh, job + N_WARPS, &new_head);
    }
    sync_consumers();
    return fresh;
}

/* Puts rows of new tokens into a block, of its rows [first, end) and of each row the pieces [piece, piece +
 * n_pieces): what the warp itself will read. `block` is the span's. */
template <class shape, int dim>
static __device__ __forceinline__ void patch(const shared_map<shape, dim> *s, unsigned char *stage, int is_v,
                                             const item *it, const new_tokens *fresh, int block, int first,
                                             int end, int piece, int n_pieces) {
    const int lane = threadIdx.x % 32;
#pragma unroll 1
    for (int32_t token = fresh->begin; token < fresh->end; token++) {
        const int32_t r = it->kv_len - it->q_len + token - it->i_span * SPAN - block * BLOCK;
        if (r < first || r >= end || !(fresh->stored >> token & 1))
            continue;
        if (lane < n_pieces) {
            const uint4 value = *((const uint4 *)s->fresh[is_v][token] + piece + lane);
            *(uint4 *)(stage + place_of<shape>(r, piece + lane)) = value;
        }
    }
    if (fresh->begin < fresh->end)
        mb_fence_async_shared(); /* the copy engine comes here next */
    __syncwarp();
}

#endif
