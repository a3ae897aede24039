/*
 * rope_sm90.cu - head norms, rotary embedding, and the store into the paged cache: one CTA a token, one warp
 * a head at a time. The token's cosines and sines are computed once, in shared memory.
 *
 * A lane has the pairs (i, i + D/2) with i = lane, lane + 32, ...: both halves of a rotation are in one lane.
 */
#include "ops/common/element.cuh"
#include "ops/hopper/launch.cuh"
#include "ops/rope/rope.h"

enum { N_THREADS = 256, N_WARPS = N_THREADS / 32, MAX_HALF = 256, MAX_PAIRS = MAX_HALF / 32 };

/*
 * Sine and cosine of an angle in fp32. sincosf would keep the general case's table in local memory; instead
 * the angle is taken to quarter turns in fp64, whose 53 bits leave an error below 1e-9 for any position, and
 * sincospif has the rest, which is at most an eighth of a turn.
 */
static __device__ __forceinline__ void sine_cosine(float angle, float *sine, float *cosine) {
    const double half_turns = (double)angle * 0.31830988618379067154; /* 1 / pi */
    const double quarter = rint(2.0 * half_turns);
    float s, c;
    sincospif((float)(half_turns - 0.5 * quarter), &s, &c);
    const int turn = (int)((long long)quarter & 3);
    *sine = turn == 0 ? s : turn == 1 ? c : turn == 2 ? -s : -c;
    *cosine = turn == 0 ? c : turn == 1 ? -s : turn == 2 ? -c : s;
}

typedef struct head_pairs {
    float low[MAX_PAIRS], high[MAX_PAIRS];
} head_pairs;

static __device__ __forceinline__ void load_head(const mb_qk_norm_rope_store_args *args, int64_t at, int lane,
                                                 head_pairs *head) {
    const int half = args->head_dim / 2;
#pragma unroll
    for (int i = 0; i < MAX_PAIRS; i++) {
        const int pair = lane + 32 * i;
        head->low[i] = pair < half ? mb_element_load(args->dtype, args->qkv, at + pair) : 0;
        head->high[i] = pair < half ? mb_element_load(args->dtype, args->qkv, at + half + pair) : 0;
    }
}

static __device__ __forceinline__ void norm_head(const mb_weight *weight, float eps, int head_dim, int lane,
                                                 head_pairs *head) {
    if (!weight->data)
        return;
    float sum = 0;
#pragma unroll
    for (int i = 0; i < MAX_PAIRS; i++)
        sum = fmaf(head->high[i], head->high[i], fmaf(head->low[i], head->low[i], sum));
    sum = mb_warp_sum(sum);
    const float scale = 1.0f / sqrtf(sum / (float)head_dim + eps);
#pragma unroll
    for (int i = 0; i < MAX_PAIRS; i++) {
        const int pair = lane + 32 * i;
        if (pair < head_dim / 2) {
            head->low[i] *= scale * mb_element_load(weight->dtype, weight->data, pair);
            head->high[i] *= scale * mb_element_load(weight->dtype, weight->data, head_dim / 2 + pair);
        }
    }
}

static __device__ __forceinline__ void rotate_head(const float *cosines, const float *sines, int half,
                                                   int lane, head_pairs *head) {
#pragma unroll
    for (int i = 0; i < MAX_PAIRS; i++) {
        const int pair = lane + 32 * i;
        if (pair < half) {
            const float a = head->low[i], b = head->high[i];
            head->low[i] = a * cosines[pair] - b * sines[pair];
            head->high[i] = b * cosines[pair] + a * sines[pair];
        }
    }
}

/* Into the cache, whose type is fp8 or one of activations. */
static __device__ __forceinline__ void cache_element(mb_dtype dtype, void *cache, int64_t at, float value) {
    if (dtype == MB_F8_E4M3)
        ((__nv_fp8_e4m3 *)cache)[at] = __nv_fp8_e4m3(value);
    else
        mb_element_store(dtype, cache, at, value);
}

static __device__ __forceinline__ void cache_head(mb_dtype dtype, void *cache, int64_t at, int half, int lane,
                                                  float scale, const head_pairs *head) {
#pragma unroll
    for (int i = 0; i < MAX_PAIRS; i++) {
        const int pair = lane + 32 * i;
        if (pair < half) {
            cache_element(dtype, cache, at + pair, head->low[i] / scale);
            cache_element(dtype, cache, at + half + pair, head->high[i] / scale);
        }
    }
}

static __device__ __forceinline__ void store_head(mb_dtype dtype, void *to, int64_t at, int half, int lane,
                                                  const head_pairs *head) {
#pragma unroll
    for (int i = 0; i < MAX_PAIRS; i++) {
        const int pair = lane + 32 * i;
        if (pair < half) {
            mb_element_store(dtype, to, at + pair, head->low[i]);
            mb_element_store(dtype, to, at + half + pair, head->high[i]);
        }
    }
}

static __global__ void __launch_bounds__(N_THREADS) qk_norm_rope_store(mb_qk_norm_rope_store_args args) {
    __shared__ float cosines[MAX_HALF], sines[MAX_HALF];
    mb_grid_wait();
    const int64_t token = blockIdx.x;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, d = args.head_dim, half = d / 2;
    const float position = (float)args.positions[token];
    if ((int)threadIdx.x < half) {
        float sine, cosine;
        sine_cosine(position * args.inv_freq[threadIdx.x], &sine, &cosine);
        sines[threadIdx.x] = sine * args.rope_scale;
        cosines[threadIdx.x] = cosine * args.rope_scale;
    }
    __syncthreads();

    const int32_t n_q = args.n_heads, n_kv = args.n_kv_heads, slot = args.slots[token];
    const int64_t block = slot / MB_KV_BLOCK, offset = slot % MB_KV_BLOCK;
    const int32_t n_heads = slot < 0 ? n_q : n_q + 2 * n_kv;
    for (int32_t h = warp; h < n_heads; h += N_WARPS) {
        head_pairs head;
        load_head(&args, (token * (n_q + 2 * n_kv) + h) * d, lane, &head);
        if (h < n_q) {
            norm_head(&args.q_norm, args.eps, d, lane, &head);
            rotate_head(cosines, sines, half, lane, &head);
            store_head(args.dtype, args.q, (token * n_q + h) * d, half, lane, &head);
            continue;
        }
        const int32_t is_v = h >= n_q + n_kv, kv_head = h - n_q - is_v * n_kv;
        if (!is_v) {
            norm_head(&args.k_norm, args.eps, d, lane, &head);
            rotate_head(cosines, sines, half, lane, &head);
        }
        const float *scales = is_v ? args.v_scale : args.k_scale;
        cache_head(args.cache_dtype, is_v ? args.v_cache : args.k_cache,
                   ((block * n_kv + kv_head) * MB_KV_BLOCK + offset) * d, half, lane,
                   scales ? scales[kv_head] : 1, &head);
    }
    mb_grid_launch_dependents();
}

mb_status mb_qk_norm_rope_store_sm90(const mb_qk_norm_rope_store_args *args, mb_stream stream) {
    MB_TRY(mb_qk_norm_rope_store_check(args));
    if (args->n_tokens == 0)
        return MB_OK;
    return mb_launch("qk_norm_rope_store", qk_norm_rope_store, dim3((unsigned)args->n_tokens), N_THREADS, 0,
                     stream, args);
}
