/* expressions.c - the value of an expression. */
#include <string.h>

#include "model/jinja/eval.h"

/* ---- Names and attributes ----------------------------------------------------------------------------- */

static mb_status eval_name(jinja_evaluator *e, int name, jinja_value *value) {
    size_t n_scopes = 0;
    for (const jinja_scope *scope = e->scope; scope; scope = scope->outer, n_scopes++)
        for (size_t i = 0; i < scope->n; i++)
            if (scope->bindings[i].name == name) {
                *value = scope->bindings[i].value;
                return jinja_charge(&e->run, n_scopes / 4);
            }
    MB_TRY(jinja_charge(&e->run, n_scopes / 4));
    *value = e->variables[name];
    if (!jinja_is_undefined(*value) || value->of.string)
        return MB_OK;
    const jinja_string *text = e->template->names[name];
    const jinja_function *function = jinja_function_find(jinja_globals, text->bytes, text->n_bytes);
    if (function)
        *value = (jinja_value){.kind = JINJA_FUNCTION, .of.function = function};
    else
        *value = jinja_undefined(text);
    return MB_OK;
}

static const jinja_function *methods_of(jinja_value v) {
    switch (v.kind) {
    case JINJA_STRING:
        return jinja_string_methods;
    case JINJA_LIST:
        return jinja_list_methods;
    case JINJA_TUPLE:
    case JINJA_RANGE:
        return jinja_tuple_methods;
    case JINJA_DICT:
        return jinja_dict_methods;
    case JINJA_LOOP:
        return jinja_loop_methods;
    default:
        return NULL;
    }
}

mb_status jinja_get_attribute(jinja_evaluator *e, jinja_value v, jinja_value name, jinja_value *value) {
    const jinja_function *methods = methods_of(v), *method;
    if (jinja_is_undefined(v) && v.of.string)
        return jinja_stop(&e->run, "\"%.*s\" is undefined", (int)v.of.string->n_bytes, v.of.string->bytes);
    if (jinja_is_undefined(v))
        return jinja_stop(&e->run, "a part of an undefined value is used");
    *value = jinja_undefined(name.of.string);
    if (methods && (method = jinja_function_find(methods, name.of.string->bytes, name.of.string->n_bytes))) {
        jinja_bound *bound = jinja_alloc(&e->run.arena, sizeof *bound);
        if (!bound)
            return jinja_no_memory(&e->run);
        *bound = (jinja_bound){method, v};
        *value = (jinja_value){.kind = JINJA_METHOD, .of.bound = bound};
        return MB_OK;
    }
    if (v.kind == JINJA_LOOP)
        return jinja_loop_attribute(e, v.of.loop, name, value);
    if (v.kind == JINJA_MACRO && name.of.string->n_bytes == 4 &&
        memcmp(name.of.string->bytes, "name", 4) == 0)
        *value = (jinja_value){.kind = JINJA_STRING, .of.string = v.of.macro->name};
    if (v.kind == JINJA_DICT || v.kind == JINJA_NAMESPACE) {
        jinja_value *found;
        MB_TRY(jinja_dict_find(&e->run, v.of.dict, name, &found));
        if (found)
            *value = *found;
    }
    return MB_OK;
}

/* ---- Literals ----------------------------------------------------------------------------------------- */

static mb_status eval_list(jinja_evaluator *e, const jinja_node *node, jinja_value *value) {
    jinja_kind kind = node->kind == NODE_LIST ? JINJA_LIST : JINJA_TUPLE;
    MB_TRY(jinja_new_list(&e->run, kind, node->as.items.n, value));
    for (const jinja_node *item = node->as.items.first; item; item = item->next) {
        jinja_value v;
        MB_TRY(jinja_eval(e, item, &v));
        MB_TRY(jinja_push(&e->run, value->of.list, v));
    }
    return MB_OK;
}

