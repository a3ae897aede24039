/*
 * decode_prepare.cuh - from the projection's rows to an item's queries, and to k and v of the new tokens that its span
 * has: in shared memory as the cache has them, and in the cache.
 */
#ifndef MB_OPS_ATTENTION_DECODE_PREPARE_CUH
#define MB_OPS_ATTENTION_DECODE_PREPARE_CUH

#include "ops/attention/decode.cuh"
#include "ops/common/rotary.cuh"

/* A weight as fp32; dtype is compiled in, so that the loads are under way together. */
template <mb_dtype dtype, int dim>
static __device__ __forceinline__ void load_weight(const void *from, float *to, int first) {
    float value[dim / 64];
#pragma unroll
    for (int i = 0; i < dim / 64; i++)
        value[i] = mb_element_load(dtype, from, first + i * 64);
#pragma unroll
    for (int i = 0; i < dim / 64; i++)
        to[first + i * 64] = value[i];
}

/* What all items need. Half of the consumers has q's norm, half k's. */
template <class shape, int dim>
static __device__ __forceinline__ void load_constants(const mb_qk_norm_rope_store_args *rope,
                                                      shared_map<shape, dim> *s) {
    const int is_k = threadIdx.x / 64, first = threadIdx.x % 64;
    const mb_weight *norm = is_k ? &rope->k_norm : &rope->q_norm;
    float *to = is_k ? s->k_norm : s->q_norm;
    const float inv_freq = !is_k && first < dim / 2 ? rope->inv_freq[first] : 0;
    if (norm->data) {
        if (norm->dtype == MB_BF16)
            load_weight<MB_BF16, dim>(norm->data, to, first);
        else if (norm->dtype == MB_F16)
            load_weight<MB_F16, dim>(norm->data, to, first);
        else if (norm->dtype == MB_F8_E4M3)
            load_weight<MB_F8_E4M3, dim>(norm->data, to, first);
        else
            load_weight<MB_F32, dim>(norm->data, to, first);
    }
    if (!is_k && first < dim / 2)
        s->inv_freq[first] = inv_freq;
    sync_consumers();
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

/* All but `stored`. */
static __device__ __forceinline__ new_tokens find_new(const item *it) {
    const int32_t before = it->kv_len - it->q_len, position = it->i_span * SPAN;
    return {max(0, position - before), min(it->q_len, position + SPAN - before), 0};
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

/* New k and v are a warp's jobs one by one: first k of the first token, then its v. Behind the last job it is a head
 * that nobody uses. */
template <int dtype, int dim>
static __device__ __forceinline__ void load_new(const mb_qk_norm_rope_store_args *rope, const item *it,
                                                const new_tokens *fresh, int job, mb_head<dim / 64> *head) {
    const int32_t n_q = rope->n_heads, n_kv = rope->n_kv_heads;
    const int32_t token = it->q_base + min(fresh->begin + job / 2, it->q_len - 1);
    const int64_t i_head = (int64_t)token * (n_q + 2 * n_kv) + n_q + job % 2 * n_kv + it->kv_head;
    mb_head_load((mb_dtype)dtype, rope->qkv, i_head * dim, dim / 2, head);
}

/* Cosines and sines of a lane's pairs. */
template <int dim> struct angles { float cosines[dim / 64], sines[dim / 64]; };

/* Of the item's only token at once; of several from shared memory. */
template <int dim>
static __device__ __forceinline__ void load_angles(const item *it, const float *cosines, const float *sines,
                                                   int32_t token, angles<dim> *to) {
    if (it->q_len == 1)
        return;
#pragma unroll
    for (int i = 0; i < dim / 64; i++) {
        to->cosines[i] = cosines[token * (dim / 2) + threadIdx.x % 32 + 32 * i];
        to->sines[i] = sines[token * (dim / 2) + threadIdx.x % 32 + 32 * i];
    }
}

/* As mb_head_rotate. */
template <int dim>
static __device__ __forceinline__ void rotate(const angles<dim> *by, mb_head<dim / 64> *head) {
#pragma unroll
    for (int i = 0; i < dim / 64; i++) {
        const float a = head->low[i], b = head->high[i];
        head->low[i] = fmaf(a, by->cosines[i], -__fmul_rn(b, by->sines[i]));
        head->high[i] = fmaf(b, by->cosines[i], __fmul_rn(a, by->sines[i]));
    }
}

template <int cache_dtype, int dim, class shape>
static __device__ __forceinline__ void make_new(const decode_params *p, shared_map<shape, dim> *s,
                                                const item *it, const angles<dim> *by, int32_t token,
                                                int32_t slot, int is_v, mb_head<dim / 64> *head) {
    const mb_qk_norm_rope_store_args *rope = &p->rope;
    if (!is_v) {
        if (rope->k_norm.data)
            norm_head<dim>(s->k_norm, rope->eps, head);
        rotate<dim>(by, head);
    }
    const float *scales = is_v ? rope->v_scale : rope->k_scale;
    const float scale = scales ? scales[it->kv_head] : 1;
    store_head<cache_dtype, dim>(s->fresh[is_v][token], 0, scale, head);
    if (it->first == 0) {
        const int64_t row = ((int64_t)(slot / BLOCK) * rope->n_kv_heads + it->kv_head) * BLOCK + slot % BLOCK;
        store_head<cache_dtype, dim>(is_v ? rope->v_cache : rope->k_cache, row * dim, scale, head);
    }
}

/* Queries, and the new tokens' k and v, of an item. All consumers call it; they see all of it afterwards. What the
 * item needs of the kernels in front is loaded at once, before the first of it is waited for: rows that are not
 * there load the last one, because a branch would wait. */
template <int dtype, int cache_dtype, int dim, class shape>
static __device__ __forceinline__ new_tokens prepare(const decode_params *p, shared_map<shape, dim> *s,
                                                     const item *it) {
    constexpr int most_rows = ROWS / N_WARPS, half = dim / 2;
    const mb_qk_norm_rope_store_args *rope = &p->rope;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int n_heads = rope->n_heads + 2 * rope->n_kv_heads;
    const int32_t n_rows = min((int32_t)ROWS, it->q_len * it->group - it->first);
    float *cosines = (float *)(s->weights + ROWS * 128 * 2), *sines = cosines + TOKENS * half;
    mb_head<dim / 64> heads[most_rows], new_head;
    int32_t tokens[most_rows];
#pragma unroll
    for (int i = 0; i < most_rows; i++) {
        const int32_t row = it->first + min(warp + i * N_WARPS, n_rows - 1);
        tokens[i] = token_of_row(it, row);
        const int32_t head = it->kv_head * it->group + row - tokens[i] * it->group;
        mb_head_load((mb_dtype)dtype, rope->qkv, ((int64_t)(it->q_base + tokens[i]) * n_heads + head) * dim,
                     half, &heads[i]);
    }
    new_tokens fresh = find_new(it);
    load_new<dtype, dim>(rope, it, &fresh, warp, &new_head);
    const int32_t slot = rope->slots[it->q_base + min(lane, it->q_len - 1)];
    const int n_angles = it->q_len * half;
    int angle = threadIdx.x;
    int32_t position = rope->positions[it->q_base + min(angle / half, it->q_len - 1)];
    fresh.stored = __ballot_sync(0xffffffff, lane >= fresh.begin && lane < fresh.end && slot >= 0);

    angles<dim> by;
    if (it->q_len == 1) {
#pragma unroll
        for (int i = 0; i < dim / 64; i++) {
            float sine, cosine;
            mb_sine_cosine((float)position * s->inv_freq[lane + 32 * i], &sine, &cosine);
            by.sines[i] = sine * rope->rope_scale;
            by.cosines[i] = cosine * rope->rope_scale;
        }
    } else {
        sync_consumers(); /* nobody reads the former item's P any more */
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
    }
#pragma unroll
    for (int pair = 0; pair < most_rows; pair += 2)
        if (pair * N_WARPS < n_rows) {
#pragma unroll
            for (int i = pair; i < pair + 2; i++) {
                load_angles<dim>(it, cosines, sines, tokens[i], &by);
                if (rope->q_norm.data)
                    norm_head<dim>(s->q_norm, rope->eps, &heads[i]);
                rotate<dim>(&by, &heads[i]);
            }
        }
    if (it->q_len == 1)
        sync_consumers(); /* nobody reads the former item's P and new tokens any more */
#pragma unroll
    for (int i = 0; i < most_rows; i++) {
        if (warp + i * N_WARPS >= n_rows)
            heads[i] = {};
        store_query<dtype, dim>(s->weights, warp + i * N_WARPS, &heads[i]);
    }
#pragma unroll 1
    for (int job = warp; job < 2 * (fresh.end - fresh.begin); job += N_WARPS) {
        const int32_t token = fresh.begin + job / 2;
        if (fresh.stored >> token & 1) {
            load_angles<dim>(it, cosines, sines, token, &by);
            make_new<cache_dtype, dim>(p, s, it, &by, token, __shfl_sync(0xffffffff, slot, token), job % 2,
                                       &new_head);
        }
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
