/* value.c - making values, and what is true, equal, less and contained, as Python says. */
#include "model/jinja/value.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "model/json.h"

/* ---- Making ------------------------------------------------------------------------------------------- */

static size_t count_chars(const char *bytes, size_t n_bytes) {
    size_t n = 0;
    for (size_t i = 0; i < n_bytes; i++)
        n += ((unsigned char)bytes[i] & 0xC0) != 0x80;
    return n;
}

mb_status jinja_string_over(jinja_run *run, const char *bytes, size_t n_bytes, jinja_value *value) {
    jinja_string *string = jinja_alloc(&run->arena, sizeof *string);
    if (!string)
        return jinja_no_memory(run);
    if (!bytes) /* nothing was built */
        bytes = "";
    *string = (jinja_string){bytes, n_bytes, count_chars(bytes, n_bytes), 0};
    *value = (jinja_value){.kind = JINJA_STRING, .of.string = string};
    return jinja_charge_bytes(run, n_bytes);
}

mb_status jinja_text(jinja_run *run, const char *text, jinja_value *value) {
    return jinja_string_over(run, text, strlen(text), value);
}

mb_status jinja_new_list(jinja_run *run, jinja_kind kind, size_t capacity, jinja_value *value) {
    jinja_list *list = jinja_alloc(&run->arena, sizeof *list);
    if (!list)
        return jinja_no_memory(run);
    *list = (jinja_list){.capacity = capacity};
    if (capacity > 0) {
        MB_TRY(jinja_charge(run, capacity / 4));
        list->items = jinja_alloc(&run->arena, capacity * sizeof *list->items);
        if (!list->items)
            return jinja_no_memory(run);
    }
    *value = (jinja_value){.kind = kind, .of.list = list};
    return MB_OK;
}

/* A block of twice the capacity with the n items of the old one; the arena keeps the old one. */
static mb_status grow(jinja_run *run, void **items, size_t n, size_t *capacity, size_t item_bytes) {
    size_t wanted = *capacity > 0 ? 2 * *capacity : 4;
    MB_TRY(jinja_charge(run, wanted / 4));
    void *grown = jinja_alloc(&run->arena, wanted * item_bytes);
    if (!grown)
        return jinja_no_memory(run);
    if (n > 0)
        memcpy(grown, *items, n * item_bytes);
    *items = grown;
    *capacity = wanted;
    return MB_OK;
}

mb_status jinja_push(jinja_run *run, jinja_list *list, jinja_value item) {
    if (list->n == list->capacity)
        MB_TRY(grow(run, (void **)&list->items, list->n, &list->capacity, sizeof *list->items));
    list->items[list->n++] = item;
    return MB_OK;
}

mb_status jinja_pair_of(jinja_run *run, jinja_value a, jinja_value b, jinja_value *tuple) {
    MB_TRY(jinja_new_list(run, JINJA_TUPLE, 2, tuple));
    tuple->of.list->items[0] = a;
    tuple->of.list->items[1] = b;
    tuple->of.list->n = 2;
    return MB_OK;
}

mb_status jinja_new_dict(jinja_run *run, jinja_kind kind, size_t capacity, jinja_value *value) {
    jinja_dict *dict = jinja_alloc(&run->arena, sizeof *dict);
    if (!dict)
        return jinja_no_memory(run);
    *dict = (jinja_dict){.capacity = capacity};
    if (capacity > 0) {
        MB_TRY(jinja_charge(run, capacity / 4));
        dict->pairs = jinja_alloc(&run->arena, capacity * sizeof *dict->pairs);
        if (!dict->pairs)
            return jinja_no_memory(run);
    }
    *value = (jinja_value){.kind = kind, .of.dict = dict};
    return MB_OK;
}

/* Most keys are strings; dicts of chats are small, so the pairs are searched one by one. */
mb_status jinja_dict_find(jinja_run *run, const jinja_dict *dict, jinja_value key, jinja_value **found) {
    *found = NULL;
    if (key.kind == JINJA_LIST || key.kind == JINJA_DICT)
        return jinja_stop(run, "a %s cannot be the key of a dict", jinja_type_name(key));
    MB_TRY(jinja_charge(run, dict->n / 8));
    for (size_t i = 0; i < dict->n && !*found; i++) {
        jinja_value *other = &dict->pairs[i].key;
        int is_equal;
        if (key.kind == JINJA_STRING && other->kind == JINJA_STRING) {
            is_equal = key.of.string->n_bytes == other->of.string->n_bytes &&
                       memcmp(key.of.string->bytes, other->of.string->bytes, key.of.string->n_bytes) == 0;
        } else {
            MB_TRY(jinja_equal(run, key, *other, &is_equal));
        }
        if (is_equal)
            *found = &dict->pairs[i].value;
    }
    return MB_OK;
}

