/*
 * row.cuh - a row of logits, of one CTA or of the CTAs of a cluster: shared by the sampler and log-softmax.
 *
 * The ids are cut into 256 pieces, however many CTAs there are. A warp has a piece at a time, a lane four neighbouring
 * ids of every 128. So each sum has one order, and a row's bits depend on the row alone.
 */
#ifndef MB_OPS_SAMPLE_ROW_CUH
#define MB_OPS_SAMPLE_ROW_CUH

#include "ops/common/element.cuh"
#include "ops/common/exp.h"
#include "ops/hopper/cluster.cuh"
#include "ops/hopper/launch.cuh"
#include "ops/sample/sample.h"

#include <math_constants.h>

enum { SAMPLE_THREADS = 1024, SAMPLE_WARPS = SAMPLE_THREADS / 32, N_PIECES = 256, MOST_CTAS = 8 };
/* Loads that a lane has in flight, of four ids each; and the ids that a warp has then. */
enum { AT_ONCE = 5, CHUNK = 128 * AT_ONCE };

typedef struct row_place {
    int32_t vocab, piece; /* piece: its ids, a multiple of 128; the last ones may have fewer or none */
    int32_t first, step;  /* the warp's pieces */
    uint32_t rank, n_ctas;
} row_place;

static __device__ __forceinline__ row_place find_place(int32_t vocab) {
    const int32_t share = (vocab + N_PIECES - 1) / N_PIECES, n_ctas = (int32_t)mb_cluster_size();
    const int32_t rank = (int32_t)mb_cluster_rank();
    return {vocab,
            (share + 127) / 128 * 128,
            rank * SAMPLE_WARPS + (int32_t)threadIdx.x / 32,
            n_ctas * SAMPLE_WARPS,
            (uint32_t)rank,
            (uint32_t)n_ctas};
}

static __device__ __forceinline__ int32_t begin_of(const row_place *at, int32_t piece) {
    return min((int64_t)piece * at->piece, (int64_t)at->vocab);
}

/* The id that v[k][0] of a chunk has: the other three follow. */
static __device__ __forceinline__ int32_t id_of(int32_t chunk, int k) {
    return chunk + 128 * k + 4 * (threadIdx.x % 32);
}

/* The warp's logits of the ids chunk .. chunk + 128 n - 1; from `end` on -infinity. */
template <int n>
static __device__ __forceinline__ void load_chunk(const float *z, int32_t vocab, int32_t chunk, int32_t end,
                                                  float (&v)[n][4]) {
    if (((uintptr_t)z | (uint32_t)vocab * sizeof(float)) % 16 == 0) { /* end is a multiple of 4, then */
#pragma unroll
        for (int k = 0; k < n; k++) {
            float4 four = make_float4(-CUDART_INF_F, -CUDART_INF_F, -CUDART_INF_F, -CUDART_INF_F);
            if (id_of(chunk, k) < end)
                four = *(const float4 *)(z + id_of(chunk, k));
            v[k][0] = four.x, v[k][1] = four.y, v[k][2] = four.z, v[k][3] = four.w;
        }
        return;
    }
#pragma unroll
    for (int k = 0; k < n; k++)
#pragma unroll
        for (int e = 0; e < 4; e++)
            v[k][e] = id_of(chunk, k) + e < end ? z[id_of(chunk, k) + e] : -CUDART_INF_F;
}

/* A word to the same place of all CTAs of the cluster. The whole warp calls it with one value. */
static __device__ __forceinline__ void tell_all(const row_place *at, unsigned long long *to,
                                                unsigned long long value) {
    if (threadIdx.x % 32 < at->n_ctas)
        mb_store_cluster_u64(to, threadIdx.x % 32, value);
}
static __device__ __forceinline__ void tell_all(const row_place *at, double *to, double value) {
    tell_all(at, (unsigned long long *)to, (unsigned long long)__double_as_longlong(value));
}

/* Of each piece the sum of e^(logit - maximum), told to all CTAs. NaN where a logit is NaN or +infinity, or where the
 * maximum is -infinity. */
static __device__ __forceinline__ void sum_pieces(const row_place *at, const float *logits, float maximum,
                                                  double *sums) {
    for (int32_t p = at->first; p < N_PIECES; p += at->step) {
        const int32_t end = begin_of(at, p + 1);
        double sum = 0;
        for (int32_t chunk = begin_of(at, p); chunk < end; chunk += CHUNK) {
            float v[AT_ONCE][4];
            load_chunk(logits, at->vocab, chunk, end, v);
#pragma unroll
            for (int k = 0; k < AT_ONCE; k++)
#pragma unroll
                for (int e = 0; e < 4; e++)
                    sum += (double)mb_exp(v[k][e] - maximum);
        }
        tell_all(at, &sums[p], mb_warp_sum(sum));
    }
}

/* A piece's sum in all: 16 groups of 16 pieces, each in order. Lane l < 16 of a warp gets the sum of group l, all
 * lanes the sum of the groups before their own. */
static __device__ __forceinline__ double sum_groups(const double *sums, double *before) {
    const int lane = threadIdx.x % 32;
    double mine = 0;
    if (lane < 16)
        for (int i = 0; i < 16; i++)
            mine += sums[16 * lane + i];
    *before = 0;
#pragma unroll
    for (int group = 0; group < 16; group++) {
        const double other = __shfl_sync(0xffffffff, mine, group);
        *before += group < lane ? other : 0;
    }
    return mine;
}

/* log of the sum of e^logits, from the pieces' sums; the whole warp calls it. NaN when a logit is NaN or +infinity, or
 * when all are -infinity. */
static __device__ __forceinline__ double log_sum_exp(float maximum, const double *sums) {
    double before;
    sum_groups(sums, &before);
    return (double)maximum +
           log(__shfl_sync(0xffffffff, before, 16)); /* lane 16 has all groups before its own */
}

/* Host side: a kernel whose rows have as many CTAs each as find room beside each other. */
template <class arguments>
static inline mb_status launch_rows(const char *name, void (*kernel)(arguments), int64_t n_rows, void *stream,
                                    const arguments *args) {
    unsigned n_ctas = n_rows <= 8 ? MOST_CTAS : 4; /* more clusters of eight do not find room side by side */
    while (n_ctas > 1 && n_rows * n_ctas > mb_n_processors())
        n_ctas /= 2;
    cudaLaunchConfig_t config;
    cudaLaunchAttribute attributes[2];
    mb_launch_config(&config, attributes, dim3((unsigned)n_rows * n_ctas), SAMPLE_THREADS, 0, stream);
    mb_launch_clusters(&config, n_ctas);
    const cudaError_t error = cudaLaunchKernelEx(&config, kernel, *args);
    return error == cudaSuccess
               ? MB_OK
               : mb_fail(MB_ERR_DEVICE, "%s: launch of %u clusters of %u CTAs of %u threads failed: %s", name,
                         (unsigned)n_rows, n_ctas, (unsigned)SAMPLE_THREADS, cudaGetErrorString(error));
}

#endif
