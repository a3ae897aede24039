/*
 * decode_prepare.cuh - from the projection's rows to an item's queries, and to k and v of the new tokens
 * that its span has: in shared memory as the cache has them, and in the cache.
 */
#ifndef MB_OPS_ATTENTION_DECODE_PREPARE_CUH
#define MB_OPS_ATTENTION_DECODE_PREPARE_CUH

#include "ops/attention/decode.cuh"
#include "ops/common/packed.cuh"
#include "ops/common/rotary.cuh"
#include "ops/hopper/memory.cuh"

/* Elements first, first + stride ... of a weight as fp32; dtype is compiled in, so that the loads are under
 * way together. */
template <mb_dtype dtype, int n>
static __device__ __forceinline__ void load_elements(const void *from, float *to, int first, int stride) {
    float value[n];
#pragma unroll
    for (int i = 0; i < n; i++)
        value[i] = mb_element_load(dtype, from, first + i * stride);
#pragma unroll
    for (int i = 0; i < n; i++)
        to[first + i * stride] = value[i];
}

template <int n>
static __device__ __forceinline__ void load_weight(const mb_weight *weight, float *to, int first,
                                                   int stride) {
    if (!weight->data)
        return;
    if (weight->dtype == MB_BF16)
        load_elements<MB_BF16, n>(weight->data, to, first, stride);
    else if (weight->dtype == MB_F16)
        load_elements<MB_F16, n>(weight->data, to, first, stride);
    else if (weight->dtype == MB_F8_E4M3)
        load_elements<MB_F8_E4M3, n>(weight->data, to, first, stride);
    else
        load_elements<MB_F32, n>(weight->data, to, first, stride);
}

/* The rows that queries and new tokens are made from, into L2, as the first thing that the grid does: their
 * latency then passes beside that of the first item's search and blocks. (The kernels in front may still
 * write the rows. A prefetch reads nothing: it says which lines L2 should have, and those kernels write to
 * L2.) */
template <int dim>
static __device__ __forceinline__ void ask_for_rows(const mb_qk_norm_rope_store_args *rope) {
    const int64_t bytes = rope->n_tokens * (rope->n_heads + 2 * rope->n_kv_heads) * dim * 2;
    const int64_t first = blockIdx.x * 32 + threadIdx.x % 32, stride = (int64_t)gridDim.x * 32;
    for (int64_t at = first * 128; at < bytes; at += stride * 128)
        mb_prefetch_l2((const char *)rope->qkv + at);
    for (int64_t i = first * 32; i < rope->n_tokens; i += stride * 32) {
        mb_prefetch_l2(rope->positions + i);
        mb_prefetch_l2(rope->slots + i);
    }
}

/* What all queries need. */
template <class shape, int dim>
static __device__ __forceinline__ void load_constants(const mb_qk_norm_rope_store_args *rope,
                                                      shared_map<shape, dim> *s) {
    const int thread = threadIdx.x;
    const float inv_freq = thread < dim / 2 ? rope->inv_freq[thread] : 0;
    if (thread < dim)
        load_weight<1>(&rope->q_norm, s->q_norm, thread, 0);
    if (thread < dim / 2)
        s->inv_freq[thread] = inv_freq;
    sync_consumers();
}

/* weight: [dim] fp32 in shared memory. */
template <int dim>
static __device__ __forceinline__ void norm_head(const float *weight, float eps, mb_head<dim / 64> *head) {
    mb_head<dim / 64> w;
    mb_head_load(MB_F32, weight, 0, dim / 2, &w);
    mb_head_norm(&w, eps, dim, head);
}

/* The span's new tokens [begin, end), of those of the sequence. */
typedef struct new_tokens {
    int32_t begin, end;
} new_tokens;

static __device__ __forceinline__ new_tokens find_new(const item *it) {
    const int32_t before = it->kv_len - it->q_len, position = it->i_span * SPAN;
    return {max(0, position - before), min(it->q_len, position + SPAN - before)};
}

/* Puts a head's elements at to[i] of the cache's type, or where `place` says. */
template <int cache_dtype, int dim>
static __device__ __forceinline__ void store_head(void *to, int64_t at, float scale,
                                                  const mb_head<dim / 64> *head) {
    const int lane = threadIdx.x % 32;
    mb_head<dim / 64> scaled = *head;
    if (scale != 1)
#pragma unroll
        for (int i = 0; i < dim / 64; i++) {
            scaled.low[i] = __fdiv_rn(head->low[i], scale);
            scaled.high[i] = __fdiv_rn(head->high[i], scale);
        }
#pragma unroll
    for (int i = 0; i < dim / 64; i++) {
        mb_cache_store((mb_dtype)cache_dtype, to, at + lane + 32 * i, scaled.low[i]);
        mb_cache_store((mb_dtype)cache_dtype, to, at + dim / 2 + lane + 32 * i, scaled.high[i]);
    }
}