static mb_status eval_dict(jinja_evaluator *e, const jinja_node *node, jinja_value *value) {
    MB_TRY(jinja_new_dict(&e->run, JINJA_DICT, node->as.items.n / 2, value));
    for (const jinja_node *item = node->as.items.first; item; item = item->next->next) {
        jinja_value key, v;
        MB_TRY(jinja_eval(e, item, &key));
        MB_TRY(jinja_eval(e, item->next, &v));
        MB_TRY(jinja_dict_set(&e->run, value->of.dict, key, v));
    }
    return MB_OK;
}

static mb_status eval_concat(jinja_evaluator *e, const jinja_node *node, jinja_value *value) {
    jinja_builder out = {.run = &e->run};
    for (const jinja_node *item = node->as.items.first; item; item = item->next) {
        jinja_value v;
        MB_TRY(jinja_eval(e, item, &v));
        MB_TRY(jinja_put_str(&out, v));
    }
    return jinja_built(&out, value);
}

/* ---- Operators ---------------------------------------------------------------------------------------- */

static mb_status eval_slice(jinja_evaluator *e, const jinja_node *node, jinja_value *value) {
    const jinja_node *parts[3] = {node->as.slice.start, node->as.slice.stop, node->as.slice.step};
    jinja_value object, bounds[3];
    MB_TRY(jinja_eval(e, node->as.slice.object, &object));
    for (int i = 0; i < 3; i++) {
        bounds[i] = jinja_none();
        if (parts[i])
            MB_TRY(jinja_eval(e, parts[i], &bounds[i]));
    }
    return jinja_get_slice(&e->run, object, bounds, value);
}

static mb_status eval_item(jinja_evaluator *e, const jinja_node *node, jinja_value *value) {
    jinja_value object, key;
    MB_TRY(jinja_eval(e, node->as.item.object, &object));
    MB_TRY(jinja_eval(e, node->as.item.key, &key));
    return jinja_get_item(e, object, key, value);
}

static mb_status eval_attribute(jinja_evaluator *e, const jinja_node *node, jinja_value *value) {
    jinja_value object;
    MB_TRY(jinja_eval(e, node->as.attribute.object, &object));
    return jinja_get_attribute(e, object, node->as.attribute.name, value);
}

static mb_status eval_binary(jinja_evaluator *e, const jinja_node *node, jinja_value *value) {
    jinja_value left, right;
    MB_TRY(jinja_eval(e, node->as.binary.left, &left));
    MB_TRY(jinja_eval(e, node->as.binary.right, &right));
    return jinja_binary(&e->run, node->as.binary.operator, left, right, value);
}

/* a < b < c: each is evaluated once, and none behind the first comparison that is false. */
static mb_status eval_comparison(jinja_evaluator *e, const jinja_node *node, jinja_value *value) {
    jinja_value left, right;
    int is_true = 1;
    MB_TRY(jinja_eval(e, node->as.binary.left, &left));
    for (; node && is_true; node = node->as.binary.then) {
        MB_TRY(jinja_eval(e, node->as.binary.right, &right));
        MB_TRY(jinja_compare(&e->run, node->as.binary.operator, left, right, &is_true));
        left = right;
    }
    *value = jinja_bool(is_true);
    return MB_OK;
}

/* The first value of the row that decides, as in Python; *rest is the expression that is left to evaluate. */
static mb_status eval_logic(jinja_evaluator *e, const jinja_node *node, jinja_value *value) {
    jinja_node_kind kind = node->kind;
    for (; node->kind == kind; node = node->as.binary.right) {
        int is_true;
        MB_TRY(jinja_eval(e, node->as.binary.left, value));
        MB_TRY(jinja_is_true(&e->run, *value, &is_true));
        if (is_true == (kind == NODE_OR))
            return MB_OK;
    }
    return jinja_eval(e, node, value);
}

