/*
 * attention_check - attention with the tensor cores: what its order of sums rests on, values against fp64,
 * bits that must not depend on company, and time.
 *
 *   attention_check [--no-times] [--times-only] [--small]
 *
 * --small checks few positions and times nothing (for compute-sanitizer).
 *
 * Cached positions that do not exist are NaN, entries of the block table that do not exist are no blocks.
 */
#include "timing.cuh"

extern "C" {
#include "ops/attention/attention.h"
}
#include "ops/common/check.h"
#include "ops/hopper/barrier.cuh"
#include "ops/hopper/mma.cuh"
#include "ops/hopper/wgmma.cuh"

#include <cuda_bf16.h>
#include <cuda_fp16.h>

enum { BLOCK = 64, MOST_SEQUENCES = 16, MOST_SMALL = 520 };

/* ---- random values */

static __device__ uint32_t hash(uint64_t i, uint32_t seed) {
    uint64_t x = i * 0x9e3779b97f4a7c15ull + seed * 0xbf58476d1ce4e5b9ull + 1;
    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9ull;
    x = (x ^ x >> 27) * 0x94d049bb133111ebull;
    return (uint32_t)(x >> 32);
}

/* Between low and high, in dtype. */
static __device__ void put(void *to, int64_t at, mb_dtype dtype, uint64_t i, uint32_t seed, float low,
                           float high) {
    const float value = low + (high - low) * (float)(hash(i, seed) >> 8) * 0x1p-24f;
    if (dtype == MB_BF16)
        ((__nv_bfloat16 *)to)[at] = __float2bfloat16(value);
    else if (dtype == MB_F16)
        ((__half *)to)[at] = __float2half(value);
    else { /* e4m3: a random number of 0.0625 .. 1.875, or its negative if low is below 0 */
        const uint32_t h = hash(i, seed);
        ((uint8_t *)to)[at] = (uint8_t)((h & 0x27) + 0x18 + (low < -1 ? h >> 8 & 0x80 : 0));
    }
}

static __global__ void fill(void *to, int64_t n, mb_dtype dtype, uint32_t seed, float low, float high) {
    for (int64_t i = blockIdx.x * (int64_t)blockDim.x + threadIdx.x; i < n;
         i += (int64_t)gridDim.x * blockDim.x)
        put(to, i, dtype, (uint64_t)i, seed, low, high);
}

/* Positions [0, length) of a sequence with the blocks of `table`. */
static __global__ void fill_cache(void *to, const int32_t *table, int32_t length, int32_t n_kv, int32_t dim,
                                  mb_dtype dtype, uint32_t seed, float low, float high) {
    const int64_t n = (int64_t)length * n_kv * dim;
    for (int64_t i = blockIdx.x * (int64_t)blockDim.x + threadIdx.x; i < n;
         i += (int64_t)gridDim.x * blockDim.x) {
        const int64_t d = i % dim, head = i / dim % n_kv, position = i / dim / n_kv;
        const int64_t row = (table[position / BLOCK] * (int64_t)n_kv + head) * BLOCK + position % BLOCK;
        put(to, row * dim + d, dtype, (uint64_t)i, seed, low, high);
    }
}

/* ---- bits of a chain of mma.sync and of wgmma */

enum { CHAIN = 128 }; /* K of a chain */

