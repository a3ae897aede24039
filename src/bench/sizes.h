/* sizes.h - the sizes of a layer that is timed. */
#ifndef MB_BENCH_SIZES_H
#define MB_BENCH_SIZES_H

#include "moebius/status.h"

#include <stdint.h>

typedef struct mb_bench_sizes {
    int64_t n_tokens;
    int32_t hidden, intermediate, n_experts, top_k;
    int n_repeats; /* 0: the bench's own number */
} mb_bench_sizes;

/* Sizes whose products fit; what an operator demands beyond that it says itself. */
mb_status mb_bench_check_sizes(const mb_bench_sizes *sizes);

#endif
