/* quantization.h - "quantization_config" of config.json: which quantised checkpoints can be run. */
#ifndef MB_MODEL_QUANTIZATION_H
#define MB_MODEL_QUANTIZATION_H

#include <jansson.h>
#include <stdint.h>

#include "base/status.h"

/* root: config.json. *fp8_blocks becomes 1 for weights in fp8 (e4m3) with a scale for each block of 128x128,
 * written by transformers ("fp8") or by llm-compressor ("compressed-tensors"); every other quantisation is
 * MB_ERR_UNSUPPORTED. Which layers are quantised is not read here: their tensors' dtypes say it. */
mb_status mb_quantization_read(const char *path, const json_t *root, int32_t *fp8_blocks);

#endif
