/* random_arrays.c - see random_arrays.h. */
#include "bench/random_arrays.h"

#include <math.h>

#include "base/alloc.h"
#include "base/random.h"
#include "base/status.h"
#include "ops/common/dtype.h"

enum { BLOCK_VALUES = 1048583 }; /* a prime, so that rows of matrices do not repeat with the block */

mb_status mb_bench_arrays_open(mb_bench_arrays *arrays, const char *device, int n_threads, uint64_t seed) {
    *arrays = (mb_bench_arrays){.random = seed};
    MB_TRY(mb_device_open(device, n_threads, NULL, &arrays->device));
    return arrays->device->stream_open(arrays->device, &arrays->stream);
}

void mb_bench_arrays_close(mb_bench_arrays *arrays) {
    if (!arrays->device)
        return;
    for (int i = 0; i < arrays->n_arrays; i++)
        arrays->device->free(arrays->device, arrays->arrays[i]);
    arrays->device->stream_close(arrays->device, arrays->stream);
    mb_device_close(arrays->device);
}

/* In (0, 1]. */
static double uniform(uint64_t *state) {
    return (double)(mb_random(state) >> 11) * 0x1p-53 + 0x1p-53;
}

static void fill_normal(uint64_t *state, float *values, int64_t n, double deviation) {
    const double turn = 2 * acos(-1.0);
    for (int64_t i = 0; i < n; i++)
        values[i] = (float)(deviation * sqrt(-2 * log(uniform(state))) * cos(turn * uniform(state)));
}

static void fill_uniform(uint64_t *state, float *values, int64_t n, double from, double to) {
    for (int64_t i = 0; i < n; i++)
        values[i] = (float)(from + (to - from) * uniform(state));
}

mb_status mb_bench_allocate(mb_bench_arrays *arrays, size_t n_bytes, void **pointer) {
    if (arrays->n_arrays == MB_BENCH_MAX_ARRAYS)
        return mb_fail(MB_ERR_INTERNAL, "a bench has more than %d arrays", MB_BENCH_MAX_ARRAYS);
    MB_TRY(arrays->device->allocate(arrays->device, n_bytes, pointer));
    arrays->arrays[arrays->n_arrays++] = *pointer;
    return MB_OK;
}

mb_status mb_bench_random_array(mb_bench_arrays *arrays, mb_dtype dtype, int64_t n, mb_distribution kind,
                                double scale, const void **array) {
    mb_device *device = arrays->device;
    int64_t n_block = n < BLOCK_VALUES ? n : BLOCK_VALUES;
    size_t n_bytes = (size_t)n * mb_dtype_bytes(dtype), block_bytes = (size_t)n_block * mb_dtype_bytes(dtype);
    void *memory = NULL;
    MB_TRY(mb_bench_allocate(arrays, n_bytes, &memory));
    *array = memory;
    float *values = mb_malloc_array((size_t)n_block, sizeof *values);
    void *block = mb_malloc(block_bytes);
    mb_status status = MB_OK;
    if (values && block) {
        if (kind == MB_NORMAL)
            fill_normal(&arrays->random, values, n_block, scale);
        else
            fill_uniform(&arrays->random, values, n_block, 0.5 * scale, 1.5 * scale);
        mb_store_f32(dtype, block, 0, n_block, values);
        status = device->fill(device, memory, n_bytes, block, block_bytes, arrays->stream);
        if (status == MB_OK)
            status = device->synchronize(device, arrays->stream);
    } else {
        status = mb_fail(MB_ERR_MEMORY, "a block of %zu bytes could not be allocated", block_bytes);
    }
    mb_free(values);
    mb_free(block);
    return status;
}

/* Experts in random order: the place, from 1, is the inverse of the probability. */
static void shuffle(uint64_t *state, int32_t *places, int32_t n) {
    for (int32_t i = 0; i < n; i++) {
        int32_t j = (int32_t)(mb_random(state) % (uint64_t)(i + 1));
        if (j != i)
            places[i] = places[j];
        places[j] = i + 1;
    }
}

/* The largest of log p + Gumbel noise are a draw without putting back. */
mb_status mb_bench_zipf_logits(mb_bench_arrays *arrays, int64_t n_tokens, int32_t n_experts,
                               const void **array) {
    mb_device *device = arrays->device;
    size_t n = (size_t)n_tokens * (size_t)n_experts;
    void *memory = NULL;
    MB_TRY(mb_bench_allocate(arrays, n * sizeof(float), &memory));
    *array = memory;
    float *logits = mb_malloc_array(n, sizeof *logits);
    int32_t *places = mb_malloc_array((size_t)n_experts, sizeof *places);
    mb_status status = MB_OK;
    if (logits && places) {
        shuffle(&arrays->random, places, n_experts);
        for (size_t i = 0; i < n; i++)
            logits[i] =
                (float)(-log(places[i % (size_t)n_experts]) - log(1e-300 - log(uniform(&arrays->random))));
        status = device->upload(device, memory, logits, n * sizeof *logits, arrays->stream);
        if (status == MB_OK)
            status = device->synchronize(device, arrays->stream);
    } else {
        status =
            mb_fail(MB_ERR_MEMORY, "router logits of %zu bytes could not be allocated", n * sizeof *logits);
    }
    mb_free(logits);
    mb_free(places);
    return status;
}
