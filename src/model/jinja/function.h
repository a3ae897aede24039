/* function.h - what templates can call: filters, tests, methods and global functions,
 * each a row of a table. */
#ifndef MB_MODEL_JINJA_FUNCTION_H
#define MB_MODEL_JINJA_FUNCTION_H

#include "model/jinja/value.h"

enum { JINJA_MAX_PARAMETERS = 5 };

typedef struct jinja_evaluator jinja_evaluator;

/* The arguments of a call, evaluated. */
typedef struct jinja_call {
    const jinja_value *positional;
    size_t n_positional;
    const jinja_string *const *names;
    const jinja_value *named; /* [n_named], with their names */
    size_t n_named;
} jinja_call;

/* What a function is given. */
typedef struct jinja_given {
    jinja_evaluator *evaluator;
    jinja_run *run;
    jinja_value self; /* the value before the | or the . */
    jinja_value at[JINJA_MAX_PARAMETERS];
    int has[JINJA_MAX_PARAMETERS]; /* whether the parameter was given */
    const jinja_call *call;        /* for functions with any arguments (parameters NULL) */
} jinja_given;

struct jinja_function {
    const char *name;
    mb_status (*run)(const jinja_given *given, jinja_value *result); /* NULL: not supported */
    const char *parameters; /* names, separated by spaces; NULL: any arguments, not bound */
    int n_required;
};

/* A method with the value that it belongs to. */
struct jinja_bound {
    const jinja_function *function;
    jinja_value self;
};

/* Tables end with a row without name. */
extern const jinja_function jinja_filters[], jinja_tests[], jinja_globals[];
extern const jinja_function jinja_string_methods[], jinja_list_methods[], jinja_tuple_methods[],
    jinja_dict_methods[], jinja_loop_methods[];

const jinja_function *jinja_function_find(const jinja_function *table, const char *name, size_t n_bytes);
/* Whether a method of this name is not supported and no other type has one that is. */
int jinja_method_is_missing(const jinja_string *name);
/* Binds the arguments to the parameters and runs the function. */
mb_status jinja_function_run(jinja_evaluator *evaluator, const jinja_function *function, jinja_value self,
                             const jinja_call *call, jinja_value *result);

/* ---- What functions need of the evaluator -------------------------------------------------------------- */

/* value.name and value[key]: *result is undefined when there is no such thing. */
mb_status jinja_get_attribute(jinja_evaluator *evaluator, jinja_value value, jinja_value name,
                              jinja_value *result);
mb_status jinja_get_item(jinja_evaluator *evaluator, jinja_value value, jinja_value key, jinja_value *result);
mb_status jinja_get_slice(jinja_run *run, jinja_value value, const jinja_value parts[3], jinja_value *result);

/* Arguments of a certain type; absent ones leave the value. The sentence names the function's parameter. */
mb_status jinja_take_int(const jinja_given *given, int i, int64_t *value);
mb_status jinja_take_bool(const jinja_given *given, int i, int *value);
mb_status jinja_take_string(const jinja_given *given, int i, const jinja_string **value);

#endif
