/* train_check.h - the results of a trained layer beside those of the CPU's reference in fp32. */
#ifndef MB_BENCH_TRAIN_CHECK_H
#define MB_BENCH_TRAIN_CHECK_H

#include "bench/bench.h"
#include "bench/random_arrays.h"

/* A layer on a device: the forward's ids and weights are the backward's. */
typedef struct mb_bench_layer {
    mb_moe_route_args route;
    mb_moe_forward_args forward;
    mb_moe_backward_args backward;
    mb_moe_route_backward_args route_backward;
} mb_bench_layer;

/* After forward and backward have run. The reference has the same values, choices and routing weights, and
 * n_threads threads of the CPU (0: one for each core). */
mb_status mb_bench_check_training(const mb_bench_layer *layer, const mb_bench_arrays *arrays, int n_threads,
                                  mb_bench_check *checks, int *n_checks);

#endif
