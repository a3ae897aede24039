/* config.json, and generation_config.json of the same bytes; what is accepted must be within its ranges. */
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include "model/config.h"

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t n_bytes);

static void require(int condition) {
    if (!condition)
        abort();
}

static void check_config(const mb_config *c) {
    require(c->hidden >= 1 && c->n_layers >= 1 && c->n_layers <= MB_MAX_LAYERS);
    require(c->n_kv_heads >= 1 && c->n_heads % c->n_kv_heads == 0);
    require(c->head_dim >= 2 && c->head_dim <= MB_MAX_HEAD_DIM && c->head_dim % 2 == 0);
    require(c->vocab >= 1 && c->max_positions >= 1 && c->n_eos_ids >= 0 && c->n_eos_ids <= MB_MAX_EOS);
    for (int32_t l = 0; l < c->n_layers; l++) {
        if (c->is_moe[l])
            require(c->top_k >= 1 && c->top_k <= c->n_experts && c->moe_intermediate >= 1);
        else
            require(c->intermediate >= 1);
    }
    for (int32_t i = 0; i < c->head_dim / 2; i++)
        require(isfinite(c->inv_freq[i]) && c->inv_freq[i] >= 0);
    require(isfinite(c->rope_scale));
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t n_bytes) {
    mb_config config;
    if (mb_config_parse("fuzz", (const char *)bytes, n_bytes, &config) == MB_OK)
        check_config(&config);
    else
        config = (mb_config){.vocab = 64};
    mb_generation generation;
    if (mb_generation_parse("fuzz", (const char *)bytes, n_bytes, &config, &generation) == MB_OK)
        require(!(generation.temperature < 0) && !(generation.top_p < 0) && !(generation.min_p > 1) &&
                generation.top_k >= -1 && generation.n_eos_ids <= MB_MAX_EOS);
    return 0;
}
