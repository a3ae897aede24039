#include "load/summary.h"

#include <stdlib.h>

#include "base/alloc.h"

static int compare(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double percentile(const double *sorted, size_t n, double part) {
    double at = part * (double)(n - 1);
    size_t below = (size_t)at;
    return below + 1 < n ? sorted[below] + (at - (double)below) * (sorted[below + 1] - sorted[below])
                         : sorted[n - 1];
}

load_spread load_spread_of(double *values_s, size_t n) {
    double sum = 0;
    if (n == 0)
        return (load_spread){0};
    qsort(values_s, n, sizeof *values_s, compare);
    for (size_t i = 0; i < n; i++)
        sum += values_s[i];
    return (load_spread){.mean = 1e3 * sum / (double)n,
                         .p50 = 1e3 * percentile(values_s, n, 0.50),
                         .p90 = 1e3 * percentile(values_s, n, 0.90),
                         .p99 = 1e3 * percentile(values_s, n, 0.99),
                         .max = 1e3 * values_s[n - 1]};
}

/* Seconds for each token after the first; 0 for answers of one token. */
static double per_token(const load_result *result) {
    return result->n_output > 1 ? (result->whole_s - result->first_s) / (double)(result->n_output - 1) : 0;
}

mb_status load_summarise(load_measured *measured, double limit_first_ms, double limit_per_token_ms,
                         load_summary *summary) {
    size_t n = 0, n_per_token = 0, capacity = (size_t)measured->n_results + 1;
    *summary = (load_summary){0};
    double *values = mb_malloc_array(capacity, 3 * sizeof *values);
    if (values == NULL)
        return mb_fail(MB_ERR_MEMORY, "the results of %d requests do not fit in memory",
                       (int)measured->n_results);
    double *first = values, *whole = values + capacity, *each = values + 2 * capacity;
    for (int32_t i = 0; i < measured->n_results; i++) {
        const load_result *result = &measured->results[i];
        if (result->failed) {
            summary->n_failed++;
            continue;
        }
        first[n] = result->first_s;
        whole[n++] = result->whole_s;
        if (result->n_output > 1)
            each[n_per_token++] = per_token(result);
        summary->n_prompt += result->n_prompt;
        summary->n_cached += result->n_cached;
        summary->n_output += result->n_output;
        if ((limit_first_ms <= 0 || 1e3 * result->first_s <= limit_first_ms) &&
            (limit_per_token_ms <= 0 || 1e3 * per_token(result) <= limit_per_token_ms))
            summary->n_good++;
    }
    summary->n_completed = (int32_t)n;
    summary->first = load_spread_of(first, n);
    summary->whole = load_spread_of(whole, n);
    summary->per_token = load_spread_of(each, n_per_token);
    summary->gap = load_spread_of(measured->gaps_s, measured->n_gaps);
    mb_free(values);
    if (measured->duration_s > 0) {
        summary->requests_s = summary->n_completed / measured->duration_s;
        summary->output_tok_s = (double)summary->n_output / measured->duration_s;
        summary->prompt_tok_s = (double)summary->n_prompt / measured->duration_s;
        summary->goodput_s = summary->n_good / measured->duration_s;
    }
    return MB_OK;
}
