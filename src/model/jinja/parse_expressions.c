/* parse_expressions.c - literals, names, and what follows them: attributes, items, calls, filters, tests. */
#include <stdio.h>
#include <string.h>

#include "model/jinja/function.h"
#include "model/jinja/parse.h"

static mb_status parse_tuple(jinja_parser *parser, int with_conditional, int can_be_empty, const char *end,
                             jinja_node **node);

/* ---- Arguments, filters, tests ------------------------------------------------------------------------ */

static mb_status parse_keyword(jinja_parser *parser, jinja_keyword **keyword) {
    jinja_value name;
    MB_TRY(jinja_take_word(parser, &name));
    MB_TRY(jinja_advance(parser)); /* the = */
    *keyword = jinja_alloc(&parser->run->arena, sizeof **keyword);
    if (!*keyword)
        return jinja_no_memory(parser->run);
    **keyword = (jinja_keyword){.name = name.of.string};
    return jinja_parse_expression(parser, &(*keyword)->value);
}

/* ( a, b, name=c, *d, **e ) */
static mb_status parse_arguments(jinja_parser *parser, jinja_arguments *arguments) {
    jinja_node **end = &arguments->positional;
    jinja_keyword **last = &arguments->keywords;
    MB_TRY(jinja_expect_operator(parser, "("));
    while (!jinja_at_operator(parser, ")")) {
        jinja_node **all = jinja_at_operator(parser, "*")    ? &arguments->all_items
                           : jinja_at_operator(parser, "**") ? &arguments->all_pairs
                                                             : NULL;
        MB_TRY(jinja_look_ahead(parser));
        if (all && (*all || arguments->all_pairs)) {
            return jinja_unexpected(parser, "at most one argument with * and then one with **");
        } else if (all) {
            MB_TRY(jinja_advance(parser));
            MB_TRY(jinja_parse_expression(parser, all));
        } else if (parser->token.kind == TOKEN_NAME && !arguments->all_pairs &&
                   jinja_token_is(&parser->ahead, TOKEN_OPERATOR, "=")) {
            MB_TRY(parse_keyword(parser, last));
            last = &(*last)->next;
            arguments->n_keywords++;
        } else if (arguments->n_keywords > 0 || arguments->all_items || arguments->all_pairs) {
            return jinja_unexpected(parser, "an argument with a name");
        } else {
            jinja_node *node;
            MB_TRY(jinja_parse_expression(parser, &node));
            jinja_append(&end, node);
            arguments->n_positional++;
        }
        if (!jinja_at_operator(parser, ")"))
            MB_TRY(jinja_expect_operator(parser, ","));
    }
    return jinja_advance(parser);
}

static mb_status find_function(jinja_parser *parser, const jinja_function *table, const char *what,
                               const jinja_function **function) {
    char name[64];
    const jinja_token token = parser->token;
    if (token.kind != TOKEN_NAME && token.kind != TOKEN_OPERATOR)
        return jinja_unexpected(parser, "a name");
    snprintf(name, sizeof name, "%.*s", (int)(token.n_bytes < 60 ? token.n_bytes : 60), token.bytes);
    *function = jinja_function_find(table, name, strlen(name));
    if (!*function)
        return jinja_refuse(parser->run, token.line, token.column, "the %s \"%s\" is not supported", what,
                            name);
    return jinja_advance(parser);
}

mb_status jinja_parse_filters(jinja_parser *parser, int is_first, jinja_node **node) {
    for (int n = 0; is_first || jinja_at_operator(parser, "|"); n++) {
        if (n == 50)
            return jinja_unexpected(parser, "at most 50 filters in a row");
        if (!is_first)
            MB_TRY(jinja_advance(parser));
        is_first = 0;
        jinja_node *filter;
        MB_TRY(jinja_new_node(parser, NODE_FILTER, &filter));
        filter->as.applied.input = *node;
        MB_TRY(find_function(parser, jinja_filters, "filter", &filter->as.applied.function));
        if (jinja_at_operator(parser, "("))
            MB_TRY(parse_arguments(parser, &filter->as.applied.arguments));
        *node = filter;
    }
    return MB_OK;
}

