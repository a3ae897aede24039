#include "grammar/nfa.h"

#include "base/alloc.h"
#include "grammar/utf8_ranges.h"

enum {
    MAX_STATES = 1 << 20, /* of one rule */
    DIRECT_COST = 1024,   /* states that a repeat may have without rules for its parts */
    RULE_COST = 64,       /* a repeated item that has more states becomes a rule */
    MAX_COST = 1 << 28,
};

/* ---- Empty text ------------------------------------------------------------------------------------- */

static int is_nullable(const mb_nullable *nullable, const mb_expr *expr) {
    switch (expr->kind) {
    case MB_EXPR_TEXT:
        return expr->n == 0;
    case MB_EXPR_SEQUENCE:
        for (uint32_t i = 0; i < expr->n; i++)
            if (!is_nullable(nullable, expr->of.items[i]))
                return 0;
        return 1;
    case MB_EXPR_CHOICE:
        for (uint32_t i = 0; i < expr->n; i++)
            if (is_nullable(nullable, expr->of.items[i]))
                return 1;
        return 0;
    case MB_EXPR_REPEAT:
        return expr->min == 0 || is_nullable(nullable, expr->of.items[0]);
    case MB_EXPR_CALL:
        return (size_t)expr->min < nullable->n && nullable->of[expr->min];
    default:
        return 0;
    }
}

static int rule_is_nullable(const mb_builder *builder, const mb_nullable *nullable, size_t rule) {
    const mb_rule *r = &builder->rules[rule];
    return r->body && is_nullable(nullable, r->body) && (r->both_with < 0 || nullable->of[r->both_with]);
}

/* Makes room for all rules; new ones count as not nullable. */
static int reserve_nullable(mb_builder *builder, mb_nullable *nullable) {
    if (mb_grammar_grow(&builder->pool, (void **)&nullable->of, &nullable->capacity, builder->n_rules, 1) !=
        0)
        return -1;
    while (nullable->n < builder->n_rules)
        nullable->of[nullable->n++] = 0;
    return 0;
}

void mb_nullable_find(mb_builder *builder, mb_nullable *nullable) {
    if (reserve_nullable(builder, nullable) != 0)
        return;
    for (int changed = 1; changed;) {
        changed = 0;
        for (size_t i = 0; i < nullable->n; i++)
            if (!nullable->of[i] && rule_is_nullable(builder, nullable, i))
                nullable->of[i] = 1, changed = 1;
    }
}

/* ---- States and edges ------------------------------------------------------------------------------- */

static uint32_t new_state(mb_nfa *nfa) {
    mb_grammar_pool *pool = &nfa->builder->pool;
    if (nfa->n_states == MAX_STATES)
        mb_grammar_too_large(pool, "states in one rule", MAX_STATES);
    if (mb_grammar_grow(pool, (void **)&nfa->first_edge, &nfa->states_capacity, nfa->n_states + 1,
                        sizeof *nfa->first_edge) != 0)
        return MB_NFA_END;
    nfa->first_edge[nfa->n_states] = 0;
    return (uint32_t)nfa->n_states++;
}

static void add_edge(mb_nfa *nfa, uint32_t from, mb_nfa_edge edge) {
    if (mb_grammar_grow(&nfa->builder->pool, (void **)&nfa->edges, &nfa->edges_capacity, nfa->n_edges + 1,
                        sizeof *nfa->edges) != 0)
        return;
    edge.next = nfa->first_edge[from];
    nfa->edges[nfa->n_edges++] = edge;
    nfa->first_edge[from] = (uint32_t)nfa->n_edges;
}

static void add_bytes(mb_nfa *nfa, uint32_t from, uint32_t to, uint8_t first, uint8_t last) {
    add_edge(nfa, from, (mb_nfa_edge){.target = to, .kind = MB_NFA_BYTES, .first = first, .last = last});
}

static void add_empty(mb_nfa *nfa, uint32_t from, uint32_t to) {
    add_edge(nfa, from, (mb_nfa_edge){.target = to, .kind = MB_NFA_EMPTY});
}

/* ---- Expressions ------------------------------------------------------------------------------------ */

static void emit(mb_nfa *nfa, mb_nullable *nullable, const mb_expr *expr, uint32_t from, uint32_t to);