/* 64 x 128 = A [64, 128] B^T [128, 128], plus sums: K-major, as scores are. */
template <int type>
static __global__ void chain_wgmma(const uint16_t *a, const uint16_t *b, float *sums, int swapped) {
    extern __shared__ __align__(1024) unsigned char memory[];
    unsigned char *sa = memory, *sb = memory + 64 * CHAIN * 2;
    const int t = threadIdx.x;
    for (int i = t; i < 192 * CHAIN; i += 128) {
        const int r = i / CHAIN, k = i % CHAIN, is_b = r >= 64, row = is_b ? r - 64 : r, n = is_b ? 128 : 64;
        unsigned char *to =
            (is_b ? sb : sa) + (k / 64 * n + row) * 128 + ((k % 64 / 8) ^ row % 8) * 16 + k % 8 * 2;
        *(uint16_t *)to = is_b ? b[row * CHAIN + k] : a[row * CHAIN + k];
    }
    mb_fence_async_shared();
    __syncthreads();
    const uint64_t da = mb_wgmma_descriptor(mb_shared_address(sa)),
                   db = mb_wgmma_descriptor(mb_shared_address(sb));
    const int row = t / 32 * 16 + t % 32 / 4, column = t % 4 * 2;
    if (!swapped) {
        float sum[64];
        for (int i = 0; i < 64; i++)
            sum[i] = sums[(row + i % 4 / 2 * 8) * 128 + i / 4 * 8 + column + i % 2];
        mb_wgmma_pin(sum);
        mb_wgmma_fence();
        for (int i = 0; i < CHAIN / 16; i++)
            mb_wgmma<type, 128, 1>(sum, da + i / 4 * 512 + i % 4 * 2, db + i / 4 * 1024 + i % 4 * 2);
        mb_wgmma_commit();
        mb_wgmma_wait<0>();
        mb_wgmma_pin(sum);
        for (int i = 0; i < 64; i++)
            sums[(row + i % 4 / 2 * 8) * 128 + i / 4 * 8 + column + i % 2] = sum[i];
        return;
    }
    /* The first 64 rows of B as M, the first eight of A as N. */
    float sum[4];
    for (int i = 0; i < 4; i++)
        sum[i] = sums[(column + i % 2) * 128 + row + i / 2 * 8];
    mb_wgmma_pin(sum);
    mb_wgmma_fence();
    for (int i = 0; i < CHAIN / 16; i++)
        mb_wgmma<type, 8, 1>(sum, db + i / 4 * 1024 + i % 4 * 2, da + i / 4 * 512 + i % 4 * 2);
    mb_wgmma_commit();
    mb_wgmma_wait<0>();
    mb_wgmma_pin(sum);
    for (int i = 0; i < 4; i++)
        sums[(column + i % 2) * 128 + row + i / 2 * 8] = sum[i];
}

/* The same product with A from registers and B [K, N] read across, as values are. */
template <int type> static __global__ void chain_across(const uint16_t *a, const uint16_t *b, float *sums) {
    extern __shared__ __align__(1024) unsigned char memory[];
    const int t = threadIdx.x, row = t / 32 * 16 + t % 32 / 4, column = t % 4 * 2;
    for (int i = t; i < 128 * CHAIN; i += 128) { /* row n of B is column n here */
        const int n = i / CHAIN, k = i % CHAIN;
        *(uint16_t *)(memory + (n / 64 * CHAIN + k) * 128 + ((n % 64 / 8) ^ k % 8) * 16 + n % 8 * 2) = b[i];
    }
    mb_fence_async_shared();
    __syncthreads();
    float sum[64];
    for (int i = 0; i < 64; i++)
        sum[i] = sums[(row + i % 4 / 2 * 8) * 128 + i / 4 * 8 + column + i % 2];
    uint32_t w[CHAIN / 4];
    for (int i = 0; i < CHAIN / 4; i++)
        w[i] = *(const uint32_t *)(a + (row + i % 2 * 8) * CHAIN + i / 4 * 16 + i % 4 / 2 * 8 + column);
    const uint64_t db = mb_wgmma_descriptor_across(mb_shared_address(memory), CHAIN * 128);
    mb_wgmma_pin(sum);
    mb_wgmma_fence();
#pragma unroll
    for (int i = 0; i < CHAIN / 16; i++)
        mb_wgmma_across<type, 128>(sum, w[4 * i], w[4 * i + 1], w[4 * i + 2], w[4 * i + 3], db + i * 128, 1);
    mb_wgmma_commit();
    mb_wgmma_wait<0>();
    mb_wgmma_pin(sum);
    for (int i = 0; i < 64; i++)
        sums[(row + i % 4 / 2 * 8) * 128 + i / 4 * 8 + column + i % 2] = sum[i];
}

