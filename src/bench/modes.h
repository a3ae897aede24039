/*
 * modes.h - the ways in which the MoE operators multiply, as result files and `moebius bench moe` name them.
 *
 * The rate is what floors count, in TFLOP/s on the 132 SMs of an H100: 88 % of what cuBLAS reaches there in
 * a large GEMM (789 in bf16, 397 in tf32, 51 in fp32), in fp8 97 % (1448).
 */
#ifndef MB_BENCH_MODES_H
#define MB_BENCH_MODES_H

#include "moebius/ops.h"

/* X(ID, name, activations, weights, how fp32 is multiplied, scales are per tensor, TFLOP/s) */
#define MB_BENCH_MODES(X)                                                  \
    X(BF16, "bf16", MB_BF16, MB_BF16, MB_F32_TF32, 0, 700)                 \
    X(FP16, "fp16", MB_F16, MB_F16, MB_F32_TF32, 0, 700)                   \
    X(TF32, "tf32", MB_F32, MB_F32, MB_F32_TF32, 0, 350)                   \
    X(FP32, "fp32", MB_F32, MB_F32, MB_F32_EXACT, 0, 45)                   \
    X(FP8_TENSOR, "fp8_tensor", MB_BF16, MB_F8_E4M3, MB_F32_TF32, 1, 1400) \
    X(FP8_BLOCK, "fp8_block", MB_BF16, MB_F8_E4M3, MB_F32_TF32, 0, 1400)

enum { MB_BENCH_H100_SMS = 132 };

#endif