static void emit_text(mb_nfa *nfa, const mb_expr *expr, uint32_t from, uint32_t to) {
    if (expr->n == 0)
        add_empty(nfa, from, to);
    for (uint32_t i = 0; i < expr->n; i++) {
        uint32_t next = i + 1 < expr->n ? new_state(nfa) : to;
        add_bytes(nfa, from, next, (uint8_t)expr->of.text[i], (uint8_t)expr->of.text[i]);
        from = next;
    }
}

/* Characters end alike, so their last bytes share states: a range of bytes that leads to a state stands
 * once. */
typedef struct tail {
    uint32_t state, target;
    uint8_t first, last;
} tail;

enum { MAX_TAILS = 64 };

static uint32_t tail_state(mb_nfa *nfa, tail *tails, int *n_tails, uint32_t target, uint8_t first,
                           uint8_t last) {
    for (int i = 0; i < *n_tails; i++)
        if (tails[i].target == target && tails[i].first == first && tails[i].last == last)
            return tails[i].state;
    uint32_t state = new_state(nfa);
    add_bytes(nfa, state, target, first, last);
    if (*n_tails < MAX_TAILS)
        tails[(*n_tails)++] = (tail){state, target, first, last};
    return state;
}

static void emit_chars(mb_nfa *nfa, const mb_expr *expr, uint32_t from, uint32_t to) {
    tail tails[MAX_TAILS];
    int n_tails = 0;
    mb_utf8_range r;
    for (uint32_t i = 0; i < expr->n; i++)
        for (uint32_t first = expr->of.ranges[i].first;
             mb_utf8_next_range(&first, expr->of.ranges[i].last, &r);) {
            uint32_t target = to;
            for (int b = r.n_bytes - 1; b > 0; b--)
                target = tail_state(nfa, tails, &n_tails, target, r.first[b], r.last[b]);
            add_bytes(nfa, from, target, r.first[0], r.last[0]);
        }
}

/* State i has read the text's first i bytes, and no more of it (Knuth, Morris and Pratt 1977). */
static void emit_until(mb_nfa *nfa, const mb_expr *expr, uint32_t from, uint32_t to) {
    mb_grammar_pool *pool = &nfa->builder->pool;
    const char *text = expr->of.text;
    uint32_t n = expr->n, *borders = mb_grammar_pool_push(pool, n + 1, sizeof *borders);
    uint32_t *states = mb_grammar_pool_push(pool, n + 1, sizeof *states);
    if (!borders || !states)
        return;
    for (uint32_t i = 1, k = 0; i < n; borders[++i] = k) {
        while (k > 0 && text[i] != text[k])
            k = borders[k];
        k += text[i] == text[k];
    }
    for (uint32_t i = 0; i < n; i++)
        states[i] = new_state(nfa);
    states[n] = to;
    add_empty(nfa, from, states[0]);
    for (uint32_t i = 0; i < n && pool->status == MB_OK; i++) {
        uint32_t last_target = 0;
        int first = 0;
        for (int byte = 0; byte <= 256; byte++) {
            uint32_t k = i;
            while (byte < 256 && k > 0 && (uint8_t)text[k] != byte)
                k = borders[k];
            uint32_t target = byte < 256 ? states[k + ((uint8_t)text[k] == byte)] : MB_NFA_START;
            if (byte > 0 && target != last_target) {
                add_bytes(nfa, states[i], last_target, (uint8_t)first, (uint8_t)(byte - 1));
                first = byte;
            }
            last_target = target;
        }
    }
}

/* Before member i, the members from i on may come; after it, a separator and those from
 * i + 1 on, or the end. */
static void emit_members(mb_nfa *nfa, mb_nullable *nullable, const mb_expr *expr, uint32_t from,
                         uint32_t to) {
    uint32_t n = expr->n, n_until_all = 0; /* members until none is missing */
    const mb_expr *others = expr->of.items[n], *separator = expr->of.items[n + 1];
    int has_others = others->kind != MB_EXPR_NEVER;
    for (uint32_t i = 0; i < n; i++)
        n_until_all = expr->flags[i] ? i + 1 : n_until_all;
    uint32_t before = new_state(nfa);
    add_empty(nfa, from, before);
    for (uint32_t i = 0; i < n; i++) {
        uint32_t after = new_state(nfa), next = new_state(nfa);
        emit(nfa, nullable, expr->of.items[i], before, after);
        if (!expr->flags[i])
            add_empty(nfa, before, next);
        if (i + 1 < n || has_others)
            emit(nfa, nullable, separator, after, next);
        if (i + 1 >= n_until_all)
            add_empty(nfa, after, to);
        before = next;
    }
    if (has_others) {
        uint32_t after = new_state(nfa);
        emit(nfa, nullable, others, before, after);
        emit(nfa, nullable, separator, after, before);
        add_empty(nfa, after, to);
    }
}

