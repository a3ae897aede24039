/*
 * wide.cuh - heads of 16-bit elements, moved 16 bytes at a time: a warp has eight heads of a token at once, four
 * lanes each.
 *
 * A lane has the elements 8 q .. 8 q + 7 of every 32 of its head (q: its number in the four). So it has both
 * halves of its pairs, and just the numbers of eight lanes of rotary.cuh; sums are formed in that file's order.
 */
#ifndef MB_OPS_ROPE_WIDE_CUH
#define MB_OPS_ROPE_WIDE_CUH

#include "ops/common/packed.cuh"
#include "ops/common/rotary.cuh"
#include "ops/hopper/fp8.cuh"
#include "ops/hopper/launch.cuh"
#include "ops/rope/rope.h"

enum { WIDE_THREADS = 256, WIDE_WARPS = WIDE_THREADS / 32, WIDE_HEADS = 8, MOST_TOKENS = 8 };

typedef struct wide_params {
    mb_qk_norm_rope_store_args args;
    int32_t tile; /* tokens of a CTA, at most MOST_TOKENS */
} wide_params;

template <int dim> struct wide_shared {
    alignas(16) float cosines[MOST_TOKENS][dim / 2], sines[MOST_TOKENS][dim / 2],
        norms[2][dim]; /* of q, of k */
};

/* Heads of one token that a warp has at once, and this lane's: -1: none. */
typedef struct wide_item {
    int64_t token;
    int32_t i_token; /* in the tile */
    int32_t head;
} wide_item;

static __device__ __forceinline__ wide_item wide_item_at(int32_t i, int32_t first, int32_t n_tokens,
                                                         int32_t n_groups, int32_t n_heads) {
    const int32_t i_token = i / n_groups, head = (i - i_token * n_groups) * WIDE_HEADS + threadIdx.x % 32 / 4;
    return {(int64_t)first + i_token, i_token, i_token < n_tokens && head < n_heads ? head : -1};
}

template <int dim>
static __device__ __forceinline__ void wide_load(const mb_qk_norm_rope_store_args *args,
                                                 const wide_item *item, int32_t n_heads,
                                                 uint4 (&packed)[dim / 32]) {
    if (item->head < 0)
        return;
    const uint4 *from =
        (const uint4 *)((const uint16_t *)args->qkv + (item->token * n_heads + item->head) * dim) +
        threadIdx.x % 4;
#pragma unroll
    for (int c = 0; c < dim / 32; c++)
        packed[c] = from[4 * c];
}

/* The eight numbers at `from`, in shared memory. */
static __device__ __forceinline__ void load_eight(const float *from, float (&v)[8]) {
    const float4 a = *(const float4 *)from, b = *(const float4 *)(from + 4);
    v[0] = a.x, v[1] = a.y, v[2] = a.z, v[3] = a.w;
    v[4] = b.x, v[5] = b.y, v[6] = b.z, v[7] = b.w;
}

/* All lanes of the warp call it, whatever their heads become. */
template <int dim> static __device__ __forceinline__ float sum_squares(const float (&v)[dim / 32][8]) {
    float sums[8];
#pragma unroll
    for (int e = 0; e < 8; e++) {
        sums[e] = 0;
#pragma unroll
        for (int c = 0; c < dim / 64; c++) {
            const float low = v[c][e], high = v[c + dim / 64][e];
            sums[e] = fmaf(high, high, fmaf(low, low, sums[e]));
        }
    }
    return mb_four_lanes_sum(sums);
}

template <int dim>
static __device__ __forceinline__ void norm_wide(const float *weight, float factor, float (&v)[dim / 32][8]) {
    const int first = threadIdx.x % 4 * 8;
#pragma unroll
    for (int c = 0; c < dim / 32; c++) {
        float w[8];
        load_eight(weight + c * 32 + first, w);
#pragma unroll
        for (int e = 0; e < 8; e++)
            v[c][e] = mb_normed(v[c][e], factor, w[e]);
    }
}

template <int dim>
static __device__ __forceinline__ void rotate_wide(const float *cosines, const float *sines,
                                                   float (&v)[dim / 32][8]) {
    const int first = threadIdx.x % 4 * 8;
#pragma unroll
    for (int c = 0; c < dim / 64; c++) {
        float cosine[8], sine[8];
        load_eight(cosines + c * 32 + first, cosine);
        load_eight(sines + c * 32 + first, sine);
#pragma unroll
        for (int e = 0; e < 8; e++)
            mb_rotate_pair(cosine[e], sine[e], &v[c][e], &v[c + dim / 64][e]);
    }
}

/* `at`: the head's first element. */
template <int dtype, int dim>
static __device__ __forceinline__ void store_wide(void *to, int64_t at, const float (&v)[dim / 32][8]) {
    uint4 *place = (uint4 *)((uint16_t *)to + at) + threadIdx.x % 4;
#pragma unroll
    for (int c = 0; c < dim / 32; c++)
        place[4 * c] = mb_pack<dtype>(v[c]);
}