mb_status jinja_dict_set(jinja_run *run, jinja_dict *dict, jinja_value key, jinja_value value) {
    jinja_value *found;
    MB_TRY(jinja_dict_find(run, dict, key, &found));
    if (found) {
        *found = value;
        return MB_OK;
    }
    if (dict->n == dict->capacity)
        MB_TRY(grow(run, (void **)&dict->pairs, dict->n, &dict->capacity, sizeof *dict->pairs));
    dict->pairs[dict->n++] = (jinja_pair){key, value};
    return MB_OK;
}

jinja_value *jinja_dict_get(const jinja_dict *dict, const char *key) {
    size_t n = strlen(key);
    for (size_t i = 0; i < dict->n; i++) {
        const jinja_value *k = &dict->pairs[i].key;
        if (k->kind == JINJA_STRING && k->of.string->n_bytes == n && memcmp(k->of.string->bytes, key, n) == 0)
            return &dict->pairs[i].value;
    }
    return NULL;
}

/* ---- Names -------------------------------------------------------------------------------------------- */

const char *jinja_type_name(jinja_value v) {
    static const char *const names[] = {
        [JINJA_UNDEFINED] = "undefined value",
        [JINJA_NONE] = "none",
        [JINJA_BOOL] = "boolean",
        [JINJA_INT] = "integer",
        [JINJA_BIG] = "integer",
        [JINJA_FLOAT] = "float",
        [JINJA_STRING] = "string",
        [JINJA_LIST] = "list",
        [JINJA_TUPLE] = "tuple",
        [JINJA_RANGE] = "range",
        [JINJA_VIEW] = "view of a dict",
        [JINJA_ITERATOR] = "iterator",
        [JINJA_DICT] = "dict",
        [JINJA_NAMESPACE] = "namespace",
        [JINJA_LOOP] = "loop",
        [JINJA_MACRO] = "macro",
        [JINJA_FUNCTION] = "function",
        [JINJA_METHOD] = "method",
    };
    return names[v.kind];
}

const char *jinja_describe(char *buffer, size_t capacity, jinja_value v) {
    char text[64];
    if (v.kind == JINJA_INT) {
        snprintf(buffer, capacity, "%lld", (long long)v.of.integer);
    } else if (v.kind == JINJA_STRING) {
        size_t n = v.of.string->n_bytes < sizeof text - 1 ? v.of.string->n_bytes : sizeof text - 1;
        memcpy(text, v.of.string->bytes, n);
        text[n] = '\0';
        mb_quote(buffer, capacity, text);
    } else {
        snprintf(buffer, capacity, "%s %s", strchr("aeiou", jinja_type_name(v)[0]) ? "an" : "a",
                 jinja_type_name(v));
    }
    return buffer;
}

/* ---- Numbers ------------------------------------------------------------------------------------------ */

int jinja_integer(jinja_value v, int64_t *integer) {
    if (v.kind == JINJA_INT)
        *integer = v.of.integer;
    else if (v.kind == JINJA_BOOL)
        *integer = v.of.boolean;
    else
        return 0;
    return 1;
}

int jinja_number(jinja_value v, double *number) {
    int64_t integer;
    if (jinja_integer(v, &integer)) {
        *number = (double)integer;
    } else if (v.kind == JINJA_FLOAT) {
        *number = v.of.real;
    } else if (v.kind == JINJA_BIG) { /* its text is terminated by what follows in the data: copy it */
        char text[400];
        size_t n = v.of.string->n_bytes < sizeof text - 1 ? v.of.string->n_bytes : sizeof text - 1;
        memcpy(text, v.of.string->bytes, n);
        text[n] = '\0';
        *number = n < v.of.string->n_bytes ? (text[0] == '-' ? -INFINITY : INFINITY) : strtod(text, NULL);
    } else {
        return 0;
    }
    return 1;
}

/* ---- Truth, equality, order --------------------------------------------------------------------------- */

mb_status jinja_length(jinja_run *run, jinja_value v, int64_t *length) {
    if (jinja_is_undefined(v))
        *length = 0;
    else if (v.kind == JINJA_STRING)
        *length = (int64_t)v.of.string->n_chars;
    else if (jinja_is_listed(v) && v.kind != JINJA_ITERATOR)
        *length = (int64_t)v.of.list->n;
    else if (v.kind == JINJA_DICT)
        *length = (int64_t)v.of.dict->n;
    else
        return jinja_stop(run, "a %s has no length", jinja_type_name(v));
    return MB_OK;
}