/* State r has read digits that leave the remainder r. */
static void emit_multiples(mb_nfa *nfa, const mb_expr *expr, uint32_t from, uint32_t to) {
    uint32_t divisor = (uint32_t)expr->max, unsigned_part = new_state(nfa);
    uint32_t *states = mb_grammar_pool_push(&nfa->builder->pool, divisor, sizeof *states);
    if (!states)
        return;
    for (uint32_t r = 0; r < divisor; r++)
        states[r] = new_state(nfa);
    add_bytes(nfa, from, unsigned_part, '-', '-');
    add_empty(nfa, from, unsigned_part);
    add_bytes(nfa, unsigned_part, to, '0', '0');
    for (uint32_t digit = 1; digit < 10; digit++)
        add_bytes(nfa, unsigned_part, states[digit % divisor], (uint8_t)('0' + digit),
                  (uint8_t)('0' + digit));
    for (uint32_t r = 0; r < divisor; r++)
        for (uint32_t digit = 0; digit < 10; digit++)
            add_bytes(nfa, states[r], states[(10 * r + digit) % divisor], (uint8_t)('0' + digit),
                      (uint8_t)('0' + digit));
    add_empty(nfa, states[0], to);
}

/* About how many states the expression becomes. */
static int cost_of(const mb_expr *expr) {
    int64_t cost = 1;
    switch (expr->kind) {
    case MB_EXPR_TEXT:
    case MB_EXPR_UNTIL:
        cost = (int64_t)expr->n;
        break;
    case MB_EXPR_CHARS:
        cost = 1;
        for (uint32_t i = 0; i < expr->n; i++)
            cost += expr->of.ranges[i].last >= 0x80 ? 7 : 0;
        cost = cost > 8 && expr->n <= 8 ? 8 : cost;
        break;
    case MB_EXPR_MULTIPLES:
        cost = expr->max;
        break;
    case MB_EXPR_SEQUENCE:
    case MB_EXPR_CHOICE:
    case MB_EXPR_MEMBERS:
        for (uint32_t i = 0; i < expr->n && cost < MAX_COST; i++)
            cost += cost_of(expr->of.items[i]);
        break;
    case MB_EXPR_REPEAT:
        cost = (int64_t)cost_of(expr->of.items[0]) * (expr->max == MB_UNBOUNDED ? expr->min + 1 : expr->max);
        break;
    default:
        break;
    }
    return cost < MAX_COST ? (int)cost : MAX_COST;
}

static int add_rule(mb_nfa *nfa, mb_nullable *nullable, const mb_expr *body) {
    int rule = mb_rule_add(nfa->builder, body);
    if (rule >= 0 && reserve_nullable(nfa->builder, nullable) == 0)
        nullable->of[rule] = (uint8_t)rule_is_nullable(nfa->builder, nullable, (size_t)rule);
    return rule;
}

static void emit_copies(mb_nfa *nfa, mb_nullable *nullable, const mb_expr *item, int min, int max,
                        uint32_t from, uint32_t to) {
    mb_grammar_pool *pool = &nfa->builder->pool;
    for (int i = 0; i < min && pool->status == MB_OK; i++) {
        uint32_t next = new_state(nfa);
        emit(nfa, nullable, item, from, next);
        from = next;
    }
    if (max == MB_UNBOUNDED) {
        uint32_t loop = new_state(nfa);
        add_empty(nfa, from, loop);
        emit(nfa, nullable, item, loop, loop);
        from = loop;
    }
    for (int i = min; i < max && max != MB_UNBOUNDED && pool->status == MB_OK; i++) {
        add_empty(nfa, from, to);
        uint32_t next = new_state(nfa);
        emit(nfa, nullable, item, from, next);
        from = next;
    }
    add_empty(nfa, from, to);
}

/* X{min,max} with a rule B = X{block}: X{min} is B's and a rest. Of the up to k = max - min others, either
 * fewer than k / block are whole blocks and less than a block follows, or all are and k % block follow. */