/* One warp 16 x 8, straight from memory. */
template <int type> static __global__ void chain_mma(const uint16_t *a, const uint16_t *b, float *sums) {
    const int g = threadIdx.x / 4, c = threadIdx.x % 4 * 2, r0 = blockIdx.x * 16 + g, n0 = blockIdx.y * 8;
    float sum[4];
    for (int i = 0; i < 4; i++)
        sum[i] = sums[(r0 + i / 2 * 8) * 128 + n0 + c + i % 2];
    for (int k = 0; k < CHAIN; k += 16) {
        const uint32_t x[4] = {*(const uint32_t *)(a + r0 * CHAIN + k + c),
                               *(const uint32_t *)(a + (r0 + 8) * CHAIN + k + c),
                               *(const uint32_t *)(a + r0 * CHAIN + k + c + 8),
                               *(const uint32_t *)(a + (r0 + 8) * CHAIN + k + c + 8)};
        const uint32_t b0 = *(const uint32_t *)(b + (n0 + g) * CHAIN + k + c),
                       b1 = *(const uint32_t *)(b + (n0 + g) * CHAIN + k + c + 8);
        if (type == MB_WGMMA_BF16)
            mb_mma_bf16(sum, x, b0, b1);
        else
            mb_mma_f16(sum, x, b0, b1);
    }
    for (int i = 0; i < 4; i++)
        sums[(r0 + i / 2 * 8) * 128 + n0 + c + i % 2] = sum[i];
}

static __global__ void fill_sums(float *sums, float scale, uint32_t seed) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    sums[i] = scale * ((float)(hash((uint64_t)i, seed) >> 8) * 0x1p-23f - 1);
}

/* Numbers of very different size, so that what an instruction drops shows. */
static __global__ void fill_wide(uint16_t *to, int64_t n, int is_bf16, uint32_t seed, int spread) {
    const int64_t i = blockIdx.x * (int64_t)blockDim.x + threadIdx.x;
    if (i >= n)
        return;
    const uint32_t h = hash((uint64_t)i, seed);
    const float value = ldexpf((float)(int32_t)h * 0x1p-31f, (int)(h % (uint32_t)(2 * spread + 1)) - spread);
    to[i] = is_bf16 ? __bfloat16_as_ushort(__float2bfloat16(value)) : __half_as_ushort(__float2half(value));
}

template <int type> static void check_chains(const char *name) {
    enum { SUMS = 64 * 128 };
    uint16_t *a = (uint16_t *)allocate(64 * CHAIN * 2), *b = (uint16_t *)allocate(128 * CHAIN * 2);
    float *sums[4];
    for (int i = 0; i < 4; i++)
        sums[i] = (float *)allocate(4 * SUMS);
    CUDA(cudaFuncSetAttribute(chain_wgmma<type>, cudaFuncAttributeMaxDynamicSharedMemorySize, 49152));
    static const char *const ways[] = {"wgmma", "mma.sync", "wgmma swapped", "wgmma across"};
    int64_t differ[4] = {0, 0, 0, 0}, n_all = 0;
    double worst = 0;
    for (uint32_t trial = 0; trial < 60; trial++) {
        fill_wide<<<64 * CHAIN / 256, 256>>>(a, 64 * CHAIN, type == MB_WGMMA_BF16, 2 * trial,
                                             (int)(trial % 4) * 2);
        fill_wide<<<128 * CHAIN / 256, 256>>>(b, 128 * CHAIN, type == MB_WGMMA_BF16, 2 * trial + 1,
                                              (int)(trial % 3) * 2);
        const float scale = trial % 5 == 0 ? 0 : ldexpf(1, (int)(trial % 7) * 3 - 6);
        for (int i = 0; i < 4; i++)
            fill_sums<<<SUMS / 256, 256>>>(sums[i], scale, trial);
        chain_wgmma<type><<<1, 128, 49152>>>(a, b, sums[0], 0);
        chain_mma<type><<<dim3(4, 16), 32>>>(a, b, sums[1]);
        chain_wgmma<type><<<1, 128, 49152>>>(a, b, sums[2], 1);
        chain_across<type><<<1, 128, 128 * CHAIN * 2>>>(a, b, sums[3]);
        CUDA(cudaDeviceSynchronize());
        float *host[4];
        for (int i = 0; i < 4; i++)
            host[i] = (float *)download(sums[i], 4 * SUMS);
        for (int i = 0; i < SUMS; i++)
            for (int way = 1; way < 4; way++)
                if (way != 2 || (i / 128 < 8 && i % 128 < 64)) {
                    differ[way] += memcmp(&host[0][i], &host[way][i], 4) != 0;
                    const double off = fabs((double)host[0][i] - host[way][i]);
                    if (way == 3 && off > 1e-3 * (fabs((double)host[0][i]) + 1e-3))
                        worst = off > worst ? off : worst;
                }
        n_all += SUMS;
        for (int i = 0; i < 4; i++)
            free(host[i]);
    }
    for (int way = 1; way < 4; way++) {
        printf("chain %-5s %-14s %lld of %lld sums have other bits than wgmma's\n", name, ways[way],
               (long long)differ[way], (long long)(way == 2 ? n_all / 16 : n_all));
        if (differ[way])
            complain("chain", ways[way], (double)differ[way]);
    }
    if (worst > 0)
        complain("chain", "wgmma across is far off: descriptor or registers", worst);
    CUDA(cudaFree(a));
    CUDA(cudaFree(b));
    for (int i = 0; i < 4; i++)
        CUDA(cudaFree(sums[i]));
}

