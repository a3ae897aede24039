/* check.cuh - what every check on a GPU needs: memory, calls that must succeed, and complaints that are
 * counted. */
#ifndef MB_TESTS_CHECK_CUH
#define MB_TESTS_CHECK_CUH

#include "moebius/status.h"

#include <cuda_runtime.h>
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

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

/* The bytes that an operator's _workspace function gives. */
template <class args_type>
static inline size_t bytes_of(mb_status (*workspace)(const args_type *most, size_t *bytes),
                              const args_type *most) {
    size_t bytes = 0;
    MB(workspace(most, &bytes));
    return bytes;
}

static int wrong; /* checks that failed */

/* `subject` says which problem. */
static inline void complain(const char *subject, const char *what, double value) {
    printf("WRONG %s: %s (%g)\n", subject, what, value);
    wrong++;
}

static inline void *allocate(size_t n_bytes) {
    void *pointer = NULL;
    CUDA(cudaMalloc(&pointer, n_bytes ? n_bytes : 1));
    return pointer;
}

/* For host memory: the checks are not the place to survive without it. */
static inline void *host_allocate(size_t n_bytes) {
    void *pointer = calloc(n_bytes ? n_bytes : 1, 1);
    if (!pointer) {
        fprintf(stderr, "no memory for %zu bytes\n", n_bytes);
        exit(1);
    }
    return pointer;
}

/* A copy on the host. */
static inline void *download(const void *device, size_t n_bytes) {
    void *host = host_allocate(n_bytes);
    CUDA(cudaMemcpy(host, device, n_bytes, cudaMemcpyDeviceToHost));
    return host;
}

/* A refusal must come with a sentence. */
static inline int is_said(mb_status status) {
    return status == MB_OK || strlen(mb_last_error()) > 20;
}

static inline void expect(const char *subject, const char *what, mb_status found, mb_status expected) {
    if (found == expected && is_said(found))
        return;
    printf("%s: status %d: %s\n", what, (int)found, found == MB_OK ? "" : mb_last_error());
    complain(subject, what, (double)found);
}

/* A combination of dtypes that is nobody's, or that this device does not have: either status is right. */
static inline void expect_no_such(const char *subject, const char *what, mb_status found) {
    if ((found == MB_ERR_ARGUMENT || found == MB_ERR_UNSUPPORTED) && is_said(found))
        return;
    printf("%s: status %d: %s\n", what, (int)found, found == MB_OK ? "" : mb_last_error());
    complain(subject, what, (double)found);
}

#endif
