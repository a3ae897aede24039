/* parse.c - Jinja's statements: from tokens to a tree. */
#include "model/jinja/parse.h"

#include <stdio.h>
#include <string.h>

#include "base/alloc.h"
#include "model/json.h"

static mb_status parse_body(jinja_parser *parser, const char *const *ends, jinja_node **body);

static mb_status end_of_tag(jinja_parser *parser) {
    return jinja_expect_kind(parser, TOKEN_BLOCK_END, "the end of the tag %}");
}

/* Statements up to one of the end words, which is then the current token. The rest of the tag before may be a
 * colon, as in Python. */
static mb_status parse_until(jinja_parser *parser, const char *const *ends, jinja_node **body) {
    int is_taken;
    MB_TRY(jinja_skip_operator(parser, ":", &is_taken));
    MB_TRY(end_of_tag(parser));
    MB_TRY(jinja_nest(parser));
    MB_TRY(parse_body(parser, ends, body));
    parser->depth--;
    return MB_OK;
}

/* The same with one end word, which is taken. */
static mb_status parse_block(jinja_parser *parser, const char *end, jinja_node **body) {
    const char *const ends[] = {end, NULL};
    MB_TRY(parse_until(parser, ends, body));
    return jinja_advance(parser);
}

/* ---- Targets ------------------------------------------------------------------------------------------ */

static mb_status parse_target_item(jinja_parser *parser, int with_members, jinja_node **node);

/* a, b or (a, b); ends at the name `end`, if there is one, at = or at the end of the tag. */
static mb_status parse_target(jinja_parser *parser, int with_members, const char *end, jinja_node **node) {
    jinja_node *first = NULL, **last = &first;
    size_t n = 0;
    int goes_on = 1, is_tuple = 0;
    while (goes_on && !jinja_at_operator(parser, ")") && !jinja_at_operator(parser, "=") &&
           parser->token.kind != TOKEN_BLOCK_END && !(end && jinja_at_name(parser, end))) {
        MB_TRY(parse_target_item(parser, with_members, last));
        last = &(*last)->next;
        n++;
        MB_TRY(jinja_skip_operator(parser, ",", &goes_on));
        is_tuple |= goes_on;
    }
    if (n == 0)
        return jinja_unexpected(parser, "a name to set");
    *node = first;
    if (!is_tuple)
        return MB_OK;
    MB_TRY(jinja_new_node(parser, NODE_TUPLE, node));
    (*node)->as.items.first = first;
    (*node)->as.items.n = n;
    return MB_OK;
}

static mb_status parse_target_item(jinja_parser *parser, int with_members, jinja_node **node) {
    if (jinja_at_operator(parser, "(")) {
        MB_TRY(jinja_nest(parser));
        MB_TRY(jinja_advance(parser));
        MB_TRY(parse_target(parser, with_members, NULL, node));
        parser->depth--;
        return jinja_expect_operator(parser, ")");
    }
    int name, is_member;
    MB_TRY(jinja_take_name(parser, &name));
    MB_TRY(jinja_skip_operator(parser, ".", &is_member));
    if (!is_member) {
        MB_TRY(jinja_new_node(parser, NODE_NAME, node));
        (*node)->as.name = name;
        return MB_OK;
    }
    if (!with_members)
        return jinja_unexpected(parser, "a name to set, not an attribute");
    MB_TRY(jinja_new_node(parser, NODE_MEMBER_TARGET, node));
    (*node)->as.member.object = name;
    return jinja_take_word(parser, &(*node)->as.member.attribute);
}

/* ---- Statements --------------------------------------------------------------------------------------- */

static mb_status parse_if(jinja_parser *parser, jinja_node **node) {
    static const char *const ends[] = {"elif", "else", "endif", NULL};
    jinja_node **branch = node;
    for (;;) {
        MB_TRY(jinja_new_node(parser, NODE_IF, branch));
        MB_TRY(jinja_advance(parser)); /* if, elif */
        MB_TRY(jinja_parse_tuple(parser, 0, NULL, &(*branch)->as.conditional.condition));
        MB_TRY(parse_until(parser, ends, &(*branch)->as.conditional.then));
        branch = &(*branch)->as.conditional.otherwise;
        if (!jinja_at_name(parser, "elif"))
            break;
    }
    int is_else;
    MB_TRY(jinja_skip_name(parser, "else", &is_else));
    return is_else ? parse_block(parser, "endif", branch) : jinja_advance(parser);
}

