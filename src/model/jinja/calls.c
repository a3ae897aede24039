/* calls.c - calls: arguments bound to parameters, macros, methods and the global functions. */
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "model/jinja/eval.h"

/* ---- Tables ------------------------------------------------------------------------------------------- */

const jinja_function *jinja_function_find(const jinja_function *table, const char *name, size_t n_bytes) {
    for (; table->name; table++)
        if (table->name[0] == name[0] && strlen(table->name) == n_bytes &&
            memcmp(table->name, name, n_bytes) == 0)
            return table;
    return NULL;
}

int jinja_method_is_missing(const jinja_string *name) {
    const jinja_function *const tables[] = {jinja_string_methods, jinja_list_methods, jinja_dict_methods,
                                            jinja_loop_methods};
    int is_missing = 0;
    for (size_t i = 0; i < sizeof tables / sizeof *tables; i++) {
        const jinja_function *method = jinja_function_find(tables[i], name->bytes, name->n_bytes);
        if (method && method->run)
            return 0;
        is_missing |= method != NULL;
    }
    return is_missing;
}

/* ---- Parameters --------------------------------------------------------------------------------------- */

/* Word i of a row of words: its length, 0 behind the last. */
static size_t word_at(const char *words, size_t i, const char **word) {
    for (; i > 0 && words; i--) {
        words = strchr(words, ' ');
        words = words ? words + 1 : NULL;
    }
    *word = words;
    return words ? strcspn(words, " ") : 0;
}

static mb_status bind_named(const jinja_function *function, const jinja_string *name, jinja_value value,
                            jinja_given *given) {
    const char *word;
    for (size_t i = 0, n; (n = word_at(function->parameters, i, &word)) > 0; i++)
        if (n == name->n_bytes && memcmp(word, name->bytes, n) == 0) {
            given->at[i] = value;
            given->has[i] = 1;
            return MB_OK;
        }
    return jinja_stop(given->run, "\"%s\" has no parameter \"%.*s\"", function->name, (int)name->n_bytes,
                      name->bytes);
}

static mb_status bind_parameters(const jinja_function *function, const jinja_call *call, jinja_given *given) {
    const char *word;
    for (size_t i = 0; i < call->n_positional; i++) {
        if (word_at(function->parameters, i, &word) == 0)
            return jinja_stop(given->run, "\"%s\" is given more arguments than it takes", function->name);
        given->at[i] = call->positional[i];
        given->has[i] = 1;
    }
    for (size_t i = 0; i < call->n_named; i++)
        MB_TRY(bind_named(function, call->names[i], call->named[i], given));
    for (int i = 0; i < function->n_required; i++)
        if (!given->has[i])
            return jinja_stop(given->run, "\"%s\" needs more arguments", function->name);
    return MB_OK;
}

mb_status jinja_function_run(jinja_evaluator *e, const jinja_function *function, jinja_value self,
                             const jinja_call *call, jinja_value *result) {
    jinja_given given = {.evaluator = e, .run = &e->run, .self = self, .call = call};
    if (!function->run)
        return jinja_stop(&e->run, "\"%s\" is not supported, or would change a value", function->name);
    if (function->parameters)
        MB_TRY(bind_parameters(function, call, &given));
    return function->run(&given, result);
}

static mb_status stop_argument(const jinja_given *given, int i, const char *wanted) {
    char shown[96];
    return jinja_stop(given->run, "argument %d is %s; it must be %s", i + 1,
                      jinja_describe(shown, sizeof shown, given->at[i]), wanted);
}

mb_status jinja_take_int(const jinja_given *given, int i, int64_t *value) {
    if (!given->has[i] || jinja_integer(given->at[i], value))
        return MB_OK;
    return stop_argument(given, i, "an integer");
}

mb_status jinja_take_bool(const jinja_given *given, int i, int *value) {
    return given->has[i] ? jinja_is_true(given->run, given->at[i], value) : MB_OK;
}