/* ---- problems: one sequence, of which batches have parts */

typedef struct shape {
    int32_t n_heads, n_kv_heads, dim, length;
    mb_dtype dtype, cache_dtype;
} shape;

typedef struct problem {
    shape s;
    int32_t max_blocks;
    void *q, *k, *v; /* device */
    int32_t *table;  /* host [max_blocks + 1], the last no block */
    int32_t *device_table;
    float *scales; /* device [2, Hkv] */
    void *workspace;
    size_t workspace_bytes;
    char name[96];
} problem;

static const float K_SCALE = 0.7f, V_SCALE = 1.3f;

static problem make_problem(shape s) {
    problem p = {};
    p.s = s;
    snprintf(p.name, sizeof p.name, "%s/%s Hq=%d Hkv=%d D=%d L=%d", mb_dtype_name(s.dtype),
             mb_dtype_name(s.cache_dtype), s.n_heads, s.n_kv_heads, s.dim, s.length);
    p.max_blocks = (s.length + BLOCK - 1) / BLOCK;
    const int32_t n_pool = p.max_blocks + 3;
    const int64_t n_q = (int64_t)s.length * s.n_heads * s.dim,
                  n_cache = (int64_t)n_pool * s.n_kv_heads * BLOCK * s.dim;
    const size_t bytes = mb_dtype_bytes(s.cache_dtype);
    p.q = allocate(2 * (size_t)n_q);
    p.k = allocate(bytes * (size_t)n_cache);
    p.v = allocate(bytes * (size_t)n_cache);
    CUDA(cudaMemset(p.k, 0xff, bytes * (size_t)n_cache)); /* NaN in all types */
    CUDA(cudaMemset(p.v, 0xff, bytes * (size_t)n_cache));
    p.table = (int32_t *)host_allocate(4 * ((size_t)p.max_blocks + 1));
    for (int32_t i = 0; i < p.max_blocks; i++)
        p.table[i] = n_pool - 1 - (p.max_blocks % 7 ? (i * 7 + 3) % p.max_blocks : i);
    p.table[p.max_blocks] = INT32_MAX / 2;
    p.device_table = (int32_t *)allocate(4 * ((size_t)p.max_blocks + 1));
    CUDA(cudaMemcpy(p.device_table, p.table, 4 * ((size_t)p.max_blocks + 1), cudaMemcpyHostToDevice));
    fill<<<1024, 256>>>(p.q, n_q, s.dtype, 1, -2, 2);
    fill_cache<<<1024, 256>>>(p.k, p.device_table, s.length, s.n_kv_heads, s.dim, s.cache_dtype, 2, -2, 2);
    fill_cache<<<1024, 256>>>(p.v, p.device_table, s.length, s.n_kv_heads, s.dim, s.cache_dtype, 3, -0.5f, 1);
    float *scales = (float *)host_allocate(8 * (size_t)s.n_kv_heads);
    for (int32_t i = 0; i < s.n_kv_heads; i++) {
        scales[i] = K_SCALE + 0.05f * (float)i;
        scales[s.n_kv_heads + i] = V_SCALE + 0.05f * (float)i;
    }
    p.scales = (float *)allocate(8 * (size_t)s.n_kv_heads);
    CUDA(cudaMemcpy(p.scales, scales, 8 * (size_t)s.n_kv_heads, cudaMemcpyHostToDevice));
    free(scales);
    CUDA(cudaDeviceSynchronize());
    return p;
}

