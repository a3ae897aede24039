#include "model/quantization.h"

#include <string.h>

#include "model/json.h"
#include "model/json_values.h"
#include "moebius/ops.h"

enum { SHOWN = 64 };

#define KEY "quantization_config"

/* [128, 128], or "128x128" as old versions of compressed-tensors wrote it. */
static int is_block(const json_t *value) {
    if (json_is_string(value))
        return strcmp(json_string_value(value), "128x128") == 0;
    return json_is_array(value) && json_array_size(value) == 2 &&
           json_integer_value(json_array_get(value, 0)) == MB_F8_BLOCK &&
           json_integer_value(json_array_get(value, 1)) == MB_F8_BLOCK;
}

static mb_status read_fp8(const char *path, const json_t *q) {
    char shown[SHOWN];
    const char *format = "e4m3", *activations = "dynamic";
    MB_TRY(mb_json_read_string(path, q, "fmt", &format));
    MB_TRY(mb_json_read_string(path, q, "activation_scheme", &activations));
    if (strcmp(format, "e4m3") != 0)
        return mb_fail(MB_ERR_UNSUPPORTED, "%s: \"" KEY "\" has \"fmt\" %s; only \"e4m3\" is supported", path,
                       mb_quote(shown, sizeof shown, format));
    if (strcmp(activations, "dynamic") != 0)
        return mb_fail(MB_ERR_UNSUPPORTED,
                       "%s: \"" KEY "\" has \"activation_scheme\" %s; only \"dynamic\" is supported", path,
                       mb_quote(shown, sizeof shown, activations));
    if (!is_block(json_object_get(q, "weight_block_size")))
        return mb_fail(MB_ERR_UNSUPPORTED,
                       "%s: \"" KEY "\" has no \"weight_block_size\" [128, 128]; other fp8 scalings are "
                       "not supported",
                       path);
    return MB_OK;
}

/* One of "config_groups": how some layers' weights and activations are stored. */
static mb_status check_group(const char *path, const json_t *group) {
    const json_t *weights = json_object_get(group, "weights");
    const json_t *inputs = mb_json_present(group, "input_activations");
    const char *type = "(none)", *strategy = "(none)";
    int32_t n_bits = 0, inputs_are_dynamic = 0;
    char shown_type[SHOWN], shown_strategy[SHOWN];
    MB_TRY(mb_json_read_string(path, weights, "type", &type));
    MB_TRY(mb_json_read_string(path, weights, "strategy", &strategy));
    MB_TRY(mb_json_read_int(path, weights, "num_bits", 1, 64, &n_bits));
    if (n_bits != 8 || strcmp(type, "float") != 0 || strcmp(strategy, "block") != 0 ||
        !is_block(json_object_get(weights, "block_structure")))
        return mb_fail(MB_ERR_UNSUPPORTED,
                       "%s: \"" KEY
                       "\" has weights of %d bits, type %s, strategy %s; of compressed-tensors only "
                       "8-bit \"float\" with strategy \"block\" of 128x128 is supported",
                       path, n_bits, mb_quote(shown_type, sizeof shown_type, type),
                       mb_quote(shown_strategy, sizeof shown_strategy, strategy));
    if (!inputs)
        return MB_OK;
    const json_t *dynamic = json_object_get(inputs, "dynamic");
    inputs_are_dynamic = json_is_true(dynamic) || json_is_string(dynamic); /* "local" is dynamic too */
    if (!inputs_are_dynamic)
        return mb_fail(MB_ERR_UNSUPPORTED,
                       "%s: \"" KEY
                       "\" has \"input_activations\" with scales of their own; only dynamic ones are "
                       "supported",
                       path);
    return MB_OK;
}

static mb_status read_compressed_tensors(const char *path, const json_t *q) {
    char shown[SHOWN];
    const char *format = "float-quantized", *name;
    MB_TRY(mb_json_read_string(path, q, "format", &format));
    if (strcmp(format, "float-quantized") != 0 && strcmp(format, "naive-quantized") != 0)
        return mb_fail(MB_ERR_UNSUPPORTED,
                       "%s: \"" KEY "\" has \"format\" %s; of compressed-tensors only \"float-quantized\" is "
                       "supported",
                       path, mb_quote(shown, sizeof shown, format));
    const json_t *transforms = mb_json_present(q, "transform_config");
    if (transforms && !(json_is_object(transforms) && json_object_size(transforms) == 0))
        return mb_fail(MB_ERR_UNSUPPORTED,
                       "%s: \"" KEY "\" has a \"transform_config\"; rotated weights are not supported", path);
    const json_t *groups = json_object_get(q, "config_groups");
    json_t *group;
    if (!mb_json_is_object(groups) || json_object_size(groups) == 0)
        return mb_fail(MB_ERR_CONFIG, "%s: \"" KEY "\" has no \"config_groups\" object", path);
    json_object_foreach((json_t *)groups, name, group) MB_TRY(check_group(path, group));
    return MB_OK;
}

mb_status mb_quantization_read(const char *path, const json_t *root, int32_t *fp8_blocks) {
    char shown[SHOWN];
    const json_t *q = mb_json_present(root, KEY);
    if (!q)
        return MB_OK;
    if (!mb_json_is_object(q))
        return mb_fail(MB_ERR_CONFIG, "%s: \"" KEY "\" is %s; it must be an object or null", path,
                       mb_json_describe(shown, sizeof shown, q));
    const char *method = "(none)";
    MB_TRY(mb_json_read_string(path, q, "quant_method", &method));
    if (strcmp(method, "fp8") == 0)
        MB_TRY(read_fp8(path, q));
    else if (strcmp(method, "compressed-tensors") == 0)
        MB_TRY(read_compressed_tensors(path, q));
    else
        return mb_fail(MB_ERR_UNSUPPORTED,
                       "%s: \"" KEY
                       "\" has \"quant_method\" %s; only \"fp8\" and \"compressed-tensors\" with "
                       "128x128 blocks are supported",
                       path, mb_quote(shown, sizeof shown, method));
    *fp8_blocks = 1;
    return MB_OK;
}
