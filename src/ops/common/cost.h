/*
 * cost.h - what a call of an operator must move and compute, whatever its kernel: the two numbers of a
 * roofline.
 *
 * Each operator of a forward pass has a pure function mb_NAME_cost(args) beside its contract.
 *
 *   bytes   every input that is needed and every output, once: of weights those that tokens reach, of the
 *           KV cache the positions that are attended. What an operator writes and reads again itself does
 *           not count.
 *   flops   additions and multiplications, an exponential or a root as one; a multiply-add is two
 *
 * A call without rows costs nothing. A function that needs the contents of arrays says so; these must then
 * be memory of the host. All other pointers are compared with NULL at most.
 */
#ifndef MB_OPS_COMMON_COST_H
#define MB_OPS_COMMON_COST_H

#include "moebius/ops.h"

/* TFLOP/s that floors count on the 132 SMs of an H100: 88 % of what cuBLAS reaches there in a large GEMM (789
 * in 16 bits, 397 in tf32, 51 in fp32), in fp8 97 % (1448). */
enum {
    MB_TFLOPS_16BIT = 700,
    MB_TFLOPS_TF32 = 350,
    MB_TFLOPS_F32 = 45, /* fp32 units: also all that is not a product of matrices */
    MB_TFLOPS_F8 = 1400,
    MB_H100_SMS = 132,
};

typedef struct mb_op_cost {
    double bytes, flops;
    double tflops; /* the rate at which the flops are counted, of those above */
} mb_op_cost;

#ifdef __cplusplus
extern "C" {
#endif

/* Of `count` matrices of the weight, scales included. */
double mb_weight_bytes(const mb_weight *weight, double count);

/* Of n_rows rows in fp8 with a scale for each 128 columns. */
double mb_f8_rows_bytes(double n_rows, int64_t n_cols);

/* Of products of activations and weights, both factors as given. */
double mb_product_tflops(mb_dtype activations, mb_dtype weights, mb_f32_math f32_math);

/* The least microseconds for the bytes, and for the flops on a GPU of n_sms SMs. The floor is the longer
 * one. 0 where the rate is not known: bytes_per_second 0, n_sms 0. */
double mb_cost_memory_us(const mb_op_cost *cost, double bytes_per_second);
double mb_cost_compute_us(const mb_op_cost *cost, int n_sms);

#ifdef __cplusplus
}
#endif

#endif
