/*
 * generation_config.c - generation_config.json: how answers are drawn unless a request says otherwise.
 *
 * A request may override each setting, so a wrong one does not stop the model from opening: a warning tells
 * of it, and its value becomes one that mb_submit refuses (NaN, or -1 for top_k).
 */
#include <float.h>
#include <math.h>
#include <string.h>

#include "base/log.h"
#include "model/config.h"
#include "model/json.h"
#include "model/json_values.h"

enum { SHOWN = 64 };

typedef struct reader {
    const char *path;
    const json_t *root;
} reader;

static void warn(const reader *r, const char *key, const char *wanted) {
    char shown[SHOWN];
    mb_log(MB_LOG_WARN, "%s: \"%s\" is %s; it must be %s: set it yourself in what you ask for", r->path, key,
           mb_json_describe(shown, sizeof shown, json_object_get(r->root, key)), wanted);
}

static void read_number(const reader *r, const char *key, double min, double max, const char *wanted,
                        float *value) {
    const json_t *item = mb_json_present(r->root, key);
    double number;
    if (!item)
        return;
    if (mb_json_number_value(item, &number) && number >= min && number <= max) {
        *value = (float)number;
    } else {
        warn(r, key, wanted);
        *value = NAN;
    }
}

/* -1 and 0 both switch it off, and 20.0 is 20. */
static void read_top_k(const reader *r, int32_t *top_k) {
    const json_t *item = mb_json_present(r->root, "top_k");
    double number;
    if (!item)
        return;
    if (mb_json_number_value(item, &number) && number >= -1 && number == floor(number)) {
        *top_k = number <= 0 ? 0 : number >= INT32_MAX ? INT32_MAX : (int32_t)number;
    } else {
        warn(r, "top_k", "an integer >= 0, or -1");
        *top_k = -1;
    }
}

static void read_do_sample(const reader *r, mb_generation *g) {
    const json_t *item = mb_json_present(r->root, "do_sample");
    if (!item)
        return;
    g->do_sample = !json_is_false(item);
    if (!json_is_boolean(item)) {
        warn(r, "do_sample", "true or false");
        g->temperature = NAN;
    }
}

mb_status mb_generation_parse(const char *path, const char *json, size_t n_bytes, const mb_config *config,
                              mb_generation *generation) {
    mb_generation *g = generation;
    *g = (mb_generation){
        .temperature = 1, .top_p = 1, .repetition_penalty = 1, .n_eos_ids = config->n_eos_ids};
    memcpy(g->eos_ids, config->eos_ids, sizeof g->eos_ids);
    if (!json)
        return MB_OK;
    json_t *root;
    MB_TRY(mb_json_parse_object(path, json, n_bytes, &root));
    const reader r = {path, root};
    read_number(&r, "temperature", 0, FLT_MAX, "a finite number >= 0", &g->temperature);
    read_number(&r, "top_p", 0, 1, "a number from 0 to 1", &g->top_p);
    read_number(&r, "min_p", 0, 1, "a number from 0 to 1", &g->min_p);
    read_number(&r, "repetition_penalty", FLT_MIN, FLT_MAX, "a finite number above 0",
                &g->repetition_penalty);
    read_top_k(&r, &g->top_k);
    read_do_sample(&r, g);
    if (mb_eos_read(path, root, config->vocab, g->eos_ids, &g->n_eos_ids) != MB_OK) {
        mb_log(MB_LOG_WARN, "%s; those of config.json count", mb_last_error());
        g->n_eos_ids = config->n_eos_ids;
        memcpy(g->eos_ids, config->eos_ids, sizeof g->eos_ids);
    }
    mb_json_free(root);
    return MB_OK;
}

static int contains(const int32_t *ids, int32_t n_ids, json_int_t id) {
    for (int32_t i = 0; i < n_ids; i++)
        if (ids[i] == id)
            return 1;
    return 0;
}

mb_status mb_eos_read(const char *path, const json_t *root, int32_t vocab, int32_t *ids, int32_t *n_ids) {
    static const char *const key = "eos_token_id";
    const json_t *item = mb_json_present(root, key);
    char shown[SHOWN];
    int32_t n = 0;
    if (!item)
        return MB_OK;
    size_t count = json_is_array(item) ? json_array_size(item) : 1;
    for (size_t i = 0; i < count; i++) {
        const json_t *value = json_is_array(item) ? json_array_get(item, i) : item;
        json_int_t id = json_integer_value(value);
        if (!json_is_integer(value))
            return mb_fail(MB_ERR_CONFIG, "%s: \"%s\" has %s; token ids are integers from 0 to %d", path, key,
                           mb_json_describe(shown, sizeof shown, value), vocab - 1);
        if (id < 0 || id >= vocab) {
            mb_log(MB_LOG_WARN,
                   "%s: \"%s\" has %lld, which no token of the model has (0 to %d); it is ignored", path, key,
                   (long long)id, vocab - 1);
            continue;
        }
        if (contains(ids, n, id))
            continue;
        if (n == MB_MAX_EOS)
            return mb_fail(MB_ERR_CONFIG, "%s: \"%s\" has more than %d ids", path, key, MB_MAX_EOS);
        ids[n++] = (int32_t)id;
    }
    *n_ids = n;
    return MB_OK;
}
