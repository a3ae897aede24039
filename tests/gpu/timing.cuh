/* timing.cuh - a call's time as a graph's replay with the L2 cache flushed in between: the median. */
#ifndef MB_TESTS_TIMING_CUH
#define MB_TESTS_TIMING_CUH

#include "capture.cuh"

enum { REPLAYS = 31, WARM_UP = 3 };
static const size_t FLUSH_BYTES = 256u << 20;

static inline int ascending(const void *a, const void *b) {
    float x = *(const float *)a, y = *(const float *)b;
    return (x > y) - (x < y);
}

/* In us. `launch` puts its kernels on the stream; `flush` is FLUSH_BYTES of device memory. */
static inline double time_graph(void (*launch)(const void *context, cudaStream_t stream), const void *context,
                                void *flush) {
    const captured c = capture(launch, context);
    cudaEvent_t start, stop;
    CUDA(cudaEventCreate(&start));
    CUDA(cudaEventCreate(&stop));
    float times[REPLAYS];
    for (int i = -WARM_UP; i < REPLAYS; i++) {
        CUDA(cudaMemsetAsync(flush, i & 0xff, FLUSH_BYTES, c.stream));
        CUDA(cudaEventRecord(start, c.stream));
        CUDA(cudaGraphLaunch(c.replay, c.stream));
        CUDA(cudaEventRecord(stop, c.stream));
        CUDA(cudaStreamSynchronize(c.stream));
        if (i >= 0)
            CUDA(cudaEventElapsedTime(&times[i], start, stop));
    }
    qsort(times, REPLAYS, sizeof(float), ascending);
    CUDA(cudaEventDestroy(start));
    CUDA(cudaEventDestroy(stop));
    free_captured(&c);
    return 1e3 * times[REPLAYS / 2];
}

#endif
