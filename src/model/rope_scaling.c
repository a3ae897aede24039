#include "model/rope_scaling.h"

#include <math.h>
#include <string.h>

#include "model/json.h"
#include "model/json_values.h"

enum { SHOWN = 64 };

/* Hugging Face's arithmetic is fp32 with theta as a double that is rounded once; the power itself is computed
 * in double and rounded, which is what a correctly rounded powf gives. */
static float plain_frequency(double theta, int i, int head_dim) {
    float exponent = (float)(2 * i) / (float)head_dim;
    return 1.0f / (float)pow((double)(float)theta, (double)exponent);
}

typedef struct yarn {
    double factor, attention_factor, beta_fast, beta_slow, mscale, mscale_all_dim;
    double original_positions;
    int32_t truncate;
} yarn;

static mb_status read_yarn(const char *path, const json_t *root, const json_t *rope, const mb_config *config,
                           yarn *y) {
    *y = (yarn){.beta_fast = 32, .beta_slow = 1, .truncate = 1};
    int32_t original = config->max_positions;
    const int32_t most = 1 << 30;
    MB_TRY(mb_json_read_int(path, rope, "original_max_position_embeddings", 1, most, &original));
    /* Outside of the rope settings the same key takes precedence, as in Hugging Face. */
    MB_TRY(mb_json_read_int(path, root, "original_max_position_embeddings", 1, most, &original));
    y->original_positions = original;
    y->factor = (double)config->max_positions / original;
    MB_TRY(mb_json_read_double(path, rope, "factor", 1e-3, 1e6, &y->factor));
    MB_TRY(mb_json_read_double(path, rope, "beta_fast", 0, 1e6, &y->beta_fast));
    MB_TRY(mb_json_read_double(path, rope, "beta_slow", 0, 1e6, &y->beta_slow));
    MB_TRY(mb_json_read_double(path, rope, "mscale", 0, 1e6, &y->mscale));
    MB_TRY(mb_json_read_double(path, rope, "mscale_all_dim", 0, 1e6, &y->mscale_all_dim));
    MB_TRY(mb_json_read_bool(path, rope, "truncate", &y->truncate));
    if (y->beta_fast == 0)
        y->beta_fast = 32;
    if (y->beta_slow == 0)
        y->beta_slow = 1;
    y->attention_factor = -1;
    return mb_json_read_double(path, rope, "attention_factor", 0, 1e6, &y->attention_factor);
}

static double yarn_mscale(double factor, double mscale) {
    return factor <= 1 ? 1.0 : 0.1 * mscale * log(factor) + 1.0;
}

/* The dimension whose wave turns `rotations` times within the original context. */
static double correction_dimension(const yarn *y, double rotations, int head_dim, double theta) {
    return head_dim * log(y->original_positions / (rotations * 2 * M_PI)) / (2 * log(theta));
}

/* Slow dimensions are interpolated (divided by factor), fast ones kept, and a ramp lies between. */
static void apply_yarn(const yarn *y, double theta, mb_config *config) {
    int head_dim = config->head_dim;
    double low = correction_dimension(y, y->beta_fast, head_dim, theta);
    double high = correction_dimension(y, y->beta_slow, head_dim, theta);
    if (y->truncate) {
        low = floor(low);
        high = ceil(high);
    }
    low = fmax(low, 0);
    high = fmin(high, head_dim - 1);
    if (low == high)
        high += 0.001;
    for (int i = 0; i < head_dim / 2; i++) {
        float ramp = ((float)i - (float)low) / (float)(high - low);
        ramp = ramp < 0 ? 0 : ramp > 1 ? 1 : ramp;
        float keep = 1 - ramp;
        float frequency = (float)pow((double)(float)theta, (double)((float)(2 * i) / (float)head_dim));
        config->inv_freq[i] = 1.0f / ((float)y->factor * frequency) * (1 - keep) + 1.0f / frequency * keep;
    }
    double scale = y->attention_factor;
    if (scale < 0) {
        scale = yarn_mscale(y->factor, 1);
        if (y->mscale != 0 && y->mscale_all_dim != 0)
            scale = yarn_mscale(y->factor, y->mscale) / yarn_mscale(y->factor, y->mscale_all_dim);
    }
    config->rope_scale = (float)scale;
}

static mb_status parse_rope_type(const char *path, const json_t *rope, const char **type) {
    *type = "default";
    MB_TRY(mb_json_read_string(path, rope, "type", type));
    return mb_json_read_string(path, rope, "rope_type", type);
}

mb_status mb_rope_scaling_parse(const char *path, const json_t *root, mb_config *config) {
    const char *key = mb_json_present(root, "rope_scaling") ? "rope_scaling" : "rope_parameters";
    const json_t *rope = mb_json_present(root, key);
    char shown[SHOWN];
    if (rope && !mb_json_is_object(rope))
        return mb_fail(MB_ERR_CONFIG, "%s: \"%s\" is %s; it must be an object or null", path, key,
                       mb_json_describe(shown, sizeof shown, rope));
    double theta = 10000, partial = 1, factor = 0;
    MB_TRY(mb_json_read_double(path, root, "rope_theta", 1.0001, 1e15, &theta));
    MB_TRY(mb_json_read_double(path, rope, "rope_theta", 1.0001, 1e15, &theta));
    MB_TRY(mb_json_read_double(path, root, "partial_rotary_factor", 0, 1, &partial));
    MB_TRY(mb_json_read_double(path, rope, "partial_rotary_factor", 0, 1, &partial));
    if (partial != 1)
        return mb_fail(
            MB_ERR_UNSUPPORTED,
            "%s: \"partial_rotary_factor\" is %g; Qwen3-MoE rotates whole heads, only 1 is supported", path,
            partial);
    const char *type;
    MB_TRY(parse_rope_type(path, rope, &type));
    config->rope_scale = 1;
    for (int i = 0; i < config->head_dim / 2; i++)
        config->inv_freq[i] = plain_frequency(theta, i, config->head_dim);
    if (strcmp(type, "default") == 0)
        return MB_OK;
    if (strcmp(type, "linear") == 0) {
        MB_TRY(mb_json_read_double(path, rope, "factor", 1e-3, 1e6, &factor));
        if (factor == 0)
            return mb_fail(MB_ERR_CONFIG, "%s: \"%s\" of type \"linear\" has no \"factor\"", path, key);
        for (int i = 0; i < config->head_dim / 2; i++)
            config->inv_freq[i] /= (float)factor;
        return MB_OK;
    }
    if (strcmp(type, "yarn") == 0) {
        yarn y;
        MB_TRY(read_yarn(path, root, rope, config, &y));
        apply_yarn(&y, theta, config);
        return MB_OK;
    }
    return mb_fail(MB_ERR_UNSUPPORTED,
                   "%s: \"%s\" has the type %s; supported are \"default\", \"linear\" and \"yarn\"", path,
                   key, mb_quote(shown, sizeof shown, type));
}
