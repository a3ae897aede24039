/* ast.h - a parsed template: a tree of nodes in the template's arena, which nothing changes after parsing. */
#ifndef MB_MODEL_JINJA_AST_H
#define MB_MODEL_JINJA_AST_H

#include "model/jinja/jinja.h"
#include "model/jinja/value.h"

typedef struct jinja_node jinja_node;

typedef enum jinja_node_kind {
    /* expressions */
    NODE_CONSTANT,
    NODE_NAME,
    NODE_LIST,
    NODE_TUPLE,
    NODE_DICT,
    NODE_ATTRIBUTE,
    NODE_ITEM,
    NODE_SLICE,
    NODE_CALL,
    NODE_FILTER,
    NODE_TEST,
    NODE_NOT,
    NODE_NEGATIVE,
    NODE_POSITIVE,
    NODE_BINARY,
    NODE_CONCAT,
    NODE_COMPARE,
    NODE_AND,
    NODE_OR,
    NODE_CONDITIONAL,
    /* statements */
    NODE_TEXT,
    NODE_OUTPUT,
    NODE_IF,
    NODE_FOR,
    NODE_SET,
    NODE_SET_BLOCK,
    NODE_MACRO,
    NODE_CALL_BLOCK,
    NODE_FILTER_BLOCK,
    NODE_WITH,
    NODE_GENERATION,
    NODE_BREAK,
    NODE_CONTINUE,
    /* only as the target of set */
    NODE_MEMBER_TARGET,
} jinja_node_kind;

typedef enum jinja_operator {
    OP_ADD,
    OP_SUBTRACT,
    OP_MULTIPLY,
    OP_DIVIDE,
    OP_FLOOR_DIVIDE,
    OP_MODULO,
    OP_POWER,
    OP_EQUAL,
    OP_NOT_EQUAL,
    OP_LESS,
    OP_LESS_EQUAL,
    OP_GREATER,
    OP_GREATER_EQUAL,
    OP_IN,
    OP_NOT_IN,
} jinja_operator;

typedef struct jinja_keyword {
    const jinja_string *name;
    jinja_node *value;
    struct jinja_keyword *next;
} jinja_keyword;

typedef struct jinja_arguments {
    jinja_node *positional;            /* a list by .next */
    jinja_keyword *keywords;           /* a list */
    jinja_node *all_items, *all_pairs; /* f(*items, **pairs), or NULL */
    size_t n_positional, n_keywords;
} jinja_arguments;

typedef struct jinja_parameter {
    int name;
    jinja_node *otherwise; /* the default, or NULL */
    struct jinja_parameter *next;
} jinja_parameter;

/* What a macro and the body of a call share. */
typedef struct jinja_signature {
    jinja_parameter *parameters;
    size_t n_parameters;
    jinja_node *body;
} jinja_signature;

struct jinja_node {
    jinja_node_kind kind;
    int line;
    jinja_node *next;        /* in a list of statements, items or arguments */
    jinja_node *made_before; /* all nodes of a template in one list */
    union {
        jinja_value constant; /* CONSTANT, TEXT */
        int name;             /* NAME: its number */
        struct {
            jinja_node *first; /* DICT: key, value, key, value ... */
            size_t n;
        } items; /* LIST, TUPLE, DICT, CONCAT */
        struct {
            jinja_node *object;
            jinja_value name;
        } attribute;
        struct {
            jinja_node *object, *key;
        } item;
        struct {
            jinja_node *object, *start, *stop, *step; /* NULL: left out */
        } slice;
        struct {
            jinja_node *callee;
            jinja_arguments arguments;
        } call;
        struct {
            jinja_node *input; /* NULL: the text of a block */
            const jinja_function *function;
            jinja_arguments arguments;
        } applied;           /* FILTER, TEST */
        jinja_node *operand; /* NOT, NEGATIVE, POSITIVE, OUTPUT */
        struct {
            jinja_operator operator;
            jinja_node *left, *right;
            jinja_node *then; /* COMPARE: the next comparison of a chain; its left is this one's right */
        } binary;             /* BINARY, COMPARE, AND, OR */
        struct {
            jinja_node *condition, *then, *otherwise; /* lists of statements, or expressions */
        } conditional;                                /* CONDITIONAL, IF */
        struct {
            jinja_node *target, *iterated, *filter, *body, *otherwise;
        } loop;
        struct {
            jinja_node *target, *value; /* SET_BLOCK: value is a chain of filters, or NULL */
            jinja_node *body;
        } set; /* SET, SET_BLOCK; WITH: value NULL, target a list of SETs */
        struct {
            int object;
            jinja_value attribute;
        } member; /* MEMBER_TARGET */
        struct {
            int name;
            jinja_signature signature;
        } macro;
        struct {
            jinja_node *call;
            jinja_signature signature;
        } call_block;
        struct {
            jinja_node *filters, *body;
        } block; /* FILTER_BLOCK, GENERATION */
    } as;
};

enum { JINJA_MAX_NAMES = 1000 };

struct mb_jinja {
    jinja_run run; /* its arena holds the tree; its name is the template's */
    jinja_node *body, *made;
    const jinja_string *names[JINJA_MAX_NAMES];
    int n_names;
    int loop, caller; /* the numbers of these names */
};

#endif