/* Queries as the tensor cores' A reads them. */
template <int dtype, int dim, class shape>
static __device__ __forceinline__ void store_query(unsigned char *queries, int r,
                                                   const mb_head<dim / 64> *head) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int i = 0; i < dim / 64; i++)
#pragma unroll
        for (int is_high = 0; is_high < 2; is_high++) {
            const int d = column_of<shape>(lane) + 32 * i + is_high * (dim / 2);
            mb_element_store((mb_dtype)dtype, queries + r * 2 * dim + (d / 8 ^ r % 8) * 16, d % 8,
                             is_high ? head->high[i] : head->low[i]);
        }
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
    for (int i = 0; i < dim / 64; i++)
        mb_rotate_pair(by->cosines[i], by->sines[i], &head->low[i], &head->high[i]);
}

/* To shared memory as the cache has it, and to the cache. */
template <int cache_dtype, int dim, class shape>
static __device__ __forceinline__ void store_new(const decode_params *p, const item *it, int32_t slot,
                                                 int is_v, unsigned char *to, const mb_head<dim / 64> *head) {
    const mb_qk_norm_rope_store_args *rope = &p->rope;
    const float *scales = is_v ? rope->v_scale : rope->k_scale;
    const float scale = scales ? scales[it->kv_head] : 1;
    store_head<cache_dtype, dim>(to, 0, scale, head);
    if (it->first == 0) {
        const int64_t row = ((int64_t)(slot / BLOCK) * rope->n_kv_heads + it->kv_head) * BLOCK + slot % BLOCK;
        store_head<cache_dtype, dim>(is_v ? rope->v_cache : rope->k_cache, row * dim, scale, head);
    }
}

/* The angles of a lane's pairs, lane + 32 i. */
template <int dim>
static __device__ __forceinline__ void find_angles(const float (&inv_freq)[dim / 64], float position,
                                                   float scale, angles<dim> *to) {
#pragma unroll
    for (int i = 0; i < dim / 64; i++) {
        mb_sine_cosine(position * inv_freq[i], &to->sines[i], &to->cosines[i]);
        to->sines[i] = to->sines[i] * scale;
        to->cosines[i] = to->cosines[i] * scale;
    }
}

/* The warp that makes k and v of the items' new tokens. is_early: of the CTA's only item, the angles of its
 * only token are made before the kernels in front have ended (the step's arrays are older than those). */
template <int dtype, int cache_dtype, int dim, int is_few, class shape>
static __device__ __forceinline__ void make_tokens(const decode_params *p, shared_map<shape, dim> *s) {
    const mb_qk_norm_rope_store_args *rope = &p->rope;
    const int lane = threadIdx.x % 32, half = dim / 2;
    const int n_q = rope->n_heads, n_kv = rope->n_kv_heads;
    float inv_freq[dim / 64];
#pragma unroll
    for (int i = 0; i < dim / 64; i++)
        inv_freq[i] = rope->inv_freq[lane + 32 * i];
    load_weight<dim / 32>(&rope->k_norm, s->k_norm, lane, 32);
    __syncwarp();
    angles<dim> by;
    int is_early = 0;
    if constexpr (is_few) {
        mb_mbarrier_wait(&s->item_full[0], 0);
        is_early = s->items[0].sequence >= 0 && s->items[0].q_len == 1;
        if (is_early)
            find_angles<dim>(inv_freq, (float)rope->positions[s->items[0].q_base], rope->rope_scale, &by);
    }
    mb_grid_wait();
#pragma unroll 1
    for (uint32_t i_item = 0;; i_item++) {
        mb_mbarrier_wait(&s->item_full[i_item % ITEM_SLOTS], i_item / ITEM_SLOTS & 1);
        const item *it = &s->items[i_item % ITEM_SLOTS];
        if (it->sequence < 0)
            break;
        const new_tokens fresh = find_new(it);
        uint32_t stored = 0;
#pragma unroll 1
        for (int32_t token = fresh.begin; token < fresh.end; token++) {
            const int64_t at = ((int64_t)(it->q_base + token) * (n_q + 2 * n_kv) + n_q + it->kv_head) * dim;
            mb_head<dim / 64> k, v;
            mb_head_load((mb_dtype)dtype, rope->qkv, at, half, &k);
            mb_head_load((mb_dtype)dtype, rope->qkv, at + n_kv * dim, half, &v);
            const int32_t slot = rope->slots[it->q_base + token];
            const float position = is_early ? 0 : (float)rope->positions[it->q_base + token];
            if (slot < 0)
                continue;
            stored |= 1u << token;
            if (!is_early)
                find_angles<dim>(inv_freq, position, rope->rope_scale, &by);
            if (rope->k_norm.data)
                norm_head<dim>(s->k_norm, rope->eps, &k);
            rotate<dim>(&by, &k);
            store_new<cache_dtype, dim, shape>(p, it, slot, 0, s->fresh[i_item % ITEM_SLOTS][0][token], &k);
            store_new<cache_dtype, dim, shape>(p, it, slot, 1, s->fresh[i_item % ITEM_SLOTS][1][token], &v);
        }
        __syncwarp();
        if (lane == 0)
            s->fresh_stored[i_item % ITEM_SLOTS] = stored;
        mb_mbarrier_arrive(&s->fresh_full[i_item % ITEM_SLOTS]);
        mb_mbarrier_arrive(&s->item_empty[i_item % ITEM_SLOTS]);
    }
}

