/* filters_lists.c - filters of lists and dicts: taking items, sorting, and a filter or test on every item. */
#include <string.h>

#include "model/jinja/eval.h"
#include "model/jinja/filters.h"
#include "model/jinja/strings.h"

/* What map, select and reverse give: an iterator over these items. */
static mb_status as_iterator(const jinja_given *given, jinja_value list, jinja_value *result) {
    (void)given;
    *result = (jinja_value){.kind = JINJA_ITERATOR, .of.list = list.of.list};
    return MB_OK;
}

/* ---- Items -------------------------------------------------------------------------------------------- */

mb_status jinja_filter_first(const jinja_given *given, jinja_value *result) {
    jinja_list *items;
    if (given->self.kind == JINJA_ITERATOR) { /* takes one item and leaves the others */
        jinja_list *list = given->self.of.list;
        *result = list->at < list->n ? list->items[list->at++] : jinja_undefined(NULL);
        return MB_OK;
    }
    MB_TRY(jinja_iterate(given->run, given->self, &items));
    *result = items->n > 0 ? items->items[0] : jinja_undefined(NULL);
    return MB_OK;
}

mb_status jinja_filter_last(const jinja_given *given, jinja_value *result) {
    jinja_list *items;
    if (given->self.kind == JINJA_ITERATOR)
        return jinja_stop(given->run, "an iterator has no last item; use the filter list first");
    MB_TRY(jinja_iterate(given->run, given->self, &items));
    *result = items->n > 0 ? items->items[items->n - 1] : jinja_undefined(NULL);
    return MB_OK;
}

static mb_status copy_items(const jinja_given *given, jinja_value *result) {
    jinja_list *items;
    MB_TRY(jinja_iterate(given->run, given->self, &items));
    MB_TRY(jinja_new_list(given->run, JINJA_LIST, items->n, result));
    for (size_t i = 0; i < items->n; i++)
        MB_TRY(jinja_push(given->run, result->of.list, items->items[i]));
    return MB_OK;
}

mb_status jinja_filter_list(const jinja_given *given, jinja_value *result) {
    return copy_items(given, result);
}

mb_status jinja_filter_reverse(const jinja_given *given, jinja_value *result) {
    const jinja_value all[3] = {jinja_none(), jinja_none(), jinja_int(-1)};
    jinja_value list;
    if (given->self.kind == JINJA_STRING)
        return jinja_get_slice(given->run, given->self, all, result);
    MB_TRY(copy_items(given, &list));
    MB_TRY(jinja_get_slice(given->run, list, all, &list));
    return given->self.kind == JINJA_ITERATOR ? (*result = list, MB_OK) : as_iterator(given, list, result);
}

static mb_status pairs_of(const jinja_given *given, jinja_value *list) {
    if (given->self.kind != JINJA_DICT && !jinja_is_undefined(given->self))
        return jinja_stop(given->run, "a %s has no pairs of keys and values", jinja_type_name(given->self));
    size_t n = given->self.kind == JINJA_DICT ? given->self.of.dict->n : 0;
    MB_TRY(jinja_new_list(given->run, JINJA_LIST, n, list));
    for (size_t i = 0; i < n; i++) {
        jinja_value pair;
        MB_TRY(jinja_pair_of(given->run, given->self.of.dict->pairs[i].key,
                             given->self.of.dict->pairs[i].value, &pair));
        MB_TRY(jinja_push(given->run, list->of.list, pair));
    }
    return MB_OK;
}

mb_status jinja_filter_items(const jinja_given *given, jinja_value *result) {
    jinja_value list;
    MB_TRY(pairs_of(given, &list));
    return as_iterator(given, list, result);
}

/* ---- Attributes --------------------------------------------------------------------------------------- */

