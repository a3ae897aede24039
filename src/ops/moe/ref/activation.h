/* activation.h - one row of act(gate) * up, for gated_activation, moe_forward and grouped_gemm. */
#ifndef MB_OPS_MOE_ACTIVATION_H
#define MB_OPS_MOE_ACTIVATION_H

#include "moebius/ops.h"

/* out[i] = act(gate[i]) * up[i]; ungated activations do not read up. The arrays must not overlap. */
void mb_activation_row(mb_activation activation, int64_t n, const float *gate, const float *up, float *out);

/* 1 for every value of the enum but MB_ACT_NONE. */
int mb_activation_is_known(mb_activation activation);

#endif
