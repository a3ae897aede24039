/* random_arrays.h - random memory of a device, for layers that are timed. */
#ifndef MB_BENCH_RANDOM_ARRAYS_H
#define MB_BENCH_RANDOM_ARRAYS_H

#include "device/device.h"

enum { MB_BENCH_MAX_ARRAYS = 32 };

typedef struct mb_bench_arrays {
    mb_device *device;
    mb_stream stream; /* of the copies that fill the arrays */
    uint64_t random;  /* what is drawn next */
    void *arrays[MB_BENCH_MAX_ARRAYS];
    int n_arrays;
} mb_bench_arrays;

typedef enum mb_distribution { MB_NORMAL, MB_UNIFORM } mb_distribution;

/* `device` as in mb_device_open. _close may be called after a failure of _open. */
mb_status mb_bench_arrays_open(mb_bench_arrays *arrays, const char *device, int n_threads, uint64_t seed);
void mb_bench_arrays_close(mb_bench_arrays *arrays);

/* Memory that lives until _close. */
mb_status mb_bench_allocate(mb_bench_arrays *arrays, size_t n_bytes, void **pointer);

/* n values of dtype; MB_NORMAL of deviation `scale`, MB_UNIFORM in scale * [0.5, 1.5]. */
mb_status mb_bench_random_array(mb_bench_arrays *arrays, mb_dtype dtype, int64_t n, mb_distribution kind,
                                double scale, const void **array);

/* Router logits [n_tokens, n_experts] in fp32 by which the experts are chosen with Zipf's probabilities, 1 / 1 to
 * 1 / n_experts, without putting back; which expert has which is random. */
mb_status mb_bench_zipf_logits(mb_bench_arrays *arrays, int64_t n_tokens, int32_t n_experts,
                               const void **array);

#endif