/* A part of a dotted name: an integer when it is all digits. */
static mb_status part_key(const jinja_given *given, const jinja_string *name, size_t from, size_t to,
                          jinja_value *key) {
    int64_t integer = 0;
    int is_integer = to > from && to - from < 18;
    for (size_t i = from; i < to && is_integer; i++) {
        is_integer = name->bytes[i] >= '0' && name->bytes[i] <= '9';
        integer = 10 * integer + (name->bytes[i] - '0');
    }
    *key = jinja_int(integer);
    return is_integer ? MB_OK : jinja_string_over(given->run, name->bytes + from, to - from, key);
}

/* item.a.b for the attribute "a.b". An absent or null attribute is the item itself. */
static mb_status get_path(const jinja_given *given, jinja_value item, jinja_value attribute,
                          const jinja_value *otherwise, jinja_value *result) {
    *result = item;
    if (attribute.kind == JINJA_NONE || jinja_is_undefined(attribute))
        return MB_OK;
    if (attribute.kind != JINJA_STRING)
        return jinja_get_item(given->evaluator, item, attribute, result);
    const jinja_string *name = attribute.of.string;
    for (size_t from = 0; from <= name->n_bytes;) {
        size_t to = from;
        while (to < name->n_bytes && name->bytes[to] != '.')
            to++;
        jinja_value key, found;
        MB_TRY(part_key(given, name, from, to, &key));
        MB_TRY(jinja_get_item(given->evaluator, *result, key, &found));
        *result = otherwise && jinja_is_undefined(found) ? *otherwise : found;
        from = to + 1;
    }
    return MB_OK;
}

static mb_status small(const jinja_given *given, jinja_value v, jinja_value *result) {
    *result = v;
    if (v.kind != JINJA_STRING)
        return MB_OK;
    jinja_builder out = {.run = given->run};
    jinja_put_case(&out, v.of.string->bytes, v.of.string->n_bytes, JINJA_LOWER);
    return jinja_built(&out, result);
}

/* What an item is sorted by. */
static mb_status sort_key(const jinja_given *given, jinja_value item, jinja_value attribute, int with_case,
                          jinja_value *key) {
    MB_TRY(get_path(given, item, attribute, NULL, key));
    return with_case ? MB_OK : small(given, *key, key);
}

/* What sort compares: a list of the attributes "a,b", also when there is one or none. Lists are equal where
 * their items are, so values without an order can be sorted when they are all equal, as in jinja2. */
static mb_status sort_keys(const jinja_given *given, jinja_value item, jinja_value attributes, int with_case,
                           jinja_value *keys) {
    jinja_value comma, names;
    MB_TRY(jinja_new_list(given->run, JINJA_LIST, 1, &names));
    if (attributes.kind == JINJA_STRING) {
        MB_TRY(jinja_text(given->run, ",", &comma));
        MB_TRY(jinja_split(given->run, attributes.of.string, comma.of.string, -1, names.of.list));
    } else {
        MB_TRY(jinja_push(given->run, names.of.list, attributes));
    }
    MB_TRY(jinja_new_list(given->run, JINJA_LIST, names.of.list->n, keys));
    for (size_t i = 0; i < names.of.list->n; i++) {
        jinja_value key;
        MB_TRY(sort_key(given, item, names.of.list->items[i], with_case, &key));
        MB_TRY(jinja_push(given->run, keys->of.list, key));
    }
    return MB_OK;
}

/* ---- Sorting ------------------------------------------------------------------------------------------ */

typedef struct sorted {
    jinja_value key, item;
} sorted;

/* Merges the two sorted halves of items[0, n) through `room`. Equal keys keep their order. */
static mb_status merge(jinja_run *run, sorted *items, size_t half, size_t n, int is_reverse, sorted *room) {
    memcpy(room, items, half * sizeof *room);
    size_t i = 0, j = half, at = 0;
    while (i < half && j < n) {
        int order;
        MB_TRY(jinja_charge(run, 1));
        MB_TRY(jinja_order(run, items[j].key, room[i].key, &order));
        int takes_right = order != 2 && (is_reverse ? order > 0 : order < 0);
        items[at++] = takes_right ? items[j++] : room[i++];
    }
    while (i < half)
        items[at++] = room[i++];
    return MB_OK;
}

