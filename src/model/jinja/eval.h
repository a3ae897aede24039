/* eval.h - the state of one rendering, shared by the evaluators of expressions, calls and statements. */
#ifndef MB_MODEL_JINJA_EVAL_H
#define MB_MODEL_JINJA_EVAL_H

#include "model/jinja/ast.h"
#include "model/jinja/function.h"

typedef struct jinja_binding {
    int name;
    jinja_value value;
} jinja_binding;

/* Variables of a loop's pass, a macro's call or a block. A macro keeps the scope that it was made in, and
 * finds there what was set later, too. */
typedef struct jinja_scope {
    struct jinja_scope *outer; /* NULL: the template's variables */
    jinja_binding *bindings;
    size_t n, capacity;
    int is_kept; /* a macro has it: no reuse for the next pass of a loop */
} jinja_scope;

typedef enum jinja_flow { FLOW_ON, FLOW_BREAK, FLOW_CONTINUE } jinja_flow;

struct jinja_evaluator {
    jinja_run run;
    const mb_jinja *template;
    jinja_scope *scope;
    jinja_value *variables; /* [n_names] of the template; undefined without a string: not set */
    jinja_builder *out;
    jinja_flow flow;
};

struct jinja_macro {
    const jinja_signature *signature;
    const jinja_string *name;
    jinja_scope *scope;
};

/* A loop that runs. The filter is asked no sooner than needed: its answer may depend on what the body set. */
struct jinja_loop {
    const jinja_node *node;
    jinja_scope *outer;
    const jinja_list *source;
    size_t n_asked;      /* items of the source that the filter has seen */
    jinja_list accepted; /* those that passed */
    size_t i;            /* the current one */
    jinja_value changed; /* the last argument of loop.changed() */
    int has_changed;
};

/* expressions.c */
mb_status jinja_eval(jinja_evaluator *e, const jinja_node *node, jinja_value *value);
/* A filter or test on a value. */
mb_status jinja_eval_applied(jinja_evaluator *e, const jinja_node *node, jinja_value input,
                             jinja_value *value);
/* A block's filters on its text. */
mb_status jinja_eval_filters(jinja_evaluator *e, const jinja_node *filters, jinja_value text,
                             jinja_value *value);

/* calls.c. caller: what a call block hands over, or NULL. */
mb_status jinja_eval_call(jinja_evaluator *e, const jinja_node *node, const jinja_value *caller,
                          jinja_value *value);
mb_status jinja_eval_arguments(jinja_evaluator *e, const jinja_arguments *arguments, jinja_call *call);

/* statements.c */
mb_status jinja_execute(jinja_evaluator *e, const jinja_node *body);
/* Executes into a text of its own, with a scope of its own. */
mb_status jinja_capture(jinja_evaluator *e, const jinja_node *body, jinja_scope *scope, jinja_value *text);
mb_status jinja_new_scope(jinja_evaluator *e, jinja_scope *outer, jinja_scope **scope);
mb_status jinja_bind(jinja_evaluator *e, jinja_scope *scope, int name, jinja_value value);

/* loops.c */
mb_status jinja_execute_for(jinja_evaluator *e, const jinja_node *node);
mb_status jinja_assign(jinja_evaluator *e, jinja_scope *scope, const jinja_node *target, jinja_value value);
mb_status jinja_loop_attribute(jinja_evaluator *e, jinja_loop *loop, jinja_value name, jinja_value *value);

/* operators.c */
mb_status jinja_binary(jinja_run *run, jinja_operator operator, jinja_value a, jinja_value b,
                       jinja_value *value);
mb_status jinja_compare(jinja_run *run, jinja_operator operator, jinja_value a, jinja_value b, int *is_true);
mb_status jinja_negate(jinja_run *run, jinja_value v, jinja_value *value);
mb_status jinja_escape(jinja_run *run, const jinja_string *string, jinja_value *value);

#endif
