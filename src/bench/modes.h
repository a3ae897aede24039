/*
 * modes.h - the ways in which the MoE operators multiply, as result files and `moebius bench moe` name them.
 *
 * The rate is what floors count (cost.h).
 */
#ifndef MB_BENCH_MODES_H
#define MB_BENCH_MODES_H

#include "moebius/ops.h"
#include "ops/common/cost.h"

/* X(ID, name, activations, weights, how fp32 is multiplied, scales are per tensor, TFLOP/s) */
#define MB_BENCH_MODES(X)                                                          \
    X(BF16, "bf16", MB_BF16, MB_BF16, MB_F32_TF32, 0, MB_TFLOPS_16BIT)             \
    X(FP16, "fp16", MB_F16, MB_F16, MB_F32_TF32, 0, MB_TFLOPS_16BIT)               \
    X(TF32, "tf32", MB_F32, MB_F32, MB_F32_TF32, 0, MB_TFLOPS_TF32)                \
    X(FP32, "fp32", MB_F32, MB_F32, MB_F32_EXACT, 0, MB_TFLOPS_F32)                \
    X(FP8_TENSOR, "fp8_tensor", MB_BF16, MB_F8_E4M3, MB_F32_TF32, 1, MB_TFLOPS_F8) \
    X(FP8_BLOCK, "fp8_block", MB_BF16, MB_F8_E4M3, MB_F32_TF32, 0, MB_TFLOPS_F8)

#endif
