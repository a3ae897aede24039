/*
 * value.h - the values that templates compute with, as Python has them, and the memory they live in.
 *
 * Values never change once they are made, but for namespaces and the positions of iterators. All memory of a
 * rendering is in one jinja_arena and is freed as a whole, so nothing is counted or collected.
 */
#ifndef MB_MODEL_JINJA_VALUE_H
#define MB_MODEL_JINJA_VALUE_H

#include <stddef.h>
#include <stdint.h>

#include "base/status.h"

/* ---- Memory ------------------------------------------------------------------------------------------- */

typedef struct jinja_chunk jinja_chunk;

typedef struct jinja_arena {
    jinja_chunk *chunks;
    size_t n_bytes, max_bytes; /* handed out so far, and the bound */
    int is_full;               /* the bound was reached */
} jinja_arena;

/* Aligned to 16 bytes. NULL: no memory, or beyond the bound. */
void *jinja_alloc(jinja_arena *arena, size_t n_bytes);
void jinja_arena_free(jinja_arena *arena);

/* ---- Values ------------------------------------------------------------------------------------------- */

typedef enum jinja_kind {
    JINJA_UNDEFINED, /* of: the name that is undefined, for the sentence */
    JINJA_NONE,
    JINJA_BOOL,
    JINJA_INT,
    JINJA_BIG, /* an integer of the data beyond 64 bits: string is its text */
    JINJA_FLOAT,
    JINJA_STRING,
    JINJA_LIST,
    JINJA_TUPLE,
    JINJA_RANGE,    /* these four hold a list, too */
    JINJA_VIEW,     /* of a dict: keys(), values(), items() */
    JINJA_ITERATOR, /* what map, select, items and the like give: read once */
    JINJA_DICT,
    JINJA_NAMESPACE,
    JINJA_LOOP,
    JINJA_MACRO,
    JINJA_FUNCTION, /* a global function */
    JINJA_METHOD,   /* of a value, not yet called */
} jinja_kind;

typedef struct jinja_string {
    const char *bytes; /* UTF-8, not terminated */
    size_t n_bytes, n_chars;
    int is_markup; /* from the filters safe and escape: + escapes what is added */
} jinja_string;

typedef struct jinja_list jinja_list;
typedef struct jinja_dict jinja_dict;
typedef struct jinja_loop jinja_loop;
typedef struct jinja_macro jinja_macro;
typedef struct jinja_bound jinja_bound;
typedef struct jinja_function jinja_function;

typedef struct jinja_value {
    jinja_kind kind;
    union {
        int boolean;
        int64_t integer;
        double real;
        const jinja_string *string; /* UNDEFINED, BIG, STRING */
        jinja_list *list;
        jinja_dict *dict; /* DICT, NAMESPACE */
        jinja_loop *loop;
        jinja_macro *macro;
        const jinja_function *function;
        jinja_bound *bound;
    } of;
} jinja_value;

struct jinja_list {
    jinja_value *items;
    size_t n, capacity;
    size_t at;                 /* JINJA_ITERATOR: the next item */
    const char *type_name;     /* JINJA_VIEW: "dict_keys" and so on */
    int64_t start, stop, step; /* JINJA_RANGE */
};

typedef struct jinja_pair {
    jinja_value key, value;
} jinja_pair;

struct jinja_dict {
    jinja_pair *pairs; /* in the order of their first setting */
    size_t n, capacity;
};

/* What a rendering may use, and where in the template it is. */
typedef struct jinja_run {
    jinja_arena arena;
    const char *name; /* of the template */
    uint64_t steps, max_steps;
    int depth;
    int line;
} jinja_run;

enum { JINJA_MAX_DEPTH = 250 };

/* Records a sentence that begins with the template's name and the line. MB_ERR_ARGUMENT. */
mb_status jinja_stop(const jinja_run *run, const char *format, ...) __attribute__((format(printf, 2, 3)));
/* The failure of the arena with name and line. */
mb_status jinja_no_memory(const jinja_run *run);
/* Counts work; every loop over data calls this. Fails when the rendering took too many steps. */
mb_status jinja_charge(jinja_run *run, uint64_t steps);
/* The charge of work on so many bytes. */
mb_status jinja_charge_bytes(jinja_run *run, size_t n_bytes);
/* Recursion: enter fails when it is too deep; leave after success alone. */
mb_status jinja_enter(jinja_run *run);
static inline void jinja_leave(jinja_run *run) {
    run->depth--;
}