static mb_status merge_sort(jinja_run *run, sorted *items, size_t n, int is_reverse, sorted *room) {
    if (n < 2)
        return MB_OK;
    size_t half = n / 2;
    MB_TRY(merge_sort(run, items, half, is_reverse, room));
    MB_TRY(merge_sort(run, items + half, n - half, is_reverse, room));
    return merge(run, items, half, n, is_reverse, room);
}

/* items[0, n) sorted by their keys into a new list. */
static mb_status sort_into(const jinja_given *given, sorted *items, size_t n, int is_reverse,
                           jinja_value *result) {
    sorted *room = jinja_alloc(&given->run->arena, (n + 1) * sizeof *room);
    if (!room)
        return jinja_no_memory(given->run);
    MB_TRY(merge_sort(given->run, items, n, is_reverse, room));
    MB_TRY(jinja_new_list(given->run, JINJA_LIST, n, result));
    for (size_t i = 0; i < n; i++)
        MB_TRY(jinja_push(given->run, result->of.list, items[i].item));
    return MB_OK;
}

mb_status jinja_filter_sort(const jinja_given *given, jinja_value *result) {
    int is_reverse = 0, with_case = 0;
    jinja_list *list;
    MB_TRY(jinja_take_bool(given, 0, &is_reverse));
    MB_TRY(jinja_take_bool(given, 1, &with_case));
    MB_TRY(jinja_iterate(given->run, given->self, &list));
    sorted *items = jinja_alloc(&given->run->arena, (list->n + 1) * sizeof *items);
    if (!items)
        return jinja_no_memory(given->run);
    for (size_t i = 0; i < list->n; i++) {
        items[i].item = list->items[i];
        MB_TRY(sort_keys(given, list->items[i], given->at[2], with_case, &items[i].key));
    }
    return sort_into(given, items, list->n, is_reverse, result);
}

mb_status jinja_filter_dictsort(const jinja_given *given, jinja_value *result) {
    int is_reverse = 0, with_case = 0, by_value = 0;
    const jinja_string *by = NULL;
    jinja_value pairs;
    MB_TRY(jinja_take_bool(given, 0, &with_case));
    MB_TRY(jinja_take_string(given, 1, &by));
    MB_TRY(jinja_take_bool(given, 2, &is_reverse));
    by_value = by && by->n_bytes == 5 && memcmp(by->bytes, "value", 5) == 0;
    if (by && !by_value && !(by->n_bytes == 3 && memcmp(by->bytes, "key", 3) == 0))
        return jinja_stop(given->run, "dictsort sorts by \"key\" or \"value\"");
    if (jinja_is_undefined(given->self))
        return jinja_stop(given->run, "an undefined value cannot be sorted");
    MB_TRY(pairs_of(given, &pairs));
    const jinja_list *list = pairs.of.list;
    sorted *items = jinja_alloc(&given->run->arena, (list->n + 1) * sizeof *items);
    if (!items)
        return jinja_no_memory(given->run);
    for (size_t i = 0; i < list->n; i++) {
        items[i].item = list->items[i];
        items[i].key = list->items[i].of.list->items[by_value];
        if (!with_case)
            MB_TRY(small(given, items[i].key, &items[i].key));
    }
    return sort_into(given, items, list->n, is_reverse, result);
}

static mb_status find_extreme(const jinja_given *given, int wanted, jinja_value *result) {
    int with_case = 0;
    jinja_list *list;
    jinja_value best = jinja_none();
    MB_TRY(jinja_take_bool(given, 0, &with_case));
    MB_TRY(jinja_iterate(given->run, given->self, &list));
    *result = jinja_undefined(NULL);
    for (size_t i = 0; i < list->n; i++) {
        jinja_value key;
        int order = wanted;
        MB_TRY(jinja_charge(given->run, 1));
        MB_TRY(sort_key(given, list->items[i], given->at[1], with_case, &key));
        if (i > 0)
            MB_TRY(jinja_order(given->run, key, best, &order));
        if (order == wanted) {
            best = key;
            *result = list->items[i];
        }
    }
    return MB_OK;
}

