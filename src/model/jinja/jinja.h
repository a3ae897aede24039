/*
 * jinja.h - an interpreter for the part of Jinja that chat templates use.
 *
 * Templates run as transformers runs them: jinja2's ImmutableSandboxedEnvironment with trim_blocks,
 * lstrip_blocks and loop controls, and autoescape off. What is understood gives the same text as jinja2. What
 * is not understood is refused when the template is parsed, with line and column.
 *
 * Statements   if, elif, else; for with tuple targets, a filter (for x in y if z), else, break, continue;
 *              set, also of several names, of attributes of a namespace, and as a block; macro with defaults;
 *              call; filter; with; generation (prints its body); raw; comments; white space control (- and +)
 * Expressions  literals of strings, numbers, lists, tuples and dicts; a.b, a['b'], a[i], slices; calls with
 *              keywords; + - * / // % ** ~; comparisons that chain; in, not in; and, or, not; x if c else y
 * loop         index, index0, revindex, revindex0, first, last, length, previtem, nextitem, depth, depth0,
 *              cycle(), changed()
 * Functions    range, namespace, dict, raise_exception, strftime_now; caller in a macro that is called by
 *              call
 * Filters      the tables in filters.c and filters_lists.c; tests: tests.c; methods of strings, lists and
 *              dicts: methods_strings.c, methods.c
 *
 * Left out: inheritance and include, import, do, autoescape, recursive loops, strings formatted with %,
 * varargs and kwargs of macros, and filters that make HTML. Integers have 64 bits (longer
 * ones in the data are kept and printed). Upper and lower case are mapped character by character.
 *
 * Templates come from strangers. A template reads its data and nothing else: no files, no environment, no
 * clock but strftime_now. A rendering is bounded in steps (which bounds time), in depth and in memory.
 */
#ifndef MB_MODEL_JINJA_H
#define MB_MODEL_JINJA_H

#include <jansson.h>
#include <stddef.h>
#include <stdint.h>

#include "base/status.h"

typedef struct mb_jinja mb_jinja;

/* Parses. `name` is what sentences call the template ("chat_template.jinja"); it is copied.
 * MB_ERR_UNSUPPORTED: broken, or outside of the subset; the sentence says where. *parsed is NULL on failure. */
mb_status mb_jinja_parse(const char *name, const char *source, size_t n_bytes, mb_jinja **parsed);
void mb_jinja_free(mb_jinja *parsed); /* NULL allowed */

/* Whether the template reads a variable, an attribute or an item of this name: x, m.x, m['x'], m.get('x'). */
int mb_jinja_mentions(const mb_jinja *parsed, const char *name);

/*
 * Renders with the members of the objects `variables` as variables; of a name that is there twice the last
 * object counts. Any number of threads may render one template. *text: zero-terminated, mb_free.
 * MB_ERR_ARGUMENT: the template stopped (raise_exception, a type that does not fit, a bound reached); the
 * sentence has the template's name and line. MB_ERR_MEMORY.
 */
mb_status mb_jinja_render(const mb_jinja *parsed, const json_t *const *variables, size_t n_variables,
                          char **text);

#endif
