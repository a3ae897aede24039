#include "server/json_read.h"

#include <inttypes.h>
#include <math.h>
#include <pthread.h>
#include <string.h>

#include "base/alloc.h"
#include "base/file.h"
#include "base/log.h"
#include "moebius/moebius.h"

/* ---- Parsing ------------------------------------------------------------------------------------------ */

/* A value takes about 32 bytes of memory, an empty object ten times as much. */
enum { MAX_WEIGHT = 4 * 1024 * 1024, WEIGHT_OF_CONTAINER = 8 };

typedef struct extent {
    size_t deepest; /* nesting */
    size_t weight;  /* of all values: what a document takes in memory */
} extent;

/* Of a text, which need not be JSON. */
static extent measure(const char *bytes, size_t n_bytes) {
    extent found = {0};
    size_t depth = 0;
    int in_string = 0;
    for (size_t i = 0; i < n_bytes; i++) {
        char byte = bytes[i];
        if (in_string) {
            if (byte == '\\')
                i++;
            else if (byte == '"')
                in_string = 0;
        } else if (byte == '"') {
            in_string = 1;
        } else if (byte == '[' || byte == '{') {
            found.weight += WEIGHT_OF_CONTAINER;
            if (++depth > found.deepest)
                found.deepest = depth;
        } else if ((byte == ']' || byte == '}') && depth > 0) {
            depth--;
        } else if (byte == ',') {
            found.weight++;
        }
    }
    return found;
}

int server_json_check_extent(const char *bytes, size_t n_bytes, server_problem *problem) {
    const extent found = measure(bytes, n_bytes);
    if (found.deepest > SERVER_JSON_DEPTH)
        return server_refuse(problem, 400, NULL, "the JSON is nested deeper than %d levels",
                             SERVER_JSON_DEPTH);
    if (found.weight > MAX_WEIGHT)
        return server_refuse(problem, 413, NULL,
                             "the JSON has too many values; send several smaller requests");
    return 0;
}

json_t *server_json_parse(const char *bytes, size_t n_bytes, server_problem *problem) {
    json_error_t error;
    if (n_bytes == 0) {
        server_refuse(problem, 400, NULL, "the request has no body; send a JSON object");
        return NULL;
    }
    if (mb_begins_with_bom(bytes, n_bytes)) {
        server_refuse(problem, 400, NULL,
                      "the body begins with a byte order mark (BOM); send it as UTF-8 without one");
        return NULL;
    }
    if (server_json_check_extent(bytes, n_bytes, problem) != 0)
        return NULL;
    json_t *root = json_loadb(bytes, n_bytes, JSON_DECODE_ANY, &error);
    if (root == NULL && json_error_code(&error) == json_error_out_of_memory) {
        server_refuse(problem, 503, NULL, "no memory for the request's JSON of %zu bytes", n_bytes);
    } else if (root == NULL && (json_error_code(&error) == json_error_null_character ||
                                json_error_code(&error) == json_error_null_byte_in_key)) {
        server_refuse(problem, 400, NULL,
                      "a text of the body ends at line %d, column %d and has the character \\u0000, which is "
                      "not supported; take it out",
                      error.line, error.column);
    } else if (root == NULL) {
        server_refuse(problem, 400, NULL, "the body is not valid JSON at line %d, column %d: %s", error.line,
                      error.column, error.text);
    } else if (!json_is_object(root)) {
        server_refuse(problem, 400, NULL, "the body is %s; send a JSON object", server_json_kind(root));
        json_decref(root);
        root = NULL;
    }
    return root;
}

/* ---- Fields ------------------------------------------------------------------------------------------- */

const char *server_json_kind(const json_t *value) {
    switch (value != NULL ? json_typeof(value) : JSON_NULL) {
    case JSON_OBJECT:
        return "an object";
    case JSON_ARRAY:
        return "an array";
    case JSON_STRING:
        return "a string";
    case JSON_INTEGER:
        return "an integer";
    case JSON_REAL:
        return "a number";
    case JSON_TRUE:
    case JSON_FALSE:
        return "a boolean";
    case JSON_NULL:
        break;
    }
    return "null";
}

const json_t *server_json_get(const json_t *object, const char *field) {
    const json_t *value = json_object_get(object, field);
    return json_is_null(value) ? NULL : value;
}

static int wrong_kind(server_problem *problem, const char *field, const json_t *value, const char *wanted) {
    return server_refuse(problem, 400, field, "%s is %s; it must be %s", field, server_json_kind(value),
                         wanted);
}

int server_json_number(const json_t *object, const char *field, double minimum, double maximum,
                       server_problem *problem, double *value) {
    const json_t *found = server_json_get(object, field);
    if (found == NULL)
        return 0;
    if (!json_is_number(found))
        return wrong_kind(problem, field, found, "a number");
    double number = json_number_value(found);
    if (!(number >= minimum && number <= maximum))
        return server_refuse(problem, 400, field, "%s is %.9g; it must be in [%.9g, %.9g]", field, number,
                             minimum, maximum);
    *value = number;
    return 0;
}

int server_json_float(const json_t *object, const char *field, double minimum, double maximum,
                      server_problem *problem, float *value) {
    double number = *value;
    if (server_json_number(object, field, minimum, maximum, problem, &number) != 0)
        return -1;
    *value = (float)number;
    return 0;
}