static mb_status parse_for(jinja_parser *parser, jinja_node **node) {
    static const char *const ends[] = {"endfor", "else", NULL};
    int is_taken;
    MB_TRY(jinja_new_node(parser, NODE_FOR, node));
    MB_TRY(jinja_advance(parser));
    MB_TRY(parse_target(parser, 0, "in", &(*node)->as.loop.target));
    MB_TRY(jinja_expect_name(parser, "in"));
    MB_TRY(jinja_parse_tuple(parser, 0, "recursive", &(*node)->as.loop.iterated));
    MB_TRY(jinja_skip_name(parser, "if", &is_taken));
    if (is_taken)
        MB_TRY(jinja_parse_expression(parser, &(*node)->as.loop.filter));
    if (jinja_at_name(parser, "recursive"))
        return jinja_refuse(parser->run, parser->token.line, parser->token.column,
                            "recursive loops are not supported");
    parser->loop_depth++;
    MB_TRY(parse_until(parser, ends, &(*node)->as.loop.body));
    parser->loop_depth--;
    MB_TRY(jinja_skip_name(parser, "else", &is_taken));
    return is_taken ? parse_block(parser, "endfor", &(*node)->as.loop.otherwise) : jinja_advance(parser);
}

static mb_status parse_set(jinja_parser *parser, jinja_node **node) {
    int is_taken;
    MB_TRY(jinja_new_node(parser, NODE_SET, node));
    MB_TRY(jinja_advance(parser));
    MB_TRY(parse_target(parser, 1, NULL, &(*node)->as.set.target));
    MB_TRY(jinja_skip_operator(parser, "=", &is_taken));
    if (is_taken)
        return jinja_parse_tuple(parser, 1, NULL, &(*node)->as.set.value);
    (*node)->kind = NODE_SET_BLOCK;
    MB_TRY(jinja_parse_filters(parser, 0, &(*node)->as.set.value));
    return parse_block(parser, "endset", &(*node)->as.set.body);
}

/* ( a, b=1 ) */
static mb_status parse_signature(jinja_parser *parser, jinja_signature *signature) {
    jinja_parameter **last = &signature->parameters;
    int has_default = 0;
    MB_TRY(jinja_expect_operator(parser, "("));
    while (!jinja_at_operator(parser, ")")) {
        *last = jinja_alloc(&parser->run->arena, sizeof **last);
        if (!*last)
            return jinja_no_memory(parser->run);
        **last = (jinja_parameter){0};
        MB_TRY(jinja_take_name(parser, &(*last)->name));
        int is_taken;
        MB_TRY(jinja_skip_operator(parser, "=", &is_taken));
        if (has_default && !is_taken)
            return jinja_unexpected(parser, "a default, as the parameters before have one");
        has_default = is_taken;
        if (is_taken)
            MB_TRY(jinja_parse_expression(parser, &(*last)->otherwise));
        last = &(*last)->next;
        signature->n_parameters++;
        if (!jinja_at_operator(parser, ")"))
            MB_TRY(jinja_expect_operator(parser, ","));
    }
    return jinja_advance(parser);
}

/* The body of what is called later: loops outside of it are none of its own. */
static mb_status parse_callable(jinja_parser *parser, const char *end, jinja_node **body) {
    int loop_depth = parser->loop_depth;
    parser->loop_depth = 0;
    MB_TRY(parse_block(parser, end, body));
    parser->loop_depth = loop_depth;
    return MB_OK;
}

static mb_status parse_macro(jinja_parser *parser, jinja_node **node) {
    MB_TRY(jinja_new_node(parser, NODE_MACRO, node));
    MB_TRY(jinja_advance(parser));
    MB_TRY(jinja_take_name(parser, &(*node)->as.macro.name));
    MB_TRY(parse_signature(parser, &(*node)->as.macro.signature));
    return parse_callable(parser, "endmacro", &(*node)->as.macro.signature.body);
}

