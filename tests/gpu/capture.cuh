/* capture.cuh - calls captured as a CUDA graph, on a stream of their own. */
#ifndef MB_TESTS_CAPTURE_CUH
#define MB_TESTS_CAPTURE_CUH

#include "check.cuh"

typedef struct captured {
    cudaStream_t stream;
    cudaGraph_t graph;
    cudaGraphExec_t replay;
} captured;

/* `launch` puts its kernels on the stream. */
static inline captured capture(void (*launch)(const void *context, cudaStream_t stream),
                               const void *context) {
    captured c;
    CUDA(cudaStreamCreateWithFlags(&c.stream, cudaStreamNonBlocking));
    CUDA(cudaStreamBeginCapture(c.stream, cudaStreamCaptureModeThreadLocal));
    launch(context, c.stream);
    CUDA(cudaStreamEndCapture(c.stream, &c.graph));
    CUDA(cudaGraphInstantiate(&c.replay, c.graph, 0));
    return c;
}

static inline void free_captured(const captured *c) {
    CUDA(cudaGraphExecDestroy(c->replay));
    CUDA(cudaGraphDestroy(c->graph));
    CUDA(cudaStreamDestroy(c->stream));
}

#endif