static mb_status eval_conditional(jinja_evaluator *e, const jinja_node *node, jinja_value *value) {
    jinja_value condition;
    int is_true;
    MB_TRY(jinja_eval(e, node->as.conditional.condition, &condition));
    MB_TRY(jinja_is_true(&e->run, condition, &is_true));
    const jinja_node *chosen = is_true ? node->as.conditional.then : node->as.conditional.otherwise;
    if (chosen)
        return jinja_eval(e, chosen, value);
    *value = jinja_undefined(NULL);
    return MB_OK;
}

static mb_status eval_not(jinja_evaluator *e, const jinja_node *node, jinja_value *value) {
    int is_true;
    MB_TRY(jinja_eval(e, node->as.operand, value));
    MB_TRY(jinja_is_true(&e->run, *value, &is_true));
    *value = jinja_bool(!is_true);
    return MB_OK;
}

static mb_status eval_sign(jinja_evaluator *e, const jinja_node *node, jinja_value *value) {
    jinja_value operand, negative;
    MB_TRY(jinja_eval(e, node->as.operand, &operand));
    MB_TRY(jinja_negate(&e->run, operand, &negative));
    return node->kind == NODE_NEGATIVE ? (*value = negative, MB_OK) : jinja_negate(&e->run, negative, value);
}

/* ---- Filters and tests -------------------------------------------------------------------------------- */

mb_status jinja_eval_applied(jinja_evaluator *e, const jinja_node *node, jinja_value input,
                             jinja_value *value) {
    jinja_call call;
    MB_TRY(jinja_eval_arguments(e, &node->as.applied.arguments, &call));
    return jinja_function_run(e, node->as.applied.function, input, &call, value);
}

mb_status jinja_eval_filters(jinja_evaluator *e, const jinja_node *filters, jinja_value text,
                             jinja_value *value) {
    if (!filters) {
        *value = text;
        return MB_OK;
    }
    jinja_value input;
    MB_TRY(jinja_enter(&e->run));
    MB_TRY(jinja_eval_filters(e, filters->as.applied.input, text, &input));
    jinja_leave(&e->run);
    return jinja_eval_applied(e, filters, input, value);
}

static mb_status eval_applied(jinja_evaluator *e, const jinja_node *node, jinja_value *value) {
    jinja_value input;
    MB_TRY(jinja_eval(e, node->as.applied.input, &input));
    return jinja_eval_applied(e, node, input, value);
}

static mb_status eval_inner(jinja_evaluator *e, const jinja_node *node, jinja_value *value) {
    switch (node->kind) {
    case NODE_LIST:
    case NODE_TUPLE:
        return eval_list(e, node, value);
    case NODE_DICT:
        return eval_dict(e, node, value);
    case NODE_ATTRIBUTE:
        return eval_attribute(e, node, value);
    case NODE_ITEM:
        return eval_item(e, node, value);
    case NODE_SLICE:
        return eval_slice(e, node, value);
    case NODE_CALL:
        return jinja_eval_call(e, node, NULL, value);
    case NODE_FILTER:
    case NODE_TEST:
        return eval_applied(e, node, value);
    case NODE_NOT:
        return eval_not(e, node, value);
    case NODE_NEGATIVE:
    case NODE_POSITIVE:
        return eval_sign(e, node, value);
    case NODE_BINARY:
        return eval_binary(e, node, value);
    case NODE_CONCAT:
        return eval_concat(e, node, value);
    case NODE_COMPARE:
        return eval_comparison(e, node, value);
    case NODE_AND:
    case NODE_OR:
        return eval_logic(e, node, value);
    default:
        return eval_conditional(e, node, value);
    }
}

mb_status jinja_eval(jinja_evaluator *e, const jinja_node *node, jinja_value *value) {
    if (node->kind == NODE_CONSTANT) {
        *value = node->as.constant;
        return MB_OK;
    }
    MB_TRY(jinja_charge(&e->run, 1));
    if (node->kind == NODE_NAME)
        return eval_name(e, node->as.name, value);
    MB_TRY(jinja_enter(&e->run));
    MB_TRY(eval_inner(e, node, value));
    jinja_leave(&e->run);
    return MB_OK;
}