static inline jinja_value jinja_none(void) {
    return (jinja_value){.kind = JINJA_NONE};
}
static inline jinja_value jinja_bool(int is_true) {
    return (jinja_value){.kind = JINJA_BOOL, .of.boolean = is_true != 0};
}
static inline jinja_value jinja_int(int64_t integer) {
    return (jinja_value){.kind = JINJA_INT, .of.integer = integer};
}
static inline jinja_value jinja_real(double real) {
    return (jinja_value){.kind = JINJA_FLOAT, .of.real = real};
}
static inline jinja_value jinja_undefined(const jinja_string *name) {
    return (jinja_value){.kind = JINJA_UNDEFINED, .of.string = name};
}
static inline int jinja_is_undefined(jinja_value v) {
    return v.kind == JINJA_UNDEFINED;
}
static inline int jinja_is_string(jinja_value v) {
    return v.kind == JINJA_STRING;
}
/* Lists, tuples, ranges, views and iterators: of.list. */
static inline int jinja_is_listed(jinja_value v) {
    return v.kind >= JINJA_LIST && v.kind <= JINJA_ITERATOR;
}

/* A string over bytes that live as long as the rendering; NULL: no bytes. */
mb_status jinja_string_over(jinja_run *run, const char *bytes, size_t n_bytes, jinja_value *value);
/* A string of a constant. */
mb_status jinja_text(jinja_run *run, const char *text, jinja_value *value);
/* An empty list of the kind; items are pushed while nobody else sees the list. */
mb_status jinja_new_list(jinja_run *run, jinja_kind kind, size_t capacity, jinja_value *value);
mb_status jinja_push(jinja_run *run, jinja_list *list, jinja_value item);
mb_status jinja_pair_of(jinja_run *run, jinja_value a, jinja_value b, jinja_value *tuple);
mb_status jinja_new_dict(jinja_run *run, jinja_kind kind, size_t capacity, jinja_value *value);
mb_status jinja_dict_set(jinja_run *run, jinja_dict *dict, jinja_value key, jinja_value value);
/* NULL in *found: no such key. */
mb_status jinja_dict_find(jinja_run *run, const jinja_dict *dict, jinja_value key, jinja_value **found);
jinja_value *jinja_dict_get(const jinja_dict *dict, const char *key);

/* As Python's type(): for sentences. */
const char *jinja_type_name(jinja_value v);
/* A value's text for a sentence: "text", 17, a list. */
const char *jinja_describe(char *buffer, size_t capacity, jinja_value v);

mb_status jinja_is_true(jinja_run *run, jinja_value v, int *is_true);
mb_status jinja_equal(jinja_run *run, jinja_value a, jinja_value b, int *is_equal);
/* *order: negative, 0, positive, as strcmp; 2 where one of them is NaN. Fails when these have no order. */
mb_status jinja_order(jinja_run *run, jinja_value a, jinja_value b, int *order);
mb_status jinja_contains(jinja_run *run, jinja_value container, jinja_value item, int *is_in);
/* The items that a loop over v goes through; an iterator is used up by this. Fails for what cannot be
 * iterated. The list may be v's own: it must not be changed. */
mb_status jinja_iterate(jinja_run *run, jinja_value v, jinja_list **items);
mb_status jinja_length(jinja_run *run, jinja_value v, int64_t *length);
/* A number as a double; 0: not a number. Booleans are numbers, as in Python. */
int jinja_number(jinja_value v, double *number);
/* An integer (a boolean too); 0: not one. */
int jinja_integer(jinja_value v, int64_t *integer);

/* ---- Text --------------------------------------------------------------------------------------------- */

/* Where the needle stands first at or after `from`, in bytes; SIZE_MAX: nowhere. strings.c */
size_t jinja_find(const jinja_string *text, const jinja_string *needle, size_t from);
/* The bytes of one character, and its code point. */
size_t jinja_next_char(const char *bytes, size_t n_bytes, int32_t *code);
int jinja_is_space(int32_t code);

/* Bytes that grow in the arena. A failure is kept and reported by jinja_built. */
typedef struct jinja_builder {
    jinja_run *run;
    char *bytes;
    size_t n_bytes, capacity;
    mb_status status;
} jinja_builder;

void jinja_put(jinja_builder *out, const char *bytes, size_t n_bytes);
void jinja_put_text(jinja_builder *out, const char *text);
void jinja_put_string(jinja_builder *out, const jinja_string *string);
mb_status jinja_built(jinja_builder *out, jinja_value *value);

/* str(v) and repr(v). */
mb_status jinja_put_str(jinja_builder *out, jinja_value v);
mb_status jinja_put_repr(jinja_builder *out, jinja_value v);
mb_status jinja_str(jinja_run *run, jinja_value v, const jinja_string **string);

typedef struct jinja_json_format {
    int ensure_ascii, sort_keys;
    const jinja_string *indent; /* NULL: all in one line */
    const jinja_string *item_separator, *key_separator;
} jinja_json_format;

mb_status jinja_put_json(jinja_builder *out, jinja_value v, const jinja_json_format *format);

#endif