static mb_status parse_call_block(jinja_parser *parser, jinja_node **node) {
    MB_TRY(jinja_new_node(parser, NODE_CALL_BLOCK, node));
    MB_TRY(jinja_advance(parser));
    if (jinja_at_operator(parser, "("))
        MB_TRY(parse_signature(parser, &(*node)->as.call_block.signature));
    jinja_node *call;
    MB_TRY(jinja_parse_expression(parser, &call));
    if (call->kind != NODE_CALL)
        return jinja_unexpected(parser, "a call before the end of the tag");
    (*node)->as.call_block.call = call;
    return parse_callable(parser, "endcall", &(*node)->as.call_block.signature.body);
}

static mb_status parse_filter_block(jinja_parser *parser, jinja_node **node) {
    MB_TRY(jinja_new_node(parser, NODE_FILTER_BLOCK, node));
    MB_TRY(jinja_advance(parser));
    MB_TRY(jinja_parse_filters(parser, 1, &(*node)->as.block.filters));
    return parse_callable(parser, "endfilter", &(*node)->as.block.body);
}

static mb_status parse_with(jinja_parser *parser, jinja_node **node) {
    MB_TRY(jinja_new_node(parser, NODE_WITH, node));
    MB_TRY(jinja_advance(parser));
    jinja_node **last = &(*node)->as.set.target;
    while (parser->token.kind != TOKEN_BLOCK_END) {
        MB_TRY(jinja_new_node(parser, NODE_SET, last));
        MB_TRY(parse_target_item(parser, 0, &(*last)->as.set.target));
        MB_TRY(jinja_expect_operator(parser, "="));
        MB_TRY(jinja_parse_expression(parser, &(*last)->as.set.value));
        last = &(*last)->next;
        if (parser->token.kind != TOKEN_BLOCK_END)
            MB_TRY(jinja_expect_operator(parser, ","));
    }
    return parse_block(parser, "endwith", &(*node)->as.set.body);
}

static mb_status parse_generation(jinja_parser *parser, jinja_node **node) {
    MB_TRY(jinja_new_node(parser, NODE_GENERATION, node));
    MB_TRY(jinja_advance(parser));
    return parse_callable(parser, "endgeneration", &(*node)->as.block.body);
}

static mb_status parse_jump(jinja_parser *parser, jinja_node **node) {
    if (parser->loop_depth == 0)
        return jinja_refuse(parser->run, parser->token.line, parser->token.column,
                            "break and continue stand in a loop");
    MB_TRY(jinja_new_node(parser, jinja_at_name(parser, "break") ? NODE_BREAK : NODE_CONTINUE, node));
    return jinja_advance(parser);
}

static mb_status parse_statement(jinja_parser *parser, jinja_node **node) {
    static const struct {
        const char *word;
        mb_status (*parse)(jinja_parser *parser, jinja_node **node);
    } statements[] = {
        {"if", parse_if},           {"for", parse_for},
        {"set", parse_set},         {"macro", parse_macro},
        {"call", parse_call_block}, {"filter", parse_filter_block},
        {"with", parse_with},       {"generation", parse_generation},
        {"break", parse_jump},      {"continue", parse_jump},
    };
    for (size_t i = 0; i < sizeof statements / sizeof *statements; i++)
        if (jinja_at_name(parser, statements[i].word)) {
            MB_TRY(statements[i].parse(parser, node));
            return end_of_tag(parser);
        }
    char word[48], shown[56];
    snprintf(word, sizeof word, "%.*s", (int)(parser->token.n_bytes < 40 ? parser->token.n_bytes : 40),
             parser->token.bytes ? parser->token.bytes : "");
    return jinja_refuse(parser->run, parser->token.line, parser->token.column,
                        "the tag %s is not supported here", mb_quote(shown, sizeof shown, word));
}

/* ---- The whole ---------------------------------------------------------------------------------------- */