mb_status jinja_filter_min(const jinja_given *given, jinja_value *result) {
    return find_extreme(given, -1, result);
}

mb_status jinja_filter_max(const jinja_given *given, jinja_value *result) {
    return find_extreme(given, 1, result);
}

mb_status jinja_filter_unique(const jinja_given *given, jinja_value *result) {
    int with_case = 0;
    jinja_list *list;
    jinja_value seen, kept;
    MB_TRY(jinja_take_bool(given, 0, &with_case));
    MB_TRY(jinja_iterate(given->run, given->self, &list));
    MB_TRY(jinja_new_dict(given->run, JINJA_DICT, 0, &seen));
    MB_TRY(jinja_new_list(given->run, JINJA_LIST, 0, &kept));
    for (size_t i = 0; i < list->n; i++) {
        jinja_value key, *found;
        MB_TRY(sort_key(given, list->items[i], given->at[1], with_case, &key));
        MB_TRY(jinja_dict_find(given->run, seen.of.dict, key, &found));
        if (found)
            continue;
        MB_TRY(jinja_dict_set(given->run, seen.of.dict, key, jinja_none()));
        MB_TRY(jinja_push(given->run, kept.of.list, list->items[i]));
    }
    return as_iterator(given, kept, result);
}

mb_status jinja_filter_sum(const jinja_given *given, jinja_value *result) {
    jinja_list *list;
    *result = given->has[1] ? given->at[1] : jinja_int(0);
    MB_TRY(jinja_iterate(given->run, given->self, &list));
    for (size_t i = 0; i < list->n; i++) {
        jinja_value item;
        MB_TRY(jinja_charge(given->run, 1));
        MB_TRY(get_path(given, list->items[i], given->at[0], NULL, &item));
        MB_TRY(jinja_binary(given->run, OP_ADD, *result, item, result));
    }
    return MB_OK;
}

mb_status jinja_filter_join(const jinja_given *given, jinja_value *result) {
    const jinja_string *separator = NULL;
    jinja_list *list;
    jinja_builder out = {.run = given->run};
    if (given->has[0])
        MB_TRY(jinja_str(given->run, given->at[0], &separator));
    MB_TRY(jinja_iterate(given->run, given->self, &list));
    for (size_t i = 0; i < list->n; i++) {
        jinja_value item;
        MB_TRY(jinja_charge(given->run, 1));
        MB_TRY(get_path(given, list->items[i], given->at[1], NULL, &item));
        if (i > 0 && separator)
            jinja_put_string(&out, separator);
        MB_TRY(jinja_put_str(&out, item));
    }
    return jinja_built(&out, result);
}

/* ---- A filter or test on every item ------------------------------------------------------------------- */

static mb_status find_named(const jinja_given *given, const jinja_function *table, const char *what,
                            jinja_value name, const jinja_function **function) {
    char shown[96];
    *function = name.kind == JINJA_STRING
                    ? jinja_function_find(table, name.of.string->bytes, name.of.string->n_bytes)
                    : NULL;
    if (*function)
        return MB_OK;
    return jinja_stop(given->run, "%s is no %s that is supported", jinja_describe(shown, sizeof shown, name),
                      what);
}

static const jinja_value *named_argument(const jinja_call *call, const char *name) {
    for (size_t i = 0; i < call->n_named; i++)
        if (call->names[i]->n_bytes == strlen(name) &&
            memcmp(call->names[i]->bytes, name, call->names[i]->n_bytes) == 0)
            return &call->named[i];
    return NULL;
}