/* Queries of an item. All consumers call it; they see all of it afterwards. What the
 * item needs of the kernels in front is loaded at once, before the first of it is waited for: rows that are
 * not there load the last one, because a branch would wait. */
template <int dtype, int dim, class shape>
static __device__ __forceinline__ void prepare(const decode_params *p, shared_map<shape, dim> *s,
                                               const item *it) {
    constexpr int most_rows = ROWS / N_WARPS, half = dim / 2;
    const mb_qk_norm_rope_store_args *rope = &p->rope;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int n_heads = rope->n_heads + 2 * rope->n_kv_heads;
    const int32_t n_rows = min((int32_t)ROWS, it->q_len * it->group - it->first);
    float *cosines = (float *)(s->weights + ROWS * 128 * 2), *sines = cosines + TOKENS * half;
    mb_head<dim / 64> heads[most_rows];
    int32_t tokens[most_rows];
#pragma unroll
    for (int i = 0; i < most_rows; i++) {
        const int32_t row = it->first + min(warp + i * N_WARPS, n_rows - 1);
        tokens[i] = token_of_row(it, row);
        const int32_t head = it->kv_head * it->group + row - tokens[i] * it->group;
        mb_head_load((mb_dtype)dtype, rope->qkv, ((int64_t)(it->q_base + tokens[i]) * n_heads + head) * dim,
                     half, &heads[i]);
    }
    const int n_angles = it->q_len * half;
    int angle = threadIdx.x;
    int32_t position = rope->positions[it->q_base + min(angle / half, it->q_len - 1)];

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
        sync_consumers(); /* nobody reads the former item's P any more */
#pragma unroll
    for (int i = 0; i < most_rows; i++) {
        if (warp + i * N_WARPS >= n_rows)
            heads[i] = {};
        store_query<dtype, dim, shape>(s->queries, warp + i * N_WARPS, &heads[i]);
    }
    sync_consumers();
}

/* Of a query of the CTA's only item: a lane has two neighbours of every 32 pairs, so half of a warp has a
 * head. */
template <int dim> struct query_part {
    float cosines[dim / 64][2], sines[dim / 64][2]; /* the same for all heads of the token */
    float low[dim / 64][2], high[dim / 64][2];      /* the norm's weight */
};

/* An item of one token, whose heads the consumers' half warps have. */
static __device__ __forceinline__ int is_short(const item *it) {
    return it->sequence >= 0 && it->q_len == 1 && it->group <= 2 * N_WARPS;
}

/* What of it the kernels in front do not write: before they have ended. */
template <class shape, int dim>
static __device__ __forceinline__ void begin_short(const decode_params *p, shared_map<shape, dim> *s,
                                                   const item *it, query_part<dim> *part) {
    const int thread = threadIdx.x, first_pair = thread % 16 * 2;
    const float position = (float)p->rope.positions[it->q_base];
    for (int i = it->group * (dim / 8) + thread; i < ROWS * (dim / 8);
         i += N_CONSUMERS) /* rows that are not there */
        ((uint4 *)s->queries)[i] = make_uint4(0, 0, 0, 0);
#pragma unroll
    for (int i = 0; i < dim / 64; i++)
#pragma unroll
        for (int e = 0; e < 2; e++) {
            const int pair = first_pair + 32 * i + e;
            float sine, cosine;
            mb_sine_cosine(position * s->inv_freq[pair], &sine, &cosine);
            part->sines[i][e] = sine * p->rope.rope_scale;
            part->cosines[i][e] = cosine * p->rope.rope_scale;
            part->low[i][e] = s->q_norm[pair];
            part->high[i][e] = s->q_norm[dim / 2 + pair];
        }
}

