/* methods.c - methods of lists, dicts and the loop variable. */
#include "model/jinja/eval.h"

/* ---- Lists -------------------------------------------------------------------------------------------- */

static mb_status list_index(const jinja_given *given, jinja_value *result) {
    const jinja_list *list = given->self.of.list;
    for (size_t i = 0; i < list->n; i++) {
        int is_equal;
        MB_TRY(jinja_charge(given->run, 1));
        MB_TRY(jinja_equal(given->run, list->items[i], given->at[0], &is_equal));
        if (is_equal) {
            *result = jinja_int((int64_t)i);
            return MB_OK;
        }
    }
    return jinja_stop(given->run, "a list does not contain what index looks for");
}

static mb_status list_count(const jinja_given *given, jinja_value *result) {
    const jinja_list *list = given->self.of.list;
    int64_t n = 0;
    for (size_t i = 0; i < list->n; i++) {
        int is_equal;
        MB_TRY(jinja_charge(given->run, 1));
        MB_TRY(jinja_equal(given->run, list->items[i], given->at[0], &is_equal));
        n += is_equal;
    }
    *result = jinja_int(n);
    return MB_OK;
}

/* The sandbox of jinja2 refuses what changes a list or a dict. */
const jinja_function jinja_list_methods[] = {
    {"index", list_index, "value", 1}, {"count", list_count, "value", 1},
    {"append", NULL, NULL, 0},         {"clear", NULL, NULL, 0},
    {"copy", NULL, NULL, 0},           {"extend", NULL, NULL, 0},
    {"insert", NULL, NULL, 0},         {"pop", NULL, NULL, 0},
    {"remove", NULL, NULL, 0},         {"reverse", NULL, NULL, 0},
    {"sort", NULL, NULL, 0},           {NULL, NULL, NULL, 0},
};

const jinja_function jinja_tuple_methods[] = {
    {"index", list_index, "value", 1},
    {"count", list_count, "value", 1},
    {NULL, NULL, NULL, 0},
};

/* ---- Dicts -------------------------------------------------------------------------------------------- */

static mb_status dict_get(const jinja_given *given, jinja_value *result) {
    jinja_value *found;
    MB_TRY(jinja_dict_find(given->run, given->self.of.dict, given->at[0], &found));
    *result = found ? *found : given->has[1] ? given->at[1] : jinja_none();
    return MB_OK;
}

static mb_status view(const jinja_given *given, const char *type_name, jinja_value *result) {
    const jinja_dict *dict = given->self.of.dict;
    MB_TRY(jinja_new_list(given->run, JINJA_VIEW, dict->n, result));
    result->of.list->type_name = type_name;
    for (size_t i = 0; i < dict->n; i++) {
        jinja_value item = type_name[5] == 'k' ? dict->pairs[i].key : dict->pairs[i].value;
        if (type_name[5] == 'i')
            MB_TRY(jinja_pair_of(given->run, dict->pairs[i].key, dict->pairs[i].value, &item));
        MB_TRY(jinja_push(given->run, result->of.list, item));
    }
    return MB_OK;
}

static mb_status dict_keys(const jinja_given *given, jinja_value *result) {
    return view(given, "dict_keys", result);
}

static mb_status dict_values(const jinja_given *given, jinja_value *result) {
    return view(given, "dict_values", result);
}

static mb_status dict_items(const jinja_given *given, jinja_value *result) {
    return view(given, "dict_items", result);
}

const jinja_function jinja_dict_methods[] = {
    {"get", dict_get, "key default", 1}, {"keys", dict_keys, "", 0}, {"values", dict_values, "", 0},
    {"items", dict_items, "", 0},        {"clear", NULL, NULL, 0},   {"copy", NULL, NULL, 0},
    {"fromkeys", NULL, NULL, 0},         {"pop", NULL, NULL, 0},     {"popitem", NULL, NULL, 0},
    {"setdefault", NULL, NULL, 0},       {"update", NULL, NULL, 0},  {NULL, NULL, NULL, 0},
};

/* ---- loop --------------------------------------------------------------------------------------------- */

static mb_status loop_cycle(const jinja_given *given, jinja_value *result) {
    if (given->call->n_positional == 0)
        return jinja_stop(given->run, "loop.cycle needs values to choose from");
    *result = given->call->positional[given->self.of.loop->i % given->call->n_positional];
    return MB_OK;
}

static mb_status loop_changed(const jinja_given *given, jinja_value *result) {
    jinja_loop *loop = given->self.of.loop;
    jinja_value values;
    int is_equal = 0;
    MB_TRY(jinja_new_list(given->run, JINJA_TUPLE, 0, &values));
    for (size_t i = 0; i < given->call->n_positional; i++)
        MB_TRY(jinja_push(given->run, values.of.list, given->call->positional[i]));
    if (loop->has_changed)
        MB_TRY(jinja_equal(given->run, loop->changed, values, &is_equal));
    loop->changed = values;
    loop->has_changed = 1;
    *result = jinja_bool(!is_equal);
    return MB_OK;
}

const jinja_function jinja_loop_methods[] = {
    {"cycle", loop_cycle, NULL, 0},
    {"changed", loop_changed, NULL, 0},
    {NULL, NULL, NULL, 0},
};
