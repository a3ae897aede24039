/* statements.c - a rendering: the template's statements executed one after the other. */
#include <math.h>
#include <string.h>

#include "base/alloc.h"
#include "model/jinja/eval.h"
#include "model/json.h"

/* ---- Scopes ------------------------------------------------------------------------------------------- */

mb_status jinja_new_scope(jinja_evaluator *e, jinja_scope *outer, jinja_scope **scope) {
    *scope = jinja_alloc(&e->run.arena, sizeof **scope);
    if (!*scope)
        return jinja_no_memory(&e->run);
    **scope = (jinja_scope){.outer = outer};
    return MB_OK;
}

mb_status jinja_bind(jinja_evaluator *e, jinja_scope *scope, int name, jinja_value value) {
    if (!scope) {
        e->variables[name] = value;
        return MB_OK;
    }
    for (size_t i = 0; i < scope->n; i++)
        if (scope->bindings[i].name == name) {
            scope->bindings[i].value = value;
            return MB_OK;
        }
    if (scope->n == scope->capacity) {
        size_t capacity = scope->capacity > 0 ? 2 * scope->capacity : 4;
        jinja_binding *grown = jinja_alloc(&e->run.arena, capacity * sizeof *grown);
        if (!grown)
            return jinja_no_memory(&e->run);
        if (scope->n > 0)
            memcpy(grown, scope->bindings, scope->n * sizeof *grown);
        scope->bindings = grown;
        scope->capacity = capacity;
    }
    scope->bindings[scope->n++] = (jinja_binding){name, value};
    return MB_OK;
}

mb_status jinja_capture(jinja_evaluator *e, const jinja_node *body, jinja_scope *scope, jinja_value *text) {
    jinja_builder captured = {.run = &e->run}, *out = e->out;
    jinja_scope *before = e->scope;
    MB_TRY(jinja_enter(&e->run));
    e->out = &captured;
    e->scope = scope;
    MB_TRY(jinja_execute(e, body));
    e->scope = before;
    e->out = out;
    jinja_leave(&e->run);
    return jinja_built(&captured, text);
}

static mb_status capture_block(jinja_evaluator *e, const jinja_node *body, jinja_value *text) {
    jinja_scope *scope;
    MB_TRY(jinja_new_scope(e, e->scope, &scope));
    return jinja_capture(e, body, scope, text);
}

/* ---- Statements --------------------------------------------------------------------------------------- */

/* elif is a branch in the else of the one before: taken in a loop. */
static mb_status execute_if(jinja_evaluator *e, const jinja_node *node) {
    for (;;) {
        jinja_value condition;
        int is_true;
        e->run.line = node->line;
        MB_TRY(jinja_eval(e, node->as.conditional.condition, &condition));
        MB_TRY(jinja_is_true(&e->run, condition, &is_true));
        if (is_true)
            return jinja_execute(e, node->as.conditional.then);
        const jinja_node *otherwise = node->as.conditional.otherwise;
        if (!otherwise || otherwise->kind != NODE_IF || otherwise->next)
            return jinja_execute(e, otherwise);
        node = otherwise;
    }
}

static mb_status execute_set_block(jinja_evaluator *e, const jinja_node *node) {
    jinja_value text;
    MB_TRY(capture_block(e, node->as.set.body, &text));
    if (node->as.set.value)
        MB_TRY(jinja_eval_filters(e, node->as.set.value, text, &text));
    return jinja_assign(e, e->scope, node->as.set.target, text);
}

static mb_status make_macro(jinja_evaluator *e, const jinja_signature *signature, const jinja_string *name,
                            jinja_value *value) {
    jinja_macro *macro = jinja_alloc(&e->run.arena, sizeof *macro);
    if (!macro)
        return jinja_no_memory(&e->run);
    *macro = (jinja_macro){signature, name, e->scope};
    for (jinja_scope *scope = e->scope; scope; scope = scope->outer)
        scope->is_kept = 1;
    *value = (jinja_value){.kind = JINJA_MACRO, .of.macro = macro};
    return MB_OK;
}

static mb_status execute_macro(jinja_evaluator *e, const jinja_node *node) {
    jinja_value macro;
    int name = node->as.macro.name;
    MB_TRY(make_macro(e, &node->as.macro.signature, e->template->names[name], &macro));
    return jinja_bind(e, e->scope, name, macro);
}

static mb_status execute_call_block(jinja_evaluator *e, const jinja_node *node) {
    jinja_value caller, result;
    MB_TRY(make_macro(e, &node->as.call_block.signature, e->template->names[e->template->caller], &caller));
    MB_TRY(jinja_eval_call(e, node->as.call_block.call, &caller, &result));
    return jinja_put_str(e->out, result);
}

