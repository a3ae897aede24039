#include "model/json_values.h"

#include <stdlib.h>

#include "model/json.h"

enum { SHOWN = 64 };

const json_t *mb_json_present(const json_t *object, const char *key) {
    const json_t *value = json_object_get(object, key);
    return json_is_null(value) ? NULL : value;
}

mb_status mb_json_parse_object(const char *path, const char *json, size_t n_bytes, json_t **root) {
    MB_TRY(mb_json_parse_config(path, json, n_bytes, root));
    if (mb_json_is_object(*root))
        return MB_OK;
    char shown[SHOWN];
    mb_status status = mb_fail(MB_ERR_CONFIG, "%s: holds %s; it must be a JSON object", path,
                               mb_json_describe(shown, sizeof shown, *root));
    mb_json_free(*root);
    *root = NULL;
    return status;
}

/* Any number, also one that json_t cannot hold. 0: it is none. */
int mb_json_number_value(const json_t *value, double *number) {
    const char *large =
        mb_json_number(value); /* whole or not a number: no point that a locale could change */
    *number = large ? strtod(large, NULL) : json_number_value(value);
    return large || json_is_number(value);
}

mb_status mb_json_read_int(const char *path, const json_t *object, const char *key, int32_t min, int32_t max,
                           int32_t *value) {
    const json_t *item = mb_json_present(object, key);
    if (!item)
        return MB_OK;
    json_int_t number = json_integer_value(item);
    char shown[SHOWN];
    if (!json_is_integer(item) || number < min || number > max)
        return mb_fail(MB_ERR_CONFIG, "%s: \"%s\" is %s; it must be an integer from %d to %d", path, key,
                       mb_json_describe(shown, sizeof shown, item), min, max);
    *value = (int32_t)number;
    return MB_OK;
}

mb_status mb_json_read_double(const char *path, const json_t *object, const char *key, double min, double max,
                              double *value) {
    const json_t *item = mb_json_present(object, key);
    if (!item)
        return MB_OK;
    double number;
    char shown[SHOWN];
    if (!mb_json_number_value(item, &number) || !(number >= min && number <= max))
        return mb_fail(MB_ERR_CONFIG, "%s: \"%s\" is %s; it must be a number from %g to %g", path, key,
                       mb_json_describe(shown, sizeof shown, item), min, max);
    *value = number;
    return MB_OK;
}

mb_status mb_json_read_bool(const char *path, const json_t *object, const char *key, int32_t *value) {
    const json_t *item = mb_json_present(object, key);
    if (!item)
        return MB_OK;
    char shown[SHOWN];
    if (!json_is_boolean(item))
        return mb_fail(MB_ERR_CONFIG, "%s: \"%s\" is %s; it must be true or false", path, key,
                       mb_json_describe(shown, sizeof shown, item));
    *value = json_is_true(item);
    return MB_OK;
}

mb_status mb_json_read_string(const char *path, const json_t *object, const char *key, const char **value) {
    const json_t *item = mb_json_present(object, key);
    if (!item)
        return MB_OK;
    char shown[SHOWN];
    if (!json_is_string(item))
        return mb_fail(MB_ERR_CONFIG, "%s: \"%s\" is %s; it must be a string", path, key,
                       mb_json_describe(shown, sizeof shown, item));
    *value = json_string_value(item);
    return MB_OK;
}