static void emit_blocks(mb_nfa *nfa, mb_nullable *nullable, const mb_expr *item, int min, int max, int block,
                        uint32_t from, uint32_t to) {
    mb_builder *b = nfa->builder;
    int rule = add_rule(nfa, nullable, mb_expr_repeat(b, item, block, block));
    if (rule < 0)
        return;
    const mb_expr *blocks = mb_expr_call(b, rule);
    const mb_expr *first = mb_expr_pair(b, mb_expr_repeat(b, blocks, min / block, min / block),
                                        mb_expr_repeat(b, item, min % block, min % block));
    const mb_expr *others;
    if (max == MB_UNBOUNDED) {
        others = mb_expr_repeat(b, item, 0, MB_UNBOUNDED);
    } else if (max - min < block) {
        others = mb_expr_repeat(b, item, 0, max - min);
    } else {
        int whole = (max - min) / block, rest = (max - min) % block;
        const mb_expr *choices[] = {
            mb_expr_pair(b, mb_expr_repeat(b, blocks, 0, whole - 1), mb_expr_repeat(b, item, 0, block - 1)),
            mb_expr_pair(b, mb_expr_repeat(b, blocks, whole, whole), mb_expr_repeat(b, item, 0, rest))};
        others = mb_expr_choice(b, choices, 2);
    }
    emit(nfa, nullable, mb_expr_pair(b, first, others), from, to);
}

static void emit_repeat(mb_nfa *nfa, mb_nullable *nullable, const mb_expr *expr, uint32_t from, uint32_t to) {
    const mb_expr *item = expr->of.items[0];
    int64_t count = expr->max == MB_UNBOUNDED ? expr->min + 1 : expr->max, cost = cost_of(item);
    if (nfa->may_call && count > 1 && cost * count > DIRECT_COST) {
        if (cost > RULE_COST) {
            int rule = add_rule(nfa, nullable, item);
            if (rule < 0)
                return;
            item = mb_expr_call(nfa->builder, rule);
            cost = cost_of(item);
        }
        int block = (int)(DIRECT_COST / (cost > 0 ? cost : 1) / 2);
        block = block > 64 ? 64 : block;
        if (cost * count > DIRECT_COST && count > 2 * block) {
            emit_blocks(nfa, nullable, item, expr->min, expr->max, block, from, to);
            return;
        }
    }
    emit_copies(nfa, nullable, item, expr->min, expr->max, from, to);
}

static void emit(mb_nfa *nfa, mb_nullable *nullable, const mb_expr *expr, uint32_t from, uint32_t to) {
    if (nfa->builder->pool.status != MB_OK)
        return;
    switch (expr->kind) {
    case MB_EXPR_NEVER:
        break;
    case MB_EXPR_TEXT:
        emit_text(nfa, expr, from, to);
        break;
    case MB_EXPR_UNTIL:
        emit_until(nfa, expr, from, to);
        break;
    case MB_EXPR_BYTE:
        add_bytes(nfa, from, to, (uint8_t)expr->min, (uint8_t)expr->max);
        break;
    case MB_EXPR_CHARS:
        emit_chars(nfa, expr, from, to);
        break;
    case MB_EXPR_SEQUENCE:
        for (uint32_t i = 0; i < expr->n; i++) {
            uint32_t next = i + 1 < expr->n ? new_state(nfa) : to;
            emit(nfa, nullable, expr->of.items[i], from, next);
            from = next;
        }
        break;
    case MB_EXPR_CHOICE:
        for (uint32_t i = 0; i < expr->n; i++)
            emit(nfa, nullable, expr->of.items[i], from, to);
        break;
    case MB_EXPR_MEMBERS:
        emit_members(nfa, nullable, expr, from, to);
        break;
    case MB_EXPR_MULTIPLES:
        emit_multiples(nfa, expr, from, to);
        break;
    case MB_EXPR_REPEAT:
        emit_repeat(nfa, nullable, expr, from, to);
        break;
    case MB_EXPR_CALL:
        add_edge(nfa, from, (mb_nfa_edge){.target = to, .kind = MB_NFA_CALL, .rule = (uint32_t)expr->min});
        if (nullable->of[expr->min])
            add_empty(nfa, from, to);
        break;
    }
}

void mb_nfa_build(mb_nfa *nfa, mb_nullable *nullable, const mb_expr *expr) {
    nfa->n_states = nfa->n_edges = 0;
    new_state(nfa);
    new_state(nfa);
    emit(nfa, nullable, expr, MB_NFA_START, MB_NFA_END);
}

void mb_nfa_free(mb_nfa *nfa) {
    mb_free(nfa->first_edge);
    mb_free(nfa->edges);
    *nfa = (mb_nfa){0};
}
