/*
 * rope_scaling.h - rotary frequencies from config.json's rope settings, as Hugging Face computes them:
 * plain (Su et al. 2021), linear (position interpolation), and YaRN (Peng et al. 2023).
 */
#ifndef MB_MODEL_ROPE_SCALING_H
#define MB_MODEL_ROPE_SCALING_H

#include <jansson.h>

#include "model/config.h"

/* Reads "rope_scaling" or "rope_parameters", and "rope_theta", of config.json's object; head_dim and
 * max_positions of `config` are known already. Writes config->inv_freq and config->rope_scale. */
mb_status mb_rope_scaling_parse(const char *path, const json_t *root, mb_config *config);

#endif
