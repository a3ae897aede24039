/*
 * attention_any_sm90.cu - causal attention over the paged cache for any head size and any types, with fp32
 * multiply-adds: one CTA a query token and group of up to eight query heads of one kv head.
 *
 * The CTA walks the cached positions block by block from position 0. Per block of 64:
 *
 *   scores    warp w has positions w, w + 4, ...; its lanes share a row of K and add up by one fixed tree
 *   softmax   warp w has query heads w, w + 4; new maximum, correction of the former sums, probabilities
 *   values    a thread has dimensions thread, thread + 128, ... of every head
 *
 * A query's walk depends on its own position alone, so chunks and batches do not change its bits.
 */
#include "ops/attention/attention_any.h"
#include "ops/common/element.cuh"
#include "ops/common/exp.h"
#include "ops/hopper/launch.cuh"

#include <math_constants.h>

enum { N_THREADS = 128, N_WARPS = 4, BLOCK = 64, HEADS = 8, MAX_DIM = 512 };

typedef struct attention_shared {
    float q[HEADS][MAX_DIM]; /* scaled */
    float weights[HEADS][BLOCK];
    float correction[HEADS], total[HEADS];
} attention_shared;

static __device__ int32_t sequence_of(const mb_attention_args *args, int32_t token) {
    int32_t low = 0, high = args->n_sequences; /* q_start[low] <= token < q_start[high] */
    while (high - low > 1) {
        const int32_t middle = low + (high - low) / 2;
        if (args->q_start[middle] <= token)
            low = middle;
        else
            high = middle;
    }
    return low;
}

/* Scores of a block's first n positions; the others are masked. */
static __device__ void score_block(const mb_attention_args *args, int64_t first_row, int n, int n_heads,
                                   attention_shared *s) {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, d = args->head_dim;
    for (int p = warp; p < BLOCK; p += N_WARPS) {
        float dots[HEADS] = {};
        if (p < n)
            for (int i = lane; i < d; i += 32) {
                const float k = mb_element_load(args->cache_dtype, args->k_cache, (first_row + p) * d + i);
#pragma unroll
                for (int h = 0; h < HEADS; h++)
                    dots[h] = fmaf(s->q[h][i], k, dots[h]);
            }
#pragma unroll
        for (int h = 0; h < HEADS; h++) {
            const float score = mb_warp_sum(dots[h]);
            if (lane == 0 && h < n_heads)
                s->weights[h][p] = p < n ? score : -CUDART_INF_F;
        }
    }
}

/* Scores become probabilities relative to the new maximum. maximum, total: of heads warp and warp + 4. */
static __device__ void soften_block(int n_heads, attention_shared *s, float (&maximum)[2],
                                    float (&total)[2]) {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
#pragma unroll
    for (int i = 0; i < 2; i++) {
        const int h = warp + i * N_WARPS;
        if (h >= n_heads)
            break;
        const float a = s->weights[h][lane], b = s->weights[h][lane + 32];
        const float larger = fmaxf(maximum[i], mb_warp_max(fmaxf(a, b)));
        const float correction = mb_exp(maximum[i] - larger);
        const float p = mb_exp(a - larger), q = mb_exp(b - larger);
        s->weights[h][lane] = p;
        s->weights[h][lane + 32] = q;
        total[i] = total[i] * correction + mb_warp_sum(p + q);
        maximum[i] = larger;
        if (lane == 0) {
            s->correction[h] = correction;
            s->total[h] = total[i];
        }
    }
}

/* n_dims: dimensions of one thread. */
template <int n_dims> static __global__ void __launch_bounds__(N_THREADS) attention(mb_attention_args args) {
    __shared__ attention_shared s;
    mb_grid_wait();
    const int32_t token = blockIdx.x, d = args.head_dim, heads_per_kv = args.n_heads / args.n_kv_heads;
    const int32_t groups = (heads_per_kv + HEADS - 1) / HEADS;
    const int32_t kv_head = blockIdx.y / groups, first = blockIdx.y % groups * HEADS;
    const int32_t n_heads = min(HEADS, heads_per_kv - first);
    const int64_t head_row = (int64_t)token * args.n_heads + kv_head * heads_per_kv + first;
    const int32_t sequence = sequence_of(&args, token);
    if (token >= args.q_start[args.n_sequences]) /* padding of the batch */
        return;
    const int32_t n_visible = args.kv_len[sequence] - args.q_start[sequence + 1] + token + 1;
    const float q_scale = args.k_scale ? args.scale * args.k_scale[kv_head] : args.scale;
    const float v_scale = args.v_scale ? args.v_scale[kv_head] : 1;
    const int32_t *blocks = args.block_table + (int64_t)sequence * args.max_blocks;
    for (int i = threadIdx.x; i < HEADS * d; i += N_THREADS) {
        const int h = i / d;
        s.q[h][i % d] = h < n_heads ? mb_element_load(args.dtype, args.q, head_row * d + i) * q_scale : 0;
    }
    __syncthreads();

    float sums[HEADS][n_dims] = {}, maximum[2] = {-CUDART_INF_F, -CUDART_INF_F}, total[2] = {0, 0};
    for (int32_t position = 0; position < n_visible; position += BLOCK) {
        const int n = min(BLOCK, n_visible - position);
        const int64_t first_row = ((int64_t)blocks[position / BLOCK] * args.n_kv_heads + kv_head) * BLOCK;
        score_block(&args, first_row, n, n_heads, &s);
        __syncthreads();
        soften_block(n_heads, &s, maximum, total);
        __syncthreads();
#pragma unroll
        for (int h = 0; h < HEADS; h++)
#pragma unroll
            for (int i = 0; i < n_dims; i++)
                sums[h][i] *= h < n_heads ? s.correction[h] : 0;
        for (int p = 0; p < n; p++)
#pragma unroll
            for (int i = 0; i < n_dims; i++) {
                const int dim = threadIdx.x + i * N_THREADS;
                const float v =
                    dim < d ? mb_element_load(args.cache_dtype, args.v_cache, (first_row + p) * d + dim) : 0;
#pragma unroll
                for (int h = 0; h < HEADS; h++)
                    sums[h][i] = fmaf(h < n_heads ? s.weights[h][p] : 0, v, sums[h][i]);
            }
        __syncthreads();
    }
#pragma unroll
    for (int h = 0; h < HEADS; h++)
#pragma unroll
        for (int i = 0; i < n_dims; i++) {
            const int dim = threadIdx.x + i * N_THREADS;
            if (h < n_heads && dim < d)
                mb_element_store(args.dtype, args.out, (head_row + h) * d + dim,
                                 sums[h][i] / s.total[h] * v_scale);
        }
    mb_grid_launch_dependents();
}

mb_status mb_attention_any_sm90(const mb_attention_args *args, mb_stream stream) {
    const int32_t heads_per_kv = args->n_heads / args->n_kv_heads;
    const dim3 grid((unsigned)args->n_tokens,
                    (unsigned)(args->n_kv_heads * ((heads_per_kv + HEADS - 1) / HEADS)));
    const auto kernel = args->head_dim <= N_THREADS ? attention<1> : attention<MAX_DIM / N_THREADS>;
    return mb_launch("attention", kernel, grid, N_THREADS, 0, stream, args);
}