static void free_problem(problem *p) {
    CUDA(cudaFree(p->q));
    CUDA(cudaFree(p->k));
    CUDA(cudaFree(p->v));
    CUDA(cudaFree(p->device_table));
    CUDA(cudaFree(p->scales));
    CUDA(cudaFree(p->workspace));
    free(p->table);
}

/* The queries [begin[s], end[s]) of n sequences, which all are this problem's. */
typedef struct batch {
    mb_attention_args args;
    void *q, *out, *workspace;
    int32_t *ints;
    size_t workspace_bytes;
} batch;

static batch make_batch(const problem *p, int32_t n, const int32_t *begin, const int32_t *end) {
    batch b = {};
    int32_t q_start[MOST_SEQUENCES + 1] = {0}, most_q = 0, most_kv = 0;
    for (int32_t s = 0; s < n; s++) {
        q_start[s + 1] = q_start[s] + end[s] - begin[s];
        most_q = end[s] - begin[s] > most_q ? end[s] - begin[s] : most_q;
        most_kv = end[s] > most_kv ? end[s] : most_kv;
    }
    const size_t row = 2 * (size_t)p->s.n_heads * (size_t)p->s.dim, n_tokens = (size_t)q_start[n];
    const int32_t width = p->max_blocks + 1;
    b.q = allocate(n_tokens * row);
    b.out = allocate(n_tokens * row);
    b.ints = (int32_t *)allocate(4 * (size_t)(2 * n + 1 + n * width));
    CUDA(cudaMemset(b.out, 0xff, n_tokens * row));
    CUDA(cudaMemcpy(b.ints, q_start, 4 * (size_t)(n + 1), cudaMemcpyHostToDevice));
    CUDA(cudaMemcpy(b.ints + n + 1, end, 4 * (size_t)n, cudaMemcpyHostToDevice));
    for (int32_t s = 0; s < n; s++) {
        int32_t *table = b.ints + 2 * n + 1 + s * width;
        CUDA(cudaMemset(table, 0x3f, 4 * (size_t)width)); /* no blocks */
        CUDA(cudaMemcpy(table, p->table, 4 * (size_t)((end[s] + BLOCK - 1) / BLOCK), cudaMemcpyHostToDevice));
        CUDA(cudaMemcpy((char *)b.q + (size_t)q_start[s] * row, (char *)p->q + (size_t)begin[s] * row,
                        (size_t)(end[s] - begin[s]) * row, cudaMemcpyDeviceToDevice));
    }
    mb_attention_args *args = &b.args;
    args->q = b.q;
    args->k_cache = p->k;
    args->v_cache = p->v;
    args->q_start = b.ints;
    args->kv_len = b.ints + n + 1;
    args->block_table = b.ints + 2 * n + 1;
    args->out = b.out;
    args->n_tokens = q_start[n];
    args->n_sequences = n;
    args->max_blocks = width;
    args->max_q_len = most_q;
    args->max_kv_len = most_kv;
    args->n_heads = p->s.n_heads;
    args->n_kv_heads = p->s.n_kv_heads;
    args->head_dim = p->s.dim;
    args->scale = (float)(1 / sqrt((double)p->s.dim));
    args->dtype = p->s.dtype;
    args->cache_dtype = p->s.cache_dtype;
    if (p->s.cache_dtype == MB_F8_E4M3) {
        args->k_scale = p->scales;
        args->v_scale = p->scales + p->s.n_kv_heads;
    }
    b.workspace_bytes = bytes_of(mb_attention_sm90_workspace, args);
    b.workspace = allocate(b.workspace_bytes);
    CUDA(cudaMemset(b.workspace, 0xff, b.workspace_bytes));
    return b;
}

