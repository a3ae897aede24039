/*
 * kv_scales.h - the scales of an fp8 KV cache: one for each layer's kv head, for K and for V.
 *
 * e4m3 has three bits behind the point at any size from 2^-6 to 448, so a scale makes no number there finer.
 * A scale has to keep values out of two places: beyond 448 they are cut off, and below 2^-6 the steps get no
 * smaller. So each scale is the power of two for which the largest value that the head can ever have, divided
 * by the scale, lies in (224, 448]. Values that scale 1 rounds well are rounded to the same numbers then.
 *
 * The largest value follows from the weights (Cauchy-Schwarz):
 *   K  a normed head is at most sqrt(D) long in front of the norm's weight, and the rotation keeps the length
 *      of a pair: sqrt(D) * the largest weight * rope_scale
 *   V  a normed row is at most sqrt(H) long in front of the norm's weight: the largest, over the head's rows
 *      w of v_proj, of sqrt(H) * |w * weight| + |bias|. Rows that a kernel rounds to fp8 can be 1/16 longer.
 */
#ifndef MB_MODEL_KV_SCALES_H
#define MB_MODEL_KV_SCALES_H

#include "device/device.h"
#include "model/config.h"
#include "model/weights/weights.h"

/* Makes the scales of weights that are on the device: [n_layers, K and V, n_kv_heads] in its memory, which
 * the caller frees there. The same weights give the same scales on every device. Where the largest value is 0
 * or not a finite number, the scale is 1. */
mb_status mb_kv_scales_make(const mb_config *config, const mb_weights *weights, mb_device *device,
                            float **scales);

#endif