/* Whether an argument without parentheses begins here: x is divisibleby 3. */
static int begins_argument(const jinja_parser *parser) {
    const jinja_token *token = &parser->token;
    if (token->kind == TOKEN_STRING || token->kind == TOKEN_NUMBER)
        return 1;
    if (token->kind == TOKEN_NAME)
        return !jinja_at_name(parser, "else") && !jinja_at_name(parser, "or") &&
               !jinja_at_name(parser, "and");
    return jinja_at_operator(parser, "[") || jinja_at_operator(parser, "{");
}

static mb_status parse_test(jinja_parser *parser, jinja_node **node) {
    jinja_node *test;
    int is_negated;
    MB_TRY(jinja_new_node(parser, NODE_TEST, &test));
    MB_TRY(jinja_advance(parser));
    MB_TRY(jinja_skip_name(parser, "not", &is_negated));
    test->as.applied.input = *node;
    if (parser->token.kind != TOKEN_NAME)
        return jinja_unexpected(parser, "the name of a test");
    MB_TRY(find_function(parser, jinja_tests, "test", &test->as.applied.function));
    jinja_arguments *arguments = &test->as.applied.arguments;
    if (jinja_at_operator(parser, "(")) {
        MB_TRY(parse_arguments(parser, arguments));
    } else if (begins_argument(parser)) {
        if (jinja_at_name(parser, "is"))
            return jinja_unexpected(parser, "no second test (tests do not chain)");
        MB_TRY(jinja_parse_primary(parser, &arguments->positional));
        MB_TRY(jinja_parse_postfix(parser, &arguments->positional));
        arguments->n_positional = 1;
    }
    *node = test;
    if (is_negated) {
        MB_TRY(jinja_new_node(parser, NODE_NOT, node));
        (*node)->as.operand = test;
    }
    return MB_OK;
}

/* ---- Literals ----------------------------------------------------------------------------------------- */

static mb_status parse_list(jinja_parser *parser, jinja_node **node) {
    MB_TRY(jinja_new_node(parser, NODE_LIST, node));
    MB_TRY(jinja_advance(parser));
    jinja_node **end = &(*node)->as.items.first, *item;
    while (!jinja_at_operator(parser, "]")) {
        MB_TRY(jinja_parse_expression(parser, &item));
        jinja_append(&end, item);
        (*node)->as.items.n++;
        if (!jinja_at_operator(parser, "]"))
            MB_TRY(jinja_expect_operator(parser, ","));
    }
    return jinja_advance(parser);
}

static mb_status parse_dict(jinja_parser *parser, jinja_node **node) {
    MB_TRY(jinja_new_node(parser, NODE_DICT, node));
    MB_TRY(jinja_advance(parser));
    jinja_node **end = &(*node)->as.items.first, *item;
    while (!jinja_at_operator(parser, "}")) {
        MB_TRY(jinja_parse_expression(parser, &item));
        jinja_append(&end, item);
        MB_TRY(jinja_expect_operator(parser, ":"));
        MB_TRY(jinja_parse_expression(parser, &item));
        jinja_append(&end, item);
        (*node)->as.items.n += 2;
        if (!jinja_at_operator(parser, "}"))
            MB_TRY(jinja_expect_operator(parser, ","));
    }
    return jinja_advance(parser);
}

/* "a" "b" is "ab". */
static mb_status parse_string(jinja_parser *parser, jinja_node *node) {
    jinja_value string = parser->token.value;
    MB_TRY(jinja_advance(parser));
    if (parser->token.kind == TOKEN_STRING) {
        jinja_builder joined = {.run = parser->run};
        jinja_put_string(&joined, string.of.string);
        while (parser->token.kind == TOKEN_STRING) {
            jinja_put_string(&joined, parser->token.value.of.string);
            MB_TRY(jinja_advance(parser));
        }
        MB_TRY(jinja_built(&joined, &string));
    }
    node->as.constant = string;
    return MB_OK;
}