static mb_status execute_filter_block(jinja_evaluator *e, const jinja_node *node) {
    jinja_value text;
    MB_TRY(capture_block(e, node->as.block.body, &text));
    MB_TRY(jinja_eval_filters(e, node->as.block.filters, text, &text));
    return jinja_put_str(e->out, text);
}

/* The values of with see what was there before, not one another. */
static mb_status execute_with(jinja_evaluator *e, const jinja_node *node) {
    jinja_scope *scope, *before = e->scope;
    MB_TRY(jinja_new_scope(e, e->scope, &scope));
    for (const jinja_node *set = node->as.set.target; set; set = set->next) {
        jinja_value value;
        MB_TRY(jinja_eval(e, set->as.set.value, &value));
        MB_TRY(jinja_assign(e, scope, set->as.set.target, value));
    }
    e->scope = scope;
    MB_TRY(jinja_execute(e, node->as.set.body));
    e->scope = before;
    return MB_OK;
}

static mb_status execute_generation(jinja_evaluator *e, const jinja_node *node) {
    jinja_value text;
    MB_TRY(capture_block(e, node->as.block.body, &text));
    return jinja_put_str(e->out, text);
}

static mb_status execute_set(jinja_evaluator *e, const jinja_node *node) {
    jinja_value value;
    MB_TRY(jinja_eval(e, node->as.set.value, &value));
    return jinja_assign(e, e->scope, node->as.set.target, value);
}

static mb_status execute_output(jinja_evaluator *e, const jinja_node *node) {
    jinja_value value;
    MB_TRY(jinja_eval(e, node->as.operand, &value));
    return jinja_put_str(e->out, value);
}

static mb_status execute_one(jinja_evaluator *e, const jinja_node *node) {
    switch (node->kind) {
    case NODE_TEXT:
        jinja_put_string(e->out, node->as.constant.of.string);
        return e->out->status;
    case NODE_OUTPUT:
        return execute_output(e, node);
    case NODE_IF:
        return execute_if(e, node);
    case NODE_FOR:
        return jinja_execute_for(e, node);
    case NODE_SET:
        return execute_set(e, node);
    case NODE_SET_BLOCK:
        return execute_set_block(e, node);
    case NODE_MACRO:
        return execute_macro(e, node);
    case NODE_CALL_BLOCK:
        return execute_call_block(e, node);
    case NODE_FILTER_BLOCK:
        return execute_filter_block(e, node);
    case NODE_WITH:
        return execute_with(e, node);
    case NODE_GENERATION:
        return execute_generation(e, node);
    case NODE_BREAK:
        e->flow = FLOW_BREAK;
        return MB_OK;
    default:
        e->flow = FLOW_CONTINUE;
        return MB_OK;
    }
}

mb_status jinja_execute(jinja_evaluator *e, const jinja_node *body) {
    MB_TRY(jinja_enter(&e->run));
    for (; body && e->flow == FLOW_ON; body = body->next) {
        e->run.line = body->line;
        MB_TRY(jinja_charge(&e->run, 1));
        MB_TRY(execute_one(e, body));
    }
    jinja_leave(&e->run);
    return MB_OK;
}

/* ---- Variables from JSON ------------------------------------------------------------------------------ */

/* Bounds of a rendering: enough for every chat, and small enough that a hostile template ends at once. They
 * grow with the data, because a long conversation is more work. */
enum { STEPS = 500000, STEPS_PER_VALUE = 200, BYTES_PER_EXTRA_STEP = 4 };
enum { MEMORY = 32 << 20, MEMORY_PER_VALUE = 4096, MEMORY_PER_BYTE = 16 };

static void allow_more(jinja_run *run, size_t n_bytes) {
    run->max_steps += STEPS_PER_VALUE + n_bytes / BYTES_PER_EXTRA_STEP;
    run->arena.max_bytes += MEMORY_PER_VALUE + n_bytes * MEMORY_PER_BYTE;
}

static mb_status from_json(jinja_run *run, const json_t *json, jinja_value *value);

static mb_status from_array(jinja_run *run, const json_t *array, jinja_value *value) {
    MB_TRY(jinja_new_list(run, JINJA_LIST, json_array_size(array), value));
    for (size_t i = 0; i < json_array_size(array); i++) {
        jinja_value item;
        MB_TRY(from_json(run, json_array_get(array, i), &item));
        MB_TRY(jinja_push(run, value->of.list, item));
    }
    return MB_OK;
}

