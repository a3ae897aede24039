/* timing_cuda.c - an operator on a GPU: captured in a graph once, replayed between two events, L2 written
 * over before. */
#include "device/timing.h"

#include <cuda_runtime.h>
#include <stdio.h>
#include <string.h>

#include "base/alloc.h"
#include "base/status.h"

enum { FLUSH_BYTES = 256 << 20 /* several times the L2 cache */, WARM_UP = 3 };

typedef struct cuda_timing {
    mb_timing base;
    cudaStream_t stream;
    cudaEvent_t start, stop;
    void *flush;
    char name[256];
} cuda_timing;

#define CHECK(call) MB_TRY(check((call), #call))

static mb_status check(cudaError_t error, const char *call) {
    if (error == cudaSuccess)
        return MB_OK;
    mb_status status = error == cudaErrorMemoryAllocation ? MB_ERR_MEMORY : MB_ERR_DEVICE;
    return mb_fail(status, "timing: %.*s: %s (%s)", (int)strcspn(call, "("), call, cudaGetErrorString(error),
                   cudaGetErrorName(error));
}

static mb_status cuda_allocate(mb_timing *timing, size_t n_bytes, void **pointer) {
    (void)timing;
    *pointer = NULL;
    mb_status status = check(cudaMalloc(pointer, n_bytes ? n_bytes : 1), "cudaMalloc");
    return status == MB_OK ? MB_OK : mb_fail_context(status, "%zu bytes", n_bytes);
}

static void cuda_free(mb_timing *timing, void *pointer) {
    (void)timing;
    check(cudaFree(pointer), "cudaFree");
}

/* The block once, then what is there copied behind itself: twice as much each time. */
static mb_status cuda_fill(mb_timing *timing, void *to, size_t n_bytes, const void *block,
                           size_t block_bytes) {
    cudaStream_t stream = ((cuda_timing *)timing)->stream;
    size_t done = n_bytes < block_bytes ? n_bytes : block_bytes;
    CHECK(cudaMemcpyAsync(to, block, done, cudaMemcpyHostToDevice, stream));
    while (done < n_bytes) {
        size_t next = n_bytes - done < done ? n_bytes - done : done;
        CHECK(cudaMemcpyAsync((char *)to + done, to, next, cudaMemcpyDeviceToDevice, stream));
        done += next;
    }
    return check(cudaStreamSynchronize(stream), "cudaStreamSynchronize");
}

static mb_status cuda_download(mb_timing *timing, void *to_host, const void *from, size_t n_bytes) {
    cudaStream_t stream = ((cuda_timing *)timing)->stream;
    CHECK(cudaMemcpyAsync(to_host, from, n_bytes, cudaMemcpyDeviceToHost, stream));
    return check(cudaStreamSynchronize(stream), "cudaStreamSynchronize");
}

/* A capture that has begun is ended even when the function fails. */
static mb_status capture(cuda_timing *cuda, mb_timing_fn function, const void *context,
                         cudaGraphExec_t *replay) {
    cudaGraph_t graph = NULL;
    CHECK(cudaStreamBeginCapture(cuda->stream, cudaStreamCaptureModeThreadLocal));
    mb_status status = function(context, (mb_stream)cuda->stream);
    cudaError_t ended = cudaStreamEndCapture(cuda->stream, &graph);
    if (status == MB_OK)
        status = check(ended, "cudaStreamEndCapture");
    if (status == MB_OK)
        status = check(cudaGraphInstantiate(replay, graph, 0), "cudaGraphInstantiate");
    if (graph)
        cudaGraphDestroy(graph);
    return status;
}

static mb_status time_replay(cuda_timing *cuda, cudaGraphExec_t replay, double *us) {
    float ms = 0;
    CHECK(cudaMemsetAsync(cuda->flush, 0x5a, FLUSH_BYTES, cuda->stream));
    CHECK(cudaEventRecord(cuda->start, cuda->stream));
    CHECK(cudaGraphLaunch(replay, cuda->stream));
    CHECK(cudaEventRecord(cuda->stop, cuda->stream));
    CHECK(cudaEventSynchronize(cuda->stop));
    CHECK(cudaEventElapsedTime(&ms, cuda->start, cuda->stop));
    *us = (double)ms * 1e3;
    return MB_OK;
}

static mb_status cuda_time(mb_timing *timing, mb_timing_fn function, const void *context, int n_repeats,
                           double *times) {
    cuda_timing *cuda = (cuda_timing *)timing;
    cudaGraphExec_t replay = NULL;
    MB_TRY(function(context, (mb_stream)cuda->stream)); /* lazily loaded kernels cannot be captured */
    CHECK(cudaStreamSynchronize(cuda->stream));
    MB_TRY(capture(cuda, function, context, &replay));
    mb_status status = MB_OK;
    double unused;
    for (int i = -WARM_UP; i < n_repeats && status == MB_OK; i++)
        status = time_replay(cuda, replay, i < 0 ? &unused : &times[i]);
    cudaGraphExecDestroy(replay);
    return status;
}

static void cuda_close(mb_timing *timing) {
    cuda_timing *cuda = (cuda_timing *)timing;
    cudaFree(cuda->flush);
    if (cuda->start)
        cudaEventDestroy(cuda->start);
    if (cuda->stop)
        cudaEventDestroy(cuda->stop);
    if (cuda->stream)
        cudaStreamDestroy(cuda->stream);
    mb_free(cuda);
}

static mb_status set_up(cuda_timing *cuda, int ordinal) {
    int n_cards = 0;
    struct cudaDeviceProp card;
    cudaError_t error = cudaGetDeviceCount(&n_cards);
    if (error != cudaSuccess)
        return mb_fail(MB_ERR_NOT_FOUND, "timing: no usable GPU or driver: %s; use --device cpu",
                       cudaGetErrorString(error));
    if (ordinal >= n_cards)
        return mb_fail(MB_ERR_NOT_FOUND, "timing: there is no GPU %d; this machine has %d", ordinal, n_cards);
    CHECK(cudaGetDeviceProperties(&card, ordinal));
    snprintf(cuda->name, sizeof cuda->name, "%s", card.name);
    cuda->base.name = cuda->name;
    /* What reads of 2 GiB reach, H200 and H100, less a little. */
    cuda->base.bytes_per_second = strstr(card.name, "H200") ? 4.3e12 : 3.0e12;
    CHECK(cudaSetDevice(ordinal));
    CHECK(cudaStreamCreateWithFlags(&cuda->stream, cudaStreamNonBlocking));
    CHECK(cudaEventCreate(&cuda->start));
    CHECK(cudaEventCreate(&cuda->stop));
    return cuda_allocate(&cuda->base, FLUSH_BYTES, &cuda->flush);
}

mb_status mb_timing_open_cuda(int ordinal, mb_timing **timing) {
    *timing = NULL;
    cuda_timing *cuda = mb_calloc(1, sizeof *cuda);
    if (!cuda)
        return mb_fail(MB_ERR_MEMORY, "timing: %zu bytes could not be allocated", sizeof *cuda);
    cuda->base = (mb_timing){
        .n_repeats = 31,
        .allocate = cuda_allocate,
        .free = cuda_free,
        .fill = cuda_fill,
        .download = cuda_download,
        .time = cuda_time,
        .close = cuda_close,
    };
    mb_status status = set_up(cuda, ordinal);
    if (status != MB_OK) {
        cuda_close(&cuda->base);
        return status;
    }
    *timing = &cuda->base;
    return MB_OK;
}