template <int dim>
static __device__ __forceinline__ void store_wide_fp8(void *to, int64_t at, float scale,
                                                      const float (&v)[dim / 32][8]) {
    uint2 *place = (uint2 *)((uint8_t *)to + at) + threadIdx.x % 4;
#pragma unroll
    for (int c = 0; c < dim / 32; c++) {
        uint32_t pairs[4];
#pragma unroll
        for (int i = 0; i < 4; i++)
            pairs[i] = mb_to_e4m3x2(__fdiv_rn(v[c][2 * i], scale), __fdiv_rn(v[c][2 * i + 1], scale));
        place[4 * c] = make_uint2(pairs[0] | pairs[1] << 16, pairs[2] | pairs[3] << 16);
    }
}

template <int dtype, int cache_dtype, int dim>
static __device__ __forceinline__ void process_wide(const mb_qk_norm_rope_store_args *args,
                                                    const wide_shared<dim> *s, const wide_item *item,
                                                    int32_t slot, const uint4 (&packed)[dim / 32]) {
    const int32_t n_q = args->n_heads, n_kv = args->n_kv_heads, h = item->head;
    const int is_k = h >= n_q, is_v = h >= n_q + n_kv;
    float v[dim / 32][8];
#pragma unroll
    for (int c = 0; c < dim / 32; c++)
        mb_unpack<dtype>(packed[c], v[c]);
    const float squares = sum_squares<dim>(v);
    if (h < 0)
        return;
    if (!is_v) {
        if (is_k ? args->k_norm.data : args->q_norm.data)
            norm_wide<dim>(s->norms[is_k], mb_head_norm_factor(squares, args->eps, dim), v);
        rotate_wide<dim>(s->cosines[item->i_token], s->sines[item->i_token], v);
    }
    if (!is_k) {
        store_wide<dtype, dim>(args->q, (item->token * n_q + h) * dim, v);
        return;
    }
    if (slot < 0)
        return;
    const int32_t kv_head = h - n_q - is_v * n_kv;
    const int64_t row = ((int64_t)(slot / MB_KV_BLOCK) * n_kv + kv_head) * MB_KV_BLOCK + slot % MB_KV_BLOCK;
    void *cache = is_v ? args->v_cache : args->k_cache;
    if (cache_dtype == MB_F8_E4M3) {
        const float *scales = is_v ? args->v_scale : args->k_scale;
        store_wide_fp8<dim>(cache, row * dim, scales ? scales[kv_head] : 1, v);
    } else {
        store_wide<dtype, dim>(cache, row * dim, v);
    }
}

/* One CTA has a tile of tokens. A warp asks for its next heads before it works on those that it has. */
template <int dtype, int cache_dtype, int dim>
static __global__ void __launch_bounds__(WIDE_THREADS, 2) qk_norm_rope_store_wide(wide_params p) {
    __shared__ wide_shared<dim> s;
    const mb_qk_norm_rope_store_args *args = &p.args;
    constexpr int half = dim / 2;
    mb_grid_launch_dependents();
    for (int i = threadIdx.x; i < 2 * dim; i += WIDE_THREADS) {
        const mb_weight *norm = i < dim ? &args->q_norm : &args->k_norm;
        s.norms[i / dim][i % dim] = norm->data ? mb_element_load(norm->dtype, norm->data, i % dim) : 0;
    }
    const float inv_freq = args->inv_freq[threadIdx.x % half];
    const int32_t first = blockIdx.x * p.tile, n_tokens = min((int64_t)p.tile, args->n_tokens - first);
    const int32_t n_heads = args->n_heads + 2 * args->n_kv_heads;
    const int32_t n_groups = (n_heads + WIDE_HEADS - 1) / WIDE_HEADS, n_items = n_groups * n_tokens;
    const int warp = threadIdx.x / 32;

    mb_grid_wait();
    uint4 packed[dim / 32] = {}, next_packed[dim / 32] = {};
    wide_item item = wide_item_at(warp, first, n_tokens, n_groups, n_heads);
    wide_load<dim>(args, &item, n_heads, packed);
    int32_t slot = item.head >= args->n_heads ? args->slots[item.token] : -1, next_slot = -1;
    for (int i = threadIdx.x; i < n_tokens * half; i += WIDE_THREADS) {
        float sine, cosine;
        mb_sine_cosine((float)args->positions[first + i / half] * inv_freq, &sine, &cosine);
        s.sines[i / half][i % half] = sine * args->rope_scale;
        s.cosines[i / half][i % half] = cosine * args->rope_scale;
    }
    __syncthreads();
#pragma unroll 1
    for (int32_t i = warp; i < n_items; i += WIDE_WARPS) {
        const wide_item next = wide_item_at(i + WIDE_WARPS, first, n_tokens, n_groups, n_heads);
        wide_load<dim>(args, &next, n_heads, next_packed);
        next_slot = next.head >= args->n_heads ? args->slots[next.token] : -1;
        process_wide<dtype, cache_dtype, dim>(args, &s, &item, slot, packed);
        item = next;
        slot = next_slot;
#pragma unroll
        for (int c = 0; c < dim / 32; c++)
            packed[c] = next_packed[c];
    }
}

#endif