mb_status jinja_take_string(const jinja_given *given, int i, const jinja_string **value) {
    if (!given->has[i])
        return MB_OK;
    if (given->at[i].kind != JINJA_STRING)
        return stop_argument(given, i, "a string");
    *value = given->at[i].of.string;
    return MB_OK;
}

/* The values of *items and **pairs; NULL where there are none. */
static mb_status eval_all(jinja_evaluator *e, const jinja_arguments *arguments, jinja_list **items,
                          const jinja_dict **pairs) {
    jinja_value value;
    *items = NULL;
    *pairs = NULL;
    if (arguments->all_items) {
        MB_TRY(jinja_eval(e, arguments->all_items, &value));
        MB_TRY(jinja_iterate(&e->run, value, items));
    }
    if (!arguments->all_pairs)
        return MB_OK;
    MB_TRY(jinja_eval(e, arguments->all_pairs, &value));
    if (value.kind != JINJA_DICT)
        return jinja_stop(&e->run, "a %s stands behind **; it must be a dict", jinja_type_name(value));
    *pairs = value.of.dict;
    for (size_t i = 0; i < (*pairs)->n; i++)
        if ((*pairs)->pairs[i].key.kind != JINJA_STRING)
            return jinja_stop(&e->run, "a key of the dict behind ** is no string");
    return MB_OK;
}

mb_status jinja_eval_arguments(jinja_evaluator *e, const jinja_arguments *arguments, jinja_call *call) {
    jinja_list *items;
    const jinja_dict *pairs;
    MB_TRY(eval_all(e, arguments, &items, &pairs));
    size_t n_positional = arguments->n_positional + (items ? items->n : 0);
    size_t n_named = arguments->n_keywords + (pairs ? pairs->n : 0);
    *call = (jinja_call){0};
    if (n_positional + n_named == 0)
        return MB_OK;
    MB_TRY(jinja_charge(&e->run, (n_positional + n_named) / 4));
    jinja_value *values = jinja_alloc(&e->run.arena, (n_positional + n_named) * sizeof *values);
    const jinja_string **names = jinja_alloc(&e->run.arena, (n_named + 1) * sizeof *names);
    if (!values || !names)
        return jinja_no_memory(&e->run);
    *call = (jinja_call){values, n_positional, names, values + n_positional, n_named};
    for (const jinja_node *node = arguments->positional; node; node = node->next)
        MB_TRY(jinja_eval(e, node, values++));
    for (size_t i = 0; items && i < items->n; i++)
        *values++ = items->items[i];
    for (const jinja_keyword *keyword = arguments->keywords; keyword; keyword = keyword->next) {
        *names++ = keyword->name;
        MB_TRY(jinja_eval(e, keyword->value, values++));
    }
    for (size_t i = 0; pairs && i < pairs->n; i++) {
        *names++ = pairs->pairs[i].key.of.string;
        *values++ = pairs->pairs[i].value;
    }
    return MB_OK;
}

/* ---- Macros ------------------------------------------------------------------------------------------- */

static const jinja_value *find_named(const jinja_call *call, const jinja_string *name) {
    for (size_t i = 0; i < call->n_named; i++)
        if (call->names[i]->n_bytes == name->n_bytes &&
            memcmp(call->names[i]->bytes, name->bytes, name->n_bytes) == 0)
            return &call->named[i];
    return NULL;
}

/* Binds the arguments; what is not given gets its default, which may use the parameters before it. */
static mb_status bind_macro(jinja_evaluator *e, const jinja_macro *macro, const jinja_call *call,
                            jinja_scope *scope) {
    size_t i = 0, n_used = 0;
    for (const jinja_parameter *p = macro->signature->parameters; p; p = p->next, i++) {
        const jinja_string *name = e->template->names[p->name];
        const jinja_value *given = i < call->n_positional ? &call->positional[i] : find_named(call, name);
        n_used += given != NULL && i >= call->n_positional;
        jinja_value value = given ? *given : jinja_undefined(name);
        if (!given && p->otherwise)
            MB_TRY(jinja_eval(e, p->otherwise, &value));
        MB_TRY(jinja_bind(e, scope, p->name, value));
    }
    if (call->n_positional > i || call->n_named > n_used)
        return jinja_stop(&e->run, "the macro \"%.*s\" is given arguments that it does not take",
                          (int)macro->name->n_bytes, macro->name->bytes);
    return MB_OK;
}

