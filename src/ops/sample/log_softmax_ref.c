#include "ops/common/parallel.h"
#include "ops/common/tensor.h"
#include "ops/sample/log_sum_exp.h"
#include "ops/sample/sample.h"

#include <inttypes.h>

static void normalize_row(const void *context, int64_t row) {
    const mb_log_softmax_args *args = context;
    const float *logits = args->logits + row * args->vocab;
    float *out = args->out + row * args->vocab;
    double shift = mb_log_sum_exp(logits, args->vocab);
    for (int32_t i = 0; i < args->vocab; i++)
        out[i] = (float)((double)logits[i] - shift);
}

mb_status mb_log_softmax_check(const mb_log_softmax_args *args) {
    MB_REQUIRE(args->n_rows >= 0 && args->n_rows <= INT32_MAX, "log_softmax: n_rows is %" PRId64,
               args->n_rows);
    MB_REQUIRE(args->vocab > 0, "log_softmax: vocab is %d", args->vocab);
    if (args->n_rows == 0)
        return MB_OK;
    MB_REQUIRE(args->logits && args->out, "log_softmax: logits or out is NULL");
    return MB_OK;
}

mb_status mb_log_softmax_ref(const mb_log_softmax_args *args, mb_stream stream) {
    MB_TRY(mb_log_softmax_check(args));
    mb_parallel_for(stream, 16.0 * (double)args->n_rows * args->vocab, args->n_rows, normalize_row, args);
    return MB_OK;
}