int server_json_integer(const json_t *object, const char *field, int64_t minimum, int64_t maximum,
                        server_problem *problem, int64_t *value) {
    const json_t *found = server_json_get(object, field);
    int64_t number;
    if (found == NULL)
        return 0;
    if (json_is_integer(found)) {
        number = json_integer_value(found);
    } else if (json_is_real(found) && json_real_value(found) == floor(json_real_value(found)) &&
               fabs(json_real_value(found)) <= 9007199254740992.0) {
        number = (int64_t)json_real_value(found); /* 10.0, as pydantic takes it */
    } else {
        return wrong_kind(problem, field, found, "an integer");
    }
    if (number < minimum || number > maximum)
        return server_refuse(problem, 400, field,
                             "%s is %" PRId64 "; it must be in [%" PRId64 ", %" PRId64 "]", field, number,
                             minimum, maximum);
    *value = number;
    return 0;
}

int server_json_int32(const json_t *object, const char *field, int32_t minimum, int32_t maximum,
                      server_problem *problem, int32_t *value) {
    int64_t number = *value;
    if (server_json_integer(object, field, minimum, maximum, problem, &number) != 0)
        return -1;
    *value = (int32_t)number;
    return 0;
}

int server_json_bool(const json_t *object, const char *field, server_problem *problem, int *value) {
    const json_t *found = server_json_get(object, field);
    if (found == NULL)
        return 0;
    if (!json_is_boolean(found))
        return wrong_kind(problem, field, found, "true or false");
    *value = json_is_true(found);
    return 0;
}

int server_json_string(const json_t *object, const char *field, server_problem *problem, const char **value) {
    const json_t *found = server_json_get(object, field);
    if (found == NULL)
        return 0;
    if (!json_is_string(found))
        return wrong_kind(problem, field, found, "a string");
    *value = json_string_value(found);
    return 0;
}

int server_json_array(const json_t *object, const char *field, server_problem *problem,
                      const json_t **value) {
    const json_t *found = server_json_get(object, field);
    if (found != NULL && !json_is_array(found))
        return wrong_kind(problem, field, found, "an array");
    if (found != NULL)
        *value = found;
    return 0;
}

int server_json_object(const json_t *object, const char *field, server_problem *problem,
                       const json_t **value) {
    const json_t *found = server_json_get(object, field);
    if (found != NULL && !json_is_object(found))
        return wrong_kind(problem, field, found, "an object");
    if (found != NULL)
        *value = found;
    return 0;
}

int server_json_ids(const json_t *array, const char *field, int32_t vocab, server_problem *problem,
                    int32_t **ids, size_t *n_ids) {
    size_t n = json_array_size(array);
    *ids = NULL;
    *n_ids = 0;
    if (n == 0)
        return 0;
    int32_t *items = mb_malloc_array(n, sizeof *items);
    if (items == NULL)
        return server_refuse(problem, 503, NULL, "no memory for %zu token ids", n);
    for (size_t i = 0; i < n; i++) {
        const json_t *item = json_array_get(array, i);
        int64_t id = json_is_integer(item) ? json_integer_value(item) : -1;
        if (id >= 0 && id < vocab) {
            items[i] = (int32_t)id;
            continue;
        }
        mb_free(items);
        if (!json_is_integer(item))
            return server_refuse(problem, 400, field, "%s[%zu] is %s; it must be a token id", field, i,
                                 server_json_kind(item));
        return server_refuse(problem, 400, field,
                             "%s[%zu] is %" PRId64 "; the model's token ids are 0 to %" PRId32, field, i,
                             (int64_t)json_integer_value(item), vocab - 1);
    }
    *ids = items;
    *n_ids = n;
    return 0;
}

char *server_json_dump(const json_t *value, server_problem *problem) {
    size_t n_bytes = json_dumpb(value, NULL, 0, JSON_COMPACT | JSON_ENCODE_ANY);
    char *text = mb_malloc(n_bytes + 1);
    if (text == NULL || n_bytes == 0 ||
        json_dumpb(value, text, n_bytes, JSON_COMPACT | JSON_ENCODE_ANY) != n_bytes) {
        mb_free(text);
        server_refuse(problem, 503, NULL, "no memory for a part of the request");
        return NULL;
    }
    text[n_bytes] = '\0';
    return text;
}

/* ---- Unknown fields ----------------------------------------------------------------------------------- */

enum { MAX_WARNED = 64, MAX_NAME = 64 };

static pthread_mutex_t warned_lock = PTHREAD_MUTEX_INITIALIZER;
static char warned[MAX_WARNED][MAX_NAME];
static int n_warned;

static int is_listed(const char *names, const char *name) {
    size_t length = strlen(name);
    if (length == 0)
        return 0;
    for (const char *at = names; (at = strstr(at, name)) != NULL; at += length)
        if ((at == names || at[-1] == ' ') && (at[length] == ' ' || at[length] == '\0'))
            return 1;
    return 0;
}

static int is_name(const char *name) {
    return strlen(name) < MAX_NAME &&
           strspn(name, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-.") == strlen(name);
}

static void warn(const char *name) {
    pthread_mutex_lock(&warned_lock);
    int i = 0;
    while (i < n_warned && strcmp(warned[i], name) != 0)
        i++;
    int is_new = i == n_warned && n_warned < MAX_WARNED;
    int is_last = is_new && n_warned == MAX_WARNED - 1;
    if (is_new)
        strcpy(warned[n_warned++], name);
    pthread_mutex_unlock(&warned_lock);
    if (is_new)
        mb_log(MB_LOG_WARN, "requests have a field \"%s\", which is not known and is ignored%s", name,
               is_last ? "; further names are not reported" : "");
}

void server_json_warn_unknown(const json_t *object, const char *known) {
    const char *name;
    json_t *value;
    json_object_foreach((json_t *)object, name, value) {
        if (!is_listed(known, name))
            warn(is_name(name) ? name : "(a name of other characters)");
    }
}