static mb_status call_macro(jinja_evaluator *e, const jinja_macro *macro, const jinja_call *call,
                            const jinja_value *caller, jinja_value *value) {
    jinja_scope *scope, *before = e->scope;
    int line = e->run.line;
    MB_TRY(jinja_new_scope(e, macro->scope, &scope));
    e->scope = scope;
    MB_TRY(bind_macro(e, macro, call, scope));
    if (caller)
        MB_TRY(jinja_bind(e, scope, e->template->caller, *caller));
    MB_TRY(jinja_capture(e, macro->signature->body, scope, value));
    e->scope = before;
    e->run.line = line;
    return MB_OK;
}

mb_status jinja_eval_call(jinja_evaluator *e, const jinja_node *node, const jinja_value *caller,
                          jinja_value *value) {
    jinja_value callee;
    jinja_call call;
    char shown[96];
    MB_TRY(jinja_eval(e, node->as.call.callee, &callee));
    MB_TRY(jinja_eval_arguments(e, &node->as.call.arguments, &call));
    e->run.line = node->line;
    switch (callee.kind) {
    case JINJA_MACRO:
        return call_macro(e, callee.of.macro, &call, caller, value);
    case JINJA_METHOD:
        return jinja_function_run(e, callee.of.bound->function, callee.of.bound->self, &call, value);
    case JINJA_FUNCTION:
        return jinja_function_run(e, callee.of.function, jinja_none(), &call, value);
    case JINJA_UNDEFINED:
        if (callee.of.string)
            return jinja_stop(&e->run, "\"%.*s\" is undefined", (int)callee.of.string->n_bytes,
                              callee.of.string->bytes);
        /* fall through */
    default:
        return jinja_stop(&e->run, "%s cannot be called", jinja_describe(shown, sizeof shown, callee));
    }
}

/* ---- Global functions --------------------------------------------------------------------------------- */

static mb_status call_range(const jinja_given *given, jinja_value *result) {
    enum { MOST = 100000 }; /* jinja2's sandbox has the same limit */
    int64_t bounds[3] = {0, 0, 1};
    for (int i = 0; i < 3; i++)
        MB_TRY(jinja_take_int(given, i, &bounds[i]));
    if (!given->has[1]) {
        bounds[1] = bounds[0];
        bounds[0] = 0;
    }
    int64_t start = bounds[0], stop = bounds[1], step = bounds[2];
    if (step == 0)
        return jinja_stop(given->run, "the step of range is 0");
    MB_TRY(jinja_new_list(given->run, JINJA_RANGE, 0, result));
    jinja_list *list = result->of.list;
    list->start = start;
    list->stop = stop;
    list->step = step;
    for (int64_t i = start; step > 0 ? i < stop : i > stop;) {
        if (list->n == MOST)
            return jinja_stop(given->run, "range has more than %d numbers", MOST);
        MB_TRY(jinja_charge(given->run, list->n % 4 == 0));
        MB_TRY(jinja_push(given->run, list, jinja_int(i)));
        if (__builtin_add_overflow(i, step, &i))
            break;
    }
    return MB_OK;
}

/* The pairs of a dict, or of a list of pairs. */
static mb_status add_pairs(jinja_run *run, jinja_value from, jinja_dict *to) {
    jinja_list *items;
    if (from.kind == JINJA_DICT) {
        for (size_t i = 0; i < from.of.dict->n; i++)
            MB_TRY(jinja_dict_set(run, to, from.of.dict->pairs[i].key, from.of.dict->pairs[i].value));
        return MB_OK;
    }
    if (from.kind == JINJA_STRING)
        return jinja_stop(run, "a string is no list of pairs");
    MB_TRY(jinja_iterate(run, from, &items));
    for (size_t i = 0; i < items->n; i++) {
        jinja_list *pair;
        MB_TRY(jinja_iterate(run, items->items[i], &pair));
        if (pair->n != 2)
            return jinja_stop(run, "a dict is made of pairs, not of %zu values", pair->n);
        MB_TRY(jinja_dict_set(run, to, pair->items[0], pair->items[1]));
    }
    return MB_OK;
}

