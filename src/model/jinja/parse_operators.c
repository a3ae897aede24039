/* parse_operators.c - Jinja's operators by recursive descent, one function a level of precedence. */
#include "model/jinja/parse.h"

typedef mb_status (*parse_fn)(jinja_parser *parser, jinja_node **node);

static mb_status parse_signed(jinja_parser *parser, int with_filters, jinja_node **node) {
    jinja_node_kind kind = jinja_at_operator(parser, "-")   ? NODE_NEGATIVE
                           : jinja_at_operator(parser, "+") ? NODE_POSITIVE
                                                            : NODE_CONSTANT;
    if (kind == NODE_CONSTANT) {
        MB_TRY(jinja_parse_primary(parser, node));
    } else {
        MB_TRY(jinja_nest(parser));
        MB_TRY(jinja_new_node(parser, kind, node));
        MB_TRY(jinja_advance(parser));
        MB_TRY(parse_signed(parser, 0, &(*node)->as.operand));
        parser->depth--;
    }
    MB_TRY(jinja_parse_postfix(parser, node));
    return with_filters ? jinja_parse_filters_and_tests(parser, node) : MB_OK;
}

static mb_status parse_unary(jinja_parser *parser, jinja_node **node) {
    return parse_signed(parser, 1, node);
}

typedef struct operator_name {
    const char *text;
    jinja_operator operator;
} operator_name;

static const operator_name powers[] = {{"**", OP_POWER}, {NULL, 0}};
static const operator_name products[] = {
    {"*", OP_MULTIPLY}, {"/", OP_DIVIDE}, {"//", OP_FLOOR_DIVIDE}, {"%", OP_MODULO}, {NULL, 0}};
static const operator_name sums[] = {{"+", OP_ADD}, {"-", OP_SUBTRACT}, {NULL, 0}};
static const operator_name comparisons[] = {
    {"==", OP_EQUAL},  {"!=", OP_NOT_EQUAL},     {"<", OP_LESS}, {"<=", OP_LESS_EQUAL},
    {">", OP_GREATER}, {">=", OP_GREATER_EQUAL}, {NULL, 0}};

static const operator_name *find_operator(const jinja_parser *parser, const operator_name *names) {
    for (; names->text; names++)
        if (jinja_at_operator(parser, names->text))
            return names;
    return NULL;
}

/* Operators of one level, from left to right. A long row is a deep tree, so its length is bounded. */
static mb_status parse_row(jinja_parser *parser, const operator_name *names, parse_fn operand,
                           jinja_node **node) {
    const operator_name *found;
    MB_TRY(operand(parser, node));
    for (int n = 0; (found = find_operator(parser, names)) != NULL; n++) {
        jinja_node *left = *node;
        if (n == 100)
            return jinja_unexpected(parser, "at most 100 operators in a row");
        MB_TRY(jinja_new_node(parser, NODE_BINARY, node));
        (*node)->as.binary.operator= found->operator;
        (*node)->as.binary.left = left;
        MB_TRY(jinja_advance(parser));
        MB_TRY(operand(parser, &(*node)->as.binary.right));
    }
    return MB_OK;
}

static mb_status parse_power(jinja_parser *parser, jinja_node **node) {
    return parse_row(parser, powers, parse_unary, node);
}

static mb_status parse_product(jinja_parser *parser, jinja_node **node) {
    return parse_row(parser, products, parse_power, node);
}

static mb_status parse_concat(jinja_parser *parser, jinja_node **node) {
    jinja_node *first, *item;
    MB_TRY(parse_product(parser, &first));
    *node = first;
    if (!jinja_at_operator(parser, "~"))
        return MB_OK;
    MB_TRY(jinja_new_node(parser, NODE_CONCAT, node));
    jinja_node **end = &(*node)->as.items.first;
    jinja_append(&end, first);
    (*node)->as.items.n = 1;
    while (jinja_at_operator(parser, "~")) {
        MB_TRY(jinja_advance(parser));
        MB_TRY(parse_product(parser, &item));
        jinja_append(&end, item);
        (*node)->as.items.n++;
    }
    return MB_OK;
}

static mb_status parse_sum(jinja_parser *parser, jinja_node **node) {
    return parse_row(parser, sums, parse_concat, node);
}