static mb_status parse_name(jinja_parser *parser, jinja_node *node) {
    static const struct {
        const char *name;
        jinja_value value;
    } constants[] = {
        {"true", {JINJA_BOOL, {1}}},  {"True", {JINJA_BOOL, {1}}}, {"false", {JINJA_BOOL, {0}}},
        {"False", {JINJA_BOOL, {0}}}, {"none", {JINJA_NONE, {0}}}, {"None", {JINJA_NONE, {0}}},
    };
    for (size_t i = 0; i < sizeof constants / sizeof *constants; i++)
        if (jinja_at_name(parser, constants[i].name)) {
            node->as.constant = constants[i].value;
            return jinja_advance(parser);
        }
    static const char *const missing[] = {"cycler", "joiner", "lipsum", "varargs", "kwargs", "self", "super"};
    for (size_t i = 0; i < sizeof missing / sizeof *missing; i++)
        if (jinja_at_name(parser, missing[i]))
            return jinja_refuse(parser->run, parser->token.line, parser->token.column,
                                "\"%s\" is not supported", missing[i]);
    node->kind = NODE_NAME;
    return jinja_take_name(parser, &node->as.name);
}

mb_status jinja_parse_primary(jinja_parser *parser, jinja_node **node) {
    if (jinja_at_operator(parser, "[") || jinja_at_operator(parser, "{"))
        return jinja_at_operator(parser, "[") ? parse_list(parser, node) : parse_dict(parser, node);
    if (jinja_at_operator(parser, "(")) {
        MB_TRY(jinja_advance(parser));
        MB_TRY(parse_tuple(parser, 1, 1, NULL, node));
        return jinja_expect_operator(parser, ")");
    }
    MB_TRY(jinja_new_node(parser, NODE_CONSTANT, node));
    if (parser->token.kind == TOKEN_NAME)
        return parse_name(parser, *node);
    if (parser->token.kind == TOKEN_STRING)
        return parse_string(parser, *node);
    if (parser->token.kind != TOKEN_NUMBER)
        return jinja_unexpected(parser, "an expression");
    (*node)->as.constant = parser->token.value;
    return jinja_advance(parser);
}

/* The end of the tag, or of the brackets, or the name `end`. */
static int at_tuple_end(const jinja_parser *parser, const char *end) {
    return parser->token.kind == TOKEN_OUTPUT_END || parser->token.kind == TOKEN_BLOCK_END ||
           jinja_at_operator(parser, ")") || (end && jinja_at_name(parser, end));
}

static mb_status parse_tuple(jinja_parser *parser, int with_conditional, int can_be_empty, const char *end,
                             jinja_node **node) {
    jinja_node *first = NULL, **last = &first, *item;
    size_t n = 0;
    int is_tuple = 0, goes_on = 1;
    while (goes_on && !at_tuple_end(parser, end)) {
        MB_TRY(with_conditional ? jinja_parse_expression(parser, &item)
                                : jinja_parse_plain_expression(parser, &item));
        jinja_append(&last, item);
        n++;
        MB_TRY(jinja_skip_operator(parser, ",", &goes_on));
        is_tuple |= goes_on;
    }
    if (n == 1 && !is_tuple) {
        *node = first;
        return MB_OK;
    }
    if (n == 0 && !can_be_empty)
        return jinja_unexpected(parser, "an expression");
    MB_TRY(jinja_new_node(parser, NODE_TUPLE, node));
    (*node)->as.items.first = first;
    (*node)->as.items.n = n;
    return MB_OK;
}

mb_status jinja_parse_tuple(jinja_parser *parser, int with_conditional, const char *end, jinja_node **node) {
    return parse_tuple(parser, with_conditional, 0, end, node);
}

/* ---- Postfixes ---------------------------------------------------------------------------------------- */

