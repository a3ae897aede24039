#include "ops/sample/sample.h"

/* The log-probability alone needs a maximum, an exponential and a sum of each logit; what a draw needs beyond
 * that depends on the logits and is not counted. */
mb_op_cost mb_sample_cost(const mb_sample_args *args) {
    double V = args->vocab;
    mb_op_cost cost = {.tflops = MB_TFLOPS_F32};
    for (int64_t i = 0; i < args->n_rows; i++) {
        const mb_sample_row *row = &args->rows[i];
        cost.bytes += V * sizeof *args->logits + sizeof *row + sizeof *args->ids + sizeof *args->logprobs;
        cost.bytes += row->n_bias * (double)(sizeof *row->bias_ids + sizeof *row->biases);
        cost.bytes += row->seen ? V * sizeof *row->seen : 0;
        cost.bytes += row->allowed ? (double)((args->vocab + 31) / 32) * sizeof *row->allowed : 0;
        cost.flops += 3 * V;
    }
    return cost;
}

mb_op_cost mb_log_softmax_cost(const mb_log_softmax_args *args) {
    double n = (double)args->n_rows * args->vocab;
    return (mb_op_cost){.bytes = 2 * n * sizeof(float), .flops = 4 * n, .tflops = MB_TFLOPS_F32};
}