static mb_status make_dict(const jinja_given *given, jinja_kind kind, jinja_value *result) {
    const jinja_call *call = given->call;
    MB_TRY(jinja_new_dict(given->run, kind, call->n_named, result));
    if (call->n_positional > 1)
        return jinja_stop(given->run, "a dict or namespace is made of one value and keywords");
    if (call->n_positional == 1)
        MB_TRY(add_pairs(given->run, call->positional[0], result->of.dict));
    for (size_t i = 0; i < call->n_named; i++) {
        jinja_value name = {.kind = JINJA_STRING, .of.string = call->names[i]};
        MB_TRY(jinja_dict_set(given->run, result->of.dict, name, call->named[i]));
    }
    for (size_t i = 0; i < result->of.dict->n && kind == JINJA_NAMESPACE; i++) {
        jinja_value key = result->of.dict->pairs[i].key;
        if (key.kind == JINJA_STRING && key.of.string->n_bytes > 0 && key.of.string->bytes[0] == '_')
            return jinja_stop(given->run, "attributes of namespaces must not begin with _");
    }
    return MB_OK;
}

static mb_status call_dict(const jinja_given *given, jinja_value *result) {
    return make_dict(given, JINJA_DICT, result);
}

static mb_status call_namespace(const jinja_given *given, jinja_value *result) {
    return make_dict(given, JINJA_NAMESPACE, result);
}

/* The template's own refusal. Its text goes to terminals and logs: control characters are taken out. */
static mb_status call_raise_exception(const jinja_given *given, jinja_value *result) {
    const jinja_string *message;
    char text[600];
    size_t n = 0;
    *result = jinja_none();
    MB_TRY(jinja_str(given->run, given->at[0], &message));
    for (size_t i = 0, n_char; i < message->n_bytes && n < sizeof text - 8; i += n_char) {
        int32_t code;
        n_char = jinja_next_char(message->bytes + i, message->n_bytes - i, &code);
        if (code < ' ' || (code >= 0x7F && code < 0xA0))
            text[n++] = ' ';
        else
            for (size_t k = 0; k < n_char; k++)
                text[n++] = message->bytes[i + k];
    }
    text[n] = '\0';
    return jinja_stop(given->run, "the template refuses: %s", text);
}

static mb_status call_strftime_now(const jinja_given *given, jinja_value *result) {
    enum { ROOM = 512 };
    const jinja_string *format = NULL;
    char terminated[256];
    struct tm now;
    time_t seconds = time(NULL);
    MB_TRY(jinja_take_string(given, 0, &format));
    if (format->n_bytes >= sizeof terminated)
        return jinja_stop(given->run, "the format of strftime_now is longer than %zu bytes",
                          sizeof terminated - 1);
    memcpy(terminated, format->bytes, format->n_bytes);
    terminated[format->n_bytes] = '\0';
    char *text = jinja_alloc(&given->run->arena, ROOM);
    if (!text)
        return jinja_no_memory(given->run);
    localtime_r(&seconds, &now);
    size_t n = format->n_bytes > 0 ? strftime(text, ROOM, terminated, &now) : 0;
    return jinja_string_over(given->run, text, n, result);
}

const jinja_function jinja_globals[] = {
    {"range", call_range, "start stop step", 1},
    {"namespace", call_namespace, NULL, 0},
    {"dict", call_dict, NULL, 0},
    {"raise_exception", call_raise_exception, "message", 1},
    {"strftime_now", call_strftime_now, "format", 1},
    {NULL, NULL, NULL, 0},
};