mb_status jinja_is_true(jinja_run *run, jinja_value v, int *is_true) {
    int64_t length;
    switch (v.kind) {
    case JINJA_UNDEFINED:
    case JINJA_NONE:
        *is_true = 0;
        return MB_OK;
    case JINJA_BOOL:
        *is_true = v.of.boolean;
        return MB_OK;
    case JINJA_INT:
        *is_true = v.of.integer != 0;
        return MB_OK;
    case JINJA_FLOAT:
        *is_true = v.of.real != 0;
        return MB_OK;
    case JINJA_STRING:
    case JINJA_LIST:
    case JINJA_TUPLE:
    case JINJA_RANGE:
    case JINJA_VIEW:
    case JINJA_DICT:
        MB_TRY(jinja_length(run, v, &length));
        *is_true = length > 0;
        return MB_OK;
    default:
        *is_true = 1;
        return MB_OK;
    }
}

static int same_string(const jinja_string *a, const jinja_string *b) {
    return a->n_bytes == b->n_bytes && (a->n_bytes == 0 || memcmp(a->bytes, b->bytes, a->n_bytes) == 0);
}

static mb_status equal_lists(jinja_run *run, const jinja_list *a, const jinja_list *b, int *is_equal) {
    *is_equal = a->n == b->n;
    for (size_t i = 0; i < a->n && *is_equal; i++)
        MB_TRY(jinja_equal(run, a->items[i], b->items[i], is_equal));
    return MB_OK;
}

static mb_status equal_dicts(jinja_run *run, const jinja_dict *a, const jinja_dict *b, int *is_equal) {
    *is_equal = a->n == b->n;
    for (size_t i = 0; i < a->n && *is_equal; i++) {
        jinja_value *other;
        MB_TRY(jinja_dict_find(run, b, a->pairs[i].key, &other));
        *is_equal = other != NULL;
        if (other)
            MB_TRY(jinja_equal(run, a->pairs[i].value, *other, is_equal));
    }
    return MB_OK;
}

mb_status jinja_equal(jinja_run *run, jinja_value a, jinja_value b, int *is_equal) {
    double x, y;
    *is_equal = 0;
    if (a.kind == JINJA_STRING && b.kind == JINJA_STRING) {
        *is_equal = same_string(a.of.string, b.of.string);
        return jinja_charge_bytes(run, a.of.string->n_bytes);
    }
    if ((a.kind == JINJA_INT && b.kind == JINJA_INT)) {
        *is_equal = a.of.integer == b.of.integer;
        return MB_OK;
    }
    if (a.kind == JINJA_BIG && b.kind == JINJA_BIG) {
        *is_equal = same_string(a.of.string, b.of.string);
        return MB_OK;
    }
    if (jinja_number(a, &x) && jinja_number(b, &y)) {
        *is_equal =
            x == y &&
            (a.kind == JINJA_BIG || b.kind == JINJA_BIG ? a.kind == JINJA_FLOAT || b.kind == JINJA_FLOAT : 1);
        return MB_OK;
    }
    if (a.kind != b.kind)
        return MB_OK;
    MB_TRY(jinja_enter(run));
    MB_TRY(jinja_charge(run, 1));
    switch (a.kind) {
    case JINJA_UNDEFINED:
    case JINJA_NONE:
        *is_equal = 1;
        break;
    case JINJA_LIST:
    case JINJA_TUPLE:
    case JINJA_RANGE:
        MB_TRY(equal_lists(run, a.of.list, b.of.list, is_equal));
        break;
    case JINJA_DICT:
        MB_TRY(equal_dicts(run, a.of.dict, b.of.dict, is_equal));
        break;
    default:
        *is_equal = a.of.list == b.of.list; /* the same object */
        break;
    }
    jinja_leave(run);
    return MB_OK;
}

static mb_status order_lists(jinja_run *run, const jinja_list *a, const jinja_list *b, int *order) {
    MB_TRY(jinja_enter(run));
    size_t i = 0;
    for (; i < a->n && i < b->n; i++) {
        int is_equal;
        MB_TRY(jinja_equal(run, a->items[i], b->items[i], &is_equal));
        if (!is_equal)
            break;
    }
    if (i < a->n && i < b->n)
        MB_TRY(jinja_order(run, a->items[i], b->items[i], order));
    else
        *order = (a->n > b->n) - (a->n < b->n);
    jinja_leave(run);
    return MB_OK;
}