/* Without its first n positional arguments. */
static jinja_call rest_of(const jinja_call *call, size_t n) {
    jinja_call rest = *call;
    rest.positional = n > 0 ? rest.positional + n : rest.positional;
    rest.n_positional -= n;
    return rest;
}

/* The items; none for a value that is false, whatever it is. */
static mb_status items_of(const jinja_given *given, jinja_list **list) {
    int is_true;
    MB_TRY(jinja_is_true(given->run, given->self, &is_true));
    if (is_true)
        return jinja_iterate(given->run, given->self, list);
    return jinja_iterate(given->run, jinja_undefined(NULL), list);
}

mb_status jinja_filter_map(const jinja_given *given, jinja_value *result) {
    const jinja_call *call = given->call;
    const jinja_value *attribute = named_argument(call, "attribute"),
                      *otherwise = named_argument(call, "default");
    const jinja_function *filter = NULL;
    jinja_list *list;
    jinja_value mapped;
    if (call->n_positional > 0)
        MB_TRY(find_named(given, jinja_filters, "filter", call->positional[0], &filter));
    else if (!attribute)
        return jinja_stop(given->run, "map needs a filter or an attribute");
    if (otherwise && otherwise->kind == JINJA_NONE)
        otherwise = NULL;
    MB_TRY(items_of(given, &list));
    MB_TRY(jinja_new_list(given->run, JINJA_LIST, list->n, &mapped));
    for (size_t i = 0; i < list->n; i++) {
        jinja_value item;
        jinja_call rest = filter ? rest_of(call, 1) : *call;
        MB_TRY(jinja_charge(given->run, 1));
        if (filter)
            MB_TRY(jinja_function_run(given->evaluator, filter, list->items[i], &rest, &item));
        else
            MB_TRY(get_path(given, list->items[i], *attribute, otherwise, &item));
        MB_TRY(jinja_push(given->run, mapped.of.list, item));
    }
    return as_iterator(given, mapped, result);
}

/* The items whose attribute (or which themselves) pass the test, or do not pass. */
static mb_status choose(const jinja_given *given, int by_attribute, int wanted, jinja_value *result) {
    const jinja_call *call = given->call;
    const jinja_function *test = NULL;
    size_t n_used = (size_t)by_attribute;
    jinja_list *list;
    jinja_value kept;
    if (by_attribute && call->n_positional == 0)
        return jinja_stop(given->run, "selectattr and rejectattr need an attribute");
    if (call->n_positional > n_used)
        MB_TRY(find_named(given, jinja_tests, "test", call->positional[n_used++], &test));
    MB_TRY(items_of(given, &list));
    MB_TRY(jinja_new_list(given->run, JINJA_LIST, 0, &kept));
    for (size_t i = 0; i < list->n; i++) {
        jinja_value item = list->items[i];
        jinja_call rest = rest_of(call, n_used);
        int is_true;
        MB_TRY(jinja_charge(given->run, 1));
        if (by_attribute)
            MB_TRY(get_path(given, item, call->positional[0], NULL, &item));
        if (test)
            MB_TRY(jinja_function_run(given->evaluator, test, item, &rest, &item));
        MB_TRY(jinja_is_true(given->run, item, &is_true));
        if (is_true == wanted)
            MB_TRY(jinja_push(given->run, kept.of.list, list->items[i]));
    }
    return as_iterator(given, kept, result);
}

mb_status jinja_filter_select(const jinja_given *given, jinja_value *result) {
    return choose(given, 0, 1, result);
}

mb_status jinja_filter_reject(const jinja_given *given, jinja_value *result) {
    return choose(given, 0, 0, result);
}

mb_status jinja_filter_selectattr(const jinja_given *given, jinja_value *result) {
    return choose(given, 1, 1, result);
}

mb_status jinja_filter_rejectattr(const jinja_given *given, jinja_value *result) {
    return choose(given, 1, 0, result);
}
