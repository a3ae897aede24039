/* summary.h - what a run's measurements say: percentiles, rates, goodput. */
#ifndef MB_LOAD_SUMMARY_H
#define MB_LOAD_SUMMARY_H

#include "load/run.h"

/* In milliseconds. */
typedef struct load_spread {
    double mean, p50, p90, p99, max;
} load_spread;

typedef struct load_summary {
    int32_t n_completed, n_failed, n_good;
    int64_t n_prompt, n_cached, n_output; /* tokens of the completed ones */
    load_spread first, gap, per_token, whole;
    double requests_s, output_tok_s, prompt_tok_s, goodput_s; /* in a second */
} load_summary;

/* Limits in milliseconds; 0: none. A request is good when it completed within all of them.
 * Sorts measured->gaps_s. */
mb_status load_summarise(load_measured *measured, double limit_first_ms, double limit_per_token_ms,
                         load_summary *summary);

/* Sorts n values and takes their spread; percentiles between two values are
 * interpolated. Zeros when n is 0. */
load_spread load_spread_of(double *values_s, size_t n);

#endif
