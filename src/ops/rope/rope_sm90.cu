/*
 * rope_sm90.cu - head norms, rotary embedding, and the store into the paged cache. wide.cuh has the kernel of heads
 * that can be moved 16 bytes at a time. Here is that of all others: one CTA a token, one warp a head at a time; the
 * token's cosines and sines are computed once, in shared memory.
 *
 * rotary.cuh has what becomes of a head.
 */
#include "ops/common/rotary.cuh"
#include "ops/hopper/launch.cuh"
#include "ops/rope/rope.h"
#include "ops/rope/wide.cuh"

enum { N_THREADS = 256, N_WARPS = N_THREADS / 32, MAX_HALF = 256, MAX_PAIRS = MAX_HALF / 32 };

typedef mb_head<MAX_PAIRS> head_pairs;

static __device__ __forceinline__ void norm_head(const mb_weight *weight, float eps, int head_dim,
                                                 head_pairs *head) {
    if (!weight->data)
        return;
    head_pairs w;
    mb_head_load(weight->dtype, weight->data, 0, head_dim / 2, &w);
    mb_head_norm(&w, eps, head_dim, head);
}

/* The first 2 * half dimensions of a head, whose pairs may be those of two lanes: through `row`, the warp's
 * shared memory. */
static __device__ __forceinline__ void rotate_part(const float *cosines, const float *sines, int half,
                                                   int head_dim, float *row, head_pairs *head) {
    const int lane = threadIdx.x % 32, head_half = head_dim / 2;
#pragma unroll
    for (int i = 0; i < MAX_PAIRS; i++) {
        const int pair = lane + 32 * i;
        if (pair < head_half) {
            row[pair] = head->low[i];
            row[head_half + pair] = head->high[i];
        }
    }
    __syncwarp();
    for (int pair = lane; pair < half; pair += 32)
        mb_rotate_pair(cosines[pair], sines[pair], &row[pair], &row[half + pair]);
    __syncwarp();
#pragma unroll
    for (int i = 0; i < MAX_PAIRS; i++) {
        const int pair = lane + 32 * i;
        if (pair < head_half) {
            head->low[i] = row[pair];
            head->high[i] = row[head_half + pair];
        }
    }
    __syncwarp(); /* the next head's numbers come there */
}

enum rotated_part { WHOLE, PART };

template <int part>
static __device__ __forceinline__ void rotate_head(const float *cosines, const float *sines, int half,
                                                   int head_dim, float *row, head_pairs *head) {
    if constexpr (part == PART)
        rotate_part(cosines, sines, half, head_dim, row, head);
    else
        mb_head_rotate(cosines, sines, half, head);
}

/* Into the cache or into q. */
static __device__ __forceinline__ void store_head(mb_dtype dtype, void *to, int64_t at, int half, int lane,
                                                  float scale, const head_pairs *head) {
#pragma unroll
    for (int i = 0; i < MAX_PAIRS; i++) {
        const int pair = lane + 32 * i;
        if (pair < half) {
            mb_cache_store(dtype, to, at + pair, __fdiv_rn(head->low[i], scale));
            mb_cache_store(dtype, to, at + half + pair, __fdiv_rn(head->high[i], scale));
        }
    }
}