static void free_batch(const batch *b) {
    CUDA(cudaFree(b->q));
    CUDA(cudaFree(b->out));
    CUDA(cudaFree(b->ints));
    CUDA(cudaFree(b->workspace));
}

static void launch_batch(const void *context, cudaStream_t stream) {
    const batch *b = (const batch *)context;
    MB(mb_attention_sm90(&b->args, b->workspace, b->workspace_bytes, stream));
}

/* To the host. */
static uint16_t *attend(const problem *p, int32_t n, const int32_t *begin, const int32_t *end) {
    const batch b = make_batch(p, n, begin, end);
    launch_batch(&b, NULL);
    const cudaError_t error = cudaDeviceSynchronize();
    if (error != cudaSuccess) {
        printf("WRONG %s: %s\n", p->name, cudaGetErrorString(error));
        exit(1);
    }
    uint16_t *out =
        (uint16_t *)download(b.out, 2 * (size_t)b.args.n_tokens * (size_t)p->s.n_heads * (size_t)p->s.dim);
    free_batch(&b);
    return out;
}

/* ---- values */

/* Rows of the whole prompt, spread over it, against fp64. */
static void check_values(const problem *p, const uint16_t *whole) {
    const shape *s = &p->s;
    const int64_t n_cache = (int64_t)(p->max_blocks + 3) * s->n_kv_heads * BLOCK * s->dim;
    const size_t bytes = mb_dtype_bytes(s->cache_dtype);
    void *k = download(p->k, bytes * (size_t)n_cache), *v = download(p->v, bytes * (size_t)n_cache);
    void *q = download(p->q, 2 * (size_t)s->length * (size_t)s->n_heads * (size_t)s->dim);
    double *scores = (double *)host_allocate(sizeof(double) * (size_t)s->length);
    double *out = (double *)host_allocate(sizeof(double) * (size_t)s->dim);
    const int is_fp8 = s->cache_dtype == MB_F8_E4M3;
    double worst = 0;
    int32_t worst_token = -1, worst_head = -1, n_bad = 0;
    const double bar = s->dtype == MB_BF16 ? 8e-3 : 1.2e-3;
    const int32_t step = s->length > 40 ? s->length / 40 : 1;
    for (int32_t i = 0; i <= s->length / step; i++) {
        const int32_t t = i * step < s->length ? i * step : s->length - 1;
        for (int32_t head = i % 3; head<s->n_heads; head += s->n_heads> 8 ? 7 : 3) {
            const int32_t kv = head / (s->n_heads / s->n_kv_heads);
            const double scale = 1 / sqrt((double)s->dim) * (is_fp8 ? K_SCALE + 0.05 * kv : 1);
            double maximum = -INFINITY, total = 0, error = 0, norm = 0;
            memset(out, 0, sizeof(double) * (size_t)s->dim);
            for (int32_t at = 0; at <= t; at++) {
                const int64_t row = ((int64_t)p->table[at / BLOCK] * s->n_kv_heads + kv) * BLOCK + at % BLOCK;
                scores[at] = 0;
                for (int32_t d = 0; d < s->dim; d++)
                    scores[at] += mb_check_value(s->dtype, q, ((int64_t)t * s->n_heads + head) * s->dim + d) *
                                  mb_check_value(s->cache_dtype, k, row * s->dim + d);
                scores[at] *= scale;
                maximum = fmax(maximum, scores[at]);
            }
            for (int32_t at = 0; at <= t; at++) {
                const int64_t row = ((int64_t)p->table[at / BLOCK] * s->n_kv_heads + kv) * BLOCK + at % BLOCK;
                const double weight = exp(scores[at] - maximum);
                total += weight;
                for (int32_t d = 0; d < s->dim; d++)
                    out[d] += weight * mb_check_value(s->cache_dtype, v, row * s->dim + d);
            }
            for (int32_t d = 0; d < s->dim; d++) {
                const double right = out[d] / total * (is_fp8 ? V_SCALE + 0.05 * kv : 1);
                const double got =
                    mb_check_value(s->dtype, whole, ((int64_t)t * s->n_heads + head) * s->dim + d);
                error += (got - right) * (got - right);
                norm += right * right;
            }
            const double off = sqrt(error / norm);
            n_bad += !(off < bar);
            if (!(off <= worst)) {
                worst = off;
                worst_token = t;
                worst_head = head;
            }
        }
    }
    printf("values %-40s worst row: token %d head %d, off by %.2e; %d rows bad\n", p->name, worst_token,
           worst_head, worst, n_bad);
    if (n_bad)
        complain(p->name, "rows are far from the exact ones", n_bad);
    free(k);
    free(v);
    free(q);
    free(scores);
    free(out);
}

