/*
 * check.h - one call site per operator case that checks the operator and times it, so that tests and
 * benchmarks cannot drift apart (the idea of dav1d's checkasm).
 *
 * A case makes random inputs, calls one operator of the table under test, and compares the output with a
 * computation in fp64. That computation belongs to the case and shares no code with the operators. Outputs
 * are poisoned before the call. Guard bytes follow every buffer and must be unchanged afterwards. Not
 * thread-safe.
 */
#ifndef MB_OPS_COMMON_CHECK_H
#define MB_OPS_COMMON_CHECK_H

#include "ops/op_table.h"

#include <stdio.h>

typedef struct mb_check_buffer {
    struct mb_check_buffer *next;
    size_t n_bytes;
    void *memory;
} mb_check_buffer;

typedef struct mb_check {
    const mb_ops *ops; /* under test */
    mb_stream stream;
    uint64_t seed;
    /* For a GPU: memory that the host and the GPU can both use, and a wait for a call's end. NULL: memory of
     * the host, and calls that have finished when they return. */
    void *(*allocate)(size_t n_bytes);
    void (*release)(void *memory);
    mb_status (*finish)(mb_stream stream);
    /* The operators run on a GPU: a case whose shape or types they refuse is skipped, not failed, and
     * what the contract rounds on the CPU alone is expected unrounded. */
    int on_gpu;
    double min_seconds; /* each call is repeated for this long and timed; 0: called once */
    FILE *report;       /* one line per case; NULL: failures only, on stderr */
    int32_t n_cases, n_skipped, n_failed;
    /* of the present case */
    char name[160];
    int32_t failed, is_skipped;
    double best_seconds;
    uint64_t random;
    mb_check_buffer *buffers;
} mb_check;

#ifdef __cplusplus
extern "C" {
#endif

/* Starts a case. Its random numbers follow from check->seed and its name alone. */
__attribute__((format(printf, 2, 3))) void mb_check_begin(mb_check *check, const char *format, ...);
/* Ends the case: checks the guard bytes, frees the buffers, and reports. The rates in the report follow from
 * flops and bytes, the least that the operator must do. */
void mb_check_end(mb_check *check, double flops, double bytes);

/* Counts the present case as skipped, and reports why. Failures after that are ignored. */
void mb_check_skip(mb_check *check, const char *why);
__attribute__((format(printf, 2, 3))) void mb_check_fail(mb_check *check, const char *format, ...);
/* Fails the case with mb_last_error() unless the status is MB_OK. With on_gpu, MB_ERR_ARGUMENT and
 * MB_ERR_UNSUPPORTED skip it. */
void mb_check_ok(mb_check *check, mb_status status);

uint64_t mb_check_random(mb_check *check);
double mb_check_uniform(mb_check *check, double low, double high);

/* Memory until the end of the case. Its poison reads as NaN in every floating-point type. */
void *mb_check_alloc(mb_check *check, size_t n_bytes);
/* n random values in [low, high), rounded to dtype. */
void *mb_check_values(mb_check *check, mb_dtype dtype, int64_t n, double low, double high);
/* Random weights of about 1 / sqrt(cols); fp8 ones have block scales, or one scale a matrix. */
mb_weight mb_check_weight(mb_check *check, mb_dtype dtype, int64_t count, int64_t rows, int64_t cols);
mb_weight mb_check_weight_per_tensor(mb_check *check, int64_t count, int64_t rows, int64_t cols);

/* Element i of an array, and of a weight with its scale, decoded without the operators' code. */
double mb_check_value(mb_dtype dtype, const void *array, int64_t i);
double mb_check_weight_value(const mb_weight *weight, int64_t matrix, int64_t row, int64_t col);

/* The nearest value of bf16 or fp16; fp32 is left unrounded. For contracts that round on the way. */
double mb_check_round(mb_dtype dtype, double value);

/* Fails the case unless the output agrees. The bars follow from dtype: largest error relative to the largest
 * expected value, and DeepGEMM's calc_diff, 1 - 2xy / (x^2 + y^2). */
void mb_check_compare(mb_check *check, const char *what, mb_dtype dtype, const void *got,
                      const double *expected, int64_t n);

/* Rows of fp8 with one scale per row and 128 columns: the scale is amax / 448 (1 for zeros), and each value
 * the nearest that fp8 has. */
void mb_check_compare_quantised(mb_check *check, const char *what, const unsigned char *got,
                                const float *scales, const double *expected, int64_t n_rows, int64_t n_cols);

/* The same, of rows that are given in bf16 or fp16: every byte and every scale's bits. */
void mb_check_equal_quantised(mb_check *check, const char *what, const unsigned char *got,
                              const float *scales, mb_dtype dtype, const void *rows, int64_t n_rows,
                              int64_t n_cols);

/* Fails the case when a byte of a poisoned buffer was written. */
void mb_check_untouched(mb_check *check, const void *buffer, size_t first, size_t n_bytes);

double mb_check_seconds(void);

/* Calls the operator, once or for min_seconds. */
#define MB_CHECK_CALL(check, expression)                                                          \
    do {                                                                                          \
        double check_start_ = mb_check_seconds(), check_now_ = check_start_;                      \
        do {                                                                                      \
            double check_before_ = check_now_;                                                    \
            mb_status check_status_ = (expression);                                               \
            if (check_status_ == MB_OK && (check)->finish)                                        \
                check_status_ = (check)->finish((check)->stream);                                 \
            mb_check_ok(check, check_status_);                                                    \
            if (check_status_ != MB_OK)                                                           \
                break;                                                                            \
            check_now_ = mb_check_seconds();                                                      \
            if ((check)->best_seconds == 0 || check_now_ - check_before_ < (check)->best_seconds) \
                (check)->best_seconds = check_now_ - check_before_;                               \
        } while (check_now_ - check_start_ < (check)->min_seconds);                               \
    } while (0)

/* The cases of each operator: in X_cases.c, linked into tests and benchmarks only. */
void mb_embed_cases(mb_check *check);
void mb_norm_cases(mb_check *check);
void mb_gemm_cases(mb_check *check);
void mb_rope_cases(mb_check *check);
void mb_attention_cases(mb_check *check);
void mb_decode_attention_cases(mb_check *check);
void mb_moe_plan_cases(mb_check *check);
void mb_grouped_gemm_cases(mb_check *check); /* and the router's GEMM */
void mb_moe_cases(mb_check *check);
void mb_sample_cases(mb_check *check);

#ifdef __cplusplus
}
#endif

#endif
