/*
 * simt_support.cuh - arrays whose elements host and device both know, comparisons and times, for simt_check.
 */
#ifndef MB_TESTS_SIMT_SUPPORT_CUH
#define MB_TESTS_SIMT_SUPPORT_CUH

#include "ops/moe/moe_sm90.h"

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { REPLAYS = 21, SAMPLES = 4000, POISON = 0xff };
static const size_t FLUSH_BYTES = 256u << 20;

#define CUDA(call)                                                                                     \
    do {                                                                                               \
        cudaError_t error_ = (call);                                                                   \
        if (error_ != cudaSuccess) {                                                                   \
            fprintf(stderr, "%s:%d: %s: %s\n", __FILE__, __LINE__, #call, cudaGetErrorString(error_)); \
            exit(1);                                                                                   \
        }                                                                                              \
    } while (0)
#define MB(call)                                                                 \
    do {                                                                         \
        if ((call) != MB_OK) {                                                   \
            fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, mb_last_error()); \
            exit(1);                                                             \
        }                                                                        \
    } while (0)

static int n_failures;

static void expect(int good, const char *what, double detail, const char *which) {
    if (!good) {
        printf("FAIL %s: %s (%g)\n", which, what, detail);
        n_failures++;
    }
}

/* ---- arrays that host and device know ---- */

typedef struct array {
    void *data; /* on the device */
    int64_t n;
    uint64_t seed;
    float scale; /* a power of two */
    mb_dtype dtype;
} array;

/* In [-scale, scale), 24 bits. */
static __host__ __device__ float value_at(uint64_t seed, int64_t i, float scale) {
    uint64_t z = seed * 0x9e3779b97f4a7c15ull + (uint64_t)i * 0xd1342543de82ef95ull + 0x632be59bd9b4e019ull;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    z ^= z >> 31;
    return (float)((int64_t)(z >> 39) - (1 << 24)) * 0x1p-24f * scale;
}

static __global__ void fill(array a) {
    for (int64_t i = blockIdx.x * (int64_t)blockDim.x + threadIdx.x; i < a.n;
         i += (int64_t)gridDim.x * blockDim.x) {
        const float value = value_at(a.seed, i, a.scale);
        if (a.dtype == MB_F32)
            ((float *)a.data)[i] = value;
        else if (a.dtype == MB_BF16)
            ((__nv_bfloat16 *)a.data)[i] = __float2bfloat16(value);
        else
            ((__half *)a.data)[i] = __float2half(value);
    }
}

static void *allocate(size_t n_bytes) {
    void *pointer = NULL;
    CUDA(cudaMalloc(&pointer, n_bytes ? n_bytes : 1));
    return pointer;
}

static array make(mb_dtype dtype, int64_t n, float scale) {
    static uint64_t seed = 1;
    array a = {allocate(mb_dtype_bytes(dtype) * (size_t)n), n, seed++, scale, dtype};
    fill<<<1024, 256>>>(a);
    CUDA(cudaGetLastError());
    return a;
}

static float rounded(float value, mb_dtype dtype) {
    return dtype == MB_F32    ? value
           : dtype == MB_BF16 ? __bfloat162float(__float2bfloat16(value))
                              : __half2float(__float2half(value));
}

static float at(const array *a, int64_t i) {
    return rounded(value_at(a->seed, i, a->scale), a->dtype);
}

static float stored(const void *host, mb_dtype dtype, int64_t i) {
    return dtype == MB_F32    ? ((const float *)host)[i]
           : dtype == MB_BF16 ? __bfloat162float(((const __nv_bfloat16 *)host)[i])
                              : __half2float(((const __half *)host)[i]);
}

static void *to_device(const void *host, size_t n_bytes) {
    void *device = allocate(n_bytes);
    CUDA(cudaMemcpy(device, host, n_bytes, cudaMemcpyHostToDevice));
    return device;
}

static void *to_host(const void *device, size_t n_bytes) {
    void *host = malloc(n_bytes ? n_bytes : 1);
    CUDA(cudaMemcpy(host, device, n_bytes, cudaMemcpyDeviceToHost));
    return host;
}

static uint64_t random_state = 88172645463325252ull;
static int64_t below(int64_t n) {
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return (int64_t)(random_state % (uint64_t)n);
}

/* Of n elements the i-th to look at: all when they are few. */
static int64_t sample(int64_t i, int64_t n) {
    return n <= SAMPLES ? i : below(n);
}
static int64_t n_samples(int64_t n) {
    return n < SAMPLES ? n : SAMPLES;
}

/* ---- times ---- */

typedef void (*launch_function)(const void *context, cudaStream_t stream);

static int by_value(const void *a, const void *b) {
    return *(const float *)a < *(const float *)b ? -1 : *(const float *)a > *(const float *)b;
}

/* Microseconds of a graph's replay. */
static double timed(launch_function launch, const void *context) {
    static void *flush;
    if (!flush)
        flush = allocate(FLUSH_BYTES);
    cudaStream_t stream;
    cudaGraph_t graph;
    cudaGraphExec_t exec;
    cudaEvent_t start, stop;
    float times[REPLAYS];
    CUDA(cudaStreamCreate(&stream));
    CUDA(cudaEventCreate(&start));
    CUDA(cudaEventCreate(&stop));
    CUDA(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
    launch(context, stream);
    CUDA(cudaStreamEndCapture(stream, &graph));
    CUDA(cudaGraphInstantiate(&exec, graph, 0));
    for (int i = -2; i < REPLAYS; i++) {
        CUDA(cudaMemsetAsync(flush, i, FLUSH_BYTES, stream));
        CUDA(cudaEventRecord(start, stream));
        CUDA(cudaGraphLaunch(exec, stream));
        CUDA(cudaEventRecord(stop, stream));
        CUDA(cudaStreamSynchronize(stream));
        float ms;
        CUDA(cudaEventElapsedTime(&ms, start, stop));
        if (i >= 0)
            times[i] = ms * 1e3f;
    }
    qsort(times, REPLAYS, sizeof(times[0]), by_value);
    CUDA(cudaGraphExecDestroy(exec));
    CUDA(cudaGraphDestroy(graph));
    CUDA(cudaEventDestroy(start));
    CUDA(cudaEventDestroy(stop));
    CUDA(cudaStreamDestroy(stream));
    return times[REPLAYS / 2];
}

#endif