/* ---- bits */

static int64_t count_different(const uint16_t *a, const uint16_t *b, int64_t n) {
    int64_t count = 0;
    for (int64_t i = 0; i < n; i++)
        count += a[i] != b[i];
    return count;
}

static void check_bits(const problem *p, const uint16_t *whole) {
    const int64_t row = (int64_t)p->s.n_heads * p->s.dim;
    const int32_t length = p->s.length, group = p->s.n_heads / p->s.n_kv_heads;
    static const int32_t chunks[] = {1, 2, 3, 7, 64, 100, 512, 1000};
    for (size_t c = 0; c < sizeof chunks / sizeof *chunks; c++) {
        if (chunks[c] >= length)
            continue;
        int64_t differ = 0, n_all = 0;
        int32_t first = -1;
        /* small chunks only here and there */
        const int32_t stride = chunks[c] * (length / chunks[c] > 24 ? length / chunks[c] / 24 : 1);
        for (int32_t begin = 0; begin < length; begin += stride) {
            const int32_t end = begin + chunks[c] < length ? begin + chunks[c] : length;
            uint16_t *part = attend(p, 1, &begin, &end);
            const int64_t n = count_different(part, whole + begin * row, (end - begin) * row);
            first = n && first < 0 ? begin : first;
            differ += n;
            n_all += (end - begin) * row;
            free(part);
        }
        if (differ) {
            printf("bits   %s chunks of %d (%s): %lld of %lld numbers differ, first in the chunk at %d\n",
                   p->name, chunks[c], chunks[c] * group <= 16 ? "decode" : "prefill", (long long)differ,
                   (long long)n_all, first);
            complain(p->name, "a chunk has other bits than the whole prompt", chunks[c]);
        }
    }
    /* decode, a chunk, nothing, whole prompts, one row short of a tile, in one batch */
    const int32_t begin[] = {
        length - 1, length / 3, length, 0, length / 2, 0, length - 17 > 0 ? length - 17 : 0};
    const int32_t end[] = {length, length / 2, length, length, length / 2 + 1, length / 4 + 1, length};
    uint16_t *all = attend(p, 7, begin, end);
    int64_t at = 0;
    for (int s = 0; s < 7; s++) {
        const int64_t n = (end[s] - begin[s]) * row;
        if (count_different(all + at, whole + begin[s] * row, n))
            complain(p->name, "a sequence has other bits in a batch than alone", s);
        at += n;
    }
    free(all);
}

static void check_shape(shape s) {
    problem p = make_problem(s);
    const int32_t zero = 0;
    uint16_t *whole = attend(&p, 1, &zero, &s.length), *again = attend(&p, 1, &zero, &s.length);
    if (memcmp(whole, again, 2 * (size_t)s.length * s.n_heads * s.dim) != 0)
        complain(p.name, "other bits in a second run: a race", 0);
    check_values(&p, whole);
    check_bits(&p, whole);
    free(again);
    free(whole);
    free_problem(&p);
}

