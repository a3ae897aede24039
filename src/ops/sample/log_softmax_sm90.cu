/* log_softmax_sm90.cu - log of the softmax, one CTA a row: maximum, sum in fp64, difference. */
#include "ops/common/exp.h"
#include "ops/hopper/launch.cuh"
#include "ops/sample/row.cuh"

static __global__ void __launch_bounds__(SAMPLE_THREADS) log_softmax(mb_log_softmax_args args) {
    __shared__ row_scratch scratch;
    mb_grid_wait();
    const float *logits = args.logits + (int64_t)blockIdx.x * args.vocab;
    float *out = args.out + (int64_t)blockIdx.x * args.vocab;
    const double shift = log_sum_exp(logits, args.vocab, &scratch);
    for (int32_t i = threadIdx.x; i < args.vocab; i += SAMPLE_THREADS)
        out[i] = (float)((double)logits[i] - shift);
    mb_grid_launch_dependents();
}

mb_status mb_log_softmax_sm90(const mb_log_softmax_args *args, mb_stream stream) {
    MB_TRY(mb_log_softmax_check(args));
    if (args->n_rows == 0)
        return MB_OK;
    return mb_launch("log_softmax", log_softmax, dim3((unsigned)args->n_rows), SAMPLE_THREADS, 0, stream,
                     args);
}