static int is_one_of(const jinja_parser *parser, const char *const *words) {
    for (; *words; words++)
        if (jinja_at_name(parser, *words))
            return 1;
    return 0;
}

static mb_status parse_data(jinja_parser *parser, jinja_node **node) {
    MB_TRY(jinja_new_node(parser, NODE_TEXT, node));
    MB_TRY(jinja_string_over(parser->run, parser->token.bytes, parser->token.n_bytes, &(*node)->as.constant));
    return jinja_advance(parser);
}

static mb_status parse_output(jinja_parser *parser, jinja_node **node) {
    MB_TRY(jinja_new_node(parser, NODE_OUTPUT, node));
    MB_TRY(jinja_advance(parser));
    MB_TRY(jinja_parse_tuple(parser, 1, NULL, &(*node)->as.operand));
    return jinja_expect_kind(parser, TOKEN_OUTPUT_END, "the end of the output }}");
}

/* Statements up to a tag that begins with one of the words, or, without words, to the template's end. */
static mb_status parse_body(jinja_parser *parser, const char *const *ends, jinja_node **body) {
    for (jinja_node **last = body;; last = &(*last)->next) {
        if (parser->token.kind == TOKEN_END) {
            if (!ends)
                return MB_OK;
            return jinja_refuse(parser->run, parser->token.line, parser->token.column,
                                "the template ends, but {%% %s %%} is missing", ends[0]);
        }
        if (parser->token.kind == TOKEN_DATA) {
            MB_TRY(parse_data(parser, last));
        } else if (parser->token.kind == TOKEN_OUTPUT_BEGIN) {
            MB_TRY(parse_output(parser, last));
        } else {
            MB_TRY(jinja_advance(parser));
            if (ends && is_one_of(parser, ends))
                return MB_OK;
            MB_TRY(parse_statement(parser, last));
        }
    }
}

static mb_status parse_template(jinja_parser *parser, const char *source, size_t n_bytes) {
    mb_jinja *t = parser->template;
    MB_TRY(jinja_lexer_init(&parser->lexer, parser->run, source, n_bytes));
    MB_TRY(jinja_intern(parser, "loop", 4, &t->loop));
    MB_TRY(jinja_intern(parser, "caller", 6, &t->caller));
    MB_TRY(jinja_advance(parser));
    return parse_body(parser, NULL, &t->body);
}

mb_status mb_jinja_parse(const char *name, const char *source, size_t n_bytes, mb_jinja **parsed) {
    *parsed = NULL;
    mb_jinja *t = mb_calloc(1, sizeof *t);
    char *copy = mb_strdup(name);
    if (!t || !copy) {
        mb_free(t);
        mb_free(copy);
        return mb_fail(MB_ERR_MEMORY, "no memory for the chat template %s", name);
    }
    t->run =
        (jinja_run){.arena.max_bytes = (size_t)1 << 30, .name = copy, .max_steps = UINT64_MAX, .line = 1};
    jinja_parser parser = {.template = t, .run = &t->run};
    mb_status status = parse_template(&parser, source, n_bytes);
    if (status != MB_OK) {
        mb_jinja_free(t);
        return status;
    }
    *parsed = t;
    return MB_OK;
}

void mb_jinja_free(mb_jinja *parsed) {
    if (!parsed)
        return;
    jinja_arena_free(&parsed->run.arena);
    mb_free((char *)parsed->run.name);
    mb_free(parsed);
}

int mb_jinja_mentions(const mb_jinja *parsed, const char *name) {
    size_t n = strlen(name);
    for (const jinja_node *node = parsed->made; node; node = node->made_before) {
        const jinja_string *word = node->kind == NODE_NAME        ? parsed->names[node->as.name]
                                   : node->kind == NODE_ATTRIBUTE ? node->as.attribute.name.of.string
                                   : node->kind == NODE_CONSTANT && node->as.constant.kind == JINJA_STRING
                                       ? node->as.constant.of.string
                                       : NULL;
        if (word && word->n_bytes == n && memcmp(word->bytes, name, n) == 0)
            return 1;
    }
    return 0;
}
