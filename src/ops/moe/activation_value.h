/* activation_value.h - the activations of one value, with the same steps on the CPU and on the GPU. */
#ifndef MB_OPS_MOE_ACTIVATION_VALUE_H
#define MB_OPS_MOE_ACTIVATION_VALUE_H

#include "moebius/ops.h"
#include "ops/common/exp.h"

/* x / (1 + e^-x) */
static inline MB_HOST_DEVICE float mb_silu(float x) {
    return x / (1.0f + mb_exp(-x));
}

/* gelu's tanh form: 0.5 x (1 + tanh u) = x / (1 + e^-2u), u = sqrt(2 / pi) (x + 0.044715 x^3) */
static inline MB_HOST_DEVICE float mb_gelu_tanh(float x) {
    float twice_u = 1.5957691216057308f * (x + 0.044715f * x * x * x);
    return x / (1.0f + mb_exp(-twice_u));
}

static inline MB_HOST_DEVICE float mb_relu(float x) {
    return x < 0 ? 0 : x; /* keeps NaN */
}

/* What is multiplied with up when the activation is gated. */
static inline MB_HOST_DEVICE float mb_activation_value(mb_activation activation, float x) {
    switch (activation) {
    case MB_ACT_SWIGLU:
    case MB_ACT_SILU:
        return mb_silu(x);
    case MB_ACT_GEGLU:
    case MB_ACT_GELU:
        return mb_gelu_tanh(x);
    case MB_ACT_REGLU:
    case MB_ACT_RELU:
        return mb_relu(x);
    case MB_ACT_RELU2:
        return mb_relu(x) * mb_relu(x);
    default:
        return x;
    }
}

#endif