static mb_status from_object(jinja_run *run, const json_t *object, jinja_value *value) {
    const char *key;
    json_t *item;
    MB_TRY(jinja_new_dict(run, JINJA_DICT, json_object_size(object), value));
    jinja_dict *dict = value->of.dict;
    json_object_foreach((json_t *)object, key,
                        item) { /* in the order of the document; no key is there twice */
        MB_TRY(jinja_text(run, key, &dict->pairs[dict->n].key));
        MB_TRY(from_json(run, item, &dict->pairs[dict->n].value));
        dict->n++;
    }
    return MB_OK;
}

/* NaN and the infinities are numbers as any; longer integers keep their text. */
static mb_status from_number(jinja_run *run, const char *text, jinja_value *value) {
    double real;
    *value = (jinja_value){.kind = JINJA_FLOAT, .of.real = 0};
    if (strcmp(text, "NaN") == 0)
        real = (double)NAN;
    else if (strcmp(text, "Infinity") == 0)
        real = (double)INFINITY;
    else if (strcmp(text, "-Infinity") == 0)
        real = -(double)INFINITY;
    else {
        MB_TRY(jinja_text(run, text, value));
        value->kind = JINJA_BIG;
        return MB_OK;
    }
    *value = jinja_real(real);
    return MB_OK;
}

/* Strings stay in the JSON tree. Recursion is bounded by mb_json_parse's limit on depth. */
static mb_status from_json(jinja_run *run, const json_t *json, jinja_value *value) {
    allow_more(run, json_is_string(json) ? json_string_length(json) : 0);
    const char *number = mb_json_number(json);
    if (number)
        return from_number(run, number, value);
    switch (json_typeof(json)) {
    case JSON_OBJECT:
        return from_object(run, json, value);
    case JSON_ARRAY:
        return from_array(run, json, value);
    case JSON_STRING:
        return jinja_string_over(run, json_string_value(json), json_string_length(json), value);
    case JSON_INTEGER:
        *value = jinja_int(json_integer_value(json));
        return MB_OK;
    case JSON_REAL:
        *value = jinja_real(json_real_value(json));
        return MB_OK;
    case JSON_TRUE:
    case JSON_FALSE:
        *value = jinja_bool(json_is_true(json));
        return MB_OK;
    case JSON_NULL:
        break;
    }
    *value = jinja_none();
    return MB_OK;
}

/* Only what the template names is made into values. */
static mb_status set_variables(jinja_evaluator *e, const json_t *object) {
    for (int i = 0; i < e->template->n_names; i++) {
        const jinja_string *name = e->template->names[i];
        const json_t *value = json_object_getn(object, name->bytes, name->n_bytes);
        if (value)
            MB_TRY(from_json(&e->run, value, &e->variables[i]));
    }
    return MB_OK;
}

/* ---- Rendering ---------------------------------------------------------------------------------------- */

static mb_status render(jinja_evaluator *e, const json_t *const *variables, size_t n_variables, char **text) {
    const mb_jinja *t = e->template;
    jinja_builder out = {.run = &e->run};
    e->variables = jinja_alloc(&e->run.arena, (size_t)t->n_names * sizeof *e->variables);
    if (!e->variables)
        return jinja_no_memory(&e->run);
    for (int i = 0; i < t->n_names; i++)
        e->variables[i] = jinja_undefined(NULL);
    for (size_t i = 0; i < n_variables; i++)
        MB_TRY(set_variables(e, variables[i]));
    e->out = &out;
    MB_TRY(jinja_execute(e, t->body));
    MB_TRY(out.status);
    if (out.n_bytes > 0 && memchr(out.bytes, '\0', out.n_bytes))
        return jinja_stop(&e->run, "the template prints a zero byte");
    *text = mb_malloc(out.n_bytes + 1);
    if (!*text)
        return mb_fail(MB_ERR_MEMORY, "no memory for a rendered text of %zu bytes", out.n_bytes);
    if (out.n_bytes > 0)
        memcpy(*text, out.bytes, out.n_bytes);
    (*text)[out.n_bytes] = '\0';
    return MB_OK;
}

mb_status mb_jinja_render(const mb_jinja *parsed, const json_t *const *variables, size_t n_variables,
                          char **text) {
    *text = NULL;
    jinja_evaluator e = {
        .template = parsed,
        .run = {.arena.max_bytes = MEMORY, .name = parsed->run.name, .max_steps = STEPS, .line = 1}};
    mb_status status = render(&e, variables, n_variables, text);
    jinja_arena_free(&e.run.arena);
    return status;
}