template <int part>
static __global__ void __launch_bounds__(N_THREADS) qk_norm_rope_store(mb_qk_norm_rope_store_args args) {
    __shared__ float cosines[MAX_HALF], sines[MAX_HALF], rows[part == PART ? N_WARPS : 1][2 * MAX_HALF];
    mb_grid_wait();
    const int64_t token = blockIdx.x;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, d = args.head_dim, half = d / 2,
              rotated = part == PART ? args.rotary_dim / 2 : half; /* pairs */
    const float position = (float)args.positions[token];
    if ((int)threadIdx.x < rotated) {
        float sine, cosine;
        mb_sine_cosine(position * args.inv_freq[threadIdx.x], &sine, &cosine);
        sines[threadIdx.x] = sine * args.rope_scale;
        cosines[threadIdx.x] = cosine * args.rope_scale;
    }
    __syncthreads();

    const int32_t n_q = args.n_heads, n_kv = args.n_kv_heads, slot = args.slots[token];
    const int64_t block = slot / MB_KV_BLOCK, offset = slot % MB_KV_BLOCK;
    const int32_t n_heads = slot < 0 ? n_q : n_q + 2 * n_kv;
    for (int32_t h = warp; h < n_heads; h += N_WARPS) {
        head_pairs head;
        mb_head_load(args.dtype, args.qkv, (token * (n_q + 2 * n_kv) + h) * d, half, &head);
        if (h < n_q) {
            norm_head(&args.q_norm, args.eps, d, &head);
            rotate_head<part>(cosines, sines, rotated, d, rows[part == PART ? warp : 0], &head);
            store_head(args.dtype, args.q, (token * n_q + h) * d, half, lane, 1, &head);
            continue;
        }
        const int32_t is_v = h >= n_q + n_kv, kv_head = h - n_q - is_v * n_kv;
        if (!is_v) {
            norm_head(&args.k_norm, args.eps, d, &head);
            rotate_head<part>(cosines, sines, rotated, d, rows[part == PART ? warp : 0], &head);
        }
        const float *scales = is_v ? args.v_scale : args.k_scale;
        store_head(args.cache_dtype, is_v ? args.v_cache : args.k_cache,
                   ((block * n_kv + kv_head) * MB_KV_BLOCK + offset) * d, half, lane,
                   scales ? scales[kv_head] : 1, &head);
    }
    mb_grid_launch_dependents();
}

/* ---- which kernel */

typedef void (*wide_kernel)(wide_params p);

template <int dtype, int cache_dtype> static wide_kernel wide_of_dim(int32_t head_dim) {
    return head_dim == 128  ? qk_norm_rope_store_wide<dtype, cache_dtype, 128>
           : head_dim == 64 ? qk_norm_rope_store_wide<dtype, cache_dtype, 64>
                            : NULL;
}

/* NULL: heads or caches that are not moved 16 bytes at a time. */
static wide_kernel pick_wide(const mb_qk_norm_rope_store_args *args) {
    const uintptr_t addresses =
        (uintptr_t)args->qkv | (uintptr_t)args->q | (uintptr_t)args->k_cache | (uintptr_t)args->v_cache;
    if (addresses % 16 != 0)
        return NULL;
    if (args->dtype == MB_BF16 && args->cache_dtype == MB_BF16)
        return wide_of_dim<MB_BF16, MB_BF16>(args->head_dim);
    if (args->dtype == MB_BF16 && args->cache_dtype == MB_F8_E4M3)
        return wide_of_dim<MB_BF16, MB_F8_E4M3>(args->head_dim);
    if (args->dtype == MB_F16 && args->cache_dtype == MB_F16)
        return wide_of_dim<MB_F16, MB_F16>(args->head_dim);
    if (args->dtype == MB_F16 && args->cache_dtype == MB_F8_E4M3)
        return wide_of_dim<MB_F16, MB_F8_E4M3>(args->head_dim);
    return NULL;
}

mb_status mb_qk_norm_rope_store_sm90(const mb_qk_norm_rope_store_args *args, mb_stream stream) {
    MB_TRY(mb_qk_norm_rope_store_check(args));
    if (args->n_tokens == 0)
        return MB_OK;
    const int is_part = mb_rotated_dims(args->rotary_dim, args->head_dim) != args->head_dim;
    const wide_kernel wide = is_part ? NULL : pick_wide(args);
    if (!wide)
        return mb_launch("qk_norm_rope_store", is_part ? qk_norm_rope_store<PART> : qk_norm_rope_store<WHOLE>,
                         dim3((unsigned)args->n_tokens), N_THREADS, 0, stream, args);
    const int64_t n_ctas = 2 * (int64_t)mb_n_processors(); /* that find room at once */
    const int64_t full = (args->n_tokens + n_ctas - 1) / n_ctas,
                  tile = full < MOST_TOKENS ? full : MOST_TOKENS;
    const wide_params params = {*args, (int32_t)tile};
    return mb_launch("qk_norm_rope_store", wide, dim3((unsigned)((args->n_tokens + tile - 1) / tile)),
                     WIDE_THREADS, 0, stream, &params);
}
