/* norm.h - RMSNorm; its parameters are public (moebius/layers.h). */
#ifndef MB_OPS_NORM_H
#define MB_OPS_NORM_H

#include "moebius/layers.h"
#include "ops/common/cost.h"

#ifdef __cplusplus
extern "C" {
#endif

/* What must hold on every device. */
mb_status mb_rms_norm_check(const mb_rms_norm_args *args);

mb_op_cost mb_rms_norm_cost(const mb_rms_norm_args *args);

mb_status mb_rms_norm_ref(const mb_rms_norm_args *args, mb_stream stream);

mb_status mb_rms_norm_sm90(const mb_rms_norm_args *args, mb_stream stream);

#ifdef __cplusplus
}
#endif

#endif
