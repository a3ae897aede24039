/* loops.c - for, its loop variable, and what values are assigned to. */
#include <string.h>

#include "model/jinja/eval.h"

/* ---- Assignment --------------------------------------------------------------------------------------- */

static mb_status assign_tuple(jinja_evaluator *e, jinja_scope *scope, const jinja_node *target,
                              jinja_value value) {
    jinja_list *items;
    MB_TRY(jinja_iterate(&e->run, value, &items));
    if (items->n != target->as.items.n)
        return jinja_stop(&e->run, "%zu names are set to %zu values", target->as.items.n, items->n);
    size_t i = 0;
    for (const jinja_node *item = target->as.items.first; item; item = item->next)
        MB_TRY(jinja_assign(e, scope, item, items->items[i++]));
    return MB_OK;
}

static mb_status assign_member(jinja_evaluator *e, const jinja_node *target, jinja_value value) {
    const jinja_node name = {.kind = NODE_NAME, .as.name = target->as.member.object};
    jinja_value object;
    char shown[96];
    MB_TRY(jinja_eval(e, &name, &object));
    if (object.kind != JINJA_NAMESPACE)
        return jinja_stop(&e->run, "an attribute of %s is set; only namespaces have some to set",
                          jinja_describe(shown, sizeof shown, object));
    if (target->as.member.attribute.of.string->bytes[0] == '_')
        return jinja_stop(&e->run, "attributes of namespaces must not begin with _");
    return jinja_dict_set(&e->run, object.of.dict, target->as.member.attribute, value);
}

mb_status jinja_assign(jinja_evaluator *e, jinja_scope *scope, const jinja_node *target, jinja_value value) {
    if (target->kind == NODE_TUPLE)
        return assign_tuple(e, scope, target, value);
    if (target->kind == NODE_MEMBER_TARGET)
        return assign_member(e, target, value);
    return jinja_bind(e, scope, target->as.name, value);
}

/* ---- The items of a loop ------------------------------------------------------------------------------ */

/* Asks the filter about the next item of the source. */
static mb_status ask(jinja_evaluator *e, jinja_loop *loop) {
    jinja_value item = loop->source->items[loop->n_asked++], answer;
    int is_true = 1;
    if (loop->node->as.loop.filter) {
        jinja_scope *scope, *before = e->scope;
        MB_TRY(jinja_new_scope(e, loop->outer, &scope));
        MB_TRY(jinja_assign(e, scope, loop->node->as.loop.target, item));
        e->scope = scope;
        MB_TRY(jinja_eval(e, loop->node->as.loop.filter, &answer));
        e->scope = before;
        MB_TRY(jinja_is_true(&e->run, answer, &is_true));
    }
    return is_true ? jinja_push(&e->run, &loop->accepted, item) : MB_OK;
}

/* Makes at least n items known, when there are as many. */
static mb_status need_items(jinja_evaluator *e, jinja_loop *loop, size_t n) {
    while (loop->accepted.n < n && loop->n_asked < loop->source->n)
        MB_TRY(ask(e, loop));
    return MB_OK;
}

/* ---- The loop variable -------------------------------------------------------------------------------- */

static mb_status next_item(jinja_evaluator *e, jinja_loop *loop, jinja_value *value) {
    MB_TRY(need_items(e, loop, loop->i + 2));
    *value = loop->i + 1 < loop->accepted.n ? loop->accepted.items[loop->i + 1] : jinja_undefined(NULL);
    return MB_OK;
}

static int is_called(jinja_value name, const char *text) {
    const jinja_string *s = name.of.string;
    return s->n_bytes == strlen(text) && memcmp(s->bytes, text, s->n_bytes) == 0;
}

mb_status jinja_loop_attribute(jinja_evaluator *e, jinja_loop *loop, jinja_value name, jinja_value *value) {
    int64_t i = (int64_t)loop->i;
    if (is_called(name, "index0"))
        *value = jinja_int(i);
    else if (is_called(name, "index"))
        *value = jinja_int(i + 1);
    else if (is_called(name, "first"))
        *value = jinja_bool(i == 0);
    else if (is_called(name, "depth"))
        *value = jinja_int(1);
    else if (is_called(name, "depth0"))
        *value = jinja_int(0);
    else if (is_called(name, "previtem"))
        *value = i > 0 ? loop->accepted.items[i - 1] : jinja_undefined(name.of.string);
    else if (is_called(name, "nextitem"))
        return next_item(e, loop, value);
    else if (is_called(name, "last")) {
        MB_TRY(need_items(e, loop, loop->i + 2));
        *value = jinja_bool(loop->accepted.n == loop->i + 1);
    } else if (is_called(name, "length") || is_called(name, "revindex") || is_called(name, "revindex0")) {
        MB_TRY(need_items(e, loop, SIZE_MAX));
        int64_t n = (int64_t)loop->accepted.n;
        *value = jinja_int(is_called(name, "length") ? n : is_called(name, "revindex") ? n - i : n - i - 1);
    } else
        *value = jinja_undefined(name.of.string);
    return MB_OK;
}

/* ---- The loop ----------------------------------------------------------------------------------------- */

/* The scope of a pass: the one of the pass before, emptied, unless a macro kept that. */
static mb_status begin_pass(jinja_evaluator *e, jinja_loop *loop, jinja_scope **scope) {
    if (*scope && !(*scope)->is_kept)
        (*scope)->n = 0;
    else
        MB_TRY(jinja_new_scope(e, loop->outer, scope));
    jinja_value variable = {.kind = JINJA_LOOP, .of.loop = loop};
    MB_TRY(jinja_bind(e, *scope, e->template->loop, variable));
    return jinja_assign(e, *scope, loop->node->as.loop.target, loop->accepted.items[loop->i]);
}

static mb_status run_passes(jinja_evaluator *e, jinja_loop *loop) {
    jinja_scope *scope = NULL;
    for (;; loop->i++) {
        MB_TRY(need_items(e, loop, loop->i + 1));
        if (loop->i >= loop->accepted.n)
            return MB_OK;
        MB_TRY(jinja_charge(&e->run, 1));
        MB_TRY(begin_pass(e, loop, &scope));
        e->scope = scope;
        MB_TRY(jinja_execute(e, loop->node->as.loop.body));
        e->scope = loop->outer;
        jinja_flow flow = e->flow;
        e->flow = FLOW_ON;
        if (flow == FLOW_BREAK)
            return MB_OK;
    }
}

mb_status jinja_execute_for(jinja_evaluator *e, const jinja_node *node) {
    jinja_value iterated;
    jinja_list *source;
    MB_TRY(jinja_eval(e, node->as.loop.iterated, &iterated));
    MB_TRY(jinja_iterate(&e->run, iterated, &source));
    jinja_loop *loop = jinja_alloc(&e->run.arena, sizeof *loop);
    if (!loop)
        return jinja_no_memory(&e->run);
    *loop = (jinja_loop){.node = node, .outer = e->scope, .source = source};
    if (!node->as.loop.filter) { /* all pass */
        loop->accepted = *source;
        loop->n_asked = source->n;
    }
    MB_TRY(run_passes(e, loop));
    if (loop->accepted.n > 0 || !node->as.loop.otherwise)
        return MB_OK;
    jinja_scope *scope, *before = e->scope;
    MB_TRY(jinja_new_scope(e, before, &scope));
    e->scope = scope;
    MB_TRY(jinja_execute(e, node->as.loop.otherwise));
    e->scope = before;
    return MB_OK;
}