/* The comparison that is next, with its words taken; 0: there is none. */
static mb_status take_comparison(jinja_parser *parser, int *is_taken, jinja_operator *operator) {
    const operator_name *found = find_operator(parser, comparisons);
    *is_taken = 1;
    if (found) {
        *operator= found->operator;
        return jinja_advance(parser);
    }
    if (jinja_at_name(parser, "in")) {
        *operator= OP_IN;
        return jinja_advance(parser);
    }
    if (jinja_at_name(parser, "not")) {
        MB_TRY(jinja_look_ahead(parser));
        if (jinja_token_is(&parser->ahead, TOKEN_NAME, "in")) {
            *operator= OP_NOT_IN;
            MB_TRY(jinja_advance(parser));
            return jinja_advance(parser);
        }
    }
    *is_taken = 0;
    return MB_OK;
}

static mb_status parse_comparison(jinja_parser *parser, jinja_node **node) {
    jinja_node *left;
    int is_taken;
    jinja_operator operator;
    MB_TRY(parse_sum(parser, node));
    left = *node;
    jinja_node **next = node;
    for (;;) {
        MB_TRY(take_comparison(parser, &is_taken, &operator));
        if (!is_taken)
            return MB_OK;
        jinja_node *compare;
        MB_TRY(jinja_new_node(parser, NODE_COMPARE, &compare));
        compare->as.binary.operator= operator;
        compare->as.binary.left = left;
        MB_TRY(parse_sum(parser, &compare->as.binary.right));
        left = compare->as.binary.right;
        *next = compare;
        next = &compare->as.binary.then;
    }
}

static mb_status parse_not(jinja_parser *parser, jinja_node **node) {
    if (!jinja_at_name(parser, "not"))
        return parse_comparison(parser, node);
    MB_TRY(jinja_nest(parser));
    MB_TRY(jinja_new_node(parser, NODE_NOT, node));
    MB_TRY(jinja_advance(parser));
    MB_TRY(parse_not(parser, &(*node)->as.operand));
    parser->depth--;
    return MB_OK;
}

/* a and b and c: the tree leans to the right, which gives the same value and is evaluated in a loop. */
static mb_status parse_logic(jinja_parser *parser, const char *word, jinja_node_kind kind, parse_fn operand,
                             jinja_node **node) {
    jinja_node *left;
    int is_taken;
    for (;;) {
        MB_TRY(operand(parser, &left));
        *node = left;
        MB_TRY(jinja_skip_name(parser, word, &is_taken));
        if (!is_taken)
            return MB_OK;
        MB_TRY(jinja_new_node(parser, kind, node));
        (*node)->as.binary.left = left;
        node = &(*node)->as.binary.right;
    }
}

static mb_status parse_and(jinja_parser *parser, jinja_node **node) {
    return parse_logic(parser, "and", NODE_AND, parse_not, node);
}

mb_status jinja_parse_plain_expression(jinja_parser *parser, jinja_node **node) {
    MB_TRY(jinja_nest(parser));
    MB_TRY(parse_logic(parser, "or", NODE_OR, parse_and, node));
    parser->depth--;
    return MB_OK;
}

mb_status jinja_parse_expression(jinja_parser *parser, jinja_node **node) {
    int is_taken;
    MB_TRY(jinja_nest(parser));
    MB_TRY(jinja_parse_plain_expression(parser, node));
    for (int n = 0;; n++) {
        jinja_node *then = *node;
        MB_TRY(jinja_skip_name(parser, "if", &is_taken));
        if (!is_taken)
            break;
        if (n == 50)
            return jinja_unexpected(parser, "at most 50 conditions in a row");
        MB_TRY(jinja_new_node(parser, NODE_CONDITIONAL, node));
        (*node)->as.conditional.then = then;
        MB_TRY(jinja_parse_plain_expression(parser, &(*node)->as.conditional.condition));
        MB_TRY(jinja_skip_name(parser, "else", &is_taken));
        if (is_taken)
            MB_TRY(jinja_parse_expression(parser, &(*node)->as.conditional.otherwise));
    }
    parser->depth--;
    return MB_OK;
}