/* As prepare, with the same bits: mb_head_norm's sum adds the lanes that are 16, 8, 4, 2 and 1 apart, and
 * here lane l of a half has the numbers of lanes 2 l and 2 l + 1. */
template <int dtype, int dim, class shape>
static __device__ __forceinline__ void end_short(const decode_params *p, shared_map<shape, dim> *s,
                                                 const item *it, const query_part<dim> *part) {
    const mb_qk_norm_rope_store_args *rope = &p->rope;
    const int lane = threadIdx.x % 16, row = threadIdx.x / 16;
    const int64_t n_heads = rope->n_heads + 2 * rope->n_kv_heads;
    const int32_t head = it->kv_head * it->group + min(row, it->group - 1);
    const uint32_t *from = (const uint32_t *)rope->qkv + (it->q_base * n_heads + head) * (dim / 2) + lane;
    uint32_t packed[dim / 64][2];
#pragma unroll
    for (int i = 0; i < dim / 64; i++) {
        packed[i][0] = from[16 * i];
        packed[i][1] = from[dim / 4 + 16 * i];
    }
    float low[dim / 64][2], high[dim / 64][2], sums[2] = {};
#pragma unroll
    for (int i = 0; i < dim / 64; i++) {
        const float2 a = mb_unpack_pair<dtype>(packed[i][0]), b = mb_unpack_pair<dtype>(packed[i][1]);
        low[i][0] = a.x;
        low[i][1] = a.y;
        high[i][0] = b.x;
        high[i][1] = b.y;
#pragma unroll
        for (int e = 0; e < 2; e++)
            sums[e] = fmaf(high[i][e], high[i][e], fmaf(low[i][e], low[i][e], sums[e]));
    }
    if (rope->q_norm.data) {
#pragma unroll
        for (int distance = 8; distance > 0; distance /= 2)
#pragma unroll
            for (int e = 0; e < 2; e++)
                sums[e] += __shfl_xor_sync(0xffffffff, sums[e], distance);
        const float factor = mb_head_norm_factor(sums[0] + sums[1], rope->eps, dim);
#pragma unroll
        for (int i = 0; i < dim / 64; i++)
#pragma unroll
            for (int e = 0; e < 2; e++) {
                low[i][e] = mb_normed(low[i][e], factor, part->low[i][e]);
                high[i][e] = mb_normed(high[i][e], factor, part->high[i][e]);
            }
    }
    unsigned char *to = s->queries + row * 2 * dim;
#pragma unroll
    for (int i = 0; i < dim / 64; i++) {
#pragma unroll
        for (int e = 0; e < 2; e++)
            mb_rotate_pair(part->cosines[i][e], part->sines[i][e], &low[i][e], &high[i][e]);
        if (row < it->group) {
            const int d = column_of<shape>(2 * lane) + 32 * i, above = d + dim / 2;
            *(uint32_t *)(to + (d / 8 ^ row % 8) * 16 + d % 8 * 2) =
                mb_pack_pair<dtype>(low[i][0], low[i][1]);
            *(uint32_t *)(to + (above / 8 ^ row % 8) * 16 + above % 8 * 2) =
                mb_pack_pair<dtype>(high[i][0], high[i][1]);
        }
    }
    sync_consumers();
}

/* Puts rows of new tokens into a block, of its rows [first, end) and of each row the pieces [piece, piece +
 * n_pieces): what the warp itself will read. `block` is the span's. */
template <class shape, int dim>
static __device__ __forceinline__ void patch(shared_map<shape, dim> *s, unsigned char *stage, int is_v,
                                             uint32_t i_item, const new_tokens *fresh, int block, int first,
                                             int end, int piece, int n_pieces) {
    const item *it = &s->items[i_item % ITEM_SLOTS];
    const int lane = threadIdx.x % 32;
#pragma unroll 1
    for (int32_t token = fresh->begin; token < fresh->end; token++) {
        const int32_t r = it->kv_len - it->q_len + token - it->i_span * SPAN - block * BLOCK;
        if (r < first || r >= end)
            continue;
        mb_mbarrier_wait(&s->fresh_full[i_item % ITEM_SLOTS], i_item / ITEM_SLOTS & 1);
        if (!(s->fresh_stored[i_item % ITEM_SLOTS] >> token & 1))
            continue;
        if (lane < n_pieces) {
            const uint4 value = *((const uint4 *)s->fresh[i_item % ITEM_SLOTS][is_v][token] + piece + lane);
            *(uint4 *)(stage + place_of<shape>(r, piece + lane)) = value;
        }
    }
    if (fresh->begin < fresh->end)
        mb_fence_async_shared(); /* the copy engine comes here next */
    __syncwarp();
}

#endif