/* ---- times */

/* n sequences of q_len queries that are the last of kv_len positions. */
static void time_shape(shape s, int32_t n, int32_t q_len, void *flush) {
    problem p = make_problem(s);
    int32_t begin[MOST_SEQUENCES], end[MOST_SEQUENCES];
    for (int32_t i = 0; i < n; i++) {
        begin[i] = s.length - q_len;
        end[i] = s.length;
    }
    const batch b = make_batch(&p, n, begin, end);
    const double pairs = (double)n * q_len * (s.length - (q_len - 1) / 2.0);
    printf("time   %d x %5d of %-44s", n, q_len, p.name);
    const double us = time_graph(launch_batch, &b, flush);
    printf("  %8.1f us %4.0f TFLOP/s\n", us, 4 * pairs * s.n_heads * s.dim / us * 1e-6);
    free_batch(&b);
    free_problem(&p);
}

int main(int argc, char **argv) {
    int checks = 1, times = 1, is_small = 0;
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--no-times") == 0)
            times = 0;
        else if (strcmp(argv[i], "--times-only") == 0)
            checks = 0;
        else if (strcmp(argv[i], "--small") == 0)
            is_small = 1, times = 0;
        else {
            fprintf(stderr, "attention_check [--no-times] [--times-only] [--small]\n");
            return 2;
        }
    }
    setvbuf(stdout, NULL, _IOLBF, 0);
    if (checks) {
        check_chains<MB_WGMMA_BF16>("bf16");
        check_chains<MB_WGMMA_F16>("fp16");
        static const shape shapes[] = {
            {8, 1, 128, 16, MB_BF16, MB_BF16},  /* one tile, one step */
            {8, 1, 128, 128, MB_BF16, MB_BF16}, /* whole steps */
            {8, 1, 128, 300, MB_BF16, MB_BF16}, /* spans */
            {32, 4, 128, 700, MB_BF16, MB_BF16},  {32, 4, 128, 2049, MB_BF16, MB_BF16},
            {64, 4, 128, 1300, MB_F16, MB_F16},   {16, 1, 64, 517, MB_BF16, MB_BF16},
            {8, 8, 128, 1000, MB_BF16, MB_BF16}, /* a row a token */
            {20, 4, 64, 999, MB_F16, MB_F16},    /* five heads do not divide a tile */
            {48, 1, 128, 333, MB_BF16, MB_BF16},  {32, 4, 128, 1537, MB_BF16, MB_F8_E4M3},
            {12, 4, 64, 450, MB_F16, MB_F8_E4M3},
        };
        for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
            if (!is_small || shapes[i].length <= MOST_SMALL)
                check_shape(shapes[i]);
    }
    if (times) {
        void *flush = allocate(FLUSH_BYTES);
        static const int32_t lengths[] = {512, 2048, 4096, 8192, 16384, 32768};
        for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++)
            time_shape({32, 4, 128, lengths[i], MB_BF16, MB_BF16}, 1, lengths[i], flush);
        time_shape({32, 4, 128, 512, MB_BF16, MB_BF16}, 16, 512, flush);
        time_shape({32, 4, 128, 4096, MB_BF16, MB_BF16}, 4, 512, flush);
        time_shape({32, 4, 128, 4096, MB_BF16, MB_BF16}, 2, 4096, flush);
        time_shape({64, 4, 128, 8192, MB_BF16, MB_BF16}, 1, 8192, flush);
        time_shape({32, 4, 64, 8192, MB_BF16, MB_BF16}, 1, 8192, flush);
        time_shape({32, 4, 128, 8192, MB_BF16, MB_F8_E4M3}, 1, 8192, flush);
        CUDA(cudaFree(flush));
    }
    printf(wrong ? "%d WRONG\n" : "all right\n", wrong);
    return wrong ? 1 : 0;
}
