/*
 * rope.h - what happens to q, k and v between the projection and the attention, in one pass; the parameters
 * are public (moebius/layers.h).
 */
#ifndef MB_OPS_ROPE_H
#define MB_OPS_ROPE_H

#include "moebius/layers.h"
#include "ops/common/cost.h"

#ifdef __cplusplus
extern "C" {
#endif

/* How many dimensions of a head are rotated. */
int32_t mb_rotated_dims(int32_t rotary_dim, int32_t head_dim);

/* What must hold on every device. */
mb_status mb_qk_norm_rope_store_check(const mb_qk_norm_rope_store_args *args);
/* 1 when the array begins inside of qkv; sizes as checked. */
int mb_lies_in_qkv(const void *array, const mb_qk_norm_rope_store_args *args);

mb_op_cost mb_qk_norm_rope_store_cost(const mb_qk_norm_rope_store_args *args);

mb_status mb_qk_norm_rope_store_ref(const mb_qk_norm_rope_store_args *args, mb_stream stream);

mb_status mb_qk_norm_rope_store_sm90(const mb_qk_norm_rope_store_args *args, mb_stream stream);

#ifdef __cplusplus
}
#endif

#endif
