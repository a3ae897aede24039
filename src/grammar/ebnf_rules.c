/* What is done to the rules of an EBNF grammar before they become automata. A call costs a place on the
 * stack, and what follows it is looked at anew in each step; so loops are loops, and small bodies take the
 * place of their calls. */
#include "base/alloc.h"
#include "grammar/ebnf.h"

enum {
    MAX_INLINED = 128,    /* cost of a body that takes the place of its calls */
    MAX_INLINED_LOOP = 8, /* ... that repeats something without limit: better one rule for all who call it */
    MAX_INLINED_ONCE = 512, /* ... of which there is one call */
    MAX_COST = 1 << 13,     /* of all bodies that stand in one other; beyond, this keeps its calls */
};

/* ---- Loops ------------------------------------------------------------------------------------------ */

static const mb_expr *const *items_of(const mb_expr *const *expr, mb_expr_kind kind, size_t *n) {
    *n = (*expr)->kind == kind ? (*expr)->n : 1;
    return (*expr)->kind == kind ? (*expr)->of.items : expr;
}

static int calls(const mb_expr *expr, int rule) {
    return expr->kind == MB_EXPR_CALL && expr->min == rule;
}

/* r ::= a r | b is a* b, and r ::= r a | b is b a*. */
const mb_expr *mb_ebnf_as_loop(mb_builder *b, int rule, const mb_expr *body) {
    size_t n, n_items, n_first = 0, n_last = 0;
    const mb_expr *const *alternatives = items_of(&body, MB_EXPR_CHOICE, &n);
    for (size_t i = 0; i < n; i++) {
        const mb_expr *const *items = items_of(&alternatives[i], MB_EXPR_SEQUENCE, &n_items);
        if (n_items > 1) {
            n_first += calls(items[0], rule);
            n_last += calls(items[n_items - 1], rule);
        }
    }
    if ((n_first == 0) == (n_last == 0))
        return body;
    mb_expr_list again = {0}, once = {0};
    for (size_t i = 0; i < n; i++) {
        const mb_expr *const *items = items_of(&alternatives[i], MB_EXPR_SEQUENCE, &n_items);
        const mb_expr *call = items[n_first ? 0 : n_items - 1];
        if (!calls(call, rule)) {
            mb_expr_add(b, &once, alternatives[i]);
            continue;
        }
        if (n_items > 1)
            mb_expr_add(b, &again, mb_expr_sequence(b, items + (n_first > 0), n_items - 1));
        ((mb_expr *)call)->kind = MB_EXPR_NEVER; /* no part of the body any more */
    }
    const mb_expr *loop = mb_expr_repeat(b, mb_expr_list_choice(b, &again), 0, MB_UNBOUNDED);
    const mb_expr *rest = mb_expr_list_choice(b, &once);
    return n_first ? mb_expr_pair(b, rest, loop) : mb_expr_pair(b, loop, rest);
}

/* ---- Inlining --------------------------------------------------------------------------------------- */

/* About the states of an expression. */
typedef struct weight {
    long cost;
    int loops, calls;
} weight;

static weight weigh(const mb_expr *expr) {
    weight sum = {expr->kind == MB_EXPR_TEXT ? (long)expr->n : 1, 0, expr->kind == MB_EXPR_CALL};
    int has_items =
        expr->kind == MB_EXPR_SEQUENCE || expr->kind == MB_EXPR_CHOICE || expr->kind == MB_EXPR_REPEAT;
    for (uint32_t i = 0; has_items && i < expr->n && sum.cost <= MAX_COST; i++) {
        weight item = weigh(expr->of.items[i]);
        sum.cost += item.cost;
        sum.loops |= item.loops;
        sum.calls |= item.calls;
    }
    if (expr->kind == MB_EXPR_REPEAT) {
        sum.loops |= expr->max == MB_UNBOUNDED;
        long times = expr->max == MB_UNBOUNDED ? expr->min + 1 : expr->max;
        sum.cost *= times; /* both are some million at most */
    }
    sum.cost = sum.cost <= MAX_COST ? sum.cost : MAX_COST + 1;
    return sum;
}

/* What a rule calls comes first. A rule that is met on its own way is recursive and stays a rule, and so does
 * each that calls it. As deep as there are rules: some thousand. */
static void visit(mb_builder *b, mb_ebnf_rules *rules, mb_ebnf_rule *rule) {
    int first_rule = rules->items[0].rule;
    rule->is_on_path = 1;
    long cost = 0;
    for (size_t i = 0; i < rule->n_calls; i++) {
        mb_expr *call = rules->calls[rule->first_call + i];
        mb_ebnf_rule *called = &rules->items[call->min - first_rule];
        if (!called->is_done && !called->is_on_path)
            visit(b, rules, called);
        if (called->is_inlined && cost < MAX_COST) {
            const mb_expr *body = b->rules[called->rule].body;
            cost += weigh(body).cost;
            *call = *body;
        }
    }
    weight w = weigh(b->rules[rule->rule].body);
    long most = rule->n_callers == 1 ? MAX_INLINED_ONCE : w.loops ? MAX_INLINED_LOOP : MAX_INLINED;
    rule->is_inlined = !w.calls && w.cost <= most;
    rule->is_on_path = 0;
    rule->is_done = 1;
}

/* Marks the rules that are still called. */
static void find_called(const mb_builder *b, const mb_ebnf_rules *rules, const mb_ebnf_rule *rule,
                        uint8_t *is_called) {
    int first_rule = rules->items[0].rule;
    for (size_t i = 0; i < rule->n_calls; i++) {
        const mb_expr *call = rules->calls[rule->first_call + i];
        if (call->kind != MB_EXPR_CALL || is_called[call->min - first_rule])
            continue;
        is_called[call->min - first_rule] = 1;
        find_called(b, rules, &rules->items[call->min - first_rule], is_called);
    }
}

const mb_expr *mb_ebnf_inline(mb_builder *b, mb_ebnf_rules *rules, mb_ebnf_rule *root) {
    for (size_t i = 0; i < rules->n_calls; i++)
        if (rules->calls[i]->kind == MB_EXPR_CALL)
            rules->items[rules->calls[i]->min - rules->items[0].rule].n_callers++;
    visit(b, rules, root);
    const mb_expr *body = b->rules[root->rule].body;
    uint8_t *is_called = mb_grammar_pool_push(&b->pool, rules->n, 1);
    if (!is_called)
        return NULL;
    find_called(b, rules, root, is_called);
    for (size_t i = 0; i < rules->n; i++)
        if (!is_called[i])
            mb_rule_set(b, rules->items[i].rule, mb_expr_never());
    return is_called[root - rules->items] ? mb_expr_call(b, root->rule) : body;
}