static mb_status parse_attribute(jinja_parser *parser, jinja_node **node) {
    jinja_node *object = *node;
    MB_TRY(jinja_advance(parser));
    if (parser->token.kind == TOKEN_NUMBER && parser->token.value.kind == JINJA_INT) { /* x.0 */
        jinja_node *key;
        MB_TRY(jinja_new_node(parser, NODE_CONSTANT, &key));
        key->as.constant = parser->token.value;
        MB_TRY(jinja_new_node(parser, NODE_ITEM, node));
        (*node)->as.item.object = object;
        (*node)->as.item.key = key;
        return jinja_advance(parser);
    }
    MB_TRY(jinja_new_node(parser, NODE_ATTRIBUTE, node));
    (*node)->as.attribute.object = object;
    return jinja_take_word(parser, &(*node)->as.attribute.name);
}

/* The rest of a[start:stop:step] behind its first expression. */
static mb_status parse_slice(jinja_parser *parser, jinja_node *start, jinja_node **node) {
    jinja_node *object = *node, **parts[2];
    MB_TRY(jinja_new_node(parser, NODE_SLICE, node));
    (*node)->as.slice.object = object;
    (*node)->as.slice.start = start;
    parts[0] = &(*node)->as.slice.stop;
    parts[1] = &(*node)->as.slice.step;
    for (int i = 0; i < 2 && jinja_at_operator(parser, ":"); i++) {
        MB_TRY(jinja_advance(parser));
        if (!jinja_at_operator(parser, ":") && !jinja_at_operator(parser, "]"))
            MB_TRY(jinja_parse_expression(parser, parts[i]));
    }
    return MB_OK;
}

static mb_status parse_subscript(jinja_parser *parser, jinja_node **node) {
    jinja_node *object = *node, *key = NULL;
    MB_TRY(jinja_advance(parser));
    if (!jinja_at_operator(parser, ":"))
        MB_TRY(jinja_parse_expression(parser, &key));
    if (jinja_at_operator(parser, ":")) {
        MB_TRY(parse_slice(parser, key, node));
    } else {
        MB_TRY(jinja_new_node(parser, NODE_ITEM, node));
        (*node)->as.item.object = object;
        (*node)->as.item.key = key;
    }
    return jinja_expect_operator(parser, "]");
}

/* Methods that Python's types have and that are not in our tables are refused here, not
 * when they are called. */
static mb_status check_method(const jinja_parser *parser, const jinja_node *callee) {
    if (callee->kind != NODE_ATTRIBUTE)
        return MB_OK;
    const jinja_string *name = callee->as.attribute.name.of.string;
    if (jinja_method_is_missing(name))
        return jinja_refuse(parser->run, parser->token.line, parser->token.column,
                            "the method \"%.*s\" is not supported", (int)name->n_bytes, name->bytes);
    return MB_OK;
}

static mb_status parse_call(jinja_parser *parser, jinja_node **node) {
    jinja_node *callee = *node;
    MB_TRY(check_method(parser, callee));
    MB_TRY(jinja_new_node(parser, NODE_CALL, node));
    (*node)->as.call.callee = callee;
    return parse_arguments(parser, &(*node)->as.call.arguments);
}

mb_status jinja_parse_postfix(jinja_parser *parser, jinja_node **node) {
    for (int n = 0;; n++) {
        if (n == 50)
            return jinja_unexpected(parser, "at most 50 attributes, items and calls in a row");
        if (jinja_at_operator(parser, "."))
            MB_TRY(parse_attribute(parser, node));
        else if (jinja_at_operator(parser, "["))
            MB_TRY(parse_subscript(parser, node));
        else if (jinja_at_operator(parser, "("))
            MB_TRY(parse_call(parser, node));
        else
            return MB_OK;
    }
}

mb_status jinja_parse_filters_and_tests(jinja_parser *parser, jinja_node **node) {
    for (int n = 0;; n++) {
        if (n == 50)
            return jinja_unexpected(parser, "at most 50 filters and tests in a row");
        if (jinja_at_operator(parser, "|"))
            MB_TRY(jinja_parse_filters(parser, 0, node));
        else if (jinja_at_name(parser, "is"))
            MB_TRY(parse_test(parser, node));
        else if (jinja_at_operator(parser, "("))
            MB_TRY(parse_call(parser, node));
        else
            return MB_OK;
    }
}
