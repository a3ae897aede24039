/*
 * json_values.h - single values of a configuration file, each with its type and range checked.
 *
 * A key that is absent or null leaves *value as it is: callers put the default there first.
 */
#ifndef MB_MODEL_JSON_VALUES_H
#define MB_MODEL_JSON_VALUES_H

#include <jansson.h>
#include <stdint.h>

#include "base/status.h"

/* All fail with MB_ERR_CONFIG and a sentence of path, key, value and what is allowed. */
mb_status mb_json_read_int(const char *path, const json_t *object, const char *key, int32_t min, int32_t max,
                           int32_t *value);
mb_status mb_json_read_double(const char *path, const json_t *object, const char *key, double min, double max,
                              double *value);
mb_status mb_json_read_bool(const char *path, const json_t *object, const char *key, int32_t *value);
mb_status mb_json_read_string(const char *path, const json_t *object, const char *key, const char **value);

/* Any number as a double, one that json_t cannot hold too. 0: the value is no number. */
int mb_json_number_value(const json_t *value, double *number);

/* A whole file that must hold an object; of a key that is there twice the last value counts. Free with
 * mb_json_free. */
mb_status mb_json_parse_object(const char *path, const char *json, size_t n_bytes, json_t **root);

/* The value of `key`; NULL when it is absent or null. */
const json_t *mb_json_present(const json_t *object, const char *key);

#endif