mb_status jinja_order(jinja_run *run, jinja_value a, jinja_value b, int *order) {
    double x, y;
    int64_t i, j;
    if (jinja_integer(a, &i) && jinja_integer(b, &j)) {
        *order = (i > j) - (i < j);
        return MB_OK;
    }
    if (jinja_number(a, &x) && jinja_number(b, &y)) {
        *order = isnan(x) || isnan(y) ? 2 : (x > y) - (x < y);
        return MB_OK;
    }
    if (a.kind == JINJA_STRING && b.kind == JINJA_STRING) { /* bytes of UTF-8 sort as code points do */
        const jinja_string *s = a.of.string, *t = b.of.string;
        size_t n = s->n_bytes < t->n_bytes ? s->n_bytes : t->n_bytes;
        int c = n > 0 ? memcmp(s->bytes, t->bytes, n) : 0;
        *order = c != 0 ? (c > 0) - (c < 0) : (s->n_bytes > t->n_bytes) - (s->n_bytes < t->n_bytes);
        return jinja_charge_bytes(run, n);
    }
    if (a.kind == b.kind && (a.kind == JINJA_LIST || a.kind == JINJA_TUPLE))
        return order_lists(run, a.of.list, b.of.list, order);
    char shown[2][96];
    return jinja_stop(run, "%s and %s have no order", jinja_describe(shown[0], sizeof shown[0], a),
                      jinja_describe(shown[1], sizeof shown[1], b));
}

/* ---- Collections -------------------------------------------------------------------------------------- */

mb_status jinja_contains(jinja_run *run, jinja_value container, jinja_value item, int *is_in) {
    *is_in = 0;
    if (container.kind == JINJA_STRING) {
        char shown[96];
        if (item.kind != JINJA_STRING)
            return jinja_stop(run, "%s cannot be in a string", jinja_describe(shown, sizeof shown, item));
        *is_in = jinja_find(container.of.string, item.of.string, 0) != SIZE_MAX;
        return jinja_charge_bytes(run, container.of.string->n_bytes);
    }
    if (container.kind == JINJA_DICT) {
        jinja_value *found;
        MB_TRY(jinja_dict_find(run, container.of.dict, item, &found));
        *is_in = found != NULL;
        return MB_OK;
    }
    jinja_list *items;
    MB_TRY(jinja_iterate(run, container, &items));
    for (size_t i = 0; i < items->n && !*is_in; i++) {
        MB_TRY(jinja_charge(run, 1));
        MB_TRY(jinja_equal(run, items->items[i], item, is_in));
    }
    return MB_OK;
}

static mb_status chars_of(jinja_run *run, const jinja_string *string, jinja_value *list) {
    MB_TRY(jinja_new_list(run, JINJA_LIST, string->n_chars, list));
    for (size_t i = 0; i < string->n_bytes;) {
        size_t n = 1;
        while (i + n < string->n_bytes && ((unsigned char)string->bytes[i + n] & 0xC0) == 0x80)
            n++;
        jinja_value c;
        MB_TRY(jinja_charge(run, 1));
        MB_TRY(jinja_string_over(run, string->bytes + i, n, &c));
        MB_TRY(jinja_push(run, list->of.list, c));
        i += n;
    }
    return MB_OK;
}

mb_status jinja_iterate(jinja_run *run, jinja_value v, jinja_list **items) {
    jinja_value list;
    if (v.kind == JINJA_ITERATOR) { /* what is left of it */
        jinja_list *from = v.of.list;
        MB_TRY(jinja_new_list(run, JINJA_LIST, 0, &list));
        list.of.list->items = from->n > 0 ? from->items + from->at : NULL;
        list.of.list->n = list.of.list->capacity = from->n - from->at;
        from->at = from->n;
    } else if (jinja_is_listed(v)) {
        list = v;
    } else if (v.kind == JINJA_STRING) {
        MB_TRY(chars_of(run, v.of.string, &list));
    } else if (v.kind == JINJA_DICT) {
        MB_TRY(jinja_new_list(run, JINJA_LIST, v.of.dict->n, &list));
        for (size_t i = 0; i < v.of.dict->n; i++)
            MB_TRY(jinja_push(run, list.of.list, v.of.dict->pairs[i].key));
    } else if (jinja_is_undefined(v)) {
        MB_TRY(jinja_new_list(run, JINJA_LIST, 0, &list));
    } else {
        return jinja_stop(run, "a %s cannot be iterated", jinja_type_name(v));
    }
    *items = list.of.list;
    return MB_OK;
}
