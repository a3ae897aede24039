/* timing.cuh - a call's time as a graph's replay with the L2 cache flushed in between: the median. */
#ifndef MB_TESTS_TIMING_CUH
#define MB_TESTS_TIMING_CUH

#include "check.cuh"

enum { REPLAYS = 31, WARM_UP = 3 };
static const size_t FLUSH_BYTES = 256u << 20;

static inline int ascending(const void *a, const void *b) {
    float x = *(const float *)a, y = *(const float *)b;
    return (x > y) - (x < y);
}

/* In us. `launch` puts its kernels on the stream; `flush` is FLUSH_BYTES of device memory. */
static inline double time_graph(void (*launch)(const void *context, cudaStream_t stream), const void *context,
                                void *flush) {
    cudaStream_t stream;
    cudaGraph_t graph;
    cudaGraphExec_t replay;
    cudaEvent_t start, stop;
    CUDA(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
    CUDA(cudaEventCreate(&start));
    CUDA(cudaEventCreate(&stop));
    CUDA(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
    launch(context, stream);
    CUDA(cudaStreamEndCapture(stream, &graph));
    CUDA(cudaGraphInstantiate(&replay, graph, 0));
    float times[REPLAYS];
    for (int i = -WARM_UP; i < REPLAYS; i++) {
        CUDA(cudaMemsetAsync(flush, i & 0xff, FLUSH_BYTES, stream));
        CUDA(cudaEventRecord(start, stream));
        CUDA(cudaGraphLaunch(replay, stream));
        CUDA(cudaEventRecord(stop, stream));
        CUDA(cudaStreamSynchronize(stream));
        if (i >= 0)
            CUDA(cudaEventElapsedTime(&times[i], start, stop));
    }
    qsort(times, REPLAYS, sizeof(float), ascending);
    CUDA(cudaGraphExecDestroy(replay));
    CUDA(cudaGraphDestroy(graph));
    CUDA(cudaEventDestroy(start));
    CUDA(cudaEventDestroy(stop));
    CUDA(cudaStreamDestroy(stream));
    return 1e3 * times[REPLAYS / 2];
}

#endif
